//! Runs: chats under way, and the sessions that they belong to.
//!
//! A run is a request from inside (`net/inward.rs`) for `POST /v1/chat/completions`: the same chain,
//! guards, cache, limits and accounts as for clients over HTTP. One thread, started with the first
//! run, reads all of them. A run goes on when the connection that asked for it has gone.
//!
//! In a session one run goes at a time; further ones wait in order. All of them together are at most
//! `nodes.runs_max`.

pub mod table;
pub mod tell;
mod tending;
mod thread;
pub mod turn;

use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde_json::{Value, json};

use super::host::Host;
use super::methods::Reply;
use super::peer::Peer;
use super::refusal::Refusal;
use super::run::{Ended, ErrorKind};
use super::sessions::{EVENTS_MAX, LABEL_BYTES_MAX, SessionId, Sessions, clip};
use super::subscriptions::Subscriptions;
use crate::base::clock;
use crate::base::error::Error;
use crate::base::heartbeat::Heartbeats;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Limit, Registry, Unit};
use crate::base::thread::Thread;
use crate::config::settings::Nodes as Settings;
use crate::net::inward::{Inward, InwardCall, InwardRequest};
use crate::net::websocket::Bell;

use table::{Admitted, Bounds, Finished, Kept, Table, Waiter};
use tell::Peers;
use turn::{RunId, Turn};

/// Runs that have ended and are remembered, for those who ask for them again.
pub const KEPT_MAX: usize = 1000;

/// Requests that wait for runs.
pub const WAITERS_MAX: usize = 1024;

/// What a run asks for.
const PATH: &str = "/v1/chat/completions";

/// Longest name of a session that the accounts take, in bytes.
const ACCOUNT_SESSION_BYTES_MAX: usize = 128;

/// What came of asking for a run.
pub enum Sent {
    /// It has begun, or will when those before it have ended.
    Started,
    /// The same is under way.
    InFlight,
    /// The same was run before.
    Known(Kept),
}

/// The state behind the lock.
struct State {
    table: Table,
    /// Runs whose answer is on its way, for the thread to take over. Each is in the table.
    arriving: Vec<(RunId, InwardCall, SessionId)>,
    stopping: bool,
}

/// How the thread stands.
const NONE: u8 = 0;
const STARTING: u8 = 1;
const THERE: u8 = 2;

/// What runs need.
pub struct Hands {
    /// Where limits and counters are.
    pub registry: Arc<Registry>,
    /// Where the thread beats.
    pub heartbeats: Arc<Heartbeats>,
    /// Keys and models.
    pub host: Arc<dyn Host>,
}

impl Hands {
    /// Those of the room.
    pub fn of(parts: &super::Parts) -> Self {
        Hands {
            registry: Arc::clone(&parts.registry),
            heartbeats: Arc::clone(&parts.heartbeats),
            host: Arc::clone(&parts.host),
        }
    }
}

/// Chats under way, and their sessions.
pub struct Runs {
    state: Locked<State>,
    hands: Hands,
    inward: OnceLock<Inward>,
    peers: OnceLock<Box<dyn Peers>>,
    run_timeout: ArcSwap<Duration>,
    /// Made with the thread.
    bell: OnceLock<Bell>,
    thread: Locked<Option<Thread>>,
    there: AtomicU8,
    ended: [Arc<Counter>; 3],
    panics: Arc<Counter>,
    /// System events that wait, in each session.
    events: Arc<Limit>,
}

