//! Bodies: which of the bytes that came are data.

use crate::base::error::{Error, Kind, Result};
use crate::net::http::BodyLength;

/// Most digits of a chunk's size: 64 bits in hexadecimal.
const SIZE_DIGITS_MAX: u8 = 16;
/// Most bytes of the extensions of one chunk; nobody sends any. Past it: refused.
const EXTENSION_BYTES_MAX: u32 = 256;
/// Most bytes of all extensions of a body (as hyper has it): they are not data, so a body's
/// limit does not count them. Past it: refused.
const EXTENSIONS_BYTES_MAX: u32 = 16 * 1024;
/// Most bytes of the trailer fields, which are discarded. Past it: refused.
const TRAILER_BYTES_MAX: u32 = 8 * 1024;

/// One step of [`BodyDecoder::decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// How many bytes of the input are done with, data and framing.
    pub used: usize,
    /// Data among them; may be empty.
    pub data: &'a [u8],
}

/// Takes a body out of its framing, bit by bit, without a copy.
#[derive(Clone, Debug)]
pub struct BodyDecoder {
    state: State,
    upstream: bool,
    /// Bytes of chunk extensions, later of trailers, so far.
    extra: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// This many bytes are to come.
    Exact(u64),
    UntilClose,
    /// In the size of a chunk, after this many digits.
    Size {
        size: u64,
        digits: u8,
    },
    /// In the extensions, after this many bytes of them.
    Extension {
        size: u64,
        bytes: u32,
    },
    /// CR came; LF must follow the size.
    SizeEnd {
        size: u64,
    },
    /// In a chunk, with this many bytes to come.
    Data(u64),
    /// The CR behind a chunk.
    DataCr,
    /// The LF behind a chunk.
    DataLf,
    /// At the start of a trailer line, or of the last one.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    /// The last LF.
    LastLf,
    Done,
}

impl BodyDecoder {
    /// A decoder for a request's body. Its errors are the client's ([`Kind::BadRequest`]).
    pub fn new(length: BodyLength) -> Self {
        let state = match length {
            BodyLength::None | BodyLength::Exact(0) => State::Done,
            BodyLength::Exact(bytes) => State::Exact(bytes),
            BodyLength::Chunked => State::Size { size: 0, digits: 0 },
            BodyLength::UntilClose => State::UntilClose,
        };
        BodyDecoder { state, upstream: false, extra: 0 }
    }

    /// A decoder for the body of an upstream's answer. Its errors are the upstream's
    /// ([`Kind::UpstreamMalformed`], [`Kind::UpstreamCut`]).
    pub fn of_answer(length: BodyLength) -> Self {
        BodyDecoder { upstream: true, ..BodyDecoder::new(length) }
    }

