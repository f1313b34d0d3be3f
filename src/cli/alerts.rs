//! `tidegate alerts`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Ask, table};
use super::output::answer;
use crate::base::exit::Exit;

/// Show what is wrong with a running daemon and who was told of it, silence it, try the channels
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = false, subcommand_negates_reqs = true)]
pub(super) struct Alerts {
    #[command(flatten)]
    ask: Ask,
    /// List the rules that are judged
    #[arg(long)]
    rules: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Do not tell of some alerts for a time; they are still shown
    Silence {
        /// The name of a rule, or label=value, several with commas; a value may end in *
        #[arg(value_name = "MATCH")]
        matching: String,
        /// How long, at most 30 days
        #[arg(long = "for", value_name = "DURATION", default_value = "2h")]
        lasting: String,
        /// Why, for those who look
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// End a silence
    Unsilence {
        /// Its id, or what was silenced
        silence: String,
    },
    /// Send a test on one channel, or on all, and say whether it got through
    Test {
        /// The name of a [[notify]]
        channel: Option<String>,
    },
}

impl Alerts {
    pub(super) fn execute(self) -> Exit {
        let Some(command) = self.command else {
            let text = if self.rules { rules } else { text };
            return self.ask.show("/alerts", text);
        };
        match command {
            Command::Silence { matching, lasting, reason } => {
                let body = json!({"match": matching, "for": lasting, "reason": reason});
                self.ask.order("/alerts/silence", &body, silenced)
            }
            Command::Unsilence { silence } => {
                let body = json!({"silence": silence});
                self.ask
                    .order("/alerts/unsilence", &body, |done| format!("{} ended\n", done["ended"]))
            }
            Command::Test { channel } => {
                match self.ask.post("/alerts/test", &json!({"channel": channel})) {
                    Ok(done) => tried(&done, self.ask.json),
                    Err(exit) => exit,
                }
            }
        }
    }
}

/// The outcome of a test: success only when every channel took it.
fn tried(done: &Value, as_json: bool) -> Exit {
    let shown = if as_json {
        answer(&format!("{done:#}\n"))
    } else {
        let line = |row: &Value| match row["delivered"].as_bool() {
            Some(true) => format!("{}: delivered\n", word(&row["channel"])),
            _ => format!("{}: failed: {}\n", word(&row["channel"]), word(&row["why"])),
        };
        answer(&rows(done, "channels").iter().map(line).collect::<String>())
    };
    if done["failed"].as_u64() == Some(0) { shown } else { Exit::Failure }
}

fn silenced(done: &Value) -> String {
    let kept = match done["kept"].as_bool() {
        Some(true) => "",
        _ => " (in memory only: it ends with a restart)",
    };
    let [matching, until, id] = ["match", "until", "id"].map(|key| word(&done[key]));
    format!("{matching} is silenced until {until} as {id}{kept}\n")
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn rows<'a>(document: &'a Value, key: &str) -> &'a [Value] {
    document[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A time without its fraction and date separators that nobody reads.
fn time(value: &Value) -> String {
    let text = word(value);
    text.split('.').next().unwrap_or_default().replace('T', " ")
}

fn text(document: &Value) -> String {
    let mut out = String::new();
    let alerts = rows(document, "alerts");
    if document["enabled"] == false {
        out.push_str("alerts are switched off (alerts.enabled, features.alerts)\n");
    }
    if alerts.is_empty() {
        out.push_str("no alerts\n");
    } else {
        let row = |alert: &Value| {
            let mut state = word(&alert["state"]);
            if let Some(rule) = alert["muted_by"].as_str() {
                state = format!("{state} (muted by {rule})");
            }
            if alert["silenced_by"].is_string() {
                state = format!("{state} (silenced)");
            }
            let severity = word(&alert["severity"]);
            let [rule, text] = ["rule", "text"].map(|key| word(&alert[key]));
            vec![rule, severity, state, time(&alert["since"]), time(&alert["told"]), text]
        };
        let header = ["RULE", "SEVERITY", "STATE", "SINCE", "TOLD", "WHAT"];
        out.push_str(&table(&header, &alerts.iter().map(row).collect::<Vec<_>>()));
    }
    let silences = rows(document, "silences");
    if !silences.is_empty() {
        let row = |silence: &Value| {
            let [id, matching, reason] = ["id", "match", "reason"].map(|key| word(&silence[key]));
            vec![id, matching, time(&silence["until"]), reason]
        };
        let header = ["SILENCE", "MATCH", "UNTIL", "REASON"];
        out.push('\n');
        out.push_str(&table(&header, &silences.iter().map(row).collect::<Vec<_>>()));
    }
    let channels = rows(document, "channels");
    if !channels.is_empty() {
        let row = |channel: &Value| {
            let number = |key: &str| channel[key].as_u64().unwrap_or_default().to_string();
            let state = match channel["failing_since"].as_str() {
                Some(_) => format!(
                    "failing since {}: {}",
                    time(&channel["failing_since"]),
                    word(&channel["why"])
                ),
                None => "ok".to_owned(),
            };
            let [name, kind] = ["name", "kind"].map(|key| word(&channel[key]));
            vec![name, kind, number("waiting"), number("delivered"), number("given_up"), state]
        };
        let header = ["CHANNEL", "KIND", ">WAITING", ">DELIVERED", ">GIVEN UP", "STATE"];
        out.push('\n');
        out.push_str(&table(&header, &channels.iter().map(row).collect::<Vec<_>>()));
    }
    let number = |key: &str| document[key].as_u64().unwrap_or_default();
    if number("undelivered") > 0 || number("lost") > 0 {
        out.push_str(&format!(
            "\n{} notices reached nobody yet, {} were lost\n",
            number("undelivered"),
            number("lost")
        ));
    }
    out
}

fn rules(document: &Value) -> String {
    let row = |rule: &Value| {
        let [name, severity, hold, condition] =
            ["name", "severity", "for", "condition"].map(|key| word(&rule[key]));
        vec![name, severity, hold, condition]
    };
    let rows: Vec<_> = rows(document, "rules").iter().map(row).collect();
    table(&["RULE", "SEVERITY", ">FOR", "CONDITION"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_silences_and_channels_are_shown_and_what_reached_nobody() {
        let document = json!({
            "alerts": [{
                "rule": "memory_high", "severity": "warning", "state": "firing",
                "since": "2026-11-22T10:00:00.000Z", "told": null, "text": "much",
                "muted_by": "memory_critical", "silenced_by": null,
            }],
            "silences": [{"id": "s1", "match": "x", "until": "2026-11-22T12:00:00.000Z", "reason": "why"}],
            "channels": [{
                "name": "phone", "kind": "ntfy", "waiting": 2, "delivered": 7, "given_up": 0,
                "failing_since": "2026-11-22T11:00:00.000Z", "why": "answered 500",
            }],
            "undelivered": 2, "lost": 0,
        });
        let text = text(&document);
        let lines: Vec<String> =
            text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let expected =
            "memory_high warning firing (muted by memory_critical) 2026-11-22 10:00:00 - much";
        assert_eq!(lines[1], expected);
        assert_eq!(lines[4], "s1 x 2026-11-22 12:00:00 why");
        assert_eq!(lines[7], "phone ntfy 2 7 0 failing since 2026-11-22 11:00:00: answered 500");
        assert_eq!(lines[9], "2 notices reached nobody yet, 0 were lost");
        assert!(super::text(&json!({})).starts_with("no alerts"));
    }
}
