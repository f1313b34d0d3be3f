// The page: one document a second in, figures, charts and lists out.

import { Chart } from "./chart.js";
import { CHARTS, MINUTE, RATE, held, requests, tokens } from "./charts.js";
import { attribute, byId, el, list, svg, text } from "./dom.js";
import { Feed } from "./feed.js";
import { Recent, limit, sum } from "./figures.js";
import * as format from "./format.js";
import { RANGES, past } from "./history.js";
import * as sections from "./sections.js";

const SPARK = 120;

/** A figure that stands in `/metrics` too; the browser's test compares. */
const exact = (figure, value, shown) => ({ figure, value, shown });

/** The tiles: what is large, what is small, and which chart's line is drawn behind. */
const TILES = [
  { name: "Requests", line: ["Requests", 0], make: (recent, document) => [format.rate(recent.rate(RATE, requests())),
    [exact("requests_total", requests()(document), format.whole), " in all, ", exact("streams_total", sum(document, "tidegate_streams_total"), format.whole), " streams"]] },
  { name: "At work", line: ["At work", 0], make: (recent, document) => [exact("exchanges_now", held(document, "server.exchanges_max"), format.count),
    ["of ", format.count(limit(document, "server.exchanges_max", "data")?.max), ", ", exact("waiting_now", held(document, "server.waiting_max"), format.count), " wait"]] },
  { name: "Latency", line: ["Latency", 0], make: (recent) => {
    const [half, most, nearly] = recent.quantiles(MINUTE, "tidegate_http_request_seconds", {}, [0.5, 0.95, 0.99]);
    return [format.seconds(half), [`95 %: ${format.seconds(most)}, 99 %: ${format.seconds(nearly)}`]];
  } },
  { name: "First token", line: ["First token", 0], make: (recent) => {
    const [half, most] = recent.quantiles(MINUTE, "tidegate_first_token_seconds", {}, [0.5, 0.95]);
    return [format.seconds(half), [`95 %: ${format.seconds(most)}`]];
  } },
  { name: "Failed", line: ["Requests", 2], make: (recent, document) => {
    const all = recent.growth(MINUTE, requests());
    const failed = recent.growth(MINUTE, requests(/^5/));
    const kind = failed > 0 ? (failed > all * 0.05 ? "bad" : "warn") : null;
    return [all > 0 ? format.percent(failed / all) : "–", [exact("failed_total", requests(/^5/)(document), format.whole), " in all, ",
      exact("streams_cut_total", sum(document, "tidegate_streams_cut_total"), format.whole), " cut"], kind];
  } },
  { name: "Tokens written", line: ["Tokens", 0], make: (recent, document) => [format.rate(recent.rate(RATE, tokens("output"))),
    [exact("tokens_output_total", tokens("output")(document), format.whole), " in all"]] },
  { name: "Connections", line: ["At work", 2], make: (recent, document) => [exact("connections_now", held(document, "server.connections_max"), format.count),
    ["of ", format.count(limit(document, "server.connections_max", "data")?.max)]] },
  { name: "Memory", line: ["Memory", 0], make: (recent, document) => [exact("resident_bytes", document.process.resident_bytes, format.bytes),
    [format.bytes(document.process.anonymous_bytes), " heap and stacks"]] },
  { name: "Descriptors", line: ["Descriptors and threads", 0], make: (recent, document) => [exact("open_fds", document.process.open_fds, format.count),
    ["of ", exact("max_fds", document.process.max_fds, format.count), ", ", exact("threads", document.process.threads, format.count), " threads"]] },
  { name: "Overload", make: (recent, document) => {
    const kinds = { normal: "good", busy: "warn", degraded: "bad", critical: "bad" };
    const took = sum(document, "tidegate_events_total", { kind: "overload_raised" });
    return [document.overload ?? "–", [took > 0 ? `raised ${format.whole(took)} times` : "never raised"], kinds[document.overload]];
  } },
];

/** Which configuration is in force, and what is about it. */
function configuration({ version, probation_seconds: left, knobs }) {
  const parts = [version ? `version ${version}` : "no version"];
  if (left !== null && left !== undefined) parts.push(`on probation for ${format.span(left)}`);
  if (knobs?.length > 0) parts.push(`${knobs.length} turned knob${knobs.length > 1 ? "s" : ""}`);
  return parts.join(", ");
}