    /// Takes the next piece out of `input`: framing, and at most one run of data behind it. Call it
    /// again with the rest of the input until that is empty or the body is [`finished`](Self::finished). Unless it
    /// is finished or `input` is empty, at least one byte is used.
    ///
    /// # Errors
    /// When the framing is wrong. The decoder and its connection are of no use then.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Result<Decoded<'a>> {
        let mut at = 0;
        while at < input.len() {
            match &mut self.state {
                State::Done => break,
                State::UntilClose => {
                    return Ok(Decoded { used: input.len(), data: &input[at..] });
                }
                State::Exact(left) | State::Data(left) => {
                    let data = first(&input[at..], *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        let exact = matches!(self.state, State::Exact(_));
                        self.state = if exact { State::Done } else { State::DataCr };
                    }
                    return Ok(Decoded { used: at + data.len(), data });
                }
                _ => {
                    self.state = self.framing(input[at])?;
                    at += 1;
                }
            }
        }
        Ok(Decoded { used: at, data: &[] })
    }

    /// Bytes of data that are certain to follow: the rest of the chunk, or of the length.
    pub fn announced(&self) -> u64 {
        match self.state {
            State::Exact(left) | State::Data(left) => left,
            State::Extension { size, .. } | State::SizeEnd { size } => size,
            _ => 0,
        }
    }

    /// Whether the whole body came, with its framing.
    pub fn finished(&self) -> bool {
        self.state == State::Done
    }

    /// Says that the sender closed its side.
    ///
    /// # Errors
    /// When the body was to go on: [`Kind::UpstreamCut`], or [`Kind::BadRequest`] of a request.
    pub fn end_of_input(&mut self) -> Result<()> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                Ok(())
            }
            _ if self.upstream => {
                Err(Error::new(Kind::UpstreamCut, "the answer ended before its announced end"))
            }
            _ => Err(Error::new(Kind::BadRequest, "the body ended before its announced end")),
        }
    }

    /// The state after one byte of framing.
    fn framing(&mut self, byte: u8) -> Result<State> {
        let next = match (self.state, byte) {
            (State::Size { size, digits }, b) if b.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(self.bad("a chunk's size has more than 16 digits"));
                }
                State::Size { size: size << 4 | u64::from(hex(b)), digits: digits + 1 }
            }
            (State::Size { size, digits: 1.. }, b'\r') => State::SizeEnd { size },
            (State::Size { size, digits: 1.. }, b';') => State::Extension { size, bytes: 1 },
            (State::Size { .. }, _) => return Err(self.bad("a chunk's size is not a hex number")),

            (State::Extension { size, .. }, b'\r') => State::SizeEnd { size },
            (State::Extension { size, bytes }, b' '..=b'~' | b'\t') => {
                self.extra += 1;
                if bytes == EXTENSION_BYTES_MAX || self.extra > EXTENSIONS_BYTES_MAX {
                    return Err(self.bad("the chunk extensions are too long; send none"));
                }
                State::Extension { size, bytes: bytes + 1 }
            }
            (State::Extension { .. }, _) => {
                return Err(self.bad("a chunk extension holds a byte that is not visible ASCII"));
            }

            (State::SizeEnd { size: 0 }, b'\n') => {
                self.extra = 0;
                State::TrailerStart
            }
            (State::SizeEnd { size }, b'\n') => State::Data(size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { size: 0, digits: 0 },
            (State::DataCr | State::DataLf, _) => {
                return Err(self.bad("a chunk is not followed by CRLF; its size is wrong"));
            }

            (State::TrailerStart, b'\r') => State::LastLf,
            (State::LastLf, b'\n') => State::Done,
            (State::TrailerStart, b) if super::ascii::is_token(b) => {
                self.trailer(State::TrailerName)?
            }
            (State::TrailerName, b':') => self.trailer(State::TrailerValue)?,
            (State::TrailerName, b) if super::ascii::is_token(b) => {
                self.trailer(State::TrailerName)?
            }
            (State::TrailerValue, b'\r') => self.trailer(State::TrailerLf)?,
            (State::TrailerValue, b' '..=b'~' | b'\t') => self.trailer(State::TrailerValue)?,
            (State::TrailerValue, 0x80..) if self.upstream => self.trailer(State::TrailerValue)?,
            (State::TrailerLf, b'\n') => self.trailer(State::TrailerStart)?,
            (State::TrailerStart | State::TrailerName | State::TrailerValue, _) => {
                return Err(self.bad("a trailer field is not a name, a colon and a value"));
            }
            (_, _) => return Err(self.bad("a CR in the chunk framing is not followed by LF")),
        };
        Ok(next)
    }

    /// Counts a byte of a trailer.
    fn trailer(&mut self, next: State) -> Result<State> {
        self.extra += 1;
        if self.extra > TRAILER_BYTES_MAX {
            return Err(self.bad("the trailer fields are too long; send none"));
        }
        Ok(next)
    }

    fn bad(&self, what: &'static str) -> Error {
        let kind = if self.upstream { Kind::UpstreamMalformed } else { Kind::BadRequest };
        Error::new(kind, what)
    }
}

/// At most the first `most` bytes.
fn first(bytes: &[u8], most: u64) -> &[u8] {
    match usize::try_from(most) {
        Ok(most) => &bytes[..bytes.len().min(most)],
        Err(_) => bytes,
    }
}

