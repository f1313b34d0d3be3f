//! A client's connection: its socket, what was read from it, and what it holds of the limits.
//!
//! The socket stays in blocking mode with a receive timeout of [`STAY`]; whoever must not block
//! says so per call (`MSG_DONTWAIT`). So a connection moves between threads without a system call.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use socket2::{SockRef, Socket};

use super::address::AddressLease;
use super::http::{Head, Method, Request};
use super::intake::{InputBuffer, Intake, Refusal};
use super::settings::{READ_BYTES, STAY};
use super::websocket::Upgraded;
use crate::base::clock;
use crate::base::heartbeat::{self, Doing};
use crate::base::id::RequestId;
use crate::base::metrics::Lease;

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Some bytes.
    Bytes(usize),
    /// The client closed its side.
    Closed,
    /// Nothing now.
    Nothing,
}

/// What is to be known of the request that is being answered.
#[derive(Clone, Debug)]
pub struct Current {
    /// Its id.
    pub id: RequestId,
    /// It was `HEAD`: no body goes out.
    pub head_only: bool,
    /// HTTP/1.1: chunked answers are understood.
    pub http11: bool,
    /// The client wants to go on with this connection.
    pub keep_alive: bool,
    /// Bytes of the answer may have left.
    pub begun: bool,
    /// The route, as the service numbers them; [`NO_ROUTE`] before there is one.
    pub route: u16,
}

/// The route of a request that is not whole.
pub const NO_ROUTE: u16 = u16::MAX;

impl Current {
    /// What must be known of a request to answer it.
    pub fn of(head: &Head, id: RequestId) -> Self {
        Current {
            id,
            head_only: head.method == Method::Head,
            http11: head.http11,
            keep_alive: head.keep_alive,
            begun: false,
            route: NO_ROUTE,
        }
    }

    /// What must be known of a whole request.
    pub fn of_request(request: &Request) -> Self {
        Current { route: request.route, ..Current::of(&request.head, request.id.clone()) }
    }

    /// Of a request that never became one: the connection cannot go on.
    pub fn lost(id: RequestId) -> Self {
        let (head_only, http11, keep_alive, begun) = (false, true, false, false);
        Current { id, head_only, http11, keep_alive, begun, route: NO_ROUTE }
    }
}

/// A client's connection.
pub struct ClientConn {
    stream: Socket,
    peer: SocketAddr,
    /// What was read and not used.
    pub input: InputBuffer,
    /// The request on its way in.
    pub intake: Intake,
    /// The request being answered.
    pub current: Option<Current>,
    /// A refusal that the parking thread is to send.
    pub refusal: Option<Box<Refusal>>,
    /// How much of a refused body may be thrown away after the answer ([`Refusal::drain`]).
    pub drain: u64,
    _place: Lease,
    _address: Option<AddressLease>,
}

impl ClientConn {
    /// Takes over an accepted socket.
    ///
    /// # Errors
    /// When the socket options cannot be set: the peer is gone already.
    pub fn new(
        stream: TcpStream,
        peer: SocketAddr,
        place: Lease,
        address: Option<AddressLease>,
    ) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STAY))?;
        SockRef::from(&stream).set_keepalive(true)?;
        Ok(ClientConn::of(stream.into(), peer, place, address))
    }

    /// One end of a pair, whose other end is held by the process itself.
    ///
    /// # Errors
    /// When the socket options cannot be set.
    pub fn inward(stream: UnixStream, peer: SocketAddr, place: Lease) -> io::Result<Self> {
        stream.set_read_timeout(Some(STAY))?;
        Ok(ClientConn::of(stream.into(), peer, place, None))
    }

    fn of(stream: Socket, peer: SocketAddr, place: Lease, address: Option<AddressLease>) -> Self {
        ClientConn {
            stream,
            peer,
            input: InputBuffer::default(),
            intake: Intake::default(),
            current: None,
            refusal: None,
            drain: 0,
            _place: place,
            _address: address,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Reads once, into the body that is on its way or the input buffer. With `stay` it waits for
    /// up to [`STAY`].
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn fill(&mut self, stay: bool) -> io::Result<Fill> {
        let flags = if stay { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        if stay {
            crate::base::lock::assert_none_held();
        }
        let mut overshoot = None;
        let got = if let Some((body, left)) = self.intake.body_space() {
            if body.capacity() == body.len() {
                body.reserve_exact(left.min(body.len().max(4 * READ_BYTES)));
            }
            let length = body.len() + left;
            let got = rustix::net::recv(&self.stream, spare_capacity(body), flags);
            if body.len() > length {
                overshoot = Some(body.split_off(length));
            }
            got
        } else {
            // Through the stack, so that a connection holds the bytes that came and not the room for
            // those that may: a thousand slow heads cost a thousand heads.
            let mut bytes = [const { MaybeUninit::<u8>::uninit() }; READ_BYTES];
            let got = rustix::net::recv(&self.stream, &mut bytes[..], flags);
            got.map(|((came, _), n)| {
                self.input.space().extend_from_slice(came);
                (came.len(), n)
            })
        };
        if let Some(next) = overshoot {
            // A pipelined request behind the body.
            self.input.space().extend_from_slice(&next);
        }
        match got {
            Ok((0, _)) => Ok(Fill::Closed),
            Ok((n, _)) => Ok(Fill::Bytes(n)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Fill::Nothing),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads once, without waiting, and throws it away.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn discard(&mut self) -> io::Result<Fill> {
        let mut bytes = [0_u8; READ_BYTES];
        match rustix::net::recv(&self.stream, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => Ok(Fill::Closed),
            Ok((n, _)) => Ok(Fill::Bytes(n)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Fill::Nothing),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes as much as the socket takes now.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.stream, bytes, flags) {
            Ok(n) => Ok(n),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Bounds what the kernel keeps of what was written and not taken, in bytes.
    pub fn keep_unsent(&self, bytes: usize) {
        // Without it there is a larger bound, the system's.
        let _ = self.stream.set_send_buffer_size(bytes);
    }

    /// Waits until the socket takes more, at most `wait`. `Ok(false)`: it did not.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn wait_writable(&self, wait: Duration) -> io::Result<bool> {
        crate::base::lock::assert_none_held();
        let _waiting = heartbeat::waiting(Doing::Client, clock::now() + wait);
        let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
        let timeout = Timespec::try_from(wait).ok();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => Ok(false),
            Ok(_) if fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) => {
                Err(io::ErrorKind::ConnectionReset.into())
            }
            Ok(_) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The socket, what was read behind the request, and what the connection holds of the limits:
    /// it is no HTTP connection any more.
    pub fn upgraded(mut self) -> Upgraded {
        let leftover = std::mem::take(self.input.space());
        let ClientConn { stream, peer, _place, _address, .. } = self;
        Upgraded { stream, peer, leftover, _place, _address }
    }

    /// Ends our side; what was written still arrives.
    pub fn shut_write(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

impl AsFd for ClientConn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
