//! Reads one answer and compares it with what it must be, byte by byte, as it arrives.

use crate::chat::Expected;
use crate::{Outcome, fail};

/// Longest head of an answer, in bytes. Past it the run fails.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Longest chunk-size line, in bytes. Past it the run fails.
const SIZE_LINE_BYTES_MAX: usize = 32;

/// What the bytes so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More must come.
    More,
    /// The whole answer is there, and right.
    Complete,
}

#[derive(Debug)]
enum State {
    Head,
    /// A body of known length: bytes still to come.
    Exact(usize),
    ChunkSize,
    /// Inside a chunk: bytes still to come.
    Chunk(usize),
    /// The line end after a chunk; bytes of it still to come.
    ChunkEnd(usize),
    /// The empty line after the last chunk; bytes of it still to come.
    LastEnd(usize),
    Done,
}

/// An answer on its way in.
#[derive(Debug)]
pub struct Answer {
    state: State,
    line: Vec<u8>,
    /// Bytes of the body that came and were right.
    cursor: usize,
    /// Chunks that came whole.
    chunks: usize,
}

impl Answer {
    /// Nothing read yet.
    pub fn new() -> Self {
        Answer { state: State::Head, line: Vec::with_capacity(512), cursor: 0, chunks: 0 }
    }

    /// Ready for the next answer.
    pub fn reset(&mut self) {
        self.state = State::Head;
        self.line.clear();
        self.cursor = 0;
        self.chunks = 0;
    }

    /// Chunks that came whole.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Takes in what was read.
    ///
    /// # Errors
    /// At the first byte that is not as it must be.
    pub fn feed(&mut self, mut bytes: &[u8], expected: &Expected) -> Outcome<Progress> {
        while !bytes.is_empty() {
            match self.state {
                State::Head => bytes = self.head(bytes, expected)?,
                State::Exact(left) => {
                    let take = left.min(bytes.len());
                    self.body(&bytes[..take], expected)?;
                    bytes = &bytes[take..];
                    self.state = if take == left { State::Done } else { State::Exact(left - take) };
                }
                State::ChunkSize => bytes = self.chunk_size(bytes)?,
                State::Chunk(left) => {
                    let take = left.min(bytes.len());
                    self.body(&bytes[..take], expected)?;
                    bytes = &bytes[take..];
                    self.state =
                        if take == left { State::ChunkEnd(2) } else { State::Chunk(left - take) };
                }
                State::ChunkEnd(left) => {
                    line_end(bytes[0], left)?;
                    bytes = &bytes[1..];
                    self.state = if left == 1 { State::ChunkSize } else { State::ChunkEnd(1) };
                }
                State::LastEnd(left) => {
                    line_end(bytes[0], left)?;
                    bytes = &bytes[1..];
                    self.state = if left == 1 { State::Done } else { State::LastEnd(1) };
                }
                State::Done => return fail(format!("{} bytes after the answer", bytes.len())),
            }
        }
        if !matches!(self.state, State::Done) {
            return Ok(Progress::More);
        }
        if self.cursor != expected.body.len() {
            return fail(format!(
                "the answer ended after {} of {} bytes ({} of {} chunks)",
                self.cursor,
                expected.body.len(),
                self.chunks,
                expected.ends.len()
            ));
        }
        Ok(Progress::Complete)
    }

