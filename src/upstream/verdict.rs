//! What an upstream's status means for the chain (DESIGN section 4, "What moves on").

use std::time::Duration;

use crate::base::error::{Error, Kind};

/// What to do with an answer's head.
#[derive(Debug)]
pub enum Verdict {
    /// It is an answer.
    Answer,
    /// The next in the chain may do better.
    MoveOn(Error),
    /// The request is at fault: another upstream would say the same.
    Final(Error),
}

/// Judges a status. `message` is the upstream's own sentence, `name` the upstream.
pub fn judge(status: u16, retry_after: Option<Duration>, message: &str, name: &str) -> Verdict {
    let context = || match (status, message) {
        // Providers repeat the key there, or parts of it, and it is not the client's.
        (401, _) => format!("upstream {name} answered 401: it rejects the gateway's key"),
        (407, _) => format!("the proxy of upstream {name} answered 407: it wants credentials"),
        (_, "") => format!("upstream {name} answered {status}"),
        _ => format!("upstream {name} answered {status}: {message}"),
    };
    let error = |kind| Error::new(kind, context()).retry_after(retry_after);
    match status {
        200..=299 => Verdict::Answer,
        400 | 413 | 422 => Verdict::Final(error(Kind::UpstreamRejected(status))),
        401 | 403 => Verdict::MoveOn(error(Kind::UpstreamKeyRejected(status))),
        404 => Verdict::MoveOn(error(Kind::UpstreamModelNotFound)),
        // Nobody but a proxy says so: the upstream itself was not asked.
        407 => Verdict::MoveOn(error(Kind::UpstreamProxyRejected)),
        429 => Verdict::MoveOn(error(Kind::UpstreamRateLimited)),
        // 402: this account is out of credit; another upstream's may not be.
        402 | 408 | 500..=599 => Verdict::MoveOn(error(Kind::UpstreamStatus(status))),
        // Redirects are not followed: the key would go to whoever is named there.
        300..=399 => Verdict::MoveOn(error(Kind::UpstreamStatus(502))),
        405..=499 => Verdict::Final(error(Kind::UpstreamRejected(status))),
        _ => Verdict::MoveOn(error(Kind::UpstreamMalformed)),
    }
}

/// `Retry-After` (seconds, also with a fraction) or `retry-after-ms`. HTTP dates are not read:
/// they need a clock that agrees with the upstream's.
pub fn retry_after(seconds: Option<&str>, millis: Option<&str>) -> Option<Duration> {
    let number =
        |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
    let millis = millis.and_then(number).map(|n| n / 1000.0);
    let seconds = millis.or_else(|| seconds.and_then(number))?;
    Duration::try_from_secs_f64(seconds.min(86_400.0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_s_own_faults_end_the_chain_and_everything_else_moves_on() {
        let kind = |status| match judge(status, None, "", "x") {
            Verdict::Answer => "answer".to_owned(),
            Verdict::MoveOn(error) => format!("on {}", error.row().status),
            Verdict::Final(error) => format!("final {}", error.row().status),
        };
        for (status, expected) in [
            (200, "answer"),
            (301, "on 502"),
            (400, "final 400"),
            (401, "on 401"),
            (404, "on 404"),
            (407, "on 502"),
            (408, "on 408"),
            (413, "final 413"),
            (422, "final 422"),
            (429, "on 429"),
            (500, "on 500"),
            (503, "on 503"),
            (999, "on 502"),
        ] {
            assert_eq!(kind(status), expected, "{status}");
        }
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_milliseconds() {
        assert_eq!(retry_after(Some("2"), None), Some(Duration::from_secs(2)));
        assert_eq!(retry_after(Some("2"), Some("1500")), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after(Some("Wed, 21 Oct 2026 07:28:00 GMT"), None), None);
        assert_eq!(retry_after(Some("-1"), None), None);
        assert_eq!(retry_after(Some("1e300"), None), Some(Duration::from_secs(86_400)));
    }

    #[test]
    fn what_an_upstream_says_is_told_unless_it_may_repeat_our_key() {
        let told = |status| match judge(status, None, "wrong key tg-abc", "x") {
            Verdict::Answer => String::new(),
            Verdict::MoveOn(error) | Verdict::Final(error) => error.to_string(),
        };
        assert_eq!(told(400), "upstream x answered 400: wrong key tg-abc");
        assert_eq!(told(401), "upstream x answered 401: it rejects the gateway's key");
    }
}
