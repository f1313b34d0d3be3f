//! The deadline of the line before the workers: a request that waited for too long is refused when
//! it is taken, not worked on, since its client may have given up.
//!
//! A fixed deadline alone keeps a line that stands: at lasting overload each request waits for
//! nearly the whole deadline and is then answered late, or refused late. So the deadline is shorter
//! while the line stands, as in controlled delay (CoDel): when no request was taken soon for the
//! whole of `server.queue_timeout`, those that waited for more than a tenth of it are refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::metrics::{Counter, Histogram};

/// What "soon" is: this part of the deadline.
const SOON_PART: u32 = 10;

/// In the place of a time: the line does not stand.
const MOVES: u64 = u64::MAX;

/// The line before the workers of one engine: how long its requests waited, and which did for too
/// long.
#[derive(Debug)]
pub struct Line {
    begun: Instant,
    /// Since when no request was taken soon, in milliseconds after `begun`; or [`MOVES`].
    stands_since_ms: AtomicU64,
    waits: Arc<Histogram>,
    late: Arc<Counter>,
}

impl Line {
    /// A line that nobody stands in.
    pub fn new(waits: Arc<Histogram>, late: Arc<Counter>) -> Self {
        let begun = clock::now();
        Line { begun, stands_since_ms: AtomicU64::new(MOVES), waits, late }
    }

    /// How long requests waited.
    pub fn waits(&self) -> &Arc<Histogram> {
        &self.waits
    }

    /// A worker took a request that waits since `since`; `last`: nobody is behind it. The error to
    /// refuse it with, when it waited for too long.
    pub fn taken(
        &self,
        since: Instant,
        last: bool,
        timeout: Duration,
        now: Instant,
    ) -> Option<Error> {
        let waited = now.saturating_duration_since(since);
        self.waits.observe(waited);
        let soon = timeout / SOON_PART;
        let stands = self.stands(last || waited < soon, now);
        if waited <= timeout && !(waited > soon && stands >= timeout) {
            return None;
        }
        Some(self.refused(waited))
    }

    /// The same for a request that no worker took: only the deadline counts.
    pub fn overdue(&self, since: Instant, timeout: Duration, now: Instant) -> Option<Error> {
        let waited = now.saturating_duration_since(since);
        (waited >= timeout).then(|| {
            self.waits.observe(waited);
            self.refused(waited)
        })
    }

    /// For how long the line has stood.
    fn stands(&self, moves: bool, now: Instant) -> Duration {
        let before = self.stands_since_ms.load(Relaxed);
        if moves {
            // Nearly always so: nothing is written then.
            if before != MOVES {
                self.stands_since_ms.store(MOVES, Relaxed);
            }
            return Duration::ZERO;
        }
        let now_ms = now.saturating_duration_since(self.begun).as_millis();
        let now_ms = u64::try_from(now_ms).unwrap_or(MOVES - 1);
        if before == MOVES {
            self.stands_since_ms.store(now_ms, Relaxed);
            return Duration::ZERO;
        }
        Duration::from_millis(now_ms.saturating_sub(before))
    }

    fn refused(&self, waited: Duration) -> Error {
        self.late.inc();
        let ms = waited.as_millis();
        let context =
            format!("no worker was free for {ms} ms (server.queue_timeout); try again shortly");
        Error::new(Kind::QueueTimeout, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::metrics::Registry;

    const TIMEOUT: Duration = Duration::from_secs(1);

    fn line() -> Line {
        let registry = Registry::default();
        let waits = registry.histogram("wait_seconds", "Waits.", &[]);
        Line::new(waits, registry.counter("late_total", "Late.", &[]))
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn whoever_waited_for_too_long_is_refused_and_told_when_to_come_again() {
        let (line, now) = (line(), clock::now() + ms(60_000));
        assert!(line.taken(now - ms(999), false, TIMEOUT, now).is_none());
        let error = line.taken(now - ms(1001), false, TIMEOUT, now).unwrap();
        assert_eq!(error.kind(), Kind::QueueTimeout);
        assert!(error.retry_after_seconds().is_some());
        assert_eq!(line.late.value(), 1);
        assert!(line.overdue(now - ms(999), TIMEOUT, now).is_none());
        assert!(line.overdue(now - ms(1000), TIMEOUT, now).is_some());
    }

    #[test]
    fn a_line_that_stands_has_a_shorter_deadline_until_it_moves() {
        let line = line();
        let start = clock::now() + ms(60_000);
        // Each waits for half a second: nobody is late for the first second of it.
        for at in (0..1000).step_by(50) {
            let now = start + ms(at);
            assert!(line.taken(now - ms(500), false, TIMEOUT, now).is_none(), "{at} ms");
        }
        let now = start + ms(1000);
        assert!(line.taken(now - ms(500), false, TIMEOUT, now).is_some());
        assert!(line.taken(now - ms(101), false, TIMEOUT, now).is_some());
        // One that was taken soon says that it moves.
        assert!(line.taken(now - ms(99), false, TIMEOUT, now).is_none());
        assert!(line.taken(now - ms(500), false, TIMEOUT, now).is_none());
    }

    #[test]
    fn a_line_that_ran_empty_does_not_stand() {
        let line = line();
        let start = clock::now() + ms(60_000);
        assert!(line.taken(start - ms(500), false, TIMEOUT, start).is_none());
        assert!(line.taken(start - ms(500), true, TIMEOUT, start).is_none());
        // Much later, another one that waited a while.
        let now = start + ms(60_000);
        assert!(line.taken(now - ms(500), false, TIMEOUT, now).is_none());
    }
}
