//! What waits for nodes that sleep, until they fetch it. Pure.
//!
//! Two kinds, as the protocol has them: work that an operator wants of a device when it wakes (at most
//! one of each type), which `node.pending.drain` takes out; and commands that a device refused because
//! it was in the background, which `node.pending.pull` shows and `node.pending.ack` takes out.
//! Kept in memory: after a restart whoever asked has to ask again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base::bounded::Map;
use crate::base::metrics::{Limit, Registry, Unit};

/// How long work waits when nobody says. As the protocol has it.
pub const WORK_TTL_MS: u64 = 24 * 3600 * 1000;
/// The longest time that may be said.
pub const WORK_TTL_MS_MAX: u64 = 7 * 24 * 3600 * 1000;
/// How long a refused command waits. As the protocol has it.
pub const ACTION_TTL_MS: u64 = 10 * 60 * 1000;
/// Refused commands that wait for one node. Past it: its oldest is dropped.
pub const ACTIONS_OF_ONE_MAX: usize = 64;
/// The largest parameters of a command that waits, in bytes. Past it: it does not wait.
pub const ACTION_BYTES_MAX: usize = 16 * 1024;
/// Refused commands that wait, for all nodes. Past it: they do not wait. 4 MiB of parameters.
pub const ACTIONS_MAX: usize = 256;
/// What one drain gives when nobody says how much.
const DRAIN: usize = 4;
/// The most that one drain gives.
const DRAIN_MAX: usize = 10;

/// What is wanted of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Type {
    /// That it says how it is.
    #[serde(rename = "status.request")]
    Status,
    /// That it says where it is.
    #[serde(rename = "location.request")]
    Location,
}

/// How soon. The order is that of the drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before all others.
    High,
    /// As it comes.
    #[default]
    Normal,
    /// What is always asked for.
    Default,
}

/// One piece of work, as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in the protocol; times in milliseconds since 1970")]
pub struct Work {
    pub id: Box<str>,
    #[serde(rename = "type")]
    pub kind: Type,
    pub priority: Priority,
    pub created_at_ms: u64,
    pub expires_at_ms: Option<u64>,
}

/// A refused command, as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "as in the protocol; times in milliseconds since 1970")]
pub struct Action {
    pub id: Box<str>,
    pub command: Box<str>,
    #[serde(rename = "paramsJSON")]
    pub params_json: Option<Box<str>>,
    #[serde(rename = "enqueuedAtMs")]
    pub enqueued_at_ms: u64,
    /// By which a repeated call is told.
    #[serde(skip)]
    pub key: Box<str>,
}

/// What one drain takes.
#[derive(Debug, PartialEq, Eq)]
pub struct Drained {
    /// How often the node's work has changed.
    pub revision: u64,
    /// The most urgent first.
    pub items: Vec<Work>,
    /// Whether there is more.
    pub more: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    revision: u64,
    work: Vec<Work>,
    actions: Vec<Action>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.work.is_empty() && self.actions.is_empty()
    }

    /// Forgets what is too old; how many actions went.
    fn prune(&mut self, now_ms: u64) -> usize {
        let (work, actions) = (self.work.len(), self.actions.len());
        self.work.retain(|work| work.expires_at_ms.is_none_or(|until| until > now_ms));
        self.actions.retain(|action| action.enqueued_at_ms.saturating_add(ACTION_TTL_MS) > now_ms);
        if self.work.len() < work {
            self.revision += 1;
        }
        actions - self.actions.len()
    }
}

/// What waits, by device id.
#[derive(Debug)]
pub struct Queue {
    nodes: Map<Arc<str>, Waiting>,
    actions: Arc<Limit>,
    of_one: Arc<Limit>,
    waiting: u64,
}

/// The bounds, as they are registered.
#[derive(Clone, Debug)]
pub struct Bounds {
    nodes: Arc<Limit>,
    actions: Arc<Limit>,
    of_one: Arc<Limit>,
}

impl Bounds {
    /// Registers them, or gives them new values; `nodes` as many as there may be paired devices.
    pub fn register(registry: &Registry, nodes: usize) -> Self {
        let (all, one) = (ACTIONS_MAX as u64, ACTIONS_OF_ONE_MAX as u64);
        let (refused, oldest) = ("UNAVAILABLE, to be tried again", "its oldest is dropped");
        Bounds {
            nodes: registry.limit("nodes.queues_max", "", nodes as u64, refused),
            actions: registry.limit("nodes.actions_max", "", all, "the command does not wait"),
            of_one: registry.limit_each(Unit::Entries, "nodes.actions_each_max", "", one, oldest),
        }
    }
}

impl Queue {
    /// Nothing waits.
    pub fn new(bounds: Bounds) -> Self {
        let Bounds { nodes, actions, of_one } = bounds;
        Queue { nodes: Map::new(nodes), actions, of_one, waiting: 0 }
    }

