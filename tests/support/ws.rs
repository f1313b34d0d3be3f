//! A WebSocket client on a plain socket (RFC 6455), on purpose none of a library: it sends whatever a
//! test wants, right or wrong, and sees every frame as it comes. [`Client`] speaks OpenClaw over it.

// Each test file uses a part of it.
#![allow(dead_code, unused_imports, reason = "a client for many tests, some of which come later")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::patience;
use super::wire::{Answer, Fault, Wire};

mod client;
mod keys;
pub mod room;

pub use client::{Client, Hello, Refused};
pub use keys::Keys;

/// How long a frame may take when a test does not say.
pub const FRAME: Duration = Duration::from_secs(10);

/// Opcodes.
pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// How the length of a frame is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// In the fewest bytes.
    Right,
    /// In eight bytes though fewer would do.
    Wide,
    /// Another one than the payload has.
    Lie(u64),
}

/// A frame to be sent: right, or wrong as told.
#[derive(Clone, Debug)]
pub struct Frame {
    fin: bool,
    rsv: u8,
    opcode: u8,
    payload: Vec<u8>,
    mask: Option<[u8; 4]>,
    length: Length,
}

impl Frame {
    /// A whole message of this opcode, masked.
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        let mask = Some([0x5A, 0x81, 0x0F, 0xC3]);
        Frame { fin: true, rsv: 0, opcode, payload: payload.into(), mask, length: Length::Right }
    }

    /// A text message.
    pub fn text(text: &str) -> Self {
        Frame::new(TEXT, text)
    }

    /// A ping.
    pub fn ping(payload: impl Into<Vec<u8>>) -> Self {
        Frame::new(PING, payload)
    }

    /// A close with a code and a reason.
    pub fn close(code: u16, reason: &str) -> Self {
        Frame::new(CLOSE, [&code.to_be_bytes(), reason.as_bytes()].concat())
    }

    /// Not the last fragment.
    #[must_use]
    pub fn more(mut self) -> Self {
        self.fin = false;
        self
    }

    /// With these reserved bits (1 to 7).
    #[must_use]
    pub fn rsv(mut self, bits: u8) -> Self {
        self.rsv = bits;
        self
    }

    /// With this mask; none breaks the protocol.
    #[must_use]
    pub fn mask(mut self, mask: Option<[u8; 4]>) -> Self {
        self.mask = mask;
        self
    }

    /// With a length in eight bytes.
    #[must_use]
    pub fn wide(mut self) -> Self {
        self.length = Length::Wide;
        self
    }

    /// With a length that is not the payload's.
    #[must_use]
    pub fn announcing(mut self, length: u64) -> Self {
        self.length = Length::Lie(length);
        self
    }

    /// As it is on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.fin) << 7 | self.rsv << 4 | self.opcode];
        let masked = u8::from(self.mask.is_some()) << 7;
        let (length, wide) = match self.length {
            Length::Right => (self.payload.len() as u64, false),
            Length::Wide => (self.payload.len() as u64, true),
            Length::Lie(length) => (length, false),
        };
        match length {
            0..=125 if !wide => out.push(masked | length as u8),
            126..=0xFFFF if !wide => {
                out.push(masked | 126);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                out.push(masked | 127);
                out.extend_from_slice(&length.to_be_bytes());
            }
        }
        match self.mask {
            None => out.extend_from_slice(&self.payload),
            Some(mask) => {
                out.extend_from_slice(&mask);
                let masked = self.payload.iter().zip(mask.iter().cycle());
                out.extend(masked.map(|(byte, mask)| byte ^ mask));
            }
        }
        out
    }
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    pub fin: bool,
    pub rsv: u8,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Got {
    /// The first frame of `bytes` and its length there; none when it is not whole. Fails the test
    /// on a masked frame and on a length that is told in more bytes than it needs.
    pub fn parse(bytes: &[u8]) -> Option<(Got, usize)> {
        let (first, second) = (*bytes.first()?, *bytes.get(1)?);
        assert_eq!(second & 0x80, 0, "a server must not mask");
        let (length, head) = match second & 0x7F {
            126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())), 4),
            127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()), 10),
            short => (u64::from(short), 2),
        };
        let least = match head {
            4 => 126,
            10 => 0x1_0000,
            _ => 0,
        };
        assert!(length >= least, "a length of {length} in {head} bytes");
        let end = head + length as usize;
        let payload = bytes.get(head..end)?.to_vec();
        let (fin, rsv, opcode) = (first & 0x80 != 0, first >> 4 & 7, first & 15);
        Some((Got { fin, rsv, opcode, payload }, end))
    }

    /// The code and the reason of a close frame; 1005 when it has none.
    pub fn close_code(&self) -> (u16, String) {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        let Some((code, reason)) = self.payload.split_first_chunk() else {
            assert!(self.payload.is_empty(), "{self:?}");
            return (1005, String::new());
        };
        (u16::from_be_bytes(*code), String::from_utf8(reason.to_vec()).unwrap())
    }
}

