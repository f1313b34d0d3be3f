//! Frames and messages as a machine over bytes and time, without I/O.
//!
//! tungstenite reads and writes the frames' headers; what is around a header is ours, since its
//! connection reserves what a header announces, keeps the buffer of its largest message, and does
//! not say 1009 before it gives up. Here a message takes memory, and its part of the sum over all
//! connections, as it comes; text is checked as it comes (a fault is found at its byte, not at the
//! end of the message); and a message that is announced too large is refused before any byte of it
//! is read.

mod header;
mod partial;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::base::metrics::{Lease, Limit};
use header::{Header, HeaderBytes};
use partial::Partial;

pub(super) use header::head;

/// Most bytes of a control frame (RFC 6455, 5.5).
pub(super) const CONTROL_BYTES_MAX: usize = 125;

/// Most bytes of the reason in a Close frame.
pub const REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// What a Close frame without a code stands for; never sent (RFC 6455, 7.4.1).
pub const NO_CODE: u16 = 1005;

/// How a connection ends that cannot go on.
#[derive(Debug)]
pub enum Fault {
    /// The peer broke a rule, or there is no room for it: it is to be told this code and reason.
    Close(u16, &'static str),
    /// There is nobody to be told: the connection is broken, or was left without a Close.
    Gone(io::Error),
}

/// What came of the bytes so far.
#[derive(Debug)]
pub(super) enum Step {
    /// More bytes are needed.
    More,
    /// The sum over all connections has no room for the next part of this message. Nothing is lost.
    NoRoom,
    /// A whole message of text, and its part of the sum.
    Text(String, Lease),
    /// A whole message of bytes, and its part of the sum.
    Binary(Vec<u8>, Lease),
    /// A ping, whose payload is [`Decoder::control`].
    Ping,
    /// A pong.
    Pong,
    /// The peer's Close with its code; nothing is read after it.
    Close(u16),
}

/// A frame whose header was read.
#[derive(Debug)]
struct Frame {
    what: What,
    last: bool,
    mask: [u8; 4],
    /// Payload bytes read, as far as the mask goes by them.
    read: u64,
    /// Payload bytes to come.
    left: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Data,
    Close,
    Ping,
    Pong,
}

/// Reads what a client sends.
#[derive(Debug)]
pub(super) struct Decoder {
    /// Largest message, in bytes.
    max: u64,
    total: Arc<Limit>,
    header: HeaderBytes,
    frame: Option<Frame>,
    message: Option<Partial>,
    /// The payload of a control frame. Messages may have them in their middle.
    control: [u8; CONTROL_BYTES_MAX],
    controls: u8,
    /// Payloads are thrown away: all that is waited for is the peer's Close.
    discards: bool,
    /// The peer's Close was read, or the bytes make no sense any more.
    over: bool,
}

impl Decoder {
    /// At the beginning of a connection. `total` is the sum over all connections.
    pub(super) fn new(max: u64, total: Arc<Limit>) -> Self {
        Decoder {
            max,
            total,
            header: HeaderBytes::default(),
            frame: None,
            message: None,
            control: [0; CONTROL_BYTES_MAX],
            controls: 0,
            discards: false,
            over: false,
        }
    }

    /// Changes the largest message, from the next frame on.
    pub(super) fn set_max(&mut self, max: u64) {
        self.max = max;
    }

    /// From here on nothing is kept of what comes.
    pub(super) fn discard(&mut self) {
        self.discards = true;
        self.message = None;
    }

    /// Whether nothing that follows is read: after the peer's Close, or after a fault.
    pub(super) fn over(&self) -> bool {
        self.over
    }

    /// The largest message, in bytes.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// Whether a message's payload is awaited for which there is no room.
    pub(super) fn starved(&self) -> bool {
        !self.discards && self.frame.as_ref().is_some_and(|frame| frame.what == What::Data)
    }

    /// The payload of the control frame that came last.
    pub(super) fn control(&self) -> &[u8] {
        &self.control[..usize::from(self.controls)]
    }

