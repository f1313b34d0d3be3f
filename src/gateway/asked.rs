//! A call whose whole answer is waited for on a pump: its head, its body, its deadline.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::base::error::Error;
use crate::net::http::BodyLength;
use crate::net::outbound::{self, Now};
use crate::net::pump::brisk::{Call, CallStep, Done};
use crate::upstream::deadlines::Deadlines;

use super::attempt::{Asked, ERROR_BODY_BYTES_MAX, ERROR_BODY_TIMEOUT};
use super::exchange::{Exchange, Outcome};
use super::source::HeadSays;

/// Pieces read from one upstream before the others of its pump have their turn.
const PIECES_MAX: usize = 16;

/// Most that is set aside for an announced length, in bytes; the rest as it comes.
const RESERVE_MAX: u64 = 64 * 1024;

/// A call that was sent.
pub struct AskedCall {
    exchange: Box<Exchange>,
    upstream: Box<outbound::Exchange>,
    deadlines: Deadlines,
    says: Option<HeadSays>,
    /// How long the body of a refusal is waited for: it helps, but not much.
    refusal_until: Option<Instant>,
    body: Vec<u8>,
    outcome: Option<Outcome>,
}

impl AskedCall {
    /// Of an exchange whose attempt got this far.
    pub fn new(exchange: Box<Exchange>, asked: Asked) -> Self {
        let Asked { upstream, deadlines } = asked;
        AskedCall {
            exchange,
            upstream,
            deadlines,
            says: None,
            refusal_until: None,
            body: Vec::new(),
            outcome: None,
        }
    }

    /// Reads the head; false while it is not here.
    fn head(&mut self, now: Instant) -> Result<bool, Error> {
        let Some(head) = self.upstream.head_now()? else { return Ok(false) };
        let says = HeadSays::of(head);
        if let BodyLength::Exact(length) = head.body {
            self.body.reserve_exact(usize::try_from(length.min(RESERVE_MAX)).unwrap_or(0));
        }
        if !says.success() {
            let until = now + ERROR_BODY_TIMEOUT;
            self.refusal_until = Some(until.min(self.deadlines.next().0));
        }
        self.says = Some(says);
        Ok(true)
    }

    /// What the body has come to, when nothing more is read of it.
    fn ended(&mut self) -> Outcome {
        let body = std::mem::take(&mut self.body);
        match self.says {
            Some(says) if !says.success() => Outcome::Refused(says, body),
            _ => Outcome::Whole(body),
        }
    }

    /// Reads one piece of the body; `Ok(None)`: there may be more.
    fn piece(&mut self) -> Result<Option<CallStep>, Error> {
        let refusal = self.refusal_until.is_some();
        let max = if refusal { ERROR_BODY_BYTES_MAX } else { self.exchange.answer_max() };
        match self.upstream.piece_now() {
            Ok(Now::Nothing) => return Ok(Some(CallStep::Wait)),
            Ok(Now::Data(data)) if self.body.len() + data.len() <= max => {
                self.body.extend_from_slice(data);
                return Ok(None);
            }
            Ok(Now::Data(_)) if !refusal => return Err(self.exchange.answer_too_large()),
            Err(error) if !refusal => return Err(error),
            // Of a refusal what came is enough.
            Ok(Now::Data(_) | Now::End) | Err(_) => {}
        }
        let outcome = self.ended();
        Ok(Some(self.over(outcome)))
    }

    fn over(&mut self, outcome: Outcome) -> CallStep {
        self.outcome = Some(outcome);
        CallStep::Done
    }
}

impl Call for AskedCall {
    fn upstream(&self) -> Option<BorrowedFd<'_>> {
        self.upstream.socket()
    }

    fn begun(&self) -> bool {
        self.upstream.has_more()
    }

    fn read(&mut self, now: Instant) -> CallStep {
        if self.outcome.is_some() {
            return CallStep::Done;
        }
        for _ in 0..PIECES_MAX {
            let step = match self.says {
                Some(_) => self.piece(),
                None => self.head(now).map(|here| (!here).then_some(CallStep::Wait)),
            };
            match step {
                Ok(None) => {}
                Ok(Some(step)) => return step,
                Err(error) => return self.over(Outcome::Failed(error)),
            }
        }
        CallStep::Again
    }

    fn deadline(&self) -> Instant {
        self.refusal_until.unwrap_or_else(|| self.deadlines.next().0)
    }

    fn expired(&mut self, _: Instant) -> CallStep {
        let outcome = match self.refusal_until {
            Some(_) => self.ended(),
            None => Outcome::Failed(self.upstream.late(self.deadlines.next().1)),
        };
        self.over(outcome)
    }

    fn finish(self: Box<Self>) -> Done {
        let AskedCall { exchange, upstream, outcome, .. } = *self;
        // Closes the connection unless its answer was read to the end, before another is asked.
        drop(upstream);
        let none = || Outcome::Failed(Error::new(crate::base::error::Kind::Internal, "no outcome"));
        exchange.after_call(outcome.unwrap_or_else(none))
    }

    fn lost(self: Box<Self>, error: Error) {
        let AskedCall { exchange, upstream, .. } = *self;
        drop(upstream);
        exchange.call_lost(error);
    }
}
