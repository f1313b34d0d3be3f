//! What a slow client has not taken yet of a whole answer: bytes, and until when they are kept.

use std::io;
use std::time::{Duration, Instant};

use super::conn::ClientConn;
use super::websocket::Taker;
use crate::base::metrics::Lease;

/// Room left in a buffer whose first part was sent before its memory is given back, in bytes.
const SENT_BYTES_KEPT: usize = 256 * 1024;

/// An answer on its way to a client that does not take it at once.
pub struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
    /// Close the connection afterwards.
    pub close: bool,
    /// Who takes the connection afterwards, when it becomes a WebSocket.
    pub taker: Option<Taker>,
    /// When the socket last took something.
    moved: Instant,
    end_by: Instant,
    held: Option<Lease>,
}

/// How far an answer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// All of it is with the kernel.
    All,
    /// The client has to read first.
    Rest,
}

impl Unsent {
    /// An answer that must be out by `end_by`.
    pub fn new(bytes: Vec<u8>, close: bool, now: Instant, end_by: Instant) -> Self {
        Unsent { bytes, sent: 0, close, taker: None, moved: now, end_by, held: None }
    }

    /// Sends what the socket takes now.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn send(&mut self, conn: &ClientConn, now: Instant) -> io::Result<Sent> {
        while self.sent < self.bytes.len() {
            match conn.send_now(&self.bytes[self.sent..])? {
                0 => {
                    self.shrink();
                    return Ok(Sent::Rest);
                }
                n => {
                    self.sent += n;
                    self.moved = now;
                }
            }
        }
        Ok(Sent::All)
    }

    /// Gives back the memory of what was sent, in large steps: moving the rest costs time.
    fn shrink(&mut self) {
        if self.sent >= SENT_BYTES_KEPT && self.sent * 2 >= self.bytes.len() {
            self.bytes.drain(..self.sent);
            self.bytes.shrink_to_fit();
            self.sent = 0;
            if let Some(held) = &mut self.held {
                held.shrink_to(self.bytes.len() as u64);
            }
        }
    }

    /// Memory that it takes, in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Counts its bytes as held.
    pub fn hold(&mut self, held: Lease) {
        self.held = Some(held);
    }

    /// When the socket last took something.
    pub fn moved(&self) -> Instant {
        self.moved
    }

    /// When to look at it again, if the kernel says nothing before.
    pub fn deadline(&self, write_timeout: Duration) -> Instant {
        (self.moved + write_timeout).min(self.end_by)
    }

    /// Whether it was waited for long enough.
    pub fn late(&self, write_timeout: Duration, now: Instant) -> bool {
        now >= self.deadline(write_timeout)
    }
}
