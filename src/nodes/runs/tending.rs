//! What the thread of the runs does with them: what it reads goes in, what is to be told goes out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::net::inward::InwardCall;
use crate::nodes::frame;
use crate::nodes::history::{Message, usage_shown};
use crate::nodes::outbox::Class;
use crate::nodes::peer::Peer;
use crate::nodes::refusal::{Code, Refusal};
use crate::nodes::run::{Delta, Ended};
use crate::nodes::sessions::{AGENT, SessionId};

use super::table::{Entry, Finished, Stage, Waiter};
use super::tell::{self, Audience, End, Keys};
use super::turn::RunId;
use super::{Runs, now_ms, outcome};

impl Runs {
    pub(super) fn panicked(&self) {
        self.panics.inc();
    }

    /// Runs whose answer is on its way, and whether all is to end.
    pub(super) fn arrived(&self) -> (Vec<(RunId, InwardCall, SessionId)>, bool) {
        self.state.with(|state| (std::mem::take(&mut state.arriving), state.stopping))
    }

    /// How a run is to end, by order or because it is late.
    pub(super) fn verdict(&self, id: &RunId, now: Instant) -> Option<Ended> {
        self.with(|table| {
            // Without an entry there is nobody to tell: the call is only let go.
            let Some(entry) = table.run(id) else { return Some(Ended::Aborted { reason: "gone" }) };
            let late = entry.deadline.is_some_and(|deadline| deadline <= now);
            entry.stop.clone().or_else(|| late.then(|| Ended::late(entry.limit)))
        })
    }

    /// When a run must be looked at although nothing came.
    pub(super) fn due(&self, id: &RunId) -> Option<Instant> {
        self.with(|table| {
            let entry = table.run(id)?;
            entry.run.due().into_iter().chain(entry.deadline).min()
        })
    }

    pub(super) fn next_wait(&self) -> Option<Instant> {
        self.with(|table| table.next_wait())
    }

    pub(super) fn feed(
        &self,
        id: &RunId,
        status: u16,
        bytes: &[u8],
        now: Instant,
    ) -> Option<Ended> {
        self.with(|table| table.run_mut(id)?.run.feed(status, bytes, now))
    }

    pub(super) fn closed(&self, id: &RunId, cut: Option<&Error>) -> Option<Ended> {
        self.with(|table| Some(table.run_mut(id)?.run.closed(cut)))
    }

    /// What is new of a run when it is time to tell it, or all is `over`; and its whole text.
    pub(super) fn news(&self, id: &RunId, now: Instant, over: bool) -> Option<(Delta, String)> {
        self.with(|table| {
            let run = &mut table.run_mut(id)?.run;
            let due = run.due()?;
            (due <= now || over).then(|| (run.tell(now), run.text.clone()))
        })
    }

    /// Those who hear of a session.
    pub(super) fn hearing(&self, session: &SessionId) -> Vec<Arc<Peer>> {
        let peers = self.peers.get().map(|peers| peers.peers()).unwrap_or_default();
        self.with(|table| {
            let hears = |peer: &Arc<Peer>| tell::hears(peer, session, &table.subscriptions);
            peers.into_iter().filter(hears).collect()
        })
    }

    /// Looks who listens to a run.
    pub(super) fn refresh(&self, id: &RunId, audience: &mut Audience, now: Instant) {
        let session = self.with(|table| {
            let entry = table.run(id)?;
            Some((entry.turn.session.clone(), !entry.run.text.is_empty()))
        });
        if let Some((session, told)) = session {
            audience.adopt(self.hearing(&session), &session, told, now);
        }
    }

    /// A run's answer is on its way.
    pub(super) fn begun(&self, id: &RunId, audience: &mut Audience, now: Instant) {
        self.refresh(id, audience, now);
        let seq = self.with(|table| table.run_mut(id).map(Entry::agent_seq));
        if let Some(seq) = seq {
            let ts = now_ms();
            let data = json!({"phase": "start", "startedAt": ts});
            audience.agent(&id.id, seq, "lifecycle", ts, Class::Control, &data);
        }
    }

