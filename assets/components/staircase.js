// Pairs of layers as a staircase of buttons, sources against targets: a colour, a value, its interval as a whisker.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  root.act = (value) => setTriggerValue("pick", value);
  // a cell that is replaced between press and release would lose the click
  const shown = JSON.stringify(data);
  if (root.shown === shown) return;
  root.shown = shown;
  const active = root.getRootNode().activeElement;
  const had = active && root.contains(active) ? active.dataset.at : null;
  const old = root.querySelector(".frame");
  const scroll = old ? old.scrollLeft : null;
  root.replaceChildren();
  const make = (tag, name, parent, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text != null) node.textContent = text;
    parent?.append(node);
    return node;
  };
  const ramp = data.stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const [low, high] = data.range;
  const share = (value) => Math.min(Math.max((value - low) / (high - low || 1), 0), 1);
  const colour = (at) => {
    const place = share(at) * (ramp.length - 1);
    const first = Math.min(Math.floor(place), ramp.length - 2);
    return ramp[first].map((c, i) => Math.round(c + (ramp[first + 1][i] - c) * (place - first)));
  };
  const size = data.columns.length > 16 ? " tiny" : data.columns.length > 7 ? " small" : "";
  const frame = make("div", "frame" + size, root);
  const grid = make("div", "grid", frame);
  grid.setAttribute("role", "grid");
  grid.setAttribute("aria-label", data.label);
  grid.style.setProperty("--columns", data.columns.length);
  const line = () => {
    const row = make("div", "line", grid);
    row.setAttribute("role", "row");
    return row;
  };
  const chosen = data.selected || data.cells.flatMap((row, r) => row.map((cell, c) => [r, c, cell])).find((each) => each[2]);
  const top = line();
  make("span", "corner quiet", top, "from ↓ to →");
  data.columns.forEach((name, c) => {
    const head = make("span", "head" + (data.selected && data.selected[1] === c ? " here" : ""), top, size === " tiny" ? name.split(" ").pop() : name);
    head.title = name;
    head.setAttribute("role", "columnheader");
  });
  const cells = data.rows.map((row, r) => {
    const own = line();
    const head = make("span", "side" + (data.selected && data.selected[0] === r ? " here" : ""), own, row);
    head.setAttribute("role", "rowheader");
    return data.cells[r].map((cell, c) => {
      if (!cell) {
        make("span", "", own);
        return null;
      }
      const selected = Boolean(data.selected) && data.selected[0] === r && data.selected[1] === c;
      const button = make("button", "cell" + (selected ? " selected" : "") + (cell.value == null ? " none" : ""), own);
      button.setAttribute("role", "gridcell");
      button.setAttribute("aria-selected", selected);
      button.dataset.at = `${r},${c}`;
      button.tabIndex = chosen && chosen[0] === r && chosen[1] === c ? 0 : -1;
      button.title = cell.title;
      button.setAttribute("aria-label", cell.title);
      make("b", "", button, cell.text);
      if (cell.value != null) {
        const [red, green, blue] = colour(cell.value);
        button.style.background = `rgb(${red}, ${green}, ${blue})`;
        button.style.color = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#171614" : "#fbfbfa";
      }
      if (cell.span) {
        make("small", "", button, cell.span);
        const track = make("i", "track", button);
        const whisker = make("i", "whisker", track);
        whisker.style.left = `${100 * share(cell.low)}%`;
        whisker.style.right = `${100 * (1 - share(cell.high))}%`;
        make("i", "dot", track).style.left = `${100 * share(cell.value)}%`;
      }
      button.onclick = () => root.act({ row: r, column: c });
      button.onkeydown = (event) => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!step) return;
        event.preventDefault();
        (cells[r + step[0]] || [])[c + step[1]]?.focus();
      };
      return button;
    });
  });
  const legend = make("div", "legend quiet", root);
  legend.append(data.low);
  make("i", "ramp", legend).style.background = `linear-gradient(to right, ${data.stops.join(", ")})`;
  legend.append(`${data.high} ${data.quantity}`);
  if (data.none) {
    make("i", "swatch none", legend);
    legend.append(data.none);
  }
  if (scroll != null) frame.scrollLeft = scroll;
  else if (data.selected) {
    const cell = cells[data.selected[0]]?.[data.selected[1]];
    if (cell) frame.scrollLeft = cell.offsetLeft - frame.clientWidth / 2;
  }
  if (had != null) {
    const [r, c] = had.split(",").map(Number);
    cells[r]?.[c]?.focus();
  }
}
