//! The thread `store`: it claims the folder, runs what was submitted, and looks once a second whether
//! the files are still there, how much room the disk has, and what happened to the program.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use log::Level;

use super::ballast::Ballast;
use super::db::{Stand, Which};
use super::events::{self, Sieve};
use super::holder::{Holder, Retry};
use super::space::{self, Room};
use super::{Shared, Tools};
use crate::base::clock;
use crate::base::error::Error;
use crate::base::folder::{self, Claim, Space};
use crate::base::heartbeat::{Beat, Doing};
use crate::base::metrics::{Counter, Gauge};
use crate::config::settings::Store as Settings;

/// How often it looks at everything, and how often `metrics.db` is committed.
const LOOK: Duration = Duration::from_secs(1);

/// How long the disk may take for everything that waits.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// What the thread holds.
pub(super) struct Work {
    dir: PathBuf,
    files: [Holder; 2],
    claim: Option<Claim>,
    retry: Retry,
    room: Room,
    space: Option<Space>,
    ballast: Ballast,
    /// The ballast could not be made for this reason.
    no_ballast: Option<String>,
    sieve: Sieve,
    /// Events on their way into the file: the number before them, and what becomes of them.
    keeping: Option<(u64, Receiver<Result<(), Error>>)>,
    /// The epoch of the file that the sieve's events went into.
    epoch: u64,
    nudged: Receiver<()>,
    shared: Arc<Shared>,
    tools: Tools,
    beat: Beat,
    shown: Shown,
    looked: Option<Instant>,
    /// When what waits for `metrics.db` is due.
    due: Instant,
}

/// What is exported of the folder.
struct Shown {
    free: Arc<Gauge>,
    ballast: Arc<Gauge>,
    missed: Arc<Counter>,
}

impl Work {
    pub(super) fn new(
        dir: PathBuf,
        nudged: Receiver<()>,
        shared: Arc<Shared>,
        tools: Tools,
    ) -> Work {
        let settings = shared.settings.load();
        let files = [&shared.durable, &shared.metrics]
            .map(|db| Holder::new(&dir, Arc::clone(db), &settings, &tools));
        let gauge = |name, help| tools.registry.gauge(name, help, &[]);
        let help = "Events that came too fast to be kept in the store.";
        let shown = Shown {
            free: gauge("tidegate_store_free_bytes", "Free space on the state directory's disk."),
            ballast: gauge("tidegate_store_ballast_bytes", "Room that can be given free at once."),
            missed: tools.registry.counter("tidegate_store_events_missed_total", help, &[]),
        };
        drop(settings);
        // Without its disk the gateway is degraded, not dead.
        let beat = tools.heartbeats.register_one_of_many("store", SILENCE_MAX);
        Work {
            ballast: Ballast::of(&dir),
            dir,
            files,
            claim: None,
            retry: Retry::now(),
            room: Room::Plenty,
            space: None,
            no_ballast: None,
            sieve: Sieve::default(),
            keeping: None,
            epoch: 0,
            nudged,
            shared,
            beat,
            tools,
            shown,
            looked: None,
            due: clock::now(),
        }
    }

