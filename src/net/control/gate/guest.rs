//! One connection: a request on its way in, and its answer on its way out. Nothing here blocks.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::base::error::Error;
use crate::net::control::handlers::CALLER;
use crate::net::control::{BODY_BYTES_MAX, Caller};
use crate::net::http::{BodyLength, Head, Method, Response};
use crate::net::http1::{self, BodyDecoder, Connection, HeadLimits, RequestLine};

/// Bounds of a head. Our own commands send three fields.
const HEAD: HeadLimits = HeadLimits { head_max: 16 * 1024, headers_max: 64, target_max: 8 * 1024 };
/// How long a request may take to come, whole.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the answer may take to begin: past every order's own deadline.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// How long whoever asked may read nothing of an answer that is there.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that are carried at a time, in either direction.
const PIECE_BYTES: usize = 16 * 1024;

/// What a guest needs next.
pub(super) enum Next {
    /// Nothing until its sockets are ready or time has passed.
    Wait,
    /// It is done, or gone.
    End,
    /// It asked for something that cannot be: status, code, sentence.
    Refuse(u16, &'static str, String),
    /// Its request is whole, and its body has so many bytes: a connection to pass it on.
    Connect(u64),
}

/// A connection.
pub(super) struct Guest {
    stream: UnixStream,
    caller: Caller,
    stage: Stage,
    deadline: Instant,
}

enum Stage {
    /// The head is on its way.
    Head { input: Vec<u8>, scanned: usize },
    /// The body is.
    Body { head: Box<Head>, decoder: BodyDecoder, body: Vec<u8> },
    /// The request is whole, as tiny_http gets it.
    Whole { request: Vec<u8> },
    /// Both ways.
    Carrying(Carrying),
}

struct Carrying {
    inner: UnixStream,
    /// The request, and how much of it is through.
    request: Vec<u8>,
    through: usize,
    /// A piece of the answer, and how much of it is through.
    piece: Vec<u8>,
    carried: usize,
    /// The answer has begun, and has come to its end.
    begun: bool,
    ended: bool,
}

impl Guest {
    pub(super) fn new(stream: UnixStream, caller: Caller, now: Instant) -> Self {
        let stage = Stage::Head { input: Vec::new(), scanned: 0 };
        Guest { stream, caller, stage, deadline: now + REQUEST_TIMEOUT }
    }

    /// What poll has to look at.
    pub(super) fn interests<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        match &self.stage {
            Stage::Carrying(on) => {
                let full = on.carried < on.piece.len();
                let out = if full { PollFlags::OUT } else { PollFlags::empty() };
                // Whoever asked may leave at any time; more than the request is not read.
                fds.push(PollFd::new(&self.stream, out | PollFlags::RDHUP));
                let mut wanted = PollFlags::empty();
                wanted.set(PollFlags::OUT, on.through < on.request.len());
                wanted.set(PollFlags::IN, !full && !on.ended);
                // Else its hangup would be reported again and again.
                if !wanted.is_empty() {
                    fds.push(PollFd::new(&on.inner, wanted));
                }
            }
            _ => fds.push(PollFd::new(&self.stream, PollFlags::IN)),
        }
    }

    /// Does what can be done now.
    pub(super) fn step(&mut self, now: Instant) -> Next {
        let late = now >= self.deadline;
        let next = match &mut self.stage {
            Stage::Carrying(_) => self.carry(now),
            Stage::Whole { .. } => Next::Wait,
            _ => self.take_in(),
        };
        match next {
            Next::Wait if late => self.late(),
            next => next,
        }
    }

    /// Its request goes to tiny_http over this connection.
    pub(super) fn pass_on(&mut self, inner: UnixStream, now: Instant) -> io::Result<()> {
        inner.set_nonblocking(true)?;
        if let Stage::Whole { request } = &mut self.stage {
            let request = std::mem::take(request);
            let (piece, through, carried) = (Vec::new(), 0, 0);
            let (begun, ended) = (false, false);
            let on = Carrying { inner, request, through, piece, carried, begun, ended };
            self.stage = Stage::Carrying(on);
            self.deadline = now + ANSWER_TIMEOUT;
        }
        Ok(())
    }

    /// Answers at once. The answer is small, so that the socket takes it whole.
    pub(super) fn refuse(&mut self, answer: &Response) {
        let mut bytes = Vec::new();
        let body = BodyLength::Exact(answer.body.len() as u64);
        let fields = answer.headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        http1::write_response_head(&mut bytes, answer.status, body, Connection::Close, fields);
        bytes.extend_from_slice(&answer.body);
        let _ = self.stream.write(&bytes);
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads what has come of the request.
    fn take_in(&mut self) -> Next {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let came = match self.stream.read(&mut piece) {
                Ok(0) => return Next::End,
                Ok(came) => came,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Wait,
                Err(_) => return Next::End,
            };
            match self.took(piece.get(..came).unwrap_or_default()) {
                Ok(Next::Wait) => {}
                Ok(next) => return next,
                Err(error) => {
                    let row = error.row();
                    return Next::Refuse(row.status, row.code, error.context().to_owned());
                }
            }
        }
    }

