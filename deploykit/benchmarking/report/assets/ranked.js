// One figure of each row where all have one batch: the best first, a line for each.

const RANK = { top: 46, height: 20, stacked: 36, gap: 9, edge: 6 };
const SCROLL_BAR = 16; // stands on the right where a list does not fit in its box
const LOW_LIST = 400; // px, and fits everywhere
const NAME_SHARE = 0.45;
const LONG_LIST = 44; // does not fit in the highest box

/** Sorted dots on one axis; names stand beside them, or above where they take too much room. */
function rankedModel(drawn, width, curve, notes) {
  const turn = curve.ranked.highest ? -1 : 1;
  const order = [...drawn].sort((a, b) => turn * (curve.value(a) - curve.value(b)));
  const lines = rankedLines(order, width, curve);
  const ends = order.flatMap((row) => curve.interval(row) || [curve.value(row)]);
  const domain = logDomain(ends);
  const ticks = logTicks(domain, 4, tickSpecifier(ends));
  const points = order.map((row) => ({ ...pointOf(row, rankOf(row), curve, curve.value(row), row.id), wide: true }));
  const plot = {
    marginTop: RANK.top,
    marginBottom: RANK.gap,
    marginLeft: lines.left,
    marginRight: width - lines.right,
    x: { type: "log", domain },
    y: { type: "band", axis: null, domain: order.map((row) => row.id), padding: 0 },
    marks: [
      gridOf("x", ticks),
      axisOf("x", { title: curve.axis, anchor: "top", labelOffset: 40, ...ticks }),
      order.map((row, at) => rankedLine(row, at, lines, curve)),
    ],
  };
  const title = `${curve.ranked.title} at batch ${order[0].batch}`;
  const sorted = curve.ranked.highest ? "highest first" : "fastest first";
  const label = `${title}, ${curve.axis}, logarithmic, ${sorted}: ${counted(order.length, "row")}`;
  const more = order.length > LONG_LIST ? [`${order.length} rows: scroll, or filter them.`] : [];
  const said = { title, about: curve.ranked.about, label, notes: [...notes, ...more] };
  return { ...said, height: RANK.top + order.length * lines.height + RANK.gap, plot, points };
}

function rankOf(row) {
  return `rank-${row.id}`;
}

/** What stands beside each dot, and the room that it leaves. */
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

function rankedLine(row, at, lines, curve) {
  const series = rankOf(row);
  const colour = colourOf(row);
  const y = "id";
  const beside = { frameAnchor: "left", textAnchor: "end", dx: -RANK.gap };
  const above = { frameAnchor: "left", textAnchor: "start", dy: -15 };
  const text = { y, fill: "currentColor", stroke: "none" };
  return [
    Plot.ruleY([row], ofSeries(series, `rank-line ${colour}`, { y, stroke: "var(--rule)" })),
    Plot.text([row], ofSeries(series, `rank-name ${colour}`, { ...text, text: () => lines.names[at], ...(lines.stacked ? above : beside) })),
    whiskers(series, [row], curve, "y", y),
    dotsOf(series, [row], { x: curve.value, y, isBare: curve.isBare, facts: curve.facts }),
    Plot.text([row], ofSeries(series, `bar-text ${colour}`, { ...text, text: () => lines.texts[at], frameAnchor: "right", textAnchor: "end", dx: lines.end - lines.right })),
  ];
}
