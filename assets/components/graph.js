// A circuit as a graph: tokens across, layers up; nodes are buttons, arrows walk to the nearest one, edges lie behind them.
const ROWS = [["resid_pre", "embed"], ["q", "k", "v", "pattern"], ["z"], ["attn_out"], ["resid_mid"], ["mlp_post", "mlp_out"], ["resid_post"]];
const PITCH = [22, 20, 26, 24, 22, 24, 22];
const LARGEST = [7, 6.5, 9.5, 8.5, 7, 8.5, 7];
const NAMES = {
  logits: "logits", resid_post: "residual stream", resid_mid: "residual stream", resid_pre: "residual stream", embed: "embedding",
  mlp_out: "MLP", mlp_post: "MLP neurons", attn_out: "attention output", z: "head", q: "query", k: "key", v: "value", pattern: "pattern",
};
const TINTS = ["#009e73", "#cc79a7", "#b8860b", "#6a6a6a"];
const GUTTER = 46;
const ICONS = {
  more: "M3 9h12M9 3v12", less: "M3 9h12", fit: "M2 6V2h4M12 2h4v4M16 12v4h-4M6 16H2v-4M6 6h6v6H6z",
  full: "M2 7V2h5M11 2h5v5M16 11v5h-5M7 16H2v-5M2 2l5 5M16 2l-5 5M16 16l-5-5M2 16l5-5",
  group: "M5 5.5a2 2 0 1 0 .01 0M13 5.5a2 2 0 1 0 .01 0M9 11a2 2 0 1 0 .01 0", save: "M9 2v9M5 8l4 4 4-4M3 15.5h12",
};
const make = (tag, attributes = {}, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  if (text != null) node.textContent = text;
  return node;
};
const html = (tag, name, text) => {
  const node = document.createElement(tag);
  node.className = name;
  if (text != null) node.textContent = text;
  return node;
};
const number = (x) => {
  if (x == null || Number.isNaN(x)) return "no value";
  const size = Math.abs(x);
  const text = x === 0 ? "0" : size >= 10000 || size < 0.001 ? x.toExponential(1) : size >= 1000 ? x.toFixed(0) : x.toPrecision(size < 1 ? 2 : 3);
  return text.replace("-", "−").replace("e−", "e-");
};
const polygon = (count, r, turn) =>
  "M" + Array.from({ length: count }, (_, i) => {
    const angle = turn + (2 * Math.PI * i) / count;
    return `${(r * Math.cos(angle)).toFixed(2)} ${(r * Math.sin(angle)).toFixed(2)}`;
  }).join("L") + "Z";
