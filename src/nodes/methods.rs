//! What can be asked for: one table, one file a subject.

mod agent;
mod chat;
mod devices;
mod logs;
mod models;
mod nodes;
mod pairing;
mod sessions;
mod sleeping;
mod spent;
mod system;
#[cfg(test)]
mod page;
mod usage;
mod wake;
pub mod config;

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::clock;

use super::Nodes;
use super::frame;
use super::peer::Peer;
use super::refusal::Refusal;
use super::who::{How, Identity, Role, Scope};

/// Who may ask for a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Operators with this right.
    Scope(Scope),
    /// Nodes.
    Node,
    /// Everybody who is connected.
    Nothing,
}

/// A method.
pub struct Method {
    /// Its name on the wire.
    pub name: &'static str,
    /// Who may ask for it.
    pub needs: Needs,
    /// What it does, on a method thread. Must not wait for longer than the store's or the main
    /// loop's deadline: what takes longer takes [`Call::later`] and answers when it is there.
    pub run: fn(&Call<'_>) -> Outcome,
}

/// What a method comes to.
pub type Outcome = Result<Done, Refusal>;

/// The answer, or that it comes later.
pub enum Done {
    /// The answer, as JSON text.
    Now(String),
    /// Somebody holds a [`Reply`].
    Later,
}

impl Done {
    /// This answer.
    pub fn json(value: &impl Serialize) -> Outcome {
        Ok(Done::Now(frame::text(value)))
    }
}

/// A request under way.
pub struct Call<'a> {
    /// The room.
    pub nodes: &'a Arc<Nodes>,
    /// Who asks.
    pub peer: &'a Arc<Peer>,
    /// The same, as it was let in.
    pub who: &'a Identity,
    pub(super) id: &'a str,
    pub(super) method: &'static str,
    pub(super) params: Option<&'a str>,
    /// Whether somebody has the right to answer later.
    handed: &'a Cell<bool>,
}

impl Call<'_> {
    /// The parameters; none are taken for an empty object.
    ///
    /// # Errors
    /// `INVALID_REQUEST` that says what is wrong with them.
    pub fn params<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_str(self.params.unwrap_or("{}"))
            .map_err(|error| Refusal::invalid(format!("invalid {} params: {error}", self.method)))
    }

    /// The parameters as they came, as JSON text.
    pub fn raw_params(&self) -> Option<&str> {
        self.params
    }

    /// The right to answer later, from any thread.
    pub fn later(&self) -> Reply {
        self.handed.set(true);
        Reply { peer: Arc::clone(self.peer), id: Some(self.id.into()) }
    }
}

/// The right to answer a request, once. Dropped without an answer it says so: nobody waits in vain.
pub struct Reply {
    peer: Arc<Peer>,
    id: Option<Box<str>>,
}

impl Reply {
    /// Who waits for it.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Answers.
    pub fn send(mut self, outcome: &Result<String, Refusal>) {
        if let Some(id) = self.id.take() {
            self.peer.answer(&id, outcome);
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("conn", &self.peer.conn).field("id", &self.id).finish()
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let refusal = Refusal::unavailable("the gateway gave this request up");
            self.peer.answer(&id, &Err(refusal));
        }
    }
}

/// The methods, by subject.
const TABLE: &[&[Method]] = &[
    agent::METHODS,
    chat::METHODS,
    config::METHODS,
    devices::METHODS,
    logs::METHODS,
    models::METHODS,
    nodes::METHODS,
    pairing::METHODS,
    sessions::METHODS,
    sleeping::METHODS,
    system::METHODS,
    spent::METHODS,
    usage::METHODS,
    wake::METHODS,
];

/// Every method there is.
pub fn all() -> impl Iterator<Item = &'static Method> {
    TABLE.iter().copied().flatten()
}

/// Carries a request out, which came at `came`. A method that panics is an answer too; nobody is
/// answered twice.
pub fn run(
    nodes: &Arc<Nodes>,
    peer: &Arc<Peer>,
    (id, method, params): (&str, &str, Option<&str>),
    came: Instant,
) {
    let known = all().enumerate().find(|(_, known)| known.name == method);
    carry_out(nodes, peer, (id, method, params), known, came);
}

