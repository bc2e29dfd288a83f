// Tables: columns that sort, downloads as CSV and JSON. Nothing leaves the page: files are made from memory.

const NUMBER = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i;

// The unrounded value behind a cell, where there is one.
function valueOf(cell) {
  return cell.hasAttribute("data-value") ? cell.getAttribute("data-value") : cell.textContent.trim();
}

// One CSV field. A text that a spreadsheet would run as a formula gets an apostrophe in front; numbers stay numbers.
function csvField(value) {
  const guarded = /^[=+\-@\t\r]/.test(value) && !NUMBER.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(guarded) ? `"${guarded.replace(/"/g, '""')}"` : guarded;
}

function csvOf(table) {
  const rows = [...table.rows].map((row) => [...row.cells].map((cell) => csvField(valueOf(cell))).join(","));
  return rows.join("\r\n") + "\r\n";
}

function download(name, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const link = element("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// Numbers by size, then words by alphabet, then missing ones: in both directions.
function compareCells(a, b) {
  const missing = (value) => value === "" || value === "-";
  if (missing(a) || missing(b)) return { fixed: true, order: missing(a) - missing(b) };
  const x = NUMBER.test(a) ? Number(a) : NaN, y = NUMBER.test(b) ? Number(b) : NaN;
  if (Number.isNaN(x) !== Number.isNaN(y)) return { fixed: true, order: Number.isNaN(x) - Number.isNaN(y) };
  return { fixed: false, order: Number.isNaN(x) ? a.localeCompare(b, "en", { numeric: true }) : x - y };
}

function sortTable(table, column, direction) {
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, value: valueOf(row.cells[column]) }));
  rows.sort((a, b) => {
    const { fixed, order } = compareCells(a.value, b.value);
    return fixed || direction === "ascending" ? order : -order;
  });
  table.tBodies[0].append(...rows.map((entry) => entry.row));
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    if (i === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  });
}

// Gives every named table its buttons.
function equipTables() {
  for (const table of document.querySelectorAll("table[data-csv]")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const label = head.textContent;
      const button = element("button", { type: "button", class: "sort" }, label);
      head.setAttribute("data-value", label);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        sortTable(table, column, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
      });
    });
    const name = `${table.dataset.csv}.csv`;
    const button = element("button", { type: "button", class: "download" }, `Download ${name}`);
    // the byte-order mark tells spreadsheets that this is UTF-8
    button.addEventListener("click", () => download(name, "text/csv", "\ufeff" + csvOf(table)));
    table.parentElement.after(button);
  }
}

function element(tag, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== "") made.textContent = text; // text, never markup: names of runs are data
  return made;
}
