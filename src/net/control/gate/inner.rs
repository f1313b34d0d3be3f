//! tiny_http behind the gate, and whether it still takes connections: its accept loop ends at the first
//! error and tells nobody.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tiny_http::Server;

use crate::base::metrics::Counter;
use crate::net::control::handlers::Shared;
use crate::net::control::place::Place;

/// How often it is looked at while nothing looks wrong.
const LOOK: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long to wait after it could not be built.
const AGAIN: Duration = Duration::from_millis(500);

/// The state of tiny_http.
pub(super) struct Inner {
    /// Where it listens, while it does.
    path: Option<PathBuf>,
    /// When to look at it next.
    due: Option<Instant>,
    /// A look that waits for its answer, and until when.
    probe: Option<(UnixStream, Instant)>,
    rebuilt: Arc<Counter>,
    built: bool,
}

impl Inner {
    pub(super) fn new(rebuilt: Arc<Counter>) -> Self {
        Inner { path: None, due: None, probe: None, rebuilt, built: false }
    }

    /// A connection to it.
    ///
    /// # Errors
    /// When it is not there, or the operating system refuses.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let path = self.path.as_ref().ok_or(ErrorKind::NotConnected)?;
        UnixStream::connect(path)
    }

    /// Something looks wrong: the next look is due.
    pub(super) fn suspect(&mut self) {
        self.due = None;
    }

    /// Builds it when it is not there, and has a look at it now and then.
    pub(super) fn look(&mut self, place: &mut Place, shared: &Shared, now: Instant) {
        if let Some((stream, until)) = &mut self.probe {
            match answered(stream) {
                None if now < *until => return,
                Some(true) => self.due = Some(now + LOOK),
                _ => self.path = None,
            }
            self.probe = None;
        }
        if self.due.is_some_and(|due| now < due) {
            return;
        }
        if self.path.is_some() {
            match self.begin_probe() {
                Ok(stream) => {
                    self.probe = Some((stream, now + ANSWER_MAX));
                    self.due = Some(now);
                    return;
                }
                // Descriptors are short; that says nothing about tiny_http.
                Err(error) if !refused(&error) => {
                    self.due = Some(now + AGAIN);
                    return;
                }
                Err(_) => self.path = None,
            }
        }
        match build(place) {
            Ok((server, path)) => {
                shared.replace(Some(server));
                self.path = Some(path);
                self.due = Some(now + LOOK);
                if self.built {
                    self.rebuilt.inc();
                    log::warn!("control_rebuilt");
                }
                self.built = true;
            }
            Err(error) => {
                crate::log_limited!(log::Level::Warn, "control_not_built", error:% = error);
                self.due = Some(now + AGAIN);
            }
        }
    }

    /// Lets go of it.
    pub(super) fn end(&mut self, shared: &Shared) {
        self.path = None;
        shared.replace(None);
    }

    /// Sends what is no request: tiny_http answers that by itself, without a handler.
    fn begin_probe(&self) -> io::Result<UnixStream> {
        let mut stream = self.connect()?;
        stream.set_nonblocking(true)?;
        stream.write_all(b"?\r\n\r\n")?;
        Ok(stream)
    }
}

fn refused(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), ConnectionRefused | NotFound | BrokenPipe | ConnectionReset)
}

/// Whether it answered; none while it has not.
fn answered(stream: &mut UnixStream) -> Option<bool> {
    match stream.read(&mut [0; 64]) {
        Ok(came) => Some(came > 0),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(_) => Some(false),
    }
}

fn build(place: &mut Place) -> io::Result<(Server, PathBuf)> {
    let (listener, path) = place.inner()?;
    let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
    Ok((server, path))
}
