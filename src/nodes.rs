//! Companion devices and operators on WebSocket: the OpenClaw gateway protocol, versions 3 and 4.
//!
//! Each connection has a thread of its own, which does nothing but move frames and keep time, so that
//! pings and ticks are on time whatever a request costs. Requests run on a few method threads; what
//! takes long is data (a pending call, a run), never a waiting thread.

mod broadcast;
mod connection;
mod drain;
mod hello;
mod jobs;
mod keeper;
mod line;
mod presence;
mod room;
mod shares;
mod timing;
pub mod catalogue;
pub mod connected;
pub mod device;
pub mod fleet;
pub mod frame;
pub mod handshake;
pub mod health;
pub mod history;
pub mod host;
pub mod limits;
pub mod idempotency;
pub mod invoke;
pub mod json5;
pub mod methods;
pub mod metrics;
pub mod outbox;
pub mod pairing;
pub mod peer;
pub mod queue;
pub mod refusal;
pub mod run;
pub mod runs;
pub mod sessions;
pub mod shared;
pub mod subscriptions;
pub mod tokens;
pub mod upgrade;
pub mod who;
pub mod writes;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde_json::Value;

use crate::base::clock;
use crate::base::events::Events;
use crate::base::health::Board;
use crate::base::heartbeat::Heartbeats;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Registry};
use crate::base::orders::Desk;
use crate::config::Config;
use crate::config::overview::Overview;
use crate::config::settings::Key;
use crate::net::inward::Inward;
use crate::observe::log::Tail;
use crate::store::Store;

use broadcast::Peers;
use drain::Drain;
use fleet::Fleet;
use handshake::Secrets;
use host::{Host, Tables};
use jobs::Pool;
use keeper::Keeper;
use limits::Limits;
use metrics::Counts;
use outbox::{Class, Event, Put, StateVersion};
use pairing::Devices;
use peer::Peer;
use presence::Presence;
use room::Lines;
use runs::Runs;
use shared::Shared;
use shares::{Share, Shares};
use upgrade::Upgrades;
use who::{How, Identity, Scope};

pub use room::Ticket;

/// What the room works with.
#[derive(Clone)]
#[expect(missing_docs, reason = "each is documented where it is made")]
pub struct Parts {
    pub registry: Arc<Registry>,
    pub events: Arc<Events>,
    pub board: Arc<Board>,
    pub heartbeats: Arc<Heartbeats>,
    pub store: Arc<Store>,
    pub desk: Desk,
    pub tail: Option<Arc<Tail>>,
    pub host: Arc<dyn Host>,
    pub tables: Arc<dyn Tables>,
    pub limits: Limits,
    /// Which configuration is in force.
    pub config: Option<Arc<Overview>>,
}

/// The room: every connection, and what they share.
pub struct Nodes {
    parts: Parts,
    config: ArcSwap<Config>,
    secrets: ArcSwap<Secrets>,
    started: Instant,
    /// The number of the last connection.
    number: AtomicU64,
    /// How often the gateway's health has changed.
    health: AtomicU64,
    counts: Counts,
    panics: Arc<Counter>,
    addresses: Arc<Shares<std::net::IpAddr>>,
    accounts: Arc<Shares<Arc<str>>>,
    peers: Peers,
    presence: Locked<Presence>,
    devices: Devices,
    upgrades: Upgrades,
    fleet: Fleet,
    runs: Arc<Runs>,
    lines: Lines,
    drain: Drain,
    pool: Pool,
    /// Method threads in methods that may wait for the disk or the main loop.
    waits: AtomicUsize,
    keeper: Keeper,
    shared: Shared,
}

impl Nodes {
    /// The room, with nobody in it. Its threads start with the first connection.
    pub fn new(parts: Parts, config: Arc<Config>) -> Arc<Self> {
        let (settings, limits) = (&config.nodes, &parts.limits);
        let help = "Panics in handlers; each was answered with 500.";
        let labels = [("engine", "nodes")];
        let panics = parts.registry.counter("tidegate_panics_total", help, &labels);
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let presence = Presence::new(&host, settings.presence_max, settings.presence_ttl);
        Arc::new(Nodes {
            secrets: ArcSwap::from_pointee(Secrets::of(settings)),
            started: clock::now(),
            number: AtomicU64::new(0),
            health: AtomicU64::new(1),
            counts: Counts::new(&parts.registry),
            panics,
            addresses: Shares::new(&limits.connections_per_address),
            accounts: Shares::new(&limits.connections_per_key),
            peers: Peers::new(),
            presence: Locked::new(Rank::Leaf, presence),
            devices: Devices::new(&limits.devices, &limits.pairings, &parts.events, &parts.store),
            upgrades: Upgrades::new(&parts.registry),
            fleet: Fleet::new(&parts.registry, settings),
            runs: Runs::new(runs::Hands::of(&parts), settings),
            lines: Lines::new(),
            drain: Drain::new(),
            pool: Pool::new(Arc::clone(&limits.jobs)),
            waits: AtomicUsize::new(0),
            keeper: Keeper::new(),
            shared: Shared::new(&parts),
            config: ArcSwap::new(config),
            parts,
        })
    }

