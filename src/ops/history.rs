//! `GET /history`: what a metric was, over time; without a metric, which ones there are.

use super::problem;
use crate::net::http::Response;
use crate::observe::history::History;

/// The answer at `now`, in seconds since the epoch.
pub(super) fn answer(history: &History, query: &str, now: u64) -> Response {
    match history.answer(query, now) {
        Ok(document) => Response::new(200, "application/json", document.to_string())
            .with("cache-control", "no-store"),
        Err(error) => problem(&error),
    }
}
