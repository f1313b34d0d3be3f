//! Folders that only we may read, the room on their disk, and the claim that keeps two daemons out of
//! one of them.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::process::geteuid;

/// What a private folder may be: its owner's alone.
const PRIVATE_MODE: u32 = 0o700;
/// What a file in it is.
const FILE_MODE: u32 = 0o600;
/// The name of the file that a claim holds.
const CLAIM: &str = "lock";
/// Files that a state directory is known by. `/var` and `/run` have a `lock` too, which is no file.
const OURS: [&str; 4] = [CLAIM, "durable.db", "metrics.db", "config/lock"];

/// Makes a folder that nobody else can look into, with its parents. One that is there already is
/// closed to others when it is empty or a state directory of ours.
///
/// # Errors
/// When it cannot be made, is no folder, belongs to somebody else, or is open to others and not ours
/// to close.
pub fn private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().recursive(true).mode(PRIVATE_MODE).create(path) {
        // The check below says what it is.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        done => done?,
    }
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(io::Error::new(ErrorKind::NotADirectory, "it is no folder"));
    }
    let (owner, ours) = (found.uid(), geteuid().as_raw());
    if owner != ours {
        let text = format!("it belongs to the user {owner}, and we are {ours}");
        return Err(io::Error::new(ErrorKind::PermissionDenied, text));
    }
    if found.mode() & 0o077 != 0 {
        if !ours_to_close(path)? {
            let text = format!(
                "others may look into it (mode {:o}) and it is not empty; name a folder of its own, or \
                 take their rights away",
                found.mode() & 0o7777
            );
            return Err(io::Error::new(ErrorKind::PermissionDenied, text));
        }
        fs::set_permissions(path, Permissions::from_mode(PRIVATE_MODE))?;
    }
    Ok(())
}

/// Whether nothing but ours is in it: a mistyped `state.dir` must not shut `/var/lib` to everybody.
fn ours_to_close(path: &Path) -> io::Result<bool> {
    let empty = fs::read_dir(path)?.next().is_none();
    let ours = |name: &&str| fs::symlink_metadata(path.join(name)).is_ok_and(|it| it.is_file());
    Ok(empty || OURS.iter().any(ours))
}

/// Room on a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What we may still write.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// The room on the disk that a path is on; `None` when that cannot be known.
pub fn free(path: &Path) -> Option<Space> {
    let found = statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some(Space { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
}

/// A folder that is ours until this is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct Claim {
    file: File,
}

/// Why a folder cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum Unclaimed {
    /// Somebody holds it.
    #[error("another tidegate holds it{}", .0.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Held(Option<u32>),
    /// It cannot be asked.
    #[error("its file `lock` cannot be opened or locked: {0}")]
    Io(#[from] io::Error),
}

impl Claim {
    /// Claims a folder: an advisory lock on the file `lock` in it, which says whose it is.
    ///
    /// # Errors
    /// When somebody else has it, or the file cannot be made.
    pub fn take(folder: &Path) -> Result<Claim, Unclaimed> {
        let path = folder.join(CLAIM);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        let no_link = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let mut file = options.custom_flags(no_link).open(&path)?;
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            let error = io::Error::from(error);
            if error.kind() != ErrorKind::WouldBlock {
                return Err(error.into());
            }
            let mut text = String::new();
            let _ = (&mut file).take(16).read_to_string(&mut text);
            return Err(Unclaimed::Held(text.trim().parse().ok()));
        }
        // For people and for the message above; the lock holds without it, also on a full disk.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Claim { file })
    }

    /// Whether the file that is locked is still the one in this folder.
    pub fn holds(&self, folder: &Path) -> bool {
        let place = |found: fs::Metadata| (found.dev(), found.ino());
        let ours = self.file.metadata().map(place);
        let there = fs::symlink_metadata(folder.join(CLAIM)).map(place);
        matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_folder_is_made_with_its_parents_and_mended_when_others_may_look() {
        let sandbox = tempfile::tempdir().unwrap();
        let path = sandbox.path().join("a/b");
        private(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        let open = || fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        open();
        private(&path).unwrap();
        assert_eq!(mode(&path), 0o700, "an empty one is closed");
        fs::write(path.join("somebody's"), "x").unwrap();
        open();
        assert_eq!(private(&path).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(mode(&path), 0o755, "what is not ours is left as it is");
        // As `/var` and `/run` have them: shut to others, they stop the machine.
        fs::create_dir(path.join(CLAIM)).unwrap();
        assert_eq!(private(&path).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(mode(&path), 0o755, "a folder of that name is none of ours");
        fs::remove_dir(path.join(CLAIM)).unwrap();
        std::os::unix::fs::symlink("elsewhere", path.join(CLAIM)).unwrap();
        assert_eq!(private(&path).unwrap_err().kind(), ErrorKind::PermissionDenied);
        fs::remove_file(path.join(CLAIM)).unwrap();
        fs::write(path.join(CLAIM), "1").unwrap();
        private(&path).unwrap();
        assert_eq!(mode(&path), 0o700, "what we held before is closed");
        fs::remove_file(path.join(CLAIM)).unwrap();
        fs::create_dir(path.join("config")).unwrap();
        fs::write(path.join("config/lock"), "").unwrap();
        open();
        private(&path).unwrap();
        assert_eq!(mode(&path), 0o700, "the versions of the configuration are ours too");
    }

    #[test]
    fn what_is_no_folder_of_ours_is_refused() {
        let sandbox = tempfile::tempdir().unwrap();
        let file = sandbox.path().join("file");
        fs::write(&file, "x").unwrap();
        assert_eq!(private(&file).unwrap_err().kind(), ErrorKind::NotADirectory);
        let link = sandbox.path().join("link");
        std::os::unix::fs::symlink(sandbox.path(), &link).unwrap();
        assert_eq!(private(&link).unwrap_err().kind(), ErrorKind::NotADirectory);
        // Nobody makes folders there, whatever his rights are.
        assert!(private(Path::new("/proc/tidegate")).is_err());
        if !geteuid().is_root() {
            assert_eq!(private(Path::new("/")).unwrap_err().kind(), ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn a_folder_is_claimed_by_one_at_a_time_and_the_other_hears_by_whom() {
        let sandbox = tempfile::tempdir().unwrap();
        let claim = Claim::take(sandbox.path()).unwrap();
        assert!(claim.holds(sandbox.path()));
        let refused = Claim::take(sandbox.path()).unwrap_err();
        let (text, pid) = (refused.to_string(), std::process::id());
        assert_eq!(text, format!("another tidegate holds it (process {pid})"));
        fs::remove_file(sandbox.path().join(CLAIM)).unwrap();
        assert!(!claim.holds(sandbox.path()), "its file is gone");
        drop(claim);
        Claim::take(sandbox.path()).unwrap();
    }

    #[test]
    fn the_room_of_a_disk_is_known_and_of_no_disk_is_not() {
        let space = free(Path::new("/")).unwrap();
        assert!(space.total > 0 && space.free <= space.total);
        assert_eq!(free(Path::new("/nothing/there")), None);
    }
}
