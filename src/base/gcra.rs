//! The generic cell rate algorithm: a rate limit in one point in time.
//!
//! What is kept is when the limit will be whole again (the theoretical arrival time). A charge moves
//! it into the future by what the charge costs, and is refused when that would be further than a
//! whole burst away. Nothing ticks, nothing is refilled, and an entry whose time is past says
//! nothing any more and may be thrown away.
//!
//! Times are whole nanoseconds, products are `u128`, and costs are rounded up: nothing drifts, and
//! no window of any length admits more than `burst + rate × time`. (Semantics after redis-cell's `CL.THROTTLE`, whose `limit` is
//! the burst here: what is admitted at once.)

use std::time::{Duration, Instant};

/// Furthest that a limit can be in debt beyond an empty one: what was used is charged even when it is
/// more than there was, so that answers much longer than estimated do not get past the limit; but an
/// upstream that reports nonsense must not lock anybody out for ever.
pub const DEBT_MAX: Duration = Duration::from_secs(3600);

/// Longest time that anything here is told or pushed ahead: `Instant` ends somewhere, rates do not.
const AHEAD_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// How much of something may be used in how much time, and how much of it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    count: u64,
    period: Duration,
    burst: u64,
    /// What a whole burst costs.
    whole: Duration,
}

impl Quota {
    /// `count` in each `period`, at most `burst` (at least one) at once. `None` when there is no
    /// limit to speak of: a count or a period of zero.
    pub fn new(count: u64, period: Duration, burst: u64) -> Option<Quota> {
        if count == 0 || period.is_zero() {
            return None;
        }
        let mut quota = Quota { count, period, burst: burst.max(1), whole: Duration::ZERO };
        quota.whole = quota.cost(quota.burst);
        Some(quota)
    }

    /// `count` a minute; without a `burst` a whole minute's count at once. `None` for a count of
    /// zero.
    pub fn per_minute(count: u64, burst: Option<u64>) -> Option<Quota> {
        Quota::new(count, Duration::from_secs(60), burst.unwrap_or(count))
    }

    /// How much in each period.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The period.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// How much at once.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// How long it takes until `quantity` is there again, rounded up; at most a year.
    pub fn cost(&self, quantity: u64) -> Duration {
        if let Some(product) = self.small(quantity) {
            return Duration::from_nanos(product.div_ceil(self.count)).min(AHEAD_MAX);
        }
        let product = u128::from(quantity).saturating_mul(self.period.as_nanos());
        let nanos = product.div_ceil(u128::from(self.count));
        u64::try_from(nanos).map_or(AHEAD_MAX, |nanos| Duration::from_nanos(nanos).min(AHEAD_MAX))
    }

    /// `quantity × period` in nanoseconds where it fits into 64 bits, which it nearly always does:
    /// a division of 128 bits takes ten times as long.
    fn small(&self, quantity: u64) -> Option<u64> {
        u64::try_from(self.period.as_nanos()).ok()?.checked_mul(quantity)
    }

    /// How much comes back in `time`, rounded down.
    fn earned(&self, time: Duration) -> u64 {
        if let (Ok(nanos), Ok(period)) =
            (u64::try_from(time.as_nanos()), u64::try_from(self.period.as_nanos()))
            && let Some(product) = nanos.checked_mul(self.count)
        {
            return product / period;
        }
        let product = time.as_nanos().saturating_mul(u128::from(self.count));
        u64::try_from(product / self.period.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// How full a limit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// How much could be used at once now.
    pub remaining: u64,
    /// When all of the burst is there again.
    pub reset: Duration,
}

/// What became of a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is enough.
    Allowed,
    /// Not now.
    Limited {
        /// After this time the same charge would be allowed, if nobody else charges.
        wait: Duration,
    },
    /// More than the burst: no wait helps.
    Never,
}

impl Verdict {
    /// There is enough.
    pub fn allowed(&self) -> bool {
        matches!(self, Verdict::Allowed)
    }
}

/// The state of one limit. The default is one that was never used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gcra {
    /// When the burst is whole again; `None` or past: it is.
    whole_at: Option<Instant>,
}

impl Gcra {
    /// Whether `quantity` could be charged now. Changes nothing. Nothing at all can always be.
    pub fn check(&self, quota: &Quota, now: Instant, quantity: u64) -> Verdict {
        self.judge(quota, now, quantity).0
    }

    /// Charges `quantity` if there is enough, and nothing otherwise.
    pub fn charge(&mut self, quota: &Quota, now: Instant, quantity: u64) -> Verdict {
        let (verdict, after) = self.judge(quota, now, quantity);
        if verdict.allowed() && quantity > 0 {
            self.put(now, after);
        }
        verdict
    }

