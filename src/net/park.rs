//! The parking thread: it holds the connections that nobody works on.
//!
//! Idle ones, those whose request is not complete, requests that wait for a permit, answers that a
//! slow client has not taken yet, and refused connections that linger. All of them are data: a slow
//! client costs a buffer, never a thread.

mod answers;
mod waiting;

use std::collections::{BTreeSet, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::heartbeat::Beat;
use crate::base::id::RequestId;
use crate::base::metrics::Lease;
use crate::base::permits::{Permit, Ticket};

use super::address::AddressLease;
use super::conn::{ClientConn, Current, Fill};
use super::engine::Shared;
use super::http::Request;
use super::inbox::{Message, WAKE};
use super::intake::Advance;
use super::service::{GiveUp, Job, Wait};
use super::settings::PARK_READ_BYTES_MAX;
use super::unsent::Unsent;
use super::websocket::Taker;
use super::workers::{Healing, Task, Work, Workers};
use super::{http1, respond};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;

/// Idle connections that are looked at to make room for one newcomer. When each of them has a request
/// under way, the newcomer hears 503.
const EVICT_LOOKS_MAX: usize = 16;

/// Accepted sockets taken between two looks at the rest.
const ACCEPTED_AT_ONCE_MAX: usize = 64;

/// How long a client must have taken nothing of its answer before that makes room for another one.
const ANSWER_REST_MIN: Duration = Duration::from_secs(1);

/// How long the slowest body is not looked for again after none was found.
const BODIES_LOOK_PAUSE: Duration = Duration::from_millis(100);

/// The longest sleep: the heartbeat's interval.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Why a connection is handed to the parking thread.
pub enum Purpose {
    /// For its next request, or the rest of one.
    Next,
    /// To take the rest of an answer; then close it or go on.
    Flush {
        /// What was not sent yet.
        out: Vec<u8>,
        /// Close it afterwards.
        close: bool,
    },
    /// To take the rest of its 101, and to be handed over then.
    Upgrade {
        /// What was not sent yet.
        out: Vec<u8>,
        /// Who takes it.
        taker: Taker,
    },
    /// To be closed once the client has the answer; our side is shut already.
    Linger,
    /// Its request waits.
    Wait {
        /// The request.
        job: Box<dyn Job>,
        /// For what, and until when.
        wait: Wait,
    },
    /// Its complete request needs a worker.
    Start(Box<Request>),
    /// Its request goes on, and needs a worker for that.
    Resume {
        /// The request.
        job: Box<dyn Job>,
        /// The right to run that it holds.
        slot: Option<Permit>,
    },
}

/// A socket just accepted.
pub struct Accepted {
    /// The socket.
    pub stream: TcpStream,
    /// Who is at the other end.
    pub peer: SocketAddr,
    /// Its place among the connections of its address, where those are capped.
    pub address: Option<AddressLease>,
}

enum State {
    Next,
    Flush(Unsent),
    Linger(Linger),
    Wait { job: Box<dyn Job>, _ticket: Ticket },
}

/// What may still be read of a client that has its answer, so that the answer arrives.
struct Linger {
    /// Bytes that may still be thrown away.
    left: u64,
    until: Instant,
    _drain: Option<Lease>,
}

struct Entry {
    conn: Box<ClientConn>,
    state: State,
    generation: u64,
    registered: Option<Interest>,
    timer: Option<Instant>,
    idle_since: Option<Instant>,
}

/// The parking thread's own state.
pub struct Park {
    shared: Arc<Shared>,
    poll: Poll,
    accepted: Receiver<Accepted>,
    queue: Sender<Task>,
    /// Since when each task of the queue waits, the oldest first; bounded by the queue. Workers take
    /// from the queue and leave this as it is, so that only its last entries count.
    waiting: VecDeque<Instant>,
    healing: Healing,
    /// When no body was found that could make room.
    bodies_looked: Instant,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    generations: u64,
    timers: BTreeSet<(Instant, usize)>,
    idle: BTreeSet<(Instant, usize)>,
    /// Connections that have more to read although nothing will wake us for it.
    again: Vec<usize>,
}

impl Park {
    /// The state of a parking thread that has not begun.
    pub fn new(
        shared: Arc<Shared>,
        poll: Poll,
        accepted: Receiver<Accepted>,
        queue: Sender<Task>,
    ) -> Self {
        Park {
            shared,
            poll,
            accepted,
            queue,
            waiting: VecDeque::new(),
            healing: Healing::default(),
            bodies_looked: clock::now(),
            entries: Vec::new(),
            free: Vec::new(),
            generations: 0,
            timers: BTreeSet::new(),
            idle: BTreeSet::new(),
            again: Vec::new(),
        }
    }

    /// The thread's life: until the engine stops.
    pub fn run(mut self, beat: &Beat) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !self.shared.stopping() {
            let now = clock::now();
            let sleep = if self.again.is_empty() && self.accepted.is_empty() {
                let first = self.timers.first().map(|(when, _)| *when);
                let healing = Workers::heal(&self.shared, &mut self.healing, now);
                let queue = self.queue_deadline();
                let first = [first, healing, queue].into_iter().flatten().min();
                first.map_or(SLEEP_MAX, |when| when.saturating_duration_since(now).min(SLEEP_MAX))
            } else {
                Duration::ZERO
            };
            // An interrupted or failed poll only means that nothing is known to be ready.
            if self.poll.poll(&mut events, Some(sleep)).is_err() {
                events.clear();
            }
            let now = clock::now();
            beat.tick_at(now);
            for event in &events {
                if event.token() != WAKE {
                    let index = event.token().0 - 1;
                    self.guarded(Some(index), |park| park.ready(index, event, now));
                }
            }
            let mut again = std::mem::take(&mut self.again);
            // Once each: a connection may be here by an event of this round as well.
            again.sort_unstable();
            again.dedup();
            for index in again {
                self.guarded(Some(index), |park| {
                    park.read_on(index, now);
                    park.discard(index);
                });
            }
            for message in self.shared.inbox.take() {
                self.guarded(None, |park| match message {
                    Message::Park(conn, purpose) => park.park(conn, purpose, now),
                    Message::Granted(grant) => park.granted(grant, now),
                });
            }
            for _ in 0..ACCEPTED_AT_ONCE_MAX {
                let Ok(accepted) = self.accepted.try_recv() else { break };
                self.guarded(None, |park| park.accept(accepted, now));
            }
            if self.shared.draining() {
                self.close_idle(now, Duration::ZERO);
            } else if self.shared.pressure.idle_now.swap(false, Relaxed) {
                let closed = self.close_idle(now, Duration::ZERO);
                (0..closed).for_each(|_| self.shared.pressure.closed_idle());
            } else if let Some(idle_max) = self.shared.pressure.idle_max() {
                let closed = self.close_idle(now, idle_max);
                (0..closed).for_each(|_| self.shared.pressure.closed_idle());
            }
            self.expire(now);
            self.guarded(None, |park| park.expire_queue(now));
            self.shared.arriving.set_now(self.accepted.len() as u64);
            self.shared.parked.set_now((self.entries.len() - self.free.len()) as u64);
        }
        self.give_up_all();
    }

    /// Runs one step. A panic in what the service is asked on this thread (to admit, to refuse, to
    /// give up) costs one connection: everybody depends on this thread.
    fn guarded(&mut self, index: Option<usize>, step: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| step(self))).is_err() {
            self.shared.panics.inc();
            if let Some(index) = index {
                self.remove(index);
            }
        }
    }

    // === New connections ===

    fn accept(&mut self, accepted: Accepted, now: Instant) {
        let Accepted { stream, peer, address } = accepted;
        let mut place = self.shared.connections.try_take(1);
        if place.is_none() {
            self.evict(now);
            place = self.shared.connections.try_take(1);
        }
        let Some(place) = place else {
            let context = "all connections are in use (server.connections_max); try again shortly";
            turn_away(&self.shared, &stream, peer, Kind::ConnectionsFull, context);
            return;
        };
        if let Ok(conn) = ClientConn::new(stream, peer, place, address) {
            self.park(Box::new(conn), Purpose::Next, now);
        }
    }

    /// Makes room: closes the connection that has been idle for longest, unless its next request has
    /// just come and was not looked at yet; then the one behind it.
    fn evict(&mut self, now: Instant) {
        for _ in 0..EVICT_LOOKS_MAX {
            let Some(&(_, index)) = self.idle.first() else { return };
            self.read_on(index, now);
            if self.idle.first().is_some_and(|&(_, first)| first == index) {
                self.shared.evicted.inc();
                self.remove(index);
            }
            if self.shared.connections.now() < self.shared.connections.max() {
                return;
            }
        }
    }

    /// Closes what has waited for a next request for `idle_max`, unless that has just come; returns
    /// how many. Refused connections linger on: closed now, they would lose their answer.
    fn close_idle(&mut self, now: Instant, idle_max: Duration) -> usize {
        let old = |since: Instant| now.saturating_duration_since(since) >= idle_max;
        let idle = self.idle.iter().take_while(|(since, _)| old(*since));
        let idle: Vec<usize> = idle.map(|(_, index)| *index).collect();
        let mut closed = 0;
        for index in idle {
            self.guarded(Some(index), |park| {
                park.read_on(index, now);
                let entry = park.entries.get(index).and_then(Option::as_ref);
                let idles = |entry: &Entry| {
                    matches!(entry.state, State::Next) && entry.idle_since.is_some()
                };
                if entry.is_some_and(idles) {
                    park.remove(index);
                    closed += 1;
                }
            });
        }
        closed
    }

    // === Handed over by workers ===

    fn park(&mut self, mut conn: Box<ClientConn>, purpose: Purpose, now: Instant) {
        match purpose {
            Purpose::Next => match conn.refusal.take() {
                Some(refusal) => self.refuse(conn, *refusal, now),
                None => {
                    let index = self.insert(conn, State::Next);
                    self.read_on(index, now);
                }
            },
            Purpose::Flush { out, close } => self.flush(conn, out, close, now),
            Purpose::Upgrade { out, taker } => self.upgrade(conn, out, taker, now),
            Purpose::Linger => self.linger(conn, now),
            Purpose::Wait { job, wait } => self.wait(conn, job, wait, now),
            Purpose::Start(request) => {
                conn.current = Some(Current::of_request(&request));
                self.dispatch(conn, Work::Start(request), now);
            }
            Purpose::Resume { job, slot } => self.dispatch(conn, Work::Resume(job, slot), now),
        }
    }

    // === Events ===

    fn ready(&mut self, index: usize, event: &Event, now: Instant) {
        let Some(Some(entry)) = self.entries.get_mut(index) else { return };
        match &mut entry.state {
            State::Next => self.read_on(index, now),
            State::Linger(_) => self.discard(index),
            State::Flush(_) if event.is_error() || event.is_write_closed() => {
                self.remove(index);
            }
            State::Flush(_) => self.send_on(index, now),
            State::Wait { .. } if event.is_read_closed() || event.is_error() => {
                self.client_left(index);
            }
            State::Wait { .. } => {}
        }
    }

    /// Refuses the body that comes slowest, to make room for another one. False when none comes so
    /// slowly that it may be refused. As long as a crowd finds nothing, it does not look each time.
    fn give_up_a_body(&mut self, but: usize, now: Instant) -> bool {
        if now < self.bodies_looked + BODIES_LOOK_PAUSE {
            return false;
        }
        let mut slowest: Option<(f64, usize)> = None;
        for (index, entry) in self.entries.iter().enumerate() {
            let Some(entry) = entry.as_ref().filter(|_| index != but) else { continue };
            let rate = match entry.state {
                State::Next => entry.conn.intake.slow_rate(now),
                _ => None,
            };
            slowest = match (rate, slowest) {
                (Some(rate), Some((least, _))) if rate >= least => slowest,
                (Some(rate), _) => Some((rate, index)),
                (None, _) => slowest,
            };
        }
        let Some((_, index)) = slowest else {
            self.bodies_looked = now;
            return false;
        };
        let Some(mut entry) = self.remove(index) else { return false };
        self.shared.bodies_cut.inc();
        let settings = self.shared.settings.load();
        let refusal = entry.conn.intake.give_way(&self.shared.env(&settings, entry.conn.peer()));
        drop(settings);
        self.refuse(entry.conn, *refusal, now);
        true
    }

    /// Whether this body may go on; else it is refused.
    fn make_room_for_a_body(&mut self, index: usize, now: Instant) -> bool {
        if self.give_up_a_body(index, now) {
            return true;
        }
        if let Some(mut entry) = self.remove(index) {
            let settings = self.shared.settings.load();
            let refusal = entry.conn.intake.no_room(&self.shared.env(&settings, entry.conn.peer()));
            drop(settings);
            self.refuse(entry.conn, *refusal, now);
        }
        false
    }

    /// Reads what is there and goes on with the request.
    fn read_on(&mut self, index: usize, now: Instant) {
        let mut budget = PARK_READ_BYTES_MAX;
        loop {
            let Some(Some(entry)) = self.entries.get_mut(index) else { return };
            if !matches!(entry.state, State::Next) {
                return;
            }
            let settings = self.shared.settings.load();
            let env = self.shared.env(&settings, entry.conn.peer());
            let conn = &mut entry.conn;
            match conn.intake.advance(&mut conn.input, &env, now) {
                Advance::Ready(request) => {
                    if let Some(mut entry) = self.remove(index) {
                        entry.conn.current = Some(Current::of_request(&request));
                        self.dispatch(entry.conn, Work::Start(request), now);
                    }
                    return;
                }
                Advance::Refuse(refusal) => {
                    if let Some(entry) = self.remove(index) {
                        self.refuse(entry.conn, *refusal, now);
                    }
                    return;
                }
                Advance::Continue => {
                    // So few bytes fit into any socket buffer that is not full of an answer.
                    let _ = conn.send_now(http1::CONTINUE);
                    continue;
                }
                Advance::NoRoom => {
                    if self.make_room_for_a_body(index, now) {
                        continue;
                    }
                    return;
                }
                Advance::More => {}
            }
            match conn.fill(false) {
                Ok(Fill::Bytes(n)) => {
                    budget = budget.saturating_sub(n);
                    if budget == 0 {
                        self.again.push(index);
                        self.rest(index, now);
                        return;
                    }
                }
                Ok(Fill::Nothing) => {
                    self.rest(index, now);
                    return;
                }
                Ok(Fill::Closed) if !conn.intake.idle() => {
                    let refusal = conn.intake.cut(&env);
                    if let Some(entry) = self.remove(index) {
                        self.refuse(entry.conn, *refusal, now);
                    }
                    return;
                }
                Ok(Fill::Closed) | Err(_) => {
                    self.remove(index);
                    return;
                }
            }
        }
    }

    /// Waits for more of a request, or for its beginning.
    fn rest(&mut self, index: usize, now: Instant) {
        self.watch(index, Interest::READABLE);
        let settings = self.shared.settings.load();
        let Some(Some(entry)) = self.entries.get_mut(index) else { return };
        match entry.conn.intake.deadline(&settings) {
            Some(deadline) => {
                self.set_idle(index, None);
                self.set_timer(index, Some(deadline));
            }
            None => {
                entry.conn.input.release();
                if entry.idle_since.is_none() {
                    self.set_idle(index, Some(now));
                    self.set_timer(index, Some(now + settings.keepalive_timeout));
                }
            }
        }
    }

    // === Deadlines ===

    fn expire(&mut self, now: Instant) {
        while let Some(&(when, index)) = self.timers.first() {
            if when > now {
                break;
            }
            self.guarded(Some(index), |park| park.expired(index, now));
            // Invariant: whoever has expired is gone, or has another timer.
            self.timers.remove(&(when, index));
        }
    }

    fn expired(&mut self, index: usize, now: Instant) {
        let Some(Some(entry)) = self.entries.get_mut(index) else { return };
        match &mut entry.state {
            State::Next if entry.conn.intake.idle() => {
                self.remove(index);
            }
            State::Next => {
                let settings = self.shared.settings.load();
                let env = self.shared.env(&settings, entry.conn.peer());
                let refusal = entry.conn.intake.timed_out(&env);
                if let Some(entry) = self.remove(index) {
                    self.refuse(entry.conn, *refusal, now);
                }
            }
            // The kernel only tells of a good part of its buffer, which a slow client may not have
            // taken yet although it takes some all the time.
            State::Flush(_) => self.send_on(index, now),
            State::Linger(_) => {
                self.remove(index);
            }
            State::Wait { .. } => {
                if let Some(entry) = self.remove(index)
                    && let State::Wait { job, .. } = entry.state
                {
                    let context = "no permit came free within the waiting timeout; \
                                   try again shortly";
                    let error = Error::new(Kind::WaitingTimeout, context);
                    self.give_up(entry.conn, job, error, now);
                }
            }
        }
    }

    fn give_up_all(&mut self) {
        for index in 0..self.entries.len() {
            if let Some(entry) = self.remove(index)
                && let State::Wait { job, .. } = entry.state
            {
                stop_waiting(&entry.conn, job);
            }
        }
    }

    // === The table ===

    fn reserve(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        })
    }

    fn insert(&mut self, conn: Box<ClientConn>, state: State) -> usize {
        let index = self.reserve();
        self.generations += 1;
        self.put(index, self.generations, conn, state);
        index
    }

    fn put(&mut self, index: usize, generation: u64, conn: Box<ClientConn>, state: State) {
        self.entries[index] = Some(Entry {
            conn,
            state,
            generation,
            registered: None,
            timer: None,
            idle_since: None,
        });
    }

    fn remove(&mut self, index: usize) -> Option<Entry> {
        self.set_timer(index, None);
        self.set_idle(index, None);
        let entry = self.entries.get_mut(index)?.take()?;
        if entry.registered.is_some() {
            let fd = entry.conn.as_fd().as_raw_fd();
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        }
        self.free.push(index);
        Some(entry)
    }

    fn watch(&mut self, index: usize, interest: Interest) {
        let Some(Some(entry)) = self.entries.get_mut(index) else { return };
        if entry.registered == Some(interest) {
            return;
        }
        let fd = entry.conn.as_fd().as_raw_fd();
        let registry = self.poll.registry();
        let token = Token(index + 1);
        let done = match entry.registered {
            None => registry.register(&mut SourceFd(&fd), token, interest),
            Some(_) => registry.reregister(&mut SourceFd(&fd), token, interest),
        };
        if done.is_ok() {
            entry.registered = Some(interest);
        }
        // Without a registration (no kernel memory) the entry's timer closes it.
    }

    fn set_timer(&mut self, index: usize, when: Option<Instant>) {
        let Some(Some(entry)) = self.entries.get_mut(index) else { return };
        if entry.timer == when {
            return;
        }
        if let Some(before) = entry.timer {
            self.timers.remove(&(before, index));
        }
        entry.timer = when;
        if let Some(when) = when {
            self.timers.insert((when, index));
        }
    }

    fn set_idle(&mut self, index: usize, since: Option<Instant>) {
        let Some(Some(entry)) = self.entries.get_mut(index) else { return };
        if let Some(before) = entry.idle_since {
            self.idle.remove(&(before, index));
        }
        entry.idle_since = since;
        if let Some(since) = since {
            self.idle.insert((since, index));
        }
    }
}

