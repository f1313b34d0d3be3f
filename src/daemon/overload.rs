//! The thread `overload`: four times a second it looks at waits, memory, descriptors and exchanges,
//! and has the rest of the program do what the level asks for.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::base::clock;
use crate::base::events::Events;
use crate::base::health::{Board, Check};
use crate::base::heartbeat::{Beat, Heartbeats};
use crate::base::memory;
use crate::base::metrics::{Counter, Gauge, Limit, Registry, Unit};
use crate::base::thread::{self, Thread};
use crate::config::settings::Overload as Settings;
use crate::gateway::catalog::Catalog;
use crate::health::memory::allowed;
use crate::health::overload::{ACTIONS, Action, Change, Level, Machine, Overload};
use crate::health::sample::{Figures, Sampler, WINDOW_SAMPLES};
use crate::health::trim::{TRIMMERS_MAX, Trimmers};
use crate::net::pressure::{Pressure, Throttle};
use crate::observe::process;

/// Between two looks (Envoy's overload manager has the same).
const LOOK: Duration = Duration::from_millis(250);

/// How long the thread may be silent: trimming a large heap takes a second or two.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// How often caches and the allocator are asked again while a level lasts, and how often the
/// control group's limit is read.
const AGAIN: Duration = Duration::from_secs(10);

/// From `busy` on, connections are closed after their answer while more than this share of them is
/// open, in percent …
const KEEP_ALIVE_PERCENT_BUSY: u64 = 75;
/// … and from `degraded` on while more than this is.
const KEEP_ALIVE_PERCENT_DEGRADED: u64 = 50;

/// From `degraded` on, how long a connection may be idle. Long enough that few clients are about to
/// ask again just then.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// The header field of answers from `degraded` on.
const NOTICE: &str = "x-tidegate-degraded";

/// What the watch looks at, and what it has a hand on.
pub(super) struct Hands {
    pub(super) overload: Arc<Overload>,
    pub(super) trimmers: Arc<Trimmers>,
    pub(super) data: Throttle,
    pub(super) catalog: Arc<Catalog>,
    pub(super) events: Arc<Events>,
    /// The limit on descriptors.
    pub(super) descriptors: u64,
}

/// The running watch. Dropped, it ends its thread.
pub(super) struct Watch {
    settings: Arc<ArcSwap<Settings>>,
    stop: Option<Sender<()>>,
    thread: Option<Thread>,
}

impl Watch {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system refuses it.
    pub(super) fn start(
        settings: Settings,
        hands: Hands,
        board: &Board,
        registry: &Registry,
        heartbeats: &Arc<Heartbeats>,
    ) -> io::Result<Watch> {
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        let (stop, stopped) = bounded(1);
        let check = board.check("overload");
        check.ok();
        let begun = |action: Action| {
            let help = "How often an overload action was begun.";
            let labels = [("action", action.as_str())];
            registry.counter("tidegate_overload_actions_total", help, &labels)
        };
        let help = "The overload level: 0 normal, 1 busy, 2 degraded, 3 critical.";
        let work = Work {
            machine: Machine::new(settings.load().calm),
            sampler: Sampler::new(hands.data.queue_waits().bounds()),
            settings: Arc::clone(&settings),
            level: registry.gauge("tidegate_overload_level", help, &[]),
            begun: ACTIONS.map(begun),
            check,
            allowed: None,
            again: clock::now(),
            limits: Limits::new(registry),
            hands,
        };
        let beat = heartbeats.register("overload", SILENCE_MAX);
        let thread = thread::spawn("overload", move || work.run(&stopped, &beat))?;
        Ok(Watch { settings, stop: Some(stop), thread: Some(thread) })
    }

