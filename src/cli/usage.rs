//! `tidegate usage`.

use clap::Args;
use serde_json::Value;

use super::client::{Ask, table};
use crate::base::exit::Exit;
use crate::base::query::encoded;
use crate::gateway::usage::By;

/// Show the tokens and the cost of a running daemon
///
/// A `*` marks sums in which some tokens are estimates. MISSING counts the answers whose price is
/// not configured: what they cost is not in COST.
#[derive(Debug, Args)]
pub(super) struct Usage {
    /// What each row is about
    #[arg(long, value_name = "WHAT", default_value = "day",
        value_parser = By::NAMES.map(|(name, _)| name))]
    by: String,
    /// The first day that counts, in UTC, such as 2026-11-22
    #[arg(long, value_name = "DAY")]
    since: Option<String>,
    /// Only what this key asked for
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    #[command(flatten)]
    ask: Ask,
}

impl Usage {
    pub(super) fn execute(self) -> Exit {
        let mut path = format!("/usage?by={}", self.by);
        for (name, value) in [("since", &self.since), ("key", &self.key)] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", encoded(value)));
            }
        }
        self.ask.show(&path, text)
    }
}

/// Writes the names of a row into its first cells.
type Names = fn(&Value) -> Vec<String>;

fn text(document: &Value) -> String {
    let word = |key: &str| document[key].as_str().unwrap_or_default();
    let (titles, names): (&[&str], Names) = match word("by") {
        "model" => (&["MODEL", "ANSWERED BY"], |row| {
            vec![name(row, "model", "-"), row["answeredBy"].as_str().unwrap_or("-").into()]
        }),
        "key" => (&["KEY"], |row| vec![name(row, "key", "-")]),
        "session" => (&["SESSION", "KEY", "LAST USED"], |row| {
            let key = row["key"].as_str().map(|key| key.escape_debug().to_string());
            let none = if row["otherKeys"] == true { "others" } else { "-" };
            let last = row["lastUsed"].as_str().unwrap_or_default().to_owned();
            vec![name(row, "session", "-"), key.unwrap_or_else(|| none.to_owned()), last]
        }),
        _ => (&["DAY"], |row| vec![name(row, "date", "before")]),
    };
    let cost = format!(">COST {}", word("currency"));
    let sums = [
        ">REQUESTS",
        ">FAILED",
        ">CUT",
        ">CANCELLED",
        ">CACHED",
        ">INPUT",
        ">OUTPUT",
        &cost,
        ">MISSING",
    ];
    let header: Vec<&str> = titles.iter().chain(&sums).copied().collect();
    let rows = document["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut lines: Vec<Vec<String>> =
        rows.iter().map(|row| names(row).into_iter().chain(sums_of(row)).collect()).collect();
    let blank = titles.iter().skip(1).map(|_| String::new());
    let totals = std::iter::once("total".to_owned()).chain(blank);
    lines.push(totals.chain(sums_of(&document["totals"])).collect());
    let mut out = table(&header, &lines);
    let missing: Vec<&str> = document["missingPrices"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !missing.is_empty() {
        out.push_str(&format!("\nno [[price]] for: {}\n", missing.join(", ")));
    }
    if document["complete"] == false {
        out.push_str(
            "\ndays that were asked for have no rows of their own any more (usage.days_max)\n",
        );
    }
    let anew = if document["kept"] == false { "; a restart begins anew" } else { "" };
    out.push_str(&format!("\nsince {}{anew}\n", word("startedAt")));
    out
}

fn name(row: &Value, key: &str, none: &str) -> String {
    match row[key].as_str() {
        Some(name) => name.escape_debug().to_string(),
        None if row["others"] == true && none == "-" => "others".to_owned(),
        None => none.to_owned(),
    }
}

fn sums_of(row: &Value) -> impl Iterator<Item = String> {
    let number = |key: &str| row[key].as_u64().unwrap_or_default();
    let mark = if number("estimated") > 0 { "*" } else { "" };
    let micros = row["costMicros"].as_u64();
    [
        number("requests").to_string(),
        number("failed").to_string(),
        number("cut").to_string(),
        number("cancelled").to_string(),
        number("fromCache").to_string(),
        format!("{}{mark}", number("input")),
        format!("{}{mark}", number("output")),
        // Six digits, as exact as it is told.
        micros.map_or_else(
            || "?".to_owned(),
            |micros| format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000),
        ),
        number("missingCostEntries").to_string(),
    ]
    .into_iter()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(names: Value, requests: u64, estimated: u64, micros: Option<u64>) -> Value {
        let mut row = json!({
            "requests": requests, "failed": 1, "cut": 2, "cancelled": 3, "fromCache": 4,
            "estimated": estimated, "input": 50, "output": 60, "costMicros": micros,
            "missingCostEntries": 7,
        });
        row.as_object_mut().unwrap().extend(names.as_object().unwrap().clone());
        row
    }

    #[test]
    fn sums_are_shown_with_what_is_estimated_or_missing() {
        let document = json!({
            "by": "model", "currency": "EUR", "startedAt": "2026-11-22T00:00:00Z",
            "kept": false,
            "complete": false, "missingPrices": ["b/c"],
            "rows": [
                row(json!({"model": "m", "answeredBy": "a/b"}), 9, 1, Some(1_200_034)),
                row(json!({"model": "n", "answeredBy": null}), 8, 0, None),
                row(json!({"model": null, "others": true}), 1, 0, Some(0)),
            ],
            "totals": row(json!({}), 18, 1, Some(1_200_034)),
        });
        let text = text(&document);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "MODEL ANSWERED BY REQUESTS FAILED CUT CANCELLED CACHED INPUT OUTPUT COST EUR MISSING",
                "m a/b 9 1 2 3 4 50* 60* 1.200034 7",
                "n - 8 1 2 3 4 50 60 ? 7",
                "others - 1 1 2 3 4 50 60 0.000000 7",
                "total 18 1 2 3 4 50* 60* 1.200034 7",
                "",
                "no [[price]] for: b/c",
                "",
                "days that were asked for have no rows of their own any more (usage.days_max)",
                "",
                "since 2026-11-22T00:00:00Z; a restart begins anew",
            ]
        );
    }

    #[test]
    fn rows_without_a_name_say_what_they_are() {
        let check = |by: &str, row: Value, expected: &str| {
            let text = text(&json!({"by": by, "rows": [row], "totals": {}}));
            let line = text.lines().nth(1).unwrap();
            assert!(line.starts_with(expected), "{by}: {line:?} is not {expected:?}");
        };
        check("day", json!({"date": "2026-11-22"}), "2026-11-22 ");
        check("day", json!({"date": null, "others": true}), "before ");
        check("key", json!({"key": null}), "- ");
        check("key", json!({"key": null, "others": true}), "others ");
        check("session", json!({"session": null, "key": "k", "lastUsed": "x"}), "-        k ");
        let others = json!({"session": null, "key": "k", "others": true, "lastUsed": "x"});
        check("session", others, "others   k ");
        let nobody = json!({"session": null, "key": null, "others": true, "lastUsed": "x"});
        check("session", nobody, "others   - ");
        let keys = json!({"session": null, "key": null, "otherKeys": true, "lastUsed": "x"});
        check("session", keys, "-        others ");
    }
}
