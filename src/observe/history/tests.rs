//! The history in memory, under a clock of its own.

use super::*;
use crate::base::clock;
use crate::observe::levels::Levels;

struct Bench {
    registry: Registry,
    history: Arc<History>,
    now: Instant,
    wall: u64,
}

impl Bench {
    fn new(series_max: usize, memory_max: u64) -> Bench {
        let registry = Registry::default();
        let now = clock::now();
        let settings = Settings { series_max, memory_max, ..Settings::default() };
        let history = History::new(&registry, &settings, now);
        Bench { registry, history, now, wall: 1_800_000_000 }
    }

    fn look(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.wall += seconds;
        self.history.look(&Reading::take(&self.registry, &Levels::default()), self.now, self.wall);
    }

    fn window(&self, metric: &str, labels: &[(&str, &str)], seconds: u64) -> Option<Window> {
        self.history.window(metric, labels, Duration::from_secs(seconds))
    }

    fn limit(&self, name: &str) -> Arc<Limit> {
        let found = self.registry.limits().into_iter().find(|limit| limit.name == name);
        found.unwrap().limit
    }
}

#[test]
fn a_window_says_what_a_counter_did() {
    let mut bench = Bench::new(512, 1 << 22);
    let a = bench.registry.counter("x_total", "X.", &[("route", "a"), ("code", "ok")]);
    let b = bench.registry.counter("x_total", "X.", &[("route", "b"), ("code", "ok")]);
    for n in 0..12 {
        a.add(n * 10);
        b.add(5);
        bench.look(10);
    }
    let minute = bench.window("x_total", &[("route", "a")], 60).unwrap();
    assert_eq!((minute.samples, minute.seconds), (6, 60.0));
    assert_eq!((minute.last, minute.min, minute.max), (11.0, 6.0, 11.0));
    assert_eq!((minute.increase, minute.rate, minute.avg), (510.0, 8.5, 8.5));
    assert_eq!((minute.quantile(0.0), minute.quantile(1.0)), (6.0, 11.0));
    let both = bench.window("x_total", &[("code", "ok")], 60).unwrap();
    assert_eq!((both.samples, both.increase), (6, 540.0));
    // Longer than there is: what there is.
    let all = bench.window("x_total", &[], 900).unwrap();
    assert_eq!((all.samples, all.seconds, all.increase), (12, 120.0, 720.0));
    assert!(bench.window("x_total", &[("route", "c")], 60).is_none());
    assert!(bench.window("y_total", &[], 60).is_none());
}

#[test]
fn a_window_says_what_a_gauge_did_and_when_it_will_reach_a_limit() {
    let mut bench = Bench::new(512, 1 << 22);
    let gauge = bench.registry.gauge("x", "X.", &[]);
    for n in 0..30 {
        gauge.set(100 + n * 2);
        bench.look(10);
    }
    let window = bench.window("x", &[], 300).unwrap();
    assert_eq!((window.last, window.min, window.max, window.avg), (158.0, 100.0, 158.0, 129.0));
    assert_eq!(window.increase, 58.0);
    assert_eq!(window.slope(), Some(0.2));
    let left = window.seconds_to(200.0).unwrap();
    assert!((left - 210.0).abs() < 1e-6, "{left}");
    assert_eq!(window.seconds_to(100.0), Some(0.0));
    for _ in 0..40 {
        bench.look(10);
    }
    assert_eq!(bench.window("x", &[], 300).unwrap().seconds_to(200.0), None);
}

#[test]
fn a_window_of_a_histogram_has_quantiles_over_all_its_series() {
    let mut bench = Bench::new(512, 1 << 22);
    let series: Vec<_> = ["a", "b"]
        .map(|route| bench.registry.histogram("x_seconds", "X.", &[("route", route)]))
        .into();
    bench.look(10);
    let quiet = bench.window("x_seconds", &[], 60).unwrap();
    assert!(quiet.avg.is_nan() && quiet.quantile(0.5).is_nan() && quiet.increase == 0.0);
    for n in 1..=100 {
        series[n % 2].observe(Duration::from_millis(n as u64));
    }
    bench.look(10);
    let window = bench.window("x_seconds", &[], 60).unwrap();
    assert_eq!((window.increase, window.rate), (100.0, 5.0));
    assert!((window.avg - 0.0505).abs() < 1e-9, "{}", window.avg);
    let (p50, p95) = (window.quantile(0.5), window.quantile(0.95));
    assert!((0.025..=0.05).contains(&p50) && (0.05..=0.1).contains(&p95), "{p50} {p95}");
}

#[test]
fn looks_are_bounded_and_a_series_that_is_no_more_goes_with_them() {
    let mut bench = Bench::new(512, 1 << 22);
    bench.registry.counter("x_total", "X.", &[("upstream", "gone")]).inc();
    bench.look(10);
    assert!(bench.window("x_total", &[], 60).is_some());
    bench.registry.keep_only("upstream", &[]);
    for _ in 0..LOOKS_MAX - 1 {
        bench.look(10);
    }
    assert!(bench.window("x_total", &[], 900).is_some());
    bench.look(10);
    assert!(bench.window("x_total", &[], 900).is_none());
    assert_eq!(bench.limit("history.looks_max").now(), LOOKS_MAX as u64);
    // The index still finds the others.
    let before = bench.history.series();
    bench.look(10);
    assert_eq!(bench.history.series(), before);
}

#[test]
fn series_past_the_limit_are_refused_and_counted() {
    let mut bench = Bench::new(8, 1 << 22);
    bench.look(10);
    bench.look(10);
    assert_eq!(bench.history.series(), 8);
    let limit = bench.limit("history.series_max");
    assert_eq!((limit.now(), limit.max()), (8, 8));
    assert!(limit.refused() > 0);
}

#[test]
fn memory_past_the_limit_costs_the_oldest_looks() {
    let mut bench = Bench::new(512, 100_000);
    let gauges: Vec<_> =
        (0..100).map(|n| bench.registry.gauge("x", "X.", &[("n", &n.to_string())])).collect();
    for n in 0..200 {
        gauges.iter().for_each(|gauge| gauge.set(n));
        bench.look(10);
        assert!(bench.limit("history.memory_max").now() <= 100_000);
    }
    assert!(bench.limit("history.memory_max").refused() > 0);
    let window = bench.window("x", &[("n", "7")], 900).unwrap();
    assert!((2..LOOKS_MAX).contains(&window.samples), "{}", window.samples);
    assert_eq!(window.last, 199.0);
}
