//! A pause that a client's leaving ends: for answers that come from nobody but us.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

use super::control::Control;
use super::wait::{self, Watch};
use crate::base::clock;
use crate::base::error::Result;

/// How often a pause looks whether it was cancelled: there is no socket to wake it by.
const CANCEL_LOOK: Duration = Duration::from_millis(50);

/// Waits until `until`.
///
/// # Errors
/// `ClientGone`, `Draining` when cancelled, `UpstreamTimeout` when the watch's deadline comes first.
pub fn pause(until: Instant, watch: &Watch<'_>, control: &Control) -> Result<()> {
    crate::base::lock::assert_none_held();
    loop {
        wait::look(watch, control).map_err(|stop| stop.error("echo"))?;
        let left = until.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Ok(());
        }
        let deadline = watch.deadline.saturating_duration_since(clock::now());
        let slice = left.min(deadline).min(CANCEL_LOOK);
        sleep(slice, watch.client);
    }
}

/// Sleeps, or less when something happens to the client.
fn sleep(slice: Duration, client: Option<BorrowedFd<'_>>) {
    let Ok(timeout) = Timespec::try_from(slice) else { return };
    let mut fds: Vec<PollFd<'_>> =
        client.map(|fd| PollFd::from_borrowed_fd(fd, wait::LEAVING)).into_iter().collect();
    let _ = poll(&mut fds, Some(&timeout));
}
