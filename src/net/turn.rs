//! One request's turn on a worker: what a job may ask of the engine while it runs, and the client's
//! side of a streamed answer.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conn::ClientConn;
use super::engine::Shared;
use super::http::BodyLength;
use super::http1;
use super::respond;
use super::workers::Occupied;
use crate::base::clock;
use crate::base::error::{Error, Kind, Result};
use crate::base::permits::{Permit, Permits};

/// How often a blocked write looks whether the engine stops.
const STOP_LOOK: Duration = Duration::from_millis(250);

/// Output buffers larger than this are given back after use.
pub(super) const OUT_BYTES_KEPT: usize = 64 * 1024;

/// One request's turn on a worker.
pub struct Turn<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) conn: &'a mut ClientConn,
    pub(super) occupied: &'a mut Option<Occupied>,
    pub(super) slot: Option<Permit>,
    pub(super) out: &'a mut Vec<u8>,
    pub(super) on_pump: bool,
}

impl Turn<'_> {
    /// Whether this is a pump, on which many others wait: what might block ends the turn with
    /// [`Step::Defer`](super::service::Step::Defer).
    pub fn must_not_block(&self) -> bool {
        self.on_pump
    }

    /// Whether answers can be waited for without a thread ([`Step::Ask`](super::service::Step::Ask)).
    pub fn has_pumps(&self) -> bool {
        self.shared.has_pumps()
    }

    /// Begins an upstream exchange: this worker runs it in place and is replaced. False when
    /// `server.exchanges_max` run already; then wait for [`Turn::exchange_permits`].
    pub fn begin_exchange(&mut self) -> bool {
        if self.slot.is_none() {
            match self.shared.exchanges.try_acquire() {
                Some(permit) => self.begin_exchange_with(permit),
                None => return false,
            }
        }
        true
    }

    /// Begins an exchange with a permit that was waited for.
    pub fn begin_exchange_with(&mut self, permit: Permit) {
        self.occupy();
        self.slot = Some(permit);
    }

    /// This worker may block for a moment: it is replaced for the time of this turn.
    pub fn occupy(&mut self) {
        if self.occupied.is_none() && !self.on_pump {
            *self.occupied = Some(Occupied::begin(self.shared));
        }
    }

    /// The permits of running exchanges.
    pub fn exchange_permits(&self) -> Arc<Permits> {
        Arc::clone(&self.shared.exchanges)
    }

    /// How long a request may wait as data (`server.waiting_timeout`).
    pub fn waiting_timeout(&self) -> Duration {
        self.shared.settings.load().waiting_timeout
    }

    /// Whether the engine is on its way out: nothing that lasts begins any more.
    pub fn draining(&self) -> bool {
        self.shared.draining()
    }

    /// Who asks.
    pub fn peer(&self) -> SocketAddr {
        self.conn.peer()
    }

    /// The client's side of a streamed answer.
    pub fn client(&mut self) -> ClientStream<'_> {
        let settings = self.shared.settings.load();
        self.out.clear();
        ClientStream {
            write_timeout: settings.write_timeout,
            end_by: None,
            shared: self.shared,
            conn: self.conn,
            out: self.out,
            framing: None,
            ended: false,
            bytes: 0,
        }
    }
}

/// The client's side of an answer that is streamed: each [`ClientStream::send`] is one write.
pub struct ClientStream<'a> {
    shared: &'a Arc<Shared>,
    conn: &'a mut ClientConn,
    out: &'a mut Vec<u8>,
    write_timeout: Duration,
    end_by: Option<Instant>,
    framing: Option<BodyLength>,
    ended: bool,
    bytes: u64,
}

