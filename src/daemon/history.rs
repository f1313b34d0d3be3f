//! The thread `history`: every few seconds it looks at all metrics, and remembers what it saw.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::base::clock;
use crate::base::heartbeat::{Beat, Heartbeats};
use crate::base::metrics::Registry;
use crate::base::thread::{self, Thread};
use crate::config::settings::History as Settings;
use crate::observe::history::History;
use crate::observe::reading::Reading;

/// How often it looks what time it is.
const TICK: Duration = Duration::from_secs(1);

/// How long the thread may be silent: several times its longest interval.
const SILENCE_MAX: Duration = Duration::from_secs(180);

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
        settings: &Settings,
        registry: &Arc<Registry>,
        heartbeats: &Arc<Heartbeats>,
    ) -> io::Result<Recorder> {
        let history = History::new(registry, settings, clock::now());
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
    /// Takes over new settings.
    pub(super) fn reconfigure(&self, settings: &Settings) {
        self.history.reconfigure(settings);
    }

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
        let mut last = clock::now();
        // Once a second it looks whether an interval is over, so that a shorter one is in force at once.
        while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            let now = clock::now();
            beat.tick_at(now);
            let interval = self.history.interval();
            if now.saturating_duration_since(last) + TICK / 2 < interval {
                continue;
            }
            // In step with the interval; after a pause of the machine, what was missed is not made up for.
            last = now;
            let reading = Reading::take(&self.registry);
            self.history.look(&reading, now, clock::unix().as_secs());
        }
    }
}
