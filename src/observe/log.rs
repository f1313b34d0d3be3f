//! Logs that never stop, block or panic the program.
//!
//! Whoever logs formats its line and puts it into one bounded queue without waiting. One thread,
//! `log`, takes the lines out and writes them in batches, to rotated files or to standard error.
//! When the disk is full or stalled, or standard error is gone, lines are dropped and counted, and
//! a later line says how many; writing goes on by itself as soon as it can.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use crossbeam_channel::{RecvTimeoutError, bounded};
use log::{Level, LevelFilter, Metadata, Record};

use crate::base::heartbeat::Heartbeats;
use crate::base::lock;
use crate::base::metrics::Registry;
use crate::base::thread::{self, Thread};
use crate::config::settings::Log;

mod files;
mod format;
mod queue;
mod slice;
mod stderr;
mod tail;
mod writer;

pub use format::{LINE_BYTES_MAX, VALUE_BYTES_MAX};
pub use queue::PENDING_BYTES_MAX;
pub use slice::{Ask, Slice, read, recent};
pub use tail::{Follower, Tail, TailLine};

use queue::{Queue, Reconfigure};

/// How long [`LogHandle::reconfigure`] waits for the writer's answer, and a dropped [`LogHandle`]
/// for its end. Longer than any healthy disk takes to open a file.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The levels below which lines of other crates are left out, whatever is configured: at `info`
/// and below they show what passes through them.
const FOREIGN_LEVEL: Level = Level::Warn;

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A log is running in this process.
    #[error("a log is running already")]
    Running,
    /// Another crate's logger is in place.
    #[error("another logger is installed")]
    Foreign,
    /// No thread for the writer.
    #[error("no thread for the log writer")]
    Thread(#[from] std::io::Error),
}

/// Why a change of the settings is not in force.
#[derive(Debug, thiserror::Error)]
pub enum ReconfigureError {
    /// The new folder cannot be used; the old settings stay in force.
    #[error("log.dir: {0}")]
    Refused(String),
    /// The writer is stuck in the operating system; the change is made when it returns.
    #[error("the log writer does not answer; the change is pending")]
    Pending,
}

/// The running log. Dropping it stops it.
#[derive(Debug)]
pub struct LogHandle {
    queue: Arc<Queue>,
    thread: Option<Thread>,
    /// Whether this one takes the lines of the `log` macros.
    global: bool,
}

/// The logger that the `log` crate knows. It outlives every [`LogHandle`], so that a program (or a
/// test) may stop one and start another.
struct Global {
    current: ArcSwapOption<Queue>,
}

static GLOBAL: Global = Global { current: ArcSwapOption::const_empty() };

/// How long writing what was gathered may take. A disk that hangs is told of; requests do not wait for
/// it, so that nobody needs a restart.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// Starts the log: from here on the `log` macros write there. Problems of the folder are not
/// errors: lines go to standard error until it can be used. Installs the panic hook.
///
/// # Errors
/// When a log is running in this process, or there is no thread for it.
pub fn start(
    config: &Log,
    registry: &Registry,
    heartbeats: &Arc<Heartbeats>,
) -> Result<LogHandle, StartError> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    if !*INSTALLED.get_or_init(|| log::set_logger(&GLOBAL).is_ok()) {
        return Err(StartError::Foreign);
    }
    let mut handle = start_detached(config, registry, heartbeats)?;
    let before =
        GLOBAL.current.compare_and_swap(&None::<Arc<Queue>>, Some(Arc::clone(&handle.queue)));
    if before.is_some() {
        return Err(StartError::Running);
    }
    handle.global = true;
    log::set_max_level(config.level);
    install_panic_hook();
    Ok(handle)
}

/// Starts a log that the macros do not write to.
fn start_detached(
    config: &Log,
    registry: &Registry,
    heartbeats: &Arc<Heartbeats>,
) -> Result<LogHandle, StartError> {
    let (queue, ends) = Queue::new(config, registry);
    let queue = Arc::new(queue);
    let writer = writer::Writer::new(Arc::clone(&queue), ends, config);
    let beat = heartbeats.register_one_of_many("log", WRITE_MAX);
    let thread = thread::spawn("log", move || writer.run(&beat))?;
    Ok(LogHandle { queue, thread: Some(thread), global: false })
}

