use std::sync::Arc;

use super::*;
use crate::base::events::Events;
use crate::base::metrics::Registry;
use crate::config::settings::Store as Settings;
use crate::store::Store;
use crate::store::tests::{eventually, open_with, soon};

fn event(number: u64, kind: &'static str, level: Level) -> Event {
    let at = UNIX_EPOCH + Duration::from_secs(number);
    Event { number, at, level, kind, subject: "s".into(), detail: "d".repeat(36) }
}

#[test]
fn a_flood_of_one_kind_is_thinned_out_and_counted_and_errors_pass() {
    let mut sieve = Sieve::default();
    let now = clock::now();
    let flood: Vec<Event> = (1..=100).map(|n| event(n, "flood", Level::Warn)).collect();
    assert_eq!(sieve.take(flood, now).len(), 64);
    assert_eq!(sieve.take(vec![event(101, "other", Level::Warn)], now).len(), 1);
    let error = sieve.take(vec![event(102, "flood", Level::Error)], now);
    assert_eq!((error.len(), error[0].left_out), (1, 36));
    assert_eq!(sieve.take(vec![event(103, "flood", Level::Warn)], now).len(), 0);
    let later = now + 2 * KIND_INTERVAL;
    let more: Vec<Event> = (104..=110).map(|n| event(n, "flood", Level::Warn)).collect();
    let kept = sieve.take(more, later);
    assert_eq!((kept.len(), kept[0].left_out, kept[1].left_out), (2, 1, 0));
    assert_eq!(sieve.last(), 110);
}

fn told(store: &Store, question: Question) -> Vec<String> {
    let told = list(store.durable(), soon(), &question).unwrap();
    told.into_iter().map(|told| told.kind + &told.detail).collect()
}

fn any() -> Question {
    Question { limit: 100, ..Question::default() }
}

#[test]
fn events_are_kept_and_found_by_time_kind_and_level() {
    let sandbox = tempfile::tempdir().unwrap();
    let (store, tools) = open_with(sandbox.path());
    let before = now_ms();
    tools.events.record(Level::Info, "one", "a", "1".into());
    tools.events.record(Level::Warn, "two", "b", "2".into());
    tools.events.record(Level::Error, "one", "c", "3".into());
    eventually("kept", || told(&store, any()).len() == 3);
    assert_eq!(told(&store, any()), ["one1", "two2", "one3"]);
    let kind = Some("one".to_owned());
    assert_eq!(told(&store, Question { kind, ..any() }), ["one1", "one3"]);
    let level = Some(Level::Warn);
    assert_eq!(told(&store, Question { level, ..any() }), ["two2", "one3"]);
    assert_eq!(told(&store, Question { limit: 1, ..any() }), ["one3"], "the newest");
    let since_ms = Some(before - 1);
    assert_eq!(told(&store, Question { since_ms, ..any() }).len(), 3);
    let since_ms = Some(now_ms() + 60_000);
    assert_eq!(told(&store, Question { since_ms, ..any() }).len(), 0);
    tools.events.record(Level::Info, "last", "", "words".into());
    assert!(store.stop(soon()));
    let (store, _) = open_with(sandbox.path());
    eventually("after a restart", || told(&store, any()).len() >= 4);
    assert_eq!(told(&store, any())[3], "lastwords");
}

#[test]
fn what_is_too_old_or_too_much_is_deleted_oldest_first() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(SCHEMA).unwrap();
    let events: Vec<Event> = (1..=100).map(|n| event(n, "tried", Level::Info)).collect();
    let mut sieve = Sieve::default();
    let mut kept = sieve.take(events, clock::now());
    // The sieve is not what is tried here.
    let all: Vec<Kept> = kept.drain(..50).collect();
    insert(&connection, &all[..20]).unwrap();
    insert(&connection, &all[20..]).unwrap();
    let ids = || -> Vec<i64> {
        let mut statement = connection.prepare("SELECT id FROM events ORDER BY id").unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    assert_eq!(ids().len(), 50);
    let events_keep = Duration::from_secs(40);
    let mut settings = Settings { events_keep, ..Settings::default() };
    assert_eq!(retain(&connection, &terms(&settings, false)).unwrap(), 10, "older than 40 s");
    assert_eq!(ids()[0], 11);
    // An event of these has 5 + 1 + 36 + 64 bytes.
    settings.events_max = 106 * 10;
    assert_eq!(retain(&connection, &terms(&settings, false)).unwrap(), 30);
    assert_eq!(ids(), (41..=50).collect::<Vec<i64>>());
    assert_eq!(bytes(&connection).unwrap(), 106 * 9, "all but the first");
    assert_eq!(retain(&connection, &terms(&settings, false)).unwrap(), 0);
    assert_eq!(retain(&connection, &terms(&settings, true)).unwrap(), 10, "whatever the age");
}

fn terms(settings: &Settings, force: bool) -> Terms<'_> {
    Terms { now_ms: 51_000, settings, force }
}

#[test]
fn an_event_in_memory_is_asked_for_in_the_same_way() {
    let registry = Arc::new(Registry::default());
    let events = Events::new(registry);
    events.record(Level::Warn, "one", "", String::new());
    let event = &events.recent()[0];
    let check = |question: Question, expected: bool| {
        assert_eq!(question.is_about(event), expected, "{question:?}");
    };
    check(any(), true);
    check(Question { kind: Some("two".into()), ..any() }, false);
    check(Question { level: Some(Level::Error), ..any() }, false);
    check(Question { level: Some(Level::Info), ..any() }, true);
    check(Question { since_ms: Some(now_ms() + 60_000), ..any() }, false);
}
