//! `config.schema` and `config.schema.lookup`: what can be set, and what to know of each.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Nothing;
use crate::base::clock;
use crate::base::time_format::rfc3339;
use crate::config::schema;
use crate::nodes::methods::{Call, Done, Outcome};
use crate::nodes::refusal::Refusal;

/// Longest place that is looked up, in bytes (the protocol's).
const PATH_BYTES_MAX: usize = 1024;
/// Deepest place that there is, in parts.
const PARTS_MAX: usize = 16;

/// `config.schema`.
pub(super) fn whole(call: &Call<'_>) -> Outcome {
    let Nothing {} = call.params()?;
    let schema = schema::json();
    let mut hints = Map::new();
    collect(&schema, "", &mut hints);
    Done::json(&json!({
        "schema": schema,
        "uiHints": hints,
        "version": env!("CARGO_PKG_VERSION"),
        "generatedAt": rfc3339(clock::wall(), 0),
    }))
}

#[derive(Deserialize)]
struct Lookup {
    path: String,
}

/// `config.schema.lookup`.
pub(super) fn lookup(call: &Call<'_>) -> Outcome {
    let Lookup { path } = call.params()?;
    let found = find(&schema::json(), &path);
    let found = found.ok_or_else(|| Refusal::invalid("config schema path not found"))?;
    Done::json(&found)
}

/// A place of the schema: `server.workers`, `upstream[].url`, and as clients write them too
/// `upstream.*.url`, `upstream[local].url`, `upstream.0.url`.
fn find(root: &Value, path: &str) -> Option<Value> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX {
        return None;
    }
    let (mut node, mut place) = (root, String::new());
    for (count, part) in path.split('.').filter(|part| !part.is_empty()).enumerate() {
        if count >= PARTS_MAX {
            return None;
        }
        let (key, entry) = match part.split_once('[') {
            Some((key, entry)) => (key, Some(entry.strip_suffix(']')?)),
            None => (part, None),
        };
        if let Some(items) = node.get("items") {
            // An entry by number, or by a star.
            if entry.is_some() || !(key == "*" || key.bytes().all(|b| b.is_ascii_digit())) {
                return None;
            }
            (node, place) = (items, format!("{place}[]"));
            continue;
        }
        node = node.get("properties")?.get(key)?;
        place = join(&place, key);
        if entry.is_some() {
            (node, place) = (node.get("items")?, format!("{place}[]"));
        }
    }
    Some(result(node, &place))
}

fn result(node: &Value, place: &str) -> Value {
    let shown = if place.is_empty() { "." } else { place };
    let mut out = json!({"path": shown, "schema": alone(node), "children": children(node, place)});
    if let Some(kind) = reload(node) {
        out["reloadKind"] = kind.into();
    }
    if !place.is_empty() {
        out["hint"] = hint(node, place);
        out["hintPath"] = place.into();
    }
    out
}

fn children(node: &Value, place: &str) -> Vec<Value> {
    let required = node.get("required").and_then(Value::as_array);
    let required = |key: &str| required.is_some_and(|names| names.iter().any(|name| name == key));
    let child = |key: &str, path: String, node: &Value, required: bool| {
        let mut child = json!({
            "key": key,
            "path": path,
            "required": required,
            "hasChildren": node.get("properties").or_else(|| node.get("items")).is_some(),
            "hint": hint(node, &path),
            "hintPath": path,
        });
        if let Some(kind @ (Value::String(_) | Value::Array(_))) = node.get("type") {
            child["type"] = kind.clone();
        }
        if let Some(kind) = reload(node) {
            child["reloadKind"] = kind.into();
        }
        child
    };
    if let Some(items) = node.get("items") {
        return vec![child("*", format!("{place}[]"), items, false)];
    }
    let Some(Value::Object(settings)) = node.get("properties") else { return Vec::new() };
    settings.iter().map(|(key, node)| child(key, join(place, key), node, required(key))).collect()
}