impl Runs {
    /// None under way.
    pub fn new(hands: Hands, settings: &Settings) -> Arc<Self> {
        let registry = &hands.registry;
        let limit = |name, max: usize, then| registry.limit(name, "", max as u64, then);
        let sessions = limit(
            "nodes.sessions_max",
            settings.sessions_max,
            "the one unused longest is forgotten",
        );
        let each = registry.limit_each(
            Unit::Bytes,
            "nodes.session_bytes_max",
            "",
            settings.session_bytes_max,
            "its oldest messages are forgotten",
        );
        let bounds = Bounds {
            runs: limit("nodes.runs_max", settings.runs_max, "UNAVAILABLE"),
            kept: limit("nodes.runs_kept_max", KEPT_MAX, "the oldest is forgotten"),
            waiting: limit("nodes.run_waiters_max", WAITERS_MAX, "UNAVAILABLE"),
        };
        let subscriptions = Subscriptions::new(registry);
        let table = Table::new(Sessions::new(sessions, each), subscriptions, bounds);
        let counter = |outcome| {
            registry.counter(
                "tidegate_node_runs_total",
                "Chats over WebSocket and hooks, by how they ended.",
                &[("outcome", outcome)],
            )
        };
        let state = State { table, arriving: Vec::new(), stopping: false };
        Arc::new(Runs {
            state: Locked::new(Rank::Leaf, state),
            inward: OnceLock::new(),
            peers: OnceLock::new(),
            run_timeout: ArcSwap::from_pointee(settings.run_timeout),
            bell: OnceLock::new(),
            thread: Locked::new(Rank::Leaf, None),
            there: AtomicU8::new(NONE),
            ended: ["final", "aborted", "error"].map(counter),
            events: registry.limit_each(
                Unit::Entries,
                "nodes.session_events_max",
                "",
                EVENTS_MAX as u64,
                "the oldest is forgotten",
            ),
            panics: registry.counter("tidegate_node_run_panics_total", "Panics in runs.", &[]),
            hands,
        })
    }

    /// From now on runs can begin.
    pub fn open(&self, inward: Inward, peers: Box<dyn Peers>) {
        let _ = self.inward.set(inward);
        let _ = self.peers.set(peers);
    }

    /// Takes over new settings. The limits have theirs already.
    pub fn reconfigure(&self, settings: &Settings) {
        self.run_timeout.store(Arc::new(settings.run_timeout));
        if let Some(inward) = self.inward.get() {
            inward.set_max(inward_max(settings.runs_max));
        }
        self.state.with(|state| state.table.sessions.adopt_bounds());
    }

    /// Ends every run, and the thread.
    pub fn stop(&self) {
        self.state.with(|state| state.stopping = true);
        self.ring();
        let thread = self.thread.with(Option::take);
        drop(thread);
    }

    /// A connection has ended.
    pub fn gone(&self, peer: &Peer) {
        let waiters = self.state.with(|state| state.table.gone(peer.number));
        drop(waiters);
    }

    /// Looks at the sessions and runs, or changes them. Nothing else may be called inside.
    pub fn with<R>(&self, f: impl FnOnce(&mut Table) -> R) -> R {
        self.state.with(|state| f(&mut state.table))
    }

    /// Runs a turn, now or when those before it have ended. `accepted` is called as soon as it is
    /// certain to be run, and before anything is told of it; not for one that was asked for before.
    ///
    /// # Errors
    /// Why it cannot be: what limits, keys and the chain say of it is told at once where it is known
    /// at once, and with the run's end where it is not.
    pub fn send(self: &Arc<Self>, turn: Turn, accepted: impl FnOnce()) -> Result<Sent, Refusal> {
        let longest = **self.run_timeout.load();
        let limit = turn.timeout.map_or(longest, |asked| asked.min(longest));
        let model = self.model_of(&turn)?;
        if !turn.images.is_empty() && !self.hands.host.takes_images(&model) {
            let text = format!("nothing behind model {model} takes images; leave them out");
            return Err(Refusal::invalid(text));
        }
        self.ensure_thread()?;
        let (now, now_ms) = (clock::now(), now_ms());
        let (id, session) = (turn.run.clone(), turn.session.clone());
        let admitted = self.state.with(|state| {
            if state.stopping {
                return Err(Refusal::unavailable("the gateway stops; try again shortly"));
            }
            state.table.admit(turn, limit, model, now, now_ms)
        })?;
        match admitted {
            Admitted::InFlight => Ok(Sent::InFlight),
            Admitted::Known(kept) => Ok(Sent::Known(kept)),
            Admitted::Queued => {
                accepted();
                self.ring();
                Ok(Sent::Started)
            }
            Admitted::Begin => match self.begin(&id, accepted) {
                Ok(()) => Ok(Sent::Started),
                Err(error) => {
                    let ended = Ended::by(&error);
                    let finished = self.finish(&id, ended);
                    self.go_on(finished.and_then(|finished| finished.next));
                    self.session_changed(&session, "error", None);
                    Err(Refusal::from(error))
                }
            },
        }
    }

