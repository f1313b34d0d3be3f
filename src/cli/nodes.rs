//! `tidegate nodes`.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Ask, table};
use super::output::{answer, remark};
use crate::base::clock;
use crate::base::exit::Exit;

/// Show which nodes a running daemon knows, and ask them for what they offer
///
/// A node is a paired device that offers commands. Devices that ask to be let in are shown by
/// `tidegate devices`.
#[derive(Debug, Args)]
pub(super) struct Nodes {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show every node in a table (as without a command)
    List,
    /// Show all that is known of one node
    Describe {
        /// Its name, its id, or the beginning of it
        node: String,
    },
    /// Ask a node for one of its commands, and print the result
    Invoke {
        /// Its name, its id, or the beginning of it
        node: String,
        /// One of the commands that it offers
        command: String,
        /// The command's parameters, as JSON
        #[arg(long, value_name = "JSON", value_parser = params)]
        params: Option<Value>,
        /// How long the node has, at most 100s
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
        timeout: Duration,
    },
}

fn params(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time.as_millis() {
        1..=100_000 => Ok(time),
        _ => Err("write a time between 1ms and 100s".to_owned()),
    }
}

impl Nodes {
    pub(super) fn execute(self) -> Exit {
        match self.command {
            None | Some(Command::List) => {
                self.ask.show("/nodes", |document| text(document, now_ms()))
            }
            Some(Command::Describe { node }) => describe(&self.ask, &node),
            Some(Command::Invoke { node, command, params, timeout }) => {
                let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                let body = json!({
                    "node": node, "command": command, "params": params, "timeout_ms": ms,
                });
                match self.ask.post("/nodes/invoke", &body) {
                    Ok(document) => told(&self.ask, &document),
                    Err(exit) => exit,
                }
            }
        }
    }
}

fn describe(ask: &Ask, wanted: &str) -> Exit {
    let document = match ask.get("/nodes") {
        Ok(document) => document,
        Err(exit) => return exit,
    };
    let rows = document["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    match &*find(rows, wanted) {
        [node] => ask.tell(node, |node| lines(node, now_ms())),
        [] => {
            remark(&format!("tidegate: no node is called {wanted:?}; see tidegate nodes"));
            Exit::Refused
        }
        _ => {
            remark(&format!("tidegate: {wanted:?} is more than one node; write more of its id"));
            Exit::Refused
        }
    }
}

/// Those of this id, else those that begin so or have this name.
fn find<'a>(rows: &'a [Value], wanted: &str) -> Vec<&'a Value> {
    let is = |row: &Value, key: &str| row[key].as_str() == Some(wanted);
    let begins = |row: &Value| row["nodeId"].as_str().is_some_and(|id| id.starts_with(wanted));
    if let Some(row) = rows.iter().find(|row| is(row, "nodeId")) {
        return vec![row];
    }
    rows.iter().filter(|row| is(row, "displayName") || (wanted.len() >= 4 && begins(row))).collect()
}

/// What a command came to: its result on standard output, a failure on standard error.
fn told(ask: &Ask, document: &Value) -> Exit {
    let ok = document["ok"] == true;
    if ask.json {
        let printed = answer(&format!("{document:#}\n"));
        return if ok || printed != Exit::Success { printed } else { Exit::TryAgain };
    }
    if ok {
        return answer(&format!("{:#}\n", document["payload"]));
    }
    let error = &document["error"];
    let message = error["message"].as_str().unwrap_or("the node gave no reason");
    let code = error["details"]["nodeError"]["code"].as_str();
    let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
    remark(&format!("tidegate: {message}{code}"));
    Exit::TryAgain
}

