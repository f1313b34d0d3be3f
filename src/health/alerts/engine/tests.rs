//! The engine under virtual time: single lives of alerts, and days of random ones.

use std::collections::BTreeMap;

use super::*;
use crate::config::settings::alerts::{Severity, Source};

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

const TIMING: Timing = Timing {
    group_wait: Duration::from_secs(30),
    group_interval: Duration::from_secs(300),
    repeat: Duration::from_secs(4 * 3600),
    resolved: true,
};

fn rule(name: &str, hold: u64, muted_by: &[&str]) -> Arc<Rule> {
    Arc::new(Rule {
        name: name.to_owned(),
        source: Source::Threads,
        hold: Duration::from_millis(hold),
        severity: Severity::Warning,
        summary: format!("mend {name}"),
        labels: vec![("team".to_owned(), "ops".to_owned())],
        muted_by: muted_by.iter().map(|name| (*name).to_owned()).collect(),
        built_in: false,
    })
}

fn reading(thing: &str, judged: Judged) -> Reading {
    let subject = vec![("thing".to_owned(), thing.to_owned())];
    Reading { subject, judged, value: Some(1.0), text: format!("{thing} is bad"), until: None }
}

/// An engine with its time.
struct Run {
    engine: Engine,
    registry: Registry,
    now: u64,
}

impl Run {
    fn new(timing: Timing) -> Self {
        let registry = Registry::default();
        let engine = Engine::new(timing, &registry, At(0));
        // Past the grace of a start.
        Run { engine, registry, now: 10 * MINUTE }
    }

    /// One look at one thing of one rule.
    fn see(&mut self, rule: &Arc<Rule>, judged: Judged) -> Step {
        self.look(&[(Arc::clone(rule), vec![reading("a", judged)])])
    }

    fn look(&mut self, readings: &[(Arc<Rule>, Vec<Reading>)]) -> Step {
        self.engine.step(At(self.now), readings)
    }

    /// Looks every five seconds for so long; what was told, as (time since the start of this, firing).
    fn keep(&mut self, rule: &Arc<Rule>, judged: Judged, lasting: u64) -> Vec<(u64, bool)> {
        let (begin, mut told) = (self.now, Vec::new());
        while self.now < begin + lasting {
            for notice in self.see(rule, judged).notices {
                let since = (self.now - begin) / SECOND;
                told.extend(notice.items.iter().map(|item| (since, item.firing)));
            }
            self.now += 5 * SECOND;
        }
        told
    }
}

#[test]
fn an_alert_is_pending_then_fires_is_told_once_and_again_and_ends() {
    let (rule, mut run) = (rule("a", MINUTE, &[]), Run::new(TIMING));
    // Pending for a minute, then the wait of its group.
    assert_eq!(run.keep(&rule, Judged::Bad, 85 * SECOND), []);
    assert_eq!(run.engine.alerts()[0].state, State::Firing);
    assert_eq!(run.keep(&rule, Judged::Bad, HOUR), [(5, true)]);
    // What is between the thresholds goes on, and so does what nothing is known of.
    assert_eq!(run.keep(&rule, Judged::Between, HOUR), []);
    assert_eq!(run.keep(&rule, Judged::Unknown, HOUR), []);
    // Four hours after it was told.
    assert_eq!(run.keep(&rule, Judged::Bad, 2 * HOUR), [(HOUR / SECOND + 5, true)]);
    assert_eq!(run.keep(&rule, Judged::Good, HOUR), [(30, false)]);
    assert!(run.engine.alerts().is_empty());
    assert_eq!(run.engine.past().len(), 1);
}

#[test]
fn what_is_not_bad_for_long_enough_is_no_alert() {
    let (rule, mut run) = (rule("a", MINUTE, &[]), Run::new(TIMING));
    for _ in 0..20 {
        assert_eq!(run.keep(&rule, Judged::Bad, 55 * SECOND), []);
        assert_eq!(run.keep(&rule, Judged::Between, 5 * SECOND), [], "begins anew");
    }
    assert!(run.engine.alerts().is_empty() && run.engine.take_dirty().is_empty());
}

#[test]
fn one_that_is_over_before_it_is_told_is_told_all_the_same() {
    let (rule, mut run) = (rule("a", 0, &[]), Run::new(TIMING));
    assert_eq!(run.keep(&rule, Judged::Bad, 10 * SECOND), []);
    let step = run.keep(&rule, Judged::Good, HOUR);
    assert_eq!(step, [(20, false)], "30 s after it began");
    assert!(run.engine.alerts().is_empty());
}

