//! A request on its way in: a state machine over bytes and time, without I/O.
//!
//! It is driven by whoever holds the connection, the parking thread or a worker, and gives a
//! complete request, or a refusal, or asks for more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conn::Current;
use super::http::{BodyLength, Head, Method, Request, Response};
use super::http1::{self, BodyDecoder};
use super::service::{Admission, Service};
use super::settings::{BODY_RATE_GRACE, Settings};
use super::sizes::Sizes;
use crate::base::error::{Error, Kind};
use crate::base::id::RequestId;
use crate::base::metrics::{Lease, Limit};

/// Budget is taken in steps of this many bytes while a chunked body grows.
const CHUNKED_BUDGET_STEP: u64 = 64 * 1024;

/// First allocation for a body, however long it claims to be: memory follows bytes that came.
const BODY_FIRST_BYTES: usize = 64 * 1024;

/// What the intake needs to know of the engine.
pub struct Env<'a> {
    /// The settings now.
    pub settings: &'a Settings,
    /// Who admits and refuses.
    pub service: &'a dyn Service,
    /// The total body budget.
    pub bodies: &'a Arc<Limit>,
    /// The limits on each request.
    pub sizes: &'a Sizes,
    /// Whose request it is.
    pub peer: SocketAddr,
}

/// What came of the bytes so far.
pub enum Advance {
    /// More bytes are needed.
    More,
    /// The client waits for `100 Continue` before it sends the body; say it, then go on.
    Continue,
    /// A whole request.
    Ready(Box<Request>),
    /// Not this request: answer, and close the connection.
    Refuse(Box<Refusal>),
}

/// A refusal by the engine or the service.
pub struct Refusal {
    /// The answer.
    pub response: Response,
    /// How to send it. Without `keep_alive` the connection is closed after it.
    pub current: Current,
    /// How much of the body may be read and thrown away, so that the client, which sends it before it
    /// reads, comes to the answer. Zero for a client that was not let in.
    pub drain: u64,
}

/// The state of one request on its way in.
#[derive(Default)]
pub struct Intake {
    scanned: usize,
    started: Option<Instant>,
    body: Option<Box<Partial>>,
}

struct Partial {
    id: RequestId,
    head: Head,
    admission: Admission,
    decoder: BodyDecoder,
    body: Vec<u8>,
    budget: Lease,
    since: Instant,
}

impl Intake {
    /// Whether no byte of a request has come.
    pub fn idle(&self) -> bool {
        self.started.is_none() && self.body.is_none()
    }

    /// The time by which more must have come, else 408. `None` while idle.
    pub fn deadline(&self, settings: &Settings) -> Option<Instant> {
        match &self.body {
            None => self.started.map(|started| started + settings.head_timeout),
            Some(partial) => {
                let absolute = partial.since + settings.body_timeout;
                if settings.body_rate_min == 0 {
                    return Some(absolute);
                }
                let came = partial.body.len() as f64 / settings.body_rate_min as f64;
                let paced = partial.since + BODY_RATE_GRACE + Duration::from_secs_f64(came);
                Some(absolute.min(paced))
            }
        }
    }

    /// Goes on with `input`, from which what was used is removed.
    pub fn advance(&mut self, input: &mut InputBuffer, env: &Env<'_>, now: Instant) -> Advance {
        if self.body.is_none() {
            if input.is_empty() {
                return Advance::More;
            }
            let started = *self.started.get_or_insert(now);
            match http1::request_head(input.bytes(), &mut self.scanned, &env.settings.head) {
                Ok(None) => return Advance::More,
                Ok(Some((head, used))) => {
                    input.consume(used);
                    self.scanned = 0;
                    let body = unasked_body(&head, input);
                    env.sizes.head(&head, used);
                    match self.admitted(head, env, started, now) {
                        Ok(None) => {}
                        Ok(Some(advance)) => return advance,
                        Err(mut refusal) => {
                            if let Some((length, keep_alive)) = body
                                && spares(refusal.response.status)
                            {
                                input.consume(length);
                                refusal.current.keep_alive = keep_alive;
                            }
                            return Advance::Refuse(refusal);
                        }
                    }
                }
                Err(error) => {
                    env.sizes.refused(error.kind(), input.len());
                    return Advance::Refuse(self.refuse(&error, env));
                }
            }
        }
        self.take_body(input, env)
    }

