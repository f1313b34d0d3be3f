//! Registered checks (`[[check]]`): a schedule, a few threads that run what is due, and the board that has
//! what came of it. Whoever asks reads the board; asking never runs a check.

pub mod machine;
pub mod plan;

mod command;
mod run;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::base::clock;
use crate::base::events::Events;
use crate::base::health::{Affects, Board};
use crate::base::heartbeat::{Beat, Heartbeats};
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Limit, Registry};
use crate::base::thread::{self, Thread};
use crate::config::settings::{CheckSpec, Probe};
use crate::net::outbound::Resolver;

use machine::Verdict;
use plan::{Due, Plan};

/// Most threads that run checks: a run takes at most its timeout, so that four of them bring all checks
/// on while few of them hang.
pub const THREADS_MAX: usize = 4;

/// Runs that wait for a thread: one for each check there can be. Each check waits once at most.
const WAITING_MAX: usize = 64;

/// How long a thread may be at work between two waits.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How long runs may take to end when all ends.
const STOP_MAX: Duration = Duration::from_millis(500);

/// Looks at the gateway itself, until a deadline.
pub type Inside = Arc<dyn Fn(Probe, Instant) -> Result<(), String> + Send + Sync>;

/// What checks need of the rest of the program.
#[derive(Clone)]
#[expect(missing_docs, reason = "each is documented where it is made")]
pub struct Tools {
    pub board: Arc<Board>,
    pub registry: Arc<Registry>,
    pub events: Arc<Events>,
    pub heartbeats: Arc<Heartbeats>,
    pub resolver: Arc<Resolver>,
    pub inside: Inside,
}

/// All checks, and the threads that run them.
pub struct Checks {
    shared: Arc<Shared>,
    /// Closed, it ends the threads; so it comes before them.
    runs: Option<Sender<Due>>,
    work: Receiver<Due>,
    threads: Vec<Thread>,
    limits: Limits,
}

struct Shared {
    tools: Tools,
    plan: Locked<Plan>,
    /// The runs that are on their way are to end.
    stopping: AtomicBool,
}

struct Limits {
    checks: Arc<Limit>,
    threads: Arc<Limit>,
    waiting: Arc<Limit>,
}

/// Its name on the board.
fn board_name(name: &str) -> String {
    format!("check:{name}")
}

impl Checks {
    /// None yet, and no threads.
    pub fn new(tools: Tools) -> Self {
        let (runs, work) = bounded(WAITING_MAX);
        let limit =
            |name, max: usize, consequence| tools.registry.limit(name, "", max as u64, consequence);
        let limits = Limits {
            checks: limit("checks.entries_max", WAITING_MAX, "the configuration is refused"),
            threads: limit("checks.threads_max", THREADS_MAX, "a run waits for a thread"),
            waiting: limit("checks.waiting_max", WAITING_MAX, "the run is tried a second later"),
        };
        let shared = Arc::new(Shared {
            tools,
            plan: Locked::new(Rank::Guard, Plan::default()),
            stopping: AtomicBool::new(false),
        });
        Checks { shared, runs: Some(runs), work, threads: Vec::new(), limits }
    }

    /// Takes over these checks; starts threads when there are more checks than threads.
    pub fn reconfigure(&mut self, specs: &[CheckSpec]) {
        let Tools { board, registry, heartbeats, .. } = &self.shared.tools;
        let now = clock::now();
        let gone = self.shared.plan.with(|plan| plan.reconfigure(specs, now));
        for name in gone {
            board.remove(&board_name(&name));
            if !specs.iter().any(|spec| spec.name == name) {
                for outcome in OUTCOMES {
                    registry.forget(RUNS, &[("check", &name), ("outcome", outcome)]);
                }
            }
        }
        for spec in specs {
            let check = board.check_every(&board_name(&spec.name), spec.interval);
            check.set_affects(spec.affects);
            for outcome in OUTCOMES {
                runs(registry, &spec.name, outcome);
            }
        }
        self.limits.checks.set_now(specs.len() as u64);
        while self.threads.len() < specs.len().min(THREADS_MAX) {
            let name = format!("check-{}", self.threads.len() + 1);
            let beat = heartbeats.register_one_of_many(&name, SILENCE_MAX);
            let (shared, work) = (Arc::clone(&self.shared), self.work.clone());
            match thread::spawn(&name, move || serve(&shared, &work, &beat)) {
                Ok(thread) => self.threads.push(thread),
                // The checks run on fewer threads; with none they turn out to be stale.
                Err(error) => {
                    crate::log_limited!(log::Level::Error, "check_thread_failed", error:% = error);
                    break;
                }
            }
        }
        self.limits.threads.set_now(self.threads.len() as u64);
    }

