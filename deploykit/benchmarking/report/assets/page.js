// The page: head, filters, charts, theme.

const charts = [
  latencyChart,
  throughputChart,
  distributionChart,
  rooflineChart,
  precisionsChart,
].map((definition) => new Chart(definition));

function renderHead() {
  byId("machine").textContent = data.machine;
  const failures = data.rows.length - results.length;
  const parts = [
    data.period,
    data.deploykit ? `deploykit ${data.deploykit}` : "",
    counted(results.length, "result"),
    failures ? counted(failures, "failure") : "",
  ];
  byId("about").textContent = parts.filter(Boolean).join(" \u00b7 ");
  byId("sentence").textContent = data.sentence;
  byId("shared").replaceChildren(
    ...data.shared.map(([kind, sentence]) =>
      html("p", { class: `remark ${kind}` }, html("b", {}, KIND_NAMES[kind]), `All rows: ${sentence}`),
    ),
  );
  byId("shared").hidden = !data.shared.length;
}

/** How many rows have each kind of remark; a press shows them alone. */
function renderSummary() {
  const kinds = KINDS.filter((kind) => countOf(kind) && kind !== "note");
  const buttons = kinds.map((kind) => {
    const on = state.remarks === kind;
    const press = () => {
      state.remarks = on ? "" : kind;
      byId("filter-remarks").value = state.remarks;
      render();
      byId(`summary-${kind}`).focus();
    };
    const label = { type: "button", id: `summary-${kind}`, "aria-pressed": String(on) };
    return html(
      "button",
      { ...label, class: `finding ${kind}`, onclick: press },
      html("b", {}, counted(countOf(kind), "row")),
      ` ${SUMMARY[kind]}`,
    );
  });
  byId("summary").replaceChildren(...buttons);
}

const SUMMARY = {
  failure: "failed",
  doubt: "in doubt",
  condition: "on a disturbed machine",
  warning: "with a warning",
};

function countOf(kind) {
  return data.rows.filter((row) => row.remarks.some((remark) => remark[0] === kind)).length;
}

function filterSelect(field, label, options) {
  const change = (event) => {
    state[field] = event.target.value;
    if (field === "sort") state.descending = false;
    render();
  };
  const items = options.map(([value, text]) => html("option", { value }, text));
  const select = html("select", { id: `filter-${field}`, onchange: change }, items);
  return html("label", {}, html("span", {}, label), select);
}

function renderFilters() {
  const search = html("input", {
    type: "search",
    id: "filter-text",
    placeholder: "Any words",
    autocomplete: "off",
    oninput: (event) => {
      state.text = event.target.value;
      render();
    },
  });
  const fields = { model: "Model", backend: "Backend", precision: "Precision", batch: "Batch", scenario: "Scenario" };
  const selects = Object.entries(fields)
    .filter(([field]) => field !== "scenario" || every.scenario.length > 1)
    .map(([field, label]) => {
      const values = every[field].map((value) => [String(value), String(value)]);
      return filterSelect(field, label, [["", "All"], ...values]);
    });
  const kinds = KINDS.filter(countOf).map((kind) => [kind, KIND_NAMES[kind]]);
  const sorts = columns.map((column) => [column.id, column.title]);
  const sort = filterSelect("sort", "Sort by", [["", "As measured"], ...sorts]);
  sort.className = "sort-by";
  const remarks = filterSelect("remarks", "Remarks", [["", "All"], ["none", "None grave"], ...kinds]);
  const clear = html("button", { type: "button", id: "clear", onclick: clearFilters }, "Clear");
  const text = html("label", { class: "wide" }, html("span", {}, "Text"), search);
  const form = byId("filters");
  form.replaceChildren(...[text, ...selects, remarks, sort, colourSelect(), clear].filter(Boolean));
  form.hidden = data.rows.length < 2;
  form.addEventListener("submit", (event) => event.preventDefault());
}

function colourSelect() {
  const fields = ["model", "precision", "backend", "scenario"].filter((field) => every[field].length > 1);
  if (fields.length < 2) return null;
  const change = (event) => {
    state.colourBy = event.target.value;
    renderCharts();
  };
  const options = fields.map((field) =>
    html("option", { value: field, selected: field === state.colourBy }, field),
  );
  const select = html("select", { id: "colour-by", onchange: change }, options);
  return html("label", { class: "apart" }, html("span", {}, "Colour by"), select);
}

function clearFilters() {
  for (const name of ["text", "model", "backend", "precision", "batch", "scenario", "remarks"]) {
    state[name] = "";
    const control = byId(`filter-${name}`);
    if (control) control.value = "";
  }
  render();
}

function renderCharts() {
  const rows = shownRows();
  byId("legend").replaceChildren(...sharedLegend());
  // A chart without a figure is hidden, and has no width then.
  for (const chart of charts) chart.section.hidden = false;
  for (const chart of charts) chart.section.style.gridColumn = "";
  // All are asked before any is drawn: each answer after a change costs a layout of the page.
  const widths = charts.map((chart) => chart.width());
  charts.forEach((chart, at) => chart.render(rows, widths[at]));
  const empty = charts.map((chart) => chart.empty).filter(Boolean);
  byId("not-drawn").textContent = empty.length ? `Not drawn: ${empty.join(" ")}` : "";
  fillRow(rows);
}

/** The last chart of an unfinished row has the room that is left. */
function fillRow(rows) {
  const columns = getComputedStyle(byId("chart-grid")).gridTemplateColumns.split(" ").length;
  const drawn = charts.filter((chart) => !chart.empty && chart !== charts[charts.length - 1]);
  const rest = drawn.length % columns;
  if (!rest) return;
  const last = drawn[drawn.length - 1];
  last.section.style.gridColumn = `span ${columns - rest + 1}`;
  last.render(rows, last.width());
}

function renderFacts() {
  const machines = data.machines.map((pairs, at) =>
    factList(data.machines.length > 1 ? `Machine ${at + 1}` : "Machine", pairs),
  );
  const peaks = data.peak_facts.map((text) => ["Peak", text]);
  const terms = [
    ["Latency", "Copy to the device + computing + copy to the host; the wall time where no step is timed; in the server scenario from the moment a query was due."],
    ["Interval", `Holds the true percentile with ${percent(data.confidence, 2)} confidence. A percentile that the samples do not carry is left out; a median stands in brackets then.`],
    ["Limit", "The larger of two times: all arithmetic at the device's peak, and all weights, input and output at its memory's."],
    ["Variation", "Standard deviation of the latency over its mean."],
  ];
  const cards = [...machines];
  if (data.switches.length) cards.push(factList("Switches of all rows", data.switches));
  if (peaks.length) cards.push(factList("Peaks of the devices", peaks, "stacked"));
  cards.push(factList("Terms", terms, "stacked"));
  byId("facts").replaceChildren(...cards);
}

function render() {
  chooseForReader(shownRows());
  renderSummary();
  renderTable();
  renderCharts();
}

byId("chart-grid").append(...charts.map((chart) => chart.section));
renderHead();
renderFilters();
renderFacts();
render();

onResize(byId("chart-grid"), renderCharts);
