//! The thread that writes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::select;
use log::kv::Value;
use log::{Level, Record};

use super::WRITE_MAX;
use super::files::{Files, Place, quiet_flexi_logger};
use super::format;
use super::queue::{Ends, Line, Orders, Queue, Reconfigure};
use super::stderr::Stderr;
use crate::base::clock;
use crate::base::heartbeat::{Beat, Doing};
use crate::config::settings::Log;

/// How long the writer gathers lines before it writes them. Waking a thread and a write cost some
/// ten microseconds together, as much as a whole request should; at a thousand lines a second this
/// makes fifty writes of them. An orderly stop writes everything; a kill loses at most this much.
const GATHER_DELAY: Duration = Duration::from_millis(20);
/// Most bytes of one write.
const BATCH_BYTES_MAX: usize = 64 * 1024;

/// What to do about a folder that cannot be written, and what happens until then.
const DIR_REMEDY: &str = "let this user write there, make room, or change log.dir; until then lines \
                          go to standard error";

/// The thread's state.
pub(super) struct Writer {
    queue: Arc<Queue>,
    ends: Ends,
    /// The files, or none: then lines go to standard error.
    files: Option<Files>,
    /// Takes lines also while the files cannot be written.
    stderr: Stderr,
    batch: Vec<u8>,
    batch_lines: u64,
    /// What was said about dropped lines so far: (queue full, write error).
    said: (u64, u64),
    /// Files cannot be written now, and that was said.
    failing: bool,
}

fn place(config: &Log) -> Option<Place> {
    let dir = config.dir.clone()?;
    Some(Place { dir, rotate_size: config.rotate_size, keep_files: config.keep_files })
}

impl Writer {
    pub(super) fn new(queue: Arc<Queue>, ends: Ends, config: &Log) -> Self {
        Writer::with_stderr(queue, ends, config, Stderr::new())
    }

    pub(super) fn with_stderr(queue: Arc<Queue>, ends: Ends, config: &Log, stderr: Stderr) -> Self {
        // Not later than this, for it sets the level of the whole process.
        quiet_flexi_logger();
        let files = place(config).map(Files::new);
        let said = (queue.dropped_full.value(), queue.dropped_write.value());
        let batch = Vec::with_capacity(BATCH_BYTES_MAX);
        Writer { queue, ends, files, stderr, batch, batch_lines: 0, said, failing: false }
    }

    /// Writes until it is told to stop.
    pub(super) fn run(mut self, beat: &Beat) {
        loop {
            beat.rest();
            let mut first = None;
            // One arm must be there for each channel; neither closes while `queue` lives.
            select! {
                recv(self.ends.lines) -> line => first = line.ok(),
                recv(self.ends.wake) -> _ => {}
            }
            if let Some(line) = first {
                self.add(line);
                // Waiting on the other channel only: senders find no sleeper to wake.
                let _ = self.ends.wake.recv_timeout(GATHER_DELAY);
            }
            beat.tick();
            beat.waits(Doing::Disk, clock::now() + WRITE_MAX);
            let orders = self.queue.take_orders();
            self.drain();
            if self.obey(orders) {
                return;
            }
        }
    }

    /// Writes the lines that are queued now.
    fn drain(&mut self) {
        for _ in 0..self.ends.lines.len() {
            let Ok(line) = self.ends.lines.try_recv() else { break };
            self.add(line);
        }
        self.write_batch();
        self.queue.taken();
    }

    fn add(&mut self, line: Line) {
        let files_max = self.files.as_ref().map_or(usize::MAX, Files::batch_bytes_max);
        let batch_max = BATCH_BYTES_MAX.min(files_max);
        if !self.batch.is_empty() && self.batch.len() + line.bytes.len() > batch_max {
            self.write_batch();
        }
        self.queue.tail.push(line.level, &line.bytes);
        self.batch.extend_from_slice(&line.bytes);
        self.batch_lines += 1;
    }

    fn write_batch(&mut self) {
        let lines = std::mem::take(&mut self.batch_lines);
        let saying = (self.queue.dropped_full.value(), self.queue.dropped_write.value());
        if saying != self.said {
            let full = saying.0.wrapping_sub(self.said.0);
            let failed = saying.1.wrapping_sub(self.said.1);
            let fields = [("queue_full", full.into()), ("write_error", failed.into())];
            let line = own_line(&self.queue, Level::Warn, "log_lines_dropped", &fields);
            self.queue.tail.push(Level::Warn, &line);
            self.batch.extend_from_slice(&line);
        }
        if self.batch.is_empty() {
            return;
        }
        match self.write() {
            Ok(()) => {
                self.said = saying;
                self.queue.written.add(lines);
            }
            Err(_) => {
                self.queue.dropped_write.add(lines);
            }
        }
        self.batch.clear();
    }

    /// Hands the batch to the files, or to standard error.
    fn write(&mut self) -> io::Result<()> {
        let Some(files) = &mut self.files else {
            return self.stderr.write(&self.batch).inspect_err(|_| self.queue.write_errors.inc());
        };
        let wrote = files.write(&self.batch);
        self.queue.write_errors.add(std::mem::take(&mut files.side_errors));
        self.queue.files_limit.set_max(files.place().keep_files as u64);
        self.queue.files_limit.set_now(files.kept as u64);
        let Err(error) = wrote else {
            self.failing = false;
            return Ok(());
        };
        self.queue.write_errors.inc();
        // Standard error takes what it can without making the writer wait: the files may be well
        // again before anybody reads a full pipe.
        if !std::mem::replace(&mut self.failing, true) {
            let dir = files.place().dir.to_string_lossy();
            let reason = error.to_string();
            let fields = [
                ("dir", Value::from(&*dir)),
                ("error", Value::from(&*reason)),
                ("remedy", Value::from(DIR_REMEDY)),
            ];
            let line = own_line(&self.queue, Level::Error, "log_dir_failed", &fields);
            let _ = self.stderr.write_at_once(&line);
        }
        self.stderr.write_at_once(&self.batch)
    }

    /// Carries out orders; true when one of them was to stop.
    fn obey(&mut self, orders: Orders) -> bool {
        if let Some(order) = orders.reconfigure {
            self.reconfigure(order);
        }
        if orders.reopen
            && let Some(files) = &mut self.files
            && files.reopen().is_err()
        {
            self.queue.write_errors.inc();
        }
        for done in orders.flushes {
            let _ = done.try_send(());
        }
        if let Some(done) = &orders.stop {
            let _ = done.try_send(());
        }
        orders.stop.is_some()
    }

    fn reconfigure(&mut self, order: Reconfigure) {
        let opened = place(&order.config).map(|place| {
            let mut files = Files::new(place);
            match files.reopen() {
                Ok(()) => Ok(files),
                Err(error) => Err(format!("{}: {error}", files.place().dir.display())),
            }
        });
        let answer = match opened.transpose() {
            Ok(files) => {
                self.files = files;
                self.failing = false;
                self.queue.set_format(order.config.format);
                Ok(())
            }
            Err(reason) => {
                self.queue.write_errors.inc();
                Err(reason)
            }
        };
        let _ = order.answer.try_send(answer);
    }
}

/// A line of the writer's own.
fn own_line(queue: &Queue, level: Level, event: &str, fields: &[(&str, Value<'_>)]) -> Vec<u8> {
    let args = format_args!("{event}");
    let record = Record::builder().level(level).args(args).key_values(&fields).build();
    format::line(queue.format(), clock::wall(), &record)
}