    /// Hands what is due to the threads; gives the time when the next is.
    pub fn look(&self, now: Instant) -> Option<Instant> {
        let runs = self.runs.as_ref()?;
        let due = self.shared.plan.with(|plan| plan.due(now));
        for due in due {
            // There is room for each check there can be.
            if let Err(TrySendError::Full(due) | TrySendError::Disconnected(due)) =
                runs.try_send(due)
            {
                self.limits.waiting.refuse();
                self.shared.plan.with(|plan| plan.done(due.number, false, now));
            }
        }
        self.limits.waiting.set_now(runs.len() as u64);
        self.shared.plan.with(|plan| plan.next())
    }

    /// Ends the threads. Programs that run are killed; a thread that waits for an answer ends by itself
    /// at its timeout, and is left behind.
    pub fn stop(&mut self) {
        self.runs = None;
        self.shared.stopping.store(true, Relaxed);
        // What waits is not begun any more.
        while self.work.try_recv().is_ok() {}
        let until = clock::now() + STOP_MAX;
        while clock::now() < until && self.threads.iter().any(|thread| !thread.finished()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        for thread in self.threads.drain(..) {
            if thread.finished() { thread.join() } else { thread.abandon() }
        }
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.stop();
    }
}

const RUNS: &str = "tidegate_check_runs_total";
const OUTCOMES: [&str; 2] = ["ok", "failed"];

fn runs(
    registry: &Registry,
    check: &str,
    outcome: &'static str,
) -> Arc<crate::base::metrics::Counter> {
    let help = "Runs of each [[check]], by outcome.";
    registry.counter(RUNS, help, &[("check", check), ("outcome", outcome)])
}

/// The life of a thread: runs what comes.
fn serve(shared: &Shared, work: &Receiver<Due>, beat: &Beat) {
    loop {
        beat.rest();
        let Ok(due) = work.recv() else { return };
        beat.tick();
        let ran =
            catch_unwind(AssertUnwindSafe(|| run::run(&due.spec, &shared.tools, &shared.stopping)));
        let ran =
            ran.unwrap_or_else(|_| Err("a bug in the gateway; its log has the place".to_owned()));
        shared.done(&due, ran);
    }
}

impl Shared {
    fn done(&self, due: &Due, ran: Result<(), String>) {
        let Tools { board, registry, events, .. } = &self.tools;
        let now = clock::now();
        let told = self.plan.with(|plan| plan.done(due.number, ran.is_ok(), now));
        // Gone meanwhile.
        let Some(told) = told else { return };
        let spec = &due.spec;
        runs(registry, &spec.name, if ran.is_ok() { "ok" } else { "failed" }).inc();
        // A reload may have taken it away since.
        let Some(check) = board.find(&board_name(&spec.name)) else { return };
        check.runs_next(told.next);
        match (told.verdict, &ran) {
            (Verdict::Good, Ok(())) => check.ok(),
            (Verdict::Bad, Err(why)) => check.failed(why.clone()),
            // Not often enough to change anything: it is renewed, with its reason.
            (_, ran) => check.renew(ran.as_ref().err().map(String::as_str)),
        }
        if told.turned {
            let bad = told.verdict == Verdict::Bad;
            let level = match spec.affects {
                Affects::Readiness if bad => log::Level::Error,
                _ if bad => log::Level::Warn,
                _ => log::Level::Info,
            };
            let kind = if bad { "check_failed" } else { "check_passed" };
            let why = ran.err().unwrap_or_else(|| "all is well".to_owned());
            events.record(level, kind, &spec.name, why);
        }
    }
}
