// All features of an SAE as points: near ones have similar decoder rows. Size and colour say how strongly each fires;
// the pointer or the arrows find one, a click or Enter opens it. Texts only through fillText and textContent.
const TINTS = { activation: "#d55e00", density: "#0072b2" };
const HEIGHT = 430;
const PAD = 16;
const bytes = (text, kind) => new kind(Uint8Array.from(atob(text), (each) => each.charCodeAt(0)).buffer);
const html = (tag, name, parent, text) => {
  const node = document.createElement(tag);
  node.className = name;
  if (text != null) node.textContent = text;
  parent?.append(node);
  return node;
};
const mix = (low, high, share) => low.map((each, i) => Math.round(each + (high[i] - each) * share));
const rgb = (css) => {
  const pen = (rgb.pen ||= document.createElement("canvas").getContext("2d", { willReadFrequently: true }));
  pen.fillStyle = css;
  pen.fillRect(0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
};

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  const kept = (root.kept ||= { k: 1, x: 0.5, y: 0.5, at: null });
  const focused = root.getRootNode().activeElement?.tagName === "CANVAS";
  root.replaceChildren();
  const frame = html("div", "frame", root);
  const canvas = html("canvas", "", frame);
  const tip = html("div", "tip", frame);
  tip.setAttribute("role", "status");
  const tools = html("div", "tools", frame);
  const begun = performance.now();
  const count = data.count;
  const xs = bytes(data.x, Uint16Array), ys = bytes(data.y, Uint16Array), values = bytes(data.value, Uint8Array);
  const order = Uint32Array.from({ length: count }, (_, i) => i).sort((a, b) => values[a] - values[b]);
  const found = new Set(data.found || []);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "map of features");
  canvas.setAttribute("aria-label", data.label);

  // near points are looked for in the cells of a grid
  const CELLS = 64;
  const cells = new Map();
  for (let i = 0; i < count; i++) {
    const at = (xs[i] >> 10) * CELLS + (ys[i] >> 10);
    if (!cells.has(at)) cells.set(at, []);
    cells.get(at).push(i);
  }

  let width = 0, ratio = 1, colours = [], text = "", back = "", accent = "";
  const scale = () => [(width - 2 * PAD) * kept.k, (HEIGHT - 2 * PAD) * kept.k];
  const place = (i) => {
    const [w, h] = scale();
    return [width / 2 + (xs[i] / 65535 - kept.x) * w, HEIGHT / 2 - (ys[i] / 65535 - kept.y) * h];
  };
  const radius = (i) => (count > 8000 ? 1.1 : count > 3000 ? 1.5 : 2) * Math.min(kept.k ** 0.35, 2.2) * (1 + 1.6 * (values[i] / 255) ** 0.7);
  const name = (i) => `#${i}${data.labels[i] ? " " + data.labels[i] : ""}`;

  const draw = () => {
    width = frame.clientWidth;
    ratio = window.devicePixelRatio || 1;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = HEIGHT * ratio;
    canvas.style.height = HEIGHT + "px";
    const style = getComputedStyle(root);
    text = style.getPropertyValue("--st-text-color").trim();
    back = style.getPropertyValue("--st-background-color").trim();
    accent = style.getPropertyValue("--st-primary-color").trim();
    const faint = mix(rgb(back), rgb(text), 0.24), tint = rgb(TINTS[data.by]);
    const strong = mix(tint, rgb(text), 0.08);
    colours = Array.from({ length: 256 }, (_, v) => `rgb(${mix(faint, strong, v ? 0.25 + 0.75 * (v / 255) ** 0.6 : 0)})`);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.clearRect(0, 0, width, HEIGHT);
    let last = -1;
    for (const i of order) {
      const [x, y] = place(i), r = radius(i);
      if (x < -r || y < -r || x > width + r || y > HEIGHT + r) continue;
      if (values[i] !== last) pen.fillStyle = colours[(last = values[i])];
      if (r < 1.8) pen.fillRect(x - r, y - r, 2 * r, 2 * r);
      else {
        pen.beginPath();
        pen.arc(x, y, r, 0, 6.2832);
        pen.fill();
      }
    }
    const ring = (i, colour, grow, wide) => {
      const [x, y] = place(i);
      pen.beginPath();
      pen.arc(x, y, radius(i) + grow, 0, 6.2832);
      pen.strokeStyle = colour;
      pen.lineWidth = wide;
      pen.stroke();
    };
    for (const i of found) ring(i, accent, 2.5, 1.5);
    if (data.selected != null) ring(data.selected, text, 3.5, 2);
    if (kept.at != null && kept.at < count) ring(kept.at, text, 2, 1.2);
    write(pen);
  };

  // the names of what one looks for: the open one, one's own labels, what was found, what fires most
  const write = (pen) => {
    const own = Object.keys(data.own || {}).map(Number);
    const top = [...order.subarray(Math.max(count - 60, 0))].reverse().filter((i) => data.by === "activation" && values[i] > 0);
    const wanted = [...new Set([...(data.selected != null ? [data.selected] : []), ...own, ...found, ...top])];
    const taken = [];
    pen.font = `12px ${getComputedStyle(root).fontFamily}`;
    pen.lineJoin = "round";
    for (const i of wanted) {
      if (taken.length >= (width < 500 ? 9 : 16)) break;
      const [x, y] = place(i);
      if (x < 0 || y < 8 || x > width || y > HEIGHT - 8) continue;
      const label = (data.own?.[i] || data.labels[i] || `#${i}`).slice(0, 26);
      const long = pen.measureText(label).width;
      const left = x + radius(i) + 5 + long > width ? x - radius(i) - 5 - long : x + radius(i) + 5;
      const box = [left - 2, y - 8, left + long + 2, y + 8];
      if (taken.some((each) => box[0] < each[2] && box[2] > each[0] && box[1] < each[3] && box[3] > each[1])) continue;
      taken.push(box);
      pen.strokeStyle = back;
      pen.lineWidth = 3;
      pen.strokeText(label, left, y + 4);
      pen.fillStyle = text;
      pen.font = pen.font.replace(/^(bold )?/, i === data.selected || data.own?.[i] ? "bold " : "");
      pen.fillText(label, left, y + 4);
      pen.font = pen.font.replace("bold ", "");
    }
  };

  const near = (px, py, most) => {
    const [w, h] = scale();
    const u = kept.x + (px - width / 2) / w, v = kept.y - (py - HEIGHT / 2) / h;
    const reach = [Math.ceil((most / w) * CELLS) + 1, Math.ceil((most / h) * CELLS) + 1];
    let best = null, least = most * most;
    const [cx, cy] = [Math.floor(u * CELLS), Math.floor(v * CELLS)];
    for (let a = cx - reach[0]; a <= cx + reach[0]; a++)
      for (let b = cy - reach[1]; b <= cy + reach[1]; b++)
        for (const i of (a < 0 || b < 0 ? null : cells.get(a * CELLS + b)) || []) {
          const [x, y] = place(i), far = (x - px) ** 2 + (y - py) ** 2;
          if (far < least) [best, least] = [i, far];
        }
    return best;
  };
  const tell = (i) => {
    if (i === kept.at && tip.textContent && i != null) return;
    kept.at = i;
    tip.replaceChildren();
    tip.hidden = i == null;
    canvas.style.cursor = i == null ? (kept.k > 1 ? "grab" : "default") : "pointer";
    if (i != null) {
      html("div", "name", tip, data.own?.[i] ? `#${i} ${data.own[i]}` : name(i));
      if (data.notes?.[i]) html("div", "quiet", tip, data.notes[i]);
      if (data.examples?.[i]) {
        const line = html("div", "line", tip);
        for (const [part, marked] of data.examples[i]) html(marked ? "b" : "span", "", line, part);
      }
      const [x, y] = place(i);
      tip.style.left = Math.min(Math.max(x - 20, 4), Math.max(width - tip.offsetWidth - 4, 4)) + "px";
      tip.style.top = (y + tip.offsetHeight + 22 > HEIGHT ? y - tip.offsetHeight - 14 : y + 14) + "px";
    }
    draw();
  };
  const clamp = () => {
    kept.k = Math.min(Math.max(kept.k, 1), 60);
    const half = 0.5 / kept.k;
    kept.x = Math.min(Math.max(kept.x, half), 1 - half);
    kept.y = Math.min(Math.max(kept.y, half), 1 - half);
  };
  const zoom = (factor, px = width / 2, py = HEIGHT / 2) => {
    const [w, h] = scale();
    const u = kept.x + (px - width / 2) / w, v = kept.y - (py - HEIGHT / 2) / h;
    kept.k *= factor;
    kept.k = Math.min(Math.max(kept.k, 1), 60);
    const [w2, h2] = scale();
    [kept.x, kept.y] = [u - (px - width / 2) / w2, v + (py - HEIGHT / 2) / h2];
    clamp();
    draw();
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const open = (i) => setTriggerValue("act", { open: i });
  let from = null, moved = false;
  canvas.onpointerdown = (event) => {
    from = at(event);
    moved = false;
  };
  canvas.onpointermove = (event) => {
    const [x, y] = at(event);
    if (from && event.buttons && kept.k > 1 && (moved || Math.hypot(x - from[0], y - from[1]) > 4)) {
      if (!moved) canvas.setPointerCapture(event.pointerId);
      moved = true;
      const [w, h] = scale();
      kept.x -= (x - from[0]) / w;
      kept.y += (y - from[1]) / h;
      from = [x, y];
      clamp();
      draw();
    } else if (!event.buttons) tell(near(x, y, 14));
  };
  canvas.onpointerup = (event) => {
    const hit = !moved && from ? near(...at(event), event.pointerType === "touch" ? 24 : 14) : null;
    from = null;
    if (hit != null) open(hit);
  };
  canvas.onpointerleave = () => !canvas.matches(":focus-visible") && tell(null);
  canvas.ondblclick = (event) => near(...at(event), 14) == null && zoom(2, ...at(event));
  // the wheel alone scrolls the page
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * 0.004), ...at(event));
  }, { passive: false });
  canvas.onkeydown = (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Enter" || event.key === " ") kept.at != null && open(kept.at);
    else if (event.key === "+" || event.key === "=") zoom(1.6);
    else if (event.key === "-") zoom(1 / 1.6);
    else if (event.key === "0") zoom(1e-9);
    else if (event.key === "Escape") return tell(null);
    else if (!way) return;
    event.preventDefault();
    if (!way) return;
    const start = kept.at ?? data.selected ?? 0;
    const [x, y] = place(start);
    let best = null, least = Infinity;
    for (let i = 0; i < count; i++) {
      if (i === start) continue;
      const [a, b] = place(i), along = (a - x) * way[0] + (b - y) * way[1], aside = Math.abs((a - x) * way[1]) + Math.abs((b - y) * way[0]);
      if (along <= 0.5 || aside > along * 1.2) continue;
      const far = along + 1.5 * aside;
      if (far < least) [best, least] = [i, far];
    }
    if (best == null) return;
    const [a, b] = place(best), [w, h] = scale();
    if (a < 0 || b < 0 || a > width || b > HEIGHT) {
      kept.x += (a - width / 2) / w;
      kept.y -= (b - HEIGHT / 2) / h;
      clamp();
    }
    tell(best);
  };
  for (const [label, sign, act] of [["Zoom in", "+", () => zoom(1.6)], ["Zoom out", "−", () => zoom(1 / 1.6)], ["Show all", "⤢", () => zoom(1e-9)]]) {
    const button = html("button", "tool", tools, sign);
    button.setAttribute("aria-label", label);
    button.title = label;
    button.onclick = act;
  }
  const foot = html("div", "foot", root);
  const legend = html("span", "legend", foot);
  html("span", "", legend, data.low);
  const bar = html("i", "", legend);
  html("span", "", legend, data.high);
  html("span", "quiet", foot, data.note);
  const draws = new ResizeObserver(draw);
  draws.observe(frame);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", draw);
  tip.hidden = true;
  draw();
  bar.style.background = `linear-gradient(90deg, ${[0, 60, 140, 255].map((v) => colours[v] || "grey").join(",")})`;
  if (focused) canvas.focus();
  root.dataset.points = count;
  root.dataset.drawn = (performance.now() - begun).toFixed(0);
  return () => {
    draws.disconnect();
    dark.removeEventListener("change", draw);
  };
}
