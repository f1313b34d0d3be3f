//! One call: a request and its answer.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use super::control::Control;
use super::pool::{BUFFER_BYTES, Shared};
use super::stream::Stream;
use super::wait::{self, Interest, Stop, Watch};
use crate::base::error::{Error, Kind, Phase, Result};
use crate::net::http::{BodyLength, Method, ResponseHead};
use crate::net::http1::{BodyDecoder, RequestLine, response_head, write_request_head};

/// Longest head of an answer, in bytes (as ureq has it). Past it: `upstream_malformed`.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most interim answers (1xx) before the real one. Past it: `upstream_malformed`.
const INTERIM_MAX: u32 = 16;

/// A request to an upstream.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// The method.
    pub method: Method,
    /// The path with its query.
    pub target: &'a str,
    /// Header fields without `Host` and `Content-Length`.
    pub fields: &'a [(&'a str, &'a [u8])],
    /// The body, whole, so that it can be sent again.
    pub body: &'a [u8],
}

/// The deadlines of a call's beginning.
#[derive(Clone, Copy, Debug)]
pub struct Begin<'a> {
    /// The client's socket, as in [`Watch`].
    pub client: Option<BorrowedFd<'a>>,
    /// Until when there must be a connection: name, TCP, proxy and TLS.
    pub connect: Instant,
    /// Until when the whole request must be sent.
    pub send: Instant,
}

/// What is there of an answer's body now.
#[derive(Debug)]
pub enum Now<'a> {
    /// These bytes.
    Data(&'a [u8]),
    /// Nothing yet.
    Nothing,
    /// Its end.
    End,
}

/// A call whose request was sent. Dropping it ends the call: its connection is closed unless the
/// answer was read to its end.
pub struct Exchange {
    shared: Arc<Shared>,
    control: Arc<Control>,
    /// Gone once the connection was given back or closed.
    stream: Option<Stream>,
    /// Taken when there is something to read, given back before each wait: a call that waits holds
    /// no buffer, and few hot buffers serve many calls.
    buffer: Vec<u8>,
    /// What was read and not used yet.
    unread: Range<usize>,
    scanned: usize,
    /// Interim answers so far.
    interim: u32,
    /// The last read took all that fitted: there may be more without a wait.
    more: bool,
    method: Method,
    reused: bool,
    /// Bytes of the answer came.
    answered: bool,
    /// The whole request was sent.
    sent: bool,
    head: Option<ResponseHead>,
    decoder: BodyDecoder,
}

impl Exchange {
    /// Sends `request` on `stream`, which `control` holds.
    pub(super) fn send(
        shared: &Arc<Shared>,
        stream: Stream,
        reused: bool,
        request: &Outgoing<'_>,
        until: &Begin<'_>,
        control: &Arc<Control>,
    ) -> Result<Exchange> {
        let mut exchange = Exchange {
            shared: Arc::clone(shared),
            control: Arc::clone(control),
            stream: Some(stream),
            buffer: Vec::new(),
            unread: 0..0,
            scanned: 0,
            interim: 0,
            more: false,
            method: request.method,
            reused,
            answered: false,
            sent: false,
            head: None,
            decoder: BodyDecoder::of_answer(BodyLength::None),
        };
        let head = exchange.shared.head(request)?;
        let watch = Watch { client: until.client, deadline: until.send, phase: Phase::Send };
        exchange.send_all(&head, request.body, &watch)?;
        Ok(exchange)
    }

