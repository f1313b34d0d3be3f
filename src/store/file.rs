//! One file on the disk: how it is opened, what its connections are told, which version its tables
//! have, and what a fault of SQLite means for it.

use std::fs;
use std::io::ErrorKind as Io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::db::Which;
use super::readers::READERS_MAX;
use super::schema;
use crate::base::clock;

/// Marks a file as ours: `Tide` in ASCII.
pub(super) const APPLICATION_ID: i32 = 0x5469_6465;

/// Bytes of a page. The system's, and SQLite's default.
pub(super) const PAGE_BYTES: u32 = 4096;

/// How long a connection waits for another program that holds the file (a person with `sqlite3`).
const BUSY: Duration = Duration::from_secs(5);

/// How long the look at a whole file may take at its opening. What is not looked at by then is taken
/// as sound: a page that is not is found when it is read.
const LOOK_MAX: Duration = Duration::from_millis(1000);

/// Steps of SQLite's machine between two looks at the time.
const STEPS: i32 = 1000;

/// Bytes that the log of changes keeps on the disk when it is empty again.
const JOURNAL_BYTES_MAX: u32 = 8 * 1024 * 1024;

/// Memory for pages, in KiB: of the connection that writes, and of each that reads.
const WRITER_CACHE_KIB: u32 = 1024;
const READER_CACHE_KIB: u32 = 512;

/// An open file.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) writer: Connection,
    pub(super) readers: Vec<Connection>,
    /// Device and number of the file, to see when another one takes its place.
    pub(super) place: Place,
    /// It was made just now.
    pub(super) fresh: bool,
}

/// Device and number of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u64, u64);

impl Place {
    /// Where the file of this path is; `None` when there is none.
    pub(super) fn of(path: &Path) -> Option<Place> {
        let found = fs::symlink_metadata(path).ok()?;
        Some(Place(found.dev(), found.ino()))
    }
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Made by a later version of this program. It is left as it is.
    #[error(
        "version {0} of it was made by a newer tidegate, and this one knows {1}; start the newer one, or move the file away"
    )]
    Newer(i64, i64),
    /// Some other program's.
    #[error("it is a database of another program; move it away")]
    Foreign,
    /// Not a database, or a broken one.
    #[error("it is broken: {0}")]
    Broken(String),
    /// No room.
    #[error("there is no room for it: {0}")]
    Full(String),
    /// Anything else: no rights, no folder, a disk that fails.
    #[error("{0}")]
    Other(String),
}

impl Fault {
    /// What an error of SQLite means.
    pub(super) fn of(error: &rusqlite::Error) -> Fault {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Fault::Broken(text),
            Some(ErrorCode::DiskFull) => Fault::Full(text),
            _ => Fault::Other(text),
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Fault {
        Fault::of(&error)
    }
}

/// Whether a fault of a job is one of the file and not of the job: then the file is closed and opened
/// again.
pub(super) fn of_the_file(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::FileLockingProtocolFailed
        )
    )
}

/// The path of a file and of what SQLite keeps beside it.
pub(super) fn with_companions(path: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

/// Opens a file, makes its tables when there are none, and looks whether it is sound.
pub(super) fn open(which: Which, path: &Path, bytes_max: u64) -> Result<Opened, Fault> {
    let fresh = match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => found.len() == 0,
        Ok(_) => return Err(Fault::Other("it is no file; move it away".to_owned())),
        Err(error) if error.kind() == Io::NotFound => true,
        Err(error) => return Err(Fault::Other(error.to_string())),
    };
    // Not NOFOLLOW: it refuses a link anywhere in the path, and a state directory may well have one.
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let write = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut writer = Connection::open_with_flags(path, flags | write)?;
    writer.busy_timeout(BUSY)?;
    // Until it is known to be ours nothing in it is changed, also not by closing it.
    writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    ours(&writer)?;
    writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    // Files in a folder of ours are ours alone, whatever the umask is.
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
    settle(which, &writer, bytes_max)?;
    migrate(which, &mut writer)?;
    if !fresh {
        sound(&mut writer, clock::now() + LOOK_MAX)?;
    }
    let mut readers = Vec::with_capacity(READERS_MAX);
    for _ in 0..READERS_MAX {
        let read = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let reader = Connection::open_with_flags(path, flags | read)?;
        reader.busy_timeout(BUSY)?;
        shared(&reader, READER_CACHE_KIB)?;
        reader.pragma_update(None, "query_only", true)?;
        readers.push(reader);
    }
    let place = Place::of(path).ok_or_else(|| Fault::Other("it has gone".to_owned()))?;
    Ok(Opened { writer, readers, place, fresh })
}

