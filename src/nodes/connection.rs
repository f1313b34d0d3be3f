//! The thread of one connection: it moves frames and keeps time, and nothing else. What a request
//! asks for runs on a method thread, so that pings and ticks are on time whatever it costs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::heartbeat::Beat;
use crate::base::metrics::Lease;
use crate::net::websocket::{Came, Fault, WebSocket};

use super::Nodes;
use super::frame;
use super::jobs::Jobs;
use super::line::{Line, Message};
use super::metrics::Ended;
use super::outbox::{Class, Event, Item};
use super::timing::{Due, Timing};

/// How long a peer may take to answer our Close.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// When a message is handed over again that found no place.
const RETRY: Duration = Duration::from_millis(20);

/// How long the thread may be silent beside its waits.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How a connection ends.
#[derive(Debug)]
enum End {
    /// By a Close, ours or theirs: its end is waited for.
    Closed(Ended, u16, &'static str),
    /// At once.
    Broken(Ended),
}

type Going = Result<(), End>;

/// One connection, as its thread has it.
pub(super) struct Connection {
    pub(super) nodes: Arc<Nodes>,
    pub(super) line: Arc<Line>,
    pub(super) socket: WebSocket,
    pub(super) timing: Timing,
    pub(super) jobs: Jobs,
    pub(super) payload_max: u64,
    /// What the socket has not taken, of the sum over all connections.
    pub(super) held: Lease,
    /// A message that found no place with the method threads.
    pub(super) waits: bool,
    /// By then a Close that waits behind what is unsent must be out.
    pub(super) close_by: Option<Instant>,
}

impl Connection {
    /// Runs it to its end. Whatever happens, what it held is given back, and everybody is told. It is
    /// boxed since it would be on its thread's stack more than once otherwise.
    pub(super) fn run(mut self: Box<Self>, beat: &Beat) {
        let began = clock::now();
        let ran = catch_unwind(AssertUnwindSafe(|| self.live(beat)));
        let end = ran.unwrap_or_else(|_| {
            self.nodes.panicked();
            Err(End::Broken(Ended::Bug))
        });
        self.line.end();
        let (why, code, reason, polite) = match end {
            // It ends only with a reason.
            Ok(()) => (Ended::Bug, 0, "", false),
            Err(End::Closed(why, code, reason)) => (why, code, reason, true),
            Err(End::Broken(why)) => (why, 1006, "", false),
        };
        self.line.peer.outbox().close_now(1000, "");
        self.nodes.ended(&self.line, why, code, reason, began);
        if polite && !self.line.is_cut() {
            self.socket.finish(clock::now() + CLOSE_MAX);
        }
    }

    fn live(&mut self, beat: &Beat) -> Going {
        loop {
            let now = clock::now();
            beat.tick_at(now);
            if self.line.is_cut() {
                return Err(End::Broken(Ended::Cut));
            }
            if self.timing.shaking_hands() && self.line.peer.identity().is_some() {
                self.timing.welcomed(now);
                self.socket.set_message_max(self.payload_max);
            }
            if self.waits {
                self.waits = !self.nodes.pool().put(&self.jobs, &self.line);
            }
            self.keep_time(now)?;
            self.send()?;
            if self.close_by.is_none() && self.line.peer.outbox().closed() {
                self.close_by = Some(now + self.nodes.config().nodes.write_timeout);
            }
            if self.close_by.is_some_and(|by| by <= now) {
                return self.close(Ended::Slow, 1008, "slow consumer");
            }
            let reading = !self.line.busy();
            self.timing.deaf(!reading, now);
            let mut until = self.timing.next(now);
            until = self.close_by.map_or(until, |by| until.min(by));
            if self.waits {
                until = until.min(now + RETRY);
            }
            let Ok(woke) = self.socket.wait(until, reading) else {
                return Err(End::Broken(Ended::Broken));
            };
            if woke.hung_up {
                return Err(End::Broken(Ended::Broken));
            }
            if woke.writable {
                self.socket.flush().map_err(|fault| self.fault(fault))?;
                self.wrote()?;
            }
            if woke.readable {
                self.receive()?;
            }
        }
    }

    /// Does what is due.
    fn keep_time(&mut self, now: Instant) -> Going {
        while let Some(due) = self.timing.due(now) {
            match due {
                Due::Ping => {
                    self.nodes.counts().pings.inc();
                    self.socket.ping(b"").map_err(|fault| self.fault(fault))?;
                    self.wrote()?;
                }
                Due::Tick(late) => {
                    self.nodes.counts().tick_delay.observe(late);
                    self.tick();
                }
                Due::Handshake => {
                    return self.close(Ended::HandshakeTimeout, 1008, "handshake timeout");
                }
                Due::Dead => return Err(End::Broken(Ended::Dead)),
                Due::Stuck => return self.close(Ended::Slow, 1008, "slow consumer"),
            }
        }
        Ok(())
    }

