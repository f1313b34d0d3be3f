//! One series in memory: what changed, look by look. What stays the same costs nothing, so that
//! the hundreds of series that rest are free.

use std::collections::VecDeque;

use super::point::{Point, Shape};
use crate::observe::reading::{Kind, Value};

/// Bytes of a series before anything happens to it: names, labels, index. Counted, not exact.
pub const SERIES_BYTES: usize = 320;

/// Bytes of one change of a number.
const CHANGE_BYTES: usize = size_of::<(u32, f64)>();

/// Of one change of a histogram, without its cells.
const SPREAD_BYTES: usize = size_of::<(u32, Spread)>();

/// Of one bucket of a change.
const CELL_BYTES: usize = size_of::<(u16, u32)>();

/// What a histogram took in between two looks.
#[derive(Clone, Debug)]
struct Spread {
    sum: f64,
    /// Bucket and count, of those that took something in.
    cells: Box<[(u16, u32)]>,
}

/// What is remembered of a series.
#[derive(Debug)]
pub struct Track {
    values: Values,
    /// Its first look, and its last.
    born: u32,
    seen: u32,
    /// The looks between them that did not see it.
    absent: VecDeque<u32>,
}

#[derive(Debug)]
enum Values {
    /// Levels, each from a look on; the first one may be older than all that is remembered.
    Gauge(VecDeque<(u32, f64)>),
    /// What it stood at, and what it grew by when it did.
    Counter { stood: f64, grew: VecDeque<(u32, f64)> },
    /// The same, bucket by bucket.
    Histogram { bounds: &'static [f64], stood: Box<[u64]>, sum: f64, grew: VecDeque<(u32, Spread)> },
}

impl Track {
    /// A series that this look sees for the first time. What the process counts began with 0; what
    /// the system counts began before.
    pub fn new(kind: Kind, value: Value<'_>, look: u32) -> Option<Track> {
        let values = match (kind, value) {
            (_, Value::Histogram(histogram)) => Values::Histogram {
                bounds: histogram.bounds(),
                stood: vec![0; histogram.bounds().len() + 1].into(),
                sum: 0.0,
                grew: VecDeque::new(),
            },
            (Kind::Counter, _) => Values::Counter { stood: 0.0, grew: VecDeque::new() },
            (Kind::SystemCounter, value) => {
                Values::Counter { stood: value.number()?, grew: VecDeque::new() }
            }
            _ => Values::Gauge(VecDeque::new()),
        };
        let mut track = Track { values, born: look, seen: look, absent: VecDeque::new() };
        track.see(value, look);
        Some(track)
    }

    /// What this look sees. Each look is later than the one before.
    pub fn see(&mut self, value: Value<'_>, look: u32) {
        self.absent.extend(self.seen + 1..look);
        self.seen = look;
        match (&mut self.values, value) {
            (Values::Gauge(changes), value) => {
                let Some(value) = value.number() else { return };
                if changes.back().is_none_or(|(_, last)| *last != value) {
                    changes.push_back((look, value));
                }
            }
            (Values::Counter { stood, grew }, value) => {
                let Some(value) = value.number() else { return };
                // One that stands lower than before began again.
                let growth = if value < *stood { value } else { value - *stood };
                *stood = value;
                if growth > 0.0 {
                    grew.push_back((look, growth));
                }
            }
            (Values::Histogram { stood, sum, grew, .. }, Value::Histogram(histogram)) => {
                let (counts, total) = (histogram.counts(), histogram.sum());
                let began_again = counts.iter().zip(stood.iter()).any(|(now, before)| now < before);
                if began_again {
                    stood.fill(0);
                    *sum = 0.0;
                }
                let cells = counts.iter().zip(stood.iter()).enumerate();
                let cells = cells.filter(|(_, (now, before))| now > before);
                let cells: Box<[(u16, u32)]> = cells
                    .map(|(at, (now, before))| {
                        let count = u32::try_from(now - before).unwrap_or(u32::MAX);
                        (u16::try_from(at).unwrap_or(u16::MAX), count)
                    })
                    .collect();
                if !cells.is_empty() {
                    let spread = Spread { sum: (total - *sum).max(0.0), cells };
                    grew.push_back((look, spread));
                    *sum = total;
                }
                stood.copy_from_slice(&counts);
            }
            (Values::Histogram { .. }, _) => {}
        }
    }

    /// Forgets what is older than `first`. False when nothing is left.
    pub fn forget(&mut self, first: u32) -> bool {
        while self.absent.front().is_some_and(|look| *look < first) {
            self.absent.pop_front();
        }
        match &mut self.values {
            // The level at the first look that is remembered may have been reached before.
            Values::Gauge(changes) => {
                while changes.get(1).is_some_and(|(look, _)| *look <= first) {
                    changes.pop_front();
                }
            }
            Values::Counter { grew, .. } => {
                while grew.front().is_some_and(|(look, _)| *look < first) {
                    grew.pop_front();
                }
            }
            Values::Histogram { grew, .. } => {
                while grew.front().is_some_and(|(look, _)| *look < first) {
                    grew.pop_front();
                }
            }
        }
        self.seen >= first
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        let values = match &self.values {
            Values::Gauge(changes) => changes.len() * CHANGE_BYTES,
            Values::Counter { grew, .. } => grew.len() * CHANGE_BYTES,
            Values::Histogram { stood, grew, .. } => {
                let cells: usize = grew.iter().map(|(_, spread)| spread.cells.len()).sum();
                stood.len() * 8 + grew.len() * SPREAD_BYTES + cells * CELL_BYTES
            }
        };
        SERIES_BYTES + values + self.absent.len() * 4
    }

