// What an index knows of one feature: the tokens it promotes and suppresses, how its activations are spread, where it
// fires (texts or image patches, by quantile), and the features near it.
const short = (x) => (x && (Math.abs(x) >= 1e5 || Math.abs(x) < 0.001) ? x.toExponential(1) : String(Number(x.toPrecision(Math.abs(x) >= 100 ? 3 : 2)))).replace("-", "−");

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  const kept = (root.kept ||= { of: null, all: new Set() });
  if (kept.of !== data.key) [kept.of, kept.all] = [data.key, new Set()];
  root.replaceChildren();
  const make = (tag, name, parent, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text != null) node.textContent = text;
    parent?.append(node);
    return node;
  };
  const draw = () => {
    root.replaceChildren();
    if (data.logits) logits(make("div", "columns", root));
    if (data.histogram) histogram(make("div", "histogram", root));
    for (const group of data.groups || []) contexts(group);
    for (const each of data.links || []) links(each);
  };

  const logits = (place) => {
    const most = Math.max(...data.logits.flatMap((side) => side.items.map((item) => Math.abs(item[1]))), 1e-9);
    for (const side of data.logits) {
      const column = make("div", "side", place);
      make("h6", "", column, side.title);
      if (!side.items.length) make("p", "quiet", column, side.empty);
      const list = make("ul", "bars", column);
      for (const [token, value] of side.items) {
        const line = make("li", "", list);
        const name = make("span", "token", line, token);
        name.title = token;
        name.dir = "auto";
        const track = make("span", "track", line);
        const fill = make("i", value < 0 ? "against" : "", track);
        fill.style.width = `${(100 * Math.abs(value)) / most}%`;
        make("span", "number", line, (value < 0 ? "" : "+") + short(value));
      }
    }
  };

  const histogram = (place) => {
    const { edges, counts, title, alt, low, high, axis: measures, of } = data.histogram;
    make("h6", "", place, title);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 300 60");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", alt);
    const most = Math.log1p(Math.max(...counts, 1));
    const step = 300 / counts.length;
    counts.forEach((count, i) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const tall = (58 * Math.log1p(count)) / most;
      for (const [key, value] of Object.entries({ x: i * step + 0.5, y: 60 - tall, width: Math.max(step - 1, 0.6), height: tall })) bar.setAttribute(key, value);
      const name = document.createElementNS("http://www.w3.org/2000/svg", "title");
      name.textContent = `${short(edges[i])} to ${short(edges[i + 1])}: ${count.toLocaleString("en")} ${of}`;
      bar.append(name);
      svg.append(bar);
    });
    place.append(svg);
    const axis = make("div", "axis quiet", place);
    make("span", "", axis, low);
    make("span", "", axis, measures);
    make("span", "", axis, high);
  };

  const contexts = (group) => {
    const section = make("section", "group", root);
    const head = make("div", "title", section);
    make("h6", "", head, group.name);
    if (group.note) make("span", "quiet", head, group.note);
    const pictures = group.rows.some((row) => row.image);
    const whole = kept.all.has(group.name);
    const rows = whole ? group.rows : group.rows.slice(0, group.few);
    const list = make("ul", pictures ? "pictures" : "contexts", section);
    for (const row of rows) (row.image ? picture : line)(make("li", "", list), row);
    if (group.rows.length > group.few) {
      const more = make("button", "more", section, whole ? "fewer" : `all ${group.rows.length}`);
      more.setAttribute("aria-expanded", whole);
      more.onclick = () => {
        kept.all[whole ? "delete" : "add"](group.name);
        draw();
      };
    }
  };
  const shade = (node, value) => {
    const share = Math.min(value / data.maximum, 1);
    if (!(share > 0)) return;
    node.style.background = `color-mix(in srgb, #d55e00 ${Math.round(8 + 52 * share)}%, transparent)`;
    node.style.boxShadow = `inset 0 -${(1 + 2 * share).toFixed(1)}px 0 #d55e00`;
  };
  const line = (place, row) => {
    make("span", "number quiet", place, short(row.value));
    const text = make("span", "text", place);
    text.dir = "auto";
    row.tokens.forEach((token, at) => {
      const node = make(at === row.at ? "mark" : "span", "", text, token);
      const value = row.values[at];
      if (value > 0) {
        shade(node, value);
        node.title = value.toPrecision(3);
      }
    });
  };
  const picture = (place, row) => {
    const frame = make("div", "thumb", place);
    const image = make("img", "", frame);
    image.src = row.image;
    image.alt = row.alt;
    const height = row.grid.length, width = row.grid[0].length;
    const grid = make("div", "cells", frame);
    grid.style.gridTemplate = `repeat(${height}, 1fr) / repeat(${width}, 1fr)`;
    row.grid.flat().forEach((value, at) => {
      const cell = make("i", at === row.at ? "best" : "", grid);
      cell.style.setProperty("--share", `${Math.round(62 * Math.max(Math.min(value / data.maximum, 1), 0))}%`);
    });
    make("span", "quiet", place, short(row.value) + (row.label ? ` ${row.label}` : ""));
  };

  const links = (each) => {
    if (!each.items.length) return;
    const section = make("section", "near", root);
    make("h6", "", section, each.title);
    const list = make("ul", "chips", section);
    for (const item of each.items) {
      const button = make("button", "chip", make("li", "", list));
      make("span", "quiet", button, `#${item.feature}`);
      make("span", "", button, item.label);
      make("span", "number quiet", button, item.value);
      button.onclick = () => setTriggerValue("act", { open: item.feature });
    }
  };
  draw();
}
