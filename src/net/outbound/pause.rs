//! A pause that a client's leaving ends: for answers that come from nobody but us.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::control::Control;
use super::wait::{self, Watch};
use crate::base::clock;
use crate::base::error::Result;
use crate::base::heartbeat::{self, Doing};

/// How often a pause looks whether it was cancelled: there is no socket to wake it by.
const CANCEL_LOOK: Duration = Duration::from_millis(50);

/// Waits until `until`.
///
/// # Errors
/// `ClientGone`, `Draining` when cancelled, `UpstreamTimeout` when the watch's deadline comes first.
pub fn pause(until: Instant, watch: &Watch<'_>, control: &Control) -> Result<()> {
    looking(until, watch, control, wait::LEAVING).map(|_| ())
}

/// The same, and how often it looked.
fn looking(
    until: Instant,
    watch: &Watch<'_>,
    control: &Control,
    leaving: PollFlags,
) -> Result<u32> {
    crate::base::lock::assert_none_held();
    let _waiting = heartbeat::waiting(Doing::Pause, until.min(watch.deadline));
    let mut looks = 0;
    let mut client = watch.client;
    loop {
        looks += 1;
        wait::look(watch, control).map_err(|stop| stop.error("echo"))?;
        let left = until.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Ok(looks);
        }
        let deadline = watch.deadline.saturating_duration_since(clock::now());
        let slice = left.min(deadline).min(CANCEL_LOOK);
        // Where a hangup cannot be told from data, a client that has sent its next request wakes us
        // at once each time. Then only the next look, a slice later, sees whether it left.
        client = match sleep(slice, client, leaving) {
            true => None,
            false => watch.client,
        };
    }
}

/// Sleeps, or less when something happens to the client: then true.
fn sleep(slice: Duration, client: Option<BorrowedFd<'_>>, leaving: PollFlags) -> bool {
    let Ok(timeout) = Timespec::try_from(slice) else { return false };
    let woken = match client {
        Some(fd) => poll(&mut [PollFd::from_borrowed_fd(fd, leaving)], Some(&timeout)),
        None => poll(&mut [], Some(&timeout)),
    };
    woken.is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::base::error::Phase;

    #[test]
    fn a_client_that_has_sent_its_next_request_does_not_keep_a_pause_awake() {
        let (ours, mut client) = UnixStream::pair().unwrap();
        client.write_all(b"GET / HTTP/1.1").unwrap();
        let until = clock::now() + Duration::from_millis(300);
        let deadline = until + Duration::from_secs(60);
        let watch = Watch { client: Some(ours.as_fd()), deadline, phase: Phase::Attempt };
        // As on systems without POLLRDHUP.
        let looks = looking(until, &watch, &Control::default(), PollFlags::IN).unwrap();
        assert!(looks < 50, "{looks} looks in 300 ms");
    }
}
