//! The history of all metrics: looks as they were taken, and minutes and hours put together out of
//! them. What is in the blobs is known to `observe/history/code.rs` only.
//!
//! A look is one row with all series in it: written once, next to the one before, a few KiB. Minutes
//! and hours are one row for a series and a stretch of sixty or twenty-four of them, kept together by
//! series: a week of one series is 168 rows in a row.

pub use rusqlite::{Connection, Result};
use rusqlite::{OptionalExtension, Transaction, named_params, params};

/// The tables. `looks.rolled` is 1 when a look is part of its minutes and hours.
pub(super) const SCHEMA: &str = "
CREATE TABLE history_series (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    labels TEXT NOT NULL,
    shape TEXT NOT NULL,
    bounds TEXT NOT NULL,
    seen INTEGER NOT NULL,
    UNIQUE (name, labels, shape, bounds)
) STRICT;
CREATE TABLE history_looks (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    look INTEGER NOT NULL,
    millis INTEGER NOT NULL,
    rolled INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (boot, look)
) STRICT;
CREATE INDEX history_looks_by_time ON history_looks (at);
CREATE INDEX history_looks_unrolled ON history_looks (at) WHERE rolled = 0;
CREATE TABLE history_parts (
    tier INTEGER NOT NULL,
    series INTEGER NOT NULL,
    start INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (tier, series, start)
) STRICT, WITHOUT ROWID;
CREATE INDEX history_parts_by_time ON history_parts (tier, start);
CREATE TABLE history_bytes (tier INTEGER PRIMARY KEY, bytes INTEGER NOT NULL) STRICT;
INSERT INTO history_bytes VALUES (0, 0), (1, 0), (2, 0);
";

/// Rows that are deleted at once, so that no transaction takes long.
const BATCH_ROWS: i64 = 2000;

/// Bytes of a row beside its blob, about: its key, its indexes.
const ROW_BYTES: i64 = 48;

/// The tiers: looks, minutes, hours.
pub const TIERS: usize = 3;

/// A series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesRow {
    /// Its number in looks and parts.
    pub id: u32,
    /// Its metric.
    pub name: String,
    /// Its labels, as JSON.
    pub labels: String,
    /// What its values are.
    pub shape: String,
    /// Of a histogram: the bounds of its buckets, as JSON.
    pub bounds: String,
}

/// A look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookRow {
    /// When it was taken, in seconds since the epoch.
    pub at: i64,
    /// Which run of the daemon took it.
    pub boot: i64,
    /// Its number in that run.
    pub look: u32,
    /// What it covers, in milliseconds.
    pub millis: i64,
    /// What it saw.
    pub data: Vec<u8>,
}

/// A stretch of minutes or hours of one series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartRow {
    /// 1 for minutes, 2 for hours.
    pub tier: u8,
    /// Whose.
    pub series: u32,
    /// Where it begins, in seconds since the epoch.
    pub start: i64,
    /// Its points.
    pub data: Vec<u8>,
}

/// Which looks to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// From this second on …
    pub from: i64,
    /// … until before this one.
    pub to: i64,
    /// Only those that are no part of their minutes yet.
    pub unrolled: bool,
}

/// What was there before is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cuts {
    /// By tier, in seconds since the epoch.
    pub before: [i64; TIERS],
    /// Looks from here on are of a clock that was wrong.
    pub after: i64,
    /// Bytes of everything.
    pub bytes_max: i64,
}

/// All series, or those of one metric.
pub fn series(connection: &Connection, metric: Option<&str>) -> Result<Vec<SeriesRow>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, name, labels, shape, bounds FROM history_series
         WHERE ?1 IS NULL OR name = ?1 ORDER BY id",
    )?;
    let rows = statement.query_map([metric], |row| {
        Ok(SeriesRow {
            id: row.get(0)?,
            name: row.get(1)?,
            labels: row.get(2)?,
            shape: row.get(3)?,
            bounds: row.get(4)?,
        })
    })?;
    rows.collect()
}

