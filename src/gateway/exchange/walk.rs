//! The walk along the chain: whom to ask next, what to wait for, and the attempt itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::permits::{Permit, Permits};
use crate::config::settings::UpstreamKind;
use crate::gateway::asked::AskedCall;
use crate::gateway::attempt::{Attempt, End, Place};
use crate::gateway::cached::{Next, Origin};
use crate::gateway::errors;
use crate::gateway::flow::Flowing;
use crate::net::service::{GiveUp, Job, Step, Wait};
use crate::net::turn::{ClientStream, Turn};
use crate::upstream::breakers::Unavailable;

use super::{Exchange, Pending, Ready, WaitsFor};

impl Exchange {
    /// Walks the chain from where it stands.
    pub(super) fn go(mut self: Box<Self>, turn: &mut Turn<'_>) -> Step {
        let place = match (turn.must_not_block(), turn.has_pumps()) {
            // The first content of a stream is waited for on a worker.
            (true, _) if self.ask.stream() => return Step::Defer(self),
            (true, _) => Place::Pump,
            (false, true) => Place::Asking,
            (false, false) => Place::Worker,
        };
        // The upstream's permit first, the scarcer one; then the right to run.
        let waiting = turn.waiting_timeout();
        let mut pending = self.pending.take();
        if pending.is_none() {
            match self.ready(true, waiting) {
                Ready::Go => {}
                Ready::Wait(wait) => return Step::Wait(self, wait),
                Ready::Over => return self.failed(),
            }
        }
        if !turn.begin_exchange() {
            let deadline = self.wait_deadline(waiting);
            let wait = self.wait(WaitsFor::Slot, turn.exchange_permits(), deadline);
            self.pending = pending;
            return Step::Wait(self, wait);
        }
        let mut client = turn.client();
        client.end_by(self.deadline);
        if let (Some(drill), Some((link, target))) = (&self.drill, self.chain.get(self.at))
            && place != Place::Pump
            && link.settings.kind == UpstreamKind::Echo
        {
            drill.look(&target.model);
        }
        loop {
            let end = match pending.take() {
                Some(Pending::End(end)) => end,
                Some(Pending::Translate(body)) => {
                    let end = self.translated(&body);
                    self.settled(end)
                }
                Some(Pending::Replay(..)) | None => self.attempt(&mut client, place),
            };
            match end {
                End::Asked(asked) => return Step::Ask(Box::new(AskedCall::new(self, *asked))),
                End::Defer => {
                    self.waits_for = WaitsFor::Slot;
                    return Step::Defer(self);
                }
                End::Streamed { keep_alive } => {
                    self.record.finish(200, client.bytes());
                    return Step::Streamed { keep_alive };
                }
                End::Flowing(parts) => {
                    let bytes = client.bytes();
                    return Step::Flow { flow: Box::new(Flowing::new(self, *parts)), bytes };
                }
                End::Whole(body) => return Step::Respond(self.whole(body)),
                End::Cut(error) => return self.cut(&error, &mut client),
                End::Final(error) => {
                    self.last_error = Some(error);
                    return self.end(&mut client);
                }
                End::MoveOn(error) => {
                    self.noted(error);
                    self.next();
                }
            }
            // Waiting as data is only possible while the client has heard nothing.
            match self.ready(!client.started(), waiting) {
                Ready::Go => {}
                Ready::Wait(wait) => return Step::Wait(self, wait),
                Ready::Over => return self.end(&mut client),
            }
        }
    }

