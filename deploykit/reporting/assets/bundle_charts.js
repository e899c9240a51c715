// The frontier of a budget, and the ranges of a calibration.

const FRONTIER_HEIGHT = 340;
const RANGE = 20;
const MOST_RANGES = 40;
/** How far below the range in use the smallest value lies that is drawn. */
const SHOWN_BELOW = 32;

function frontierChart(bundle, id) {
  const { frontier } = bundle;
  return {
    id: `frontier-${id}`,
    title: "Time against loss",
    about: frontier ? `Predicted time on ${frontier.gpu} at batch ${frontier.batch}; loss of ${LOSSES[frontier.measure] || frontier.measure}, at most, with 95 % confidence. Left and low is better.` : "",
    model: () => frontierModel(frontier),
  };
}

const LOSSES = {
  top1: "top-1 accuracy",
  answers: "answers that agree with FP32",
  decisions: "decisions that agree with FP32",
  error: "the outputs, as an error",
};

function frontierModel(frontier) {
  if (!frontier) return { empty: "The precision was asked for, so that there is no frontier." };
  const points = frontier.points.map((point, at) => frontierPoint(point, at, frontier));
  const chosen = points[frontier.chosen];
  const across = logDomain(points.map((point) => point.x), 1.15);
  // The name of the chosen point needs the wider side of it.
  const isRight = Math.log(chosen.x) - Math.log(across[0]) > Math.log(across[1]) - Math.log(chosen.x);
  const high = Math.max(frontier.max_drop, ...points.map((point) => point.y)) * 1.1 || 1;
  const low = Math.min(0, ...frontier.points.map((point) => point.loss));
  const ticks = {
    x: logTicks(across, 6, "~r"),
    y: linearTicks([low, high], 5, (loss) => String(+(100 * loss).toFixed(3))),
  };
  const plot = {
    x: { type: "log", domain: across },
    y: { domain: [low, high] },
    marks: [
      gridOf("x", ticks.x),
      gridOf("y", ticks.y),
      axisOf("x", { title: "Predicted time (ms)", ...ticks.x }),
      axisOf("y", { title: "Loss at most (%)", ...ticks.y }),
      Plot.ruleY([frontier.max_drop], { className: "budget", stroke: "currentColor", strokeDasharray: "5 4" }),
      Plot.text([frontier.max_drop], { className: "budget", y: (drop) => drop, text: (drop) => `budget ${percent(drop)}`, frameAnchor: "right", textAnchor: "end", dy: -8, fill: "currentColor" }),
      Plot.line(points, { x: "x", y: "y", stroke: "var(--edge)" }),
      points.map((point) => Plot.dot([point], ofSeries(point.series, `mark ${point.colour}`, { x: "x", y: "y", r: 5, stroke: "var(--surface)", ariaLabel: spoken }))),
      Plot.dot([chosen], { className: "chosen", x: "x", y: "y", r: 9.5, stroke: "currentColor", strokeWidth: 1.8 }),
      Plot.text([chosen], { className: "dot-name", x: "x", y: "y", dx: isRight ? -15 : 15, textAnchor: isRight ? "end" : "start", text: (point) => `chosen: ${point.formats}` }),
      dotNames([points[0]], (point) => point.formats),
    ],
  };
  const label = `Predicted time against loss: ${counted(points.length, "point")}, number ${frontier.chosen + 1} is chosen`;
  return { height: FRONTIER_HEIGHT, label, plot, points };
}

function frontierPoint(point, at, frontier) {
  const formats = PRECISIONS.filter((name) => point.layers[name]).map((name) => `${point.layers[name]} ${name}`).join(", ");
  const facts = [
    ["Layers", formats],
    ["Predicted", ms(point.ms)],
    ["Loss", percent(point.loss)],
    ["At most", percent(point.upper)],
  ];
  if (point.images) facts.push(["Judged on", counted(point.images, "image")]);
  const title = at === frontier.chosen ? `Point ${at + 1}, chosen` : `Point ${at + 1}`;
  const most = d3.greatest(Object.entries(point.layers), ([, count]) => count)[0];
  return { x: point.ms, y: point.upper, formats, colour: precisionColour(most), series: `point-${at}`, title, facts };
}

function rangesChart(bundle, id) {
  return {
    id: `ranges-${id}`,
    title: "Calibrated ranges",
    about: bundle.ranges ? `How many values of each tensor have which magnitude (the darker, the more), its largest value (end of the line) and the range in use (dot), by the method ${bundle.ranges.method}; what is beyond the dot is clipped.` : "",
    model: (_, width) => rangesModel(bundle.ranges, width),
  };
}

