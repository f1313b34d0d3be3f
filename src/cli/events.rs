//! `tidegate events`.

use clap::Args;
use serde_json::Value;

use super::client::{Ask, table};
use crate::base::exit::Exit;
use crate::base::query::encoded;

/// Show what happened to a running daemon: breakers, reloads, limits, the store, alerts
///
/// The newest last. With a state directory events are kept over restarts (store.events_keep).
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Only since then: a time such as 2026-11-22T10:00:00Z, or so long ago, such as 90s, 6h or 7d
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Only those of this kind, such as breaker_opened
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Only those at least as grave
    #[arg(long, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug"])]
    level: Option<String>,
    /// At most so many, the newest
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    ask: Ask,
}

impl Events {
    pub(super) fn execute(self) -> Exit {
        let mut path = format!("/events?limit={}", self.limit);
        let since = self.since.map(|since| ago(&since));
        for (name, value) in [("since", &since), ("kind", &self.kind), ("level", &self.level)] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", encoded(value)));
            }
        }
        self.ask.show(&path, text)
    }
}

/// `6h` means six hours ago; a time is a time.
fn ago(since: &str) -> String {
    match humantime::parse_duration(since) {
        Ok(_) => format!("-{since}"),
        Err(_) => since.to_owned(),
    }
}

fn text(document: &Value) -> String {
    let rows = document["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = rows.iter().map(row).collect();
    let mut out = table(&["TIME", "LEVEL", "EVENT", "SUBJECT", "DETAIL"], &rows);
    if let Some(reason) = document["reason"].as_str() {
        out.push_str(&format!("\nonly what is in memory: {}\n", reason.escape_debug()));
    }
    out
}

fn row(event: &Value) -> Vec<String> {
    let word = |key: &str| event[key].as_str().unwrap_or_default().escape_debug().to_string();
    let mut detail = word("detail");
    if let Some(left_out @ 1..) = event["left_out"].as_u64() {
        detail.push_str(&format!(" (and {left_out} before it)"));
    }
    vec![word("at"), word("level"), word("kind"), word("subject"), detail]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_and_what_is_not_kept_is_said() {
        let document = serde_json::json!({"kept": false, "reason": "no folder", "events": [
            {"at": "2026-11-22T10:00:00.000Z", "level": "warn", "kind": "disk_low", "subject": "",
             "detail": "two\nlines", "left_out": 3},
        ]});
        let text = text(&document);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].ends_with("two\\nlines (and 3 before it)"), "{text}");
        assert_eq!(*lines.last().unwrap(), "only what is in memory: no folder");
        assert_eq!((&*ago("6h"), &*ago("2026-11-22T10:00:00Z")), ("-6h", "2026-11-22T10:00:00Z"));
    }
}
