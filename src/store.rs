//! What is kept on disk: two SQLite files in the state directory, `durable.db` and `metrics.db`.
//!
//! One thread, `store`, writes; questions are answered by a few connections that can only read. Jobs
//! go to the thread through a bounded queue and never make whoever submits them wait for the disk.
//! The store never keeps the gateway from starting or serving: without a state directory, on a full
//! or broken disk, it refuses jobs with the reason, says so on the board as the check `store`, and
//! tries again.
//!
//! SQL stands only in this folder: one file for each subject, with its tables in a `SCHEMA` that
//! `store/schema.rs` joins, and the rule by which they are deleted again in `store/retention.rs`.

mod ballast;
mod batch;
pub mod db;
pub mod devices;
pub mod events;
mod file;
mod holder;
mod quarantine;
mod readers;
mod retention;
pub mod samples;
mod schema;
mod space;
pub mod spool;
pub mod usage;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, TryRecvError, bounded};

pub use db::{Db, Stand, Which};

use crate::base::clock;
use crate::base::events::Events;
use crate::base::health::{Board, Check};
use crate::base::heartbeat::Heartbeats;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Registry;
use crate::base::thread::{self, Thread};
use crate::config::settings::Store as Settings;

/// How long the last jobs may take when the store is dropped without having been stopped.
const DROP_MAX: Duration = Duration::from_secs(2);

/// From this on a disk that does not answer is told.
const STALL: Duration = Duration::from_secs(10);

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

#[cfg(test)]
impl Tools {
    /// Nobody looks at what is told.
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
    shared: Arc<Shared>,
    /// Closed by the thread's end; nothing is ever sent.
    ended: Receiver<()>,
    thread: Locked<Option<Thread>>,
}

/// What the thread and the others have in common.
#[derive(Debug)]
struct Shared {
    durable: Arc<Db>,
    metrics: Arc<Db>,
    settings: ArcSwap<Settings>,
    stopping: AtomicBool,
    check: Arc<Check>,
    start: Instant,
    /// Since when the thread is at work, in milliseconds after `start`; 0 while it waits.
    working_ms: AtomicU64,
}

impl Shared {
    fn ms(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX)
    }

    fn begin_work(&self) {
        self.working_ms.store(self.ms(clock::now()).max(1), Relaxed);
    }

    fn end_work(&self) {
        self.working_ms.store(0, Relaxed);
    }

    /// For how long the thread has been at one piece of work.
    fn working(&self, now: Instant) -> Duration {
        match self.working_ms.load(Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.ms(now).saturating_sub(since)),
        }
    }

    /// Says what is wrong on the board; empty: nothing.
    fn tell(&self, reason: String) {
        if reason.is_empty() {
            self.check.ok();
        } else {
            self.check.degraded(reason);
        }
    }

    /// Nothing can be used, for good.
    fn off(&self, reason: &str) {
        for db in [&self.durable, &self.metrics] {
            db.set_stand(Stand::Down, reason);
            db.refuse_waiting();
        }
        self.tell(reason.to_owned());
    }
}

impl Store {
    /// Begins to open the files in this folder, and returns at once. It never fails: what it cannot
    /// have is told on the board, and tried again.
    pub fn open(dir: Option<&Path>, settings: &Settings, tools: Tools) -> Arc<Store> {
        let (nudge, nudged) = bounded(1);
        let pending_max = settings.pending_max;
        let db = |which| Arc::new(Db::new(which, pending_max, nudge.clone(), &tools.registry));
        let shared = Arc::new(Shared {
            durable: db(Which::Durable),
            metrics: db(Which::Metrics),
            settings: ArcSwap::from_pointee(settings.clone()),
            stopping: AtomicBool::new(false),
            check: tools.board.check("store"),
            start: clock::now(),
            working_ms: AtomicU64::new(0),
        });
        // Until the thread has had its first look. Requests do not wait for it.
        shared.tell("its files are being opened".to_owned());
        let (end, ended) = bounded::<()>(1);
        let events = Arc::clone(&tools.events);
        let off = |reason: &str| {
            shared.off(reason);
            events.record(log::Level::Warn, "store_off", "", reason.to_owned());
            None
        };
        let thread = match dir {
            None => off("there is no state directory: set state.dir, or $STATE_DIRECTORY"),
            Some(dir) => {
                let work = writer::Work::new(dir.to_owned(), nudged, Arc::clone(&shared), tools);
                let started = thread::spawn("store", move || {
                    // Dropped last, also by a panic.
                    let _end = end;
                    work.run();
                });
                started.map_or_else(|error| off(&format!("no thread for the store: {error}")), Some)
            }
        };
        Arc::new(Store { shared, ended, thread: Locked::new(Rank::Guard, thread) })
    }

    /// One without a folder, for the tests of others.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Arc<Store> {
        let settings = tests::settings();
        Store::open(None, &settings, Tools::bare())
    }

    /// What must not be lost.
    pub fn durable(&self) -> &Db {
        &self.shared.durable
    }

    /// What may lose its last moments.
    pub fn metrics(&self) -> &Db {
        &self.shared.metrics
    }

    /// Takes over new settings, within a second.
    pub fn reconfigure(&self, settings: &Settings) {
        self.shared.settings.store(Arc::new(settings.clone()));
    }

    /// To be called about once a second, by a thread that has nothing to do with the disk: says so
    /// when the disk does not answer, or the store's thread has ended.
    pub fn tick(&self, now: Instant) {
        let working = self.shared.working(now);
        if working >= STALL {
            let text = format!("the disk has not answered for {} s", working.as_secs());
            self.shared.tell(text);
        }
        let ended = self.ended.try_recv() == Err(TryRecvError::Disconnected);
        let runs = self.thread.with(|thread| thread.is_some());
        if runs && ended && !self.shared.stopping.load(Relaxed) {
            self.shared.off("the store's thread has ended: restart the daemon");
        }
    }

    /// Writes what waits, closes the files and gives the folder back. When that takes longer than
    /// until `deadline` the thread is left behind; false then.
    pub fn stop(&self, deadline: Instant) -> bool {
        self.shared.stopping.store(true, Relaxed);
        self.shared.durable.nudge();
        let Some(thread) = self.thread.with(Option::take) else { return true };
        let _ = self.ended.recv_deadline(deadline);
        let ended = self.ended.try_recv() == Err(TryRecvError::Disconnected);
        if ended {
            thread.join();
        } else {
            thread.abandon();
        }
        ended
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop(clock::now() + DROP_MAX);
    }
}

#[cfg(test)]
mod tests;