/// A whole message, or a control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Text(String),
    Binary(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16, String),
}

/// An open WebSocket.
pub struct Ws {
    socket: TcpStream,
    buffer: Vec<u8>,
    limit: Duration,
    answers_pings: bool,
}

impl Ws {
    /// Connects and upgrades; fails the test when that fails.
    pub fn connect(to: SocketAddr, path: &str, headers: &str) -> Self {
        Ws::upgrade(Wire::connect(to), path, headers)
            .unwrap_or_else(|answer| panic!("no upgrade: {:?} {}", answer.head, answer.text()))
    }

    /// Upgrades an open connection; else the answer that says why not. `headers` are whole lines.
    pub fn upgrade(mut wire: Wire, path: &str, headers: &str) -> Result<Self, Answer> {
        let key = STANDARD.encode(*b"sixteen bytes ok");
        wire.send(Ws::request(path, &key, headers));
        let head = wire.head().unwrap_or_else(|fault| panic!("no answer to an upgrade: {fault:?}"));
        if head.status != 101 {
            return Err(wire.answer_after(head));
        }
        let is = |name: &str, value: &str| {
            head.header(name).is_some_and(|have| have.eq_ignore_ascii_case(value))
        };
        assert!(is("upgrade", "websocket") && is("connection", "upgrade"), "{head:?}");
        assert_eq!(head.header("sec-websocket-accept"), Some(&*accept_of(&key)));
        assert_eq!(head.header("sec-websocket-extensions"), None, "none was asked for");
        let (socket, buffer) = wire.into_parts();
        Ok(Ws { socket, buffer, limit: patience(FRAME), answers_pings: true })
    }