impl ClientStream<'_> {
    /// When the answer must have ended, also for a client that reads a little now and then, each
    /// bit of which puts `server.write_timeout` off.
    pub fn end_by(&mut self, when: Instant) {
        self.end_by = Some(when);
    }

    /// Whether the status has been decided.
    pub fn started(&self) -> bool {
        self.framing.is_some()
    }

    /// Body bytes sent so far, before framing.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bounds what the kernel keeps for a client that does not read, in bytes. For answers whose older
    /// parts are worth nothing once there are newer ones. The connection ends with such an answer.
    pub fn keep_unsent(&mut self, bytes: usize) {
        self.conn.keep_unsent(bytes);
    }

    /// Decides the status and the header fields. They leave with the first bytes of the body.
    pub fn start(&mut self, status: u16, fields: &[(&str, &str)]) {
        if self.framing.is_some() {
            return;
        }
        let Some(current) = self.conn.current.as_ref() else { return };
        let framing = if current.http11 { BodyLength::Chunked } else { BodyLength::UntilClose };
        let keep_alive = current.keep_alive && self.shared.keeps_connections();
        let fields = fields.iter().copied().chain(self.shared.pressure.notice());
        respond::head(self.out, status, fields, framing, current, keep_alive);
        if let Some(current) = self.conn.current.as_mut() {
            current.keep_alive = keep_alive && framing == BodyLength::Chunked;
        }
        self.framing = Some(framing);
    }

    /// Sends body bytes, in one write as far as the socket goes along.
    ///
    /// # Errors
    /// [`Kind::ClientGone`], or [`Kind::ClientStalled`] when nothing moved for
    /// `server.write_timeout`, or when the client did not take it by [`ClientStream::end_by`].
    pub fn send(&mut self, data: &[u8]) -> Result<()> {
        debug_assert!(self.started(), "start comes before send");
        if data.is_empty() || self.head_only() {
            return Ok(());
        }
        match self.framing {
            Some(BodyLength::Chunked) => http1::write_chunk(self.out, data),
            _ => self.out.extend_from_slice(data),
        }
        self.bytes += data.len() as u64;
        self.flush()
    }

    /// Sends the last body bytes and ends the message, in one write. True when the connection may
    /// serve another request.
    ///
    /// # Errors
    /// As [`ClientStream::send`].
    pub fn finish(&mut self, data: &[u8]) -> Result<bool> {
        if !self.head_only() {
            match self.framing {
                Some(BodyLength::Chunked) => {
                    if !data.is_empty() {
                        http1::write_chunk(self.out, data);
                    }
                    self.out.extend_from_slice(http1::LAST_CHUNK);
                }
                _ => self.out.extend_from_slice(data),
            }
            self.bytes += data.len() as u64;
        }
        self.flush()?;
        self.ended = true;
        Ok(self.conn.current.as_ref().is_some_and(|current| current.keep_alive))
    }

    fn head_only(&self) -> bool {
        self.conn.current.as_ref().is_some_and(|current| current.head_only)
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(current) = self.conn.current.as_mut() {
            current.begun = true;
        }
        let sent = write_all(self.shared, self.conn, self.out, self.write_timeout, self.end_by);
        self.out.clear();
        if self.out.capacity() > OUT_BYTES_KEPT {
            *self.out = Vec::new();
        }
        sent
    }
}

impl AsFd for ClientStream<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.conn.as_fd()
    }
}

/// Writes everything, waiting at most `write_timeout` for each bit of progress, and not past
/// `end_by`.
fn write_all(
    shared: &Shared,
    conn: &ClientConn,
    bytes: &[u8],
    write_timeout: Duration,
    end_by: Option<Instant>,
) -> Result<()> {
    let gone = |error: std::io::Error| {
        Error::new(Kind::ClientGone, "the client closed the connection").because(error)
    };
    let mut rest = bytes;
    let mut stalled: Option<Instant> = None;
    while !rest.is_empty() {
        let sent = conn.send_now(rest).map_err(gone)?;
        if sent > 0 {
            rest = &rest[sent..];
            stalled = None;
            continue;
        }
        let now = clock::now();
        let since = *stalled.get_or_insert(now);
        let stall = since + write_timeout;
        let until = end_by.map_or(stall, |end| end.min(stall));
        let left = until.saturating_duration_since(now);
        if left.is_zero() || shared.stopping() {
            let context = if until < stall {
                "the client reads too slowly; the request's time is over"
            } else {
                "the client does not read; nothing moved for server.write_timeout"
            };
            return Err(Error::new(Kind::ClientStalled, context));
        }
        conn.wait_writable(left.min(STOP_LOOK)).map_err(gone)?;
    }
    Ok(())
}