    /// Tells what is new of an answer.
    pub(super) fn tell(&self, id: &RunId, audience: &mut Audience, delta: &Delta, text: &str) {
        let whole = delta.whole && !delta.text.is_empty();
        let numbers = self.with(|table| {
            let entry = table.run_mut(id)?;
            let chat = if delta.text.is_empty() { 0 } else { entry.chat_seq() };
            let agent = if whole { entry.agent_seq() } else { 0 };
            let thinking = if delta.thinking.is_empty() { 0 } else { entry.agent_seq() };
            Some((chat, agent, thinking))
        });
        let Some((chat, agent, thinking)) = numbers else { return };
        let ts = now_ms();
        if chat > 0 {
            audience.delta(&id.id, chat, delta, text);
        }
        if agent > 0 {
            let data = json!({"text": text, "delta": &text[delta.since_whole..]});
            audience.agent(&id.id, agent, "assistant", ts, Class::Telemetry, &data);
        }
        if thinking > 0 {
            let data = json!({"delta": delta.thinking});
            audience.agent(&id.id, thinking, "thinking", ts, Class::Telemetry, &data);
        }
    }

    /// A run that was read has ended.
    pub(super) fn ended(&self, id: &RunId, ended: Ended, audience: &mut Audience) {
        // Whoever has come meanwhile hears of the end too.
        self.refresh(id, audience, clock::now());
        let next = self.over(id, ended, Some(audience));
        self.go_on(next);
    }

    /// Ends what waits in a queue and is to end, and answers those who have waited for long enough.
    pub(super) fn look_after_others(&self, now: Instant, stopping: bool) {
        let (stopped, late) = self.with(|table| {
            if stopping {
                let waiting = table.runs().filter(|(_, entry)| entry.stage == Stage::Queued);
                let waiting: Vec<RunId> = waiting.map(|(id, _)| id.clone()).collect();
                for id in &waiting {
                    table.stop(id, "restart");
                }
            }
            (table.stopped_in_queue(), table.late_waiters(now))
        });
        for id in stopped {
            let reason = self.with(|table| table.run(&id).and_then(|entry| entry.stop.clone()));
            let ended = reason.unwrap_or(Ended::Aborted { reason: "rpc" });
            let over = AssertUnwindSafe(|| {
                let next = self.over(&id, ended, None);
                self.go_on(next);
            });
            if catch_unwind(over).is_err() {
                self.panicked();
            }
        }
        for Waiter { run, reply, .. } in late {
            let answer = json!({"runId": &*run.id, "status": "timeout"});
            reply.send(&Ok(frame::text(&answer)));
        }
    }

    /// Begins the next run of a session, and those behind it as long as none can.
    pub(super) fn go_on(&self, mut next: Option<RunId>) {
        while let Some(id) = next {
            match self.begin(&id, || ()) {
                Ok(()) => return,
                Err(error) => next = self.over(&id, Ended::by(&error), None),
            }
        }
    }

    /// A run has ended: tells everybody, and gives the one that is to begin now.
    fn over(&self, id: &RunId, ended: Ended, audience: Option<&mut Audience>) -> Option<RunId> {
        let mut finished = self.finish(id, ended)?;
        let session = finished.entry.turn.session.clone();
        self.ended[match finished.ended {
            Ended::Final => 0,
            Ended::Aborted { .. } => 1,
            Ended::Failed { .. } => 2,
        }]
        .inc();
        match audience {
            Some(audience) => tell_end(id, &mut finished, audience),
            None => {
                let mut audience = Audience::new(&session);
                audience.adopt(self.hearing(&session), &session, true, clock::now());
                tell_end(id, &mut finished, &audience);
            }
        }
        if let Some((seq, message)) = &finished.said {
            self.said(&session, &finished.entry.uid, *seq, message);
        }
        let phase = if finished.ended == Ended::Final { "end" } else { "error" };
        self.session_changed(&session, phase, Some(id));
        let Finished { entry, ended, at_ms, waiters, next, .. } = finished;
        for Waiter { reply, last_word, .. } in waiters {
            reply.send(&match last_word {
                true => last_answer(&entry, &ended, at_ms),
                false => Ok(frame::text(&outcome(&id.id, &ended, entry.since_ms, at_ms))),
            });
        }
        next
    }

