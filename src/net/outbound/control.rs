//! The handle by which other threads end a call.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use socket2::Socket;

use super::wait::Stop;
use crate::base::lock::{Locked, Rank};

const RUNNING: u8 = 0;
const DRAINING: u8 = 1;
const CLIENT_GONE: u8 = 2;

/// Ends a call from another thread: each of its waits returns at once. One per request; it serves
/// all attempts of the request, one after another, and once cancelled it ends the next ones too.
#[derive(Debug)]
pub struct Control {
    state: AtomicU8,
    socket: Locked<Option<Arc<Socket>>>,
}

impl Default for Control {
    fn default() -> Self {
        Control { state: AtomicU8::new(RUNNING), socket: Locked::new(Rank::Leaf, None) }
    }
}

impl Control {
    /// Ends the call because the gateway stops: it returns [`Kind::Draining`](crate::base::error::Kind::Draining).
    pub fn cancel(&self) {
        self.end(DRAINING);
    }

    /// Ends the call because its client left, where that was seen elsewhere: it returns
    /// [`Kind::ClientGone`](crate::base::error::Kind::ClientGone).
    pub fn client_left(&self) {
        self.end(CLIENT_GONE);
    }

    /// Whether the call was ended.
    pub fn cancelled(&self) -> bool {
        self.stopped().is_some()
    }

    fn end(&self, why: u8) {
        // The first reason stays.
        let _ = self.state.compare_exchange(RUNNING, why, Ordering::SeqCst, Ordering::SeqCst);
        self.socket.with(|socket| {
            if let Some(socket) = socket {
                // Never blocks. Inside the lock on purpose: once `release` returned, the socket may
                // serve another call. An error means that it is not connected any more.
                let _ = socket.shutdown(Shutdown::Both);
            }
        });
    }

    /// Why the call was ended, if it was.
    pub(super) fn stopped(&self) -> Option<Stop> {
        match self.state.load(Ordering::SeqCst) {
            RUNNING => None,
            CLIENT_GONE => Some(Stop::ClientGone),
            _ => Some(Stop::Cancelled),
        }
    }

    /// Gives the call a socket, to be shut when it is ended.
    pub(super) fn hold(&self, socket: &Arc<Socket>) -> Result<(), Stop> {
        self.socket.with(|held| *held = Some(Arc::clone(socket)));
        // After the socket is in place: an end that came before is seen here, a later one shuts it.
        match self.stopped() {
            Some(stop) => {
                self.release();
                Err(stop)
            }
            None => Ok(()),
        }
    }

    /// Takes the socket away. It is not shut after this.
    pub(super) fn release(&self) {
        let socket = self.socket.with(Option::take);
        drop(socket);
    }
}
