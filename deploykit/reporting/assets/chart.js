// The frame of a chart: title, drawing, tooltip, keyboard. Observable Plot draws it from a model:
// {height, label, plot, points, legend, notes} or {empty}, and {title, about} where they depend on
// the rows. `plot` are Plot's options. A point is {x, y, series, title, facts} in the units of its
// axes, for tooltip and keyboard; one that is `wide` has a line to itself.

const REACH = 40;

class Chart {
  constructor(definition) {
    this.definition = definition;
    this.marks = [];
    this.at = -1;
    this.controls = html("div", { class: "controls" });
    this.stage = html("div", {
      class: "stage",
      role: "group",
    });
    this.tip = html("div", { class: "tip", hidden: true });
    this.legend = html("div", { class: "legend" });
    this.notes = html("div", { class: "muted small" });
    this.heading = html("h3");
    this.about = html("p", { class: "about muted small" });
    this.section = html(
      "section",
      { class: "card", id: `chart-${definition.id}` },
      html("div", { class: "card-head" }, this.heading, this.controls),
      this.about,
      html("div", { class: "stage-box" }, this.stage),
      this.legend,
      this.notes,
    );
    this.listen();
  }

  listen() {
    const near = (event) => this.show(this.nearest(event), false);
    this.stage.addEventListener("pointermove", near);
    this.stage.addEventListener("pointerdown", near);
    this.stage.addEventListener("pointerleave", (event) => {
      // A finger that is lifted leaves, too; its tooltip stays to be read.
      if (event.pointerType === "mouse") this.show(-1, false);
    });
    this.stage.addEventListener("blur", () => this.show(-1, false));
    this.stage.addEventListener("keydown", (event) => this.key(event));
  }

  /** Room for the drawing inside the card. */
  width() {
    return Math.max(240, Math.floor(this.section.clientWidth - 32));
  }

  render(rows, width) {
    const model = this.definition.model(rows, width);
    const { title, about } = { ...this.definition, ...model };
    this.heading.textContent = title;
    this.about.textContent = about;
    this.stage.setAttribute("aria-label", `${title}: arrow keys read the figures`);
    this.marks = [];
    this.at = -1;
    this.tip.hidden = true;
    this.controls.replaceChildren(...(this.definition.controls ? this.definition.controls() : []));
    this.legend.replaceChildren(...(model.legend || []));
    this.notes.replaceChildren(...(model.notes || []).map((text) => html("p", {}, text)));
    this.empty = model.empty ? `${title}: ${model.empty}` : "";
    this.section.hidden = Boolean(model.empty);
    if (model.empty) return this.renderEmpty(model.empty);
    this.drawing = drawPlot(width, model);
    this.marks = (model.points || []).map((point) => ({
      ...point,
      x: toPixel(this.drawing, "x", point.x),
      y: toPixel(this.drawing, "y", point.y),
    }));
    this.focusRing = svg("circle", { class: "focus-ring", r: 9, visibility: "hidden" });
    this.drawing.append(this.focusRing);
    this.stage.tabIndex = 0;
    this.stage.replaceChildren(this.drawing, this.tip);
    return undefined;
  }

  renderEmpty(reason) {
    this.stage.removeAttribute("tabindex");
    this.stage.replaceChildren(html("p", { class: "empty" }, reason));
  }

  nearest(event) {
    const box = this.stage.getBoundingClientRect();
    const x = event.clientX - box.left;
    const y = event.clientY - box.top;
    const away = this.marks.map((mark) => Math.hypot(mark.wide ? 0 : mark.x - x, mark.y - y));
    const least = Math.min(...away);
    return least <= REACH ? away.indexOf(least) : -1;
  }

  key(event) {
    const target = this.target(event.key);
    if (target === undefined || !this.marks.length) return;
    event.preventDefault();
    this.show(target, true);
  }

