//! Overload levels: a state machine over samples and time, without I/O, and the level as the rest of
//! the program reads it.
//!
//! A level is entered at once, when two samples in a row ask for it; it is left when for a while
//! (`overload.calm`) no sample would have kept it. What keeps a level is less than what enters it, so
//! that a value that trembles at a threshold does not change the level with it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How short of everything the process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Enough of everything.
    #[default]
    Normal,
    /// Still enough; what costs nobody anything is saved.
    Busy,
    /// What can be done without is left out.
    Degraded,
    /// New model calls are refused, so that those that run come to their end.
    Critical,
}

/// Every level, the lowest first.
pub const LEVELS: [Level; 4] = [Level::Normal, Level::Busy, Level::Degraded, Level::Critical];

impl Level {
    /// The word in logs, metrics and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Normal => "normal",
            Level::Busy => "busy",
            Level::Degraded => "degraded",
            Level::Critical => "critical",
        }
    }

    /// `x-tidegate-degraded` of answers given at this level, where it has one: the level, and what
    /// is done because of it.
    pub fn notice(self) -> Option<&'static str> {
        match self {
            Level::Normal | Level::Busy => None,
            Level::Degraded => {
                Some("degraded; actions=\"keep_alive_off optional_off caches_trimmed idle_closed\"")
            }
            Level::Critical => Some(
                "critical; actions=\"keep_alive_off optional_off caches_trimmed idle_closed \
                 calls_refused memory_trimmed\"",
            ),
        }
    }
}

/// What is done from some level on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// While most connections are taken, answers close theirs.
    KeepAliveOff,
    /// What nobody waits for is not done: refreshing lists that are known.
    OptionalOff,
    /// Caches give room back.
    CachesTrimmed,
    /// Idle connections are closed.
    IdleClosed,
    /// New model calls get 503.
    CallsRefused,
    /// The allocator gives free memory back to the system.
    MemoryTrimmed,
}

/// Every action, in the order of the levels.
pub const ACTIONS: [Action; 6] = [
    Action::KeepAliveOff,
    Action::OptionalOff,
    Action::CachesTrimmed,
    Action::IdleClosed,
    Action::CallsRefused,
    Action::MemoryTrimmed,
];

impl Action {
    /// The word in metrics and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::KeepAliveOff => "keep_alive_off",
            Action::OptionalOff => "optional_off",
            Action::CachesTrimmed => "caches_trimmed",
            Action::IdleClosed => "idle_closed",
            Action::CallsRefused => "calls_refused",
            Action::MemoryTrimmed => "memory_trimmed",
        }
    }

    /// The level from which on it is done.
    pub fn from(self) -> Level {
        match self {
            Action::KeepAliveOff => Level::Busy,
            Action::OptionalOff | Action::CachesTrimmed | Action::IdleClosed => Level::Degraded,
            Action::CallsRefused | Action::MemoryTrimmed => Level::Critical,
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// How long requests wait for a worker, p99, in seconds.
    QueueWait,
    /// Resident memory, as a share of what there may be.
    Memory,
    /// Open descriptors, as a share of their limit.
    Descriptors,
    /// Requests that run or wait, as a share of their limits.
    Saturation,
}

/// Every measure, in the order of [`Sample::values`].
pub const MEASURES: [Measure; 4] =
    [Measure::QueueWait, Measure::Memory, Measure::Descriptors, Measure::Saturation];

/// A threshold that is never met.
const NEVER: f64 = f64::INFINITY;

impl Measure {
    /// The word in events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Measure::QueueWait => "queue_wait",
            Measure::Memory => "memory",
            Measure::Descriptors => "descriptors",
            Measure::Saturation => "saturation",
        }
    }

    /// What enters busy, degraded and critical.
    ///
    /// Waits: a worker takes a request in microseconds while there is one, so a tenth of a second
    /// means that threads or cores are short, and a second that clients begin to give up. Memory: as
    /// Envoy's overload manager has it (80 to 95 %). Descriptors: half of them are the bound on
    /// connections, the other half is for upstreams; past 95 % accepting fails. Saturation never
    /// makes critical: its limits refuse by themselves exactly what does not fit.
    pub const fn enters(self) -> [f64; 3] {
        match self {
            Measure::QueueWait => [0.1, 0.5, 1.0],
            Measure::Memory => [0.80, 0.88, 0.95],
            Measure::Descriptors => [0.75, 0.85, 0.95],
            Measure::Saturation => [0.80, 0.95, NEVER],
        }
    }

    /// What keeps them.
    pub const fn keeps(self) -> [f64; 3] {
        match self {
            Measure::QueueWait => [0.05, 0.25, 0.5],
            Measure::Memory => [0.75, 0.83, 0.90],
            Measure::Descriptors => [0.70, 0.80, 0.90],
            Measure::Saturation => [0.70, 0.85, NEVER],
        }
    }
}