fn carry_out(
    nodes: &Arc<Nodes>,
    peer: &Arc<Peer>,
    (id, method, params): (&str, &str, Option<&str>),
    known: Option<(usize, &'static Method)>,
    came: Instant,
) {
    let outcome = match (peer.identity(), known) {
        (None, _) => Some(Err(Refusal::invalid("the first request must be connect"))),
        (_, None) => Some(Err(Refusal::invalid(format!("unknown method: {}", cut(method))))),
        (Some(who), Some((_, known))) => {
            let handed = Cell::new(false);
            let call = Call { nodes, peer, who, id, method: known.name, params, handed: &handed };
            let ran = catch_unwind(AssertUnwindSafe(|| outcome(known, &call)));
            ran.unwrap_or_else(|_| {
                nodes.panicked();
                // Whoever has the right to answer does so, if only by dropping it.
                (!handed.get()).then(|| {
                    Err(Refusal::unavailable("a bug in the gateway; its log has the place"))
                })
            })
        }
    };
    let took = clock::now().saturating_duration_since(came);
    let ok = outcome.as_ref().is_none_or(Result::is_ok);
    nodes.counts().request(known.map(|(index, known)| (index, known.name)), ok, took);
    if let Some(outcome) = outcome {
        peer.answer(id, &outcome);
    }
}

/// Longest name of a method that an answer repeats, in characters.
const NAME_SHOWN_MAX: usize = 64;

fn cut(name: &str) -> String {
    name.chars().take(NAME_SHOWN_MAX).collect()
}

fn outcome(known: &Method, call: &Call<'_>) -> Option<Result<String, Refusal>> {
    if let Err(refusal) = allowed(known.needs, call.who) {
        return Some(Err(refusal));
    }
    // These write to the store or ask the main loop: they may hold some threads, and never all.
    let slow = matches!(known.needs, Needs::Scope(Scope::Admin | Scope::Pairing))
        && !known.name.ends_with(".list");
    let waits = slow.then(|| call.nodes.may_wait());
    if matches!(waits, Some(None)) {
        let text = "other changes wait for the disk or the main loop; try again shortly";
        return Some(Err(Refusal::unavailable(text).retry(Duration::from_secs(1))));
    }
    match (known.run)(call) {
        Ok(Done::Now(text)) => Some(Ok(text)),
        Ok(Done::Later) => None,
        Err(refusal) => Some(Err(refusal)),
    }
}

/// A right is missing; on a gateway that is open for everybody, how to have it.
fn lacks(scope: Scope, who: &Identity) -> Refusal {
    let mut refusal = Refusal::missing(scope);
    if who.how == How::Open {
        let text = format!(
            "missing scope: {} (this gateway asks nobody for a secret and lets everybody only look \
             and use: set nodes.token_file and connect with that token)",
            scope.as_str()
        );
        refusal.message = text.into();
    }
    refusal
}

fn allowed(needs: Needs, who: &Identity) -> Result<(), Refusal> {
    match (needs, who.role) {
        (Needs::Nothing, _) | (Needs::Node, Role::Node) => Ok(()),
        (Needs::Scope(scope), Role::Operator) if who.scopes.allow(scope) => Ok(()),
        (Needs::Scope(scope), Role::Operator) => Err(lacks(scope, who)),
        (_, role) => Err(Refusal::invalid(format!("unauthorized role: {}", role.as_str()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::tests::{frames, peer, room};
    use serde_json::Value;

    fn answers(run: fn(&Call<'_>) -> Outcome) -> Vec<Value> {
        let (nodes, peer) = (room(), peer(1, Role::Operator));
        let method: &'static Method =
            Box::leak(Box::new(Method { name: "test", needs: Needs::Nothing, run }));
        let request = ("7", "test", None);
        carry_out(&nodes, &peer, request, Some((0, method)), clock::now());
        frames(&peer)
    }

    #[test]
    fn a_method_that_panics_is_answered_once() {
        let all = answers(|_| panic!("on purpose"));
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!((&all[0]["id"], &all[0]["error"]["code"]), (&"7".into(), &"UNAVAILABLE".into()));
        assert!(all[0]["error"]["message"].as_str().unwrap().contains("a bug"), "{all:?}");
    }

    #[test]
    fn a_method_that_panics_with_the_right_to_answer_in_its_hands_is_answered_once() {
        let all = answers(|call| {
            let _reply = call.later();
            panic!("on purpose")
        });
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all[0]["error"]["code"], "UNAVAILABLE");
    }

    #[test]
    fn rights_are_asked_for_before_anything_runs() {
        let (nodes, peer) = (room(), peer(1, Role::Node));
        let run: fn(&Call<'_>) -> Outcome = |_| panic!("it must not run");
        let needs = Needs::Scope(Scope::Read);
        let method: &'static Method = Box::leak(Box::new(Method { name: "test", needs, run }));
        carry_out(&nodes, &peer, ("1", "test", None), Some((0, method)), clock::now());
        carry_out(&nodes, &peer, ("2", &"x".repeat(500), None), None, clock::now());
        let all = frames(&peer);
        assert_eq!(all[0]["error"]["message"], "unauthorized role: node");
        assert!(all[1]["error"]["message"].as_str().unwrap().len() < 100, "{all:?}");
    }

    #[test]
    fn no_name_stands_in_the_table_twice() {
        let mut names: Vec<&str> = all().map(|method| method.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
