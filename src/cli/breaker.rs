//! `tidegate breaker`.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Ask, table};
use crate::base::exit::Exit;

/// Show which upstreams a running daemon asks, and which it leaves alone because they failed
///
/// A line without a model is about the upstream's address: failures to connect. CALLS and FAILED
/// are those of the last ten seconds.
#[derive(Debug, Args)]
pub(super) struct Breaker {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Leave an upstream alone, or one of its models, whatever its answers
    Open(Held),
    /// Ask it, whatever its answers
    Close(Held),
    /// Let its answers decide again
    Auto {
        /// `upstream` or `upstream/model`
        target: String,
    },
}

#[derive(Debug, Args)]
struct Held {
    /// `upstream` or `upstream/model`
    target: String,
    /// For how long; then its answers decide again
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = time)]
    lasting: Duration,
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.as_secs() == 0 { Err("write a second or more".to_owned()) } else { Ok(time) }
}

impl Breaker {
    pub(super) fn execute(self) -> Exit {
        let (target, to, lasting) = match self.command {
            None => return self.ask.show("/breakers", text),
            Some(Command::Open(held)) => (held.target, "open", Some(held.lasting)),
            Some(Command::Close(held)) => (held.target, "closed", Some(held.lasting)),
            Some(Command::Auto { target }) => (target, "auto", None),
        };
        let (upstream, model) = match target.split_once('/') {
            Some((upstream, model)) => (upstream, Some(model)),
            None => (target.as_str(), None),
        };
        let seconds = lasting.map(|lasting| lasting.as_secs());
        let body = json!({ "upstream": upstream, "model": model, "to": to, "seconds": seconds });
        self.ask.order("/breakers", &body, |_| match lasting {
            Some(lasting) => {
                format!("{target} is {to} for {}\n", humantime::format_duration(lasting))
            }
            None => format!("{target} is decided by its answers\n"),
        })
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
        match breaker["forced_seconds"].as_u64() {
            Some(left) => state.push_str(&format!(" (forced for {left} s)")),
            None => state.push_str(" (forced)"),
        }
    } else if !breaker["cooling_down_seconds"].is_null() {
        state.push_str(" (cooling down)");
    }
    if breaker["drained"] == true {
        "drained".clone_into(&mut state);
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
