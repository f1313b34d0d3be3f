//! The gate before tiny_http: the thread `control`. It takes connections for as long as the daemon lives,
//! knows who is on the other end, reads each request whole under a deadline, passes it on, and carries
//! the answer back.

mod guest;
mod inner;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::handlers::Shared;
use super::{CONNECTIONS_MAX, Caller, Place, SILENCE_MAX};
use crate::base::clock;
use crate::base::heartbeat::{Beat, Heartbeats};
use crate::base::metrics::{Counter, Limit, Registry, Unit};
use crate::base::thread::{self, Thread};
use guest::{Guest, Next};
use inner::Inner;

/// The loop goes round at least so often: for deadlines, and for the look at tiny_http.
const ROUND: Duration = Duration::from_secs(1);
/// Wait after an error that only time cures (EMFILE and its like).
const BACKOFF: Duration = Duration::from_millis(100);

/// Ends the gate's thread when dropped.
pub(super) struct Handle {
    _stop: UnixStream,
}

/// Starts the thread.
///
/// # Errors
/// When the operating system refuses it.
pub(super) fn start(
    place: Place,
    shared: &Arc<Shared>,
    registry: &Registry,
    heartbeats: &Arc<Heartbeats>,
) -> io::Result<(Handle, Thread)> {
    let (stop, stopped) = UnixStream::pair()?;
    let max = CONNECTIONS_MAX as u64;
    let refused = |code| {
        let help = "Requests that the control socket refused, by code.";
        registry.counter("tidegate_control_refused_total", help, &[("code", code)])
    };
    let help = "How often the server behind the control socket was built anew.";
    let gate = Gate {
        inner: Inner::new(registry.counter("tidegate_control_rebuilt_total", help, &[])),
        place,
        shared: Arc::clone(shared),
        guests: Vec::with_capacity(CONNECTIONS_MAX),
        connections: registry.limit("control.connections_max", "", max, "503"),
        counters: Counters {
            foreign: refused("foreign_user"),
            full: refused("connections_full"),
            request: refused("bad_request"),
            failed: refused("failed"),
            bodies: registry.limit_each(
                Unit::Bytes,
                "control.body_max",
                "",
                super::BODY_BYTES_MAX as u64,
                "413",
            ),
        },
    };
    let beat = heartbeats.register("control", SILENCE_MAX);
    let thread = thread::spawn("control", move || gate.run(&stopped, &beat))?;
    Ok((Handle { _stop: stop }, thread))
}

/// What is counted.
struct Counters {
    foreign: Arc<Counter>,
    full: Arc<Counter>,
    request: Arc<Counter>,
    failed: Arc<Counter>,
    bodies: Arc<Limit>,
}

struct Gate {
    place: Place,
    inner: Inner,
    shared: Arc<Shared>,
    guests: Vec<Guest>,
    connections: Arc<Limit>,
    counters: Counters,
}

impl Gate {
    fn run(mut self, stopped: &UnixStream, beat: &Beat) {
        // Here, so that tiny_http's threads, which have no names of their own, get this one's.
        self.inner.look(&mut self.place, &self.shared, clock::now());
        loop {
            let ready = match self.wait(stopped) {
                Ok(ready) => ready,
                // Only a lack of memory does this; it passes.
                Err(_) => {
                    std::thread::sleep(BACKOFF);
                    continue;
                }
            };
            let now = clock::now();
            beat.tick_at(now);
            if ready.stop {
                break;
            }
            self.go_on(now);
            if ready.listener {
                self.accept(now);
            }
            self.inner.look(&mut self.place, &self.shared, now);
        }
        self.guests.clear();
        self.inner.end(&self.shared);
    }

    fn wait(&self, stopped: &UnixStream) -> io::Result<Ready> {
        let mut fds = Vec::with_capacity(2 + 2 * self.guests.len());
        fds.push(PollFd::new(stopped, PollFlags::IN));
        fds.push(PollFd::new(self.place.listener(), PollFlags::IN));
        for guest in &self.guests {
            guest.interests(&mut fds);
        }
        let timeout = Timespec::try_from(ROUND).ok();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let set = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready { stop: set(0), listener: set(1) })
    }

    /// Every guest does what it can. There are few, and what is not ready says so.
    fn go_on(&mut self, now: Instant) {
        let (inner, shared, counters) = (&mut self.inner, &self.shared, &self.counters);
        self.guests.retain_mut(|guest| {
            loop {
                match guest.step(now) {
                    Next::Wait => return true,
                    Next::End => return false,
                    Next::Refuse(status, code, detail) => {
                        match status {
                            413 => counters.bodies.refuse(),
                            400..=499 => counters.request.inc(),
                            _ => {
                                counters.failed.inc();
                                inner.suspect();
                            }
                        }
                        guest.refuse(&shared.service().refuse(status, code, &detail));
                        return false;
                    }
                    Next::Connect(bytes) => {
                        counters.bodies.saw(bytes);
                        if let Err(error) = inner.connect().and_then(|to| guest.pass_on(to, now)) {
                            counters.failed.inc();
                            let detail = format!("the control socket is short of means: {error}");
                            guest.refuse(&shared.service().refuse(503, "queue_full", &detail));
                            inner.suspect();
                            return false;
                        }
                    }
                }
            }
        });
        self.connections.set_now(self.guests.len() as u64);
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..CONNECTIONS_MAX {
            let Some(stream) = accepted(self.place.listener()) else { break };
            let Ok((mut guest, caller)) = greet(stream, now) else { continue };
            if !ours(caller) {
                self.counters.foreign.inc();
                crate::log_limited!(log::Level::Warn, "control_foreign_user", caller:% = caller);
                let detail = "this socket answers its daemon's user and root only";
                guest.refuse(&self.shared.service().refuse(403, "foreign_user", detail));
            } else if self.guests.len() >= CONNECTIONS_MAX {
                self.counters.full.inc();
                self.connections.refuse();
                let detail = "too many connections to the control socket; close some";
                guest.refuse(&self.shared.service().refuse(503, "connections_full", detail));
            } else {
                self.guests.push(guest);
            }
        }
        self.connections.set_now(self.guests.len() as u64);
    }
}

/// What poll found, beside the guests.
struct Ready {
    stop: bool,
    listener: bool,
}

/// The next connection, when there is one. A lack of descriptors passes; whoever waits in the kernel's
/// queue waits on.
fn accepted(listener: &UnixListener) -> Option<UnixStream> {
    match listener.accept() {
        Ok((stream, _)) => Some(stream),
        Err(error) => {
            let again = [Errno::AGAIN, Errno::INTR, Errno::CONNABORTED];
            if !again.iter().any(|kind| error.raw_os_error() == Some(kind.raw_os_error())) {
                crate::log_limited!(log::Level::Warn, "control_accept_error", error:% = error);
                std::thread::sleep(BACKOFF);
            }
            None
        }
    }
}

/// A connection with the process on its other end.
fn greet(stream: UnixStream, now: Instant) -> io::Result<(Guest, Caller)> {
    stream.set_nonblocking(true)?;
    let found = rustix::net::sockopt::socket_peercred(&stream)?;
    let caller = Caller { uid: found.uid.as_raw(), pid: found.pid.as_raw_nonzero().get() };
    Ok((Guest::new(stream, caller, now), caller))
}

/// Whether a caller may be here: the folder lets nobody else in, but folders can be opened by mistake.
fn ours(caller: Caller) -> bool {
    caller.uid == 0 || caller.uid == rustix::process::geteuid().as_raw()
}
