//! What other threads tell the parking thread.
//!
//! Bounded by what it carries: each message holds a connection, or a grant for a request that
//! waits, and both are bounded (`server.connections_max`, `server.waiting_max`). So nobody ever
//! blocks on it, also not the parking thread itself.

use mio::{Token, Waker};

use super::conn::ClientConn;
use super::park::Purpose;
use crate::base::lock::{Locked, Rank};
use crate::base::permits::Permit;

/// The token of the waker.
pub const WAKE: Token = Token(0);

/// A message to the parking thread.
pub enum Message {
    /// Take this connection.
    Park(Box<ClientConn>, Purpose),
    /// A waiting request has its permit.
    Granted(Grant),
}

/// A permit for the request that waits in this entry.
pub struct Grant {
    /// The entry.
    pub index: usize,
    /// Its generation: an entry is used again by others.
    pub generation: u64,
    /// The permit.
    pub permit: Permit,
}

/// The parking thread's inbox.
pub struct Inbox {
    messages: Locked<Vec<Message>>,
    waker: Waker,
}

impl Inbox {
    /// An empty inbox that wakes by `waker`.
    pub fn new(waker: Waker) -> Self {
        Inbox { messages: Locked::new(Rank::Leaf, Vec::new()), waker }
    }

    /// Hands a connection over.
    pub fn park(&self, conn: Box<ClientConn>, purpose: Purpose) {
        self.push(Message::Park(conn, purpose));
    }

    /// Hands a permit over.
    pub fn grant(&self, grant: Grant) {
        self.push(Message::Granted(grant));
    }

    /// Wakes the parking thread, so that it looks at the engine's flags.
    pub fn wake(&self) {
        // Failing to wake costs at most the parking thread's longest sleep.
        let _ = self.waker.wake();
    }

    /// Everything that came.
    pub fn take(&self) -> Vec<Message> {
        self.messages.with(std::mem::take)
    }

    fn push(&self, message: Message) {
        let first = self.messages.with(|messages| {
            messages.push(message);
            messages.len() == 1
        });
        if first {
            self.wake();
        }
    }
}
