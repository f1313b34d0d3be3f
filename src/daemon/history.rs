//! The thread `history`: every few seconds it looks at all metrics, and remembers what it saw.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::base::clock;
use crate::base::heartbeat::{Beat, Heartbeats};
use crate::base::metrics::Registry;
use crate::base::thread::{self, Thread};
use crate::observe::history::{History, INTERVAL_SECONDS};
use crate::observe::reading::Reading;

/// Most series, and most bytes, that are remembered in memory.
const SERIES_MAX: usize = 512;
/// See there.
const MEMORY_MAX: u64 = 4 << 20;

/// How long the thread may be silent: several times its interval.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The running thread. Dropped, it ends.
pub(super) struct Recorder {
    history: Arc<History>,
    stop: Option<Sender<()>>,
    thread: Option<Thread>,
}

impl Recorder {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system refuses it.
    pub(super) fn start(
        registry: &Arc<Registry>,
        heartbeats: &Arc<Heartbeats>,
    ) -> io::Result<Recorder> {
        let history = History::new(registry, SERIES_MAX, MEMORY_MAX, clock::now());
        let (stop, stopped) = bounded(1);
        let beat = heartbeats.register("history", SILENCE_MAX);
        let work = Work { history: Arc::clone(&history), registry: Arc::clone(registry) };
        let thread = thread::spawn("history", move || work.run(&stopped, &beat))?;
        Ok(Recorder { history, stop: Some(stop), thread: Some(thread) })
    }

    /// What it remembers.
    pub(super) fn history(&self) -> Arc<History> {
        Arc::clone(&self.history)
    }
}

impl Recorder {
    /// Ends the thread.
    pub(super) fn stop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the thread holds.
struct Work {
    history: Arc<History>,
    registry: Arc<Registry>,
}

impl Work {
    fn run(self, stopped: &Receiver<()>, beat: &Beat) {
        let interval = Duration::from_secs(INTERVAL_SECONDS);
        let mut next = clock::now() + interval;
        while stopped.recv_deadline(next) == Err(RecvTimeoutError::Timeout) {
            let now = clock::now();
            beat.tick_at(now);
            let reading = Reading::take(&self.registry);
            self.history.look(&reading, now, clock::unix().as_secs());
            // After a pause of the whole machine the looks that it missed are not made up for.
            next = (next + interval).max(clock::now() + interval / 2);
        }
    }
}