function rangesModel(ranges, width) {
  if (!ranges) return { empty: "This precision needs no calibration." };
  if (ranges.reason) return { empty: ranges.reason };
  const clipped = [...ranges.tensors].sort((a, b) => keptOf(a) - keptOf(b));
  const drawn = clipped.slice(0, MOST_RANGES);
  const names = drawn.map((tensor) => fitted(tensor.name, NAME_SHARE * width));
  const low = ranges.shapes && Object.keys(ranges.shapes).length ? SHOWN_BELOW : 1;
  const across = logDomain(drawn.flatMap((tensor) => [tensor.used / low, tensor.max ?? tensor.used]).filter((value) => value > 0), 1.2);
  const ticks = logTicks(across, 5, "~r");
  const points = drawn.map((tensor, at) => rangePoint(tensor, at));
  const cells = drawn.flatMap((tensor, at) => shapeCells((ranges.shapes || {})[tensor.name], tensor.max, at));
  const plot = {
    marginTop: 42,
    marginBottom: 4,
    marginLeft: 10 + d3.max(names, textWidth),
    marginRight: 70,
    x: { type: "log", domain: across, clamp: true },
    y: { type: "band", axis: null, domain: d3.range(drawn.length), padding: 0 },
    marks: [
      gridOf("x", ticks),
      axisOf("x", { title: "Magnitude of the tensor's values", anchor: "top", labelOffset: 36, ...ticks }),
      Plot.barX(cells, { className: "shape", y: "y", x1: (cell) => Math.max(cell.low, across[0]), x2: (cell) => Math.max(cell.high, across[0]), fill: "var(--series-1)", fillOpacity: "dark", insetTop: 2, insetBottom: 2, title: "text" }),
      points.map((point, at) => rangeLine(point, names[at], across[0])),
    ],
  };
  const rest = clipped.length - drawn.length;
  const notes = rest ? [`${counted(rest, "tensor")} that keep more of their range are left out.`] : [];
  const label = `Ranges of ${counted(drawn.length, "tensor")}, the most clipped first`;
  return { height: 46 + drawn.length * RANGE, label, plot, points, notes };
}

/** A tensor's histogram: each half octave below its largest value, as dark as its share. */
function shapeCells(counts, largest, at) {
  if (!counts || !largest) return [];
  const total = d3.sum(counts);
  const most = d3.max(counts.slice(0, -1));
  // The last has all smaller values, which end nowhere on an axis of octaves.
  return counts.slice(0, -1).flatMap((count, step) => (count ? [{
    y: at,
    low: largest * 2 ** (-(step + 1) / 2),
    high: largest * 2 ** (-step / 2),
    dark: 0.08 + 0.62 * Math.sqrt(count / most),
    text: `${percent(count / total)} of the values`,
  }] : []));
}

/** The part of the largest value that is within the range in use. */
function keptOf(tensor) {
  return tensor.max ? tensor.used / tensor.max : 1;
}

function rangePoint(tensor, at) {
  const methods = Object.entries(tensor).filter(([name]) => !["name", "used"].includes(name));
  const facts = [
    ["In use", figure(tensor.used, 4)],
    ["Of the largest", percent(keptOf(tensor))],
    ...methods.map(([name, value]) => [name, figure(value, 4)]),
  ];
  return { x: tensor.used, y: at, max: tensor.max ?? tensor.used, kept: keptOf(tensor), series: `range-${at}`, title: tensor.name, facts, wide: true };
}

function rangeLine(point, name, low) {
  const colour = "series-1";
  const text = { y: "y", fill: "currentColor", stroke: "none" };
  return [
    Plot.ruleY([point], ofSeries(point.series, `whisker ${colour}`, { y: "y", x1: low, x2: "max", stroke: "var(--edge)", strokeWidth: 2 })),
    Plot.dot([point], ofSeries(point.series, `mark ${colour}`, { x: "x", y: "y", r: 4.5, stroke: "var(--surface)", ariaLabel: spoken })),
    Plot.text([point], ofSeries(point.series, `rank-name ${colour}`, { ...text, frameAnchor: "left", textAnchor: "end", dx: -6, text: () => name })),
    Plot.text([point], ofSeries(point.series, `bar-text ${colour}`, { ...text, frameAnchor: "right", textAnchor: "start", dx: 8, text: () => percent(point.kept) })),
  ];
}
