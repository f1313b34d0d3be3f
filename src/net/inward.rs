//! Requests that the process makes of its own engine, for those who came in by another door.
//!
//! One end of a socket pair is a client's connection like any other: its request runs on the same
//! workers and pumps, under the same limits, and its client's leaving ends it in every phase. The
//! request itself never crosses a socket: it is handed over whole, so that no bytes from outside can
//! claim to be one. The other end, [`InwardCall`], reads the answer without blocking; dropping it is
//! how such a client leaves.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::conn::ClientConn;
use super::engine::Shared;
use super::http::{BodyLength, Head, Headers, Method, Request, ResponseHead};
use super::http1::{self, BodyDecoder};
use super::park::Purpose;
use super::service::Caller;
use super::settings::READ_BYTES;
use super::websocket::Bell;
use crate::base::clock;
use crate::base::error::{Error, Kind, Result};
use crate::base::heartbeat::{self, Doing};
use crate::base::id::RequestId;
use crate::base::lock;
use crate::base::metrics::Limit;

/// Largest head of an answer, in bytes: ours have some hundred.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The longest wait for answers, so that a heartbeat is never far away.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// A way into an engine, from inside. Cheap to clone.
#[derive(Clone)]
pub struct Inward {
    shared: Arc<Shared>,
    calls: Arc<Limit>,
}

/// A request from inside.
#[derive(Clone, Debug)]
pub struct InwardRequest {
    /// `POST` this, a path of the service.
    pub path: &'static str,
    /// Header fields; names and values free of CR, LF and NUL.
    pub fields: Vec<(&'static str, String)>,
    /// Its body.
    pub body: Vec<u8>,
    /// For whom.
    pub caller: Caller,
}

impl Inward {
    pub(super) fn new(shared: &Arc<Shared>, calls: &Arc<Limit>) -> Self {
        Inward { shared: Arc::clone(shared), calls: Arc::clone(calls) }
    }

    /// Changes how many requests may be under way.
    pub fn set_max(&self, max: usize) {
        self.calls.set_max(max as u64);
    }

