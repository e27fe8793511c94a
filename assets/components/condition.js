// How alike examples and counterexamples are to a condition, as two histograms, and a threshold to drag: F1, precision,
// recall and the confusion follow while it moves, and are set when it is let go.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  root.act = (value) => setTriggerValue("act", value);
  const shown = JSON.stringify(data);
  if (root.shown === shown) return;
  root.shown = shown;
  const active = root.getRootNode().activeElement;
  const had = active && root.contains(active);
  root.replaceChildren();
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, name, parent, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    if (name) node.setAttribute("class", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text != null) node.textContent = text;
    parent?.append(node);
    return node;
  };
  const make = (tag, name, parent, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text != null) node.textContent = text;
    parent?.append(node);
    return node;
  };
  const number = (value) => Number(value.toPrecision(3)).toString().replace("-", "−");
  const points = data.x, step = points.length > 1 ? points[1] - points[0] : 1;
  const [low, high] = [points[0] - step / 2, points[points.length - 1] + step / 2];
  const narrow = root.clientWidth > 0 && root.clientWidth < 480;
  const W = narrow ? 360 : 640, H = 220, L = 8, R = 8, MID = 100, T = 22;
  const x = (value) => L + (W - L - R) * (Math.min(Math.max(value, low), high) - low) / (high - low || 1);
  const most = Math.max(...data.positive, ...data.negative, 1);
  const svg = draw("svg", "", root, { viewBox: `0 0 ${W} ${H}`, tabindex: 0, role: "slider" });
  svg.setAttribute("aria-label", "Threshold");
  const bars = [];
  for (const [side, counts] of [["positive", data.positive], ["negative", data.negative]])
    counts.forEach((count, at) => {
      const height = (MID - T) * count / most;
      const bar = draw("rect", side, svg, {
        x: x(points[at] - step / 2) + 0.5, width: Math.max(x(points[at] + step / 2) - x(points[at] - step / 2) - 1, 1),
        y: side === "positive" ? MID - height : MID, height,
      });
      draw("title", "", bar, {}, `${count} ${side === "positive" ? "examples" : "counterexamples"} at ${number(points[at])}`);
      bars.push([bar, at]);
    });
  draw("line", "base", svg, { x1: L, x2: W - R, y1: MID, y2: MID });
  const ends = H - 22;
  draw("text", "axis", svg, { x: L, y: ends + 14 }, number(low));
  draw("text", "axis", svg, { x: W - R, y: ends + 14, "text-anchor": "end" }, number(high));
  draw("text", "axis", svg, { x: W / 2, y: ends + 14, "text-anchor": "middle" }, data.xLabel);
  if (data.here != null) {
    draw("path", "here", svg, { d: `M${x(data.here) - 5},${ends - 9} l5,-9 l5,9 z` });
    draw("text", "axis", svg, { x: x(data.here), y: ends, "text-anchor": "middle" }, "this prompt");
  }
  const handle = draw("line", "handle", svg, { y1: T - 8, y2: ends - 20 });
  const grip = draw("rect", "grip", svg, { width: 12, height: 16, rx: 3, y: T - 14 });
  const numbers = make("div", "numbers", root);
  const table = make("table", "confusion", root);
  let at = data.threshold;
  const show = (value) => {
    let near = 0;
    points.forEach((point, i) => { if (Math.abs(point - value) < Math.abs(points[near] - value)) near = i; });
    at = points[near];
    const fires = (point) => (data.above ? point > at : point < at);
    const tp = data.hits[near], fp = data.alarms[near], fn = data.counts[0] - tp, tn = data.counts[1] - fp;
    const precision = tp + fp ? tp / (tp + fp) : 0, recall = tp / data.counts[0];
    const f1 = tp ? 2 * tp / (2 * tp + fp + fn) : 0;
    for (const [name, place] of [["x1", x(at)], ["x2", x(at)]]) handle.setAttribute(name, place);
    grip.setAttribute("x", x(at) - 6);
    for (const [bar, i] of bars) bar.classList.toggle("missed", !fires(points[i]));
    numbers.replaceChildren();
    for (const [name, value] of [["fires " + (data.above ? "above" : "below"), number(at)], ["F1", f1.toFixed(2)],
      ["precision", precision.toFixed(2)], ["recall", recall.toFixed(2)]]) {
      const span = make("span", "", numbers, `${name} `);
      make("b", "", span, value);
    }
    table.replaceChildren();
    const head = make("tr", "", table);
    for (const text of ["", "fires", "stays quiet"]) make("th", "quiet", head, text);
    for (const [side, name, one, other] of [["positive", "examples", tp, fn], ["negative", "counterexamples", fp, tn]]) {
      const row = make("tr", "", table), title = make("th", "", row);
      make("i", side, title);
      title.append(name);
      make("td", "", row, one);
      make("td", "", row, other);
    }
    svg.setAttribute("aria-valuemin", low);
    svg.setAttribute("aria-valuemax", high);
    svg.setAttribute("aria-valuenow", at);
    svg.setAttribute("aria-valuetext", `${number(at)}: F1 ${f1.toFixed(2)}, ${tp} of ${tp + fn} examples and ${fp} of ${fp + tn} counterexamples fire`);
  };
  const from = (event) => {
    const box = svg.getBoundingClientRect();
    return low + (high - low) * (((event.clientX - box.left) / box.width) * W - L) / (W - L - R);
  };
  const set = () => root.act({ threshold: at });
  let dragging = false;
  svg.onpointerdown = (event) => {
    dragging = true;
    svg.setPointerCapture(event.pointerId);
    show(from(event));
  };
  svg.onpointermove = (event) => dragging && show(from(event));
  svg.onpointerup = () => {
    if (dragging) set();
    dragging = false;
  };
  svg.onpointercancel = () => { dragging = false; };
  let waiting = null;
  svg.onkeydown = (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (!move) return;
    event.preventDefault();
    show(at + move * step);
    clearTimeout(waiting);
    waiting = setTimeout(set, 400);
  };
  show(data.threshold);
  if (had) svg.focus();
}
