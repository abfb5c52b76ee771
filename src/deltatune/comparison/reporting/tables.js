"use strict";
// Tables: sort by a click on a heading, filter by words, hide columns. No library is needed.
(function () {
  function valueOf(row, column, kind) {
    const value = row.cells[column].dataset.value;
    if (value === undefined) return null;
    return kind === "number" ? Number(value) : value.toLowerCase();
  }

  function compare(first, second, sign) {
    if (first === null || second === null) return (first === null) - (second === null);
    return first < second ? -sign : first > second ? sign : 0;
  }

  function sort(table, heading) {
    const now = heading.getAttribute("aria-sort");
    const turned = now === "ascending" ? "descending" : "ascending";
    const direction = now === "none" ? heading.dataset.begins : turned;
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", direction);
    const body = table.tBodies[0];
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = Array.from(body.rows, (row) => [
      valueOf(row, heading.cellIndex, heading.dataset.kind), row,
    ]);
    keyed.sort((first, second) => compare(first[0], second[0], sign));
    body.append(...keyed.map((pair) => pair[1]));
  }

  function filter(input) {
    const table = document.getElementById(input.dataset.filters);
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    const all = table.tBodies[0].rows.length;
    const count = document.querySelector(`[data-count="${table.id}"]`);
    count.textContent = words.length ? `${shown} of ${all}` : "";
  }

  function show(box) {
    const table = document.getElementById(box.dataset.hides);
    for (const row of table.rows) row.cells[Number(box.dataset.column)].hidden = !box.checked;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const heading of table.tHead.rows[0].cells) {
      heading.querySelector("button").addEventListener("click", () => sort(table, heading));
    }
  }
  for (const input of document.querySelectorAll("[data-filters]")) {
    input.addEventListener("input", () => filter(input));
  }
  for (const box of document.querySelectorAll("[data-hides]")) {
    box.addEventListener("change", () => show(box));
  }
})();
