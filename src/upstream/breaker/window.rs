//! The calls of the last ten seconds, in buckets of one second. Pure: it is told the time.

use std::time::Instant;

/// The window, in seconds and buckets (Hystrix has ten of one second).
pub const WINDOW_SECONDS: usize = 10;

/// One call that is over.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// It failed.
    pub failed: bool,
    /// It was slow.
    pub slow: bool,
}

/// Calls that are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// All of them.
    pub calls: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that were slow.
    pub slow: u32,
}

/// The calls of the last ten seconds.
#[derive(Debug)]
pub struct Window {
    start: Instant,
    /// The second (since `start`) that the newest bucket stands for.
    second: u64,
    buckets: [Sums; WINDOW_SECONDS],
}

impl Window {
    /// An empty one.
    pub fn new(now: Instant) -> Self {
        Window { start: now, second: 0, buckets: [Sums::default(); WINDOW_SECONDS] }
    }

    /// Counts a call.
    pub fn count(&mut self, call: Call, now: Instant) {
        self.turn_to(now);
        let bucket = &mut self.buckets[bucket_of(self.second)];
        bucket.calls = bucket.calls.saturating_add(1);
        bucket.failed = bucket.failed.saturating_add(u32::from(call.failed));
        bucket.slow = bucket.slow.saturating_add(u32::from(call.slow));
    }

    /// The sums of the window that ends now.
    pub fn sums(&mut self, now: Instant) -> Sums {
        self.turn_to(now);
        self.buckets.iter().fold(Sums::default(), |sum, bucket| Sums {
            calls: sum.calls.saturating_add(bucket.calls),
            failed: sum.failed.saturating_add(bucket.failed),
            slow: sum.slow.saturating_add(bucket.slow),
        })
    }

    /// Empties the buckets that have left the window.
    fn turn_to(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.start).as_secs().max(self.second);
        let gone = (second - self.second).min(WINDOW_SECONDS as u64);
        for step in 1..=gone {
            self.buckets[bucket_of(second - gone + step)] = Sums::default();
        }
        self.second = second;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "below ten")]
fn bucket_of(second: u64) -> usize {
    (second % WINDOW_SECONDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use std::time::Duration;

    #[test]
    fn a_call_is_in_the_window_for_ten_seconds() {
        let start = clock::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut window = Window::new(start);
        window.count(Call { failed: true, slow: false }, at(900));
        window.count(Call { failed: false, slow: true }, at(1000));
        assert_eq!(window.sums(at(9_999)), Sums { calls: 2, failed: 1, slow: 1 });
        assert_eq!(window.sums(at(10_000)), Sums { calls: 1, failed: 0, slow: 1 });
        assert_eq!(window.sums(at(11_000)), Sums::default());
        window.count(Call { failed: true, slow: false }, at(500_000));
        assert_eq!(window.sums(at(500_000)).failed, 1);
    }
}
