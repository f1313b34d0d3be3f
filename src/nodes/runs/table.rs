//! The runs and sessions there are: who runs where, who waits for what. Pure: no I/O, time comes in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::bounded::{Lru, Map};
use crate::base::metrics::Limit;
use crate::nodes::history::{Message, Role};
use crate::nodes::methods::Reply;
use crate::nodes::refusal::Refusal;
use crate::nodes::run::{Ended, ErrorKind, Run};
use crate::nodes::sessions::{EVENTS_MAX, Session, SessionId, Sessions, Status};
use crate::nodes::subscriptions::Subscriptions;

use super::turn::{Composed, RunId, Turn};

/// How long what came of a run is remembered (the protocol's 5 minutes).
pub const KEPT: Duration = Duration::from_secs(5 * 60);

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for the one before it.
    Queued,
    /// Its request is being made.
    Starting,
    /// Its answer is on its way.
    Running,
}

/// A run that has not ended.
pub struct Entry {
    /// What is to be run; what it says goes to the history when it starts.
    pub turn: Turn,
    /// How it stands.
    pub stage: Stage,
    /// The answer so far.
    pub run: Run,
    /// Which of the session's lives it belongs to.
    pub uid: Arc<str>,
    /// When it was asked for, in milliseconds since 1970.
    pub since_ms: u64,
    /// When it is too late, from its start on.
    pub deadline: Option<Instant>,
    /// How long it may take.
    pub limit: Duration,
    /// It is to end like this.
    pub stop: Option<Ended>,
    /// The model that is asked.
    pub model: String,
    chat_seq: u64,
    agent_seq: u64,
}

impl Entry {
    /// The next number of its `chat` events.
    pub fn chat_seq(&mut self) -> u64 {
        self.chat_seq += 1;
        self.chat_seq
    }

