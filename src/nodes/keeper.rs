//! The thread `nodes`: it keeps the room's time. Whatever has a deadline is looked after here, four
//! times a second; the threads of connections that have ended are joined here.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::base::clock;
use crate::base::heartbeat::{Beat, Doing};
use crate::base::lock::{Locked, Rank};
use crate::base::thread::{self, Thread};
use crate::health::status::Status;

use super::outbox::{Class, Event};
use super::who::Scope;
use super::{Nodes, frame, health};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// The same while nobody is connected.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// The same on the way out.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// How long it may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Between two `health` events while nothing changes.
const HEALTH_EVERY: Duration = Duration::from_secs(60);

/// Least time between two `presence` events.
const PRESENCE_PAUSE: Duration = Duration::from_millis(500);

/// Most bytes of `presence` events in a second, over all connections: when a thousand clients come
/// at once, each of them is not to be told a thousand times who is there.
const PRESENCE_BYTES_PER_SECOND: u64 = 16 * 1024 * 1024;

/// Longest time between two `presence` events when presence has changed.
const PRESENCE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// The thread. It starts with the first connection.
#[derive(Debug)]
pub(super) struct Keeper {
    inner: Locked<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    wake: Option<Sender<()>>,
    thread: Option<Thread>,
    begun: bool,
}

impl Keeper {
    pub(super) fn new() -> Self {
        Keeper { inner: Locked::new(Rank::Leaf, Inner::default()) }
    }

    /// Starts it the first time.
    ///
    /// # Errors
    /// When the operating system refuses the thread; then it is tried again next time.
    pub(super) fn open(&self, nodes: &Arc<Nodes>) -> io::Result<()> {
        if self.inner.with(|inner| std::mem::replace(&mut inner.begun, true)) {
            return Ok(());
        }
        let (wake, woken) = bounded(1);
        let beat = nodes.parts().heartbeats.register_one_of_many("nodes", SILENCE_MAX);
        let room = Arc::downgrade(nodes);
        let started = thread::spawn("nodes", move || run(&room, &woken, &beat));
        let (begun, result) = match started {
            Ok(thread) => ((Some(wake), Some(thread)), Ok(())),
            Err(error) => ((None, None), Err(error)),
        };
        self.inner.with(|inner| {
            inner.begun = begun.1.is_some();
            (inner.wake, inner.thread) = begun;
        });
        result
    }

    /// Has it look now.
    pub(super) fn wake(&self) {
        let wake = self.inner.with(|inner| inner.wake.clone());
        if let Some(wake) = wake {
            // Full: it is about to look.
            let _ = wake.try_send(());
        }
    }

    /// Ends it.
    pub(super) fn close(&self) -> Option<Thread> {
        self.inner.with(|inner| {
            inner.begun = true;
            inner.wake = None;
            inner.thread.take()
        })
    }
}

fn run(room: &Weak<Nodes>, woken: &Receiver<()>, beat: &Beat) {
    let mut rounds = Rounds::new(clock::now());
    loop {
        let now = clock::now();
        beat.tick_at(now);
        let Some(nodes) = room.upgrade() else { return };
        // A panic costs this look, and is told; what it was to do is done at the next.
        if catch_unwind(AssertUnwindSafe(|| rounds.look(&nodes, now))).is_err() {
            nodes.panicked();
        }
        let pause = match (nodes.drain().on(), nodes.is_empty()) {
            (true, _) => DRAIN_LOOK,
            (false, true) => IDLE_LOOK,
            (false, false) => LOOK,
        };
        drop(nodes);
        beat.waits(Doing::Queue, now + pause);
        if woken.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// What it remembers between two looks.
struct Rounds {
    presence: u64,
    presence_at: Instant,
    dropped: u64,
    status: Option<Status>,
    health_at: Instant,
}

impl Rounds {
    fn new(now: Instant) -> Self {
        Rounds {
            presence: 0,
            presence_at: now,
            dropped: 0,
            status: None,
            health_at: now + HEALTH_EVERY,
        }
    }

    fn look(&mut self, nodes: &Arc<Nodes>, now: Instant) {
        nodes.reap();
        nodes.close_due(now);
        nodes.tick(now);
        self.tell_presence(nodes, now);
        self.tell_health(nodes, now);
    }

    /// Tells a change, not each of them.
    fn tell_presence(&mut self, nodes: &Nodes, now: Instant) {
        let (version, dropped) = nodes.refresh_presence(now);
        nodes.counts().presence_dropped.add(dropped - self.dropped);
        self.dropped = dropped;
        if version == self.presence || now < self.presence_at {
            return;
        }
        self.presence = version;
        let list = nodes.presence_list();
        let payload: Arc<str> = format!(r#"{{"presence":{}}}"#, frame::text(&list)).into();
        let bytes = payload.len() as u64;
        let version = Some(nodes.state_version());
        let event = Event { name: "presence", payload, class: Class::Telemetry, version };
        let told = nodes.broadcast(&event, |peer| peer.may(Scope::Read)) as u64;
        let pause =
            Duration::from_secs_f64((bytes * told) as f64 / PRESENCE_BYTES_PER_SECOND as f64);
        self.presence_at = now + pause.clamp(PRESENCE_PAUSE, PRESENCE_PAUSE_MAX);
    }

    fn tell_health(&mut self, nodes: &Nodes, now: Instant) {
        if nodes.is_empty() {
            return;
        }
        let status = health::status(nodes.parts(), now);
        let changed = self.status.replace(status).is_some_and(|before| before != status);
        if !changed && now < self.health_at {
            return;
        }
        self.health_at = now + HEALTH_EVERY;
        if changed {
            nodes.health_changed();
        }
        let payload = frame::text(&health::full(nodes.parts(), now, false)).into();
        let version = Some(nodes.state_version());
        let event = Event { name: "health", payload, class: Class::Telemetry, version };
        nodes.broadcast(&event, |peer| peer.may(Scope::Read));
    }
}
