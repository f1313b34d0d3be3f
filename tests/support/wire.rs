//! A client on a plain socket: the tests want to see bytes, their times, and how a connection ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::patience;

/// How long an answer may take when a test does not say.
pub const ANSWER: Duration = Duration::from_secs(10);

/// One connection.
pub struct Wire {
    socket: TcpStream,
    buffer: Vec<u8>,
    limit: Duration,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing (more) came in time.
    Timeout,
    /// The peer closed, or reset; with what had come by then.
    Closed(String),
    /// Not HTTP.
    Malformed(String),
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
    pub at: Instant,
}

impl Head {
    /// The value of a header field; fails the test when there are two of them.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is there twice: {:?}", self.headers);
        value
    }
}

/// A piece of a body: a chunk, or what one read gave.
#[derive(Clone, Debug)]
pub struct Piece {
    pub at: Instant,
    pub data: Vec<u8>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub head: Head,
    pub pieces: Vec<Piece>,
    /// Whether the message ended as HTTP says: length reached, or last chunk seen.
    pub clean: bool,
    /// When the end was seen.
    pub end: Instant,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    pub fn body(&self) -> Vec<u8> {
        self.pieces.iter().flat_map(|piece| piece.data.clone()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body()).into_owned()
    }

    /// The body as JSON; fails the test when it is none.
    pub fn json(&self) -> Value {
        let body = self.body();
        serde_json::from_slice(&body)
            .unwrap_or_else(|e| panic!("{e}: {:?} {}", self.head, String::from_utf8_lossy(&body)))
    }

    /// `error.code` of an OpenAI error, `code` of a problem document.
    pub fn code(&self) -> String {
        let json = self.json();
        let code = json.pointer("/error/code").or(json.pointer("/code"));
        code.and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

/// How the body of an answer is told.
enum Framing {
    None,
    Length(u64),
    Chunked,
    Close,
}

impl Wire {
    /// Connects; fails the test when that fails.
    pub fn connect(to: SocketAddr) -> Self {
        Wire::try_connect(to).unwrap_or_else(|e| panic!("cannot connect to {to}: {e}"))
    }

    /// Connects.
    pub fn try_connect(to: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpStream::connect_timeout(&to, patience(Duration::from_secs(5)))?;
        socket.set_nodelay(true)?;
        Ok(Wire { socket, buffer: Vec::new(), limit: patience(ANSWER) })
    }

    /// Changes how long this connection waits for bytes.
    pub fn wait_at_most(mut self, limit: Duration) -> Self {
        self.limit = patience(limit);
        self
    }

    /// The socket and what has come and was not read, for another protocol.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.socket, self.buffer)
    }

    /// The socket, for tests that close it their own way.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Sends; fails the test when that fails.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap_or_else(|e| panic!("cannot send: {e}"));
    }

