//! A committed stream, brought on by a pump: whole events out as they come, until its terminator,
//! or until it breaks, which its client is told in its own protocol.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::base::error::{Error, Kind, Phase};
use crate::llm::{Fault, Stream};
use crate::net::outbound::{self, Now};
use crate::net::pump::{Flow, FlowStep};
use crate::upstream::deadlines::Deadlines;

use super::exchange::Exchange;

/// Bytes gathered for one write.
const OUT_BYTES_MAX: usize = 64 * 1024;

/// Pieces read from one upstream before the others of its pump have their turn, whatever comes of
/// them: a flood of comments makes no bytes for the client.
const PIECES_MAX: usize = 64;

/// Pieces read behind a terminator. Past it: the connection is closed.
const TAIL_PIECES_MAX: usize = 4;

/// What an attempt leaves behind when its first content is out.
pub struct Parts {
    /// The upstream's answer.
    pub upstream: Box<outbound::Exchange>,
    /// The streaming core.
    pub core: Stream,
    /// The attempt's deadlines.
    pub deadlines: Deadlines,
}

/// A committed stream.
pub struct Flowing {
    exchange: Box<Exchange>,
    parts: Parts,
    over: bool,
}

impl Flowing {
    /// Of an exchange whose attempt got this far.
    pub fn new(exchange: Box<Exchange>, parts: Parts) -> Self {
        Flowing { exchange, parts, over: false }
    }

    /// The stream ends well.
    fn finished(&mut self) -> FlowStep {
        self.settle();
        let core = &mut self.parts.core;
        self.exchange.keep(|| core.kept());
        self.exchange.answered();
        FlowStep::End
    }

    /// The stream ends with an error: in-band, and without its terminator.
    fn cut(&mut self, error: &Error, out: &mut Vec<u8>) -> FlowStep {
        self.settle();
        self.exchange.cut_in_band(error, out);
        FlowStep::End
    }

    fn fault(&mut self, fault: &Fault, out: &mut Vec<u8>) -> FlowStep {
        let error = self.exchange.fault(fault);
        self.cut(&error, out)
    }

    /// Counts the tokens, once.
    fn settle(&mut self) {
        self.over = true;
        let core = &self.parts.core;
        self.exchange.line(core.longest());
        self.exchange.usage(core.tokens());
    }
}

impl Flow for Flowing {
    fn upstream(&self) -> Option<BorrowedFd<'_>> {
        self.parts.upstream.socket()
    }

    fn read(&mut self, now: Instant, out: &mut Vec<u8>) -> FlowStep {
        if self.over {
            return FlowStep::Wait;
        }
        let begun = out.len();
        let mut pieces = 0;
        let step = loop {
            if out.len() >= OUT_BYTES_MAX || pieces == PIECES_MAX {
                break FlowStep::Again;
            }
            pieces += 1;
            let Parts { upstream, core, deadlines } = &mut self.parts;
            let reply = self.exchange.reply();
            let fed = match upstream.piece_now() {
                Ok(Now::Nothing) => break FlowStep::Wait,
                Ok(Now::Data(bytes)) => core.feed(reply, bytes, out).map(|feed| feed.events),
                Ok(Now::End) => match core.end(reply, out) {
                    Ok(()) => break self.finished(),
                    Err(fault) => break self.fault(&fault, out),
                },
                Err(error) => break self.cut(&error, out),
            };
            match fed {
                Ok(_) if core.done() => break self.finished(),
                Ok(0) => {}
                Ok(_) => deadlines.event(now),
                Err(fault) => break self.fault(&fault, out),
            }
        };
        if out.len() > begun {
            self.exchange.sent_at(now);
        }
        step
    }

    fn deadline(&self) -> Instant {
        self.parts.deadlines.next().0.min(self.exchange.silence_deadline())
    }

    fn end_by(&self) -> Instant {
        self.parts.deadlines.end()
    }

    fn expired(&mut self, now: Instant, out: &mut Vec<u8>) -> FlowStep {
        if self.over {
            return FlowStep::Wait;
        }
        let (deadline, phase) = self.parts.deadlines.next();
        if now >= deadline {
            let error = self.exchange.too_late(phase);
            return self.cut(&error, out);
        }
        if now >= self.exchange.silence_deadline() {
            self.exchange.keep_alive(out);
            self.exchange.sent_at(now);
        }
        FlowStep::Wait
    }

    fn lost(&mut self, error: Error) {
        if !self.over {
            self.settle();
        }
        self.exchange.lost(&error);
    }

    fn ended(&mut self, bytes: u64) {
        self.exchange.ended(bytes);
    }

    fn tail(&mut self) -> bool {
        for _ in 0..TAIL_PIECES_MAX {
            match self.parts.upstream.piece_now() {
                Ok(Now::Data(_)) => {}
                Ok(Now::Nothing) => return false,
                Ok(Now::End) | Err(_) => return true,
            }
        }
        true
    }
}

/// The error of a deadline that ran out while a stream flowed.
pub fn too_late(upstream: &str, phase: Phase) -> Error {
    let setting = phase.as_str();
    let context = format!("upstream {upstream} said nothing more within {setting}");
    Error::new(Kind::UpstreamTimeout(phase), context)
}
