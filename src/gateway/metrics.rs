//! What the data plane counts. Every label value is from a closed set, or from the configuration.

use std::sync::Arc;
use std::time::Duration;

use crate::base::metrics::{Counter, Histogram, Limit, Registry, Unit};

use super::gen_ai::GenAi;
use super::routes;

/// The data plane's counters.
pub struct Metrics {
    registry: Arc<Registry>,
    first_token: Arc<Histogram>,
    /// Streams that ended with an error after their first content.
    pub streams_cut: Arc<Counter>,
    /// `server.query_max`, which the gateway keeps in step.
    pub query: Arc<Limit>,
    /// Streams that began.
    pub streams: Arc<Counter>,
    /// Answers that a later link of a chain gave.
    pub fallbacks: Arc<Counter>,
    /// Keep-alive events sent because nothing else could be.
    pub keep_alives: Arc<Counter>,
    /// Time that requests waited as data for an upstream's permit.
    pub wait_upstream: Arc<Histogram>,
    /// For a moment within an upstream's requests or tokens a minute.
    pub wait_quota: Arc<Histogram>,
    /// For the answer to the same request of another client.
    pub wait_answer: Arc<Histogram>,
    /// What model calls came to.
    pub calls: GenAi,
    /// For one of `server.exchanges_max`.
    pub wait_slot: Arc<Histogram>,
    /// Model calls that were not simply answered, and those of them that failed.
    others: Counter,
    failures: Counter,
    /// By row of the route table; the last one is for everything else.
    routes: Vec<RouteMetrics>,
}

/// What is counted of each route, looked up once: this is on every request's way.
struct RouteMetrics {
    pattern: &'static str,
    /// Whether it is for model calls.
    calls: bool,
    ok: Arc<Counter>,
    seconds: Arc<Histogram>,
}

const REQUESTS: (&str, &str) =
    ("tidegate_http_requests_total", "Requests, by route, status and error code (ok: none).");
const SECONDS: (&str, &str) =
    ("tidegate_http_request_seconds", "Time from a request's first byte to the end of its answer.");

impl Metrics {
    /// Registers them.
    pub fn new(registry: Arc<Registry>) -> Arc<Self> {
        let counter = |name, help| registry.counter(name, help, &[]);
        let route = |pattern| RouteMetrics {
            pattern,
            calls: routes::calls(pattern),
            ok: registry.counter(
                REQUESTS.0,
                REQUESTS.1,
                &[("route", pattern), ("status", "200"), ("code", "ok")],
            ),
            seconds: registry.histogram(SECONDS.0, SECONDS.1, &[("route", pattern)]),
        };
        let waits = |what| {
            let help = "Time that requests waited as data, by what for.";
            registry.histogram("tidegate_wait_seconds", help, &[("for", what)])
        };
        Arc::new(Metrics {
            wait_upstream: waits("upstream"),
            wait_quota: waits("quota"),
            wait_answer: waits("answer"),
            wait_slot: waits("slot"),
            calls: GenAi::new(&registry),
            first_token: registry.histogram(
                "tidegate_first_token_seconds",
                "Time from a request's first byte to the first content of its stream.",
                &[],
            ),
            streams_cut: counter(
                "tidegate_streams_cut_total",
                "Streams that ended with an in-band error after their first content.",
            ),
            query: registry.limit_each(
                Unit::Bytes,
                "server.query_max",
                "data",
                0,
                "414 query_too_long",
            ),
            streams: counter("tidegate_streams_total", "Streams whose first content was sent."),
            fallbacks: counter(
                "tidegate_fallbacks_total",
                "Requests that were answered by a later link of their chain.",
            ),
            keep_alives: counter(
                "tidegate_keep_alive_events_total",
                "Keep-alive events sent to clients because nothing else could be.",
            ),
            others: Counter::default(),
            failures: Counter::default(),
            routes: routes::patterns().map(route).collect(),
            registry,
        })
    }

    /// A request ended. `route` is a row's pattern, `code` an error's code or `ok`.
    pub fn request(&self, route: &'static str, status: u16, code: &str, took: Duration) {
        let known = self.routes.iter().find(|known| known.pattern == route);
        match known {
            Some(known) if status == 200 && code == "ok" => known.ok.inc(),
            _ => {
                if known.is_some_and(|known| known.calls) {
                    self.others.inc();
                    self.failures.add(failure(status, code).into());
                }
                let status = itoa::Buffer::new().format(status).to_owned();
                let labels = [("route", route), ("status", &*status), ("code", code)];
                self.registry.counter(REQUESTS.0, REQUESTS.1, &labels).inc();
            }
        }
        match known {
            Some(known) => known.seconds.observe(took),
            None => {
                let labels = [("route", route)];
                self.registry.histogram(SECONDS.0, SECONDS.1, &labels).observe(took);
            }
        }
    }

    /// Model calls that ended, and those of them that failed for a reason that lies with us or an
    /// upstream: not with the client, and not with a crowd of them.
    pub fn calls(&self) -> (u64, u64) {
        let ok = self.routes.iter().filter(|known| known.calls).map(|known| known.ok.value());
        (ok.sum::<u64>() + self.others.value(), self.failures.value())
    }

    /// The first content of a stream was sent.
    pub fn first_token(&self, after: Duration) {
        self.streams.inc();
        self.first_token.observe(after);
    }
}

/// Whether an answer is a failure that a configuration may be to blame for. Refused keys and wrong
/// requests are the clients', and too many of them at once too.
fn failure(status: u16, code: &str) -> bool {
    const CROWD: [&str; 5] =
        ["overloaded", "connections_full", "bodies_full", "draining", "upstream_rejected"];
    let gone = matches!(code, "client_gone" | "client_stalled");
    let in_band = status == 200 && code != "ok";
    let blamed = status >= 500 || in_band || code.starts_with("upstream_");
    blamed && !gone && !CROWD.contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_those_that_a_configuration_may_be_to_blame_for() {
        let metrics = Metrics::new(Arc::new(Registry::default()));
        let chat = "/v1/chat/completions";
        let mut failures = 0;
        for (status, code, failed) in [
            (200, "ok", 0),
            (502, "upstream_connect", 1),
            (500, "internal", 1),
            (200, "upstream_cut", 1),
            (404, "upstream_model_not_found", 1),
            (503, "waiting_timeout", 1),
            (401, "unauthorized", 0),
            (404, "model_not_found", 0),
            (422, "upstream_rejected", 0),
            (503, "overloaded", 0),
            (499, "client_gone", 0),
        ] {
            let before = metrics.calls();
            metrics.request(chat, status, code, Duration::ZERO);
            failures += failed;
            assert_eq!(metrics.calls(), (before.0 + 1, failures), "{status} {code}");
        }
        let before = metrics.calls();
        metrics.request("/v1/models", 500, "internal", Duration::ZERO);
        assert_eq!(metrics.calls(), before, "lists are no model calls");
    }
}
