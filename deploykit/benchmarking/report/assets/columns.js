// The columns of the table: what each sorts by and what it shows.

const latencyDecimals = decimalsFor(results.map((row) => median(row) || 0));
const rateDecimals = Math.min(1, decimalsFor(results.map((row) => row.images_per_s)));

function latency(value) {
  return fixed(value, latencyDecimals);
}

const medianColumn = {
  id: "p50",
  title: "p50",
  unit: "ms",
  numeric: true,
  value: median,
  cell: (row) => {
    if (isBare(row)) return [`(${latency(median(row))})`];
    const [value, low, high] = row.percentiles["50"];
    const range = `${latency(low)}${dash}${latency(high)}`;
    return [html("span", { class: "interval" }, range), " ", html("b", {}, latency(value))];
  },
};

function percentileColumn(level) {
  const found = (row) => row.percentiles[level];
  return {
    id: `p${level}`,
    title: `p${level}`,
    unit: "ms",
    numeric: true,
    value: (row) => (found(row) ? found(row)[0] : null),
    cell: (row) => [latency(found(row)[0])],
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

function modelCell(row) {
  if (row.failed) return [html("span", { class: "name" }, row.model)];
  const open = state.open.has(row.id);
  const press = () => {
    if (!state.open.delete(row.id)) state.open.add(row.id);
    renderTable();
    byId(`open-${row.id}`).focus();
  };
  const label = { id: `open-${row.id}`, "aria-expanded": String(open), onclick: press };
  return [html("button", { type: "button", class: "name", ...label }, row.model)];
}

const allColumns = [
  { id: "model", title: "Model", value: (row) => row.model, cell: modelCell },
  plainColumn("backend", "Backend"),
  { id: "precision", title: "Precision", value: (row) => PRECISIONS.indexOf(row.precision), cell: precisionCell },
  plainColumn("batch", "Batch", true),
  plainColumn("scenario", "Scenario"),
  medianColumn,
  ...data.percentiles.filter((level) => level !== "50").map(percentileColumn),
  {
    id: "images_per_s",
    title: "Throughput",
    unit: "images/s",
    numeric: true,
    value: (row) => row.images_per_s ?? null,
    cell: (row) => [fixed(row.images_per_s, rateDecimals)],
  },
  limitColumn("share", "Of limit", "%", (limit) => limit.share, shareCell),
  { ...limitColumn("binds", "Binds", "", (limit) => limit.binds, (limit) => [limit.binds]), numeric: false },
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
    title: "Samples",
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

const BRACKETS = "A median in brackets has no interval: too few independent samples; measure longer.";

/** Why a column or a figure is not there. */
function leftOutColumns() {
  const percentiles = data.percentiles
    .filter((level) => !columns.some((column) => column.id === `p${level}`))
    .map((level) => `p${level} needs ${fixed(data.samples_needed[level], 0)} independent samples`);
  const sentences = percentiles.length ? [`Left out: ${percentiles.join("; ")}.`] : [];
  if (results.length && !results.some((row) => row.limit)) {
    sentences.push("The physical limit of these rows is not known.");
  }
  if (results.some(isBare)) sentences.push(BRACKETS);
  const dashes = `A ${dash} stands where there are too few samples, or where the row failed.`;
  return [...sentences, dashes].join(" ");
}