/** How the process is, in a kind, a sign and words. */
const STATES = { healthy: ["good", "✓", "Healthy"], degraded: ["warn", "!", "Degraded"], unhealthy: ["bad", "✕", "Unhealthy"] };

class Page {
  constructor() {
    this.recent = new Recent(MINUTE + 1);
    this.live = CHARTS.map(() => []);
    this.charts = CHARTS.map((chart) => new Chart(chart));
    byId("charts").append(...this.charts.map((chart) => chart.element));
    this.tiles = TILES.map((tile) => this.tile(tile));
    this.limitsMore = new sections.More("limits-more", () => this.draw());
    this.eventsMore = new sections.More("events-more", () => this.draw());
    this.latest = null;
    this.lastSeen = null;
    this.range = RANGES[0];
    this.before = null;
    this.theme();
    this.feed = new Feed((document) => this.take(document), (state) => this.connection(state));
    byId("retry").addEventListener("click", () => this.feed.start());
    document.addEventListener("visibilitychange", () => this.draw());
    this.feed.start();
  }

  tile({ name }) {
    const spark = svg("path");
    const big = el("b", { class: "figure" });
    const small = el("span", { class: "detail" });
    const node = el("li", { "data-tile": name }, el("span", { class: "name" }, name), big, small,
      svg("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" }, spark));
    byId("tiles").append(node);
    return { node, big, small, spark };
  }

  take(document) {
    if (this.latest && document.number === this.latest.number && document.at === this.latest.at) return;
    this.recent.add(document);
    this.latest = document;
    this.lastSeen = Date.now();
    CHARTS.forEach((chart, at) => {
      const points = this.live[at];
      points.push({ at: document.at, values: chart.lines.map((line) => line.now(this.recent)) });
      while (points[0].at < document.at - RANGES[0][2]) points.shift();
    });
    if (this.before === null) this.remember();
    this.draw();
  }

  /** Asks for the time before this page. The choice of ranges is there once that has worked. */
  async remember() {
    const [name, , seconds, step] = this.range;
    clearTimeout(this.again);
    const to = this.latest.at;
    this.before ??= CHARTS.map(() => []);
    try {
      const points = await past(CHARTS, to - seconds, to, step);
      if (this.range[0] !== name) return;
      this.before = points;
      attribute(document.body, "data-range", name);
      if (!byId("ranges").querySelector("input")) {
        choice(byId("ranges"), "range", RANGES.map(([value, words]) => [value, words]), name, (value) => this.look(value));
      }
      this.draw();
    } catch {
      // Without a history there is what came since the page was opened.
    }
    // The last minutes go on by themselves; a longer time is asked for again, and a daemon that has just begun
    // has its first look at everything within seconds.
    const empty = this.before.every((points) => points.length === 0);
    if (empty || name !== RANGES[0][0]) this.again = setTimeout(() => this.remember(), empty ? 4000 : Math.max(30, step) * 1000);
  }

  /** Shows another time. */
  look(name) {
    this.range = RANGES.find(([have]) => have === name);
    this.remember();
  }

  /** What a chart shows: the history, and what came live after it. */
  points(at, to) {
    const [name, , seconds, step] = this.range;
    const before = this.before?.[at] ?? [];
    if (name !== RANGES[0][0]) return { points: before, from: to - seconds, step };
    const live = this.live[at];
    const older = before.filter((point) => point.at < live[0].at - RATE && point.at >= to - seconds);
    if (older.length > 0) return { points: [...older, ...live], from: to - seconds, step };
    // A page that has just begun has a minute or two to show, not a quarter of an hour.
    return { points: live, from: Math.max(to - seconds, Math.min(live[0].at, to - SPARK)), step: RATE };
  }

  /** Draws the latest document, when somebody looks. */
  draw() {
    const shown = this.latest;
    if (!shown || document.hidden) return;
    attribute(document.body, "data-number", shown.number);
    this.drawHead(shown, sections.alerts(shown));
    TILES.forEach((tile, at) => this.drawTile(tile, this.tiles[at], shown));
    this.charts.forEach((chart, at) => {
      const { points, from, step } = this.points(at, shown.at);
      chart.set(points, from, shown.at, step);
    });
    sections.upstreams(shown);
    sections.health(shown);
    sections.limits(shown, this.limitsMore);
    sections.cache(shown);
    sections.nodes(shown);
    sections.events(shown, this.eventsMore);
  }

  drawHead(shown, firing) {
    const { status } = shown.health;
    const [kind, sign, word] = shown.phase !== "ready" ? ["bad", "✕", shown.phase] : STATES[status] ?? ["warn", "!", status];
    attribute(byId("state"), "data-kind", kind);
    text(byId("state").firstElementChild, sign);
    text(byId("state-word"), word);
    document.title = `${firing > 0 ? `(${firing}) ` : ""}${word} · Tidegate`;
    const facts = [["up", format.span(shown.at - shown.process.start_time_seconds)], ["version", shown.version]];
    if (shown.config) facts.push(["config", configuration(shown.config)]);
    list(byId("facts"), facts, ([name]) => name, ([name]) => el("div", {}, el("dt", {}, name), el("dd")),
      (node, [, value]) => text(node.lastElementChild, String(value)));
  }

  drawTile(tile, { node, big, small, spark }, shown) {
    const [figure, detail, kind] = tile.make(this.recent, shown);
    put(big, [figure]);
    put(small, detail);
    attribute(node, "data-kind", kind ?? null);
    if (tile.line) {
      const [title, line] = tile.line;
      const points = this.live[CHARTS.findIndex((chart) => chart.title === title)];
      attribute(spark, "d", sparkline(points, line, shown.at));
    }
  }

  /** What is known of the connection, told aloud only when it is lost or found again. */
  connection({ state, next }) {
    clearInterval(this.ticking);
    const lost = state === "lost";
    attribute(document.body, "data-connection", state);
    attribute(document.body, "data-stale", lost ? "" : null);
    attribute(byId("banner"), "hidden", lost || state === "polling" ? null : "");
    attribute(byId("banner"), "data-kind", lost ? "bad" : "info");
    attribute(byId("retry"), "hidden", lost ? null : "");
    if (state === "polling") {
      text(byId("banner-text"), "All places for live pages are taken; this one asks every few seconds.");
    } else if (lost) {
      const since = this.lastSeen ? ` since ${format.clock(this.lastSeen / 1000)}` : "";
      text(byId("banner-text"), `No connection${since}. The figures below are old. It is tried again by itself.`);
      const tick = () => text(byId("retry"), `Try now (${Math.max(0, Math.ceil((next - Date.now()) / 1000))} s)`);
      tick();
      this.ticking = setInterval(tick, 500);
    }
  }

  theme() {
    const root = document.documentElement;
    let chosen = "auto";
    try {
      chosen = localStorage.getItem("tidegate-theme") ?? "auto";
    } catch {
      // A browser that keeps nothing follows the system.
    }
    const set = (value) => {
      attribute(root, "data-theme", value === "auto" ? null : value);
      try {
        localStorage.setItem("tidegate-theme", value);
      } catch {
        // The same.
      }
    };
    choice(byId("themes"), "theme", [["auto", "Auto"], ["light", "Light"], ["dark", "Dark"]], chosen, set);
    set(chosen);
  }
}

