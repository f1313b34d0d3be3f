//! Running jobs: several in one transaction, each in a savepoint of its own.

use log::Level;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use super::db::{Db, Finished, Job, Ran};
use super::file::{self, Fault};
use crate::base::error::{Error, Kind};
use crate::log_limited;

/// Jobs in one transaction. They share one wait for the disk.
const BATCH_JOBS_MAX: usize = 256;

/// Why a batch ended early.
#[derive(Debug)]
pub(super) enum Broke {
    /// Somebody else holds the file. Nothing was taken from the queue.
    Busy,
    /// There is no room.
    Full(String),
    /// The file has to be opened again.
    File(Fault),
}

impl From<rusqlite::Error> for Broke {
    fn from(error: rusqlite::Error) -> Broke {
        if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) {
            return Broke::Busy;
        }
        match Fault::of(&error) {
            Fault::Full(text) => Broke::Full(text),
            fault => Broke::File(fault),
        }
    }
}

/// Runs some of the jobs that wait. One that fails takes none of the others with it, as far as SQLite
/// lets it: a full disk or a broken file ends the whole transaction.
pub(super) fn run(writer: &Connection, db: &Db) -> Result<(), Broke> {
    let tx = Transaction::new_unchecked(writer, TransactionBehavior::Immediate)?;
    let mut finished: Vec<Finished> = Vec::new();
    let mut broke = None;
    let mut count = 0;
    while count < BATCH_JOBS_MAX
        && let Some(job) = db.next_job()
    {
        count += 1;
        match one(&tx, job, db) {
            Ok(done) => finished.extend(done),
            Err((done, error)) => {
                finished.extend(done);
                broke = Some(error);
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
    Err(match Broke::from(error) {
        // The transaction was begun: whatever holds the file now is no other writer.
        Broke::Busy => Broke::File(Fault::Other("it stays locked".to_owned())),
        broke => broke,
    })
}

type Ended = (Option<Finished>, rusqlite::Error);

/// Runs one. A job that failed was told so already; an error that ends the transaction comes back.
fn one(tx: &Transaction<'_>, job: Job, db: &Db) -> Result<Option<Finished>, Ended> {
    if let Err(error) = tx.execute_batch("SAVEPOINT job") {
        return Err((Some(job.unrun()), error));
    }
    match job.run(tx) {
        (done, Ok(())) => match tx.execute_batch("RELEASE job") {
            Ok(()) => Ok(Some(done)),
            Err(error) => Err((Some(done), error)),
        },
        (done, Err(ran)) => {
            let told = told(done.what, &ran);
            db.finish(done, Err(told));
            let undone = tx.execute_batch("ROLLBACK TO job; RELEASE job");
            match (ran, undone) {
                (Ran::Sql(error), Ok(())) if !file::of_the_file(&error) => Ok(None),
                (Ran::Panicked(_), Ok(())) => Ok(None),
                (Ran::Sql(error), _) | (Ran::Panicked(_), Err(error)) => Err((None, error)),
            }
        }
    }
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
