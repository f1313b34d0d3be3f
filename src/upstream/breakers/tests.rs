//! The breakers of an upstream together, and a week of an upstream's life.

use std::collections::BinaryHeap;

use crossbeam_channel::{Receiver, bounded};

use super::*;
use crate::base::clock;
use crate::base::error::{Kind, Phase};
use crate::base::permits::{Permit, Permits, Place, Ticket};

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    breakers: Arc<Breakers>,
    registry: Arc<Registry>,
    events: Arc<Events>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let registry = Arc::new(Registry::default());
        let events = Events::new(Arc::clone(&registry));
        let now = clock::now();
        let breakers = Breakers::new("up", &registry, &events, 7, now);
        Bench { breakers, registry, events, now }
    }

    fn call(&self, model: &str, kind: Option<Kind>) -> Result<(), Unavailable> {
        let pass = self.breakers.admit(model, self.now)?;
        match kind {
            None => pass.answered(self.now),
            Some(kind) => pass.failed(&Error::new(kind, "what it said"), true, self.now),
        }
        Ok(())
    }

    fn break_it(&self, model: &str, kind: Kind) {
        for _ in 0..5 {
            self.call(model, Some(kind)).unwrap();
        }
    }

    fn view(&self, model: Option<&str>) -> View {
        let list = self.breakers.list(self.now);
        list.into_iter().find(|view| view.model.as_deref() == model).unwrap()
    }

    fn assert_nobody_out(&self) {
        self.breakers.inner.with(|inner| {
            for entry in std::iter::once(&inner.address).chain(inner.models.values()) {
                assert_eq!((entry.breaker.out(), entry.breaker.probing()), (0, 0));
            }
        });
    }
}

#[test]
fn a_model_that_fails_is_left_alone_and_its_neighbour_is_not() {
    let bench = Bench::new();
    bench.break_it("a", Kind::UpstreamStatus(500));
    let refused = bench.call("a", None).unwrap_err();
    let error = refused.error(bench.now);
    assert_eq!(error.kind(), Kind::UpstreamUnavailable);
    assert!(error.context().contains("it answered 500 (upstream_error)"), "{error}");
    assert!(!error.context().contains("what it said"), "others are told in our words: {error}");
    assert!(error.retry_after_seconds().unwrap() > 20);
    assert!(bench.call("b", None).is_ok());
    let view = bench.view(Some("a"));
    assert_eq!(
        (view.stand, view.cause.unwrap().0.full.to_string().as_str()),
        (Stand::Open, "what it said")
    );
    assert_eq!(bench.view(None).stand, Stand::Closed);
    let events: Vec<_> = bench.events.recent().into_iter().map(|e| (e.kind, e.subject)).collect();
    assert_eq!(events, [("breaker_opened", "up/a".to_owned())]);
    bench.assert_nobody_out();
}

#[test]
fn an_address_that_cannot_be_reached_is_left_alone_whatever_the_model() {
    for kind in [Kind::UpstreamConnect, Kind::UpstreamTimeout(Phase::Connect)] {
        let mut bench = Bench::new();
        for model in ["a", "b", "c", "d", "e"] {
            bench.call(model, Some(kind)).unwrap();
        }
        assert!(bench.call("f", None).is_err(), "{kind:?}");
        assert_eq!(bench.view(Some("a")).stand, Stand::Closed);
        // One probe for all of its models; when it is answered, everybody is let in.
        bench.now += 40 * SECOND;
        let probe = bench.breakers.admit("a", bench.now).unwrap();
        assert!(probe.is_probe());
        assert!(bench.call("b", None).is_err());
        probe.failed(&Error::new(Kind::UpstreamStatus(500), "x"), true, bench.now);
        assert!(bench.call("b", None).is_ok(), "whoever answers 500 can be reached");
        bench.assert_nobody_out();
    }
}

#[test]
fn a_connection_lets_every_model_in_before_the_probe_s_answer() {
    let mut bench = Bench::new();
    bench.break_it("a", Kind::UpstreamConnect);
    bench.now = bench.breakers.admit("a", bench.now).err().unwrap().until.unwrap();
    let mut probe = bench.breakers.admit("a", bench.now).unwrap();
    assert!(probe.is_probe() && bench.breakers.admit("b", bench.now).is_err());
    probe.connected(bench.now);
    assert!(!probe.is_probe());
    assert_eq!(bench.view(None).stand, Stand::Closed);
    bench.call("b", None).unwrap();
    probe.failed(&Error::new(Kind::UpstreamCut, "x"), true, bench.now);
    assert_eq!((bench.view(None).failed, bench.view(Some("a")).failed), (0, 1));
    bench.assert_nobody_out();
}