/** Puts texts and exact figures into an element. */
function put(parent, parts) {
  parts.forEach((part, at) => {
    let node = parent.childNodes[at];
    const plain = typeof part !== "object";
    if (!node || (node.nodeType === Node.TEXT_NODE) !== plain) {
      const fresh = plain ? document.createTextNode("") : el("span");
      if (node) node.replaceWith(fresh);
      else parent.append(fresh);
      node = fresh;
    }
    if (plain) {
      text(node, String(part));
    } else {
      attribute(node, "data-figure", part.figure);
      attribute(node, "data-value", String(part.value));
      text(node, part.shown(part.value));
    }
  });
  while (parent.childNodes.length > parts.length) parent.lastChild.remove();
}

/** One of a few choices, as radio buttons. */
function choice(fieldset, name, options, chosen, change) {
  for (const [value, label] of options) {
    const input = el("input", { type: "radio", name, value, id: `${name}-${value}`, checked: value === chosen });
    input.addEventListener("change", () => change(value));
    fieldset.append(input, el("label", { for: input.id }, label));
  }
}

/** The last two minutes of a line, without axes. */
function sparkline(points, line, to) {
  const shown = points.filter((point) => point.at >= to - SPARK && point.values[line] !== null);
  const most = Math.max(...shown.map((point) => point.values[line]), 0);
  if (most === 0) return "";
  const place = ({ at, values }) => `${(100 - ((to - at) / SPARK) * 100).toFixed(1)} ${(23 - (values[line] / most) * 20).toFixed(1)}`;
  return `M${shown.map(place).join("L")}`;
}

new Page();
