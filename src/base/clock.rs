//! The only place that asks the operating system for the time. State machines take `now` as an
//! argument instead, so that tests and simulations can drive them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic time.
#[inline]
pub fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the one wrapper")]
    Instant::now()
}

/// The wall-clock time; it may jump, so it is for people and wire formats only.
#[inline]
pub fn wall() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "the one wrapper")]
    SystemTime::now()
}

/// Wall-clock time since the Unix epoch; zero for a clock set before it.
pub fn unix() -> Duration {
    wall().duration_since(UNIX_EPOCH).unwrap_or_default()
}
