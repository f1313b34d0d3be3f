//! One model call of a client: its chain, walked until somebody answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::error::{Error, Kind, Phase, Result, Retry};
use crate::base::metrics::Lease;
use crate::base::permits::{Permit, Permits};
use crate::config::settings::Target;
use crate::llm::{self, Ask, Fault, Kept, Reply, Route, Usage};
use crate::net::http::{Request, Response};
use crate::net::pump::brisk::Done;
use crate::net::service::{GiveUp, Job, Step, Wait};
use crate::net::turn::{ClientStream, Turn};
use crate::upstream::adaptive::Timed;
use crate::upstream::breakers::{Pass, Unavailable};
use crate::upstream::calls::Call;
use crate::upstream::rate::Charge;

use super::asked::AskedCall;
use super::attempt::{
    Attempt, End, Place, before_commit, dialect, fault_error, refused, too_large,
};
use super::cached::{self, Answer, Next, Origin, Part, Plan};
use super::flow::{Flowing, too_late};
use super::record::Record;
use super::source::HeadSays;
use super::state::{Chain, State};
use super::{Gateway, browser, errors, lists, routes};

/// A request that was read, and its chain.
struct Built {
    ask: Ask,
    reply: Reply,
    chain: Chain,
    total: Option<Duration>,
    plan: Option<Plan>,
}

/// One model call of a client.
pub struct Exchange {
    ask: Ask,
    reply: Reply,
    path: &'static str,
    chain: Chain,
    /// The link that is, or will be, asked.
    at: usize,
    permit: Option<Permit>,
    /// The breakers' word for the current link.
    pass: Option<Pass>,
    /// What was charged to the current link's requests and tokens a minute.
    charge: Option<Charge>,
    /// Since when it waits as data.
    waiting_since: Option<Instant>,
    /// An attempt that had this long had its fair part of the request's time.
    fair_after: Duration,
    waits_for: WaitsFor,
    /// What came of a call that was waited for elsewhere.
    pending: Option<Pending>,
    /// Only a fresh connection will do for the current link.
    fresh: bool,
    deadline: Instant,
    early_head: Duration,
    last_error: Option<Error>,
    /// A link that was left out because of its breaker.
    unavailable: Option<Unavailable>,
    last_sent: Instant,
    call: Call,
    record: Record,
    fields: Vec<(&'static str, String)>,
    cached: Part,
    _budget: Lease,
}

/// What came of a call that was waited for elsewhere, where a worker goes on with it.
enum Pending {
    /// The attempt ended so.
    End(End),
    /// This whole answer came, too large to be translated anywhere else.
    Translate(Vec<u8>),
    /// This one was kept, and is as large.
    Replay(Arc<Answer>, Origin),
}

impl Pending {
    fn is_replay(&mut self) -> bool {
        matches!(self, Pending::Replay(..))
    }
}

/// What came of a call that was waited for on a pump.
pub(super) enum Outcome {
    /// The whole answer.
    Whole(Vec<u8>),
    /// A status other than success, with its body.
    Refused(HeadSays, Vec<u8>),
    /// No answer.
    Failed(Error),
}

/// Answers up to this many bytes are translated, or given again, on a pump: some hundred
/// microseconds.
const TRANSLATED_ON_PUMP_MAX: usize = 64 * 1024;

/// What the walk along the chain found.
enum Ready {
    /// The current link may be asked.
    Go,
    /// It may be, after this.
    Wait(Wait),
    /// There is none that may.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    Nothing,
    /// A permit of the current link's upstream.
    Upstream,
    /// The moment that was reserved at the current link's upstream.
    Moment,
    /// One of `server.exchanges_max`.
    Slot,
    /// The answer to the same request of another client.
    Answer,
}

impl Exchange {
    /// Reads the request and finds its chain.
    ///
    /// # Errors
    /// The answer to a request that cannot be carried, already counted and logged.
    pub fn new(
        route: Route,
        mut request: Request,
        state: &State,
        gateway: &Gateway,
    ) -> std::result::Result<Box<Exchange>, Box<Response>> {
        let mut record = Record::of_request(&request, &gateway.metrics);
        let path = routes::pattern(request.route);
        let body = std::mem::take(&mut request.body);
        match Exchange::build(route, body, &request, state, gateway, &mut record) {
            Ok(Built { ask, reply, chain, total, plan }) => {
                let streams = ask.stream();
                let now = clock::now();
                let patience = patience(&request);
                let server = &state.config.server;
                let mut total = total.unwrap_or(server.request_timeout);
                let mut early_head = server.early_head;
                let links = u32::try_from(chain.len()).unwrap_or(u32::MAX);
                let mut fair_after = total / links.max(1) / 2;
                if let Some(patience) = patience {
                    // The client's patience bounds our silence: for a stream that is the time
                    // between two events, for a whole answer the time until it.
                    if streams {
                        early_head = early_head.min(patience / 2);
                    } else {
                        let hurried = patience.mul_f32(0.9);
                        if hurried < total {
                            // That a client is in a hurry says nothing about an upstream.
                            (total, fair_after) = (hurried, Duration::MAX);
                        }
                    }
                }
                let mut fields = gateway.limit_fields(state, &request);
                if let Ok(Some(origin)) = state.rules.origin(&request.head.headers) {
                    fields.extend(browser::readable_by(origin));
                }
                Ok(Box::new(Exchange {
                    ask,
                    reply,
                    path,
                    chain,
                    at: 0,
                    permit: None,
                    pass: None,
                    charge: None,
                    waiting_since: None,
                    fair_after,
                    waits_for: WaitsFor::Nothing,
                    pending: None,
                    fresh: false,
                    deadline: request.started + total,
                    early_head,
                    last_error: None,
                    unavailable: None,
                    last_sent: now,
                    call: gateway.calls.begin(),
                    record,
                    fields,
                    cached: Part::new(gateway.answers.clone(), plan),
                    _budget: request.budget,
                }))
            }
            Err(error) => {
                record.failed(&error);
                let mut response = errors::response(&error, path);
                record.finish(response.status, response.body.len() as u64);
                response.headers.extend(gateway.limit_fields(state, &request));
                Err(Box::new(state.readable(&request.head.headers, response)))
            }
        }
    }

