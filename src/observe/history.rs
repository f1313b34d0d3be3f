//! The history of all metrics: a look every few seconds, the last ones in memory as they were.
//!
//! A look sees what the metrics page would show at that moment. Counters are remembered as what they
//! grew by, histograms bucket by bucket; a series that a look did not see has a gap there.

mod answer;
mod code;
mod keep;
mod kept;
pub mod point;
pub mod question;
pub mod sheet;
mod track;
mod window;

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use keep::Keeper;
use kept::Kept;
use point::Point;
use track::Track;
pub use window::Window;

use super::reading::{Head, Kind, Reader, Reading, Value};
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Limit, Registry, Unit};
use crate::config::settings::History as Settings;

/// Looks in memory: 15 minutes at one every 10 s. Past it: the oldest is forgotten.
pub const LOOKS_MAX: usize = 90;

/// The last minutes of all metrics.
#[derive(Debug)]
pub struct History {
    inner: Locked<Inner>,
    looks: Arc<Limit>,
    series: Arc<Limit>,
    bytes: Arc<Limit>,
    disk: Arc<Limit>,
    interval_ms: AtomicU64,
    /// How long looks and minutes are kept, in seconds.
    looks_for: AtomicU64,
    minutes_for: AtomicU64,
    kept: OnceLock<Kept>,
}

#[derive(Debug)]
struct Inner {
    /// The looks, oldest first.
    looks: VecDeque<Look>,
    /// The number of the next look.
    next: u32,
    series: Vec<Series>,
    /// By name and labels.
    index: HashMap<String, usize>,
    bytes: usize,
    began: Instant,
}

/// When a look was taken.
#[derive(Clone, Copy, Debug)]
struct Look {
    number: u32,
    at: Instant,
    /// The same in seconds since the epoch, by the clock as it was.
    wall: u64,
    /// The time since the look before, in milliseconds.
    millis: u64,
}

#[derive(Debug)]
struct Series {
    name: Box<str>,
    labels: Box<[(Box<str>, Box<str>)]>,
    track: Track,
}

impl Series {
    /// Whether it is of this metric and has these labels, perhaps beside others.
    fn has(&self, metric: &str, labels: &[(&str, &str)]) -> bool {
        let wanted = |(key, value): &(&str, &str)| {
            self.labels.iter().any(|(have, text)| **have == **key && **text == **value)
        };
        *self.name == *metric && labels.iter().all(wanted)
    }
}

impl History {
    /// An empty one, within these bounds.
    pub fn new(registry: &Registry, settings: &Settings, now: Instant) -> Arc<Self> {
        let limit =
            |name, max: usize, consequence| registry.limit(name, "", max as u64, consequence);
        Arc::new(History {
            inner: Locked::new(
                Rank::Leaf,
                Inner {
                    looks: VecDeque::new(),
                    next: 0,
                    series: Vec::new(),
                    index: HashMap::new(),
                    bytes: 0,
                    began: now,
                },
            ),
            looks: limit("history.looks_max", LOOKS_MAX, "the oldest look is forgotten"),
            series: limit(
                "history.series_max",
                settings.series_max,
                "further series are on the metrics page only",
            ),
            bytes: registry.limit_of(
                Unit::Bytes,
                "history.memory_max",
                "",
                settings.memory_max,
                "the oldest looks are forgotten early",
            ),
            disk: registry.limit_of(
                Unit::Bytes,
                "history.disk_max",
                "",
                settings.disk_max,
                "the oldest is forgotten early",
            ),
            interval_ms: AtomicU64::new(millis(settings.interval)),
            looks_for: AtomicU64::new(settings.looks_for.as_secs()),
            minutes_for: AtomicU64::new(settings.minutes_for.as_secs()),
            kept: OnceLock::new(),
        })
    }

    /// Takes over other bounds; they hold from the next look on.
    pub fn reconfigure(&self, settings: &Settings) {
        self.series.set_max(settings.series_max as u64);
        self.bytes.set_max(settings.memory_max);
        self.disk.set_max(settings.disk_max);
        self.interval_ms.store(millis(settings.interval), Relaxed);
        self.looks_for.store(settings.looks_for.as_secs(), Relaxed);
        self.minutes_for.store(settings.minutes_for.as_secs(), Relaxed);
    }

