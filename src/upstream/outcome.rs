//! What the end of an attempt says about its upstream: the one table from errors to breakers.

use std::time::Duration;

use crate::base::error::{Error, Kind, Phase};

/// What an attempt says about its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered.
    Good,
    /// It answered with a refusal (4xx): it is alive.
    Alive,
    /// It failed.
    Failed,
    /// There was no way to it.
    Unreachable,
    /// Nothing: the client left, or the end was our own doing.
    Nothing,
}

/// The outcome of an attempt that ended with this error. `fair`: when the time that ran out was the
/// request's own, the upstream had a fair part of it.
pub fn of_error(error: &Error, fair: bool) -> Outcome {
    match error.kind() {
        Kind::UpstreamConnect | Kind::UpstreamTimeout(Phase::Resolve | Phase::Connect) => {
            Outcome::Unreachable
        }
        Kind::UpstreamTimeout(Phase::Attempt | Phase::Request) | Kind::RequestTotalTimeout => {
            if fair {
                Outcome::Failed
            } else {
                Outcome::Nothing
            }
        }
        Kind::UpstreamTimeout(_)
        | Kind::UpstreamCut
        | Kind::UpstreamMalformed
        | Kind::UpstreamLineTooLong
        | Kind::UpstreamInBand => Outcome::Failed,
        // 402 and 408 are told as what they are.
        Kind::UpstreamStatus(status) if status < 500 => Outcome::Alive,
        Kind::UpstreamStatus(_) => Outcome::Failed,
        // Our bound, and a client's doing: whoever asks for much would open it for everybody.
        Kind::UpstreamAnswerTooLarge
        | Kind::UpstreamRateLimited
        | Kind::UpstreamRejected(_)
        | Kind::UpstreamModelNotFound
        | Kind::UpstreamKeyRejected(_) => Outcome::Alive,
        _ => Outcome::Nothing,
    }
}

/// Whether the upstream has more to do than it can.
pub fn overloaded(error: &Error, fair: bool) -> bool {
    match error.kind() {
        Kind::UpstreamRateLimited | Kind::UpstreamStatus(503) => true,
        Kind::UpstreamTimeout(_) | Kind::RequestTotalTimeout => {
            of_error(error, fair) == Outcome::Failed
        }
        _ => false,
    }
}

/// How long the upstream asks to be left alone (`Retry-After` of 429 and 503), at most `max`.
pub fn cool_down(error: &Error, max: Duration) -> Option<Duration> {
    match error.kind() {
        Kind::UpstreamRateLimited | Kind::UpstreamStatus(503) => {
            let wait = error.asked_wait()?.min(max);
            (!wait.is_zero()).then_some(wait)
        }
        _ => None,
    }
}

/// A failure in words that are all ours. An upstream's own may repeat what somebody asked, and what
/// is told here is told to others.
pub fn in_our_words(error: &Error) -> String {
    match error.kind() {
        Kind::UpstreamConnect | Kind::UpstreamTimeout(_) | Kind::UpstreamCut => error.to_string(),
        Kind::UpstreamStatus(status) => format!("it answered {status}"),
        Kind::RequestTotalTimeout => "it gave no answer in a request's time".to_owned(),
        Kind::UpstreamInBand => "it sent an error inside an answer".to_owned(),
        _ => "it sent what is no answer".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_the_upstream_s_own_and_nothing_else() {
        let of = |kind| of_error(&Error::new(kind, "x"), true);
        for kind in [
            Kind::UpstreamStatus(500),
            Kind::UpstreamStatus(503),
            Kind::UpstreamTimeout(Phase::FirstToken),
            Kind::UpstreamTimeout(Phase::Answer),
            Kind::UpstreamTimeout(Phase::Idle),
            Kind::UpstreamTimeout(Phase::Send),
            Kind::UpstreamTimeout(Phase::Request),
            Kind::RequestTotalTimeout,
            Kind::UpstreamCut,
            Kind::UpstreamMalformed,
            Kind::UpstreamLineTooLong,
            Kind::UpstreamInBand,
        ] {
            assert_eq!(of(kind), Outcome::Failed, "{kind:?}");
        }
        for kind in [
            Kind::UpstreamAnswerTooLarge,
            Kind::UpstreamRateLimited,
            Kind::UpstreamStatus(408),
            Kind::UpstreamStatus(402),
            Kind::UpstreamRejected(400),
            Kind::UpstreamModelNotFound,
            Kind::UpstreamKeyRejected(401),
        ] {
            assert_eq!(of(kind), Outcome::Alive, "{kind:?}");
        }
        for kind in [Kind::UpstreamConnect, Kind::UpstreamTimeout(Phase::Connect)] {
            assert_eq!(of(kind), Outcome::Unreachable, "{kind:?}");
        }
        for kind in [
            Kind::ClientGone,
            Kind::ClientStalled,
            Kind::Draining,
            Kind::Internal,
            Kind::WaitingTimeout,
        ] {
            assert_eq!(of(kind), Outcome::Nothing, "{kind:?}");
        }
        let hurried = Error::new(Kind::RequestTotalTimeout, "x");
        assert_eq!(of_error(&hurried, false), Outcome::Nothing);
    }

    #[test]
    fn a_cool_down_is_what_a_429_or_a_503_asks_for_and_no_longer_than_allowed() {
        let second = Duration::from_secs(1);
        let of = |kind, wait: Option<u32>| {
            let error = Error::new(kind, "x").retry_after(wait.map(|wait| second * wait));
            cool_down(&error, 60 * second)
        };
        assert_eq!(of(Kind::UpstreamRateLimited, Some(7)), Some(7 * second));
        assert_eq!(of(Kind::UpstreamStatus(503), Some(9000)), Some(60 * second));
        assert_eq!(of(Kind::UpstreamRateLimited, None), None);
        assert_eq!(of(Kind::UpstreamRateLimited, Some(0)), None);
        assert_eq!(of(Kind::UpstreamStatus(500), Some(7)), None);
    }
}
