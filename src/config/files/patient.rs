//! A disk with a deadline: whoever writes the configuration is the main loop, which has to hear signals
//! and orders also while a disk hangs. Each operation runs on a thread of its own, which is left alone
//! when it does not come back; until it does, every other operation fails at once.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::{Disk, Look};
use crate::base::clock;
use crate::base::heartbeat::{self, Doing};
use crate::base::lock::{self, Locked, Rank};
use crate::base::thread::{self, Thread};

/// How long one operation may take. A sync on a slow card under load takes a second.
const OPERATION_MAX: Duration = Duration::from_secs(5);

/// The thread of an operation.
const NAME: &str = "config-disk";

/// The disk that is waited for, but not for ever.
#[derive(Debug)]
pub struct Patient {
    disk: Arc<dyn Disk>,
    max: Duration,
    /// The operation that did not come back.
    stuck: Locked<Option<Thread>>,
}

impl Patient {
    /// This one.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Patient { disk, max: OPERATION_MAX, stuck: Locked::new(Rank::Leaf, None) }
    }

    fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Disk) -> io::Result<R> + Send + 'static,
    ) -> io::Result<R> {
        lock::assert_none_held();
        let over = self.stuck.with(|stuck| match stuck {
            Some(thread) if !thread.finished() => Err(late()),
            _ => Ok(stuck.take()),
        })?;
        drop(over);
        let (done, outcome) = bounded(1);
        let disk = Arc::clone(&self.disk);
        let thread = thread::spawn(NAME, move || {
            let _ = done.try_send(work(&*disk));
        })?;
        let until: Instant = clock::now() + self.max;
        let waiting = heartbeat::waiting(Doing::Disk, until);
        let came = outcome.recv_deadline(until);
        drop(waiting);
        match came {
            Ok(outcome) => {
                thread.join();
                outcome
            }
            Err(_) => {
                let before = self.stuck.with(|stuck| stuck.replace(thread));
                if let Some(before) = before {
                    before.abandon();
                }
                Err(late())
            }
        }
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        // Nobody can end it; the process must be able to.
        if let Some(thread) = self.stuck.with(Option::take) {
            thread.abandon();
        }
    }
}

fn late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "the disk does not answer")
}

impl Disk for Patient {
    fn create(&self, path: &Path) -> io::Result<File> {
        let path = path.to_owned();
        self.run(move |disk| disk.create(&path))
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let (mut file, bytes) = (file.try_clone()?, bytes.to_vec());
        self.run(move |disk| disk.write(&mut file, &bytes))
    }

    fn dress(&self, file: &File, look: Look) -> io::Result<()> {
        let file = file.try_clone()?;
        self.run(move |disk| disk.dress(&file, look))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let file = file.try_clone()?;
        self.run(move |disk| disk.sync(&file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.run(move |disk| disk.rename(&from, &to))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let folder = folder.to_owned();
        self.run(move |disk| disk.sync_folder(&folder))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        self.run(move |disk| disk.unlink(&path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crossbeam_channel::{Receiver, Sender};

    use super::super::{Plain, Written, replace, sweep};
    use super::*;

    /// Its first sync hangs until it is let go.
    #[derive(Debug)]
    struct Hangs(Sender<()>, Receiver<()>);

    impl Disk for Hangs {
        fn create(&self, path: &Path) -> io::Result<File> {
            Plain.create(path)
        }

        fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
            Plain.write(file, bytes)
        }

        fn dress(&self, file: &File, look: Look) -> io::Result<()> {
            Plain.dress(file, look)
        }

        fn sync(&self, file: &File) -> io::Result<()> {
            let _ = self.0.try_send(());
            let _ = self.1.recv();
            Plain.sync(file)
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            Plain.rename(from, to)
        }

        fn sync_folder(&self, folder: &Path) -> io::Result<()> {
            Plain.sync_folder(folder)
        }

        fn unlink(&self, path: &Path) -> io::Result<()> {
            Plain.unlink(path)
        }
    }

    #[test]
    fn a_disk_that_hangs_is_given_up_once_and_used_again_when_it_goes_on() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a.toml");
        fs::write(&path, "old").unwrap();
        let ((hung, hangs), (go_on, wait)) = (bounded(1), bounded(1));
        let mut disk = Patient::new(Arc::new(Hangs(hung, wait)));
        disk.max = Duration::from_millis(200);
        let refused = replace(&disk, &path, b"new", None).unwrap_err().to_string();
        assert!(refused.contains("cannot make it durable: the disk does not answer"), "{refused}");
        assert!(hangs.try_recv().is_ok());
        // The next one does not wait at all, whatever its own limit.
        disk.max = Duration::from_secs(3600);
        assert!(replace(&disk, &path, b"new", None).is_err());
        assert!(hangs.try_recv().is_err(), "it did not come to the disk");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        // From here on no sync waits.
        drop(go_on);
        let until = clock::now() + Duration::from_secs(20);
        while let Err(error) = replace(&disk, &path, b"new", None) {
            assert!(clock::now() < until, "{error}");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        sweep(&disk, home.path());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing is left in the making");
    }

    #[test]
    fn who_goes_does_not_wait_for_a_disk_that_hangs() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a.toml");
        let ((hung, _hangs), (_go_on, wait)) = (bounded(1), bounded::<()>(1));
        let mut disk = Patient::new(Arc::new(Hangs(hung, wait)));
        disk.max = Duration::from_millis(50);
        assert!(replace(&disk, &path, b"new", None).is_err());
        drop(disk);
        let disk = Patient::new(Arc::new(Plain));
        assert_eq!(replace(&disk, &path, b"new", None).unwrap(), Written::Durable);
    }
}
