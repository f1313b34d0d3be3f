//! What an exchange is asked while its answer comes elsewhere: a stream that flows on, or a whole
//! answer that is waited for on a pump.

use std::time::Instant;

use crate::base::error::{Error, Kind, Phase, Retry};
use crate::gateway::attempt::{End, before_commit, dialect, fault_error, refused, too_large};
use crate::gateway::flow::too_late;
use crate::llm::{self, Fault, Kept, Reply, Usage};
use crate::net::pump::brisk::Done;
use crate::upstream::adaptive::Timed;

use super::{Exchange, Outcome, Pending, TRANSLATED_ON_PUMP_MAX, WaitsFor};

impl Exchange {
    /// The whole answer in the client's words.
    pub(super) fn translated(&mut self, body: &[u8]) -> End {
        let Some((link, target)) = self.chain.get(self.at) else {
            return End::Final(Error::new(Kind::Internal, "an answer without a link"));
        };
        link.counts.answer(body.len());
        let (ask, dialect) = (&self.ask, dialect(link, &self.ask));
        match llm::whole(&self.reply, ask, dialect, body) {
            Ok((translated, usage)) => {
                let from = (&*link.settings.name, &*target.model);
                self.record.answered_by(from.0, from.1);
                self.cached.answered(|| Kept::of_whole(ask, dialect, body), from, self.at == 0);
                self.usage(usage);
                End::Whole(translated)
            }
            Err(fault) => End::MoveOn(fault_error(&fault, &link.settings.name)),
        }
    }

    /// Goes on after a call that was waited for on a pump: with its answer, or on a worker.
    pub(in crate::gateway) fn after_call(mut self: Box<Self>, outcome: Outcome) -> Done {
        let end = match outcome {
            Outcome::Failed(error) => {
                let stale = error.retry() == Retry::FreshConnection && !self.fresh;
                let link = self.chain.get(self.at);
                if stale && link.is_some_and(|(link, _)| link.may_retry()) {
                    self.fresh = true;
                    return self.back(None);
                }
                before_commit(error)
            }
            Outcome::Refused(says, body) => refused(says, &body, self.upstream_name()),
            Outcome::Whole(body) if body.len() > TRANSLATED_ON_PUMP_MAX => {
                return self.back(Some(Pending::Translate(body)));
            }
            Outcome::Whole(body) => self.translated(&body),
        };
        match self.settled(end) {
            End::Whole(body) => Done::Answer(self.whole(body)),
            end => self.back(Some(Pending::End(end))),
        }
    }

    pub(super) fn back(mut self: Box<Self>, pending: Option<Pending>) -> Done {
        self.pending = pending;
        self.waits_for = WaitsFor::Slot;
        Done::Back(self)
    }

    /// The client left, or the gateway stops, while a call was waited for on a pump.
    pub(in crate::gateway) fn call_lost(mut self: Box<Self>, error: Error) {
        if matches!(error.kind(), Kind::ClientGone | Kind::ClientStalled) {
            // The upstream was at work on its prompt, which is paid for all the same.
            let tokens = self.ask.prompt_tokens();
            self.usage(tokens);
        }
        if let End::Final(error) = self.settled(End::Final(error)) {
            self.record.failed(&error);
            self.record.finish(error.row().status, 0);
        }
    }

    /// Largest whole answer of the current link, in bytes.
    pub(in crate::gateway) fn answer_max(&self) -> usize {
        self.chain.get(self.at).map_or(0, |(link, _)| link.settings.answer_max)
    }

    /// The error of an answer that is larger than that, counted.
    pub(in crate::gateway) fn answer_too_large(&self) -> Error {
        let max = self.answer_max();
        if let Some((link, _)) = self.chain.get(self.at) {
            link.counts.answer_too_large();
        }
        too_large(max)
    }

    pub(in crate::gateway) fn reply(&mut self) -> &mut Reply {
        &mut self.reply
    }

    /// When the client will have heard nothing for `early_head`.
    pub(in crate::gateway) fn silence_deadline(&self) -> Instant {
        self.last_sent + self.early_head
    }

    pub(in crate::gateway) fn sent_at(&mut self, now: Instant) {
        self.last_sent = now;
    }

    pub(in crate::gateway) fn keep_alive(&mut self, out: &mut Vec<u8>) {
        self.record.metrics().keep_alives.inc();
        self.reply.keep_alive(out);
    }

    pub(in crate::gateway) fn usage(&mut self, usage: Usage) {
        if let Some((link, target)) = self.chain.get(self.at) {
            self.record.usage(link, target, usage);
        }
        if let Some(charge) = &mut self.charge {
            charge.settle(usage.input.saturating_add(usage.output));
        }
    }

    /// The longest event of the stream had so many bytes.
    pub(in crate::gateway) fn line(&self, bytes: usize) {
        if let Some((link, _)) = self.chain.get(self.at) {
            link.counts.line(bytes);
        }
    }

    /// The stream is whole; `kept` makes of it what the cache can give again.
    pub(in crate::gateway) fn keep(&mut self, kept: impl FnOnce() -> Option<Kept>) {
        if let Some((link, target)) = self.chain.get(self.at) {
            let from = (&*link.settings.name, &*target.model);
            self.cached.answered(kept, from, self.at == 0);
        }
    }

    /// The current link's attempt ended well.
    pub(in crate::gateway) fn answered(&mut self) {
        if let Some(charge) = &mut self.charge {
            charge.keep();
        }
        let timed = if self.ask.stream() { Timed::FirstContent } else { Timed::Whole };
        if let Some((link, _)) = self.chain.get(self.at)
            && let Some(pass) = self.pass.take()
        {
            link.answered(pass, timed);
        }
    }

    /// The current link's attempt ended with an error.
    pub(super) fn attempt_failed(&mut self, error: &Error) {
        if let Some((link, _)) = self.chain.get(self.at)
            && let Some(pass) = self.pass.take()
        {
            link.failed(pass, error, self.fair_after);
            self.record.attempt_failed(&link.settings.name, error);
        }
    }

    /// The stream ends with an error, which the client is told.
    pub(in crate::gateway) fn cut_in_band(&mut self, error: &Error, out: &mut Vec<u8>) {
        self.record.metrics().streams_cut.inc();
        self.reply.error_event(error, out);
        self.lost(error);
    }

    /// The stream ends with an error.
    pub(in crate::gateway) fn lost(&mut self, error: &Error) {
        self.attempt_failed(error);
        self.cached.failed(error);
        self.record.failed(error);
    }

    /// Everything was sent that will be.
    pub(in crate::gateway) fn ended(&mut self, bytes: u64) {
        self.permit = None;
        self.record.finish(200, bytes);
    }

    pub(in crate::gateway) fn fault(&self, fault: &Fault) -> Error {
        fault_error(fault, self.upstream_name())
    }

    pub(in crate::gateway) fn too_late(&self, phase: Phase) -> Error {
        too_late(self.upstream_name(), phase)
    }

    pub(super) fn upstream_name(&self) -> &str {
        self.chain.get(self.at).map_or("", |(link, _)| &link.settings.name)
    }
}
