// Features as a list: label, how often each fires, why it was found, one context with the firing token marked.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  root.act = (value) => setTriggerValue("act", value);
  // a row that is replaced between press and release would lose the click
  const shown = JSON.stringify(data);
  if (root.shown === shown) return;
  root.shown = shown;
  const active = root.getRootNode().activeElement;
  const had = active && root.contains(active) ? active.dataset.at : null;
  const scroll = root.firstElementChild ? root.firstElementChild.scrollTop : 0;
  root.replaceChildren();
  const make = (tag, name, parent, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text != null) node.textContent = text;
    parent?.append(node);
    return node;
  };
  const list = make("ol", "list", root);
  list.setAttribute("aria-label", data.label);
  data.items.forEach((item, at) => {
    const row = make("li", "row" + (item.selected ? " selected" : ""), list);
    const button = make("button", "open", row);
    button.dataset.at = at;
    button.dataset.feature = item.feature;
    button.setAttribute("aria-current", item.selected ? "true" : "false");
    const head = make("span", "head", button);
    make("span", "number quiet", head, `#${item.feature}`);
    const label = make("span", "label" + (item.own ? " own" : ""), head, item.label);
    label.dir = "auto";
    if (item.promotes) make("span", "promotes quiet", head, `→ ${item.promotes}`);
    if (item.where) make("span", "where quiet", head, item.where);
    make("span", "value", head, item.value);
    const track = make("span", "track", button);
    const fill = make("i", item.share < 0 ? "against" : "", track);
    fill.style.width = `${Math.max(100 * Math.abs(item.share), 0.5)}%`;
    if (item.image) {
      const thumb = make("span", "thumb", button);
      const image = make("img", "", thumb);
      image.src = item.image;
      image.alt = item.alt;
      const [left, top, width, height] = item.spot.map((each) => `${100 * each}%`);
      Object.assign(make("i", "spot", thumb).style, { left, top, width, height });
    }
    if (item.tokens) {
      const line = make("span", "line", button);
      item.tokens.forEach(([text, marked]) => make(marked ? "mark" : "span", "", line, text));
    }
    const foot = make("span", "foot quiet", button);
    foot.textContent = [item.reason, item.density].filter(Boolean).join(" · ");
    button.onclick = () => root.act({ open: item.feature, sae: item.sae });
    const like = make("button", "like", row, "like this");
    like.title = "Features with a similar direction";
    like.setAttribute("aria-label", `Features like #${item.feature}`);
    like.onclick = () => root.act({ like: item.feature, sae: item.sae });
    button.onkeydown = (event) => {
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      list.children[at + step]?.querySelector(".open").focus();
    };
  });
  if (!data.items.length) make("p", "quiet", root, data.empty);
  list.scrollTop = scroll;
  if (had != null) list.children[had]?.querySelector(".open").focus();
}
