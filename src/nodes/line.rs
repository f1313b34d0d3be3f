//! What a connection's own thread shares with the method threads: one message at a time, which
//! keeps their order, and bounds what a connection can have read.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::time::Instant;

use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Lease;
use crate::net::websocket::Bell;

use super::handshake::Handshake;
use super::peer::Peer;
use super::shares::Share;

/// A whole message, and its part of the sum of all messages.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) text: String,
    pub(super) came: Instant,
    pub(super) _lease: Lease,
}

/// The connection reads.
const READS: u8 = 0;
/// A method thread has its message.
const BUSY: u8 = 1;
/// It is over; nobody is to wake its thread any more.
const ENDED: u8 = 2;

/// See above.
pub(super) struct Line {
    pub(super) peer: Arc<Peer>,
    bell: Bell,
    message: Locked<Option<Message>>,
    stage: AtomicU8,
    /// Until the handshake is over.
    handshake: Locked<Option<Box<Handshake>>>,
    cut: AtomicBool,
    refused: AtomicBool,
    /// Its part of what its account may hold.
    share: Locked<Option<Share<Arc<str>>>>,
}

impl Line {
    /// Of a connection that begins.
    pub(super) fn new(peer: Arc<Peer>, bell: Bell, handshake: Handshake) -> Arc<Self> {
        Arc::new(Line {
            peer,
            bell,
            message: Locked::new(Rank::Leaf, None),
            stage: AtomicU8::new(READS),
            handshake: Locked::new(Rank::Leaf, Some(Box::new(handshake))),
            cut: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            share: Locked::new(Rank::Leaf, None),
        })
    }

    /// A message for the method threads. Until they are done with it nothing further is read.
    pub(super) fn put(&self, message: Message) {
        self.message.with(|place| *place = Some(message));
        let _ = self.stage.compare_exchange(READS, BUSY, SeqCst, SeqCst);
    }

    /// The message.
    pub(super) fn take(&self) -> Option<Message> {
        self.message.with(Option::take)
    }

    /// The method threads are done: the connection reads on.
    pub(super) fn done(&self) {
        if self.stage.compare_exchange(BUSY, READS, SeqCst, SeqCst).is_ok() {
            self.bell.ring();
        }
    }

    /// Whether a message is with the method threads.
    pub(super) fn busy(&self) -> bool {
        self.stage.load(SeqCst) == BUSY
    }

    /// Nothing is read any more.
    pub(super) fn end(&self) {
        self.stage.store(ENDED, SeqCst);
    }

    /// Whether it has ended, or is about to be told to have.
    pub(super) fn is_over(&self) -> bool {
        self.stage.load(SeqCst) == ENDED
    }

    /// Ends the connection at once, without a Close.
    pub(super) fn cut(&self) {
        self.cut.store(true, SeqCst);
        self.bell.ring();
    }

    /// Whether it is to end at once.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(SeqCst)
    }

    /// Its handshake was refused.
    pub(super) fn refuse(&self) {
        self.refused.store(true, SeqCst);
    }

    /// Whether it was.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(SeqCst)
    }

    /// Holds its account's share until the end.
    pub(super) fn keep(&self, share: Share<Arc<str>>) {
        let old = self.share.with(|place| place.replace(share));
        drop(old);
    }

    /// Gives it back.
    pub(super) fn let_go(&self) {
        let share = self.share.with(Option::take);
        drop(share);
    }

    /// The handshake, while it lasts.
    pub(super) fn handshake(&self) -> Option<Box<Handshake>> {
        self.handshake.with(Option::take)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("conn", &self.peer.conn).finish_non_exhaustive()
    }
}
