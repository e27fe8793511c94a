// Class probabilities as bars that are buttons: click explains the class, shift-click (or the key 2) shows it beside.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  root.replaceChildren();
  const percent = (p) => (p >= 0.995 ? ">99 %" : p < 0.001 ? "<0.1 %" : (100 * p).toPrecision(2) + " %");
  for (const item of data.items) {
    const row = document.createElement("button");
    row.className = "guess" + (item.first ? " first" : "") + (item.second ? " second" : "");
    row.setAttribute("aria-pressed", item.first || item.second ? "true" : "false");
    const before = item.before == null ? "" : `, before ${percent(item.before)}`;
    row.setAttribute("aria-label", `${item.label}: ${percent(item.p)}${before}`);
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = item.label;
    const bars = document.createElement("span");
    for (const [p, kind] of [[item.p, ""], ...(item.before == null ? [] : [[item.before, " before"]])]) {
      const track = document.createElement("span");
      track.className = "track bar" + kind;
      const fill = document.createElement("i");
      fill.style.width = Math.max(100 * p, 0.4) + "%";
      track.append(fill);
      bars.append(track);
    }
    const value = document.createElement("span");
    value.className = "value";
    value.textContent = percent(item.p);
    row.append(name, bars, value);
    row.onclick = (event) => setTriggerValue("pick", { label: item.label, beside: event.shiftKey });
    row.onkeydown = (event) => {
      if (event.key === "2") setTriggerValue("pick", { label: item.label, beside: true });
    };
    root.append(row);
  }
  const hint = document.createElement("p");
  hint.className = "hint quiet";
  hint.textContent = data.hint || "";
  root.append(hint);
}
