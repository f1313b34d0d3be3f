//! Which nodes are connected, and by which connection. Pure.
//!
//! A device that comes back may do so before its old connection is known to be dead, and two copies of
//! a program may hold one identity. So a node has a few connections, of which the newest is asked; when
//! that goes, the one before it is. A late end takes away nothing but itself, and nobody is closed for
//! a newcomer until there are too many: two copies that close each other for ever would both be of no
//! use.

use std::sync::Arc;

use crate::base::bounded::Map;
use crate::base::metrics::{Limit, Registry, Unit};

/// Connections of one node. Past it: the oldest is closed.
pub const OF_ONE_MAX: usize = 4;

/// What a node says of the person before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Of the last input, in milliseconds since 1970.
    pub last_ms: u64,
    /// When it said so.
    pub told_ms: u64,
}

/// One connection of a node.
#[derive(Clone, Debug)]
pub struct Line<P> {
    /// Its number: later connections have greater ones.
    pub number: u64,
    /// It.
    pub peer: P,
    /// Whether somebody sits before it.
    pub activity: Option<Activity>,
}

/// The connected nodes, by device id.
#[derive(Debug)]
pub struct Connected<P> {
    nodes: Map<Arc<str>, Vec<Line<P>>>,
    of_one: Arc<Limit>,
}

/// The bounds, as they are registered.
#[derive(Clone, Debug)]
pub struct Bounds {
    nodes: Arc<Limit>,
    of_one: Arc<Limit>,
}

impl Bounds {
    /// Registers them, or gives them new values; `nodes` as many as there may be connections.
    pub fn register(registry: &Registry, nodes: usize) -> Self {
        let (one, all) = ("its oldest connection is closed", "the connection is closed");
        let each = OF_ONE_MAX as u64;
        Bounds {
            nodes: registry.limit("nodes.connected_max", "", nodes as u64, all),
            of_one: registry.limit_each(Unit::Entries, "nodes.lines_max", "", each, one),
        }
    }
}

impl<P: Clone> Connected<P> {
    /// Nobody.
    pub fn new(bounds: Bounds) -> Self {
        Connected { nodes: Map::new(bounds.nodes), of_one: bounds.of_one }
    }

    /// A node has come. Gives back the connection that is to be closed for it, if any; its own, when
    /// there are too many nodes.
    pub fn join(&mut self, node: &Arc<str>, number: u64, peer: P) -> Option<P> {
        let full = self.of_one.max();
        let Some(lines) = self.nodes.get_or_insert_with(Arc::clone(node), Vec::new) else {
            return Some(peer);
        };
        // Handshakes end in any order: a connection that began earlier is not the newest.
        let at = lines.partition_point(|line| line.number < number);
        lines.insert(at, Line { number, peer, activity: None });
        self.of_one.saw((lines.len() as u64).min(full));
        if lines.len() as u64 <= full {
            return None;
        }
        self.of_one.refuse();
        Some(lines.remove(0).peer)
    }

    /// A connection has ended; whether the node is not connected any more. Nothing happens for one
    /// that is not known (any more).
    pub fn gone(&mut self, node: &str, number: u64) -> bool {
        let Some(lines) = self.nodes.get_mut(node) else { return false };
        lines.retain(|line| line.number != number);
        if !lines.is_empty() {
            return false;
        }
        self.nodes.remove(node);
        true
    }

    /// The connection that is asked.
    pub fn get(&self, node: &str) -> Option<&Line<P>> {
        self.nodes.get(node)?.last()
    }

    /// Notes what a node says of the person before it; false for a connection that is not asked.
    pub fn set_activity(&mut self, node: &str, number: u64, activity: Option<Activity>) -> bool {
        let lines = self.nodes.get_mut(node);
        let Some(line) = lines.and_then(|lines| lines.last_mut()) else { return false };
        if line.number != number {
            return false;
        }
        line.activity = activity;
        true
    }

