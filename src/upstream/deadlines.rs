//! The deadlines of one attempt. Pure: it is told the time.

use std::time::{Duration, Instant};

use crate::base::error::Phase;

/// The settings that an attempt's deadlines are made of.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the keys of the same names in tidegate.toml(5)")]
pub struct Timeouts {
    pub connect: Duration,
    pub first_token: Duration,
    pub answer: Option<Duration>,
    pub idle: Duration,
    pub total: Duration,
}

/// Where an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for the first content of a stream.
    FirstToken,
    /// Waiting for a whole answer.
    Answer,
    /// Committed: content flows.
    Flowing,
}

/// The deadlines of one attempt.
#[derive(Clone, Debug)]
pub struct Deadlines {
    timeouts: Timeouts,
    started: Instant,
    request: Instant,
    /// End of this attempt's share of the request's time; it ends at commit.
    share: Instant,
    stage: Stage,
    last_event: Instant,
}

impl Deadlines {
    /// An attempt that begins `now`, with `links_left` links of the chain left, itself among them,
    /// of a request that must end by `request`.
    pub fn new(
        timeouts: Timeouts,
        streams: bool,
        now: Instant,
        request: Instant,
        links_left: usize,
    ) -> Self {
        let left = request.saturating_duration_since(now);
        let links = u32::try_from(links_left.max(1)).unwrap_or(u32::MAX);
        let stage = if streams { Stage::FirstToken } else { Stage::Answer };
        let share = now + left / links;
        Deadlines { timeouts, started: now, request, share, stage, last_event: now }
    }

    /// The deadline of connecting.
    pub fn connect(&self) -> (Instant, Phase) {
        earliest([
            (self.started + self.timeouts.connect, Phase::Connect),
            (self.share, self.share_phase()),
        ])
    }

    /// Whichever deadline comes first now.
    pub fn next(&self) -> (Instant, Phase) {
        let attempt = (self.started + self.timeouts.total, Phase::Attempt);
        let request = (self.request, Phase::Request);
        match self.stage {
            Stage::FirstToken => earliest([
                (self.started + self.timeouts.first_token, Phase::FirstToken),
                (self.share, self.share_phase()),
                attempt,
            ]),
            Stage::Answer => {
                let answer = match self.timeouts.answer {
                    Some(answer) => (self.started + answer, Phase::Answer),
                    None => (self.share, self.share_phase()),
                };
                earliest([answer, (self.share, self.share_phase()), attempt])
            }
            Stage::Flowing => {
                earliest([(self.last_event + self.timeouts.idle, Phase::Idle), attempt, request])
            }
        }
    }

    /// When the attempt ends, whatever comes.
    pub fn end(&self) -> Instant {
        self.request.min(self.started + self.timeouts.total)
    }

    /// A whole event arrived.
    pub fn event(&mut self, now: Instant) {
        self.last_event = now;
    }

    /// The first content arrived: the attempt's share no longer counts.
    pub fn committed(&mut self, now: Instant) {
        self.stage = Stage::Flowing;
        self.last_event = now;
    }

    /// The share of the last link is the request's time itself.
    fn share_phase(&self) -> Phase {
        if self.share >= self.request { Phase::Request } else { Phase::Attempt }
    }
}

fn earliest<const N: usize>(deadlines: [(Instant, Phase); N]) -> (Instant, Phase) {
    let mut first = deadlines[0];
    for deadline in &deadlines[1..] {
        if deadline.0 < first.0 {
            first = *deadline;
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn timeouts() -> Timeouts {
        Timeouts {
            connect: 2 * SECOND,
            first_token: 120 * SECOND,
            answer: None,
            idle: 30 * SECOND,
            total: 600 * SECOND,
        }
    }

    #[test]
    fn an_attempt_leaves_time_for_the_rest_of_the_chain_until_it_commits() {
        let now = clock::now();
        let request = now + 90 * SECOND;
        let mut first = Deadlines::new(timeouts(), true, now, request, 3);
        assert_eq!(first.connect(), (now + 2 * SECOND, Phase::Connect));
        assert_eq!(first.next(), (now + 30 * SECOND, Phase::Attempt));
        first.committed(now + 29 * SECOND);
        assert_eq!(first.next(), (now + 59 * SECOND, Phase::Idle));
        first.event(now + 58 * SECOND);
        assert_eq!(first.next(), (now + 88 * SECOND, Phase::Idle));
        first.event(now + 80 * SECOND);
        assert_eq!(first.next(), (request, Phase::Request));
        let last = Deadlines::new(timeouts(), true, now + 60 * SECOND, request, 1);
        assert_eq!(last.next(), (request, Phase::Request));
    }

    #[test]
    fn a_whole_answer_has_its_own_deadline_or_the_share() {
        let now = clock::now();
        let request = now + 600 * SECOND;
        let whole = Deadlines::new(timeouts(), false, now, request, 2);
        assert_eq!(whole.next(), (now + 300 * SECOND, Phase::Attempt));
        let own = Timeouts { answer: Some(10 * SECOND), ..timeouts() };
        let whole = Deadlines::new(own, false, now, request, 2);
        assert_eq!(whole.next(), (now + 10 * SECOND, Phase::Answer));
    }
}
