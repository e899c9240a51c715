// Layers: which precision each has, what it costs, and what it loses.

const BAR = 20;
const MOST_BARS = 20;
const ERROR_HEIGHT = 320;
const NAME_SHARE = 0.42;

function layersChart(bundle, id) {
  const nodes = bundle.layers.nodes.slice(0, MOST_BARS);
  return {
    id: `layers-${id}`,
    title: "Heaviest layers",
    about: "Share of the multiply-adds of each layer; its colour is its precision.",
    model: (_, width) => layersModel(bundle, nodes, width),
  };
}

function layersModel(bundle, nodes, width) {
  if (!nodes.length) return { empty: "No layer has multiply-adds." };
  const names = nodes.map((node) => fitted(node.name, NAME_SHARE * width));
  const points = nodes.map((node, at) => ({
    x: node.share,
    y: at,
    series: `layer-${at}`,
    title: node.name,
    facts: nodeFacts(node),
    wide: true,
  }));
  const domain = [0, d3.max(nodes, (node) => node.share)];
  const ticks = linearTicks(domain, 4, (share) => String(+(100 * share).toFixed(3)));
  const plot = {
    marginTop: 42,
    marginBottom: 4,
    marginLeft: 10 + d3.max(names, textWidth),
    marginRight: 64,
    x: { domain },
    y: { type: "band", axis: null, domain: d3.range(nodes.length), padding: 0.15 },
    marks: [
      gridOf("x", ticks),
      axisOf("x", { title: "Share of the multiply-adds (%)", anchor: "top", labelOffset: 36, ...ticks }),
      points.map((point, at) => layerBar(point, nodes[at], names[at])),
    ],
  };
  const rest = bundle.layers.nodes.length - nodes.length;
  const notes = rest > 0 ? [`${counted(rest, "lighter layer")} in the table below.`] : [];
  const label = `Multiply-adds of the ${counted(nodes.length, "heaviest layer")}`;
  return { height: 46 + nodes.length * BAR, label, plot, points, notes, legend: [precisionLegend(bundle)] };
}

function nodeFacts(node) {
  const facts = [
    ["Operator", node.op_type],
    ["Precision", node.precision],
    ["Multiply-adds", withPrefix(node.multiply_adds)],
    ["Share", shareOf(node.share)],
  ];
  return node.reason ? [...facts, ["Why", node.reason]] : facts;
}

function layerBar(point, node, name) {
  const colour = precisionColour(node.precision);
  const text = { y: "y", fill: "currentColor", stroke: "none" };
  return [
    Plot.barX([point], ofSeries(point.series, `bar mark ${colour}`, { x1: 0, x2: "x", y: "y", stroke: "none", ariaLabel: spoken })),
    Plot.text([point], ofSeries(point.series, `rank-name ${colour}`, { ...text, frameAnchor: "left", textAnchor: "end", dx: -6, text: () => name })),
    Plot.text([point], ofSeries(point.series, `bar-text ${colour}`, { ...text, x: "x", textAnchor: "start", dx: 5, text: () => shareOf(node.share) })),
  ];
}

function precisionLegend(bundle, more = []) {
  const box = (colour) => swatch(colour, svg("rect", { class: "fill", x: 6, y: 2, width: 12, height: 10 }));
  const found = precisionsOf(bundle).map(({ precision }) => [precision, precisionColour(precision)]);
  return html("p", {}, [...found, ...more].map(([name, colour]) => html("span", { class: "entry" }, box(colour), name)));
}

function errorsChart(bundle, id) {
  return {
    id: `errors-${id}`,
    title: "Errors by layer",
    about: "Signal over noise of each activation against the FP32 graph, in the order of the network. Higher is better: 20 dB more is a tenth of the error.",
    model: (_, width) => errorsModel(bundle, width),
  };
}

function errorsModel(bundle, width) {
  const { errors } = bundle;
  if (errors.reason) return { empty: errors.reason };
  const finite = errors.values.map((value) => value.sqnr_db).filter((value) => value !== null);
  if (!finite.length) return { empty: "Every activation is equal to that of the FP32 graph." };
  const top = Math.max(...finite);
  const bottom = Math.min(...finite) - 8;
  const precisions = new Map(bundle.layers.nodes.map((node) => [node.name, node.precision]));
  const points = errors.values
    .map((value, at) => errorPoint(value, at, top, precisions))
    .filter(Boolean);
  const drawn = [bottom, top + 3];
  const across = [-0.5, errors.values.length - 0.5];
  const ticks = { x: linearTicks([0, errors.values.length - 1], 6), y: linearTicks(drawn, 5) };
  ticks.x.ticks = ticks.x.ticks.filter(Number.isInteger);
  ticks.x.text = (at) => String(at + 1);
  const plot = {
    x: { domain: across },
    y: { domain: drawn },
    marks: [
      gridOf("y", ticks.y),
      axisOf("x", { title: "Activation, from the input to the output", ...ticks.x }),
      axisOf("y", { title: "SQNR (dB)", ...ticks.y }),
      Plot.line(points, { x: "x", y: "y", stroke: "var(--edge)", strokeWidth: 1 }),
      points.map((point) => Plot.dot([point], ofSeries(point.series, `mark ${point.colour}`, { x: "x", y: "y", r: 4, stroke: "var(--surface)", ariaLabel: spoken }))),
      nameBelow(d3.least(points, (point) => point.y), errors.values.length, width),
    ],
  };
  const images = counted(errors.images, "image");
  const fault = errors.fault ? `First that goes wrong by itself: ${errors.fault}: ${errors.fault_reason}.` : "No activation goes wrong by itself.";
  const label = `Signal over noise of ${counted(points.length, "activation")} on ${images}`;
  return { height: ERROR_HEIGHT, label, plot, points, notes: [`${images}. ${fault}`], legend: [precisionLegend(bundle, [["no arithmetic of its own", "series-other"]])] };
}

function errorPoint(value, at, top, precisions) {
  if (value.sqnr_db === null && !value.equal) return null;
  const precision = precisions.get(value.node);
  const facts = [
    ["Operator", value.op_type],
    ["Precision", precision || "no arithmetic"],
    ["SQNR", value.equal ? "equal" : `${figure(value.sqnr_db)}${nbsp}dB`],
    ["Cosine", value.cosine === null ? dash : String(+value.cosine.toFixed(6))],
  ];
  const colour = precision ? precisionColour(precision) : "series-other";
  return { x: at, y: value.equal ? top : value.sqnr_db, name: value.node, colour, series: `value-${at}`, title: value.name, facts };
}

/** The name of the lowest point, where no other point can be. */
function nameBelow(point, count, width) {
  const textAnchor = point.x > count / 2 ? "end" : "start";
  return Plot.text([point], { className: "dot-name", x: "x", y: "y", dy: 15, textAnchor, text: () => fitted(`lowest: ${point.name}`, 0.4 * width) });
}
