//! Calls whose whole answer is waited for without a thread, and the connections of their clients,
//! which stay here for a moment: the next request of a busy client is begun on the pump itself. So
//! a request of many in a row costs no context switch of its own, which was most of its price.
//!
//! Whatever might block or take long (a connection that must be made, a stream's first content, a
//! large body, a list) is handed to a worker.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use mio::event::Event;

use super::{Entry, Pump, SLEEP_MAX};
use crate::base::error::{Error, Kind};
use crate::base::permits::Permit;
use crate::net::conn::{ClientConn, Fill};
use crate::net::http::{Request, Response};
use crate::net::http1;
use crate::net::intake::Advance;
use crate::net::park::Purpose;
use crate::net::respond;
use crate::net::serve;
use crate::net::service::{Job, Step};
use crate::net::settings::STAY;
use crate::net::workers::Work;

/// Output buffers larger than this are given back after use.
const OUT_BYTES_KEPT: usize = 64 * 1024;

/// A call that was sent and waits for its whole answer.
pub trait Call: Send {
    /// The upstream's socket; none once it is free for others.
    fn upstream(&self) -> Option<BorrowedFd<'_>>;

    /// Whether a part of the answer was read already, while the request was sent: no event tells of it.
    fn begun(&self) -> bool;

    /// Reads what is there, without waiting.
    fn read(&mut self, now: Instant) -> CallStep;

    /// When it is too late for the answer.
    fn deadline(&self) -> Instant;

    /// That time has come.
    fn expired(&mut self, now: Instant) -> CallStep;

    /// What came of it, after [`CallStep::Done`].
    fn finish(self: Box<Self>) -> Done;

    /// The client is gone, or the gateway stops: nothing can be sent any more.
    fn lost(self: Box<Self>, error: Error);
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStep {
    /// Wait for the upstream.
    Wait,
    /// There may be more to read at once.
    Again,
    /// It is over: [`Call::finish`].
    Done,
}

/// What came of a call.
pub enum Done {
    /// The answer.
    Answer(Response),
    /// The request goes on, on a worker: the next link of its chain, or much to translate.
    Back(Box<dyn Job>),
}

/// A client that is served here.
pub(super) struct Brisk {
    pub(super) conn: Box<ClientConn>,
    /// Its request's call; none while it stays for its next request.
    call: Option<Box<dyn Call>>,
    slot: Option<Permit>,
    pub(super) upstream: Option<RawFd>,
    pub(super) timer: Instant,
    /// When it had its last answer.
    since: Instant,
    /// The client sent something that was not read yet.
    readable: bool,
}

impl Pump {
    pub(super) fn enter_call(
        &mut self,
        index: usize,
        conn: Box<ClientConn>,
        call: Box<dyn Call>,
        slot: Option<Permit>,
        now: Instant,
    ) {
        let watched = self.watch_client(index, &conn);
        let timer = now + STAY;
        self.timers.insert((timer, index));
        self.entries[index] = Some(Entry::Brisk(Brisk {
            conn,
            call: None,
            slot: None,
            upstream: None,
            timer,
            since: now,
            readable: false,
        }));
        if watched {
            self.ask(index, call, slot, now);
        } else {
            call.lost(Error::new(Kind::Internal, "no kernel memory to watch this client"));
            self.remove(index);
        }
    }

    /// Waits for the answer to `call`.
    fn ask(&mut self, index: usize, call: Box<dyn Call>, slot: Option<Permit>, now: Instant) {
        let upstream = call.upstream().map(|fd| fd.as_raw_fd());
        let watched = upstream.is_none_or(|fd| self.watch_upstream(index, fd));
        let Some(Some(Entry::Brisk(entry))) = self.entries.get_mut(index) else { return };
        entry.upstream = upstream.filter(|_| watched);
        let deadline = call.deadline();
        let begun = call.begun() || upstream.is_none();
        entry.call = Some(call);
        entry.slot = slot;
        if deadline < entry.timer {
            self.timers.remove(&(entry.timer, index));
            entry.timer = deadline;
            self.timers.insert((deadline, index));
        }
        if !watched {
            let context = "no kernel memory to watch this call";
            self.lose_brisk(index, Error::new(Kind::Internal, context));
        } else if begun {
            self.read_call(index, now);
        }
    }

