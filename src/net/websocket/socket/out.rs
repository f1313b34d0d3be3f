//! What goes out: whole frames, as far as the socket takes them at once, and what it did not take.

use std::io::IoSlice;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use socket2::Socket;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::net::websocket::codec::{CONTROL_BYTES_MAX, Fault, NO_CODE, REASON_BYTES_MAX, head};

/// Parts of a frame that one system call takes; with more of them they are copied together.
const PARTS_MAX: usize = 8;

/// Sent bytes whose memory is given back before the rest is sent.
const SENT_BYTES_KEPT: usize = 256 * 1024;

/// The way out of one connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Out {
    /// Frames whose beginning, or all of which, the socket did not take. One message of the caller
    /// (who sends the next when nothing is unsent), a ping and a Close at most.
    bytes: Vec<u8>,
    sent: usize,
    /// The payload of the ping that came last while something was unsent: one pong answers all of
    /// them (RFC 6455, 5.5.3).
    pong: Option<Box<[u8]>>,
    /// A Close is sent, or among the bytes.
    closing: bool,
    moved: Instant,
}

impl Out {
    pub(super) fn new(now: Instant) -> Self {
        Out { bytes: Vec::new(), sent: 0, pong: None, closing: false, moved: now }
    }

    /// Bytes that the socket has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether the socket's readiness matters.
    pub(super) fn waits(&self) -> bool {
        self.unsent() > 0
    }

    pub(super) fn moved(&self) -> Instant {
        self.moved
    }

    /// Whether a Close was sent or waits to be.
    pub(super) fn closing(&self) -> bool {
        self.closing
    }

    pub(super) fn message(
        &mut self,
        stream: &Socket,
        text: bool,
        parts: &[&[u8]],
        now: Instant,
    ) -> Result<(), Fault> {
        let data = if text { Data::Text } else { Data::Binary };
        self.frame(stream, OpCode::Data(data), parts, now)
    }

    pub(super) fn ping(
        &mut self,
        stream: &Socket,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), Fault> {
        let payload = &payload[..payload.len().min(CONTROL_BYTES_MAX)];
        self.frame(stream, OpCode::Control(Control::Ping), &[payload], now)
    }

    /// Answers a ping now, or when what is unsent is out.
    pub(super) fn pong(
        &mut self,
        stream: &Socket,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), Fault> {
        if self.waits() {
            self.pong = Some(payload.into());
            return Ok(());
        }
        self.frame(stream, OpCode::Control(Control::Pong), &[payload], now)
    }

    pub(super) fn close(
        &mut self,
        stream: &Socket,
        code: u16,
        reason: &str,
        now: Instant,
    ) -> Result<(), Fault> {
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let payload: &[&[u8]] = match code {
            NO_CODE => &[],
            code => &[&code.to_be_bytes(), &reason.as_bytes()[..end]],
        };
        self.pong = None;
        let sent = self.frame(stream, OpCode::Control(Control::Close), payload, now);
        self.closing = true;
        sent
    }

    /// One whole frame.
    fn frame(
        &mut self,
        stream: &Socket,
        opcode: OpCode,
        parts: &[&[u8]],
        now: Instant,
    ) -> Result<(), Fault> {
        if self.closing {
            return Ok(());
        }
        let length = parts.iter().map(|part| part.len()).sum();
        let (bytes, head_length) = head(opcode, length);
        let head = &bytes[..head_length];
        let sent = if self.waits() || parts.len() >= PARTS_MAX {
            0
        } else {
            self.moved = now;
            send(stream, head, parts)?
        };
        let rest = head_length + length - sent;
        if rest > 0 {
            if !self.waits() {
                self.moved = now;
            }
            self.bytes.reserve_exact(rest);
            let mut skip = sent;
            for part in [head].iter().chain(parts) {
                let gone = skip.min(part.len());
                self.bytes.extend_from_slice(&part[gone..]);
                skip -= gone;
            }
        }
        if sent == 0 { self.flush(stream, now) } else { Ok(()) }
    }

    /// Sends what the socket takes now.
    pub(super) fn flush(&mut self, stream: &Socket, now: Instant) -> Result<(), Fault> {
        while self.waits() {
            let sent = send(stream, &self.bytes[self.sent..], &[])?;
            if sent == 0 {
                self.give_back();
                return Ok(());
            }
            self.moved = now;
            self.sent += sent;
        }
        (self.bytes, self.sent) = (Vec::new(), 0);
        match self.pong.take() {
            Some(payload) => self.pong(stream, &payload, now),
            None => Ok(()),
        }
    }

    /// Gives back the memory of what was sent, in large steps: moving the rest costs time.
    fn give_back(&mut self) {
        if self.sent >= SENT_BYTES_KEPT && self.sent * 2 >= self.bytes.len() {
            self.bytes.drain(..self.sent);
            self.bytes.shrink_to_fit();
            self.sent = 0;
        }
    }
}

/// One system call: how much the socket took.
fn send(stream: &Socket, head: &[u8], parts: &[&[u8]]) -> Result<usize, Fault> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = if parts.is_empty() {
        rustix::net::send(stream, head, flags)
    } else {
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        for (slice, part) in slices.iter_mut().zip([head].into_iter().chain(parts.iter().copied()))
        {
            *slice = IoSlice::new(part);
        }
        let slices = &slices[..(parts.len() + 1).min(PARTS_MAX)];
        rustix::net::sendmsg(stream, slices, &mut SendAncillaryBuffer::default(), flags)
    };
    match sent {
        Ok(sent) => Ok(sent),
        Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(0),
        Err(errno) => Err(Fault::Gone(errno.into())),
    }
}
