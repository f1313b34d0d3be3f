//! Counters, histograms and limits: what every room counts with. `observe` writes them out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::lock::{Locked, Rank};

/// Most series in one registry. Past it: new series are not exported and
/// `tidegate_metric_series_dropped_total` counts them. (OpenClaw's cap, `peers.md` 5.5.)
pub const SERIES_MAX: usize = 2048;

/// The name of that limit.
const OWN_LIMIT: &str = "metrics.series_max";

/// Buckets of latency histograms, in seconds.
pub const LATENCY_BOUNDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A histogram of durations, or of counts, over fixed bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    buckets: Box<[AtomicU64]>,
    /// Of durations in nanoseconds, of counts as they are.
    sum: AtomicU64,
    /// How much of `sum` is one of what is told: a second, or a thing that is counted.
    unit: f64,
}

/// Nanoseconds of a second.
const NANOS: f64 = 1e9;

impl Histogram {
    fn new(bounds: &'static [f64], unit: f64) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, buckets, sum: AtomicU64::new(0), unit }
    }

    /// Records one duration.
    pub fn observe(&self, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.record(value.as_secs_f64(), nanos);
    }

    /// Records a count, in a histogram of counts.
    pub fn observe_count(&self, count: u64) {
        self.record(count as f64, count);
    }

    fn record(&self, value: f64, more: u64) {
        let index = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[index].fetch_add(1, Relaxed);
        self.sum.fetch_add(more, Relaxed);
    }

    /// The upper bounds, without the last one (infinity).
    pub fn bounds(&self) -> &'static [f64] {
        self.bounds
    }

    /// The count in each bucket (not cumulative), the last one above every bound.
    pub fn counts(&self) -> Vec<u64> {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect()
    }

    /// The sum of all durations, in seconds, or of all counts.
    pub fn sum(&self) -> f64 {
        self.sum.load(Relaxed) as f64 / self.unit
    }
}

/// A limit: how much of something there is, has been at most, and may be. The one primitive behind
/// every bound: what is taken is a [`Lease`], whose drop gives it back.
#[derive(Debug)]
pub struct Limit {
    now: AtomicU64,
    high_water: AtomicU64,
    max: AtomicU64,
    refused: AtomicU64,
}

impl Limit {
    /// A limit that is in no registry: for tests, and for parts of a larger one.
    pub fn detached(max: u64) -> Arc<Self> {
        Arc::new(Limit {
            now: AtomicU64::new(0),
            high_water: AtomicU64::new(0),
            max: AtomicU64::new(max),
            refused: AtomicU64::new(0),
        })
    }

    /// Takes `n`, or refuses and counts the refusal when that would pass the limit.
    pub fn try_take(self: &Arc<Self>, n: u64) -> Option<Lease> {
        let max = self.max.load(Relaxed);
        let taken = self
            .now
            .fetch_update(Relaxed, Relaxed, |now| now.checked_add(n).filter(|sum| *sum <= max));
        match taken {
            Ok(before) => {
                self.high_water.fetch_max(before + n, Relaxed);
                Some(Lease { limit: Arc::clone(self), amount: n })
            }
            Err(_) => {
                self.refused.fetch_add(1, Relaxed);
                None
            }
        }
    }

    /// A lease of nothing, to grow: it is given also when a lowered limit is passed.
    pub fn nothing(self: &Arc<Self>) -> Lease {
        Lease { limit: Arc::clone(self), amount: 0 }
    }

    /// For containers that know their own size: says what it is now.
    pub fn set_now(&self, now: u64) {
        self.now.store(now, Relaxed);
        self.saw(now);
    }

    /// For containers that share a limit, or are replaced: one that was `before` large is `after`.
    pub(super) fn change(&self, before: u64, after: u64) {
        if after > before {
            let more = after - before;
            let now = self.now.fetch_add(more, Relaxed) + more;
            self.high_water.fetch_max(now, Relaxed);
        } else if after < before {
            self.now.fetch_sub(before - after, Relaxed);
        }
    }

    /// For a bound on each thing and not on all together: one of this size came.
    #[inline]
    pub fn saw(&self, size: u64) {
        // Nearly always the largest is known already, and nothing is written.
        if size > self.high_water.load(Relaxed) {
            self.high_water.fetch_max(size, Relaxed);
        }
    }

