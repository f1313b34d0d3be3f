//! `GET /breakers`: which upstreams are asked, which are left alone, since when and why.

use std::time::Duration;

use serde_json::{Value, json};

use crate::net::http::Response;
use crate::upstream::breaker::Force;
use crate::upstream::breakers::View;

/// The answer: `{"breakers": […]}`, by upstream and model; without a model: that of the address.
pub(super) fn answer(views: &[View]) -> Response {
    let document = json!({ "breakers": rows(views) });
    Response::new(200, "application/json", document.to_string()).with("cache-control", "no-store")
}

/// Its rows.
pub(super) fn rows(views: &[View]) -> Vec<Value> {
    views.iter().map(row).collect()
}

fn row(view: &View) -> Value {
    let force = match view.force {
        Force::Auto => Value::Null,
        Force::Open => "open".into(),
        Force::Closed => "closed".into(),
    };
    let failure = view.cause.as_ref().map(|(cause, ago)| {
        json!({
            "code": cause.code,
            "message": &*cause.full,
            "seconds_ago": ago.as_secs(),
            "count": cause.count,
        })
    });
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64().ceil());
    json!({
        "upstream": view.upstream,
        "model": view.model,
        "state": view.stand.as_str(),
        "forced": force,
        "forced_seconds": view.forced_for.map(|left| left.as_secs()),
        "drained": view.drained,
        "since_seconds": view.since.as_secs(),
        "next_try_seconds": seconds(view.next_try),
        "cooling_down_seconds": seconds(view.cooling_down),
        "calls": view.calls,
        "failed": view.failed,
        "last_failure": failure,
    })
}