    /// The next number of its `agent` events.
    pub fn agent_seq(&mut self) -> u64 {
        self.agent_seq += 1;
        self.agent_seq
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Kept {
    /// How it ended.
    pub ended: Ended,
    /// In milliseconds since 1970.
    pub started_ms: u64,
    /// Likewise.
    pub ended_ms: u64,
    until: Instant,
}

/// What is done about a turn.
pub enum Admitted {
    /// Begin it.
    Begin,
    /// It begins when those before it have ended.
    Queued,
    /// It is under way already.
    InFlight,
    /// It was run.
    Known(Kept),
}

/// A run that has ended, and what follows from it.
pub struct Finished {
    /// The run.
    pub entry: Entry,
    /// How.
    pub ended: Ended,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The answer as it was kept.
    pub said: Option<(u64, Arc<Message>)>,
    /// Who waited for it.
    pub waiters: Vec<Waiter>,
    /// Who is to begin now.
    pub next: Option<RunId>,
}

/// Who waits for a run.
pub struct Waiter {
    /// For which.
    pub run: RunId,
    /// Where the answer goes.
    pub reply: Reply,
    /// It is the last word of the request that asked for the run, and not a question about it.
    pub last_word: bool,
    /// Until then; none: as long as the run takes.
    pub until: Option<Instant>,
}

/// Everything.
pub struct Table {
    /// The sessions.
    pub sessions: Sessions,
    /// Who listens.
    pub subscriptions: Subscriptions,
    runs: Map<RunId, Entry>,
    kept: Lru<RunId, Kept>,
    waiters: Vec<Waiter>,
    waiting: Arc<Limit>,
}

/// The bounds of a table.
pub struct Bounds {
    /// Runs that have not ended.
    pub runs: Arc<Limit>,
    /// Runs that are remembered.
    pub kept: Arc<Limit>,
    /// Requests that wait for a run.
    pub waiting: Arc<Limit>,
}

impl Table {
    /// An empty one.
    pub fn new(sessions: Sessions, subscriptions: Subscriptions, bounds: Bounds) -> Self {
        Table {
            sessions,
            subscriptions,
            runs: Map::new(bounds.runs),
            kept: Lru::new(bounds.kept),
            waiters: Vec::new(),
            waiting: bounds.waiting,
        }
    }

    /// A run that has not ended.
    pub fn run(&self, id: &RunId) -> Option<&Entry> {
        self.runs.get(id)
    }

    /// The same, to change.
    pub fn run_mut(&mut self, id: &RunId) -> Option<&mut Entry> {
        self.runs.get_mut(id)
    }

    /// The runs that have not ended.
    pub fn runs(&self) -> impl Iterator<Item = (&RunId, &Entry)> {
        self.runs.iter()
    }

    /// What came of a run, while it is remembered.
    pub fn kept(&mut self, id: &RunId, now: Instant) -> Option<Kept> {
        if self.kept.peek(id).is_some_and(|kept| kept.until <= now) {
            self.kept.pop(id);
        }
        self.kept.peek(id).cloned()
    }

    /// Takes a turn in.
    ///
    /// # Errors
    /// `UNAVAILABLE` when there are too many.
    pub fn admit(
        &mut self,
        turn: Turn,
        limit: Duration,
        model: String,
        now: Instant,
        now_ms: u64,
    ) -> Result<Admitted, Refusal> {
        let id = turn.run.clone();
        if self.runs.get(&id).is_some() {
            return Ok(Admitted::InFlight);
        }
        if let Some(kept) = self.kept(&id, now) {
            return Ok(Admitted::Known(kept));
        }
        let bytes_max = self.sessions.bytes_max();
        let session = self.sessions.open(&turn.session, now_ms)?;
        let busy = !session.idle();
        if busy && turn.bytes() > bytes_max {
            let text = "a run is under way in this session, and this message is too large to wait; \
                        send it when that one has ended";
            return Err(Refusal::unavailable(text).retry(Duration::from_secs(1)));
        }
        let stage = if busy { Stage::Queued } else { Stage::Starting };
        let uid = Arc::clone(&session.id);
        let (interrupts, on) = (turn.interrupts, turn.session.clone());
        let entry = Entry {
            turn,
            stage,
            run: Run::default(),
            uid,
            since_ms: now_ms,
            deadline: None,
            limit,
            stop: None,
            model,
            chat_seq: 0,
            agent_seq: 0,
        };
        if self.runs.insert(id.clone(), entry).is_err() {
            let text = "too many runs are under way (nodes.runs_max); try again shortly";
            return Err(Refusal::unavailable(text).retry(Duration::from_secs(1)));
        }
        let Some(session) = self.sessions.get_mut(&on) else {
            return Err(Refusal::unavailable("the session is gone"));
        };
        if busy {
            session.queue.push_back(Arc::clone(&id.id));
            if interrupts && let Some(active) = session.active.clone() {
                let active = RunId { account: on.account.clone(), id: active };
                self.stop(&active, "interrupt");
            }
            return Ok(Admitted::Queued);
        }
        session.active = Some(Arc::clone(&id.id));
        Ok(Admitted::Begin)
    }

    /// What a run that begins is to ask.
    pub fn compose(&mut self, id: &RunId) -> Option<Composed> {
        let entry = self.runs.get_mut(id)?;
        let session = self.sessions.get_mut(&entry.turn.session)?;
        entry.uid = Arc::clone(&session.id);
        let before = session.history.page(0, usize::MAX);
        Some(Composed {
            turn: entry.turn.clone(),
            before: before.into_iter().map(|(_, message)| message).collect(),
            events: std::mem::take(&mut session.events).into(),
            model: entry.model.clone(),
        })
    }

    /// A run did not begin: what happened is to be told with the next turn all the same.
    pub fn untold(&mut self, session: &SessionId, events: Vec<Box<str>>) {
        if let Some(session) = self.sessions.get_mut(session) {
            for event in events.into_iter().rev().take(EVENTS_MAX - session.events.len()) {
                session.events.push_front(event);
            }
        }
    }

    /// A run was begun: what was asked is said. Gives the number and the message.
    pub fn started(
        &mut self,
        id: &RunId,
        now: Instant,
        now_ms: u64,
    ) -> Option<(u64, Arc<Message>)> {
        let entry = self.runs.get_mut(id)?;
        entry.stage = Stage::Running;
        entry.deadline = Some(now + entry.limit);
        let images = std::mem::take(&mut entry.turn.images);
        let (text, run) = (std::mem::take(&mut entry.turn.text), &entry.turn.run.id);
        let message = Message::user(&text, images, run, now_ms);
        let on = entry.turn.session.clone();
        if let Some(session) = self.sessions.get_mut(&on) {
            session.status = Some(Status::Running);
            session.last_error = None;
        }
        let seq = self.sessions.say(&on, message)?;
        self.sessions.get(&on)?.history.last().map(|message| (seq, Arc::clone(message)))
    }

    /// A run has ended.
    pub fn finish(
        &mut self,
        id: &RunId,
        ended: Ended,
        now: Instant,
        at_ms: u64,
    ) -> Option<Finished> {
        let entry = self.runs.remove(id)?;
        let on = entry.turn.session.clone();
        let mut said = None;
        let mut next = None;
        if let Some(session) = self.sessions.get_mut(&on) {
            session.queue.retain(|waiting| *waiting != id.id);
            if session.active.as_deref() == Some(&*id.id) {
                session.active = None;
                // Those that are to end do not begin first.
                while let Some(id) = session.queue.pop_front() {
                    let waiting = RunId { account: on.account.clone(), id };
                    if self.runs.get(&waiting).is_some_and(|entry| entry.stop.is_none()) {
                        session.active = Some(Arc::clone(&waiting.id));
                        next = Some(waiting);
                        break;
                    }
                }
            }
            if session.id == entry.uid && entry.stage == Stage::Running {
                note(session, &ended, &entry);
                said = answer(&entry, &ended, at_ms);
            }
        }
        let said = said.and_then(|message| {
            let seq = self.sessions.say(&on, message)?;
            let last = self.sessions.get(&on)?.history.last();
            last.map(|message| (seq, Arc::clone(message)))
        });
        if let Some(next) = &next
            && let Some(entry) = self.runs.get_mut(next)
        {
            entry.stage = Stage::Starting;
        }
        let kept = Kept {
            ended: ended.clone(),
            started_ms: entry.since_ms,
            ended_ms: at_ms,
            until: now + KEPT,
        };
        // One that never began may be asked for again.
        if entry.stage == Stage::Running {
            self.kept.put(id.clone(), kept);
        }
        let waiters = self.take_waiters(|waiter| waiter.run == *id);
        Some(Finished { entry, ended, at_ms, said, waiters, next })
    }

    /// A run is to end. False when there is none such.
    pub fn stop(&mut self, id: &RunId, reason: &'static str) -> bool {
        let Some(entry) = self.runs.get_mut(id) else { return false };
        entry.stop.get_or_insert(Ended::Aborted { reason });
        true
    }

    /// Every run of a session is to end; gives those, the one under way first.
    pub fn stop_session(&mut self, session: &SessionId, reason: &'static str) -> Vec<RunId> {
        let Some(known) = self.sessions.get(session) else { return Vec::new() };
        let ids = known.active.iter().chain(&known.queue);
        let run = |id: &Arc<str>| RunId { account: session.account.clone(), id: Arc::clone(id) };
        let ids: Vec<RunId> = ids.map(run).collect();
        for id in &ids {
            self.stop(id, reason);
        }
        ids
    }

    /// Runs that are to end and have no connection that somebody must close for it.
    pub fn stopped_in_queue(&self) -> Vec<RunId> {
        let stopped =
            |(_, entry): &(&RunId, &Entry)| entry.stop.is_some() && entry.stage == Stage::Queued;
        self.runs.iter().filter(stopped).map(|(id, _)| id.clone()).collect()
    }

    /// Somebody waits for a run.
    ///
    /// # Errors
    /// `UNAVAILABLE` when too many do.
    pub fn wait(&mut self, waiter: Waiter) -> Result<(), Box<(Waiter, Refusal)>> {
        if self.waiters.len() as u64 >= self.waiting.max() {
            self.waiting.refuse();
            let text = "too many requests wait for runs; try again shortly";
            return Err(Box::new((waiter, Refusal::unavailable(text))));
        }
        self.waiters.push(waiter);
        self.waiting.set_now(self.waiters.len() as u64);
        Ok(())
    }

    /// Takes out those who have waited for long enough.
    pub fn late_waiters(&mut self, now: Instant) -> Vec<Waiter> {
        self.take_waiters(|waiter| waiter.until.is_some_and(|until| until <= now))
    }

    /// When the first of them has.
    pub fn next_wait(&self) -> Option<Instant> {
        self.waiters.iter().filter_map(|waiter| waiter.until).min()
    }

    /// A connection has ended: who waited there does not any more.
    pub fn gone(&mut self, number: u64) -> Vec<Waiter> {
        self.subscriptions.gone(number);
        self.take_waiters(|waiter| waiter.reply.peer().number == number)
    }

    fn take_waiters(&mut self, which: impl FnMut(&mut Waiter) -> bool) -> Vec<Waiter> {
        let taken: Vec<Waiter> = self.waiters.extract_if(.., which).collect();
        if self.waiters.is_empty() {
            self.waiters = Vec::new();
        }
        self.waiting.set_now(self.waiters.len() as u64);
        taken
    }
}

/// Notes in a session how its run ended.
fn note(session: &mut Session, ended: &Ended, entry: &Entry) {
    session.last_error = None;
    session.status = Some(match ended {
        Ended::Final => Status::Done,
        Ended::Aborted { .. } => Status::Killed,
        Ended::Failed { message, kind, .. } => {
            session.last_error = Some(message.as_str().into());
            if *kind == ErrorKind::Timeout { Status::Timeout } else { Status::Failed }
        }
    });
    if let Some(usage) = entry.run.usage {
        session.took(usage);
    }
    if *ended == Ended::Final {
        session.answered_by = Some(entry.model.as_str().into());
    }
}

/// The answer as it is kept: also half of one, which says so.
fn answer(entry: &Entry, ended: &Ended, at_ms: u64) -> Option<Message> {
    let Run { text, thinking, usage, finish, .. } = &entry.run;
    if text.is_empty() && thinking.is_empty() {
        return None;
    }
    let stop = match ended {
        Ended::Final => finish.as_deref(),
        Ended::Aborted { .. } => Some("aborted"),
        Ended::Failed { .. } => Some("error"),
    };
    Some(Message {
        role: Role::Assistant,
        text: text.as_str().into(),
        thinking: thinking.as_str().into(),
        images: Vec::new(),
        images_left_out: false,
        at_ms,
        run: Arc::clone(&entry.turn.run.id),
        model: Some(entry.model.as_str().into()),
        usage: *usage,
        stop: stop.map(Into::into),
    })
}

#[cfg(test)]
mod tests;