/// Adds looks, and the series that they see for the first time. A look that is there already stays as it
/// is: it is of a write that was given up and came about after all.
pub fn put_looks(tx: &Transaction<'_>, new: &[SeriesRow], looks: &[LookRow]) -> Result<()> {
    let seen = looks.last().map_or(0, |look| look.at);
    let mut insert = tx.prepare_cached(
        "INSERT INTO history_series (id, name, labels, shape, bounds, seen)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for row in new {
        insert.execute(params![row.id, row.name, row.labels, row.shape, row.bounds, seen])?;
    }
    let mut insert = tx.prepare_cached(
        "INSERT OR IGNORE INTO history_looks (at, boot, look, millis, rolled, data)
         VALUES (?1, ?2, ?3, ?4, 0, ?5)",
    )?;
    let mut bytes = 0;
    for look in looks {
        let row = params![look.at, look.boot, look.look, look.millis, look.data];
        if insert.execute(row)? > 0 {
            bytes += size(&look.data);
        }
    }
    count(tx, 0, bytes)
}

/// Hands looks to `take`, oldest first, with their row's number.
pub fn looks(
    connection: &Connection,
    range: Range,
    mut take: impl FnMut(i64, LookRow),
) -> Result<()> {
    let sql = if range.unrolled {
        "SELECT id, at, boot, look, millis, data FROM history_looks
         WHERE rolled = 0 AND at >= ?1 AND at < ?2 ORDER BY at, id"
    } else {
        "SELECT id, at, boot, look, millis, data FROM history_looks
         WHERE at >= ?1 AND at < ?2 ORDER BY at, id"
    };
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([range.from, range.to])?;
    while let Some(row) = rows.next()? {
        let look = LookRow {
            at: row.get(1)?,
            boot: row.get(2)?,
            look: row.get(3)?,
            millis: row.get(4)?,
            data: row.get(5)?,
        };
        take(row.get(0)?, look);
    }
    Ok(())
}

/// The last look of a run that is kept.
pub fn last_look(connection: &Connection, boot: i64) -> Result<Option<u32>> {
    connection
        .prepare_cached("SELECT max(look) FROM history_looks WHERE boot = ?1")?
        .query_row([boot], |row| row.get(0))
}

/// The oldest look before this second that is no part of its minutes yet.
pub fn oldest_unrolled(connection: &Connection, before: i64) -> Result<Option<i64>> {
    connection
        .prepare_cached("SELECT min(at) FROM history_looks WHERE rolled = 0 AND at < ?1")?
        .query_row([before], |row| row.get(0))
}

/// One part.
pub fn part(connection: &Connection, tier: u8, series: u32, start: i64) -> Result<Option<Vec<u8>>> {
    connection
        .prepare_cached(
            "SELECT data FROM history_parts WHERE tier = ?1 AND series = ?2 AND start = ?3",
        )?
        .query_row(params![tier, series, start], |row| row.get(0))
        .optional()
}

/// Hands the parts of a series that begin from `from` on and before `to` to `take`, oldest first; tells
/// how many there were.
pub fn parts(
    connection: &Connection,
    tier: u8,
    series: u32,
    (from, to): (i64, i64),
    mut take: impl FnMut(i64, &[u8]),
) -> Result<usize> {
    let mut statement = connection.prepare_cached(
        "SELECT start, data FROM history_parts
         WHERE tier = ?1 AND series = ?2 AND start >= ?3 AND start < ?4 ORDER BY start",
    )?;
    let mut rows = statement.query(params![tier, series, from, to])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        take(row.get(0)?, row.get_ref(1)?.as_blob()?);
        count += 1;
    }
    Ok(count)
}

/// Puts parts in the place of those that were there, and says of the looks in this stretch, up to this
/// row, that they are in them.
pub fn put_parts(
    tx: &Transaction<'_>,
    parts: &[PartRow],
    (from, to): (i64, i64),
    last: i64,
) -> Result<()> {
    let mut old = tx.prepare_cached(
        "SELECT length(data) FROM history_parts WHERE tier = ?1 AND series = ?2 AND start = ?3",
    )?;
    let mut insert = tx.prepare_cached(
        "INSERT OR REPLACE INTO history_parts (tier, series, start, data) VALUES (?1, ?2, ?3, ?4)",
    )?;
    let mut seen = tx.prepare_cached("UPDATE history_series SET seen = ?2 WHERE id = ?1")?;
    let mut bytes = [0; TIERS];
    for part in parts {
        let key = params![part.tier, part.series, part.start];
        let before: Option<i64> = old.query_row(key, |row| row.get(0)).optional()?;
        insert.execute(params![part.tier, part.series, part.start, part.data])?;
        seen.execute(params![part.series, to])?;
        let tier = usize::from(part.tier).min(TIERS - 1);
        bytes[tier] += size(&part.data) - before.map_or(0, |bytes| bytes + ROW_BYTES);
    }
    for (tier, bytes) in bytes.into_iter().enumerate() {
        count(tx, tier, bytes)?;
    }
    tx.prepare_cached(
        "UPDATE history_looks SET rolled = 1
         WHERE rolled = 0 AND at >= ?1 AND at < ?2 AND id <= ?3",
    )?
    .execute([from, to, last])?;
    Ok(())
}

