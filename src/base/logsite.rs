//! Log lines that a remote can trigger, limited per place in the code, so that flooding one of them
//! neither fills the log nor mutes the others.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::clock;

/// Lines that one place may log at once.
pub const LINES_BURST: u64 = 10;
/// After a burst, one line passes in this many milliseconds.
pub const LINE_INTERVAL_MS: u64 = 1000;

/// Lines left out by every place together.
static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// How many lines were left out since the start of the process, by all places together. Exported
/// as `tidegate_log_lines_suppressed_total`.
pub fn suppressed_total() -> u64 {
    SUPPRESSED.load(Relaxed)
}

/// One place in the code. `log_limited!` makes one for each of its uses.
#[derive(Debug, Default)]
pub struct LogSite {
    /// GCRA: the time at which the allowance is whole again, in milliseconds.
    whole_at_ms: AtomicU64,
    /// Lines left out since the last one that passed.
    suppressed: AtomicU64,
}

impl LogSite {
    /// A place that has not logged yet.
    pub const fn new() -> Self {
        LogSite { whole_at_ms: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Whether a line may pass now; then also how many were left out before it.
    pub fn pass(&self) -> Option<u64> {
        static START: OnceLock<Instant> = OnceLock::new();
        let since_start = clock::now().duration_since(*START.get_or_init(clock::now));
        self.pass_at(u64::try_from(since_start.as_millis()).unwrap_or(u64::MAX / 2))
    }

    /// The same, at a time given in milliseconds since any fixed point.
    pub fn pass_at(&self, now_ms: u64) -> Option<u64> {
        let next = |whole_at: u64| {
            let next = whole_at.max(now_ms) + LINE_INTERVAL_MS;
            (next <= now_ms + LINES_BURST * LINE_INTERVAL_MS).then_some(next)
        };
        if self.whole_at_ms.fetch_update(Relaxed, Relaxed, next).is_ok() {
            Some(self.suppressed.swap(0, Relaxed))
        } else {
            self.suppressed.fetch_add(1, Relaxed);
            SUPPRESSED.fetch_add(1, Relaxed);
            None
        }
    }
}

/// Logs a line as `log::log!` does, but limited at this place to a burst of
/// [`LINES_BURST`](crate::base::logsite::LINES_BURST) and one a second after it. The next line that
/// passes tells in `suppressed` how many were left out.
///
/// ```
/// use tidegate::log_limited;
/// let peer = "192.0.2.1";
/// log_limited!(log::Level::Warn, "bad_request", peer, reason:% = "no host");
/// ```
#[macro_export]
macro_rules! log_limited {
    ($level:expr, $event:literal $(, $key:tt $(: $capture:tt)? $(= $value:expr)?)* $(,)?) => {{
        static SITE: $crate::base::logsite::LogSite = $crate::base::logsite::LogSite::new();
        let level: ::log::Level = $level;
        if level <= ::log::max_level() {
            match SITE.pass() {
                None => {}
                Some(0) => {
                    $crate::__log_passed!(level, $event $(, $key $(: $capture)? $(= $value)?)*);
                }
                Some(suppressed) => ::log::log!(
                    level, $($key $(: $capture)? $(= $value)?,)* suppressed = suppressed; $event
                ),
            }
        }
    }};
}

/// `log::log!` wants no `;` where there are no fields.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_passed {
    ($level:expr, $event:literal) => { ::log::log!($level, $event) };
    ($level:expr, $event:literal, $($fields:tt)+) => { ::log::log!($level, $($fields)+; $event) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_a_second_and_the_next_line_tells_what_was_left_out() {
        let site = LogSite::new();
        let total = suppressed_total();
        let burst: Vec<_> = (0..LINES_BURST + 5).map(|_| site.pass_at(7_000)).collect();
        assert_eq!(burst.iter().filter(|passed| **passed == Some(0)).count() as u64, LINES_BURST);
        assert!(burst[10..].iter().all(Option::is_none));
        assert!(suppressed_total() >= total + 5);
        assert_eq!(site.pass_at(7_999), None);
        assert_eq!(site.pass_at(8_000), Some(6));
        assert_eq!(site.pass_at(8_000), None);
        // A minute of quiet gives the whole burst back, and no more.
        let later = (0..LINES_BURST * 2).filter(|_| site.pass_at(68_000).is_some()).count() as u64;
        assert_eq!(later, LINES_BURST);
    }

    #[test]
    fn one_place_does_not_mute_another() {
        let (loud, quiet) = (LogSite::new(), LogSite::new());
        while loud.pass_at(0).is_some() {}
        assert_eq!(quiet.pass_at(0), Some(0));
    }

    #[test]
    fn fields_may_be_given_in_every_form_that_log_takes() {
        let (peer, count) = ("p", 1);
        log_limited!(log::Level::Trace, "none");
        log_limited!(log::Level::Trace, "some", peer, count = count + 1, shown:% = peer,);
    }
}
