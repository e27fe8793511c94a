// A box to type in: each pause sends the text, and what comes back colours its tokens. What is typed is never replaced.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  const make = (tag, name, parent, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text != null) node.textContent = text;
    parent?.append(node);
    return node;
  };
  let area = root.querySelector("textarea");
  if (!area) {
    area = make("textarea", "", root);
    area.rows = 2;
    area.maxLength = 2000;
    area.spellcheck = false;
    make("div", "out", root).setAttribute("aria-live", "polite");
    area.value = data.text || "";
  }
  area.placeholder = data.placeholder;
  area.setAttribute("aria-label", data.label);
  let wait = 0;
  const send = () => {
    if (area.value !== root.sent) setTriggerValue("typed", { text: (root.sent = area.value) });
  };
  area.oninput = () => {
    clearTimeout(wait);
    root.querySelector(".out").classList.add("old");
    wait = setTimeout(send, 120);
  };
  area.onkeydown = (event) => event.stopPropagation();
  const out = root.querySelector(".out");
  out.classList.toggle("old", data.text !== area.value);
  if (data.text !== area.value) {
    // what came is of an older text: the newer one has been sent, or is now
    if (area.value) wait = setTimeout(send, 120);
    if (!data.tokens) return () => clearTimeout(wait);
  }
  out.replaceChildren();
  for (const [text, value] of data.tokens || []) {
    const node = make("span", "token", out, text);
    const share = Math.min(value / data.maximum, 1);
    if (share > 0) {
      node.style.background = `color-mix(in srgb, #d55e00 ${Math.round(8 + 52 * share)}%, transparent)`;
      node.style.boxShadow = `inset 0 -${(1 + 3 * share).toFixed(1)}px 0 #d55e00`;
    }
    node.title = value > 0 ? value.toPrecision(3) : "does not fire";
  }
  make("p", "quiet", out, data.message || "");
  return () => clearTimeout(wait);
}
