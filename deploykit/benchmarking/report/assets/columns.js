// The columns of the table: what each sorts by and what it shows.

const latencyDecimals = decimalsFor(results.map((row) => median(row) || 0));
const rateDecimals = Math.min(1, decimalsFor(results.map((row) => row.images_per_s)));

function latency(value) {
  return fixed(value, latencyDecimals);
}

/** The 10th stands in the details of a row: the table has no room for it. */
const shownLevels = data.percentiles.filter((level) => level !== "10");

const medianColumn = {
  id: "p50",
  title: "p50",
  unit: "ms, median",
  numeric: true,
  value: median,
  cell: (row) => [html("b", {}, isBare(row) ? `(${latency(median(row))})` : latency(median(row)))],
};

const intervalColumn = {
  id: "interval",
  title: "p50 is within",
  unit: `ms, ${percent(data.confidence, 2)} sure`,
  numeric: true,
  value: (row) => (row.percentiles["50"] ? row.percentiles["50"][1] : null),
  cell: (row) => row.percentiles["50"].slice(1).map(latency).join(dash),
};

/** The tail is shown in brackets where it has no interval. */
function percentileColumn(level) {
  const bare = (row) => (level === "99" ? row.p99_ms ?? null : null);
  return {
    id: `p${level}`,
    title: `p${level}`,
    unit: "ms",
    numeric: true,
    value: (row) => (row.percentiles[level] ? row.percentiles[level][0] : bare(row)),
    cell: (row) => [row.percentiles[level] ? latency(row.percentiles[level][0]) : `(${latency(bare(row))})`],
  };
}

function limitColumn(id, title, unit, value, cell) {
  const known = (row) => (row.limit ? value(row.limit) : null);
  return { id, title, unit, numeric: true, value: known, cell: (row) => cell(row.limit, row) };
}

function plainColumn(id, title, numeric = false) {
  return { id, title, numeric, value: (row) => row[id], cell: (row) => [String(row[id])] };
}

function shareCell(limit, row) {
  // A meter of the share; past the whole it is full, and the figure says the rest.
  const full = Math.min(1, limit.share);
  const bar = html("span", { class: "meter", "aria-hidden": "true" }, html("i"));
  bar.firstChild.style.width = `${(100 * full).toFixed(1)}%`;
  const doubtful = row.remarks.some(([kind]) => kind === "doubt");
  const share = fixed(100 * limit.share, 1);
  return [bar, doubtful ? html("b", { class: "doubtful" }, share) : share];
}

function precisionCell(row) {
  if (!row.proven || row.proven === row.precision) return [row.precision];
  return [row.precision, html("span", { class: "tag doubt" }, `is ${row.proven}`)];
}

/** The name opens the row; what speaks against its figures is marked beside it. */
function modelCell(row) {
  if (row.failed) return [html("span", { class: "name" }, row.model)];
  const open = state.open.has(row.id);
  const press = () => {
    if (!state.open.delete(row.id)) state.open.add(row.id);
    renderTable();
    byId(`open-${row.id}`).focus();
  };
  const label = { id: `open-${row.id}`, "aria-expanded": String(open), onclick: press };
  const kinds = [...new Set(row.remarks.map(([kind]) => kind))];
  const sentences = (kind) => row.remarks.filter((remark) => remark[0] === kind).map((remark) => remark[1]);
  const tags = kinds.map((kind) =>
    html("span", { class: `tag ${kind}`, title: sentences(kind).join("\n") }, KIND_NAMES[kind]),
  );
  return [html("button", { type: "button", class: "name", ...label }, row.model), tags];
}

const allColumns = [
  { id: "model", title: "Model", value: (row) => row.model, cell: modelCell },
  medianColumn,
  percentileColumn("99"),
  {
    id: "images_per_s",
    title: "Throughput",
    unit: "images/s",
    numeric: true,
    value: (row) => row.images_per_s ?? null,
    cell: (row) => [fixed(row.images_per_s, rateDecimals)],
  },
  { id: "precision", title: "Precision", value: (row) => PRECISIONS.indexOf(row.precision), cell: precisionCell },
  plainColumn("batch", "Batch", true),
  plainColumn("backend", "Backend"),
  plainColumn("scenario", "Scenario"),
  limitColumn("share", "Of the limit", "%", (limit) => limit.share, shareCell),
  { ...limitColumn("binds", "Limited by", "", (limit) => limit.binds, (limit) => [limit.binds]), numeric: false },
  intervalColumn,
  ...shownLevels.filter((level) => !["50", "99"].includes(level)).map(percentileColumn),
  {
    id: "variation",
    title: "Variation",
    unit: "%",
    numeric: true,
    value: (row) => row.variation ?? null,
    cell: (row) => [fixed(100 * row.variation, 1)],
  },
  {
    id: "samples",
    title: "Queries",
    numeric: true,
    value: (row) => row.samples ?? null,
    cell: (row) => [fixed(row.samples, 0)],
  },
];

/** Columns with something in them; one scenario for all is said once, above the table. */
const columns = allColumns.filter((column) => {
  if (column.id === "scenario") return every.scenario.length > 1;
  return ["model", "p50"].includes(column.id) || data.rows.some((row) => column.value(row) !== null);
});

const BRACKETS = "A figure in brackets has no interval: too few independent samples; measure longer.";

function isAnyBare() {
  return results.some((row) => isBare(row) || (row.p99_ms !== null && !row.percentiles["99"]));
}

/** Why a column or a figure is not there. */
function leftOutColumns() {
  const percentiles = shownLevels
    .filter((level) => !columns.some((column) => column.id === `p${level}`))
    .map((level) => `p${level} needs ${level === "99" ? "100 queries, and with its interval " : ""}${fixed(data.samples_needed[level], 0)} independent samples`);
  const sentences = percentiles.length ? [`Left out: ${percentiles.join("; ")}.`] : [];
  if (results.length && !results.some((row) => row.limit)) {
    sentences.push("The physical limit of these rows is not known.");
  }
  if (isAnyBare()) sentences.push(BRACKETS);
  const dashes = `A ${dash} stands where there are too few samples, or where the row failed.`;
  return [...sentences, dashes].join(" ");
}
