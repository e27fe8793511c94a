// A photo with the grid of patches that a layer sees: each patch is a button, shaded by how strongly the feature fires.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  const active = root.getRootNode().activeElement;
  const had = active && root.contains(active) ? active.dataset.at : null;
  root.replaceChildren();
  const make = (tag, name, parent, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text != null) node.textContent = text;
    parent?.append(node);
    return node;
  };
  const map = make("div", "map", root);
  const photo = make("img", "", map);
  photo.src = data.photo;
  photo.alt = data.alt;
  const [left, top, right, bottom] = data.box;
  const grid = make("div", "cells", map);
  grid.setAttribute("role", "group");
  grid.setAttribute("aria-label", data.label);
  Object.assign(grid.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%` });
  const height = data.grid.length, width = data.grid[0].length;
  grid.style.gridTemplate = `repeat(${height}, 1fr) / repeat(${width}, 1fr)`;
  data.grid.flat().forEach((value, at) => {
    const cell = make("button", at === data.selected ? "selected" : "", grid);
    cell.dataset.at = at;
    cell.tabIndex = at === (data.selected ?? 0) ? 0 : -1;
    cell.style.setProperty("--share", `${Math.round(66 * Math.max(Math.min(value / data.scale, 1), 0))}%`);
    const name = `row ${Math.floor(at / width) + 1}, column ${(at % width) + 1}: ${value > 0 ? value.toPrecision(2) : "does not fire"}`;
    cell.title = name;
    cell.setAttribute("aria-label", name);
    cell.onclick = () => setTriggerValue("pick", { at });
    cell.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width }[event.key];
      if (!step) return;
      event.preventDefault();
      grid.children[at + step]?.focus();
    };
  });
  make("p", "note quiet", root, data.note);
  if (had != null) grid.children[had]?.focus();
}