    /// Every node with the connection that is asked, in no order.
    pub fn all(&self) -> Vec<(Arc<str>, Line<P>)> {
        let newest = |(id, lines): (&Arc<str>, &Vec<Line<P>>)| {
            lines.last().map(|line| (Arc::clone(id), line.clone()))
        };
        self.nodes.iter().filter_map(newest).collect()
    }

    /// How many nodes are connected.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn connected(nodes: u64) -> Connected<u64> {
        let (nodes, of_one) = (Limit::detached(nodes), Limit::detached(OF_ONE_MAX as u64));
        Connected::new(Bounds { nodes, of_one })
    }

    fn asked(connected: &Connected<u64>, node: &str) -> Option<u64> {
        connected.get(node).map(|line| line.number)
    }

    #[test]
    fn the_newest_connection_is_asked_and_a_late_end_changes_nothing() {
        let mut nodes = connected(8);
        let phone: Arc<str> = "phone".into();
        assert_eq!(nodes.join(&phone, 7, 7), None);
        assert_eq!(nodes.join(&phone, 5, 5), None, "its handshake ended later, it began earlier");
        assert_eq!(asked(&nodes, "phone"), Some(7));
        assert!(!nodes.gone("phone", 5));
        assert!(!nodes.gone("phone", 5), "twice");
        assert_eq!(nodes.join(&phone, 9, 9), None);
        assert!(!nodes.gone("phone", 9), "the one before it is still there");
        assert_eq!(asked(&nodes, "phone"), Some(7));
        assert!(nodes.gone("phone", 7));
        assert_eq!((asked(&nodes, "phone"), nodes.len()), (None, 0));
        assert!(!nodes.gone("phone", 7));
    }

    #[test]
    fn the_oldest_of_too_many_connections_is_to_be_closed() {
        let mut nodes = connected(1);
        let phone: Arc<str> = "phone".into();
        for number in 0..OF_ONE_MAX as u64 {
            assert_eq!(nodes.join(&phone, number, number), None);
        }
        assert_eq!(nodes.join(&phone, 90, 90), Some(0));
        assert_eq!(nodes.of_one.refused(), 1);
        let tablet: Arc<str> = "tablet".into();
        assert_eq!(nodes.join(&tablet, 91, 91), Some(91), "one node too many");
        assert_eq!(nodes.len(), 1);
    }

    #[test]
    fn only_the_connection_that_is_asked_tells_of_its_person() {
        let mut nodes = connected(8);
        let mac: Arc<str> = "mac".into();
        nodes.join(&mac, 1, 1);
        nodes.join(&mac, 2, 2);
        let activity = Some(Activity { last_ms: 5, told_ms: 6 });
        assert!(!nodes.set_activity("mac", 1, activity));
        assert!(nodes.set_activity("mac", 2, activity));
        assert_eq!(nodes.get("mac").unwrap().activity, activity);
        assert!(nodes.set_activity("mac", 2, None));
        assert!(!nodes.set_activity("pc", 2, activity));
    }

    proptest! {
        /// As a list of all who came and have not gone.
        #[test]
        fn who_came_last_and_is_there_is_asked(
            steps in proptest::collection::vec((0..3_usize, 0..40_u64, any::<bool>()), 0..120),
        ) {
            let names: [Arc<str>; 3] = ["a".into(), "b".into(), "c".into()];
            let (mut nodes, mut there) = (connected(64), Vec::<(usize, u64)>::new());
            for (node, number, comes) in steps {
                if comes && !there.contains(&(node, number)) {
                    there.push((node, number));
                    if let Some(closed) = nodes.join(&names[node], number, number) {
                        there.retain(|have| *have != (node, closed));
                    }
                } else {
                    there.retain(|have| *have != (node, number));
                    nodes.gone(&names[node], number);
                }
                for (node, name) in names.iter().enumerate() {
                    let newest = there.iter().filter(|have| have.0 == node).map(|have| have.1).max();
                    prop_assert_eq!(asked(&nodes, name), newest);
                }
            }
            for (node, number) in there {
                nodes.gone(&names[node], number);
            }
            prop_assert!(nodes.is_empty());
        }
    }
}
