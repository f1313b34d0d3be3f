//! The retry budget: how many requests may be sent again because their pooled connection was stale,
//! or a fresh one failed.
//!
//! Retries are at most a fifth of the requests of the last ten seconds, and at least three in that
//! time (Finagle's and Envoy's numbers, `reliability.md` section 13). Pure: it is told the time.

use std::time::{Duration, Instant};

/// The window, in seconds and buckets of one second.
const WINDOW_SECONDS: usize = 10;

/// Retries that are always allowed in one window.
pub const RETRIES_MIN: u32 = 3;

/// One retry for this many requests.
pub const REQUESTS_PER_RETRY: u32 = 5;

/// Requests and retries of the last ten seconds.
#[derive(Debug)]
pub struct RetryBudget {
    start: Instant,
    /// The second (since `start`) that the newest bucket stands for.
    second: u64,
    requests: [u32; WINDOW_SECONDS],
    retries: [u32; WINDOW_SECONDS],
}

impl RetryBudget {
    /// An empty window.
    pub fn new(now: Instant) -> Self {
        let empty = [0; WINDOW_SECONDS];
        RetryBudget { start: now, second: 0, requests: empty, retries: empty }
    }

    /// Counts a request.
    pub fn request(&mut self, now: Instant) {
        let bucket = self.turn_to(now);
        self.requests[bucket] = self.requests[bucket].saturating_add(1);
    }

    /// Takes a retry from the budget; false when there is none left.
    pub fn try_retry(&mut self, now: Instant) -> bool {
        let bucket = self.turn_to(now);
        let within = self.left(now) > 0;
        if within {
            self.retries[bucket] += 1;
        }
        within
    }

    /// Retries that are left.
    pub fn left(&mut self, now: Instant) -> u32 {
        self.turn_to(now);
        let sum = |buckets: &[u32]| buckets.iter().fold(0_u32, |a, b| a.saturating_add(*b));
        let allowed = RETRIES_MIN.max(sum(&self.requests) / REQUESTS_PER_RETRY);
        allowed.saturating_sub(sum(&self.retries))
    }

    /// Empties the buckets that have left the window; gives the one of `now`.
    fn turn_to(&mut self, now: Instant) -> usize {
        let second = now.saturating_duration_since(self.start).as_secs().max(self.second);
        let gone = (second - self.second).min(WINDOW_SECONDS as u64);
        for step in 1..=gone {
            let bucket = bucket_of(self.second + step);
            self.requests[bucket] = 0;
            self.retries[bucket] = 0;
        }
        if gone == WINDOW_SECONDS as u64 {
            self.requests = [0; WINDOW_SECONDS];
            self.retries = [0; WINDOW_SECONDS];
        }
        self.second = second;
        bucket_of(second)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "below ten")]
fn bucket_of(second: u64) -> usize {
    (second % WINDOW_SECONDS as u64) as usize
}

/// The window as a duration.
pub const WINDOW: Duration = Duration::from_secs(WINDOW_SECONDS as u64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use proptest::prelude::*;

    #[test]
    fn three_retries_are_always_there_and_come_back_with_the_window() {
        let start = clock::now();
        let mut budget = RetryBudget::new(start);
        assert!((0..3).all(|_| budget.try_retry(start)));
        assert_eq!(budget.left(start), 0);
        assert!(!budget.try_retry(start + Duration::from_secs(9)));
        assert!(budget.try_retry(start + WINDOW));
    }

    #[test]
    fn many_requests_allow_a_fifth() {
        let start = clock::now();
        let mut budget = RetryBudget::new(start);
        (0..100).for_each(|_| budget.request(start));
        let allowed = (0..100).filter(|_| budget.try_retry(start)).count();
        assert_eq!(allowed, 20);
    }

    proptest! {
        #[test]
        fn no_window_ever_holds_more_than_its_share(steps in prop::collection::vec((0_u64..3000, any::<bool>()), 1..300)) {
            let start = clock::now();
            let mut budget = RetryBudget::new(start);
            let (mut now, mut requests, mut retries) = (start, Vec::new(), Vec::new());
            for (ms, is_request) in steps {
                now += Duration::from_millis(ms);
                if is_request {
                    budget.request(now);
                    requests.push(now);
                } else if budget.try_retry(now) {
                    retries.push(now);
                }
                // Buckets of a second: the window is between nine and ten seconds long.
                let since = |times: &[Instant], s: u64| times.iter().filter(|t| **t + Duration::from_secs(s) > now).count();
                prop_assert!(since(&retries, 9) <= 3.max(since(&requests, 10) / 5));
            }
        }
    }
}