    /// Has work wait for a node. What waits already for the same is given back: once is enough.
    /// `None`: for as many nodes as may be something waits.
    pub fn enqueue(&mut self, node: &Arc<str>, work: Work, now_ms: u64) -> Option<(u64, Work)> {
        self.prune(now_ms);
        let waiting = self.nodes.get_or_insert_with(Arc::clone(node), Waiting::default)?;
        if let Some(same) = waiting.work.iter().find(|have| have.kind == work.kind) {
            return Some((waiting.revision, same.clone()));
        }
        waiting.revision += 1;
        waiting.work.push(work.clone());
        Some((waiting.revision, work))
    }

    /// Takes out what waits for a node, at most `max` pieces. It is always asked how it is.
    pub fn drain(&mut self, node: &str, max: Option<usize>, now_ms: u64) -> Drained {
        self.prune(now_ms);
        let max = max.unwrap_or(DRAIN).clamp(1, DRAIN_MAX);
        let mut taken = Drained { revision: 0, items: Vec::new(), more: false };
        let mut asks = true;
        if let Some(waiting) = self.nodes.get_mut(node) {
            waiting.work.sort_by(|a, b| {
                (a.priority, a.created_at_ms, &a.id).cmp(&(b.priority, b.created_at_ms, &b.id))
            });
            asks = !waiting.work.iter().any(|work| work.kind == Type::Status);
            taken.items = waiting.work.drain(..max.min(waiting.work.len())).collect();
            waiting.revision += u64::from(!taken.items.is_empty());
            (taken.revision, taken.more) = (waiting.revision, !waiting.work.is_empty());
        }
        if asks && taken.items.len() < max {
            taken.items.push(Work {
                id: "baseline-status".into(),
                kind: Type::Status,
                priority: Priority::Default,
                created_at_ms: now_ms,
                expires_at_ms: None,
            });
        } else {
            taken.more |= asks;
        }
        self.forget_empty();
        taken
    }

    /// Has a refused command wait for a node; its id. One with the same key waits already: that one's.
    /// `None`: as many wait as may.
    pub fn put(&mut self, node: &Arc<str>, action: Action, now_ms: u64) -> Option<Box<str>> {
        self.prune(now_ms);
        let room = self.waiting < self.actions.max();
        if !room {
            self.actions.refuse();
        }
        let waiting = self.nodes.get_or_insert_with(Arc::clone(node), Waiting::default)?;
        if let Some(same) = waiting.actions.iter().find(|have| have.key == action.key) {
            return Some(same.id.clone());
        }
        let mut put = None;
        if room {
            put = Some(action.id.clone());
            waiting.actions.push(action);
            self.of_one.saw(waiting.actions.len().min(ACTIONS_OF_ONE_MAX) as u64);
            if waiting.actions.len() > ACTIONS_OF_ONE_MAX {
                self.of_one.refuse();
                waiting.actions.remove(0);
            } else {
                self.waiting += 1;
            }
        }
        self.forget_empty();
        put
    }

    /// The commands that wait for a node and that it still may be asked; others are dropped.
    pub fn pull(&mut self, node: &str, allowed: impl Fn(&str) -> bool, now_ms: u64) -> Vec<Action> {
        self.prune(now_ms);
        let Some(waiting) = self.nodes.get_mut(node) else { return Vec::new() };
        let before = waiting.actions.len();
        waiting.actions.retain(|action| allowed(&action.command));
        self.waiting -= (before - waiting.actions.len()) as u64;
        let actions = waiting.actions.clone();
        self.forget_empty();
        actions
    }