    /// Counts a refusal by a container that enforces the limit itself.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// Changes the limit (a live setting). What is held already stays held.
    pub fn set_max(&self, max: u64) {
        self.max.store(max, Relaxed);
    }

    /// How much is taken now.
    pub fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    /// The most that was ever taken at once.
    pub fn high_water(&self) -> u64 {
        self.high_water.load(Relaxed)
    }

    /// How much may be taken.
    pub fn max(&self) -> u64 {
        self.max.load(Relaxed)
    }

    /// How often the limit was hit.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

/// A part of a [`Limit`], given back on drop.
#[derive(Debug)]
pub struct Lease {
    limit: Arc<Limit>,
    amount: u64,
}

impl Lease {
    /// Takes `n` more of the same limit; false, and nothing taken, when that would pass it.
    pub fn grow(&mut self, n: u64) -> bool {
        match self.limit.try_take(n) {
            Some(mut more) => {
                // What it took is ours to give back now.
                more.amount = 0;
                self.amount += n;
                true
            }
            None => false,
        }
    }

    /// Gives a part back, so that at most `amount` is taken.
    pub fn shrink_to(&mut self, amount: u64) {
        let less = self.amount.saturating_sub(amount);
        self.limit.now.fetch_sub(less, Relaxed);
        self.amount -= less;
    }

    /// How much is taken.
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.limit.now.fetch_sub(self.amount, Relaxed);
    }
}

/// One exported series.
#[derive(Clone, Debug)]
pub enum Metric {
    /// Only grows.
    Counter(Arc<Counter>),
    /// Goes up and down.
    Gauge(Arc<Gauge>),
    /// A distribution.
    Histogram(Arc<Histogram>),
}

/// Label names and values of a series.
pub type Labels = Vec<(&'static str, String)>;

/// All series of one name.
#[derive(Clone, Debug)]
pub struct Family {
    /// The exported name, with `tidegate_` and its unit.
    pub name: &'static str,
    /// One sentence for `# HELP`.
    pub help: &'static str,
    /// The series.
    pub series: Vec<(Labels, Metric)>,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things in a container: names, connections, requests.
    Entries,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Unit::Entries => "entries",
            Unit::Bytes => "bytes",
        }
    }
}

/// A limit with its name and consequence, as exported.
#[derive(Clone, Debug)]
pub struct NamedLimit {
    /// What is limited: the settings key where there is one (`server.connections_max`), with the
    /// upstream's name behind it where each has its own (`upstream.concurrency_max{local}` is two
    /// fields here: name and owner).
    pub name: &'static str,
    /// Whose it is (an upstream's name), or empty.
    pub owner: String,
    /// What it counts.
    pub unit: Unit,
    /// Whether it bounds each thing (a request's head) and not all of them together: then there is
    /// no `now`, and the high water is the largest one that was taken.
    pub each: bool,
    /// What happens at the limit.
    pub consequence: &'static str,
    /// The limit itself.
    pub limit: Arc<Limit>,
}

#[derive(Debug, Default)]
struct Families {
    families: Vec<Family>,
    limits: Vec<NamedLimit>,
    series: usize,
    /// The values of the labels that have only certain ones.
    kept: Kept,
}

