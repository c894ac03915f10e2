"use strict";
// Makes the headings of longer tables buttons that sort the table.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        // Unknown values stay last in both directions.
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = x - y;
        const sorted = Number.isNaN(order) ? x.localeCompare(y, "en", { numeric: true }) : order;
        return down ? -sorted : sorted;
      };
      body.append(...[...body.rows].sort(compare));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
}
// Unfold the printed parts while printing.
const unfolded = [];
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details.printed:not([open])")) {
    one.open = true;
    unfolded.push(one);
  }
});
addEventListener("afterprint", () => {
  for (const one of unfolded.splice(0)) one.open = false;
});
