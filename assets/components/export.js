// Draws the components of a saved page. There is no server behind it: what they would send goes nowhere.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const styles = read("styles");
for (const place of document.querySelectorAll("[data-component]")) {
  const { name, data } = read(place.dataset.component);
  const parentElement = place.attachShadow({ mode: "open" });
  const style = document.createElement("style"), root = document.createElement("div");
  style.textContent = styles[name];
  root.className = "root";
  parentElement.append(style, root);
  components[name]({ data, parentElement, setTriggerValue() {}, setStateValue() {} });
}
for (const link of document.querySelectorAll("a[data-file]")) {
  const file = new Blob([document.getElementById(link.dataset.file).textContent], { type: "application/json" });
  link.href = URL.createObjectURL(file);
}