    /// Sends.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.socket.set_write_timeout(Some(self.limit))?;
        self.socket.write_all(bytes.as_ref())
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
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
            Ok(0) => Err(self.closed()),
            Ok(n) => {
                self.buffer.extend_from_slice(&piece[..n]);
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(Fault::Timeout)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(()),
            Err(_) => Err(self.closed()),
        }
    }

    fn closed(&self) -> Fault {
        Fault::Closed(String::from_utf8_lossy(&self.buffer).into_owned())
    }

    /// Reads the head of an answer; 1xx are given like any other.
    pub fn head(&mut self) -> Result<Head, Fault> {
        let deadline = Instant::now() + self.limit;
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return parse_head(&head);
            }
            self.fill(deadline)?;
        }
    }

    /// Reads one whole answer, after any 1xx.
    pub fn answer(&mut self) -> Result<Answer, Fault> {
        self.answer_to("GET")
    }

    /// Reads the answer to a request of this method (`HEAD` has no body).
    pub fn answer_to(&mut self, method: &str) -> Result<Answer, Fault> {
        let mut head = self.head()?;
        while (100..200).contains(&head.status) {
            head = self.head()?;
        }
        self.body_of(head, method)
    }

    /// Reads the rest of an answer whose head was read; fails the test when it does not come.
    pub fn answer_after(&mut self, head: Head) -> Answer {
        self.body_of(head, "GET").unwrap_or_else(|fault| panic!("half an answer: {fault:?}"))
    }

    fn body_of(&mut self, head: Head, method: &str) -> Result<Answer, Fault> {
        let mut body = Body::of(&head, method)?;
        let mut pieces = Vec::new();
        loop {
            match self.piece(&mut body) {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => return Ok(Answer { head, pieces, clean: true, end: Instant::now() }),
                Err(Fault::Closed(_)) => {
                    return Ok(Answer { head, pieces, clean: false, end: Instant::now() });
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Reads the next piece of a body; `None` at its end.
    pub fn piece(&mut self, body: &mut Body) -> Result<Option<Piece>, Fault> {
        let deadline = Instant::now() + self.limit;
        loop {
            match body.take(&mut self.buffer)? {
                Taken::Piece(data) => return Ok(Some(Piece { at: Instant::now(), data })),
                Taken::End => return Ok(None),
                Taken::More => match self.fill(deadline) {
                    Err(Fault::Closed(_)) if matches!(body.framing, Framing::Close) => {
                        return Ok(None);
                    }
                    other => other?,
                },
            }
        }
    }

    /// Sends a request and reads its answer; fails the test when there is none.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        let request = request.as_ref();
        self.send(request);
        let method = request.split(|byte| *byte == b' ').next().unwrap_or_default();
        let method = String::from_utf8_lossy(method).into_owned();
        self.answer_to(&method).unwrap_or_else(|fault| {
            let shown = String::from_utf8_lossy(&request[..request.len().min(300)]).into_owned();
            panic!("no answer: {fault:?} to {shown}")
        })
    }

    /// Whether the peer closes (FIN or reset) within this time; what still comes is thrown away.
    pub fn closes_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + patience(limit);
        loop {
            match self.fill(deadline) {
                Ok(()) => self.buffer.clear(),
                Err(Fault::Closed(_)) => return true,
                Err(_) => return false,
            }
        }
    }

    /// What came and was not read as an answer yet, waiting this long for more.
    pub fn rest(&mut self, wait: Duration) -> Vec<u8> {
        let deadline = Instant::now() + wait;
        while self.fill(deadline).is_ok() {}
        std::mem::take(&mut self.buffer)
    }
}

/// Sends one request on a fresh connection and reads its answer.
pub fn ask(to: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
    Wire::connect(to).ask(request)
}

fn find(buffer: &[u8], what: &[u8]) -> Option<usize> {
    buffer.windows(what.len()).position(|window| window == what)
}

fn parse_head(bytes: &[u8]) -> Result<Head, Fault> {
    let malformed =
        |what: &str| Fault::Malformed(format!("{what}: {}", String::from_utf8_lossy(bytes)));
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("not UTF-8"))?;
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let (version, rest) = status_line.split_once(' ').ok_or(malformed("no status"))?;
    let (status, reason) = rest.split_once(' ').ok_or(malformed("no reason"))?;
    if version != "HTTP/1.1" || status.len() != 3 || status_line.contains('\n') {
        return Err(malformed("bad status line"));
    }
    let status = status.parse().map_err(|_| malformed("bad status"))?;
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(malformed("bad field"))?;
        if name.is_empty() || name.contains(' ') || line.contains(['\n', '\r', '\0']) {
            return Err(malformed("bad field"));
        }
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok(Head { status, reason: reason.to_owned(), headers, at: Instant::now() })
}

/// A body being read.
pub struct Body {
    framing: Framing,
    done: bool,
}

enum Taken {
    Piece(Vec<u8>),
    End,
    More,
}

impl Body {
    /// The body that follows this head.
    pub fn of(head: &Head, method: &str) -> Result<Self, Fault> {
        let length = head.header("content-length");
        let coding = head.header("transfer-encoding");
        let framing = match (length, coding) {
            (Some(_), Some(_)) => return Err(Fault::Malformed("both length and coding".into())),
            _ if method == "HEAD" || matches!(head.status, 100..200 | 204 | 304) => Framing::None,
            (None, Some("chunked")) => Framing::Chunked,
            (Some(length), None) => {
                Framing::Length(length.parse().map_err(|_| Fault::Malformed("bad length".into()))?)
            }
            (None, None) => Framing::Close,
            (None, Some(other)) => return Err(Fault::Malformed(format!("coding {other}"))),
        };
        Ok(Body { framing, done: false })
    }

    fn take(&mut self, buffer: &mut Vec<u8>) -> Result<Taken, Fault> {
        if self.done {
            return Ok(Taken::End);
        }
        match &mut self.framing {
            Framing::None | Framing::Length(0) => {
                self.done = true;
                Ok(Taken::End)
            }
            _ if buffer.is_empty() => Ok(Taken::More),
            Framing::Close => Ok(Taken::Piece(std::mem::take(buffer))),
            Framing::Length(left) => {
                let n = (*left).min(buffer.len() as u64);
                *left -= n;
                Ok(Taken::Piece(buffer.drain(..n as usize).collect()))
            }
            Framing::Chunked => {
                let Some(line_end) = find(buffer, b"\r\n") else { return Ok(Taken::More) };
                let line = String::from_utf8_lossy(&buffer[..line_end]).into_owned();
                let bad = || Fault::Malformed(format!("chunk size {line:?}"));
                let size = usize::from_str_radix(&line, 16).map_err(|_| bad())?;
                let whole = line_end + 2 + size + 2;
                if buffer.len() < whole {
                    return Ok(Taken::More);
                }
                let chunk: Vec<u8> = buffer.drain(..whole).collect();
                if !chunk.ends_with(b"\r\n") {
                    return Err(bad());
                }
                if size == 0 {
                    self.done = true;
                    return Ok(Taken::End);
                }
                Ok(Taken::Piece(chunk[line_end + 2..line_end + 2 + size].to_vec()))
            }
        }
    }
}
