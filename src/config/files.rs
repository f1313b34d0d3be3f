//! Replacing a file whole or not at all: a new file in the same folder, written, synced and renamed
//! over the old one, and the folder synced. After a crash at any moment the name means the old
//! content or the new one, never a part of either.
//!
//! A failed fsync means that the data is lost, whatever a second fsync would say: the new file is
//! thrown away and the old one stays. Every single operation goes through [`Disk`], so that tests
//! can make each of them fail in turn.

use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What names of files in the making begin and end with. Those that a crash left are swept.
const TEMP: (&str, &str) = (".tidegate-", ".tmp");

/// Tries to lock a folder that another writer has: for two seconds.
pub const LOCK_TRIES: u32 = 100;
/// Between two tries.
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// The operations of a disk that can fail, one by one.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes a new file, for its owner only; an error when there is one of that name.
    fn create(&self, path: &Path) -> io::Result<File>;
    /// Writes everything.
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()>;
    /// Gives it another owner and mode.
    fn dress(&self, file: &File, look: Look) -> io::Result<()>;
    /// Makes its content durable.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// Gives it its name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names of a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Takes a file away.
    fn unlink(&self, path: &Path) -> io::Result<()>;
}

/// The disk as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Disk for Plain {
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn dress(&self, file: &File, look: Look) -> io::Result<()> {
        let is = file.metadata()?;
        if (is.uid(), is.gid()) != (look.uid, look.gid) {
            std::os::unix::fs::fchown(file, Some(look.uid), Some(look.gid))?;
        }
        file.set_permissions(Permissions::from_mode(look.mode))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// Whose a file is, and who may do what with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its mode, without the file's type.
    pub mode: u32,
}

impl Look {
    /// That of a file that is there.
    pub fn of(found: &Metadata) -> Self {
        Look { uid: found.uid(), gid: found.gid(), mode: found.mode() & 0o7777 }
    }

    /// For the owner of this folder alone: what root writes there stays readable for the daemon.
    pub fn private_in(folder: &Metadata) -> Self {
        Look { uid: folder.uid(), gid: folder.gid(), mode: 0o600 }
    }
}

/// Why a file was not replaced. What was there is there.
#[derive(Debug)]
pub struct Unwritten {
    what: &'static str,
    path: PathBuf,
    error: io::Error,
}

impl Unwritten {
    /// `what` could not be done to this file or folder.
    pub fn new(what: &'static str, path: &Path, error: io::Error) -> Self {
        Unwritten { what, path: path.to_owned(), error }
    }

    /// Whether somebody else holds it just now.
    pub fn busy(&self) -> bool {
        self.error.kind() == ErrorKind::WouldBlock
    }

    /// What an operator does about it.
    fn remedy(&self) -> &'static str {
        match self.error.kind() {
            ErrorKind::PermissionDenied => "give it write access, or do this as its owner",
            ErrorKind::ReadOnlyFilesystem => {
                "it is on a read-only file system; change it where it comes from, and reload"
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on that disk",
            ErrorKind::ResourceBusy => "it is a mount of its own; mount its folder instead",
            ErrorKind::NotFound => "make the folder",
            ErrorKind::TimedOut => "look at the disk; what it was asked to do may still come about",
            ErrorKind::WouldBlock => "somebody else is writing there; try again",
            _ => "look at the disk",
        }
    }
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, what, error) = (self.path.display(), self.what, &self.error);
        write!(f, "{path}: cannot {what}: {error}; {}", self.remedy())
    }
}

impl std::error::Error for Unwritten {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// What became of a file that was replaced.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// It survives a crash of the machine.
    Durable,
    /// It is in place, but the folder could not be synced: a crash of the machine may bring the old
    /// one back, whole. The text says why.
    InPlace(String),
}

/// The file that a name means: a link is followed, so that its target is replaced and the link stays.
///
/// # Errors
/// A link that leads nowhere.
pub fn target(path: &Path) -> Result<PathBuf, Unwritten> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => {
            fs::canonicalize(path).map_err(|error| Unwritten::new("follow the link", path, error))
        }
        _ => Ok(path.to_owned()),
    }
}

