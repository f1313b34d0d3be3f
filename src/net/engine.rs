//! One engine: a listener, a parking thread and a pool of workers, for the data plane or the ops
//! plane.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, bounded};
use mio::{Poll, Waker};

use super::accept;
use super::address::Addresses;
use super::inbox::{Inbox, Message, WAKE};
use super::intake::Env;
use super::inward::Inward;
use super::line::Line;
use super::park::{Park, Purpose, stop_waiting};
use super::pressure::{Gauge, Throttle};
use super::pump::{Pump, PumpInbox};
use super::service::Service;
use super::settings::{DRAINS_MAX, Fixed, Settings};
use super::sizes::Sizes;
use super::workers::{Task, Workers};
use crate::base::clock;
use crate::base::heartbeat::Heartbeats;
use crate::base::metrics::{Counter, Limit, Registry, Unit};
use crate::base::permits::Permits;
use crate::base::thread::{self, Thread};

/// Sockets between the accept thread and the parking thread. They have a descriptor and no place
/// under `server.connections_max` yet, so they must fit into the reserve of descriptors: with more,
/// a crowd at the door used up the descriptors before idle connections could make room.
const ACCEPTED_MAX: usize = 8;

/// How long the threads of an engine that is dropped without [`Engine::stop`] may take to end.
const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the parking thread may be silent: it wakes every second and never blocks.
const PARK_SILENCE_MAX: Duration = Duration::from_secs(10);

/// How long the accept thread may be at work: it hands a connection on in microseconds, and rests
/// while nobody knocks.
const ACCEPT_SILENCE_MAX: Duration = Duration::from_secs(10);

/// What all threads of an engine share.
pub struct Shared {
    pub(super) name: &'static str,
    pub(super) settings: ArcSwap<Settings>,
    pub(super) service: Arc<dyn Service>,
    pub(super) inbox: Inbox,
    pub(super) workers: Workers,
    pub(super) exchanges: Arc<Permits>,
    pub(super) addresses: Arc<Addresses>,
    pub(super) connections: Arc<Limit>,
    pub(super) per_address: Arc<Limit>,
    pub(super) bodies: Arc<Limit>,
    pub(super) sizes: Sizes,
    /// Requests that the process makes of this engine itself.
    inward: OnceLock<Arc<Limit>>,
    /// Sockets between the accept thread and the parking thread.
    pub(super) arriving: Arc<Limit>,
    pub(super) answers: Arc<Limit>,
    pub(super) drains: Arc<Limit>,
    pub(super) queued: Arc<Limit>,
    pub(super) line: Line,
    pub(super) pressure: Gauge,
    pub(super) parked: Arc<Limit>,
    pub(super) accepted: Arc<Counter>,
    pub(super) accept_errors: Arc<Counter>,
    pub(super) evicted: Arc<Counter>,
    pub(super) stalled: Arc<Counter>,
    pub(super) bodies_cut: Arc<Counter>,
    pub(super) answers_cut: Arc<Counter>,
    pub(super) panics: Arc<Counter>,
    pumps: Vec<Arc<PumpInbox>>,
    queue: Receiver<Task>,
    /// Where each thread of the engine beats.
    pub(super) heartbeats: Arc<Heartbeats>,
    draining: AtomicBool,
    stopping: AtomicBool,
}

impl Shared {
    pub(super) fn draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Whether a connection may go on after its answer.
    pub(super) fn keeps_connections(&self) -> bool {
        !self.draining() && self.pressure.keeps(&self.connections)
    }

    /// The pump for the next stream or call: the first that has time, else the one with the most;
    /// none for an engine without pumps. Few pumps with much to do at each look at the kernel cost
    /// less than many with little.
    pub(super) fn pump(&self) -> Option<&Arc<PumpInbox>> {
        let free = self.pumps.iter().find(|pump| pump.has_time());
        free.or_else(|| self.pumps.iter().min_by_key(|pump| pump.busy()))
    }

    /// Whether another pump than this one has time.
    pub(super) fn another_has_time(&self, pump: &Arc<PumpInbox>) -> bool {
        self.pumps.iter().any(|other| !Arc::ptr_eq(other, pump) && other.has_time())
    }

    pub(super) fn has_pumps(&self) -> bool {
        !self.pumps.is_empty()
    }

    pub(super) fn queue_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How long a task may wait for a worker (`server.queue_timeout`).
    pub(super) fn queue_timeout(&self) -> Duration {
        self.settings.load().queue_timeout
    }

    /// The oldest task that waits for a worker.
    pub(super) fn take_queued(&self) -> Option<Task> {
        let task = self.queue.try_recv().ok();
        self.queued.set_now(self.queue.len() as u64);
        task
    }

