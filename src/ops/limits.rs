//! `GET /limits`: every limit, how much there is of what it bounds, and what happens at it.

use serde_json::{Value, json};

use crate::base::metrics::{NamedLimit, Registry};
use crate::config::schema::{self, Shape};
use crate::net::http::Response;

/// The answer: `{"limits": […]}`, by name and then by owner.
pub(super) fn answer(registry: &Registry) -> Response {
    let document = json!({ "limits": rows(registry, &settings()) });
    Response::new(200, "application/json", document.to_string()).with("cache-control", "no-store")
}

/// The rows, when the keys of all settings are these.
pub(super) fn rows(registry: &Registry, settings: &[String]) -> Vec<Value> {
    let mut limits = registry.limits();
    limits.sort_by(|a, b| (a.name, &a.owner).cmp(&(b.name, &b.owner)));
    limits.iter().map(|named| row(named, settings)).collect()
}

fn row(named: &NamedLimit, settings: &[String]) -> Value {
    let limit = &named.limit;
    let setting = settings.iter().find(|key| *key == named.name);
    json!({
        "limit": named.name,
        "owner": named.owner,
        "setting": setting,
        "unit": named.unit.as_str(),
        "each": named.each,
        "now": (!named.each).then(|| limit.now()),
        "high_water": limit.high_water(),
        "max": limit.max(),
        "refused": limit.refused(),
        "consequence": named.consequence,
    })
}

/// The keys of all settings, as `table.key`.
pub(super) fn settings() -> Vec<String> {
    let Shape::Table(tables) = schema::tree() else { return Vec::new() };
    let keys = |table: &schema::Setting| -> Vec<String> {
        let inner = match &table.shape {
            Shape::Table(inner) => inner,
            Shape::List { item, .. } => match &**item {
                Shape::Table(inner) => inner,
                _ => return Vec::new(),
            },
            _ => return Vec::new(),
        };
        inner.iter().map(|setting| format!("{}.{}", table.key, setting.key)).collect()
    };
    tables.iter().flat_map(keys).collect()
}
