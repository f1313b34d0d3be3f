//! Orders to take no new work: for the whole process, which runs on, or for one upstream.

use serde_json::json;

use super::breakers::links;
use super::{Ask, Done, Route};
use crate::base::error::Error;
use crate::net::http::Method;
use crate::ops::Parts;

/// The check that keeps the process from being ready meanwhile.
const CHECK: &str = "drained";

pub(super) const ROUTES: &[Route] = &[
    Route { method: Method::Post, path: "/drain", run: |parts, ask| drain(parts, ask, true) },
    Route { method: Method::Post, path: "/undrain", run: |parts, ask| drain(parts, ask, false) },
];

/// `{"upstream": NAME}`, or nothing for the whole process.
fn drain(parts: &Parts, ask: &Ask<'_>, on: bool) -> Result<Done, Error> {
    let told = if on { "drained" } else { "back" };
    if let Some(upstream) = ask.text("upstream")? {
        links(parts)?.drain(upstream, on)?;
        let document = json!({ "upstream": upstream, "drained": on });
        return Ok(Done::json(&document).told(format!("{upstream} {told}")));
    }
    let changed = parts.hold.set(on);
    if on {
        let why = "new model calls are refused by order; tidegate drain --undo takes it back";
        parts.board.check(CHECK).failed(why);
    } else {
        parts.board.remove(CHECK);
    }
    let document = json!({ "drained": on, "changed": changed });
    Ok(Done::json(&document).told(told))
}