#[test]
fn a_model_s_refusal_does_not_keep_the_address_s_probe() {
    let mut bench = Bench::new();
    bench.break_it("a", Kind::UpstreamCut);
    bench.now += 20 * SECOND;
    bench.break_it("b", Kind::UpstreamConnect);
    bench.now += 100 * SECOND;
    bench.breakers.force(Some("a"), Force::Open, None, bench.now);
    for _ in 0..10 {
        assert_eq!(bench.call("a", None).unwrap_err().why, Why::Forced);
    }
    assert!(bench.breakers.admit("b", bench.now).unwrap().is_probe());
    bench.assert_nobody_out();
}

#[test]
fn what_a_person_decided_ends_by_itself() {
    let mut bench = Bench::new();
    bench.call("a", None).unwrap();
    let until = Some(bench.now + 600 * SECOND);
    assert!(bench.breakers.force(None, Force::Open, until, bench.now));
    assert!(bench.breakers.force(Some("b"), Force::Closed, until, bench.now));
    bench.now += 599 * SECOND;
    bench.breakers.sweep(bench.now);
    assert_eq!(bench.view(None).forced_for, Some(SECOND));
    assert_eq!(bench.call("a", None).unwrap_err().why, Why::Forced);
    bench.now += SECOND;
    bench.breakers.sweep(bench.now);
    assert_eq!((bench.view(None).force, bench.view(None).forced_for), (Force::Auto, None));
    bench.call("a", None).unwrap();
    // One without an end stays, and taking it back ends its time too.
    bench.breakers.force(None, Force::Open, None, bench.now);
    bench.now += 100_000 * SECOND;
    bench.breakers.sweep(bench.now);
    assert_eq!(bench.call("a", None).unwrap_err().why, Why::Forced);
    bench.breakers.force(None, Force::Auto, Some(bench.now + SECOND), bench.now);
    assert_eq!(bench.view(None).forced_for, None);
    bench.assert_nobody_out();
}

#[test]
fn a_drained_upstream_is_sent_nobody_also_without_breakers() {
    let bench = Bench::new();
    let running = bench.breakers.admit("a", bench.now).unwrap();
    bench.breakers.reconfigure(None, SECOND, bench.now);
    assert!(!bench.breakers.force(None, Force::Open, None, bench.now), "there is none to force");
    bench.breakers.drain(true);
    assert_eq!(bench.call("a", None).unwrap_err().why, Why::Drained);
    assert!(bench.view(None).drained);
    drop(running);
    bench.breakers.drain(false);
    bench.call("a", None).unwrap();
}

#[test]
fn a_pass_that_is_dropped_says_nothing() {
    let mut bench = Bench::new();
    for _ in 0..100 {
        drop(bench.breakers.admit("a", bench.now).unwrap());
    }
    bench.break_it("a", Kind::UpstreamInBand);
    bench.now += 40 * SECOND;
    for _ in 0..100 {
        assert!(bench.breakers.admit("a", bench.now).unwrap().is_probe());
    }
    bench.assert_nobody_out();
}

#[test]
fn off_they_let_everybody_pass_and_on_again_they_begin_anew() {
    let bench = Bench::new();
    bench.break_it("a", Kind::UpstreamCut);
    bench.breakers.reconfigure(None, SECOND, bench.now);
    let held = bench.breakers.admit("a", bench.now).unwrap();
    assert!(bench.breakers.list(bench.now).is_empty());
    bench.breakers.reconfigure(Some(Rules::default()), SECOND, bench.now);
    held.failed(&Error::new(Kind::UpstreamCut, "x"), true, bench.now);
    assert!(bench.call("a", None).is_ok());
    bench.assert_nobody_out();
}

#[test]
fn a_pass_outlives_the_breaker_that_gave_it() {
    let bench = Bench::new();
    let held = bench.breakers.admit("a", bench.now).unwrap();
    bench.breakers.reconfigure(None, SECOND, bench.now);
    bench.breakers.reconfigure(Some(Rules::default()), SECOND, bench.now);
    bench.call("a", None).unwrap();
    held.answered(bench.now);
    bench.assert_nobody_out();
}

