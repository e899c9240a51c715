// What the reader chose, and the rows that this leaves.

const data = JSON.parse(byId("data").textContent);
const MOST_CHOSEN = 6;
const COLOURS = 6;
const MOST_NAMED = 12; // more names than that would cover one another
const PRECISIONS = [...new Set(["fp32", "fp16", "int8", ...data.rows.map((row) => row.precision)])];
const KINDS = ["failure", "doubt", "condition", "warning", "note"];
const KIND_NAMES = {
  failure: "Failed",
  doubt: "Doubt",
  condition: "Machine",
  warning: "Warning",
  note: "Note",
};

const results = data.rows.filter((row) => !row.failed);
const state = {
  text: "",
  model: "",
  backend: "",
  precision: "",
  batch: "",
  scenario: "",
  remarks: "",
  sort: null,
  descending: false,
  colourBy: "model",
  picked: false,
  chosen: new Map(), // the row's id and its colour
  open: new Set(),
  tail: false,
  relative: false,
  compared: null,
};

function distinct(rows, field) {
  const values = [...new Set(rows.map((row) => row[field]).filter((value) => value !== null))];
  if (field === "batch") return values.sort((a, b) => a - b);
  if (field === "precision") return PRECISIONS.filter((name) => values.includes(name));
  return values;
}

const every = Object.fromEntries(
  ["model", "backend", "precision", "batch", "scenario"].map((field) => [
    field,
    distinct(data.rows, field),
  ]),
);

function matchesText(row) {
  return words().every((word) => textOf(row).includes(word));
}

function words() {
  return state.text.toLowerCase().split(/\s+/);
}

function nameText(row) {
  return [row.model, row.backend, row.precision, `b${row.batch}`, row.scenario || ""].join(" ").toLowerCase();
}

function textOf(row) {
  return [nameText(row), ...row.remarks.map((remark) => remark[1].toLowerCase())].join(" ");
}

/** What was looked for is in no name of the row, but in a sentence about it. */
function isFoundByRemark(row) {
  return state.text !== "" && !words().every((word) => nameText(row).includes(word));
}

function matchesRemarks(row) {
  if (!state.remarks) return true;
  const kinds = row.remarks.map((remark) => remark[0]);
  if (state.remarks === "none") return !kinds.some((kind) => kind !== "note");
  return kinds.includes(state.remarks);
}

function matchesField(row, field) {
  // A failure never came as far as a scenario.
  return !state[field] || row[field] === null || String(row[field]) === state[field];
}

function shownRows() {
  const fields = ["model", "backend", "precision", "batch", "scenario"];
  return data.rows.filter(
    (row) =>
      fields.every((field) => matchesField(row, field)) && matchesText(row) && matchesRemarks(row),
  );
}

function isFiltered() {
  const names = ["text", "model", "backend", "precision", "batch", "scenario", "remarks"];
  return names.some((name) => state[name] !== "");
}

function median(row) {
  return row.median_ms ?? null;
}

/** The samples carry a median, but not what it is worth. */
function isBare(row) {
  return median(row) !== null && !row.percentiles["50"];
}

/** Name of a row without its batch: the rows of one line of a chart. */
function seriesName(row) {
  const parts = [row.model, row.precision, row.backend];
  if (every.scenario.length > 1) parts.push(row.scenario);
  return parts.join(", ");
}

function rowName(row) {
  return `${seriesName(row)}, batch ${row.batch}`;
}

/** What tells a row from others: the fields in which they differ. */
function shortName(row, rows) {
  const fields = ["model", "precision", "backend", "scenario"].filter((field) => distinct(rows, field).length > 1);
  const parts = fields.map((field) => String(row[field]));
  if (distinct(rows, "batch").length > 1) parts.push(`b${row.batch}`);
  return parts.join(", ") || row.model;
}

// Colours follow the whole run, not the filters: a model keeps its colour.
function colourOf(row) {
  const at = every[state.colourBy].indexOf(row[state.colourBy]);
  return at < colouredValues().length ? `series-${at + 1}` : "series-other";
}

function colouredValues() {
  return every[state.colourBy].slice(0, COLOURS);
}

function firstColouring() {
  if (every.model.length > 1 && every.model.length <= COLOURS) return "model";
  return ["precision", "backend", "scenario"].find((field) => every[field].length > 1) || "model";
}

/** Choose a row for the chart of distributions, or drop it; the oldest choice makes room. */
function toggleChosen(id) {
  if (state.chosen.delete(id)) return;
  const [oldest] = state.chosen.keys();
  if (state.chosen.size === MOST_CHOSEN) state.chosen.delete(oldest);
  const taken = [...state.chosen.values()];
  const free = Array.from({ length: MOST_CHOSEN }, (_, slot) => slot + 1);
  state.chosen.set(
    id,
    free.find((slot) => !taken.includes(slot)),
  );
}

/** The reader's own choice, which filters do not change any more. */
function pick(id) {
  state.picked = true;
  toggleChosen(id);
}

/** Until then: one batch size of the first model that is shown, in each precision and backend. */
function chooseForReader(rows) {
  if (state.picked) return;
  const [first] = rows.filter((row) => !row.failed);
  const alike = rows.filter(
    (row) => !row.failed && row.model === first.model && row.batch === first.batch,
  );
  state.chosen.clear();
  alike.slice(0, 4).forEach((row) => toggleChosen(row.id));
}

state.colourBy = firstColouring();
chooseForReader(data.rows);
// Medians that lie apart leave no room to see how each row is spread.
state.relative = state.chosen.size > 1;
