//! The threads that ask.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::counters::Counters;
use super::question::{Fault, Key, Known, Outcome};
use super::state::{Landed, State, THREADS_MAX};
use super::{Catalog, FETCH_TIMEOUT};
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::heartbeat::{Beat, Heartbeats};
use crate::base::lock::{self, Locked, Rank};
use crate::base::metrics::Registry;
use crate::base::thread::{self, Thread};
use crate::log_limited;
use crate::net::outbound::Resolver;

/// How long a thread may be silent: it asks one question between two beats, and each has its
/// deadline.
const SILENCE_MAX: Duration = Duration::from_secs(10 * FETCH_TIMEOUT.as_secs());

/// What the threads and the callers share.
pub(super) struct Shared {
    heartbeats: Arc<Heartbeats>,
    pub(super) resolver: Arc<Resolver>,
    pub(super) state: Locked<State>,
    /// One token wakes one thread, which asks until nothing is left to ask.
    wake: Sender<()>,
    work: Receiver<()>,
    pub(super) counters: Counters,
}

impl Shared {
    pub(super) fn new(
        resolver: Arc<Resolver>,
        registry: &Registry,
        heartbeats: Arc<Heartbeats>,
    ) -> Self {
        let (wake, work) = bounded(THREADS_MAX);
        let state = Locked::new(Rank::Catalog, State::default());
        Shared { heartbeats, resolver, state, wake, work, counters: Counters::new(registry) }
    }

    /// Keeps the gauges in step.
    pub(super) fn measure(&self) {
        self.counters.measure(self.state.with(|state| state.sizes()));
    }
}

/// The threads that were started.
pub(super) struct Threads {
    started: Vec<Thread>,
    /// Each thread holds a copy; dropped when no more are started.
    alive: Option<Sender<()>>,
}

impl Threads {
    /// None yet; and what is disconnected once all have ended after a stop.
    pub(super) fn new() -> (Locked<Self>, Receiver<()>) {
        let (alive, ended) = bounded(1);
        let threads = Threads { started: Vec::new(), alive: Some(alive) };
        (Locked::new(Rank::Leaf, threads), ended)
    }
}

impl Catalog {
    /// Ends every question and joins the threads; those that have not ended by the deadline (in a
    /// TCP connect) are left behind, and counted in the result.
    pub fn stop(&self, deadline: Instant) -> usize {
        lock::assert_none_held();
        let sources = self.shared.state.with(|state| {
            state.closed = true;
            state.sources()
        });
        for source in sources {
            source.close();
        }
        let fault = Fault::of(&Error::new(Kind::Draining, "the gateway is stopping"));
        let waiting = self.shared.state.with(|state| state.abandon(&fault));
        tell(waiting);
        for _ in 0..THREADS_MAX {
            let _ = self.shared.wake.try_send(());
        }
        let threads = self.threads.with(|threads| {
            threads.alive = None;
            std::mem::take(&mut threads.started)
        });
        let _ = self.ended.recv_deadline(deadline);
        let mut late = 0;
        for thread in threads {
            if thread.finished() || clock::now() < deadline {
                thread.join();
            } else {
                late += 1;
                thread.abandon();
            }
        }
        late
    }

    /// Wakes a thread; starts one when there are more questions than threads.
    pub(super) fn wake(&self) {
        let need = self.shared.state.with(|state| {
            let need = !state.closed && state.threads < state.sizes().0.min(THREADS_MAX);
            state.threads += usize::from(need);
            need.then_some(state.threads)
        });
        if let Some(number) = need {
            self.start_thread(number);
        }
        // A full channel has a token for each thread already.
        let _ = self.shared.wake.try_send(());
    }

    fn start_thread(&self, number: usize) {
        let Some(alive) = self.threads.with(|threads| threads.alive.clone()) else { return };
        let shared = Arc::clone(&self.shared);
        let name = format!("catalog-{number}");
        let started = thread::spawn(&name.clone(), move || {
            let beat = shared.heartbeats.register(&name, SILENCE_MAX);
            run(&shared, &beat);
            drop(alive);
        });
        match started {
            Ok(thread) => {
                // After a stop nobody joins it, and it ends by itself.
                let late = self.threads.with(|threads| match threads.alive {
                    Some(_) => {
                        threads.started.push(thread);
                        self.shared.counters.threads.set_now(threads.started.len() as u64);
                        None
                    }
                    None => Some(thread),
                });
                if let Some(thread) = late {
                    thread.abandon();
                }
            }
            Err(error) => {
                let fault = Fault::of(&Error::new(Kind::Internal, "no thread for the catalog"));
                let waiting = self.shared.state.with(|state| {
                    state.threads -= 1;
                    if state.threads == 0 { state.abandon(&fault) } else { Vec::new() }
                });
                tell(waiting);
                log_limited!(log::Level::Error, "catalog_thread_failed", error:% = error);
            }
        }
    }
}

/// A catalog thread: asks as long as there is something to ask.
fn run(shared: &Shared, beat: &Beat) {
    loop {
        while let Some(job) = shared.state.with(State::pick) {
            beat.tick();
            let deadline = clock::now() + FETCH_TIMEOUT;
            let asked = catch_unwind(AssertUnwindSafe(|| job.source.ask(&job.key.what, deadline)));
            let outcome = asked.unwrap_or_else(|_| {
                Err(Fault::of(&Error::new(Kind::Internal, "reading the answer failed")))
            });
            shared.counters.asked(&job.key.what, &outcome);
            let told = outcome.clone();
            let landed = shared.state.with(|state| state.land(&job, outcome, clock::now()));
            shared.measure();
            report(&job.key, &told, &landed);
            if landed.more {
                let _ = shared.wake.try_send(());
            }
            tell(landed.waiters);
        }
        if shared.state.with(|state| state.closed) {
            return;
        }
        beat.rest();
        if shared.work.recv().is_err() {
            return;
        }
        beat.tick();
    }
}

/// Hands answers to those who wait. One that gave up is gone; each channel has room for its answer.
fn tell(waiters: Vec<(Sender<Outcome>, Outcome)>) {
    for (waiter, outcome) in waiters {
        let _ = waiter.try_send(outcome);
    }
}

/// Logs what changed.
fn report(key: &Key, outcome: &Outcome, landed: &Landed) {
    let (upstream, what) = (&*key.upstream, key.what.as_str());
    match outcome {
        Ok(known) => {
            if landed.turned == Some(true) {
                log_limited!(log::Level::Info, "catalog_upstream_back", upstream, what);
            }
            if let Known::List(list) = known
                && list.left_out > 0
            {
                let (left_out, kept) = (list.left_out, list.models.len());
                log_limited!(log::Level::Warn, "catalog_list_cut", upstream, left_out, kept);
            }
        }
        Err(fault) => {
            let first = landed.turned == Some(false) || landed.first_failure;
            let quiet = matches!(fault.kind(), Kind::UpstreamModelNotFound | Kind::Draining);
            let level = if first && !quiet { log::Level::Warn } else { log::Level::Debug };
            let (code, error) = (fault.kind().row().code, fault.causes());
            log_limited!(level, "catalog_fetch_failed", upstream, what, code, error);
        }
    }
}