fn text(document: &Value, now_ms: u64) -> String {
    let rows = document["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = rows.iter().map(|row| cells(row, now_ms)).collect();
    let mut out = table(&["NODE", "NAME", "STATE", "PLATFORM", "ADDRESS", "COMMANDS"], &rows);
    let count = |key: &str| document[key].as_u64().unwrap_or_default();
    out.push_str(&format!(
        "{} of {} connections, {} commands under way",
        count("connections"),
        count("connections_max"),
        count("pending"),
    ));
    if count("pairings") > 0 {
        out.push_str(&format!("; {} asked to be paired: tidegate devices", count("pairings")));
    }
    if document["enabled"] == false {
        out.push_str("; switched off (nodes.enabled, features.nodes)");
    }
    out.push('\n');
    out
}

fn cells(row: &Value, now_ms: u64) -> Vec<String> {
    let word = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
    let commands = row["commands"].as_array().map_or(0, Vec::len);
    let id: String = word("nodeId").chars().take(12).collect();
    vec![
        id,
        plain(&word("displayName")),
        state(row, now_ms),
        plain(&word("platform")),
        word("remoteIp"),
        commands.to_string(),
    ]
}

fn state(row: &Value, now_ms: u64) -> String {
    let since = |key: &str| row[key].as_u64().map(|at| ago(now_ms, at));
    let state = match (row["connected"] == true, since("connectedAtMs"), since("lastSeenAtMs")) {
        (true, Some(time), _) => format!("connected for {time}"),
        (true, None, _) => "connected".to_owned(),
        (false, _, Some(time)) => format!("seen {time} ago"),
        (false, _, None) => "never seen".to_owned(),
    };
    if row["paired"] == true { state } else { format!("{state}, not paired") }
}

fn lines(node: &Value, now_ms: u64) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            out.push_str(&format!("{name:<12}{value}\n"));
        }
    };
    let word = |key: &str| plain(node[key].as_str().unwrap_or_default());
    let words = |key: &str| {
        let words = node[key].as_array().into_iter().flatten();
        words.map(|word| plain(word.as_str().unwrap_or_default())).collect::<Vec<_>>().join(" ")
    };
    line("node", word("nodeId"));
    line("name", word("displayName"));
    line("state", state(node, now_ms));
    line("last seen", word("lastSeenReason"));
    line("platform", word("platform"));
    line("family", word("deviceFamily"));
    line("model", word("modelIdentifier"));
    line("client", format!("{} {}", word("clientId"), word("version")).trim().to_owned());
    line("address", word("remoteIp"));
    line("commands", words("commands"));
    line("caps", words("caps"));
    out
}

/// A text of a stranger, fit for a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn ago(now_ms: u64, at_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(at_ms) / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn now_ms() -> u64 {
    u64::try_from(clock::unix().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 10_000_000;

    fn document() -> Value {
        json!({
            "enabled": true, "connections": 3, "connections_max": 1024, "pending": 1, "pairings": 2,
            "nodes": [
                {"nodeId": "aabbccddeeff00112233", "displayName": "phone\u{1b}[2J", "platform": "iOS 26",
                 "remoteIp": "192.0.2.1", "connected": true, "paired": true, "commands": ["a", "b"],
                 "caps": ["camera"], "connectedAtMs": NOW - 65_000, "lastSeenAtMs": NOW - 65_000,
                 "clientId": "openclaw-ios", "version": "1.2"},
                {"nodeId": "aabbffff", "connected": false, "paired": true, "commands": [], "caps": [],
                 "lastSeenAtMs": NOW - 7_200_000, "lastSeenReason": "background"},
            ],
        })
    }

    #[test]
    fn nodes_are_shown_with_what_they_offer_and_since_when() {
        let text = text(&document(), NOW);
        assert!(!text.contains('\u{1b}'), "a name does not write on the terminal");
        let lines: Vec<String> =
            text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "NODE NAME STATE PLATFORM ADDRESS COMMANDS",
                "aabbccddeeff phone [2J connected for 1 min iOS 26 192.0.2.1 2",
                "aabbffff - seen 2 h ago - - 0",
                "3 of 1024 connections, 1 commands under way; 2 asked to be paired: tidegate devices",
            ]
        );
    }

    #[test]
    fn a_node_is_found_by_its_name_and_by_the_beginning_of_its_id() {
        let document = document();
        let rows = document["nodes"].as_array().unwrap();
        let found = |wanted: &str| find(rows, wanted).len();
        assert_eq!((found("aabbcc"), found("aabb"), found("aab"), found("x")), (1, 2, 0, 0));
        assert_eq!((found("phone\u{1b}[2J"), found("aabbffff")), (1, 1));
        let text = lines(rows[0].as_object().map(|_| &rows[0]).unwrap(), NOW);
        assert!(text.contains("commands    a b\n"), "{text}");
        assert!(text.contains("client      openclaw-ios 1.2\n"), "{text}");
    }
}
