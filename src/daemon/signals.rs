//! Signals as events.

use std::io;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals as Caught};

use crate::base::thread::{self, Thread};

/// Events that wait for the loop. Past it they are dropped: the same ones are in the queue already.
pub(super) const EVENTS_MAX: usize = 16;

/// Every reason to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// SIGTERM or SIGINT: drain; the second one: stop at once.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR1: open the log files again.
    Reopen,
}

/// The signals of the process, caught.
pub struct Signals {
    /// What they mean.
    pub events: Receiver<Event>,
    handle: Handle,
    _thread: Thread,
}

impl Signals {
    /// Catches them from here on.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn catch() -> io::Result<Self> {
        let mut caught = Caught::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
        let handle = caught.handle();
        let (sender, events) = bounded(EVENTS_MAX);
        let thread = thread::spawn("signals", move || {
            for signal in caught.forever() {
                let event = match signal {
                    SIGHUP => Event::Reload,
                    SIGUSR1 => Event::Reopen,
                    _ => Event::Stop,
                };
                // A full queue is a loop that is busy with the same; a stop is worth waiting for.
                if event == Event::Stop {
                    let _ = sender.send(event);
                } else {
                    let _ = sender.try_send(event);
                }
            }
        })?;
        Ok(Signals { events, handle, _thread: thread })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.handle.close();
        // Whoever waits in `send` gets room.
        while self.events.try_recv().is_ok() {}
    }
}