    /// Ends a run, or every one of a session; gives those that are to end.
    pub fn abort(self: &Arc<Self>, which: &Which<'_>, reason: &'static str) -> Vec<RunId> {
        let stopped = self.state.with(|state| match which {
            Which::Run(id) => match state.table.stop(id, reason) {
                true => vec![(*id).clone()],
                false => Vec::new(),
            },
            Which::Session(session) => state.table.stop_session(session, reason),
        });
        self.ring();
        stopped
    }

    /// Forgets a session, in one step with the end of what runs or waits in it: a turn that came in
    /// between would wait for ever. Whether there was one.
    pub fn delete(&self, session: &SessionId) -> bool {
        let gone = self.state.with(|state| {
            state.table.stop_session(session, "delete");
            state.table.sessions.remove(session)
        });
        self.ring();
        gone.is_some()
    }

    /// Answers when a run has ended, or when that is no longer waited for.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a run that is not known, `UNAVAILABLE` when too many wait.
    pub fn wait(
        self: &Arc<Self>,
        id: &RunId,
        reply: Reply,
        until: Option<Instant>,
        last_word: bool,
    ) -> Result<(), Box<(Reply, Refusal)>> {
        if let Err(refusal) = self.ensure_thread() {
            return Err(Box::new((reply, refusal)));
        }
        let waiter = Waiter { run: id.clone(), reply, last_word, until };
        let waits = self.state.with(|state| {
            if state.table.run(id).is_none() {
                return Err(Box::new((waiter, Refusal::invalid("agent run was not found"))));
            }
            state.table.wait(waiter)
        });
        waits.map_err(|back| Box::new((back.0.reply, back.1)))?;
        self.ring();
        Ok(())
    }

    /// Gives something to be told with the next turn of a session.
    ///
    /// # Errors
    /// `UNAVAILABLE` when there is no room for the session.
    pub fn remind(&self, session: &SessionId, text: &str) -> Result<(), Refusal> {
        let now_ms = now_ms();
        let waiting = self.with(|table| {
            let session = table.sessions.open(session, now_ms)?;
            session.tell(text);
            Ok::<_, Refusal>(session.events.len())
        })?;
        self.events.saw(waiting as u64);
        Ok(())
    }

    /// Gives a session a name, if it has none.
    pub fn label(&self, session: &SessionId, name: &str) {
        let name = clip(name.trim(), LABEL_BYTES_MAX);
        if name.is_empty() || name.chars().any(char::is_control) {
            return;
        }
        self.with(|table| {
            if let Some(session) = table.sessions.get_mut(session) {
                session.label.get_or_insert_with(|| name.into());
            }
        });
    }

    /// What came of a run that is remembered.
    pub fn kept(&self, id: &RunId) -> Option<Kept> {
        let now = clock::now();
        self.state.with(|state| state.table.kept(id, now))
    }

    /// The model that a turn asks for.
    fn model_of(&self, turn: &Turn) -> Result<String, Refusal> {
        if let Some(model) = &turn.model {
            return Ok(model.clone());
        }
        let set = self.state.with(|state| {
            state.table.sessions.get(&turn.session).and_then(|session| session.model.clone())
        });
        let key = turn.caller.key.as_deref().filter(|_| !turn.caller.granted);
        let default = || self.hands.host.default_model(key);
        set.map(String::from).or_else(default).ok_or_else(|| {
            Refusal::invalid("there is no model for this account; declare a [[model]], or name one")
        })
    }