#[test]
fn what_nobody_needs_is_forgotten_and_what_is_declared_is_not() {
    let mut bench = Bench::new();
    bench.breakers.declare(&["declared"], bench.now);
    bench.break_it("guessed", Kind::UpstreamCut);
    bench.break_it("declared", Kind::UpstreamCut);
    let held = bench.breakers.admit("held", bench.now).unwrap();
    bench.now += 60 * SECOND;
    bench.breakers.sweep(bench.now);
    let names = |bench: &Bench| -> Vec<Option<String>> {
        bench.breakers.list(bench.now).into_iter().map(|view| view.model).collect()
    };
    assert_eq!(names(&bench).len(), 4, "an open one is not forgotten at once");
    bench.now += 300 * SECOND;
    bench.breakers.sweep(bench.now);
    let left = [None, Some("declared".to_owned()), Some("held".to_owned())];
    assert_eq!(names(&bench), left);
    assert_eq!(bench.view(Some("declared")).stand, Stand::Open);
    held.answered(bench.now);
    // A reload takes the model out: its series goes.
    let series = || {
        let (families, _) = bench.registry.gather();
        let family = families.iter().find(|family| family.name == STATE.0).unwrap();
        family.series.len()
    };
    assert_eq!(series(), 2);
    bench.breakers.declare(&[], bench.now);
    assert_eq!(series(), 1);
}

#[test]
fn there_is_a_bound_and_past_it_the_address_s_breaker_still_watches() {
    let mut bench = Bench::new();
    for n in 0..BREAKERS_MAX {
        bench.call(&format!("m{n}"), Some(Kind::UpstreamCut)).unwrap();
    }
    bench.break_it("one more", Kind::UpstreamCut);
    assert!(bench.call("one more", None).is_ok());
    assert_eq!(bench.breakers.list(bench.now).len(), BREAKERS_MAX + 1);
    bench.now += 20 * SECOND;
    bench.break_it("one more", Kind::UpstreamConnect);
    assert!(bench.call("one more", None).is_err());
    assert!(bench.breakers.limit.refused() > 0);
    bench.assert_nobody_out();
}

// === A week of an upstream's life ===

/// What an upstream does at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weather {
    Good,
    /// Cannot be reached.
    Away,
    /// Fails this percentage of calls.
    Failing(u64),
    /// Says nothing until the deadline.
    Stalled,
    /// Answers 429 with `Retry-After`.
    Limiting,
}

/// Repeatable chance: splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn weather(&mut self) -> Weather {
        match self.below(10) {
            0..4 => Weather::Good,
            4..6 => Weather::Away,
            6 | 7 => Weather::Failing(20 + self.below(80)),
            8 => Weather::Stalled,
            _ => Weather::Limiting,
        }
    }
}

/// A call that runs.
struct Running {
    ends: Instant,
    pass: Pass,
    permit: Permit,
    kind: Option<Kind>,
    leaves: bool,
    flows: bool,
}

/// By the end, the nearest first.
impl Ord for Running {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.ends.cmp(&self.ends)
    }
}

impl PartialOrd for Running {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Running {
    fn eq(&self, other: &Self) -> bool {
        self.ends == other.ends
    }
}

impl Eq for Running {}

/// A request in the bulkhead's queue.
struct Waiting {
    until: Instant,
    model: String,
    pass: Pass,
    _ticket: Ticket,
    granted: Receiver<Permit>,
}

struct Week {
    bench: Bench,
    permits: Arc<Permits>,
    chance: Chance,
    weather: Weather,
    running: BinaryHeap<Running>,
    waiting: Vec<Waiting>,
    /// Calls that reached an upstream that was away all the time.
    wasted: u64,
    good: u64,
}

impl Week {
    fn new(seed: u64) -> Self {
        Week {
            bench: Bench::new(),
            permits: Permits::new(Limit::detached(4), Limit::detached(6)),
            chance: Chance(seed),
            weather: Weather::Good,
            running: BinaryHeap::new(),
            waiting: Vec::new(),
            wasted: 0,
            good: 0,
        }
    }

    fn arrive(&mut self) {
        // Mostly one model; now and then a name that somebody made up.
        let model = match self.chance.below(10) {
            0..7 => "llama".to_owned(),
            7 | 8 => "qwen".to_owned(),
            _ => format!("guess-{}", self.chance.below(1000)),
        };
        let Ok(pass) = self.bench.breakers.admit(&model, self.bench.now) else { return };
        let (sender, granted) = bounded(1);
        let notify = move |permit| {
            let _ = sender.try_send(permit);
        };
        match self.permits.acquire_or_wait(notify) {
            Place::Granted(permit) => self.begin(pass, permit),
            Place::Queued(ticket) => {
                let until = self.bench.now + SECOND * 10;
                self.waiting.push(Waiting { until, model, pass, _ticket: ticket, granted });
            }
            Place::Full => {}
        }
    }

