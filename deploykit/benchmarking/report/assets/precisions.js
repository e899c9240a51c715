// Throughput of each precision over that of the widest one, of the same model and batch.

const BAR = 15;
const GAP = 12;
const GROUP_TITLE = 17;
const COLUMN = 430;
const BAR_MARGIN = { top: 50, left: 46, right: 124 };

const precisionsChart = {
  id: "precisions",
  title: "Precisions against each other",
  about: "Images per second over those of the widest precision, of the same model, backend and batch.",
  controls: precisionControls,
  model: precisionsModel,
};

/** Batch sizes at which some model was measured in more than one precision. */
function comparableBatches(rows) {
  return distinct(rows, "batch").filter((batch) => comparedGroups(rows, batch).length);
}

function precisionControls() {
  const batches = comparableBatches(shownRows());
  if (!batches.length) return [];
  const choose = (event) => {
    state.compared = Number(event.target.value);
    renderCharts();
    byId("compared-batch").focus();
  };
  const options = batches.map((batch) =>
    html("option", { value: batch, selected: batch === comparedBatch(batches) }, `batch ${batch}`),
  );
  const label = { id: "compared-batch", "aria-label": "Batch of the comparison", onchange: choose };
  return [html("select", label, options)];
}

function comparedBatch(batches) {
  return batches.includes(state.compared) ? state.compared : batches[0];
}

/** Rows of one model, backend and scenario: at least two precisions, the widest first. */
function comparedGroups(rows, batch) {
  const groups = new Map();
  for (const row of rows) {
    if (row.failed || row.batch !== batch) continue;
    const parts = [row.model, row.backend];
    if (every.scenario.length > 1) parts.push(row.scenario);
    const name = parts.join(", ");
    if (!groups.has(name)) groups.set(name, new Map());
    groups.get(name).set(row.precision, row);
  }
  return [...groups]
    .filter(([, members]) => members.size > 1)
    .map(([name, members]) => [
      name,
      PRECISIONS.filter((each) => members.has(each)).map((each) => members.get(each)),
    ]);
}

function precisionsModel(rows, width) {
  const batches = comparableBatches(rows);
  if (!batches.length) return { empty: whyNoComparison(rows) };
  const groups = comparedGroups(rows, comparedBatch(batches));
  const most = Math.max(1, ...groups.flatMap(([, members]) => members.map(ratioTo(members[0]))));
  const count = Math.max(1, Math.min(groups.length, Math.floor(width / COLUMN)));
  const each = Math.ceil(groups.length / count);
  const marks = [];
  const columns = Array.from({ length: Math.ceil(groups.length / each) }, (_, at) => ({
    left: (at * width) / count,
    width: width / count - (count > 1 ? 16 : 0),
    groups: groups.slice(at * each, (at + 1) * each),
  }));
  const nodes = columns.map((column) => barColumn(column, most, marks));
  const height = Math.max(...columns.map(columnHeight));
  const widest = new Set(groups.map(([, members]) => members[0].precision));
  const notes = widest.size > 1 ? ["The widest precision is not the same in all groups."] : [];
  const label = `Throughput by precision: ${counted(groups.length, "group")}`;
  return { height, label, nodes, marks, notes, legend: [html("p", {}, precisionEntries())] };
}

function columnHeight(column) {
  const heights = column.groups.map(([, members]) => GROUP_TITLE + members.length * BAR + GAP);
  return BAR_MARGIN.top + heights.reduce((sum, height) => sum + height, 0);
}

function barColumn(column, most, marks) {
  const start = column.left + BAR_MARGIN.left;
  const x = linearScale([0, most], [start, column.left + column.width - BAR_MARGIN.right]);
  const nodes = [barAxis(x, columnHeight(column))];
  let top = BAR_MARGIN.top;
  for (const [name, members] of column.groups) {
    nodes.push(svg("text", { class: "group-name", x: column.left, y: top + 11 }, name));
    top += GROUP_TITLE;
    for (const row of members) {
      nodes.push(precisionBar(row, members[0], x, top, marks));
      top += BAR;
    }
    top += GAP;
  }
  return svg("g", {}, nodes);
}

function whyNoComparison(rows) {
  if (!rows.length) return noRow();
  const names = distinct(rows.filter((row) => !row.failed), "precision");
  if (!names.length) return "All rows shown failed; the table says why.";
  if (names.length === 1) return `All rows shown are ${names[0]}: nothing to compare.`;
  return "No model shown was measured in two precisions with the same backend and batch.";
}

function ratioTo(base) {
  return (row) => row.images_per_s / base.images_per_s;
}

/** Precisions have colours of their own here, whatever the other charts colour by. */
function precisionColour(precision) {
  return `series-${PRECISIONS.indexOf(precision) + 1}`;
}

function precisionEntries() {
  return every.precision.map((name) => {
    const box = svg("rect", { class: "fill", x: 6, y: 2, width: 12, height: 10 });
    return html("span", { class: "entry" }, swatch(precisionColour(name), box), name);
  });
}

/** Above the bars: a long list scrolls, and its axis is read first. */
function barAxis(x, bottom) {
  const top = BAR_MARGIN.top - 8;
  const ends = [x(0), x(x.ticks[x.ticks.length - 1])];
  const group = svg("g", { class: "axes" });
  for (const tick of withRoom(x.ticks, x, 30)) {
    const at = x(tick);
    const kind = tick === 1 ? "one-line" : "grid-line";
    group.append(
      svg("line", { class: kind, x1: at, x2: at, y1: top, y2: bottom - GAP + 4 }),
      svg("text", { x: at, y: top - 5, "text-anchor": "middle" }, String(tick)),
    );
  }
  const title = { class: "axis-title", x: ends[0], y: 14 };
  group.append(svg("text", title, `Throughput ratio (${times}); beside it images/s`));
  return group;
}

function precisionBar(row, base, x, top, marks) {
  const ratio = ratioTo(base)(row);
  const series = `bar-${row.id}`;
  const middle = top + BAR / 2;
  const left = x(0);
  const size = { x: left, y: top + 1, width: Math.max(1, x(ratio) - left), height: BAR - 3 };
  const name = { class: "bar-name", x: left - 7, y: middle + 4, "text-anchor": "end" };
  const text = { class: "bar-text", x: x(ratio) + 6, y: middle + 4 };
  const rate = svg("tspan", { class: "bar-rate", dx: 8 }, figure(row.images_per_s));
  const facts = [["Ratio", `${figure(ratio)}${times} ${base.precision}`], ...latencyFacts(row)];
  marks.push({ x: x(ratio), y: middle, row, series, title: rowName(row), facts });
  return svg(
    "g",
    { class: precisionColour(row.precision), "data-series": series },
    svg("text", name, row.precision),
    svg("rect", { class: "bar", ...size }),
    svg("text", text, `${fixed(ratio, 2)}${times}`, rate),
  );
}