/// The folder of a file.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Refuses what is meant to stay as it is. Root may write everywhere, so the mode is asked.
fn writable(path: &Path, found: &Metadata) -> Result<(), Unwritten> {
    if found.mode() & 0o222 == 0 {
        let error = io::Error::new(ErrorKind::PermissionDenied, "it is marked read-only");
        return Err(Unwritten::new("replace it", path, error));
    }
    Ok(())
}

/// Replaces `path` (no link: see [`target`]) by a file with this content. It keeps the owner and mode
/// of the old one; a new one has `look`, or is private.
///
/// # Errors
/// What could not be done; then the old file is there as it was, or there is none as before.
pub fn replace(
    disk: &dyn Disk,
    path: &Path,
    content: &[u8],
    look: Option<Look>,
) -> Result<Written, Unwritten> {
    let folder = folder_of(path);
    let place = fs::metadata(folder).map_err(|e| Unwritten::new("find the folder", folder, e))?;
    let look = match fs::metadata(path) {
        Ok(found) => {
            writable(path, &found)?;
            Some(Look::of(&found))
        }
        Err(_) => look,
    };
    writable(folder, &place)?;
    let name = format!("{}{}{}", TEMP.0, ulid::Ulid::generate(), TEMP.1);
    let temp = folder.join(name);
    let mut file =
        disk.create(&temp).map_err(|e| Unwritten::new("make a file beside it", path, e))?;
    let mut written = || {
        disk.write(&mut file, content).map_err(|e| Unwritten::new("write", path, e))?;
        if let Some(look) = look {
            disk.dress(&file, look).map_err(|e| Unwritten::new("keep its owner", path, e))?;
        }
        disk.sync(&file).map_err(|e| Unwritten::new("make it durable", path, e))?;
        disk.rename(&temp, path).map_err(|e| Unwritten::new("put it in place", path, e))
    };
    if let Err(fault) = written() {
        // What stays behind is swept later.
        let _ = disk.unlink(&temp);
        return Err(fault);
    }
    Ok(match disk.sync_folder(folder) {
        Ok(()) => Written::Durable,
        Err(error) => Written::InPlace(format!(
            "{} is written, but may be lost when the machine fails now: {error}",
            path.display()
        )),
    })
}

/// Takes files away that a crash left in the making. To be called under the folder's lock.
pub fn sweep(disk: &dyn Disk, folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(TEMP.0) && name.ends_with(TEMP.1) {
            let _ = disk.unlink(&entry.path());
        }
    }
}

/// Gives something that was made to the owner of its folder, when that is somebody else and we may.
pub fn give_to_owner_of(folder: &Path, made: &Path) {
    let (Ok(owner), Ok(is)) = (fs::metadata(folder), fs::metadata(made)) else { return };
    if (owner.uid(), owner.gid()) != (is.uid(), is.gid()) {
        let _ = std::os::unix::fs::lchown(made, Some(owner.uid()), Some(owner.gid()));
    }
}

/// A folder, or a lock file, that nobody else writes to until this is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] File);

impl Lock {
    /// Takes a folder, so that its file cannot be replaced between a look at it and its replacement
    /// by us. Each try but the last waits for 20 ms.
    ///
    /// # Errors
    /// When it is locked for longer, or cannot be opened.
    pub fn folder(folder: &Path, tries: u32) -> Result<Lock, Unwritten> {
        let file = File::open(folder).map_err(|e| Unwritten::new("lock it", folder, e))?;
        Lock::wait(file, tries).map_err(|e| Unwritten::new("lock it", folder, e))
    }

