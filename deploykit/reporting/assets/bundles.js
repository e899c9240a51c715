// The page: a section for each bundle, verdict first.

const charts = [];

function card(title, ...content) {
  return html("section", { class: "card" }, html("h3", {}, title), content);
}

function chartOf(definition) {
  const chart = new Chart(definition);
  charts.push(chart);
  return chart.section;
}

function stackOf(bundle) {
  const parts = precisionsOf(bundle);
  const bars = parts.map((each) => {
    const bar = html("i", { class: precisionColour(each.precision), title: `${each.precision} ${shareOf(each.share)}` });
    bar.style.width = `${100 * each.share}%`;
    return bar;
  });
  return html("div", { class: "stack", role: "img", "aria-label": shareText(bundle) }, bars);
}

const PRECISION_COLUMNS = [
  { title: "Precision", value: (each) => each.precision },
  { title: "Layers", value: (each) => fixed(each.layers, 0), numeric: true },
  { title: "Multiply-adds", value: (each) => shareOf(each.share), numeric: true },
];

function precisionCard(bundle) {
  const { layers } = bundle;
  const pairs = [
    layers.casts ? counted(layers.casts, "cast") : "",
    layers.qdq_pairs ? counted(layers.qdq_pairs, "Q/DQ pair") : "",
  ].filter(Boolean);
  return card(
    "Layers by precision",
    stackOf(bundle),
    tableOf(PRECISION_COLUMNS, precisionsOf(bundle)),
    pairs.length ? html("p", { class: "muted small" }, `Between them: ${pairs.join(", ")}.`) : null,
  );
}

const NODE_COLUMNS = [
  { title: "Layer", value: (node) => node.name, text: true },
  { title: "Operator", value: (node) => node.op_type },
  { title: "Precision", value: (node) => node.precision },
  { title: "Multiply-adds", value: (node) => withPrefix(node.multiply_adds), numeric: true },
  { title: "Share", value: (node) => shareOf(node.share), numeric: true },
  { title: "Why not lower", value: (node) => node.reason || null, text: true },
];

function nodesCard(bundle) {
  const { nodes } = bundle.layers;
  const columns = NODE_COLUMNS.filter((column) => nodes.some((node) => column.value(node) !== null));
  const summary = html("summary", {}, `All ${counted(nodes.length, "layer")} with multiply-adds, the heaviest first`);
  return html("details", { class: "card" }, summary, tableOf(columns, nodes, "low"));
}

function answersCard(bundle) {
  const { answers } = bundle;
  if (answers.reason) return null;
  const where = `${counted(answers.images, "image")} of ${answers.source.replace(/^(images of )/, "")}`;
  if (answers.measure === "error") {
    return card("Outputs", html("p", { class: "about" }, `Mean error of the outputs on ${where}: ${percent(answers.error)} of their size.`));
  }
  if (!answers.count) return card("Changed answers", html("p", { class: "about" }, `None on ${where}.`));
  const shown = answers.changed.length < answers.count ? `; the first ${answers.changed.length} are shown` : "";
  const said = `${answers.count} on ${where}${shown}.`;
  const section = card("Changed answers", html("p", { class: "about" }, said), html("div", { class: "pictures" }, answers.changed.map(pictureOf)));
  return section;
}

function pictureOf(changed) {
  const facts = [["FP32", changed.reference], ["Bundle", changed.candidate]];
  return html(
    "figure",
    {},
    html("img", { src: changed.picture, alt: changed.name }),
    html("dl", {}, facts.map(([label, text]) => html("div", {}, html("dt", {}, label), html("dd", {}, text)))),
    html("figcaption", {}, changed.name),
  );
}

const CHECK_COLUMNS = [
  { title: "Compared", value: (check) => check.candidate, text: true },
  { title: "With", value: (check) => check.reference, text: true },
  { title: "Result", value: (check) => html("b", {}, check.passed ? "passed" : "failed") },
  { title: "Images", value: (check) => fixed(check.images, 0), numeric: true },
  { title: "Largest error", value: (check) => limited(check, "max_relative", (value) => percent(value)), numeric: true },
  { title: "Lowest cosine", value: (check) => limited(check, "min_cosine", (value) => String(+value.toFixed(6))), numeric: true },
  { title: "Same answers", value: (check) => limited(check, "agreement", (value) => percent(value)), numeric: true },
];

function limited(check, name, text) {
  if (check[name] === undefined || check[name] === null) return null;
  const limit = check.limits[name];
  return limit === null ? text(check[name]) : `${text(check[name])} (limit ${text(limit)})`;
}

function checksCard(bundle) {
  if (!bundle.validation.length) return null;
  const columns = CHECK_COLUMNS.filter((column) => bundle.validation.some((check) => column.value(check) !== null));
  const section = card("Checks of the export", tableOf(columns, bundle.validation));
  return section;
}

const FILE_COLUMNS = [
  { title: "File", value: (file) => file.name, text: true },
  { title: "Size", value: (file) => sizeText(file.bytes), numeric: true },
];

function noiseCard(bundle) {
  const rows = Object.entries(bundle.quantized).flatMap(([kind, found]) => found.map(([name, db]) => ({ kind, name, db })));
  if (!rows.length) return null;
  const columns = [
    { title: "Tensor or layer", value: (row) => row.name, text: true },
    { title: "Of", value: (row) => row.kind },
    { title: "SQNR", value: (row) => `${figure(row.db)}${nbsp}dB`, numeric: true },
  ];
  const about = html("p", { class: "about muted small" }, "The worst ones, each by itself, as the export measured them.");
  return card("Rounding noise", about, tableOf(columns, rows, "low"));
}

function enginesOf(bundle) {
  if (!bundle.engines.length) {
    return [card("Engines", html("p", { class: "about" }, "None yet. Build one: deploykit build BUNDLE"))];
  }
  return bundle.engines.map((engine) => factList(engine.file, engine.facts));
}

function sectionOf(bundle) {
  const at = data.bundles.indexOf(bundle);
  const grid = (...parts) => html("div", { class: "grid" }, parts.flat());
  return html(
    "section",
    { class: "bundle", id: bundleId(bundle) },
    data.bundles.length > 1 ? html("h2", {}, bundle.name) : null,
    html("p", { class: "sentence verdict" }, bundle.verdict),
    grid(
      bundle.frontier ? chartOf(frontierChart(bundle, at)) : null,
      precisionCard(bundle),
      chartOf(layersChart(bundle, at)),
      chartOf(errorsChart(bundle, at)),
      bundle.ranges ? chartOf(rangesChart(bundle, at)) : null,
    ),
    html("p", { class: "muted small", id: `not-drawn-${at}` }),
    answersCard(bundle),
    nodesCard(bundle),
    checksCard(bundle),
    grid(factList("What was converted", bundle.facts), card("Files", tableOf(FILE_COLUMNS, bundle.files)), noiseCard(bundle), enginesOf(bundle)),
  );
}

function renderCharts() {
  for (const chart of charts) chart.section.hidden = false;
  const widths = charts.map((chart) => chart.width());
  charts.forEach((chart, at) => chart.render(null, widths[at]));
  data.bundles.forEach((_, at) => {
    const own = charts.filter((chart) => chart.definition.id.endsWith(`-${at}`) && chart.empty);
    byId(`not-drawn-${at}`).textContent = own.map((chart) => chart.empty).join(" ");
  });
}

renderOverview();
byId("bundles").append(...data.bundles.map(sectionOf));
renderCharts();
onResize(byId("bundles"), renderCharts);
