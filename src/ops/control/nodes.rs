//! Commands for nodes, from their owner.

use std::io;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use serde_json::{Value, json};

use super::{Ask, Done, Route};
use crate::base::error::{Error, Kind};
use crate::base::id::RequestId;
use crate::net::control::{Out, Stream};
use crate::net::http::Method;
use crate::nodes::Nodes;
use crate::nodes::catalogue::{self, Node};
use crate::nodes::fleet::{Asker, Command};
use crate::nodes::idempotency::Outcome;
use crate::nodes::pairing::short;
use crate::ops::Parts;

/// How long a node has when nobody says. As on WebSocket.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time that can be said: whoever asks here waits at his terminal.
const TIMEOUT_MAX: Duration = Duration::from_secs(100);
/// How long a look for the result takes: that nobody waits any more is seen so soon.
const LOOK: Duration = Duration::from_millis(500);

pub(super) const ROUTES: &[Route] =
    &[Route { method: Method::Post, path: "/nodes/invoke", run: invoke }];

/// `{"node": …, "command": …, "params": … or nothing, "timeout_ms": … or nothing}`. The answer comes
/// when the node's does: `{"ok": true, …}` as on WebSocket, or `{"ok": false, "error": {…}}`.
///
/// It is a stream of one line: a node that takes its time shall not keep one of the two threads that
/// carry out orders.
fn invoke(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let missing = || Error::new(Kind::Unsupported, "there is no WebSocket here");
    let nodes = parts.nodes.as_ref().ok_or_else(missing)?;
    let (node, command) = (ask.must("node")?, ask.must("command")?);
    let timeout = match &ask.body()["timeout_ms"] {
        Value::Null => TIMEOUT,
        ms => ms
            .as_u64()
            .map(Duration::from_millis)
            .filter(|timeout| !timeout.is_zero() && *timeout <= TIMEOUT_MAX)
            .ok_or_else(|| {
                Error::new(Kind::InvalidField, "timeout_ms is not between 1 and 100000")
            })?,
    };
    let params = match &ask.body()["params"] {
        Value::Null => None,
        params => Some(params.to_string()),
    };
    let node = find(nodes, node)?.node_id;
    let peer = match nodes.fleet().ready(&node, command) {
        Ok(peer) => peer,
        Err(refusal) => {
            let told = format!("refused, {command} for {}: {}", short(&node), refusal.message);
            return Ok(Done::json(&json!({"ok": false, "error": refusal.shape()})).told(told));
        }
    };
    let (asker, outcome) = bounded(1);
    let key = RequestId::generate();
    let asked = Command {
        node: &node,
        command,
        params: params.as_deref(),
        timeout: Some(timeout),
        key: key.as_str(),
    };
    nodes.fleet().invoke(&peer, &asked, Asker::Owner(asker), None);
    // Not the parameters: they may be secrets.
    let told = format!("{command} asked of {}", short(&node));
    Ok(Done::stream(Waiting { outcome }).told(told))
}

/// The node of this id, of the only id that begins so, or of this name.
fn find(nodes: &Nodes, text: &str) -> Result<Node, Error> {
    let all = catalogue::all(nodes);
    let fits = |node: &&Node| {
        node.display_name.as_deref() == Some(text)
            || (text.len() >= 4 && node.node_id.starts_with(text))
    };
    let mut found: Vec<&Node> = all.iter().filter(fits).collect();
    if let Some(whole) = all.iter().find(|node| node.node_id == text) {
        found = vec![whole];
    }
    match *found {
        [node] => Ok(node.clone()),
        [] => Err(Error::new(
            Kind::NotFound,
            format!("no node is called {text:?}; see tidegate nodes"),
        )),
        _ => Err(Error::new(
            Kind::InvalidField,
            format!("{text:?} is more than one node; write more of its id"),
        )),
    }
}

/// The one line that comes.
struct Waiting {
    outcome: Receiver<Outcome>,
}

impl Stream for Waiting {
    fn run(self: Box<Self>, out: &mut Out<'_>) -> io::Result<()> {
        while !out.ended()? {
            let line = match self.outcome.recv_timeout(LOOK) {
                Ok(Ok(payload)) => payload,
                Ok(Err(refusal)) => json!({"ok": false, "error": refusal.shape()}).to_string(),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    let error = json!({"code": "UNAVAILABLE", "message": "the gateway gave it up"});
                    json!({"ok": false, "error": error}).to_string()
                }
            };
            return out.line(line.as_bytes());
        }
        Ok(())
    }
}
