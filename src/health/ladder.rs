//! The recovery ladder: what is tried when something stays wrong, from what costs nobody anything to a
//! call for the operator. Pure: it is told the time and what is wrong, and says what to do.
//!
//! One step at a time; a step has `settle` to help; only when it did not help comes the next one. What
//! helped once is what is tried again. Steps are bounded within an hour; past that the operator is
//! called. When all was well for `calm` it begins at the first step again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long steps count for `attempts_max`, and how long the operator is not called again.
const HOUR: Duration = Duration::from_secs(3600);

/// Most steps within an hour, the bound of `recovery.attempts_max`.
pub const ATTEMPTS_MAX: usize = 60;

/// The steps, the mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Step {
    /// Caches are trimmed, idle connections closed, free memory given back.
    Soft = 1,
    /// New model calls are refused, and upstreams that mostly fail left alone.
    Medium,
    /// A part that hangs is replaced, or the process asks to be started again.
    Hard,
    /// A person is called.
    Operator,
}

/// Every step.
pub const STEPS: [Step; 4] = [Step::Soft, Step::Medium, Step::Hard, Step::Operator];

impl Step {
    /// The word in events, metrics and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Soft => "soft",
            Step::Medium => "medium",
            Step::Hard => "hard",
            Step::Operator => "operator",
        }
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// Memory is short.
    Memory,
    /// The process is critically short of something else.
    Overload,
    /// A worker hangs, and its place is not taken by another yet.
    Worker,
    /// A thread hangs that nobody can stand in for.
    Thread,
    /// A check that counts for readiness is bad.
    Check,
}

impl Trouble {
    /// The word in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Trouble::Memory => "memory",
            Trouble::Overload => "overload",
            Trouble::Worker => "worker",
            Trouble::Thread => "thread",
            Trouble::Check => "check",
        }
    }

    /// The steps that can help here, before the operator. Whether a restart may be asked for decides
    /// about the hard one, but for workers, which can be replaced.
    fn steps(self, restart: bool) -> &'static [Step] {
        match (self, restart) {
            (Trouble::Memory, true) => &[Step::Soft, Step::Medium, Step::Hard],
            (Trouble::Memory | Trouble::Overload, _) => &[Step::Soft, Step::Medium],
            (Trouble::Worker, _) | (Trouble::Thread, true) => &[Step::Hard],
            (Trouble::Thread, false) => &[],
            (Trouble::Check, _) => &[Step::Soft],
        }
    }
}

/// `[recovery]`, and whether a restart may be asked for now.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long something must have been wrong.
    pub after: Duration,
    /// How long a step has.
    pub settle: Duration,
    /// Steps within an hour, at most [`ATTEMPTS_MAX`].
    pub attempts_max: usize,
    /// How long all must have been well to begin anew.
    pub calm: Duration,
    /// Whether a restart may be asked for now.
    pub restart: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// This step, against this.
    Take(Step, Trouble),
    /// The step has come to this, after so long.
    Outcome(Step, bool, Duration),
    /// What the steps have forced is not needed any more.
    Relax,
    /// All was well for long: the first step is the first one again.
    Anew,
}

/// A step that has its time to help.
#[derive(Clone, Copy, Debug)]
struct Tried {
    step: Step,
    at: Instant,
}

/// The ladder.
#[derive(Debug, Default)]
pub struct Ladder {
    /// Since when something is wrong, or all is well.
    wrong: Option<Instant>,
    well: Option<Instant>,
    tried: Option<Tried>,
    /// The last step that did not help.
    failed: Option<Step>,
    /// What was forced and is still in force.
    forced: bool,
    /// When the operator was called.
    called: Option<Instant>,
    /// Steps of the last hour, the oldest first.
    taken: VecDeque<Instant>,
}

impl Ladder {
    /// One look: what is wrong now, if anything.
    pub fn look(&mut self, now: Instant, trouble: Option<Trouble>, rules: &Rules) -> Vec<Act> {
        while self.taken.front().is_some_and(|at| now.saturating_duration_since(*at) >= HOUR) {
            self.taken.pop_front();
        }
        match trouble {
            None => self.well(now, rules),
            Some(trouble) => self.wrong(now, trouble, rules),
        }
    }