    /// The request for an upgrade; `headers` are whole lines.
    pub fn request(path: &str, key: &str, headers: &str) -> String {
        format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{headers}\r\n"
        )
    }

    /// Changes how long this connection waits for frames.
    pub fn wait_at_most(&mut self, limit: Duration) {
        self.limit = patience(limit);
    }

    /// Leaves pings without an answer.
    pub fn leave_pings(&mut self) {
        self.answers_pings = false;
    }

    /// The socket, for tests that close it their own way.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Sends a frame; fails the test when that fails.
    pub fn send(&mut self, frame: &Frame) {
        self.try_send(&frame.bytes()).unwrap_or_else(|e| panic!("cannot send: {e}"));
    }

    /// Sends a text message; fails the test when that fails.
    pub fn text(&mut self, text: &str) {
        self.send(&Frame::text(text));
    }

    /// Sends bytes as they are.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.socket.set_write_timeout(Some(self.limit))?;
        self.socket.write_all(bytes)
    }

    /// The next frame, whatever it is.
    pub fn frame(&mut self) -> Result<Got, Fault> {
        let deadline = Instant::now() + self.limit;
        self.frame_until(deadline)
    }

    fn frame_until(&mut self, deadline: Instant) -> Result<Got, Fault> {
        loop {
            if let Some((got, length)) = Got::parse(&self.buffer) {
                self.buffer.drain(..length);
                return Ok(got);
            }
            self.fill(deadline)?;
        }
    }

    /// The next message: fragments put together, pings answered and left out.
    pub fn message(&mut self) -> Result<Message, Fault> {
        let deadline = Instant::now() + self.limit;
        self.message_until(deadline)
    }

    /// The same, by a moment.
    pub fn message_until(&mut self, deadline: Instant) -> Result<Message, Fault> {
        let (mut kind, mut whole) = (None, Vec::new());
        loop {
            let got = self.frame_until(deadline)?;
            assert_eq!(got.rsv, 0, "{got:?}");
            match got.opcode {
                PING if self.answers_pings => {
                    // A peer that is already gone is found by the next read.
                    let _ = self.try_send(&Frame::new(PONG, got.payload).bytes());
                }
                PING => {}
                PONG => return Ok(Message::Pong(got.payload)),
                CLOSE => {
                    let (code, reason) = got.close_code();
                    return Ok(Message::Close(code, reason));
                }
                opcode => {
                    assert_eq!(kind.is_some(), opcode == CONTINUATION, "{got:?} within {kind:?}");
                    let kind = *kind.get_or_insert(opcode);
                    whole.extend_from_slice(&got.payload);
                    if got.fin && kind == TEXT {
                        return Ok(Message::Text(String::from_utf8(whole).unwrap()));
                    } else if got.fin {
                        return Ok(Message::Binary(whole));
                    }
                }
            }
        }
    }

    /// The code and reason that the peer closes with; then answers it and waits for the end of the
    /// connection, which is the server's to make. What still comes before is thrown away. `Err` when
    /// the connection ends without a close frame, or not in time.
    pub fn closed(&mut self) -> Result<(u16, String), Fault> {
        let close = self.close_frame()?;
        let payload = if close.0 == 1005 { Vec::new() } else { close.0.to_be_bytes().to_vec() };
        let _ = self.try_send(&Frame::new(CLOSE, payload).bytes());
        self.end().map(|()| close)
    }

    /// The code and reason of the peer's close frame; what comes before is thrown away.
    pub fn close_frame(&mut self) -> Result<(u16, String), Fault> {
        let deadline = Instant::now() + self.limit;
        loop {
            let got = self.frame_until(deadline)?;
            if got.opcode == CLOSE {
                return Ok(got.close_code());
            }
        }
    }

    /// Waits for the end of the connection; fails the test when a frame comes before it.
    pub fn end(&mut self) -> Result<(), Fault> {
        match self.frame() {
            Ok(got) => panic!("a frame after the close: {got:?}"),
            Err(Fault::Timeout) => Err(Fault::Timeout),
            Err(_) => Ok(()),
        }
    }

    /// Whether a close frame or the end of the connection is there already; takes nothing away.
    pub fn is_closing(&mut self) -> bool {
        let ended = loop {
            match self.fill(Instant::now() + Duration::from_millis(1)) {
                Ok(()) => {}
                Err(fault) => break fault != Fault::Timeout,
            }
        };
        let mut rest = &self.buffer[..];
        while let Some((got, length)) = Got::parse(rest) {
            if got.opcode == CLOSE {
                return true;
            }
            rest = &rest[length..];
        }
        ended
    }

    /// Closes with a reset instead of a FIN.
    pub fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn fill(&mut self, deadline: Instant) -> Result<(), Fault> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Fault::Timeout);
        }
        self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
        let mut piece = [0; 64 * 1024];
        match self.socket.read(&mut piece) {
            Ok(n) if n > 0 => {
                self.buffer.extend_from_slice(&piece[..n]);
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(Fault::Timeout)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(()),
            Ok(_) => Err(Fault::Closed("FIN".to_owned())),
            Err(e) => Err(Fault::Closed(e.kind().to_string())),
        }
    }
}

/// `Sec-WebSocket-Accept` for a key (RFC 6455, 4.2.2).
pub fn accept_of(key: &str) -> String {
    let whole = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let sha1 = &ring::digest::SHA1_FOR_LEGACY_USE_ONLY;
    STANDARD.encode(ring::digest::digest(sha1, whole.as_bytes()))
}

#[test]
fn the_client_of_the_tests_makes_frames_and_reads_them() {
    // The examples of RFC 6455, 1.3 and 5.7.
    assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let hello = Frame::text("Hello").mask(Some([0x37, 0xfa, 0x21, 0x3d]));
    assert_eq!(hello.bytes(), b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    let (got, length) = Got::parse(b"\x01\x03Hel\x80\x02lo").unwrap();
    assert_eq!((got.fin, got.opcode, &*got.payload, length), (false, TEXT, &b"Hel"[..], 5));
    for size in [0, 125, 126, 65_535, 65_536] {
        let bytes = Frame::new(BINARY, vec![7; size]).mask(None).bytes();
        let (got, length) = Got::parse(&bytes).unwrap();
        assert_eq!((got.payload.len(), length), (size, bytes.len()));
        assert!(Got::parse(&bytes[..bytes.len() - 1]).is_none());
    }
    assert_eq!(Frame::ping("").wide().mask(None).bytes(), b"\x89\x7f\0\0\0\0\0\0\0\0");
    let lie = Frame::text("x").announcing(1 << 40).rsv(4).more().mask(None).bytes();
    assert_eq!(lie, b"\x41\x7f\0\0\x01\0\0\0\0\0x");
    let (got, _) = Got::parse(&Frame::close(1008, "no").mask(None).bytes()).unwrap();
    assert_eq!(got.close_code(), (1008, "no".to_owned()));
}
