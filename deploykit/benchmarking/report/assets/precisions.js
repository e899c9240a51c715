// Throughput of each precision over that of the widest one, of the same model and batch.

const BAR = 20;
const BAR_MARGIN = { top: 46, left: 46, right: 118, bottom: 8 };

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
  const bars = groups.flatMap(([, members]) => members.map((row) => barOf(row, members[0])));
  const lines = groups.flatMap(([name, members]) => [name, ...members.map((row) => row.id)]);
  const domain = [0, Math.max(1, d3.max(bars, (bar) => bar.x))];
  const ticks = linearTicks(domain, 5);
  const plot = {
    marginTop: BAR_MARGIN.top,
    marginLeft: BAR_MARGIN.left,
    marginRight: BAR_MARGIN.right,
    marginBottom: BAR_MARGIN.bottom,
    x: { domain },
    y: { type: "band", axis: null, domain: lines, padding: 0.12 },
    marks: [
      gridOf("x", ticks),
      axisOf("x", { title: `Throughput ratio (${times}); beside it images/s`, anchor: "top", labelOffset: 40, ...ticks }),
      Plot.text(groups, { className: "group-name", y: (group) => group[0], text: (group) => group[0], frameAnchor: "left", textAnchor: "start", dx: -BAR_MARGIN.left, fontWeight: 600 }),
      bars.map((bar) => precisionBar(bar)),
      Plot.ruleX([1], { stroke: "var(--ink)" }),
    ],
  };
  const widest = new Set(groups.map(([, members]) => members[0].precision));
  const notes = widest.size > 1 ? ["The widest precision is not the same in all groups."] : [];
  const label = `Throughput by precision: ${counted(groups.length, "group")}`;
  const height = BAR_MARGIN.top + lines.length * BAR + BAR_MARGIN.bottom;
  return { height, label, plot, points: bars, notes, legend: [html("p", {}, precisionEntries())] };
}

function barOf(row, base) {
  const ratio = row.images_per_s / base.images_per_s;
  const facts = [["Ratio", `${figure(ratio)}${times} ${base.precision}`], ...latencyFacts(row)];
  return { x: ratio, y: row.id, row, series: `bar-${row.id}`, title: rowName(row), facts };
}

function whyNoComparison(rows) {
  if (!rows.length) return noRow();
  const names = distinct(rows.filter((row) => !row.failed), "precision");
  if (!names.length) return "All rows shown failed; the table says why.";
  if (names.length === 1) return `All rows shown are ${names[0]}: nothing to compare.`;
  return "No model shown was measured in two precisions with the same backend and batch.";
}

/** Precisions have colours of their own here, whatever the other charts colour by. */
function precisionColour(precision) {
  return `series-${PRECISIONS.indexOf(precision) + 1}`;
}

function precisionEntries() {
  return every.precision.map((name) =>
    html("span", { class: "entry" }, swatch(precisionColour(name), colourBox()), name),
  );
}

function precisionBar(bar) {
  const colour = precisionColour(bar.row.precision);
  const text = { y: "y", fill: "currentColor", stroke: "none" };
  return [
    Plot.barX([bar], ofSeries(bar.series, `bar mark ${colour}`, { x1: 0, x2: "x", y: "y", stroke: "none", ariaLabel: spoken })),
    Plot.text([bar], ofSeries(bar.series, `bar-name ${colour}`, { ...text, frameAnchor: "left", textAnchor: "end", dx: -7, text: () => bar.row.precision })),
    Plot.text([bar], ofSeries(bar.series, `bar-text ${colour}`, { ...text, x: "x", textAnchor: "start", dx: 6, text: () => `${fixed(bar.x, 2)}${times}  ${figure(bar.row.images_per_s)}` })),
  ];
}
