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
  const area = plotArea(width, DISTRIBUTION_HEIGHT);
  const curves = drawn.map((row) => [row, steps(row)]);
  const ends = curves.flatMap(([, points]) => [points[0][0], lastShown(points)[0]]);
  const x = logScale(logDomain(ends, 1.02), area.x);
  const last = Math.max(...curves.map(([, points]) => points[points.length - 1][1]));
  const y = state.tail ? nineScale(Math.max(last, 0.9), area.y) : linearScale([0, 1], area.y);
  const marks = [];
  const groups = curves.map(([row, points]) => distributionLine(row, points, x, y, marks));
  const title = state.relative ? `Latency over the row's median (${times})` : "Latency (ms)";
  const axis = axes(
    area,
    { scale: x, title, text: tickText, room: 44 },
    { scale: y, title: "Share of queries (%)", text: (share) => String(+(100 * share).toFixed(4)) },
  );
  const clip = frameClip("distribution-frame", area);
  const lines = svg("g", { "clip-path": "url(#distribution-frame)" }, groups);
  const label = `Share of queries against latency: ${drawn.map(rowName).join("; ")}`;
  const legend = [html("p", {}, drawn.map(distributionEntry))];
  if (!state.tail) notes.push("Up to the 99th percentile; Tail shows what is beyond.");
  const nodes = [axis, clip, lines];
  return { height: DISTRIBUTION_HEIGHT, label, nodes, marks, legend, notes };
}

/** With even shares the last hundredth would take most of the room and show nothing. */
function lastShown(points) {
  const within = points.filter(([, share]) => state.tail || share <= BULK);
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
  return row.quantiles.map((time, at) => [time / unit, data.levels[at] / 100]);
}

/** The sample at a level, or the last that there is before it. */
function valueAt(row, level) {
  const at = data.levels.findIndex((each) => each >= level - 1e-6);
  return row.quantiles[Math.min(at, row.quantiles.length - 1)];
}

function distributionLine(row, points, x, y, marks) {
  const pixels = points.flatMap(([time, share], at) => [
    [x(time), y(at ? points[at - 1][1] : 0)],
    [x(time), y(share)],
  ]);
  const own = READ_AT.map((level) => distributionMark(row, points, level, x, y)).filter(Boolean);
  marks.push(...own);
  return svg(
    "g",
    { class: slotOf(row), "data-series": row.id },
    svg("path", { class: "line", d: pathOf(pixels) }),
    own.map((mark) => svg("circle", { class: "mark", cx: mark.x, cy: mark.y, r: 3.5 })),
  );
}

function distributionMark(row, points, level, x, y) {
  const found = points.find(([, share]) => share >= level / 100 - 1e-9);
  if (!found || found[0] > lastShown(points)[0]) return null;
  const facts = [
    [`p${level} of the samples`, ms(valueAt(row, level))],
    ["Samples", fixed(row.samples, 0)],
    ["Longest", ms(row.largest_ms)],
  ];
  const place = { x: x(found[0]), y: y(found[1]) };
  return { ...place, row, series: String(row.id), title: rowName(row), facts };
}
