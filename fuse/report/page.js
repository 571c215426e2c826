"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byName = new Map(data.names.map((name, i) => [name, i]));
const root = document.documentElement;

// Themes: what the system has, light, dark.
const THEMES = ["system", "light", "dark"];
const themeButton = document.getElementById("theme");
function setTheme(theme) {
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  themeButton.textContent = `Theme: ${theme}`;
}
themeButton.addEventListener("click", () => {
  setTheme(THEMES[(THEMES.indexOf(root.dataset.theme || "system") + 1) % THEMES.length]);
});

// Sortable tables: numbers from high to low first, text from A to Z.
function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
}
function sortBy(table, column) {
  const header = table.tHead.rows[0].cells[column];
  const rows = [...table.tBodies[0].rows];
  const numbers = typeof valueOf(rows[0], column) === "number" && column > 0;
  const first = numbers ? "descending" : "ascending";
  const second = numbers ? "ascending" : "descending";
  const order = header.getAttribute("aria-sort") === first ? second : first;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  rows.sort((a, b) => {
    const [x, y] = [valueOf(a, column), valueOf(b, column)];
    return sign * (typeof x === "number" ? x - y : x.localeCompare(y));
  });
  table.tBodies[0].append(...rows);
}
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((cell, column) =>
    cell.querySelector("button").addEventListener("click", () => sortBy(table, column)));
}

// The details of a class. Text is set as text: names of classes are never read as HTML.
const details = document.getElementById("details");
function element(name, text, parent) {
  const made = document.createElement(name);
  made.textContent = text;
  parent.append(made);
  return made;
}
function apText(index, iouType) {
  return data.ap[iouType].map((row) => (row[index] === null ? "–" : row[index].toFixed(1))).join(" → ");
}
function countText(index) {
  return `${data.counts[index].toLocaleString("en")} training instances`;
}
function showClass(index) {
  details.replaceChildren();
  element("h3", data.names[index], details);
  const titles = { segm: "mask AP", bbox: "box AP" };
  const aps = Object.keys(data.ap).map((type) => `${titles[type]} ${apText(index, type)}`);
  element("p", `${countText(index)}; ${aps.join("; ")}`, details);
  data.rows.forEach((row, side) => {
    const part = document.createElement("div");
    details.append(part);
    element("h4", `Best detections of ${row}`, part);
    const found = data.found[side][index];
    if (!found.length) element("p", "None.", part);
    const list = element("ol", "", part);
    for (const [image, score, there, thumbnail] of found) {
      const item = element("li", "", list);
      if (thumbnail !== null) {
        const shown = element("img", "", item);
        shown.src = data.thumbnails[thumbnail];
        shown.alt = "";
      }
      const words = typeof there === "number" ? `is ${data.names[there]}` : there;
      element("span", `${score.toFixed(3)} in image ${image}: ${words}`, item);
    }
  });
  document.getElementById("class").value = data.names[index];
}
for (const name of data.names) element("option", "", document.getElementById("classes")).value = name;
document.getElementById("class").addEventListener("change", (event) => {
  if (byName.has(event.target.value)) showClass(byName.get(event.target.value));
});
for (const button of document.querySelectorAll("button.class")) {
  button.addEventListener("click", () => { showClass(byName.get(button.textContent)); details.scrollIntoView({ block: "nearest" }); });
}

// Hovering and clicking points: the nearest one within a finger's reach.
const REACH = 16;
const tip = document.getElementById("tip");
for (const chart of document.querySelectorAll(".chart[data-points]")) {
  const svg = chart.querySelector("svg");
  const classes = JSON.parse(chart.dataset.points);
  const points = [];
  for (const group of svg.querySelectorAll("g[data-points]")) {
    const row = Number(group.dataset.points);
    const dots = group.querySelector("path[d*=h0]").getAttribute("d").matchAll(/M(\S+) (\S+)h0/g);
    [...dots].forEach(([, x, y], i) => points.push({ index: classes[row][i], x: Number(x), y: Number(y) }));
  }
  const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  ring.setAttribute("class", "ring");
  ring.setAttribute("r", "6");
  ring.setAttribute("visibility", "hidden");
  svg.append(ring);
  const nearest = (event) => {
    const matrix = svg.getScreenCTM();
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    let best = null;
    let distance = REACH / matrix.a;
    for (const point of points) {
      const d = Math.hypot(point.x - at.x, point.y - at.y);
      if (d < distance) [best, distance] = [point, d];
    }
    return best;
  };
  svg.addEventListener("pointermove", (event) => {
    const point = nearest(event);
    tip.hidden = point === null;
    ring.setAttribute("visibility", point === null ? "hidden" : "visible");
    if (point === null) return;
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    tip.textContent = `${data.names[point.index]}, ${countText(point.index)}: AP ${apText(point.index, chart.dataset.iouType)}`;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, root.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(4, event.clientY - tip.offsetHeight - 10)}px`;
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    ring.setAttribute("visibility", "hidden");
  });
  svg.addEventListener("click", (event) => {
    const point = nearest(event);
    if (point !== null) { showClass(point.index); details.scrollIntoView({ block: "nearest" }); }
  });
}