    /// Starts the thread, unless it is there.
    fn ensure_thread(self: &Arc<Self>) -> Result<(), Refusal> {
        loop {
            match self.there.compare_exchange(NONE, STARTING, SeqCst, SeqCst) {
                Ok(_) => break,
                Err(THERE) => return Ok(()),
                // Another thread starts it: that takes some microseconds.
                Err(_) => std::thread::yield_now(),
            }
        }
        let started = self.start_thread();
        match started {
            Ok(started) => {
                self.thread.with(|thread| *thread = Some(started));
                self.there.store(THERE, SeqCst);
                Ok(())
            }
            Err(_) => {
                self.there.store(NONE, SeqCst);
                Err(Refusal::unavailable("no thread for runs now; try again shortly"))
            }
        }
    }

    fn start_thread(self: &Arc<Self>) -> std::io::Result<Thread> {
        let bell = match self.bell.get() {
            Some(bell) => bell.clone(),
            None => {
                let bell = Bell::new()?;
                self.bell.get_or_init(|| bell).clone()
            }
        };
        let runs = Arc::clone(self);
        let beat = self.hands.heartbeats.register("runs", thread::SILENCE_MAX);
        crate::base::thread::spawn("runs", move || thread::run(&runs, &bell, &beat))
    }

    /// Wakes the thread, if there is one.
    fn ring(&self) {
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    /// Makes the request of a run.
    fn begin(&self, id: &RunId, accepted: impl FnOnce()) -> Result<(), Error> {
        let inward = self.inward.get().ok_or_else(tending::draining)?;
        let composed = self.state.with(|state| state.table.compose(id));
        let composed = composed.ok_or_else(tending::draining)?;
        let session = composed.turn.session.clone();
        let mut fields = Vec::new();
        let key = &session.key;
        if key.len() <= ACCOUNT_SESSION_BYTES_MAX && key.bytes().all(|b| b.is_ascii_graphic()) {
            fields.push(("x-tidegate-session", key.to_string()));
        }
        let (body, caller) = (composed.body(), composed.turn.caller.clone());
        let call = match inward.call(InwardRequest { path: PATH, fields, body, caller }) {
            Ok(call) => call,
            Err(error) => {
                let events = composed.events;
                self.state.with(|state| state.table.untold(&session, events));
                return Err(error);
            }
        };
        accepted();
        let (now, now_ms) = (clock::now(), now_ms());
        let said = self.state.with(|state| {
            let said = state.table.started(id, now, now_ms);
            let uid = state.table.run(id).map(|entry| Arc::clone(&entry.uid));
            said.zip(uid)
        });
        // What was asked is told before what is answered, which may be there already.
        if let Some(((seq, message), uid)) = said {
            self.said(&session, &uid, seq, &message);
        }
        self.session_changed(&session, "send", Some(id));
        self.state.with(|state| state.arriving.push((id.clone(), call, session)));
        self.ring();
        Ok(())
    }

    fn finish(&self, id: &RunId, ended: Ended) -> Option<Finished> {
        let (now, now_ms) = (clock::now(), now_ms());
        self.state.with(|state| state.table.finish(id, ended, now, now_ms))
    }
}

/// What is to be ended.
pub enum Which<'a> {
    /// This run.
    Run(&'a RunId),
    /// Every run of this session.
    Session(&'a SessionId),
}

/// How many requests from inside there may be at once: those of runs, and those of runs that have
/// just ended and whose connection is about to be closed.
pub fn inward_max(runs_max: usize) -> usize {
    runs_max.saturating_mul(2)
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    u64::try_from(clock::unix().as_millis()).unwrap_or(u64::MAX)
}

/// What came of a run, in the words of `agent.wait`.
pub fn outcome(run: &str, ended: &Ended, started_ms: u64, ended_ms: u64) -> Value {
    let mut outcome = json!({"runId": run, "startedAt": started_ms, "endedAt": ended_ms});
    match ended {
        Ended::Final => outcome["status"] = "ok".into(),
        Ended::Aborted { reason } => {
            outcome["status"] = "timeout".into();
            outcome["stopReason"] = (*reason).into();
        }
        Ended::Failed { message, kind, .. } => {
            let late = *kind == ErrorKind::Timeout;
            outcome["status"] = if late { "timeout" } else { "error" }.into();
            outcome["error"] = message.as_str().into();
        }
    }
    outcome
}
