//! `tidegate drain`.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::client::Ask;
use super::output::remark;
use crate::base::clock;
use crate::base::exit::Exit;

/// Between two looks whether the daemon has ended.
const LOOK: Duration = Duration::from_millis(100);
/// How long the end may take beyond `server.drain_timeout`.
const LAST_WORDS: Duration = Duration::from_secs(15);

/// Have a running daemon take no new work
///
/// Without an upstream the daemon drains and stops, and this waits until it has. With --stay it runs
/// on: new model calls get 503 and readiness is off, until --undo. With an upstream nothing new is
/// sent to that one; calls that run go on.
#[derive(Debug, Args)]
pub(super) struct Drain {
    /// Only this upstream
    upstream: Option<String>,
    /// Keep the process, with readiness off
    #[arg(long, conflicts_with_all = ["undo", "upstream"])]
    stay: bool,
    /// Take work again: after --stay, or for the upstream
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    ask: Ask,
}

impl Drain {
    pub(super) fn execute(self) -> Exit {
        let path = if self.undo { "/undrain" } else { "/drain" };
        match self.upstream.as_deref() {
            Some(upstream) => self.ask.order(path, &json!({ "upstream": upstream }), |_| {
                let what = if self.undo { "is asked again" } else { "is sent nothing new" };
                format!("{upstream} {what}\n")
            }),
            None if self.stay || self.undo => self.ask.order(path, &json!({}), |_| {
                let what = if self.undo {
                    "new model calls are taken again"
                } else {
                    "new model calls are refused and readiness is off; tidegate drain --undo takes it back"
                };
                format!("{what}\n")
            }),
            None => stop(&self.ask),
        }
    }
}

/// Has the daemon drain and stop, and waits for its end.
pub(super) fn stop(ask: &Ask) -> Exit {
    let outcome = match ask.post("/stop", &json!({})) {
        Ok(outcome) => outcome,
        Err(exit) => return exit,
    };
    let timeout =
        outcome["drain_timeout_ms"].as_u64().map_or(Duration::ZERO, Duration::from_millis);
    let until = clock::now() + timeout + LAST_WORDS;
    while ask.answers() {
        if clock::now() >= until {
            remark("tidegate: it has not ended yet; look at its log");
            return Exit::TryAgain;
        }
        std::thread::sleep(LOOK);
    }
    ask.tell(&json!({ "stopped": true }), |_: &Value| "stopped\n".to_owned())
}