  target(key) {
    const last = this.marks.length - 1;
    const moves = {
      ArrowRight: () => Math.min(last, this.at + 1),
      ArrowLeft: () => Math.max(0, this.at - 1),
      ArrowDown: () => this.otherSeries(1),
      ArrowUp: () => this.otherSeries(-1),
      Home: () => 0,
      End: () => last,
      Escape: () => -1,
    };
    return moves[key] && moves[key]();
  }

  otherSeries(step) {
    const current = this.marks[this.at];
    for (let at = this.at; current && this.marks[at]; at += step) {
      if (this.marks[at].series !== current.series) {
        const found = this.marks.findIndex((mark) => mark.series === this.marks[at].series);
        return found;
      }
    }
    return Math.max(0, this.at);
  }

  show(at, aloud) {
    this.at = at;
    const mark = this.marks[at];
    this.tip.hidden = !mark;
    this.emphasise(mark);
    if (!mark) return;
    const facts = mark.facts.flatMap(([name, text]) => [html("dt", {}, name), html("dd", {}, text)]);
    this.tip.replaceChildren(html("p", {}, mark.title), html("dl", {}, facts));
    this.place(mark);
    if (aloud) {
      speak(spoken(mark));
      const box = this.stage.parentElement;
      if (mark.y < box.scrollTop || mark.y > box.scrollTop + box.clientHeight) {
        box.scrollTop = mark.y - box.clientHeight / 2;
      }
    }
  }

  place(mark) {
    const room = this.stage.clientWidth - this.tip.offsetWidth;
    const left = mark.x + 14 > room ? mark.x - 14 - this.tip.offsetWidth : mark.x + 14;
    this.tip.style.left = `${Math.max(0, Math.min(room, left))}px`;
    const box = this.stage.parentElement;
    const lowest = box.scrollTop + box.clientHeight - this.tip.offsetHeight;
    const above = mark.y - 12 - this.tip.offsetHeight;
    // Below the mark, above it where that is too low, and over it where neither has room.
    const top = mark.y + 12 > lowest && above >= box.scrollTop ? above : mark.y + 12;
    this.tip.style.top = `${Math.max(0, Math.min(lowest, top))}px`;
  }

  emphasise(mark) {
    if (!this.drawing) return;
    this.drawing.classList.toggle("has-active", Boolean(mark));
    for (const group of this.drawing.querySelectorAll("[data-series]")) {
      group.classList.toggle("active", Boolean(mark) && group.dataset.series === mark.series);
    }
    this.focusRing.setAttribute("visibility", mark ? "visible" : "hidden");
    if (mark) {
      this.focusRing.setAttribute("cx", mark.x);
      this.focusRing.setAttribute("cy", mark.y);
    }
  }
}

function drawPlot(width, model) {
  const options = {
    width,
    height: model.height,
    className: "plot",
    ariaLabel: model.label,
    marginTop: 14,
    marginRight: 14,
    marginBottom: 44,
    marginLeft: 70,
    ...model.plot,
  };
  const drawing = Plot.plot(options);
  drawing.setAttribute("role", "img");
  makeRoom(drawing);
  return drawing;
}

/** Takes away labels of ticks that have no room beside the one before. */
function makeRoom(drawing) {
  for (const axis of ["x", "y"]) {
    let last = null;
    for (const text of drawing.querySelectorAll(`[aria-label="${axis}-axis tick label"] text`)) {
      const { e, f } = text.transform.baseVal.consolidate().matrix;
      const [at, half] = axis === "x" ? [e, textWidth(text.textContent) / 2 + 4] : [f, 8];
      if (last && Math.abs(at - last.at) < half + last.half) text.remove();
      else last = { at, half };
    }
  }
}

function toPixel(drawing, axis, value) {
  const scale = drawing.scale(axis);
  return scale.apply(value) + (scale.bandwidth || 0) / 2;
}

