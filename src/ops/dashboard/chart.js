// A chart of lines over time: drawn as SVG, read with the pointer, with the keyboard, or as a table.

import { attribute, el, svg, text } from "./dom.js";
import * as format from "./format.js";

const HEIGHT = 132;
const EDGE = { left: 52, right: 8, top: 8, bottom: 20 };
const TABLE_ROWS = 16;
/** Between two points further apart than this many steps there is a gap. */
const GAP = 2.5;

/** The next round number, of 1, 2, 5 (powers of two for bytes; half of a count is a count, too). */
function round(value, unit) {
  if (!(value > 0)) return { bytes: 1024, count: 2 }[unit] ?? 1;
  if (unit === "bytes") return 2 ** Math.ceil(Math.log2(value));
  if (unit === "count" && value <= 10) return [2, 4, 6, 10].find((top) => top >= value);
  const power = 10 ** Math.floor(Math.log10(value));
  const found = [1, 2, 5, 10].find((times) => times * power >= value * 0.9999);
  return found * power;
}

/** Distance of the marks of the time axis, in seconds. */
function marks(range, width) {
  const steps = [60, 300, 900, 3600, 7200, 14400, 21600, 43200, 86400, 172800];
  return steps.find((step) => range / step <= Math.max(2, width / 76)) ?? 172800;
}

export class Chart {
  /** `lines`: [{ name, kind }]; `unit`: rate, seconds, bytes, count. */
  constructor({ title, unit, lines }) {
    this.title = title;
    this.unit = unit;
    this.lines = lines;
    this.show = format[unit];
    this.points = [];
    this.from = 0;
    this.to = 1;
    this.step = 1;
    this.at = null;
    this.width = 0;
    this.build();
  }

  build() {
    this.values = this.lines.map(() => el("b", { class: "value" }, "–"));
    const legend = this.lines.map((line, at) =>
      el("li", { "data-line": line.kind ?? at },
        svg("svg", { class: "swatch", width: 18, height: 8, "aria-hidden": "true" }, svg("path", { d: "M1 4h16" })),
        el("span", {}, line.name), " ", this.values[at]));
    this.when = el("span", { class: "when" });
    this.paths = this.lines.map((line, at) => svg("path", { class: "line", "data-line": line.kind ?? at }));
    this.dots = this.lines.map((line, at) => svg("circle", { class: "dot", r: 3, "data-line": line.kind ?? at, visibility: "hidden" }));
    this.grid = svg("g", { class: "grid" });
    this.cursor = svg("path", { class: "cursor" });
    this.none = svg("text", { class: "none", "text-anchor": "middle" }, "nothing measured in this time");
    this.plot = svg("svg", { height: HEIGHT, "aria-hidden": "true" }, this.grid, ...this.paths, this.cursor, ...this.dots, this.none);
    this.reader = el("div", {
      class: "plot", tabindex: 0, role: "slider", "aria-orientation": "horizontal", "aria-valuemin": 0, "aria-valuemax": 0,
      "aria-valuenow": 0, "aria-valuetext": "nothing measured yet",
      "aria-label": `${this.title} over time; arrow keys read one moment after another`,
    }, this.plot);
    this.table = el("table", {});
    this.details = el("details", {}, el("summary", {}, "As a table", el("span", { class: "hidden" }, `: ${this.title}`)), el("div", { class: "scroll" }, this.table));
    this.element = el("figure", { class: "chart", "data-chart": this.title },
      el("figcaption", {}, el("h3", {}, this.title), this.when), el("ul", { class: "legend" }, ...legend), this.reader, this.details);
    this.details.addEventListener("toggle", () => this.fillTable());
    this.reader.addEventListener("pointermove", (event) => this.point(event));
    this.reader.addEventListener("pointerleave", () => this.read(null));
    this.reader.addEventListener("blur", () => this.read(null));
    this.reader.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(([entry]) => {
      this.width = Math.floor(entry.contentRect.width);
      this.draw();
    }).observe(this.reader);
  }

  /** New points, [{ at, values }], oldest first, for the time between `from` and `to`, one each `step` seconds. */
  set(points, from, to, step) {
    const kept = this.at === null ? null : this.points[this.at]?.at;
    Object.assign(this, { points, from, to, step });
    if (kept !== null && kept !== undefined) {
      // The same moment stays under the reader's finger.
      this.at = Math.max(0, points.findIndex((point) => point.at >= kept));
    }
    this.draw();
  }

  x(at) {
    return EDGE.left + ((at - this.from) / (this.to - this.from)) * (this.width - EDGE.left - EDGE.right);
  }

  y(value) {
    return HEIGHT - EDGE.bottom - (value / this.top) * (HEIGHT - EDGE.top - EDGE.bottom);
  }

  draw() {
    if (this.width < 80) return;
    attribute(this.plot, "width", this.width);
    let most = 0;
    let any = false;
    for (const point of this.points) {
      for (const value of point.values) {
        if (value !== null) {
          any = true;
          if (value > most) most = value;
        }
      }
    }
    this.top = round(most * 1.02, this.unit);
    this.drawGrid();
    this.paths.forEach((path, line) => attribute(path, "d", this.path(line)));
    attribute(this.none, "visibility", any ? "hidden" : "visible");
    attribute(this.none, "x", (this.width + EDGE.left) / 2);
    attribute(this.none, "y", HEIGHT / 2);
    this.readOut();
  }

