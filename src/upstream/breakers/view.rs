//! What is told of breakers: to lists, and to clients whose chain is left alone.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::error::{Error, Kind};
use crate::upstream::breaker::{Force, Stand, Why};

/// The last failure that a breaker saw.
#[derive(Clone, Debug)]
pub struct Cause {
    /// Its code.
    pub code: &'static str,
    /// In words that are all ours: for anybody.
    pub told: Arc<str>,
    /// As it was: for the operator.
    pub full: Arc<str>,
    /// When.
    pub at: Instant,
    /// Failures since the breaker was there.
    pub count: u64,
}

/// One breaker, as lists show it.
#[derive(Clone, Debug)]
pub struct View {
    /// The upstream.
    pub upstream: String,
    /// The model; `None` for the breaker of the address.
    pub model: Option<String>,
    /// Where it stands.
    pub stand: Stand,
    /// What a person decided.
    pub force: Force,
    /// For how long yet, where that ends by itself.
    pub forced_for: Option<Duration>,
    /// Whether nobody is sent to the upstream, by hand.
    pub drained: bool,
    /// How long it has stood so.
    pub since: Duration,
    /// In how long the next call is allowed, where none is now.
    pub next_try: Option<Duration>,
    /// How long the upstream still wants to be left alone.
    pub cooling_down: Option<Duration>,
    /// Calls of the last ten seconds.
    pub calls: u32,
    /// Those that failed.
    pub failed: u32,
    /// The last failure, and how long ago.
    pub cause: Option<(Cause, Duration)>,
}

/// A link that may not be asked now.
#[derive(Clone, Debug)]
pub struct Unavailable {
    /// Why.
    pub why: Why,
    /// When it is worth another try.
    pub until: Option<Instant>,
    pub(super) upstream: String,
    pub(super) cause: Option<Cause>,
}

impl Unavailable {
    /// One whose own limits leave no room before `until`.
    pub fn over_quota(upstream: &str, until: Instant) -> Self {
        let upstream = upstream.to_owned();
        Unavailable { why: Why::Quota, until: Some(until), upstream, cause: None }
    }

    /// The error of a chain whose links may all not be asked.
    pub fn error(&self, now: Instant) -> Error {
        let wait = self.until.map(|until| until.saturating_duration_since(now));
        let mut text = format!("upstream {} is left alone", self.upstream);
        match self.why {
            Why::Quota => {
                text.push_str(": its requests_per_minute or tokens_per_minute is used up");
            }
            Why::Drained => text.push_str(" because it is being drained"),
            Why::Forced => text.push_str(" until its breaker is closed by hand"),
            Why::CoolingDown => text.push_str(", as it asked for"),
            Why::Open | Why::Probing => text.push_str(" because it failed"),
        }
        if let Some(Cause { code, told, at, .. }) = &self.cause {
            let ago = now.saturating_duration_since(*at).as_secs();
            // Writing to a string does not fail.
            let _ = write!(text, "; its last failure, {ago} s ago: {told} ({code})");
        }
        if let Some(wait) = wait {
            let _ = write!(text, "; try again in {} s", wait.as_secs().max(1));
        }
        let kind = match self.why {
            Why::Quota => Kind::UpstreamQuota,
            _ => Kind::UpstreamUnavailable,
        };
        Error::new(kind, text).retry_after(wait)
    }
}
