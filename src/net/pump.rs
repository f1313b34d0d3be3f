//! What goes on without a thread of its own: streams whose first content is out, and calls whose
//! whole answer is waited for (`pump/brisk.rs`). A few pump threads bring all of them on.
//!
//! A thread for each costs a context switch for each event, which on two cores is most of what they
//! cost; here many events come from one look at the kernel. Nothing here blocks: a client that does
//! not read stops only the reading from its own upstream.

pub mod brisk;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use brisk::{Brisk, Call};

use super::conn::ClientConn;
use super::engine::Shared;
use super::http1;
use super::park::Purpose;
use super::serve::Scratch;
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::heartbeat::Beat;
use crate::base::lock::{Locked, Rank};
use crate::base::permits::Permit;

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;

/// The longest sleep: the heartbeat's interval.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// After the end of an answer: how long its upstream may take to end the message, so that the
/// connection can be used again. The client has everything already.
const TAIL_MAX: Duration = Duration::from_millis(50);

/// Output buffers larger than this are given back once they are empty.
const OUT_BYTES_KEPT: usize = 16 * 1024;

/// From here on, in thousandths of its time, a pump is busy enough: others get what comes.
const BUSY_ENOUGH: u32 = 500;

/// From here on it gives clients to others that have time.
const BUSY_TOO_MUCH: u32 = 850;

/// Over how long that is measured.
const BUSY_WINDOW: Duration = Duration::from_millis(100);

const WAKE: Token = Token(0);

/// A pump's measure of its own work.
struct Work {
    begun: Instant,
    slept: Duration,
    /// Clients that it may still give to others in this window.
    to_give: usize,
}

/// A stream whose first content is out.
pub trait Flow: Send {
    /// The upstream's socket.
    fn upstream(&self) -> Option<BorrowedFd<'_>>;

    /// Reads what is there, without waiting, and appends what the client shall have to `out`.
    fn read(&mut self, now: Instant, out: &mut Vec<u8>) -> FlowStep;

    /// When something must happen although nothing came.
    fn deadline(&self) -> Instant;

    /// When the answer must have ended, also for a client that reads a little now and then.
    fn end_by(&self) -> Instant;

    /// That time has come.
    fn expired(&mut self, now: Instant, out: &mut Vec<u8>) -> FlowStep;

    /// The client is gone, or did not read for too long: nothing can be sent any more.
    fn lost(&mut self, error: Error);

    /// The answer ended: `bytes` of body were sent.
    fn ended(&mut self, bytes: u64);

    /// Reads the end of the upstream's message; true when there is nothing more to wait for.
    fn tail(&mut self) -> bool;
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowStep {
    /// Wait for the upstream.
    Wait,
    /// There may be more to read at once.
    Again,
    /// This was the last of it.
    End,
}

/// What is on its way to a pump.
pub enum Entering {
    /// A stream.
    Flow {
        /// The client.
        conn: Box<ClientConn>,
        /// The stream.
        flow: Box<dyn Flow>,
        /// The right to run, one of `server.exchanges_max`.
        slot: Option<Permit>,
        /// Whether the body is chunked; else it ends with the connection.
        chunked: bool,
        /// Body bytes that were sent already.
        bytes: u64,
    },
    /// A call whose whole answer is waited for.
    Call {
        /// The client.
        conn: Box<ClientConn>,
        /// The call.
        call: Box<dyn Call>,
        /// The right to run, one of `server.exchanges_max`.
        slot: Option<Permit>,
    },
}

/// What other threads hand to a pump. Bounded by `server.exchanges_max`: each holds a slot.
pub struct PumpInbox {
    entering: Locked<Vec<Entering>>,
    waker: Waker,
    /// How much of the last moments the pump was at work, in thousandths.
    busy: AtomicU32,
}

impl PumpInbox {
    /// An empty inbox, and the poll that it wakes.
    ///
    /// # Errors
    /// When there is no descriptor for it.
    pub fn new() -> std::io::Result<(PumpInbox, Poll)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let entering = Locked::new(Rank::Leaf, Vec::new());
        Ok((PumpInbox { entering, waker, busy: AtomicU32::new(0) }, poll))
    }

