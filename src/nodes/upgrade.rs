//! An operator's device asks for more rights while it is connected, and waits for the answer
//! (`device.scopes.requestUpgrade`, `device.scopes.waitUpgrade`).

use std::sync::Arc;

use serde_json::{Value, json};

use super::Nodes;
use super::frame;
use super::methods::Reply;
use super::pairing::Request;
use super::pairing::wire::{self, Decision};
use super::peer::Peer;
use super::refusal::Refusal;
use super::who::Role;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Limit, Registry};

/// Most devices that wait at once.
pub const WAITING_MAX: usize = 64;

/// Those who wait. One for the room.
#[derive(Debug)]
pub struct Upgrades {
    waiting: Locked<Vec<Waiting>>,
    limit: Arc<Limit>,
}

#[derive(Debug)]
struct Waiting {
    request: Arc<str>,
    reply: Reply,
}

impl Upgrades {
    /// Nobody waits yet.
    pub fn new(registry: &Registry) -> Self {
        let consequence = "UNAVAILABLE: ask again later";
        let max = WAITING_MAX as u64;
        let limit = registry.limit("nodes.upgrades_max", "", max, consequence);
        Upgrades { waiting: Locked::new(Rank::Leaf, Vec::new()), limit }
    }

    /// Somebody waits for what becomes of a request.
    pub fn wait(&self, request: &Request, reply: Reply) {
        let request = Arc::clone(&request.id);
        let refused = self.waiting.with(|waiting| {
            if waiting.len() >= WAITING_MAX {
                return Some(reply);
            }
            waiting.push(Waiting { request, reply });
            self.limit.set_now(waiting.len() as u64);
            None
        });
        if let Some(reply) = refused {
            self.limit.refuse();
            let text = "too many devices wait for more rights; ask again later";
            reply.send(&Err(Refusal::unavailable(text)));
        }
    }

    /// A request is settled: who waits for it hears so, and with an approval gets a token that has the
    /// new rights.
    pub fn settled(&self, nodes: &Nodes, request: &Request, decision: Decision) {
        let waiting = self.take(|waiting| *waiting.request == *request.id);
        if waiting.is_empty() {
            return;
        }
        let outcome = match decision {
            Decision::Approved => approved(nodes, request),
            Decision::Rejected | Decision::Removed => Ok(over("rejected", &request.id)),
        };
        let outcome = outcome.map(|answer| frame::text(&answer));
        waiting.into_iter().for_each(|waiting| waiting.reply.send(&outcome));
    }

    /// Tells those whose request is over. To be called now and then.
    pub fn tick(&self, nodes: &Nodes) {
        if self.waiting.with(|waiting| waiting.is_empty()) {
            return;
        }
        let there: Vec<Arc<str>> =
            nodes.devices().requests().into_iter().map(|request| request.id).collect();
        for waiting in self.take(|waiting| !there.contains(&waiting.request)) {
            let answer = frame::text(&over("expired", &waiting.request));
            waiting.reply.send(&Ok(answer));
        }
    }

    /// A connection has ended.
    pub fn gone(&self, peer: &Peer) {
        // Dropped outside of the lock: each says that it was not answered.
        drop(self.take(|waiting| waiting.reply.peer().number == peer.number));
    }

    fn take(&self, which: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        self.waiting.with(|waiting| {
            let (taken, left) = std::mem::take(waiting).into_iter().partition(|one| which(one));
            *waiting = left;
            self.limit.set_now(waiting.len() as u64);
            taken
        })
    }
}

fn approved(nodes: &Nodes, request: &Request) -> Result<Value, Refusal> {
    let devices = nodes.devices();
    let known = devices.get(&request.ask.device);
    let has = known.and_then(|known| Some(known.grant(Role::Operator)?.token.as_ref()?.scopes));
    // A token that was made with fewer than the grant has stays as narrow, but for what was approved.
    let scopes = has.unwrap_or(request.ask.scopes);
    let issued = devices.rotate(&request.ask.device, Role::Operator, Some(scopes))?;
    Ok(json!({
        "status": "approved",
        "requestId": &*request.id,
        "deviceToken": issued.token,
        "scopes": wire::words(issued.scopes),
    }))
}

fn over(status: &str, request: &str) -> Value {
    json!({"status": status, "requestId": request})
}
