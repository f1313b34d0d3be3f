//! From figures to samples: the p99 of the last seconds' waits, and shares of limits. Without I/O.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::overload::Sample;

/// How far back waits count: this many samples (3 s at four a second).
pub const WINDOW_SAMPLES: usize = 12;

/// Fewest waits whose p99 says something. With fewer, one unlucky request would be all of it.
const WAITS_MIN: u64 = 20;

/// What was read at one time.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Waits for a worker so far, by bucket of `bounds` (a histogram's counts).
    pub waits: Vec<u64>,
    /// Requests that wait for a worker.
    pub queued: (u64, u64),
    /// Exchanges that run, and their bound.
    pub running: (u64, u64),
    /// Requests that wait for an exchange, and their bound.
    pub waiting: (u64, u64),
    /// Resident memory and what there may be, in bytes.
    pub memory: Option<(u64, u64)>,
    /// Open descriptors and their limit.
    pub descriptors: Option<(u64, u64)>,
}

/// What must be remembered to make samples of figures.
#[derive(Clone, Debug)]
pub struct Sampler {
    /// Upper bounds of the buckets, in seconds.
    bounds: &'static [f64],
    /// Counts of the last samples, the oldest first; [`WINDOW_SAMPLES`] at most.
    window: VecDeque<Vec<u64>>,
    /// Since when something waits and nothing was taken.
    stuck_since: Option<Instant>,
}

impl Sampler {
    /// Nothing seen yet. `bounds`: of the histogram of waits.
    pub fn new(bounds: &'static [f64]) -> Self {
        Sampler { bounds, window: VecDeque::with_capacity(WINDOW_SAMPLES + 1), stuck_since: None }
    }

    /// How many samples are remembered, at most [`WINDOW_SAMPLES`].
    pub fn remembered(&self) -> usize {
        self.window.len()
    }

    /// The sample of these figures.
    pub fn sample(&mut self, now: Instant, figures: &Figures) -> Sample {
        let wait = self.wait(now, figures);
        let memory = figures.memory.map_or(0.0, share);
        let descriptors = figures.descriptors.map_or(0.0, share);
        let ((running, running_max), (waiting, waiting_max)) = (figures.running, figures.waiting);
        let exchanges =
            share((running.saturating_add(waiting), running_max.saturating_add(waiting_max)));
        let saturation = exchanges.max(share(figures.queued));
        Sample { values: [wait, memory, descriptors, saturation] }
    }

    /// The p99 of recent waits, or for how long nobody has been taken, whichever is longer, in
    /// seconds.
    fn wait(&mut self, now: Instant, figures: &Figures) -> f64 {
        let total = |counts: &[u64]| counts.iter().sum::<u64>();
        let taken = self.window.back().is_none_or(|before| total(before) != total(&figures.waits));
        let stuck = if figures.queued.0 == 0 || taken {
            self.stuck_since = None;
            Duration::ZERO
        } else {
            now.saturating_duration_since(*self.stuck_since.get_or_insert(now))
        };
        self.window.push_back(figures.waits.clone());
        if self.window.len() > WINDOW_SAMPLES {
            self.window.pop_front();
        }
        let recent: Vec<u64> = match self.window.front() {
            Some(oldest) => figures
                .waits
                .iter()
                .zip(oldest)
                .map(|(now, then)| now.saturating_sub(*then))
                .collect(),
            None => Vec::new(),
        };
        self.p99(&recent).max(stuck.as_secs_f64())
    }

    /// The lower bound of the bucket that the p99 falls into: it waited for at least that.
    fn p99(&self, counts: &[u64]) -> f64 {
        let total: u64 = counts.iter().sum();
        if total < WAITS_MIN {
            return 0.0;
        }
        let mut above = total / 100;
        for (index, count) in counts.iter().enumerate().rev() {
            if *count > above {
                let lower = index.checked_sub(1).and_then(|index| self.bounds.get(index));
                return lower.copied().unwrap_or(0.0);
            }
            above -= count;
        }
        0.0
    }
}

fn share((now, max): (u64, u64)) -> f64 {
    if max == 0 { 0.0 } else { now as f64 / max as f64 }
}

#[cfg(test)]
mod tests {
    use super::super::overload::Measure;
    use super::*;
    use crate::base::clock;
    use crate::base::metrics::LATENCY_BOUNDS;

    const LOOK: Duration = Duration::from_millis(250);

    fn bucket(seconds: f64) -> usize {
        LATENCY_BOUNDS.partition_point(|bound| *bound < seconds)
    }

    fn wait(sample: &Sample) -> f64 {
        sample.value(Measure::QueueWait)
    }

    #[test]
    fn the_p99_is_that_of_the_last_seconds() {
        let mut sampler = Sampler::new(LATENCY_BOUNDS);
        let mut now = clock::now();
        let mut figures =
            Figures { waits: vec![0; LATENCY_BOUNDS.len() + 1], ..Figures::default() };
        assert_eq!(wait(&sampler.sample(now, &figures)), 0.0);
        figures.waits[0] += 9_800;
        figures.waits[bucket(0.3)] += 200;
        now += LOOK;
        assert_eq!(wait(&sampler.sample(now, &figures)), 0.25, "two of a hundred are the p99");
        figures.waits[0] += 10_001;
        now += LOOK;
        assert_eq!(wait(&sampler.sample(now, &figures)), 0.0, "one of a hundred is above it");
        // A few slow ones alone are no p99.
        for _ in 0..WINDOW_SAMPLES {
            now += LOOK;
            sampler.sample(now, &figures);
        }
        figures.waits[bucket(5.0)] += WAITS_MIN - 1;
        now += LOOK;
        assert_eq!(wait(&sampler.sample(now, &figures)), 0.0);
        figures.waits[bucket(5.0)] += 1;
        now += LOOK;
        assert_eq!(wait(&sampler.sample(now, &figures)), 2.5);
        // It is forgotten in three seconds.
        for _ in 0..WINDOW_SAMPLES {
            now += LOOK;
            sampler.sample(now, &figures);
        }
        assert_eq!(wait(&sampler.sample(now, &figures)), 0.0);
    }

    #[test]
    fn a_line_from_which_nobody_is_taken_waits_for_as_long_as_that() {
        let mut sampler = Sampler::new(LATENCY_BOUNDS);
        let start = clock::now();
        let mut figures = Figures { waits: vec![5, 0], queued: (3, 512), ..Figures::default() };
        sampler.sample(start, &figures);
        sampler.sample(start + LOOK, &figures);
        assert_eq!(wait(&sampler.sample(start + LOOK * 9, &figures)), 2.0);
        figures.waits[0] += 1;
        assert_eq!(wait(&sampler.sample(start + LOOK * 10, &figures)), 0.0);
    }

    #[test]
    fn shares_are_of_what_may_be_and_nothing_where_there_is_no_limit() {
        let mut sampler = Sampler::new(LATENCY_BOUNDS);
        let figures = Figures {
            queued: (1, 10),
            running: (10, 10),
            waiting: (0, 30),
            memory: Some((90, 100)),
            descriptors: Some((5, 0)),
            ..Figures::default()
        };
        let sample = sampler.sample(clock::now(), &figures);
        assert_eq!(sample.values, [0.0, 0.9, 0.0, 0.25]);
    }
}
