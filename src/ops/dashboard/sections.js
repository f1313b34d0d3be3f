// The lists below the charts: upstreams, limits, cache, health, alerts, events.

import { attribute, badge, byId, el, list, setBadge, text } from "./dom.js";
import { limit, sum } from "./figures.js";
import * as format from "./format.js";

const LIMITS_SHOWN = 12;
const EVENTS_SHOWN = 8;

/** A bar: how much of `max` is held, with a tick at the most so far. */
function bar() {
  return el("div", { class: "bar", role: "meter", "aria-valuemin": 0 }, el("i", { class: "fill" }), el("i", { class: "tick" }));
}

function setBar(node, name, { now, high, max, show, calm }) {
  const share = (value) => (max > 0 ? Math.min(1, value / max) : 0);
  const held = now ?? high;
  node.firstElementChild.style.width = `${(share(held) * 100).toFixed(2)}%`;
  node.lastElementChild.style.left = `${(share(high) * 100).toFixed(2)}%`;
  attribute(node, "data-kind", calm ? "good" : share(held) >= 0.9 ? "bad" : share(held) >= 0.7 ? "warn" : "good");
  attribute(node, "aria-label", name);
  attribute(node, "aria-valuemax", max);
  attribute(node, "aria-valuenow", held);
  attribute(node, "aria-valuetext", `${show(held)} of ${show(max)}, at most ${show(high)} so far`);
}

/** A button that shows all rows of a list, or the first of them again. */
export class More {
  constructor(id, redraw) {
    this.button = byId(id);
    this.all = false;
    this.button.addEventListener("click", () => {
      this.all = !this.all;
      redraw();
    });
  }

  cut(items, shown, what) {
    attribute(this.button, "hidden", items.length > shown ? null : "");
    attribute(this.button, "aria-expanded", String(this.all));
    text(this.button, this.all ? `The first ${shown} only` : `All ${items.length} ${what}`);
    return this.all ? items : items.slice(0, shown);
  }
}

const STATES = { closed: ["good", "closed"], half_open: ["warn", "half open"], open: ["bad", "open"] };

/** What a breaker does, as a kind and a word. */
function breakerState(row) {
  if (row.forced) return ["warn", `forced ${row.forced}`];
  if (row.cooling_down_seconds) return ["warn", `asked for ${format.span(row.cooling_down_seconds)}`];
  const [kind, word] = STATES[row.state] ?? ["idle", row.state];
  return [kind, row.state === "open" && row.next_try_seconds ? `${word}, next try in ${format.span(row.next_try_seconds)}` : word];
}

/** One row for each upstream, and one below it for each model with a breaker of its own. */
function upstreamRows(document) {
  const names = new Set(document.limits.filter((row) => row.limit === "upstream.concurrency_max").map((row) => row.owner));
  document.breakers.forEach((row) => names.add(row.upstream));
  const rows = [];
  for (const name of [...names].sort()) {
    const own = document.breakers.filter((row) => row.upstream === name);
    const address = own.find((row) => row.model === null || row.model === "");
    const attempts = (outcome) => sum(document, "tidegate_upstream_attempts_total", { upstream: name, outcome });
    const skipped = /^(skipped|busy|unsuitable)/;
    rows.push({
      key: name, name, model: false, state: address ? breakerState(address) : STATES.closed,
      running: limit(document, "upstream.concurrency_max", name), waiting: limit(document, "upstream.waiting_max", name),
      answered: attempts("ok"), failed: attempts(/^(?!ok$)/) - attempts(skipped), failure: address?.last_failure,
    });
    for (const row of own.filter((each) => each !== address)) {
      rows.push({
        key: `${name}/${row.model}`, name: row.model, model: true, state: breakerState(row),
        failure: row.last_failure,
      });
    }
  }
  return rows;
}

export function upstreams(document) {
  const table = byId("upstreams");
  const rows = upstreamRows(document);
  attribute(table, "hidden", rows.length === 0 ? "" : null);
  attribute(table.nextElementSibling, "hidden", rows.length === 0 ? null : "");
  attribute(byId("upstreams-more"), "hidden", document.breakers_left_out > 0 ? null : "");
  text(byId("upstreams-more"), `${document.breakers_left_out} more, all closed, are at /breakers.`);
  list(table.tBodies[0], rows, (row) => row.key, () => el("tr", {},
    el("th", { scope: "row" }), el("td", {}, badge()), el("td", {}, el("div", { class: "held" }, bar(), el("span", { class: "amount" }))),
    el("td", { class: "wide number" }), el("td", { class: "wide number" }), el("td", { class: "wide failure" })),
  (node, row) => {
    const [name, state, held, answered, failed, failure] = node.children;
    attribute(node, "class", row.model ? "model" : null);
    text(name, row.name);
    setBadge(state.firstElementChild, ...row.state);
    attribute(held.firstElementChild, "hidden", row.running ? null : "");
    if (row.running) {
      const { now, high_water: high, max } = row.running;
      setBar(held.firstElementChild.firstElementChild, `Exchanges of ${row.name}`, { now, high, max, show: format.count });
      const waiting = row.waiting?.now ? `, ${format.count(row.waiting.now)} wait` : "";
      text(held.firstElementChild.lastElementChild, `${format.count(now)} of ${format.count(max)}${waiting}`);
    }
    // What is counted since the start is counted for each upstream, not for each model.
    text(answered, row.model ? "" : format.whole(row.answered));
    text(failed, row.model ? "" : format.whole(row.failed));
    text(failure, row.failure ? `${row.failure.code}, ${format.span(row.failure.seconds_ago)} ago` : "–");
    attribute(failure, "title", row.failure?.message ?? null);
  });
}

