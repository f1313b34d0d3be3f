//! The nodes at work: who is connected, what was asked of them, what waits for them.
//!
//! The parts are pure machines behind a lock each; everything that sends happens outside of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use serde::Serialize;
use serde_json::json;

use super::connected::{self, Activity, Connected, Line};
use super::frame;
use super::idempotency::{Outcome, Ticket};
use super::invoke::{self, Answered, Ask, Calls, Ended, Later, TIMEOUT_MAX, Why};
use super::methods::Reply;
use super::outbox::{Class, Event, Put};
use super::peer::Peer;
use super::queue::{self, Queue};
use super::refusal::Refusal;
use super::who::Role;
use crate::base::clock;
use crate::base::id::RequestId;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Histogram, Registry};
use crate::config::settings::Nodes as Settings;

/// When a call that came to nothing may be tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Who waits for a call.
pub enum Asker {
    /// A connection.
    Peer(Reply),
    /// The owner, at the control socket; the channel holds one.
    Owner(Sender<Outcome>),
}

impl Asker {
    fn tell(self, outcome: &Outcome) {
        match self {
            Asker::Peer(reply) => reply.send(outcome),
            // He may have stopped waiting.
            Asker::Owner(sender) => drop(sender.try_send(outcome.clone())),
        }
    }
}

impl invoke::Asker for Asker {
    fn connection(&self) -> Option<u64> {
        match self {
            Asker::Peer(reply) => Some(reply.peer().number),
            Asker::Owner(_) => None,
        }
    }
}

/// A command for a node.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// Which node.
    pub node: &'a str,
    /// Which command.
    pub command: &'a str,
    /// Its parameters, as JSON text.
    pub params: Option<&'a str>,
    /// How long the node has; none: `nodes.invoke_timeout`.
    pub timeout: Option<Duration>,
    /// The idempotency key, for the node to tell a repeated call.
    pub key: &'a str,
}

/// What a node says of a call.
#[derive(Debug)]
pub struct Said<'a> {
    /// Of which.
    pub id: &'a str,
    /// What it came to: the payload's members, or the node's error.
    pub outcome: Result<Payload<'a>, NodeError>,
}

/// The result of a command; both as JSON text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Payload<'a> {
    /// As a value.
    pub value: Option<&'a str>,
    /// As a text with JSON in it.
    pub text: Option<&'a str>,
}

/// Why a node did not do it, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeError {
    /// A word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// A sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The nodes.
pub struct Fleet {
    connected: Locked<Connected<Arc<Peer>>>,
    calls: Locked<Calls<Asker, Option<Ticket>>>,
    queue: Locked<Queue>,
    /// `nodes.invoke_timeout`, in milliseconds.
    timeout_ms: AtomicU64,
    outcomes: Outcomes,
}

struct Outcomes {
    done: Arc<Counter>,
    refused: Arc<Counter>,
    timeout: Arc<Counter>,
    gone: Arc<Counter>,
    unsent: Arc<Counter>,
    late: Arc<Counter>,
    foreign: Arc<Counter>,
    seconds: Arc<Histogram>,
}

impl Outcomes {
    fn new(registry: &Registry) -> Self {
        let help = "Commands asked of nodes, by what came of them.";
        let outcome =
            |word| registry.counter("tidegate_nodes_invocations_total", help, &[("outcome", word)]);
        let unasked = "Results of nodes that nobody waits for: late ones, and of foreign calls.";
        let ignored = |word| {
            registry.counter("tidegate_nodes_results_ignored_total", unasked, &[("why", word)])
        };
        let seconds = "From the request to a node until its result.";
        Outcomes {
            done: outcome("done"),
            refused: outcome("refused"),
            timeout: outcome("timeout"),
            gone: outcome("gone"),
            unsent: outcome("unsent"),
            late: ignored("late"),
            foreign: ignored("foreign"),
            seconds: registry.histogram("tidegate_nodes_invocation_seconds", seconds, &[]),
        }
    }
}

impl Fleet {
    /// No nodes yet.
    pub fn new(registry: &Registry, settings: &Settings) -> Self {
        let bounds = connected::Bounds::register(registry, settings.connections_max);
        let calls = invoke::Bounds::register(registry, settings.pending_max);
        let queue = queue::Bounds::register(registry, settings.devices_max);
        let fleet = Fleet {
            connected: Locked::new(Rank::Leaf, Connected::new(bounds)),
            calls: Locked::new(Rank::Leaf, Calls::new(calls)),
            queue: Locked::new(Rank::Leaf, Queue::new(queue)),
            timeout_ms: AtomicU64::new(0),
            outcomes: Outcomes::new(registry),
        };
        fleet.set_timeout(settings);
        fleet
    }