/// Refuses a file of another program, or of a later version of this one.
fn ours(connection: &Connection) -> Result<(), Fault> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get(0));
    let (version, application): (i64, i64) = (number("user_version")?, number("application_id")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let empty = version == 0 && application == 0 && tables == 0;
    if !empty && application != i64::from(APPLICATION_ID) {
        return Err(Fault::Foreign);
    }
    if version > schema::VERSION {
        return Err(Fault::Newer(version, schema::VERSION));
    }
    Ok(())
}

/// What the connection that writes is told.
fn settle(which: Which, writer: &Connection, bytes_max: u64) -> Result<(), Fault> {
    // These two only do something before the first table.
    writer.pragma_update(None, "page_size", PAGE_BYTES)?;
    writer.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    let mode: String = writer.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(Fault::Other(format!("its journal mode stays {mode}, where wal is needed")));
    }
    let synchronous = match which {
        Which::Durable => "FULL",
        Which::Metrics => "NORMAL",
    };
    writer.pragma_update(None, "synchronous", synchronous)?;
    writer.pragma_update(None, "journal_size_limit", JOURNAL_BYTES_MAX)?;
    shared(writer, WRITER_CACHE_KIB)?;
    bound(writer, bytes_max)
}

/// What every connection is told. No mapped memory: a file that is cut while it is mapped kills the
/// process.
fn shared(connection: &Connection, cache_kib: u32) -> Result<(), Fault> {
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "cache_size", -i64::from(cache_kib))?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(())
}

/// Sets the largest size of the file, in bytes. One that is larger already does not grow further.
pub(super) fn bound(writer: &Connection, bytes_max: u64) -> Result<(), Fault> {
    let pages = (bytes_max / u64::from(PAGE_BYTES)).max(1);
    writer
        .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))?;
    Ok(())
}

/// Brings the tables to this version: all steps in one transaction, or none.
fn migrate(which: Which, writer: &mut Connection) -> Result<(), Fault> {
    let version: i64 = writer.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == schema::VERSION {
        return Ok(());
    }
    let tx = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in schema::steps(which, version) {
        tx.execute_batch(&step)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", schema::VERSION)?;
    tx.commit()?;
    Ok(())
}

/// When a file was last written, and its size: what changes when somebody writes over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(i64, i64, u64);

impl Stamp {
    /// That of the file at this path.
    pub(super) fn of(path: &Path) -> Option<Stamp> {
        let found = fs::symlink_metadata(path).ok()?;
        Some(Stamp(found.mtime(), found.mtime_nsec(), found.len()))
    }
}

/// Looks at a file that is in use as a stranger would: connections that are open hold much of it in
/// memory, and do not see that somebody wrote over it.
pub(super) fn glance(path: &Path) -> Result<(), Fault> {
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_ONLY;
    let mut stranger = Connection::open_with_flags(path, flags)?;
    sound(&mut stranger, clock::now() + LOOK_MAX)
}

/// Looks whether a file is sound, for as long as it may take.
pub(super) fn sound(connection: &mut Connection, until: Instant) -> Result<(), Fault> {
    connection.progress_handler(STEPS, Some(move || clock::now() >= until))?;
    let found: rusqlite::Result<String> =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    connection.progress_handler(0, None::<fn() -> bool>)?;
    match found {
        Ok(text) if text == "ok" => Ok(()),
        Ok(text) => Err(Fault::Broken(text)),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
