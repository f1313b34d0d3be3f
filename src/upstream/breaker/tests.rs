use proptest::prelude::*;

use super::*;
use crate::base::clock;

const SECOND: Duration = Duration::from_secs(1);
const QUICK: Duration = Duration::from_millis(5);

/// A breaker and its own time.
struct Bench {
    breaker: Breaker,
    now: Instant,
}

impl Bench {
    fn new(rules: Rules) -> Self {
        let now = clock::now();
        Bench { breaker: Breaker::new(rules, 7, now), now }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn admit(&mut self) -> Result<Ticket, Refused> {
        self.breaker.admit(self.now).0
    }

    fn call(&mut self, verdict: Verdict) -> Option<Change> {
        let ticket = self.admit().expect("it lets calls pass");
        self.breaker.settle(ticket, verdict, self.now)
    }

    /// Fails until it opens; gives the number of failures.
    fn break_it(&mut self) -> u32 {
        let mut failures = 0;
        while self.breaker.stand() != Stand::Open {
            self.call(Verdict::Failed);
            failures += 1;
        }
        failures
    }

    fn until_probe(&mut self) -> Duration {
        let until = self.breaker.next_try(self.now).expect("it is open");
        let wait = until - self.now;
        self.now = until;
        wait
    }
}

#[test]
fn five_failures_in_a_row_open_a_quiet_one() {
    let mut bench = Bench::new(Rules::default());
    for _ in 0..4 {
        bench.wait(60 * SECOND);
        assert_eq!(bench.call(Verdict::Failed), None);
    }
    bench.call(Verdict::Good(QUICK));
    for _ in 0..4 {
        bench.wait(60 * SECOND);
        assert_eq!(bench.call(Verdict::Failed), None, "a good one begins the row anew");
    }
    let opened = Change { from: Stand::Closed, to: Stand::Open };
    assert_eq!(bench.call(Verdict::Failed), Some(opened));
    assert!(matches!(bench.admit(), Err(Refused { why: Why::Open, until: Some(_) })));
}

#[test]
fn a_busy_one_opens_by_the_rate_and_not_by_a_row_of_chance() {
    let mut bench = Bench::new(Rules::default());
    for _ in 0..20 {
        bench.call(Verdict::Good(QUICK));
    }
    for failures in 1..=19 {
        assert_eq!(bench.call(Verdict::Failed), None, "{failures} of {}", 20 + failures);
    }
    assert!(bench.call(Verdict::Failed).is_some(), "20 of 40 are half");
}

#[test]
fn a_quarter_of_failures_never_opens_a_busy_one() {
    let mut bench = Bench::new(Rules::default());
    // Even in the worst order, all failures of each hundred in a row.
    for round in 0..50 {
        for call in 0..100 {
            bench.wait(Duration::from_millis(1));
            let verdict = if call < 75 { Verdict::Good(QUICK) } else { Verdict::Failed };
            assert_eq!(bench.call(verdict), None, "call {call} of round {round}");
        }
    }
}

#[test]
fn what_is_no_failure_never_opens_it() {
    for verdict in [Verdict::Alive, Verdict::Nothing, Verdict::Good(QUICK)] {
        let mut bench = Bench::new(Rules::default());
        for _ in 0..1000 {
            assert_eq!(bench.call(verdict), None, "{verdict:?}");
        }
    }
}

#[test]
fn a_good_probe_closes_it_and_a_bad_one_doubles_the_time() {
    let mut bench = Bench::new(Rules::default());
    bench.break_it();
    let mut base = 30.0;
    for _ in 0..8 {
        let wait = bench.until_probe().as_secs_f64();
        assert!(wait >= base * 0.8 && wait <= (base * 1.2).min(300.0), "{wait} for {base}");
        let probe = bench.admit().unwrap();
        assert!(probe.is_probe());
        assert!(matches!(bench.admit(), Err(Refused { why: Why::Probing, .. })), "one at a time");
        let change = bench.breaker.settle(probe, Verdict::Failed, bench.now);
        assert_eq!(change, Some(Change { from: Stand::HalfOpen, to: Stand::Open }));
        base = (base * 2.0).min(300.0);
    }
    bench.until_probe();
    let closed = Change { from: Stand::HalfOpen, to: Stand::Closed };
    assert_eq!(bench.call(Verdict::Alive), Some(closed), "a refusal shows it alive");
    bench.break_it();
    assert!(bench.until_probe() <= 36 * SECOND, "closed, it begins with the first time again");
}

#[test]
fn a_probe_whose_client_leaves_gives_its_place_back_without_a_verdict() {
    let mut bench = Bench::new(Rules::default());
    bench.break_it();
    bench.until_probe();
    for _ in 0..100 {
        let probe = bench.admit().unwrap();
        assert!(probe.is_probe());
        assert_eq!(bench.breaker.settle(probe, Verdict::Nothing, bench.now), None);
        assert_eq!((bench.breaker.stand(), bench.breaker.probing()), (Stand::HalfOpen, 0));
    }
}

#[test]
fn a_probe_that_flows_long_enough_lets_everybody_in_and_one_that_breaks_before_does_not() {
    let mut bench = Bench::new(Rules::default());
    bench.break_it();
    bench.until_probe();
    let mut probe = bench.admit().unwrap();
    bench.breaker.flows(&mut probe, bench.now);
    bench.wait(PROVED_AFTER - QUICK);
    assert!(bench.admit().is_err());
    assert!(bench.breaker.settle(probe, Verdict::Failed, bench.now).is_some());
    bench.until_probe();
    let mut probe = bench.admit().unwrap();
    bench.breaker.flows(&mut probe, bench.now);
    bench.wait(PROVED_AFTER);
    let (admitted, change) = bench.breaker.admit(bench.now);
    assert_eq!(change, Some(Change { from: Stand::HalfOpen, to: Stand::Closed }));
    assert_eq!(bench.breaker.settle(admitted.unwrap(), Verdict::Good(QUICK), bench.now), None);
    // Its end is one call of many now; no: it belongs to a time that is over.
    assert_eq!(bench.breaker.settle(probe, Verdict::Failed, bench.now), None);
    assert_eq!((bench.breaker.failures(), bench.breaker.out()), (0, 0));
}

#[test]
fn a_probe_that_takes_minutes_keeps_nobody_out_for_longer_than_an_open_interval() {
    let mut bench = Bench::new(Rules::default());
    bench.break_it();
    bench.until_probe();
    let slow = bench.admit().unwrap();
    bench.wait(Rules::default().open_time - QUICK);
    assert!(bench.admit().is_err());
    bench.wait(QUICK);
    let second = bench.admit().unwrap();
    assert!(second.is_probe() && bench.admit().is_err(), "one more, not all");
    assert!(bench.breaker.settle(second, Verdict::Good(QUICK), bench.now).is_some());
    assert_eq!(bench.breaker.stand(), Stand::Closed);
    assert_eq!(bench.breaker.settle(slow, Verdict::Failed, bench.now), None);
    assert_eq!((bench.breaker.failures(), bench.breaker.out()), (0, 0));
}

#[test]
fn a_flowing_probe_whose_client_leaves_proves_nothing_later() {
    let mut bench = Bench::new(Rules::default());
    bench.break_it();
    bench.until_probe();
    let mut probe = bench.admit().unwrap();
    bench.breaker.flows(&mut probe, bench.now);
    bench.breaker.settle(probe, Verdict::Nothing, bench.now);
    bench.wait(PROVED_AFTER);
    assert!(bench.admit().unwrap().is_probe());
    assert_eq!(bench.breaker.stand(), Stand::HalfOpen);
}

#[test]
fn calls_of_an_earlier_time_change_nothing() {
    let mut bench = Bench::new(Rules::default());
    let mut early: Vec<Ticket> = (0..8).map(|_| bench.admit().unwrap()).collect();
    bench.break_it();
    for verdict in [Verdict::Good(QUICK), Verdict::Failed] {
        let ticket = early.pop().unwrap();
        assert_eq!(bench.breaker.settle(ticket, verdict, bench.now), None);
        assert_eq!(bench.breaker.stand(), Stand::Open);
    }
    bench.until_probe();
    let probe = bench.admit().unwrap();
    assert_eq!(bench.breaker.settle(early.pop().unwrap(), Verdict::Failed, bench.now), None);
    assert_eq!(bench.breaker.probing(), 1, "the probe is still on its way");
    assert!(bench.breaker.settle(probe, Verdict::Good(QUICK), bench.now).is_some());
}

#[test]
fn a_cool_down_refuses_until_its_moment_and_is_no_failure() {
    let mut bench = Bench::new(Rules::default());
    let until = bench.now + 5 * SECOND;
    bench.breaker.cool_down(until);
    for _ in 0..200 {
        bench.wait(4 * QUICK);
        let refused = Refused { why: Why::CoolingDown, until: Some(until) };
        assert_eq!(bench.admit().unwrap_err(), refused);
    }
    assert_eq!(bench.breaker.stand(), Stand::Closed);
    bench.now = until;
    assert_eq!(bench.call(Verdict::Good(QUICK)), None);
}

#[test]
fn slow_calls_open_it_only_where_that_is_asked_for() {
    let slow = Verdict::Good(20 * SECOND);
    let mut bench = Bench::new(Rules::default());
    for _ in 0..100 {
        assert_eq!(bench.call(slow), None);
    }
    let rules = Rules { slow_call: Some(10 * SECOND), slow_percent: 80, ..Rules::default() };
    let mut bench = Bench::new(rules);
    bench.call(Verdict::Good(QUICK));
    for call in 1..=8 {
        assert_eq!(bench.call(slow), None, "{call}");
    }
    assert!(bench.call(slow).is_some(), "9 of 10");
}

#[test]
fn a_model_that_is_being_loaded_is_not_slow() {
    let rules = Rules { slow_call: Some(10 * SECOND), ..Rules::default() };
    let mut bench = Bench::new(rules);
    for _ in 0..3 {
        bench.wait(COLD_AFTER + SECOND);
        let waiting: Vec<Ticket> = (0..100).map(|_| bench.admit().unwrap()).collect();
        bench.wait(30 * SECOND);
        for ticket in waiting {
            let verdict = Verdict::Good(30 * SECOND);
            assert_eq!(bench.breaker.settle(ticket, verdict, bench.now), None);
        }
    }
    let warm: Vec<Ticket> = (0..100).map(|_| bench.admit().unwrap()).collect();
    bench.wait(30 * SECOND);
    let changes = warm
        .into_iter()
        .map(|ticket| bench.breaker.settle(ticket, Verdict::Good(30 * SECOND), bench.now));
    assert_eq!(changes.flatten().count(), 1, "loaded, it is");
}

#[test]
fn a_person_s_word_counts_until_it_is_taken_back() {
    let mut bench = Bench::new(Rules::default());
    assert!(bench.breaker.force(Force::Open, bench.now).is_some());
    bench.wait(1000 * SECOND);
    assert_eq!(bench.admit().unwrap_err(), Refused { why: Why::Forced, until: None });
    bench.breaker.force(Force::Closed, bench.now);
    for _ in 0..100 {
        assert_eq!(bench.call(Verdict::Failed), None);
    }
    bench.breaker.force(Force::Auto, bench.now);
    assert_eq!(bench.break_it(), 5);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Admit,
    /// Settles the call at this place.
    Settle(usize, u8),
    Flows(usize),
    CoolDown(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_u64..20_000).prop_map(Step::Wait),
        Just(Step::Admit),
        Just(Step::Admit),
        (any::<usize>(), 0_u8..4).prop_map(|(at, verdict)| Step::Settle(at, verdict)),
        any::<usize>().prop_map(Step::Flows),
        (0_u64..5_000).prop_map(Step::CoolDown),
    ]
}

