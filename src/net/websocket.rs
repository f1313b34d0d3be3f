//! WebSocket (RFC 6455), the server's side: the opening handshake, frames and messages, and one
//! connection's socket.
//!
//! No extension and no subprotocol is ever agreed on, so nothing is compressed. The codec
//! (`codec.rs`) is sans-I/O: bytes and time in, messages out. A connection costs no buffer while
//! nothing is on its way.

mod accept;
mod bell;
mod codec;
mod socket;

use std::net::SocketAddr;

use socket2::Socket;

pub use accept::{Accept, accept, wanted};
pub use bell::Bell;
pub use codec::{Fault, NO_CODE, REASON_BYTES_MAX};
pub use socket::{Came, Limits, WebSocket, Woke};

use super::address::AddressLease;
use crate::base::metrics::Lease;

/// A connection that the engine has handed over: its 101 was sent.
#[derive(Debug)]
pub struct Upgraded {
    pub(super) stream: Socket,
    pub(super) peer: SocketAddr,
    /// What the client sent behind its request already.
    pub(super) leftover: Vec<u8>,
    /// Its place under `server.connections_max`, and under its address's share: both are held until
    /// the connection ends.
    pub(super) _place: Lease,
    pub(super) _address: Option<AddressLease>,
}

impl Upgraded {
    /// Who is at the other end of the socket.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Over this socket, with a place of its own.
    #[cfg(test)]
    pub fn of(stream: std::net::TcpStream) -> Self {
        let peer = stream.peer_addr().unwrap();
        let _place = crate::base::metrics::Limit::detached(1).try_take(1).unwrap();
        Upgraded { stream: stream.into(), peer, leftover: Vec::new(), _place, _address: None }
    }
}

/// Takes a connection over once its 101 is out. Called on a thread of the engine: it must not
/// block. A connection that it drops is closed.
pub type Taker = Box<dyn FnOnce(Upgraded) + Send>;
