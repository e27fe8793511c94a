// A matrix of cells that are buttons, rows against columns, each with a colour and perhaps a word; arrows walk about.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  const active = root.getRootNode().activeElement;
  const had = active && root.contains(active) ? active.dataset.at : null;
  const old = root.querySelector(".frame");
  const scroll = old ? [old.scrollLeft, old.scrollTop] : [0, 0];
  root.replaceChildren();
  const ramp = data.stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const colour = (share) => {
    const at = Math.min(Math.max(share, 0), 1) * (ramp.length - 1);
    const low = Math.min(Math.floor(at), ramp.length - 2);
    return ramp[low].map((c, i) => Math.round(c + (ramp[low + 1][i] - c) * (at - low)));
  };
  const span = (text, name) => {
    const node = document.createElement("span");
    node.className = name;
    node.textContent = text;
    node.title = text;
    node.dir = "auto";
    return node;
  };
  if (data.title) root.append(span(data.title, "title"));
  const frame = document.createElement("div");
  frame.className = "frame" + (data.texts ? " words" : "");
  const grid = document.createElement("div");
  grid.className = "grid";
  grid.setAttribute("role", "grid");
  grid.setAttribute("aria-label", data.label);
  grid.style.gridTemplateColumns = `repeat(${data.columns.length}, minmax(${data.least}px, 1fr))`;
  // the rows' names stay where they are while the cells scroll
  const heads = document.createElement("div");
  heads.className = "heads";
  const [low, high] = data.range;
  const cells = [];
  const line = (name) => {
    const row = document.createElement("div");
    row.setAttribute("role", "row");
    row.className = "line";
    if (name) heads.append(span(name, "head"));
    grid.append(row);
    return row;
  };
  data.rows.forEach((row, r) => {
    const own = line(row);
    cells.push(
      data.columns.map((column, c) => {
        const value = data.values[r][c];
        const cell = document.createElement("button");
        const chosen = data.selected && data.selected[0] === r && data.selected[1] === c;
        const marked = data.selected && (data.selected[0] === r || data.selected[1] === c);
        cell.className = "cell" + (chosen ? " selected" : marked ? " marked" : "");
        cell.setAttribute("role", "gridcell");
        cell.setAttribute("aria-selected", Boolean(chosen));
        cell.dataset.at = `${r},${c}`;
        cell.tabIndex = chosen || (!data.selected && !r && !c) ? 0 : -1;
        const text = data.texts ? data.texts[r][c] : "";
        cell.textContent = text;
        cell.dir = "auto";
        if (value != null) {
          const share = high > low ? (value - low) / (high - low) : 0;
          const [red, green, blue] = colour(share);
          cell.style.background = `rgb(${red}, ${green}, ${blue})`;
          cell.style.color = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#171614" : "#fbfbfa";
        }
        const name = `${row}, ${column}: ${text ? text + ", " : ""}${value == null ? "nothing" : value.toPrecision(3)}`;
        cell.title = name;
        cell.setAttribute("aria-label", name);
        cell.onclick = () => setTriggerValue("pick", { row: r, column: c });
        cell.onkeydown = (event) => {
          const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
          if (!step) return;
          event.preventDefault();
          const next = (cells[r + step[0]] || [])[c + step[1]];
          if (next) next.focus();
        };
        own.append(cell);
        return cell;
      })
    );
  });
  const foot = line("");
  data.columns.forEach((column, c) => {
    const name = span(column, "foot" + (data.least < 40 ? " turned" : ""));
    if (data.selected && data.selected[1] === c) name.classList.add("here");
    foot.append(name);
  });
  frame.append(grid);
  const whole = document.createElement("div");
  whole.className = "whole";
  whole.append(heads, frame);
  root.append(whole);
  const legend = document.createElement("div");
  legend.className = "legend quiet";
  const bar = document.createElement("i");
  bar.style.background = `linear-gradient(to right, ${data.stops.join(", ")})`;
  const number = (x) => (x === 0 ? "0" : Math.abs(x) >= 1000 || Math.abs(x) < 0.01 ? x.toExponential(1) : x.toPrecision(2));
  legend.append(number(low), bar, number(high), ` ${data.quantity}`);
  root.append(legend);
  [frame.scrollLeft, frame.scrollTop] = scroll;
  const chosen = data.selected && cells[data.selected[0]] && cells[data.selected[0]][data.selected[1]];
  if (chosen) {
    const left = chosen.offsetLeft - frame.offsetLeft;
    const right = left + chosen.offsetWidth - frame.clientWidth;
    frame.scrollLeft = Math.min(Math.max(frame.scrollLeft, right), left);
  }
  if (had !== null) {
    const [r, c] = had.split(",").map(Number);
    if (cells[r] && cells[r][c]) cells[r][c].focus();
  }
}
