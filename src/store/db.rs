//! One file of the store, as the rest of the program sees it: jobs go to the writer thread through a
//! bounded queue, questions are answered by connections that can only read.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use rusqlite::{Connection, Transaction};

use super::readers::Readers;
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::lock::{self, Locked, Rank};
use crate::base::metrics::{Counter, Histogram, Limit, Registry};

/// The two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// `durable.db`: what must not be lost. Each commit is on the disk before it is told.
    Durable,
    /// `metrics.db`: what may lose its last moments with the power. Committed about once a second.
    Metrics,
}

impl Which {
    /// Both.
    pub const ALL: [Which; 2] = [Which::Durable, Which::Metrics];

    /// The word in metrics and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Which::Durable => "durable",
            Which::Metrics => "metrics",
        }
    }

    /// The file's name in the state directory.
    pub fn file(self) -> &'static str {
        match self {
            Which::Durable => "durable.db",
            Which::Metrics => "metrics.db",
        }
    }
}

/// How it stands with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stand {
    /// Not opened yet: jobs are taken and wait.
    Opening,
    /// In use.
    Open,
    /// In use, but it takes no further jobs: there is no room on the disk.
    Full,
    /// Cannot be used now; it is tried again.
    Down,
    /// On the way out.
    Stopped,
}

impl Stand {
    const ALL: [Stand; 5] = [Stand::Opening, Stand::Open, Stand::Full, Stand::Down, Stand::Stopped];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Stand::Opening => "opening",
            Stand::Open => "open",
            Stand::Full => "full",
            Stand::Down => "down",
            Stand::Stopped => "stopped",
        }
    }
}

type Run = Box<dyn FnOnce(&Transaction<'_>) -> rusqlite::Result<()> + Send>;

/// What the writer is asked to do.
pub(super) struct Job {
    /// For metrics and messages.
    pub(super) what: &'static str,
    pub(super) run: Run,
    /// Where whoever waits hears of the commit.
    pub(super) reply: Option<Sender<Result<(), Error>>>,
    pub(super) queued: Instant,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("what", &self.what).finish_non_exhaustive()
    }
}

/// What a file counts.
#[derive(Debug)]
pub(super) struct Counts {
    done: Arc<Counter>,
    failed: Arc<Counter>,
    dropped: Arc<Counter>,
    /// From the queue to the disk.
    pub(super) commit: Arc<Histogram>,
}

impl Counts {
    fn new(which: Which, registry: &Registry) -> Counts {
        let file = which.as_str();
        let jobs = |outcome| {
            let help = "Jobs of the store, by file and outcome: dropped ones were never begun.";
            let labels = [("file", file), ("outcome", outcome)];
            registry.counter("tidegate_store_jobs_total", help, &labels)
        };
        let help = "From the wish to write something to its commit.";
        Counts {
            done: jobs("done"),
            failed: jobs("failed"),
            dropped: jobs("dropped"),
            commit: registry.histogram("tidegate_store_commit_seconds", help, &[("file", file)]),
        }
    }
}

/// One of the two files.
#[derive(Debug)]
pub struct Db {
    which: Which,
    stand: AtomicU8,
    /// Counts up each time a new, empty file was made in the place of one that was there.
    epoch: AtomicU64,
    /// Why it is down or full, for those who are refused.
    reason: Locked<String>,
    jobs: Sender<Job>,
    taken: Receiver<Job>,
    nudge: Sender<()>,
    pending: Arc<Limit>,
    /// Somebody waits for a commit.
    urgent: AtomicBool,
    pub(super) readers: Readers,
    pub(super) counts: Counts,
}

impl Db {
    pub(super) fn new(
        which: Which,
        pending_max: usize,
        nudge: Sender<()>,
        registry: &Registry,
    ) -> Db {
        let (jobs, taken) = bounded(pending_max);
        let consequence = match which {
            Which::Durable => "the job is refused",
            Which::Metrics => "the sample is dropped",
        };
        let max = pending_max as u64;
        Db {
            which,
            stand: AtomicU8::new(Stand::Opening as u8),
            epoch: AtomicU64::new(0),
            reason: Locked::new(Rank::Leaf, String::new()),
            jobs,
            taken,
            nudge,
            pending: registry.limit("store.pending_max", which.as_str(), max, consequence),
            urgent: AtomicBool::new(false),
            readers: Readers::new(which, registry),
            counts: Counts::new(which, registry),
        }
    }

