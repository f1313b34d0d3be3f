//! `tidegate cache`.

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Ask, table};
use crate::base::exit::Exit;

/// Show what the cache of a running daemon holds, and how often it served
///
/// A row for each namespace. HIT was kept, STALE was kept and old, COALESCED was another request's
/// answer at the same time, and for a MISS an upstream was asked.
#[derive(Debug, Args)]
pub(super) struct Cache {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Forget what is kept: of one namespace, or all of it
    Clear {
        /// `embeddings` or `chat`
        namespace: Option<String>,
    },
}

impl Cache {
    pub(super) fn execute(self) -> Exit {
        match self.command {
            None => self.ask.show("/cache", text),
            Some(Command::Clear { namespace }) => {
                self.ask.order("/cache/clear", &json!({ "namespace": namespace }), cleared)
            }
        }
    }
}

fn cleared(document: &Value) -> String {
    let rows = document["cleared"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = |row: &Value| {
        format!(
            "{}: {} entries forgotten\n",
            row["namespace"].as_str().unwrap_or("-"),
            row["entries"]
        )
    };
    rows.iter().map(row).collect()
}

const NUMBERS: [&str; 8] =
    ["hits", "stale", "coalesced", "misses", "inserted", "evicted", "expired", "cleared"];

fn text(document: &Value) -> String {
    let rows = document["namespaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = rows.iter().map(row).collect();
    let header = [
        "NAMESPACE",
        ">ENTRIES",
        ">BYTES",
        ">HIT",
        ">STALE",
        ">COALESCED",
        ">MISS",
        ">INSERTED",
        ">EVICTED",
        ">EXPIRED",
        ">CLEARED",
    ];
    table(&header, &rows)
}

fn row(space: &Value) -> Vec<String> {
    let number = |key: &str| space[key].as_u64().unwrap_or_default();
    let mut row = vec![
        space["namespace"].as_str().unwrap_or_default().to_owned(),
        number("entries").to_string(),
        ByteSize(number("bytes")).display().iec().to_string(),
    ];
    row.extend(NUMBERS.iter().map(|key| number(key).to_string()));
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_a_row() {
        let document = serde_json::json!({"namespaces": [{"namespace": "embeddings", "entries": 3,
            "bytes": 2048, "hits": 1, "stale": 2, "coalesced": 3, "misses": 4, "inserted": 5,
            "evicted": 6, "expired": 7, "cleared": 8}]});
        let text = text(&document);
        let cells: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let expected = ["embeddings", "3", "2.0", "KiB", "1", "2", "3", "4", "5", "6", "7", "8"];
        assert_eq!(cells, expected, "{text}");
    }
}