    /// Takes over new bounds. What is there already stays.
    pub fn reconfigure(&self, registry: &Registry, settings: &Settings) {
        connected::Bounds::register(registry, settings.connections_max);
        invoke::Bounds::register(registry, settings.pending_max);
        queue::Bounds::register(registry, settings.devices_max);
        self.set_timeout(settings);
    }

    fn set_timeout(&self, settings: &Settings) {
        self.timeout_ms.store(millis(settings.invoke_timeout), Relaxed);
    }

    /// A connection's handshake is over. Nothing happens for one that is no node's.
    pub fn joined(&self, peer: &Arc<Peer>) {
        let Some(node) = node_of(peer) else { return };
        let (number, joining) = (peer.number, Arc::clone(peer));
        let extra = self.connected.with(|connected| connected.join(&node, number, joining));
        if let Some(extra) = extra {
            extra.outbox().close(1008, "too many connections of this device");
        }
    }

    /// A connection has ended: calls of its node fail now, and who asked by it waits no more.
    pub fn gone(&self, peer: &Peer) {
        if let Some(node) = node_of(peer) {
            self.connected.with(|connected| connected.gone(&node, peer.number));
        }
        let (failed, left) = self.calls.with(|calls| calls.gone(peer.number));
        // Told to a connection that has ended: nobody hears it.
        drop(left);
        for call in failed {
            self.outcomes.gone.inc();
            let text = format!("node disconnected ({})", call.ask.command);
            finish(call, &Err(failure("NOT_CONNECTED", text).retry(AGAIN)));
        }
    }

    /// Ends what is over at `now`.
    pub fn tick(&self, now: Instant) {
        for call in self.calls.with(|calls| calls.expired(now)) {
            self.outcomes.timeout.inc();
            self.cancel(&call.ask);
            let refusal = failure("TIMEOUT", "node invoke timed out").retry(AGAIN);
            finish(call, &Err(refusal));
        }
        self.queue.with(|queue| queue.prune(unix_ms()));
    }

    /// When there is something to end.
    pub fn next(&self) -> Option<Instant> {
        self.calls.with(|calls| calls.next())
    }

    /// The room closes: who waits is told.
    pub fn close(&self) {
        for call in self.calls.with(Calls::all) {
            finish(call, &Err(Refusal::unavailable("the gateway is shutting down").retry(AGAIN)));
        }
    }

    /// A device is no longer paired as a node.
    pub fn forget(&self, node: &str) {
        self.queue.with(|queue| queue.forget(node));
    }

    /// The connected nodes.
    pub fn connected(&self) -> Vec<(Arc<str>, Line<Arc<Peer>>)> {
        self.connected.with(|connected| connected.all())
    }

    /// A connected node.
    pub fn line(&self, node: &str) -> Option<Line<Arc<Peer>>> {
        self.connected.with(|connected| connected.get(node).cloned())
    }

    /// Nodes that are connected, and calls under way.
    pub fn count(&self) -> (usize, usize) {
        (self.connected.with(|connected| connected.len()), self.calls.with(|calls| calls.len()))
    }

    /// Notes what a node says of the person before it; false when its connection is not the one that
    /// is asked.
    pub fn active(&self, peer: &Peer, activity: Option<Activity>) -> bool {
        let Some(node) = node_of(peer) else { return false };
        self.connected.with(|connected| connected.set_activity(&node, peer.number, activity))
    }

    /// What waits for nodes that sleep.
    pub fn queued<R>(&self, with: impl FnOnce(&mut Queue) -> R) -> R {
        self.queue.with(with)
    }

    /// The node that can be asked for a command, by the connection that is asked.
    ///
    /// # Errors
    /// Why it cannot: it is not connected, or the command is not among those that it offers and that
    /// were approved.
    pub fn ready(&self, node: &str, command: &str) -> Result<Arc<Peer>, Refusal> {
        let Some(line) = self.line(node) else {
            return Err(failure("NOT_CONNECTED", "node not connected"));
        };
        let who = line.peer.identity();
        let commands = who.map(|who| &*who.commands).unwrap_or_default();
        if commands.iter().any(|offered| **offered == *command) {
            return Ok(line.peer);
        }
        let platform = who.map_or("unknown", |who| &who.client.platform);
        let (reason, text) = if commands.is_empty() {
            let text = "the node offers no command that was approved".to_owned();
            ("node did not declare commands", text)
        } else {
            let text = format!(
                "the node (platform: {platform}) does not support {command:?}, or it was not approved"
            );
            ("command not declared by node", text)
        };
        let details = json!({"reason": reason, "command": command});
        Err(Refusal::invalid(format!("node command not allowed: {text}")).with(details))
    }