/** Whether a limit is of a history, whose oldest entry makes room: full is how it should be. */
const forgets = (row) => /^(the )?oldest/.test(row.consequence);

/** How close a limit came to its bound. */
const closeness = (row) => (row.max > 0 && !forgets(row) ? Math.max(row.now ?? 0, row.high_water) / row.max : 0);

export function limits(document, more) {
  const rows = document.limits.filter((row) => row.max > 0)
    .sort((a, b) => closeness(b) - closeness(a) || (a.limit + a.owner < b.limit + b.owner ? -1 : 1));
  list(byId("limits"), more.cut(rows, LIMITS_SHOWN, "limits"), (row) => `${row.limit} ${row.owner}`, () => el("li", {},
    el("span", { class: "limit-name" }, el("b"), " ", el("span", { class: "owner" })), bar(),
    el("span", { class: "amount" }), el("span", { class: "consequence" })),
  (node, row) => {
    const [name, meter, amount, consequence] = node.children;
    const show = row.unit === "bytes" ? format.bytes : format.count;
    text(name.firstElementChild, row.limit);
    text(name.lastElementChild, row.owner);
    attribute(node, "data-limit", `${row.limit} ${row.owner}`);
    setBar(meter, `${row.limit} ${row.owner}`.trim(), { now: row.now, high: row.high_water, max: row.max, show, calm: forgets(row) });
    text(amount, row.each ? `largest ${show(row.high_water)} of ${show(row.max)}` : `${show(row.now)} of ${show(row.max)}`);
    const hit = row.refused > 0 ? `hit ${format.count(row.refused)} times; ` : "";
    text(consequence, `${hit}at the limit: ${row.consequence}`);
    attribute(consequence, "data-kind", row.refused > 0 ? "warn" : null);
  });
}

export function cache(document) {
  attribute(byId("cache").closest("section"), "hidden", document.cache.length === 0 ? "" : null);
  list(byId("cache").tBodies[0], document.cache, (row) => row.namespace, () => el("tr", {},
    el("th", { scope: "row" }), ...Array.from({ length: 4 }, () => el("td", { class: "number" }))),
  (node, row) => {
    const [name, served, asked, entries, size] = node.children;
    const hits = row.hits + row.stale + row.coalesced;
    const all = hits + row.misses;
    text(name, row.namespace);
    text(served, all > 0 ? format.percent(hits / all) : "–");
    text(asked, format.count(all));
    text(entries, format.count(row.entries));
    text(size, format.bytes(row.bytes));
  });
}

/** What there is on WebSocket, by the limits that bound it. */
const NODES = [
  ["Connections", "nodes.connections_max", "nodes_connections_now"],
  ["Nodes connected", "nodes.connected_max", "nodes_connected_now"],
  ["Devices that ask to be paired", "nodes.pairings_max", "nodes_pairings_now"],
  ["Commands under way", "nodes.pending_max", "nodes_pending_now"],
  ["Runs", "nodes.runs_max", "nodes_runs_now"],
];

/** Shown once there was a connection, or a device asks to be paired. */
export function nodes(document) {
  const rows = NODES.map(([name, key, figure]) => ({ name, figure, limit: limit(document, key, "") })).filter((row) => row.limit);
  const used = rows.some((row) => row.limit.high_water > 0);
  attribute(byId("nodes").closest("section"), "hidden", used ? null : "");
  if (!used) return;
  list(byId("nodes").tBodies[0], rows, (row) => row.name, () => el("tr", {},
    el("th", { scope: "row" }), el("td", {}, el("div", { class: "held" }, bar(), el("span", { class: "amount" }, el("span"), el("span")))),
    el("td", { class: "number" })),
  (node, row) => {
    const { now, high_water: high, max } = row.limit;
    const [name, held, most] = node.children;
    const [meter, amount] = held.firstElementChild.children;
    text(name, row.name);
    setBar(meter, row.name, { now, high, max, show: format.count });
    attribute(amount.firstElementChild, "data-figure", row.figure);
    attribute(amount.firstElementChild, "data-value", String(now));
    text(amount.firstElementChild, format.count(now));
    text(amount.lastElementChild, ` of ${format.count(max)}`);
    text(most, format.count(high));
  });
  const dropped = (kind) => sum(document, "tidegate_nodes_events_dropped_total", { class: kind });
  const failed = sum(document, "tidegate_nodes_invocations_total", { outcome: /^(timeout|gone|unsent)$/ });
  const dead = sum(document, "tidegate_nodes_ended_total", { reason: "dead" });
  text(byId("nodes-told"), `Since the start: ${format.whole(dropped("telemetry") + dropped("control"))} events dropped for slow ones, `
    + `${format.whole(failed)} commands without an answer, ${format.whole(dead)} connections found dead.`);
}