    /// Charges `quantity` ahead of its time: says after which wait it may be used, and charges nothing
    /// when that is longer than `longest`. Whoever comes next waits behind it.
    ///
    /// # Errors
    /// How long the wait would have been.
    pub fn reserve(
        &mut self,
        quota: &Quota,
        now: Instant,
        quantity: u64,
        longest: Duration,
    ) -> Result<Duration, Duration> {
        let after = self.ahead(now).saturating_add(quota.cost(quantity));
        // More than a burst is there when a whole burst is.
        let most = quota.cost(quota.burst.max(quantity));
        let wait = after.saturating_sub(most);
        if wait > longest {
            return Err(wait);
        }
        self.put(now, after);
        Ok(wait)
    }

    /// The verdict, and how far ahead a charge would bring it.
    fn judge(&self, quota: &Quota, now: Instant, quantity: u64) -> (Verdict, Duration) {
        if quantity > quota.burst {
            return (Verdict::Never, Duration::ZERO);
        }
        let after = self.ahead(now).saturating_add(quota.cost(quantity));
        match after.checked_sub(quota.whole) {
            Some(wait) if quantity > 0 && !wait.is_zero() => (Verdict::Limited { wait }, after),
            _ => (Verdict::Allowed, after),
        }
    }

    /// Charges what was used already, whether or not there was enough. The debt is bounded: what
    /// comes back in [`DEBT_MAX`].
    pub fn debit(&mut self, quota: &Quota, now: Instant, quantity: u64) {
        let most = quota.whole.saturating_add(DEBT_MAX);
        let ahead = self.ahead(now);
        self.put(now, ahead.saturating_add(quota.cost(quantity)).min(most.max(ahead)));
    }

    /// Gives back what was charged and not used. Never more than a whole burst is there after it.
    pub fn credit(&mut self, quota: &Quota, _now: Instant, quantity: u64) {
        // Whole since when makes no difference, so that no look at the clock is needed, and threads
        // whose clocks were read in another order see the same.
        self.whole_at = self.whole_at.and_then(|at| at.checked_sub(quota.cost(quantity)));
    }

    /// How full it is.
    pub fn level(&self, quota: &Quota, now: Instant) -> Level {
        level(quota, self.ahead(now))
    }

    /// Whether it is as good as never used: the entry can be thrown away.
    pub fn idle(&self, now: Instant) -> bool {
        self.whole_at.is_none_or(|at| at <= now)
    }

    /// When it will be idle; `None` when it is one that was never used.
    pub fn whole_at(&self) -> Option<Instant> {
        self.whole_at
    }

