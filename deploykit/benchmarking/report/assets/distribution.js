// How the latencies of chosen rows are distributed: the share of queries that are as fast.

const DISTRIBUTION_HEIGHT = 330;
const READ_AT = [10, 50, 90, 99, 99.9];
const BULK = 0.99;

const distributionChart = {
  id: "distribution",
  title: "Distribution of the latency",
  about: "Share of queries within a latency. Tick rows in the first column of the table to choose them.",
  controls: distributionControls,
  model: distributionModel,
};

function distributionControls() {
  const scale = (name, label, [off, on]) => {
    const button = (value, text) => {
      const id = `${name}-${value}`;
      const press = () => {
        state[name] = value;
        renderCharts();
        byId(id).focus();
      };
      const pressed = String(state[name] === value);
      return html("button", { type: "button", id, "aria-pressed": pressed, onclick: press }, text);
    };
    const group = { class: "switch", role: "group", "aria-label": label };
    return html("div", group, button(false, off), button(true, on));
  };
  return [
    scale("relative", "Latency in", ["ms", "Over median"]),
    scale("tail", "Scale of the share", ["Even", "Tail"]),
  ];
}

function distributionModel(rows, width) {
  const chosen = results.filter((row) => state.chosen.has(row.id));
  const drawn = rows.filter((row) => state.chosen.has(row.id) && row.quantiles[0] > 0);
  const notes = leftOut(chosen.length - drawn.length, "chosen, but hidden by the filters, or zero");
  if (!drawn.length) return { empty: whyNoDistribution(rows), notes };
  const curves = drawn.map((row) => [row, steps(row)]);
  const ends = curves.flatMap(([, steps]) => [steps[0].time, lastShown(steps).time]);
  const label = `Share of queries against latency: ${drawn.map(rowName).join("; ")}`;
  const legend = [html("p", {}, drawn.map(distributionEntry))];
  if (!state.tail) notes.push("Up to the 99th percentile; Tail shows what is beyond.");
  const points = curves.flatMap(([row, steps]) => distributionPoints(row, steps));
  const domain = logDomain(ends, 1.02);
  const ticks = logTicks(domain, 5, "~r");
  const plot = {
    x: { type: "log", domain },
    y: shareScale(Math.max(0.9, ...curves.map(([, steps]) => steps[steps.length - 1].share))),
    marks: [
      gridOf("x", ticks),
      gridOf("y", { ticks: shareTicks() }),
      axisOf("x", { title: state.relative ? `Latency over the row's median (${times})` : "Latency (ms)", ...ticks }),
      axisOf("y", { title: "Share of queries (%)", ticks: shareTicks(), text: shareText }),
      curves.map(([row, steps]) => distributionLine(row, steps, points)),
    ],
  };
  return { height: DISTRIBUTION_HEIGHT, label, plot, points, legend, notes };
}

/** In the tail each nine has as much room as the next: a logarithm of what is missing to the whole. */
function shareScale(last) {
  return state.tail ? { type: "log", domain: [1, 1 - last], clamp: true } : { domain: [0, 1] };
}

function onAxis(share) {
  return state.tail ? Math.max(1 - share, 1e-9) : share;
}

function shareTicks() {
  return state.tail ? [1, 0.5, 0.1, 0.01, 0.001, 0.0001] : [0, 0.2, 0.4, 0.6, 0.8, 1];
}

function shareText(value) {
  return String(+(100 * (state.tail ? 1 - value : value)).toFixed(4));
}

/** With even shares the last hundredth would take most of the room and show nothing. */
function lastShown(steps) {
  const within = steps.filter(({ share }) => state.tail || share <= BULK);
  return within[within.length - 1];
}

function whyNoDistribution(rows) {
  if (!rows.length) return noRow();
  if (!rows.some((row) => !row.failed)) return "All rows shown failed; the table says why.";
  return "No row that is shown is chosen. Tick up to six in the first column of the table.";
}

function distributionEntry(row) {
  const drop = () => {
    pick(row.id);
    render();
    byId("chart-distribution").querySelector("button").focus();
  };
  const name = rowName(row);
  const remove = { type: "button", class: "remove", "aria-label": `Leave out ${name}` };
  return html(
    "span",
    { class: "entry" },
    swatch(slotOf(row), svg("line", { class: "line", x1: 0, x2: 26, y1: 7, y2: 7 })),
    name,
    html("button", { ...remove, onclick: drop }, times),
  );
}

function slotOf(row) {
  return `series-${state.chosen.get(row.id)}`;
}

/** Latency and share of queries up to it, as far as the samples go. */
function steps(row) {
  const unit = state.relative ? valueAt(row, 50) : 1;
  return row.quantiles.map((time, at) => ({ time: time / unit, share: data.levels[at] / 100 }));
}

/** The sample at a level, or the last that there is before it. */
function valueAt(row, level) {
  const at = data.levels.findIndex((each) => each >= level - 1e-6);
  return row.quantiles[Math.min(at, row.quantiles.length - 1)];
}

function distributionLine(row, steps, points) {
  const series = String(row.id);
  const x = "time";
  const y = (step) => onAxis(step.share);
  const line = { x, y, fill: "none", strokeWidth: 1.8, curve: "step-after", clip: true };
  const own = points.filter((point) => point.series === series);
  const dots = { x: "x", y: "y", r: 3.5, stroke: "var(--surface)", ariaLabel: spoken };
  return [
    Plot.line([{ time: steps[0].time, share: 0 }, ...steps], ofSeries(series, `line ${slotOf(row)}`, line)),
    Plot.dot(own, ofSeries(series, `mark ${slotOf(row)}`, dots)),
  ];
}

function distributionPoints(row, steps) {
  return READ_AT.map((level) => distributionPoint(row, steps, level)).filter(Boolean);
}

function distributionPoint(row, steps, level) {
  const found = steps.find(({ share }) => share >= level / 100 - 1e-9);
  if (!found || found.time > lastShown(steps).time) return null;
  const facts = [
    [`p${level} of the samples`, ms(valueAt(row, level))],
    ["Samples", fixed(row.samples, 0)],
    ["Longest", ms(row.largest_ms)],
  ];
  const place = { x: found.time, y: onAxis(found.share) };
  return { ...place, row, series: String(row.id), title: rowName(row), facts };
}