    /// Chats under way, and their sessions.
    pub fn runs(&self) -> &Arc<Runs> {
        &self.runs
    }

    /// The handles that it was made with.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// The paired devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Devices that wait for more rights.
    pub fn upgrades(&self) -> &Upgrades {
        &self.upgrades
    }

    /// The connected nodes, and what they are asked.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// What is counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// When the room was opened.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Those whose handshake is over.
    pub fn peers(&self) -> Vec<Arc<Peer>> {
        self.peers.all()
    }

    /// Sends an event to those of them for whom `to` says so: how many got it.
    pub fn broadcast(&self, event: &Event, to: impl Fn(&Peer) -> bool) -> usize {
        let (sent, lost) = self.peers.send(event, to);
        for _ in 0..lost {
            self.counts.dropped(event.class);
        }
        sent
    }

    /// Sends an event to one.
    pub fn tell(&self, peer: &Peer, event: Event) -> Put {
        let class = event.class;
        let put = peer.event(event);
        if matches!(put, Put::Dropped | Put::Overfull) {
            self.counts.dropped(class);
        }
        put
    }

    /// Closes those for whom `which` says so, after what waits for them.
    pub fn dismiss(&self, code: u16, reason: &'static str, which: impl Fn(&Peer) -> bool) {
        for peer in self.peers.all().iter().filter(|peer| which(peer)) {
            peer.outbox().close(code, reason);
        }
    }

    /// How often presence and health have changed.
    pub fn state_version(&self) -> StateVersion {
        let presence = self.presence.with(|presence| presence.version());
        StateVersion { presence, health: self.health.load(Relaxed) }
    }

    /// Who is there, as the protocol has it.
    pub fn presence_list(&self) -> Vec<Value> {
        let now_ms = u64::try_from(clock::unix().as_millis()).unwrap_or(u64::MAX);
        self.presence.with(|presence| presence.list(now_ms))
    }

    /// From now on chats can run, as requests from inside.
    pub fn open_inward(self: &Arc<Self>, inward: Inward) {
        self.runs.open(inward, Box::new(Arc::downgrade(self)));
    }

    /// Takes over a new configuration. Connections keep what they were given; those that were let in
    /// by what is no longer valid are closed.
    pub fn reconfigure(&self, config: &Arc<Config>) {
        let old = self.config.swap(Arc::clone(config));
        let secrets = Secrets::of(&config.nodes);
        let before = self.secrets.swap(Arc::new(secrets));
        let settings = &config.nodes;
        self.presence.with(|presence| {
            presence.reconfigure(settings.presence_max, settings.presence_ttl);
        });
        self.fleet.reconfigure(&self.parts.registry, settings);
        self.runs.reconfigure(settings);
        if !settings.enabled {
            self.dismiss(1008, "websocket connections are switched off", |_| true);
            return;
        }
        let opened = old.keys.is_empty() == config.keys.is_empty();
        self.dismiss(1008, "credentials changed", |peer| {
            let Some(who) = peer.identity() else { return false };
            match who.how {
                How::Key => {
                    let name = who.account.as_deref().unwrap_or_default();
                    key(&old, name) != key(config, name)
                }
                How::Open => !opened || !secrets.still(&before, who.how),
                How::Token | How::Password | How::Device => !secrets.still(&before, who.how),
            }
        });
    }

    /// Whether what let somebody in under these still does. To be asked once it can be dismissed.
    fn valid(&self, who: &Identity, (config, secrets): (&Config, &Secrets)) -> bool {
        let (now, ours) = (self.config(), self.secrets());
        let name = who.account.as_deref().unwrap_or_default();
        let same = match who.how {
            How::Key => key(config, name) == key(&now, name),
            How::Open => {
                config.keys.is_empty() == now.keys.is_empty() && ours.still(secrets, who.how)
            }
            How::Token | How::Password | How::Device => ours.still(secrets, who.how),
        };
        now.nodes.enabled && same
    }

