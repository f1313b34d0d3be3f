//! The thread `store`: it opens both files, runs what was submitted, and looks once a second whether
//! the files are still there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use log::Level;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use super::Tools;
use super::db::{Db, Finished, Ran, Stand, Which};
use super::file::{self, Fault, Place};
use super::quarantine;
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::folder::{self, Claim};
use crate::base::health::Check;
use crate::base::heartbeat::Beat;
use crate::log_limited;

/// How often it looks at everything, and how often `metrics.db` is committed.
const LOOK: Duration = Duration::from_secs(1);

/// How long the thread may be silent: a large batch on a slow disk.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Jobs in one transaction. They share one wait for the disk.
const BATCH_JOBS_MAX: usize = 256;

/// Between two tries to open what cannot be opened: from this on, twice as long each time …
const RETRY_MIN: Duration = Duration::from_secs(1);
/// … up to this.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Largest size of a file, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A file and what the thread knows of it.
struct File {
    db: Arc<Db>,
    path: PathBuf,
    open: Option<Open>,
    retry: Retry,
    /// It was open once in this process.
    seen: bool,
    /// What is wrong with it was told with this text.
    told: Option<String>,
    /// When what waits for `metrics.db` is due.
    due: Instant,
}

struct Open {
    writer: Connection,
    place: Place,
}

/// When to try again.
struct Retry {
    at: Instant,
    wait: Duration,
}

impl Retry {
    fn now() -> Retry {
        Retry { at: clock::now(), wait: RETRY_MIN }
    }

    fn later(&mut self, now: Instant) {
        self.at = now + self.wait;
        self.wait = (self.wait * 2).min(RETRY_MAX);
    }
}

/// What the thread holds.
pub(super) struct Work {
    dir: PathBuf,
    files: [File; 2],
    claim: Option<Claim>,
    retry: Retry,
    nudged: Receiver<()>,
    stopping: Arc<AtomicBool>,
    check: Arc<Check>,
    beat: Beat,
    tools: Tools,
    looked: Option<Instant>,
}

impl Work {
    pub(super) fn new(
        dir: PathBuf,
        dbs: [Arc<Db>; 2],
        nudged: Receiver<()>,
        stopping: Arc<AtomicBool>,
        tools: Tools,
    ) -> Work {
        let files = dbs.map(|db| File {
            path: dir.join(db.which().file()),
            db,
            open: None,
            retry: Retry::now(),
            seen: false,
            told: None,
            due: clock::now(),
        });
        let check = tools.board.check("store");
        check.ok();
        let beat = tools.heartbeats.register_one_of_many("store", SILENCE_MAX);
        let retry = Retry::now();
        let claim = None;
        Work { dir, files, claim, retry, nudged, stopping, check, beat, tools, looked: None }
    }

