// Arithmetic rate against arithmetic intensity, under the best that the device can do.

const ROOF_HEIGHT = 330;
const ROOF_NARROW = 420; // has no room for units beside the roofs

const rooflineChart = {
  id: "roofline",
  title: "Roofline",
  about: "Bytes are those that must come from memory: weights, input and output. Above a roof nothing can be.",
  model: rooflineModel,
};

function rooflineModel(rows, width) {
  const measured = rows.filter((row) => !row.failed);
  const drawn = measured.filter((row) => row.limit && row.limit.flop > 0 && row.limit.bytes > 0);
  if (!drawn.length) {
    const reason = "the physical limit of these rows is not known";
    return { empty: whyEmpty(rows, measured, reason) };
  }
  const roofs = roofsOf(drawn);
  const names = roofs.map((roof) => roofName(roof, width));
  const margin = Math.max(MARGIN.right, ...names.map((name) => 8 + textWidth(name)));
  const area = plotArea(width, ROOF_HEIGHT, margin);
  const ridges = roofs.map((roof) => roof.rate / roof.bytes_per_s);
  const x = logScale(logDomain([...drawn.map(intensity), ...ridges], 1.6), area.x);
  const rates = drawn.map((row) => row.limit.flop_per_s);
  const y = logScale(logDomain([...rates, ...roofs.map((roof) => roof.rate)], 1.6), area.y);
  const marks = drawn.map((row) => rooflineMark(row, x, y));
  const order = [...marks].sort((a, b) => a.x - b.x || a.y - b.y);
  const axis = axes(
    area,
    { scale: x, title: "Arithmetic intensity (FLOP/byte)", text: tickText },
    { scale: y, title: "Arithmetic rate (FLOP/s)", text: rateText },
  );
  const points = order.map((mark) =>
    svg(
      "g",
      { class: colourOf(mark.row), "data-series": mark.series },
      markShape(mark.row.precision, mark.x, mark.y, { class: "mark" }),
    ),
  );
  const label = `Roofline: ${counted(drawn.length, "point")} under ${counted(roofs.length, "roof")}`;
  const nodes = [axis, ...roofLines(roofs, names, x, y, area), ...points];
  const notes = rooflineNotes(measured, drawn, roofs);
  return { height: ROOF_HEIGHT, label, nodes, marks: order, notes };
}

function intensity(row) {
  return row.limit.flop / row.limit.bytes;
}

function rateText(value) {
  return withPrefix(value, "", 1);
}

function rooflineMark(row, x, y) {
  const facts = [
    ["Reached", withPrefix(row.limit.flop_per_s, "FLOP/s")],
    ["Memory", withPrefix(row.limit.bytes_per_s, "B/s")],
    ["Intensity", `${figure(intensity(row))}${nbsp}FLOP/byte`],
    ["Of the limit", `${percent(row.limit.share)}, ${row.limit.binds} binds`],
    ...graveRemarks(row),
  ];
  const place = { x: x(intensity(row)), y: y(row.limit.flop_per_s) };
  return { ...place, row, series: String(row.id), title: rowName(row), facts };
}

/** One roof for each device and rate; of several trials on one device the best counts. */
function roofsOf(rows) {
  const found = new Map();
  for (const row of rows) {
    const peak = data.peaks[row.limit.peak];
    const rate = peak && peak.flop_per_s[row.precision];
    if (!rate) continue;
    const key = `${peak.name} ${row.precision}`;
    const known = found.get(key);
    const roof = { precision: row.precision, device: peak.name, peak };
    const bytes_per_s = Math.max(peak.bytes_per_s, known ? known.bytes_per_s : 0);
    found.set(key, { ...roof, rate: Math.max(rate, known ? known.rate : 0), bytes_per_s });
  }
  return [...found.values()].sort((a, b) => b.rate - a.rate);
}

function roofName(roof, width) {
  const rate = withPrefix(roof.rate, width < ROOF_NARROW ? "" : rateUnit(roof));
  return `${roof.precision.toUpperCase()} ${rate}`;
}

function roofLines(roofs, names, x, y, area) {
  const [, right] = area.x;
  const lines = roofs.map((roof) => {
    // Down the slope of the memory to where the frame cuts it off.
    const low = roof.rate * 1e-9;
    const start = [x(low / roof.bytes_per_s), y(low)];
    const ridge = [x(roof.rate / roof.bytes_per_s), y(roof.rate)];
    return svg("path", { class: "roof", d: pathOf([start, ridge, [right, y(roof.rate)]]) });
  });
  let lowest = -Infinity;
  const labels = roofs.map((roof, at) => {
    lowest = Math.max(lowest + 14, y(roof.rate) + 4);
    return svg("text", { class: "roof-text", x: right + 6, y: lowest }, names[at]);
  });
  const clip = frameClip("roof-frame", area);
  return [clip, svg("g", { "clip-path": "url(#roof-frame)" }, lines), ...labels];
}

function rateUnit(roof) {
  return roof.precision === "int8" ? "OP/s" : "FLOP/s";
}

function rooflineNotes(measured, drawn, roofs) {
  const notes = leftOut(measured.length - drawn.length, "their physical limit is not known");
  if (!roofs.length) notes.push("No roofs: this run does not hold the peaks of its device.");
  for (const device of new Set(roofs.map((roof) => roof.device))) {
    const own = roofs.filter((roof) => roof.device === device);
    const rates = own.map((roof) => `${roof.precision} ${withPrefix(roof.rate, rateUnit(roof))}`);
    const memory = `memory ${withPrefix(own[0].bytes_per_s, "B/s")}`;
    const source = own[0].peak.measured ? "measured on the machine" : "from its data sheet";
    notes.push(`${device}: ${[...rates, memory].join(", ")}; ${source}.`);
  }
  if (roofs.some((roof) => roof.peak.winograd.includes(roof.precision))) {
    notes.push(`3${times}3 convolutions by Winograd's algorithm may pass the FP32 roof up to 2.25 times.`);
  }
  return notes;
}
