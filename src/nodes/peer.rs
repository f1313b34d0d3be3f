//! One connection, as everybody but its own thread sees it.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use super::frame;
use super::outbox::{Event, Outbox, Put};
use super::refusal::Refusal;
use super::who::{Identity, Role, Scope};

/// One connection. Whoever keeps it beyond the connection's end finds it closed.
#[derive(Debug)]
pub struct Peer {
    /// Its id on the wire (`connId`).
    pub conn: Arc<str>,
    /// Its number: later connections have greater ones, so that a late end never takes away what a
    /// newer connection has put there.
    pub number: u64,
    /// The client's address, as limits count it.
    pub address: IpAddr,
    /// When it was opened, in milliseconds since 1970.
    pub since_ms: u64,
    identity: OnceLock<Identity>,
    outbox: Outbox,
}

impl Peer {
    /// A connection that was opened just now.
    pub fn new(conn: &str, number: u64, address: IpAddr, since_ms: u64, outbox: Outbox) -> Self {
        let identity = OnceLock::new();
        Peer { conn: conn.into(), number, address, since_ms, identity, outbox }
    }

    /// Who it is, from the end of the handshake on.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    /// Sets who it is, once.
    pub fn identify(&self, identity: Identity) {
        let _ = self.identity.set(identity);
    }

    /// Whether it is an operator with this right.
    pub fn may(&self, scope: Scope) -> bool {
        self.identity().is_some_and(|who| who.role == Role::Operator && who.scopes.allow(scope))
    }

    /// Whether it is this device, as a node.
    pub fn is_node(&self, device: &str) -> bool {
        let node = |who: &Identity| who.role == Role::Node && who.device.as_deref() == Some(device);
        self.identity().is_some_and(node)
    }

    /// Whether what belongs to `account` may be seen by it: its own, and an administrator everything.
    pub fn sees(&self, account: Option<&str>) -> bool {
        self.may(Scope::Admin)
            || self.identity().is_some_and(|who| who.account.as_deref() == account)
    }

    /// Sends an event.
    pub fn event(&self, event: Event) -> Put {
        self.outbox.event(event)
    }

    /// Sends an answer; `payload` is JSON text.
    pub fn answer(&self, id: &str, outcome: &Result<String, Refusal>) -> Put {
        self.outbox.frame(match outcome {
            Ok(payload) => frame::answer(id, payload),
            Err(refusal) => frame::refused(id, refusal),
        })
    }

    /// What waits to be sent.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }
}
