// The frame of a chart: title, drawing, tooltip, keyboard. What is drawn comes from a model:
// {height, label, nodes, marks, legend, notes} or {empty}, and {title, about} where they depend on
// the rows. A mark is {x, y, row, series, title, facts}; one that is `wide` has a line to itself.

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
    this.marks = model.marks || [];
    this.at = -1;
    this.tip.hidden = true;
    this.controls.replaceChildren(...(this.definition.controls ? this.definition.controls() : []));
    this.legend.replaceChildren(...(model.legend || []));
    this.notes.replaceChildren(...(model.notes || []).map((text) => html("p", {}, text)));
    this.section.classList.toggle("is-empty", Boolean(model.empty));
    if (model.empty) return this.renderEmpty(model.empty);
    this.focusRing = svg("circle", { class: "focus-ring", r: 9, visibility: "hidden" });
    // Paper is narrower than the screen: there the drawing is scaled, by its view box.
    const size = { width, height: model.height, viewBox: `0 0 ${width} ${model.height}` };
    this.drawing = svg(
      "svg",
      { ...size, role: "img", "aria-label": model.label },
      model.nodes,
      this.focusRing,
    );
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
      speak([mark.title, ...mark.facts.map(([name, text]) => `${name} ${text}`)].join("; "));
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

/** A sentence about rows that a chart cannot show. */
function leftOut(number, reason) {
  return number ? [`${counted(number, "row")} not drawn: ${reason}.`] : [];
}
