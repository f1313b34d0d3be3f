//! Liveness and readiness in Kubernetes' format: the status is for machines, the text for people.

use std::fmt::Write as _;
use std::time::Instant;

use crate::base::health::{Board, Phase, State};
use crate::base::heartbeat::Heartbeats;
use crate::net::http::Response;

/// The check that stands for the phase of the process. It cannot be excluded.
const PHASE: &str = "phase";

/// What a probe found.
pub(super) struct Found {
    checks: Vec<(String, State)>,
}

/// Every watched thread, alive or not. Nothing else counts: a restart cures nothing else.
pub(super) fn live(heartbeats: &Heartbeats, now: Instant) -> Found {
    let checks = heartbeats.pulses(now).into_iter().map(|pulse| {
        let state = match pulse.silence {
            Some(silence) if pulse.late() => State::Failed(format!(
                "no beat for {} ms (at most {} ms)",
                silence.as_millis(),
                pulse.silence_max.as_millis()
            )),
            _ => State::Ok,
        };
        (pulse.name, state)
    });
    Found { checks: checks.collect() }
}

/// The phase and every check on the board.
pub(super) fn ready(board: &Board, now: Instant) -> Found {
    let phase = match board.phase() {
        Phase::Ready => State::Ok,
        other => State::Failed(other.as_str().to_owned()),
    };
    let mut checks = vec![(PHASE.to_owned(), phase)];
    let more = board.checks().into_iter().map(|check| (check.name().to_owned(), check.state(now)));
    checks.extend(more);
    Found { checks }
}

impl Found {
    /// The answer to `/name`, or to `/name/part` for one check; none when there is no such check.
    pub(super) fn answer(self, name: &str, part: Option<&str>, query: &str) -> Option<Response> {
        match part {
            None | Some("") => Some(self.all(name, query)),
            Some(part) => {
                let (_, state) = self.checks.iter().find(|(check, _)| check == part)?;
                let mut text = String::new();
                line(&mut text, part, state);
                Some(if state.passes() { respond(200, "ok") } else { respond(503, text) })
            }
        }
    }

    fn all(&self, name: &str, query: &str) -> Response {
        let mut verbose = false;
        let mut excluded = Vec::new();
        for pair in query.split('&') {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("verbose", _) => verbose = true,
                ("exclude", check) if !check.is_empty() => excluded.push((check, false)),
                _ => {}
            }
        }
        let mut text = String::new();
        let mut passed = true;
        for (check, state) in &self.checks {
            let exclusion = excluded.iter_mut().find(|(wanted, _)| wanted == check);
            match exclusion {
                Some((_, matched)) if check != PHASE => {
                    *matched = true;
                    let _ = writeln!(text, "[+]{check} excluded: ok");
                }
                _ => {
                    passed &= state.passes();
                    line(&mut text, check, state);
                }
            }
        }
        if passed && !verbose {
            return respond(200, "ok");
        }
        for (check, _) in excluded.iter().filter(|(_, matched)| !matched) {
            let _ = writeln!(text, "warn: {check} cannot be excluded");
        }
        let _ = writeln!(text, "{name} check {}", if passed { "passed" } else { "failed" });
        respond(if passed { 200 } else { 503 }, text)
    }
}

fn line(text: &mut String, check: &str, state: &State) {
    // Writing to a string does not fail.
    let _ = match state {
        State::Ok => writeln!(text, "[+]{check} ok"),
        State::Degraded(reason) => writeln!(text, "[+]{check} degraded: {reason}"),
        State::Pending => writeln!(text, "[-]{check} failed: not known yet"),
        State::Failed(reason) => writeln!(text, "[-]{check} failed: {reason}"),
    };
}

fn respond(status: u16, text: impl Into<Vec<u8>>) -> Response {
    Response::text(status, text)
        .with("cache-control", "no-store")
        .with("x-content-type-options", "nosniff")
}
