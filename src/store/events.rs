//! What happened to the program, kept over restarts: the events of `base::events`.
//!
//! The thread takes them from the history in memory once a second, so that whoever records an event
//! waits for nothing, and those that come while the store is away are kept when it is back, as far as
//! the history reaches.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::Level;
use rusqlite::{Connection, Row, ToSql, params};

use super::db::Db;
use super::retention::{BATCH_ROWS, Terms};
use crate::base::clock;
use crate::base::error::Error;
use crate::base::events::{Event, KINDS_MAX};

/// The table. `total` is the sum of the bytes of all events up to this one, so that the bytes of those
/// that are kept are known from the first and the last of them.
pub(super) const SCHEMA: &str = "
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    level INTEGER NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL,
    left_out INTEGER NOT NULL,
    total INTEGER NOT NULL
) STRICT;
CREATE INDEX events_by_kind ON events (kind, id);
";

/// Bytes that an event takes beside its texts, about.
const EVENT_BYTES: usize = 64;

/// Events of one kind that are kept at once: a kind that comes in a flood must not push the others
/// out of the file …
const KIND_BURST: u32 = 64;
/// … and after that one in so long.
const KIND_INTERVAL: Duration = Duration::from_secs(5);

/// Most events that one question is answered with.
pub const ANSWER_MAX: usize = 1000;

/// Which events are to be kept, one kind at a time.
#[derive(Debug, Default)]
pub(super) struct Sieve {
    /// At most [`KINDS_MAX`], as there are in the program.
    kinds: Vec<Passed>,
    /// The number of the last event that was looked at.
    last: u64,
}

#[derive(Debug)]
struct Passed {
    kind: &'static str,
    left: u32,
    since: Instant,
    left_out: u64,
}

/// An event that is kept.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    event: Event,
    /// Of its kind, how many before it were not kept.
    left_out: u64,
}

impl Sieve {
    /// The number of the last event that was taken.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// What came after this number was not kept after all.
    pub(super) fn back_to(&mut self, number: u64) {
        self.last = number;
    }

    /// Begins anew: there is a new file, and what is still in the history belongs into it.
    pub(super) fn restart(&mut self) {
        *self = Sieve::default();
    }

    /// Those of these events that are to be kept.
    pub(super) fn take(&mut self, events: Vec<Event>, now: Instant) -> Vec<Kept> {
        events.into_iter().filter_map(|event| self.pass(event, now)).collect()
    }

    fn pass(&mut self, event: Event, now: Instant) -> Option<Kept> {
        self.last = self.last.max(event.number);
        let at = self.kinds.iter().position(|passed| passed.kind == event.kind);
        let at = at.unwrap_or_else(|| {
            let fresh = Passed { kind: event.kind, left: KIND_BURST, since: now, left_out: 0 };
            if self.kinds.len() > KINDS_MAX {
                self.kinds.swap_remove(0);
            }
            self.kinds.push(fresh);
            self.kinds.len() - 1
        });
        let passed = &mut self.kinds[at];
        let rest = now.saturating_duration_since(passed.since);
        let more = u32::try_from(rest.as_nanos() / KIND_INTERVAL.as_nanos()).unwrap_or(u32::MAX);
        if more > 0 {
            passed.left = passed.left.saturating_add(more).min(KIND_BURST);
            passed.since = now;
        }
        // What someone should act on now is kept in any case.
        if passed.left == 0 && event.level != Level::Error {
            passed.left_out += 1;
            return None;
        }
        passed.left = passed.left.saturating_sub(1);
        Some(Kept { event, left_out: std::mem::take(&mut passed.left_out) })
    }
}

/// Writes events.
pub(super) fn insert(connection: &Connection, events: &[Kept]) -> rusqlite::Result<()> {
    let newest = "SELECT total FROM events ORDER BY id DESC LIMIT 1";
    let mut total: i64 = match connection.query_row(newest, [], |row| row.get(0)) {
        Err(rusqlite::Error::QueryReturnedNoRows) => 0,
        found => found?,
    };
    let text = "INSERT INTO events (at_ms, level, kind, subject, detail, left_out, total) \
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let mut statement = connection.prepare_cached(text)?;
    for Kept { event, left_out } in events {
        let bytes = event.kind.len() + event.subject.len() + event.detail.len() + EVENT_BYTES;
        total = total.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
        statement.execute(params![
            millis(event.at),
            event.level as i64,
            event.kind,
            event.subject,
            event.detail,
            i64::try_from(*left_out).unwrap_or(i64::MAX),
            total,
        ])?;
    }
    Ok(())
}