#[test]
fn one_that_comes_and_goes_is_told_at_most_once_in_each_interval() {
    let (rule, mut run) = (rule("a", 0, &[]), Run::new(TIMING));
    let mut told = 0;
    for _ in 0..360 {
        told += run.keep(&rule, Judged::Bad, 10 * SECOND).len();
        told += run.keep(&rule, Judged::Good, 10 * SECOND).len();
    }
    // Two hours have 24 intervals.
    assert!((12..=25).contains(&told), "{told}");
}

#[test]
fn where_the_end_is_not_told_a_relapse_is_not_either_until_it_is_due_again() {
    let timing = Timing { resolved: false, ..TIMING };
    let (rule, mut run) = (rule("a", 0, &[]), Run::new(timing));
    let mut told = 0;
    for _ in 0..60 {
        told += run.keep(&rule, Judged::Bad, 2 * MINUTE).len();
        told += run.keep(&rule, Judged::Good, 2 * MINUTE).len();
    }
    assert_eq!(told, 1, "four hours");
    told += run.keep(&rule, Judged::Bad, 10 * MINUTE).len();
    assert_eq!(told, 2);
}

#[test]
fn alerts_of_one_rule_that_come_together_are_told_together() {
    let (rule, mut run) = (rule("a", 0, &[]), Run::new(TIMING));
    let things =
        |n: usize| (0..n).map(|n| reading(&n.to_string(), Judged::Bad)).collect::<Vec<_>>();
    let mut notices = Vec::new();
    for look in 0..200 {
        // A further one at each look.
        let step = run.look(&[(Arc::clone(&rule), things(look.min(40)))]);
        notices.extend(step.notices.into_iter().map(|notice| (run.now, notice.items.len())));
        run.now += 5 * SECOND;
    }
    let sizes: Vec<usize> = notices.iter().map(|(_, n)| *n).collect();
    assert_eq!(sizes, [7, 32, 1], "the first after 30 s, the rest after five minutes, 32 in one");
    assert_eq!(notices[1].0 - notices[0].0, 5 * MINUTE);
}

#[test]
fn a_muted_or_silenced_alert_is_shown_and_told_when_that_ends() {
    let (part, whole) = (rule("part", 0, &["whole"]), rule("whole", 0, &[]));
    let mut run = Run::new(TIMING);
    let both = |whole_is: Judged| {
        [
            (Arc::clone(&part), vec![reading("a", Judged::Bad)]),
            (Arc::clone(&whole), vec![reading("b", whole_is)]),
        ]
    };
    let told = |run: &mut Run, whole_is: Judged, lasting: u64| {
        let (end, mut rules) = (run.now + lasting, Vec::new());
        while run.now < end {
            rules.extend(run.look(&both(whole_is)).notices.into_iter().map(|notice| notice.rule));
            run.now += 5 * SECOND;
        }
        rules
    };
    assert_eq!(told(&mut run, Judged::Bad, HOUR), ["whole"]);
    assert_eq!(run.engine.alerts()[0].muted.as_deref(), Some("whole"));
    assert_eq!(told(&mut run, Judged::Good, HOUR), ["part", "whole"]);
    // A silence.
    run.engine.silence("thing=a", Duration::from_secs(7200), "known", At(run.now)).unwrap();
    assert!(run.engine.take_dirty().silences.len() == 1);
    let begun = run.now;
    assert_eq!(told(&mut run, Judged::Good, 2 * HOUR - MINUTE), [""; 0]);
    assert!(run.engine.alerts()[0].silenced.is_some());
    let again = told(&mut run, Judged::Good, 2 * HOUR);
    assert_eq!(again, ["part"], "four hours after it was told last: {}", run.now - begun);
    assert!(run.engine.silences().is_empty());
}

#[test]
fn silences_are_checked_bounded_and_ended() {
    let mut run = Run::new(TIMING);
    let hour = Duration::from_secs(3600);
    for (matching, lasting) in
        [("", hour), ("a,,b", hour), ("a", Duration::ZERO), ("a", SILENCE_MAX + hour)]
    {
        assert!(matches!(run.engine.silence(matching, lasting, "", At(0)), Err(Some(_))));
    }
    for n in 0..SILENCES_MAX {
        run.engine.silence(&format!("r{n}"), hour, "x", At(0)).unwrap();
    }
    assert_eq!(run.engine.silence("more", hour, "x", At(0)), Err(None));
    assert_eq!(run.engine.unsilence("r5"), 1);
    let id = run.engine.silences()[0].id.clone();
    assert_eq!((run.engine.unsilence(&id), run.engine.unsilence(&id)), (1, 0));
    let long = run.engine.silence("x", hour, &"é".repeat(400), At(0)).unwrap();
    assert_eq!(long.reason.len(), REASON_BYTES_MAX);
}

