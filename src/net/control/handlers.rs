//! The threads behind tiny_http: they take its requests, have them answered, and lend a thread to answers
//! that go on and on.

use std::io::{self, Cursor, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tiny_http::{Header, Request, Server, StatusCode};

use super::{BODY_BYTES_MAX, Call, Caller, HANDLERS, Reply, STREAMS_MAX, Service, Stream};
use crate::base::clock;
use crate::base::heartbeat::Beat;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Limit, Registry};
use crate::base::thread::{self, Thread};
use crate::net::http::{BodyLength, Method, Response};
use crate::net::http1::{self, Connection};

/// The field in which the gate says who asks.
pub(super) const CALLER: &str = "x-tidegate-caller";

/// After so long without a line a stream writes an empty one, so that it learns whether somebody
/// still listens.
const EMPTY_LINE_AFTER: Duration = Duration::from_secs(2);

/// What the gate and the handlers share.
pub(super) struct Shared {
    service: Arc<dyn Service>,
    server: ArcSwapOption<Server>,
    stopping: AtomicBool,
    /// One for each stream that may be.
    streams: Locked<[Slot; STREAMS_MAX]>,
    limit: Arc<Limit>,
}

/// A place for a stream.
#[derive(Debug)]
enum Slot {
    Free,
    /// Its thread is being started.
    Taken,
    /// Its thread, which may have ended.
    Runs(Thread),
}

impl Shared {
    pub(super) fn new(service: Arc<dyn Service>, registry: &Registry) -> Self {
        let max = STREAMS_MAX as u64;
        Shared {
            service,
            server: ArcSwapOption::empty(),
            stopping: AtomicBool::new(false),
            streams: Locked::new(Rank::Leaf, std::array::from_fn(|_| Slot::Free)),
            limit: registry.limit("control.streams_max", "", max, "503"),
        }
    }

    pub(super) fn service(&self) -> &dyn Service {
        &*self.service
    }