/// One look at the process. What cannot be measured is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// By measure, in the order of [`MEASURES`].
    pub values: [f64; 4],
}

impl Sample {
    /// The value of one measure.
    pub fn value(&self, measure: Measure) -> f64 {
        MEASURES.iter().zip(self.values).find(|(m, _)| **m == measure).map_or(0.0, |(_, v)| v)
    }

    /// The highest level that these thresholds give, and the measure that gives it.
    fn judge(&self, thresholds: fn(Measure) -> [f64; 3]) -> (Level, Option<Measure>) {
        let mut highest = (Level::Normal, None);
        for (measure, value) in MEASURES.into_iter().zip(self.values) {
            let met =
                thresholds(measure).iter().take_while(|threshold| value >= **threshold).count();
            let level = LEVELS.get(met).copied().unwrap_or_default();
            if level > highest.0 {
                highest = (level, Some(measure));
            }
        }
        highest
    }
}

/// A change of the level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Before.
    pub from: Level,
    /// From now on.
    pub to: Level,
    /// What made it higher, with its value; none on the way down.
    pub cause: Option<(Measure, f64)>,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Machine {
    level: Level,
    calm: Duration,
    /// What the sample before asked for.
    before: Level,
    /// Since when no sample kept the level, and the highest level that one kept meanwhile.
    quiet: Option<(Instant, Level)>,
}

impl Machine {
    /// At [`Level::Normal`]; `calm` is `overload.calm`.
    pub fn new(calm: Duration) -> Self {
        Machine { level: Level::Normal, calm, before: Level::Normal, quiet: None }
    }

    /// The level now.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Changes `overload.calm`.
    pub fn set_calm(&mut self, calm: Duration) {
        self.calm = calm;
    }

    /// Takes one sample.
    pub fn step(&mut self, now: Instant, sample: &Sample) -> Option<Change> {
        let (asked, measure) = sample.judge(Measure::enters);
        let twice = asked.min(std::mem::replace(&mut self.before, asked));
        let from = self.level;
        if twice > from {
            self.quiet = None;
            self.level = twice;
            let cause = measure.map(|measure| (measure, sample.value(measure)));
            return Some(Change { from, to: twice, cause });
        }
        let (kept, _) = sample.judge(Measure::keeps);
        if kept >= from {
            self.quiet = None;
            return None;
        }
        let (since, highest) = self.quiet.unwrap_or((now, kept));
        let highest = highest.max(kept);
        self.quiet = Some((since, highest));
        if now.saturating_duration_since(since) < self.calm {
            return None;
        }
        self.quiet = None;
        self.level = highest;
        Some(Change { from, to: highest, cause: None })
    }
}

/// The level, for everybody who does something about it. One relaxed load.
#[derive(Debug, Default)]
pub struct Overload {
    level: AtomicU8,
    /// Without what is forced.
    own: AtomicU8,
    /// No level below this is entered.
    forced: AtomicU8,
    calm_ms: AtomicU64,
}

impl Overload {
    /// The level now.
    pub fn level(&self) -> Level {
        numbered(&self.level)
    }

    /// The level that the samples ask for, whatever is forced.
    pub fn own_level(&self) -> Level {
        numbered(&self.own)
    }

    /// The lowest level that is allowed.
    pub fn forced(&self) -> Level {
        numbered(&self.forced)
    }

    /// From the next look on the level is at least this; [`Level::Normal`] ends it.
    pub fn force(&self, least: Level) {
        self.forced.store(least as u8, Relaxed);
    }

    /// Whether this is done now.
    #[inline]
    pub fn does(&self, action: Action) -> bool {
        self.level.load(Relaxed) >= action.from() as u8
    }

    /// When a refused client may come again: no level is left before that.
    pub fn retry_after(&self) -> Duration {
        Duration::from_millis(self.calm_ms.load(Relaxed))
    }

    /// Enters a level. For the one who samples.
    pub fn enter(&self, level: Level) {
        self.level.store(level as u8, Relaxed);
    }

    /// Tells what the samples ask for. For the one who samples.
    pub fn set_own_level(&self, level: Level) {
        self.own.store(level as u8, Relaxed);
    }

    /// Tells `overload.calm`.
    pub fn set_calm(&self, calm: Duration) {
        self.calm_ms.store(u64::try_from(calm.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }
}

fn numbered(level: &AtomicU8) -> Level {
    LEVELS.get(usize::from(level.load(Relaxed))).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