/// Ends a request that waits, because the engine stops.
pub fn stop_waiting(conn: &ClientConn, job: Box<dyn Job>) {
    let error = Error::new(Kind::Draining, "the gateway stops; try again shortly");
    if let GiveUp::Respond(response) = job.give_up(error)
        && let Some(current) = &conn.current
    {
        let mut out = Vec::new();
        respond::whole(&mut out, &response, current, false, None);
        let _ = conn.send_now(&out);
        conn.shut_write();
    }
}

/// Answers a connection that gets no place, as far as its socket takes it at once, and closes it.
pub fn turn_away(
    shared: &Shared,
    stream: &TcpStream,
    peer: SocketAddr,
    kind: Kind,
    context: &'static str,
) {
    let id = RequestId::generate();
    let response = shared.service.refuse(&Error::new(kind, context), None, &peer, &id);
    let mut out = Vec::new();
    respond::whole(&mut out, &response, &Current::lost(id), false, shared.pressure.notice());
    let dont_wait = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
    let _ = rustix::net::send(stream, &out, dont_wait);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    // What the client sent already is read, so that closing does not reset the answer away.
    let mut discarded = [0_u8; 4096];
    let _ = rustix::net::recv(stream, &mut discarded[..], rustix::net::RecvFlags::DONTWAIT);
}