    /// When the message that is on its way comes too slowly: `grace` after its first byte, and
    /// later by what has come of it at `rate` bytes per second. None without a message or a rate.
    pub(super) fn late_at(&self, rate: u64, grace: Duration) -> Option<Instant> {
        let message = self.message.as_ref().filter(|_| rate > 0)?;
        let earned = Duration::from_secs_f64(message.len() as f64 / rate as f64);
        Some(message.since() + grace + earned)
    }

    /// Goes on with `input`: how much of it was used, and what came of it, one thing at a time.
    ///
    /// A [`Fault::Close`] is for what breaks a rule; nothing is decoded after it, except after a
    /// message that is too large, whose rest can be discarded.
    pub(super) fn decode(&mut self, input: &[u8], now: Instant) -> (usize, Result<Step, Fault>) {
        let mut used = 0;
        let step = loop {
            match self.decode_frame(input, &mut used, now) {
                Ok(None) => {}
                Ok(Some(step)) => break Ok(step),
                Err(fault) => break Err(fault),
            }
        };
        (used, step)
    }

    /// Goes on until the end of a frame or of the input; none when there may be more.
    fn decode_frame(
        &mut self,
        input: &[u8],
        used: &mut usize,
        now: Instant,
    ) -> Result<Option<Step>, Fault> {
        if self.over {
            *used = input.len();
            return Ok(Some(Step::More));
        }
        if self.frame.is_none() {
            let (took, header) = self.header.take(&input[*used..]);
            *used += took;
            match header {
                None => return Ok(Some(Step::More)),
                Some(header) => self.begin(header, now)?,
            }
        }
        let Some((took, full)) = self.payload(&input[*used..])? else {
            return Ok(Some(Step::NoRoom));
        };
        *used += took;
        if full { self.end() } else { Ok(Some(Step::More)) }
    }

    /// Where the next bytes can be read to without another copy, when they are a message's: a part
    /// of its buffer, no longer than what is left of the frame. [`Decoder::filled`] must follow.
    pub(super) fn space(&mut self) -> Option<&mut [u8]> {
        let frame = self.frame.as_ref().filter(|frame| frame.what == What::Data)?;
        let message = self.message.as_mut().filter(|_| !self.discards)?;
        message.space(frame.left)
    }

    /// So many bytes were read into [`Decoder::space`]; the same as [`Decoder::decode`] of them.
    pub(super) fn filled(&mut self, bytes: usize) -> Result<Step, Fault> {
        let (Some(frame), Some(message)) = (&mut self.frame, &mut self.message) else {
            return Ok(Step::More);
        };
        let checked = message.filled(bytes, frame.mask, frame.read);
        frame.advance(bytes);
        let full = frame.left == 0;
        self.sound(checked)?;
        if full && let Some(step) = self.end()? { Ok(step) } else { Ok(Step::More) }
    }

    /// A header is whole: whether this frame may come here.
    fn begin(&mut self, header: Option<Header>, now: Instant) -> Result<(), Fault> {
        let Some(Header { frame, length }) = header else {
            return self.broken("the frame's header breaks RFC 6455");
        };
        let Some(mask) = frame.mask else {
            return self.broken("a client's frames must be masked");
        };
        if frame.rsv1 || frame.rsv2 || frame.rsv3 {
            return self.broken("no extension was agreed on, and a reserved bit is set");
        }
        let (what, first) = match frame.opcode {
            OpCode::Data(Data::Continue) => (What::Data, None),
            OpCode::Data(Data::Text) => (What::Data, Some(true)),
            OpCode::Data(Data::Binary) => (What::Data, Some(false)),
            OpCode::Control(Control::Close) => (What::Close, None),
            OpCode::Control(Control::Ping) => (What::Ping, None),
            OpCode::Control(Control::Pong) => (What::Pong, None),
            OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => {
                return self.broken("the opcode is none of RFC 6455");
            }
        };
        let begun = Frame { what, last: frame.is_final, mask, read: 0, left: length };
        if what != What::Data {
            if length > CONTROL_BYTES_MAX as u64 || !begun.last {
                return self.broken("a control frame is whole and at most 125 bytes long");
            }
            self.controls = 0;
            self.frame = Some(begun);
            return Ok(());
        }
        self.frame = Some(begun);
        if self.discards {
            return Ok(());
        }
        match (first, &self.message) {
            (Some(text), None) => {
                self.message = Some(Partial::new(text, self.total.nothing(), now));
            }
            (None, Some(_)) => {}
            (None, None) => return self.broken("there is no message to continue"),
            (Some(_), Some(_)) => return self.broken("the message before was not ended"),
        }
        let have = self.message.as_ref().map_or(0, Partial::len);
        if have.saturating_add(length) > self.max {
            // The frame stays as it is, so that its payload can be passed over.
            self.discard();
            return Err(Fault::Close(1009, "the message is too large"));
        }
        Ok(())
    }