    pub(super) fn env<'a>(&'a self, settings: &'a Settings, peer: SocketAddr) -> Env<'a> {
        let (service, bodies, sizes) = (&*self.service, &self.bodies, &self.sizes);
        Env { settings, service, bodies, sizes, peer }
    }
}

/// A running engine.
pub struct Engine {
    shared: Arc<Shared>,
    address: SocketAddr,
    accept: Option<(UnixStream, Thread)>,
    park: Option<Thread>,
    pumps: Vec<Thread>,
}

impl Engine {
    /// Binds the listener and starts the threads. Connections are taken from here on.
    ///
    /// # Errors
    /// When the address cannot be bound, or the operating system refuses a thread or descriptor.
    pub fn start(
        fixed: &Fixed,
        settings: Settings,
        service: Arc<dyn Service>,
        registry: &Registry,
        heartbeats: &Arc<Heartbeats>,
    ) -> io::Result<Engine> {
        let listener = accept::listen(fixed.listen)?;
        let address = listener.local_addr()?;
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let (queue, tasks) = bounded(fixed.queue_max);
        let (accepted, to_park) = bounded(ACCEPTED_MAX);
        let mut shared = shared(
            fixed,
            settings,
            service,
            registry,
            (Inbox::new(waker), tasks),
            Arc::clone(heartbeats),
        );
        let mut polls = Vec::new();
        for _ in 0..fixed.pumps {
            let (inbox, poll) = PumpInbox::new()?;
            shared.pumps.push(Arc::new(inbox));
            polls.push(poll);
        }
        let shared = Arc::new(shared);
        let mut pumps = Vec::new();
        for (number, poll) in polls.into_iter().enumerate() {
            let name = format!("flow-{}-{}", fixed.name, number + 1);
            let beat = heartbeats.register(&name, PARK_SILENCE_MAX);
            let pump = Pump::new(Arc::clone(&shared), Arc::clone(&shared.pumps[number]), poll);
            pumps.push(thread::spawn(&name, move || pump.run(&beat))?);
        }
        Workers::start(&shared)?;
        let park_name = format!("park-{}", fixed.name);
        let beat = heartbeats.register(&park_name, PARK_SILENCE_MAX);
        let park = Park::new(Arc::clone(&shared), poll, to_park, queue);
        let park = thread::spawn(&park_name, move || park.run(&beat))?;
        // From here on a failure drops the engine, which ends what was started.
        let mut engine = Engine { shared, address, accept: None, park: Some(park), pumps };
        let (stop, stopped) = UnixStream::pair()?;
        let for_accept = Arc::clone(&engine.shared);
        let accept_name = format!("accept-{}", fixed.name);
        let beat = heartbeats.register(&accept_name, ACCEPT_SILENCE_MAX);
        let accept = thread::spawn(&accept_name, move || {
            accept::run(&for_accept, &listener, &stopped, &accepted, &beat);
        })?;
        engine.accept = Some((stop, accept));
        Ok(engine)
    }

    /// Where it listens: the port that was bound when port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A hand on it for whoever watches over the process.
    pub fn throttle(&self) -> Throttle {
        Throttle::new(&self.shared)
    }

    /// A way in for the process itself, for at most `max` requests at a time. One for the engine.
    pub fn inward(&self, registry: &Registry, max: usize) -> Inward {
        let limit = self.shared.inward.get_or_init(|| {
            let name = "inward_max";
            registry.limit(name, self.shared.name, max as u64, "503 connections_full")
        });
        limit.set_max(max as u64);
        Inward::new(&self.shared, limit)
    }

    /// Takes over new live settings.
    pub fn reconfigure(&self, settings: Settings) {
        self.shared.connections.set_max(settings.connections_max as u64);
        self.shared.per_address.set_max(settings.connections_per_address_max as u64);
        self.shared.bodies.set_max(settings.bodies_total_max);
        self.shared.sizes.reconfigure(&settings);
        self.shared.answers.set_max(settings.answers_total_max);
        self.shared.exchanges.waiting().set_max(settings.waiting_max as u64);
        // First the threads: more permits wake waiters at once.
        self.shared.workers.set_exchanges_max(settings.exchanges_max);
        self.shared.exchanges.set_max(settings.exchanges_max as u64);
        self.shared.settings.store(Arc::new(settings));
    }

    /// Takes no new connections, closes idle ones, and each other one after its answer. Does not
    /// block for longer than the accept thread needs to end.
    pub fn begin_drain(&mut self) {
        self.shared.draining.store(true, SeqCst);
        if let Some((stop, accept)) = self.accept.take() {
            drop(stop);
            accept.join();
        }
        self.shared.inbox.wake();
    }

    /// Whether every connection is closed.
    pub fn drained(&self) -> bool {
        let inward = self.shared.inward.get().map_or(0, |limit| limit.now());
        self.shared.connections.now() == 0 && inward == 0
    }

