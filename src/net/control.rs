//! The control socket: HTTP on a Unix socket that only its owner can open.
//!
//! tiny_http serves it, behind a gate (`gate.rs`). tiny_http sets no timeouts, tells nobody who is on the
//! other end of a Unix socket, reads what it likes as a request and may end the process over a
//! `Content-Length` that was made up; its accept loop ends at the first lack of descriptors. So one
//! thread takes the connections, sees to the peer's user, the bounds and the deadlines, and passes
//! on requests that are whole and well-formed; it builds tiny_http anew when that has died.

pub mod client;
mod gate;
mod handlers;
mod place;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::http::{Method, Response};
use crate::base::clock;
use crate::base::heartbeat::Heartbeats;
use crate::base::metrics::Registry;
use crate::base::thread::{self, Thread};

pub use handlers::Out;
pub use place::{Place, Refused, SOCKET_NAME, socket_in};

/// Largest body of a request, in bytes; a whole configuration fits twice. Past it: 413.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most connections at a time: people and scripts. Past it: 503.
pub const CONNECTIONS_MAX: usize = 32;
/// Most answers that go on and on at a time; each has a thread. Past it: 503.
pub const STREAMS_MAX: usize = 4;
/// Threads that answer. Most answers take no time; a reload or a write of the configuration does.
const HANDLERS: usize = 2;

/// How long the gate may be silent: its loop goes round every second at least.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The process on the other end of the socket, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its user, when it connected.
    pub uid: u32,
    /// Its number, when it connected.
    pub pid: i32,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid={} pid={}", self.uid, self.pid)
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Its path, without the query.
    pub path: String,
    /// Its query, without the `?`; empty when there is none.
    pub query: String,
    /// Its body, at most [`BODY_BYTES_MAX`].
    pub body: Vec<u8>,
    /// Who asks.
    pub caller: Caller,
}

/// What becomes of a request.
pub enum Reply {
    /// A whole answer.
    Whole(Response),
    /// An answer that goes on and on: lines of JSON, until whoever asked leaves.
    Stream(Box<dyn Stream>),
}

/// An answer that goes on and on, on a thread of its own.
pub trait Stream: Send {
    /// Writes its lines. Must come back soon after [`Out::ended`] says so, or writing fails.
    ///
    /// # Errors
    /// Those of `out`: whoever asked has left.
    fn run(self: Box<Self>, out: &mut Out<'_>) -> io::Result<()>;
}

/// Who answers.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. May block for as long as an order to the main loop takes.
    fn answer(&self, call: &Call) -> Reply;

    /// The answer to a request that the socket itself refuses: this status, code and sentence.
    fn refuse(&self, status: u16, code: &'static str, detail: &str) -> Response;
}

/// How long a handler may be at work, beside its waits for the main loop.
const HANDLER_SILENCE_MAX: Duration = Duration::from_secs(30);

/// The running control socket. Dropped, it is closed and its file removed.
pub struct Control {
    path: PathBuf,
    shared: Arc<handlers::Shared>,
    gate: Option<gate::Handle>,
    threads: Vec<Thread>,
}

impl Control {
    /// Opens the socket and starts its threads.
    ///
    /// # Errors
    /// When the operating system refuses a socket or a thread.
    pub fn start(
        place: Place,
        service: Arc<dyn Service>,
        registry: &Registry,
        heartbeats: &Arc<Heartbeats>,
    ) -> io::Result<Control> {
        let path = place.path().to_owned();
        let shared = Arc::new(handlers::Shared::new(service, registry));
        let mut threads = Vec::new();
        for number in 0..HANDLERS {
            let shared = Arc::clone(&shared);
            let name = format!("control-{number}");
            let beat = heartbeats.register_one_of_many(&name, HANDLER_SILENCE_MAX);
            threads.push(thread::spawn(&name, move || shared.run(&beat))?);
        }
        let (gate, thread) = gate::start(place, &shared, registry, heartbeats)?;
        threads.push(thread);
        Ok(Control { path, shared, gate: Some(gate), threads })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes it: no new connections, and the threads end. Threads that are not done by `deadline` are
    /// left behind; how many.
    pub fn stop(&mut self, deadline: Instant) -> usize {
        self.shared.stop();
        // Dropped, it wakes the gate, which lets go of tiny_http.
        self.gate = None;
        let mut threads = std::mem::take(&mut self.threads);
        threads.extend(self.shared.streams());
        while clock::now() < deadline && !threads.iter().all(Thread::finished) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (done, late): (Vec<_>, Vec<_>) = threads.into_iter().partition(Thread::finished);
        drop(done);
        let count = late.len();
        late.into_iter().for_each(Thread::abandon);
        count
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop(clock::now() + Duration::from_secs(1));
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Control at {}", self.path.display())
    }
}
