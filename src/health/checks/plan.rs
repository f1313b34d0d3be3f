//! Which check runs when: one schedule for all, with a jitter, and never two runs of one check at a time.
//! Pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::machine::{Machine, Verdict};
use crate::config::settings::CheckSpec;

/// Between the first runs of checks that are new, so that they do not all begin at once.
const SPREAD: Duration = Duration::from_millis(20);

/// A run that is due.
#[derive(Clone, Debug)]
pub struct Due {
    /// Whose: an answer comes back with it.
    pub number: u64,
    /// What is to be run.
    pub spec: Arc<CheckSpec>,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The verdict now.
    pub verdict: Verdict,
    /// Whether it was another one before.
    pub turned: bool,
    /// When it is run again.
    pub next: Instant,
}

#[derive(Clone, Debug)]
struct Entry {
    number: u64,
    spec: Arc<CheckSpec>,
    machine: Machine,
    due: Instant,
    running: bool,
    runs: u64,
}

/// The schedule, as long as `[[check]]` has entries.
#[derive(Debug, Default)]
pub struct Plan {
    entries: Vec<Entry>,
    numbers: u64,
}

impl Plan {
    /// Takes over other checks. Those that stay as they are keep where they stand; an answer to a run of
    /// one that is gone or changed means nothing any more. Gives the names of those that are gone.
    pub fn reconfigure(&mut self, specs: &[CheckSpec], now: Instant) -> Vec<String> {
        let mut old = std::mem::take(&mut self.entries);
        let mut first = now;
        for spec in specs {
            let known = old.iter().position(|entry| *entry.spec == *spec);
            self.entries.push(match known {
                Some(at) => old.swap_remove(at),
                None => {
                    self.numbers += 1;
                    first += SPREAD;
                    Entry {
                        number: self.numbers,
                        spec: Arc::new(spec.clone()),
                        machine: Machine::new(spec.rise, spec.fall),
                        due: first,
                        running: false,
                        runs: 0,
                    }
                }
            });
        }
        old.into_iter().map(|entry| entry.spec.name.clone()).collect()
    }

    /// What is due now. It is running from here on.
    pub fn due(&mut self, now: Instant) -> Vec<Due> {
        let due = self.entries.iter_mut().filter(|entry| !entry.running && entry.due <= now);
        due.map(|entry| {
            entry.running = true;
            Due { number: entry.number, spec: Arc::clone(&entry.spec) }
        })
        .collect()
    }

    /// When the next one is due, of those that are not running.
    pub fn next(&self) -> Option<Instant> {
        self.entries.iter().filter(|entry| !entry.running).map(|entry| entry.due).min()
    }

    /// A run has ended; none when its check is not there any more.
    pub fn done(&mut self, number: u64, well: bool, now: Instant) -> Option<Told> {
        let entry = self.entries.iter_mut().find(|entry| entry.number == number)?;
        let turned = entry.machine.run(well);
        entry.running = false;
        entry.runs += 1;
        // From its due time, not from its end: a slow check is not run less often. One that fell behind
        // does not catch up.
        let pause = entry.spec.interval.mul_f64(jitter(entry.number, entry.runs));
        entry.due = (entry.due + pause).max(now);
        Some(Told { verdict: entry.machine.verdict(), turned, next: entry.due })
    }

    /// How many checks there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A factor from 0.9 to 1.1, so that checks of one interval drift apart.
fn jitter(number: u64, runs: u64) -> f64 {
    // SplitMix64's last steps: neighbours get factors that have nothing to do with each other.
    let mut x = (number << 32 ^ runs).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    let share = f64::from(u32::try_from(x >> 32).unwrap_or(0)) / f64::from(u32::MAX);
    0.9 + 0.2 * share
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use crate::base::health::Affects;
    use crate::config::settings::What;

    const SECOND: Duration = Duration::from_secs(1);

    fn spec(name: &str, seconds: u32) -> CheckSpec {
        CheckSpec {
            name: name.to_owned(),
            what: What::Tcp { host: "localhost".to_owned(), port: 1 },
            interval: SECOND * seconds,
            timeout: SECOND,
            rise: 2,
            fall: 3,
            affects: Affects::Degraded,
        }
    }

    #[test]
    fn a_day_of_runs_is_spread_and_never_two_at_once_of_one_check() {
        let start = clock::now();
        let mut plan = Plan::default();
        let specs: Vec<_> = (0..64).map(|n| spec(&n.to_string(), 10)).collect();
        plan.reconfigure(&specs, start);
        let mut running: Vec<(Instant, u64)> = Vec::new();
        let (mut runs, mut most) = (0, 0);
        for step in 0..24 * 3600 {
            let now = start + SECOND * step;
            let (ended, on): (Vec<_>, Vec<_>) =
                running.into_iter().partition(|(end, _)| *end <= now);
            running = on;
            for (_, number) in ended {
                plan.done(number, true, now).unwrap();
            }
            let due = plan.due(now);
            most = most.max(due.len());
            for due in due {
                assert!(running.iter().all(|(_, number)| *number != due.number));
                // Every seventh run takes longer than its interval.
                let takes = if due.number % 7 == 0 { 15 } else { 1 };
                running.push((now + SECOND * takes, due.number));
                runs += 1;
            }
        }
        let expected = 64 * 24 * 3600 / 10;
        assert!((expected * 8 / 10..=expected).contains(&runs), "{runs} of {expected}");
        assert!(most <= 64);
        let last = plan.due(start + SECOND * 90_000).len();
        assert!(last > 0 && plan.next().is_none_or(|next| next > start));
    }

    #[test]
    fn a_reload_keeps_what_did_not_change_and_forgets_what_is_gone() {
        let now = clock::now();
        let mut plan = Plan::default();
        plan.reconfigure(&[spec("a", 10), spec("b", 10)], now);
        let due = plan.due(now + SECOND);
        assert_eq!(due.len(), 2);
        assert!(plan.due(now + SECOND * 100).is_empty(), "they run");
        let gone = plan.reconfigure(&[spec("a", 10), spec("b", 20)], now);
        assert_eq!(gone, ["b"], "another interval makes another check");
        assert_eq!(plan.done(due[0].number, true, now).unwrap().verdict, Verdict::Good);
        assert_eq!(plan.done(due[1].number, true, now), None, "its answer came too late");
        assert_eq!(plan.due(now + SECOND).len(), 1, "the new one");
        assert_eq!(plan.reconfigure(&[], now), ["a", "b"]);
        assert!(plan.is_empty() && plan.next().is_none());
    }

    #[test]
    fn factors_are_within_a_tenth_and_differ() {
        let factors: Vec<f64> = (0..1000).map(|n| jitter(n % 10, n)).collect();
        assert!(factors.iter().all(|factor| (0.9..=1.1).contains(factor)));
        let mean = factors.iter().sum::<f64>() / 1000.0;
        assert!((0.99..=1.01).contains(&mean), "{mean}");
    }
}
