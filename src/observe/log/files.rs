//! Log files in a folder: flexi_logger appends and rotates, this file decides when, keeps the
//! number of files bounded, and notices when the file is no longer the one in the folder.
//!
//! flexi_logger's own clean-up is off: it orders files by name, which puts `r100000` before
//! `r99999`, stops at the first file that it cannot delete, and panics when the folder is gone.
//! Its rotation hides its errors when it happens by itself, so it is asked for it.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use flexi_logger::writers::{ArcFileLogWriter, FileLogWriter, FileLogWriterHandle};
use flexi_logger::{Cleanup, Criterion, ErrorChannel, FileSpec, LogSpecification, Logger, Naming};

use crate::base::clock;

/// The file that is written to.
pub(super) const CURRENT_NAME: &str = "tidegate_rCURRENT.log";
/// Rotated files are named `tidegate_r00042.log`; a higher number is younger.
const ROTATED_PREFIX: &str = "tidegate_r";
const ROTATED_SUFFIX: &str = ".log";
/// How often it is checked that the file in the folder is the one that is open.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause between tries to open a file that cannot be opened.
const OPEN_RETRY_DELAY: Duration = Duration::from_secs(1);
/// When rotation fails, a file may grow to this many times `log.rotate_size`. Then it is emptied:
/// the oldest lines are the ones to lose.
const UNROTATED_FACTOR: u64 = 2;

/// Where files go, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) rotate_size: u64,
    /// Rotated files, beside the one that is written to.
    pub(super) keep_files: usize,
}

/// The open file of a folder.
pub(super) struct Files {
    place: Place,
    open: Option<Open>,
    /// When opening may be tried again.
    retry_at: Instant,
    /// The last write failed and may have left half a line.
    torn: bool,
    /// Failures that did not keep lines from being written: of rotation and of deleting.
    pub(super) side_errors: u64,
    /// Rotated files in the folder, as the last sweep left them.
    pub(super) kept: usize,
}

struct Open {
    writer: ArcFileLogWriter,
    _handle: FileLogWriterHandle,
    path: PathBuf,
    identity: (u64, u64),
    size: u64,
    checked: Instant,
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Files {
    /// Files that are opened at the first write.
    pub(super) fn new(place: Place) -> Self {
        Files { place, open: None, retry_at: clock::now(), torn: false, side_errors: 0, kept: 0 }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Opens the file in the folder, whichever it is now. On failure the old one stays open.
    ///
    /// # Errors
    /// When the folder cannot be made or the file cannot be opened.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let opened = guarded(|| Open::new(&self.place));
        if opened.is_err() {
            self.retry_at = clock::now() + OPEN_RETRY_DELAY;
        }
        self.open = Some(opened?);
        self.sweep();
        Ok(())
    }

    /// Most bytes that one write should have, so that files stay near their size.
    pub(super) fn batch_bytes_max(&self) -> usize {
        usize::try_from(self.place.rotate_size).unwrap_or(usize::MAX)
    }

    /// Appends whole lines.
    ///
    /// # Errors
    /// When they could not be written, or not all of them.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.settle()?;
        let size = self.open.as_ref().map_or(0, |open| open.size);
        if size > 0 && size.saturating_add(lines.len() as u64) > self.place.rotate_size {
            self.rotate(lines.len() as u64)?;
        }
        let torn = std::mem::take(&mut self.torn);
        let Some(open) = &mut self.open else { return Err(io::ErrorKind::NotFound.into()) };
        let wrote = guarded(|| {
            if torn {
                open.writer.write_all(b"\n")?;
            }
            open.writer.write_all(lines)
        });
        match wrote {
            Ok(()) => open.size += lines.len() as u64 + u64::from(torn),
            Err(_) => {
                self.torn = true;
                // How much was written is unknown, and a panic leaves the writer unusable. Opening
                // anew costs some ten microseconds, and works on a full disk: the file is there.
                self.open = None;
            }
        }
        wrote
    }