    /// The deadline ran out.
    pub fn timed_out(&mut self, env: &Env<'_>) -> Box<Refusal> {
        let what = if self.body.is_some() { "body" } else { "head" };
        let context = format!("the request's {what} did not arrive in time; send it faster");
        self.refuse(&Error::new(Kind::RequestTimeout, context), env)
    }

    /// The client closed its side in the middle of a request. Nothing half-written goes on.
    pub fn cut(&mut self, env: &Env<'_>) -> Box<Refusal> {
        let error = Error::new(Kind::BadRequest, "the request ended before it was complete");
        self.refuse(&error, env)
    }

    /// Where the next bytes can be read to without another copy, and how many at most: the body of
    /// exact length that is on its way.
    pub fn body_space(&mut self) -> Option<(&mut Vec<u8>, usize)> {
        let partial = self.body.as_mut()?;
        let BodyLength::Exact(length) = partial.head.body else { return None };
        let left = usize::try_from(length).ok()?.checked_sub(partial.body.len())?;
        Some((&mut partial.body, left))
    }

    fn admitted(
        &mut self,
        head: Head,
        env: &Env<'_>,
        started: Instant,
        now: Instant,
    ) -> Result<Option<Advance>, Box<Refusal>> {
        let id = head.headers.get("x-request-id").and_then(RequestId::from_client);
        let id = id.unwrap_or_else(RequestId::generate);
        let refuse = |response: Response, id: RequestId| {
            let mut current = Current::of(&head, id);
            // A body that nobody reads would be taken for the next request, and whoever may not be
            // here is shown out.
            let harmless = matches!(response.status, 200..=299 | 404 | 405);
            current.keep_alive &= head.body == BodyLength::None && harmless;
            Box::new(Refusal { response, current, drain: 0 })
        };
        let admission = match env.service.admit(&head, &env.peer, &id) {
            Ok(admission) => admission,
            Err(response) => {
                self.started = None;
                return Err(refuse(*response, id));
            }
        };
        let failed = |kind: Kind, context: String| {
            let error = Error::new(kind, context);
            let response = env.service.refuse(&error, Some(&head), &env.peer, &id);
            let drain = drain(&head, admission.body_max);
            Box::new(Refusal { drain, ..*refuse(response, id.clone()) })
        };
        let reserve = match head.body {
            BodyLength::None | BodyLength::UntilClose => 0,
            BodyLength::Exact(length) if length > admission.body_max => {
                env.sizes.refused(Kind::BodyTooLarge, 0);
                return Err(failed(Kind::BodyTooLarge, too_large(admission.body_max)));
            }
            BodyLength::Exact(length) => length,
            BodyLength::Chunked => CHUNKED_BUDGET_STEP.min(admission.body_max),
        };
        let Some(budget) = env.bodies.try_take(reserve) else {
            let context = "no memory is left for request bodies now; try again shortly";
            return Err(failed(Kind::BodiesFull, context.to_owned()));
        };
        if reserve == 0 && head.body != BodyLength::Chunked {
            self.started = None;
            let peer = env.peer;
            let (route, key) = (admission.route, admission.key);
            let request = Request { id, head, body: Vec::new(), budget, route, key, peer, started };
            return Ok(Some(Advance::Ready(Box::new(request))));
        }
        let expects_continue = head.expects_continue;
        let first = usize::try_from(reserve).unwrap_or(usize::MAX).min(BODY_FIRST_BYTES);
        let decoder = BodyDecoder::new(head.body);
        let body = Vec::with_capacity(first);
        self.started = Some(started);
        self.body =
            Some(Box::new(Partial { id, head, admission, decoder, body, budget, since: now }));
        Ok(expects_continue.then_some(Advance::Continue))
    }

