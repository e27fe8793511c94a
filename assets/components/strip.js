// A prompt as tokens that are buttons: click one and everything answers for it; arrows walk along.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  const active = root.getRootNode().activeElement;
  const had = active && root.contains(active) ? active.dataset.at : null;
  const scroll = root.firstElementChild ? root.firstElementChild.scrollTop : 0;
  root.replaceChildren();
  const strip = document.createElement("div");
  strip.className = "strip";
  strip.setAttribute("role", "listbox");
  strip.setAttribute("aria-label", data.label);
  data.tokens.forEach((token, at) => {
    const button = document.createElement("button");
    button.className = "token" + (at === data.selected ? " selected" : "");
    button.dataset.at = at;
    button.tabIndex = at === (data.selected ?? 0) ? 0 : -1;
    button.dir = "auto";
    button.setAttribute("role", "option");
    button.setAttribute("aria-selected", at === data.selected);
    for (const piece of token.text.split(/([␣↵⇥␀-␟]|⟨[^⟩]*⟩)/u)) {
      if (!piece) continue;
      const span = document.createElement("span");
      if (/^([␣↵⇥␀-␟]|⟨[^⟩]*⟩)$/u.test(piece)) span.className = "unseen";
      span.textContent = piece;
      button.append(span);
    }
    let name = `token ${at}: ${token.text}`;
    if (token.score != null) {
      const share = Math.min(Math.abs(token.score) / data.scale, 1);
      const colour = token.score >= 0 ? "#d55e00" : "#0072b2";
      button.style.background = `color-mix(in srgb, ${colour} ${Math.round(60 * share)}%, transparent)`;
      button.style.borderBottom = `${(1 + 4 * share).toFixed(1)}px ${token.score >= 0 ? "solid" : "dotted"} ${colour}`;
      const sense = data.verb || (token.score >= 0 ? "for:" : "against:");
      name += token.score || !data.verb ? `, ${sense} ${token.score.toPrecision(2)} ${data.units}` : "";
    }
    button.title = name;
    button.setAttribute("aria-label", name);
    button.onclick = () => setTriggerValue("pick", { at });
    button.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const next = Math.min(Math.max(at + step, 0), data.tokens.length - 1);
      strip.children[next].focus();
    };
    strip.append(button);
  });
  root.append(strip);
  if (data.note) {
    const note = document.createElement("p");
    note.className = "note quiet";
    note.textContent = data.note;
    root.append(note);
  }
  strip.scrollTop = scroll;
  if (had !== null && strip.children[had]) strip.children[had].focus();
}
