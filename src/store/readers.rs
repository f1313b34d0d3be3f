//! The connections of a file that can only read. They are opened with the file, and closed with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use rusqlite::{Connection, ErrorCode};

use super::db::Which;
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::metrics::{Lease, Limit, Registry};

/// Connections that read, for each file. Past it: who asks waits until his deadline.
pub const READERS_MAX: usize = 2;

/// Longest that one question may take, whatever its deadline: an open reader keeps the log of changes
/// from being put back into the file.
const READ_MAX: Duration = Duration::from_secs(5);

/// Steps of SQLite's machine between two looks at the time: some tens of microseconds.
const STEPS: i32 = 1000;

/// When a reader has to stop, in milliseconds after the pool was made.
type StopAt = Arc<AtomicU64>;

/// A connection that reads.
struct Reader {
    connection: Connection,
    stop_at: StopAt,
    /// Of which opening of the file it is.
    round: u64,
}

/// The pool.
#[derive(Debug)]
pub(super) struct Readers {
    idle: (Sender<Reader>, Receiver<Reader>),
    round: AtomicU64,
    start: Instant,
    /// One of them found the file broken.
    suspect: AtomicU64,
    limit: Arc<Limit>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("round", &self.round).finish_non_exhaustive()
    }
}

impl Readers {
    pub(super) fn new(which: Which, registry: &Registry) -> Readers {
        let consequence = "a question waits until its deadline";
        let max = READERS_MAX as u64;
        Readers {
            idle: bounded(READERS_MAX),
            round: AtomicU64::new(0),
            start: clock::now(),
            suspect: AtomicU64::new(0),
            limit: registry.limit("store.readers_max", which.as_str(), max, consequence),
        }
    }

    /// Asks one of them.
    pub(super) fn ask<R>(
        &self,
        deadline: Instant,
        job: impl FnOnce(&Connection) -> rusqlite::Result<R>,
    ) -> Result<R, Error> {
        let deadline = deadline.min(clock::now() + READ_MAX);
        let reader = Some(self.take(deadline)?);
        let out = Out { reader, pool: self, _lease: self.limit.try_take(1) };
        let Some(reader) = &out.reader else { return Err(late()) };
        reader.stop_at.store(self.ms(deadline), Relaxed);
        let outcome = job(&reader.connection);
        reader.stop_at.store(u64::MAX, Relaxed);
        outcome.map_err(|error| {
            let code = error.sqlite_error_code();
            if matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)) {
                self.suspect.fetch_add(1, Relaxed);
            }
            match code {
                Some(ErrorCode::OperationInterrupted | ErrorCode::DatabaseBusy) => late(),
                _ => Error::new(Kind::StoreFailed, format!("the store: {error}")).because(error),
            }
        })
    }

    fn take(&self, deadline: Instant) -> Result<Reader, Error> {
        loop {
            match self.idle.1.recv_deadline(deadline) {
                Ok(reader) if reader.round == self.round.load(Relaxed) => return Ok(reader),
                Ok(old) => drop(old),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.limit.refuse();
                    return Err(late());
                }
            }
        }
    }

    /// Takes over the connections of a file that was opened.
    pub(super) fn open(&self, connections: Vec<Connection>) -> rusqlite::Result<()> {
        let round = self.round.fetch_add(1, Relaxed) + 1;
        for mut connection in connections {
            let stop_at: StopAt = Arc::new(AtomicU64::new(u64::MAX));
            let (at, start) = (Arc::clone(&stop_at), self.start);
            let late = move || {
                let at = at.load(Relaxed);
                at != u64::MAX && ms(start, clock::now()) >= at
            };
            connection.progress_handler(STEPS, Some(late))?;
            let mut reader = Reader { connection, stop_at, round };
            while let Err(TrySendError::Full(back)) = self.idle.0.try_send(reader) {
                // One of an earlier opening, which came back late.
                drop(self.idle.1.try_recv());
                reader = back;
            }
        }
        Ok(())
    }

    /// Closes those that nobody uses; the others are closed when they come back.
    pub(super) fn close(&self) {
        self.round.fetch_add(1, Relaxed);
        while let Ok(reader) = self.idle.1.try_recv() {
            drop(reader);
        }
        self.suspect.store(0, Relaxed);
    }

    /// Whether one of them found the file broken since this was asked last.
    pub(super) fn found_broken(&self) -> bool {
        self.suspect.swap(0, Relaxed) > 0
    }

    fn give_back(&self, reader: Reader) {
        // A job that began a transaction and did not end it would hold the log of changes for ever.
        let clean = reader.connection.is_autocommit()
            || reader.connection.execute_batch("ROLLBACK").is_ok();
        if clean && reader.round == self.round.load(Relaxed) {
            let _ = self.idle.0.try_send(reader);
        }
    }

    fn ms(&self, at: Instant) -> u64 {
        ms(self.start, at)
    }
}

fn ms(start: Instant, at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(start).as_millis()).unwrap_or(u64::MAX - 1)
}

fn late() -> Error {
    Error::new(Kind::StoreBusy, "the store did not answer in time")
}

/// A reader in use; it goes back also when the job panics.
struct Out<'a> {
    reader: Option<Reader>,
    pool: &'a Readers,
    _lease: Option<Lease>,
}

impl Drop for Out<'_> {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.stop_at.store(u64::MAX, Relaxed);
            self.pool.give_back(reader);
        }
    }
}