    fn send_all(&mut self, head: &[u8], body: &[u8], watch: &Watch<'_>) -> Result<()> {
        let total = head.len() + body.len();
        let mut sent = 0;
        loop {
            let Some(stream) = &mut self.stream else { return Err(self.lost(None)) };
            let result = if sent < total {
                let head = &head[sent.min(head.len())..];
                let body = &body[sent.saturating_sub(total - body.len())..];
                stream.write(head, body)
            } else {
                stream.flush().map(|()| 0)
            };
            match result {
                Ok(bytes) => {
                    sent += bytes;
                    if sent == total && bytes == 0 {
                        self.sent = true;
                        return Ok(());
                    }
                    if sent == total && !stream.may_hold_data() {
                        self.sent = true;
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait::ready(&**stream.socket(), Interest::Both, watch, &self.control)
                        .map_err(|stop| self.stopped(stop))?;
                    // An answer that comes before the end of the request, a refusal mostly, is the
                    // answer: the rest is not sent.
                    if self.early_answer()? {
                        return Ok(());
                    }
                }
                // The server may have answered before it closed. What it sent is still here, and
                // behind it the end: reading does not wait.
                Err(error) => loop {
                    let before = self.unread.end;
                    if self.early_answer()? {
                        return Ok(());
                    }
                    if self.unread.end == before {
                        return Err(self.lost(Some(error)));
                    }
                },
            }
        }
    }

    /// Reads what is there of the answer; whether that ends the sending. Interim answers do not.
    fn early_answer(&mut self) -> Result<bool> {
        self.take_buffer();
        let Some(stream) = &mut self.stream else { return Ok(false) };
        match stream.read(&mut self.buffer[self.unread.end..]) {
            // A part of a head came before: `head` finds that it was cut.
            Ok(0) if !self.unread.is_empty() => return Ok(true),
            Ok(0) => return Err(self.lost(None)),
            Ok(bytes) => {
                self.unread.end += bytes;
                self.answered = true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(self.lost(Some(error))),
        }
        // A fault in it is the answer too, and so is a head that fills the buffer; `head` sees to them.
        let decided = match self.next_head() {
            Ok(head) => head.is_some() || self.unread.end == self.buffer.len(),
            Err(_) => true,
        };
        Ok(decided)
    }

    /// The head of the answer, if it is here, behind interim ones, which are used up. It is left
    /// unread.
    fn next_head(&mut self) -> Result<Option<(ResponseHead, usize)>> {
        loop {
            let unread = &self.buffer[self.unread.clone()];
            let found = response_head(unread, &mut self.scanned, HEAD_BYTES_MAX, self.method)
                .map_err(|error| self.malformed(error))?;
            match found {
                Some((head, used)) if matches!(head.status, 100 | 102..=199) => {
                    if self.interim == INTERIM_MAX {
                        let what = "interim answers without end";
                        return Err(self.malformed(Error::new(Kind::UpstreamMalformed, what)));
                    }
                    self.interim += 1;
                    self.unread.start += used;
                    self.scanned = 0;
                }
                found => return Ok(found),
            }
        }
    }

    /// Waits for the head of the answer. Interim answers are skipped.
    ///
    /// After [`Kind::UpstreamTimeout`] the call goes on and may be waited for again, with another
    /// deadline.
    ///
    /// # Errors
    /// `UpstreamTimeout`, `UpstreamCut`, `UpstreamMalformed`, `ClientGone`, `Draining`.
    pub fn head(&mut self, watch: &Watch<'_>) -> Result<&ResponseHead> {
        while !self.found_head()? {
            self.make_room();
            if self.fill(watch)? == 0 {
                return Err(self.lost(None));
            }
        }
        match &self.head {
            Some(head) => Ok(head),
            None => Err(Error::new(Kind::Internal, "an answer without a head")),
        }
    }

    /// Takes the head from what was read; false while it is not whole.
    fn found_head(&mut self) -> Result<bool> {
        if self.head.is_none() {
            let Some((head, used)) = self.next_head()? else { return Ok(false) };
            self.unread.start += used;
            self.decoder = BodyDecoder::of_answer(head.body);
            self.head = Some(head);
        }
        if self.decoder.finished() {
            self.give_back();
        }
        Ok(true)
    }

    /// The head of the answer, without waiting; `None` while it is not here. Interim answers are
    /// skipped.
    ///
    /// # Errors
    /// `UpstreamCut`, `UpstreamMalformed`, `Draining` when cancelled.
    pub fn head_now(&mut self) -> Result<Option<&ResponseHead>> {
        let mut read = false;
        while !self.found_head()? {
            if read && !self.more {
                return Ok(None);
            }
            self.make_room();
            match self.read_now()? {
                None => return Ok(None),
                Some(0) => return Err(self.lost(None)),
                Some(_) => read = true,
            }
        }
        Ok(self.head.as_ref())
    }

    /// Reads once behind what is unread, without waiting; `None`: there is nothing now.
    fn read_now(&mut self) -> Result<Option<usize>> {
        self.take_buffer();
        let Some(stream) = &mut self.stream else { return Ok(Some(0)) };
        let room = &mut self.buffer[self.unread.end..];
        let size = room.len();
        match stream.read(room) {
            Ok(bytes) => {
                if let Some(stop) = self.control.stopped() {
                    return Err(self.stopped(stop));
                }
                // TLS may hold more than the socket shows.
                self.more = bytes > 0 && (bytes == size || stream.may_hold_data());
                self.unread.end += bytes;
                self.answered |= bytes > 0;
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.more = false;
                self.release_buffer();
                Ok(None)
            }
            Err(error) => Err(self.lost(Some(error))),
        }
    }

    /// The error of a call whose deadline ran out while nobody waited for it.
    pub fn late(&self, phase: Phase) -> Error {
        self.stopped(Stop::Deadline(phase))
    }

    /// Waits for the next bytes of the body; `None` is its end. As soon as the last ones are read,
    /// the connection is free for another call.
    ///
    /// After [`Kind::UpstreamTimeout`] the call goes on and may be waited for again.
    ///
    /// # Errors
    /// `UpstreamTimeout`, `UpstreamCut`, `UpstreamMalformed`, `ClientGone`, `Draining`.
    pub fn piece(&mut self, watch: &Watch<'_>) -> Result<Option<&[u8]>> {
        if self.head.is_none() {
            self.head(watch)?;
        }
        loop {
            if let Some(data) = self.here()? {
                return Ok(Some(&self.buffer[data]));
            }
            if self.decoder.finished() {
                self.give_back();
                return Ok(None);
            }
            self.unread = 0..0;
            if self.fill(watch)? == 0
                && let Err(cut) = self.decoder.end_of_input()
            {
                return Err(self.cut(Some(&cut), None));
            }
        }
    }

    /// The next bytes of the body among those that were read already, if there are any: never waits
    /// and never reads. So what came at once can go on at once.
    ///
    /// # Errors
    /// `UpstreamMalformed`.
    pub fn piece_here(&mut self) -> Result<Option<&[u8]>> {
        Ok(self.here()?.map(|data| &self.buffer[data]))
    }

    /// The next bytes of the body, without waiting; one read at most.
    ///
    /// # Errors
    /// `UpstreamCut`, `UpstreamMalformed`, `Draining` when cancelled.
    pub fn piece_now(&mut self) -> Result<Now<'_>> {
        let mut read = false;
        loop {
            if let Some(data) = self.here()? {
                return Ok(Now::Data(&self.buffer[data]));
            }
            if self.decoder.finished() {
                self.give_back();
                return Ok(Now::End);
            }
            if read && !self.more {
                self.release_buffer();
                return Ok(Now::Nothing);
            }
            if self.stream.is_none() {
                return Ok(Now::End);
            }
            self.unread = 0..0;
            match self.read_now()? {
                None => return Ok(Now::Nothing),
                Some(0) => {
                    if let Err(cut) = self.decoder.end_of_input() {
                        return Err(self.cut(Some(&cut), None));
                    }
                }
                Some(_) => read = true,
            }
        }
    }

    /// The upstream's socket, while the answer is not at its end.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(|stream| stream.socket().as_fd())
    }

