// Dose and response: the behaviour over the strength with its band, random directions as long in grey, where the text
// breaks down, and where the dial stands. A click on a strength sets the dial there.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  root.act = (value) => setTriggerValue("act", value);
  const shown = JSON.stringify(data);
  if (root.shown === shown) return;
  root.shown = shown;
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
  const wide = data.wide && !(root.clientWidth > 0 && root.clientWidth < 480);
  const W = wide ? 640 : 320, H = wide ? 230 : 150, L = 38, R = 10, T = 18, B = wide ? 36 : 22;
  const svg = draw("svg", "", root, { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": data.label });
  const [x0, x1] = [data.x[0], data.x[data.x.length - 1]];
  const [y0, y1] = data.range;
  const x = (value) => L + (W - L - R) * (Math.min(Math.max(value, x0), x1) - x0) / (x1 - x0 || 1);
  const y = (value) => T + (H - T - B) * (1 - (Math.min(Math.max(value, y0), y1) - y0) / (y1 - y0 || 1));
  const number = (value) => Number(value.toPrecision(3)).toString().replace("-", "−");
  for (const [from, to] of data.broken) {
    draw("rect", "broken", svg, { x: x(from), width: Math.max(x(to) - x(from), 0), y: T, height: H - T - B });
    const inner = Math.abs(from) < Math.abs(to) ? from : to;
    draw("line", "edge", svg, { x1: x(inner), x2: x(inner), y1: T, y2: H - B });
    if (x(to) - x(from) > 46)
      draw("text", "breaks", svg, { x: (x(from) + x(to)) / 2, y: T - 5, "text-anchor": "middle" }, "breaks down");
  }
  for (const tick of [y0, (y0 + y1) / 2, y1]) {
    draw("line", "tick", svg, { x1: L, x2: W - R, y1: y(tick), y2: y(tick) });
    draw("text", "axis", svg, { x: L - 5, y: y(tick) + 4, "text-anchor": "end" }, number(tick));
  }
  const every = Math.ceil(data.x.length / (wide ? 12 : 7));
  const middle = Math.floor(data.x.length / 2);
  data.x.forEach((each, at) => {
    if ((at - middle) % every === 0)
      draw("text", "axis", svg, { x: x(each), y: H - B + 14, "text-anchor": "middle" }, number(each));
  });
  if (wide) draw("text", "axis", svg, { x: (L + W - R) / 2, y: H - 4, "text-anchor": "middle" }, data.xLabel);
  for (const series of [...data.series].sort((a, b) => b.grey - a.grey)) {
    const group = draw("g", series.grey ? "grey" : "", svg, {});
    const there = data.x.map((each, at) => [each, series.values[at], series.low?.[at], series.high?.[at]])
      .filter((each) => each[1] != null);
    const band = there.filter((each) => each[2] != null && each[3] != null);
    if (band.length > 1) {
      const upper = band.map((each) => `${x(each[0])},${y(each[3])}`);
      const lower = band.map((each) => `${x(each[0])},${y(each[2])}`).reverse();
      draw("polygon", "band", group, { points: [...upper, ...lower].join(" ") });
    }
    draw("polyline", "line", group, { points: there.map((each) => `${x(each[0])},${y(each[1])}`).join(" ") });
    for (const each of there) draw("circle", "dot", group, { cx: x(each[0]), cy: y(each[1]), r: 3 });
  }
  if (data.now != null) draw("line", "now", svg, { x1: x(data.now), x2: x(data.now), y1: T - 4, y2: H - B });
  data.x.forEach((each, at) => {
    const left = at ? (x(data.x[at - 1]) + x(each)) / 2 : L, right = at < data.x.length - 1 ? (x(each) + x(data.x[at + 1])) / 2 : W - R;
    const told = data.series.filter((series) => series.values[at] != null)
      .map((series) => `${series.name} ${number(series.values[at])}`).join(", ");
    const hit = draw("rect", "hit", svg, {
      x: left, width: right - left, y: T, height: H - T - B, tabindex: at === middle ? 0 : -1, role: "button",
      "aria-label": `Strength ${number(each)}: ${told}`, "data-at": at,
    });
    draw("title", "", hit, {}, `${number(each)}: ${told}`);
    hit.onclick = () => root.act({ strength: each });
    hit.onkeydown = (event) => {
      if (event.key === "Enter" || event.key === " ") root.act({ strength: each });
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      svg.querySelector(`[data-at="${at + step}"]`)?.focus();
    };
  });
  const legend = document.createElement("div");
  legend.className = "legend quiet";
  for (const series of data.series) {
    const span = document.createElement("span"), line = document.createElement("i");
    if (series.grey) line.className = "grey";
    span.append(line, series.name);
    legend.append(span);
  }
  root.append(legend);
}