    /// How much of the last moments the pump was at work, in thousandths.
    pub fn busy(&self) -> u32 {
        self.busy.load(Relaxed)
    }

    /// Whether it can take more without being late.
    pub fn has_time(&self) -> bool {
        self.busy() < BUSY_ENOUGH
    }

    /// Hands a stream or a call over.
    pub fn enter(&self, entering: Entering) {
        let first = self.entering.with(|all| {
            all.push(entering);
            all.len() == 1
        });
        if first {
            self.wake();
        }
    }

    /// Ends what came after the pump had ended.
    pub fn end_all(&self) {
        for entering in self.entering.with(std::mem::take) {
            match entering {
                Entering::Flow { mut flow, bytes, .. } => {
                    flow.lost(stopping());
                    flow.ended(bytes);
                }
                Entering::Call { call, .. } => call.lost(stopping()),
            }
        }
    }

    /// Wakes the pump, so that it looks at the engine's flags.
    pub fn wake(&self) {
        // Failing to wake costs at most the longest sleep.
        let _ = self.waker.wake();
    }
}

/// What a place in a pump's table holds.
enum Entry {
    Flow(Flowing),
    Brisk(Brisk),
}

struct Flowing {
    /// Gone once the client has its answer.
    conn: Option<Box<ClientConn>>,
    flow: Box<dyn Flow>,
    _slot: Option<Permit>,
    chunked: bool,
    bytes: u64,
    /// What the client did not take yet.
    out: Vec<u8>,
    sent: usize,
    stalled: Option<Instant>,
    /// The upstream has something, which waits until the client takes more.
    readable: bool,
    /// Everything is in `out`.
    ended: bool,
    upstream: Option<RawFd>,
    timer: Instant,
}

/// A pump thread's own state.
pub struct Pump {
    shared: Arc<Shared>,
    inbox: Arc<PumpInbox>,
    poll: Poll,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    timers: BTreeSet<(Instant, usize)>,
    again: Vec<usize>,
    data: Vec<u8>,
    scratch: Scratch,
    work: Work,
}

impl Pump {
    /// The state of a pump that has not begun.
    pub fn new(shared: Arc<Shared>, inbox: Arc<PumpInbox>, poll: Poll) -> Self {
        Pump {
            shared,
            inbox,
            poll,
            entries: Vec::new(),
            free: Vec::new(),
            timers: BTreeSet::new(),
            again: Vec::new(),
            data: Vec::new(),
            scratch: Scratch::default(),
            work: Work { begun: clock::now(), slept: Duration::ZERO, to_give: 0 },
        }
    }

