//! Calls under virtual time.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::base::clock;

/// The connection that an asker came by (0: none), and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Who(u64, u32);

impl Asker for Who {
    fn connection(&self) -> Option<u64> {
        (self.0 > 0).then_some(self.0)
    }
}

struct Room {
    calls: Calls<Who, u32>,
    now: Instant,
    bounds: Bounds,
}

const TIMEOUT: Duration = Duration::from_secs(30);

impl Room {
    fn new(calls: u64) -> Self {
        let calls = Limit::detached(calls);
        let bounds = Bounds { calls, each: Limit::detached(EACH_MAX as u64) };
        Room { calls: Calls::new(bounds.clone()), now: clock::now(), bounds }
    }

    /// A call of the node behind a connection; the ticket is the asker's number.
    fn begin(&mut self, id: &str, connection: u64, who: Who) -> Result<(), Why> {
        let ask = Ask {
            id: id.into(),
            node: "phone".into(),
            connection,
            command: "camera.snap".into(),
            later: None,
            deadline: self.now + TIMEOUT,
        };
        self.calls.begin(ask, who, who.1, self.now).map_err(|refused| {
            assert_eq!((refused.1, refused.2), (who, who.1), "it is given back");
            refused.0
        })
    }

    fn pass(&mut self, time: Duration) -> Vec<Ended<Who, u32>> {
        self.now += time;
        self.calls.expired(self.now)
    }
}

fn told(answered: Answered<Who, u32>) -> Option<Who> {
    match answered {
        Answered::Done(ended) => ended.asker,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_connection_that_was_asked_can_answer_and_only_once() {
    let mut room = Room::new(8);
    room.begin("1", 100, Who(1, 1)).unwrap();
    assert!(matches!(room.calls.answer("1", 101), Answered::NotYours));
    assert!(!room.calls.under_way("1", 101));
    assert!(room.calls.under_way("1", 100));
    assert_eq!(told(room.calls.answer("1", 100)), Some(Who(1, 1)));
    assert!(matches!(room.calls.answer("1", 100), Answered::Late));
}

#[test]
fn a_call_ends_in_time_and_a_late_answer_is_nobody_s() {
    let mut room = Room::new(8);
    room.begin("1", 100, Who(1, 1)).unwrap();
    assert_eq!(room.calls.next(), Some(room.now + TIMEOUT));
    assert!(room.pass(TIMEOUT - Duration::from_millis(1)).is_empty());
    let ended = room.pass(Duration::from_millis(1));
    assert_eq!((ended.len(), ended[0].asker), (1, Some(Who(1, 1))));
    assert!(matches!(room.calls.answer("1", 100), Answered::Late));
    assert_eq!(room.calls.next(), None);
}

#[test]
fn a_node_that_goes_takes_its_calls_along_and_nobody_else_s() {
    let mut room = Room::new(8);
    room.begin("1", 100, Who(1, 1)).unwrap();
    room.begin("2", 200, Who(1, 2)).unwrap();
    let (ended, left) = room.calls.gone(100);
    assert_eq!((ended.len(), ended[0].asker, left.len()), (1, Some(Who(1, 1)), 0));
    assert_eq!(room.calls.len(), 1);
    assert!(room.calls.gone(100).0.is_empty(), "twice");
}

#[test]
fn a_call_goes_on_when_who_asked_has_left() {
    let mut room = Room::new(8);
    room.begin("1", 100, Who(1, 1)).unwrap();
    room.begin("2", 100, Who(0, 2)).unwrap();
    let (ended, left) = room.calls.gone(1);
    assert_eq!((ended.len(), left), (0, vec![Who(1, 1)]));
    match room.calls.answer("1", 100) {
        Answered::Done(ended) => assert_eq!((ended.asker, ended.ticket), (None, 1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(told(room.calls.answer("2", 100)), Some(Who(0, 2)), "no connection's");
}

#[test]
fn calls_are_bounded_together_and_for_each() {
    let mut room = Room::new(EACH_MAX as u64 + 1);
    for number in 0..EACH_MAX {
        room.begin(&format!("i{number}"), 100, Who(1, 1)).unwrap();
    }
    assert_eq!(room.begin("x", 100, Who(1, 2)), Err(Why::TooManyOfOne));
    room.begin("y", 100, Who(2, 1)).unwrap();
    assert_eq!(room.begin("z", 100, Who(3, 1)), Err(Why::Full));
    assert_eq!((room.bounds.calls.refused(), room.bounds.each.refused()), (1, 1));
    assert_eq!(room.calls.all().len(), EACH_MAX + 1);
    assert_eq!(room.bounds.calls.now(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Begin { connection: u64, who: u64 },
    Answer { call: u8, connection: u64 },
    Gone(u64),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (100..103_u64, 0..5_u64).prop_map(|(connection, who)| Step::Begin { connection, who }),
        3 => (any::<u8>(), 99..104_u64).prop_map(|(call, connection)| Step::Answer { call, connection }),
        1 => prop_oneof![1..5_u64, 100..103_u64].prop_map(Step::Gone),
        2 => (0..40_u64).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Nobody waits for ever, nobody is told twice, nothing is left over.
    #[test]
    fn each_asker_and_each_ticket_is_given_back_once(
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let mut room = Room::new(6);
        let (mut waiting, mut tickets) = (BTreeSet::new(), BTreeSet::new());
        let (mut ids, mut number) = (Vec::<(String, u64)>::new(), 0);
        for step in steps {
            let (mut ended, mut left) = (Vec::new(), Vec::new());
            match step {
                Step::Begin { connection, who } => {
                    number += 1;
                    let (id, who) = (format!("i{number}"), Who(who, number));
                    if room.begin(&id, connection, who).is_ok() {
                        ids.push((id, connection));
                        waiting.insert(who);
                        tickets.insert(number);
                    }
                }
                Step::Answer { call, connection } if !ids.is_empty() => {
                    let (id, asked) = &ids[usize::from(call) % ids.len()];
                    if let Answered::Done(done) = room.calls.answer(id, connection) {
                        prop_assert_eq!(connection, *asked);
                        ended.push(*done);
                    }
                }
                Step::Answer { .. } => {}
                Step::Gone(connection) => (ended, left) = room.calls.gone(connection),
                Step::Pass(seconds) => {
                    ended = room.pass(Duration::from_secs(seconds));
                    prop_assert!(room.calls.next().is_none_or(|next| next > room.now));
                }
            }
            for over in &ended {
                prop_assert!(tickets.remove(&over.ticket), "ticket {} twice", over.ticket);
            }
            left.extend(ended.into_iter().filter_map(|over| over.asker));
            for who in left {
                prop_assert!(waiting.remove(&who), "{who:?} was told twice");
            }
            prop_assert_eq!(room.calls.len(), tickets.len());
            prop_assert!(room.calls.len() <= 6);
        }
        for over in room.pass(TIMEOUT) {
            tickets.remove(&over.ticket);
            over.asker.inspect(|who| assert!(waiting.remove(who)));
        }
        prop_assert!(waiting.is_empty() && tickets.is_empty(), "{waiting:?} {tickets:?} for ever");
        prop_assert!(room.calls.is_empty());
        prop_assert_eq!(room.bounds.calls.now(), 0);
    }
}
