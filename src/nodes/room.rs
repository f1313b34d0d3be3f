//! Connections: how they come, and how they end.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::id::RequestId;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Lease;
use crate::base::thread::{self, Thread};
use crate::net::websocket::{self, Bell, Upgraded, WebSocket};

use super::connection::{Connection, SILENCE_MAX};
use super::handshake::Handshake;
use super::line::Line;
use super::metrics::Ended;
use super::outbox::{Bounds, Outbox};
use super::peer::Peer;
use super::presence::Present;
use super::shares::Share;
use super::timing::{Periods, Timing};
use super::{Nodes, drain, tokens};

/// Numbers of threads in their names: 15 bytes are little.
const NAMES: u64 = 100_000;

/// How long one who waits for places is told to wait, in seconds.
const RETRY_AFTER: u64 = 5;

/// The place of a connection that is about to begin.
pub struct Ticket {
    place: Lease,
    share: Share<IpAddr>,
    address: IpAddr,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Every connection, from its upgrade on, until its thread was joined.
#[derive(Debug)]
pub(super) struct Lines {
    lines: Locked<BTreeMap<u64, Held>>,
}

#[derive(Debug)]
struct Held {
    line: Arc<Line>,
    /// None while it is being started.
    thread: Option<Thread>,
}

impl Lines {
    pub(super) fn new() -> Self {
        Lines { lines: Locked::new(Rank::Leaf, BTreeMap::new()) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.with(|lines| lines.is_empty())
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Line>> {
        self.lines.with(|lines| lines.values().map(|held| Arc::clone(&held.line)).collect())
    }

    /// Takes out those whose threads have ended.
    fn ended(&self) -> Vec<Held> {
        self.lines.with(|lines| {
            let over = |held: &Held| held.thread.as_ref().is_some_and(Thread::finished);
            let ended: Vec<u64> =
                lines.iter().filter(|(_, held)| over(held)).map(|(number, _)| *number).collect();
            ended.iter().filter_map(|number| lines.remove(number)).collect()
        })
    }

    /// Takes everything out.
    fn clear(&self) -> Vec<Thread> {
        let lines = self.lines.with(std::mem::take);
        lines.into_values().filter_map(|held| held.thread).collect()
    }
}

impl Nodes {
    /// A place for a connection from this address.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there are none at all, [`Kind::Draining`], [`Kind::ConnectionsFull`].
    pub fn admit(&self, address: IpAddr) -> Result<Ticket, Error> {
        if !self.config().nodes.enabled {
            let text = "WebSocket connections are switched off (nodes.enabled, features.nodes)";
            return Err(Error::new(Kind::NotFound, text));
        }
        if self.drain().on() {
            return Err(Error::new(Kind::Draining, "the gateway is about to stop"));
        }
        let full = |setting: &str| {
            let text = format!("too many WebSocket connections ({setting})");
            Error::new(Kind::ConnectionsFull, text)
                .retry_after(Some(Duration::from_secs(RETRY_AFTER)))
        };
        let place = self.parts().limits.connections.try_take(1);
        let place = place.ok_or_else(|| full("nodes.connections_max"))?;
        let share = self.addresses.try_take(address);
        let share = share.ok_or_else(|| full("nodes.connections_per_address_max"))?;
        Ok(Ticket { place, share, address })
    }

    /// Takes a connection over. It must not block; what goes wrong closes the connection.
    pub fn take(self: &Arc<Self>, ticket: Ticket, upgraded: Upgraded) {
        if let Err(error) = self.begin(ticket, upgraded) {
            crate::log_limited!(log::Level::Error, "node_not_started", error:% = error);
        }
    }

    fn begin(self: &Arc<Self>, ticket: Ticket, upgraded: Upgraded) -> Result<(), Error> {
        let short = |error: std::io::Error| {
            Error::new(Kind::Internal, format!("no thread or descriptor for a connection: {error}"))
        };
        let Some(jobs) = self.pool.open(self).map_err(short)? else { return Ok(()) };
        self.keeper.open(self).map_err(short)?;
        let bell = Bell::new().map_err(short)?;
        let (now, config) = (clock::now(), self.config());
        let (limits, settings) = (&self.parts().limits, &config.nodes);
        let bounds = Bounds { bytes: settings.buffered_max, telemetry: settings.telemetry_max };
        let outbox = Outbox::new(bell.clone(), bounds, &limits.buffered_total);
        let number = self.next_number();
        let since_ms = u64::try_from(clock::unix().as_millis()).unwrap_or(u64::MAX);
        let id = RequestId::generate();
        let peer = Arc::new(Peer::new(id.as_str(), number, ticket.address, since_ms, outbox));
        let handshake = Handshake::new(since_ms, &tokens::fresh()?);
        peer.outbox().frame(handshake.challenge());
        let line = Line::new(peer, bell.clone(), handshake);
        let of_socket = websocket::Limits {
            message_max: settings.hello_max as u64,
            rate_min: config.server.body_rate_min as u64,
        };
        let total = Arc::clone(&limits.messages_total);
        let periods = Periods {
            handshake: settings.handshake_timeout,
            ping: settings.ping_interval,
            pong: settings.pong_timeout,
            tick: settings.tick_interval,
            write: settings.write_timeout,
        };
        let connection = Box::new(Connection {
            nodes: Arc::clone(self),
            line: Arc::clone(&line),
            socket: WebSocket::new(upgraded, bell, of_socket, total),
            timing: Timing::new(periods, now),
            jobs,
            payload_max: settings.payload_max as u64,
            held: limits.buffered_total.nothing(),
            waits: false,
            close_by: None,
        });
        self.start(connection, ticket, number).map_err(short)
    }

    fn start(
        self: &Arc<Self>,
        connection: Box<Connection>,
        ticket: Ticket,
        number: u64,
    ) -> std::io::Result<()> {
        let line = Arc::clone(&connection.line);
        self.lines.lines.with(|lines| lines.insert(number, Held { line, thread: None }));
        let name = format!("ws-{}", number % NAMES);
        let beat = self.parts().heartbeats.register_one_of_many(&name, SILENCE_MAX);
        let started = thread::spawn(&name, move || {
            let _places = (ticket.place, ticket.share);
            connection.run(&beat);
        });
        match started {
            Ok(thread) => {
                self.counts().opened.inc();
                let refused = self.lines.lines.with(|lines| match lines.get_mut(&number) {
                    Some(held) => held.thread.replace(thread),
                    // The room was closed meanwhile.
                    None => Some(thread),
                });
                if let Some(thread) = refused {
                    thread.abandon();
                }
                Ok(())
            }
            Err(error) => {
                self.lines.lines.with(|lines| lines.remove(&number));
                Err(error)
            }
        }
    }

    /// A connection's handshake is over: it is one of those who are there.
    pub(super) fn joined(&self, peer: &Arc<Peer>) {
        let Some(who) = peer.identity() else { return };
        self.counts().welcomed.inc();
        log::info!(
            conn = &*peer.conn, peer = peer.address.to_string(), role = who.role.as_str(),
            how = who.how.as_str(), account = who.account.as_deref().unwrap_or_default(),
            client = &*who.client.id, mode = &*who.client.mode, protocol = who.protocol;
            "node_connected"
        );
        let present = Present {
            number: peer.number,
            conn: (&*peer.conn).into(),
            address: peer.address,
            since_ms: peer.since_ms,
            who: who.clone(),
        };
        let now = clock::now();
        self.presence.with(|presence| presence.join(present, now));
        self.peers.join(peer);
        self.fleet().joined(peer);
        // It may have come between the look at the clock and the last call.
        if self.drain().on() {
            peer.outbox().close(drain::CLOSE.0, drain::CLOSE.1);
        }
        // Or have ended meanwhile: then nobody else takes it away again.
        if peer.outbox().closed() {
            self.gone(peer);
        }
    }

    /// A connection has ended. Everything that belongs to it goes now, whatever its socket still
    /// waits for.
    pub(super) fn ended(&self, line: &Line, why: Ended, code: u16, reason: &str, began: Instant) {
        let peer = &line.peer;
        self.gone(peer);
        line.let_go();
        self.counts().ended(why);
        let seconds = clock::now().saturating_duration_since(began).as_secs_f64();
        let level = match (why, peer.identity()) {
            (Ended::Bug, _) => log::Level::Error,
            (_, None) => log::Level::Debug,
            _ => log::Level::Info,
        };
        log::log!(
            level,
            conn = &*peer.conn, peer = peer.address.to_string(), why = why.as_str(), code, reason,
            seconds, dropped = peer.outbox().dropped();
            "node_disconnected"
        );
        self.keeper.wake();
    }

    /// Takes it out of every part of the room. Each of them goes by the connection's number.
    pub(super) fn gone(&self, peer: &Arc<Peer>) {
        self.peers.leave(peer.number);
        self.presence.with(|presence| presence.leave(peer.number));
        self.fleet().gone(peer);
        self.upgrades().gone(peer);
        self.devices().gone(peer);
        self.runs().gone(peer);
    }

    /// Joins the threads of connections that have ended.
    pub(super) fn reap(&self) {
        for held in self.lines.ended() {
            if let Some(thread) = held.thread {
                thread.join();
            }
        }
    }

    /// Closes those whose time has come on the way out.
    pub(super) fn close_due(&self, now: Instant) {
        for peer in self.drain().due(now) {
            peer.outbox().close(drain::CLOSE.0, drain::CLOSE.1);
        }
    }

    /// Waits for the threads of all connections and of the room itself, at most until `deadline`;
    /// how many were left behind.
    pub(super) fn join(&self, deadline: Instant) -> usize {
        let mut threads: Vec<Thread> = self.keeper.close().into_iter().collect();
        let mut closed = false;
        loop {
            if self
                .lines
                .ended()
                .into_iter()
                .filter_map(|held| held.thread)
                .map(Thread::join)
                .count()
                == 0
            {
                if self.lines.is_empty() && !closed {
                    // Nobody has work for them any more.
                    threads.extend(self.pool.close());
                    closed = true;
                }
                threads.retain(|thread| !thread.finished());
                if (closed && threads.is_empty()) || clock::now() >= deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        threads.extend(self.lines.clear());
        let late = threads.len();
        threads.into_iter().for_each(Thread::abandon);
        late
    }
}
