//! The end of a connection, and the bound on control frames.

use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::WebSocket;
use crate::base::clock;

/// Most pings and pongs of a peer within [`CONTROLS_WINDOW`].
pub(super) const CONTROLS_MAX: u32 = 100;

/// See [`CONTROLS_MAX`].
const CONTROLS_WINDOW: Duration = Duration::from_secs(10);

/// What is thrown away at most of what a peer sends on behind our Close, in largest messages.
const DISCARDED_MESSAGES_MAX: u64 = 4;

/// The same for small messages, in bytes.
const DISCARDED_MIN: u64 = 1024 * 1024;

/// Bytes thrown away in one read.
const DISCARD_BYTES: usize = 4 * 1024;

/// How long a peer may take to leave, once it has our end.
const SHUT_MAX: Duration = Duration::from_secs(1);

/// Counts control frames.
#[derive(Debug)]
pub(super) struct Window {
    begun: Instant,
    count: u32,
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Window { begun: now, count: 0 }
    }

    /// One more; whether it is still within the bound.
    pub(super) fn count(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.begun) >= CONTROLS_WINDOW {
            *self = Window::new(now);
        }
        self.count += 1;
        self.count <= CONTROLS_MAX
    }
}

impl WebSocket {
    /// Ends the connection: sends what is unsent, the Close among it, and reads on, without keeping
    /// anything, until the peer's Close; then shuts our side and waits for the end of the peer's, so
    /// that no reset takes the Close away (RFC 6455, 7.1.1). At most until `until`; without a Close
    /// before it only what is unsent is waited for. A ring of the bell ends it at once.
    pub fn finish(mut self, until: Instant) {
        crate::base::lock::assert_none_held();
        self.bell.hear();
        self.decoder.discard();
        let (mut until, mut shut) = (until, false);
        let mut left = self.discarded_max();
        loop {
            let now = clock::now();
            if self.flush().is_err() || now >= until {
                return;
            }
            let out = self.out.waits();
            if !out && !shut {
                if !self.out.closing() {
                    return;
                }
                // Its Close was read, or its bytes make no sense: there is nothing to wait for but
                // its end.
                if self.decoder.over() {
                    let _ = self.stream.shutdown(Shutdown::Write);
                    shut = true;
                    until = until.min(now + SHUT_MAX);
                }
            }
            match self.pass_over(&mut left) {
                Passed::Some => continue,
                Passed::Nothing => {}
                // It has left, or nobody can be told: what is unsent is for nobody.
                Passed::End => return,
            }
            let flags = if out { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            match self.poll(flags, until) {
                Ok((_, false)) => {}
                Ok((_, true)) | Err(_) => return,
            }
        }
    }

    fn discarded_max(&self) -> u64 {
        self.decoder.max().saturating_mul(DISCARDED_MESSAGES_MAX).max(DISCARDED_MIN)
    }

    /// Reads once, and keeps nothing; `left` is what may still be read.
    fn pass_over(&mut self, left: &mut u64) -> Passed {
        if !self.input.is_empty() {
            let input = std::mem::take(&mut self.input);
            self.pass(&input);
            return Passed::Some;
        }
        let mut buffer = [const { MaybeUninit::<u8>::uninit() }; DISCARD_BYTES];
        match rustix::net::recv(&self.stream, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok(((came, _), _)) if came.is_empty() || came.len() as u64 > *left => Passed::End,
            Ok(((came, _), _)) => {
                *left -= came.len() as u64;
                self.pass(came);
                Passed::Some
            }
            Err(Errno::AGAIN | Errno::INTR) => Passed::Nothing,
            Err(_) => Passed::End,
        }
    }

    /// Looks for the peer's Close in what came.
    fn pass(&mut self, mut bytes: &[u8]) {
        let now = clock::now();
        while !bytes.is_empty() && !self.decoder.over() {
            // Its faults are its own now; after its Close, or a fault, it is over.
            let (used, _) = self.decoder.decode(bytes, now);
            bytes = &bytes[used..];
        }
    }
}

/// What a look at the socket gave.
enum Passed {
    Some,
    Nothing,
    End,
}
