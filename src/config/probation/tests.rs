//! Probation under virtual time.

use proptest::prelude::*;

use super::*;
use crate::base::clock;

const WINDOW: Duration = Duration::from_secs(60);

/// A gateway that is looked at each second.
struct Simulation {
    machine: Probation,
    now: Instant,
    seen: Sample,
}

impl Simulation {
    fn new() -> Self {
        let seen = Sample { ready: true, ..Sample::default() };
        Simulation { machine: Probation::default(), now: clock::now(), seen }
    }

    /// A second with these requests and failures.
    fn second(&mut self, requests: u64, failures: u64) -> Verdict {
        self.now += Duration::from_secs(1);
        self.seen.requests += requests;
        self.seen.failures += failures;
        self.machine.step(self.now, self.seen)
    }

    fn begin(&mut self) {
        self.machine.begin(self.now, WINDOW, self.seen);
    }

    /// Seconds of the same kind until there is a verdict.
    fn until(&mut self, requests: u64, failures: u64) -> (u64, Verdict) {
        for second in 1..1000 {
            match self.second(requests, failures) {
                Verdict::Wait => {}
                verdict => return (second, verdict),
            }
        }
        panic!("no verdict");
    }
}

#[test]
fn what_stays_well_is_good_after_the_window_and_not_before() {
    for requests in [0, 1, 100] {
        let mut s = Simulation::new();
        s.begin();
        assert_eq!(s.until(requests, 0), (60, Verdict::Good));
    }
}

#[test]
fn what_happens_while_requests_are_refused_by_order_says_nothing() {
    let mut s = Simulation::new();
    s.begin();
    for _ in 0..10 {
        assert_eq!(s.second(1, 0), Verdict::Wait);
    }
    // Drained for longer than the whole window, and every request of that time refused.
    for _ in 0..300 {
        s.now += Duration::from_secs(1);
        s.seen =
            Sample { requests: s.seen.requests + 9, failures: s.seen.failures + 9, ready: false };
        s.machine.pass_over(s.seen, Duration::from_secs(1));
    }
    s.seen.ready = true;
    assert_eq!(s.until(1, 0), (50, Verdict::Good), "the rest of its window");
    // Before the next one, too.
    s.machine.end();
    s.seen =
        Sample { requests: s.seen.requests + 900, failures: s.seen.failures + 900, ready: true };
    s.machine.pass_over(s.seen, Duration::from_secs(1));
    s.begin();
    assert!(matches!(s.until(5, 5), (_, Verdict::Bad(_))), "nothing failed before it");
}

#[test]
fn when_every_request_fails_it_is_bad_as_soon_as_that_means_something() {
    let mut s = Simulation::new();
    for _ in 0..200 {
        s.second(10, 0);
    }
    s.begin();
    let errors = Cause::Errors { percent: 100, requests: 10, before: 0 };
    assert_eq!(s.until(10, 10), (1, Verdict::Bad(errors)));
    assert_eq!(errors.to_string(), "100 % of 10 requests failed, 0 % before it");
    // Few requests: at the fifth, or at the end.
    let mut s = Simulation::new();
    s.begin();
    assert_eq!(s.until(1, 1).0, 5);
    let mut s = Simulation::new();
    s.begin();
    s.second(2, 2);
    let (seconds, verdict) = s.until(0, 0);
    assert!(seconds == 59 && matches!(verdict, Verdict::Bad(Cause::Errors { .. })), "{verdict:?}");
    let mut s = Simulation::new();
    s.begin();
    s.second(1, 1);
    assert_eq!(s.until(0, 0).1, Verdict::Good, "one request shows nothing");
}

#[test]
fn what_failed_before_is_not_blamed_on_it() {
    let mut s = Simulation::new();
    for _ in 0..100 {
        s.second(10, 8);
    }
    s.begin();
    assert_eq!(s.until(10, 10), (60, Verdict::Good));
    // What was long ago is no measure: the last minute was well.
    let mut s = Simulation::new();
    for _ in 0..100 {
        s.second(10, 10);
    }
    for _ in 0..61 {
        s.second(10, 0);
    }
    s.begin();
    assert!(matches!(s.until(10, 10).1, Verdict::Bad(_)));
}

#[test]
fn a_second_one_in_a_row_is_compared_with_what_was_before_the_first() {
    let mut s = Simulation::new();
    for _ in 0..100 {
        s.second(1, 0);
    }
    s.begin();
    assert_eq!(s.second(4, 4), Verdict::Wait);
    s.begin();
    let (seconds, verdict) = s.until(1, 1);
    assert!(seconds == 5 && matches!(verdict, Verdict::Bad(_)), "{seconds} {verdict:?}");
}

#[test]
fn not_ready_for_ten_seconds_is_bad_unless_it_never_was() {
    let mut s = Simulation::new();
    s.begin();
    s.second(0, 0);
    s.seen.ready = false;
    assert_eq!(s.until(0, 0), (11, Verdict::Bad(Cause::Unready { seconds: 10 })));
    let mut s = Simulation::new();
    s.begin();
    for _ in 0..20 {
        s.seen.ready = false;
        for _ in 0..2 {
            assert_eq!(s.second(0, 0), Verdict::Wait);
        }
        s.seen.ready = true;
        assert_eq!(s.second(0, 0) == Verdict::Good, s.now >= s.machine.trial.unwrap().until);
    }
    let mut s = Simulation::new();
    s.seen.ready = false;
    s.begin();
    assert_eq!(s.until(0, 0).1, Verdict::Good, "it was not ready before either");
}

proptest! {
    #[test]
    fn there_is_always_a_verdict_and_never_a_bad_one_without_failures(
        before in proptest::collection::vec((0_u64..50, 0_u64..50), 0..100),
        after in proptest::collection::vec(0_u64..50, 61),
    ) {
        let mut s = Simulation::new();
        for (requests, failures) in before {
            s.second(requests, failures.min(requests));
        }
        s.begin();
        let verdicts: Vec<_> = after.into_iter().map(|requests| s.second(requests, 0)).collect();
        prop_assert!(verdicts.iter().all(|v| !matches!(v, Verdict::Bad(_))));
        prop_assert_eq!(verdicts[59], Verdict::Good);
    }
}