/// The value of a byte that was checked to be a hex digit.
fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b => (b | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input` whole: the data, what was used and whether the body is finished.
    fn run(mut decoder: BodyDecoder, input: &[u8]) -> Result<(Vec<u8>, usize, bool)> {
        let (mut data, mut at) = (Vec::new(), 0);
        while at < input.len() && !decoder.finished() {
            let step = decoder.decode(&input[at..])?;
            assert!(step.used > 0, "no progress");
            data.extend_from_slice(step.data);
            at += step.used;
        }
        Ok((data, at, decoder.finished()))
    }

    fn chunked(input: &str) -> Result<(Vec<u8>, usize, bool)> {
        run(BodyDecoder::new(BodyLength::Chunked), input.as_bytes())
    }

    #[test]
    fn chunks_are_joined_and_what_follows_is_left_alone() {
        let check = |input: &str, data: &str, rest: &str| {
            let (have, used, finished) = chunked(input).unwrap();
            assert_eq!((have.as_slice(), finished), (data.as_bytes(), true), "{input:?}");
            assert_eq!(&input[used..], rest);
        };
        check("0\r\n\r\nGET", "", "GET");
        check("5\r\nhello\r\n1;a=b\r\n!\r\n0\r\n\r\n", "hello!", "");
        check("a\r\n0123456789\r\n00\r\n\r\n", "0123456789", "");
        check("A; x=\"y\"\r\n0123456789\r\n0000000000000000\r\n\r\n", "0123456789", "");
        check("1\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\nrest", "x", "rest");
    }

    #[test]
    fn bad_framing_is_refused() {
        for bad in [
            "+5\r\nhello\r\n0\r\n\r\n",
            "-1\r\n",
            "\r\nhello",
            ";a\r\n",
            " 5\r\n",
            "5 \r\n",
            "5\nhello",
            "5\r\rhello",
            "5\r\nhello\n",
            "5\r\nhello0\r\n",
            "5\r\nhello\r0",
            "0x5\r\n",
            "00000000000000005\r\n",
            "5;a\nb\r\n",
            "5;a\0\r\n",
            "5;\u{e9}\r\n",
            "0\r\n\n",
            "0\r\n\rx",
            "0\r\n a: b\r\n",
            "0\r\n: b\r\n",
            "0\r\nab\r\n",
            "0\r\na: b\n\r\n",
            "0\r\na: \0\r\n",
        ] {
            let error = chunked(bad).expect_err(bad);
            assert_eq!(error.kind(), Kind::BadRequest, "{bad:?}");
            let answer = run(BodyDecoder::of_answer(BodyLength::Chunked), bad.as_bytes());
            assert_eq!(answer.unwrap_err().kind(), Kind::UpstreamMalformed, "{bad:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_taken_up_to_their_limits_and_refused_past_them() {
        // The semicolon counts among the 256 bytes.
        let extension = |n: usize| format!("1;{}\r\nx\r\n", "e".repeat(n));
        assert!(chunked(&extension(255)).is_ok());
        assert!(chunked(&extension(256)).is_err());
        let many = extension(255).repeat(64);
        assert!(chunked(&many).is_ok());
        assert!(chunked(&extension(255).repeat(65)).is_err());

        let trailer = |n: usize| format!("0\r\na:{}\r\n\r\n", "v".repeat(n));
        assert!(chunked(&trailer(8192 - 4)).is_ok());
        assert!(chunked(&trailer(8192 - 3)).is_err());
    }

    #[test]
    fn the_largest_size_is_taken_as_it_is() {
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let step = decoder.decode(b"ffffffffffffffff\r\nabc").unwrap();
        assert_eq!((step.used, step.data), (21, b"abc".as_slice()));
        assert!(!decoder.finished());
    }

    #[test]
    fn an_exact_body_ends_at_its_length() {
        let decoder = BodyDecoder::new(BodyLength::Exact(5));
        assert_eq!(run(decoder, b"helloGET").unwrap(), (b"hello".to_vec(), 5, true));
        assert!(BodyDecoder::new(BodyLength::Exact(0)).finished());
        assert!(BodyDecoder::new(BodyLength::None).finished());
        let mut huge = BodyDecoder::new(BodyLength::Exact(u64::MAX));
        assert_eq!(huge.decode(b"x").unwrap().used, 1);
        assert!(!huge.finished());
    }

    #[test]
    fn an_end_of_input_is_an_end_only_for_a_body_that_has_no_other() {
        let mut until = BodyDecoder::of_answer(BodyLength::UntilClose);
        assert_eq!(until.decode(b"abc").unwrap(), Decoded { used: 3, data: b"abc" });
        assert!(!until.finished());
        until.end_of_input().unwrap();
        assert!(until.finished());

        for length in [BodyLength::Exact(3), BodyLength::Chunked] {
            let cut = BodyDecoder::of_answer(length).end_of_input().unwrap_err();
            assert_eq!(cut.kind(), Kind::UpstreamCut);
            let cut = BodyDecoder::new(length).end_of_input().unwrap_err();
            assert_eq!(cut.kind(), Kind::BadRequest);
        }
        // All data came, the last chunk did not.
        let mut decoder = BodyDecoder::of_answer(BodyLength::Chunked);
        decoder.decode(b"1\r\nx").unwrap();
        assert_eq!(decoder.end_of_input().unwrap_err().kind(), Kind::UpstreamCut);
    }
}