    /// Finds the first link from here on that may be asked now: its breaker lets this call pass, and
    /// its upstream has room.
    pub(super) fn ready(&mut self, may_wait: bool, waiting: Duration) -> Ready {
        while let Some((link, target)) = self.chain.get(self.at) {
            if self.pass.is_none() {
                let now = clock::now();
                match link.breakers.admit(&target.model, now) {
                    Ok(pass) => self.pass = Some(pass),
                    Err(unavailable) => {
                        self.left_alone(unavailable);
                        continue;
                    }
                }
            }
            if self.charge.is_none() {
                let longest = if may_wait { self.patience_left(waiting) } else { Duration::ZERO };
                match link.reserve(self.ask.estimate(), longest) {
                    Ok((charge, moment)) => {
                        self.charge = Some(charge);
                        if let Some(moment) = moment {
                            let permits = Arc::clone(link.rate.queue());
                            return Ready::Wait(self.wait(WaitsFor::Moment, permits, moment));
                        }
                    }
                    Err(unavailable) => {
                        self.left_alone(unavailable);
                        continue;
                    }
                }
            }
            if self.permit.is_none() {
                self.permit = link.permits.try_acquire();
            }
            if self.permit.is_some() {
                return Ready::Go;
            }
            if may_wait {
                let permits = Arc::clone(&link.permits);
                let deadline = self.wait_deadline(waiting);
                return Ready::Wait(self.wait(WaitsFor::Upstream, permits, deadline));
            }
            self.busy();
        }
        Ready::Over
    }

    /// On to the next link; what was held for this one is given back.
    pub(super) fn next(&mut self) {
        self.at += 1;
        self.fresh = false;
        self.pass = None;
        self.charge = None;
        self.permit = None;
    }

    /// Waits as data.
    pub(super) fn wait(
        &mut self,
        what: WaitsFor,
        permits: Arc<Permits>,
        deadline: Instant,
    ) -> Wait {
        self.waits_for = what;
        self.waiting_since = Some(clock::now());
        Wait { permits, deadline }
    }

    /// The wait is over, one way or the other.
    pub(super) fn waited(&mut self) -> WaitsFor {
        let what = std::mem::replace(&mut self.waits_for, WaitsFor::Nothing);
        if let Some(since) = self.waiting_since.take() {
            let time = clock::now().saturating_duration_since(since);
            let histogram = match what {
                WaitsFor::Slot => &self.record.metrics().wait_slot,
                WaitsFor::Answer => &self.record.metrics().wait_answer,
                WaitsFor::Moment => &self.record.metrics().wait_quota,
                WaitsFor::Upstream | WaitsFor::Nothing => &self.record.metrics().wait_upstream,
            };
            histogram.observe(time);
            self.record.waited(time);
        }
        what
    }

    /// The current link may not be asked: on to the next. Of all such, the one that may be asked
    /// first is told.
    pub(super) fn left_alone(&mut self, unavailable: Unavailable) {
        if let Some((link, _)) = self.chain.get(self.at) {
            self.record.skipped(&link.settings.name, unavailable.why.as_str());
        }
        self.next();
        let sooner = |have: &Unavailable| match (unavailable.until, have.until) {
            (Some(this), Some(that)) => this < that,
            (this, that) => this.is_some() || that.is_none(),
        };
        if self.unavailable.as_ref().is_none_or(sooner) {
            self.unavailable = Some(unavailable);
        }
    }

    /// How much longer it may wait.
    pub(super) fn patience_left(&self, waiting_timeout: Duration) -> Duration {
        self.deadline.saturating_duration_since(clock::now()).min(waiting_timeout)
    }

    pub(super) fn wait_deadline(&self, waiting_timeout: Duration) -> Instant {
        (clock::now() + waiting_timeout).min(self.deadline)
    }

    /// The current link's upstream has no room: on to the next.
    pub(super) fn busy(&mut self) {
        if let Some((link, _)) = self.chain.get(self.at) {
            self.record.skipped(&link.settings.name, "busy");
        }
        self.next();
    }

