// What each chart shows: a line's value now, from the last documents (`now`), and what the history is asked
// for the time before (`past`: a question to /history, and which of its series count).

import { limit, sum } from "./figures.js";

/** Rates are those of the last seconds, percentiles those of the last minute. */
export const RATE = 5;
export const MINUTE = 60;

export const requests = (status) => (document) => sum(document, "tidegate_http_requests_total", status && { status });
export const tokens = (direction) => (document) => sum(document, "tidegate_tokens_total", { direction });
export const held = (document, name) => limit(document, name, "data")?.now ?? null;

/** A line of a counter: how much of it a second. `label` tells its series apart, `value` says which count. */
function counted(name, metric, label, value, kind) {
  const figure = (document) => sum(document, metric, { [label]: value });
  return { name, kind, now: (recent) => recent.rate(RATE, figure), past: { metric, by: label, fn: "rate", pick: (labels) => value.test(labels[label]) } };
}

/** Median and the two percentiles that people ask for. */
function percentiles(metric) {
  return [["median", 0.5, "p50"], ["95 %", 0.95, "p95"], ["99 %", 0.99, "p99"]].map(([name, share, fn]) => (
    { name, now: (recent) => recent.quantiles(MINUTE, metric, {}, [share])[0], past: { metric, by: "", fn } }));
}

/** A line of what a limit of the data plane holds. */
function holds(name, limited) {
  const labels = [`limit=${limited}`, "owner=data"];
  return { name, now: (recent) => held(recent.last(), limited), past: { metric: "tidegate_limit_now", labels, by: "", fn: "max" } };
}

/** A line of a figure of the process. */
function figure(name, key, metric) {
  return { name, now: (recent) => recent.last().process[key], past: { metric, by: "", fn: "max" } };
}

const REQUESTS = "tidegate_http_requests_total";
const TOKENS = "tidegate_tokens_total";
const CACHE = "tidegate_cache_requests_total";

export const CHARTS = [
  { title: "Requests", unit: "rate", lines: [
    counted("answered", REQUESTS, "status", /^[23]/), counted("refused", REQUESTS, "status", /^4/), counted("failed", REQUESTS, "status", /^5/, "bad")] },
  { title: "Latency", unit: "seconds", lines: percentiles("tidegate_http_request_seconds") },
  { title: "First token", unit: "seconds", lines: percentiles("tidegate_first_token_seconds") },
  { title: "At work", unit: "count", lines: [
    holds("exchanges", "server.exchanges_max"), holds("waiting", "server.waiting_max"), holds("connections", "server.connections_max")] },
  { title: "Tokens", unit: "rate", lines: [counted("written", TOKENS, "direction", /^output$/), counted("read", TOKENS, "direction", /^input$/)] },
  { title: "Cache", unit: "rate", lines: [counted("from cache", CACHE, "result", /^(hit|stale|coalesced)$/), counted("asked for", CACHE, "result", /^miss$/)] },
  { title: "Memory", unit: "bytes", lines: [
    figure("resident", "resident_bytes", "process_resident_memory_bytes"), figure("heap and stacks", "anonymous_bytes", "tidegate_process_anonymous_bytes")] },
  { title: "Descriptors and threads", unit: "count", lines: [figure("descriptors", "open_fds", "process_open_fds"), figure("threads", "threads", "process_threads")] },
];
