//! The log, as it is written.

use std::io;
use std::time::Duration;

use log::Level;
use serde_json::json;

use super::{Ask, Done, Route};
use crate::base::error::{Error, Kind};
use crate::net::control::{Out, Stream};
use crate::net::http::Method;
use crate::observe::log::{Follower, Tail, TailLine};
use crate::ops::Parts;

/// Lines from before that are given when nobody says how many.
const BEFORE: usize = 10;

/// How long a look for the next line takes: an end is seen so soon.
const LOOK: Duration = Duration::from_millis(500);

pub(super) const ROUTES: &[Route] = &[
    Route { method: Method::Get, path: "/logs", run: |parts, ask| logs(parts, ask, false) },
    Route { method: Method::Get, path: "/logs/follow", run: |parts, ask| logs(parts, ask, true) },
];

/// What is looked for.
struct Wanted {
    level: Level,
    text: String,
}

impl Wanted {
    fn fits(&self, line: &TailLine) -> bool {
        line.level <= self.level
            && (self.text.is_empty()
                || memchr::memmem::find(&line.bytes, self.text.as_bytes()).is_some())
    }
}

/// `?n=LINES&level=LEVEL&grep=TEXT`: the last lines of those that fit, and with `follow` what comes.
fn logs(parts: &Parts, ask: &Ask<'_>, follow: bool) -> Result<Done, Error> {
    let wrong = |what: &'static str| Error::new(Kind::InvalidField, what);
    let before = match ask.query("n")? {
        None => BEFORE,
        Some(n) => n.parse().map_err(|_| wrong("n is no number of lines"))?,
    };
    let level = match ask.query("level")? {
        None => Level::Trace,
        Some(level) => level
            .parse()
            .map_err(|_| wrong("level is none of error, warn, info, debug and trace"))?,
    };
    let wanted = Wanted { level, text: ask.query("grep")?.unwrap_or_default() };
    let tail: &std::sync::Arc<Tail> =
        parts.tail.as_ref().ok_or_else(|| Error::new(Kind::Unsupported, "there is no log"))?;
    if follow {
        let who = ask.caller().to_string();
        let (mut last, follower) = tail.follow(&who).map_err(|full| {
            Error::new(Kind::QueueFull, format!("too many follow the log already: {full}"))
        })?;
        keep(&mut last, &wanted, before);
        return Ok(Done::stream(Following { last, follower, wanted }));
    }
    let mut last = tail.recent();
    keep(&mut last, &wanted, before);
    let lines: Vec<_> = last.iter().map(document).collect();
    Ok(Done::json(&json!({ "lines": lines })))
}

/// The last ones that fit.
fn keep(lines: &mut Vec<TailLine>, wanted: &Wanted, count: usize) {
    lines.retain(|line| wanted.fits(line));
    let excess = lines.len().saturating_sub(count);
    lines.drain(..excess);
}

fn document(line: &TailLine) -> serde_json::Value {
    let text = String::from_utf8_lossy(&line.bytes);
    json!({ "level": line.level.as_str().to_ascii_lowercase(), "line": text.trim_end() })
}

/// Lines that go on and on.
struct Following {
    last: Vec<TailLine>,
    follower: Follower,
    wanted: Wanted,
}

impl Stream for Following {
    fn run(self: Box<Self>, out: &mut Out<'_>) -> io::Result<()> {
        let Following { last, follower, wanted } = *self;
        for line in last {
            out.line(document(&line).to_string().as_bytes())?;
        }
        let mut told = 0;
        while !out.ended()? {
            let Some(line) = follower.next(LOOK) else { continue };
            // Before the line behind the gap.
            let dropped = follower.dropped();
            if dropped > told {
                out.line(json!({ "dropped": dropped - told }).to_string().as_bytes())?;
                told = dropped;
            }
            if wanted.fits(&line) {
                out.line(document(&line).to_string().as_bytes())?;
            }
        }
        Ok(())
    }
}
