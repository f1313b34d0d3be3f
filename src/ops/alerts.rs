//! `GET /alerts`: what is wrong, what is silenced, and whether people are reached.

use serde_json::json;

use super::Parts;
use crate::net::http::Response;

/// The answer: alerts, silences, channels and rules.
pub(super) fn answer(parts: &Parts) -> Response {
    let document = match &parts.alerts {
        Some(alerts) => alerts.view(),
        None => json!({
            "enabled": false, "alerts": [], "past": [], "silences": [], "channels": [], "rules": [],
            "undelivered": 0, "lost": 0,
        }),
    };
    Response::new(200, "application/json", document.to_string()).with("cache-control", "no-store")
}