    /// Asks a node, as [`Fleet::ready`] gave it. Whoever asks is told, also that it cannot be sent.
    pub fn invoke(
        &self,
        peer: &Arc<Peer>,
        command: &Command<'_>,
        asker: Asker,
        ticket: Option<Ticket>,
    ) {
        let now = clock::now();
        let ask = self.ask(peer, command, now);
        let request = request(&ask, command, ask.deadline.saturating_duration_since(now));
        let id = Arc::clone(&ask.id);
        // Before it is sent: the answer may be here at once.
        let begun = self.calls.with(|calls| calls.begin(ask, asker, ticket, now));
        if let Err(refused) = begun {
            let (why, asker, ticket) = *refused;
            self.outcomes.unsent.inc();
            return tell(Some(asker), ticket, &Err(busy(why)));
        }
        // What a node cannot take now is refused here; it is not closed for what others ask of it.
        let sent = match peer.outbox().room(request.payload.len()) {
            true => peer.event(request),
            false => Put::Dropped,
        };
        if sent != Put::Taken
            && let Some(call) = self.calls.with(|calls| calls.take_back(&id))
        {
            self.outcomes.unsent.inc();
            let refusal = match sent {
                Put::Closed => failure("NOT_CONNECTED", "node not connected"),
                _ => failure("UNAVAILABLE", "failed to send invoke to node: it reads too slowly"),
            };
            finish(call, &Err(refusal.retry(AGAIN)));
        }
    }

    fn ask(&self, peer: &Peer, command: &Command<'_>, now: Instant) -> Ask {
        let timeout = match command.timeout {
            None => Duration::from_millis(self.timeout_ms.load(Relaxed)),
            Some(Duration::ZERO) => TIMEOUT_MAX,
            Some(timeout) => timeout.min(TIMEOUT_MAX),
        };
        let small = command.params.is_none_or(|params| params.len() <= queue::ACTION_BYTES_MAX);
        let later = (small && needs_foreground(peer, command.command))
            .then(|| Later { params: command.params.map(Into::into), key: command.key.into() });
        Ask {
            id: RequestId::generate().as_str().into(),
            node: command.node.into(),
            connection: peer.number,
            command: command.command.into(),
            later,
            deadline: now + timeout,
        }
    }

    /// What a node says of a call; whether it was waited for.
    ///
    /// # Errors
    /// When the call was sent to another connection.
    pub fn said(&self, peer: &Peer, said: Said<'_>) -> Result<bool, Refusal> {
        let call = match self.calls.with(|calls| calls.answer(said.id, peer.number)) {
            Answered::Done(call) => *call,
            Answered::Late => {
                self.outcomes.late.inc();
                return Ok(false);
            }
            Answered::NotYours => {
                self.outcomes.foreign.inc();
                return Err(Refusal::invalid("this call was not sent to this connection"));
            }
        };
        self.outcomes.seconds.observe(clock::now().saturating_duration_since(call.since));
        let outcome = match said.outcome {
            Ok(payload) => {
                self.outcomes.done.inc();
                Ok(answer(&call.ask, payload))
            }
            Err(error) => {
                self.outcomes.refused.inc();
                Err(self.refusal(&call, error))
            }
        };
        finish(call, &outcome);
        Ok(true)
    }

    /// Whether a call is under way at this connection.
    pub fn under_way(&self, peer: &Peer, id: &str) -> bool {
        self.calls.with(|calls| calls.under_way(id, peer.number))
    }

    fn refusal(&self, call: &Ended<Asker, Option<Ticket>>, error: NodeError) -> Refusal {
        let ask = &call.ask;
        if in_background(&error)
            && let Some(id) = self.wait_for_foreground(call)
        {
            let text = "node command queued until iOS returns to foreground";
            let wake = json!({"path": "no-registration", "available": false, "throttled": false});
            let details = json!({
                "code": "QUEUED_UNTIL_FOREGROUND",
                "queuedActionId": id,
                "nodeId": &*ask.node,
                "command": ask.command,
                "wake": wake,
                "nodeError": error,
            });
            return Refusal::unavailable(text).with(details).retry(AGAIN);
        }
        let text = error.message.clone().unwrap_or_else(|| "node invoke failed".to_owned());
        Refusal::unavailable(text).with(json!({"nodeError": error}))
    }