    /// Ends all threads; those that are not done by `deadline` are left behind. Returns how many.
    pub fn stop(mut self, deadline: Instant) -> usize {
        self.halt(deadline)
    }

    fn halt(&mut self, deadline: Instant) -> usize {
        self.begin_drain();
        self.shared.stopping.store(true, SeqCst);
        self.shared.inbox.wake();
        for pump in &self.shared.pumps {
            pump.wake();
        }
        self.pumps.drain(..).for_each(Thread::join);
        if let Some(park) = self.park.take() {
            park.join();
        }
        let late = self.shared.workers.join(|| clock::now() >= deadline);
        for pump in &self.shared.pumps {
            pump.end_all();
        }
        // What workers handed over after the parking thread had ended.
        for message in self.shared.inbox.take() {
            if let Message::Park(conn, Purpose::Wait { job, .. } | Purpose::Resume { job, .. }) =
                message
            {
                stop_waiting(&conn, job);
            }
        }
        late
    }
}

/// An engine that is not stopped but dropped (the start failed further up) still ends its threads:
/// the parking thread waits for a word, and its handle for its end.
impl Drop for Engine {
    fn drop(&mut self) {
        self.halt(clock::now() + DROP_TIMEOUT);
    }
}

fn shared(
    fixed: &Fixed,
    settings: Settings,
    service: Arc<dyn Service>,
    registry: &Registry,
    (inbox, tasks): (Inbox, Receiver<Task>),
    heartbeats: Arc<Heartbeats>,
) -> Shared {
    let owner = fixed.name;
    let limit =
        |name, max: usize, consequence| registry.limit(name, owner, max as u64, consequence);
    let counter = |name, help| registry.counter(name, help, &[("engine", owner)]);
    let threads = limit(
        "threads",
        fixed.workers + settings.exchanges_max,
        "exchanges run with fewer workers ready",
    );
    let exchanges = Permits::new(
        limit("server.exchanges_max", settings.exchanges_max, "wait as data"),
        limit("server.waiting_max", settings.waiting_max, "503 waiting_full"),
    );
    Shared {
        name: owner,
        inward: OnceLock::new(),
        inbox,
        workers: Workers::new(fixed.workers, threads, tasks.clone()),
        exchanges,
        addresses: Addresses::new(),
        connections: limit(
            "server.connections_max",
            settings.connections_max,
            "close the longest idle, else 503 connections_full",
        ),
        per_address: limit(
            "server.connections_per_address_max",
            settings.connections_per_address_max,
            "503 connections_full",
        ),
        bodies: registry.limit_of(
            Unit::Bytes,
            "server.bodies_total_max",
            owner,
            settings.bodies_total_max,
            "503 bodies_full",
        ),
        drains: registry.limit(
            "drains",
            owner,
            DRAINS_MAX,
            "the rest of a refused body is read for 256 KiB or 1 s only",
        ),
        answers: registry.limit_of(
            Unit::Bytes,
            "server.answers_total_max",
            owner,
            settings.answers_total_max,
            "close the client that has taken nothing for longest, else the newcomer",
        ),
        sizes: Sizes::new(registry, owner, &settings),
        arriving: limit("accepted_max", ACCEPTED_MAX, "accept(2) waits"),
        queued: limit("server.queue_max", fixed.queue_max, "503 queue_full"),
        line: Line::new(
            registry.histogram(
                "tidegate_queue_wait_seconds",
                "Time that complete requests waited for a worker.",
                &[("engine", owner)],
            ),
            counter(
                "tidegate_queue_late_total",
                "Requests refused because they waited for a worker for too long.",
            ),
        ),
        pressure: Gauge::new(registry, owner),
        parked: limit("parked", settings.connections_max, "bounded by server.connections_max"),
        accepted: counter("tidegate_connections_accepted_total", "Connections accepted."),
        accept_errors: counter(
            "tidegate_accept_errors_total",
            "Errors of accept(2) that were waited out.",
        ),
        evicted: counter(
            "tidegate_connections_evicted_total",
            "Idle connections closed to make room for a new one.",
        ),
        stalled: counter(
            "tidegate_connections_stalled_total",
            "Connections closed because the client did not read for server.write_timeout, or did \
             not have its answer within server.request_timeout.",
        ),
        answers_cut: counter(
            "tidegate_answers_cut_total",
            "Answers cut because clients held server.answers_total_max of unsent bytes.",
        ),
        bodies_cut: counter(
            "tidegate_bodies_cut_total",
            "Bodies refused while they came, to make room: they came slower than others.",
        ),
        panics: counter("tidegate_panics_total", "Panics in handlers; each was answered with 500."),
        settings: ArcSwap::from_pointee(settings),
        service,
        pumps: Vec::new(),
        queue: tasks,
        heartbeats,
        draining: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
    }
}

#[cfg(test)]
mod tests;
