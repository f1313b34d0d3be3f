//! `GET /snapshot`: everything that an incident needs, as one JSON document.
//!
//! Each section is taken for itself and fails for itself: one that cannot be had says why in its place,
//! also when taking it panics, and the rest is there. What the other routes of the ops plane tell is
//! asked of them; what the operating system knows comes from `/proc`. No section waits for anything but
//! the kernel; past [`TIME_MAX`] the rest is left out.
//!
//! A snapshot is handed to others, so nothing in it may be a secret: the configuration is printed
//! without them, and every text is searched for the keys of upstreams once more. Prompts and answers
//! stand nowhere in what it is made from.
//!
//! It is answered on the control socket, and on an ops plane that only this machine can reach: who may
//! not read the configuration file should not read it here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::shown::Configured;
use super::{OpsHandler, problem};
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::time_format::rfc3339;
use crate::config::settings::Secret;
use crate::net::http::{BodyLength, Head, Headers, Method, Response};

mod log;
mod system;

/// Largest snapshot, in bytes; below what our own client takes (8 MiB). Metrics come to 300 KiB,
/// everything else to less. Past it: the sections that do not fit are left out, and say so.
pub const BYTES_MAX: usize = 6 * 1024 * 1024;
/// Largest section, in bytes.
pub const SECTION_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Snapshots at a time. Past it: 503.
pub const AT_ONCE_MAX: u64 = 1;
/// How long a snapshot may take before the sections that are left are left out.
pub const TIME_MAX: Duration = Duration::from_secs(5);
/// Shortest key that is searched for, in bytes. A shorter one would be found everywhere.
const SECRET_BYTES_MIN: usize = 6;
/// What stands in its place.
const MASK: &str = "(secret)";
/// The form of the document.
const FORMAT: u64 = 1;

/// What a section came to, or why it could not be had.
type Found = Result<Value, String>;
type Section = (&'static str, fn(&Source<'_>) -> Found);

/// In this order. The most wanted come first: they are there when room or time run out.
const SECTIONS: &[Section] = &[
    ("about", about),
    ("readyz", |source| source.lines("/readyz?verbose")),
    ("livez", |source| source.lines("/livez?verbose")),
    ("health", |source| source.json("/health")),
    ("alerts", |source| source.json("/alerts")),
    ("events", events),
    ("breakers", |source| source.json("/breakers")),
    ("nodes", |source| source.json("/nodes")),
    ("limits", |source| source.json("/limits")),
    ("threads", |_| system::threads()),
    ("memory", |_| system::memory()),
    ("descriptors", |_| system::descriptors()),
    ("config", config),
    ("log", |source| log::tail(&source.seen, source.handler.parts.tail.as_deref())),
    ("cache", |source| source.json("/cache")),
    ("usage", |source| source.json("/usage?by=model")),
    ("cgroup", |_| system::cgroup()),
    ("system", |_| system::system()),
    ("metrics", metrics),
    ("history", history),
];

/// Metrics whose last quarter of an hour is told, each with how its values are taken together. What
/// there is beside them can be asked for while the daemon runs.
const HISTORY: &[(&str, &str)] = &[
    ("tidegate_http_requests_total", "rate"),
    ("tidegate_http_request_seconds", "p95"),
    ("tidegate_first_token_seconds", "p95"),
    ("tidegate_upstream_attempts_total", "rate"),
    ("tidegate_limit_now", "max"),
    ("tidegate_overload_level", "max"),
    ("process_resident_memory_bytes", "max"),
    ("process_open_fds", "max"),
];

/// What sections are taken from.
struct Source<'a> {
    handler: &'a OpsHandler,
    seen: std::sync::Arc<Configured>,
    now: Instant,
}

/// The answer.
pub(super) fn answer(handler: &OpsHandler, now: Instant) -> Response {
    if !handler.loopback {
        let text = "snapshots are told on the control socket only where others can reach this address; \
                    run tidegate snapshot as the user of the daemon";
        return problem(&Error::new(Kind::NotYours, text));
    }
    let shown = &handler.parts.shown;
    let Some(_running) = shown.running.try_take(1) else {
        let text = "another snapshot is being taken; try again";
        let again = Some(Duration::from_secs(1));
        return problem(&Error::new(Kind::QueueFull, text).retry_after(again));
    };
    let source = Source { handler, seen: shown.now(), now };
    let document = document(&source, SECTIONS, &mut clock::now);
    shown.bytes.saw(document.len() as u64);
    if document.len() >= BYTES_MAX {
        shown.bytes.refuse();
    }
    Response::json(200, document).with("cache-control", "no-store")
}

