//! What the room counts.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::base::metrics::{Counter, Histogram, Registry};

use super::methods;
use super::outbox::Class;

/// Why a connection ended, for counters and the log: a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer closed it.
    Left,
    /// The peer, or the way to it, broke it off.
    Broken,
    /// No sign of life after a ping.
    Dead,
    /// The handshake took too long.
    HandshakeTimeout,
    /// The handshake was refused.
    Refused,
    /// It did not take what was sent.
    Slow,
    /// It broke the protocol.
    Protocol,
    /// A newer connection, a lost pairing, other credentials.
    Dismissed,
    /// The gateway stops.
    Restart,
    /// Cut off on the way out.
    Cut,
    /// A bug of ours.
    Bug,
}

impl Ended {
    /// Every reason.
    const ALL: [Ended; 11] = [
        Ended::Left,
        Ended::Broken,
        Ended::Dead,
        Ended::HandshakeTimeout,
        Ended::Refused,
        Ended::Slow,
        Ended::Protocol,
        Ended::Dismissed,
        Ended::Restart,
        Ended::Cut,
        Ended::Bug,
    ];

    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Ended::Left => "left",
            Ended::Broken => "broken",
            Ended::Dead => "dead",
            Ended::HandshakeTimeout => "handshake_timeout",
            Ended::Refused => "refused",
            Ended::Slow => "slow",
            Ended::Protocol => "protocol",
            Ended::Dismissed => "dismissed",
            Ended::Restart => "restart",
            Ended::Cut => "cut",
            Ended::Bug => "bug",
        }
    }
}

/// The counters of the room.
#[derive(Debug)]
pub struct Counts {
    registry: Arc<Registry>,
    /// Connections that began.
    pub opened: Arc<Counter>,
    ended: [Arc<Counter>; Ended::ALL.len()],
    /// Frames with text that came, and that were sent.
    pub frames_in: Arc<Counter>,
    /// See above.
    pub frames_out: Arc<Counter>,
    /// Bytes of them.
    pub bytes_in: Arc<Counter>,
    /// See above.
    pub bytes_out: Arc<Counter>,
    /// Events of class telemetry that slow consumers did not get.
    dropped: [Arc<Counter>; 2],
    /// Pings that were sent.
    pub pings: Arc<Counter>,
    /// Pongs that came.
    pub pongs: Arc<Counter>,
    /// Handshakes that ended well.
    pub welcomed: Arc<Counter>,
    /// Entries of presence that were left out because there are too many.
    pub presence_dropped: Arc<Counter>,
    /// How late ticks were.
    pub tick_delay: Arc<Histogram>,
    /// From a request's last byte to the end of its method.
    duration: Arc<Histogram>,
    /// By method, in the order of the table, and at last of those that there are not: those that went
    /// well, and that did not. Made when a method is first asked for.
    methods: Box<[OnceLock<[Arc<Counter>; 2]>]>,
}

/// What stands for methods that there are not.
const UNKNOWN: &str = "unknown";

impl Counts {
    /// Registers them.
    pub fn new(registry: &Arc<Registry>) -> Self {
        let plain = |name, help| registry.counter(name, help, &[]);
        let ways = |name, help| {
            ["in", "out"].map(|way| registry.counter(name, help, &[("direction", way)]))
        };
        let help = "Frames with text on WebSocket.";
        let [frames_in, frames_out] = ways("tidegate_nodes_frames_total", help);
        let help = "Bytes of frames with text on WebSocket.";
        let [bytes_in, bytes_out] = ways("tidegate_nodes_bytes_total", help);
        let help = "WebSocket connections that ended, by reason.";
        let ended = Ended::ALL.map(|why| {
            registry.counter("tidegate_nodes_ended_total", help, &[("reason", why.as_str())])
        });
        let help = "Events that a slow consumer did not get, by class.";
        let dropped = ["telemetry", "control"].map(|class| {
            registry.counter("tidegate_nodes_events_dropped_total", help, &[("class", class)])
        });
        Counts {
            opened: plain("tidegate_nodes_connections_total", "WebSocket connections that began."),
            ended,
            frames_in,
            frames_out,
            bytes_in,
            bytes_out,
            dropped,
            pings: plain("tidegate_nodes_pings_total", "Pings that were sent on WebSocket."),
            pongs: plain("tidegate_nodes_pongs_total", "Pongs that came on WebSocket."),
            welcomed: handshake(registry, "ok"),
            presence_dropped: plain(
                "tidegate_nodes_presence_dropped_total",
                "Entries of presence that were left out because there are too many.",
            ),
            tick_delay: registry.histogram(
                "tidegate_nodes_tick_delay_seconds",
                "How much later than due ticks on WebSocket were sent.",
                &[],
            ),
            duration: registry.histogram(
                "tidegate_nodes_request_duration_seconds",
                "From the last byte of a request on WebSocket to the end of its method.",
                &[],
            ),
            methods: methods::all().map(|_| OnceLock::new()).chain([OnceLock::new()]).collect(),
            registry: Arc::clone(registry),
        }
    }

    /// A connection ended so.
    pub fn ended(&self, why: Ended) {
        if let Some(index) = Ended::ALL.iter().position(|known| *known == why) {
            self.ended[index].inc();
        }
    }

    /// A handshake was refused, for one of the reasons that there are in the code.
    pub fn turned_away(&self, outcome: &'static str) {
        handshake(&self.registry, outcome).inc();
    }

    /// An event of this class was dropped.
    pub fn dropped(&self, class: Class) {
        self.dropped[usize::from(class == Class::Control)].inc();
    }

    /// A request was carried out. `method` is its place in the table and its name; none: there is no
    /// such method.
    pub fn request(&self, method: Option<(usize, &'static str)>, ok: bool, took: Duration) {
        self.duration.observe(took);
        let (index, name) = method.unwrap_or((self.methods.len() - 1, UNKNOWN));
        let Some(place) = self.methods.get(index) else { return };
        let two = place.get_or_init(|| {
            let help = "Requests on WebSocket, by method and outcome.";
            ["ok", "error"].map(|outcome| {
                let labels = [("method", name), ("outcome", outcome)];
                self.registry.counter("tidegate_nodes_requests_total", help, &labels)
            })
        });
        two[usize::from(!ok)].inc();
    }
}

fn handshake(registry: &Registry, outcome: &'static str) -> Arc<Counter> {
    let help = "Handshakes on WebSocket, by outcome.";
    registry.counter("tidegate_nodes_handshakes_total", help, &[("outcome", outcome)])
}