    fn took(&mut self, bytes: &[u8]) -> Result<Next, Error> {
        let rest;
        let mut bytes = bytes;
        if let Stage::Head { input, scanned } = &mut self.stage {
            input.extend_from_slice(bytes);
            let Some((head, used)) = http1::request_head(input, scanned, &HEAD)? else {
                return Ok(Next::Wait);
            };
            if matches!(head.body, BodyLength::Exact(length) if length > BODY_BYTES_MAX as u64) {
                return Ok(too_large());
            }
            if head.expects_continue {
                let _ = self.stream.write(http1::CONTINUE);
            }
            rest = input.split_off(used);
            bytes = &rest;
            let decoder = BodyDecoder::new(head.body);
            self.stage = Stage::Body { head: Box::new(head), decoder, body: Vec::new() };
        }
        let Stage::Body { head, decoder, body } = &mut self.stage else { return Ok(Next::Wait) };
        while !bytes.is_empty() && !decoder.finished() {
            let decoded = decoder.decode(bytes)?;
            if body.len() + decoded.data.len() > BODY_BYTES_MAX {
                return Ok(too_large());
            }
            body.extend_from_slice(decoded.data);
            bytes = bytes.get(decoded.used..).unwrap_or_default();
        }
        if !decoder.finished() {
            return Ok(Next::Wait);
        }
        let length = body.len() as u64;
        let request = written(head, body, self.caller)?;
        self.stage = Stage::Whole { request };
        Ok(Next::Connect(length))
    }

    /// Carries bytes both ways.
    fn carry(&mut self, now: Instant) -> Next {
        let Stage::Carrying(on) = &mut self.stage else { return Next::Wait };
        // What comes behind the request is read by nobody; its end is a guest who left.
        match self.stream.read(&mut [0; 64]) {
            Ok(0) => return Next::End,
            Err(error) if !waits(&error) => return Next::End,
            _ => {}
        }
        while on.through < on.request.len() {
            match on.inner.write(on.request.get(on.through..).unwrap_or_default()) {
                Ok(through) => on.through += through,
                Err(error) if waits(&error) => break,
                // An answer may have come nevertheless.
                Err(_) => on.through = on.request.len(),
            }
        }
        loop {
            while on.carried < on.piece.len() {
                match self.stream.write(on.piece.get(on.carried..).unwrap_or_default()) {
                    Ok(carried) => on.carried += carried,
                    Err(error) if waits(&error) => return Next::Wait,
                    Err(_) => return Next::End,
                }
                self.deadline = now + READ_TIMEOUT;
            }
            if on.ended {
                return Next::End;
            }
            on.carried = 0;
            on.piece.resize(PIECE_BYTES, 0);
            match on.inner.read(&mut on.piece) {
                Err(error) if waits(&error) => {
                    on.piece.clear();
                    return Next::Wait;
                }
                Ok(0) | Err(_) if !on.begun => {
                    let detail = "the socket is short of means; try again in some seconds";
                    return Next::Refuse(503, "queue_full", detail.to_owned());
                }
                Ok(0) | Err(_) => {
                    on.piece.clear();
                    on.ended = true;
                }
                Ok(came) => {
                    on.piece.truncate(came);
                    on.begun = true;
                    self.deadline = now + READ_TIMEOUT;
                }
            }
        }
    }

    fn late(&self) -> Next {
        match &self.stage {
            Stage::Carrying(on) if !on.begun => {
                Next::Refuse(504, "upstream_timeout", "no answer in time; look at the log".into())
            }
            // The answer has begun: nothing can be said any more.
            Stage::Carrying(_) => Next::End,
            Stage::Head { input, .. } if input.is_empty() => Next::End,
            _ => Next::Refuse(408, "request_timeout", "the request did not come in time".into()),
        }
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn too_large() -> Next {
    let detail = format!("a body has at most {BODY_BYTES_MAX} bytes here (control.body_max)");
    Next::Refuse(413, "body_too_large", detail)
}

/// The request as tiny_http gets it: one method, one target, one length, who asks, and nothing else of
/// what was sent.
fn written(head: &Head, body: &[u8], caller: Caller) -> Result<Vec<u8>, Error> {
    let method = if head.method == Method::Other { Method::Options } else { head.method };
    let length = match body.len() as u64 {
        0 => BodyLength::None,
        length => BodyLength::Exact(length),
    };
    let line = RequestLine { method, target: &head.target, host: "control", body: length };
    let caller = format!("{} {}", caller.uid, caller.pid);
    let mut request = Vec::with_capacity(256 + body.len());
    http1::write_request_head(&mut request, &line, [(CALLER, caller.as_bytes())])?;
    // The writer of heads keeps the connection open; here each serves one request.
    request.truncate(request.len().saturating_sub(2));
    request.extend_from_slice(b"connection: close\r\n\r\n");
    request.extend_from_slice(body);
    Ok(request)
}