fn verdict(number: u8) -> Verdict {
    match number {
        0 => Verdict::Good(QUICK),
        1 => Verdict::Alive,
        2 => Verdict::Failed,
        _ => Verdict::Nothing,
    }
}

proptest! {
    #[test]
    fn whatever_happens_no_more_probes_are_out_than_may_and_it_never_sticks(
        probes in 1_u32..4,
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let rules = Rules { probes, ..Rules::default() };
        let mut bench = Bench::new(rules);
        let mut out: Vec<Ticket> = Vec::new();
        let mut cooling = bench.now;
        for step in steps {
            match step {
                Step::Wait(ms) => bench.wait(Duration::from_millis(ms)),
                Step::Admit => {
                    let before = bench.breaker.stand();
                    let (admitted, change) = bench.breaker.admit(bench.now);
                    match admitted {
                        Ok(ticket) => {
                            prop_assert!(bench.now >= cooling, "nobody calls during a cool-down");
                            let stand = bench.breaker.stand();
                            prop_assert!(stand != Stand::Open, "an open one lets nobody pass");
                            prop_assert_eq!(ticket.is_probe(), stand == Stand::HalfOpen);
                            prop_assert!(before != Stand::Open || change.is_some());
                            out.push(ticket);
                        }
                        // A refused attempt moves nothing.
                        Err(refused) => {
                            if refused.why == Why::CoolingDown {
                                prop_assert_eq!(refused.until, Some(cooling));
                            }
                            prop_assert_eq!(bench.breaker.admit(bench.now).0.unwrap_err(), refused);
                        }
                    }
                }
                Step::Settle(at, number) if !out.is_empty() => {
                    let ticket = out.swap_remove(at % out.len());
                    bench.breaker.settle(ticket, verdict(number), bench.now);
                }
                Step::Flows(at) if !out.is_empty() => {
                    let at = at % out.len();
                    bench.breaker.flows(&mut out[at], bench.now);
                }
                Step::CoolDown(ms) => {
                    cooling = cooling.max(bench.now + Duration::from_millis(ms));
                    bench.breaker.cool_down(cooling);
                }
                Step::Settle(..) | Step::Flows(_) => {}
            }
            let open_times = bench.now.duration_since(bench.breaker.since()).as_secs()
                / rules.open_time.as_secs();
            prop_assert!(u64::from(bench.breaker.probing()) <= u64::from(probes) + open_times);
            prop_assert_eq!(bench.breaker.out() as usize, out.len());
        }
        // The upstream recovers: within one open interval, and one probe, everybody is let in.
        for ticket in out {
            bench.breaker.settle(ticket, Verdict::Nothing, bench.now);
        }
        bench.wait(Rules::default().open_time_max.max(5 * SECOND));
        bench.call(Verdict::Good(QUICK));
        prop_assert_eq!(bench.breaker.stand(), Stand::Closed);
        prop_assert_eq!((bench.breaker.out(), bench.breaker.probing()), (0, 0));
    }

    #[test]
    fn a_dead_upstream_costs_only_its_probes(probes in 1_u32..4, gap_ms in 1_u64..500) {
        let rules = Rules { probes, ..Rules::default() };
        let mut bench = Bench::new(rules);
        bench.break_it();
        let hour = bench.now + 3600 * SECOND;
        let mut asked = 0_u32;
        while bench.now < hour {
            bench.wait(Duration::from_millis(gap_ms));
            if let Ok(ticket) = bench.admit() {
                prop_assert!(ticket.is_probe());
                asked += 1;
                bench.breaker.settle(ticket, Verdict::Failed, bench.now);
            }
        }
        // 24 s, 48 s, 96 s, 192 s, then 240 s at the shortest.
        prop_assert!(asked <= 4 + 3600 / 240 + 1, "{} probes in an hour", asked);
        prop_assert!(asked >= 3600 / 300, "{} probes in an hour", asked);
    }
}