impl LogHandle {
    /// Opens the file anew, after something else moved it away. Returns at once; the writer does
    /// it when it is free. Standard error stays as it is.
    pub fn reopen(&self) {
        self.queue.order(|orders| orders.reopen = true);
    }

    /// Changes the level, from the next line on.
    pub fn set_level(&self, level: LevelFilter) {
        self.queue.set_level(level);
        if self.global {
            log::set_max_level(level);
        }
    }

    /// Brings level, folder, format and rotation into force. `pending_max` stays as it was at the
    /// start: it is a `restart` setting.
    ///
    /// # Errors
    /// When the folder cannot be used: then nothing changes. When the writer is stuck: then the
    /// change is made as soon as it is free (the level at once).
    pub fn reconfigure(&self, config: &Log) -> Result<(), ReconfigureError> {
        let (answer, answered) = bounded(1);
        let order = Reconfigure { config: config.clone(), answer };
        self.queue.order(|orders| orders.reconfigure = Some(order));
        lock::assert_none_held();
        let answer = match answered.recv_timeout(ANSWER_TIMEOUT) {
            Ok(Err(reason)) => return Err(ReconfigureError::Refused(reason)),
            Ok(Ok(())) => Ok(()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(ReconfigureError::Pending)
            }
        };
        self.set_level(config.level);
        answer
    }

    /// Waits until every line logged before this call was handed to the operating system (or given
    /// up), at most so long. Says whether that was so.
    pub fn flush(&self, wait_max: Duration) -> bool {
        let (done, is_done) = bounded(1);
        self.queue.order(|orders| orders.add_flush(done));
        lock::assert_none_held();
        is_done.recv_timeout(wait_max).is_ok()
    }

    /// Writes what is pending and ends the thread, at most so long; a thread that is stuck in the
    /// operating system is left behind. Says whether everything was handed over.
    pub fn stop(mut self, wait_max: Duration) -> bool {
        self.end(wait_max)
    }

    fn end(&mut self, wait_max: Duration) -> bool {
        let Some(thread) = self.thread.take() else { return true };
        if self.global {
            GLOBAL.current.store(None);
            log::set_max_level(LevelFilter::Off);
        }
        let (done, is_done) = bounded(1);
        self.queue.order(|orders| orders.stop = Some(done));
        lock::assert_none_held();
        if is_done.recv_timeout(wait_max).is_ok() {
            thread.join();
            true
        } else {
            thread.abandon();
            false
        }
    }

    /// What was written last, and a way to follow it.
    pub fn tail(&self) -> Arc<Tail> {
        Arc::clone(&self.queue.tail)
    }

    /// The file that lines are written to, for a folder.
    pub fn current_file(dir: &Path) -> std::path::PathBuf {
        dir.join(files::CURRENT_NAME)
    }
}

impl Drop for LogHandle {
    fn drop(&mut self) {
        self.end(ANSWER_TIMEOUT);
    }
}

impl log::Log for Global {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.current.load().as_ref().is_some_and(|queue| queue.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(queue) = self.current.load().as_ref() {
            queue.log(record);
        }
    }

    fn flush(&self) {}
}

/// Makes every panic one line at `error`, instead of several on standard error. Unwinding goes on
/// as before. While no log runs, panics are shown as they were.
fn install_panic_hook() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if GLOBAL.current.load().is_none() {
                return before(info);
            }
            let payload = info.payload();
            let message = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("(no message)");
            let thread = std::thread::current();
            let thread = thread.name().unwrap_or("(no name)");
            match info.location() {
                Some(place) => log::error!(thread, place:%, message; "panic"),
                None => log::error!(thread, message; "panic"),
            }
        }));
    });
}

#[cfg(test)]
mod tests;
