// The parts of a chart that all share: axes, marks of a precision, lines of a backend.

const MARGIN = { top: 12, right: 14, bottom: 46, left: 62 };
const DASHES = [null, "7 4", "2 3", "10 3 2 3"];
const HALF = 4.5;

function plotArea(width, height, right = MARGIN.right) {
  return {
    x: [MARGIN.left, width - right],
    y: [height - MARGIN.bottom, MARGIN.top],
  };
}

/** Grid, ticks and titles. `x` and `y` are {scale, title, text}. */
function axes(area, x, y) {
  const [left, right] = area.x;
  const [bottom, top] = area.y;
  const group = svg("g", { class: "axes" });
  for (const tick of withRoom(y.scale.ticks, y.scale, 18)) {
    const at = y.scale(tick);
    group.append(
      svg("line", { class: "grid-line", x1: left, x2: right, y1: at, y2: at }),
      svg("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, y.text(tick)),
    );
  }
  for (const tick of withRoom(x.scale.ticks, x.scale, x.room || 34)) {
    const at = x.scale(tick);
    group.append(
      svg("line", { class: "grid-line", x1: at, x2: at, y1: bottom, y2: top }),
      svg("text", { x: at, y: bottom + 18, "text-anchor": "middle" }, x.text(tick)),
    );
  }
  const middle = (top + bottom) / 2;
  const turned = `rotate(-90 14 ${middle})`;
  group.append(
    svg("line", { class: "axis-line", x1: left, x2: right, y1: bottom, y2: bottom }),
    svg("text", axisTitle((left + right) / 2, bottom + 38), x.title),
    svg("text", { ...axisTitle(14, middle), transform: turned }, y.title),
  );
  return group;
}

/** Lines that leave the frame end there. */
function frameClip(id, area) {
  const [left, right] = area.x;
  const [bottom, top] = area.y;
  const frame = { x: left, y: top - 4, width: right - left + 4, height: bottom - top + 8 };
  return svg("clipPath", { id }, svg("rect", frame));
}

function axisTitle(x, y) {
  return { class: "axis-title", x, y, "text-anchor": "middle" };
}

/** A circle, a square or a triangle, so that precisions differ without colour. */
function markShape(precision, x, y, attributes = {}) {
  if (precision === "fp16") {
    const at = { x: x - HALF, y: y - HALF, width: 2 * HALF, height: 2 * HALF };
    return svg("rect", { ...at, ...attributes });
  }
  if (precision === "int8") {
    const size = HALF * 1.25;
    const points = [x, y - size, x + size, y + size * 0.8, x - size, y + size * 0.8];
    return svg("polygon", { points: points.join(" "), ...attributes });
  }
  return svg("circle", { cx: x, cy: y, r: HALF, ...attributes });
}

function dashOf(row) {
  return DASHES[every.backend.indexOf(row.backend) % DASHES.length];
}

function pathOf(points) {
  return points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

const ruler = document.createElement("canvas").getContext("2d");
ruler.font = `11.5px ${getComputedStyle(document.body).fontFamily}`;

/** Room for a text of a chart; digits of one width may be a little wider than the ruler's. */
function textWidth(text) {
  return Math.ceil(1.04 * ruler.measureText(text).width) + 2;
}

/** A text that has its middle left out where there is no room for it: both ends tell rows apart. */
function fitted(text, room) {
  let shown = text;
  for (let kept = text.length - 1; kept > 2 && textWidth(shown) > room; kept -= 1) {
    shown = `${text.slice(0, Math.ceil(kept / 2))}\u2026${text.slice(-Math.floor(kept / 2))}`;
  }
  return shown;
}

/** Rows by the name of their series, in the order of the run. */
function bySeries(rows) {
  const found = new Map();
  for (const row of rows) {
    const name = seriesName(row);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(row);
  }
  return found;
}

function swatch(className, ...shapes) {
  const box = { class: `swatch ${className}`, width: 26, height: 14, "aria-hidden": "true" };
  return svg("svg", box, ...shapes);
}

/** What colours, marks and lines mean in every chart but the distribution. */
function sharedLegend() {
  const entries = [];
  const colours = [...colouredValues().keys()].map((at) => [
    colouredValues()[at],
    swatch(`series-${at + 1}`, svg("rect", { class: "fill", x: 6, y: 2, width: 12, height: 10 })),
  ]);
  const others = every[state.colourBy].length - colouredValues().length;
  if (others) {
    const grey = svg("rect", { class: "fill", x: 6, y: 2, width: 12, height: 10 });
    const noun = state.colourBy === "batch" ? "batch size" : state.colourBy;
    colours.push([counted(others, `other ${noun}`), swatch("series-other", grey)]);
  }
  if (colours.length > 1) entries.push(["Colour", colours]);
  const shapes = every.precision.map((name) => [
    name,
    swatch("ink", markShape(name, 13, 7, { class: "fill" })),
  ]);
  if (shapes.length > 1) entries.push(["Mark", shapes]);
  const lines = every.backend.map((name) => [
    name,
    swatch("ink", svg("line", { class: "line", x1: 0, x2: 26, y1: 7, y2: 7, "stroke-dasharray": dashOf({ backend: name }) })),
  ]);
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
