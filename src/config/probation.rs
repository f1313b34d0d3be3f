//! Whether a new configuration is good: a state machine over what is seen of the gateway each
//! second. It reads no clock and does nothing by itself.
//!
//! It is bad when many more requests fail than before it, or when the gateway was ready and is not
//! any more. What failed before too is not blamed on it, and neither is what clients do wrong:
//! refused keys and unknown models are no failures here, so that nobody can bring an old key back by
//! knocking.

use std::fmt;
use std::time::{Duration, Instant};

/// Requests from which on a share of failures means something.
const REQUESTS_MIN: u64 = 5;
/// Requests that are enough at the end, when every one of them failed.
const REQUESTS_MIN_AT_END: u64 = 2;
/// Failed requests of a hundred, at least, for a configuration to be bad.
const FAILED_PERCENT_MIN: u64 = 50;
/// By how many of a hundred it must be worse than before.
const WORSE_PERCENT_MIN: u64 = 30;
/// How long the gateway may be not ready.
const UNREADY_MAX: Duration = Duration::from_secs(10);
/// Seconds that are looked back at for how it was before.
const BEFORE_SAMPLES: usize = 60;

/// What is seen at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Requests that ended since the start of the process.
    pub requests: u64,
    /// Those of them that failed for a reason that lies with us or an upstream.
    pub failures: u64,
    /// Whether the gateway takes requests.
    pub ready: bool,
}

/// Requests of a time, and the failed ones among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    requests: u64,
    failures: u64,
}

impl Share {
    fn between(from: Sample, to: Sample) -> Self {
        Share {
            requests: to.requests.saturating_sub(from.requests),
            failures: to.failures.saturating_sub(from.failures),
        }
    }

    fn percent(self) -> u64 {
        (self.failures * 100).checked_div(self.requests).unwrap_or(0)
    }
}

/// Why a configuration is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Requests fail.
    Errors {
        /// So many of a hundred.
        percent: u64,
        /// Of so many.
        requests: u64,
        /// So many of a hundred failed before.
        before: u64,
    },
    /// The gateway is not ready.
    Unready {
        /// For so long, in seconds.
        seconds: u64,
    },
    /// The daemon ended again and again without being told to.
    Crashed {
        /// So many starts.
        boots: u32,
    },
}

impl Cause {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Errors { .. } => "errors",
            Cause::Unready { .. } => "unready",
            Cause::Crashed { .. } => "crash",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Errors { percent, requests, before } => {
                write!(f, "{percent} % of {requests} requests failed, {before} % before it")
            }
            Cause::Unready { seconds } => write!(f, "the gateway was not ready for {seconds} s"),
            Cause::Crashed { boots } => {
                write!(f, "the daemon ended without being told to in {boots} starts with it")
            }
        }
    }
}

/// What follows from a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet, or nothing is on probation.
    Wait,
    /// It is good.
    Good,
    /// It is bad.
    Bad(Cause),
}

/// The version on probation.
#[derive(Clone, Copy, Debug)]
struct Trial {
    until: Instant,
    from: Sample,
    before: Share,
    was_ready: bool,
    unready_since: Option<Instant>,
}

/// The machine.
#[derive(Debug)]
pub struct Probation {
    /// The last samples while nothing is on probation, in a ring.
    ring: [Sample; BEFORE_SAMPLES],
    taken: usize,
    trial: Option<Trial>,
    /// What was seen last.
    last: Sample,
}

impl Default for Probation {
    fn default() -> Self {
        Probation {
            ring: [Sample::default(); BEFORE_SAMPLES],
            taken: 0,
            trial: None,
            last: Sample::default(),
        }
    }
}

impl Probation {
    /// A configuration came into force just after `seen`. While another one is on probation, it is
    /// still compared with what was before that one.
    pub fn begin(&mut self, now: Instant, window: Duration, seen: Sample) {
        let (before, was_ready) = match self.trial {
            Some(trial) => (trial.before, trial.was_ready),
            None => (Share::between(self.oldest().unwrap_or(seen), seen), seen.ready),
        };
        self.last = seen;
        let until = now + window;
        self.trial = Some(Trial { until, from: seen, before, was_ready, unready_since: None });
    }

    /// The configuration on probation is no more in force, or was found good.
    pub fn end(&mut self) {
        self.trial = None;
        self.taken = 0;
    }

    /// How long it still lasts.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.trial.map(|trial| trial.until.saturating_duration_since(now))
    }

    /// The time since the last look says nothing of a configuration: requests were refused by order.
    pub fn pass_over(&mut self, seen: Sample, time: Duration) {
        let last = std::mem::replace(&mut self.last, seen);
        let Some(trial) = &mut self.trial else {
            self.taken = 0;
            return;
        };
        let share = Share::between(last, seen);
        trial.until += time;
        trial.from.requests += share.requests;
        trial.from.failures += share.failures;
        trial.unready_since = None;
    }

    /// Looks at a sample; to be called each second.
    pub fn step(&mut self, now: Instant, seen: Sample) -> Verdict {
        self.last = seen;
        let Some(trial) = &mut self.trial else {
            self.ring[self.taken % BEFORE_SAMPLES] = seen;
            self.taken += 1;
            return Verdict::Wait;
        };
        // At a start it becomes ready a moment later; from then on it has to stay so.
        trial.was_ready |= seen.ready;
        trial.unready_since = match (seen.ready, trial.unready_since) {
            (true, _) => None,
            (false, since) => since.or(Some(now)),
        };
        let over = now >= trial.until;
        let share = Share::between(trial.from, seen);
        let (percent, before) = (share.percent(), trial.before.percent());
        let worse = percent >= FAILED_PERCENT_MIN && percent >= before + WORSE_PERCENT_MIN;
        let enough = share.requests >= REQUESTS_MIN
            || (over && percent == 100 && share.requests >= REQUESTS_MIN_AT_END);
        if worse && enough {
            return Verdict::Bad(Cause::Errors { percent, requests: share.requests, before });
        }
        if let Some(since) = trial.unready_since.filter(|_| trial.was_ready) {
            let unready = now.saturating_duration_since(since);
            if unready >= UNREADY_MAX || over {
                return Verdict::Bad(Cause::Unready { seconds: unready.as_secs() });
            }
        }
        if over { Verdict::Good } else { Verdict::Wait }
    }

    /// The oldest sample of the ring.
    fn oldest(&self) -> Option<Sample> {
        match self.taken {
            0 => None,
            taken if taken < BEFORE_SAMPLES => Some(self.ring[0]),
            taken => Some(self.ring[taken % BEFORE_SAMPLES]),
        }
    }
}

#[cfg(test)]
mod tests;
