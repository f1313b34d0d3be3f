//! What is deleted because it is old or too much, in batches that a writer can put between two jobs;
//! and giving the room back to the disk.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::db::Which;
use super::file::PAGE_BYTES;
use crate::config::settings::Store as Settings;

/// Rows that are deleted at once: some milliseconds.
pub(super) const BATCH_ROWS: usize = 5_000;

/// From this share of its largest size on, in percent, a file is taken as nearly full.
const NEARLY_FULL_PERCENT: u64 = 90;

/// Pages that are given back to the disk at once: 4 MiB.
const VACUUM_PAGES: u32 = 1024;

/// A log of changes above this size is put back into the file when nothing else is to do.
const WAL_BYTES_IDLE: u64 = 256 * 1024;

/// By what a rule decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    /// Milliseconds since 1970.
    pub(super) now_ms: i64,
    pub(super) settings: &'a Settings,
    /// The file is nearly full: the oldest goes, whatever its age.
    pub(super) force: bool,
}

/// Deletes at most [`BATCH_ROWS`] rows of one subject that are to go, oldest first; how many.
type Rule = fn(&Connection, &Terms<'_>) -> rusqlite::Result<usize>;

/// The rules of a file. Each file of this room that keeps tables adds its own.
fn rules(which: Which) -> &'static [Rule] {
    match which {
        Which::Durable => &[super::events::retain],
        Which::Metrics => &[],
    }
}

/// The largest size of a file.
pub(super) fn bytes_max(which: Which, settings: &Settings) -> u64 {
    match which {
        Which::Durable => settings.durable_max,
        Which::Metrics => settings.metrics_max,
    }
}

/// How much of a file is used, and how much of it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pages {
    pub(super) all: u64,
    pub(super) unused: u64,
}

impl Pages {
    pub(super) fn of(connection: &Connection) -> rusqlite::Result<Pages> {
        let count = |pragma| {
            connection
                .pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
                .map(|count| u64::try_from(count).unwrap_or_default())
        };
        Ok(Pages { all: count("page_count")?, unused: count("freelist_count")? })
    }

    pub(super) fn used_bytes(self) -> u64 {
        self.all.saturating_sub(self.unused) * u64::from(PAGE_BYTES)
    }

    pub(super) fn nearly_full(self, bytes_max: u64) -> bool {
        self.used_bytes() > bytes_max / 100 * NEARLY_FULL_PERCENT
    }
}

/// Runs the rules once; whether there may be more to delete.
pub(super) fn sweep(
    writer: &Connection,
    which: Which,
    now_ms: i64,
    settings: &Settings,
) -> rusqlite::Result<bool> {
    let force = Pages::of(writer)?.nearly_full(bytes_max(which, settings));
    let terms = Terms { now_ms, settings, force };
    let mut more = false;
    for rule in rules(which) {
        let tx = Transaction::new_unchecked(writer, TransactionBehavior::Immediate)?;
        let deleted = rule(&tx, &terms)?;
        tx.commit()?;
        more |= deleted >= BATCH_ROWS || (force && deleted > 0);
    }
    Ok(more)
}

/// Gives some unused pages back to the disk; whether there are more.
pub(super) fn vacuum(writer: &Connection, at_once: bool) -> rusqlite::Result<bool> {
    let pages = Pages::of(writer)?;
    // What will be used again soon is left, unless room is wanted.
    let keep = if at_once { 0 } else { u64::from(VACUUM_PAGES).max(pages.all / 4) };
    if pages.unused <= keep {
        return Ok(false);
    }
    writer.execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    Ok(pages.unused.saturating_sub(u64::from(VACUUM_PAGES)) > keep)
}

/// The size of a file on the disk; 0 when there is none.
pub(super) fn size(path: &Path) -> u64 {
    fs::symlink_metadata(path).map(|found| found.len()).unwrap_or_default()
}

/// Puts the log of changes into the file and empties it, when it is worth it.
pub(super) fn checkpoint(
    writer: &Connection,
    wal_bytes: u64,
    at_once: bool,
) -> rusqlite::Result<()> {
    if wal_bytes == 0 || (wal_bytes < WAL_BYTES_IDLE && !at_once) {
        return Ok(());
    }
    // Busy is no fault: a reader holds it, and the next idle moment comes.
    writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}
