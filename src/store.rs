//! What is kept on disk: two SQLite files in the state directory, `durable.db` and `metrics.db`.
//!
//! One thread, `store`, writes; questions are answered by a few connections that can only read. Jobs
//! go to the thread through a bounded queue and never make whoever submits them wait for the disk.
//! The store never keeps the gateway from starting or serving: without a state directory, on a full
//! or broken disk, it refuses jobs with the reason, says so on the board as the check `store`, and
//! tries again.
//!
//! SQL stands only in this folder: one file for each subject, with its tables in a `SCHEMA` that
//! `store/schema.rs` joins.

pub mod db;
mod events;
mod file;
mod quarantine;
mod readers;
pub mod samples;
mod schema;
pub mod spool;
mod usage;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

pub use db::{Db, Stand, Which};

use crate::base::clock;
use crate::base::events::Events;
use crate::base::health::Board;
use crate::base::heartbeat::Heartbeats;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Registry;
use crate::base::thread::{self, Thread};

/// Jobs that wait for each file. Past it: refused.
const PENDING_MAX: usize = 1024;

/// How long the last jobs may take when the store is dropped without having been stopped.
const DROP_MAX: Duration = Duration::from_secs(2);

/// What the store counts with, and tells.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Metrics and limits.
    pub registry: Arc<Registry>,
    /// Where it tells what happened to it; they are kept in it, too.
    pub events: Arc<Events>,
    /// For the check `store`.
    pub board: Arc<Board>,
    /// For the beat of its thread.
    pub heartbeats: Arc<Heartbeats>,
}

impl Tools {
    /// For tests: nobody looks at what is told.
    #[cfg(test)]
    pub(crate) fn bare() -> Tools {
        let registry = Arc::new(Registry::default());
        Tools {
            events: Events::new(Arc::clone(&registry)),
            board: Board::new(&registry),
            heartbeats: Heartbeats::new(&registry),
            registry,
        }
    }
}

/// The store.
#[derive(Debug)]
pub struct Store {
    durable: Arc<Db>,
    metrics: Arc<Db>,
    stopping: Arc<AtomicBool>,
    ended: Receiver<()>,
    thread: Locked<Option<Thread>>,
}

impl Store {
    /// Begins to open the files in this folder, and returns at once. It never fails: what it cannot
    /// have is told on the board, and tried again.
    pub fn open(dir: Option<&Path>, tools: Tools) -> Arc<Store> {
        let (nudge, nudged) = bounded(1);
        let db = |which| Arc::new(Db::new(which, PENDING_MAX, nudge.clone(), &tools.registry));
        let (durable, metrics) = (db(Which::Durable), db(Which::Metrics));
        let stopping = Arc::new(AtomicBool::new(false));
        let (end, ended) = bounded::<()>(1);
        let events = Arc::clone(&tools.events);
        let thread = match dir {
            None => {
                let reason = "there is no state directory: set state.dir";
                for db in [&durable, &metrics] {
                    db.set_stand(Stand::Down, reason);
                }
                tools.board.check("store").degraded(reason);
                events.record(log::Level::Warn, "store_off", "", reason.to_owned());
                None
            }
            Some(dir) => {
                let dbs = [Arc::clone(&durable), Arc::clone(&metrics)];
                let stop = Arc::clone(&stopping);
                let work = writer::Work::new(dir.to_owned(), dbs, nudged, stop, tools);
                let started = thread::spawn("store", move || {
                    work.run();
                    drop(end);
                });
                if let Err(error) = &started {
                    let reason = format!("no thread for the store: {error}");
                    for db in [&durable, &metrics] {
                        db.set_stand(Stand::Down, &reason);
                    }
                    events.record(log::Level::Error, "store_off", "", reason);
                }
                started.ok()
            }
        };
        let thread = Locked::new(Rank::Guard, thread);
        Arc::new(Store { durable, metrics, stopping, ended, thread })
    }

    /// What must not be lost.
    pub fn durable(&self) -> &Db {
        &self.durable
    }

    /// What may lose its last moments.
    pub fn metrics(&self) -> &Db {
        &self.metrics
    }

    /// Writes what waits, closes the files and gives the folder back. When that takes longer than
    /// until `deadline` the thread is left behind; false then.
    pub fn stop(&self, deadline: Instant) -> bool {
        self.stopping.store(true, Relaxed);
        self.durable.nudge();
        let Some(thread) = self.thread.with(Option::take) else { return true };
        // Nothing is ever sent: the thread's end closes the channel.
        let _ = self.ended.recv_deadline(deadline);
        if thread.finished()
            || self.ended.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected)
        {
            thread.join();
            true
        } else {
            thread.abandon();
            false
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop(clock::now() + DROP_MAX);
    }
}

#[cfg(test)]
mod tests;
