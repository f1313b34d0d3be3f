//! `tidegate breaker`.

use clap::Args;
use serde_json::Value;

use super::client::{Ask, table};
use crate::base::exit::Exit;

/// Show which upstreams a running daemon asks, and which it leaves alone because they failed
///
/// A line without a model is about the upstream's address: failures to connect. CALLS and FAILED
/// are those of the last ten seconds.
#[derive(Debug, Args)]
pub(super) struct Breaker {
    #[command(flatten)]
    ask: Ask,
}

impl Breaker {
    pub(super) fn execute(self) -> Exit {
        self.ask.show("/breakers", text)
    }
}

fn text(document: &Value) -> String {
    let rows = document["breakers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = rows.iter().map(row).collect();
    let header =
        ["UPSTREAM", "MODEL", "STATE", ">FOR", ">NEXT TRY", ">CALLS", ">FAILED", "LAST FAILURE"];
    table(&header, &rows)
}

fn row(breaker: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let seconds = |key: &str| match breaker[key].as_f64() {
        Some(seconds) => format!("{seconds:.0} s"),
        None => "-".to_owned(),
    };
    let number = |key: &str| breaker[key].as_u64().map_or("-".to_owned(), |n| n.to_string());
    let mut state = word(&breaker["state"]).replace('_', "-");
    if breaker["forced"].is_string() {
        state.push_str(" (forced)");
    } else if !breaker["cooling_down_seconds"].is_null() {
        state.push_str(" (cooling down)");
    }
    let last = &breaker["last_failure"];
    let failure = match last["code"].as_str() {
        Some(code) => {
            let (message, ago) = (word(&last["message"]), last["seconds_ago"].as_u64());
            format!("{} s ago, {code}: {message}", ago.unwrap_or_default())
        }
        None => "-".to_owned(),
    };
    vec![
        word(&breaker["upstream"]),
        word(&breaker["model"]),
        state,
        seconds("since_seconds"),
        seconds("next_try_seconds"),
        number("calls"),
        number("failed"),
        failure,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_breaker_is_shown_with_its_reason_and_its_next_try() {
        let document = serde_json::json!({"breakers": [
            {"upstream": "local", "model": null, "state": "closed", "forced": null,
             "since_seconds": 60, "next_try_seconds": null, "cooling_down_seconds": null,
             "calls": 3, "failed": 0, "last_failure": null},
            {"upstream": "local", "model": "m", "state": "half_open", "forced": null,
             "since_seconds": 12, "next_try_seconds": 18.0, "cooling_down_seconds": 18.0,
             "calls": 0, "failed": 0, "last_failure":
             {"code": "upstream_cut", "message": "broke off", "seconds_ago": 12, "count": 5}},
        ]});
        let text = text(&document);
        let lines: Vec<String> =
            text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[1], "local - closed 60 s - 3 0 -");
        let open =
            "local m half-open (cooling down) 12 s 18 s 0 0 12 s ago, upstream_cut: broke off";
        assert_eq!(lines[2], open);
    }
}
