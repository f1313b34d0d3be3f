//! What the answer to a delivery means.

use std::time::Duration;

use crate::config::settings::alerts::ChannelKind;

/// Longest wait that a channel may ask for.
pub const WAIT_MAX: Duration = Duration::from_secs(3600);

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there.
    Delivered {
        /// The channel wants to be left alone for so long all the same.
        wait: Option<Duration>,
    },
    /// It may be there on another try.
    Later {
        /// What the channel asked for.
        wait: Option<Duration>,
        /// In words.
        why: String,
    },
    /// It will never be there.
    Refused {
        /// Whether any other notice would fare the same: an address or a key that is wrong.
        channel: bool,
        /// In words.
        why: String,
    },
}

/// Reads an answer: its status, `Retry-After` and `X-Sentry-Rate-Limits`.
pub fn read(
    kind: ChannelKind,
    status: u16,
    retry_after: Option<&str>,
    limits: Option<&str>,
) -> Outcome {
    let limited = limits.filter(|_| kind == ChannelKind::Sentry).and_then(rate_limits);
    let asked = retry_after.and_then(|text| text.trim().parse::<u64>().ok());
    let asked = asked.map(|seconds| Duration::from_secs(seconds).min(WAIT_MAX));
    let why = format!("answered {status}");
    match status {
        200..=299 => Outcome::Delivered { wait: limited },
        // Sentry's own default where it names no time is a minute.
        429 if kind == ChannelKind::Sentry => {
            Outcome::Later { wait: limited.or(asked).or(Some(Duration::from_secs(60))), why }
        }
        408 | 409 | 425 | 429 | 500..=599 => Outcome::Later { wait: asked.or(limited), why },
        // A redirect is not followed: where it leads was not configured.
        300..=399 => {
            Outcome::Refused { channel: true, why: format!("{why}; set the url that it leads to") }
        }
        401 | 403 | 407 => Outcome::Refused { channel: true, why: format!("{why}; mend the key") },
        404 | 405 | 410 => Outcome::Refused { channel: true, why: format!("{why}; mend the url") },
        _ => Outcome::Refused { channel: false, why },
    }
}

/// The longest wait for events: `seconds:categories:scope:reason, …`; no categories: all.
fn rate_limits(text: &str) -> Option<Duration> {
    let wait = |one: &str| {
        let mut fields = one.trim().split(':');
        let seconds = fields.next()?.trim().parse::<u64>().ok()?;
        let mut categories = fields.next().unwrap_or_default().split(';').map(str::trim);
        let ours = |category: &str| matches!(category, "" | "error" | "default");
        categories.any(ours).then(|| Duration::from_secs(seconds).min(WAIT_MAX))
    };
    text.split(',').filter_map(wait).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentry_s_limits_count_for_events_only() {
        let check = |text: &str, seconds: Option<u64>| {
            assert_eq!(rate_limits(text), seconds.map(Duration::from_secs), "{text}");
        };
        check("60:error;transaction:key, 2700::organization", Some(2700));
        check("60:transaction:key", None);
        check("60:error:key:quota", Some(60));
        check("60", Some(60));
        check("999999999::organization", Some(3600));
        check("", None);
        check("x:error", None);
    }

    #[test]
    fn answers_are_told_apart() {
        use ChannelKind::{Ntfy, Sentry};
        let wait = |outcome: Outcome| match outcome {
            Outcome::Later { wait, .. } => wait.map(|wait| wait.as_secs()),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(read(Ntfy, 429, Some("7"), None)), Some(7));
        assert_eq!(wait(read(Ntfy, 503, None, None)), None);
        assert_eq!(wait(read(Ntfy, 429, Some("86400"), None)), Some(3600));
        assert_eq!(wait(read(Ntfy, 429, Some("soon"), Some("9::x"))), None);
        assert_eq!(wait(read(Sentry, 429, None, None)), Some(60));
        assert_eq!(wait(read(Sentry, 429, Some("5"), Some("9:error:key"))), Some(9));
        let limited = Outcome::Delivered { wait: Some(Duration::from_secs(9)) };
        assert_eq!(read(Sentry, 200, None, Some("9::key")), limited);
        let refused = |status| match read(Ntfy, status, None, None) {
            Outcome::Refused { channel, .. } => channel,
            other => panic!("{other:?}"),
        };
        assert!(!refused(413) && !refused(400) && !refused(422));
        assert!(refused(401) && refused(403) && refused(404) && refused(301));
    }
}