    /// Until it is stopped.
    pub(super) fn run(mut self) {
        loop {
            let now = clock::now();
            self.beat.tick_at(now);
            if self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK) {
                self.looked = Some(now);
                self.look(now);
            }
            self.write(now);
            if self.stopping.load(Relaxed) {
                break;
            }
            let _ = self.nudged.recv_timeout(LOOK);
        }
        self.end();
    }

    /// Looks whether everything is as it was, and opens what is not open.
    fn look(&mut self, now: Instant) {
        if self.claim.as_ref().is_some_and(|claim| !claim.holds(&self.dir)) {
            self.lost("the state directory or its file `lock` has gone");
        }
        if self.claim.is_none() && now >= self.retry.at {
            match take(&self.dir) {
                Ok(claim) => {
                    self.claim = Some(claim);
                    self.retry = Retry::now();
                    for file in &mut self.files {
                        file.retry = Retry::now();
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
        if self.claim.is_some() {
            for file in &mut self.files {
                file.look(now, &self.tools);
            }
        }
        self.tell();
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

    fn tell(&self) {
        let reasons: Vec<String> = self.files.iter().filter_map(|file| file.told.clone()).collect();
        match reasons.first() {
            None => self.check.ok(),
            // What both have in common is told once.
            Some(first) if reasons.iter().all(|reason| reason == first) => {
                self.check.degraded(first.clone());
            }
            Some(_) => self.check.degraded(reasons.join("; ")),
        }
    }

    /// Runs what is due.
    fn write(&mut self, now: Instant) {
        let stopping = self.stopping.load(Relaxed);
        for file in &mut self.files {
            let wanted = file.db.which() == Which::Durable || file.db.urgent() || stopping;
            if wanted || now >= file.due {
                file.due = now + LOOK;
                file.write(&self.tools);
            }
        }
    }

    /// The last jobs were run: closes everything.
    fn end(mut self) {
        for file in &mut self.files {
            file.db.set_stand(Stand::Stopped, "the daemon is on its way out");
            file.write(&self.tools);
            file.db.refuse_waiting();
            file.db.readers.close();
            file.open = None;
        }
    }
}

/// Makes the folder and claims it.
fn take(dir: &Path) -> Result<Claim, String> {
    folder::private(dir).map_err(|error| error.to_string())?;
    Claim::take(dir).map_err(|error| error.to_string())
}

impl File {
    /// Looks whether the file is still there, and opens it when it is not open.
    fn look(&mut self, now: Instant, tools: &Tools) {
        if let Some(open) = &self.open
            && Place::of(&self.path) != Some(open.place)
        {
            self.abandon();
            let text = "it was deleted, or another file took its place";
            self.record(tools, Level::Error, "store_file_lost", text);
        }
        if self.open.is_some() && self.db.readers.found_broken() {
            self.suspected(tools);
        }
        if self.open.is_none() && now >= self.retry.at {
            self.try_open(now, tools);
        }
    }

    /// A reader met something broken: looks for itself.
    fn suspected(&mut self, tools: &Tools) {
        let Some(open) = &mut self.open else { return };
        let until = clock::now() + Duration::from_secs(5);
        if let Err(fault) = file::sound(&mut open.writer, until) {
            self.fault(&fault, tools);
        }
    }

    fn try_open(&mut self, now: Instant, tools: &Tools) {
        let mut opened = file::open(self.db.which(), &self.path, FILE_BYTES_MAX);
        if let Err(Fault::Broken(text)) = &opened {
            let text = text.clone();
            match self.set_aside(&text, tools) {
                Ok(()) => opened = file::open(self.db.which(), &self.path, FILE_BYTES_MAX),
                Err(fault) => opened = Err(fault),
            }
        }
        let opened = opened.and_then(|opened| {
            self.db.readers.open(opened.readers)?;
            Ok((Open { writer: opened.writer, place: opened.place }, opened.fresh))
        });
        match opened {
            Ok((open, fresh)) => {
                self.open = Some(open);
                if fresh && self.seen {
                    self.db.begin_epoch();
                }
                self.seen = true;
                self.retry = Retry::now();
                self.db.set_stand(Stand::Open, "");
                if self.told.take().is_some() {
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
    fn set_aside(&mut self, why: &str, tools: &Tools) -> Result<(), Fault> {
        self.seen = true;
        match quarantine::set_aside(&self.path) {
            Ok(name) => {
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
    fn down(&mut self, reason: &str, tools: &Tools) {
        self.db.set_stand(Stand::Down, reason);
        self.db.refuse_waiting();
        if self.told.as_deref() != Some(reason) {
            self.told = Some(reason.to_owned());
            self.record(tools, Level::Error, "store_down", reason);
        }
    }

    /// Lets go of a file that is not at its place any more, without touching what may be there now.
    fn abandon(&mut self) {
        if let Some(open) = self.open.take() {
            let no_trace = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
            let _ = open.writer.set_db_config(no_trace, true);
            self.db.readers.close();
        }
        self.retry = Retry::now();
        self.db.set_stand(Stand::Opening, "");
    }

    /// The file failed: closes it; the next look opens it again.
    fn fault(&mut self, fault: &Fault, tools: &Tools) {
        self.db.readers.close();
        self.open = None;
        self.retry = Retry::now();
        let reason = format!("{}: {fault}", self.db.which().file());
        if let Fault::Broken(why) = fault {
            match self.set_aside(why, tools) {
                Ok(()) => return self.try_open(clock::now(), tools),
                Err(fault) => log::error!(fault:% = fault; "store_set_aside"),
            }
        }
        self.down(&reason, tools);
    }

    fn record(&self, tools: &Tools, level: Level, kind: &'static str, text: &str) {
        tools.events.record(level, kind, self.db.which().file(), text.to_owned());
    }

    /// Runs what waits.
    fn write(&mut self, tools: &Tools) {
        while self.db.waiting() > 0 {
            let Some(open) = &self.open else { return };
            match batch(&open.writer, &self.db) {
                Ok(()) => {}
                Err(Broke::Busy) => return,
                Err(Broke::File(fault)) => return self.fault(&fault, tools),
                Err(Broke::Full(text)) => {
                    log_limited!(Level::Error, "store_full", fault = text);
                    return;
                }
            }
        }
    }
}

/// Why a batch ended early.
enum Broke {
    /// Somebody else holds the file. Nothing was taken from the queue.
    Busy,
    /// There is no room.
    Full(String),
    /// The file has to be opened again.
    File(Fault),
}

/// Runs some jobs in one transaction. A job that fails takes none of the others with it, as far as
/// SQLite lets it.
fn batch(writer: &Connection, db: &Db) -> Result<(), Broke> {
    let begun = Transaction::new_unchecked(writer, TransactionBehavior::Immediate);
    let tx = match begun {
        Ok(tx) => tx,
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
            return Err(Broke::Busy);
        }
        Err(error) => return Err(Broke::File(Fault::of(&error))),
    };
    let mut finished: Vec<Finished> = Vec::new();
    let mut broke = None;
    while finished.len() < BATCH_JOBS_MAX
        && let Some(job) = db.next_job()
    {
        if let Err(error) = tx.execute_batch("SAVEPOINT job") {
            finished.push(job.unrun());
            broke = Some(error);
            break;
        }
        match job.run(&tx) {
            (done, Ok(())) => {
                finished.push(done);
                if let Err(error) = tx.execute_batch("RELEASE job") {
                    broke = Some(error);
                    break;
                }
            }
            (done, Err(ran)) => {
                let error = told(done.what, &ran);
                let undone = tx.execute_batch("ROLLBACK TO job; RELEASE job");
                db.finish(done, Err(error));
                match (ran, undone) {
                    (Ran::Sql(error), _) if file::of_the_file(&error) => broke = Some(error),
                    (Ran::Sql(error), Err(_)) => broke = Some(error),
                    (Ran::Panicked(_), Err(error)) => broke = Some(error),
                    (_, Ok(())) => continue,
                }
                break;
            }
        }
    }
    let outcome = match broke {
        Some(error) => Err(error),
        None => tx.commit(),
    };
    let Err(error) = outcome else {
        for done in finished {
            db.finish(done, Ok(()));
        }
        return Ok(());
    };
    for done in finished {
        let text = format!("{}: {error}", done.what);
        db.finish(done, Err(Error::new(kind(&error), text)));
    }
    Err(match Fault::of(&error) {
        Fault::Full(text) => Broke::Full(text),
        fault => Broke::File(fault),
    })
}

/// What whoever waits for a job is told of its fault.
fn told(what: &'static str, ran: &Ran) -> Error {
    match ran {
        Ran::Sql(error) => {
            log_limited!(Level::Error, "store_job_failed", what, fault:% = error);
            Error::new(kind(error), format!("{what}: {error}"))
        }
        Ran::Panicked(text) => {
            log_limited!(Level::Error, "store_job_panicked", what, fault = text.as_str());
            Error::new(Kind::StoreFailed, format!("{what}: it panicked"))
        }
    }
}

fn kind(error: &rusqlite::Error) -> Kind {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Kind::StoreFull,
        _ if file::of_the_file(error) => Kind::StoreUnavailable,
        _ => Kind::StoreFailed,
    }
}
