// The photo with its map: values on hover (the same place in every map on the page), and a box drawn with the pointer.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  const make = (tag, kind, parent) => {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    parent?.append(node);
    return node;
  };
  root.replaceChildren();
  const figure = make("figure", "", root);
  const map = make("div", "map", figure);
  map.tabIndex = 0;
  map.setAttribute("role", "img");
  map.setAttribute("aria-label", data.alt || "");
  const photo = make("img", "", map);
  photo.src = data.photo;
  photo.alt = "";
  if (data.overlay) {
    const over = make("img", "over", map);
    over.src = data.overlay;
    over.alt = "";
  }
  const box = make("div", "box", map), cross = make("div", "cross", map), tip = make("div", "tip", map);
  const caption = make("figcaption", "", figure);
  make("b", "", caption).textContent = data.title || "";
  make("span", "quiet", caption).textContent = data.note || "";
  if (data.legend) {
    const legend = make("div", "legend quiet", figure);
    make("span", "", legend).textContent = data.legend.low;
    make("i", "", legend).style.background = `linear-gradient(90deg, ${data.legend.stops.join(",")})`;
    make("span", "", legend).textContent = data.legend.high;
  }
  const acts = make("div", "acts", figure);

  const at = (x, y) => {
    // bilinear on the grid of cells that covers the box of the photo the model saw
    const [l, t, r, b] = data.box, grid = data.values, h = grid.length, w = grid[0].length;
    if (x < l || x > r || y < t || y > b) return null;
    const u = Math.min(Math.max(((x - l) / (r - l)) * w - 0.5, 0), w - 1), v = Math.min(Math.max(((y - t) / (b - t)) * h - 0.5, 0), h - 1);
    const i = Math.floor(v), j = Math.floor(u), i1 = Math.min(i + 1, h - 1), j1 = Math.min(j + 1, w - 1), a = v - i, c = u - j;
    return (1 - a) * ((1 - c) * grid[i][j] + c * grid[i][j1]) + a * ((1 - c) * grid[i1][j] + c * grid[i1][j1]);
  };
  const show = (x, y) => {
    const inside = x != null && data.values;
    cross.style.display = tip.style.display = inside ? "block" : "none";
    if (!inside) return;
    cross.style.left = 100 * x + "%";
    cross.style.top = 100 * y + "%";
    const value = at(x, y);
    tip.textContent = value == null ? "outside what the model saw" : `${value.toPrecision(3)} ${data.units || ""} · ${Math.round((100 * value) / data.scale)} % of scale`;
  };
  const linked = (event) => show(event.detail.x, event.detail.y);
  window.addEventListener("actiscope-hover", linked);
  const tell = (x, y) => window.dispatchEvent(new CustomEvent("actiscope-hover", { detail: { x, y } }));

  const place = (event) => {
    const frame = map.getBoundingClientRect();
    const keep = (value) => Math.min(Math.max(value, 0), 1);
    return [keep((event.clientX - frame.left) / frame.width), keep((event.clientY - frame.top) / frame.height)];
  };
  let from = null;
  const outline = ([l, t, r, b]) => {
    Object.assign(box.style, { display: "block", left: 100 * l + "%", top: 100 * t + "%", width: 100 * (r - l) + "%", height: 100 * (b - t) + "%" });
  };
  const offer = (region) => {
    acts.replaceChildren();
    acts.style.display = "flex";
    for (const [key, text] of data.actions || []) {
      const button = make("button", "", acts);
      button.textContent = text;
      button.onclick = () => setTriggerValue("box", { action: key, region });
    }
  };
  if (data.region) outline(data.region);
  map.onpointerdown = (event) => {
    if (!data.actions?.length || event.pointerType === "touch") return;
    from = place(event);
    map.setPointerCapture(event.pointerId);
  };
  map.onpointermove = (event) => {
    const [x, y] = place(event);
    if (from) outline([Math.min(x, from[0]), Math.min(y, from[1]), Math.max(x, from[0]), Math.max(y, from[1])]);
    tell(x, y);
  };
  map.onpointerup = (event) => {
    if (!from) return;
    const [x, y] = place(event), region = [Math.min(x, from[0]), Math.min(y, from[1]), Math.max(x, from[0]), Math.max(y, from[1])];
    from = null;
    if (region[2] - region[0] > 0.02 && region[3] - region[1] > 0.02) offer(region.map((each) => Math.round(1000 * each) / 1000));
    else if (!data.region) box.style.display = "none";
  };
  map.onpointerleave = () => tell(null, null);
  let key = [0.5, 0.5];
  map.onfocus = () => tell(...key);
  map.onblur = () => tell(null, null);
  map.onkeydown = (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    key = key.map((each, axis) => Math.min(Math.max(each + 0.04 * step[axis], 0), 1));
    tell(...key);
  };
  return () => window.removeEventListener("actiscope-hover", linked);
}