    /// Remembers a reading as the look of this moment; `wall` is the same in seconds since the epoch.
    pub fn look(&self, reading: &Reading, now: Instant, wall: u64) {
        self.inner.with(|inner| {
            let before = inner.looks.back().map_or(inner.began, |look| look.at);
            let millis = millis(now.saturating_duration_since(before)).max(1);
            let number = inner.next;
            inner.next += 1;
            inner.looks.push_back(Look { number, at: now, wall, millis });
            let mut taker = Taker {
                inner,
                number,
                series_max: self.series.max(),
                refused: 0,
                key: String::new(),
                name: String::new(),
                kind: Kind::Gauge,
            };
            reading.walk(&mut taker);
            let refused = taker.refused;
            (0..refused).for_each(|_| self.series.refuse());
            let keep = usize::try_from(self.looks.max()).unwrap_or(LOOKS_MAX);
            inner.forget(keep);
            // The oldest looks go until the rest fits; the last two always stay.
            while inner.bytes as u64 > self.bytes.max() && inner.looks.len() > 2 {
                self.bytes.refuse();
                inner.forget(inner.looks.len() * 3 / 4);
            }
            self.looks.set_now(inner.looks.len() as u64);
            self.series.set_now(inner.series.len() as u64);
            self.bytes.set_now(inner.bytes as u64);
        });
    }

    /// A metric over the last `span`, at most what is in memory: all its series that have these labels,
    /// taken together. `None` when no look has seen one.
    pub fn window(&self, metric: &str, labels: &[(&str, &str)], span: Duration) -> Option<Window> {
        self.inner.with(|inner| {
            let latest = inner.looks.back()?;
            let since = |look: &&Look| {
                let before = latest.at.saturating_duration_since(look.at);
                // A look stands for the time before it: of a minute, six looks at 10 s.
                before < span
            };
            let matching = || inner.series.iter().filter(|series| series.has(metric, labels));
            let first = &matching().next()?.track;
            let (shape, bounds) = (first.shape(), first.bounds());
            let mut looks: Vec<(f64, Point)> = Vec::new();
            for look in inner.looks.iter().filter(since) {
                let mut all = Point::default();
                for series in matching() {
                    if let Some(point) = series.track.at(look.number, look.millis) {
                        all.overlay(&point);
                    }
                }
                if all.count > 0 {
                    let at = look.at.saturating_duration_since(inner.began).as_secs_f64();
                    looks.push((at, all));
                }
            }
            Window::new(shape, &looks, bounds)
        })
    }

    /// When the oldest look and the latest one were taken, in seconds since the epoch.
    pub fn range(&self) -> Option<(u64, u64)> {
        self.inner.with(|inner| Some((inner.looks.front()?.wall, inner.looks.back()?.wall)))
    }

    /// How many series are remembered.
    pub fn series(&self) -> usize {
        self.inner.with(|inner| inner.series.len())
    }
}

impl Inner {
    /// Forgets all looks but the last `keep`, and the series that only those saw.
    fn forget(&mut self, keep: usize) {
        while self.looks.len() > keep.max(1) {
            self.looks.pop_front();
        }
        let first = self.looks.front().map_or(self.next, |look| look.number);
        let before = self.series.len();
        self.series.retain_mut(|series| series.track.forget(first));
        if self.series.len() < before {
            self.index.clear();
            let mut key = String::new();
            for (at, series) in self.series.iter().enumerate() {
                let labels = series.labels.iter().map(|(k, v)| (&**k, &**v));
                write_key(&mut key, &series.name, labels);
                self.index.insert(key.clone(), at);
            }
        }
        self.bytes = self.series.iter().map(|series| series.track.bytes()).sum();
    }
}

/// A series' name and labels as one text. The separators are in no name; a label that holds one
/// may be taken for another's, which is then counted with it.
fn write_key<'a>(key: &mut String, name: &str, labels: impl Iterator<Item = (&'a str, &'a str)>) {
    key.clear();
    key.push_str(name);
    for (label, value) in labels {
        key.push('\u{1f}');
        key.push_str(label);
        key.push('\u{1e}');
        key.push_str(value);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Takes a look.
struct Taker<'a> {
    inner: &'a mut Inner,
    number: u32,
    series_max: u64,
    refused: u64,
    key: String,
    name: String,
    kind: Kind,
}

impl Reader for Taker<'_> {
    fn family(&mut self, head: Head<'_>) {
        head.name.clone_into(&mut self.name);
        self.kind = head.kind;
    }

    fn series(&mut self, labels: &[(&str, &str)], value: Value<'_>) {
        // What never changes has no history.
        if self.kind == Kind::Info {
            return;
        }
        write_key(&mut self.key, &self.name, labels.iter().copied());
        if let Some(series) = self.inner.index.get(&self.key).map(|at| &mut self.inner.series[*at])
        {
            series.track.see(value, self.number);
        } else if self.inner.series.len() as u64 >= self.series_max {
            self.refused += 1;
        } else if let Some(track) = Track::new(self.kind, value, self.number) {
            let labels = labels.iter().map(|(key, text)| ((*key).into(), (*text).into()));
            let series =
                Series { name: self.name.as_str().into(), labels: labels.collect(), track };
            self.inner.index.insert(self.key.clone(), self.inner.series.len());
            self.inner.series.push(series);
        }
    }
}

#[cfg(test)]
mod tests;