    /// Takes over new settings.
    pub(super) fn reconfigure(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// Ends the thread.
    pub(super) fn stop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the thread holds.
struct Work {
    hands: Hands,
    settings: Arc<ArcSwap<Settings>>,
    machine: Machine,
    sampler: Sampler,
    level: Arc<Gauge>,
    /// By action.
    begun: [Arc<Counter>; ACTIONS.len()],
    check: Arc<Check>,
    /// The memory that the system allows.
    allowed: Option<u64>,
    /// When to do again what is done now and then.
    again: Instant,
    limits: Limits,
}

/// What the watch itself keeps, and the memory that it watches.
struct Limits {
    samples: Arc<Limit>,
    trimmers: Arc<Limit>,
    memory: Arc<Limit>,
    descriptors: Arc<Limit>,
}

impl Limits {
    fn new(registry: &Registry) -> Self {
        let limit = |name, max, consequence| registry.limit(name, "", max as u64, consequence);
        Limits {
            samples: limit("overload.samples_max", WINDOW_SAMPLES, "the oldest is forgotten"),
            trimmers: limit("overload.trimmers_max", TRIMMERS_MAX, "the cache is not asked"),
            memory: registry.limit_of(
                Unit::Bytes,
                "overload.memory_max",
                "",
                u64::MAX,
                "the overload level rises before it is reached",
            ),
            descriptors: registry.limit(
                "descriptors_max",
                "",
                u64::MAX,
                "the overload level rises before it is reached",
            ),
        }
    }

    fn measure(&self, sampler: &Sampler, trimmers: &Trimmers, figures: &Figures) {
        self.samples.set_now(sampler.remembered() as u64);
        self.trimmers.set_now(trimmers.registered() as u64);
        if let Some((resident, allowed)) = figures.memory {
            self.memory.set_max(allowed);
            self.memory.set_now(resident);
        }
        if let Some((open, allowed)) = figures.descriptors {
            self.descriptors.set_max(allowed);
            self.descriptors.set_now(open);
        }
    }
}

impl Work {
    fn run(mut self, stopped: &Receiver<()>, beat: &Beat) {
        while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            let now = clock::now();
            beat.tick_at(now);
            let due = now >= self.again;
            if due {
                self.again = now + AGAIN;
                self.allowed = allowed();
            }
            let settings = self.settings.load_full();
            self.machine.set_calm(settings.calm);
            self.hands.overload.set_calm(settings.calm);
            let change = if settings.enabled {
                let figures = self.figures(&settings);
                let sample = self.sampler.sample(now, &figures);
                self.limits.measure(&self.sampler, &self.hands.trimmers, &figures);
                self.machine.step(now, &sample)
            } else {
                self.switched_off(settings.calm)
            };
            match self.forced(change) {
                Some(change) => self.changed(&change),
                None if due => self.give_back(self.hands.overload.level()),
                None => {}
            }
        }
    }

    /// The change as it is with what is forced: the level is the higher of the two.
    fn forced(&self, change: Option<Change>) -> Option<Change> {
        let (own, overload) = (self.machine.level(), &self.hands.overload);
        overload.set_own_level(own);
        let (from, to) = (overload.level(), own.max(overload.forced()));
        let cause = change.and_then(|change| change.cause).filter(|_| to == own);
        (from != to).then_some(Change { from, to, cause })
    }

    /// Back to normal at once.
    fn switched_off(&mut self, calm: Duration) -> Option<Change> {
        let from = self.machine.level();
        (from != Level::Normal).then(|| {
            self.machine = Machine::new(calm);
            Change { from, to: Level::Normal, cause: None }
        })
    }

    fn figures(&self, settings: &Settings) -> Figures {
        let load = self.hands.data.load();
        let resident = process::resident_bytes();
        Figures {
            waits: self.hands.data.queue_waits().counts(),
            queued: load.queued,
            running: load.running,
            waiting: load.waiting,
            memory: resident.zip(settings.memory_max.or(self.allowed)),
            descriptors: process::open_descriptors().map(|open| (open, self.hands.descriptors)),
        }
    }

    fn changed(&self, change: &Change) {
        let Change { from, to, .. } = *change;
        let hands = &self.hands;
        hands.overload.enter(to);
        self.level.set(to as u64);
        hands.data.press(pressure(to));
        hands.catalog.pause(hands.overload.does(Action::OptionalOff));
        let (word, level) = match to {
            _ if to < from => ("overload_lowered", log::Level::Info),
            Level::Critical => ("overload_raised", log::Level::Error),
            _ => ("overload_raised", log::Level::Warn),
        };
        let why = told(change);
        match to {
            Level::Normal | Level::Busy => self.check.ok(),
            Level::Degraded => self.check.degraded(why.clone()),
            Level::Critical => self.check.failed(why.clone()),
        }
        for (action, begun) in ACTIONS.into_iter().zip(&self.begun) {
            if action.from() > from && action.from() <= to {
                begun.inc();
            }
        }
        hands.events.record(level, word, to.as_str(), why);
        if to > Level::Busy || from > Level::Busy {
            self.ask_caches(to);
        }
        self.give_memory_back(to);
    }

    /// While a level lasts, what was trimmed grows again.
    fn give_back(&self, level: Level) {
        if level > Level::Busy {
            self.ask_caches(level);
        }
        self.give_memory_back(level);
    }

    fn ask_caches(&self, level: Level) {
        for name in self.hands.trimmers.trim(level) {
            crate::log_limited!(log::Level::Error, "trim_panicked", cache = name);
        }
    }

    fn give_memory_back(&self, level: Level) {
        if level >= Action::MemoryTrimmed.from() {
            memory::trim();
        }
    }
}

/// What an engine does at this level.
fn pressure(level: Level) -> Pressure {
    let percent = match level {
        Level::Normal => None,
        Level::Busy => Some(KEEP_ALIVE_PERCENT_BUSY),
        Level::Degraded | Level::Critical => Some(KEEP_ALIVE_PERCENT_DEGRADED),
    };
    Pressure {
        notice: level.notice().map(|notice| (NOTICE, notice)),
        keep_alive_percent: percent,
        idle_max: (level >= Action::IdleClosed.from()).then_some(IDLE_MAX),
    }
}

/// The change in a sentence, for events and the readiness board.
fn told(change: &Change) -> String {
    let (from, to) = (change.from.as_str(), change.to.as_str());
    let Some((measure, value)) = change.cause else {
        if change.to > change.from {
            return format!("{from} -> {to}: a step of the recovery asks for it");
        }
        return format!("{from} -> {to}: calm again");
    };
    let threshold = measure.enters().get((change.to as usize).wrapping_sub(1)).copied();
    let threshold = threshold.unwrap_or_default();
    format!("{from} -> {to}: {} is {value:.2}, from {threshold:.2} on it is {to}", measure.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::overload::{LEVELS, Measure};

    #[test]
    fn each_level_asks_for_no_less_than_the_one_below() {
        assert_eq!(pressure(Level::Normal), Pressure::default());
        let percent = |level| pressure(level).keep_alive_percent.unwrap_or(100);
        for pair in LEVELS.windows(2) {
            assert!(percent(pair[1]) <= percent(pair[0]));
        }
        assert_eq!(pressure(Level::Busy).notice, None);
        for level in [Level::Degraded, Level::Critical] {
            let (name, value) = pressure(level).notice.unwrap();
            assert_eq!(name, "x-tidegate-degraded");
            assert!(value.starts_with(level.as_str()));
            assert!(pressure(level).idle_max.is_some());
        }
    }

    #[test]
    fn a_change_is_told_with_what_made_it() {
        let cause = Some((Measure::Memory, 0.971));
        let change = Change { from: Level::Normal, to: Level::Critical, cause };
        assert_eq!(
            told(&change),
            "normal -> critical: memory is 0.97, from 0.95 on it is critical"
        );
        let change = Change { from: Level::Critical, to: Level::Normal, cause: None };
        assert_eq!(told(&change), "critical -> normal: calm again");
    }
}