/// The whole document, at most [`BYTES_MAX`] of it.
fn document(
    source: &Source<'_>,
    sections: &[Section],
    clock: &mut dyn FnMut() -> Instant,
) -> String {
    let begun = clock();
    let mut out = format!("{{\"format\":{FORMAT}");
    // Room for every section to say that it is left out.
    let reserve = sections.len() * 128;
    for (name, take) in sections {
        let found = match clock().saturating_duration_since(begun) {
            spent if spent > TIME_MAX => Err("left out: the others took too long".to_owned()),
            _ => catch_unwind(AssertUnwindSafe(|| take(source)))
                .unwrap_or_else(|_| Err("taking it panicked; the log has the place".to_owned())),
        };
        let mut value = found.unwrap_or_else(|why| json!({ "missing": why }));
        hide(&mut value, &source.seen.secrets);
        let mut text = value.to_string();
        let room = BYTES_MAX.saturating_sub(out.len() + reserve).min(SECTION_BYTES_MAX);
        if text.len() > room {
            let why =
                format!("left out: it has {} bytes, and there was room for {room}", text.len());
            text = json!({ "missing": why }).to_string();
        }
        out.push_str(&format!(",\"{name}\":{text}"));
    }
    out.push('}');
    out
}

/// Takes secrets out of every text, names of keys included.
fn hide(value: &mut Value, secrets: &[Secret]) {
    let held = |text: &str| secrets.iter().any(|secret| is_in(secret, text));
    match value {
        Value::String(text) if held(text) => *text = masked(text, secrets),
        Value::Array(list) => list.iter_mut().for_each(|value| hide(value, secrets)),
        Value::Object(table) => {
            if table.keys().any(|key| held(key)) {
                let inner = std::mem::take(table);
                *table = inner.into_iter().map(|(key, v)| (masked(&key, secrets), v)).collect();
            }
            table.values_mut().for_each(|value| hide(value, secrets));
        }
        _ => {}
    }
}

fn is_in(secret: &Secret, text: &str) -> bool {
    secret.expose().len() >= SECRET_BYTES_MIN && text.contains(secret.expose())
}

fn masked(text: &str, secrets: &[Secret]) -> String {
    let found = secrets.iter().filter(|secret| is_in(secret, text));
    found.fold(text.to_owned(), |text, secret| text.replace(secret.expose(), MASK))
}

impl Source<'_> {
    /// What another route answers.
    fn ask(&self, target: &str) -> Result<Response, String> {
        let head = Head {
            method: Method::Get,
            target: target.into(),
            http11: true,
            headers: Headers::default(),
            body: BodyLength::None,
            keep_alive: false,
            expects_continue: false,
        };
        let answer = self.handler.handle_head(&head, self.now);
        match answer.status {
            404 => Err("this daemon has none".to_owned()),
            _ => Ok(answer),
        }
    }

    fn json(&self, target: &str) -> Found {
        let answer = self.ask(target)?;
        serde_json::from_slice(&answer.body).or_else(|_| self.lines(target))
    }

    /// A text, as a list of its lines.
    fn lines(&self, target: &str) -> Found {
        let answer = self.ask(target)?;
        Ok(String::from_utf8_lossy(&answer.body).lines().map(Value::from).collect())
    }
}

fn about(source: &Source<'_>) -> Found {
    let board = &source.handler.parts.board;
    let process = crate::observe::process::Process::now();
    let now = clock::unix().as_secs_f64();
    let uptime = process.start_time_seconds.map(|start| (now - start).max(0.0).round());
    Ok(json!({
        "taken": rfc3339(clock::wall(), 3),
        "version": env!("CARGO_PKG_VERSION"),
        "build": {
            "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
        },
        "pid": std::process::id(),
        "uptime_seconds": uptime,
        "cpu_seconds": process.cpu_seconds,
        "phase": board.phase().as_str(),
        "ready": board.ready(source.now),
    }))
}

fn config(source: &Source<'_>) -> Found {
    let seen = &source.seen;
    let path = seen.path.as_ref().map(|path| path.display().to_string());
    let overview = source.handler.parts.config.as_ref();
    Ok(json!({
        "file": path,
        "in_force": overview.map(|overview| overview.document()),
        "settings": seen.print.lines().collect::<Vec<_>>(),
    }))
}

fn events(source: &Source<'_>) -> Found {
    let row = |event: crate::base::events::Event| {
        json!({
            "number": event.number,
            "at": rfc3339(event.at, 3),
            "level": event.level.as_str().to_ascii_lowercase(),
            "kind": event.kind,
            "subject": event.subject,
            "detail": event.detail,
        })
    };
    Ok(source.handler.parts.events.recent().into_iter().rev().map(row).collect())
}

/// The last minutes, metric by metric.
fn history(source: &Source<'_>) -> Found {
    let mut found = Map::new();
    for (metric, reduce) in HISTORY {
        let answer = source.json(&format!("/history?metric={metric}&from=-15m&fn={reduce}"));
        found.insert((*metric).to_owned(), answer.unwrap_or_else(|why| json!({ "missing": why })));
    }
    Ok(Value::Object(found))
}

/// Every series, as `/metrics` has it, by name: its help and type would only repeat what is known.
fn metrics(source: &Source<'_>) -> Found {
    let answer = source.ask("/metrics")?;
    let mut families: Map<String, Value> = Map::new();
    for line in String::from_utf8_lossy(&answer.body).lines() {
        let Some((series, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let (name, labels) = series.split_at(series.find('{').unwrap_or(series.len()));
        let value = value.parse::<f64>().map_or_else(|_| value.into(), Value::from);
        let family = families.entry(name).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(family) = family {
            family.insert(labels.to_owned(), value);
        }
    }
    Ok(Value::Object(families))
}

#[cfg(test)]
mod tests;
