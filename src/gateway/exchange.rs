//! One model call of a client: its chain, walked until somebody answers.

mod away;
mod ends;
mod walk;

use super::attempt::End;
use super::cached::{self, Answer, Next, Origin, Part, Plan};
use super::drill::Drill;
use super::record::Record;
use super::source::HeadSays;
use super::state::{Chain, State};
use super::{Gateway, browser, errors, lists, routes};
use crate::base::clock;
use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::Lease;
use crate::base::permits::Permit;
use crate::config::settings::Target;
use crate::llm::{Ask, Reply, Route};
use crate::net::http::{Request, Response};
use crate::net::service::{Step, Wait};
use crate::net::turn::Turn;
use crate::upstream::breakers::{Pass, Unavailable};
use crate::upstream::calls::Call;
use crate::upstream::rate::Charge;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    /// Where drills are allowed.
    drill: Option<Arc<Drill>>,
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
                    drill: gateway.drill.clone(),
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
        let models = lists::allowed(gateway.models(state, request), ask.model())?;
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
