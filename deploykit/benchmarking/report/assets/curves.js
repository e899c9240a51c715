// Latency and throughput against the batch size, or row by row where there is one batch alone.

const CURVE_HEIGHT = 330;
const MANY = 24;
const EMPTY_MARK = "An empty mark has no interval: too few independent samples; measure longer.";

function curveModel(rows, width, curve) {
  const measured = rows.filter((row) => !row.failed);
  const drawn = measured.filter((row) => curve.value(row) > 0);
  const notes = leftOut(measured.length - drawn.length, curve.missing);
  if (!drawn.length) return { empty: whyEmpty(rows, measured, curve.missing) };
  const batches = distinct(drawn, "batch");
  if (drawn.some(curve.isBare)) notes.push(EMPTY_MARK);
  if (batches.length < 2) return rankedModel(drawn, width, curve, notes);
  const series = [...bySeries(drawn)];
  if (series.length > MANY) {
    notes.push(`${series.length} lines: a filter on the model, precision or backend makes room.`);
  }
  const label = `${curve.axis} against batch, both logarithmic: ${counted(series.length, "line")}, ${counted(drawn.length, "point")}`;
  const ends = drawn.flatMap((row) => curve.interval(row) || [curve.value(row)]);
  const domain = logDomain(ends.filter((value) => value > 0));
  const ticks = logTicks(domain, 6, tickSpecifier(ends));
  const plot = {
    x: { type: "log", domain: logDomain(batches, 1.2) },
    y: { type: "log", domain },
    marks: [
      gridOf("x", { ticks: batches }),
      gridOf("y", ticks),
      axisOf("x", { title: "Batch (images per query)", ticks: batches, text: String }),
      axisOf("y", { title: curve.axis, ...ticks }),
      series.map(([name, members]) => curveLine(name, members, curve, series.length > MANY)),
    ],
  };
  const points = series.flatMap(([name, members]) =>
    d3.sort(members, (row) => row.batch).map((row) => pointOf(row, name, curve, row.batch, curve.value(row))),
  );
  return { height: CURVE_HEIGHT, label, plot, points, notes };
}

function pointOf(row, series, curve, x, y) {
  return { x, y, row, series, title: rowName(row), facts: curve.facts(row) };
}

function whyEmpty(rows, measured, reason) {
  if (!rows.length) return noRow();
  if (!measured.length) return "All rows shown failed; the table says why.";
  return `Nothing to draw: ${reason}.`;
}

function curveLine(name, members, curve, isOneOfMany) {
  const ordered = d3.sort(members, (row) => row.batch);
  const [first] = ordered;
  const x = "batch";
  const y = curve.value;
  const kind = `line ${colourOf(first)}${isOneOfMany ? " many" : ""}`;
  const line = { x, y, fill: "none", strokeWidth: 1.8, strokeDasharray: dashOf(first) };
  return [
    Plot.line(ordered, ofSeries(name, kind, line)),
    whiskers(name, ordered, curve, "x", x),
    dotsOf(name, ordered, { x, y, isBare: curve.isBare, facts: curve.facts }),
  ];
}

/** Intervals of rows across `axis`, where they have one. */
function whiskers(series, rows, curve, axis, place) {
  const carried = rows.filter(curve.interval);
  if (!carried.length) return null;
  const other = axis === "x" ? "y" : "x";
  const rule = axis === "x" ? Plot.ruleX : Plot.ruleY;
  const [low, high] = [0, 1].map((end) => (row) => curve.interval(row)[end]);
  const ends = { [axis]: place, [`${other}1`]: low, [`${other}2`]: high };
  return rule(carried, ofSeries(series, `whisker ${colourOf(rows[0])}`, { ...ends, strokeWidth: 1.4, marker: "tick" }));
}

function latencyFacts(row) {
  const bare = isBare(row) ? [["p50", `(${ms(median(row))}), no interval`]] : [];
  const carried = Object.entries(row.percentiles).map(([level, [value, low, high]]) => [
    `p${level}`,
    `${ms(value)} (${figure(low, 4)} to ${figure(high, 4)})`,
  ]);
  return [...bare, ...carried, ["Images/s", figure(row.images_per_s, 4)], ...graveRemarks(row)];
}

function graveRemarks(row) {
  const grave = row.remarks.filter(([kind]) => kind !== "note");
  return grave.length ? [["Remarks", counted(grave.length, "remark") + ", see the table"]] : [];
}

const latencyChart = {
  id: "latency",
  title: "Latency against batch",
  about: `Median of a query; the bar is its ${percent(data.confidence, 2)} interval. Lower is better.`,
  model: (rows, width) =>
    curveModel(rows, width, {
      axis: "Latency p50 (ms)",
      value: median,
      interval: (row) => {
        const [, low, high] = row.percentiles["50"] || [];
        return low > 0 ? [low, high] : null;
      },
      isBare,
      facts: latencyFacts,
      missing: "a median of zero",
      ranked: {
        title: "Latency",
        about: `Median of a query; the bar is its ${percent(data.confidence, 2)} interval. Fastest first, on a logarithmic scale.`,
        highest: false,
        text: (row) => (isBare(row) ? `(${figure(median(row), 4)})` : figure(median(row), 4)),
      },
    }),
};

const throughputChart = {
  id: "throughput",
  title: "Throughput against batch",
  about: "Queries times batch over the duration of the measurement. Higher is better.",
  model: (rows, width) =>
    curveModel(rows, width, {
      axis: "Throughput (images/s)",
      value: (row) => row.images_per_s,
      interval: () => null,
      isBare: () => false,
      facts: latencyFacts,
      missing: "no throughput",
      ranked: {
        title: "Throughput",
        about: "Queries times batch over the duration. Highest first, on a logarithmic scale.",
        highest: true,
        text: (row) => figure(row.images_per_s, 4),
      },
    }),
};
