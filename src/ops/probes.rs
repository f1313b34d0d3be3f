//! Liveness and readiness in Kubernetes' format: the status is for machines, the text for people.

use std::fmt::Write as _;
use std::time::Instant;

use crate::base::health::{Affects, Board, Look, Phase, State};
use crate::base::heartbeat::{Doing, Heartbeats};
use crate::net::http::Response;

/// The check that stands for the phase of the process. It cannot be excluded.
const PHASE: &str = "phase";

/// What a probe found.
pub(super) struct Found {
    /// Name, what it counts as, and what else there is to say of it.
    checks: Vec<(String, State, String)>,
    /// Something to tell beside the checks.
    line: Option<String>,
}

/// Every watched thread, alive or not. Nothing else counts: a restart cures nothing else. One of many
/// that hangs is told of, for the others go on.
pub(super) fn live(heartbeats: &Heartbeats, now: Instant) -> Found {
    let checks = heartbeats.pulses(now).into_iter().map(|pulse| {
        let state = match pulse.silence {
            Some(silence) if pulse.late() => {
                let (silence, max) = (silence.as_millis(), pulse.silence_max.as_millis());
                let mut why = format!("no beat for {silence} ms (at most {max} ms)");
                if pulse.doing != Doing::Working {
                    let _ = write!(why, ", blocked on {}", pulse.doing);
                }
                if pulse.essential { State::Failed(why) } else { State::Degraded(why) }
            }
            _ => State::Ok,
        };
        (pulse.name, state, String::new())
    });
    Found { checks: checks.collect(), line: None }
}

/// The phase and every check on the board.
pub(super) fn ready(board: &Board, now: Instant) -> Found {
    let phase = match board.phase() {
        Phase::Ready => State::Ok,
        other => State::Failed(other.as_str().to_owned()),
    };

    let mut checks = vec![(PHASE.to_owned(), phase, String::new())];
    checks.extend(board.looks(now).into_iter().map(|look| {
        let (counts, more) = (look.counts(), more(&look));
        (look.name, counts, more)
    }));
    Found { checks, line: None }
}

/// How old what is known is, where it is renewed by itself, and what does not count.
fn more(look: &Look) -> String {
    let mut more = String::new();
    if look.interval.is_some() {
        let _ = write!(more, " (checked {} s ago)", look.age.as_secs());
    }
    if let (Affects::Nothing, State::Degraded(why) | State::Failed(why)) =
        (look.affects, &look.state)
    {
        let _ = write!(more, " (not well, which does not count: {why})");
    }
    more
}

impl Found {
    /// With this line before the last one.
    pub(super) fn with(self, line: Option<String>) -> Self {
        Found { line, ..self }
    }

    /// The answer to `/name`, or to `/name/part` for one check; none when there is no such check.
    pub(super) fn answer(self, name: &str, part: Option<&str>, query: &str) -> Option<Response> {
        match part {
            None | Some("") => Some(self.all(name, query)),
            Some(part) => {
                let (_, state, more) = self.checks.iter().find(|(check, ..)| check == part)?;
                let mut text = String::new();
                line(&mut text, part, state, more);
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
        for (check, state, more) in &self.checks {
            let exclusion = excluded.iter_mut().find(|(wanted, _)| wanted == check);
            match exclusion {
                Some((_, matched)) if check != PHASE => {
                    *matched = true;
                    let _ = writeln!(text, "[+]{check} excluded: ok");
                }
                _ => {
                    passed &= state.passes();
                    line(&mut text, check, state, more);
                }
            }
        }
        if passed && !verbose {
            return respond(200, "ok");
        }
        for (check, _) in excluded.iter().filter(|(_, matched)| !matched) {
            let _ = writeln!(text, "warn: {check} cannot be excluded");
        }
        if let Some(line) = &self.line {
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(text, "{name} check {}", if passed { "passed" } else { "failed" });
        respond(if passed { 200 } else { 503 }, text)
    }
}

fn line(text: &mut String, check: &str, state: &State, more: &str) {
    // Writing to a string does not fail.
    let _ = match state {
        State::Ok => writeln!(text, "[+]{check} ok{more}"),
        State::Degraded(reason) => writeln!(text, "[+]{check} degraded: {reason}{more}"),
        State::Pending => writeln!(text, "[-]{check} failed: not known yet"),
        State::Failed(reason) => writeln!(text, "[-]{check} failed: {reason}{more}"),
    };
}

fn respond(status: u16, text: impl Into<Vec<u8>>) -> Response {
    Response::text(status, text)
        .with("cache-control", "no-store")
        .with("x-content-type-options", "nosniff")
}