    /// The thread's life: until the engine stops.
    pub fn run(mut self, beat: &Beat) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !self.shared.stopping() {
            let now = clock::now();
            let sleep = if self.again.is_empty() {
                let first = self.timers.first().map(|(when, _)| *when);
                first.map_or(SLEEP_MAX, |when| when.saturating_duration_since(now).min(SLEEP_MAX))
            } else {
                Duration::ZERO
            };
            if self.poll.poll(&mut events, Some(sleep)).is_err() {
                events.clear();
            }
            let woke = clock::now();
            self.work.slept += woke.saturating_duration_since(now);
            self.measure(woke);
            let now = woke;
            beat.tick_at(now);
            for event in &events {
                let Token(token) = event.token();
                if event.token() != WAKE {
                    self.guarded((token - 1) / 2, |pump| pump.ready(event, now));
                }
            }
            let mut again = std::mem::take(&mut self.again);
            again.sort_unstable();
            again.dedup();
            for index in again {
                self.guarded(index, |pump| match pump.entries.get(index) {
                    Some(Some(Entry::Brisk(_))) => pump.go_on(index, now),
                    _ => pump.read(index, now),
                });
            }
            for entering in self.inbox.entering.with(std::mem::take) {
                let index = self.reserve();
                self.guarded(index, |pump| match entering {
                    Entering::Flow { conn, flow, slot, chunked, bytes } => {
                        pump.enter(index, conn, (flow, slot, chunked, bytes), now);
                    }
                    Entering::Call { conn, call, slot } => {
                        pump.enter_call(index, conn, call, slot, now);
                    }
                });
            }
            self.expire(now);
        }
        for index in 0..self.entries.len() {
            self.guarded(index, |pump| match pump.entries.get(index) {
                Some(Some(Entry::Brisk(_))) => pump.lose_brisk(index, stopping()),
                _ => pump.lose(index, stopping()),
            });
        }
    }

    /// Tells others how busy this pump is, once in a while.
    fn measure(&mut self, now: Instant) {
        let window = now.saturating_duration_since(self.work.begun);
        if window < BUSY_WINDOW {
            return;
        }
        let idle = self.work.slept.as_secs_f64() / window.as_secs_f64();
        let busy = ((1.0 - idle.min(1.0)) * 1000.0).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
        self.inbox.busy.store(busy as u32, Relaxed);
        let give = self.inbox.busy() >= BUSY_TOO_MUCH && self.shared.another_has_time(&self.inbox);
        // A part of them, and then another look, so that they do not go back and forth together.
        let held = self.entries.len() - self.free.len();
        self.work =
            Work { begun: now, slept: Duration::ZERO, to_give: if give { held / 4 } else { 0 } };
    }

    /// Runs one step. A panic that is not dealt with closer to its place costs its own stream.
    fn guarded(&mut self, index: usize, step: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| step(self))).is_err() {
            self.shared.panics.inc();
            self.remove(index);
        }
    }

    fn reserve(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        })
    }

    /// Watches a client. False: there is no kernel memory for that.
    fn watch_client(&self, index: usize, conn: &ClientConn) -> bool {
        let fd = conn.as_fd().as_raw_fd();
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&fd), Token(2 * index + 2), both).is_ok()
    }

    /// Watches an upstream. False: there is no kernel memory for that.
    fn watch_upstream(&self, index: usize, fd: RawFd) -> bool {
        let token = Token(2 * index + 1);
        self.poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE).is_ok()
    }

    fn unwatch(&self, fd: RawFd) {
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
    }

    fn enter(
        &mut self,
        index: usize,
        conn: Box<ClientConn>,
        (flow, slot, chunked, bytes): (Box<dyn Flow>, Option<Permit>, bool, u64),
        now: Instant,
    ) {
        let upstream = flow.upstream().map(|fd| fd.as_raw_fd());
        let watched = self.watch_client(index, &conn)
            && upstream.is_none_or(|fd| self.watch_upstream(index, fd));
        let timer = flow.deadline().min(now + SLEEP_MAX);
        self.timers.insert((timer, index));
        self.entries[index] = Some(Entry::Flow(Flowing {
            conn: Some(conn),
            flow,
            _slot: slot,
            chunked,
            bytes,
            out: Vec::new(),
            sent: 0,
            stalled: None,
            readable: false,
            ended: false,
            upstream,
            timer,
        }));
        if watched {
            // What came before the registration is told by it; what the worker had read is not.
            self.read(index, now);
        } else {
            let context = "no kernel memory to watch this stream";
            self.lose(index, Error::new(Kind::Internal, context));
        }
    }

    fn ready(&mut self, event: &Event, now: Instant) {
        let Token(token) = event.token();
        let index = (token - 1) / 2;
        let entry = match self.entries.get_mut(index) {
            Some(Some(Entry::Flow(entry))) => entry,
            Some(Some(Entry::Brisk(_))) => {
                self.brisk_ready(index, token % 2 == 1, event, now);
                return;
            }
            _ => return,
        };
        if token % 2 == 1 {
            self.read(index, now);
            self.read_to_the_end(index, event);
        } else if entry.conn.is_some() {
            if event.is_read_closed() || event.is_error() {
                let context = "the client closed the connection";
                self.lose(index, Error::new(Kind::ClientGone, context));
            } else if event.is_writable() && !entry.out.is_empty() {
                self.flush(index, now);
            }
        }
    }

    /// A close that comes together with the last bytes has no event of its own: whoever read those
    /// looks again.
    fn read_to_the_end(&mut self, index: usize, event: &Event) {
        if event.is_read_closed() || event.is_error() {
            self.again.push(index);
        }
    }

    /// Brings what the upstream has to the client.
    fn read(&mut self, index: usize, now: Instant) {
        let Some(Some(Entry::Flow(entry))) = self.entries.get_mut(index) else { return };
        if entry.conn.is_none() {
            if entry.flow.tail() {
                self.remove(index);
            }
            return;
        }
        if !entry.out.is_empty() || entry.ended {
            entry.readable = true;
            return;
        }
        entry.readable = false;
        self.data.clear();
        let data = &mut self.data;
        match catch_unwind(AssertUnwindSafe(|| entry.flow.read(now, data))) {
            Ok(step) => {
                self.unwatch_spent(index);
                self.step(index, step, now);
            }
            Err(_) => self.panicked(index),
        }
    }

    /// An upstream's connection whose answer is at its end is back in its pool: from now on another
    /// stream may enter with it, so its registration must be gone.
    fn unwatch_spent(&mut self, index: usize) {
        let Some(Some(Entry::Flow(entry))) = self.entries.get_mut(index) else { return };
        if entry.flow.upstream().is_none()
            && let Some(fd) = entry.upstream.take()
        {
            self.unwatch(fd);
        }
    }

    /// A panic costs its own stream, and is counted; the pump and all others live.
    fn panicked(&mut self, index: usize) {
        self.shared.panics.inc();
        self.lose(index, Error::new(Kind::Internal, "a bug in the gateway; its log has the place"));
    }

    /// Frames what `self.data` holds, and sends it.
    fn step(&mut self, index: usize, step: FlowStep, now: Instant) {
        let Some(Some(Entry::Flow(entry))) = self.entries.get_mut(index) else { return };
        if !self.data.is_empty() {
            entry.bytes += self.data.len() as u64;
            if entry.chunked {
                http1::write_chunk(&mut entry.out, &self.data);
            } else {
                entry.out.extend_from_slice(&self.data);
            }
        }
        match step {
            FlowStep::End => {
                entry.ended = true;
                if entry.chunked {
                    entry.out.extend_from_slice(http1::LAST_CHUNK);
                }
            }
            FlowStep::Again => self.again.push(index),
            FlowStep::Wait => {}
        }
        self.flush(index, now);
    }

    fn flush(&mut self, index: usize, now: Instant) {
        let Some(Some(Entry::Flow(entry))) = self.entries.get_mut(index) else { return };
        let Some(conn) = &entry.conn else { return };
        while entry.sent < entry.out.len() {
            match conn.send_now(&entry.out[entry.sent..]) {
                Ok(0) => {
                    entry.stalled.get_or_insert(now);
                    return;
                }
                Ok(n) => {
                    entry.sent += n;
                    entry.stalled = None;
                }
                Err(error) => {
                    let context = "the client closed the connection";
                    self.lose(index, Error::new(Kind::ClientGone, context).because(error));
                    return;
                }
            }
        }
        entry.sent = 0;
        entry.out.clear();
        if entry.out.capacity() > OUT_BYTES_KEPT {
            entry.out = Vec::new();
        }
        if entry.ended {
            self.end(index, now);
        } else if entry.readable {
            self.again.push(index);
        }
    }

    /// The client has everything. The entry stays for the end of the upstream's message.
    fn end(&mut self, index: usize, now: Instant) {
        let Some(Some(Entry::Flow(entry))) = self.entries.get_mut(index) else { return };
        let Some(conn) = entry.conn.take() else { return };
        entry.flow.ended(entry.bytes);
        let fd = conn.as_fd().as_raw_fd();
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        if conn.current.as_ref().is_some_and(|current| current.keep_alive) {
            let mut conn = conn;
            conn.current = None;
            self.shared.inbox.park(conn, Purpose::Next);
        } else {
            conn.shut_write();
            self.shared.inbox.park(conn, Purpose::Linger);
        }
        if entry.flow.tail() {
            self.remove(index);
        } else {
            self.timers.remove(&(entry.timer, index));
            entry.timer = now + TAIL_MAX;
            self.timers.insert((entry.timer, index));
        }
    }

    fn lose(&mut self, index: usize, error: Error) {
        if let Some(Some(Entry::Flow(entry))) = self.entries.get_mut(index)
            && entry.conn.is_some()
        {
            entry.flow.lost(error);
            entry.flow.ended(entry.bytes);
        }
        self.remove(index);
    }

    fn expire(&mut self, now: Instant) {
        let write_timeout = self.shared.settings.load().write_timeout;
        while let Some(&(when, index)) = self.timers.first() {
            if when > now {
                break;
            }
            self.timers.pop_first();
            self.guarded(index, |pump| match pump.entries.get(index) {
                Some(Some(Entry::Brisk(_))) => pump.brisk_expired(index, now),
                _ => pump.expired(index, now, write_timeout),
            });
        }
    }

    fn expired(&mut self, index: usize, now: Instant, write_timeout: Duration) {
        let Some(Some(Entry::Flow(entry))) = self.entries.get_mut(index) else { return };
        if entry.conn.is_none() {
            self.remove(index);
            return;
        }
        if entry.stalled.is_some() {
            // The kernel only tells of a good part of its buffer, which a slow client may not have
            // taken yet although it takes some all the time.
            self.flush(index, now);
        }
        let Some(Some(Entry::Flow(entry))) = self.entries.get_mut(index) else { return };
        if entry.conn.is_none() {
            return;
        }
        let stall = entry.stalled.map(|since| since + write_timeout);
        if stall.is_some_and(|stall| stall <= now) {
            let context = "the client does not read; nothing moved for server.write_timeout";
            self.lose(index, Error::new(Kind::ClientStalled, context));
            return;
        }
        if stall.is_some() && entry.flow.end_by() <= now {
            let context = "the client reads too slowly; the request's time is over";
            self.lose(index, Error::new(Kind::ClientStalled, context));
            return;
        }
        // While the client takes nothing, nothing is read, and so nothing is late.
        let waits = entry.stalled.is_none() && !entry.ended;
        let mut step = None;
        if waits && entry.flow.deadline() <= now {
            self.data.clear();
            let data = &mut self.data;
            match catch_unwind(AssertUnwindSafe(|| entry.flow.expired(now, data))) {
                Ok(expired) => step = Some(expired),
                Err(_) => {
                    self.panicked(index);
                    return;
                }
            }
        }
        // Deadlines move with every event; the timer follows only when it fires, and looks
        // every second at least, since a stall begins without one.
        let latest = now + SLEEP_MAX;
        let next = if waits { entry.flow.deadline().min(latest) } else { latest };
        let next = next.min(stall.unwrap_or(latest));
        entry.timer = next.max(now + Duration::from_millis(1));
        self.timers.insert((entry.timer, index));
        if let Some(step) = step {
            self.step(index, step, now);
        }
    }

    fn remove(&mut self, index: usize) {
        drop(self.take(index));
    }

    /// Takes an entry out of the table, with nothing of it watched any more.
    fn take(&mut self, index: usize) -> Option<Entry> {
        let entry = self.entries.get_mut(index)?.take()?;
        let (timer, conn, upstream) = match &entry {
            Entry::Flow(flow) => (flow.timer, flow.conn.as_deref(), flow.upstream),
            Entry::Brisk(brisk) => (brisk.timer, Some(&*brisk.conn), brisk.upstream),
        };
        self.timers.remove(&(timer, index));
        if let Some(conn) = conn {
            self.unwatch(conn.as_fd().as_raw_fd());
        }
        if let Some(fd) = upstream {
            self.unwatch(fd);
        }
        self.free.push(index);
        Some(entry)
    }
}

fn stopping() -> Error {
    Error::new(Kind::Draining, "the gateway stops")
}