    fn begin(&mut self, mut pass: Pass, permit: Permit) {
        let now = self.bench.now;
        pass.begins(now);
        let (took, kind) = match self.weather {
            Weather::Good => (1 + self.chance.below(20), None),
            Weather::Away => (2, Some(Kind::UpstreamConnect)),
            Weather::Stalled => (120, Some(Kind::UpstreamTimeout(Phase::FirstToken))),
            Weather::Limiting => (1, Some(Kind::UpstreamRateLimited)),
            Weather::Failing(percent) if self.chance.below(100) < percent => {
                (self.chance.below(30), Some(Kind::UpstreamCut))
            }
            Weather::Failing(_) => (3, None),
        };
        self.wasted += u64::from(self.weather == Weather::Away);
        let leaves = self.chance.below(10) == 0;
        let took = if leaves { self.chance.below(took + 1) } else { took };
        let flows = matches!(kind, None | Some(Kind::UpstreamCut)) && self.chance.below(2) == 0;
        if flows {
            pass.flows(now);
        }
        let ends = now + Duration::from_secs(took);
        self.running.push(Running { ends, pass, permit, kind, leaves, flows });
    }

    fn end(&mut self, call: Running) {
        let Running { pass, permit, kind, leaves, flows, .. } = call;
        let now = self.bench.now;
        match kind {
            _ if leaves && flows => drop(pass),
            _ if leaves => pass.failed(&Error::new(Kind::ClientGone, "x"), true, now),
            None => {
                self.good += 1;
                pass.answered(now);
            }
            Some(kind) => {
                let wait = (kind == Kind::UpstreamRateLimited).then_some(SECOND * 5);
                pass.failed(&Error::new(kind, "x").retry_after(wait), true, now);
            }
        }
        drop(permit);
    }

    /// Those who wait: granted ones go on, late ones and some others leave.
    fn look_at_the_queue(&mut self) {
        let mut left = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            if let Ok(permit) = waiting.granted.try_recv() {
                // As an exchange does: only a probe keeps its pass.
                let pass = if waiting.pass.is_probe() {
                    Some(waiting.pass)
                } else {
                    drop(waiting.pass);
                    self.bench.breakers.admit(&waiting.model, self.bench.now).ok()
                };
                if let Some(pass) = pass {
                    self.begin(pass, permit);
                }
            } else if self.bench.now < waiting.until && self.chance.below(50) > 0 {
                left.push(waiting);
            }
        }
        self.waiting = left;
    }

    fn step(&mut self, time: Duration) {
        self.bench.now += time;
        while self.running.peek().is_some_and(|call| call.ends <= self.bench.now) {
            if let Some(call) = self.running.pop() {
                self.end(call);
            }
        }
        self.look_at_the_queue();
        self.bench.breakers.sweep(self.bench.now);
    }
}

#[test]
fn a_week_of_random_faults_and_clients_that_leave_keeps_nothing() {
    for seed in 0..2 {
        let mut week = Week::new(seed);
        let end = week.bench.now + Duration::from_secs(7 * 24 * 3600);
        let mut turn = week.bench.now;
        let mut away = Duration::ZERO;
        while week.bench.now < end {
            if week.bench.now >= turn {
                week.weather = week.chance.weather();
                turn = week.bench.now + Duration::from_secs(60 + week.chance.below(7200));
            }
            let gap = Duration::from_secs(1 + week.chance.below(10));
            away += if week.weather == Weather::Away { gap } else { Duration::ZERO };
            week.arrive();
            week.step(gap);
            assert!(week.permits.held() <= 4, "seed {seed}");
        }
        // An upstream that is away costs what opens the breaker, and a probe for each open time: 24 s,
        // 48 s, 96 s, 192 s and then 240 s at the shortest.
        let spells = 7.0 * 24.0 * 3600.0 / 60.0 * 0.2;
        let probes = away.as_secs_f64() / 240.0;
        assert!((week.wasted as f64) < probes + spells * 0.2, "seed {seed}: {}", week.wasted);
        assert!(week.good > 1000, "seed {seed}: {} answers", week.good);
        let most = week.bench.breakers.limit.high_water();
        assert!(most <= BREAKERS_MAX as u64, "seed {seed}: {most}");
        // The upstream is well again, and everybody goes home.
        week.weather = Weather::Good;
        for _ in 0..200 {
            week.step(SECOND * 5);
        }
        week.arrive();
        week.step(SECOND * 30);
        assert_eq!((week.running.len(), week.waiting.len()), (0, 0), "seed {seed}");
        assert_eq!((week.permits.held(), week.permits.waiting().now()), (0, 0), "seed {seed}");
        week.bench.assert_nobody_out();
        week.step(SECOND * 300);
        let left = week.bench.breakers.list(week.bench.now);
        assert_eq!(left.len(), 1, "seed {seed}: only that of the address is left: {left:?}");
    }
}
