//! What wakes the one thread of a connection when others have something for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// Wakes the thread that polls it. Cheap to clone; the descriptor is closed with the last one.
#[derive(Clone, Debug)]
pub struct Bell {
    fd: Arc<OwnedFd>,
}

impl Bell {
    /// A bell that is silent.
    ///
    /// # Errors
    /// When there is no descriptor for it.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { fd: Arc::new(fd) })
    }

    /// Rings. Many rings before it is heard are one.
    pub fn ring(&self) {
        // The only failure is a counter that is full, and so rings already.
        let _ = rustix::io::write(&*self.fd, &1_u64.to_ne_bytes());
    }

    /// Takes the ringing back; whether there was any.
    pub fn hear(&self) -> bool {
        let mut count = [0; 8];
        rustix::io::read(&*self.fd, &mut count).is_ok()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_heard_once() {
        let bell = Bell::new().unwrap();
        assert!(!bell.hear());
        let other = bell.clone();
        other.ring();
        other.ring();
        assert!(bell.hear());
        assert!(!bell.hear());
    }
}
