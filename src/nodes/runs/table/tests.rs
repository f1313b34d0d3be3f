use super::*;
use crate::base::clock;
use crate::base::metrics::{Limit, Registry};
use crate::net::service::Caller;
use crate::nodes::runs::turn::run_id;

fn table(runs: u64) -> Table {
    let sessions = Sessions::new(Limit::detached(3), Limit::detached(10_000));
    let bounds = Bounds {
        runs: Limit::detached(runs),
        kept: Limit::detached(2),
        waiting: Limit::detached(1),
    };
    Table::new(sessions, Subscriptions::new(&Registry::default()), bounds)
}

fn id(name: &str) -> RunId {
    run_id(None, name).unwrap()
}

fn turn(name: &str, session: &str) -> Turn {
    let caller = Caller { key: None, granted: false, peer: "127.0.0.1:0".parse().unwrap() };
    Turn {
        run: id(name),
        session: SessionId::parse(None, session, false).unwrap(),
        caller,
        text: format!("say {name}"),
        images: Vec::new(),
        model: None,
        system: None,
        timeout: None,
        interrupts: false,
    }
}

const LIMIT: Duration = Duration::from_secs(10);

/// Admits a turn; the word for what was done about it.
fn admit(table: &mut Table, turn: Turn, now: Instant) -> &'static str {
    match table.admit(turn, LIMIT, "m".to_owned(), now, 1) {
        Ok(Admitted::Begin) => "begin",
        Ok(Admitted::Queued) => "queued",
        Ok(Admitted::InFlight) => "in flight",
        Ok(Admitted::Known(_)) => "known",
        Err(refusal) => refusal.code.as_str(),
    }
}

fn said(text: &str) -> Vec<u8> {
    let delta = serde_json::json!({"choices": [{"index": 0, "delta": {"content": text}}]});
    format!("data: {delta}\n\n").into_bytes()
}

#[test]
fn runs_of_a_session_go_one_after_the_other_and_those_of_others_beside_them() {
    let (mut table, now) = (table(4), clock::now());
    assert_eq!(admit(&mut table, turn("a", "main"), now), "begin");
    assert_eq!(admit(&mut table, turn("b", "main"), now), "queued");
    assert_eq!(admit(&mut table, turn("c", "main"), now), "queued");
    assert_eq!(admit(&mut table, turn("a", "main"), now), "in flight");
    assert_eq!(admit(&mut table, turn("d", "trip"), now), "begin");
    assert_eq!(admit(&mut table, turn("e", "trip"), now), "UNAVAILABLE", "nodes.runs_max");
    assert!(table.compose(&id("a")).unwrap().before.is_empty());
    table.started(&id("a"), now, 2).unwrap();
    table.run_mut(&id("a")).unwrap().run.feed(200, &said("hello"), now);
    let finished = table.finish(&id("a"), Ended::Final, now, 3).unwrap();
    assert_eq!((&*finished.said.unwrap().1.text, finished.next), ("hello", Some(id("b"))));
    // The next one hears what was said.
    let composed = table.compose(&id("b")).unwrap();
    let texts: Vec<_> = composed.before.iter().map(|message| &*message.text).collect();
    assert_eq!(texts, ["say a", "hello"]);
    // One that never began says nothing, and the one behind it goes on.
    let finished = table.finish(&id("b"), Ended::Aborted { reason: "rpc" }, now, 4).unwrap();
    assert!(finished.said.is_none() && finished.next == Some(id("c")));
    assert_eq!(table.sessions.get(&turn("a", "main").session).unwrap().history.len(), 2);
    // What ran is known for a while; what never began may be asked for again.
    assert_eq!(admit(&mut table, turn("a", "main"), now + KEPT - LIMIT), "known");
    assert_eq!(admit(&mut table, turn("b", "main"), now), "queued");
    table.finish(&id("b"), Ended::Final, now, 4).unwrap();
    assert_eq!(admit(&mut table, turn("a", "main"), now + KEPT), "queued");
}