    /// Puts another tiny_http in the place of the one that there is. The handlers let go of the old
    /// one, which ends with the last of them.
    pub(super) fn replace(&self, server: Option<Server>) {
        let old = self.server.swap(server.map(Arc::new));
        if let Some(old) = old {
            for _ in 0..HANDLERS {
                old.unblock();
            }
        }
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Relaxed);
        self.replace(None);
    }

    /// The threads of streams, to be waited for.
    pub(super) fn streams(&self) -> Vec<Thread> {
        let slots = self
            .streams
            .with(|slots| std::mem::replace(slots, std::array::from_fn(|_| Slot::Free)));
        let thread = |slot| if let Slot::Runs(thread) = slot { Some(thread) } else { None };
        slots.into_iter().filter_map(thread).collect()
    }

    /// Takes a free place, so that nobody else finds it free: its number, and what was in it.
    fn reserve(&self) -> Option<(usize, Slot)> {
        self.streams.with(|slots| {
            let free = |slot: &Slot| match slot {
                Slot::Free => true,
                Slot::Taken => false,
                Slot::Runs(thread) => thread.finished(),
            };
            let (number, slot) = slots.iter_mut().enumerate().find(|(_, slot)| free(slot))?;
            Some((number, std::mem::replace(slot, Slot::Taken)))
        })
    }

    /// Puts something into a place that was taken.
    fn settle(&self, number: usize, now: Slot) {
        let before = self
            .streams
            .with(|slots| slots.get_mut(number).map(|slot| std::mem::replace(slot, now)));
        // Outside the lock, whatever it is: the drop of a thread waits for its end.
        drop(before);
    }

    /// A handler's life.
    pub(super) fn run(self: Arc<Self>, beat: &Beat) {
        while !self.stopping.load(Relaxed) {
            beat.rest();
            let Some(server) = self.server.load_full() else {
                // Until the gate has built one.
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            // Fails when it was replaced, and when its accept loop has ended: then the gate finds out.
            let taken = server.recv();
            drop(server);
            beat.tick();
            match taken {
                Ok(request) => {
                    // A panic drops the request, which tiny_http answers with 500.
                    let _ = catch_unwind(AssertUnwindSafe(|| self.serve(request)));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn serve(self: &Arc<Self>, mut request: Request) {
        let Some(call) = read(&mut request) else {
            let refusal = self.service.refuse(400, "bad_request", "this is no request of the gate");
            return respond(request, refusal);
        };
        match self.service.answer(&call) {
            Reply::Whole(response) => respond(request, response),
            Reply::Stream(stream) => self.lend(request, stream),
        }
    }

    /// Gives a stream a thread.
    fn lend(self: &Arc<Self>, request: Request, stream: Box<dyn Stream>) {
        let full = || {
            let detail = "too many streams are read already; end one";
            self.service.refuse(503, "queue_full", detail)
        };
        let Some((number, ended)) = self.reserve() else {
            self.limit.refuse();
            return respond(request, full());
        };
        drop(ended);
        let Some(lease) = self.limit.try_take(1) else {
            self.settle(number, Slot::Free);
            return respond(request, full());
        };
        let shared = Arc::clone(self);
        let spawned = thread::spawn(&format!("control-s-{number}"), move || {
            let _lease = lease;
            let mut writer = request.into_writer();
            let mut out = Out { writer: &mut writer, last: clock::now(), ended: &shared.stopping };
            let _ = catch_unwind(AssertUnwindSafe(|| {
                out.head().and_then(|()| stream.run(&mut out)).and_then(|()| out.end())
            }));
        });
        // Without a thread the request is dropped, which tiny_http answers with 500.
        self.settle(number, spawned.map_or(Slot::Free, Slot::Runs));
    }
}

/// Where a stream's lines go.
pub struct Out<'a> {
    writer: &'a mut (dyn Write + Send),
    last: Instant,
    ended: &'a AtomicBool,
}

impl Out<'_> {
    /// Writes a line; its end is added. The line is on its way when this comes back.
    ///
    /// # Errors
    /// When whoever asked has left.
    pub fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        let mut chunk = Vec::new();
        http1::write_chunk(&mut chunk, &bytes);
        self.send(&chunk)
    }

    /// To be called at least every second while there is nothing to write: says that the stream has
    /// ended when the daemon stops, and finds out whether somebody listens.
    ///
    /// # Errors
    /// When whoever asked has left.
    pub fn ended(&mut self) -> io::Result<bool> {
        if clock::now().saturating_duration_since(self.last) >= EMPTY_LINE_AFTER {
            self.line(b"")?;
        }
        Ok(self.ended.load(Relaxed))
    }

    fn head(&mut self) -> io::Result<()> {
        let mut head = Vec::new();
        let fields =
            [("content-type", b"application/x-ndjson".as_slice()), ("cache-control", b"no-store")];
        let (body, close) = (BodyLength::Chunked, Connection::Close);
        http1::write_response_head(&mut head, 200, body, close, fields);
        self.send(&head)
    }

    fn end(&mut self) -> io::Result<()> {
        self.send(http1::LAST_CHUNK)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.last = clock::now();
        self.writer.write_all(bytes)?;
        self.writer.flush()
    }
}

/// What the gate sent. It is whole and small; none of it is believed anyway.
fn read(request: &mut Request) -> Option<Call> {
    let said = |request: &Request| {
        let field = request.headers().iter().find(|header| header.field.equiv(CALLER))?;
        let (uid, pid) = field.value.as_str().split_once(' ')?;
        Some(Caller { uid: uid.parse().ok()?, pid: pid.parse().ok()? })
    };
    let caller = said(request)?;
    let method = Method::parse(&request.method().to_string());
    let url = request.url();
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let length = request.body_length().unwrap_or(0);
    let mut body = Vec::new();
    let mut reader = request.as_reader().take(BODY_BYTES_MAX as u64);
    reader.read_to_end(&mut body).ok()?;
    (body.len() == length).then_some(Call { method, path, query, body, caller })
}

fn respond(request: Request, response: Response) {
    let fields = response.headers.iter();
    let headers = fields
        .filter_map(|(name, value)| Header::from_bytes(name.as_bytes(), value.as_bytes()).ok());
    let length = response.body.len();
    let answer = tiny_http::Response::new(
        StatusCode(response.status),
        headers.collect(),
        Cursor::new(response.body),
        Some(length),
        None,
    );
    // Whoever asked may have left.
    let _ = request.respond(answer);
}
