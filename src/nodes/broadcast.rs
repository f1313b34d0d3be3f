//! Who is connected, and events for many of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::base::lock::{Locked, Rank};

use super::outbox::{Event, Put};
use super::peer::Peer;

/// Those whose handshake is over, by their number: in the order in which they came.
#[derive(Debug)]
pub(super) struct Peers {
    peers: Locked<BTreeMap<u64, Arc<Peer>>>,
}

impl Peers {
    pub(super) fn new() -> Self {
        Peers { peers: Locked::new(Rank::Leaf, BTreeMap::new()) }
    }

    /// One more. Its outbox holds what it is to be told first.
    pub(super) fn join(&self, peer: &Arc<Peer>) {
        self.peers.with(|peers| peers.insert(peer.number, Arc::clone(peer)));
    }

    /// One less.
    pub(super) fn leave(&self, number: u64) {
        let gone = self.peers.with(|peers| peers.remove(&number));
        drop(gone);
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Peer>> {
        self.peers.with(|peers| peers.values().cloned().collect())
    }

    /// Sends an event to those of them for whom `to` says so; tells how many it reached and how many
    /// lost it. Outside of the lock: each outbox has its own.
    pub(super) fn send(&self, event: &Event, to: impl Fn(&Peer) -> bool) -> (usize, usize) {
        let (mut sent, mut lost) = (0, 0);
        for peer in self.all() {
            if to(&peer) {
                match peer.event(event.clone()) {
                    Put::Taken => sent += 1,
                    Put::Dropped | Put::Overfull => lost += 1,
                    Put::Closed => {}
                }
            }
        }
        (sent, lost)
    }
}