    /// The right of a method thread to wait for the disk or the main loop; none when half of them do.
    fn may_wait(&self) -> Option<Waits<'_>> {
        let before = self.waits.fetch_add(1, Relaxed);
        // Dropped, it gives its place back.
        let waits = Waits(&self.waits);
        (before < jobs::THREADS / 2).then_some(waits)
    }

    /// The way out begins: everybody is told, and closed within `time`. Nobody is let in any more.
    pub fn begin_drain(&self, time: Duration, restart: bool) {
        self.drain.begin();
        let reason = if restart { "service restart" } else { "gateway stopping" };
        let mut payload = serde_json::json!({"reason": reason});
        if restart {
            let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            payload["restartExpectedMs"] = ms.into();
        }
        let payload = frame::text(&payload).into();
        let event = Event { name: "shutdown", payload, class: Class::Control, version: None };
        self.broadcast(&event, |_| true);
        self.drain.plan(self.peers.all(), clock::now(), time);
        for line in self.lines.all() {
            // Those in their handshake have nothing to lose.
            if line.peer.identity().is_none() {
                line.peer.outbox().close(drain::CLOSE.0, drain::CLOSE.1);
            }
        }
        self.keeper.wake();
    }

    /// Whether nobody is left.
    pub fn drained(&self) -> bool {
        self.parts.limits.connections.now() == 0
    }

    /// Closes everybody at once.
    pub fn hurry(&self) {
        for line in self.lines.all() {
            line.peer.outbox().close(drain::CLOSE.0, drain::CLOSE.1);
        }
    }

    /// Ends everything: connections that are left are cut off. Waits for the threads, at most until
    /// `deadline`; how many were left behind.
    pub fn stop(&self, deadline: Instant) -> usize {
        self.drain.begin();
        self.fleet.close();
        for line in self.lines.all() {
            line.cut();
        }
        self.runs.stop();
        self.join(deadline)
    }

    /// What has a deadline beside the connections themselves. Called by the room's thread.
    fn tick(&self, now: Instant) {
        self.fleet.tick(now);
        if let Some(event) = self.tick_shared(now) {
            self.broadcast(&event, |peer| peer.may(Scope::Admin));
        }
        self.upgrades.tick(self);
        self.expire();
    }

    /// Closes those whose keys have ended.
    fn expire(&self) {
        let (config, now) = (self.config(), clock::unix().as_secs());
        let over = |key: &&Key| key.expires.is_some_and(|end| end <= now);
        let over: Vec<&str> = config.keys.iter().filter(over).map(|key| &*key.name).collect();
        if over.is_empty() {
            return;
        }
        self.dismiss(1008, "credentials expired", |peer| {
            let account =
                |who: &Identity| who.account.as_deref().is_some_and(|a| over.contains(&a));
            peer.identity().is_some_and(|who| who.how == How::Key && account(who))
        });
    }

    /// Its version, and how many entries were ever left out.
    fn refresh_presence(&self, now: Instant) -> (u64, u64) {
        let there: std::collections::BTreeSet<u64> =
            self.peers.all().iter().map(|peer| peer.number).collect();
        let (version, dropped, held) = self.presence.with(|presence| {
            presence.refresh(now, |number| there.contains(&number));
            (presence.version(), presence.dropped(), presence.len())
        });
        self.parts.limits.presence.set_now(held as u64);
        (version, dropped)
    }

    fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn next_number(&self) -> u64 {
        self.number.fetch_add(1, Relaxed) + 1
    }

    fn health_changed(&self) {
        self.health.fetch_add(1, Relaxed);
    }

    fn share(&self, account: &Arc<str>) -> Option<Share<Arc<str>>> {
        self.accounts.try_take(Arc::clone(account))
    }

    fn secrets(&self) -> Arc<Secrets> {
        self.secrets.load_full()
    }

    fn drain(&self) -> &Drain {
        &self.drain
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn panicked(&self) {
        self.panics.inc();
    }
}

impl runs::tell::Peers for Weak<Nodes> {
    fn peers(&self) -> Vec<Arc<Peer>> {
        self.upgrade().map(|nodes| nodes.peers()).unwrap_or_default()
    }
}

/// A method thread that may wait.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// What a key opens, as far as a change of it matters to its connections.
fn key<'a>(config: &'a Config, name: &str) -> Option<(&'a [u8; 32], &'a [&'static str])> {
    let found = config.keys.iter().find(|key: &&Key| key.name == name);
    found.map(|key| (&key.sha256, &*key.scopes))
}