    /// The step that has its time to help now, if any.
    pub fn trying(&self) -> Option<Step> {
        self.tried.map(|tried| tried.step)
    }

    /// Whether the operator was called and all has not been well since.
    pub fn called(&self) -> bool {
        self.called.is_some()
    }

    /// Steps of the last hour.
    pub fn taken(&self) -> usize {
        self.taken.len()
    }

    fn well(&mut self, now: Instant, rules: &Rules) -> Vec<Act> {
        let mut acts = Vec::new();
        self.wrong = None;
        let since = *self.well.get_or_insert(now);
        if let Some(Tried { step, at }) = self.tried.take() {
            acts.push(Act::Outcome(step, true, now.saturating_duration_since(at)));
        }
        let well = now.saturating_duration_since(since);
        if self.forced && well >= rules.settle {
            self.forced = false;
            acts.push(Act::Relax);
        }
        if well >= rules.calm && (self.failed.is_some() || self.called.is_some()) {
            (self.failed, self.called) = (None, None);
            acts.push(Act::Anew);
        }
        acts
    }

    fn wrong(&mut self, now: Instant, trouble: Trouble, rules: &Rules) -> Vec<Act> {
        let mut acts = Vec::new();
        self.well = None;
        let since = *self.wrong.get_or_insert(now);
        if let Some(Tried { step, at }) = self.tried {
            let waited = now.saturating_duration_since(at);
            if waited < rules.settle {
                return acts;
            }
            acts.push(Act::Outcome(step, false, waited));
            self.failed = Some(step);
            self.tried = None;
        } else if now.saturating_duration_since(since) < rules.after {
            return acts;
        }
        let exhausted = self.taken.len() >= rules.attempts_max.min(ATTEMPTS_MAX);
        let next = trouble.steps(rules.restart).iter().find(|step| Some(**step) > self.failed);
        match next {
            Some(step) if !exhausted => {
                self.taken.push_back(now);
                self.tried = Some(Tried { step: *step, at: now });
                self.forced |= *step >= Step::Medium;
                acts.push(Act::Take(*step, trouble));
            }
            _ => {
                let again = self.called.is_none_or(|at| now.saturating_duration_since(at) >= HOUR);
                if again {
                    self.called = Some(now);
                    acts.push(Act::Take(Step::Operator, trouble));
                }
            }
        }
        acts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const SECOND: Duration = Duration::from_secs(1);
    const RULES: Rules = Rules {
        after: Duration::from_secs(10),
        settle: Duration::from_secs(20),
        attempts_max: 6,
        calm: Duration::from_secs(300),
        restart: true,
    };

    /// A look each second; what was done, and in which second.
    fn run(
        ladder: &mut Ladder,
        rules: &Rules,
        start: Instant,
        seconds: std::ops::Range<u32>,
        trouble: impl Fn(u32) -> Option<Trouble>,
    ) -> Vec<(u32, Act)> {
        let mut acts = Vec::new();
        for second in seconds {
            let found = ladder.look(start + SECOND * second, trouble(second), rules);
            acts.extend(found.into_iter().map(|act| (second, act)));
        }
        acts
    }

    #[test]
    fn each_step_has_its_time_and_the_next_comes_only_when_it_did_not_help() {
        let start = clock::now();
        let acts = run(&mut Ladder::default(), &RULES, start, 0..600, |_| Some(Trouble::Memory));
        let lost = |step| Act::Outcome(step, false, SECOND * 20);
        let expected = [
            (10, Act::Take(Step::Soft, Trouble::Memory)),
            (30, lost(Step::Soft)),
            (30, Act::Take(Step::Medium, Trouble::Memory)),
            (50, lost(Step::Medium)),
            (50, Act::Take(Step::Hard, Trouble::Memory)),
            (70, lost(Step::Hard)),
            (70, Act::Take(Step::Operator, Trouble::Memory)),
        ];
        assert_eq!(acts, expected);
    }

    #[test]
    fn what_helped_is_told_relaxed_and_tried_again() {
        let start = clock::now();
        let mut ladder = Ladder::default();
        // Soft does not help, medium does; it comes back once.
        let wrong = |second| {
            ((0..35).contains(&second) || (100..115).contains(&second)).then_some(Trouble::Memory)
        };
        let acts = run(&mut ladder, &RULES, start, 0..500, wrong);
        let expected = [
            (10, Act::Take(Step::Soft, Trouble::Memory)),
            (30, Act::Outcome(Step::Soft, false, SECOND * 20)),
            (30, Act::Take(Step::Medium, Trouble::Memory)),
            (35, Act::Outcome(Step::Medium, true, SECOND * 5)),
            (55, Act::Relax),
            (110, Act::Take(Step::Medium, Trouble::Memory)),
            (115, Act::Outcome(Step::Medium, true, SECOND * 5)),
            (135, Act::Relax),
            (415, Act::Anew),
        ];
        assert_eq!(acts, expected);
        let acts = run(&mut ladder, &RULES, start, 500..512, |_| Some(Trouble::Memory));
        assert_eq!(acts, [(510, Act::Take(Step::Soft, Trouble::Memory))]);
    }

    #[test]
    fn a_short_trouble_and_one_that_trembles_cost_nothing() {
        let acts = run(&mut Ladder::default(), &RULES, clock::now(), 0..3600, |second| {
            (second % 10 != 0).then_some(Trouble::Overload)
        });
        assert_eq!(acts, []);
    }

    #[test]
    fn without_leave_to_restart_the_operator_comes_after_what_is_left() {
        let rules = Rules { restart: false, ..RULES };
        let steps = |trouble| {
            let acts = run(&mut Ladder::default(), &rules, clock::now(), 0..300, |_| Some(trouble));
            let take = acts.into_iter().filter_map(|(_, act)| match act {
                Act::Take(step, _) => Some(step),
                _ => None,
            });
            take.collect::<Vec<_>>()
        };
        assert_eq!(steps(Trouble::Memory), [Step::Soft, Step::Medium, Step::Operator]);
        assert_eq!(steps(Trouble::Worker), [Step::Hard, Step::Operator]);
        assert_eq!(steps(Trouble::Thread), [Step::Operator]);
        assert_eq!(steps(Trouble::Check), [Step::Soft, Step::Operator]);
    }

    /// A week of troubles that come and go: steps stay within their bound, the operator is called at most
    /// once an hour, and two steps are never tried at once.
    #[test]
    fn a_week_of_troubles_stays_within_its_bounds() {
        for seed in 1..6_u64 {
            let start = clock::now();
            let mut ladder = Ladder::default();
            let (mut x, mut trouble, mut until) = (seed, None, 0);
            let mut random = move |below: u32| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                u32::try_from(x % u64::from(below)).unwrap()
            };
            let (mut steps, mut calls): (VecDeque<u32>, Vec<u32>) = Default::default();
            let mut open: Option<Step> = None;
            for second in (0..7 * 24 * 3600).step_by(5) {
                if second >= until {
                    let all = [Trouble::Memory, Trouble::Overload, Trouble::Worker, Trouble::Check];
                    trouble = match random(3) {
                        0 => None,
                        _ => all.get(usize::try_from(random(4)).unwrap()).copied(),
                    };
                    until = second + 5 + random(400);
                }
                for act in ladder.look(start + SECOND * second, trouble, &RULES) {
                    match act {
                        Act::Take(Step::Operator, _) => calls.push(second),
                        Act::Take(step, _) => {
                            assert_eq!(open.replace(step), None, "seed {seed}: two at once");
                            steps.push_back(second);
                            while steps.front().is_some_and(|at| second - at >= 3600) {
                                steps.pop_front();
                            }
                            assert!(steps.len() <= RULES.attempts_max, "seed {seed}");
                        }
                        Act::Outcome(step, ..) => assert_eq!(open.take(), Some(step)),
                        Act::Relax | Act::Anew => {}
                    }
                }
                assert!(ladder.taken() <= RULES.attempts_max);
            }
            assert!(!calls.is_empty(), "seed {seed}: it was bad enough for that");
            let anew = |pair: &[u32]| pair[1] - pair[0] >= 300;
            assert!(calls.windows(2).all(anew), "seed {seed}: {calls:?}");
        }
    }
}
