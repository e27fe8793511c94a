// Two rows of tokens, a source layer below and a target layer above: what fires at the target came up as a solid line,
// or was made in between, as a spark. Beside it the features as a list, carried and made.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  root.act = (value) => setTriggerValue("act", value);
  // what is replaced between press and release would lose the click
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
  const STEP = 12, BAND = data.panels.length > 1 ? 92 : 128, LEFT = 74;
  const here = (name) => (event) => {
    const over = event.type === "mouseenter" || event.type === "focus";
    const on = over ? name : data.selected;
    root.classList.toggle("one", on != null);
    root.classList.toggle("over", over);
    root.querySelectorAll("[data-feature]").forEach((each) => each.classList.toggle("lit", each.dataset.feature === String(on)));
  };
  const follow = (node, name) => ["mouseenter", "mouseleave", "focus", "blur"].forEach((each) => node.addEventListener(each, here(name)));

  // ------------------------------------------------------------------------------------------------------ the drawing
  const most = data.tokens.map((_, t) => Math.max(0, ...data.panels.map((panel) => panel.marks.filter((mark) => mark.token === t).length)));
  const least = data.tokens.map((text, t) => Math.max(34, Math.min(7.9 * [...text].length, 130) + 12, STEP * most[t] + 14));
  const spare = Math.min(Math.max(root.clientWidth - LEFT - least.reduce((sum, each) => sum + each, 0), 0) / least.length, 60);
  const widths = least.map((each) => each + spare);
  const starts = widths.map((_, t) => LEFT + widths.slice(0, t).reduce((sum, each) => sum + each, 0));
  const middle = (t) => starts[t] + widths[t] / 2;
  const total = LEFT + widths.reduce((sum, each) => sum + each, 0);
  const frame = make("div", "frame", root);
  const stage = make("div", "stage", frame);
  stage.style.width = `${total}px`;
  const rowOf = (name, layer, tag, at) => {
    const row = make("div", `tokens ${name}`, stage);
    make("span", "layer quiet", row, layer);
    data.tokens.forEach((text, t) => {
      const token = make(tag, "token" + (t === at ? " selected" : ""), row, text);
      token.style.width = `${widths[t]}px`;
      token.dir = "auto";
      if (tag === "button") {
        const count = data.panels.at(-1).marks.filter((mark) => mark.token === t).length;
        token.dataset.at = `t${t}`;
        token.tabIndex = t === (data.position ?? 0) ? 0 : -1;
        token.title = `token ${t}: ${text}, ${count} ${count === 1 ? "feature fires" : "features fire"}`;
        token.setAttribute("aria-label", token.title);
        token.setAttribute("aria-pressed", t === data.position);
        token.onclick = () => root.act({ at: t });
        token.onkeydown = (event) => {
          const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
          if (!step) return;
          event.preventDefault();
          row.children[1 + Math.min(Math.max(t + step, 0), data.tokens.length - 1)].focus();
        };
      } else token.setAttribute("aria-hidden", "true");
    });
    return row;
  };
  data.panels.forEach((panel, p) => {
    if (panel.title) make("span", "panel", stage, panel.title);
    rowOf("target", data.target, p === data.panels.length - 1 ? "button" : "span", data.position);
    const lanes = make("div", "lanes", stage);
    make("span", "layer quiet", lanes, data.policy === "attention" ? "by attention" : "");
    const view = `${LEFT} 0 ${total - LEFT} ${BAND}`;
    const svg = draw("svg", "", lanes, { width: total - LEFT, height: BAND, viewBox: view, role: "img" });
    svg.setAttribute("aria-label", `${panel.title ? panel.title + ": " : ""}${panel.alt}`);
    if (data.policy === "attention") {
      draw("line", "rail", svg, { x1: LEFT, x2: total, y1: BAND - 12, y2: BAND - 12 });
    }
    data.tokens.forEach((_, t) => {
      if (t === data.position) draw("rect", "column", svg, { x: starts[t] + 1, y: 0, width: widths[t] - 2, height: BAND });
      const marks = panel.marks.filter((mark) => mark.token === t);
      marks.forEach((mark, m) => {
        const x = middle(t) + STEP * (m - (marks.length - 1) / 2);
        const from = data.policy === "previous" ? (t ? middle(t - 1) + STEP * (m - (marks.length - 1) / 2) : null) : x;
        const bottom = data.policy === "attention" ? BAND - 12 : BAND;
        const carried = mark.carried == null ? 0 : Math.min(Math.max(mark.carried, 0), 1);
        const width = 1.4 + 4.6 * mark.size;
        // sparks of one token lie at different heights, so that they do not hide each other
        const at = BAND * (0.42 + 0.12 * ((m % 3) - 1));
        const half = from == null ? x : from + (x - from) * (1 - at / bottom);
        const kind = mark.carried == null ? "unknown" : carried >= 0.5 ? "carried" : "made";
        const lane = draw("g", `lane ${kind}`, svg, { "data-feature": mark.feature });
        const whole = carried >= 0.9 && from != null;
        if (!whole && carried > 0.05 && from != null) {
          draw("line", "below", lane, { x1: from, y1: bottom, x2: half, y2: at, "stroke-width": Math.max(width * carried, 1) });
        }
        draw("line", "above", lane, { x1: whole ? from : half, y1: whole ? bottom : at, x2: x, y2: 6, "stroke-width": width });
        draw("circle", "end", lane, { cx: x, cy: 6, r: 2 + width / 2 });
        const r = 3 + 6 * (1 - carried);
        if (!whole && mark.carried != null) {
          draw("path", "spark", lane, {
            d: `M0,${-r} Q0,0 ${r},0 Q0,0 0,${r} Q0,0 ${-r},0 Q0,0 0,${-r}Z`, transform: `translate(${half},${at})`,
          });
        }
        const hit = draw("line", "hit", lane, { x1: from ?? x, y1: from == null ? at : bottom, x2: x, y2: 0 });
        draw("title", "", hit, {}).textContent = mark.note;
        hit.addEventListener("click", () => root.act({ open: mark.feature }));
        follow(lane, mark.feature);
      });
    });
    rowOf("source", data.source, "span", data.position == null || data.policy === "attention" ? null : data.position - (data.policy === "previous"));
  });
  const key = make("p", "key quiet", root);
  for (const [kind, text] of [["carried", "carried: a line from below"], ["made", "made in between: a spark"]]) {
    const svg = draw("svg", "", key, { width: 20, height: 20, "aria-hidden": "true" });
    const lane = draw("g", `lane ${kind}`, svg, {});
    if (kind === "carried") draw("line", "below", lane, { x1: 10, y1: 20, x2: 10, y2: 10, "stroke-width": 4 });
    draw("line", "above", lane, { x1: 10, y1: 10, x2: 10, y2: 4, "stroke-width": 4 });
    draw("circle", "end", lane, { cx: 10, cy: 4, r: 3.5 });
    if (kind === "made") draw("path", "spark", lane, { d: "M0,-7 Q0,0 7,0 Q0,0 0,7 Q0,0 -7,0 Q0,0 0,-7Z", transform: "translate(10,12)" });
    make("span", "", key, text);
  }
  make("span", "", key, "width: how strongly it fires; below the spark, the share that was there");

  // --------------------------------------------------------------------------------------------------------- the list
  const lists = make("div", "lists", root);
  for (const group of data.groups) {
    const side = make("section", `group of-${group.kind}`, lists);
    make("h6", "", side, `${group.title} (${group.items.length})`);
    const list = make("ol", "list", side);
    list.setAttribute("aria-label", group.title);
    group.items.forEach((item, at) => {
      const row = make("li", "row" + (item.feature === data.selected ? " selected" : ""), list);
      const button = make("button", "open", row);
      button.dataset.at = `f${item.feature}`;
      button.dataset.feature = item.feature;
      button.setAttribute("aria-current", item.feature === data.selected ? "true" : "false");
      const head = make("span", "top", button);
      make("span", "number quiet", head, `#${item.feature}`);
      const label = make("span", "label", head, item.label);
      label.dir = "auto";
      if (item.promotes) make("span", "promotes quiet", head, `→ ${item.promotes}`);
      make("span", "value", head, item.value);
      if (item.r2) {
        const track = make("span", "track", button);
        const place = (value) => `${100 * Math.min(Math.max(value, 0), 1)}%`;
        make("i", "half", track);
        const whisker = make("i", "whisker", track);
        whisker.style.left = place(item.r2[1]);
        whisker.style.width = place(item.r2[2] - Math.max(item.r2[1], 0));
        make("i", "dot", track).style.left = place(item.r2[0]);
      }
      make("span", "foot quiet", button, item.note);
      button.onclick = () => root.act({ open: item.feature });
      follow(button, item.feature);
      button.onkeydown = (event) => {
        const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
        if (!step) return;
        event.preventDefault();
        list.children[at + step]?.querySelector(".open").focus();
      };
    });
    if (!group.items.length) make("p", "quiet empty", side, group.empty);
  }
  here(null)({ type: "" });
  if (scroll != null) frame.scrollLeft = scroll;
  else frame.scrollLeft = (starts[data.focus] ?? 0) - frame.clientWidth / 2;
  if (had != null) root.querySelector(`[data-at="${had}"]`)?.focus();
}
