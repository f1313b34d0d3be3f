//! The thread `history`: every few seconds it looks at all metrics, remembers what it saw, and has it kept
//! in the store.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::base::clock;
use crate::base::error::Error;
use crate::base::health::Check;
use crate::base::heartbeat::Beat;
use crate::base::metrics::Registry;
use crate::base::thread::{self, Thread};
use crate::config::Config;
use crate::config::settings::History as Settings;
use crate::log_limited;
use crate::observe::history::{History, Keeper};
use crate::observe::levels::Levels;
use crate::observe::reading::Reading;
use crate::store::{Store, Tools};

/// How often it looks what time it is.
const TICK: Duration = Duration::from_secs(1);

/// How long the thread may be silent: several times its longest interval.
const SILENCE_MAX: Duration = Duration::from_secs(180);

/// The running thread. Dropped, it ends.
pub(super) struct Recorder {
    history: Arc<History>,
    levels: Arc<Levels>,
    settings: Arc<ArcSwap<Settings>>,
    stop: Option<Sender<()>>,
    thread: Option<Thread>,
}

impl Recorder {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system refuses it.
    pub(super) fn start(
        config: &Config,
        tools: &Tools,
        store: &Arc<Store>,
    ) -> io::Result<Recorder> {
        let Tools { registry, heartbeats, board, .. } = tools;
        let (settings, now) = (&config.history, clock::now());
        let history = History::new(registry, settings, now);
        let keeper = Keeper::new(&history, store, settings, registry, now);
        let settings = Arc::new(ArcSwap::from_pointee(settings.clone()));
        let (stop, stopped) = bounded(1);
        let beat = heartbeats.register_one_of_many("history", SILENCE_MAX);
        let folders = [("state", &config.state_dir), ("log", &config.log.dir)];
        let folders = folders.into_iter().filter_map(|(word, dir)| Some((word, dir.clone()?)));
        let levels = Arc::new(Levels::new(folders.collect()));
        let check = board.check("history");
        check.ok();
        let work = Work {
            history: Arc::clone(&history),
            settings: Arc::clone(&settings),
            registry: Arc::clone(registry),
            levels: Arc::clone(&levels),
            keeper,
            check,
        };
        let thread = thread::spawn("history", move || work.run(&stopped, &beat))?;
        Ok(Recorder { history, levels, settings, stop: Some(stop), thread: Some(thread) })
    }

    /// What it remembers.
    pub(super) fn history(&self) -> Arc<History> {
        Arc::clone(&self.history)
    }

    /// What it reads around the process.
    pub(super) fn levels(&self) -> Arc<Levels> {
        Arc::clone(&self.levels)
    }

    /// Takes over new settings.
    pub(super) fn reconfigure(&self, settings: &Settings) {
        self.settings.store(Arc::new(settings.clone()));
        self.history.reconfigure(settings);
    }

    /// Ends the thread, when it has written what it has.
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
    settings: Arc<ArcSwap<Settings>>,
    registry: Arc<Registry>,
    levels: Arc<Levels>,
    keeper: Keeper,
    check: Arc<Check>,
}

impl Work {
    fn run(mut self, stopped: &Receiver<()>, beat: &Beat) {
        let mut last = clock::now();
        // Once a second it looks whether an interval is over, so that a shorter one is in force at once.
        while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            let now = clock::now();
            beat.tick_at(now);
            let settings = self.settings.load_full();
            // After a pause of the machine, what was missed is not made up for.
            let due = now.saturating_duration_since(last) + TICK / 2 >= settings.interval;
            if due && settings.enabled {
                last = now;
                self.look();
            }
            self.keeper.reconfigure(&settings);
            let kept = self.keeper.tick(clock::now(), clock::unix().as_secs());
            self.told(kept);
        }
        // What was seen last, in full.
        if self.settings.load().enabled {
            self.look();
        }
        if let Err(error) = self.keeper.flush() {
            log::warn!(error:% = error; "history_not_kept");
        }
    }

    fn look(&self) {
        let reading = Reading::take(&self.registry, &self.levels);
        self.history.look(&reading, clock::now(), clock::unix().as_secs());
    }

    /// Says on the board whether the history is kept. When the store itself is away it has said so.
    fn told(&self, kept: Result<(), Error>) {
        match kept {
            Ok(()) => self.check.ok(),
            Err(error) => {
                log_limited!(log::Level::Warn, "history_not_kept", error:% = error);
                self.check.degraded(error.to_string());
            }
        }
    }
}