/// The schema of a place without those of the places in it.
fn alone(node: &Value) -> Value {
    match node {
        Value::Object(fields) => {
            let fields =
                fields.iter().filter(|(key, _)| !["properties", "items"].contains(&&***key));
            Value::Object(fields.map(|(key, value)| (key.clone(), value.clone())).collect())
        }
        other => other.clone(),
    }
}

fn reload(node: &Value) -> Option<&'static str> {
    match node.get("x-reload")?.as_str()? {
        "restart" => Some("restart"),
        _ => Some("hot"),
    }
}

fn collect(node: &Value, place: &str, hints: &mut Map<String, Value>) {
    if let Some(items) = node.get("items").filter(|items| items.get("properties").is_some()) {
        return collect(items, &format!("{place}[]"), hints);
    }
    let Some(Value::Object(settings)) = node.get("properties") else { return };
    for (key, node) in settings {
        let place = join(place, key);
        hints.insert(place.clone(), hint(node, &place));
        collect(node, &place, hints);
    }
}

/// What a form shows of a setting.
fn hint(node: &Value, place: &str) -> Value {
    let text = |name: &str| node.get(name).and_then(Value::as_str);
    let key = place.rsplit('.').next().unwrap_or(place).trim_end_matches("[]");
    let mut hint = json!({"label": label(key), "group": place.split(['.', '[']).next()});
    if let Some(help) = text("description").filter(|help| !help.is_empty()) {
        hint["help"] = help.into();
    }
    if node.get("x-secret").is_some() {
        hint["sensitive"] = true.into();
    }
    match (node.get("x-example"), text("x-default")) {
        (Some(Value::String(example)), _) if node.get("x-secret").is_none() => {
            hint["placeholder"] = example.as_str().into();
        }
        (_, Some(default)) => hint["placeholder"] = default.into(),
        _ => {}
    }
    hint
}

/// `body_max` as people read it.
fn label(key: &str) -> String {
    let words = key.replace('_', " ");
    let mut letters = words.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => words,
    }
}

fn join(place: &str, key: &str) -> String {
    if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_found_however_its_place_is_written() {
        let schema = schema::json();
        let port = find(&schema, "server.listen").unwrap();
        assert_eq!(
            (&port["reloadKind"], &port["hint"]["label"]),
            (&json!("restart"), &json!("Listen"))
        );
        assert_eq!(find(&schema, "server.body_max").unwrap()["reloadKind"], "hot");
        for path in ["upstream[].url", "upstream.*.url", "upstream[local].url", "upstream.0.url"] {
            let found = find(&schema, path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(found["path"], "upstream[].url");
        }
        let table = find(&schema, "key").unwrap();
        assert_eq!(
            (&table["children"][0]["path"], &table["children"][0]["hasChildren"]),
            (&json!("key[]"), &json!(true))
        );
        assert!(table["schema"].get("items").is_none());
        let entry = find(&schema, "key[]").unwrap();
        let secret =
            entry["children"].as_array().unwrap().iter().find(|c| c["key"] == "sha256").unwrap();
        assert_eq!(
            (&secret["required"], &secret["hint"]["sensitive"]),
            (&json!(true), &json!(true))
        );
        let root = find(&schema, ".").unwrap();
        assert!(root["children"].as_array().unwrap().len() > 10 && root["path"] == ".");
        let deep = "a.".repeat(100);
        for none in
            ["", "nothing", "server.nothing", "server.listen.x", "key[", "key.x", "server[]", &deep]
        {
            assert!(find(&schema, none).is_none(), "{none}");
        }
    }

    #[test]
    fn every_setting_has_a_hint_with_a_label_and_its_help() {
        let mut hints = Map::new();
        collect(&schema::json(), "", &mut hints);
        assert!(hints.len() > 100 && hints.contains_key("upstream[].url"), "{}", hints.len());
        for (place, hint) in &hints {
            assert!(hint["label"].as_str().is_some_and(|label| !label.is_empty()), "{place}");
            assert!(hint["help"].as_str().is_some(), "{place}");
        }
        assert_eq!(hints["key[].sha256"]["sensitive"], true);
        assert!(hints["key[].sha256"].get("placeholder").is_none());
    }
}
