// Tables of the page, and the first one: all bundles side by side.

const data = JSON.parse(byId("data").textContent);
const MOST_ON_A_PHONE = 3; // columns; with more each row becomes a card
const PRECISIONS = ["fp32", "fp16", "int8", "bf16", "fp8"];

/** A precision has one colour on the whole page. */
function precisionColour(precision) {
  const at = PRECISIONS.indexOf(precision);
  return at < 0 ? "series-other" : `series-${at + 1}`;
}

function sizeText(bytes) {
  return withPrefix(bytes, "B");
}

/** A share of a whole, which says neither all nor nothing of what is not quite. */
function shareOf(share) {
  if (share > 0.999 && share < 1) return `>${nbsp}99.9${nbsp}%`;
  if (share < 0.001 && share > 0) return `<${nbsp}0.1${nbsp}%`;
  return percent(share);
}

/** Precisions in which a bundle has layers, in their usual order. */
function precisionsOf(bundle) {
  const found = bundle.layers.precisions.filter((each) => each.layers || each.share);
  return d3.sort(found, (each) => PRECISIONS.indexOf(each.precision));
}

/** A table; a column is {title, value, text, numeric}. On a phone each row is a card. */
function tableOf(columns, rows, className = "") {
  const head = columns.map((column) => html("th", { scope: "col", class: column.numeric ? "number" : null }, column.title));
  const body = rows.map((row) => html("tr", {}, columns.map((column, at) => cellOf(column, row, at))));
  const table = html("table", { class: columns.length > MOST_ON_A_PHONE ? "rows cards" : "rows" }, html("thead", {}, html("tr", {}, head)), html("tbody", {}, body));
  return html("div", { class: `box ${className}`, tabindex: 0, role: "region", "aria-label": columns[0].title }, table);
}

function cellOf(column, row, at) {
  const content = column.value(row);
  const blank = content === null || content === "";
  const kinds = [column.numeric ? "number" : "", column.text ? "text" : "", blank ? "blank" : ""];
  const attributes = { class: kinds.filter(Boolean).join(" ") || null, "data-label": column.title };
  return html(at ? "td" : "th", at ? attributes : { ...attributes, scope: "row" }, blank ? dash : content);
}

function sizeOf(bundle, name) {
  const file = bundle.files.find((each) => each.name === name);
  return file ? file.bytes : null;
}

function shareText(bundle) {
  return d3
    .sort(precisionsOf(bundle), (each) => -each.share)
    .map((each) => `${shareOf(each.share)} ${each.precision}`)
    .join(", ");
}

function answersText({ answers }) {
  if (answers.reason) return null;
  if (answers.measure === "error") return `error ${percent(answers.error)}`;
  return `${answers.images - answers.count} of ${answers.images}`;
}

function worstLayer({ errors }) {
  const found = (errors.values || []).map((value) => value.sqnr_db).filter((value) => value !== null);
  return found.length ? `${figure(Math.min(...found))}${nbsp}dB` : null;
}

function predictedTime({ frontier }) {
  return frontier ? ms(frontier.points[frontier.chosen].ms) : null;
}

const OVERVIEW = [
  { title: "Bundle", value: (bundle) => html("a", { href: `#${bundleId(bundle)}` }, bundle.name) },
  { title: "Precision", value: (bundle) => bundle.precision },
  { title: "Same answers", value: answersText, numeric: true },
  { title: "Worst layer", value: worstLayer, numeric: true },
  { title: "Arithmetic", value: shareText, text: true },
  { title: "Graph", value: (bundle) => sizeText(sizeOf(bundle, "model.onnx") || 0), numeric: true },
  { title: "Predicted time", value: predictedTime, numeric: true },
  { title: "Engines", value: (bundle) => String(bundle.engines.length), numeric: true },
];

function bundleId(bundle) {
  return `bundle-${data.bundles.indexOf(bundle)}`;
}

function renderOverview() {
  const names = data.bundles.map((bundle) => bundle.name);
  byId("title").textContent = names.length > 1 ? `${names.length} bundles` : names[0];
  byId("about").textContent = `deploykit ${data.deploykit} \u00b7 ${data.created}`;
  if (names.length < 2) return;
  const columns = OVERVIEW.filter((column) => data.bundles.some((bundle) => column.value(bundle) !== null));
  byId("overview").append(tableOf(columns, data.bundles));
  byId("overview").hidden = false;
}
