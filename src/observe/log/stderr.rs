//! Standard error as a place for lines: through a descriptor of our own, so that no lock of the
//! standard library is held while a write is stuck.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a non-blocking descriptor may take nothing before the write is given up. (Whoever
/// shares a pipe with us may have made it non-blocking.)
const NO_ROOM_WAIT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// A pipe that is ready takes this many bytes without blocking (POSIX asks for 512 at least).
const PIPE_BYTES: usize = 512;

/// Standard error.
#[derive(Debug)]
pub(super) struct Stderr {
    file: Option<File>,
}

impl Stderr {
    pub(super) fn new() -> Self {
        let copied = io::stderr().as_fd().try_clone_to_owned();
        Stderr { file: copied.ok().map(File::from) }
    }

    /// A file in the place of standard error.
    #[cfg(test)]
    pub(super) fn from_file(file: File) -> Self {
        Stderr { file: Some(file) }
    }

    /// Writes all of it, however long a pipe's reader takes.
    ///
    /// # Errors
    /// When it is gone, full, or non-blocking and without room for a second.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_parts(bytes, usize::MAX, &NO_ROOM_WAIT)
    }

    /// Writes as much as fits without waiting: for a writer that has other work than this.
    ///
    /// # Errors
    /// When it is gone or full, or nobody reads it.
    pub(super) fn write_at_once(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_parts(bytes, PIPE_BYTES, &Timespec { tv_sec: 0, tv_nsec: 0 })
    }

    fn write_parts(&mut self, bytes: &[u8], part_max: usize, wait: &Timespec) -> io::Result<()> {
        let file = self.file.as_mut().ok_or(ErrorKind::BrokenPipe)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            if part_max != usize::MAX && !ready(file, wait)? {
                return Err(ErrorKind::WouldBlock.into());
            }
            match file.write(&rest[..rest.len().min(part_max)]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !ready(file, wait)? {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whether a write would not block, after at most so long.
fn ready(file: &File, wait: &Timespec) -> io::Result<bool> {
    let mut watched = [PollFd::new(file, PollFlags::OUT)];
    match poll(&mut watched, Some(wait)) {
        Ok(n) => Ok(n > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
