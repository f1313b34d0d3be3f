//! `GET /live`: the state of the gateway once a second, as server-sent events, and `GET /live.json`:
//! the same document once. A viewer is data on the pump of the ops plane, never a thread.
//!
//! A document is made only while somebody looks, at most once a second, and is the same for all
//! viewers. One who has not taken the last one is skipped, and let go when that lasts.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Parts;
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Lease, Limit, Registry};
use crate::net::http::Response;
use crate::net::pump::{Flow, FlowStep};
use crate::net::service::Step;
use crate::net::turn::Turn;

mod document;

use document::Maker;

/// Time between two documents.
const EVERY: Duration = Duration::from_secs(1);

/// How long a viewer may take for one document. Past it: its connection is closed.
const TAKEN_MAX: Duration = Duration::from_secs(5);

/// What the kernel keeps for a viewer that does not read, in bytes (Linux doubles it). A few
/// documents: one who looks again shall see what is, not what was.
const KERNEL_BYTES: usize = 32 * 1024;

/// The first bytes of a stream: how long a page waits before it connects again, in milliseconds.
const HELLO: &[u8] = b"retry: 2000\n\n";

/// The document of a moment.
pub(super) struct Document {
    made: Instant,
    /// `id: N`, `data: {…}` and the empty line.
    event: Vec<u8>,
    /// Where the JSON begins; it ends two bytes before the end.
    json: usize,
}

/// Documents for those who look.
#[derive(Debug)]
pub(super) struct Live {
    maker: Maker,
    last: Locked<Option<Arc<Document>>>,
    places: Arc<Limit>,
    stalled: Arc<Counter>,
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Document").field("bytes", &self.event.len()).finish()
    }
}

/// Registers the bound on viewers, or changes it.
pub fn bound(registry: &Registry, live_max: usize) -> Arc<Limit> {
    registry.limit("ops.live_max", "", live_max as u64, "503 live_full; the page asks now and then")
}

impl Live {
    pub(super) fn new(parts: Parts, live_max: usize) -> Arc<Self> {
        let places = bound(&parts.registry, live_max);
        Live::with(parts, places)
    }

    /// Single documents only, for the control socket.
    pub(super) fn without_pages(parts: Parts) -> Arc<Self> {
        Live::with(parts, Limit::detached(0))
    }

    fn with(parts: Parts, places: Arc<Limit>) -> Arc<Self> {
        let help = "Live pages that were let go because they did not read.";
        Arc::new(Live {
            places,
            stalled: parts.registry.counter("tidegate_live_stalled_total", help, &[]),
            last: Locked::new(Rank::Leaf, None),
            maker: Maker::new(parts),
        })
    }

    /// Begins a stream of documents.
    ///
    /// # Errors
    /// [`Kind::LiveFull`], or when the viewer is gone already.
    pub(super) fn follow(self: &Arc<Self>, turn: &mut Turn<'_>) -> Result<Step, Error> {
        let Some(place) = self.places.try_take(1) else {
            let text = format!(
                "{} live pages are open (ops.live_max); close one, or ask for /live.json",
                self.places.max()
            );
            return Err(Error::new(Kind::LiveFull, text).retry_after(Some(5 * EVERY)));
        };
        let mut client = turn.client();
        client.keep_unsent(KERNEL_BYTES);
        client.start(200, &FIELDS);
        client.send(HELLO)?;
        let bytes = client.bytes();
        let next = clock::now();
        let viewer = Viewer { live: Arc::clone(self), _place: place, next, sent: next };
        Ok(Step::Flow { flow: Box::new(viewer), bytes })
    }

    /// The head of a stream, for those who ask for nothing else.
    pub(super) fn head() -> Response {
        let [(_, content_type), rest @ ..] = FIELDS;
        let response = Response::new(200, content_type, Vec::new());
        rest.into_iter().fold(response, |response, (name, value)| response.with(name, value))
    }

    /// One document.
    pub(super) fn once(&self) -> Response {
        let document = self.document(clock::now());
        let json = &document.event[document.json..document.event.len() - 2];
        Response::json(200, json).with("cache-control", "no-store")
    }

    /// The document of this second.
    fn document(&self, now: Instant) -> Arc<Document> {
        let last = self.last.with(|last| last.clone());
        match last {
            Some(last) if now < last.made + EVERY => last,
            _ => {
                let fresh = Arc::new(self.make(now));
                let old = self.last.with(|last| last.replace(Arc::clone(&fresh)));
                // Freed outside the lock.
                drop(old);
                fresh
            }
        }
    }

    fn make(&self, now: Instant) -> Document {
        let (number, json) = self.maker.make(now);
        let mut event = format!("id: {number}\ndata: ").into_bytes();
        let begin = event.len();
        event.extend_from_slice(json.as_bytes());
        event.extend_from_slice(b"\n\n");
        Document { made: now, event, json: begin }
    }
}

/// The fields of a stream; the last one is for nginx, which would keep events back.
const FIELDS: [(&str, &str); 4] = [
    ("content-type", "text/event-stream"),
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("x-accel-buffering", "no"),
];

/// One open page.
struct Viewer {
    live: Arc<Live>,
    _place: Lease,
    /// When it gets the next document.
    next: Instant,
    /// When it got the last one.
    sent: Instant,
}

impl Viewer {
    fn look(&mut self, now: Instant, out: &mut Vec<u8>) -> FlowStep {
        if now >= self.next {
            let document = self.live.document(now);
            out.extend_from_slice(&document.event);
            self.sent = now;
            // All viewers come together, so that one document serves them.
            self.next = document.made + EVERY;
        }
        FlowStep::Wait
    }
}

impl Flow for Viewer {
    fn upstream(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn read(&mut self, now: Instant, out: &mut Vec<u8>) -> FlowStep {
        self.look(now, out)
    }

    fn deadline(&self) -> Instant {
        self.next
    }

    fn end_by(&self) -> Instant {
        self.sent + TAKEN_MAX
    }

    fn expired(&mut self, now: Instant, out: &mut Vec<u8>) -> FlowStep {
        self.look(now, out)
    }

    fn lost(&mut self, error: Error) {
        if error.kind() == Kind::ClientStalled {
            self.live.stalled.inc();
            log::info!("live_stalled");
        }
    }

    fn ended(&mut self, _bytes: u64) {}

    fn tail(&mut self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
