"use strict";
// What the scripts below share, tables that sort, and the button that copies.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (tag, properties = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
};
const number = (value) => value.toLocaleString("en");
const percent = (share) => Math.round(100 * share) + "%";

for (const button of all("table.sorts th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const column = head.cellIndex, rising = head.getAttribute("aria-sort") !== "ascending";
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = (one, other) => value(one).localeCompare(value(other), "en", { numeric: true });
    body.append(...[...body.rows].sort((one, other) => (rising ? 1 : -1) * order(one, other)));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  });
}

for (const button of all("[data-copy]")) {
  button.addEventListener("click", () => {
    navigator.clipboard?.writeText(find(button.dataset.copy).textContent).then(
      () => { button.textContent = "Copied"; },
      () => { button.textContent = "Select it and copy"; },
    );
  });
}
addEventListener("DOMContentLoaded", () => document.documentElement.classList.add("ready"));
