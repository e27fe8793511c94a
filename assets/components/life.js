// One feature through the layers: layers against tokens, and beside each layer how well it is read there, with its band.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  root.act = (value) => setTriggerValue("pick", value);
  const shown = JSON.stringify(data);
  if (root.shown === shown) return;
  root.shown = shown;
  const active = root.getRootNode().activeElement;
  const had = active && root.contains(active) ? active.dataset.at : null;
  const old = root.querySelector(".frame");
  const scroll = old ? old.scrollLeft : null;
  root.replaceChildren();
  const SVG = "http://www.w3.org/2000/svg";
  const make = (tag, name, parent, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text != null) node.textContent = text;
    parent?.append(node);
    return node;
  };
  const draw = (tag, name, parent, attributes) => {
    const node = document.createElementNS(SVG, tag);
    if (name) node.setAttribute("class", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    parent?.append(node);
    return node;
  };
  const ramp = data.stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const [low, high] = data.range;
  const colour = (value) => {
    const place = Math.min(Math.max((value - low) / (high - low || 1), 0), 1) * (ramp.length - 1);
    const first = Math.min(Math.floor(place), ramp.length - 2);
    return ramp[first].map((c, i) => Math.round(c + (ramp[first + 1][i] - c) * (place - first)));
  };
  const HEIGHT = 27;
  const whole = make("div", "whole", root);
  const heads = make("div", "heads", whole);
  const frame = make("div", "frame", whole);
  const grid = make("div", "grid", frame);
  grid.setAttribute("role", "grid");
  grid.setAttribute("aria-label", data.label);
  grid.style.gridTemplateColumns = `repeat(${data.columns.length}, minmax(${data.texts ? 44 : 24}px, 1fr))`;
  const cells = data.rows.map((row, r) => {
    const head = make("button", "head" + (data.source === r ? " here" : ""), heads, row);
    head.title = `Carried from ${row}?`;
    head.disabled = !data.sources[r];
    head.onclick = () => root.act({ row: r });
    const own = make("div", "line", grid);
    own.setAttribute("role", "row");
    return data.columns.map((column, c) => {
      const value = data.values[r][c];
      const selected = data.position === c && data.source === r;
      const cell = make("button", "cell" + (selected ? " selected" : "") + (data.position === c ? " marked" : ""), own);
      cell.setAttribute("role", "gridcell");
      cell.dataset.at = `${r},${c}`;
      cell.tabIndex = (data.position ?? 0) === c && (data.source ?? 0) === r ? 0 : -1;
      if (data.texts) cell.textContent = data.texts[r][c];
      if (value == null) cell.classList.add("none");
      else {
        const [red, green, blue] = colour(value);
        cell.style.background = `rgb(${red}, ${green}, ${blue})`;
        cell.style.color = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#171614" : "#fbfbfa";
      }
      cell.title = `${row}, ${column}: ${data.notes[r][c]}`;
      cell.setAttribute("aria-label", cell.title);
      cell.onclick = () => root.act({ row: r, column: c });
      cell.onkeydown = (event) => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!step) return;
        event.preventDefault();
        (cells[r + step[0]] || [])[c + step[1]]?.focus();
      };
      return cell;
    });
  });
  const foot = make("div", "line", grid);
  data.columns.forEach((column, c) => {
    const name = make("span", "foot" + (data.texts ? "" : " turned") + (data.position === c ? " here" : ""), foot, column);
    name.title = column;
    name.dir = "auto";
  });
  // the curve stands on its side, so that each layer's value lies beside its row
  const side = make("div", "curve", whole);
  const WIDTH = 112;
  const svg = draw("svg", "", side, { viewBox: `0 0 ${WIDTH} ${HEIGHT * data.rows.length + 16}`, role: "img" });
  svg.style.height = `${HEIGHT * data.rows.length + 16}px`;
  svg.setAttribute("aria-label", data.curveLabel);
  const least = Math.min(0, Math.max(-0.5, ...[Math.min(...data.curve.filter(Boolean).map((each) => each[1]), 0)]));
  const x = (value) => 8 + (WIDTH - 20) * ((Math.min(Math.max(value, least), 1) - least) / (1 - least));
  const y = (row) => HEIGHT * row + HEIGHT / 2 - 0.5;
  for (const tick of [0, 0.5, 1]) {
    draw("line", "tick", svg, { x1: x(tick), x2: x(tick), y1: 0, y2: HEIGHT * data.rows.length });
    draw("text", "axis", svg, { x: x(tick), y: HEIGHT * data.rows.length + 12, "text-anchor": "middle" }).textContent = tick || "0";
  }
  const there = data.curve.map((each, r) => each && [...each, r]).filter(Boolean);
  const right = there.map(([, , top, r]) => `${x(top)},${y(r)}`);
  const left = there.map(([, bottom, , r]) => `${x(bottom)},${y(r)}`).reverse();
  if (there.length > 1) {
    draw("polygon", "band", svg, { points: [...right, ...left].join(" ") });
    draw("polyline", "middle", svg, { points: there.map(([value, , , r]) => `${x(value)},${y(r)}`).join(" ") });
  }
  for (const [value, bottom, top, r] of there) {
    draw("line", "whisker", svg, { x1: x(bottom), x2: x(top), y1: y(r), y2: y(r) });
    const dot = draw("circle", "dot", svg, { cx: x(value), cy: y(r), r: 3.5 });
    draw("title", "", dot, {}).textContent = `${data.rows[r]}: R² ${value.toFixed(2)} (${bottom.toFixed(2)} to ${top.toFixed(2)})`;
  }
  make("span", "name quiet", side, "R², held out");
  const legend = make("div", "legend quiet", root);
  legend.append(data.low);
  make("i", "ramp", legend).style.background = `linear-gradient(to right, ${data.stops.join(", ")})`;
  legend.append(`${data.high} ${data.quantity}`);
  if (scroll != null) frame.scrollLeft = scroll;
  else frame.scrollLeft = (cells[0]?.[data.focus]?.offsetLeft ?? 0) - frame.offsetLeft - frame.clientWidth / 2;
  if (had != null) {
    const [r, c] = had.split(",").map(Number);
    cells[r]?.[c]?.focus();
  }
}
