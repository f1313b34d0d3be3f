//! What the data plane counts. Every label value is from a closed set, or from the configuration.

use std::sync::Arc;
use std::time::Duration;

use crate::base::metrics::{Counter, Histogram, Limit, Registry, Unit};

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
    /// For one of `server.exchanges_max`.
    pub wait_slot: Arc<Histogram>,
    /// By row of the route table; the last one is for everything else.
    routes: Vec<RouteMetrics>,
}

/// What is counted of each route, looked up once: this is on every request's way.
struct RouteMetrics {
    pattern: &'static str,
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

    /// The first content of a stream was sent.
    pub fn first_token(&self, after: Duration) {
        self.streams.inc();
        self.first_token.observe(after);
    }
}