    fn head<'a>(&mut self, bytes: &'a [u8], expected: &Expected) -> Outcome<&'a [u8]> {
        let had = self.line.len();
        self.line.extend_from_slice(bytes);
        let Some(end) = memchr::memmem::find(&self.line, b"\r\n\r\n").map(|at| at + 4) else {
            if self.line.len() > HEAD_BYTES_MAX {
                return fail(format!("no end of the head in {HEAD_BYTES_MAX} bytes"));
            }
            return Ok(&[]);
        };
        // What was held before had no head end in it, so the rest starts within `bytes`.
        let rest = &bytes[end - had..];
        let head = String::from_utf8_lossy(&self.line[..end]).into_owned();
        let body = String::from_utf8_lossy(rest);
        if !head.starts_with("HTTP/1.1 200 ") {
            return fail(format!("not a 200: {}{body}", head.trim_end()));
        }
        let field = |name: &str| {
            head.lines().skip(1).find_map(|line| {
                let (have, value) = line.split_once(':')?;
                have.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        if field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            return fail("the connection is not kept alive");
        }
        let chunked =
            field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        self.state = match field("content-length").map(str::parse::<usize>) {
            Some(Ok(length)) if length == expected.body.len() && !chunked => State::Exact(length),
            Some(_) => return fail(format!("a wrong length: {}{body}", head.trim_end())),
            None if chunked => State::ChunkSize,
            None => return fail(format!("no length: {}", head.trim_end())),
        };
        self.line.clear();
        Ok(rest)
    }

    fn chunk_size<'a>(&mut self, bytes: &'a [u8]) -> Outcome<&'a [u8]> {
        let (line, rest) = match memchr::memchr(b'\n', bytes) {
            Some(at) => bytes.split_at(at + 1),
            None => (bytes, &[][..]),
        };
        self.line.extend_from_slice(line);
        if self.line.len() > SIZE_LINE_BYTES_MAX {
            return fail("a chunk-size line without end");
        }
        if let Some(digits) = self.line.strip_suffix(b"\r\n") {
            let digits = std::str::from_utf8(digits)?;
            let size = usize::from_str_radix(digits, 16)
                .map_err(|_| format!("no chunk size: {digits:?}"))?;
            self.state = if size == 0 { State::LastEnd(2) } else { State::Chunk(size) };
            self.line.clear();
        }
        Ok(rest)
    }

    fn body(&mut self, bytes: &[u8], expected: &Expected) -> Outcome<()> {
        let end = self.cursor + bytes.len();
        if expected.body.get(self.cursor..end) != Some(bytes) {
            let have = String::from_utf8_lossy(bytes);
            let want = &expected.body[self.cursor..end.min(expected.body.len())];
            let want = String::from_utf8_lossy(want);
            return fail(format!("from byte {}: {have:?} instead of {want:?}", self.cursor));
        }
        self.cursor = end;
        while expected.ends.get(self.chunks).is_some_and(|&end| end <= self.cursor) {
            self.chunks += 1;
        }
        Ok(())
    }
}

fn line_end(byte: u8, left: usize) -> Outcome<()> {
    if byte == if left == 2 { b'\r' } else { b'\n' } {
        Ok(())
    } else {
        fail("no line end after a chunk")
    }
}

/// Shows that the check can fail: a checker that takes anything would prove nothing.
///
/// # Errors
/// When a wrong answer is taken, or a right one refused.
pub fn self_check() -> Outcome<()> {
    let expected = crate::chat::expected(crate::chat::Kind::Burst);
    let text = String::from_utf8(expected.body.clone())?;
    let wrap = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        )
    };
    let right = wrap(&text);
    let cases = [
        (right.clone(), true),
        (right.replacen("200 OK", "502 Bad Gateway", 1), false),
        (wrap(&text.replace("data: [DONE]\n\n", "")), false),
        (wrap(&text.replacen("word041", "word042", 1)), false),
        (wrap(&format!("{text}data: {{\"choices\":[]}}\n\n")), false),
        (format!("{right}x"), false),
        (right.replacen("chunked\r\n", "chunked\r\nconnection: close\r\n", 1), false),
    ];
    for (index, (case, taken)) in cases.iter().enumerate() {
        // At once, and a byte at a time.
        for step in [case.len(), 1] {
            let mut answer = Answer::new();
            let verdict = case
                .as_bytes()
                .chunks(step)
                .try_fold(Progress::More, |_, bytes| answer.feed(bytes, &expected));
            if matches!(verdict, Ok(Progress::Complete)) != *taken {
                return fail(format!("self check: case {index} in steps of {step}: {verdict:?}"));
            }
        }
    }
    Ok(())
}
