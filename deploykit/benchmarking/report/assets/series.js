// What colours, marks and lines mean in every chart but the distribution.

const DASHES = [null, "7 4", "2 3", "10 3 2 3"];
/** Precisions differ without colour, too. */
const SYMBOLS = { fp32: "circle", fp16: "square", int8: "triangle", bf16: "diamond", fp8: "star" };
const SYMBOL_AREA = 64;

function symbolOf(precision) {
  return SYMBOLS[precision] || "circle";
}

function dashOf(row) {
  return DASHES[every.backend.indexOf(row.backend) % DASHES.length];
}

/** Rows by the name of their series, in the order of the run. */
function bySeries(rows) {
  return d3.group(rows, seriesName);
}

/** The dots of rows, each with its name; those without an interval are empty. */
function dotsOf(series, rows, { x, y, isBare = () => false, facts }) {
  const name = (row) => spoken({ title: rowName(row), facts: facts(row) });
  const [first] = rows;
  const common = { x, y, r: 4.5, symbol: symbolOf(first.precision), ariaLabel: name };
  const kinds = [
    [rows.filter((row) => !isBare(row)), "mark", { stroke: "var(--surface)" }],
    [rows.filter(isBare), "mark bare", { fill: "var(--surface)", strokeWidth: 1.6 }],
  ];
  return kinds
    .filter(([members]) => members.length)
    .map(([members, kind, paint]) =>
      Plot.dot(members, ofSeries(series, `${kind} ${colourOf(first)}`, { ...common, ...paint })),
    );
}

function symbolPath(precision, at = [13, 7]) {
  const shapes = { circle: d3.symbolCircle, square: d3.symbolSquare, triangle: d3.symbolTriangle, diamond: d3.symbolDiamond, star: d3.symbolStar };
  const d = d3.symbol(shapes[symbolOf(precision)], SYMBOL_AREA)();
  return svg("path", { class: "fill", d, transform: `translate(${at})` });
}

function colourBox() {
  return svg("rect", { class: "fill", x: 6, y: 2, width: 12, height: 10 });
}

function sharedLegend() {
  const entries = [];
  const colours = colouredValues().map((value, at) => [value, swatch(`series-${at + 1}`, colourBox())]);
  const others = every[state.colourBy].length - colouredValues().length;
  if (others) colours.push([counted(others, `other ${state.colourBy}`), swatch("series-other", colourBox())]);
  if (colours.length > 1) entries.push(["Colour", colours]);
  const shapes = every.precision.map((name) => [name, swatch("ink", symbolPath(name))]);
  if (shapes.length > 1) entries.push(["Dot", shapes]);
  const lines = every.backend.map((name) => {
    const line = { class: "line", x1: 0, x2: 26, y1: 7, y2: 7 };
    return [name, swatch("ink", svg("line", { ...line, "stroke-dasharray": dashOf({ backend: name }) }))];
  });
  if (lines.length > 1) entries.push(["Line", lines]);
  return entries.map(([title, items]) =>
    html(
      "p",
      {},
      html("b", {}, title),
      items.map(([text, sample]) => html("span", { class: "entry" }, sample, text)),
    ),
  );
}
