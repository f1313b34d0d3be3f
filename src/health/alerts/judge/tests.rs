//! The built-in rules, and others, on things as they may be seen.

use super::super::input::{ChannelSeen, LimitSeen};
use super::*;
use crate::base::events::Event;
use crate::base::heartbeat::{Doing, Pulse};
use crate::config::parse;

fn rules(text: &str) -> Vec<Arc<Rule>> {
    parse(text, None, &|_| None).unwrap_or_else(|f| panic!("{f}")).config.alerts.rules
}

/// What is bad: rule and text.
fn bad(rules: &[Arc<Rule>], seen: &Seen) -> Vec<(String, String)> {
    let mut judge = Judge::new(&Registry::default());
    let all = judge.judge(rules, seen);
    let all = all.into_iter().flat_map(|(rule, readings)| {
        let bad = readings.into_iter().filter(|reading| reading.judged == Judged::Bad);
        bad.map(|reading| (rule.name.clone(), reading.text)).collect::<Vec<_>>()
    });
    all.collect()
}

fn names(found: &[(String, String)]) -> Vec<&str> {
    found.iter().map(|(rule, _)| rule.as_str()).collect()
}

fn limit(name: &str, now: u64, max: u64) -> LimitSeen {
    LimitSeen {
        name: name.into(),
        owner: String::new(),
        now,
        max,
        refused: 0,
        makes_room: name.starts_with("cache"),
    }
}

fn event(level: log::Level, kind: &'static str) -> Event {
    let at = std::time::SystemTime::UNIX_EPOCH;
    Event { number: 1, at, level, kind, subject: "x".into(), detail: "why".into() }
}

#[test]
fn limits_are_judged_but_for_those_that_make_room_and_those_with_rules_of_their_own() {
    let limits = vec![
        limit("server.queue_max", 95, 100),
        limit("server.waiting_max", 89, 100),
        limit("cache.entries_max", 100, 100),
        limit("overload.memory_max", 95, 100),
        limit("descriptors_max", 86, 100),
    ];
    let seen = Seen { at: At(1), limits, ..Seen::default() };
    let found = bad(&rules(""), &seen);
    assert_eq!(
        names(&found),
        ["memory_critical", "memory_high", "descriptors_high", "limit_exhausted"]
    );
    assert_eq!(found[3].1, "server.queue_max is at 95.0% (95 of 100)");
    // A rule that names one in full takes it whatever it is.
    let own = "[[alert]]\nname = \"c\"\nlimit = \"cache.entries_max\"\nthreshold = \"99%\"";
    assert!(names(&bad(&rules(own), &seen)).contains(&"c"));
}

#[test]
fn a_limit_that_refuses_is_used_up_however_much_of_it_there_is() {
    let (rules, mut judge) = (rules(""), Judge::new(&Registry::default()));
    let mut seen = Seen { at: At(1000), ..Seen::default() };
    seen.limits = vec![limit("server.bodies_total_max", 10, 100)];
    let is_bad = |readings: Vec<(Arc<Rule>, Vec<Reading>)>| {
        readings.iter().any(|(_, all)| all.iter().any(|r| r.judged == Judged::Bad))
    };
    assert!(!is_bad(judge.judge(&rules, &seen)));
    seen.limits[0].refused = 1;
    assert!(is_bad(judge.judge(&rules, &seen)));
}

#[test]
fn checks_are_judged_once_the_daemon_is_up_and_not_those_of_the_alerts() {
    let state = |text: &str| text.to_owned();
    let checks = vec![
        ("disk".to_owned(), State::Failed(state("gone"))),
        ("store".to_owned(), State::Degraded(state("full"))),
        ("alerts".to_owned(), State::Degraded(state("undelivered"))),
        ("new".to_owned(), State::Pending),
        ("other".to_owned(), State::Degraded(state("slow"))),
    ];
    let mut seen = Seen { at: At(1), ready: true, checks, ..Seen::default() };
    let found = bad(&rules(""), &seen);
    assert_eq!(names(&found), ["check_failed", "check_degraded", "store_degraded"]);
    assert_eq!(found[0].1, "disk has failed: gone");
    assert_eq!(found[1].1, "other is degraded: slow");
    seen.ready = false;
    assert!(bad(&rules(""), &seen).is_empty());
}

#[test]
fn events_of_the_level_error_are_alerts_and_others_where_they_are_named() {
    use log::Level::{Error, Info, Warn};
    let events = vec![
        event(Error, "disk_gone"),
        event(Error, "thread_stalled"),
        event(Warn, "breaker_opened"),
        event(Info, "reloaded"),
        event(Error, "alert_given_up"),
        event(Error, "config_rolled_back"),
        event(Warn, "config_refused"),
    ];
    let seen = Seen { at: At(1), events, ..Seen::default() };
    let found = bad(&rules(""), &seen);
    assert_eq!(names(&found), ["config_fault", "config_rolled_back", "error_event"]);
    assert_eq!(found[2].1, "disk_gone (x): why");
    let own = "[[alert]]\nname = \"b\"\nevent = \"breaker_opened | reloaded\"\nwindow = \"1h\"";
    let found = bad(&rules(own), &seen);
    assert_eq!(found.iter().filter(|(rule, _)| rule == "b").count(), 2);
}

#[test]
fn a_silent_thread_is_named_and_a_channel_that_fails_for_a_minute_too() {
    let pulse = |name: &str, silence: u64| Pulse {
        name: name.into(),
        essential: true,
        doing: Doing::Disk,
        silence: Some(Duration::from_secs(silence)),
        silence_max: Duration::from_secs(30),
        number: None,
    };
    let channel = |name: &str, since: u64| ChannelSeen {
        name: name.into(),
        failing_since: Some(At(since)),
        why: "answered 500".into(),
    };
    let seen = Seen {
        at: At(100_000),
        threads: vec![pulse("main", 31)],
        channels: vec![channel("phone", 30_000), channel("mail", 50_000)],
        ..Seen::default()
    };
    let found = bad(&rules(""), &seen);
    assert_eq!(names(&found), ["unresponsive", "notify_failing"]);
    assert_eq!(found[0].1, "main is blocked on the disk for 31 s (at most 30 s)");
    assert_eq!(found[1].1, "nothing gets through on phone: answered 500");
}

#[test]
fn figures_are_written_for_people() {
    let check = |value, unit, expected: &str| assert_eq!(figure_text(value, unit), expected);
    check(0.9512, Unit::Share, "95.1%");
    check(3600.4, Unit::Seconds, "1h");
    check(1.5, Unit::Seconds, "1.50 s");
    check(3.0 * 1024.0 * 1024.0, Unit::Bytes, "3.0 MiB");
    check(7.0, Unit::Number, "7");
    check(0.125, Unit::Number, "0.125");
}

#[test]
fn a_figure_between_its_thresholds_is_neither_good_nor_bad() {
    let when = When { above: true, threshold: 0.9, clear: 0.8, unit: Unit::Share };
    let all = [0.91, 0.9, 0.81, 0.8, f64::NAN].map(|value| judged(when, value));
    use Judged::{Bad, Between, Good, Unknown};
    assert_eq!(all, [Bad, Between, Between, Good, Unknown]);
    let below = When { above: false, threshold: 10.0, clear: 20.0, unit: Unit::Number };
    assert_eq!([9.0, 10.0, 20.0].map(|value| judged(below, value)), [Bad, Between, Good]);
}