    fn build(
        route: Route,
        body: Vec<u8>,
        request: &Request,
        state: &State,
        gateway: &Gateway,
        record: &mut Record,
    ) -> Result<Built> {
        let ask = Ask::parse(route, body)?;
        record.asked(ask.model(), ask.stream());
        let models = lists::allowed(state.models(request.key.as_deref()), ask.model())?;
        let Some(resolved) = state.config.resolve(ask.model()) else {
            return Err(lists::not_found(&state.config, &gateway.catalog, models, ask.model()));
        };
        let needs = ask.needs();
        let lacks = |target: &Target| match (needs.tools, needs.images) {
            (true, _) if !target.tools => Some("no_tools"),
            (_, true) if !target.images => Some("no_images"),
            _ => None,
        };
        let mut chain = state.chain(&resolved.model);
        if chain.iter().any(|(_, target)| lacks(target).is_some()) {
            let (unfit, fit): (Vec<_>, Vec<_>) =
                chain.iter().cloned().partition(|(_, target)| lacks(target).is_some());
            for (link, target) in &unfit {
                record.skipped(&link.settings.name, lacks(target).unwrap_or_default());
            }
            chain = fit.into();
        }
        if chain.is_empty() {
            let context = format!(
                "nothing behind model {} can carry this request (tools or images); \
                 leave them out, or add an upstream that takes them",
                ask.model()
            );
            return Err(Error::new(Kind::Unsupported, context));
        }
        let who = gateway.who(state, request);
        record.charged(state.plan.tokens(&who, clock::now(), ask.estimate())?);
        let plan = Plan::of(request, &ask, &resolved.model, &chain, &state.config.cache)?;
        record.account(&gateway.accounts, &request.head.headers);
        let id = format!("{}{}", id_prefix(route), request.id);
        let reply = Reply::new(&ask, ask.model(), &id, clock::wall());
        Ok(Built { ask, reply, chain, total: resolved.model.total_timeout, plan })
    }

