//! One of the two files in the hands of the writer thread: opened, looked after, closed, set aside.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::Tools;
use super::batch::{self, Broke};
use super::db::{Db, Stand, Which};
use super::file::{self, Fault, Place, Stamp};
use super::retention::{self, Pages};
use super::{events, quarantine};
use crate::base::clock;
use crate::base::metrics::{Gauge, Limit, Registry, Unit};
use crate::config::settings::Store as Settings;

/// Between two tries to open what cannot be opened: from this on, twice as long each time …
const RETRY_MIN: Duration = Duration::from_secs(1);
/// … up to this.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// After a write found no room, how long none is tried.
const FULL_PAUSE: Duration = Duration::from_secs(5);

/// How often it looks for what is too old.
const SWEEP: Duration = Duration::from_secs(20);

/// After the last write, how long until a file is tidied up.
const IDLE: Duration = Duration::from_secs(5);

/// How long a file may be looked at that a reader found broken.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// When to try again.
#[derive(Debug)]
pub(super) struct Retry {
    at: Instant,
    wait: Duration,
}

impl Retry {
    pub(super) fn now() -> Retry {
        Retry { at: clock::now(), wait: RETRY_MIN }
    }

    pub(super) fn due(&self, now: Instant) -> bool {
        now >= self.at
    }

    pub(super) fn later(&mut self, now: Instant) {
        self.at = now + self.wait;
        self.wait = (self.wait * 2).min(RETRY_MAX);
    }
}

struct Open {
    writer: Connection,
    place: Place,
    swept: Instant,
    /// Of the file after our own last work on it.
    stamp: Option<Stamp>,
    wrote: Instant,
    /// Something was written since it was tidied up.
    untidy: bool,
}

/// A file and what the thread knows of it.
pub(super) struct Holder {
    pub(super) db: Arc<Db>,
    path: PathBuf,
    open: Option<Open>,
    retry: Retry,
    /// There was a file in this process's time.
    seen: bool,
    /// Why it is not open; it was told with this text.
    fault: Option<String>,
    /// The disk is nearly full: why nothing more is taken.
    crowded: Option<String>,
    /// A write found no room: until when none is tried, and why.
    full: Option<(Instant, String)>,
    bytes_max: u64,
    shown: Shown,
}

/// What is exported of it.
struct Shown {
    up: Arc<Gauge>,
    wal: Arc<Gauge>,
    size: Arc<Limit>,
    /// Bytes of events; of `durable.db` only.
    events: Option<Arc<Limit>>,
    aside: Arc<Limit>,
}

impl Shown {
    fn new(which: Which, settings: &Settings, registry: &Registry) -> Shown {
        let bytes_max = retention::bytes_max(which, settings);
        let labels = [("file", which.as_str())];
        let gauge = |name, help| registry.gauge(name, help, &labels);
        let (name, consequence) = match which {
            Which::Durable => {
                ("store.durable_max", "the oldest events are deleted, then jobs refused")
            }
            Which::Metrics => ("store.metrics_max", "the oldest is deleted, then samples dropped"),
        };
        let aside = quarantine::QUARANTINED_MAX as u64;
        Shown {
            up: gauge("tidegate_store_up", "Whether a file of the store can be used: 1 or 0."),
            wal: gauge("tidegate_store_wal_bytes", "Size of the log of changes of a file."),
            size: registry.limit_of(Unit::Bytes, name, "", bytes_max, consequence),
            events: (which == Which::Durable).then(|| {
                let (name, consequence) = ("store.events_max", "the oldest are deleted");
                registry.limit_of(Unit::Bytes, name, "", settings.events_max, consequence)
            }),
            aside: registry.limit(
                "store.quarantined_max",
                which.as_str(),
                aside,
                "the oldest of the broken files is deleted",
            ),
        }
    }
}

impl Holder {
    pub(super) fn new(dir: &Path, db: Arc<Db>, settings: &Settings, tools: &Tools) -> Holder {
        let bytes_max = retention::bytes_max(db.which(), settings);
        Holder {
            path: dir.join(db.which().file()),
            shown: Shown::new(db.which(), settings, &tools.registry),
            db,
            open: None,
            retry: Retry::now(),
            seen: false,
            fault: None,
            crowded: None,
            full: None,
            bytes_max,
        }
    }

    /// Why it is not as it should be.
    pub(super) fn told(&self) -> Option<String> {
        let full = self.full.as_ref().map(|(_, reason)| reason);
        let wrong = self.fault.as_ref().or(self.crowded.as_ref()).or(full).cloned();
        let opening = || format!("{} is being opened", self.path.display());
        wrong.or_else(|| self.open.is_none().then(opening))
    }

