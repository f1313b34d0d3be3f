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

/// The first step of a body's budget and of its memory, however long it claims to be: both follow
/// bytes that came. Further steps double what a body of known length has; a chunked one gets as much
/// again.
const BODY_STEP: u64 = 64 * 1024;

/// How long a body's rate is watched before it is believed.
const RATE_WINDOW: Duration = Duration::from_secs(2);

/// When memory for bodies is short, one that comes slower than this, in bytes per second, makes room
/// for others. A body of 32 MiB that comes so slowly does not arrive within
/// `server.body_timeout` anyway.
const BODY_SLOW_RATE: f64 = 64.0 * 1024.0;

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
    /// The total body budget has no room for the next step of this body. Nothing is lost: go on when
    /// there is some, or refuse with [`Intake::no_room`].
    NoRoom,
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
    /// The client waits for `100 Continue`.
    waits: bool,
    pace: Pace,
}

/// How fast a body comes. Two marks, a window apart, so that a rate is always that of the last one
/// or two windows.
struct Pace {
    /// When the last bytes were seen to have come, and how many there were then.
    moved: Instant,
    came: usize,
    earlier: (Instant, usize),
    later: (Instant, usize),
}

/// What came of a body's bytes.
enum Took {
    All,
    Some,
    NoRoom,
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
                        Ok(Some(request)) => return Advance::Ready(request),
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
        self.take_body(input, env, now)
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

    /// There is no room for the rest of the body, and none was made.
    pub fn no_room(&mut self, env: &Env<'_>) -> Box<Refusal> {
        let context = "no memory is left for request bodies now; try again shortly";
        self.refuse(&Error::new(Kind::BodiesFull, context), env)
    }

    /// The body makes room for others.
    pub fn give_way(&mut self, env: &Env<'_>) -> Box<Refusal> {
        let context = "memory for request bodies is short and this one came too slowly; \
                       try again shortly, and send it faster";
        self.refuse(&Error::new(Kind::BodiesFull, context), env)
    }

    /// The rate of a body that comes slowly, in bytes per second; none for others, and for one that
    /// has been coming for a moment only.
    pub fn slow_rate(&self, now: Instant) -> Option<f64> {
        let partial = self.body.as_ref()?;
        let age = |since: Instant| now.saturating_duration_since(since);
        let (since, bytes) = partial.pace.earlier;
        if age(since) < RATE_WINDOW {
            return None;
        }
        if age(partial.pace.moved) >= RATE_WINDOW {
            return Some(0.0);
        }
        let came = partial.body.len().saturating_sub(bytes);
        let rate = came as f64 / age(since).as_secs_f64();
        (rate < BODY_SLOW_RATE).then_some(rate)
    }

    /// Where the next bytes can be read to without another copy, and how many at most: the body of
    /// exact length that is on its way, as far as its budget goes.
    pub fn body_space(&mut self) -> Option<(&mut Vec<u8>, usize)> {
        let partial = self.body.as_mut()?;
        let BodyLength::Exact(_) = partial.head.body else { return None };
        let room = partial.room();
        // Without room `advance` says so; a read of nothing would look like the end.
        (room > 0).then_some((&mut partial.body, room))
    }

    fn admitted(
        &mut self,
        head: Head,
        env: &Env<'_>,
        started: Instant,
        now: Instant,
    ) -> Result<Option<Box<Request>>, Box<Refusal>> {
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
        let too_long = match head.body {
            BodyLength::Exact(length) => length > admission.body_max,
            BodyLength::None | BodyLength::UntilClose | BodyLength::Chunked => false,
        };
        if too_long {
            env.sizes.refused(Kind::BodyTooLarge, 0);
            return Err(failed(Kind::BodyTooLarge, too_large(admission.body_max)));
        }
        let budget = env.bodies.nothing();
        if matches!(head.body, BodyLength::None | BodyLength::UntilClose | BodyLength::Exact(0)) {
            self.started = None;
            let peer = env.peer;
            let (route, key) = (admission.route, admission.key);
            let request = Request {
                id,
                head,
                body: Vec::new(),
                budget,
                route,
                key,
                granted: false,
                peer,
                started,
            };
            return Ok(Some(Box::new(request)));
        }
        self.started = Some(started);
        self.body = Some(Box::new(Partial {
            waits: head.expects_continue,
            decoder: BodyDecoder::new(head.body),
            body: Vec::new(),
            since: now,
            pace: Pace { moved: now, came: 0, earlier: (now, 0), later: (now, 0) },
            id,
            head,
            admission,
            budget,
        }));
        Ok(None)
    }

