//! One connection's socket, for the one thread that owns it.
//!
//! Nothing here blocks but [`WebSocket::wait`] and [`WebSocket::finish`]. An idle connection has no
//! buffer: what comes is read through a small one on the stack, and a long message straight into
//! its own memory.

mod life;
mod out;

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::sockopt::set_socket_send_buffer_size;
use socket2::Socket;

use super::codec::{Decoder, Fault, Step};
use super::{Bell, Upgraded};
use crate::base::clock;
use crate::base::heartbeat::{self, Doing};
use crate::base::metrics::{Lease, Limit};
use crate::net::address::AddressLease;
use crate::net::settings::BODY_RATE_GRACE;
use life::Window;
use out::Out;

/// Bytes asked for in one read while no message is on its way: a ping or a short request comes whole,
/// and the stack of a connection stays within two pages, which is most of what an idle one costs.
const READ_BYTES: usize = 256;

/// Most bytes read between two waits: the clocks of the connection want to be looked at.
const READ_AT_ONCE_MAX: usize = 1024 * 1024;

/// Things taken between two waits, for the same reason.
const TAKEN_AT_ONCE_MAX: u32 = 64;

/// What the system may hold of what is sent, in bytes (it doubles the figure). Left alone it holds up
/// to 4 MiB for each connection that does not read; and a pong stands behind all of it, which on a slow
/// line would take longer than a peer may be silent.
const SEND_BUFFER_BYTES: usize = 128 * 1024;

/// How often a message that found no room under the sum over all connections looks again …
const ROOM_PAUSE: Duration = Duration::from_millis(20);
/// … and for how long.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);

/// What one connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message, in bytes; see [`WebSocket::set_message_max`].
    pub message_max: u64,
    /// A message must come at this rate, in bytes per second, 5 s after its first byte; 0: at any.
    pub rate_min: u64,
}

/// What came.
#[derive(Debug)]
pub enum Came {
    /// A message of text. The lease is its part of the sum of messages over all connections: to be
    /// dropped with the text.
    Text(String, Lease),
    /// A message of bytes, likewise.
    Binary(Vec<u8>, Lease),
    /// A ping; its pong is on its way.
    Ping,
    /// A pong.
    Pong,
    /// The peer's Close with its code ([`super::NO_CODE`] without one); ours is on its way.
    /// [`WebSocket::finish`] follows.
    Close(u16),
}

/// Why [`WebSocket::wait`] came back; nothing of it when only the time was over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woke {
    /// [`WebSocket::take`] may have something, or a fault.
    pub readable: bool,
    /// [`WebSocket::flush`] may get on.
    pub writable: bool,
    /// The bell rang; it is silent again.
    pub rung: bool,
    /// The peer has left or the connection is broken. Only while nothing is read: otherwise
    /// [`WebSocket::take`] says so behind the last message.
    pub hung_up: bool,
}

/// One connection.
#[derive(Debug)]
pub struct WebSocket {
    stream: Socket,
    peer: SocketAddr,
    bell: Bell,
    decoder: Decoder,
    /// What was read and not decoded: less than [`READ_BYTES`], or what came with the request.
    input: Vec<u8>,
    out: Out,
    rate_min: u64,
    /// What may be taken until the next wait.
    bytes_left: usize,
    things_left: u32,
    /// Since when there is no room for the message that is on its way.
    starved: Option<Instant>,
    controls: Window,
    heard: Instant,
    _place: Lease,
    _address: Option<AddressLease>,
}