    /// Begins: with what the cache has, else with the chain.
    pub fn begin(mut self: Box<Self>, turn: &mut Turn<'_>) -> Step {
        let next = self.cached.look();
        self.follow_up(next, turn)
    }

    /// Goes on as the cache has it.
    fn follow_up(mut self: Box<Self>, next: Next, turn: &mut Turn<'_>) -> Step {
        match next {
            Next::Serve(answer, origin)
                if turn.must_not_block() && answer.kept.size() > TRANSLATED_ON_PUMP_MAX =>
            {
                self.pending = Some(Pending::Replay(answer, origin));
                return Step::Defer(self);
            }
            Next::Serve(answer, origin) => {
                if let Some(response) = self.replayed(&answer, origin) {
                    return Step::Respond(response);
                }
            }
            Next::Wait(permits) => {
                // A client of a stream hears nothing while it waits: no longer than `early_head`.
                let silence = clock::now() + self.early_head;
                let deadline =
                    if self.ask.stream() { silence.min(self.deadline) } else { self.deadline };
                let wait = self.wait(WaitsFor::Answer, permits, deadline);
                return Step::Wait(self, wait);
            }
            Next::Fail(error) => {
                self.last_error = Some(error);
                return self.failed();
            }
            Next::Ask => {}
        }
        if self.cached.planned() {
            self.record.cached(Origin::Miss);
            self.fields.push((cached::FIELD, Origin::Miss.as_str().to_owned()));
        }
        self.go(turn)
    }

    /// An answer that was kept, as this client asks for it.
    fn replayed(&mut self, answer: &Answer, origin: Origin) -> Option<Response> {
        let (body, usage) = answer.kept.replay(&mut self.reply, &self.ask).ok()?;
        self.record.answered_by(&answer.upstream, &answer.model);
        self.record.replayed(origin, usage);
        if self.ask.stream() {
            self.record.first_token();
        }
        let mut response = Response::new(200, self.reply.content_type(), body)
            .with("x-tidegate-upstream", answer.upstream.as_str())
            .with("x-tidegate-model", answer.model.as_str())
            .with(cached::FIELD, origin.as_str());
        if self.ask.stream() {
            response = response.with("cache-control", "no-cache").with("x-accel-buffering", "no");
        }
        let fields = std::mem::take(&mut self.fields);
        for (name, value) in fields.into_iter().filter(|(name, _)| *name != cached::FIELD) {
            response = response.with(name, value);
        }
        self.record.finish(200, response.body.len() as u64);
        Some(response)
    }

