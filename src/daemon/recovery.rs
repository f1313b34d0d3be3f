//! The hands of the recovery ladder: what is wrong now, and what each step does about it. On the thread
//! `health`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::base::clock;
use crate::base::events::Events;
use crate::base::exit::Exit;
use crate::base::health::{Board, Check, Look, State};
use crate::base::heartbeat::Pulse;
use crate::base::memory;
use crate::base::metrics::{Counter, Gauge, Limit, Registry, Unit};
use crate::base::orders::{Desk, Order};
use crate::config::settings::Recovery as Settings;
use crate::health::ladder::{ATTEMPTS_MAX, Act, Ladder, Rules, STEPS, Step, Trouble};
use crate::health::overload::{Level, Measure, Overload};
use crate::health::trim::Trimmers;
use crate::net::pressure::Throttle;
use crate::upstream::breaker::{Force, Stand};
use crate::upstream::link::Links;

use super::health::dependency;

/// Never ask for a restart within this time of the start: what a restart did not cure, a second one will
/// not, and a supervisor would go round and round.
const RESTART_AFTER: Duration = Duration::from_secs(600);

/// How long the main loop may take to hear that a restart is asked for. A main loop that hangs never
/// does.
const ASK_MAX: Duration = Duration::from_secs(5);

/// How long the log may take with the last lines of a process that ends without its main loop.
const LAST_LINES: Duration = Duration::from_millis(300);

/// An upstream is left alone by hand when it had so many calls lately …
const CALLS_MIN: u32 = 5;
/// … and at least this share of them failed, in percent.
const FAILED_PERCENT: u32 = 50;

/// Checks that are not what is wrong, but tell of it, or of what a person has ordered.
const TELLING: [&str; 4] = ["overload", "threads", "recovery", "drained"];

