//! `GET /limits`: every limit, how much there is of what it bounds, and what happens at it.

use serde_json::{Value, json};

use crate::base::metrics::{NamedLimit, Registry};
use crate::net::http::Response;

/// The answer: `{"limits": […]}`, by name and then by owner.
pub(super) fn answer(registry: &Registry) -> Response {
    let (_, mut limits) = registry.gather();
    limits.sort_by(|a, b| (a.name, &a.owner).cmp(&(b.name, &b.owner)));
    let limits: Vec<Value> = limits.iter().map(row).collect();
    let document = json!({ "limits": limits });
    Response::new(200, "application/json", document.to_string()).with("cache-control", "no-store")
}

fn row(named: &NamedLimit) -> Value {
    let limit = &named.limit;
    json!({
        "limit": named.name,
        "owner": named.owner,
        "unit": named.unit.as_str(),
        "now": limit.now(),
        "high_water": limit.high_water(),
        "max": limit.max(),
        "refused": limit.refused(),
        "consequence": named.consequence,
    })
}
