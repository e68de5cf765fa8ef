"use strict";
let data;
const views = new Map();
let chosen = [];

// Charts are drawn when they are not hidden, those at the top first.
async function draw(element) {
  if (views.has(element)) return;
  views.set(element, null);
  const panel = data.panels[Number(element.dataset.panel)];
  const options = { actions: false, ast: true, renderer: "svg", config: data.config };
  const { view } = await vegaEmbed(element, { ...panel.spec, width: "container" }, options);
  const methods = data.methods[panel.question];  // none: the answer, which is about one strategy and never fades
  if (!methods || !(panel.spec.params || []).some(param => param.name === "chosen")) return;
  views.set(element, { view, methods });
  view.addEventListener("click", (_, item) => {
    const name = item && item.datum && item.datum.strategy;
    if (name) choose(name);
  });
  tell(views.get(element));
}
async function drawAll() {
  for (const element of document.querySelectorAll(".chart")) {
    if (element.offsetParent !== null) await draw(element);
  }
  document.documentElement.dataset.drawn = "yes";
}

// One choice of strategies for the whole page: charts, tables and the buttons at the top.
// A strategy that is one method with another is drawn by the name of the first.
function tell({ view, methods }) {
  const drawn = methods.filter(names => names.some(name => chosen.includes(name))).map(names => names[0]);
  view.signal("chosen", chosen.length && !drawn.length ? ["nothing"] : drawn).runAsync();
}
function choose(name) {
  chosen = chosen.includes(name) ? chosen.filter(other => other !== name) : [...chosen, name];
  views.forEach(view => view && tell(view));
  document.querySelectorAll("button[data-strategy]").forEach(button =>
    button.setAttribute("aria-pressed", String(chosen.includes(button.dataset.strategy))));
  document.querySelectorAll("tr[data-strategies]").forEach(row => {
    const is = JSON.parse(row.dataset.strategies).some(name => chosen.includes(name));
    row.classList.toggle("dim", chosen.length > 0 && !is);
  });
}
document.querySelectorAll("button[data-strategy]").forEach(button =>
  button.addEventListener("click", () => choose(button.dataset.strategy)));

// One choice of question and of decay for the whole page.
const pick = id => { const e = document.getElementById(id); return e ? e.value : ""; };
function show() {
  const words = pick("filter").toLowerCase().split(/\s+/);
  document.querySelectorAll("[data-question]").forEach(e => {
    e.hidden = pick("which-question") !== "" && e.dataset.question !== pick("which-question"); });
  document.querySelectorAll("[data-decay]").forEach(e => { e.hidden = e.dataset.decay !== pick("which-decay"); });
  document.querySelectorAll("table.cells tbody tr").forEach(row => {
    const text = (row.closest("section").dataset.question + " " + row.textContent).toLowerCase();
    row.hidden = !words.every(word => text.includes(word)); });
  drawAll();
}
for (const id of ["which-question", "which-decay"]) document.getElementById(id)?.addEventListener("change", show);
document.getElementById("filter")?.addEventListener("input", show);

// Tables: sorted by the heading that is pressed; numbers by size.
const value = cell => { const text = cell.textContent.replace(/\u2212/g, "-"), number = parseFloat(text.replace(/^\[/, ""));
  return Number.isNaN(number) ? text : number; };
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.closest("th"), table = head.closest("table"), i = [...head.parentNode.children].indexOf(head);
  const up = head.getAttribute("aria-sort") !== "ascending";
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((r, s) => { const a = value(r.cells[i]), b = value(s.cells[i]);
    const order = typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
    return up ? order : -order; });
  rows.forEach(row => table.tBodies[0].append(row)); }));
document.querySelectorAll("button.more").forEach(button => button.addEventListener("click", () => {
  const all = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(all));
  document.querySelectorAll("table.cells").forEach(table => table.classList.toggle("all", all)); }));
async function unpack() {
  const bytes = Uint8Array.from(atob(document.getElementById("charts").textContent), c => c.charCodeAt(0));
  const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  data = JSON.parse(await new Response(unzipped).text());
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(e => { e.open = true; }));
unpack().then(show);
