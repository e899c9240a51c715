// The table: sorted and filtered rows; remarks and details on demand.

function sortedRows(rows) {
  const column = columns.find((each) => each.id === state.sort);
  if (!column) return rows;
  const turn = state.descending ? -1 : 1;
  return [...rows].sort((a, b) => compareValues(column.value(a), column.value(b), turn));
}

/** What is not known comes last, whichever way. */
function compareValues(a, b, turn) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "string") return turn * a.localeCompare(b, "en", { numeric: true });
  return turn * (a - b);
}

/** Up, then down, then as it was measured. */
function sortBy(id) {
  if (state.sort !== id) Object.assign(state, { sort: id, descending: false });
  else if (!state.descending) state.descending = true;
  else Object.assign(state, { sort: null, descending: false });
  renderTable();
  byId(`sort-${id}`).focus();
}

function headCell(column) {
  const sorted = state.sort === column.id;
  const direction = state.descending ? "descending" : "ascending";
  const press = { type: "button", id: `sort-${column.id}`, onclick: () => sortBy(column.id) };
  const unit = column.unit ? html("span", { class: "unit" }, column.unit) : null;
  return html(
    "th",
    {
      scope: "col",
      class: cellClass(column),
      "aria-sort": sorted ? direction : "none",
    },
    html("button", press, html("span", {}, column.title), unit),
  );
}

function cellClass(column) {
  return [`col-${column.id}`, column.numeric ? "number" : ""].join(" ").trim();
}

function bodyCell(column, row) {
  const value = column.value(row);
  const empty = value === null && column.id !== "model";
  const content = empty ? [dash] : column.cell(row);
  const tag = column.id === "model" ? "th" : "td";
  const scope = column.id === "model" ? { scope: "row" } : {};
  const label = column.unit ? `${column.title}, ${column.unit}` : column.title;
  const attributes = { class: `${cellClass(column)}${empty ? " none" : ""}`, "data-label": label };
  return html(tag, { ...attributes, ...scope }, content);
}

function choiceCell(row) {
  if (row.failed) return html("td", { class: "col-choice" });
  const slot = state.chosen.get(row.id);
  const choose = () => {
    pick(row.id);
    render();
    byId(`choose-${row.id}`).focus();
  };
  const box = {
    type: "checkbox",
    id: `choose-${row.id}`,
    class: slot ? `series-${slot}` : null,
    checked: Boolean(slot),
    "aria-label": `Show the distribution of ${rowName(row)}`,
    onchange: choose,
  };
  return html("td", { class: "col-choice" }, html("input", box));
}

function wide(className, ...content) {
  const cell = html("td", { colspan: columns.length + 1 }, html("div", { class: "held" }, content));
  return html("tr", { class: className }, cell);
}

function remarkLines(row) {
  return row.remarks.map(([kind, sentence]) =>
    html("p", { class: `remark ${kind}` }, html("b", {}, KIND_NAMES[kind]), sentence),
  );
}

function detailList(row) {
  const pairs = row.details.map(([label, text]) =>
    html("div", {}, html("dt", {}, label), html("dd", {}, text)),
  );
  return html("dl", { class: "details" }, pairs);
}

function tableRow(row) {
  const cells = columns.map((column) => bodyCell(column, row));
  const body = html("tbody", { class: row.failed ? "failed" : null, "data-row": row.id });
  body.append(html("tr", {}, choiceCell(row), cells));
  if (isTold(row)) body.append(wide("remarks", remarkLines(row)));
  if (state.open.has(row.id)) body.append(wide("more", detailList(row)));
  return body;
}

/** Whether the remarks of a row are written out: it is open, failed, or was looked for by them. */
function isTold(row) {
  if (!row.remarks.length) return false;
  return row.failed || state.open.has(row.id) || state.remarks !== "" || isFoundByRemark(row);
}

function renderTable() {
  const rows = shownRows();
  const plot = html("th", { scope: "col", class: "col-choice" }, html("span", { class: "away" }, "Distribution"));
  const head = html("thead", {}, html("tr", {}, plot, columns.map(headCell)));
  const none = html("tbody", {}, wide("remarks", html("p", { class: "empty" }, noRow())));
  const bodies = sortedRows(rows).map(tableRow);
  byId("table").replaceChildren(head, ...(bodies.length ? bodies : [none]));
  const all = counted(data.rows.length, "row");
  byId("count").textContent = isFiltered() ? `${rows.length} of ${all}` : all;
  byId("left-out").textContent = leftOutColumns();
}

function noRow() {
  return data.rows.length ? "No row passes the filters." : "This run has no results.";
}