/// What the steps have a hand on.
pub(super) struct Hands {
    pub(super) overload: Arc<Overload>,
    pub(super) trimmers: Arc<Trimmers>,
    pub(super) links: Arc<Links>,
    pub(super) events: Arc<Events>,
    pub(super) desk: Desk,
    /// Of each engine, with what its workers' names begin with.
    pub(super) engines: [(&'static str, Throttle); 2],
}

/// The ladder with its hands.
pub(super) struct Recovery {
    hands: Hands,
    settings: Arc<ArcSwap<Settings>>,
    ladder: Ladder,
    /// From when on a restart may be asked for.
    restart_from: Instant,
    /// `overload.memory_max`: what is resident, and what may be.
    memory: Arc<Limit>,
    /// The upstreams that were left alone by a step, and no person.
    opened: Vec<String>,
    /// Workers that hang and have been replaced, by engine.
    replaced: [usize; 2],
    check: Arc<Check>,
    standing: Arc<Gauge>,
    taken: Arc<Limit>,
    /// By step: taken, helped, did not help.
    counts: [[Arc<Counter>; 3]; STEPS.len()],
}

/// What is wrong, and a sentence about it.
type Wrong = (Trouble, String);

impl Recovery {
    /// At the foot of the ladder.
    pub(super) fn new(
        hands: Hands,
        settings: Arc<ArcSwap<Settings>>,
        board: &Board,
        registry: &Registry,
        drills: bool,
    ) -> Self {
        let now = clock::now();
        let count = |step: Step| {
            ["taken", "helped", "did_not_help"].map(|outcome| {
                let help = "Steps of the recovery ladder, and what came of them.";
                let labels = [("step", step.as_str()), ("outcome", outcome)];
                registry.counter("tidegate_recovery_steps_total", help, &labels)
            })
        };
        let help = "The step of the recovery ladder that is tried: 0 none, 1 soft, 2 medium, 3 hard, \
                    4 the operator was called.";
        let check = dependency(board, "recovery");
        check.ok();
        Recovery {
            hands,
            settings,
            ladder: Ladder::default(),
            // A drill that takes ten minutes is run by nobody.
            restart_from: if drills { now } else { now + RESTART_AFTER },
            memory: registry.limit_of(
                Unit::Bytes,
                "overload.memory_max",
                "",
                u64::MAX,
                "the overload level rises before it is reached",
            ),
            opened: Vec::new(),
            replaced: [0; 2],
            check,
            standing: registry.gauge("tidegate_recovery_step", help, &[]),
            taken: registry.limit(
                "recovery.attempts_max",
                "",
                ATTEMPTS_MAX as u64,
                "the operator is called instead",
            ),
            counts: STEPS.map(count),
        }
    }

    /// One look, with the threads that hang and the board.
    pub(super) fn look(&mut self, now: Instant, stalled: &[&Pulse], looks: &[Look]) {
        let settings = self.settings.load_full();
        self.taken.set_max(settings.attempts_max as u64);
        let wrong = if settings.enabled { self.wrong(stalled, looks) } else { None };
        let rules = Rules {
            after: settings.after,
            settle: settings.settle,
            attempts_max: settings.attempts_max,
            calm: settings.calm,
            restart: settings.restart && now >= self.restart_from,
        };
        let acts = self.ladder.look(now, wrong.as_ref().map(|(trouble, _)| *trouble), &rules);
        for act in acts {
            self.act(now, act, wrong.as_ref(), stalled, &settings);
        }
        self.replacements_end(stalled);
        self.taken.set_now(self.ladder.taken() as u64);
        let trying = self.ladder.trying().map_or(0, |step| step as u64);
        self.standing.set(if self.ladder.called() { Step::Operator as u64 } else { trying });
    }

    /// The gravest thing that is wrong now.
    fn wrong(&self, stalled: &[&Pulse], looks: &[Look]) -> Option<Wrong> {
        let told = |pulse: &&&Pulse| crate::health::stalls::told(pulse);
        if let Some(thread) = stalled.iter().find(|pulse| pulse.essential) {
            return Some((Trouble::Thread, told(&thread)));
        }
        let (now, max) = (self.memory.now(), self.memory.max());
        let percent = now.saturating_mul(100) / max.max(1);
        let from = Measure::Memory.enters()[1];
        if now as f64 >= max as f64 * from {
            let why = format!("memory is at {percent} % of overload.memory_max");
            return Some((Trouble::Memory, why));
        }
        for (at, (prefix, _)) in self.hands.engines.iter().enumerate() {
            let hung = hung(stalled, prefix);
            if hung.len() > self.replaced[at] {
                return hung.first().map(|pulse| (Trouble::Worker, told(&pulse)));
            }
        }
        if self.hands.overload.own_level() == Level::Critical {
            return Some((Trouble::Overload, "the overload level is critical".to_owned()));
        }
        let bad = looks.iter().find_map(|look| match look.counts() {
            State::Failed(why) if !TELLING.contains(&look.name.as_str()) => {
                Some(format!("{}: {why}", look.name))
            }
            _ => None,
        });
        bad.map(|why| (Trouble::Check, why))
    }

    fn act(
        &mut self,
        now: Instant,
        act: Act,
        wrong: Option<&Wrong>,
        stalled: &[&Pulse],
        settings: &Settings,
    ) {
        let why = wrong.map_or("", |(_, why)| why.as_str());
        match act {
            Act::Take(Step::Operator, trouble) => self.call(trouble, why, settings),
            Act::Take(step, trouble) => {
                // Told before it is done: a hard step may be the last thing that is.
                let done = match (step, trouble) {
                    (Step::Soft, _) => {
                        "caches are trimmed, idle connections closed, free memory given back"
                    }
                    (Step::Medium, _) => {
                        "new model calls are refused, upstreams that mostly fail left alone"
                    }
                    (_, Trouble::Worker) => "other workers take the places of those that hang",
                    _ => "a restart is asked for",
                };
                let detail = format!("{}: {why}; {done}", trouble.as_str());
                self.count(step, 0);
                self.hands.events.record(log::Level::Warn, "recovery_step", step.as_str(), detail);
                match (step, trouble) {
                    (Step::Soft, _) => self.soft(),
                    (Step::Medium, _) => self.medium(),
                    (_, Trouble::Worker) => self.replace(stalled),
                    _ => self.restart(now),
                }
            }
            Act::Outcome(step, helped, after) => {
                self.count(step, if helped { 1 } else { 2 });
                let seconds = after.as_secs();
                let (level, detail) = match helped {
                    true => (log::Level::Info, format!("helped, after {seconds} s")),
                    false => (log::Level::Warn, format!("did not help within {seconds} s: {why}")),
                };
                self.hands.events.record(level, "recovery_outcome", step.as_str(), detail);
            }
            Act::Relax => self.relax(),
            Act::Anew => {
                self.check.ok();
                let detail = "all was well for long: the first step is the first again".to_owned();
                self.hands.events.record(log::Level::Info, "recovery_over", "", detail);
            }
        }
    }

    fn count(&self, step: Step, outcome: usize) {
        let counters = STEPS.iter().position(|known| *known == step).map(|at| &self.counts[at]);
        if let Some(counter) = counters.and_then(|counters| counters.get(outcome)) {
            counter.inc();
        }
    }

    fn soft(&self) {
        for name in self.hands.trimmers.trim(Level::Critical) {
            crate::log_limited!(log::Level::Error, "trim_panicked", cache = name);
        }
        for (_, engine) in &self.hands.engines {
            engine.close_idle();
        }
        memory::trim();
    }

    fn medium(&mut self) {
        self.soft();
        self.hands.overload.force(Level::Critical);
        let failing = self.hands.links.breakers().into_iter().filter(|view| {
            let mostly = view.failed * 100 >= view.calls * FAILED_PERCENT;
            let own = view.force == Force::Auto && view.stand == Stand::Closed;
            view.model.is_none() && own && view.calls >= CALLS_MIN && mostly
        });
        for view in failing {
            if self.hands.links.force(&view.upstream, None, Force::Open, None).is_ok() {
                self.opened.push(view.upstream);
            }
        }
    }

    /// Takes back what was forced, but for what a person has decided since.
    fn relax(&mut self) {
        self.hands.overload.force(Level::Normal);
        let views = self.hands.links.breakers();
        for upstream in self.opened.drain(..) {
            let ours = views.iter().any(|view| {
                view.upstream == upstream && view.model.is_none() && view.force == Force::Open
            });
            if ours {
                // One that is gone has nothing to be taken back.
                let _ = self.hands.links.force(&upstream, None, Force::Auto, None);
            }
        }
        let detail = "what was forced is taken back".to_owned();
        self.hands.events.record(log::Level::Info, "recovery_relaxed", "", detail);
    }

    fn replace(&mut self, stalled: &[&Pulse]) {
        for (at, (prefix, engine)) in self.hands.engines.iter().enumerate() {
            self.replaced[at] = hung(stalled, prefix).len();
            engine.replace_workers(self.replaced[at]);
        }
    }

    /// Workers that go on again need nobody in their place.
    fn replacements_end(&mut self, stalled: &[&Pulse]) {
        for (at, (prefix, engine)) in self.hands.engines.iter().enumerate() {
            let hung = hung(stalled, prefix).len();
            if hung < self.replaced[at] {
                self.replaced[at] = hung;
                engine.replace_workers(hung);
            }
        }
    }

    /// Asks the main loop to drain and to end with the code that means it; ends the process when the
    /// main loop does not hear.
    fn restart(&self, now: Instant) {
        if self.hands.desk.ask(Order::Restart, now + ASK_MAX).is_ok() {
            return;
        }
        log::error!(code = Exit::Restart.code(); "restart_without_drain");
        std::thread::sleep(LAST_LINES);
        #[expect(clippy::disallowed_methods, reason = "the main loop hangs")]
        std::process::exit(i32::from(Exit::Restart.code()));
    }

    fn call(&self, trouble: Trouble, why: &str, settings: &Settings) {
        self.count(Step::Operator, 0);
        let restart = match settings.restart {
            true => "",
            false => " (recovery.restart is off, so that none was asked for)",
        };
        let (word, taken) = (trouble.as_str(), self.ladder.taken());
        let detail = format!(
            "needs you: {word}: {why}; {taken} steps were tried within an hour and did not help{restart}"
        );
        self.check.degraded(detail.clone());
        self.hands.events.record(log::Level::Error, "recovery_operator", word, detail);
    }
}

/// The workers of an engine that hang.
fn hung<'a>(stalled: &'a [&'a Pulse], prefix: &str) -> Vec<&'a Pulse> {
    let of = |pulse: &&&Pulse| !pulse.essential && pulse.name.starts_with(prefix);
    stalled.iter().filter(of).copied().collect()
}
