use super::*;
use crate::nodes::refusal::Code;

use crossbeam_channel::{Receiver, bounded};

struct Room {
    registry: Registry,
    all: Arc<Idempotency>,
    now: Instant,
}

impl Room {
    fn new(max: usize) -> Self {
        let registry = Registry::default();
        let kept = registry.limit("nodes.idempotency_max", "", max as u64, "");
        let all = Idempotency::of_requests(&registry, kept);
        Room { registry, all, now: clock::now() }
    }

    fn begin(&self, account: &str, key: &str) -> Result<Begun, Refusal> {
        self.waited(account, key).0
    }

    /// What began, and where an outcome comes that is waited for.
    fn waited(&self, account: &str, key: &str) -> (Result<Begun, Refusal>, Receiver<Outcome>) {
        let (tell, told) = bounded(1);
        let wait = || -> Waiter {
            Box::new(move |outcome: &Outcome| tell.try_send(outcome.clone()).unwrap())
        };
        let account: Arc<str> = account.into();
        (self.all.begin(Some(&account), "node.invoke", key, self.now, wait), told)
    }

    fn first(&self, account: &str, key: &str) -> Ticket {
        match self.begin(account, key) {
            Ok(Begun::First(ticket)) => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn known(&self, account: &str, key: &str) -> String {
        match self.begin(account, key) {
            Ok(Begun::Known(outcome)) => outcome.as_ref().as_ref().unwrap().clone(),
            other => panic!("{other:?}"),
        }
    }

    fn limit(&self, name: &str) -> (u64, u64) {
        let limits = self.registry.limits();
        let limit = &limits.iter().find(|limit| limit.name == name).unwrap().limit;
        (limit.now(), limit.refused())
    }
}

fn ok(text: &str) -> Outcome {
    Ok(text.to_owned())
}

#[test]
fn a_request_is_carried_out_once_and_its_outcome_given_again_to_its_own_account() {
    let room = Room::new(10);
    let ticket = room.first("a", "k");
    let (joined, told) = room.waited("a", "k");
    assert!(matches!(joined, Ok(Begun::Joined)));
    room.first("b", "k").end(&ok("[2]"));
    ticket.end(&ok("[1]"));
    assert_eq!(told.try_recv().unwrap().unwrap(), "[1]");
    assert_eq!((room.known("a", "k"), room.known("b", "k")), ("[1]".into(), "[2]".into()));
    assert_eq!(room.limit("nodes.idempotency_running_max").0, 0);
    assert_eq!(
        (room.limit("nodes.idempotency_max").0, room.limit("nodes.idempotency_bytes").0),
        (2, 6)
    );
}

#[test]
fn an_outcome_is_forgotten_after_its_time_and_its_bytes_with_it() {
    let mut room = Room::new(10);
    room.first("a", "k").end(&ok("[1]"));
    room.now += TTL - Duration::from_secs(1);
    assert_eq!(room.known("a", "k"), "[1]");
    room.now += Duration::from_secs(2);
    drop(room.first("a", "k"));
    room.all.forget(room.now);
    assert_eq!(
        (room.limit("nodes.idempotency_max").0, room.limit("nodes.idempotency_bytes").0),
        (0, 0)
    );
}

#[test]
fn what_may_be_tried_again_and_what_was_given_up_is_a_new_request() {
    let room = Room::new(10);
    let ticket = room.first("a", "k");
    let (_, told) = room.waited("a", "k");
    let later = Refusal::unavailable("later").retry(Duration::from_secs(1));
    ticket.end(&Err(later));
    assert_eq!(told.try_recv().unwrap().unwrap_err().code, Code::Unavailable);
    let ticket = room.first("a", "k");
    let (_, told) = room.waited("a", "k");
    drop(ticket);
    assert!(told.try_recv().is_err(), "there was no outcome");
    let ticket = room.first("a", "k");
    ticket.end(&Err(Refusal::invalid("no")));
    let begun = room.begin("a", "k");
    assert!(matches!(begun, Ok(Begun::Known(outcome)) if outcome.is_err()));
}

#[test]
fn who_joins_just_when_the_first_ends_is_answered_once() {
    let room = Room::new(10);
    let ticket = room.first("a", "k");
    let (tell, told) = bounded(2);
    let joined = room.all.begin(Some(&"a".into()), "node.invoke", "k", room.now, || {
        ticket.end(&ok("[1]"));
        Box::new(move |outcome: &Outcome| tell.try_send(outcome.clone()).unwrap())
    });
    assert!(matches!(joined, Ok(Begun::Joined)));
    assert_eq!((told.try_recv().unwrap().unwrap(), told.len()), ("[1]".into(), 0));
    let ticket = room.first("a", "given up");
    let joined = room.all.begin(Some(&"a".into()), "node.invoke", "given up", room.now, || {
        drop(ticket);
        Box::new(|_: &Outcome| panic!("there is no outcome"))
    });
    assert!(matches!(joined, Ok(Begun::Joined)));
    drop(room.first("a", "given up"));
}

#[test]
fn every_bound_is_met_with_what_it_says() {
    let room = Room::new(2);
    for wrong in ["", &"k".repeat(KEY_BYTES_MAX + 1)] {
        assert_eq!(room.begin("a", wrong).unwrap_err().code, Code::InvalidRequest);
    }
    let (one, two) = (room.first("a", "1"), room.first("a", "2"));
    let more: Vec<_> = (2..RUNNING_MAX).map(|n| room.first("b", &n.to_string())).collect();
    let full = room.begin("a", "3").unwrap_err();
    assert_eq!((full.code, full.retry_after.is_some()), (Code::Unavailable, true));
    assert_eq!(room.limit("nodes.idempotency_running_max"), (RUNNING_MAX as u64, 1));
    drop(more);
    let waiting: Vec<_> = (0..WAITERS_MAX).map(|_| room.waited("a", "1").1).collect();
    assert_eq!(room.begin("a", "1").unwrap_err().code, Code::Unavailable);
    one.end(&ok("[]"));
    assert!(waiting.iter().all(|told| told.try_recv().is_ok()));
    two.end(&ok("[]"));
    // The oldest outcome is forgotten.
    room.first("a", "3").end(&ok("[]"));
    assert_eq!(room.limit("nodes.idempotency_max"), (2, 1));
    drop(room.first("a", "1"));
    assert_eq!(room.known("a", "3"), "[]");
    // A reload lowers the bound.
    room.registry.limit("nodes.idempotency_max", "", 1, "");
    room.all.forget(room.now);
    assert_eq!(room.limit("nodes.idempotency_max").0, 1);
}

#[test]
fn a_large_answer_is_not_kept_and_a_repeat_is_told_so() {
    let room = Room::new(1000);
    room.first("a", "k").end(&ok(&"x".repeat(OUTCOME_BYTES_MAX + 1)));
    let given = room.begin("a", "k").unwrap_err();
    assert_eq!((given.code, given.retry_after), (Code::InvalidRequest, None));
    // Many that are just small enough fill what there is for all.
    let largest = "x".repeat(OUTCOME_BYTES_MAX);
    for n in 0..65 {
        room.first("a", &n.to_string()).end(&ok(&largest));
    }
    assert_eq!(room.limit("nodes.idempotency_bytes"), (OUTCOMES_BYTES_MAX, 1));
    assert_eq!(room.known("a", "63").len(), OUTCOME_BYTES_MAX);
    assert!(room.begin("a", "64").is_err());
}

#[test]
fn a_report_is_made_once_for_all_who_ask_and_given_again_for_half_a_minute() {
    let registry = Registry::default();
    let reports = Idempotency::of_reports(&registry);
    let (begun, now) = (clock::now(), clock::now() + REPORT_TTL + Duration::from_secs(1));
    let ask = |now| reports.begin(None, "usage.cost", "30", now, || Box::new(|_: &Outcome| {}));
    let Ok(Begun::First(ticket)) = ask(begun) else { panic!("not the first") };
    assert!(matches!(ask(begun), Ok(Begun::Joined)));
    ticket.end(&ok("{}"));
    assert!(matches!(ask(begun), Ok(Begun::Known(_))));
    let Ok(Begun::First(ticket)) = ask(now) else { panic!("still kept") };
    // One that is too large is no secret: it is made again.
    ticket.end(&ok(&"x".repeat(OUTCOME_BYTES_MAX + 1)));
    assert!(matches!(ask(now), Ok(Begun::First(_))));
    for n in 0..=REPORTS_MAX {
        let first = reports.begin(None, "usage.cost", &format!("k{n}"), begun, || unreachable!());
        let Ok(Begun::First(ticket)) = first else { panic!("{n}") };
        ticket.end(&ok("{}"));
    }
    let limits = registry.limits();
    let kept = &limits.iter().find(|limit| limit.name == "nodes.reports_max").unwrap().limit;
    assert_eq!((kept.now(), kept.refused()), (REPORTS_MAX as u64, 1));
}
