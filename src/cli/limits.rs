//! `tidegate limits`.

use bytesize::ByteSize;
use clap::Args;
use serde_json::Value;

use super::client::{Ask, table};
use crate::base::exit::Exit;

/// Show every limit of a running daemon: how much there is now, was at most, and may be
///
/// HIT is how often the limit was met since the daemon started, and the last column what happens
/// then. A name with a * is that setting of the configuration; the others are fixed. A limit
/// without NOW holds for each thing by itself, and HIGH is the largest one that came.
#[derive(Debug, Args)]
pub(super) struct Limits {
    #[command(flatten)]
    ask: Ask,
}

impl Limits {
    pub(super) fn execute(self) -> Exit {
        self.ask.show("/limits", text)
    }
}

fn text(document: &Value) -> String {
    let rows = document["limits"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = rows.iter().map(row).collect();
    table(&["LIMIT", "OWNER", ">NOW", ">HIGH", ">MAX", ">HIT", "AT THE LIMIT"], &rows)
}

fn row(limit: &Value) -> Vec<String> {
    let word = |key: &str| limit[key].as_str().unwrap_or_default().to_owned();
    let bytes = limit["unit"] == "bytes";
    let number = |key: &str| match limit[key].as_u64() {
        Some(number) if bytes => ByteSize(number).display().iec().to_string(),
        Some(number) => number.to_string(),
        None => "-".to_owned(),
    };
    let hit = limit["refused"].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
    let (now, high, max) = (number("now"), number("high_water"), number("max"));
    let mark = if limit["setting"].is_string() { "*" } else { "" };
    vec![word("limit") + mark, word("owner"), now, high, max, hit, word("consequence")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_as_sizes_and_counts_as_they_are() {
        let document = serde_json::json!({"limits": [
            {"limit": "server.body_max", "owner": "data", "unit": "bytes", "now": null,
             "setting": "server.body_max",
             "high_water": 2048, "max": 33554432, "refused": 1024, "consequence": "413"},
            {"limit": "log.pending_max", "owner": "", "unit": "entries", "now": 3,
             "high_water": 4, "max": 8192, "refused": 0, "consequence": "dropped"},
        ]});
        let text = text(&document);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        let sizes = ["server.body_max*", "data", "-", "2.0", "KiB", "32.0", "MiB", "1024"];
        assert_eq!(lines[1][..8], sizes, "{text}");
        assert_eq!(lines[2], ["log.pending_max", "3", "4", "8192", "0", "dropped"], "{text}");
    }
}
