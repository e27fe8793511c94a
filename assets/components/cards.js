// A grid (or one scrolling row) of picture buttons. Texts only through textContent: names may come from anyone's model.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  root.replaceChildren();
  const grid = document.createElement("div");
  grid.className = data.row ? "cards row" : "cards";
  grid.setAttribute("role", "group");
  grid.setAttribute("aria-label", data.label || "");
  grid.style.setProperty("--least", (data.least || 120) + "px");
  grid.style.setProperty("--shape", data.shape || 1);
  for (const item of data.items) {
    const card = document.createElement("button");
    card.className = "card" + (item.selected ? " selected" : "");
    card.setAttribute("aria-pressed", item.selected ? "true" : "false");
    card.title = item.help || "";
    const frame = document.createElement("span");
    frame.className = "frame";
    if (item.image) {
      const image = document.createElement("img");
      image.src = item.image;
      image.alt = item.alt || "";
      frame.append(image);
    } else {
      const wait = document.createElement("span");
      wait.className = "wait quiet";
      wait.textContent = item.wait || "";
      frame.append(wait);
    }
    if (item.progress != null) {
      const bar = document.createElement("span");
      bar.className = "bar";
      const done = document.createElement("i");
      done.style.width = 100 * item.progress + "%";
      bar.append(done);
      frame.append(bar);
    }
    const title = document.createElement("span");
    title.className = "title";
    title.textContent = item.title;
    const note = document.createElement("span");
    note.className = "note quiet";
    note.textContent = item.note || "";
    card.append(frame, title, note);
    card.onclick = () => setTriggerValue("pick", item.key);
    grid.append(card);
  }
  root.append(grid);
  if (data.row) grid.querySelector(".selected")?.scrollIntoView?.({ block: "nearest", inline: "nearest" });
}
