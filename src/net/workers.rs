//! The worker threads: `workers` of them always ready, further ones made at need for the exchanges
//! that run in place, and kept for reuse.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::conn::ClientConn;
use super::engine::Shared;
use super::http::{Request, Response};
use super::serve;
use super::service::{GiveUp, Job};
use crate::base::clock;
use crate::base::error::Error;
use crate::base::heartbeat::Beat;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Limit;
use crate::base::permits::Permit;
use crate::base::thread::{self, Thread};

/// A thread that had nothing to do for this long, and is not needed as a ready one, ends.
const SPARE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a worker may be at work without waiting for anybody: whole answers of some MiB are
/// translated in a second, in a debug build in some.
const WORK_MAX: Duration = Duration::from_secs(10);

/// After the operating system refused a thread: the time until it is asked again …
const RETRY_MIN: Duration = Duration::from_millis(50);
/// … doubled up to here, which is less than a request waits for a worker.
const RETRY_MAX: Duration = Duration::from_millis(250);

/// What a worker is to do.
pub struct Task {
    /// For whom.
    pub conn: Box<ClientConn>,
    /// What.
    pub work: Work,
    /// Since when it waits for a worker.
    pub since: Instant,
}

/// See [`Task`].
pub enum Work {
    /// A complete request.
    Start(Box<Request>),
    /// A request that waited, with the permit it waited for, or to go on without.
    Resume(Box<dyn Job>, Option<Permit>),
}

impl Work {
    /// No worker takes it: what its client is told, or how it goes on without. Must not block.
    pub fn turn_down(self, shared: &Shared, error: Error) -> Result<Response, Work> {
        match self {
            Work::Start(request) => {
                let (head, peer) = (Some(&request.head), &request.peer);
                Ok(shared.service.refuse(&error, head, peer, &request.id))
            }
            Work::Resume(job, permit) => {
                drop::<Option<Permit>>(permit);
                match job.give_up(error) {
                    GiveUp::Respond(response) => Ok(response),
                    GiveUp::GoOn(job) => Err(Work::Resume(job, None)),
                }
            }
        }
    }
}

/// The pool's bookkeeping.
pub struct Workers {
    /// Threads that must be ready beside the occupied ones.
    ready: usize,
    /// Threads there are.
    threads: AtomicUsize,
    /// Threads that run an exchange or stay with a connection.
    occupied: AtomicUsize,
    /// Threads that hang, as whoever watches over them has found.
    hung: AtomicUsize,
    /// The operating system refused a thread that is needed.
    short: AtomicBool,
    gauge: Arc<Limit>,
    handles: Locked<Handles>,
    queue: Receiver<Task>,
    /// Stands in for an operating system that refuses threads.
    #[cfg(test)]
    pub(super) refuse_threads: AtomicBool,
}

/// When to ask again for threads that the operating system refused. The parking thread holds it.
#[derive(Default)]
pub struct Healing {
    next: Option<Instant>,
    wait: Duration,
}

#[derive(Default)]
struct Handles {
    threads: Vec<Thread>,
    started: usize,
    closed: bool,
}

impl Workers {
    /// A pool without threads yet. `gauge` is the limit on threads.
    pub fn new(ready: usize, gauge: Arc<Limit>, queue: Receiver<Task>) -> Self {
        Workers {
            ready,
            threads: AtomicUsize::new(0),
            occupied: AtomicUsize::new(0),
            hung: AtomicUsize::new(0),
            short: AtomicBool::new(false),
            gauge,
            handles: Locked::new(Rank::Leaf, Handles::default()),
            queue,
            #[cfg(test)]
            refuse_threads: AtomicBool::new(false),
        }
    }

    /// Starts the threads that the operating system refused before; gives the time of the next try
    /// when it still does. Without this, a gateway whose last ready worker began a long stream while
    /// threads were short would take no request until that stream has ended.
    pub fn heal(shared: &Arc<Shared>, healing: &mut Healing, now: Instant) -> Option<Instant> {
        let workers = &shared.workers;
        if !workers.short.load(SeqCst) {
            *healing = Healing::default();
            return None;
        }
        if let Some(next) = healing.next.filter(|next| *next > now) {
            return Some(next);
        }
        // Not for as long as one is needed: a pool that ends starts none, and says nothing.
        for _ in 0..workers.ready {
            if !workers.needs_another() {
                break;
            }
            if spawn(shared).is_err() {
                healing.wait = (healing.wait * 2).clamp(RETRY_MIN, RETRY_MAX);
                healing.next = Some(now + healing.wait);
                return healing.next;
            }
        }
        workers.short.store(false, SeqCst);
        *healing = Healing::default();
        None
    }

    fn needs_another(&self) -> bool {
        self.spare() < self.ready && self.gauge.now() < self.gauge.max()
    }

    /// Changes the limit on threads with the number of exchanges that may run.
    pub fn set_exchanges_max(&self, exchanges: usize) {
        self.gauge.set_max((self.ready + exchanges) as u64);
    }