    /// Looks whether the file is still there, opens it when it is not open, and tidies up.
    pub(super) fn look(&mut self, now: Instant, settings: &Settings, tools: &Tools) {
        if let Some(open) = &self.open
            && Place::of(&self.path) != Some(open.place)
        {
            self.abandon();
            let text = "it was deleted, or another file took its place";
            self.record(tools, Level::Error, "store_file_lost", text);
        }
        self.resize(settings);
        if self.open.is_some() && self.db.readers.found_broken() {
            self.suspected(tools);
        }
        self.glance(tools);
        if self.open.is_none() && self.retry.due(now) {
            self.try_open(now, tools);
        }
        if self.full.as_ref().is_some_and(|(until, _)| now >= *until) {
            self.full = None;
        }
        self.tidy(now, settings, tools);
        self.stamp();
        self.stand();
        self.show();
    }

    /// What was written until now we wrote.
    fn stamp(&mut self) {
        if let Some(open) = &mut self.open {
            open.stamp = Stamp::of(&self.path);
        }
    }

    /// Begins to try at once.
    pub(super) fn hurry(&mut self) {
        self.retry = Retry::now();
    }

    /// The disk is nearly full, for this reason; or is not any more.
    pub(super) fn crowd(&mut self, reason: Option<String>) {
        self.crowded = reason;
        self.stand();
    }

    fn resize(&mut self, settings: &Settings) {
        let bytes_max = retention::bytes_max(self.db.which(), settings);
        if bytes_max == self.bytes_max {
            return;
        }
        self.bytes_max = bytes_max;
        self.shown.size.set_max(bytes_max);
        if let Some(open) = &self.open
            && let Err(fault) = file::bound(&open.writer, bytes_max)
        {
            log::warn!(file = self.db.which().file(), fault:% = fault; "store_bound");
        }
    }

    /// Looks whether somebody wrote over the file.
    fn glance(&mut self, tools: &Tools) {
        let Some(open) = &mut self.open else { return };
        let stamp = Stamp::of(&self.path);
        if open.stamp == stamp {
            return;
        }
        open.stamp = stamp;
        // Any other fault is one of looking.
        if let Err(fault @ Fault::Broken(_)) = file::glance(&self.path) {
            self.broke(&fault, tools);
        }
    }

    /// A reader met something broken: looks for itself.
    fn suspected(&mut self, tools: &Tools) {
        let Some(open) = &mut self.open else { return };
        if let Err(fault) = file::sound(&mut open.writer, clock::now() + LOOK_MAX) {
            self.broke(&fault, tools);
        }
    }

    fn try_open(&mut self, now: Instant, tools: &Tools) {
        let open = || file::open(self.db.which(), &self.path, self.bytes_max);
        let mut opened = open();
        if let Err(Fault::Broken(why)) = &opened {
            opened = match self.set_aside(why, tools) {
                Ok(()) => open(),
                Err(fault) => Err(fault),
            };
            self.seen = true;
        }
        let opened = opened.and_then(|opened| {
            self.db.readers.open(opened.readers)?;
            let (writer, place) = (opened.writer, opened.place);
            let open = Open { writer, place, swept: now, stamp: None, wrote: now, untidy: true };
            Ok((open, opened.fresh))
        });
        match opened {
            Ok((open, fresh)) => {
                self.open = Some(open);
                self.stamp();
                if fresh && self.seen {
                    self.db.begin_epoch();
                }
                self.seen = true;
                self.full = None;
                self.stand();
                if self.fault.take().is_some() {
                    self.stand();
                    self.record(tools, Level::Info, "store_recovered", "it is in use again");
                }
            }
            Err(fault) => {
                self.retry.later(now);
                let reason = format!("{}: {fault}", self.db.which().file());
                self.down(&reason, tools);
            }
        }
    }

    /// Moves a broken file out of the way.
    fn set_aside(&self, why: &str, tools: &Tools) -> Result<(), Fault> {
        match quarantine::set_aside(&self.path) {
            Ok((name, kept)) => {
                self.shown.aside.set_now(kept as u64);
                let text = format!("{why}; it was set aside as {name} and a new one made");
                self.record(tools, Level::Error, "store_quarantined", &text);
                Ok(())
            }
            Err(error) => {
                Err(Fault::Other(format!("it is broken ({why}) and cannot be set aside: {error}")))
            }
        }
    }

    /// It cannot be used for now.
    pub(super) fn down(&mut self, reason: &str, tools: &Tools) {
        let fresh = self.fault.as_deref() != Some(reason);
        self.fault = Some(reason.to_owned());
        self.stand();
        self.db.refuse_waiting();
        if fresh {
            self.record(tools, Level::Error, "store_down", reason);
        }
    }

    /// Lets go of a file that is not at its place any more, without touching what may be there now.
    pub(super) fn abandon(&mut self) {
        if let Some(open) = self.open.take() {
            let no_trace = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
            let _ = open.writer.set_db_config(no_trace, true);
            self.db.readers.close();
        }
        self.retry = Retry::now();
        self.stand();
    }

