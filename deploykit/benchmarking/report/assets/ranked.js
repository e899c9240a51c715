// One figure of each row where all have one batch: the best first, a line for each.

const RANK = { top: 46, height: 19, stacked: 35, gap: 9, edge: 6 };
const SCROLL_BAR = 16; // stands on the right where a list does not fit in its box
const LOW_LIST = 400; // px, and fits everywhere
const NAME_SHARE = 0.45;
const LONG_LIST = 44; // does not fit in the highest box

/** Sorted marks on one axis; names stand beside them, or above where they take too much room. */
function rankedModel(drawn, width, curve, notes) {
  const turn = curve.ranked.highest ? -1 : 1;
  const order = [...drawn].sort((a, b) => turn * (curve.value(a) - curve.value(b)));
  const lines = rankedLines(order, width, curve);
  const ends = order.flatMap((row) => curve.interval(row) || [curve.value(row)]);
  const x = logScale(logDomain(ends), [lines.left, lines.right]);
  const marks = [];
  const height = RANK.top + order.length * lines.height + RANK.gap;
  const axis = topAxis(x, lines, curve.axis, height - RANK.gap);
  const groups = order.map((row, at) => rankedLine(row, at, lines, x, curve, marks));
  const title = `${curve.ranked.title} at batch ${order[0].batch}`;
  const sorted = curve.ranked.highest ? "highest first" : "fastest first";
  const label = `${title}, ${curve.axis}, logarithmic, ${sorted}: ${counted(order.length, "row")}`;
  const more = order.length > LONG_LIST ? [`${order.length} rows: scroll, or filter them.`] : [];
  const said = { title, about: curve.ranked.about, label, notes: [...notes, ...more] };
  return { ...said, height, nodes: [axis, ...groups], marks };
}

/** What stands beside each mark, and the room that it leaves. */
function rankedLines(order, width, curve) {
  const names = rankedNames(order);
  const texts = order.map(curve.ranked.text);
  const widest = Math.max(...names.map(textWidth));
  const stacked = widest > NAME_SHARE * width;
  const height = stacked ? RANK.stacked : RANK.height;
  const isLow = RANK.top + order.length * height < LOW_LIST;
  const end = width - (isLow ? RANK.edge : SCROLL_BAR);
  return {
    names: names.map((name) => fitted(name, end - RANK.edge)),
    texts,
    stacked,
    left: stacked ? RANK.edge : widest + RANK.edge + RANK.gap,
    right: end - Math.max(...texts.map(textWidth)) - 2 * RANK.gap,
    end,
    height,
  };
}

/** The model, and what else differs between the rows. */
function rankedNames(rows) {
  const others = ["precision", "backend", "scenario"];
  const fields = ["model", ...others.filter((field) => distinct(rows, field).length > 1)];
  return rows.map((row) => fields.map((field) => row[field]).join(", "));
}

/** Above the marks: a long list scrolls, and its axis is read first. */
function topAxis(x, lines, title, bottom) {
  const top = RANK.top - 8;
  const group = svg("g", { class: "axes" });
  for (const tick of withRoom(x.ticks, x, 34)) {
    const at = x(tick);
    group.append(
      svg("line", { class: "grid-line", x1: at, x2: at, y1: top, y2: bottom }),
      svg("text", { x: at, y: top - 5, "text-anchor": "middle" }, tickText(tick)),
    );
  }
  group.append(svg("text", axisTitle((lines.left + lines.right) / 2, 14), title));
  return group;
}

function rankedLine(row, at, lines, x, curve, marks) {
  const top = RANK.top + at * lines.height;
  const y = top + lines.height - RANK.height / 2;
  const series = `rank-${row.id}`;
  const place = lines.stacked
    ? { x: RANK.edge, y: y - 15 }
    : { x: lines.left - RANK.gap, y: y + 4, "text-anchor": "end" };
  const px = x(curve.value(row));
  const interval = curve.interval(row);
  marks.push({ x: px, y, row, series, title: rowName(row), facts: curve.facts(row), wide: true });
  return svg(
    "g",
    { class: `rank ${colourOf(row)}`, "data-series": series },
    svg("line", { class: "grid-line", x1: lines.left, x2: lines.right, y1: y, y2: y }),
    svg("text", { class: "rank-name", ...place }, lines.names[at]),
    interval && flatWhisker(y, x(interval[0]), x(interval[1])),
    markShape(row.precision, px, y, { class: markClass(row, curve) }),
    svg("text", { class: "bar-text", x: lines.end, y: y + 4, "text-anchor": "end" }, lines.texts[at]),
  );
}

function flatWhisker(y, low, high) {
  const d = `M${low} ${y - 4}v8M${high} ${y - 4}v8M${low} ${y}H${high}`;
  return svg("path", { class: "whisker", d });
}