    /// Takes a lock file, for as long as the process lives or this is kept.
    ///
    /// # Errors
    /// When another process has it ([`ErrorKind::WouldBlock`]), or it cannot be made.
    pub fn file(path: &Path, tries: u32) -> io::Result<Lock> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        give_to_owner_of(folder_of(path), path);
        Lock::wait(file, tries)
    }

    fn wait(file: File, tries: u32) -> io::Result<Lock> {
        let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        for left in (0..tries.max(1)).rev() {
            match rustix::fs::flock(&file, exclusive) {
                Ok(()) => return Ok(Lock(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if left > 0 => std::thread::sleep(LOCK_PAUSE),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }
}

/// The disk of a process that works: it is not waited for without end.
pub fn disk() -> Arc<dyn Disk> {
    Arc::new(patient::Patient::new(Arc::new(Plain)))
}

pub mod patient;

#[cfg(test)]
pub mod faulty;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::faulty::{Fails, Faulty};
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_operation_that_fails_or_is_the_last_leaves_the_old_file_or_the_new_one() {
        let mut seen = [0, 0];
        for fails in [Fails::With(libc::EIO), Fails::With(libc::ENOSPC), Fails::Crash] {
            for at in 1.. {
                let home = tempfile::tempdir().unwrap();
                let path = home.path().join("a.toml");
                fs::write(&path, "old").unwrap();
                let disk = Faulty::new(at, fails);
                let outcome = replace(&disk, &path, b"new content", None);
                if !disk.failed() {
                    assert_eq!(outcome.unwrap(), Written::Durable);
                    break;
                }
                let now = fs::read_to_string(&path).unwrap();
                match &outcome {
                    Err(fault) => {
                        assert_eq!(now, "old", "{at} {fails:?}: {fault}");
                        assert!(fault.to_string().contains("a.toml: cannot "), "{fault}");
                        seen[0] += 1;
                    }
                    Ok(Written::InPlace(told)) => {
                        assert_eq!(now, "new content", "{at} {fails:?}");
                        assert!(told.contains("may be lost"), "{told}");
                        seen[1] += 1;
                    }
                    Ok(Written::Durable) => panic!("{at} {fails:?} failed unseen"),
                }
                if !matches!(fails, Fails::Crash) {
                    assert_eq!(names(home.path()), ["a.toml"], "{at} {fails:?}");
                }
                sweep(&Plain, home.path());
                assert_eq!(names(home.path()), ["a.toml"], "{at} {fails:?}");
            }
        }
        // Create, write, dress, sync, rename; and the folder.
        assert_eq!(seen, [15, 3]);
    }

    #[test]
    fn owner_and_mode_stay_and_a_link_is_followed() {
        let home = tempfile::tempdir().unwrap();
        let (path, link) = (home.path().join("real.toml"), home.path().join("link.toml"));
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        symlink("real.toml", &link).unwrap();
        let found = target(&link).unwrap();
        replace(&Plain, &found, b"new", None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        fs::remove_file(&path).unwrap();
        assert!(target(&link).unwrap_err().to_string().contains("follow the link"));
    }

    #[test]
    fn what_is_marked_read_only_is_refused_with_its_remedy_also_for_root() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a.toml");
        fs::write(&path, "old").unwrap();
        let refused = |path: &Path| {
            let text = replace(&Plain, path, b"new", None).unwrap_err().to_string();
            assert!(text.contains("read-only") && text.contains("write access"), "{text}");
        };
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        refused(&path);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(home.path(), Permissions::from_mode(0o555)).unwrap();
        refused(&path);
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        let missing = home.path().join("none/a.toml");
        let text = replace(&Plain, &missing, b"new", None).unwrap_err().to_string();
        assert!(text.ends_with("make the folder"), "{text}");
    }

    #[test]
    fn one_writer_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("lock");
        let held = Lock::file(&path, 1).unwrap();
        assert_eq!(Lock::file(&path, 1).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(held);
        let _held = Lock::file(&path, 1).unwrap();
        let folder = Lock::folder(home.path(), 1).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| Lock::folder(home.path(), LOCK_TRIES).unwrap());
            std::thread::sleep(LOCK_PAUSE);
            drop(folder);
        });
    }
}