    /// Until it is stopped.
    pub(super) fn run(mut self) {
        loop {
            self.shared.begin_work();
            let now = clock::now();
            self.beat.tick_at(now);
            self.beat.waits(Doing::Disk, now + SILENCE_MAX);
            if self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK) {
                self.looked = Some(now);
                self.look(now);
            }
            self.write(now);
            if self.shared.stopping.load(Relaxed) {
                break;
            }
            self.shared.end_work();
            self.beat.tick();
            self.beat.rest();
            let _ = self.nudged.recv_timeout(LOOK);
        }
        self.end();
    }

    /// Looks whether everything is as it was, and opens what is not open.
    fn look(&mut self, now: Instant) {
        if self.claim.as_ref().is_some_and(|claim| !claim.holds(&self.dir)) {
            self.lost("the state directory or its file `lock` has gone");
        }
        if self.claim.is_none() && self.retry.due(now) {
            self.try_claim(now);
        }
        // The claim may have taken a while, and the files wait for nothing after it.
        let now = clock::now();
        let settings = self.shared.settings.load_full();
        if self.claim.is_some() {
            self.look_at_room(&settings);
            for file in &mut self.files {
                file.look(now, &settings, &self.tools);
            }
        }
        self.keep_events(now);
        self.tell();
    }

    fn try_claim(&mut self, now: Instant) {
        match take(&self.dir) {
            Ok(claim) => {
                self.claim = Some(claim);
                self.retry = Retry::now();
                self.ballast.forget();
                for file in &mut self.files {
                    file.hurry();
                }
            }
            Err(reason) => {
                self.retry.later(now);
                let reason = format!("{}: {reason}", self.dir.display());
                for file in &mut self.files {
                    file.down(&reason, &self.tools);
                }
            }
        }
    }

    /// The folder is not ours any more: nothing in it is touched.
    fn lost(&mut self, reason: &str) {
        for file in &mut self.files {
            file.abandon();
        }
        self.claim = None;
        self.retry = Retry::now();
        self.tools.events.record(Level::Error, "store_lost", "", reason.to_owned());
    }

    /// Looks at the disk, and does what its marks ask for.
    fn look_at_room(&mut self, settings: &Settings) {
        let Some(space) = folder::free(&self.dir) else { return };
        self.space = Some(space);
        let room = Room::of(space, self.room, settings);
        if room != self.room {
            let (level, kind) = match room {
                Room::Plenty => (Level::Info, "disk_room"),
                Room::Low => (Level::Warn, "disk_low"),
                Room::Shed => (Level::Error, "disk_shed"),
                Room::Refuse => (Level::Error, "disk_full"),
            };
            self.tools.events.record(level, kind, "", space::told(space));
            self.room = room;
        }
        let reason = |at: Room| {
            (room >= at).then(|| format!("the disk is nearly full: {}", space::told(space)))
        };
        for file in &mut self.files {
            file.crowd(match file.db.which() {
                Which::Durable => reason(Room::Refuse),
                Which::Metrics => reason(Room::Shed),
            });
        }
        self.weigh(space, settings);
        self.shown.free.set(space.free);
        self.shown.ballast.set(self.ballast.bytes());
    }

    /// Releases the ballast when there is no room, and makes it again when there is.
    fn weigh(&mut self, space: Space, settings: &Settings) {
        let full = self.room == Room::Refuse || self.files.iter().any(Holder::is_full);
        if full {
            match self.ballast.release() {
                Ok(0) => {}
                Ok(bytes) => {
                    let text = format!("{bytes} bytes");
                    self.tools.events.record(Level::Warn, "ballast_released", "", text);
                }
                Err(error) => log::error!(fault:% = error; "ballast_not_released"),
            }
            return;
        }
        let have = self.ballast.bytes();
        let after = Space { free: (space.free + have).saturating_sub(settings.ballast), ..space };
        // Making it must not be what fills the disk.
        if have == settings.ballast || Room::of(after, Room::Low, settings) != Room::Plenty {
            return;
        }
        let made = self.ballast.make(settings.ballast);
        let reason = made.err().map(|error| error.to_string());
        if reason != self.no_ballast {
            if let Some(reason) = &reason {
                log::warn!(reason = reason.as_str(); "no_ballast");
            }
            self.no_ballast = reason;
        }
    }

    /// Brings what happened to the program into the file.
    fn keep_events(&mut self, now: Instant) {
        let db = &self.shared.durable;
        if !matches!(db.stand(), Stand::Open) || db.waiting() >= db.pending_max() {
            return;
        }
        if db.epoch() != self.epoch {
            self.epoch = db.epoch();
            self.sieve.restart();
        }
        if let Some((before, outcome)) = &self.keeping {
            match outcome.try_recv() {
                Ok(Ok(())) => {}
                Err(TryRecvError::Empty) => return,
                // Once more, as far as the history reaches.
                Ok(Err(_)) | Err(TryRecvError::Disconnected) => self.sieve.back_to(*before),
            }
            self.keeping = None;
        }
        let last = self.sieve.last();
        let fresh = self.tools.events.after(last);
        let Some(first) = fresh.first() else { return };
        if last > 0 {
            self.shown.missed.add(first.number.saturating_sub(last + 1));
        }
        let kept = self.sieve.take(fresh, now);
        if kept.is_empty() {
            return;
        }
        match db.submit_told("events", move |tx| events::insert(tx, &kept)) {
            Ok(outcome) => self.keeping = Some((last, outcome)),
            // It is counted where it is refused.
            Err(_) => self.sieve.back_to(last),
        }
    }

    fn tell(&self) {
        let mut reasons: Vec<String> = self.files.iter().filter_map(Holder::told).collect();
        reasons.dedup();
        if let (Room::Low | Room::Shed, Some(space)) = (self.room, self.space) {
            let text = format!("the disk has little room: {}", space::told(space));
            if self.room == Room::Low {
                reasons.push(text);
            }
        }
        self.shared.tell(reasons.join("; "));
    }

    /// Runs what is due.
    fn write(&mut self, now: Instant) {
        let stopping = self.shared.stopping.load(Relaxed);
        let due = now >= self.due || stopping;
        if due {
            self.due = now + LOOK;
        }
        for file in &mut self.files {
            if due || file.db.which() == Which::Durable || file.db.urgent() {
                file.write(&self.tools);
            }
        }
    }

    /// The last jobs are run, and everything closed.
    fn end(mut self) {
        // Those on their way first, then those that came meanwhile.
        let [durable, _] = &mut self.files;
        durable.write(&self.tools);
        self.keep_events(clock::now());
        for file in &mut self.files {
            file.end(&self.tools);
        }
    }
}

/// Makes the folder and claims it.
fn take(dir: &Path) -> Result<Claim, String> {
    folder::private(dir).map_err(|error| error.to_string())?;
    Claim::take(dir).map_err(|error| error.to_string())
}