/// Deletes what is too old or too much.
pub(super) fn retain(connection: &Connection, terms: &Terms<'_>) -> rusqlite::Result<usize> {
    let batch = i64::try_from(BATCH_ROWS).unwrap_or(i64::MAX);
    if terms.force {
        // A tenth of a batch: events are small, and few of them should go.
        let text = "DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT ?1)";
        return connection.prepare_cached(text)?.execute([batch / 10]);
    }
    let keep = i64::try_from(terms.settings.events_keep.as_millis()).unwrap_or(i64::MAX);
    let bytes = i64::try_from(terms.settings.events_max).unwrap_or(i64::MAX);
    let text = "DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT ?1) \
                AND (at_ms < ?2 OR total <= \
                (SELECT total FROM events ORDER BY id DESC LIMIT 1) - ?3)";
    let oldest = terms.now_ms.saturating_sub(keep);
    connection.prepare_cached(text)?.execute([batch, oldest, bytes])
}

/// Bytes of the events that are kept.
pub(super) fn bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let text = "SELECT coalesce(max(total) - min(total), 0) FROM \
                (SELECT total FROM (SELECT total FROM events ORDER BY id LIMIT 1) \
                UNION ALL SELECT total FROM (SELECT total FROM events ORDER BY id DESC LIMIT 1))";
    let bytes: i64 = connection.prepare_cached(text)?.query_row([], |row| row.get(0))?;
    Ok(u64::try_from(bytes).unwrap_or_default())
}

/// Which events are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Only those from this time on, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Only those of this kind.
    pub kind: Option<String>,
    /// Only those at least as grave.
    pub level: Option<Level>,
    /// At most so many, the newest; never more than [`ANSWER_MAX`].
    pub limit: usize,
}

impl Question {
    /// Whether an event in memory is asked for.
    pub fn is_about(&self, event: &Event) -> bool {
        self.since_ms.is_none_or(|since| millis(event.at) >= since)
            && self.kind.as_ref().is_none_or(|kind| kind == event.kind)
            && self.level.is_none_or(|level| event.level <= level)
    }
}

/// An event that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// When.
    pub at: SystemTime,
    /// How grave.
    pub level: Level,
    /// What happened.
    pub kind: String,
    /// To what.
    pub subject: String,
    /// More about it.
    pub detail: String,
    /// How many of its kind before it were not kept, because they came in a flood.
    pub left_out: u64,
}

impl From<Event> for Told {
    fn from(event: Event) -> Told {
        let Event { at, level, kind, subject, detail, .. } = event;
        Told { at, level, kind: kind.to_owned(), subject, detail, left_out: 0 }
    }
}

/// The newest events that are asked for, oldest first.
///
/// # Errors
/// Those of [`Db::read`].
pub fn list(db: &Db, deadline: Instant, question: &Question) -> Result<Vec<Told>, Error> {
    let mut text =
        "SELECT at_ms, level, kind, subject, detail, left_out FROM events WHERE 1".to_owned();
    let mut values: Vec<&dyn ToSql> = Vec::new();
    if let Some(since) = &question.since_ms {
        text.push_str(" AND at_ms >= ?");
        values.push(since);
    }
    if let Some(kind) = &question.kind {
        text.push_str(" AND kind = ?");
        values.push(kind);
    }
    let level = question.level.map(|level| level as i64);
    if let Some(level) = &level {
        text.push_str(" AND level <= ?");
        values.push(level);
    }
    let limit = i64::try_from(question.limit.min(ANSWER_MAX)).unwrap_or(i64::MAX);
    text.push_str(" ORDER BY id DESC LIMIT ?");
    values.push(&limit);
    let mut found = db.read(deadline, |connection| {
        let mut statement = connection.prepare(&text)?;
        let rows = statement.query_map(&*values, one)?;
        rows.collect::<rusqlite::Result<Vec<Told>>>()
    })?;
    found.reverse();
    Ok(found)
}

fn one(row: &Row<'_>) -> rusqlite::Result<Told> {
    let (at, level): (i64, i64) = (row.get(0)?, row.get(1)?);
    let at = Duration::from_millis(u64::try_from(at).unwrap_or_default());
    let left_out: i64 = row.get(5)?;
    let levels = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
    Ok(Told {
        at: UNIX_EPOCH + at,
        level: levels.into_iter().find(|known| *known as i64 == level).unwrap_or(Level::Info),
        kind: row.get(2)?,
        subject: row.get(3)?,
        detail: row.get(4)?,
        left_out: u64::try_from(left_out).unwrap_or_default(),
    })
}

fn millis(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds since 1970, now.
pub(super) fn now_ms() -> i64 {
    millis(clock::wall())
}

#[cfg(test)]
mod tests;