    /// Takes payload from the beginning of `input`: how much, and whether the frame has all of it.
    /// `None`: there is no room for any of it.
    fn payload(&mut self, input: &[u8]) -> Result<Option<(usize, bool)>, Fault> {
        let Some(frame) = &mut self.frame else { return Ok(Some((0, false))) };
        let most = usize::try_from(frame.left).unwrap_or(usize::MAX).min(input.len());
        let mut checked = Ok(());
        let took = match (&mut self.message, frame.what) {
            (_, What::Close | What::Ping | What::Pong) => {
                let at = usize::from(self.controls);
                let place = &mut self.control[at..at + most];
                place.copy_from_slice(&input[..most]);
                header::unmask(place, frame.mask, frame.read);
                // Invariant: a control frame has at most 125 bytes.
                self.controls += u8::try_from(most).unwrap_or(0);
                most
            }
            (Some(message), What::Data) if !self.discards => {
                let left = frame.left;
                let Some(room) = message.room(left, most) else { return Ok(None) };
                checked = message.append(&input[..room], frame.mask, frame.read);
                room
            }
            (_, What::Data) => most,
        };
        frame.advance(took);
        let full = frame.left == 0;
        self.sound(checked)?;
        Ok(Some((took, full)))
    }

    /// The frame is whole.
    fn end(&mut self) -> Result<Option<Step>, Fault> {
        let Some(frame) = self.frame.take() else { return Ok(None) };
        match frame.what {
            What::Ping => Ok(Some(Step::Ping)),
            What::Pong => Ok(Some(Step::Pong)),
            What::Close => self.close().map(Some),
            What::Data if !frame.last || self.discards => Ok(None),
            What::Data => {
                let Some(message) = self.message.take() else { return Ok(None) };
                let whole = message.whole();
                if whole.is_none() {
                    self.over = true;
                }
                whole.map(Some).ok_or(NOT_TEXT)
            }
        }
    }

    /// The peer's Close is whole.
    fn close(&mut self) -> Result<Step, Fault> {
        self.over = true;
        self.message = None;
        match self.control() {
            [] => Ok(Step::Close(NO_CODE)),
            [_] => self.broken("a Close with a payload begins with a code of two bytes"),
            [high, low, reason @ ..] => {
                let code = u16::from_be_bytes([*high, *low]);
                if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                    return self.broken("the code of the Close is not for sending");
                }
                if std::str::from_utf8(reason).is_err() {
                    return Err(NOT_TEXT);
                }
                Ok(Step::Close(code))
            }
        }
    }

    fn sound(&mut self, checked: Result<(), Fault>) -> Result<(), Fault> {
        if checked.is_err() {
            self.over = true;
            self.message = None;
        }
        checked
    }

    fn broken<T>(&mut self, what: &'static str) -> Result<T, Fault> {
        self.over = true;
        self.message = None;
        Err(Fault::Close(1002, what))
    }
}

impl Frame {
    fn advance(&mut self, bytes: usize) {
        self.read += bytes as u64;
        self.left -= bytes as u64;
    }
}

/// What is sent as text is not.
const NOT_TEXT: Fault = Fault::Close(1007, "the text is not UTF-8");

#[cfg(test)]
pub(super) mod tests;
