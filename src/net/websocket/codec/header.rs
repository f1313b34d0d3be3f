//! Headers of frames, and the mask.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::OpCode;

/// The longest header of a frame that a client sends.
const HEADER_BYTES_MAX: usize = 14;

/// The longest header of a frame that we send: without a mask.
const HEAD_BYTES_MAX: usize = 10;

/// A whole header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) frame: FrameHeader,
    /// Bytes of the payload.
    pub(super) length: u64,
}

/// A header on its way.
#[derive(Debug, Default)]
pub(super) struct HeaderBytes {
    bytes: [u8; HEADER_BYTES_MAX],
    have: u8,
}

impl HeaderBytes {
    /// Takes what belongs to the header from the beginning of `input`: how much, and the header once
    /// it is whole, or `None` in its place when it is not as RFC 6455 has it.
    pub(super) fn take(&mut self, input: &[u8]) -> (usize, Option<Option<Header>>) {
        let mut used = 0;
        loop {
            let have = usize::from(self.have);
            let length = length(&self.bytes[..have]);
            if have == length {
                self.have = 0;
                return (used, Some(parse(&self.bytes[..length])));
            }
            let more = (length - have).min(input.len() - used);
            if more == 0 {
                return (used, None);
            }
            self.bytes[have..have + more].copy_from_slice(&input[used..used + more]);
            used += more;
            // Invariant: at most 14.
            self.have += u8::try_from(more).unwrap_or(0);
        }
    }
}

/// How long the header is, as far as its first bytes tell.
fn length(bytes: &[u8]) -> usize {
    let [_, second, ..] = bytes else { return 2 };
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    2 + extended + mask
}

fn parse(bytes: &[u8]) -> Option<Header> {
    let (frame, length) = FrameHeader::parse(&mut Cursor::new(bytes)).ok().flatten()?;
    // The length is told in as few bytes as it needs, and its highest bit is 0 (RFC 6455, 5.2).
    let shortest = frame.len(length) == bytes.len();
    (shortest && i64::try_from(length).is_ok()).then_some(Header { frame, length })
}

/// The header of a whole frame that we send, and how long it is.
pub(in crate::net::websocket) fn head(
    opcode: OpCode,
    length: usize,
) -> ([u8; HEAD_BYTES_MAX], usize) {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    let mut out = [0; HEAD_BYTES_MAX];
    let mut rest = &mut out[..];
    // The only failure would be a header that is longer than ten bytes.
    let _ = header.format(length as u64, &mut rest);
    let left = rest.len();
    (out, HEAD_BYTES_MAX - left)
}

/// Takes the mask off; the first byte is the payload's byte number `at`.
pub(super) fn unmask(bytes: &mut [u8], mut mask: [u8; 4], at: u64) {
    mask.rotate_left((at & 3) as usize);
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}