    /// The file failed: closes it, and opens it or a new one again.
    fn broke(&mut self, fault: &Fault, tools: &Tools) {
        self.db.readers.close();
        self.open = None;
        let now = clock::now();
        // A disk that breaks every file must not keep us busy with it.
        let again = self.retry.wait > RETRY_MIN;
        self.retry.later(now);
        let mut reason = self.named(fault);
        if let Fault::Broken(why) = fault {
            match self.set_aside(why, tools) {
                Ok(()) if !again => return self.try_open(now, tools),
                Ok(()) => self.seen = true,
                Err(fault) => reason = self.named(&fault),
            }
        }
        self.down(&reason, tools);
    }

    fn named(&self, fault: &Fault) -> String {
        format!("{}: {fault}", self.db.which().file())
    }

    fn record(&self, tools: &Tools, level: Level, kind: &'static str, text: &str) {
        tools.events.record(level, kind, self.db.which().file(), text.to_owned());
    }

    /// Says how it stands.
    fn stand(&self) {
        if self.db.stand() == Stand::Stopped {
            return;
        }
        let full = self.full.as_ref().map(|(_, reason)| reason);
        match (&self.open, &self.fault, self.crowded.as_ref().or(full)) {
            (Some(_), _, None) => self.db.set_stand(Stand::Open, ""),
            (Some(_), _, Some(reason)) => self.db.set_stand(Stand::Full, reason),
            (None, Some(reason), _) => self.db.set_stand(Stand::Down, reason),
            (None, None, _) => self.db.set_stand(Stand::Opening, ""),
        }
    }

    fn show(&self) {
        self.shown.up.set(u64::from(self.open.is_some()));
        let [file, wal, _] = file::with_companions(&self.path);
        self.shown.size.set_now(retention::size(&file));
        self.shown.wal.set(retention::size(&wal));
    }

    /// Runs what waits.
    pub(super) fn write(&mut self, tools: &Tools) {
        while self.db.waiting() > 0 {
            let Some(open) = &mut self.open else { return };
            let ran = batch::run(&open.writer, &self.db);
            (open.wrote, open.untidy) = (clock::now(), true);
            self.stamp();
            if !self.survived(ran, tools) {
                return;
            }
        }
    }

    /// Whether it can go on after this.
    fn survived(&mut self, ran: Result<(), Broke>, tools: &Tools) -> bool {
        match ran {
            Ok(()) => {
                self.retry.wait = RETRY_MIN;
                true
            }
            Err(Broke::Busy) => false,
            Err(Broke::File(fault)) => {
                self.broke(&fault, tools);
                false
            }
            Err(Broke::Full(text)) => {
                self.found_full(&text, tools);
                false
            }
        }
    }

    fn found_full(&mut self, text: &str, tools: &Tools) {
        let Some(open) = &self.open else { return };
        let pages = Pages::of(&open.writer).unwrap_or_default();
        let reason = if pages.nearly_full(self.bytes_max) {
            self.shown.size.refuse();
            let key = match self.db.which() {
                Which::Durable => "store.durable_max",
                Which::Metrics => "store.metrics_max",
            };
            format!("{} is as large as {key} lets it be", self.db.which().file())
        } else {
            format!("there is no room on the disk for {}: {text}", self.db.which().file())
        };
        if self.full.is_none() {
            self.record(tools, Level::Error, "store_full", &reason);
        }
        self.full = Some((clock::now() + FULL_PAUSE, reason));
        self.stand();
    }

    /// Whether a write found no room.
    pub(super) fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// Deletes what is too old, and gives room back to the disk.
    fn tidy(&mut self, now: Instant, settings: &Settings, tools: &Tools) {
        let pressed = self.full.is_some() || self.crowded.is_some();
        let ran = self.try_tidy(now, settings, pressed).map_err(Broke::from);
        self.survived(ran, tools);
    }

    fn try_tidy(
        &mut self,
        now: Instant,
        settings: &Settings,
        pressed: bool,
    ) -> rusqlite::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let due = now.saturating_duration_since(open.swept) >= SWEEP;
        if due || pressed {
            let more = retention::sweep(&open.writer, self.db.which(), events::now_ms(), settings)?;
            if let Some(limit) = &self.shown.events {
                limit.set_max(settings.events_max);
                limit.set_now(events::bytes(&open.writer)?);
            }
            open.untidy |= more;
            if !more {
                open.swept = now;
            }
        }
        let idle = now.saturating_duration_since(open.wrote) >= IDLE;
        if (idle && open.untidy) || pressed {
            open.untidy = retention::vacuum(&open.writer, pressed)?;
            let [_, wal, _] = file::with_companions(&self.path);
            retention::checkpoint(&open.writer, retention::size(&wal), pressed)?;
            if !open.untidy {
                open.writer.execute_batch("PRAGMA shrink_memory")?;
            }
        }
        Ok(())
    }

    /// Runs what still waits and closes the file for good.
    pub(super) fn end(&mut self, tools: &Tools) {
        self.db.set_stand(Stand::Stopped, "the daemon is on its way out");
        self.write(tools);
        self.db.refuse_waiting();
        self.db.readers.close();
        self.open = None;
        self.show();
    }
}