    fn take_body(&mut self, input: &mut InputBuffer, env: &Env<'_>) -> Advance {
        let Some(partial) = self.body.as_mut() else { return Advance::More };
        match partial.take(input) {
            Err(error) => {
                env.sizes.refused(error.kind(), 0);
                Advance::Refuse(self.refuse(&error, env))
            }
            Ok(false) => Advance::More,
            Ok(true) => {
                let Some(partial) = self.body.take() else { return Advance::More };
                let started = self.started.take().unwrap_or(partial.since);
                let Partial { id, head, admission, body, budget, .. } = *partial;
                env.sizes.body(body.len());
                let (route, key, peer) = (admission.route, admission.key, env.peer);
                Advance::Ready(Box::new(Request {
                    id,
                    head,
                    body,
                    budget,
                    route,
                    key,
                    peer,
                    started,
                }))
            }
        }
    }

    fn refuse(&mut self, error: &Error, env: &Env<'_>) -> Box<Refusal> {
        self.started = None;
        let mut drained = 0;
        let (head, id) = match self.body.take() {
            Some(partial) => {
                if matches!(error.kind(), Kind::BodyTooLarge | Kind::BodiesFull) {
                    drained = drain(&partial.head, partial.admission.body_max);
                }
                (Some(partial.head), partial.id)
            }
            None => (None, RequestId::generate()),
        };
        let response = env.service.refuse(error, head.as_ref(), &env.peer, &id);
        let mut current = Current::lost(id);
        current.head_only = head.is_some_and(|head| head.method == Method::Head);
        Box::new(Refusal { response, current, drain: drained })
    }
}

impl Partial {
    /// True when the body is complete.
    fn take(&mut self, input: &mut InputBuffer) -> Result<bool, Error> {
        if let BodyLength::Exact(length) = self.head.body {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let take = (length - self.body.len()).min(input.len());
            self.body.extend_from_slice(&input.bytes()[..take]);
            input.consume(take);
            return Ok(self.body.len() == length);
        }
        while !self.decoder.finished() && !input.is_empty() {
            let decoded = self.decoder.decode(input.bytes())?;
            let used = decoded.used;
            let needed = (self.body.len() + decoded.data.len()) as u64;
            let announced = needed.saturating_add(self.decoder.announced());
            if announced > self.admission.body_max {
                return Err(Error::new(Kind::BodyTooLarge, too_large(self.admission.body_max)));
            }
            if needed > self.budget.amount() {
                let step = CHUNKED_BUDGET_STEP.max(needed - self.budget.amount());
                if !self.budget.grow(step) {
                    let context = "no memory is left for request bodies now; try again shortly";
                    return Err(Error::new(Kind::BodiesFull, context));
                }
            }
            self.body.extend_from_slice(decoded.data);
            input.consume(used);
            if used == 0 {
                break;
            }
        }
        Ok(self.decoder.finished())
    }
}

/// The body of a request, when it is here already, whole: its length, and whether its client goes on
/// with the connection.
fn unasked_body(head: &Head, input: &InputBuffer) -> Option<(usize, bool)> {
    let BodyLength::Exact(length) = head.body else { return None };
    let length = usize::try_from(length).ok()?;
    (input.len() >= length && !head.expects_continue).then_some((length, head.keep_alive))
}

/// Whether a refusal spares the connection when the body is out of the way: whoever is only to come
/// again later had better not need a new connection for it.
fn spares(status: u16) -> bool {
    matches!(status, 429 | 503)
}

/// How much of a body that is too large is worth reading on: twice what would have been taken, and
/// nothing of one that is known to be larger than that.
fn drain(head: &Head, body_max: u64) -> u64 {
    let most = body_max.saturating_mul(2);
    match head.body {
        BodyLength::Exact(length) if length > most => 0,
        _ => most,
    }
}

fn too_large(max: u64) -> String {
    format!("the request body is larger than {max} bytes; send less, or raise server.body_max")
}

/// Bytes that were read and not yet used.
#[derive(Default)]
pub struct InputBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl InputBuffer {
    /// What is there.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// How many bytes are there.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes the first `used` bytes.
    pub fn consume(&mut self, used: usize) {
        self.start += used;
        debug_assert!(self.start <= self.bytes.len());
        if self.start >= self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    /// The buffer to append to, with what was used removed.
    pub fn space(&mut self) -> &mut Vec<u8> {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        &mut self.bytes
    }

    /// Gives the memory back when nothing is in it.
    pub fn release(&mut self) {
        if self.is_empty() {
            *self = InputBuffer::default();
        }
    }
}