    /// Has a command wait until its device fetches it.
    fn wait_for_foreground(&self, call: &Ended<Asker, Option<Ticket>>) -> Option<Box<str>> {
        let (ask, now_ms) = (&call.ask, unix_ms());
        let later = ask.later.as_ref()?;
        let action = queue::Action {
            id: RequestId::generate().as_str().into(),
            command: ask.command.clone(),
            params_json: later.params.clone(),
            enqueued_at_ms: now_ms,
            key: later.key.clone(),
        };
        self.queue.with(|queue| queue.put(&ask.node, action, now_ms))
    }

    /// Tells a node that nobody waits any more. Programs of the node host understand this; others
    /// are not asked to.
    fn cancel(&self, ask: &Ask) {
        let Some(line) = self.line(&ask.node).filter(|line| line.number == ask.connection) else {
            return;
        };
        if line.peer.identity().is_some_and(|who| &*who.client.id == "node-host") {
            let payload = json!({"invokeId": &*ask.id, "nodeId": &*ask.node}).to_string().into();
            let class = Class::Telemetry;
            line.peer.event(Event { name: "node.invoke.cancel", payload, class, version: None });
        }
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("connected_and_pending", &self.count()).finish()
    }
}

/// The device behind a node's connection.
fn node_of(peer: &Peer) -> Option<Arc<str>> {
    let who = peer.identity().filter(|who| who.role == Role::Node)?;
    who.device.clone()
}

fn finish(call: Ended<Asker, Option<Ticket>>, outcome: &Outcome) {
    tell(call.asker, call.ticket, outcome);
}

/// The key first: who hears that a call came to nothing may ask again at once.
fn tell(asker: Option<Asker>, ticket: Option<Ticket>, outcome: &Outcome) {
    if let Some(ticket) = ticket {
        ticket.end(outcome);
    }
    if let Some(asker) = asker {
        asker.tell(outcome);
    }
}

/// A call that came to nothing, as the protocol has it.
fn failure(code: &'static str, message: impl Into<String>) -> Refusal {
    let message = message.into();
    let details = json!({"code": code, "nodeError": {"code": code, "message": message}});
    Refusal::unavailable(message).with(details)
}

fn busy(why: Why) -> Refusal {
    let text = match why {
        Why::Full => "too many commands are under way (nodes.pending_max)",
        Why::TooManyOfOne => "too many commands of this connection are under way",
    };
    Refusal::unavailable(text).retry(AGAIN)
}

fn request(ask: &Ask, command: &Command<'_>, timeout: Duration) -> Event {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Request<'a> {
        id: &'a str,
        node_id: &'a str,
        command: &'a str,
        #[serde(rename = "paramsJSON", skip_serializing_if = "Option::is_none")]
        params: Option<&'a str>,
        timeout_ms: u64,
        #[serde(skip_serializing_if = "str::is_empty")]
        idempotency_key: &'a str,
    }
    let payload = frame::text(&Request {
        id: &ask.id,
        node_id: &ask.node,
        command: &ask.command,
        params: command.params,
        timeout_ms: millis(timeout),
        idempotency_key: command.key,
    });
    let (payload, class) = (payload.into(), Class::Control);
    Event { name: "node.invoke.request", payload, class, version: None }
}

/// The payload of the answer, without a tree of the node's own.
fn answer(ask: &Ask, payload: Payload<'_>) -> String {
    let (value, text) = (payload.value, payload.text.unwrap_or("null"));
    let mut out = String::with_capacity(value.map_or(0, str::len) + text.len() + 256);
    out.push_str(r#"{"ok":true,"nodeId":"#);
    out.push_str(&frame::text(&&*ask.node));
    out.push_str(r#","command":"#);
    out.push_str(&frame::text(&&*ask.command));
    if let Some(value) = value {
        out.push_str(r#","payload":"#);
        out.push_str(value);
    }
    out.push_str(r#","payloadJSON":"#);
    out.push_str(text);
    out.push('}');
    out
}

/// Whether an iOS device does this only while somebody looks at it.
fn needs_foreground(peer: &Peer, command: &str) -> bool {
    let ios = |platform: &str| {
        let platform = platform.to_ascii_lowercase();
        platform.starts_with("ios") || platform.starts_with("ipados")
    };
    peer.identity().is_some_and(|who| ios(&who.client.platform))
        && ["canvas.", "camera.", "screen.", "talk."].iter().any(|of| command.starts_with(of))
}

fn in_background(error: &NodeError) -> bool {
    let has = |text: &Option<String>, word: &str| {
        text.as_ref().is_some_and(|text| text.to_ascii_uppercase().contains(word))
    };
    has(&error.code, "NODE_BACKGROUND_UNAVAILABLE") || has(&error.message, "BACKGROUND_UNAVAILABLE")
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    millis(clock::unix())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