#[test]
fn an_event_lasts_for_its_window_and_each_one_renews_it() {
    let (rule, mut run) = (rule("event", 0, &[]), Run::new(TIMING));
    let mut told = Vec::new();
    for look in 0..1000 {
        // At the first look, and once more ten minutes later.
        let happened = look == 0 || look == 120;
        let until = Some(At(run.now + 15 * MINUTE));
        let reading = Reading { until, ..reading("a", Judged::Bad) };
        let readings = if happened { vec![reading] } else { Vec::new() };
        for notice in run.look(&[(Arc::clone(&rule), readings)]).notices {
            told.push((look * 5, notice.items[0].firing));
        }
        run.now += 5 * SECOND;
    }
    assert_eq!(told, [(30, true), (25 * 60 + 30, false)]);
}

#[test]
fn a_restart_neither_tells_again_nor_ends_what_is_not_seen_yet() {
    let (rule, mut run) = (rule("a", 0, &[]), Run::new(TIMING));
    assert_eq!(run.keep(&rule, Judged::Bad, HOUR).len(), 1);
    let kept: Vec<Alert> =
        run.engine.take_dirty().alerts.into_iter().filter_map(|(_, alert)| alert).collect();
    assert_eq!(kept.len(), 1);
    // As it goes to the disk and back.
    let text = serde_json::to_string(&kept).unwrap();
    let kept: Vec<Alert> = serde_json::from_str(&text).unwrap();
    let registry = Registry::default();
    let engine = Engine::new(TIMING, &registry, At(run.now));
    let mut next = Run { engine, registry, now: run.now };
    next.engine.restore(kept, Vec::new(), At(next.now));
    // Nothing is seen of it for a while, then it is.
    for _ in 0..5 {
        let step = next.look(&[(Arc::clone(&rule), Vec::new())]);
        assert_eq!(step, Step::default());
        next.now += 5 * SECOND;
    }
    assert_eq!(next.keep(&rule, Judged::Bad, HOUR), []);
    assert_eq!(next.keep(&rule, Judged::Good, HOUR), [(30, false)]);
}

#[test]
fn what_an_earlier_process_left_ends_when_nobody_sees_it_any_more() {
    let (rule, mut run) = (rule("a", 0, &[]), Run::new(TIMING));
    run.keep(&rule, Judged::Bad, HOUR);
    let kept = run.engine.alerts();
    let registry = Registry::default();
    // The clock was set back by a day meanwhile.
    let now = run.now - 24 * HOUR.min(run.now / 24);
    let engine = Engine::new(TIMING, &registry, At(now));
    let mut next = Run { engine, registry, now };
    next.engine.restore(kept, Vec::new(), At(now));
    let mut told = Vec::new();
    for _ in 0..200 {
        told.extend(next.look(&[(Arc::clone(&rule), Vec::new())]).notices);
        next.now += 5 * SECOND;
    }
    assert_eq!(told.len(), 1);
    assert!(!told[0].items[0].firing);
}

#[test]
fn alerts_are_bounded_and_the_next_one_is_seen_when_there_is_room() {
    let (rule, mut run) = (rule("a", 0, &[]), Run::new(TIMING));
    let things = |from: usize, to: usize| {
        (from..to).map(|n| reading(&n.to_string(), Judged::Bad)).collect::<Vec<_>>()
    };
    run.look(&[(Arc::clone(&rule), things(0, ACTIVE_MAX + 3))]);
    assert_eq!(run.engine.alerts().len(), ACTIVE_MAX);
    let limits = run.registry.limits();
    let limit = &limits.iter().find(|l| l.name == "alerts.active_max").unwrap().limit;
    assert_eq!((limit.now(), limit.refused()), (ACTIVE_MAX as u64, 3));
    // All of them end and are told; then there is room.
    for _ in 0..100 {
        run.now += 5 * SECOND;
        run.look(&[(Arc::clone(&rule), Vec::new())]);
    }
    assert!(run.engine.alerts().is_empty());
    run.look(&[(Arc::clone(&rule), things(ACTIVE_MAX, ACTIVE_MAX + 3))]);
    assert_eq!(run.engine.alerts().len(), 3);
}

/// Numbers that look random, from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % sides
    }

    fn one_of<T: Copy>(&mut self, these: &[T]) -> T {
        these[usize::try_from(self.roll(these.len() as u64)).unwrap()]
    }
}

/// What one thing of one rule is at, in a simulation.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// What was told last, and when.
    told: Option<(bool, u64)>,
    /// A change that was not told yet, since when.
    owed: Option<u64>,
}

