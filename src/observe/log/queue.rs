//! The bounded queue between those who log and the one who writes, and the orders to the writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crossbeam_channel::{Receiver, Sender, bounded};
use log::{LevelFilter, Metadata, Record};

use super::FOREIGN_LEVEL;
use super::format;
use super::tail::Tail;
use crate::base::clock;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Counter, Lease, Limit, Registry, Unit};
use crate::config::settings::{Log, LogFormat};

/// Most bytes of lines that wait for the writer, beside `log.pending_max`, which counts them. A
/// stalled disk then costs this much memory, whatever the lines hold. Past it: dropped and counted.
pub const PENDING_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Most callers that wait for one flush. Past it: a caller is told that nothing was flushed.
const FLUSHES_MAX: usize = 16;

/// A line on its way.
pub(super) struct Line {
    pub(super) level: log::Level,
    pub(super) bytes: Vec<u8>,
    _lease: Lease,
}

/// What the writer is asked to do beside writing. Orders are merged, so that a storm of signals
/// makes no queue.
#[derive(Debug, Default)]
pub(super) struct Orders {
    pub(super) reopen: bool,
    pub(super) reconfigure: Option<Reconfigure>,
    pub(super) flushes: Vec<Sender<()>>,
    pub(super) stop: Option<Sender<()>>,
}

/// New settings, and where the answer goes.
#[derive(Debug)]
pub(super) struct Reconfigure {
    pub(super) config: Log,
    pub(super) answer: Sender<Result<(), String>>,
}

impl Orders {
    /// Asks to be told when everything queued so far is written.
    pub(super) fn add_flush(&mut self, done: Sender<()>) {
        if self.flushes.len() < FLUSHES_MAX {
            self.flushes.push(done);
        }
    }
}

/// The writer's ends of the channels.
pub(super) struct Ends {
    pub(super) lines: Receiver<Line>,
    pub(super) wake: Receiver<()>,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    lines: Sender<Line>,
    /// Holds one token while there is something to look at beside lines.
    wake: Sender<()>,
    orders: Locked<Orders>,
    level: AtomicUsize,
    json: AtomicBool,
    /// What was written last, for those who follow.
    pub(super) tail: Arc<Tail>,
    lines_limit: Arc<Limit>,
    bytes_limit: Arc<Limit>,
    /// Rotated files.
    pub(super) files_limit: Arc<Limit>,
    /// Lines dropped because the queue was full.
    pub(super) dropped_full: Arc<Counter>,
    /// Lines dropped because nothing took them.
    pub(super) dropped_write: Arc<Counter>,
    /// Writes, opens and rotations that failed.
    pub(super) write_errors: Arc<Counter>,
    /// Lines written.
    pub(super) written: Arc<Counter>,
}

impl Queue {
    pub(super) fn new(config: &Log, registry: &Registry) -> (Self, Ends) {
        let (lines, lines_end) = bounded(config.pending_max);
        let (wake, wake_end) = bounded(1);
        let dropped = |reason| {
            let help = "Log lines dropped: the queue was full, or writing failed.";
            registry.counter("tidegate_log_lines_dropped_total", help, &[("reason", reason)])
        };
        let counter = |name, help| registry.counter(name, help, &[]);
        let limit = |name, max| registry.limit(name, "", max, "dropped and counted");
        let queue = Queue {
            lines,
            wake,
            orders: Locked::new(Rank::Log, Orders::default()),
            level: AtomicUsize::new(config.level as usize),
            json: AtomicBool::new(config.format == LogFormat::Json),
            tail: Tail::new(registry),
            lines_limit: limit("log.pending_max", config.pending_max as u64),
            bytes_limit: registry.limit_of(
                Unit::Bytes,
                "log.pending_bytes",
                "",
                PENDING_BYTES_MAX,
                "dropped and counted",
            ),
            files_limit: registry.limit(
                "log.keep_files",
                "",
                config.keep_files as u64,
                "the oldest file is deleted",
            ),
            dropped_full: dropped("queue_full"),
            dropped_write: dropped("write_error"),
            write_errors: counter(
                "tidegate_log_write_errors_total",
                "Writes, opens and rotations of the log that failed.",
            ),
            written: counter("tidegate_log_lines_total", "Log lines written."),
        };
        (queue, Ends { lines: lines_end, wake: wake_end })
    }

    pub(super) fn set_level(&self, level: LevelFilter) {
        self.level.store(level as usize, Relaxed);
    }

    pub(super) fn set_format(&self, format: LogFormat) {
        self.json.store(format == LogFormat::Json, Relaxed);
    }

    pub(super) fn format(&self) -> LogFormat {
        if self.json.load(Relaxed) { LogFormat::Json } else { LogFormat::Text }
    }

    pub(super) fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("tidegate");
        metadata.level() as usize <= self.level.load(Relaxed)
            && (ours || metadata.level() <= FOREIGN_LEVEL)
    }

    /// Takes a line, or drops and counts it. Never waits.
    pub(super) fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let bytes = format::line(self.format(), clock::wall(), record);
        let Some(lease) = self.bytes_limit.try_take(bytes.len() as u64) else {
            self.dropped_full.inc();
            return;
        };
        if self.lines.try_send(Line { level: record.level(), bytes, _lease: lease }).is_err() {
            self.dropped_full.inc();
            self.lines_limit.refuse();
            return;
        }
        let pending = self.pending();
        self.lines_limit.set_now(pending);
        // The writer naps to gather lines; a queue that is half full ends the nap.
        if pending >= self.lines_limit.max() / 2 {
            let _ = self.wake.try_send(());
        }
    }

    /// Says how many lines are left, for the gauge.
    pub(super) fn taken(&self) {
        self.lines_limit.set_now(self.pending());
    }

    /// Lines that the writer has not taken.
    pub(super) fn pending(&self) -> u64 {
        self.lines.len() as u64
    }

    /// Gives an order.
    pub(super) fn order(&self, give: impl FnOnce(&mut Orders)) {
        self.orders.with(give);
        // A full channel: a token is there already.
        let _ = self.wake.try_send(());
    }

    /// Takes all orders.
    pub(super) fn take_orders(&self) -> Orders {
        self.orders.with(std::mem::take)
    }
}
