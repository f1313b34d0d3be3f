//! A file that only takes room: on a full disk it is deleted, so that SQLite has room to delete
//! other things.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

/// Its name in the state directory.
const NAME: &str = "ballast";

/// The ballast of a folder.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    /// What it has; `None` until it was looked at.
    bytes: Option<u64>,
}

impl Ballast {
    pub(super) fn of(folder: &Path) -> Ballast {
        Ballast { path: folder.join(NAME), bytes: None }
    }

    /// How many bytes it takes.
    pub(super) fn bytes(&mut self) -> u64 {
        let path = &self.path;
        *self.bytes.get_or_insert_with(|| {
            fs::symlink_metadata(path).map(|found| found.len()).unwrap_or_default()
        })
    }

    /// Looks again the next time: somebody may have deleted it to make room.
    pub(super) fn forget(&mut self) {
        self.bytes = None;
    }

    /// Makes it this large, so that its room is really taken.
    pub(super) fn make(&mut self, bytes: u64) -> io::Result<()> {
        if self.bytes() == bytes {
            return Ok(());
        }
        self.release()?;
        if bytes == 0 {
            return Ok(());
        }
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path);
        let taken = made.and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, bytes).map_err(io::Error::from)
        });
        if taken.is_err() {
            // Half of it would be no ballast; a file system that cannot do this has none.
            let _ = fs::remove_file(&self.path);
            self.bytes = Some(0);
        } else {
            self.bytes = Some(bytes);
        }
        taken
    }

    /// Gives the room free; how much.
    pub(super) fn release(&mut self) -> io::Result<u64> {
        let bytes = self.bytes();
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.bytes = Some(0),
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn it_takes_its_room_and_gives_it_back() {
        let sandbox = tempfile::tempdir().unwrap();
        let path = sandbox.path().join(NAME);
        let mut ballast = Ballast::of(sandbox.path());
        assert_eq!(ballast.bytes(), 0);
        ballast.make(1 << 20).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.len(), found.blocks() * 512 >= 1 << 20), (1 << 20, true));
        ballast.make(1 << 16).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 16);
        assert_eq!(Ballast::of(sandbox.path()).bytes(), 1 << 16, "that of an earlier run");
        assert_eq!(ballast.release().unwrap(), 1 << 16);
        assert!(!path.exists());
        assert_eq!(ballast.release().unwrap(), 0);
        ballast.make(0).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn without_room_for_it_there_is_none() {
        let sandbox = tempfile::tempdir().unwrap();
        let mut ballast = Ballast::of(&sandbox.path().join("nowhere"));
        assert!(ballast.make(1 << 16).is_err());
        assert_eq!(ballast.bytes(), 0);
    }
}