    fn ahead(&self, now: Instant) -> Duration {
        self.whole_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    fn put(&mut self, now: Instant, ahead: Duration) {
        self.whole_at = now.checked_add(ahead.min(AHEAD_MAX)).or(self.whole_at);
    }
}

fn level(quota: &Quota, ahead: Duration) -> Level {
    let free = quota.whole.saturating_sub(ahead);
    // The cost of a burst is rounded up, so it never earns more than the burst.
    Level { remaining: quota.earned(free).min(quota.burst), reset: ahead }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::clock;

    const MINUTE: Duration = Duration::from_secs(60);

    fn limited(verdict: Verdict) -> Option<Duration> {
        match verdict {
            Verdict::Limited { wait } => Some(wait),
            _ => None,
        }
    }

    #[test]
    fn a_burst_goes_through_at_once_and_then_the_rate_holds() {
        let quota = Quota::per_minute(60, Some(3)).unwrap();
        let (mut gcra, now) = (Gcra::default(), clock::now());
        for remaining in [2, 1, 0] {
            let reset = Duration::from_secs(3 - remaining);
            assert_eq!(gcra.charge(&quota, now, 1), Verdict::Allowed);
            assert_eq!(gcra.level(&quota, now), Level { remaining, reset });
        }
        assert_eq!(limited(gcra.charge(&quota, now, 1)), Some(Duration::from_secs(1)));
        assert_eq!(limited(gcra.charge(&quota, now, 2)), Some(Duration::from_secs(2)));
        let later = now + Duration::from_secs(1);
        assert!(gcra.charge(&quota, later, 1).allowed());
        assert!(!gcra.charge(&quota, later, 1).allowed());
        assert!(!gcra.idle(later));
        assert!(gcra.idle(later + Duration::from_secs(3)));
    }

    #[test]
    fn a_peek_changes_nothing_and_is_always_allowed() {
        let quota = Quota::per_minute(60, Some(1)).unwrap();
        let (mut gcra, now) = (Gcra::default(), clock::now());
        gcra.charge(&quota, now, 1);
        gcra.debit(&quota, now, 1);
        let before = gcra;
        assert_eq!(gcra.charge(&quota, now, 0), Verdict::Allowed);
        assert_eq!(gcra, before);
        let level = Level { remaining: 0, reset: Duration::from_secs(2) };
        assert_eq!(gcra.level(&quota, now), level);
    }

    #[test]
    fn more_than_a_burst_is_refused_for_ever_and_costs_nothing() {
        let quota = Quota::per_minute(60, Some(10)).unwrap();
        let (mut gcra, now) = (Gcra::default(), clock::now());
        assert_eq!(gcra.charge(&quota, now, 11), Verdict::Never);
        assert_eq!(gcra, Gcra::default());
        assert!(gcra.charge(&quota, now, 10).allowed());
    }

    #[test]
    fn what_was_not_used_comes_back_and_never_more() {
        let quota = Quota::per_minute(600, Some(100)).unwrap();
        let (mut gcra, now) = (Gcra::default(), clock::now());
        gcra.charge(&quota, now, 100);
        gcra.credit(&quota, now, 40);
        assert_eq!(gcra.level(&quota, now).remaining, 40);
        gcra.credit(&quota, now, 60);
        assert_eq!(gcra.level(&quota, now), Level { remaining: 100, reset: Duration::ZERO });
        // Also for who looked at the clock before the credit was made, and after more than was taken.
        gcra.charge(&quota, now, 100);
        gcra.credit(&quota, now + MINUTE, 100);
        assert_eq!(gcra.level(&quota, now).remaining, 100);
        gcra.credit(&quota, now, u64::MAX);
        assert_eq!(gcra.level(&quota, now), Level { remaining: 100, reset: Duration::ZERO });
        assert!(!gcra.charge(&quota, now, 101).allowed());
    }

    #[test]
    fn a_debt_is_paid_before_anything_is_allowed_and_is_bounded() {
        let quota = Quota::per_minute(60, Some(10)).unwrap();
        let (mut gcra, now) = (Gcra::default(), clock::now());
        gcra.charge(&quota, now, 10);
        gcra.debit(&quota, now, 5);
        assert_eq!(limited(gcra.check(&quota, now, 1)), Some(Duration::from_secs(6)));
        gcra.debit(&quota, now, u64::MAX);
        let most = DEBT_MAX + Duration::from_secs(1);
        assert_eq!(limited(gcra.check(&quota, now, 1)), Some(most));
    }

    #[test]
    fn no_limit_is_no_quota() {
        assert_eq!(Quota::per_minute(0, Some(5)), None);
        assert_eq!(Quota::new(1, Duration::ZERO, 1), None);
        assert_eq!(Quota::per_minute(7, None).map(|quota| quota.burst()), Some(7));
        assert_eq!(Quota::per_minute(7, Some(0)).map(|quota| quota.burst()), Some(1));
    }

    #[test]
    fn the_largest_numbers_there_are_do_not_overflow() {
        let now = clock::now();
        for (count, period, burst) in [
            (1, Duration::MAX, u64::MAX),
            (u64::MAX, Duration::from_nanos(1), u64::MAX),
            (u64::MAX, MINUTE, 1),
        ] {
            let quota = Quota::new(count, period, burst).unwrap();
            let mut gcra = Gcra::default();
            gcra.charge(&quota, now, burst);
            gcra.debit(&quota, now, u64::MAX);
            gcra.credit(&quota, now, u64::MAX);
            let level = gcra.level(&quota, now);
            assert!(level.remaining <= burst, "{quota:?} {level:?}");
        }
    }

    #[test]
    fn what_a_charge_costs_is_told() {
        let quota = Quota::per_minute(600_000, None).unwrap();
        let mut gcra = Gcra::default();
        const CHARGES: u32 = 100_000;
        let begun = clock::now();
        let mut allowed = 0;
        for _ in 0..CHARGES {
            allowed += u32::from(gcra.charge(&quota, clock::now(), 1).allowed());
        }
        let each = begun.elapsed() / CHARGES;
        println!("one charge and one look at the clock: {each:?}");
        assert_eq!(allowed, CHARGES);
    }

    #[test]
    fn reservations_come_one_behind_the_other_and_no_later_than_allowed() {
        let quota = Quota::new(60, MINUTE, 1).unwrap();
        let (mut gcra, now) = (Gcra::default(), clock::now());
        let second = Duration::from_secs(1);
        for wait in 0..=5 {
            assert_eq!(gcra.reserve(&quota, now, 1, 5 * second), Ok(wait * second));
        }
        let before = gcra;
        assert_eq!(gcra.reserve(&quota, now, 1, 5 * second), Err(6 * second));
        assert_eq!(gcra, before, "a refusal charges nothing");
        // More than a burst is not refused for ever: it pays afterwards.
        let mut gcra = Gcra::default();
        assert_eq!(gcra.reserve(&quota, now, 5, second), Ok(Duration::ZERO));
        assert_eq!(gcra.reserve(&quota, now, 1, 5 * second), Ok(5 * second));
    }

    proptest! {
        /// The promise: whatever comes whenever, in no window is more admitted than the burst and what
        /// the rate brings in the window's time.
        #[test]
        fn no_window_admits_more_than_burst_and_rate_allow(
            count in 1_u64..100_000,
            period_ms in 1_u64..120_000,
            burst in 1_u64..500,
            arrivals in prop::collection::vec((0_u64..3_000_000_000, 0_u64..20), 1..200),
        ) {
            let quota = Quota::new(count, Duration::from_millis(period_ms), burst).unwrap();
            let start = clock::now();
            let (mut gcra, mut at) = (Gcra::default(), 0_u64);
            let mut admitted: Vec<(u64, u64)> = Vec::new();
            for (step, quantity) in arrivals {
                // Most steps are a fraction of a cell, so that bursts and steady rates both come up.
                at += if step % 3 == 0 { step } else { step % 1000 };
                if gcra.charge(&quota, start + Duration::from_nanos(at), quantity).allowed() {
                    admitted.push((at, quantity));
                }
            }
            for first in 0..admitted.len() {
                let mut sum = 0_u128;
                for (end, quantity) in &admitted[first..] {
                    sum += u128::from(*quantity);
                    // One nanosecond more: the cost of a burst is rounded up.
                    let window = u128::from(end - admitted[first].0 + 1);
                    let earned = window * u128::from(count) / (u128::from(period_ms) * 1_000_000);
                    prop_assert!(sum <= u128::from(burst) + earned, "{sum} in {window} ns");
                }
            }
        }

        /// A refusal says how long to wait, and then it is true; a nanosecond less, and it is not.
        #[test]
        fn a_told_wait_is_exact(
            count in 1_u64..100_000,
            burst in 1_u64..500,
            charges in prop::collection::vec((0_u64..1_000_000_000, 1_u64..50), 1..50),
        ) {
            let quota = Quota::per_minute(count, Some(burst)).unwrap();
            let (mut gcra, mut now) = (Gcra::default(), clock::now());
            for (step, quantity) in charges {
                now += Duration::from_nanos(step);
                match gcra.charge(&quota, now, quantity) {
                    Verdict::Allowed => {}
                    Verdict::Never => prop_assert!(quantity > burst),
                    Verdict::Limited { wait } => {
                        prop_assert!(!wait.is_zero());
                        let early = now + wait - Duration::from_nanos(1);
                        prop_assert!(!gcra.check(&quota, early, quantity).allowed());
                        prop_assert!(gcra.check(&quota, now + wait, quantity).allowed());
                    }
                }
            }
        }

        /// What is charged, given back and used in any order: never more than a burst is there, and
        /// a clock that steps back (threads that race) opens nothing.
        #[test]
        fn levels_stay_in_bounds_and_a_clock_that_steps_back_opens_nothing(
            burst in 1_u64..500,
            steps in prop::collection::vec((0_u8..4, 0_u64..600, 0_u64..2_000_000_000), 1..100),
        ) {
            let quota = Quota::per_minute(600, Some(burst)).unwrap();
            let start = clock::now() + MINUTE;
            let mut gcra = Gcra::default();
            for (what, quantity, at) in steps {
                let now = start + Duration::from_nanos(at);
                let before = gcra.level(&quota, now).remaining;
                match what {
                    0 => gcra.credit(&quota, now, quantity),
                    1 => gcra.debit(&quota, now, quantity),
                    _ => {
                        let allowed = gcra.charge(&quota, now, quantity).allowed();
                        prop_assert!(!allowed || quantity <= before);
                        let back = gcra.level(&quota, now - Duration::from_secs(1)).remaining;
                        prop_assert!(back <= gcra.level(&quota, now).remaining);
                    }
                }
                let level = gcra.level(&quota, now);
                prop_assert!(level.remaining <= burst);
                prop_assert!(level.reset <= quota.cost(burst) + DEBT_MAX + MINUTE);
            }
        }
    }
}