    /// Takes commands out; how many are left.
    pub fn ack<'a>(
        &mut self,
        node: &str,
        ids: impl Iterator<Item = &'a str>,
        now_ms: u64,
    ) -> usize {
        self.prune(now_ms);
        let Some(waiting) = self.nodes.get_mut(node) else { return 0 };
        let before = waiting.actions.len();
        let ids: Vec<&str> = ids.collect();
        waiting.actions.retain(|action| !ids.contains(&&*action.id));
        let left = waiting.actions.len();
        self.waiting -= (before - left) as u64;
        self.forget_empty();
        left
    }

    /// Forgets what waits for a node: it is no longer paired.
    pub fn forget(&mut self, node: &str) {
        if let Some(waiting) = self.nodes.remove(node) {
            self.waiting -= waiting.actions.len() as u64;
        }
        self.actions.set_now(self.waiting);
    }

    /// Forgets what is too old.
    pub fn prune(&mut self, now_ms: u64) {
        let mut gone = 0;
        self.nodes.retain(|_, waiting| {
            gone += waiting.prune(now_ms);
            !waiting.is_empty()
        });
        self.waiting -= gone as u64;
        self.actions.set_now(self.waiting);
    }

    fn forget_empty(&mut self) {
        self.nodes.retain(|_, waiting| !waiting.is_empty());
        self.actions.set_now(self.waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(nodes: u64, actions: u64) -> Queue {
        Queue::new(Bounds {
            nodes: Limit::detached(nodes),
            actions: Limit::detached(actions),
            of_one: Limit::detached(ACTIONS_OF_ONE_MAX as u64),
        })
    }

    fn work(id: &str, kind: Type, priority: Priority, at: u64) -> Work {
        let (id, until) = (id.into(), Some(at + 1000));
        Work { id, kind, priority, created_at_ms: at, expires_at_ms: until }
    }

    fn action(id: usize, at: u64) -> Action {
        let (id, key) = (format!("a{id}").into(), format!("k{id}").into());
        Action { id, command: "camera.snap".into(), params_json: None, enqueued_at_ms: at, key }
    }

    fn ids(drained: &Drained) -> Vec<&str> {
        drained.items.iter().map(|work| &*work.id).collect()
    }

    #[test]
    fn work_is_taken_once_the_urgent_first_and_a_device_is_always_asked_how_it_is() {
        let mut queue = queue(8, 8);
        let phone: Arc<str> = "phone".into();
        assert_eq!(ids(&queue.drain("phone", None, 0)), ["baseline-status"]);
        queue.enqueue(&phone, work("1", Type::Status, Priority::Normal, 0), 0).unwrap();
        let (revision, same) =
            queue.enqueue(&phone, work("2", Type::Status, Priority::High, 1), 1).unwrap();
        assert_eq!((revision, &*same.id), (1, "1"), "once is enough");
        queue.enqueue(&phone, work("3", Type::Location, Priority::High, 2), 2).unwrap();
        let first = queue.drain("phone", Some(1), 3);
        assert_eq!((ids(&first), first.more), (vec!["3"], true));
        let rest = queue.drain("phone", Some(0), 3);
        assert_eq!((ids(&rest), rest.more), (vec!["1"], false));
        assert_eq!(ids(&queue.drain("phone", None, 3)), ["baseline-status"]);
        assert_eq!(queue.nodes.len(), 0, "nothing is kept for it");
    }

    #[test]
    fn old_work_is_forgotten() {
        let mut queue = queue(8, 8);
        let phone: Arc<str> = "phone".into();
        queue.enqueue(&phone, work("1", Type::Location, Priority::High, 0), 0).unwrap();
        assert_eq!(ids(&queue.drain("phone", None, 1000)), ["baseline-status"]);
        queue.put(&phone, action(1, 1000), 1000).unwrap();
        assert_eq!(queue.pull("phone", |_| true, 1000 + ACTION_TTL_MS - 1).len(), 1);
        queue.prune(1000 + ACTION_TTL_MS);
        assert_eq!((queue.nodes.len(), queue.actions.now()), (0, 0));
    }

    #[test]
    fn refused_commands_wait_until_they_are_acknowledged() {
        let mut queue = queue(8, 100);
        let phone: Arc<str> = "phone".into();
        for number in 0..ACTIONS_OF_ONE_MAX + 1 {
            queue.put(&phone, action(number, 5), 5).unwrap();
        }
        let twice = Action { id: "other".into(), ..action(7, 6) };
        assert_eq!(&*queue.put(&phone, twice, 6).unwrap(), "a7", "the same key");
        let waiting = queue.pull("phone", |_| true, 6);
        assert_eq!((waiting.len(), &*waiting[0].id), (ACTIONS_OF_ONE_MAX, "a1"), "oldest dropped");
        assert_eq!(queue.ack("phone", ["a1", "a2", "a2", "x"].into_iter(), 6), 62);
        assert_eq!(queue.actions.now(), 62);
        assert!(queue.pull("phone", |_| false, 6).is_empty(), "not allowed any more");
        assert_eq!((queue.actions.now(), queue.nodes.len()), (0, 0));
        queue.put(&phone, action(1, 6), 6).unwrap();
        queue.forget("phone");
        assert_eq!(queue.actions.now(), 0);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut queue = queue(1, 2);
        let (phone, tablet): (Arc<str>, Arc<str>) = ("phone".into(), "tablet".into());
        assert!(queue.put(&phone, action(1, 0), 0).is_some());
        assert!(queue.put(&phone, action(2, 0), 0).is_some());
        assert_eq!(queue.put(&phone, action(3, 0), 0), None);
        assert_eq!(queue.actions.refused(), 1);
        assert!(queue.put(&phone, action(2, 0), 0).is_some(), "it waits already");
        let late = work("1", Type::Status, Priority::Normal, 0);
        assert_eq!(queue.enqueue(&tablet, late, 0), None);
    }
}