const box = (w, h, c) => `M${-w + c} ${-h}H${w - c}Q${w} ${-h} ${w} ${-h + c}V${h - c}Q${w} ${h} ${w - c} ${h}H${-w + c}Q${-w} ${h} ${-w} ${h - c}V${-h + c}Q${-w} ${-h} ${-w + c} ${-h}Z`;
const outline = (kind, r) => {
  const up = -Math.PI / 2;
  if (kind === "mlp_out") return box(0.88 * r, 0.88 * r, 1);
  if (kind === "mlp_post") return box(1.1 * r, 0.6 * r, 1);
  if (kind === "logits") return box(1.25 * r, 0.8 * r, 0.6 * r);
  if (kind.startsWith("resid")) return polygon(4, 1.1 * r, up);
  if (kind === "embed") return polygon(8, r, up + Math.PI / 8);
  if (kind === "attn_out") return polygon(6, 1.05 * r, up);
  if (kind === "pattern") return polygon(5, r, up);
  if (kind === "q") return polygon(3, 1.15 * r, up);
  if (kind === "k") return polygon(3, 1.15 * r, -up);
  if (kind === "v") return polygon(3, 1.15 * r, 0);
  return `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
};
const width = (() => {
  let pen = null;
  const known = new Map();
  return (text, font) => {
    const at = `${font}|${text}`;
    if (!known.has(at)) {
      if (known.size > 4000) known.clear();
      pen ||= document.createElement("canvas").getContext("2d");
      pen.font = font;
      known.set(at, pen.measureText(text).width);
    }
    return known.get(at);
  };
})();

// Where everything lies, in units that are pixels at zoom 1.
function lay(data) {
  const count = data.tokens.length;
  const layers = Math.max(data.layers, 1);
  const nodes = data.nodes.map((node) => {
    const all = node.position == null || node.position < 0 || node.position >= count;
    const row = ROWS.findIndex((kinds) => kinds.includes(node.kind));
    const logits = node.kind === "logits";
    return { ...node, column: all ? count : node.position, band: logits ? layers : Math.min(Math.max(node.layer || 0, 0), layers - 1), row: row < 0 ? 2 : row };
  });
  const order = (node) => (node.head ?? -1) * 100 + Math.max(ROWS[node.row].indexOf(node.kind), 0);
  const cells = new Map();
  for (const node of nodes) {
    const at = `${node.band},${node.row},${node.column}`;
    if (!cells.has(at)) cells.set(at, []);
    cells.get(at).push(node);
  }
  const columns = count + (nodes.some((node) => node.column === count) ? 1 : 0);
  const wide = Array(columns).fill(50);
  const lines = {};
  for (const [at, members] of cells) {
    const [band, row, column] = at.split(",").map(Number);
    members.sort((a, b) => order(a) - order(b));
    const n = members.length;
    members.per = n <= 3 ? n : n <= 12 ? Math.ceil(n / 2) : Math.ceil(n / 3);
    const pitch = band === layers ? 32 : PITCH[row];
    wide[column] = Math.max(wide[column], members.per * pitch + 18);
    lines[`${band},${row}`] = Math.max(lines[`${band},${row}`] || 0, Math.ceil(n / members.per));
  }
  const left = [];
  let x = 4;
  wide.forEach((w, column) => {
    if (column === count) x += 14;
    left.push(x);
    x += w;
  });
  const bands = [];
  const top = {};
  let y = 8;
  for (let band = layers; band >= 0; band--) {
    const start = y;
    const own = ROWS.map((_, row) => row).filter((row) => lines[`${band},${row}`]).reverse();
    if (band === layers && !own.length) continue;
    y += 7;
    if (!own.length) y += 26;
    for (const row of own) {
      top[`${band},${row}`] = y;
      y += lines[`${band},${row}`] * (band === layers ? 28 : PITCH[row]);
    }
    y += 7;
    bands.push({ band, top: start, bottom: y, logits: band === layers });
  }
  for (const [at, members] of cells) {
    const [band, row, column] = at.split(",").map(Number);
    const pitch = band === layers ? 32 : PITCH[row];
    const down = band === layers ? 28 : PITCH[row];
    const used = Math.ceil(members.length / members.per);
    const above = top[`${band},${row}`] + ((lines[`${band},${row}`] - used) * down) / 2;
    members.forEach((node, i) => {
      const line = Math.floor(i / members.per);
      const inLine = Math.min(members.per, members.length - line * members.per);
      node.x = left[column] + wide[column] / 2 + ((i % members.per) - (inLine - 1) / 2) * pitch;
      node.y = above + (line + 0.5) * down;
      const largest = band === layers ? 11 : LARGEST[row];
      node.r = Math.max(4.2, largest * Math.sqrt(Math.min(Math.max(node.share || 0, 0), 1)));
      node.hit = down / 2;
    });
  }
  return { nodes, bands, left, wide, columns, count, width: x + 4, height: y + 6 };
}

const cross = (o, a, b) => (a.x - o.x) * (b.y - o.y) - (a.y - o.y) * (b.x - o.x);
function convex(points) {
  const sorted = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
  const half = (list) => {
    const out = [];
    for (const p of list) {
      while (out.length > 1 && cross(out[out.length - 2], out[out.length - 1], p) <= 0) out.pop();
      out.push(p);
    }
    out.pop();
    return out;
  };
  return sorted.length < 3 ? sorted : [...half(sorted), ...half(sorted.reverse())];
}
// A hull round the members; where it would take in strangers, ribbons along the shortest tree instead.
function hull(members, others) {
  const ring = convex(members);
  const inside = (p) => ring.length > 2 && ring.every((a, i) => cross(a, ring[(i + 1) % ring.length], p) >= 0);
  if (ring.length < 3 || !others.some(inside)) return "M" + (ring.length > 1 ? ring : [ring[0], ring[0]]).map((p) => `${p.x} ${p.y}`).join("L") + "Z";
  const rest = members.slice(1);
  const tree = [members[0]];
  let path = "";
  while (rest.length) {
    let best = [Infinity];
    for (const a of tree) rest.forEach((b, i) => {
      const far = (a.x - b.x) ** 2 + (a.y - b.y) ** 2;
      if (far < best[0]) best = [far, a, b, i];
    });
    path += `M${best[1].x} ${best[1].y}L${best[2].x} ${best[2].y}`;
    tree.push(best[2]);
    rest.splice(best[3], 1);
  }
  return path;
}

export default function ({ data, parentElement, setTriggerValue }) {
  const begun = performance.now();
  const root = parentElement.querySelector(".root");
  const own = (root.actiscope ||= { k: null, left: 0, top: 0, fitted: true, gathered: new Set() });
  own.fire = (value) => setTriggerValue("act", value);
  const seen = JSON.stringify(data);
  if (own.seen === seen && root.firstChild) {
    own.mark(data.selected ?? null);
    own.begin();
    return () => own.end();
  }
  const active = root.getRootNode().activeElement;
  const had = active && root.contains(active) ? active.dataset.id ?? active.dataset.tool : null;
  const visible = had != null && active.matches(":focus-visible");
  if (own.end) own.end();
  own.seen = seen;
  root.replaceChildren();
  const plan = lay(data);
  const { nodes } = plan;
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const edges = data.edges.filter((edge) => byId.has(edge.from) && byId.has(edge.to) && edge.from !== edge.to);
  for (const id of own.gathered) if (!byId.has(id)) own.gathered.delete(id);
  let selected = data.selected ?? null;
  const sign = (value) => (!data.signed ? "" : value > 0 ? " pos" : value < 0 ? " neg" : " zero");
  const units = data.units ? ` ${data.units}` : "";
  const token = (column) => (column >= plan.count ? "all" : data.tokens[column]);

  // toolbar
  const top = html("div", "top");
  const tools = html("div", "tools");
  tools.setAttribute("role", "toolbar");
  tools.setAttribute("aria-label", "Graph");
  const buttons = {};
  const tool = (key, name, icon, text, act) => {
    const button = html("button", "tool");
    button.type = "button";
    button.dataset.tool = key;
    button.title = name;
    button.setAttribute("aria-label", name);
    if (icon) {
      const svg = make("svg", { viewBox: "0 0 18 18", "aria-hidden": "true" });
      svg.append(make("path", { d: ICONS[icon] }));
      button.append(svg);
    }
    button.append(html("span", "", text));
    button.onclick = act;
    tools.append(button);
    buttons[key] = button;
  };
  tool("in", "Zoom in", "more", "", () => zoom(own.k * 1.25));
  tool("out", "Zoom out", "less", "", () => zoom(own.k / 1.25));
  tool("fit", "Fit", "fit", "", () => fit(true));
  tool("full", "Full screen", "full", "", () => fill());
  tool("group", "Group the gathered nodes", "group", "Group", () => gatherUp());
  tool("png", "Download as PNG", "save", "PNG", () => save("png"));
  tool("svg", "Download as SVG", "save", "SVG", () => save("svg"));
  if (data.title) top.append(html("span", "title", data.title));
  else tools.style.marginLeft = "auto";
  top.append(tools);

  // frame, with the layers' names at the left and the tokens at the foot staying where they are
  const frame = html("div", "frame");
  const scroll = html("div", "scroll");
  const plane = html("div", "plane");
  const gutter = make("svg", { class: "gutter", "aria-hidden": "true" });
  const graph = make("svg", { class: "graph", role: "group", "aria-label": data.label || data.title || "Circuit" });
  const foot = make("svg", { class: "foot", "aria-hidden": "true" });
  const corner = html("div", "corner");
  plane.append(gutter, graph, foot, corner);
  scroll.append(plane);
  frame.append(scroll);
  const tip = html("div", "tip");
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");

  const world = make("g", { class: "world" });
  const back = make("g");
  const sets = make("g", { class: "hulls" });
  const wires = make("g", { class: "edges" });
  const ports = make("g", { class: "ports" });
  const spots = make("g", { class: "nodes" });
  const words = make("g", { class: "names", "aria-hidden": "true" });
  const tags = make("g", { class: "tags" });
  const column = make("rect", { class: "column none", y: 0, height: plan.height, rx: 3 });
  back.append(column);
  const filled = new Set(nodes.map((node) => `${node.band},${node.column}`));
  plan.bands.forEach((band, i) => {
    if (i) back.append(make("path", { class: "band", d: `M0 ${band.top}H${plan.width}` }));
    if (band.logits) return;
    for (let c = 0; c < plan.columns; c++)
      if (!filled.has(`${band.band},${c}`)) back.append(make("circle", { class: "dot", cx: plan.left[c] + plan.wide[c] / 2, cy: (band.top + band.bottom) / 2, r: 1.3 }));
  });
  if (plan.columns > plan.count) back.append(make("path", { class: "band", d: `M${plan.left[plan.count] - 7} 0V${plan.height}` }));

  // groups
  const groups = new Map();
  for (const node of nodes) if (node.group) groups.set(node.group, [...(groups.get(node.group) || []), node]);
  [...groups].forEach(([name, members], i) => {
    const tint = TINTS[i % TINTS.length];
    const d = hull(members, nodes.filter((node) => node.group !== name));
    const shape = make("g", { class: "hull", "data-group": name });
    const closed = d.endsWith("Z");
    for (const [extra, share] of [[32, 60], [29.5, 16]]) {
      const path = make("path", { d, "stroke-width": extra });
      path.style.stroke = `color-mix(in srgb, ${tint} ${share}%, var(--st-background-color))`;
      path.style.fill = closed ? path.style.stroke : "none";
      shape.append(path);
    }
    for (const node of members) {
      const disc = make("circle", { cx: node.x, cy: node.y, r: node.r + 4 });
      disc.style.fill = `color-mix(in srgb, ${tint} 45%, var(--st-background-color))`;
      shape.append(disc);
    }
    sets.append(shape);
  });

  // edges, the largest on top
  const touching = new Map(nodes.map((node) => [node.id, []]));
  const aside = { q: -0.6, k: 0, v: 0.6 };
  const thin = Math.min(1, (200 / Math.max(edges.length, 1)) ** 0.35);
  edges.sort((a, b) => (a.share || 0) - (b.share || 0));
  for (const edge of edges) {
    const from = byId.get(edge.from);
    const to = byId.get(edge.to);
    const x1 = from.x;
    const y1 = from.y - 0.7 * from.r;
    const x2 = to.x + to.r * (aside[edge.port] ?? 0);
    const y2 = to.y + 0.7 * to.r;
    const rise = y1 - y2;
    let bends;
    if (rise < 6) bends = [x1, Math.min(from.y, to.y) - 34, x2, Math.min(from.y, to.y) - 34];
    else if (Math.abs(x1 - x2) < 3 && rise > 40) bends = [x1 - Math.min(22, rise * 0.14), y1 - rise * 0.3, x2 - Math.min(22, rise * 0.14), y2 + rise * 0.3];
    else bends = [x1, y1 - Math.max(rise * 0.5, 12), x2, y2 + Math.max(rise * 0.5, 12)];
    const share = Math.min(Math.max(edge.share || 0, 0), 1);
    const path = make("path", {
      class: "edge" + sign(edge.weight), d: `M${x1} ${y1}C${bends.map((b) => b.toFixed(1)).join(" ")} ${x2} ${y2}`,
      "stroke-width": (0.7 + 4 * share * thin).toFixed(2), opacity: ((0.32 + 0.54 * share) * thin).toFixed(2), "data-from": edge.from, "data-to": edge.to,
    });
    if (edge.port) path.dataset.port = edge.port;
    edge.path = path;
    const at = 0.84;
    const mix = (a, b, c, d) => (1 - at) ** 3 * a + 3 * (1 - at) ** 2 * at * b + 3 * (1 - at) * at ** 2 * c + at ** 3 * d;
    edge.mark = { x: mix(x1, bends[0], bends[2], x2), y: mix(y1, bends[1], bends[3], y2) };
    path.edge = edge;
    touching.get(edge.from).push(edge);
    touching.get(edge.to).push(edge);
    wires.append(path);
  }

  // nodes, read in the order layers upward, then tokens
  const reading = [...nodes].sort((a, b) => b.y - a.y || a.x - b.x);
  const said = (node) => {
    const parts = [`${node.name || node.label}: ${number(node.value)}${node.value == null ? "" : units}`];
    if (node.note) parts.push(node.note);
    if (node.pinned) parts.push("pinned");
    if (node.group) parts.push(`in group ${node.group}`);
    return parts.join(", ");
  };
  for (const node of reading) {
    const g = make("g", {
      class: "node" + (node.pinned ? " pinned" : "") + (own.gathered.has(node.id) ? " gathered" : ""), role: "button", tabindex: -1,
      transform: `translate(${node.x.toFixed(2)} ${node.y.toFixed(2)})`, "aria-label": said(node), "aria-pressed": "false", "data-id": node.id, "data-kind": node.kind,
    });
    g.append(
      make("circle", { class: "hit", r: node.hit }),
      make("circle", { class: "ring", r: node.r * (node.kind === "logits" ? 1.25 : 1) + 3 }),
      make("path", { class: "shape" + sign(node.value), d: outline(node.kind, data.signed && node.value < 0 ? node.r - 0.6 : node.r) })
    );
    node.g = g;
    spots.append(g);
  }
  world.append(back, sets, wires, spots, ports, words, tags);
  graph.append(world);

  // what depends on the zoom: names beside large nodes, groups' names, layers, tokens
  const style = getComputedStyle(root);
  // downloads are seen without the page's fonts: what they hold is laid out for the wider
  let sans = style.fontFamily;
  const mono = style.getPropertyValue("--st-code-font") || "monospace";
  function annotate() {
    const k = own.k;
    words.replaceChildren();
    tags.replaceChildren();
    const taken = nodes.map((node) => [node.x - node.r - 2, node.y - node.r - 1, node.x + node.r + 2, node.y + node.r + 1]);
    const overlaps = (a) => taken.reduce((sum, b) => sum + Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1])), 0);
    const within = (a) => a[0] >= 0 && a[1] >= 0 && a[2] <= plan.width && a[3] <= plan.height;
    for (const [name, members] of groups) {
      const w = (width(name, `600 12px ${sans}`) + 22) / k;
      const h = 16 / k;
      const xs = members.map((m) => m.x);
      const ys = members.map((m) => m.y);
      const [l, r, t, b] = [Math.min(...xs) - 15, Math.max(...xs) + 15, Math.min(...ys) - 15, Math.max(...ys) + 15];
      const tries = [[l, t - h], [r - w, t - h], [(l + r - w) / 2, t - h], [r, t], [l - w, t], [l, b], [r - w, b], [r, (t + b - h) / 2], [l - w, (t + b - h) / 2], [r, b - h], [l - w, b - h]].map(([x, y]) => {
        const room = [Math.min(Math.max(x, 0), Math.max(plan.width - w, 0)), Math.min(Math.max(y, 0), plan.height - h)];
        const rect = [room[0], room[1], room[0] + w, room[1] + h];
        return [overlaps(rect) + Math.hypot(room[0] - x, room[1] - y) * 4, rect];
      });
      const rect = tries.reduce((best, next) => (next[0] < best[0] ? next : best))[1];
      taken.push(rect);
      const close = make("g", {
        class: "close", role: "button", tabindex: 0, "aria-label": `Ungroup ${name}`, "data-ungroup": name,
        transform: `translate(${rect[2] - 9 / k} ${rect[1] + 8 / k}) scale(${1 / k})`,
      });
      close.append(make("circle", { r: 12, style: "fill: transparent; stroke: none" }), make("circle", { r: 7 }), make("path", { d: "M-2.6 -2.6L2.6 2.6M-2.6 2.6L2.6 -2.6" }));
      tags.append(make("text", { class: "set", x: rect[0] + 2 / k, y: rect[1] + 12 / k }, name), close);
    }
    let room = 160;
    for (const node of [...nodes].sort((a, b) => (b.id === selected) - (a.id === selected) || Boolean(b.pinned) - Boolean(a.pinned) || (b.share || 0) - (a.share || 0))) {
      if (!node.label || !room || ((node.share || 0) < 0.22 && node.r * k < 9 && !node.pinned && node.id !== selected)) continue;
      const w = width(node.label, `11.5px ${sans}`) / k;
      const h = 13 / k;
      const far = node.r + (node.pinned ? 4 : 2) + 2 / k;
      const at = [[node.x + far, node.y - h / 2], [node.x - far - w, node.y - h / 2], [node.x - w / 2, node.y - far - h], [node.x - w / 2, node.y + far]]
        .map(([x, y]) => [x, y, x + w, y + h]).find((rect) => within(rect) && !overlaps(rect));
      if (!at) continue;
      room--;
      taken.push(at);
      const text = make("text", { class: "name", x: at[0].toFixed(1), y: (at[1] + 10 / k).toFixed(1) }, node.label);
      node.word = text;
      text.dataset.of = node.id;
      words.append(text);
    }
    gutter.replaceChildren();
    for (const band of plan.bands) {
      const middle = ((band.top + band.bottom) / 2) * k + 4;
      gutter.append(make("text", { class: "layer", x: GUTTER - 8, y: middle }, band.logits ? "logits" : `L${band.band}`));
    }
    foot.replaceChildren();
    const font = `12px ${mono}`;
    const pairs = Array.from({ length: plan.columns }, (_, c) => [token(c), c < plan.count && data.others && data.others.length && data.others[c] !== data.tokens[c] ? data.others[c] ?? "nothing" : null]);
    const cell = width("0", font);
    const turned = pairs.some(([a, b], c) => Math.min(Math.max([...a].length, [...(b || "")].length), 6) * cell > plan.wide[c] * k - 3);
    const differ = pairs.some((pair) => pair[1] != null);
    const chosen = byId.get(selected);
    let deep = turned ? 0 : differ ? 46 : 24;
    let free = -Infinity;
    pairs.forEach(([a, b], c) => {
      const middle = (plan.left[c] + plan.wide[c] / 2) * k;
      const here = chosen && chosen.column === c;
      const cut = (text, most) => ([...text].length > most ? [...text].slice(0, Math.max(most - 1, 1)).join("") + "…" : text);
      const most = turned ? 11 : Math.floor((plan.wide[c] * k - 2) / cell);
      const full = make("title", {}, b == null ? a : `${a}; corrupted: ${b}`);
      if (turned) {
        if (middle - free < 13 && !here) return;
        free = middle;
        const text = make("text", { class: "token turned" + (here ? " here" : ""), transform: `translate(${middle - 4} 6) rotate(90)` }, cut(a, most));
        text.append(full);
        foot.append(text);
        let end = 6 + [...cut(a, most)].length * cell;
        if (b != null) {
          foot.append(make("path", { class: "caret", d: `M${middle - 4} ${end + 9}l4 -5l4 5` }));
          foot.append(make("text", { class: "token other turned", transform: `translate(${middle - 4} ${end + 13}) rotate(90)` }, cut(b, most)));
          end += 13 + [...cut(b, most)].length * cell;
        }
        deep = Math.max(deep, end + 6);
        return;
      }
      const text = make("text", { class: "token" + (here ? " here" : ""), x: middle, y: 15 }, cut(a, most));
      text.append(full);
      foot.append(text);
      if (b != null) foot.append(make("path", { class: "caret", d: `M${middle - 4} 26l4 -5l4 5` }), make("text", { class: "token other", x: middle, y: 38 }, cut(b, most)));
    });
    const size = (node, w, h) => {
      node.setAttribute("width", w);
      node.setAttribute("height", h);
      node.setAttribute("viewBox", `0 0 ${w} ${h}`);
    };
    const [w, h] = [plan.width * k, plan.height * k];
    own.deep = Math.ceil(deep);
    size(gutter, GUTTER, h);
    size(graph, w, h);
    size(foot, w, own.deep);
    world.setAttribute("transform", `scale(${k})`);
    world.style.setProperty("--k", k);
    scroll.style.scrollPadding = `8px 8px ${own.deep + 8}px ${GUTTER + 8}px`;
    relight();
  }

  // zoom and place
  const within = (k) => Math.min(Math.max(k, 0.12), 5);
  function zoom(k, x, y) {
    const area = scroll.getBoundingClientRect();
    const [px, py] = x == null ? [GUTTER + (area.width - GUTTER) / 2, area.height / 2] : [x - area.left, y - area.top];
    const old = graph.getBoundingClientRect();
    const at = [(area.left + px - old.left) / own.k, (area.top + py - old.top) / own.k];
    own.k = within(k);
    own.fitted = false;
    annotate();
    const now = graph.getBoundingClientRect();
    scroll.scrollLeft += now.left + at[0] * own.k - (area.left + px);
    scroll.scrollTop += now.top + at[1] * own.k - (area.top + py);
    remember();
  }
  const enlarged = () => root.classList.contains("full") || root.matches(":fullscreen");
  function room() {
    const high = enlarged() ? frame.clientHeight : Math.min(window.innerHeight * 0.72, 720);
    return [(scroll.clientWidth - GUTTER) / plan.width, (high - own.deep - 14) / plan.height];
  }
  function fit(whole) {
    if (!scroll.clientWidth) return;
    const least = whole ? 0.12 : scroll.clientWidth < 600 ? 1 : 0.62;
    const most = enlarged() ? 2.4 : 1.6;
    own.fitted = true;
    // the foot is deeper where the tokens have to be turned: once more with what it took
    own.deep = 46;
    for (let again = 0; again < 2; again++) {
      const assumed = own.deep;
      own.k = Math.min(Math.max(Math.min(...room()), least), most);
      annotate();
      if (own.deep <= assumed) break;
    }
    const centre = byId.get(selected) || nodes.reduce((best, node) => (!best || (node.share || 0) > (best.share || 0) ? node : best), null);
    if (centre) {
      scroll.scrollLeft = centre.x * own.k - (scroll.clientWidth - GUTTER) / 2;
      scroll.scrollTop = centre.y * own.k - (scroll.clientHeight - own.deep) / 2;
    }
    remember();
  }
  function remember() {
    [own.left, own.top] = [scroll.scrollLeft, scroll.scrollTop];
  }
  function fill() {
    const done = () => fit(true);
    if (document.fullscreenElement) document.exitFullscreen();
    else if (root.classList.contains("full")) root.classList.remove("full"), done();
    else {
      const fallback = () => (root.classList.add("full"), done());
      if (root.requestFullscreen) root.requestFullscreen().catch(fallback);
      else fallback();
    }
  }

  // what is lit, told and chosen
  let hovered = null;
  let lit = null;
  let litEdges = [];
  function light(id) {
    if (lit === id) return;
    for (const edge of litEdges) edge.path.classList.remove("on");
    for (const node of spots.querySelectorAll(".on")) node.classList.remove("on");
    for (const word of words.querySelectorAll(".on")) word.classList.remove("on");
    ports.replaceChildren();
    lit = id;
    litEdges = id == null ? [] : touching.get(id) || [];
    world.classList.toggle("lit", litEdges.length > 0);
    if (!litEdges.length) return;
    const on = new Set([id]);
    for (const edge of litEdges) {
      edge.path.classList.add("on");
      on.add(edge.from).add(edge.to);
      if (edge.port && litEdges.length <= 60) ports.append(make("text", { class: "port", x: edge.mark.x, y: edge.mark.y }, edge.port));
    }
    for (const one of on) byId.get(one).g.classList.add("on");
    for (const word of words.children) if (on.has(word.dataset.of)) word.classList.add("on");
  }
  function relight() {
    const focused = spots.querySelector(".node:focus-visible");
    const id = hovered ?? (focused ? focused.dataset.id : null) ?? (byId.has(selected) ? selected : null);
    lit = undefined;
    light(id);
  }
  function tell(target, lines) {
    tip.replaceChildren(...lines.filter((line) => line[0]).map(([text, name]) => html("div", name, text)));
    tip.hidden = false;
    const [base, at] = [root.getBoundingClientRect(), target.getBoundingClientRect()];
    const [w, h] = [tip.offsetWidth, tip.offsetHeight];
    const x = Math.min(Math.max(at.left + at.width / 2 - w / 2, base.left), base.right - w);
    const over = at.top - h - 8;
    tip.style.left = `${x - base.left + root.scrollLeft}px`;
    tip.style.top = `${(over < 4 ? at.bottom + 8 : over) - base.top + root.scrollTop}px`;
  }
  const about = (node) =>
    tell(node.g, [[node.name || node.label, ""], [`${number(node.value)}${node.value == null ? "" : units}`, "value"], [node.note, "quiet"],
      [[node.pinned && "pinned", node.group && `group: ${node.group}`].filter(Boolean).join(", "), "quiet"]]);
  const hush = () => (tip.hidden = true);
  function mark(id) {
    for (const g of spots.querySelectorAll(".selected")) {
      g.classList.remove("selected");
      g.setAttribute("aria-pressed", "false");
    }
    const changed = id !== selected;
    selected = id;
    const node = byId.get(id);
    column.classList.toggle("none", !node);
    if (node) {
      node.g.classList.add("selected");
      node.g.setAttribute("aria-pressed", "true");
      column.setAttribute("x", plan.left[node.column] + 1);
      column.setAttribute("width", plan.wide[node.column] - 2);
      rove(node);
    }
    if (changed && own.k) annotate();
    else relight();
  }
  function choose(id) {
    mark(id);
    if (byId.has(id)) reveal(byId.get(id));
    own.fire({ kind: "select", id });
  }
  function gather(id) {
    if (own.gathered.has(id)) own.gathered.delete(id);
    else own.gathered.add(id);
    count();
  }
  function count() {
    for (const node of nodes) node.g.classList.toggle("gathered", own.gathered.has(node.id));
    const many = own.gathered.size;
    buttons.group.disabled = many < 2;
    buttons.group.lastChild.textContent = many ? `Group ${many}` : "Group";
  }
  function gatherUp() {
    if (own.gathered.size < 2) return;
    const ids = reading.filter((node) => own.gathered.has(node.id)).map((node) => node.id);
    own.gathered.clear();
    if (root.getRootNode().activeElement === buttons.group && stop) stop.g.focus({ preventScroll: true });
    count();
    own.fire({ kind: "group", ids });
  }
  let stop = null;
  function rove(node) {
    if (stop) stop.g.setAttribute("tabindex", -1);
    stop = node;
    if (node) node.g.setAttribute("tabindex", 0);
  }
  function reveal(node) {
    const [area, at] = [scroll.getBoundingClientRect(), node.g.getBoundingClientRect()];
    const spare = 12;
    if (at.left < area.left + GUTTER + spare) scroll.scrollLeft -= area.left + GUTTER + spare - at.left;
    else if (at.right > area.right - spare) scroll.scrollLeft += at.right - area.right + spare;
    if (at.top < area.top + spare) scroll.scrollTop -= area.top + spare - at.top;
    else if (at.bottom > area.bottom - own.deep - spare) scroll.scrollTop += at.bottom - area.bottom + own.deep + spare;
  }
  function walk(node, dx, dy) {
    let best = null;
    for (const strict of [true, false]) {
      let least = Infinity;
      for (const other of nodes) {
        if (other === node) continue;
        const along = (other.x - node.x) * dx + (other.y - node.y) * dy;
        const across = Math.abs((other.x - node.x) * dy) + Math.abs((other.y - node.y) * dx);
        if (along < 3 || (strict && across > along)) continue;
        if (along + 2 * across < least) [least, best] = [along + 2 * across, other];
      }
      if (best) break;
    }
    if (!best) return;
    rove(best);
    best.g.focus({ preventScroll: false });
    reveal(best);
    about(best);
  }

  // events
  const nodeAt = (event) => {
    const g = event.target.closest && event.target.closest(".node");
    return g ? byId.get(g.dataset.id) : null;
  };
  let moved = false;
  let held = null;
  let press = 0;
  graph.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    const node = nodeAt(event);
    hovered = node ? node.id : null;
    if (node) about(node);
    else if (event.target.edge) {
      const { from, to, weight, port } = event.target.edge;
      const [a, b] = [byId.get(from), byId.get(to)];
      tell({ getBoundingClientRect: () => new DOMRect(event.clientX - 1, event.clientY - 6, 2, 12) },
        [[`${a.name || a.label} → ${b.name || b.label}${port ? `, ${NAMES[port] || port} input` : ""}`, ""], [`${number(weight)}${units}`, "value"]]);
    } else hush();
    relight();
  });
  graph.addEventListener("pointerleave", () => {
    hovered = null;
    hush();
    relight();
  });
  graph.addEventListener("focusin", (event) => {
    const node = nodeAt(event);
    if (!node) return;
    rove(node);
    if (node.g.matches(":focus-visible")) about(node);
    relight();
  });
  graph.addEventListener("focusout", () => {
    hush();
    relight();
  });
  const clicked = (event) => {
    if (moved) return;
    const close = event.target.closest(".close");
    if (close) return own.fire({ kind: "ungroup", group: close.dataset.ungroup });
    const node = nodeAt(event);
    if (node) {
      if (event.altKey) own.fire({ kind: "pin", id: node.id });
      else if (event.shiftKey) gather(node.id);
      else choose(node.id === selected ? null : node.id);
      return;
    }
    if (own.gathered.size) {
      own.gathered.clear();
      count();
    }
    if (selected != null) choose(null);
  };
  graph.addEventListener("click", clicked);
  root.onkeydown = (event) => {
    if (event.key === "Escape") {
      hush();
      if (document.fullscreenElement || root.classList.contains("full")) fill();
      else if (own.gathered.size) {
        own.gathered.clear();
        count();
      } else if (selected != null) choose(null);
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const nearby = (k) => {
      const at = nodeAt(event)?.g.getBoundingClientRect();
      if (at) zoom(k, at.left + at.width / 2, at.top + at.height / 2);
      else zoom(k);
    };
    const keys = { "+": () => nearby(own.k * 1.25), "=": () => nearby(own.k * 1.25), "-": () => nearby(own.k / 1.25), 0: () => fit(true), g: gatherUp };
    if (keys[event.key] && frame.contains(event.target)) {
      event.preventDefault();
      event.stopPropagation();
      return keys[event.key]();
    }
    const close = event.target.closest(".close");
    const enter = event.key === "Enter" || event.key === " ";
    if (close && enter) {
      event.preventDefault();
      return own.fire({ kind: "ungroup", group: close.dataset.ungroup });
    }
    const node = nodeAt(event);
    if (!node) return;
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) walk(node, ...step);
    else if (event.key === " " || (event.key === "Enter" && event.shiftKey)) gather(node.id);
    else if (event.key === "Enter") choose(node.id === selected ? null : node.id);
    else if (event.key === "p" || event.key === "P") own.fire({ kind: "pin", id: node.id });
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  scroll.addEventListener("scroll", () => {
    hush();
    remember();
  });
  scroll.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(own.k * Math.exp(-Math.max(Math.min(event.deltaY, 60), -60) * 0.005), event.clientX, event.clientY);
  }, { passive: false });
  scroll.addEventListener("pointerdown", (event) => {
    moved = false;
    const node = nodeAt(event);
    clearTimeout(press);
    if (event.pointerType === "touch") {
      if (node) press = setTimeout(() => ((moved = true), gather(node.id)), 550);
    } else if (event.button === 0) held = { x: event.clientX, y: event.clientY, left: scroll.scrollLeft, top: scroll.scrollTop, id: event.pointerId };
  });
  scroll.addEventListener("pointermove", (event) => {
    if (!held || held.id !== event.pointerId) return;
    const [dx, dy] = [event.clientX - held.x, event.clientY - held.y];
    if (!moved && Math.hypot(dx, dy) < 5) return;
    if (!moved) {
      moved = true;
      scroll.setPointerCapture(event.pointerId);
      scroll.classList.add("dragging");
      hush();
    }
    scroll.scrollLeft = held.left - dx;
    scroll.scrollTop = held.top - dy;
  });
  const release = () => {
    held = null;
    clearTimeout(press);
    scroll.classList.remove("dragging");
  };
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) scroll.addEventListener(name, release);
  scroll.addEventListener("contextmenu", (event) => moved && event.preventDefault());
  let pinch = null;
  const spread = (touches) => Math.hypot(touches[0].clientX - touches[1].clientX, touches[0].clientY - touches[1].clientY);
  scroll.addEventListener("touchstart", (event) => {
    if (event.touches.length !== 2) return;
    clearTimeout(press);
    pinch = { far: spread(event.touches), k: own.k };
    event.preventDefault();
  }, { passive: false });
  scroll.addEventListener("touchmove", (event) => {
    clearTimeout(press);
    if (!pinch || event.touches.length !== 2) return;
    event.preventDefault();
    const [a, b] = event.touches;
    zoom((pinch.k * spread(event.touches)) / pinch.far, (a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2);
  }, { passive: false });
  scroll.addEventListener("touchend", () => (pinch = null));

  // legend
  const largest = nodes.reduce((most, node) => (node.value != null && Math.abs(node.value) > most ? Math.abs(node.value) : most), 0);
  const legends = [];
  const kinds = new Set(nodes.map((node) => node.kind));
  const shown = new Set();
  for (const kind in NAMES) {
    if (!kinds.has(kind) || shown.has(NAMES[kind])) continue;
    shown.add(NAMES[kind]);
    legends.push({ d: outline(kind, 6), name: "shape zero", text: NAMES[kind], w: 16 });
  }
  if (data.signed) {
    legends.push({ d: outline("z", 5.5), line: edges.length > 0 && "M10 0H30", name: "shape pos", edge: "edge pos", text: "positive", w: edges.length ? 38 : 16 });
    legends.push({ d: outline("z", 5.5), line: edges.length > 0 && "M10 0H30", name: "shape neg", edge: "edge neg", text: edges.length ? "negative: hollow, dashed" : "negative: hollow", w: edges.length ? 38 : 16 });
  }
  if (largest) legends.push({ d: outline("z", 3) + "M6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0Z", name: "shape zero", text: `size: up to ${number(largest)}${units}`, w: 28 });
  if (nodes.some((node) => node.pinned)) legends.push({ d: outline("z", 3.5), ring: 7, name: "shape zero", text: "pinned", w: 18 });
  const key = (item) => {
    const g = make("g");
    if (item.line) g.append(make("path", { class: item.edge, d: item.line, "stroke-width": 2.5 }));
    if (item.ring) g.append(make("circle", { r: item.ring, class: "ring", style: "stroke: var(--st-text-color); stroke-width: 1.2" }));
    g.append(make("path", { class: item.name, d: item.d }));
    return g;
  };
  const legend = html("div", "legend quiet");
  for (const item of legends) {
    const entry = html("span", "");
    const svg = make("svg", { width: item.w, height: 16, viewBox: `-8 -8 ${item.w} 16`, "aria-hidden": "true" });
    svg.append(key(item));
    entry.append(svg, item.text);
    legend.append(entry);
  }

  // downloads: the whole graph at zoom 1, colours and fonts resolved
  function picture() {
    const kept = { k: own.k, fitted: own.fitted, left: own.left, top: own.top };
    const was = hovered;
    hovered = null;
    own.k = 1;
    const family = sans;
    sans = "sans-serif";
    annotate();
    const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const cache = new Map();
    const solid = (colour) => {
      if (!cache.has(colour)) {
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
        cache.set(colour, [`rgb(${r}, ${g}, ${b})`, a / 255]);
      }
      return cache.get(colour);
    };
    const copy = (live) => {
      const computed = getComputedStyle(live);
      if (computed.display === "none" || live.matches(".hit, .close, title")) return null;
      const node = live.cloneNode(false);
      for (const name of [...node.getAttributeNames()]) if (/^(class|style|tabindex|role|data-|aria-pressed|opacity)/.test(name)) node.removeAttribute(name);
      for (const name of ["fill", "stroke"]) {
        const value = computed[name];
        if (live.tagName === "g" || live.tagName === "svg") continue;
        if (value === "none") {
          node.setAttribute(name, "none");
          continue;
        }
        const [colour, alpha] = solid(value);
        node.setAttribute(name, colour);
        if (alpha < 1) node.setAttribute(`${name}-opacity`, alpha.toFixed(3));
      }
      const also = live.tagName === "text" ? ["font-size", "font-family", "font-weight", "text-anchor", "dominant-baseline", "paint-order", "text-decoration-line"] : [];
      for (const name of ["stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", ...also]) {
        const value = computed.getPropertyValue(name);
        if (live.tagName !== "g" && value && value !== "none" && value !== "normal" && value !== "auto") node.setAttribute(name === "text-decoration-line" ? "text-decoration" : name, value);
      }
      if (computed.opacity !== "1") node.setAttribute("opacity", computed.opacity);
      if (live.classList.contains("node")) node.append(make("title", {}, live.getAttribute("aria-label")));
      for (const child of live.childNodes) {
        if (child.nodeType === 3) node.append(child.cloneNode());
        else {
          const inner = copy(child);
          if (inner) node.append(inner);
        }
      }
      return node;
    };
    const wide = Math.max(Math.ceil(GUTTER + plan.width + 24), 480);
    const board = make("svg", { style: "position: absolute; visibility: hidden; width: 0; height: 0" });
    const say = (text, x, y, extra) => {
      const node = make("text", { x, y, style: `fill: var(--dim); ${extra || ""}` }, text);
      board.append(node);
      return node;
    };
    root.append(board);
    let y = 12;
    if (data.title) say(data.title, 12, (y += 14), "font-size: 15px; font-weight: 600; fill: var(--st-text-color)"), (y += 10);
    const start = y;
    y += plan.height + own.deep + 18;
    let x = 12;
    for (const item of legends) {
      const long = item.w + width(item.text, `12px ${sans}`) + 18;
      if (x + long > wide - 12 && x > 12) (x = 12), (y += 20);
      const g = key(item);
      g.setAttribute("transform", `translate(${x + 8} ${y - 4})`);
      board.append(g);
      say(item.text, x + item.w + 4, y, "font-size: 12px");
      x += long;
    }
    for (const line of [data.note, data.meta].filter(Boolean)) {
      let row = "";
      for (const word of line.split(" ")) {
        if (row && width(`${row} ${word}`, `12px ${sans}`) > wide - 24) say(row, 12, (y += 18), "font-size: 12px"), (row = word);
        else row = row ? `${row} ${word}` : word;
      }
      say(row, 12, (y += 18), "font-size: 12px");
    }
    const high = Math.ceil(y + 14);
    const sheet = make("svg", { xmlns: "http://www.w3.org/2000/svg", width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, "font-family": family });
    sheet.append(make("title", {}, data.label || data.title || "Circuit"));
    if (data.meta) sheet.append(make("desc", {}, data.meta));
    sheet.append(make("rect", { width: wide, height: high, fill: solid(style.getPropertyValue("--st-background-color") || "#fff")[0] }));
    const part = (source, dx, dy) => {
      const g = make("g", { transform: `translate(${dx} ${dy})` });
      for (const child of source.children) {
        const inner = copy(child);
        if (inner) g.append(inner);
      }
      sheet.append(g);
    };
    part(graph, GUTTER, start);
    part(gutter, 0, start);
    part(foot, GUTTER, start + plan.height);
    part(board, 0, 0);
    board.remove();
    sans = family;
    own.k = kept.k;
    own.fitted = kept.fitted;
    hovered = was;
    annotate();
    [scroll.scrollLeft, scroll.scrollTop] = [kept.left, kept.top];
    return { text: new XMLSerializer().serializeToString(sheet), wide, high };
  }
  function save(kind) {
    const drawn = picture();
    const put = (blob) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = `${data.file || "graph"}.${kind}`;
      root.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    };
    const blob = new Blob([drawn.text], { type: "image/svg+xml" });
    if (kind === "svg") return put(blob);
    const image = new Image();
    const url = URL.createObjectURL(blob);
    image.onload = () => {
      const scale = Math.min(2, 8192 / drawn.wide, 8192 / drawn.high);
      const canvas = document.createElement("canvas");
      canvas.width = Math.round(drawn.wide * scale);
      canvas.height = Math.round(drawn.high * scale);
      const pen = canvas.getContext("2d");
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      URL.revokeObjectURL(url);
      canvas.toBlob(put, "image/png");
    };
    image.src = url;
  }

  // mount, and put back what was there
  root.append(top, frame);
  root.append(legend);
  if (data.note) root.append(html("p", "note quiet", data.note));
  const hint = html("p", "hint quiet", "Drag moves, Ctrl with the wheel zooms. Arrows walk, Enter selects, p pins, Shift-click gathers, g groups.");
  root.append(hint, tip);
  const observer = new ResizeObserver(() => {
    const now = `${scroll.clientWidth}`;
    if (now === own.wide || !scroll.clientWidth) return;
    own.wide = now;
    if (own.fitted) fit(false);
  });
  const left = () => !document.fullscreenElement !== !own.full && ((own.full = Boolean(document.fullscreenElement)), fit(own.full));
  own.begin = () => {
    observer.observe(scroll);
    document.addEventListener("fullscreenchange", left);
  };
  own.end = () => {
    observer.disconnect();
    document.removeEventListener("fullscreenchange", left);
  };
  own.mark = mark;
  const place = [own.left, own.top];
  // a view that was never touched is fitted anew where the layout has become another
  const layout = `${plan.width} ${plan.height}`;
  const keep = own.k && own.placed && (!own.fitted || own.layout === layout);
  own.layout = layout;
  if (keep) annotate();
  else fit(false);
  if (keep) [scroll.scrollLeft, scroll.scrollTop] = place;
  own.placed = Boolean(own.k);
  own.wide = `${scroll.clientWidth}`;
  mark(selected);
  count();
  if (!stop && reading.length) rove(reading[0]);
  own.begin();
  if (had != null) {
    const back = byId.has(had) ? byId.get(had).g : buttons[had];
    if (back) {
      back.focus({ preventScroll: true, focusVisible: visible });
      if (byId.has(had)) rove(byId.get(had));
    }
  }
  root.dataset.nodes = nodes.length;
  root.dataset.edges = edges.length;
  root.getBoundingClientRect();
  root.dataset.drawn = (performance.now() - begun).toFixed(1);
  return () => own.end();
}