    /// Tells those who listen to a session what was said in it.
    pub(super) fn said(&self, session: &SessionId, uid: &str, seq: u64, message: &Message) {
        let peers = self.peers.get().map(|peers| peers.peers()).unwrap_or_default();
        let peers: Vec<Arc<Peer>> = self.with(|table| {
            let hears = |peer: &Arc<Peer>| {
                table.subscriptions.hears(peer.number, session)
                    && tell::hears(peer, session, &table.subscriptions)
            };
            peers.into_iter().filter(hears).collect()
        });
        let message_id = format!("{uid}:{seq}");
        let kind = ("session.message", Class::Control);
        tell::send(tell::owning(&peers, session), kind, &Keys::of(session), |key| {
            json!({
                "sessionKey": key, "agentId": AGENT, "sessionId": uid, "messageId": &*message_id,
                "messageSeq": seq, "runId": &*message.run,
                "message": message.shown(&message_id, seq, usize::MAX),
            })
        });
    }

    /// Tells those who listen to the list of sessions that one has changed.
    pub fn session_changed(&self, session: &SessionId, reason: &str, run: Option<&RunId>) {
        let peers = self.peers.get().map(|peers| peers.peers()).unwrap_or_default();
        let (peers, row) = self.with(|table| {
            let hears = |peer: &Arc<Peer>| {
                table.subscriptions.hears_list(peer.number)
                    && tell::hears(peer, session, &table.subscriptions)
            };
            let peers: Vec<Arc<Peer>> = peers.into_iter().filter(hears).collect();
            let own = session.account.as_deref();
            let row = table.sessions.get(session).map(|known| known.row(session, own));
            (peers, row)
        });
        let kind = ("sessions.changed", Class::Telemetry);
        tell::send(tell::owning(&peers, session), kind, &Keys::of(session), |key| {
            let mut payload = row.clone().unwrap_or_else(|| json!({}));
            payload["sessionKey"] = key.into();
            payload["key"] = key.into();
            payload["ts"] = now_ms().into();
            let name = if matches!(reason, "end" | "error") { "phase" } else { "reason" };
            payload[name] = reason.into();
            if let Some(run) = run {
                payload["runId"] = (&*run.id).into();
            }
            payload
        });
    }
}

/// Tells how a run ended.
fn tell_end(id: &RunId, finished: &mut Finished, audience: &Audience) {
    let (agent_seq, chat_seq) = (finished.entry.agent_seq(), finished.entry.chat_seq());
    let Finished { entry, ended, at_ms, said, .. } = &*finished;
    let mut data = json!({"phase": "end", "startedAt": entry.since_ms, "endedAt": *at_ms});
    match ended {
        Ended::Final => {}
        Ended::Aborted { reason } => {
            data["aborted"] = true.into();
            data["stopReason"] = (*reason).into();
        }
        Ended::Failed { message, kind, .. } => {
            data["phase"] = "error".into();
            data["error"] = message.as_str().into();
            data["errorKind"] = kind.as_str().into();
        }
    }
    let said = said.as_ref().map(|(seq, said)| (format!("{}:{seq}", entry.uid), *seq, &**said));
    let (model, finish) = (entry.model.as_str(), entry.run.finish.as_deref());
    let end = End { said, model, finish, usage: entry.run.usage };
    audience.agent(&id.id, agent_seq, "lifecycle", *at_ms, Class::Control, &data);
    audience.ended(&id.id, chat_seq, ended, &end);
}

/// The last word of the request that asked for a run.
fn last_answer(entry: &Entry, ended: &Ended, at_ms: u64) -> Result<String, Refusal> {
    let id = &entry.turn.run.id;
    let mut answer = json!({"runId": &**id, "status": "ok", "summary": "completed"});
    match ended {
        Ended::Final => {}
        Ended::Aborted { reason } => {
            answer["status"] = "timeout".into();
            answer["summary"] = "aborted".into();
            answer["stopReason"] = (*reason).into();
        }
        Ended::Failed { message, .. } => {
            let details = json!({"runId": &**id, "status": "error"});
            return Err(Refusal::new(Code::Unavailable, message.clone()).with(details));
        }
    }
    let took = at_ms.saturating_sub(entry.since_ms);
    let mut agent = json!({"sessionId": &*entry.uid, "model": &*entry.model});
    if let Some(usage) = entry.run.usage {
        agent["usage"] = usage_shown(usage);
    }
    answer["result"] = json!({
        "payloads": [{"text": &*entry.run.text}],
        "meta": {"durationMs": took, "agentMeta": agent},
    });
    Ok(frame::text(&answer))
}

/// The answer to those who ask for a run when the gateway is about to stop.
pub(super) fn draining() -> Error {
    Error::new(Kind::Draining, "the gateway starts or stops; try again shortly")
}