    /// Where in the buffer the next data stands.
    fn here(&mut self) -> Result<Option<Range<usize>>> {
        while !self.unread.is_empty() && !self.decoder.finished() {
            let start = self.unread.start;
            let decoded = self.decoder.decode(&self.buffer[self.unread.clone()]);
            let (used, length) = match decoded {
                Ok(step) => (step.used, step.data.len()),
                Err(error) => return Err(self.malformed(error)),
            };
            self.unread.start += used;
            if length > 0 {
                // Data is the last thing that a step uses.
                let data = start + used - length..start + used;
                self.finish_framing()?;
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The rest of the body, at most `bytes_max` bytes of it; what comes behind them is not read.
    ///
    /// # Errors
    /// As [`Exchange::piece`].
    pub fn body(&mut self, bytes_max: usize, watch: &Watch<'_>) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        if let BodyLength::Exact(length) = self.head(watch)?.body {
            // A length that is only announced must not take much memory.
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            body.reserve_exact(length.min(bytes_max).min(64 * 1024));
        }
        while body.len() < bytes_max {
            let Some(piece) = self.piece(watch)? else { break };
            let take = piece.len().min(bytes_max - body.len());
            body.extend_from_slice(&piece[..take]);
        }
        Ok(body)
    }

    /// Whether the whole answer was read.
    pub fn finished(&self) -> bool {
        self.head.is_some() && self.decoder.finished()
    }

    /// Whether more of the answer is here already, so that [`Exchange::piece`] will not wait (unless
    /// it is framing only).
    pub fn has_more(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Whether the connection had served another call before.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Uses the framing that follows data and came with it (the last chunk), so that the connection
    /// is free at once and not only when the caller asks for the end.
    fn finish_framing(&mut self) -> Result<()> {
        if self.unread.len() <= FRAMING_BYTES && !self.decoder.finished() {
            let mut probe = self.decoder.clone();
            let mut at = self.unread.start;
            while at < self.unread.end && !probe.finished() {
                match probe.decode(&self.buffer[at..self.unread.end]) {
                    Ok(step) if step.data.is_empty() => at += step.used,
                    // Data, or an error that the next call will find again.
                    _ => return Ok(()),
                }
            }
            if probe.finished() {
                self.decoder = probe;
                self.unread.start = at;
            }
        }
        if self.decoder.finished() {
            self.give_back();
        }
        Ok(())
    }

    /// Makes room for more of a head.
    fn make_room(&mut self) {
        if self.unread.start > 0 {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        if self.unread.end == self.buffer.len() && !self.buffer.is_empty() {
            // Invariant: a head is found, or refused, within HEAD_BYTES_MAX.
            self.buffer.resize((self.buffer.len() * 2).min(HEAD_BYTES_MAX), 0);
        }
    }

    fn take_buffer(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = self.shared.buffer();
        }
    }

    fn release_buffer(&mut self) {
        if self.unread.is_empty() && !self.buffer.is_empty() {
            self.unread = 0..0;
            self.shared.recycle(std::mem::take(&mut self.buffer));
        }
    }

    /// Reads more behind what is unread. Zero is the end.
    fn fill(&mut self, watch: &Watch<'_>) -> Result<usize> {
        let Some(stream) = &self.stream else { return Ok(0) };
        let mut wait = !self.more && !stream.may_hold_data();
        loop {
            if wait {
                self.release_buffer();
                let Some(stream) = &self.stream else { return Ok(0) };
                wait::ready(&**stream.socket(), Interest::Read, watch, &self.control)
                    .map_err(|stop| self.shared.stopped(stop))?;
            }
            self.take_buffer();
            let Some(stream) = &mut self.stream else { return Ok(0) };
            let room = &mut self.buffer[self.unread.end..];
            let size = room.len();
            match stream.read(room) {
                Ok(bytes) => {
                    // A cancelled call's socket is shut, which must not pass for the answer's end.
                    if let Some(stop) = self.control.stopped() {
                        return Err(self.stopped(stop));
                    }
                    self.more = bytes == size;
                    self.unread.end += bytes;
                    self.answered |= bytes > 0;
                    return Ok(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait = true,
                Err(error) => return Err(self.lost(Some(error))),
            }
        }
    }

    /// Gives the connection back, if it can carry another request.
    fn give_back(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        self.control.release();
        let agreed = self.head.as_ref().is_some_and(|head| head.keep_alive);
        if agreed && self.sent && self.unread.is_empty() && !self.control.cancelled() {
            self.shared.keep(stream);
        }
    }

    /// The error of a connection that was closed or broke.
    fn lost(&mut self, error: Option<io::Error>) -> Error {
        if let Some(stop) = self.control.stopped() {
            return self.stopped(stop);
        }
        if self.reused && !self.answered {
            self.shared.stale.inc();
            return self.cut(None, error).on_stale_connection();
        }
        self.cut(None, error)
    }

    fn cut(&mut self, why: Option<&Error>, source: Option<io::Error>) -> Error {
        let who = self.shared.who();
        let what = match (why, &source) {
            (Some(why), _) => format!("{who}: {why}"),
            (None, Some(error)) => format!("{who}: the connection broke: {error}"),
            (None, None) if self.answered => format!("{who}: it closed within its answer"),
            (None, None) => format!("{who}: it closed without an answer"),
        };
        let error = Error::new(Kind::UpstreamCut, what);
        match source {
            Some(source) => error.because(source),
            None => error,
        }
    }

    fn malformed(&self, error: Error) -> Error {
        let what = format!("{}: {error}", self.shared.who());
        Error::new(error.kind(), what)
    }

    fn stopped(&self, stop: Stop) -> Error {
        self.shared.stopped(stop)
    }
}

/// Framing bytes looked at behind data: CRLF and the last chunk.
const FRAMING_BYTES: usize = 16;

impl Drop for Exchange {
    fn drop(&mut self) {
        self.control.release();
        // Closes the connection, if it is still here.
        self.stream = None;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.truncate(BUFFER_BYTES);
        buffer.shrink_to_fit();
        self.shared.recycle(buffer);
    }
}

impl Shared {
    /// The head of a request, in bytes.
    fn head(&self, request: &Outgoing<'_>) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(512);
        let line = RequestLine {
            method: request.method,
            target: request.target,
            host: &self.host,
            body: match (request.method, request.body.len()) {
                (Method::Get | Method::Head, 0) => BodyLength::None,
                (_, length) => BodyLength::Exact(length as u64),
            },
        };
        let fields = request.fields.iter().copied();
        match &self.through {
            None => write_request_head(&mut out, &line, fields)?,
            Some((base, authorization)) => {
                let target = format!("{base}{}", request.target);
                let line = RequestLine { target: &target, ..line };
                let authorization = authorization.as_deref().map(str::as_bytes);
                let own = authorization.map(|value| ("proxy-authorization", value));
                write_request_head(&mut out, &line, fields.chain(own))?;
            }
        }
        Ok(out)
    }

    fn who(&self) -> String {
        format!("upstream {} ({})", self.dialer.upstream, self.dialer.authority)
    }

    fn stopped(&self, stop: Stop) -> Error {
        stop.error(&self.who())
    }
}