/// Labels with the values that are exported: few labels, as many values as the configuration has.
type Kept = Vec<(&'static str, Vec<String>)>;

/// Whether a series with this label and value is exported.
fn label_kept(kept: &Kept, label: &str, value: &str) -> bool {
    let values = kept.iter().find(|(have, _)| *have == label);
    values.is_none_or(|(_, values)| values.iter().any(|have| have == value))
}

/// Whether a limit is: an owner is named by the label that its name begins with. An upstream may be
/// called `data`, which is also who owns the engine's limits.
fn limit_kept(kept: &Kept, name: &str, owner: &str) -> bool {
    let label = name.split('.').next().unwrap_or_default();
    owner.is_empty() || label_kept(kept, label, owner)
}

/// Every counter, histogram and limit of one process.
#[derive(Debug)]
pub struct Registry {
    inner: Locked<Families>,
    /// The limit on series; its refusals are the series that were dropped.
    own: Arc<Limit>,
}

impl Default for Registry {
    fn default() -> Self {
        Registry {
            inner: Locked::new(Rank::Metrics, Families::default()),
            own: Limit::detached(SERIES_MAX as u64),
        }
    }
}

impl Registry {
    /// The counter of this name and these labels; the same one for the same arguments.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Arc<Counter> {
        let make = || Metric::Counter(Arc::default());
        match self.series(name, help, labels, make) {
            Metric::Counter(counter) => counter,
            _ => Arc::default(),
        }
    }

    /// The gauge of this name and these labels.
    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Arc<Gauge> {
        let make = || Metric::Gauge(Arc::default());
        match self.series(name, help, labels, make) {
            Metric::Gauge(gauge) => gauge,
            _ => Arc::default(),
        }
    }

    /// The latency histogram of this name and these labels.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Arc<Histogram> {
        self.histogram_of(name, help, LATENCY_BOUNDS, labels)
    }

    /// The same over bounds of its own, in seconds.
    pub fn histogram_of(
        &self,
        name: &'static str,
        help: &'static str,
        bounds: &'static [f64],
        labels: &[(&'static str, &str)],
    ) -> Arc<Histogram> {
        self.histogram_in(name, help, (bounds, NANOS), labels)
    }

    /// The histogram of counts of this name and these labels.
    pub fn distribution(
        &self,
        name: &'static str,
        help: &'static str,
        bounds: &'static [f64],
        labels: &[(&'static str, &str)],
    ) -> Arc<Histogram> {
        self.histogram_in(name, help, (bounds, 1.0), labels)
    }

    fn histogram_in(
        &self,
        name: &'static str,
        help: &'static str,
        (bounds, unit): (&'static [f64], f64),
        labels: &[(&'static str, &str)],
    ) -> Arc<Histogram> {
        let make = || Metric::Histogram(Arc::new(Histogram::new(bounds, unit)));
        match self.series(name, help, labels, make) {
            Metric::Histogram(histogram) => histogram,
            _ => Arc::new(Histogram::new(bounds, unit)),
        }
    }

    /// Registers a limit on entries. The same name and owner give the same limit, with `max` as its
    /// new bound.
    pub fn limit(
        &self,
        name: &'static str,
        owner: &str,
        max: u64,
        consequence: &'static str,
    ) -> Arc<Limit> {
        self.limit_of(Unit::Entries, name, owner, max, consequence)
    }

    /// Registers a limit on something that is counted in `unit`.
    pub fn limit_of(
        &self,
        unit: Unit,
        name: &'static str,
        owner: &str,
        max: u64,
        consequence: &'static str,
    ) -> Arc<Limit> {
        let limit = Limit::detached(max);
        let owner = owner.to_owned();
        self.named(NamedLimit { name, owner, unit, each: false, consequence, limit })
    }

    /// Registers a limit on each thing of a kind, which is told of them with [`Limit::saw`].
    pub fn limit_each(
        &self,
        unit: Unit,
        name: &'static str,
        owner: &str,
        max: u64,
        consequence: &'static str,
    ) -> Arc<Limit> {
        let limit = Limit::detached(max);
        let owner = owner.to_owned();
        self.named(NamedLimit { name, owner, unit, each: true, consequence, limit })
    }

    /// Registers a limit, unless it is known: then that one gets the new bound.
    fn named(&self, named: NamedLimit) -> Arc<Limit> {
        self.inner.with(|inner| {
            let known = |l: &&NamedLimit| l.name == named.name && l.owner == named.owner;
            if let Some(known) = inner.limits.iter().find(known) {
                known.limit.set_max(named.limit.max());
                return Arc::clone(&known.limit);
            }
            let limit = Arc::clone(&named.limit);
            if !limit_kept(&inner.kept, named.name, &named.owner) {
                // Of something that is no more.
            } else if inner.series >= SERIES_MAX {
                self.own.refuse();
            } else {
                inner.series += 1;
                inner.limits.push(named);
            }
            limit
        })
    }

    /// A copy of the families and limits, for exposition.
    pub fn gather(&self) -> (Vec<Family>, Vec<NamedLimit>) {
        (self.inner.with(|inner| inner.families.clone()), self.limits())
    }

    /// A copy of the limits. The last one is the registry's own.
    pub fn limits(&self) -> Vec<NamedLimit> {
        let (mut limits, series) = self.inner.with(|inner| (inner.limits.clone(), inner.series));
        self.own.set_now(series as u64);
        limits.push(NamedLimit {
            name: OWN_LIMIT,
            owner: String::new(),
            unit: Unit::Entries,
            each: false,
            consequence: "new series are counted but not shown",
            limit: Arc::clone(&self.own),
        });
        limits
    }

    /// Says whose series with this label are exported from now on: those of `values` only. What
    /// belongs to others (an upstream that a reload took out) goes: series with this label, and
    /// limits whose name begins with it. It does not come back when a request of the old
    /// configuration counts there once more: what it gets counts for nobody. A label that this was
    /// never called for takes every value.
    pub fn keep_only(&self, label: &'static str, values: &[&str]) {
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        self.inner.with(|inner| {
            inner.kept.retain(|(have, _)| *have != label);
            inner.kept.push((label, values));
            let kept = std::mem::take(&mut inner.kept);
            inner.limits.retain(|limit| limit_kept(&kept, limit.name, &limit.owner));
            for family in &mut inner.families {
                family.series.retain(|(labels, _)| {
                    labels.iter().all(|(label, value)| label_kept(&kept, label, value))
                });
            }
            inner.kept = kept;
            let series: usize = inner.families.iter().map(|family| family.series.len()).sum();
            inner.series = series + inner.limits.len();
        });
    }

    /// Stops exporting one series: its name and all its labels.
    pub fn forget(&self, name: &str, labels: &[(&'static str, &str)]) {
        self.inner.with(|inner| {
            for family in inner.families.iter_mut().filter(|family| family.name == name) {
                let before = family.series.len();
                family.series.retain(|(have, _)| {
                    !(have.len() == labels.len()
                        && have.iter().zip(labels).all(|(a, b)| a.0 == b.0 && a.1 == b.1))
                });
                inner.series -= before - family.series.len();
            }
        });
    }

    /// Series that were not exported because there were too many, or because their name is taken by
    /// another type.
    pub fn dropped(&self) -> u64 {
        self.own.refused()
    }

    fn series(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        make: impl FnOnce() -> Metric,
    ) -> Metric {
        self.inner.with(|inner| {
            let position = inner.families.iter().position(|family| family.name == name);
            let position = position.unwrap_or_else(|| {
                inner.families.push(Family { name, help, series: Vec::new() });
                inner.families.len() - 1
            });
            let same = |have: &Labels| {
                have.len() == labels.len()
                    && have.iter().zip(labels).all(|(a, b)| a.0 == b.0 && a.1 == b.1)
            };
            let family = &inner.families[position];
            if let Some((_, metric)) = family.series.iter().find(|(have, _)| same(have)) {
                return metric.clone();
            }
            let metric = make();
            // One name has one type: a page with two is refused whole by its readers.
            let kind = std::mem::discriminant(&metric);
            let same_kind = |(_, first): &(Labels, Metric)| std::mem::discriminant(first) == kind;
            if !labels.iter().all(|(label, value)| label_kept(&inner.kept, label, value)) {
                // Of something that is no more.
            } else if inner.series >= SERIES_MAX || !family.series.first().is_none_or(same_kind) {
                self.own.refuse();
            } else {
                inner.series += 1;
                let labels = labels.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
                inner.families[position].series.push((labels, metric.clone()));
            }
            metric
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_hit_exactly_at_its_bound_and_given_back_on_drop() {
        let limit = Limit::detached(2);
        let first = limit.try_take(1).unwrap();
        let second = limit.try_take(1).unwrap();
        assert!(limit.try_take(1).is_none());
        assert_eq!((limit.now(), limit.high_water(), limit.refused()), (2, 2, 1));
        drop(first);
        assert!(limit.try_take(2).is_none());
        assert!(limit.try_take(u64::MAX).is_none(), "no overflow");
        drop(second);
        assert_eq!(limit.now(), 0);
        let mut third = limit.try_take(2).unwrap();
        third.shrink_to(3);
        assert_eq!(limit.now(), 2, "it does not grow");
        third.shrink_to(1);
        assert_eq!((third.amount(), limit.now()), (1, 1));
    }

    #[test]
    fn the_same_name_and_labels_give_the_same_series() {
        let registry = Registry::default();
        registry.counter("a_total", "A.", &[("x", "1")]).inc();
        registry.counter("a_total", "A.", &[("x", "1")]).inc();
        registry.counter("a_total", "A.", &[("x", "2")]).inc();
        let (families, _) = registry.gather();
        assert_eq!(families.len(), 1);
        assert_eq!(families[0].series.len(), 2);
        assert!(matches!(&families[0].series[0].1, Metric::Counter(c) if c.value() == 2));
    }

    #[test]
    fn a_name_keeps_its_type() {
        let registry = Registry::default();
        registry.counter("a_total", "A.", &[]).inc();
        registry.gauge("a_total", "A.", &[("x", "1")]).set(7);
        registry.gauge("a_total", "A.", &[]).set(7);
        let (families, _) = registry.gather();
        assert_eq!(families[0].series.len(), 1);
        assert!(matches!(&families[0].series[0].1, Metric::Counter(c) if c.value() == 1));
        assert_eq!(registry.dropped(), 1);
    }

    #[test]
    fn what_is_no_more_makes_room() {
        let registry = Registry::default();
        for round in 0..SERIES_MAX {
            let name = round.to_string();
            registry.keep_only("upstream", &[&name]);
            registry.counter("a_total", "A.", &[("upstream", &name)]).inc();
            registry.limit("upstream.concurrency_max", &name, 1, "wait");
        }
        registry.keep_only("upstream", &[]);
        let (families, limits) = registry.gather();
        assert!(families.iter().all(|family| family.series.is_empty()));
        assert_eq!(limits.iter().map(|limit| limit.name).collect::<Vec<_>>(), [OWN_LIMIT]);
        assert_eq!(registry.dropped(), 0);
    }

    #[test]
    fn a_forgotten_series_makes_room_and_leaves_its_neighbours() {
        let registry = Registry::default();
        for round in 0..SERIES_MAX {
            let name = round.to_string();
            let labels = [("upstream", "a"), ("model", &*name)];
            registry.gauge("a", "A.", &labels).set(1);
            registry.gauge("a", "A.", &[("upstream", "a"), ("model", "stays")]);
            registry.forget("a", &labels);
        }
        let (families, _) = registry.gather();
        assert_eq!(families[0].series.len(), 1);
        assert_eq!(registry.dropped(), 0);
    }

    #[test]
    fn what_is_no_more_takes_nothing_of_another_s_with_it() {
        let registry = Registry::default();
        registry.limit("server.queue_max", "data", 1, "503");
        registry.limit("upstream.waiting_max", "data", 1, "wait");
        registry.limit("upstream.waiting_max", "stays", 1, "wait");
        registry.limit("events.history_max", "", 1, "oldest dropped");
        registry.keep_only("upstream", &["stays"]);
        let (_, left) = registry.gather();
        let left: Vec<_> = left.iter().map(|limit| (limit.name, &*limit.owner)).collect();
        let expected = [
            ("server.queue_max", "data"),
            ("upstream.waiting_max", "stays"),
            ("events.history_max", ""),
            (OWN_LIMIT, ""),
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn what_is_no_more_does_not_come_back_by_a_late_count() {
        let registry = Registry::default();
        let count = |name: &str, route| {
            registry.counter("a_total", "A.", &[("upstream", name), ("route", route)]).inc();
            registry.limit("upstream.waiting_max", name, 1, "wait").refuse();
        };
        let series = || registry.gather().0.iter().map(|f| f.series.len()).sum::<usize>();
        count("gone", "/");
        count("stays", "/");
        registry.keep_only("upstream", &["stays"]);
        count("gone", "/");
        count("gone", "/late");
        assert_eq!((series(), registry.limits().len()), (1, 2));
        // A label of the same name is governed wherever it stands; others are free.
        registry.counter("b_total", "B.", &[("key", "gone")]).inc();
        assert_eq!(series(), 2);
        // It is back when it is declared again, with a count that begins again.
        registry.keep_only("upstream", &["stays", "gone"]);
        count("gone", "/");
        assert_eq!((series(), registry.limits().len(), registry.dropped()), (3, 3, 0));
    }

    #[test]
    fn series_are_bounded() {
        let registry = Registry::default();
        for n in 0..SERIES_MAX + 3 {
            registry.counter("a_total", "A.", &[("x", &n.to_string())]).inc();
        }
        assert_eq!(registry.gather().0[0].series.len(), SERIES_MAX);
        assert_eq!(registry.dropped(), 3);
    }

    #[test]
    fn a_histogram_puts_a_value_on_a_bound_into_that_bucket() {
        let histogram = Histogram::new(&[0.001, 0.01], NANOS);
        for ms in [1, 2, 10, 11] {
            histogram.observe(Duration::from_millis(ms));
        }
        assert_eq!(histogram.counts(), [1, 2, 1]);
        assert!((histogram.sum() - 0.024).abs() < 1e-9);
    }
}
