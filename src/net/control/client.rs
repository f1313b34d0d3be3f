//! The other end of the control socket: what commands ask over it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::base::clock;
use crate::net::http::{BodyLength, Method};
use crate::net::http1::{self, BodyDecoder, RequestLine};

/// Most bytes of a whole answer. Past it: [`Fault::Broken`].
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most bytes of a line of a stream. Past it: [`Fault::Broken`].
pub const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most bytes of a head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Bytes that are read at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Nobody listens: there is no socket, or a dead daemon left it.
    #[error("no daemon answers at this socket")]
    Absent,
    /// We may not.
    #[error("this socket belongs to another user")]
    NotYours,
    /// It took too long.
    #[error("no answer in time")]
    Late,
    /// The daemon went away, or what answers is no daemon of ours.
    #[error("the answer broke off: {0}")]
    Broken(String),
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Asks, and waits for the whole answer until the deadline. `body`: with it, a POST of JSON.
///
/// # Errors
/// Why there is none.
pub fn ask(
    socket: &Path,
    target: &str,
    body: Option<&[u8]>,
    deadline: Instant,
) -> Result<Answer, Fault> {
    let mut reading = Reading::begin(socket, target, body, Some(deadline))?;
    let mut all = Vec::new();
    while let Some(piece) = reading.piece()? {
        all.extend_from_slice(&piece);
        if all.len() > ANSWER_BYTES_MAX {
            return Err(Fault::Broken("it is too large".to_owned()));
        }
    }
    Ok(Answer { status: reading.status, body: all })
}

/// Asks for a stream, and gives each of its lines as it comes until `on` says no or it ends. An answer
/// that is no stream of status 200 comes back whole.
///
/// # Errors
/// Why there is none, or no more.
pub fn follow(
    socket: &Path,
    target: &str,
    on: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<Option<Answer>, Fault> {
    let mut reading = Reading::begin(socket, target, None, None)?;
    let (status, mut rest) = (reading.status, Vec::new());
    while let Some(piece) = reading.piece()? {
        rest.extend_from_slice(&piece);
        if status != 200 {
            continue;
        }
        while let Some(end) = memchr::memchr(b'\n', &rest) {
            let line: Vec<u8> = rest.drain(..=end).take(end).collect();
            // Empty lines say only that the stream lives.
            if !line.is_empty() && !on(&line) {
                return Ok(None);
            }
        }
        if rest.len() > LINE_BYTES_MAX {
            return Err(Fault::Broken("a line is too long".to_owned()));
        }
    }
    Ok((status != 200).then_some(Answer { status, body: rest }))
}

/// An answer that is being read.
struct Reading {
    stream: UnixStream,
    deadline: Option<Instant>,
    status: u16,
    decoder: BodyDecoder,
    input: Vec<u8>,
}

impl Reading {
    fn begin(
        socket: &Path,
        target: &str,
        body: Option<&[u8]>,
        deadline: Option<Instant>,
    ) -> Result<Reading, Fault> {
        let connect_by = deadline.unwrap_or_else(|| clock::now() + Duration::from_secs(5));
        let mut stream = connect(socket, connect_by)?;
        let method = if body.is_some() { Method::Post } else { Method::Get };
        let length = body.map_or(BodyLength::None, |body| BodyLength::Exact(body.len() as u64));
        let line = RequestLine { method, target, host: "control", body: length };
        let mut request = Vec::new();
        let fields = [("accept", b"application/json".as_slice())];
        http1::write_request_head(&mut request, &line, fields)
            .map_err(|error| Fault::Broken(error.to_string()))?;
        request.extend_from_slice(body.unwrap_or_default());
        // A refusal may come before all is sent.
        let sent = stream.write_all(&request);
        let (decoder, input) = (BodyDecoder::of_answer(BodyLength::None), Vec::new());
        let mut reading = Reading { stream, deadline, status: 0, decoder, input };
        match reading.head(method) {
            Ok(()) => Ok(reading),
            Err(fault) => Err(sent.err().map_or(fault, |error| told(&error))),
        }
    }

    fn head(&mut self, method: Method) -> Result<(), Fault> {
        let mut scanned = 0;
        loop {
            let found = http1::response_head(&self.input, &mut scanned, HEAD_BYTES_MAX, method)
                .map_err(|error| Fault::Broken(error.to_string()))?;
            match found {
                Some((head, used)) => {
                    self.input.drain(..used);
                    scanned = 0;
                    if head.status >= 200 {
                        self.status = head.status;
                        self.decoder = BodyDecoder::of_answer(head.body);
                        return Ok(());
                    }
                }
                None if !self.fill()? => {
                    return Err(Fault::Broken("the connection was closed".to_owned()));
                }
                None => {}
            }
        }
    }

    /// The next piece of the body; none at its end.
    fn piece(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let broken = |error: crate::base::error::Error| Fault::Broken(error.to_string());
        loop {
            let mut data = Vec::new();
            let mut at = 0;
            while at < self.input.len() && !self.decoder.finished() {
                let decoded = self
                    .decoder
                    .decode(self.input.get(at..).unwrap_or_default())
                    .map_err(broken)?;
                data.extend_from_slice(decoded.data);
                at += decoded.used;
            }
            self.input.drain(..at);
            if !data.is_empty() {
                return Ok(Some(data));
            }
            if self.decoder.finished() {
                return Ok(None);
            }
            if !self.fill()? {
                self.decoder.end_of_input().map_err(broken)?;
            }
        }
    }

    /// Reads more; false at the end.
    fn fill(&mut self) -> Result<bool, Fault> {
        let timeout = match self.deadline {
            None => None,
            Some(deadline) => match deadline.saturating_duration_since(clock::now()) {
                Duration::ZERO => return Err(Fault::Late),
                left => Some(left),
            },
        };
        self.stream.set_read_timeout(timeout).map_err(|error| told(&error))?;
        let mut piece = vec![0; PIECE_BYTES];
        let came = self.stream.read(&mut piece).map_err(|error| told(&error))?;
        self.input.extend_from_slice(piece.get(..came).unwrap_or_default());
        Ok(came > 0)
    }
}

/// Connects. The write timeout bounds that too, when the daemon's queue is full.
fn connect(path: &Path, deadline: Instant) -> Result<UnixStream, Fault> {
    crate::base::lock::assert_none_held();
    let broken = |error: io::Error| Fault::Broken(error.to_string());
    let address = SockAddr::unix(path).map_err(|_| Fault::Absent)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(broken)?;
    let left = deadline.saturating_duration_since(clock::now()).max(Duration::from_millis(1));
    socket.set_write_timeout(Some(left)).map_err(broken)?;
    socket.connect(&address).map_err(|error| told(&error))?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

fn told(error: &io::Error) -> Fault {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
            Fault::Absent
        }
        ErrorKind::PermissionDenied => Fault::NotYours,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Fault::Late,
        _ => Fault::Broken(error.to_string()),
    }
}