    /// What its values are.
    pub fn shape(&self) -> Shape {
        match self.values {
            Values::Gauge(_) => Shape::Gauge,
            Values::Counter { .. } => Shape::Counter,
            Values::Histogram { .. } => Shape::Histogram,
        }
    }

    /// The bounds of its buckets; none unless it is a histogram.
    pub fn bounds(&self) -> &'static [f64] {
        match self.values {
            Values::Histogram { bounds, .. } => bounds,
            _ => &[],
        }
    }

    /// What one look saw; `None` when it did not see this series. `millis` is the time since the look
    /// before.
    pub fn at(&self, look: u32, millis: u64) -> Option<Point> {
        if look < self.born || look > self.seen || self.absent.binary_search(&look).is_ok() {
            return None;
        }
        Some(match &self.values {
            Values::Gauge(changes) => {
                let after = changes.partition_point(|(from, _)| *from <= look);
                let (_, value) = changes.get(after.checked_sub(1)?)?;
                Point::value(*value, millis)
            }
            Values::Counter { grew, .. } => {
                let found = grew.binary_search_by_key(&look, |(at, _)| *at);
                Point::value(found.ok().and_then(|at| grew.get(at)).map_or(0.0, |g| g.1), millis)
            }
            Values::Histogram { grew, .. } => {
                let found = grew.binary_search_by_key(&look, |(at, _)| *at).ok();
                let Some((_, spread)) = found.and_then(|at| grew.get(at)) else {
                    return Some(Point::spread(0.0, Vec::new(), millis));
                };
                let len = spread.cells.last().map_or(0, |(at, _)| usize::from(*at) + 1);
                let mut buckets = vec![0; len];
                for (at, count) in &spread.cells {
                    buckets[usize::from(*at)] = u64::from(*count);
                }
                Point::spread(spread.sum, buckets, millis)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::metrics::Registry;
    use std::time::Duration;

    fn sums(track: &Track, looks: std::ops::Range<u32>) -> Vec<Option<f64>> {
        looks.map(|look| track.at(look, 1).map(|point| point.sum)).collect()
    }

    #[test]
    fn a_counter_grows_from_nothing_and_one_of_the_system_from_where_it_stood() {
        let mut ours = Track::new(Kind::Counter, Value::Count(5), 3).unwrap();
        let mut system = Track::new(Kind::SystemCounter, Value::Count(5), 3).unwrap();
        for (look, value) in [(4, 5), (5, 9), (6, 2)] {
            ours.see(Value::Count(value), look);
            system.see(Value::Count(value), look);
        }
        // Look 6 saw it begin again.
        let grown = [None, Some(5.0), Some(0.0), Some(4.0), Some(2.0), None];
        assert_eq!(sums(&ours, 2..8), grown);
        assert_eq!(sums(&system, 2..8)[1], Some(0.0));
        assert_eq!(sums(&system, 2..8)[2..], grown[2..]);
    }

    #[test]
    fn what_was_not_seen_is_a_gap_and_no_zero() {
        for kind in [Kind::Counter, Kind::Gauge] {
            let mut track = Track::new(kind, Value::Count(1), 1).unwrap();
            track.see(Value::Count(1), 2);
            track.see(Value::Count(1), 5);
            let seen: Vec<_> = (0..7).map(|look| track.at(look, 1).is_some()).collect();
            assert_eq!(seen, [false, true, true, false, false, true, false]);
        }
    }

    #[test]
    fn a_level_that_stays_is_remembered_once_and_outlives_the_look_that_saw_it_come() {
        let mut track = Track::new(Kind::Gauge, Value::Number(1.5), 0).unwrap();
        let bytes = track.bytes();
        for look in 1..1000 {
            track.see(Value::Number(1.5), look);
            assert!(track.forget(look.saturating_sub(90)));
        }
        assert_eq!(track.bytes(), bytes);
        assert_eq!(sums(&track, 909..911), [Some(1.5), Some(1.5)]);
        assert!(!track.forget(1000), "nobody saw it any more");
    }

    #[test]
    fn a_histogram_tells_what_each_look_took_in() {
        let registry = Registry::default();
        let histogram = registry.histogram("x_seconds", "X.", &[]);
        let mut track = Track::new(Kind::Histogram, Value::Histogram(&histogram), 1).unwrap();
        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_secs(1));
        track.see(Value::Histogram(&histogram), 2);
        track.see(Value::Histogram(&histogram), 3);
        let point = track.at(2, 1).unwrap();
        assert_eq!((point.observed(), point.sum), (2, 1.001));
        assert_eq!(track.at(3, 1).unwrap().observed(), 0);
        // Another one of the same name: it began again.
        let again = Registry::default().histogram("x_seconds", "X.", &[]);
        again.observe(Duration::from_secs(2));
        track.see(Value::Histogram(&again), 4);
        let point = track.at(4, 1).unwrap();
        assert_eq!((point.observed(), point.sum), (1, 2.0));
    }
}
