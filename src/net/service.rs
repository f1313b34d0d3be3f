//! What the engine asks of the rooms above it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::http::{Head, Request, Response};
use super::pump::Flow;
use super::pump::brisk::Call;
use super::turn::Turn;
use super::websocket::{Accept, Taker};
use crate::base::error::{Error, Kind};
use crate::base::id::RequestId;
use crate::base::permits::{Permit, Permits};

/// What was decided about a request when its head was complete.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    /// Largest body taken, in bytes.
    pub body_max: u64,
    /// The route, as the service numbers them.
    pub route: u16,
    /// The name of the key that was shown.
    pub key: Option<Arc<str>>,
}

/// For whom the process makes a request of its own.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The key, or the account, that it counts for.
    pub key: Option<Arc<str>>,
    /// `key` is the name of an account that no `[[key]]` stands for.
    pub granted: bool,
    /// Where they are, as limits count them.
    pub peer: SocketAddr,
}

/// A request's answer, or what it waits for.
pub enum Step {
    /// A whole answer: the engine sends it.
    Respond(Response),
    /// The answer was streamed by the job itself. `keep_alive`: it ended as HTTP wants it, so the
    /// connection may serve another request.
    Streamed {
        /// Whether the connection can go on.
        keep_alive: bool,
    },
    /// The answer has begun (its head and first bytes were sent), and flows on by itself.
    Flow {
        /// The stream.
        flow: Box<dyn Flow>,
        /// Body bytes that were sent already.
        bytes: u64,
    },
    /// The upstream was asked, and its whole answer is waited for without a thread.
    Ask(Box<dyn Call>),
    /// What comes next might block: on a pump, a worker takes it over by [`Job::run`].
    Defer(Box<dyn Job>),
    /// The connection becomes a WebSocket: the engine sends the 101 and hands it over.
    Upgrade {
        /// The opening handshake.
        accept: Accept,
        /// Who takes it.
        taker: Taker,
    },
    /// The request waits as data, and goes on with [`Job::run`] once a permit is granted.
    Wait(Box<dyn Job>, Wait),
}

/// What a waiting request waits for.
pub struct Wait {
    /// One permit of these.
    pub permits: Arc<Permits>,
    /// Until then.
    pub deadline: Instant,
}

/// A request that can wait: its whole state.
pub trait Job: Send {
    /// Goes on, on a worker, with the permit it waited for; without one after [`GiveUp::GoOn`].
    fn run(self: Box<Self>, permit: Option<Permit>, turn: &mut Turn<'_>) -> Step;

    /// The wait ended without a permit ([`crate::base::error::Kind::WaitingFull`], `WaitingTimeout`,
    /// `QueueFull`, `Draining`, `ClientGone`). For `ClientGone` the answer is not sent. Must not
    /// block.
    fn give_up(self: Box<Self>, error: Error) -> GiveUp;
}

/// What a request does when its wait came to nothing.
pub enum GiveUp {
    /// It ends with this answer.
    Respond(Response),
    /// It can do without: it goes on, on a worker.
    GoOn(Box<dyn Job>),
}

/// The rooms above, as the engine sees them.
pub trait Service: Send + Sync + 'static {
    /// Decides on a complete head, before any byte of the body is kept. Must not block.
    ///
    /// # Errors
    /// The refusal to send; the connection is closed after it.
    fn admit(
        &self,
        head: &Head,
        peer: &SocketAddr,
        id: &RequestId,
    ) -> Result<Admission, Box<Response>>;

    /// Decides on a request that the process makes itself, for `caller`. Nothing is asked of it that
    /// tells strangers from friends (host, origin, key); what bounds friends holds. Must not block.
    ///
    /// # Errors
    /// Why not; counted and logged as any other refusal.
    fn admit_inward(
        &self,
        head: &Head,
        caller: &Caller,
        id: &RequestId,
    ) -> Result<Admission, Error> {
        let _ = (head, caller, id);
        Err(Error::new(Kind::NotFound, "nothing is asked here from inside"))
    }

    /// Whether [`Service::start`] with this request neither blocks nor takes long where
    /// [`Turn::must_not_block`] says so: then a pump may begin it.
    fn brisk(&self, request: &Request) -> bool {
        let _ = request;
        false
    }

    /// Answers a complete request, on a worker, or on a pump when it is brisk.
    fn start(&self, request: Request, turn: &mut Turn<'_>) -> Step;

    /// The answer to a request of this route whose handler panicked. The handler's own record of the
    /// request has counted and logged it, as it was dropped.
    fn broken(&self, error: &Error, route: u16) -> Response;

    /// The answer to a request that the engine itself refuses. Counts and logs it.
    fn refuse(
        &self,
        error: &Error,
        head: Option<&Head>,
        peer: &SocketAddr,
        id: &RequestId,
    ) -> Response;
}