/// Days of things that come and go at all paces, with restarts in between: nobody is told twice within
/// the repeat time unless it was over in between, and nothing is lost.
fn simulate(seed: u64, timing: Timing, days: u64) {
    const STEP: u64 = 30 * SECOND;
    let mut dice = Dice(seed);
    let rules: Vec<Arc<Rule>> =
        (0..4).map(|n| rule(&format!("r{n}"), n * 40 * SECOND, &[])).collect();
    let mut run = Run::new(timing);
    let mut moods = vec![(Judged::Good, 0u64); 12];
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let repeat = u64::try_from(timing.repeat.as_millis()).unwrap();
    let bound =
        u64::try_from((timing.group_wait + timing.group_interval).as_millis()).unwrap() + 2 * STEP;
    let mut kept: BTreeMap<String, Alert> = BTreeMap::new();
    let (mut told, end) = (0, run.now + days * 24 * HOUR);
    while run.now < end {
        for mood in &mut moods {
            if mood.1 <= run.now {
                let pace = dice.one_of(&[MINUTE, 10 * MINUTE, 3 * HOUR, 9 * HOUR]);
                let judged = [Judged::Good, Judged::Bad, Judged::Between, Judged::Unknown];
                *mood = (dice.one_of(&judged), run.now + dice.roll(pace));
            }
        }
        let readings: Vec<_> = rules
            .iter()
            .enumerate()
            .map(|(n, rule)| {
                let mine = moods.iter().enumerate().filter(|(at, _)| at % rules.len() == n);
                let read = mine.map(|(at, mood)| reading(&at.to_string(), mood.0)).collect();
                (Arc::clone(rule), read)
            })
            .collect();
        let step = run.look(&readings);
        for (print, alert) in run.engine.take_dirty().alerts {
            match alert {
                Some(alert) => drop(kept.insert(print, alert)),
                None => drop(kept.remove(&print)),
            }
        }
        for change in &step.changes {
            let one = seen.entry(change.alert.fingerprint.clone()).or_default();
            let firing = change.state == State::Firing;
            // A life that was not told is owed also when it is over.
            let differs = match one.told {
                Some((was, _)) => was != firing || !firing && one.owed.is_some(),
                None => firing || one.owed.is_some(),
            };
            // With ends that are not told, a relapse is not owed before its time.
            let due = match one.told {
                Some((_, at)) if !timing.resolved => firing && run.now - at >= repeat,
                _ if !timing.resolved => firing,
                _ => differs,
            };
            if firing || timing.resolved {
                one.owed = if due { one.owed.or(Some(run.now)) } else { None };
            }
        }
        for item in step.notices.iter().flat_map(|notice| &notice.items) {
            told += 1;
            let one = seen.entry(item.fingerprint.clone()).or_default();
            if let Some((was, at)) = one.told {
                let again = item.firing && was && run.now - at >= repeat;
                let ended = timing.resolved && item.firing != was;
                // A life that begins and ends between two notices is told as one that is over.
                let blip = !item.firing && !was && one.owed.is_some();
                let later = !timing.resolved && run.now - at >= repeat;
                assert!(again || ended || blip || later, "seed {seed}: told twice, at {}", run.now);
            }
            *one = Seen { told: Some((item.firing, run.now)), owed: None };
        }
        for (print, one) in &seen {
            let late = one.owed.is_some_and(|since| run.now - since > bound);
            assert!(!late, "seed {seed}: {print} was not told by {}", run.now);
        }
        if dice.roll(500) == 0 {
            // kill -9: what is on the disk is what there is. Pending ones begin again.
            let registry = Registry::default();
            let engine = Engine::new(timing, &registry, At(run.now));
            run = Run { engine, registry, now: run.now };
            run.engine.restore(kept.values().cloned().collect(), Vec::new(), At(run.now));
            // The wait of a group begins anew.
            seen.values_mut().for_each(|one| one.owed = one.owed.map(|_| run.now));
        }
        run.now += STEP;
    }
    assert!(told > 40, "seed {seed}: only {told}");
    assert!(run.engine.alerts().len() <= moods.len());
}

#[test]
fn over_days_nothing_is_told_twice_in_its_repeat_window_and_nothing_is_lost() {
    for seed in 0..4 {
        simulate(seed, TIMING, 3);
    }
    let other = Timing { resolved: false, ..TIMING };
    for seed in 100..102 {
        simulate(seed, other, 3);
    }
    let quick = Timing {
        group_wait: Duration::ZERO,
        group_interval: Duration::ZERO,
        repeat: Duration::from_secs(1800),
        resolved: true,
    };
    for seed in 200..202 {
        simulate(seed, quick, 1);
    }
}