    /// Starts the ready threads.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
        for _ in 0..shared.workers.ready {
            spawn(shared)?;
        }
        Ok(())
    }

    /// Ends the pool: the caller has closed the queue's other end. Waits for the threads, at most
    /// until `late` says so; returns how many were still running.
    pub fn join(&self, late: impl Fn() -> bool) -> usize {
        let mut threads = self.handles.with(|handles| {
            handles.closed = true;
            std::mem::take(&mut handles.threads)
        });
        while !threads.is_empty() {
            threads.retain(|thread| !thread.finished());
            if late() {
                break;
            }
            if !threads.is_empty() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let left = threads.len();
        threads.into_iter().for_each(Thread::abandon);
        left
    }

    /// So many threads hang: they are not among the ready ones. The parking thread starts others.
    pub fn lose(&self, hung: usize) {
        self.hung.store(hung, SeqCst);
        self.short.store(true, SeqCst);
    }

    fn spare(&self) -> usize {
        let busy = self.occupied.load(SeqCst) + self.hung.load(SeqCst);
        self.threads.load(SeqCst).saturating_sub(busy)
    }
}

/// A worker that is busy for longer: it is replaced while this lives.
pub struct Occupied {
    shared: Arc<Shared>,
}

impl Occupied {
    /// Marks the calling worker as occupied, and sees to it that others are ready.
    pub fn begin(shared: &Arc<Shared>) -> Self {
        let workers = &shared.workers;
        workers.occupied.fetch_add(1, SeqCst);
        // A refusal by the operating system means fewer ready threads, until the parking thread
        // has better luck.
        if workers.needs_another() && spawn(shared).is_err() {
            workers.short.store(true, SeqCst);
            shared.inbox.wake();
        }
        Occupied { shared: Arc::clone(shared) }
    }

    /// The same for a worker that only stays with a connection: when half of the ready ones are
    /// still free then. Nobody is started for it.
    pub fn begin_if_free(shared: &Arc<Shared>) -> Option<Self> {
        let workers = &shared.workers;
        if !workers.queue.is_empty() || workers.spare() <= workers.ready.div_ceil(2) {
            return None;
        }
        workers.occupied.fetch_add(1, SeqCst);
        Some(Occupied { shared: Arc::clone(shared) })
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.shared.workers.occupied.fetch_sub(1, SeqCst);
    }
}

fn spawn(shared: &Arc<Shared>) -> std::io::Result<()> {
    let workers = &shared.workers;
    let number = workers.handles.with(|handles| {
        if handles.closed {
            return None;
        }
        handles.started += 1;
        Some(handles.started)
    });
    let Some(number) = number else { return Ok(()) };
    workers.threads.fetch_add(1, SeqCst);
    let for_thread = Arc::clone(shared);
    let name = format!("{}-{}", shared.name, number % 100_000);
    #[cfg(test)]
    let refused = workers.refuse_threads.load(SeqCst);
    #[cfg(not(test))]
    let refused = false;
    let spawned = if refused {
        Err(std::io::ErrorKind::WouldBlock.into())
    } else {
        let beat = shared.heartbeats.register_one_of_many(&name, WORK_MAX);
        thread::spawn(&name, move || run(&for_thread, &beat))
    };
    match spawned {
        Ok(thread) => {
            workers.gauge.set_now(workers.threads.load(SeqCst) as u64);
            let finished = workers.handles.with(|handles| {
                let (finished, running): (Vec<_>, Vec<_>) =
                    handles.threads.drain(..).partition(Thread::finished);
                handles.threads = running;
                handles.threads.push(thread);
                finished
            });
            // Joined outside the lock; they have ended, so this does not wait.
            drop(finished);
            Ok(())
        }
        Err(error) => {
            workers.threads.fetch_sub(1, SeqCst);
            workers.gauge.refuse();
            Err(error)
        }
    }
}

/// The life of a worker.
fn run(shared: &Arc<Shared>, beat: &Beat) {
    let workers = &shared.workers;
    let mut scratch = serve::Scratch::default();
    loop {
        beat.rest();
        match workers.queue.recv_timeout(SPARE_TIMEOUT) {
            Ok(task) => {
                let left = workers.queue.len();
                shared.queued.set_now(left as u64);
                let now = clock::now();
                beat.tick_at(now);
                let late = shared.line.taken(task.since, left == 0, shared.queue_timeout(), now);
                // Handlers are caught where they can still be answered; what is left is the
                // service's word on the next head. The connection is closed then.
                let served =
                    AssertUnwindSafe(|| serve::serve(shared, task, late, &mut scratch, beat));
                if catch_unwind(served).is_err() {
                    shared.panics.inc();
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                // One thread at a time may leave, so that two do not both think they are spare.
                let leave = workers.threads.fetch_update(SeqCst, SeqCst, |threads| {
                    let busy = workers.occupied.load(SeqCst) + workers.hung.load(SeqCst);
                    let spare = threads.saturating_sub(busy);
                    (spare > workers.ready).then(|| threads - 1)
                });
                if leave.is_ok() {
                    break;
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                workers.threads.fetch_sub(1, SeqCst);
                break;
            }
        }
    }
    workers.gauge.set_now(workers.threads.load(SeqCst) as u64);
}
