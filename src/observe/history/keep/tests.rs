//! What is kept equals what was seen: whenever the program ended, whatever the clock did.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::observe::levels::Levels;
use crate::observe::reading::Reading;
use crate::store::Tools;

/// 2027-01-15T08:00:00Z: an hour begins.
const START: u64 = 1_800_000_000;

/// A program that is started and stopped on one state directory, under a clock of its own.
struct Life {
    dir: tempfile::TempDir,
    settings: Settings,
    tools: Tools,
    store: Arc<Store>,
    history: Arc<History>,
    keeper: Keeper,
    now: Instant,
    wall: u64,
}

impl Life {
    fn begin(settings: Settings) -> Life {
        let dir = tempfile::tempdir().unwrap();
        let (tools, now) = (Tools::bare(), clock::now());
        let store = Store::open(
            Some(&dir.path().join("state")),
            &crate::config::settings::Store::default(),
            tools.clone(),
        );
        let history = History::new(&tools.registry, &settings, now);
        let keeper = Keeper::new(&history, &store, &settings, &tools.registry, now);
        let life = Life { dir, settings, tools, store, history, keeper, now, wall: START };
        life.opened();
        life
    }

    fn opened(&self) {
        let until = clock::now() + Duration::from_secs(20);
        while self.store.metrics().stand() != Stand::Open {
            assert!(clock::now() < until, "the store does not open");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops it and starts it again: in order, or as a crash does, which writes nothing more.
    fn again(&mut self, in_order: bool) {
        if in_order {
            self.keeper.flush().unwrap();
        }
        self.store.stop(clock::now() + Duration::from_secs(20));
        self.tools = Tools::bare();
        self.store = Store::open(
            Some(&self.dir.path().join("state")),
            &crate::config::settings::Store::default(),
            self.tools.clone(),
        );
        self.opened();
        self.history = History::new(&self.tools.registry, &self.settings, self.now);
        let Life { history, store, settings, tools, now, .. } = self;
        self.keeper = Keeper::new(history, store, settings, &tools.registry, *now);
    }

    /// So many seconds later, a look, and what the thread does.
    fn look(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.wall += seconds;
        self.history.look(
            &Reading::take(&self.tools.registry, &Levels::default()),
            self.now,
            self.wall,
        );
        self.keeper.tick(self.now, self.wall).unwrap();
    }

    fn count(&self, n: u64) {
        self.tools.registry.counter("x_total", "X.", &[("route", "a")]).add(n);
    }

    fn ask(&self, query: &str) -> Value {
        self.history.answer(query, self.wall).unwrap()
    }

    /// Time and value of every step that has one.
    fn values(&self, query: &str) -> BTreeMap<u64, f64> {
        let answer = self.ask(query);
        assert_eq!(answer["notes"], Value::from(Vec::<Value>::new()), "{query}");
        let series = answer["series"].as_array().unwrap();
        assert!(series.len() <= 1, "{answer}");
        let Some(series) = series.first() else { return BTreeMap::new() };
        let times = answer["times"].as_array().unwrap().iter().map(|at| at.as_u64().unwrap());
        let values = series["values"].as_array().unwrap().iter().map(Value::as_f64);
        times.zip(values).filter_map(|(at, value)| Some((at, value?))).collect()
    }
}

fn query(metric: &str, from: u64, step: u64, reduce: &str) -> String {
    format!("metric={metric}&from={from}&step={step}&fn={reduce}")
}

/// What happens between two looks.
#[derive(Clone, Debug)]
enum Step {
    Look { seconds: u64, grown: u64, level: u64 },
    Stop { in_order: bool },
}

fn any_step() -> impl Strategy<Value = Step> {
    let look = |seconds| {
        (seconds, 0u64..50, 0u64..1000).prop_map(|(seconds, grown, level)| Step::Look {
            seconds,
            grown,
            level,
        })
    };
    prop_oneof![
        20 => look((10u64..11).boxed()),
        4 => look((100u64..2000).boxed()),
        1 => any::<bool>().prop_map(|in_order| Step::Stop { in_order }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    #[test]
    fn what_is_told_equals_what_was_seen(steps in proptest::collection::vec(any_step(), 80..140)) {
        let mut life = Life::begin(Settings::default());
        // By moment: what the counter grew by, and what the level was.
        let mut seen: Vec<(u64, u64, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Look { seconds, grown, level } => {
                    life.count(grown);
                    life.tools.registry.gauge("x", "X.", &[]).set(level);
                    life.look(seconds);
                    seen.push((life.wall, grown, level));
                }
                Step::Stop { in_order } => {
                    if !in_order {
                        // What was written is what counts.
                        seen.truncate(seen.len() - unwritten(&life));
                    }
                    life.again(in_order);
                }
            }
        }
        // By looks, minutes and hours: as if computed from everything at once.
        for step in [10, 60, 300, 3600] {
            let mut sums: BTreeMap<u64, f64> = BTreeMap::new();
            let mut most: BTreeMap<u64, f64> = BTreeMap::new();
            let mut last: BTreeMap<u64, f64> = BTreeMap::new();
            let from = if step == 10 { START.max(life.wall - 6 * 3600) } else { START };
            let from = from - from % step;
            for (at, grown, level) in seen.iter().filter(|(at, ..)| *at >= from) {
                let slot = at - at % step;
                let level = *level as f64;
                *sums.entry(slot).or_default() += *grown as f64;
                most.entry(slot).and_modify(|most| *most = most.max(level)).or_insert(level);
                last.insert(slot, level);
            }
            if (life.wall - from) / step > 1900 {
                continue;
            }
            prop_assert_eq!(&life.values(&query("x_total", from, step, "increase")), &sums, "{}", step);
            prop_assert_eq!(&life.values(&query("x", from, step, "max")), &most, "{}", step);
            prop_assert_eq!(&life.values(&query("x", from, step, "last")), &last, "{}", step);
        }
    }
}

/// How many looks a crash now would lose.
fn unwritten(life: &Life) -> usize {
    life.history
        .inner
        .with(|inner| inner.looks.iter().filter(|look| look.number >= life.keeper.unkept).count())
}

#[test]
fn a_clock_that_is_set_back_brings_its_looks_to_the_hours_that_it_shows() {
    let mut life = Life::begin(Settings::default());
    let mut truth: BTreeMap<u64, f64> = BTreeMap::new();
    let mut go = |life: &mut Life, looks: u64, seconds: u64| {
        for _ in 0..looks {
            life.count(3);
            life.look(seconds);
            *truth.entry(life.wall - life.wall % 3600).or_default() += 3.0;
        }
    };
    // Two hours, the first of which is put together; then an hour and a half back, and on.
    go(&mut life, 60, 120);
    life.wall -= 5400;
    go(&mut life, 60, 120);
    // A day ahead, for a moment.
    life.wall += 86_400;
    go(&mut life, 3, 10);
    life.wall -= 86_400;
    go(&mut life, 60, 120);
    life.wall += 2 * 86_400;
    life.again(true);
    assert_eq!(life.values(&query("x_total", START, 3600, "increase")), truth);
}

#[test]
fn a_gap_is_no_zero_and_a_counter_that_begins_again_never_falls() {
    let mut life = Life::begin(Settings::default());
    life.count(100);
    life.look(10);
    life.again(true);
    // Twenty minutes off.
    life.now += Duration::from_secs(1200);
    life.wall += 1200;
    life.count(7);
    life.look(10);
    life.look(10);
    let values = life.values(&query("x_total", START, 60, "increase"));
    let expected = BTreeMap::from([(START, 100.0), (START + 1200, 7.0)]);
    assert_eq!(values, expected);
}

#[test]
fn without_a_store_it_says_that_there_is_only_what_is_in_memory() {
    let tools = Tools::bare();
    let store = Store::open(None, &crate::config::settings::Store::default(), tools.clone());
    let now = clock::now();
    let history = History::new(&tools.registry, &Settings::default(), now);
    let mut keeper = Keeper::new(&history, &store, &Settings::default(), &tools.registry, now);
    tools.registry.counter("x_total", "X.", &[]).add(5);
    history.look(
        &Reading::take(&tools.registry, &Levels::default()),
        now + Duration::from_secs(10),
        START,
    );
    keeper.tick(now + Duration::from_secs(100), START).unwrap();
    let answer = history.answer("metric=x_total&fn=increase&step=60", START + 1).unwrap();
    let note = answer["notes"][0].as_str().unwrap();
    assert!(note.starts_with("only what is in memory: there is no state directory"), "{note}");
    let values = answer["series"][0]["values"].as_array().unwrap();
    assert_eq!(values.iter().filter_map(Value::as_f64).sum::<f64>(), 5.0);
}

#[test]
fn series_past_the_limit_are_in_memory_only() {
    let mut life = Life::begin(Settings::default());
    life.keeper.limit.set_max(3);
    life.look(100);
    assert!(life.keeper.limit.refused() > 0);
    let rows = life
        .store
        .metrics()
        .read(clock::now() + WRITE_MAX, |connection| samples::series(connection, None));
    assert_eq!(rows.unwrap().len(), 3);
    assert!(life.history.known().len() > 3);
}

/// Hours of a synthetic store, in the form in which the thread keeps them.
fn fill(life: &Life, series: u32, hours: u64) {
    let labels = |n: u32| format!("[[\"n\",\"{n}\"]]");
    let row = |id: u32| SeriesRow {
        id,
        name: format!("m{}", id % 50),
        labels: labels(id),
        shape: "gauge".to_owned(),
        bounds: "[]".to_owned(),
    };
    let rows: Vec<SeriesRow> = (1..=series).map(row).collect();
    let start = START - hours * HOUR;
    let look = LookRow { at: signed(START), boot: 1, look: 0, millis: 1, data: Vec::new() };
    let db = life.store.metrics();
    let deadline = || clock::now() + Duration::from_secs(120);
    db.write("fill", deadline(), move |tx| samples::put_looks(tx, &rows, &[look])).unwrap();
    for hour in 0..hours {
        let begin = start + hour * HOUR;
        let part = |series: u32| {
            let minute = |minute: u64| {
                let mut point = Point::default();
                for look in 0..6 {
                    let value = (u64::from(series) * 977 + hour * 60 + minute) * 7919 + look;
                    point.append(&Point::value((value % 100_003) as f64 / 8.0, 10_000));
                }
                point
            };
            let minutes: Vec<Point> = (0..60).map(minute).collect();
            let data = code::part(Shape::Gauge, &minutes);
            PartRow { tier: 1, series, start: signed(begin), data }
        };
        let parts: Vec<PartRow> = (1..=series).map(part).collect();
        db.write("fill", deadline(), move |tx| samples::put_parts(tx, &parts, (0, 0), 0)).unwrap();
    }
}

#[test]
fn a_week_of_a_metric_is_read_in_a_row_for_each_hour_of_a_series() {
    // `TIDEGATE_HISTORY_SERIES` makes this the measurement of a full store.
    let series = std::env::var("TIDEGATE_HISTORY_SERIES").ok();
    let series = series.and_then(|text| text.parse().ok()).unwrap_or(50);
    let mut life = Life::begin(Settings::default());
    fill(&life, series, 7 * 24);
    life.again(true);
    let query = format!("metric=m7&from={}&to={START}&step=10m&fn=avg", START - 7 * DAY);
    let begun = clock::now();
    let answer = life.ask(&query);
    let took = begun.elapsed();
    let each = usize::try_from(series / 50).unwrap();
    assert_eq!(answer["series"].as_array().unwrap().len(), each);
    let values = answer["series"][0]["values"].as_array().unwrap();
    assert_eq!(values.iter().filter(|value| value.is_number()).count(), 1008);
    let rows = life.store.metrics().read(clock::now() + WRITE_MAX, |connection| {
        let span = (signed(START - 7 * DAY), signed(START));
        samples::parts(connection, 1, 7, span, |_, _| ())
    });
    assert_eq!(rows.unwrap(), 7 * 24, "one row for each hour");
    let bytes = std::fs::metadata(life.dir.path().join("state/metrics.db")).unwrap().len();
    log::info!("a week of {each} of {series} series: {took:?}, {bytes} bytes");
    if std::env::var_os("TIDEGATE_HISTORY_SERIES").is_some() {
        std::fs::write("/dev/stderr", format!("{took:?} for {each} of {series}, {bytes} bytes\n"))
            .unwrap();
    }
}

#[test]
fn what_is_too_old_or_too_large_is_forgotten() {
    let settings = Settings { disk_max: 8 << 20, ..Settings::default() };
    let mut life = Life::begin(settings);
    fill(&life, 300, 30);
    life.look(100);
    let limit = Arc::clone(&life.history.disk);
    assert!(limit.refused() > 0 && limit.now() <= 8 << 20, "{}", limit.now());
    assert!(limit.now() > 4 << 20, "the newest stay: {}", limit.now());
    // Eight days later the minutes are gone.
    life.wall += 8 * DAY;
    life.keeper.trimmed = None;
    life.look(100);
    assert!(limit.now() < 1 << 20, "{}", limit.now());
}
