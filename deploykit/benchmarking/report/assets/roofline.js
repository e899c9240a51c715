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
  const ridges = roofs.map((roof) => roof.rate / roof.bytes_per_s);
  const across = logDomain([...drawn.map(intensity), ...ridges], 1.6);
  const rates = [...drawn.map(reached), ...roofs.map((roof) => roof.rate)];
  const up = logDomain(rates, 1.6);
  const ticks = { x: logTicks(across, 4, "~r"), y: logTicks(up, 5, "~s") };
  const points = d3.sort(drawn.map(rooflinePoint), (point) => point.x, (point) => point.y);
  const label = `Roofline: ${counted(drawn.length, "point")} under ${counted(roofs.length, "roof")}`;
  const plot = {
    marginRight: Math.max(14, ...names.map((name) => 10 + textWidth(name))),
    x: { type: "log", domain: across },
    y: { type: "log", domain: up },
    marks: [
      gridOf("x", ticks.x),
      gridOf("y", ticks.y),
      axisOf("x", { title: "Arithmetic intensity (FLOP/byte)", ...ticks.x }),
      axisOf("y", { title: "Arithmetic rate (FLOP/s)", ...ticks.y }),
      roofs.map((roof) => roofLine(roof, across[1])),
      roofNames(roofs, names),
      points.map((point) => dotsOf(point.series, [point.row], { x: intensity, y: reached, facts: () => point.facts })),
      points.length <= MOST_NAMED ? dotNames(points, (point) => shortName(point.row, drawn)) : null,
    ],
  };
  return { height: ROOF_HEIGHT, label, plot, points, notes: rooflineNotes(measured, drawn, roofs) };
}

function intensity(row) {
  return row.limit.flop / row.limit.bytes;
}

function reached(row) {
  return row.limit.flop_per_s;
}

function rooflinePoint(row) {
  const facts = [
    ["Reached", withPrefix(row.limit.flop_per_s, "FLOP/s")],
    ["Memory", withPrefix(row.limit.bytes_per_s, "B/s")],
    ["Intensity", `${figure(intensity(row))}${nbsp}FLOP/byte`],
    ["Of the limit", `${percent(row.limit.share)}, ${row.limit.binds} binds`],
    ...graveRemarks(row),
  ];
  return { x: intensity(row), y: reached(row), row, series: String(row.id), title: rowName(row), facts };
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

/** Up the slope of the memory to the ridge, and level from there on. */
function roofLine(roof, right) {
  const ridge = roof.rate / roof.bytes_per_s;
  const ends = [[ridge * 1e-9, roof.rate * 1e-9], [ridge, roof.rate], [Math.max(right, ridge), roof.rate]];
  return Plot.line(ends, { className: "roof", stroke: "var(--ink)", strokeWidth: 1.2, clip: true });
}

/** Beside the roofs, and pushed apart where they lie close: the first is the highest. */
function roofNames(roofs, names) {
  const place = (index, scales, values, dimensions, context, next) => {
    const group = next(index, scales, values, dimensions, context);
    let lowest = -Infinity;
    for (const text of group.querySelectorAll("text")) {
      const { e, f } = text.transform.baseVal.consolidate().matrix;
      lowest = Math.max(lowest + 15, f);
      text.setAttribute("transform", `translate(${e},${lowest})`);
    }
    return group;
  };
  const text = { y: "rate", text: (roof, at) => names[at], frameAnchor: "right", textAnchor: "start", dx: 6 };
  return Plot.text(roofs, { ...text, className: "roof-text", render: place });
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