    /// Which file it is.
    pub fn which(&self) -> Which {
        self.which
    }

    /// How it stands with the file.
    pub fn stand(&self) -> Stand {
        let now = self.stand.load(Relaxed);
        Stand::ALL.into_iter().find(|stand| *stand as u8 == now).unwrap_or(Stand::Stopped)
    }

    /// How often an empty file has taken the place of one that was there: whoever keeps a copy of his
    /// rows in memory writes them again when this changes.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    /// Has something written, some time soon. `what` names the kind of job, for counters. Returns at
    /// once; whether it came about is not told.
    ///
    /// # Errors
    /// [`Kind::StoreBusy`] when too many jobs wait, [`Kind::StoreFull`] when there is no room on the
    /// disk, [`Kind::StoreUnavailable`] when the file cannot be used now.
    pub fn submit(
        &self,
        what: &'static str,
        job: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        self.push(what, Box::new(job), None)
    }

    /// The same, for whoever looks now and then whether it came about: the end of a channel that says
    /// so once, or is closed when nothing comes of it.
    pub(super) fn submit_told(
        &self,
        what: &'static str,
        job: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<Receiver<Result<(), Error>>, Error> {
        let (reply, outcome) = bounded(1);
        self.push(what, Box::new(job), Some(reply))?;
        Ok(outcome)
    }

    /// Has something written, and waits until it is committed: in `durable.db` it is on the disk then.
    ///
    /// # Errors
    /// Those of [`Db::submit`]; [`Kind::StoreBusy`] also when it is not committed by `deadline` (it
    /// may still come about), and [`Kind::StoreFailed`] when it fails.
    pub fn write<R: Send + 'static>(
        &self,
        what: &'static str,
        deadline: Instant,
        job: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<R> + Send + 'static,
    ) -> Result<R, Error> {
        lock::assert_none_held();
        let slot = Arc::new(Locked::new(Rank::Leaf, None));
        let (reply, outcome) = bounded(1);
        let filled = Arc::clone(&slot);
        let run = move |tx: &Transaction<'_>| {
            let value = job(tx)?;
            filled.with(|slot| *slot = Some(value));
            Ok(())
        };
        self.push(what, Box::new(run), Some(reply))?;
        self.urgent.store(true, Relaxed);
        self.nudge();
        match outcome.recv_deadline(deadline) {
            Ok(Ok(())) => slot.with(Option::take).ok_or_else(|| {
                Error::new(Kind::StoreFailed, format!("{what}: there is no outcome"))
            }),
            Ok(Err(error)) => Err(error),
            Err(RecvTimeoutError::Timeout) => {
                let text = format!("{what}: the store did not come to it in time");
                Err(Error::new(Kind::StoreBusy, text))
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.unavailable()),
        }
    }

    /// Asks the file something. The connection can only read; its work is stopped at `deadline`.
    ///
    /// # Errors
    /// [`Kind::StoreBusy`] when nothing comes by `deadline`, [`Kind::StoreUnavailable`] when the file
    /// cannot be used now, [`Kind::StoreFailed`] for any other fault.
    pub fn read<R>(
        &self,
        deadline: Instant,
        job: impl FnOnce(&Connection) -> rusqlite::Result<R>,
    ) -> Result<R, Error> {
        lock::assert_none_held();
        if matches!(self.stand(), Stand::Down | Stand::Stopped) {
            return Err(self.unavailable());
        }
        self.readers.ask(deadline, job)
    }

    fn push(
        &self,
        what: &'static str,
        run: Run,
        reply: Option<Sender<Result<(), Error>>>,
    ) -> Result<(), Error> {
        let refused = match self.stand() {
            Stand::Opening | Stand::Open => None,
            Stand::Full => Some(Error::new(Kind::StoreFull, self.reason.with(|r| r.clone()))),
            Stand::Down | Stand::Stopped => Some(self.unavailable()),
        };
        if let Some(error) = refused {
            self.counts.dropped.inc();
            return Err(error);
        }
        let job = Job { what, run, reply, queued: clock::now() };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.jobs.try_send(job)
        {
            self.pending.refuse();
            self.counts.dropped.inc();
            let text = format!("{what}: too many jobs wait for the store");
            return Err(Error::new(Kind::StoreBusy, text));
        }
        self.show_pending();
        if self.which == Which::Durable {
            self.nudge();
        }
        Ok(())
    }

    /// Wakes the writer. One wake-up waits at most: it looks at everything each time.
    pub(super) fn nudge(&self) {
        let _ = self.nudge.try_send(());
    }

    fn unavailable(&self) -> Error {
        let reason = self.reason.with(|reason| reason.clone());
        let text = if reason.is_empty() { "the store is closed".to_owned() } else { reason };
        Error::new(Kind::StoreUnavailable, text)
    }

    /// The next job, for the writer.
    pub(super) fn next_job(&self) -> Option<Job> {
        let job = self.taken.try_recv().ok();
        if job.is_some() {
            self.show_pending();
        }
        job
    }

    /// Whether somebody waits for a commit since this was asked last.
    pub(super) fn urgent(&self) -> bool {
        self.urgent.swap(false, Relaxed)
    }

    /// How many jobs wait.
    pub(super) fn waiting(&self) -> usize {
        self.taken.len()
    }

    /// How many may wait.
    pub(super) fn pending_max(&self) -> usize {
        self.taken.capacity().unwrap_or(usize::MAX)
    }

    fn show_pending(&self) {
        self.pending.set_now(self.taken.len() as u64);
    }

    /// Says how it stands from now on.
    pub(super) fn set_stand(&self, stand: Stand, reason: &str) {
        self.reason.with(|have| {
            have.clear();
            have.push_str(reason);
        });
        self.stand.store(stand as u8, Relaxed);
    }

    /// A new, empty file stands in the place of one that was there.
    pub(super) fn begin_epoch(&self) {
        self.epoch.fetch_add(1, Relaxed);
    }

    /// Tells those whose jobs wait that nothing will come of them.
    pub(super) fn refuse_waiting(&self) {
        while let Some(job) = self.next_job() {
            self.counts.dropped.inc();
            if let Some(reply) = job.reply {
                let _ = reply.try_send(Err(self.unavailable()));
            }
        }
    }

    /// Counts a job and tells whoever waits for it.
    pub(super) fn finish(&self, done: Finished, outcome: Result<(), Error>) {
        match &outcome {
            Ok(()) => {
                self.counts.done.inc();
                self.counts.commit.observe(clock::now().saturating_duration_since(done.queued));
            }
            Err(_) => self.counts.failed.inc(),
        }
        if let Some(reply) = done.reply {
            let _ = reply.try_send(outcome);
        }
    }
}

/// A job that was run, and whose commit is still to come.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) what: &'static str,
    pub(super) reply: Option<Sender<Result<(), Error>>>,
    pub(super) queued: Instant,
}

impl Job {
    /// It cannot even be begun.
    pub(super) fn unrun(self) -> Finished {
        Finished { what: self.what, reply: self.reply, queued: self.queued }
    }

    /// Runs it; a panic in it is a fault of this job alone.
    pub(super) fn run(self, tx: &Transaction<'_>) -> (Finished, Result<(), Ran>) {
        let Job { what, run, reply, queued } = self;
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(tx)));
        let outcome = match ran {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Ran::Sql(error)),
            Err(panic) => Err(Ran::Panicked(told(&*panic))),
        };
        (Finished { what, reply, queued }, outcome)
    }
}

/// Why a job failed.
#[derive(Debug)]
pub(super) enum Ran {
    Sql(rusqlite::Error),
    Panicked(String),
}

fn told(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