/// Forgets what is too old, and the oldest while all of it is too large, in one batch. True when there
/// is more to forget.
pub fn trim(tx: &Transaction<'_>, cuts: &Cuts) -> Result<bool> {
    // Looks that are no part of their minutes stay until they are.
    let old = delete(
        tx,
        0,
        "SELECT id FROM history_looks WHERE (at < ?1 AND rolled = 1) OR at >= ?2 LIMIT ?3",
        params![cuts.before[0], cuts.after, BATCH_ROWS],
    )?;
    let mut more = old == BATCH_ROWS;
    for tier in 1..TIERS {
        let before = params![number(tier), cuts.before[tier], BATCH_ROWS];
        more |= forget_parts(tx, tier, "start < ?2", before)? == BATCH_ROWS;
    }
    let all = bytes(tx)?;
    if all.iter().sum::<i64>() > cuts.bytes_max {
        // Of what takes most, the oldest.
        let largest = (0..TIERS).max_by_key(|tier| all[*tier]).unwrap_or(0);
        let gone = if largest == 0 {
            let sql = "SELECT id FROM history_looks WHERE ?1 = 0 ORDER BY at LIMIT ?2";
            delete(tx, 0, sql, params![0, BATCH_ROWS / 10])?
        } else {
            forget_parts(tx, largest, "?2 = 0", params![number(largest), 0, BATCH_ROWS / 10])?
        };
        more |= gone > 0;
    }
    // Nobody has anything of a series that was not seen for as long as hours are kept.
    tx.prepare_cached("DELETE FROM history_series WHERE seen < ?1")?
        .execute([cuts.before[TIERS - 1]])?;
    Ok(more)
}

/// Deletes looks by their numbers; tells how many.
fn delete(
    tx: &Transaction<'_>,
    tier: usize,
    ids: &str,
    what: impl rusqlite::Params,
) -> Result<i64> {
    let sql = format!(
        "DELETE FROM history_looks WHERE id IN ({ids}) RETURNING length(data) + {ROW_BYTES}"
    );
    gone(tx, tier, &sql, what)
}

/// Deletes the oldest parts of a tier for which this holds; tells how many.
fn forget_parts(
    tx: &Transaction<'_>,
    tier: usize,
    which: &str,
    what: impl rusqlite::Params,
) -> Result<i64> {
    let sql = format!(
        "DELETE FROM history_parts WHERE (tier, series, start) IN (
             SELECT tier, series, start FROM history_parts
             WHERE tier = ?1 AND {which} ORDER BY start LIMIT ?3
         ) RETURNING length(data) + {ROW_BYTES}"
    );
    gone(tx, tier, &sql, what)
}

fn gone(tx: &Transaction<'_>, tier: usize, sql: &str, what: impl rusqlite::Params) -> Result<i64> {
    let (mut rows, mut bytes) = (0, 0);
    {
        let mut statement = tx.prepare_cached(sql)?;
        let mut found = statement.query(what)?;
        while let Some(row) = found.next()? {
            rows += 1;
            bytes += row.get::<_, i64>(0)?;
        }
    }
    count(tx, tier, -bytes)?;
    Ok(rows)
}

/// Bytes of each tier.
pub fn bytes(connection: &Connection) -> Result<[i64; TIERS]> {
    let mut all = [0; TIERS];
    let mut statement = connection.prepare_cached("SELECT tier, bytes FROM history_bytes")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(bytes) = all.get_mut(usize::from(row.get::<_, u8>(0)?)) {
            *bytes = row.get(1)?;
        }
    }
    Ok(all)
}

fn count(tx: &Transaction<'_>, tier: usize, bytes: i64) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    tx.prepare_cached("UPDATE history_bytes SET bytes = max(bytes + :more, 0) WHERE tier = :tier")?
        .execute(named_params! { ":tier": number(tier), ":more": bytes })?;
    Ok(())
}

fn number(tier: usize) -> i64 {
    i64::try_from(tier).unwrap_or(i64::MAX)
}