/** Marks of one series have its colour, and stand out together when it is read. */
function ofSeries(series, className, options) {
  return {
    ...options,
    className,
    fill: options.fill || "var(--series)",
    stroke: options.stroke || "var(--series)",
    render: (index, scales, values, dimensions, context, next) => {
      const group = next(index, scales, values, dimensions, context);
      group.dataset.series = series;
      return group;
    },
  };
}

/** An axis with its title. `text` and not `tickFormat`: of a logarithmic axis Plot drops some. */
function axisOf(direction, options) {
  const { title, anchor, ticks, text, ...rest } = options;
  const axis = direction === "x" ? Plot.axisX : Plot.axisY;
  const place = { x: { labelOffset: 38 }, y: { labelOffset: 60 } }[direction];
  return axis(ticks, { anchor: anchor || { x: "bottom", y: "left" }[direction], text, label: title, labelAnchor: "center", labelArrow: "none", tickSize: 0, tickPadding: 8, ...place, ...rest });
}

function gridOf(direction, { ticks }) {
  const grid = direction === "x" ? Plot.gridX : Plot.gridY;
  return grid(ticks, { stroke: "var(--rule)", strokeOpacity: 1 });
}

/** The ticks of a logarithmic axis that D3 would label, and how they are written. */
function logTicks(domain, wanted, specifier) {
  const scale = d3.scaleLog().domain(domain);
  const every = scale.ticks();
  const label = scale.tickFormat(wanted);
  const ticks = every.length <= wanted ? every : every.filter((tick) => label(tick));
  return { ticks, text: d3.format(specifier) };
}

function linearTicks(domain, wanted, text = String) {
  return { ticks: d3.ticks(...domain, wanted), text };
}

/** Thousands have their letter, other numbers are written out. */
function tickSpecifier(values) {
  return d3.max(values) >= 1e4 ? "~s" : "~r";
}

/** Names beside dots, right or left, as far as they cover no other and stay in the frame. */
function dotNames(points, name) {
  const place = (index, scales, values, dimensions, context, next) => {
    const group = next(index, scales, values, dimensions, context);
    const taken = Array.from(index, (at) => ({ left: values.x[at] - 6, right: values.x[at] + 6, y: values.y[at] }));
    const frame = [dimensions.marginLeft, dimensions.width - dimensions.marginRight];
    [...group.querySelectorAll("text")].forEach((text, at) => {
      const [x, y] = [values.x[index[at]], values.y[index[at]]];
      const room = textWidth(name(points[index[at]])) + 9;
      const fits = (box) =>
        box.left >= frame[0] && box.right <= frame[1] &&
        !taken.some((other) => box.left < other.right && other.left < box.right && Math.abs(other.y - y) < 13);
      const box = [{ left: x + 7, right: x + room }, { left: x - room, right: x - 7 }].find(fits);
      if (!box) return text.remove();
      if (box.left < x) {
        text.setAttribute("text-anchor", "end");
        text.setAttribute("transform", `translate(${x - 9},${y})`);
      }
      return taken.push({ ...box, y });
    });
    return group;
  };
  return Plot.text(points, { x: "x", y: "y", text: name, textAnchor: "start", dx: 9, className: "dot-name", render: place });
}

/** What a point says in one sentence: its name for screen readers. */
function spoken(point) {
  return [point.title, ...point.facts.map(([name, text]) => `${name} ${text}`)].join("; ");
}

/** Both ends of positive figures, with room on each side. */
function logDomain(values, room = 1.12) {
  const [low, high] = d3.extent(values);
  return low === high ? [low / 2, high * 2] : [low / room, high * room];
}

const ruler = document.createElement("canvas").getContext("2d");
ruler.font = `12px ${getComputedStyle(document.body).fontFamily}`;

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

function swatch(className, ...shapes) {
  const box = { class: `swatch ${className}`, width: 26, height: 14, "aria-hidden": "true" };
  return svg("svg", box, ...shapes);
}

/** A sentence about rows that a chart cannot show. */
function leftOut(number, reason) {
  return number ? [`${counted(number, "row")} not drawn: ${reason}.`] : [];
}