    pub(super) fn brisk_ready(
        &mut self,
        index: usize,
        upstream: bool,
        event: &Event,
        now: Instant,
    ) {
        if upstream {
            self.read_call(index, now);
            self.read_to_the_end(index, event);
            return;
        }
        let Some(Some(Entry::Brisk(entry))) = self.entries.get_mut(index) else { return };
        if entry.call.is_none() {
            self.next_request(index, now);
        } else if event.is_read_closed() || event.is_error() {
            let context = "the client closed the connection";
            self.lose_brisk(index, Error::new(Kind::ClientGone, context));
        } else {
            entry.readable |= event.is_readable();
        }
    }

    /// Goes on with what could go on at once.
    pub(super) fn go_on(&mut self, index: usize, now: Instant) {
        let Some(Some(Entry::Brisk(entry))) = self.entries.get_mut(index) else { return };
        if entry.call.is_some() {
            self.read_call(index, now);
        } else {
            self.next_request(index, now);
        }
    }

    fn read_call(&mut self, index: usize, now: Instant) {
        self.step_call(index, now, |call| call.read(now));
    }

    fn step_call(
        &mut self,
        index: usize,
        now: Instant,
        step: impl FnOnce(&mut dyn Call) -> CallStep,
    ) {
        let Some(Some(Entry::Brisk(entry))) = self.entries.get_mut(index) else { return };
        let Some(call) = entry.call.as_mut() else { return };
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            let step = step(&mut **call);
            (step, call.upstream().is_none())
        }));
        let Ok((step, spent)) = stepped else {
            self.shared.panics.inc();
            let error = Error::new(Kind::Internal, "a bug in the gateway; its log has the place");
            self.lose_brisk(index, error);
            return;
        };
        // A connection whose answer is at its end is back in its pool: from now on another call may
        // come with it, so its registration must be gone.
        if (spent || step == CallStep::Done)
            && let Some(fd) = entry.upstream.take()
        {
            self.unwatch(fd);
        }
        match step {
            CallStep::Wait => {}
            CallStep::Again => self.again.push(index),
            CallStep::Done => self.finish_call(index, now),
        }
    }

    fn finish_call(&mut self, index: usize, now: Instant) {
        let Some(Some(Entry::Brisk(entry))) = self.entries.get_mut(index) else { return };
        let Some(call) = entry.call.take() else { return };
        match catch_unwind(AssertUnwindSafe(|| call.finish())) {
            Ok(Done::Answer(response)) => {
                entry.slot = None;
                self.answer(index, &response, true, now);
            }
            Ok(Done::Back(job)) => self.hand_on(index, |slot| Purpose::Resume { job, slot }),
            Err(_) => {
                // What the request had is told by its own drop.
                self.shared.panics.inc();
                self.remove(index);
            }
        }
    }

    /// Hands the client to the parking thread.
    fn hand_on(&mut self, index: usize, purpose: impl FnOnce(Option<Permit>) -> Purpose) {
        if let Some(Entry::Brisk(entry)) = self.take(index) {
            self.shared.inbox.park(entry.conn, purpose(entry.slot));
        }
    }

    /// Sends a whole answer without blocking; what the socket does not take now is parked.
    fn answer(&mut self, index: usize, response: &Response, keep: bool, now: Instant) {
        let Some(Some(Entry::Brisk(entry))) = self.entries.get_mut(index) else { return };
        let Some(current) = entry.conn.current.as_ref() else { return };
        let keep_alive = keep && current.keep_alive && self.shared.keeps_connections();
        self.data.clear();
        let notice = self.shared.pressure.notice();
        respond::whole(&mut self.data, response, current, keep_alive, notice);
        let Ok(sent) = entry.conn.send_now(&self.data) else {
            self.remove(index);
            return;
        };
        let rest = (sent < self.data.len()).then(|| self.data.split_off(sent));
        if self.data.capacity() > OUT_BYTES_KEPT {
            self.data = Vec::new();
        }
        if let Some(out) = rest {
            self.hand_on(index, |_| Purpose::Flush { out, close: !keep_alive });
        } else if keep_alive {
            self.stay(index, now);
        } else {
            entry.conn.shut_write();
            self.hand_on(index, |_| Purpose::Linger);
        }
    }

    /// Stays with the client for its next request.
    fn stay(&mut self, index: usize, now: Instant) {
        let Some(Some(Entry::Brisk(entry))) = self.entries.get_mut(index) else { return };
        entry.conn.current = None;
        // At the cap it must be in the parking lot, where it can make room.
        let full = self.shared.connections.now() >= self.shared.connections.max();
        // By way of a worker it comes to a pump with more time.
        let give = self.work.to_give > 0;
        self.work.to_give = self.work.to_give.saturating_sub(1);
        if full || give || self.shared.draining() {
            self.hand_on(index, |_| Purpose::Next);
            return;
        }
        entry.since = now;
        if entry.timer > now + STAY {
            self.timers.remove(&(entry.timer, index));
            entry.timer = now + STAY;
            self.timers.insert((entry.timer, index));
        }
        // Not here: a client that sends one request after another would take this thread, and its
        // stack, for itself.
        if entry.readable || !entry.conn.input.is_empty() {
            self.again.push(index);
        }
    }

    /// Reads the client's next request, if it is here as a whole.
    fn next_request(&mut self, index: usize, now: Instant) {
        let Some(Some(Entry::Brisk(entry))) = self.entries.get_mut(index) else { return };
        let conn = &mut entry.conn;
        entry.readable = false;
        loop {
            if !conn.input.is_empty() {
                let settings = self.shared.settings.load();
                let env = self.shared.env(&settings, conn.peer());
                match conn.intake.advance(&mut conn.input, &env, now) {
                    Advance::Ready(request) => {
                        self.begin(index, request, now);
                        return;
                    }
                    Advance::More => {}
                    // Rare: the parking thread knows what to do with these.
                    Advance::NoRoom => break,
                    Advance::Continue => {
                        let _ = conn.send_now(http1::CONTINUE);
                        break;
                    }
                    Advance::Refuse(refusal) => {
                        conn.refusal = Some(refusal);
                        break;
                    }
                }
            }
            // A request that comes in pieces has deadlines, which the parking thread knows.
            if !conn.intake.idle() {
                break;
            }
            match conn.fill(false) {
                Ok(Fill::Bytes(_)) => {}
                Ok(Fill::Nothing) => return,
                // The parking thread finds the close again, and is the one place that deals with it.
                Ok(Fill::Closed) | Err(_) => break,
            }
        }
        self.hand_on(index, |_| Purpose::Next);
    }

    /// Begins a request here if that will not block, else on a worker.
    fn begin(&mut self, index: usize, request: Box<Request>, now: Instant) {
        let Some(Some(Entry::Brisk(entry))) = self.entries.get_mut(index) else { return };
        if !self.shared.service.brisk(&request) {
            self.hand_on(index, |_| Purpose::Start(request));
            return;
        }
        let work = Work::Start(request);
        let scratch = &mut self.scratch;
        let (keep, step) =
            serve::turn(&self.shared, &mut entry.conn, work, &mut None, scratch, true);
        let slot = self.scratch.slot.take();
        match step {
            Step::Respond(response) => self.answer(index, &response, keep, now),
            Step::Ask(call) => self.ask(index, call, slot, now),
            Step::Defer(job) => self.hand_on(index, |_| Purpose::Resume { job, slot }),
            Step::Upgrade { accept, taker } => {
                if let Some(Entry::Brisk(entry)) = self.take(index) {
                    serve::upgrade(&self.shared, entry.conn, &accept, taker);
                }
            }
            Step::Wait(job, wait) => self.hand_on(index, |_| Purpose::Wait { job, wait }),
            Step::Streamed { keep_alive: true } => self.stay(index, now),
            Step::Streamed { keep_alive: false } => {
                entry.conn.shut_write();
                self.hand_on(index, |_| Purpose::Linger);
            }
            Step::Flow { flow, bytes } => {
                let chunked = entry.conn.current.as_ref().is_some_and(|current| current.http11);
                if let Some(Entry::Brisk(entry)) = self.take(index) {
                    let index = self.reserve();
                    self.enter(index, entry.conn, (flow, slot, chunked, bytes), now);
                }
            }
        }
    }

    pub(super) fn brisk_expired(&mut self, index: usize, now: Instant) {
        let Some(Some(Entry::Brisk(entry))) = self.entries.get_mut(index) else { return };
        let next = match &entry.call {
            Some(call) => call.deadline(),
            None => entry.since + STAY,
        };
        // Timers do not follow each request; they look when they fire.
        let late = next <= now;
        entry.timer = next.min(now + SLEEP_MAX).max(now + Duration::from_millis(1));
        self.timers.insert((entry.timer, index));
        if late && entry.call.is_some() {
            self.step_call(index, now, |call| call.expired(now));
        } else if late {
            self.hand_on(index, |_| Purpose::Next);
        }
    }

    pub(super) fn lose_brisk(&mut self, index: usize, error: Error) {
        if let Some(Entry::Brisk(entry)) = self.take(index)
            && let Some(call) = entry.call
        {
            call.lost(error);
        }
    }
}
