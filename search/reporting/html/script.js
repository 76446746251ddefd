"use strict";
// Tables are sorted by the column whose heading is pressed; without scripts they stay as written.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const numeric = heading.classList.contains("number");
      const upward = heading.getAttribute("aria-sort") === (numeric ? "descending" : null);
      const down = heading.getAttribute("aria-sort") === "ascending";
      const direction = upward || (!numeric && !down) ? 1 : -1;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (one, other) => {
        const [a, b] = [value(one), value(other)];
        if (!numeric) return direction * a.localeCompare(b, "en", { numeric: true });
        if (a === "" || b === "") return (a === "") - (b === ""); // what has no number comes last
        return direction * (Number(a) - Number(b));
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
