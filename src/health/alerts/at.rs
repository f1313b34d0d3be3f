//! The time of alerts: milliseconds since 1970 that never go back while the process runs, so that
//! what is kept can be compared after a restart, and a clock that jumps moves nothing.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::base::{clock, time_format};

/// A point in time, in milliseconds since 1970.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct At(pub u64);

impl At {
    /// This much later.
    #[must_use]
    pub fn after(self, wait: Duration) -> At {
        At(self.0.saturating_add(millis(wait)))
    }

    /// How long after an earlier point; zero when that is later.
    pub fn since(self, earlier: At) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// As RFC 3339, with milliseconds.
    pub fn text(self) -> String {
        time_format::rfc3339(self.wall(), 3)
    }

    /// As a time of the system.
    pub fn wall(self) -> SystemTime {
        // What a file says may lie beyond what the system can hold.
        UNIX_EPOCH.checked_add(Duration::from_millis(self.0)).unwrap_or(UNIX_EPOCH)
    }
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

/// The line of time of one process: the wall clock at its start, and from there the monotonic one.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    start: Instant,
    wall: At,
}

impl Timeline {
    /// One that begins now.
    pub fn start() -> Self {
        Timeline { start: clock::now(), wall: At(millis(clock::unix())) }
    }

    /// Where it is now.
    pub fn now(&self) -> At {
        self.wall.after(clock::now().saturating_duration_since(self.start))
    }

    /// How long from now until `at`; zero when that is past.
    pub fn until(&self, at: At) -> Duration {
        at.since(self.now())
    }
}