    /// Walks the chain from where it stands.
    fn go(mut self: Box<Self>, turn: &mut Turn<'_>) -> Step {
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
    fn ready(&mut self, may_wait: bool, waiting: Duration) -> Ready {
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
    fn next(&mut self) {
        self.at += 1;
        self.fresh = false;
        self.pass = None;
        self.charge = None;
        self.permit = None;
    }

    /// Waits as data.
    fn wait(&mut self, what: WaitsFor, permits: Arc<Permits>, deadline: Instant) -> Wait {
        self.waits_for = what;
        self.waiting_since = Some(clock::now());
        Wait { permits, deadline }
    }

    /// The wait is over, one way or the other.
    fn waited(&mut self) -> WaitsFor {
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
    fn left_alone(&mut self, unavailable: Unavailable) {
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
    fn patience_left(&self, waiting_timeout: Duration) -> Duration {
        self.deadline.saturating_duration_since(clock::now()).min(waiting_timeout)
    }

    fn wait_deadline(&self, waiting_timeout: Duration) -> Instant {
        (clock::now() + waiting_timeout).min(self.deadline)
    }

    /// The current link's upstream has no room: on to the next.
    fn busy(&mut self) {
        if let Some((link, _)) = self.chain.get(self.at) {
            self.record.skipped(&link.settings.name, "busy");
        }
        self.next();
    }

    fn attempt(&mut self, client: &mut ClientStream<'_>, place: Place) -> End {
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
    fn settled(&mut self, end: End) -> End {
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

    /// The whole answer in the client's words.
    fn translated(&mut self, body: &[u8]) -> End {
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
    pub(super) fn after_call(mut self: Box<Self>, outcome: Outcome) -> Done {
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

    fn back(mut self: Box<Self>, pending: Option<Pending>) -> Done {
        self.pending = pending;
        self.waits_for = WaitsFor::Slot;
        Done::Back(self)
    }

    /// The client left, or the gateway stops, while a call was waited for on a pump.
    pub(super) fn call_lost(mut self: Box<Self>, error: Error) {
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
    pub(super) fn answer_max(&self) -> usize {
        self.chain.get(self.at).map_or(0, |(link, _)| link.settings.answer_max)
    }

    /// The error of an answer that is larger than that, counted.
    pub(super) fn answer_too_large(&self) -> Error {
        let max = self.answer_max();
        if let Some((link, _)) = self.chain.get(self.at) {
            link.counts.answer_too_large();
        }
        too_large(max)
    }

    fn whole(mut self: Box<Self>, body: Vec<u8>) -> Response {
        self.record.finish(200, body.len() as u64);
        let mut response = Response::new(200, self.reply.content_type(), body);
        if let Some((link, target)) = self.chain.get(self.at) {
            response = response
                .with("x-tidegate-upstream", link.settings.name.as_str())
                .with("x-tidegate-model", target.model.as_str());
        }
        for (name, value) in std::mem::take(&mut self.fields) {
            response = response.with(name, value);
        }
        response
    }

    /// The stream ends with an error, in the client's own protocol and without its terminator.
    fn cut(mut self: Box<Self>, error: &Error, client: &mut ClientStream<'_>) -> Step {
        self.cached.failed(error);
        self.record.failed(error);
        let gone = matches!(error.kind(), Kind::ClientGone | Kind::ClientStalled);
        let mut keep_alive = false;
        if !gone {
            self.record.metrics().streams_cut.inc();
            let mut event = Vec::new();
            self.reply.error_event(error, &mut event);
            keep_alive = client.finish(&event).unwrap_or(false);
        }
        self.record.finish(200, client.bytes());
        Step::Streamed { keep_alive }
    }

    /// The chain came to nothing before any content.
    fn end(mut self: Box<Self>, client: &mut ClientStream<'_>) -> Step {
        if client.started() {
            let error = self.take_error();
            let stale = self.cached.failed(&error);
            let replayed = stale.and_then(|stale| self.replayed(&stale, Origin::Stale));
            return match replayed.map(|response| client.finish(&response.body)) {
                Some(sent) => Step::Streamed { keep_alive: sent.unwrap_or(false) },
                None => self.cut(&error, client),
            };
        }
        let gone = |error: &Error| matches!(error.kind(), Kind::ClientGone | Kind::ClientStalled);
        if self.last_error.as_ref().is_some_and(gone) {
            let error = self.take_error();
            self.record.failed(&error);
            self.record.finish(error.row().status, 0);
            return Step::Streamed { keep_alive: false };
        }
        self.failed()
    }

    fn failed(mut self: Box<Self>) -> Step {
        let error = self.take_error();
        Step::Respond(self.answer(&error))
    }

    /// A link did not answer. What the client is told is the last cause that says what went wrong:
    /// that a fallback was busy, or could not have carried the request, does not. The log has all.
    fn noted(&mut self, error: Error) {
        let told = self.last_error.as_ref();
        if told.is_none_or(|told| says_little(told.kind()) || !says_little(error.kind())) {
            self.last_error = Some(error);
        }
    }

    fn take_error(&mut self) -> Error {
        let unavailable = self.unavailable.take().map(|link| link.error(clock::now()));
        let busy = || Error::new(Kind::WaitingTimeout, "every upstream of the chain is busy");
        match self.last_error.take() {
            Some(told) if !says_little(told.kind()) => told,
            told => unavailable.or(told).unwrap_or_else(busy),
        }
    }

    fn answer(&mut self, error: &Error) -> Response {
        let stale = self.cached.failed(error);
        if let Some(response) = stale.and_then(|stale| self.replayed(&stale, Origin::Stale)) {
            return response;
        }
        // A stop is nothing that the chain said: a client may well try again.
        let mut response = match error.kind() {
            // And of what was left alone nothing was tried: after `Retry-After` it will be.
            Kind::Draining | Kind::UpstreamUnavailable | Kind::UpstreamQuota => {
                errors::response(error, self.path)
            }
            _ => errors::after_the_chain(error, self.path),
        };
        for (name, value) in std::mem::take(&mut self.fields) {
            response = response.with(name, value);
        }
        self.record.failed(error);
        self.record.finish(response.status, response.body.len() as u64);
        response
    }
}

/// What a stream that flows on asks of its exchange.
impl Exchange {
    pub(super) fn reply(&mut self) -> &mut Reply {
        &mut self.reply
    }

    /// When the client will have heard nothing for `early_head`.
    pub(super) fn silence_deadline(&self) -> Instant {
        self.last_sent + self.early_head
    }

    pub(super) fn sent_at(&mut self, now: Instant) {
        self.last_sent = now;
    }

    pub(super) fn keep_alive(&mut self, out: &mut Vec<u8>) {
        self.record.metrics().keep_alives.inc();
        self.reply.keep_alive(out);
    }

    pub(super) fn usage(&mut self, usage: Usage) {
        if let Some((link, target)) = self.chain.get(self.at) {
            self.record.usage(link, target, usage);
        }
        if let Some(charge) = &mut self.charge {
            charge.settle(usage.input.saturating_add(usage.output));
        }
    }

    /// The longest event of the stream had so many bytes.
    pub(super) fn line(&self, bytes: usize) {
        if let Some((link, _)) = self.chain.get(self.at) {
            link.counts.line(bytes);
        }
    }

    /// The stream is whole; `kept` makes of it what the cache can give again.
    pub(super) fn keep(&mut self, kept: impl FnOnce() -> Option<Kept>) {
        if let Some((link, target)) = self.chain.get(self.at) {
            let from = (&*link.settings.name, &*target.model);
            self.cached.answered(kept, from, self.at == 0);
        }
    }

    /// The current link's attempt ended well.
    pub(super) fn answered(&mut self) {
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
    fn attempt_failed(&mut self, error: &Error) {
        if let Some((link, _)) = self.chain.get(self.at)
            && let Some(pass) = self.pass.take()
        {
            link.failed(pass, error, self.fair_after);
            self.record.attempt_failed(&link.settings.name, error);
        }
    }

    /// The stream ends with an error, which the client is told.
    pub(super) fn cut_in_band(&mut self, error: &Error, out: &mut Vec<u8>) {
        self.record.metrics().streams_cut.inc();
        self.reply.error_event(error, out);
        self.lost(error);
    }

    /// The stream ends with an error.
    pub(super) fn lost(&mut self, error: &Error) {
        self.attempt_failed(error);
        self.cached.failed(error);
        self.record.failed(error);
    }

    /// Everything was sent that will be.
    pub(super) fn ended(&mut self, bytes: u64) {
        self.permit = None;
        self.record.finish(200, bytes);
    }

    pub(super) fn fault(&self, fault: &Fault) -> Error {
        fault_error(fault, self.upstream_name())
    }

    pub(super) fn too_late(&self, phase: Phase) -> Error {
        too_late(self.upstream_name(), phase)
    }

    fn upstream_name(&self) -> &str {
        self.chain.get(self.at).map_or("", |(link, _)| &link.settings.name)
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

/// Whether this is about a link that was not asked.
fn says_little(kind: Kind) -> bool {
    matches!(kind, Kind::Unsupported | Kind::WaitingFull | Kind::WaitingTimeout)
}

/// What ids of answers begin with, as OpenAI's do.
fn id_prefix(route: Route) -> &'static str {
    match route {
        Route::ChatCompletions | Route::OllamaChat => "chatcmpl-",
        _ => "cmpl-",
    }
}

/// The client's own read timeout, as the OpenAI clients tell it.
fn patience(request: &Request) -> Option<Duration> {
    let text = request.head.headers.get_str("x-stainless-read-timeout")?;
    let seconds = text.trim().parse::<f64>().ok().filter(|seconds| *seconds >= 1.0)?;
    Duration::try_from_secs_f64(seconds.min(86_400.0)).ok()
}