#[test]
fn a_message_that_is_too_large_to_wait_is_refused_and_one_that_interrupts_stops_the_other() {
    let (mut table, now) = (table(4), clock::now());
    assert_eq!(admit(&mut table, turn("a", "main"), now), "begin");
    let large = Turn { text: "x".repeat(10_001), ..turn("b", "main") };
    assert_eq!(admit(&mut table, large, now), "UNAVAILABLE");
    let pushy = Turn { interrupts: true, ..turn("c", "main") };
    assert_eq!(admit(&mut table, pushy, now), "queued");
    let stop = table.run(&id("a")).unwrap().stop.clone();
    assert_eq!(stop, Some(Ended::Aborted { reason: "interrupt" }));
}

#[test]
fn an_abort_of_a_session_ends_what_runs_and_what_waits() {
    let (mut table, now) = (table(4), clock::now());
    for name in ["a", "b", "c"] {
        admit(&mut table, turn(name, "main"), now);
    }
    let session = turn("a", "main").session;
    assert_eq!(table.stop_session(&session, "rpc"), [id("a"), id("b"), id("c")]);
    let mut queued = table.stopped_in_queue();
    queued.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(queued, [id("b"), id("c")]);
    // Whatever ends first, what is to end does not begin.
    let mut other = self::table(4);
    for name in ["a", "b", "c"] {
        admit(&mut other, turn(name, "main"), now);
    }
    other.stop(&id("b"), "rpc");
    let finished = other.finish(&id("a"), Ended::Final, now, 5).unwrap();
    assert_eq!((finished.next, other.stopped_in_queue()), (Some(id("c")), vec![id("b")]));
    for id in queued {
        let finished = table.finish(&id, Ended::Aborted { reason: "rpc" }, now, 5).unwrap();
        assert!(finished.next.is_none());
    }
    table.started(&id("a"), now, 2).unwrap();
    table.run_mut(&id("a")).unwrap().run.feed(200, &said("half"), now);
    let finished = table.finish(&id("a"), Ended::Aborted { reason: "rpc" }, now, 6).unwrap();
    assert_eq!(finished.said.unwrap().1.stop.as_deref(), Some("aborted"));
    assert!(table.sessions.get(&session).unwrap().idle());
}

#[test]
fn an_answer_to_what_was_reset_meanwhile_is_not_put_into_the_new_conversation() {
    let (mut table, now) = (table(4), clock::now());
    admit(&mut table, turn("a", "main"), now);
    table.compose(&id("a")).unwrap();
    table.started(&id("a"), now, 2).unwrap();
    table.run_mut(&id("a")).unwrap().run.feed(200, &said("late"), now);
    let session = turn("a", "main").session;
    table.sessions.get_mut(&session).unwrap().reset(3);
    let finished = table.finish(&id("a"), Ended::Final, now, 4).unwrap();
    assert!(finished.said.is_none());
    let session = table.sessions.get(&session).unwrap();
    assert!(session.history.is_empty() && session.idle());
}

#[test]
fn what_happened_is_told_with_the_next_turn_or_the_one_after_when_that_fails() {
    let (mut table, now) = (table(4), clock::now());
    let session = turn("a", "main").session;
    table.sessions.open(&session, 1).unwrap().tell("it rains");
    admit(&mut table, turn("a", "main"), now);
    let events = table.compose(&id("a")).unwrap().events;
    assert_eq!(events.len(), 1);
    table.sessions.get_mut(&session).unwrap().tell("it snows");
    table.untold(&session, events);
    table.finish(&id("a"), Ended::Final, now, 2).unwrap();
    admit(&mut table, turn("b", "main"), now);
    let events = table.compose(&id("b")).unwrap().events;
    assert_eq!(events.iter().map(|event| &**event).collect::<Vec<_>>(), ["it rains", "it snows"]);
}