const CHECKS = { ok: "good", degraded: "warn", pending: "idle", failed: "bad" };

export function health({ health: { checks, threads } }) {
  const line = () => el("li", {}, badge(), el("span", { class: "what" }), el("span", { class: "why" }));
  list(byId("checks"), checks, (row) => row.name, line, (node, row) => {
    const last = row.last_error && row.state === "ok" ? `last fault ${format.span(row.last_error_age_seconds)} ago: ${row.last_error}` : "";
    setBadge(node.children[0], CHECKS[row.state] ?? "idle", row.state);
    text(node.children[1], row.name);
    text(node.children[2], row.reason ? `${row.reason} (for ${format.span(row.since_seconds)})` : last);
  });
  const late = threads.late.map((row) => ({ kind: "bad", word: "silent", what: row.name, why: row.why }));
  const fine = threads.watched - late.length;
  const all = [...late, { kind: "good", word: "ok", what: "watched threads", why: `${fine} of ${threads.watched} go on` }];
  list(byId("threads"), all, (row) => row.what, line, (node, row) => {
    setBadge(node.children[0], row.kind, row.word);
    text(node.children[1], row.what);
    text(node.children[2], row.why);
  });
}

const SEVERITIES = { critical: "bad", warning: "warn", info: "info" };
const ORDER = ["critical", "warning", "info"];

/** Alerts that fire, the gravest first, then those that may fire soon. A new one is said aloud; a figure
 * that changes is not. Gives the number of those that fire. */
export function alerts({ alerts: view }) {
  const rank = (row) => (row.state === "firing" ? 0 : 10) + (row.silenced_by || row.muted_by ? 5 : 0) + ORDER.indexOf(row.severity);
  const rows = [...(view?.alerts ?? [])].sort((a, b) => rank(a) - rank(b));
  const lost = view?.undelivered > 0 || view?.lost > 0;
  const firing = rows.filter((row) => row.state === "firing" && !row.silenced_by && !row.muted_by).length;
  attribute(byId("alerts-section"), "hidden", rows.length > 0 || lost ? null : "");
  attribute(byId("alerts-section"), "data-firing", firing > 0 ? firing : null);
  const line = () => el("li", {}, badge(), el("span", { class: "what" }), el("span", { class: "why" }));
  const told = rows.map((row) => {
    const calm = row.state !== "firing" || row.silenced_by || row.muted_by;
    const labels = Object.entries(row.labels ?? {}).filter(([name]) => !["alertname", "severity"].includes(name)).map(([name, value]) => `${name} ${value}`);
    const quiet = row.silenced_by ? "silenced" : row.muted_by ? `muted by ${row.muted_by}` : !view.channels?.length ? "there is no channel to tell it" : row.told ? "told" : "not told yet";
    return {
      key: row.fingerprint, kind: calm ? "idle" : SEVERITIES[row.severity] ?? "warn", word: row.state === "firing" ? row.severity : row.state,
      what: row.text || row.summary, why: [row.text ? row.summary : "", row.rule, ...labels, `since ${format.full(new Date(row.since).getTime() / 1000)}`, row.state === "firing" ? quiet : ""].filter(Boolean).join(" · "),
    };
  });
  if (lost) {
    told.push({ key: "undelivered", kind: "warn", word: "delivery", what: `${view.undelivered} alerts wait to be delivered, ${view.lost} were lost`,
      why: view.channels.filter((channel) => channel.failing_since).map((channel) => `${channel.name}: ${channel.why ?? "failing"}`).join(" · ") });
  }
  list(byId("alerts"), told, (row) => row.key, line, (node, row) => {
    setBadge(node.children[0], row.kind, row.word);
    text(node.children[1], row.what);
    text(node.children[2], row.why);
  });
  return firing;
}

const LEVELS = { error: "bad", warn: "warn", info: "info", debug: "idle", trace: "idle" };

export function events(document, more) {
  const rows = more.cut(document.events, EVENTS_SHOWN, "events");
  attribute(byId("events-more").nextElementSibling, "hidden", document.events.length === 0 ? null : "");
  list(byId("events"), rows, (row) => `${row.at} ${row.number}`, (row) => {
    const at = new Date(row.at).getTime() / 1000;
    return el("li", {}, badge([LEVELS[row.level] ?? "idle", row.level]), el("time", { datetime: row.at }, format.full(at)),
      el("span", { class: "what" }, row.kind.replaceAll("_", " ")), el("span", { class: "why" }, [row.subject, row.detail].filter(Boolean).join(": ")));
  }, () => {});
}
