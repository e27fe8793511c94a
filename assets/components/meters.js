// What steering does and breaks, one gauge each: the plain model as a line, the steered one as a bar from there, and a
// random direction of the same length as a grey needle.
export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".root");
  root.replaceChildren();
  const make = (tag, name, parent, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text != null) node.textContent = text;
    parent?.append(node);
    return node;
  };
  let random = false;
  for (const item of data.items) {
    const place = (value) => 100 * Math.min(Math.max((value - item.low) / (item.high - item.low || 1), 0), 1);
    const meter = make("div", "meter" + (item.worry ? " worry" : ""), root);
    const top = make("div", "top", meter);
    make("span", "", top, item.name);
    const value = make("span", "value", top);
    if (item.plainText != null) make("span", "quiet", value, `${item.plainText} → `);
    make("b", "", value, item.text);
    const track = make("div", "track", meter);
    track.setAttribute("role", "img");
    const parts = [`${item.name}: ${item.text}`, item.plainText != null ? `plain ${item.plainText}` : "",
      item.controlText != null ? `random direction ${item.controlText}` : ""];
    track.setAttribute("aria-label", parts.filter(Boolean).join(", "));
    meter.title = `${parts.filter(Boolean).join(", ")}. ${item.help}`;
    if (item.value != null) {
      const from = place(item.plain ?? item.low), to = place(item.value);
      const fill = make("div", "fill", track);
      fill.style.left = `${Math.min(from, to)}%`;
      fill.style.width = `${Math.abs(to - from)}%`;
    }
    if (item.plain != null) make("div", "plain", track).style.left = `${place(item.plain)}%`;
    if (item.control != null) {
      make("div", "needle", track).style.left = `${place(item.control)}%`;
      random = true;
    }
  }
  const key = make("div", "key quiet", root);
  const entry = (name, text) => {
    const span = make("span", "", key);
    make("i", name, span);
    span.append(text);
  };
  entry("plain", "plain");
  entry("fill", "steered");
  if (random) entry("needle", data.random || "a random direction as long");
}
