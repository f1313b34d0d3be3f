//! `tidegate status`.

use std::fmt::Write as _;

use bytesize::ByteSize;
use clap::Args;
use serde_json::Value;

use super::client::{Ask, table};
use crate::base::exit::Exit;

/// Show a running daemon on one screen: how it is, what it does, its upstreams, its last events
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    ask: Ask,
}

impl Status {
    pub(super) fn execute(self) -> Exit {
        self.ask.show("/status", text)
    }
}

fn text(document: &Value) -> String {
    let word = |key: &str| document[key].as_str().unwrap_or("-");
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "tidegate {} (process {}), up {}: {}, {}{}",
        word("version"),
        document["pid"],
        time(document["uptime_seconds"].as_u64().unwrap_or_default()),
        word("phase"),
        word("status"),
        if document["drained"] == true { ", drained" } else { "" },
    );
    for reason in document["reasons"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "  {}", reason.as_str().unwrap_or_default());
    }
    let listen = |plane: &str| document["listen"][plane].as_str().unwrap_or("-").to_owned();
    let config = document["config"]["path"].as_str().unwrap_or("built-in defaults");
    let _ = write!(out, "config {config}");
    if let Some(version) = document["config"]["version"].as_u64() {
        let _ = write!(out, ", version {version}");
    }
    if let Some(seconds) = document["config"]["probation_seconds"].as_u64() {
        let _ = write!(out, " (on probation for {seconds} s more)");
    }
    let _ = writeln!(out, "; data {}, ops {}", listen("data"), listen("ops"));
    let of = |key: &str| {
        let (now, max) = (&document[key]["now"], &document[key]["max"]);
        format!("{} of {}", now.as_u64().unwrap_or(0), max.as_u64().unwrap_or(0))
    };
    let _ = writeln!(
        out,
        "load {}: {} requests, {} waiting, {} connections, {}",
        word("level"),
        of("requests"),
        of("waiting"),
        of("connections"),
        memory(&document["memory"]),
    );
    if let Some(undelivered) = document["alerts"]["undelivered"].as_u64() {
        let firing = document["alerts"]["firing"].as_u64().unwrap_or_default();
        let off = if document["alerts"]["enabled"] == false { "switched off, " } else { "" };
        let _ = writeln!(out, "alerts: {off}{firing} firing, {undelivered} not delivered yet");
    }
    let nodes = &document["nodes"];
    if nodes["connections"].as_u64() > Some(0) || nodes["pairings"].as_u64() > Some(0) {
        let count = |key: &str| nodes[key].as_u64().unwrap_or_default();
        let _ = write!(
            out,
            "nodes: {} connected, {} of {} connections, {} commands under way",
            count("connected"),
            count("connections"),
            count("connections_max"),
            count("pending"),
        );
        let asked = count("pairings");
        let told = if asked > 0 { format!("; {asked} asked to be paired") } else { String::new() };
        let _ = writeln!(out, "{told}");
    }
    let rows = |key: &str, row: fn(&Value) -> Vec<String>| -> Vec<Vec<String>> {
        document[key].as_array().into_iter().flatten().map(row).collect()
    };
    let upstreams = rows("upstreams", upstream);
    let _ =
        write!(out, "\n{}", table(&["UPSTREAM", ">CALLS", "STATE", "LAST FAILURE"], &upstreams));
    let events = rows("events", event);
    if !events.is_empty() {
        let _ = write!(out, "\n{}", table(&["EVENT", "LEVEL", "KIND", "ABOUT"], &events));
    }
    out
}

fn memory(memory: &Value) -> String {
    let size = |bytes: u64| ByteSize(bytes).display().iec().to_string();
    let now = memory["now"].as_u64().map_or("-".to_owned(), size);
    match memory["max"].as_u64() {
        Some(max) => format!("{now} of {}", size(max)),
        None => now,
    }
}

fn upstream(row: &Value) -> Vec<String> {
    let name = row["upstream"].as_str().unwrap_or_default().to_owned();
    let mut state = match (row["drained"] == true, row["breaker"].as_str()) {
        (true, _) => "drained".to_owned(),
        (false, Some(stand)) => stand.replace('_', "-"),
        (false, None) => "no breaker".to_owned(),
    };
    let models = row["models_left_alone"].as_array().map_or(0, Vec::len);
    if models > 0 {
        state.push_str(&format!(" ({models} models)"));
    }
    let last = &row["last_failure"];
    let failure = match last["code"].as_str() {
        Some(code) => {
            let ago = time(last["seconds_ago"].as_u64().unwrap_or_default());
            let message: String =
                last["message"].as_str().unwrap_or_default().chars().take(80).collect();
            format!("{ago} ago, {code}: {message}")
        }
        None => "-".to_owned(),
    };
    vec![name, row["calls"].as_u64().unwrap_or_default().to_string(), state, failure]
}

fn event(row: &Value) -> Vec<String> {
    let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let about: String =
        format!("{} {}", word("subject"), word("detail")).trim().chars().take(100).collect();
    vec![word("at"), word("level"), word("kind"), about]
}

/// A time as people say it, in its two largest units.
fn time(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_screen_says_how_it_is_and_why() {
        let document = json!({
            "version": "1.2.3", "pid": 7, "uptime_seconds": 3720, "phase": "ready",
            "drained": true, "status": "unhealthy", "reasons": ["drained: by order"],
            "config": {"path": "/etc/t.toml", "version": 12},
            "listen": {"data": "127.0.0.1:1", "ops": "127.0.0.1:2"},
            "level": "busy",
            "connections": {"now": 3, "max": 4096}, "requests": {"now": 2, "max": 1024},
            "waiting": {"now": 0, "max": 1024}, "memory": {"now": 1048576, "max": null},
            "alerts": {"firing": 1, "undelivered": 2},
            "nodes": {"connected": 1, "connections": 3, "connections_max": 1024, "pending": 0,
                "pairings": 1},
            "upstreams": [
                {"upstream": "cloud", "calls": 2, "drained": false, "breaker": "half_open",
                 "models_left_alone": ["m"], "last_failure":
                 {"code": "upstream_cut", "message": "broke off", "seconds_ago": 61}},
                {"upstream": "echo", "calls": 0, "drained": true, "breaker": null,
                 "models_left_alone": [], "last_failure": null},
            ],
            "events": [{"at": "2026-11-22T00:00:00Z", "level": "warn", "kind": "breaker_opened",
                "subject": "cloud/m", "detail": "broke off"}],
        });
        let lines: Vec<String> = text(&document)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "tidegate 1.2.3 (process 7), up 1 h 2 min: ready, unhealthy, drained",
                "drained: by order",
                "config /etc/t.toml, version 12; data 127.0.0.1:1, ops 127.0.0.1:2",
                "load busy: 2 of 1024 requests, 0 of 1024 waiting, 3 of 4096 connections, 1.0 MiB",
                "alerts: 1 firing, 2 not delivered yet",
                "nodes: 1 connected, 3 of 1024 connections, 0 commands under way; 1 asked to be paired",
                "",
                "UPSTREAM CALLS STATE LAST FAILURE",
                "cloud 2 half-open (1 models) 1 min 1 s ago, upstream_cut: broke off",
                "echo 0 drained -",
                "",
                "EVENT LEVEL KIND ABOUT",
                "2026-11-22T00:00:00Z warn breaker_opened cloud/m broke off",
            ]
        );
    }
}