    /// Makes sure that a file is open and that it is the one in the folder.
    fn settle(&mut self) -> io::Result<()> {
        let now = clock::now();
        match &mut self.open {
            None if now < self.retry_at => Err(io::ErrorKind::NotFound.into()),
            None => self.reopen(),
            Some(open) if now < open.checked + CHECK_INTERVAL => Ok(()),
            Some(open) => match fs::metadata(&open.path) {
                Ok(metadata) if identity(&metadata) == open.identity => {
                    open.size = metadata.len();
                    open.checked = now;
                    Ok(())
                }
                // Moved or deleted by somebody else: what we write would be seen by nobody.
                _ if now < self.retry_at => Err(io::ErrorKind::NotFound.into()),
                _ => self.reopen(),
            },
        }
    }

    /// Starts a new file. When that fails, the old one is used on, within its bound.
    fn rotate(&mut self, coming: u64) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let rotated =
            guarded(|| open.writer.rotate().map_err(io::Error::other)).and_then(|()| open.look());
        if rotated.is_err() || open.size > 0 {
            self.side_errors += 1;
            let bound = self.place.rotate_size.saturating_mul(UNROTATED_FACTOR);
            if open.size.saturating_add(coming) > bound {
                OpenOptions::new().write(true).open(&open.path)?.set_len(0)?;
                open.size = 0;
            }
        }
        self.sweep();
        Ok(())
    }

    /// Deletes the oldest rotated files above `keep_files`.
    fn sweep(&mut self) {
        let Ok(entries) = fs::read_dir(&self.place.dir) else { return };
        let mut rotated: Vec<(u64, PathBuf)> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()))
            .filter_map(|entry| {
                Some((rotated_number(&entry.file_name().to_string_lossy())?, entry.path()))
            })
            .collect();
        self.kept = rotated.len();
        let Some(excess) = rotated.len().checked_sub(self.place.keep_files) else { return };
        rotated.sort_unstable();
        for (_, path) in &rotated[..excess] {
            match fs::remove_file(path) {
                Ok(()) => self.kept -= 1,
                Err(_) => self.side_errors += 1,
            }
        }
    }
}

/// The number in the name of a rotated file.
pub(super) fn rotated_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix(ROTATED_PREFIX)?.strip_suffix(ROTATED_SUFFIX)?;
    if number.bytes().all(|b| b.is_ascii_digit()) { number.parse().ok() } else { None }
}

impl Open {
    fn new(place: &Place) -> io::Result<Open> {
        // flexi_logger would make it too, but does not say why it could not.
        fs::create_dir_all(&place.dir)?;
        let spec =
            FileSpec::default().directory(&place.dir).basename("tidegate").suppress_timestamp();
        // Rotation is asked for (see above); no file reaches the size at which it would happen by itself.
        let (mut writer, handle) = FileLogWriter::builder(spec)
            .append()
            .rotate(Criterion::Size(u64::MAX), Naming::Numbers, Cleanup::Never)
            .cleanup_in_background_thread(false)
            .try_build_with_handle()
            .map_err(io::Error::other)?;
        // The file is opened by the first write, even of nothing.
        let _ = writer.write(b"")?;
        let path = place.dir.join(CURRENT_NAME);
        let metadata = fs::metadata(&path)?;
        Ok(Open {
            writer,
            _handle: handle,
            path,
            identity: identity(&metadata),
            size: metadata.len(),
            checked: clock::now(),
        })
    }

    /// Learns which file is open now.
    fn look(&mut self) -> io::Result<()> {
        let metadata = fs::metadata(&self.path)?;
        self.identity = identity(&metadata);
        self.size = metadata.len();
        self.checked = clock::now();
        Ok(())
    }
}

/// Runs a call into flexi_logger. A panic in there (it unwraps what a vanishing folder gives it)
/// is an error of this write, not the end of the log thread.
fn guarded<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(io::Error::other("flexi_logger panicked")))
}

/// flexi_logger tells its own errors on standard error and may panic when it cannot. They are
/// errors of our writes as well, where we count them. The first call also turns off the level of
/// the `log` macros; its caller sets that afterwards.
pub(super) fn quiet_flexi_logger() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        // Building a logger sets both for the process; the logger itself is not needed.
        let _ = Logger::with(LogSpecification::off())
            .do_not_log()
            .error_channel(ErrorChannel::DevNull)
            .panic_if_error_channel_is_broken(false)
            .build();
    });
}
