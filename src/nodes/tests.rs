//! A room for the tests of its parts, with nobody in it and nothing on disk.

use std::net::IpAddr;
use std::path::PathBuf;

use super::host::{Model, Opened, Tables, UsageDay};
use super::outbox::{Bounds, Item, Outbox};
use super::who::{Client, Role, Scopes};
use super::*;
use crate::base::error::Error;
use crate::base::metrics::Limit;
use crate::llm::usage::SessionRow;
use crate::net::websocket::Bell;
use crate::store::Tools;

/// A gateway without keys.
struct Open;

impl Host for Open {
    fn open(&self, _: Option<&str>, _: IpAddr) -> Result<Opened, Error> {
        Ok(Opened::Open)
    }

    fn failed(&self, _: &str, _: IpAddr) {}

    fn listens(&self, _: &str, _: IpAddr) -> Result<(), Error> {
        Ok(())
    }
}

impl Tables for Open {
    fn models(&self, _: &Identity) -> Result<Vec<Model>, Error> {
        Ok(Vec::new())
    }

    fn upstreams(&self) -> Vec<String> {
        Vec::new()
    }

    fn usage(&self, _: Option<&str>, _: Option<u64>) -> Vec<UsageDay> {
        Vec::new()
    }

    fn usage_of_sessions(&self, _: Option<&str>) -> Vec<SessionRow> {
        Vec::new()
    }

    fn log_folder(&self) -> Option<PathBuf> {
        None
    }
}

/// The room.
pub(super) fn room() -> Arc<Nodes> {
    let config = Arc::new(crate::config::parse("", None, &|_| None).unwrap().config);
    let tools = Tools::bare();
    let (desk, _) = Desk::new(&tools.registry);
    let parts = Parts {
        store: Store::open(None, &config.store, tools.clone()),
        limits: Limits::new(&tools.registry, &config.nodes, &config.hooks),
        registry: tools.registry,
        events: tools.events,
        board: tools.board,
        heartbeats: tools.heartbeats,
        desk,
        tail: None,
        host: Arc::new(Open),
        tables: Arc::new(Open),
        config: None,
    };
    Nodes::new(parts, config)
}

/// Somebody who is let in.
pub(super) fn peer(number: u64, role: Role) -> Arc<Peer> {
    let total = Limit::detached(1 << 30);
    let bounds = Bounds { bytes: 1 << 20, telemetry: 1 << 16 };
    let outbox = Outbox::new(Bell::new().unwrap(), bounds, &total);
    let address = IpAddr::from([127, 0, 0, 1]);
    let peer = Peer::new(&format!("c{number}"), number, address, 0, outbox);
    peer.identify(Identity {
        role,
        scopes: if role == Role::Operator { Scopes::ALL } else { Scopes::NONE },
        how: How::Open,
        account: None,
        device: (role == Role::Node).then(|| format!("d{number}").into()),
        protocol: 4,
        client: Client { mode: "ui".into(), ..Client::default() },
        caps: Box::default(),
        commands: Box::default(),
    });
    Arc::new(peer)
}

/// The whole frames that wait for it.
pub(super) fn frames(peer: &Peer) -> Vec<Value> {
    let mut all = Vec::new();
    while let Some(item) = peer.outbox().take() {
        if let Item::Frame(text) = item {
            all.push(serde_json::from_str(&text).unwrap());
        }
    }
    all
}

#[test]
fn a_connection_leaves_every_part_of_the_room_and_a_late_end_changes_nothing() {
    let nodes = room();
    let (old, new) = (peer(1, Role::Operator), peer(2, Role::Operator));
    nodes.joined(&old);
    nodes.joined(&new);
    assert_eq!((nodes.peers().len(), nodes.presence_list().len()), (2, 3));
    nodes.gone(&old);
    nodes.gone(&old);
    assert_eq!(nodes.peers()[0].number, 2);
    assert_eq!(nodes.presence_list().len(), 2);
    // One that was closed before it was there leaves nothing behind.
    let closed = peer(3, Role::Operator);
    closed.outbox().close(1000, "");
    nodes.joined(&closed);
    assert_eq!((nodes.peers().len(), nodes.presence_list().len()), (1, 2));
}

#[test]
fn events_that_a_slow_consumer_loses_are_counted_by_their_class() {
    let nodes = room();
    let slow = peer(1, Role::Operator);
    nodes.joined(&slow);
    let event =
        |class| Event { name: "x", payload: "y".repeat(70_000).into(), class, version: None };
    let to = |class| nodes.broadcast(&event(class), |_| true);
    assert_eq!([to(Class::Telemetry), to(Class::Telemetry)], [1, 0]);
    for _ in 0..20 {
        to(Class::Control);
    }
    assert!(slow.outbox().closed());
    let page = |class| {
        let name = "tidegate_nodes_events_dropped_total";
        nodes.parts.registry.counter(name, "", &[("class", class)]).value()
    };
    assert_eq!((page("telemetry"), page("control")), (1, 1));
}

#[test]
fn whoever_comes_while_the_room_closes_is_sent_away() {
    let nodes = room();
    nodes.begin_drain(Duration::from_secs(30), true);
    let late = peer(1, Role::Operator);
    nodes.joined(&late);
    assert!(late.outbox().closed());
    assert!(nodes.admit(IpAddr::from([127, 0, 0, 1])).is_err());
    assert_eq!(nodes.stop(clock::now() + Duration::from_secs(5)), 0);
}