    pub(super) fn attempt(&mut self, client: &mut ClientStream<'_>, place: Place) -> End {
        let links_left = self.chain.len() - self.at;
        let Some((link, target)) = self.chain.get(self.at) else {
            return End::Final(Error::new(Kind::Internal, "an attempt without a link"));
        };
        if let Some(pass) = &mut self.pass {
            pass.begins(clock::now());
        }
        self.record.asking(self.ask.prompt_estimate());
        if let Some(charge) = &mut self.charge {
            charge.used();
        }
        let attempt = Attempt {
            ask: &self.ask,
            reply: &mut self.reply,
            link,
            target,
            request_deadline: self.deadline,
            links_left,
            early_head: self.early_head,
            control: self.call.control(),
            charge: &mut self.charge,
            pass: &mut self.pass,
            record: &mut self.record,
            fields: &self.fields,
            last_sent: &mut self.last_sent,
            cached: &mut self.cached,
            first: self.at == 0,
            committed: false,
            place,
            fresh: self.fresh,
        };
        let end = attempt.run(client);
        self.settled(end)
    }

    /// Notes how an attempt ended, unless it goes on elsewhere.
    pub(super) fn settled(&mut self, end: End) -> End {
        match &end {
            End::Asked(_) | End::Defer => return end,
            End::Flowing(_) => {
                if let Some(pass) = &mut self.pass {
                    pass.flows(clock::now());
                }
                return end;
            }
            End::Streamed { .. } | End::Whole(_) => self.answered(),
            End::MoveOn(error) | End::Final(error) | End::Cut(error) => self.attempt_failed(error),
        }
        self.permit = None;
        end
    }
}

impl Job for Exchange {
    fn run(mut self: Box<Self>, permit: Option<Permit>, turn: &mut Turn<'_>) -> Step {
        if let Some(Pending::Replay(answer, origin)) = self.pending.take_if(Pending::is_replay) {
            return self.follow_up(Next::Serve(answer, origin), turn);
        }
        // While it waited the breaker may have opened: it asks again. A probe is what it waits for.
        let ended = self.pending.is_some();
        if !ended && self.pass.as_ref().is_some_and(|pass| !pass.is_probe()) {
            self.pass = None;
        }
        match (self.waited(), permit) {
            (WaitsFor::Answer, permit) => {
                let next = self.cached.landed(permit);
                return self.follow_up(next, turn);
            }
            (WaitsFor::Slot, Some(permit)) => turn.begin_exchange_with(permit),
            (_, permit) => self.permit = permit,
        }
        self.go(turn)
    }

    fn give_up(mut self: Box<Self>, error: Error) -> GiveUp {
        // Who waited for another one's answer can still ask, while there is time.
        if self.waits_for == WaitsFor::Answer
            && error.kind() == Kind::WaitingTimeout
            && clock::now() < self.deadline
        {
            return GiveUp::GoOn(self);
        }
        let what = self.waited();
        if what == WaitsFor::Moment && error.kind() == Kind::WaitingTimeout {
            // The moment has come; there was nothing else to wait for.
            return GiveUp::GoOn(self);
        }
        let upstream_busy = matches!(what, WaitsFor::Upstream | WaitsFor::Moment)
            && matches!(error.kind(), Kind::WaitingFull | Kind::WaitingTimeout);
        if upstream_busy {
            self.busy();
            if self.at < self.chain.len() && clock::now() < self.deadline {
                self.noted(error);
                return GiveUp::GoOn(self);
            }
        }
        let error = match upstream_busy {
            // Links before this one may have said what is wrong.
            true => {
                self.noted(error);
                self.take_error()
            }
            false => error,
        };
        let stale = self.cached.failed(&error);
        if let Some(response) = stale.and_then(|stale| self.replayed(&stale, Origin::Stale)) {
            return GiveUp::Respond(response);
        }
        // The waiting itself failed: a client may well try again.
        let mut response = errors::response(&error, self.path);
        for (name, value) in std::mem::take(&mut self.fields) {
            response = response.with(name, value);
        }
        self.record.failed(&error);
        self.record.finish(response.status, response.body.len() as u64);
        GiveUp::Respond(response)
    }
}
