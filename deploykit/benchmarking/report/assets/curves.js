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
  const area = plotArea(width, CURVE_HEIGHT);
  const x = logScale(logDomain(batches, 1.2), area.x, batches);
  const ends = drawn.flatMap((row) => curve.interval(row) || [curve.value(row)]);
  const y = logScale(logDomain(ends.filter((value) => value > 0)), area.y);
  const marks = [];
  const groups = [...bySeries(drawn)].map(([name, members]) =>
    curveLine(name, members, curve, x, y, marks),
  );
  if (groups.length > MANY) {
    notes.push(`${groups.length} lines: a filter on the model, precision or backend makes room.`);
  }
  const axis = axes(
    area,
    { scale: x, title: "Batch (images per query)", text: String },
    { scale: y, title: curve.axis, text: tickText },
  );
  const lines = svg("g", { class: groups.length > MANY ? "many" : null }, groups);
  const label = `${curve.axis} against batch, both logarithmic: ${counted(groups.length, "line")}, ${counted(drawn.length, "point")}`;
  return { height: CURVE_HEIGHT, label, nodes: [axis, lines], marks, notes };
}

function whyEmpty(rows, measured, reason) {
  if (!rows.length) return noRow();
  if (!measured.length) return "All rows shown failed; the table says why.";
  return `Nothing to draw: ${reason}.`;
}

function curveLine(name, members, curve, x, y, marks) {
  const ordered = [...members].sort((a, b) => a.batch - b.batch);
  const points = ordered.map((row) => [x(row.batch), y(curve.value(row))]);
  const line = { class: "line", d: pathOf(points), "stroke-dasharray": dashOf(members[0]) };
  const group = svg("g", { class: colourOf(members[0]), "data-series": name });
  group.append(svg("path", line));
  ordered.forEach((row, at) => {
    const [px, py] = points[at];
    const interval = curve.interval(row);
    if (interval) group.append(whisker(px, y(interval[0]), y(interval[1])));
    group.append(markShape(row.precision, px, py, { class: markClass(row, curve) }));
    marks.push({ x: px, y: py, row, series: name, title: rowName(row), facts: curve.facts(row) });
  });
  return group;
}

function markClass(row, curve) {
  return curve.isBare(row) ? "mark bare" : "mark";
}

function whisker(x, low, high) {
  const d = `M${x - 4} ${low}h8M${x - 4} ${high}h8M${x} ${low}V${high}`;
  return svg("path", { class: "whisker", d });
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
