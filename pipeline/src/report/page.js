// Sorting, filtering and read-outs. Everything on the page stands there without it.
"use strict";
(() => {
  const create = (name, properties) => Object.assign(document.createElement(name), properties);

  // Columns sort on a button in their head; what has no value stays last in both directions.
  const compare = (column, sign) => (left, right) => {
    const [a, b] = [left, right].map((row) => row.cells[column]);
    const [x, y] = [a, b].map((cell) => (cell.dataset.v === undefined ? null : Number(cell.dataset.v)));
    if (x !== null || y !== null) {
      return x === null ? 1 : y === null ? -1 : sign * (x - y);
    }
    return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  };
  const sortable = (table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = create("button", { type: "button", className: "sort" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        body.append(...[...body.rows].sort(compare(column, down ? -1 : 1)));
      });
    });
  };

  // A search field over all text of a row, and a choice for the column that is marked for it.
  const filterable = (table) => {
    const rows = [...table.tBodies[0].rows];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const search = create("input", { type: "search" });
    const shown = create("output", {});
    const facet = [...table.tHead.rows[0].cells].findIndex((head) => head.dataset.facet !== undefined);
    const bar = create("div", { className: "filter" });
    const label = create("label", { textContent: "Search " });
    label.append(search);
    bar.append(label);
    let choice = null;
    if (facet >= 0) {
      choice = create("select", {});
      const values = [...new Set(rows.map((row) => row.cells[facet].textContent))];
      choice.append(...["", ...values].map((value) => create("option", { value, textContent: value || "all" })));
      const name = table.tHead.rows[0].cells[facet].textContent.trim();
      const chosen = create("label", { textContent: `${name} ` });
      chosen.append(choice);
      bar.append(chosen);
      choice.addEventListener("change", () => apply());
    }
    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      rows.forEach((row, index) => {
        const fits = !choice || !choice.value || row.cells[facet].textContent === choice.value;
        const hidden = !fits || !words.every((word) => texts[index].includes(word));
        row.hidden = hidden;
        count += hidden ? 0 : 1;
      });
      shown.textContent = `${count} of ${rows.length} rows`;
    };
    search.addEventListener("input", apply);
    bar.append(shown);
    table.closest(".scroll").before(bar);
    apply();
  };

  // The values nearest to the pointer, or, with the arrow keys, point by point.
  const readable = (figure) => {
    const svg = figure.querySelector("svg.plot");
    const cursor = svg.querySelector(".cursor");
    const series = JSON.parse(figure.dataset.points);
    const out = create("output", { className: "readout", textContent: "\u00a0" });
    svg.after(out);
    const longest = series.reduce((best, one) => (one.p.length > best.p.length ? one : best), series[0]);
    let index = -1;
    const show = (x) => {
      const near = series.map((one) => one.p.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best)));
      const at = near[series.indexOf(longest)];
      cursor.setAttribute("x1", `${at[0]}%`);
      cursor.setAttribute("x2", `${at[0]}%`);
      cursor.style.visibility = "visible";
      out.textContent = `${figure.dataset.x} ${at[1]}: ` + series.map((one, i) => `${one.n} ${near[i][2]}`).join(", ");
      index = longest.p.indexOf(at);
    };
    const hide = () => {
      cursor.style.visibility = "hidden";
      out.textContent = "\u00a0";
      index = -1;
    };
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      show((100 * (event.clientX - box.left)) / box.width);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        event.preventDefault();
        show(longest.p[Math.min(Math.max(index + step, 0), longest.p.length - 1)][0]);
      }
    });
  };

  document.querySelectorAll("table[data-sortable]").forEach(sortable);
  document.querySelectorAll("table[data-filterable]").forEach(filterable);
  document.querySelectorAll("figure[data-points]").forEach(readable);
})();
