//! Days of virtual time.

use super::*;
use crate::base::clock;

const MIB: f64 = 1024.0 * 1024.0;
const RULES: Rules = Rules { per_hour: 10 * 1024 * 1024, per_day_percent: 50 };
const DAY_MINUTES: u64 = 24 * 60;

/// Samples of so many minutes; gives when warnings of memory began and ended, in minutes.
fn run(minutes: u64, memory: impl Fn(u64) -> f64) -> Vec<(u64, bool)> {
    watch(minutes, |minute| [Some(whole(memory(minute)).unsigned_abs()), Some(50), Some(20)])
        .into_iter()
        .map(|(minute, change)| {
            assert_eq!(change.measure, Measure::Memory, "{change:?}");
            (minute, change.grows)
        })
        .collect()
}

fn watch(minutes: u64, values: impl Fn(u64) -> Values) -> Vec<(u64, Change)> {
    let start = clock::now();
    let limits = [HOUR_SAMPLES_MAX, DAY_SAMPLES_MAX].map(|max| Limit::detached(max as u64));
    let mut growth = Growth::new(limits.clone(), start);
    let mut changes = Vec::new();
    for minute in 0..minutes {
        let now = start + Duration::from_secs(minute * 60);
        assert!(growth.due(now));
        for change in growth.sample(now, values(minute), RULES) {
            changes.push((minute, change));
        }
        assert!(!growth.due(now + Duration::from_secs(59)));
    }
    assert!(limits.iter().all(|limit| limit.now() <= limit.max()));
    changes
}

/// A number that looks random, from 0 to 1.
fn noise(minute: u64) -> f64 {
    let mixed = (minute + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mixed ^ (mixed >> 29)) >> 40) as f64 / (1u64 << 24) as f64
}

#[test]
fn a_leak_is_told_once_not_before_half_an_hour_of_samples_and_its_end_too() {
    // 30 MiB an hour for four hours, then a restart of whatever leaked.
    let leak = |minute: u64| match minute {
        0..240 => (100.0 + minute as f64 * 0.5 + 5.0 * noise(minute)) * MIB,
        _ => (100.0 + 5.0 * noise(minute)) * MIB,
    };
    let changes = run(DAY_MINUTES, leak);
    assert!(matches!(changes[..], [(40..45, true), (240..420, false)]), "{changes:?}");
}

#[test]
fn a_slow_leak_is_told_within_a_day() {
    // 3 MiB an hour: too little for the hour, 72 % in a day.
    let changes = run(DAY_MINUTES, |minute| (100.0 + minute as f64 * 0.05 + noise(minute)) * MIB);
    assert!(matches!(changes[..], [(900..1200, true)]), "{changes:?}");
}

#[test]
fn a_start_a_step_bursts_and_the_rhythm_of_days_are_no_leaks() {
    let start = |minute: u64| (20.0 + 60.0 * (1.0 - (-(minute as f64) / 3.0).exp())) * MIB;
    assert_eq!(run(DAY_MINUTES, start), [], "a start");
    let step = |minute: u64| if minute < 600 { 40.0 * MIB } else { 90.0 * MIB };
    assert_eq!(run(600 + 10, step), [], "a step");
    let bursts = |minute: u64| if minute.is_multiple_of(11) { 900.0 * MIB } else { 60.0 * MIB };
    assert_eq!(run(DAY_MINUTES, bursts), [], "bursts");
    let rhythm = |minute: u64| {
        let day = (minute as f64 / DAY_MINUTES as f64 * std::f64::consts::TAU).sin();
        (200.0 + 15.0 * day + 20.0 * noise(minute)) * MIB
    };
    assert_eq!(run(2 * DAY_MINUTES, rhythm), [], "two days");
}

#[test]
fn growth_around_the_bound_does_not_chatter() {
    // The slope swings between 80 % and 120 % of the bound, each for an hour and a half.
    let mut memory = vec![200.0];
    for minute in 0..24 * 60 {
        let slope = if (minute / 90) % 2 == 0 { 12.0 } else { 8.0 };
        memory.push(memory[minute] + slope / 60.0);
    }
    let changes = run(DAY_MINUTES, |minute| memory[usize::try_from(minute).unwrap()] * MIB);
    assert_eq!(changes.len(), 1, "{changes:?}");
}

#[test]
fn descriptors_and_threads_are_watched_and_what_is_not_known_is_not_judged() {
    let changes = watch(DAY_MINUTES, |minute| [None, Some(100 + minute / 5), Some(20)]);
    let (_, change) = &changes[0];
    assert_eq!((changes.len(), change.measure, change.grows), (1, Measure::Descriptors, true));
    assert!(change.day_percent > 50 && change.per_hour == 12, "{change}");
    let text = change.to_string();
    assert!(text.starts_with("now 1") && text.contains(", +12 an hour, +"), "{text}");
    let changes = watch(DAY_MINUTES, |minute| [None, Some(100), Some(9 + minute / 60)]);
    assert_eq!(changes, [], "24 threads more are few");
}
