//! Threads: named, sized, owned and joined. `std::thread::spawn` is banned by lint.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Linux cuts thread names at 15 bytes.
pub const NAME_BYTES_MAX: usize = 15;

/// Stack of every thread of ours, in bytes. Virtual memory: only touched pages cost anything. Deep
/// enough for serde_json's recursion limit (128 levels) and a rustls handshake in a debug build.
pub const STACK_BYTES: usize = 512 * 1024;

/// A running thread. Dropping it waits for its end: whoever owns it must have told it to stop first
/// (close its channel, wake its poll), which field order does in practice.
#[derive(Debug)]
pub struct Thread {
    handle: Option<JoinHandle<()>>,
}

/// Starts a thread.
///
/// # Errors
/// When the operating system refuses another thread. Callers shed load then; they do not die.
pub fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> io::Result<Thread> {
    debug_assert!(name.len() <= NAME_BYTES_MAX, "thread name {name:?} is cut by Linux");
    #[expect(clippy::disallowed_methods, reason = "the one wrapper")]
    let handle = Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(f)?;
    Ok(Thread { handle: Some(handle) })
}

impl Thread {
    /// Waits for the thread's end. A panic that got this far was already reported by the hook.
    pub fn join(mut self) {
        self.wait();
    }

    /// Whether the thread has ended, so that joining does not wait.
    pub fn finished(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets the thread run on without an owner. Only for the way out of the process, for threads
    /// that may be stuck in the operating system (name resolution).
    pub fn abandon(mut self) {
        self.handle = None;
    }

    fn wait(&mut self) {
        if let Some(handle) = self.handle.take() {
            super::lock::assert_none_held();
            let _ = handle.join();
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.wait();
    }
}
