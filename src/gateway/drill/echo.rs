//! A drill: WebSocket connections that send back what they are sent, so that the codec can be tried
//! by clients of any kind, and by conformance suites, without the gateway's own protocol.
//!
//! `GET /drill/ws-echo`, where drills are allowed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use crate::base::clock;
use crate::base::heartbeat::{Beat, Heartbeats};
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Limit;
use crate::base::thread::{self, Thread};
use crate::net::http::Head;
use crate::net::websocket::{self, Bell, Came, Fault, Limits, Upgraded, WebSocket};

/// Where the echo is.
const PATH: &str = "/drill/ws-echo";

/// Most echoes at once; a further connection is closed.
const ECHOES_MAX: usize = 16;

/// Largest message, in bytes, as that of nodes.
const MESSAGE_BYTES_MAX: u64 = 25 * 1024 * 1024;

/// Messages on their way of all echoes, in bytes.
const MESSAGES_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Slowest message, in bytes per second.
const RATE_MIN: u64 = 1024;

/// An echo on which nothing moves for so long ends.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How long an echo waits for its peer's Close.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// How long a thread may be at work on one message.
const WORK_MAX: Duration = Duration::from_secs(10);

/// The echoes that run.
#[derive(Debug)]
pub struct Echoes {
    running: Locked<[Place; ECHOES_MAX]>,
    stop: Arc<AtomicBool>,
    messages: Arc<Limit>,
}

/// A place for an echo.
#[derive(Debug)]
enum Place {
    Free,
    /// Its thread is being started.
    Taken,
    Running(Echo),
}

#[derive(Debug)]
struct Echo {
    bell: Bell,
    thread: Thread,
}

impl Default for Echoes {
    fn default() -> Self {
        let running = Locked::new(Rank::Leaf, [const { Place::Free }; ECHOES_MAX]);
        let messages = Limit::detached(MESSAGES_BYTES_MAX);
        Echoes { running, stop: Arc::default(), messages }
    }
}

impl Echoes {
    /// Whether a request is for an echo.
    pub fn wanted(head: &Head) -> bool {
        head.path() == PATH && websocket::wanted(head)
    }

    /// Takes a connection. One above the bound, or without a thread, is closed.
    pub fn take(&self, upgraded: Upgraded, heartbeats: &Arc<Heartbeats>) {
        let Ok(bell) = Bell::new() else { return };
        let (number, before) = self
            .running
            .with(|running| {
                let number = running.iter().position(Place::free)?;
                // Dropped outside the lock, where its thread is joined: that has ended.
                Some((number, std::mem::replace(&mut running[number], Place::Taken)))
            })
            .unzip();
        drop(before);
        let Some(number) = number else { return };
        let limits = Limits { message_max: MESSAGE_BYTES_MAX, rate_min: RATE_MIN };
        let socket = WebSocket::new(upgraded, bell.clone(), limits, Arc::clone(&self.messages));
        let stop = Arc::clone(&self.stop);
        let beat = heartbeats.register_one_of_many("ws-echo", WORK_MAX);
        let thread = thread::spawn("ws-echo", move || run(socket, &stop, &beat));
        let place = thread.map_or(Place::Free, |thread| Place::Running(Echo { bell, thread }));
        self.running.with(|running| running[number] = place);
    }
}

impl Place {
    fn free(&self) -> bool {
        match self {
            Place::Free => true,
            Place::Taken => false,
            Place::Running(echo) => echo.thread.finished(),
        }
    }
}

impl Drop for Echoes {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let none = [const { Place::Free }; ECHOES_MAX];
        let running = self.running.with(|running| std::mem::replace(running, none));
        for place in &running {
            if let Place::Running(echo) = place {
                echo.bell.ring();
            }
        }
        // Dropped here: each thread is joined.
    }
}

/// The life of an echo.
fn run(mut socket: WebSocket, stop: &AtomicBool, beat: &Beat) {
    let end = loop {
        beat.tick();
        if stop.load(SeqCst) {
            break Fault::Close(1001, "the gateway stops");
        }
        // Nothing is read while an answer waits: one message of memory each way.
        let reading = socket.unsent() == 0;
        let Ok(woke) = socket.wait(clock::now() + IDLE_MAX, reading) else { return };
        let moved = woke.readable || woke.writable || woke.rung;
        let step = if woke.hung_up {
            return;
        } else if !moved {
            Err(Fault::Close(1000, "nothing was sent for a minute"))
        } else {
            answer(&mut socket, woke.readable)
        };
        match step {
            Ok(true) => {}
            Ok(false) => {
                socket.finish(clock::now() + CLOSE_MAX);
                return;
            }
            Err(fault) => break fault,
        }
    };
    if let Fault::Close(code, reason) = end
        && socket.close(code, reason).is_ok()
    {
        socket.finish(clock::now() + CLOSE_MAX);
    }
}

/// Sends back what came, until an answer has to wait. False when the peer has closed.
fn answer(socket: &mut WebSocket, readable: bool) -> Result<bool, Fault> {
    socket.flush()?;
    while readable && socket.unsent() == 0 {
        match socket.take()? {
            None => break,
            Some(Came::Text(text, _budget)) => socket.send_text(&[text.as_bytes()])?,
            Some(Came::Binary(bytes, _budget)) => socket.send_binary(&[&bytes])?,
            Some(Came::Ping | Came::Pong) => {}
            Some(Came::Close(_)) => return Ok(false),
        }
    }
    Ok(true)
}
