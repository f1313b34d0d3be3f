//! A disk that fails at its N-th operation, for tests.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{Disk, Look, Plain};

/// What happens at the N-th operation.
#[derive(Clone, Copy, Debug)]
pub enum Fails {
    /// It alone fails with this error of the system.
    With(i32),
    /// It fails, and nothing after it does anything any more: a crash there.
    Crash,
}

/// The disk.
#[derive(Debug)]
pub struct Faulty {
    at: u32,
    fails: Fails,
    done: AtomicU32,
}

impl Faulty {
    /// One that fails at its operation number `at`, counted from 1.
    pub fn new(at: u32, fails: Fails) -> Self {
        Faulty { at, fails, done: AtomicU32::new(0) }
    }

    /// Whether it came that far.
    pub fn failed(&self) -> bool {
        self.done.load(Relaxed) >= self.at
    }

    /// The operations so far.
    pub fn operations(&self) -> u32 {
        self.done.load(Relaxed)
    }

    fn step(&self) -> io::Result<()> {
        let number = self.done.fetch_add(1, Relaxed) + 1;
        match self.fails {
            Fails::With(code) if number == self.at => Err(io::Error::from_raw_os_error(code)),
            Fails::Crash if number >= self.at => Err(io::Error::other("crashed")),
            _ => Ok(()),
        }
    }
}

impl Disk for Faulty {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        Plain.create(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        // The worst: a part of it is there.
        self.step().inspect_err(|_| drop(Plain.write(file, &bytes[..bytes.len() / 2])))?;
        Plain.write(file, bytes)
    }

    fn dress(&self, file: &File, look: Look) -> io::Result<()> {
        self.step()?;
        Plain.dress(file, look)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.step()?;
        Plain.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        Plain.rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.step()?;
        Plain.sync_folder(folder)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Plain.unlink(path)
    }
}