    /// Begins a request: when this returns it is admitted and on its way to a worker.
    ///
    /// # Errors
    /// What the service says, [`Kind::Draining`], [`Kind::ConnectionsFull`], [`Kind::BodyTooLarge`],
    /// [`Kind::BodiesFull`], [`Kind::Internal`] without descriptors.
    pub fn call(&self, request: InwardRequest) -> Result<InwardCall> {
        lock::assert_none_held();
        let shared = &self.shared;
        let InwardRequest { path, fields, body, caller } = request;
        if shared.draining() || shared.stopping() {
            return Err(Error::new(Kind::Draining, "the gateway stops; try again shortly"));
        }
        let Some(place) = self.calls.try_take(1) else {
            let context = "too many requests run from inside; try again shortly";
            return Err(Error::new(Kind::ConnectionsFull, context));
        };
        let (id, head) = (RequestId::generate(), head(path, &fields, body.len()));
        let admission = shared.service.admit_inward(&head, &caller, &id)?;
        let length = body.len() as u64;
        if length > admission.body_max {
            let max = admission.body_max;
            let context = format!("the request is larger than {max} bytes (server.body_max)");
            return Err(Error::new(Kind::BodyTooLarge, context));
        }
        let Some(budget) = shared.bodies.try_take(length) else {
            let context = "no memory is left for requests now; try again shortly";
            return Err(Error::new(Kind::BodiesFull, context));
        };
        shared.sizes.body(body.len());
        let pair = || -> io::Result<(UnixStream, UnixStream)> {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            Ok((ours, theirs))
        };
        let failed = |error: io::Error| {
            Error::new(Kind::Internal, "no descriptors for a request from inside").because(error)
        };
        let (ours, theirs) = pair().map_err(failed)?;
        let conn = ClientConn::inward(theirs, caller.peer, place).map_err(failed)?;
        let request = Request {
            id: id.clone(),
            head,
            body,
            budget,
            route: admission.route,
            key: caller.key,
            granted: caller.granted,
            peer: caller.peer,
            started: clock::now(),
        };
        shared.inbox.park(Box::new(conn), Purpose::Start(Box::new(request)));
        Ok(InwardCall {
            socket: ours,
            id,
            input: Vec::new(),
            scanned: 0,
            head: None,
            reading: None,
        })
    }
}

fn head(path: &str, fields: &[(&'static str, String)], length: usize) -> Head {
    let mut headers = Headers::default();
    headers.push(b"content-type", b"application/json");
    for (name, value) in fields {
        headers.push(name.as_bytes(), value.as_bytes());
    }
    Head {
        method: Method::Post,
        target: path.into(),
        http11: true,
        headers,
        body: BodyLength::Exact(length as u64),
        // One request each: what such a connection could ask for next would be a stranger's.
        keep_alive: false,
        expects_continue: false,
    }
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// Nothing now.
    Nothing,
    /// Something; there may be more.
    Some,
    /// The end of the answer.
    End,
}

/// A request from inside that is under way. Dropped, its client is gone.
#[derive(Debug)]
pub struct InwardCall {
    socket: UnixStream,
    id: RequestId,
    /// The beginning of the head.
    input: Vec<u8>,
    scanned: usize,
    head: Option<ResponseHead>,
    reading: Option<BodyDecoder>,
}

impl InwardCall {
    /// The request's id, as it stands in the access log.
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// The answer's head, once it is there.
    pub fn head(&self) -> Option<&ResponseHead> {
        self.head.as_ref()
    }

    /// Reads once, at most some KiB, and appends what came of the body to `out`.
    ///
    /// # Errors
    /// [`Kind::UpstreamCut`] when the connection ended before the answer did;
    /// [`Kind::UpstreamMalformed`], which would be our own fault.
    pub fn read(&mut self, out: &mut Vec<u8>) -> Result<Came> {
        let mut bytes = [0_u8; READ_BYTES];
        let got = rustix::net::recv(&self.socket, &mut bytes[..], RecvFlags::DONTWAIT);
        match got {
            Ok((0, _)) => Err(Error::new(Kind::UpstreamCut, "the answer broke off")),
            Ok((n, _)) => self.take(&bytes[..n], out),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Came::Nothing),
            Err(errno) => Err(Error::new(Kind::UpstreamCut, "the answer broke off")
                .because(io::Error::from(errno))),
        }
    }

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Came> {
        if self.reading.is_some() {
            return self.body(bytes, out);
        }
        self.input.extend_from_slice(bytes);
        while self.reading.is_none() {
            let (input, scanned) = (&self.input, &mut self.scanned);
            let parsed = http1::response_head(input, scanned, HEAD_BYTES_MAX, Method::Post)?;
            let Some((head, used)) = parsed else { return Ok(Came::Some) };
            self.input.drain(..used);
            self.scanned = 0;
            if head.status >= 200 {
                self.reading = Some(BodyDecoder::of_answer(head.body));
                self.head = Some(head);
            }
        }
        let rest = std::mem::take(&mut self.input);
        self.body(&rest, out)
    }

    fn body(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<Came> {
        let Some(decoder) = &mut self.reading else { return Ok(Came::Some) };
        while !decoder.finished() && !bytes.is_empty() {
            let decoded = decoder.decode(bytes)?;
            out.extend_from_slice(decoded.data);
            bytes = &bytes[decoded.used..];
        }
        Ok(if decoder.finished() { Came::End } else { Came::Some })
    }
}

impl AsFd for InwardCall {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Waits until one of these calls has something to read, the bell rings, or until then, at most a
/// second; `ready` has a word for each call.
pub fn wait<'a>(
    bell: &Bell,
    calls: impl Iterator<Item = &'a InwardCall>,
    until: Instant,
    ready: &mut Vec<bool>,
) {
    lock::assert_none_held();
    let mut fds = vec![PollFd::new(bell, PollFlags::IN)];
    fds.extend(calls.map(|call| PollFd::new(&call.socket, PollFlags::IN)));
    let left = until.saturating_duration_since(clock::now()).min(WAIT_MAX);
    let _waiting = heartbeat::waiting(Doing::Sockets, clock::now() + left);
    // An interrupted or failed poll only means that nothing is known to be ready.
    let timeout = Timespec::try_from(left).ok();
    let polled = rustix::event::poll(&mut fds, timeout.as_ref());
    ready.clear();
    ready.extend(fds[1..].iter().map(|fd| polled.is_ok() && !fd.revents().is_empty()));
    drop(fds);
    bell.hear();
}
