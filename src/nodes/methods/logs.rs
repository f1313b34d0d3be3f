//! `logs.tail`: the log as it is written, asked for again and again.

use serde::Deserialize;
use serde_json::json;

use super::{Call, Done, Method, Needs, Outcome};
use crate::nodes::refusal::Refusal;
use crate::nodes::who::Scope;
use crate::observe::log::{self, Ask, LogHandle};

pub(super) const METHODS: &[Method] =
    &[Method { name: "logs.tail", needs: Needs::Scope(Scope::Read), run: tail }];

/// Lines and bytes when nobody says how many, and at most (the protocol's, `peers.md` 6.8).
const LINES: (u64, u64) = (500, 5000);
const BYTES: (u64, u64) = (250_000, 1_000_000);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Params {
    cursor: Option<u64>,
    limit: Option<u64>,
    max_bytes: Option<u64>,
}

fn tail(call: &Call<'_>) -> Outcome {
    let params: Params = call.params()?;
    let within = |asked: Option<u64>, (default, most): (u64, u64)| match asked {
        Some(0) => Err(Refusal::invalid("invalid logs.tail params: must be >= 1")),
        asked => Ok(asked.unwrap_or(default).min(most)),
    };
    let ask = Ask {
        cursor: params.cursor,
        lines: usize::try_from(within(params.limit, LINES)?).unwrap_or(usize::MAX),
        bytes: within(params.max_bytes, BYTES)?,
    };
    let parts = call.nodes.parts();
    let (file, slice) = match (parts.tables.log_folder(), &parts.tail) {
        (Some(folder), _) => {
            let slice = log::read(&folder, &ask)
                .map_err(|error| Refusal::unavailable(format!("log read failed: {error}")))?;
            (LogHandle::current_file(&folder).display().to_string(), slice)
        }
        (None, Some(tail)) => ("(standard error)".to_owned(), log::recent(tail, &ask)),
        (None, None) => return Err(Refusal::unavailable("there is no log")),
    };
    let mut out = json!({
        "file": file,
        "cursor": slice.cursor,
        "size": slice.size,
        "lines": slice.lines,
        "truncated": slice.truncated,
        "reset": slice.reset,
    });
    if slice.skipped > 0 {
        out["skippedBytes"] = slice.skipped.into();
    }
    Done::json(&out)
}
