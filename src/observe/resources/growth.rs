//! Whether what the process holds grows steadily. Pure: it is told the time and what there is.
//!
//! Two lines are laid through samples: of the last hour, one a minute, and of the last day, one in
//! a quarter of an hour. Growth is steady when the line of the hour rises faster than
//! `resources.growth_per_hour` (memory only), or that of the day by more than
//! `resources.growth_per_day` of where it began. Samples begin after [`WARM_UP`], since a start fills
//! caches and pools, and are judged from [`SPAN_MIN`] on. A warning that stands ends below half of what raised it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::bounded::History;
use crate::base::metrics::Limit;
use crate::observe::slope::{Line, line};

/// Samples of the hour.
pub const HOUR_SAMPLES_MAX: usize = 60;
/// Samples of the day.
pub const DAY_SAMPLES_MAX: usize = 96;
/// Between two samples of the hour.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(60);
/// Between two samples of the day.
const DAY_INTERVAL: Duration = Duration::from_secs(15 * 60);
/// No samples until so long after the start.
pub const WARM_UP: Duration = Duration::from_secs(10 * 60);
/// How long the samples of the hour must reach back before they are judged …
pub const SPAN_MIN: Duration = Duration::from_secs(30 * 60);
/// … and those of the day: nine samples, of which one burst is no trend.
pub const DAY_SPAN_MIN: Duration = Duration::from_secs(2 * 3600);

const HOUR: f64 = 3600.0;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Resident memory, in bytes.
    Memory,
    /// Open descriptors.
    Descriptors,
    /// Threads.
    Threads,
}

/// All of them.
pub const MEASURES: [Measure; 3] = [Measure::Memory, Measure::Descriptors, Measure::Threads];

impl Measure {
    /// The word in labels and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Measure::Memory => "memory",
            Measure::Descriptors => "descriptors",
            Measure::Threads => "threads",
        }
    }

    /// Growth in a day that is too little to speak of, however small the beginning was: what a first
    /// load of pools, buffers and ready threads takes.
    fn negligible(self) -> f64 {
        match self {
            Measure::Memory => 16.0 * 1024.0 * 1024.0,
            Measure::Descriptors | Measure::Threads => 64.0,
        }
    }
}

/// What there is, by measure; none when the system does not say.
pub type Values = [Option<u64>; MEASURES.len()];

/// What is steady growth.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Bytes of memory in an hour.
    pub per_hour: u64,
    /// Percent in a day, of any measure.
    pub per_day_percent: u64,
}

/// A warning that begins or ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Of what.
    pub measure: Measure,
    /// It begins; else it ends.
    pub grows: bool,
    /// What there is now.
    pub now: u64,
    /// Growth in an hour, by the samples of the last one.
    pub per_hour: i64,
    /// Growth over the samples of the last day, in percent of where they began.
    pub day_percent: i64,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { now, per_hour, day_percent, .. } = self;
        write!(f, "now {now}, {per_hour:+} an hour, {day_percent:+} % within the last day")
    }
}

/// The samples, and the warnings that stand.
#[derive(Debug)]
pub struct Growth {
    start: Instant,
    hour: History<(f64, Values)>,
    day: History<(f64, Values)>,
    sample_at: Instant,
    day_at: Instant,
    lines: [Option<Line>; MEASURES.len()],
    /// Through the samples of the day, laid anew when one comes.
    day_lines: [Option<Line>; MEASURES.len()],
    growing: [bool; MEASURES.len()],
}

impl Growth {
    /// Nothing seen yet. The limits are those on the samples of the hour and of the day.
    pub fn new([hour, day]: [Arc<Limit>; 2], now: Instant) -> Self {
        Growth {
            start: now,
            hour: History::new(hour),
            day: History::new(day),
            sample_at: now,
            day_at: now,
            lines: [None; MEASURES.len()],
            day_lines: [None; MEASURES.len()],
            growing: [false; MEASURES.len()],
        }
    }

    /// Whether a sample is due.
    pub fn due(&self, now: Instant) -> bool {
        now >= self.sample_at
    }

    /// Takes a sample; says which warnings begin and end.
    pub fn sample(&mut self, now: Instant, values: Values, rules: Rules) -> Vec<Change> {
        self.sample_at = now + SAMPLE_INTERVAL;
        let since_start = now.saturating_duration_since(self.start);
        if since_start < WARM_UP {
            return Vec::new();
        }
        let seconds = since_start.as_secs_f64();
        self.hour.push((seconds, values));
        if now >= self.day_at {
            self.day_at = now + DAY_INTERVAL;
            self.day.push((seconds, values));
            self.day_lines = std::array::from_fn(|index| through(&self.day, index));
        }
        let mut changes = Vec::new();
        for (index, measure) in MEASURES.into_iter().enumerate() {
            let hour = through(&self.hour, index);
            let day = self.day_lines[index];
            self.lines[index] = hour;
            let share = share(measure, hour, day, rules);
            let grows = if self.growing[index] { share >= 0.5 } else { share > 1.0 };
            if grows != self.growing[index] {
                self.growing[index] = grows;
                let percent = |day: Line| 100.0 * day.growth() / day.start.max(1.0);
                changes.push(Change {
                    measure,
                    grows,
                    now: values[index].unwrap_or_default(),
                    per_hour: self.per_hour(measure),
                    day_percent: day.map_or(0, |day| whole(percent(day))),
                });
            }
        }
        changes
    }

    /// Growth in an hour, by the samples of the last one; 0 as long as there are none.
    pub fn per_hour(&self, measure: Measure) -> i64 {
        let line = self.lines[measure as usize];
        line.map_or(0, |line| whole(line.per_second * HOUR))
    }

    /// Whether a warning stands.
    pub fn growing(&self, measure: Measure) -> bool {
        self.growing[measure as usize]
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "`as` ends at the bounds, and fractions are for nobody"
)]
fn whole(number: f64) -> i64 {
    number as i64
}

/// The line through the samples of one measure.
fn through(samples: &History<(f64, Values)>, index: usize) -> Option<Line> {
    let known = samples.iter().filter_map(|(at, values)| Some((*at, values[index]? as f64)));
    line(&known.collect::<Vec<_>>())
}

/// The growth in parts of what is steady growth; the larger one of the two rules.
fn share(measure: Measure, hour: Option<Line>, day: Option<Line>, rules: Rules) -> f64 {
    let hour =
        hour.filter(|hour| measure == Measure::Memory && hour.span >= SPAN_MIN.as_secs_f64());
    let of_hour = hour.map_or(0.0, |hour| hour.per_second * HOUR / rules.per_hour.max(1) as f64);
    let day = day.filter(|day| {
        day.span >= DAY_SPAN_MIN.as_secs_f64() && day.growth() > measure.negligible()
    });
    let percent = rules.per_day_percent.max(1) as f64;
    let of_day = day.map_or(0.0, |day| 100.0 * day.growth() / day.start.max(1.0) / percent);
    of_hour.max(of_day)
}

#[cfg(test)]
mod tests;