    fn tick(&self) {
        let payload = format!(r#"{{"ts":{}}}"#, clock::unix().as_millis()).into();
        let tick = Event { name: "tick", payload, class: Class::Telemetry, version: None };
        self.nodes.tell(&self.line.peer, tick);
    }

    /// Sends what waits, as far as the socket takes it.
    fn send(&mut self) -> Going {
        while self.socket.unsent() == 0 {
            let Some(item) = self.line.peer.outbox().take() else { break };
            let sent = match &item {
                Item::Frame(text) => {
                    self.nodes.counts().bytes_out.add(text.len() as u64);
                    self.socket.send_text(&[text.as_bytes()])
                }
                Item::Event(event, seq) => {
                    let (before, after) = frame::event(event, *seq);
                    let parts = [before.as_bytes(), event.payload.as_bytes(), after.as_bytes()];
                    let bytes: usize = parts.iter().map(|part| part.len()).sum();
                    self.nodes.counts().bytes_out.add(bytes as u64);
                    self.socket.send_text(&parts)
                }
                Item::Close(code, reason) => {
                    let why = match self.line.is_refused() {
                        true => Ended::Refused,
                        false => why(*code, reason),
                    };
                    return self.close(why, *code, reason);
                }
            };
            sent.map_err(|fault| self.fault(fault))?;
            self.nodes.counts().frames_out.inc();
            self.wrote()?;
        }
        Ok(())
    }

    /// Something was given to the socket, or taken by it: what is left counts as buffered.
    fn wrote(&mut self) -> Going {
        let unsent = self.socket.unsent();
        self.timing.unsent(unsent, self.socket.last_moved());
        let (before, after) = (self.held.amount(), unsent as u64);
        self.held.shrink_to(after);
        if after > before && !self.held.grow(after - before) {
            return self.close(Ended::Slow, 1008, "slow consumer");
        }
        Ok(())
    }

    /// Takes what came, up to a whole message: nothing is read behind it before it is dealt with.
    fn receive(&mut self) -> Going {
        loop {
            let came = self.socket.take();
            self.timing.heard(self.socket.last_heard());
            match came {
                Ok(None) => return Ok(()),
                Ok(Some(Came::Text(text, lease))) => {
                    self.hand_over(text, lease);
                    return Ok(());
                }
                Ok(Some(Came::Binary(..))) => {
                    return self.close(Ended::Protocol, 1003, "frames are text");
                }
                Ok(Some(Came::Ping)) => self.wrote()?,
                Ok(Some(Came::Pong)) => self.nodes.counts().pongs.inc(),
                Ok(Some(Came::Close(code))) => return Err(End::Closed(Ended::Left, code, "")),
                Err(fault) => return Err(self.fault(fault)),
            }
        }
    }

    fn hand_over(&mut self, text: String, lease: Lease) {
        let (nodes, bytes) = (&self.nodes, text.len() as u64);
        let limits = &nodes.parts().limits;
        nodes.counts().frames_in.inc();
        nodes.counts().bytes_in.add(bytes);
        if self.timing.shaking_hands() { &limits.hello } else { &limits.payload }.saw(bytes);
        self.line.put(Message { text, came: clock::now(), _lease: lease });
        self.waits = !nodes.pool().put(&self.jobs, &self.line);
    }

    fn close(&mut self, why: Ended, code: u16, reason: &'static str) -> Going {
        match self.socket.close(code, reason) {
            Ok(()) => Err(End::Closed(why, code, reason)),
            Err(_) => Err(End::Broken(why)),
        }
    }

    fn fault(&mut self, fault: Fault) -> End {
        match fault {
            Fault::Close(code, reason) => match self.close(Ended::Protocol, code, reason) {
                Err(end) => end,
                Ok(()) => End::Broken(Ended::Protocol),
            },
            Fault::Gone(_) => End::Broken(Ended::Broken),
        }
    }
}

/// What a Close of ours was for.
fn why(code: u16, reason: &str) -> Ended {
    match (code, reason) {
        (1012, _) => Ended::Restart,
        (1011, _) => Ended::Bug,
        (1008, "slow consumer") => Ended::Slow,
        _ => Ended::Dismissed,
    }
}
