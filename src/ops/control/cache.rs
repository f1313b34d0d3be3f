//! Orders about answers that are kept.

use serde_json::json;

use super::{Ask, Done, Route};
use crate::base::error::{Error, Kind};
use crate::config::settings::Namespace;
use crate::net::http::Method;
use crate::ops::Parts;

pub(super) const ROUTES: &[Route] =
    &[Route { method: Method::Post, path: "/cache/clear", run: clear }];

/// `{"namespace": NAME}`, or nothing for all of them.
fn clear(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let wanted = ask.text("namespace")?;
    let known = |name: &str| Namespace::ALL.into_iter().find(|known| known.as_str() == name);
    let namespaces = match wanted.map(|name| known(name).ok_or(name)) {
        None => Namespace::ALL.to_vec(),
        Some(Ok(namespace)) => vec![namespace],
        Some(Err(name)) => {
            let names = Namespace::ALL.map(Namespace::as_str).join(", ");
            let what = format!("there is no namespace {name:?}; there are {names}");
            return Err(Error::new(Kind::NotFound, what));
        }
    };
    let missing = || Error::new(Kind::Unsupported, "there is no cache");
    let answers = parts.answers.as_ref().ok_or_else(missing)?;
    let cleared: Vec<(&str, u64)> =
        namespaces.iter().map(|space| (space.as_str(), answers.clear(*space))).collect();
    let row = |(name, entries): &(&str, u64)| json!({ "namespace": name, "entries": entries });
    let told: Vec<String> =
        cleared.iter().map(|(name, entries)| format!("{name}: {entries} entries")).collect();
    let document = json!({ "cleared": cleared.iter().map(row).collect::<Vec<_>>() });
    Ok(Done::json(&document).told(format!("cleared {}", told.join(", "))))
}