    fn take_body(&mut self, input: &mut InputBuffer, env: &Env<'_>, now: Instant) -> Advance {
        let Some(partial) = self.body.as_mut() else { return Advance::More };
        let took = partial.take(input);
        partial.watch(now);
        match took {
            Err(error) => {
                env.sizes.refused(error.kind(), 0);
                Advance::Refuse(self.refuse(&error, env))
            }
            Ok(Took::NoRoom) => Advance::NoRoom,
            Ok(Took::Some) if std::mem::take(&mut partial.waits) => Advance::Continue,
            Ok(Took::Some) => Advance::More,
            Ok(Took::All) => {
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
                    granted: false,
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
    /// Bytes that its budget has room for.
    fn room(&self) -> usize {
        let room = self.budget.amount().saturating_sub(self.body.len() as u64);
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Notes how much has come by now.
    fn watch(&mut self, now: Instant) {
        let came = self.body.len();
        if came > self.pace.came {
            (self.pace.moved, self.pace.came) = (now, came);
        }
        if now.saturating_duration_since(self.pace.later.0) >= RATE_WINDOW {
            self.pace.earlier = self.pace.later;
            self.pace.later = (now, came);
        }
    }

    fn take(&mut self, input: &mut InputBuffer) -> Result<Took, Error> {
        match self.head.body {
            BodyLength::Exact(length) => Ok(self.take_exact(length, input)),
            _ => self.take_chunked(input),
        }
    }

    fn take_exact(&mut self, length: u64, input: &mut InputBuffer) -> Took {
        loop {
            let room = self.room();
            let take = room.min(input.len());
            if self.body.capacity() - self.body.len() < take {
                self.body.reserve_exact(room);
            }
            self.body.extend_from_slice(&input.bytes()[..take]);
            input.consume(take);
            let came = self.body.len() as u64;
            if came == length {
                return Took::All;
            }
            if came < self.budget.amount() {
                return Took::Some;
            }
            if !self.budget.grow(came.max(BODY_STEP).min(length - came)) {
                return Took::NoRoom;
            }
        }
    }

    fn take_chunked(&mut self, input: &mut InputBuffer) -> Result<Took, Error> {
        // Before anything is decoded, which is not done twice: what comes out is no more than what
        // goes in.
        let max = self.admission.body_max;
        let most = (self.body.len() + input.len().max(1)) as u64;
        let most = most.min(max.max(self.body.len() as u64));
        let amount = self.budget.amount();
        if most > amount {
            let step = BODY_STEP.max(most - amount).min(max.max(most) - amount);
            if !self.budget.grow(step) {
                return Ok(Took::NoRoom);
            }
        }
        while !self.decoder.finished() && !input.is_empty() {
            let decoded = self.decoder.decode(input.bytes())?;
            let used = decoded.used;
            let needed = (self.body.len() + decoded.data.len()) as u64;
            let announced = needed.saturating_add(self.decoder.announced());
            if announced > max {
                return Err(Error::new(Kind::BodyTooLarge, too_large(max)));
            }
            self.body.extend_from_slice(decoded.data);
            input.consume(used);
            if used == 0 {
                break;
            }
        }
        Ok(if self.decoder.finished() { Took::All } else { Took::Some })
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

#[cfg(test)]
mod tests;
