//! What the data plane counts. Every label value is from a closed set, or from the configuration.

use std::sync::Arc;
use std::time::Duration;

use crate::base::error::Error;
use crate::base::metrics::{Counter, Histogram, Registry};

/// The data plane's counters.
pub struct Metrics {
    registry: Arc<Registry>,
    first_token: Arc<Histogram>,
    /// Streams that ended with an error after their first content.
    pub streams_cut: Arc<Counter>,
    /// Streams that began.
    pub streams: Arc<Counter>,
    /// Answers that a later link of a chain gave.
    pub fallbacks: Arc<Counter>,
    /// Keep-alive events sent because nothing else could be.
    pub keep_alives: Arc<Counter>,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: Arc<Registry>) -> Arc<Self> {
        let counter = |name, help| registry.counter(name, help, &[]);
        Arc::new(Metrics {
            first_token: registry.histogram(
                "tidegate_first_token_seconds",
                "Time from a request's first byte to the first content of its stream.",
                &[],
            ),
            streams_cut: counter(
                "tidegate_streams_cut_total",
                "Streams that ended with an in-band error after their first content.",
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
            registry,
        })
    }

    /// A request ended. `route` is a row's pattern, `code` an error's code or `ok`.
    pub fn request(&self, route: &str, status: u16, code: &str, took: Duration) {
        let status = itoa::Buffer::new().format(status).to_owned();
        let labels = [("route", route), ("status", &*status), ("code", code)];
        let help = "Requests, by route, status and error code (ok: none).";
        self.registry.counter("tidegate_http_requests_total", help, &labels).inc();
        let help = "Time from a request's first byte to the end of its answer.";
        let labels = [("route", route)];
        self.registry.histogram("tidegate_http_request_seconds", help, &labels).observe(took);
    }

    /// The first content of a stream was sent.
    pub fn first_token(&self, after: Duration) {
        self.streams.inc();
        self.first_token.observe(after);
    }

    /// An attempt ended. `error` is why it failed.
    pub fn attempt(&self, upstream: &str, error: Option<&Error>) {
        let code = error.map_or("ok", |error| error.row().code);
        let help = "Attempts at upstreams, by outcome (ok, or an error's code).";
        let labels = [("upstream", upstream), ("outcome", code)];
        self.registry.counter("tidegate_upstream_attempts_total", help, &labels).inc();
    }

    /// Tokens that an upstream reported, or that were estimated for a cut stream.
    pub fn tokens(&self, upstream: &str, input: u64, output: u64, estimated: bool) {
        let help = "Tokens, as upstreams report them; estimated ones for streams that were cut.";
        let estimated = if estimated { "true" } else { "false" };
        for (direction, count) in [("input", input), ("output", output)] {
            let labels =
                [("upstream", upstream), ("direction", direction), ("estimated", estimated)];
            self.registry.counter("tidegate_tokens_total", help, &labels).add(count);
        }
    }
}