impl WebSocket {
    /// Over a connection that the engine has handed over. `bell` wakes its thread; `total` is the
    /// sum of messages on their way over all connections (`nodes.messages_total_max`).
    pub fn new(upgraded: Upgraded, bell: Bell, limits: Limits, total: Arc<Limit>) -> Self {
        let Upgraded { stream, peer, leftover, _place, _address } = upgraded;
        let now = clock::now();
        // Without it the system's own bounds hold.
        let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES);
        WebSocket {
            stream,
            peer,
            bell,
            decoder: Decoder::new(limits.message_max, total),
            input: leftover,
            out: Out::new(now),
            rate_min: limits.rate_min,
            bytes_left: READ_AT_ONCE_MAX,
            things_left: TAKEN_AT_ONCE_MAX,
            starved: None,
            controls: Window::new(now),
            heard: now,
            _place,
            _address,
        }
    }

    /// Who is at the other end of the socket.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Changes the largest message, in bytes, from the next frame on.
    pub fn set_message_max(&mut self, bytes: u64) {
        self.decoder.set_max(bytes);
    }

    /// When the last byte came from the peer. In the middle of a long message it can send no pong,
    /// so that this is what tells whether it lives.
    pub fn last_heard(&self) -> Instant {
        self.heard
    }

    /// Waits until there is something to do, at most until `until`: one look at the socket and the
    /// bell. Without `reading` nothing is read, so that the peer must wait.
    ///
    /// # Errors
    /// When the system refuses to wait.
    pub fn wait(&mut self, until: Instant, reading: bool) -> io::Result<Woke> {
        crate::base::lock::assert_none_held();
        let now = clock::now();
        let more = self.bytes_left == 0 || self.things_left == 0 || !self.input.is_empty();
        (self.bytes_left, self.things_left) = (READ_AT_ONCE_MAX, TAKEN_AT_ONCE_MAX);
        let pending = reading && more && self.starved.is_none();
        let due = if reading { self.due(now) } else { None };
        let until = if pending { now } else { due.map_or(until, |due| due.min(until)) };
        let listens = reading && self.starved.is_none();
        let mut flags = if listens { PollFlags::IN } else { PollFlags::RDHUP };
        if self.out.waits() {
            flags |= PollFlags::OUT;
        }
        let fds = self.poll(flags, until)?;
        let (socket, bell) = fds;
        let broken = socket.intersects(PollFlags::ERR | PollFlags::HUP);
        let left = broken || socket.contains(PollFlags::RDHUP);
        let late = due.is_some_and(|due| clock::now() >= due);
        Ok(Woke {
            readable: reading
                && (pending || late || listens && (broken || socket.contains(PollFlags::IN))),
            writable: socket.contains(PollFlags::OUT),
            rung: bell && self.bell.hear(),
            hung_up: !listens && left,
        })
    }

    /// One poll(2) on the socket and the bell.
    fn poll(&self, flags: PollFlags, until: Instant) -> io::Result<(PollFlags, bool)> {
        let now = clock::now();
        let timeout = until.saturating_duration_since(now);
        let _waiting = heartbeat::waiting(Doing::Sockets, until.max(now));
        let bell = self.bell.as_fd();
        let mut fds = [PollFd::new(&self.stream, flags), PollFd::new(&bell, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).ok();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => Ok((fds[0].revents(), !fds[1].revents().is_empty())),
            Err(Errno::INTR) => Ok((PollFlags::empty(), false)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// When the message that is on its way is to be looked at, though nothing came.
    fn due(&self, now: Instant) -> Option<Instant> {
        match self.starved {
            Some(_) => Some(now + ROOM_PAUSE),
            None => self.decoder.late_at(self.rate_min, BODY_RATE_GRACE),
        }
    }

    /// Takes what came, one thing at a time, without waiting; to be called after
    /// [`WebSocket::wait`] says `readable`, until it gives nothing. Nothing is also what it gives
    /// when it gave much: the next wait comes back at once then.
    ///
    /// # Errors
    /// [`Fault::Close`] for what is to end with [`WebSocket::close`] and [`WebSocket::finish`],
    /// [`Fault::Gone`] for what has ended.
    pub fn take(&mut self) -> Result<Option<Came>, Fault> {
        if self.bytes_left == 0 || self.things_left == 0 {
            return Ok(None);
        }
        let now = clock::now();
        loop {
            let step = if self.input.is_empty() {
                match self.read(now)? {
                    Some(step) => step,
                    None => return self.in_time(clock::now()).map(|()| None),
                }
            } else {
                self.decode(now)?
            };
            if !matches!(step, Step::NoRoom) {
                self.starved = None;
            }
            let came = match step {
                Step::More if self.bytes_left == 0 => return Ok(None),
                Step::More => continue,
                Step::NoRoom => {
                    let since = *self.starved.get_or_insert(now);
                    if now.saturating_duration_since(since) < ROOM_WAIT_MAX {
                        return Ok(None);
                    }
                    return Err(Fault::Close(1013, "no room for messages now; try again later"));
                }
                Step::Text(text, lease) => Came::Text(text, lease),
                Step::Binary(bytes, lease) => Came::Binary(bytes, lease),
                Step::Ping => {
                    self.count_control(now)?;
                    self.out.pong(&self.stream, self.decoder.control(), now)?;
                    Came::Ping
                }
                Step::Pong => {
                    self.count_control(now)?;
                    Came::Pong
                }
                Step::Close(code) => {
                    self.out.close(&self.stream, code, "", now)?;
                    Came::Close(code)
                }
            };
            self.things_left -= 1;
            return Ok(Some(came));
        }
    }

    /// Decodes what was read before.
    fn decode(&mut self, now: Instant) -> Result<Step, Fault> {
        let (used, step) = self.decoder.decode(&self.input, now);
        if used == self.input.len() {
            self.input = Vec::new();
        } else {
            self.input.drain(..used);
        }
        step
    }

    /// Reads once and decodes it; none when nothing is there.
    fn read(&mut self, now: Instant) -> Result<Option<Step>, Fault> {
        if let Some(space) = self.decoder.space() {
            let got = rustix::net::recv(&self.stream, space, RecvFlags::DONTWAIT);
            let bytes = got.map_or(0, |(bytes, _)| bytes);
            let step = self.decoder.filled(bytes);
            return match got.map(|(bytes, _)| bytes) {
                Ok(0) => Err(left()),
                Ok(bytes) => {
                    self.came(bytes, now);
                    step.map(Some)
                }
                Err(errno) => nothing(errno),
            };
        }
        if self.decoder.starved() {
            return Ok(Some(Step::NoRoom));
        }
        let mut buffer = [const { MaybeUninit::<u8>::uninit() }; READ_BYTES];
        let came = match rustix::net::recv(&self.stream, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok(((came, _), _)) => came,
            Err(errno) => return nothing(errno),
        };
        if came.is_empty() {
            return Err(left());
        }
        let (used, step) = self.decoder.decode(came, now);
        if used < came.len() {
            self.input = came[used..].to_vec();
        }
        self.came(came.len(), now);
        step.map(Some)
    }

    fn came(&mut self, bytes: usize, now: Instant) {
        self.heard = now;
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
    }

    /// Nothing more is there: whether the message that is on its way comes fast enough.
    fn in_time(&self, now: Instant) -> Result<(), Fault> {
        match self.decoder.late_at(self.rate_min, BODY_RATE_GRACE) {
            Some(late) if now >= late => Err(Fault::Close(1008, "the message comes too slowly")),
            _ => Ok(()),
        }
    }

    fn count_control(&mut self, now: Instant) -> Result<(), Fault> {
        if self.controls.count(now) { Ok(()) } else { Err(Fault::Close(1008, "too many pings")) }
    }

    /// Sends a message of text whose parts follow one another in one frame: as much of it as the
    /// socket takes now; the rest waits for [`WebSocket::flush`].
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn send_text(&mut self, parts: &[&[u8]]) -> Result<(), Fault> {
        self.out.message(&self.stream, true, parts, clock::now())
    }

    /// Likewise of bytes.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn send_binary(&mut self, parts: &[&[u8]]) -> Result<(), Fault> {
        self.out.message(&self.stream, false, parts, clock::now())
    }

    /// Sends a ping with at most 125 bytes of payload.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn ping(&mut self, payload: &[u8]) -> Result<(), Fault> {
        self.out.ping(&self.stream, payload, clock::now())
    }

    /// Sends a Close, behind what is unsent; nothing is sent after it, and the first counts.
    /// `reason` is cut to [`super::REASON_BYTES_MAX`]. [`WebSocket::finish`] follows.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn close(&mut self, code: u16, reason: &str) -> Result<(), Fault> {
        self.out.close(&self.stream, code, reason, clock::now())
    }

    /// Sends what the socket takes now of what is unsent.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn flush(&mut self) -> Result<(), Fault> {
        self.out.flush(&self.stream, clock::now())
    }

    /// Bytes that the socket has not taken yet.
    pub fn unsent(&self) -> usize {
        self.out.unsent()
    }

    /// When the socket last took something, or when something was given to an empty one: what is
    /// unsent for long after it waits for a peer that does not read.
    pub fn last_moved(&self) -> Instant {
        self.out.moved()
    }
}

/// The peer closed its side without a Close.
fn left() -> Fault {
    Fault::Gone(io::ErrorKind::UnexpectedEof.into())
}

/// A read that gave nothing.
fn nothing<T>(errno: Errno) -> Result<Option<T>, Fault> {
    match errno {
        Errno::AGAIN | Errno::INTR => Ok(None),
        errno => Err(Fault::Gone(errno.into())),
    }
}

#[cfg(test)]
mod tests;