fn size(data: &[u8]) -> i64 {
    i64::try_from(data.len()).unwrap_or(i64::MAX / 2) + ROW_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection
    }

    fn write<R>(connection: &mut Connection, job: impl FnOnce(&Transaction<'_>) -> R) -> R {
        let tx = connection.transaction().unwrap();
        let done = job(&tx);
        tx.commit().unwrap();
        done
    }

    fn look(at: i64, number: u32) -> LookRow {
        LookRow { at, boot: 1, look: number, millis: 10_000, data: vec![7; 100] }
    }

    fn ats(connection: &Connection, unrolled: bool) -> Vec<i64> {
        let mut found = Vec::new();
        let range = Range { from: 0, to: i64::MAX, unrolled };
        looks(connection, range, |_, look| found.push(look.at)).unwrap();
        found
    }

    const KEEP: Cuts = Cuts { before: [0; TIERS], after: i64::MAX, bytes_max: i64::MAX };

    #[test]
    fn a_look_that_is_written_twice_is_there_once() {
        let mut file = file();
        for _ in 0..2 {
            write(&mut file, |tx| put_looks(tx, &[], &[look(20, 2), look(10, 1)])).unwrap();
        }
        assert_eq!(ats(&file, false), [10, 20]);
        assert_eq!(bytes(&file).unwrap(), [2 * (100 + ROW_BYTES), 0, 0]);
    }

    #[test]
    fn looks_are_forgotten_by_age_but_not_before_they_are_part_of_their_minutes() {
        let mut file = file();
        let all: Vec<LookRow> = (0..10).map(|n| look(i64::from(n) * 10, n)).collect();
        write(&mut file, |tx| put_looks(tx, &[], &all)).unwrap();
        let cuts = Cuts { before: [60, 0, 0], ..KEEP };
        assert!(!write(&mut file, |tx| trim(tx, &cuts)).unwrap());
        assert_eq!(ats(&file, false).len(), 10);
        assert_eq!(oldest_unrolled(&file, 30).unwrap(), Some(0));
        let part = PartRow { tier: 1, series: 3, start: 0, data: vec![1; 10] };
        write(&mut file, |tx| put_parts(tx, &[part], (0, 40), i64::MAX)).unwrap();
        assert_eq!(ats(&file, true), [40, 50, 60, 70, 80, 90]);
        write(&mut file, |tx| trim(tx, &cuts)).unwrap();
        assert_eq!(ats(&file, false), [40, 50, 60, 70, 80, 90]);
        // A clock that was wrong for a while leaves nothing behind.
        write(&mut file, |tx| trim(tx, &Cuts { after: 80, ..KEEP })).unwrap();
        assert_eq!(ats(&file, false), [40, 50, 60, 70]);
        assert_eq!(bytes(&file).unwrap(), [4 * (100 + ROW_BYTES), 10 + ROW_BYTES, 0]);
    }

    #[test]
    fn when_all_of_it_is_too_large_the_oldest_of_the_largest_goes() {
        let mut file = file();
        let part = |tier, series, start| PartRow { tier, series, start, data: vec![1; 952] };
        let parts: Vec<PartRow> = (0..3000).map(|n| part(1, n % 10, i64::from(n / 10))).collect();
        write(&mut file, |tx| put_parts(tx, &parts, (0, 0), 0)).unwrap();
        write(&mut file, |tx| put_parts(tx, &[part(2, 1, 0)], (0, 0), 0)).unwrap();
        // Written again, it is not counted twice.
        write(&mut file, |tx| put_parts(tx, &parts[..10], (0, 0), 0)).unwrap();
        assert_eq!(bytes(&file).unwrap(), [0, 3_000_000, 1000]);
        let cuts = Cuts { bytes_max: 500_000, ..KEEP };
        let mut rounds = 0;
        while write(&mut file, |tx| trim(tx, &cuts)).unwrap() {
            rounds += 1;
            assert!(rounds < 20);
        }
        let left = bytes(&file).unwrap();
        assert!(left[1] <= 500_000 && left[2] == 1000, "{left:?}");
        let mut starts = Vec::new();
        super::parts(&file, 1, 4, (0, 1000), |start, _| starts.push(start)).unwrap();
        assert_eq!(starts.last(), Some(&299), "the newest stay");
        assert_eq!(super::part(&file, 2, 1, 0).unwrap(), Some(vec![1; 952]));
    }
}