  drawGrid() {
    const key = [this.width, this.top, Math.floor(this.from), Math.floor(this.to)].join();
    if (key === this.drawn) return;
    this.drawn = key;
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      const y = Math.round(this.y(share * this.top)) + 0.5;
      parts.push(svg("path", { d: `M${EDGE.left} ${y}H${this.width - EDGE.right}` }));
      parts.push(svg("text", { x: EDGE.left - 6, y: y + 3.5, "text-anchor": "end" }, this.show(share * this.top)));
    }
    const range = this.to - this.from;
    const step = marks(range, this.width);
    const zone = new Date(this.to * 1000).getTimezoneOffset() * 60;
    for (let at = Math.ceil((this.from - zone) / step) * step + zone; at <= this.to; at += step) {
      const x = Math.round(this.x(at)) + 0.5;
      if (x < EDGE.left + 14 || x > this.width - EDGE.right - 12) continue;
      parts.push(svg("path", { d: `M${x} ${HEIGHT - EDGE.bottom}v4` }));
      parts.push(svg("text", { x, y: HEIGHT - 5, "text-anchor": "middle" }, format.moment(at, range)));
    }
    this.grid.replaceChildren(...parts);
  }

  /** A line's path. Where nothing was measured it is broken; a point by itself is a short dash. */
  path(line) {
    const out = [];
    let last = null;
    let alone = false;
    const end = () => {
      if (alone) out.push("h1.5");
    };
    for (const point of this.points) {
      const value = point.values[line];
      if (value === null) {
        end();
        last = null;
        alone = false;
        continue;
      }
      const joined = last !== null && point.at - last <= this.step * GAP;
      if (!joined) end();
      out.push(`${joined ? "L" : "M"}${this.x(point.at).toFixed(1)} ${this.y(value).toFixed(1)}`);
      alone = !joined;
      last = point.at;
    }
    end();
    return out.join("");
  }

  point(event) {
    if (this.points.length === 0) return;
    const x = event.clientX - this.reader.getBoundingClientRect().left;
    let best = 0;
    let far = Infinity;
    this.points.forEach((point, at) => {
      const distance = Math.abs(this.x(point.at) - x);
      if (distance <= far) [far, best] = [distance, at];
    });
    this.read(best);
  }

  key(event) {
    const last = this.points.length - 1;
    if (last < 0) return;
    const now = this.at ?? last;
    const jump = event.shiftKey ? 10 : 1;
    const to = {
      ArrowLeft: now - jump, ArrowDown: now - jump, ArrowRight: now + jump, ArrowUp: now + jump,
      PageDown: now - 30, PageUp: now + 30, Home: 0, End: last,
    }[event.key];
    if (event.key === "Escape") {
      this.read(null);
    } else if (to !== undefined) {
      event.preventDefault();
      this.read(Math.min(last, Math.max(0, to)));
    }
  }

  /** Shows the values of a point; null: of the newest. */
  read(at) {
    this.at = at;
    this.readOut();
  }

  readOut() {
    const index = this.at ?? this.points.length - 1;
    const point = this.points[index];
    const reading = this.at !== null && point;
    text(this.when, reading ? format.full(point.at) : "");
    this.values.forEach((node, line) => text(node, this.show(point?.values[line] ?? null)));
    attribute(this.cursor, "d", reading ? `M${this.x(point.at).toFixed(1)} ${EDGE.top}V${HEIGHT - EDGE.bottom}` : "");
    this.dots.forEach((dot, line) => {
      const value = reading ? point.values[line] : null;
      attribute(dot, "visibility", value === null ? "hidden" : "visible");
      if (value !== null) {
        attribute(dot, "cx", this.x(point.at).toFixed(1));
        attribute(dot, "cy", this.y(value).toFixed(1));
      }
    });
    attribute(this.reader, "aria-valuemax", Math.max(0, this.points.length - 1));
    attribute(this.reader, "aria-valuenow", Math.max(0, index));
    if (point) {
      const said = this.lines.map((line, at) => `${line.name} ${this.show(point.values[at])}`);
      attribute(this.reader, "aria-valuetext", `${format.full(point.at)}: ${said.join(", ")}`);
    }
  }

  /** Some points of the whole range, as they are when the table is opened: one that changes while it is
   * read out is of no use. */
  fillTable() {
    if (!this.details.open) return;
    const every = Math.max(1, Math.ceil(this.points.length / TABLE_ROWS));
    const last = this.points.length - 1;
    const chosen = this.points.filter((_, at) => (last - at) % every === 0).reverse();
    const head = el("tr", {}, el("th", { scope: "col" }, "Time"), ...this.lines.map((line) => el("th", { scope: "col", class: "number" }, line.name)));
    const rows = chosen.map((point) => el("tr", {}, el("th", { scope: "row" }, format.full(point.at)),
      ...point.values.map((value) => el("td", { class: "number" }, this.show(value)))));
    this.table.replaceChildren(el("caption", {}, `${this.title}, newest first`), el("thead", {}, head), el("tbody", {}, ...rows));
  }
}
