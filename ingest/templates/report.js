"use strict";
// the table of runs: unpack the columns, then sort, filter and page on row numbers
(() => {
  const LENGTH = 25;
  const table = document.getElementById("runs");
  if (!table) return;
  const columns = JSON.parse(document.getElementById("runs-data").textContent).map(unpack);
  const count = columns[0].values.length;
  const shown = columns.filter((column) => column.key !== "source");
  const runs = columns.find((column) => column.key === "run").values;
  const source = columns.find((column) => column.key === "source");
  source.values = source.values.map((text, row) => text.replaceAll("\u0001", runs[row]).replaceAll("\u0002", runs[row].split("_")[0]));
  const byKey = Object.fromEntries(columns.map((column) => [column.key, column]));
  const cards = new Set(Array.from(document.querySelectorAll("figure[id]"), (figure) => figure.id));
  const search = document.getElementById("runs-search");
  const onlyFar = document.getElementById("runs-far");
  let order = Array.from({ length: count }, (_, row) => row);
  let sorted = { column: null, down: false };
  let start = 0;

  function unpack(column) {
    if (column.levels) column.values = column.index.map((k) => column.levels[k]);
    if (column.rest) {
      let before = "";
      column.values = column.rest.map((rest, row) => (before = before.slice(0, column.shared[row]) + rest));
    }
    return column;
  }

  function text(column, row) {
    const value = column.values[row];
    if (column.digits === null) return value;
    if (value === null) return "–";
    const digits = { minimumFractionDigits: column.digits, maximumFractionDigits: column.digits };
    return value.toLocaleString("en-US", digits).replace("-", "−");
  }

  function wanted() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    return order.filter((row) => {
      if (onlyFar.checked && !byKey.out.values[row]) return false;
      const where = (byKey.run.values[row] + " " + byKey.source.values[row] + " " + byKey.out.values[row]).toLowerCase();
      return words.every((word) => where.includes(word));
    });
  }

  function cell(column, row) {
    const td = document.createElement("td");
    const said = text(column, row);
    td.dataset.label = column.label;
    if (column.digits !== null) td.className = "num";
    if (column.key === "run" && cards.has("run-" + said)) {
      const link = td.appendChild(document.createElement("a"));
      link.href = "#run-" + said;
      link.textContent = said;
    } else td.textContent = said;
    if (column.key === "run") td.appendChild(document.createElement("small")).textContent = byKey.source.values[row];
    return td;
  }

  function show() {
    const rows = wanted();
    start = Math.max(0, Math.min(start, Math.floor((rows.length - 1) / LENGTH) * LENGTH));
    const page = rows.slice(start, start + LENGTH).map((row) => {
      const tr = document.createElement("tr");
      if (byKey.out.values[row]) tr.className = "far";
      tr.append(...shown.map((column) => cell(column, row)));
      return tr;
    });
    table.tBodies[0].replaceChildren(...page);
    const [from, to, found, all] = [start + 1, start + page.length, rows.length, count].map((n) => n.toLocaleString("en-US"));
    const outOf = rows.length < count ? `${found} that fit, of ${all} in all` : `${all}`;
    document.getElementById("runs-where").textContent = rows.length ? `runs ${from} to ${to} of ${outOf}` : "no run fits";
    document.getElementById("runs-back").disabled = start === 0;
    document.getElementById("runs-on").disabled = start + LENGTH >= rows.length;
  }

  function sort(number) {
    const column = shown[number];
    const down = sorted.column === number ? !sorted.down : false;
    const values = column.values;
    const sign = down ? -1 : 1;
    order.sort((a, b) => {
      const x = values[a], y = values[b];
      const missing = (x === null || x === "") - (y === null || y === "");
      if (missing) return missing; // unknown and empty last, whichever the direction
      return (x < y ? -sign : x > y ? sign : 0) || a - b;
    });
    sorted = { column: number, down };
    Array.from(table.tHead.rows[0].cells).forEach((th, k) => {
      if (k === number) th.setAttribute("aria-sort", down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    start = 0;
    show();
  }

  Array.from(table.tHead.rows[0].cells).forEach((th, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = th.textContent;
    button.addEventListener("click", () => sort(number));
    th.replaceChildren(button);
  });
  for (const input of [search, onlyFar]) input.addEventListener("input", () => { start = 0; show(); });
  document.getElementById("runs-files").addEventListener("input", (event) => table.classList.toggle("files", event.target.checked));
  document.getElementById("runs-back").addEventListener("click", () => { start -= LENGTH; show(); });
  document.getElementById("runs-on").addEventListener("click", () => { start += LENGTH; show(); });
  document.getElementById("runs-tools").hidden = false;
  show();
})();

(() => {
  const button = document.getElementById("copy");
  if (!button) return;
  const source = document.getElementById("methods-text");
  const select = () => {
    const range = document.createRange();
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy");
  };
  const copy = () => (navigator.clipboard ? navigator.clipboard.writeText(source.textContent).then(() => true, select) : Promise.resolve(select()));
  button.hidden = false;
  button.addEventListener("click", () => copy().then((done) => { button.textContent = done ? "Copied" : "Selected: press Ctrl+C"; }));
})();
