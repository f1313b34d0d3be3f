//! The one wait: poll(2) on the upstream and the client, until a deadline.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::control::Control;
use crate::base::clock;
use crate::base::error::{Error, Kind, Phase};
use crate::base::heartbeat::{self, Doing};
use crate::base::lock;

/// What ends a wait before its socket is ready.
#[derive(Clone, Copy, Debug)]
pub struct Watch<'a> {
    /// The client's socket: when it is closed by the client, the wait ends.
    pub client: Option<BorrowedFd<'a>>,
    /// When the wait ends.
    pub deadline: Instant,
    /// Whose deadline that is.
    pub phase: Phase,
}

/// Why a wait ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The deadline of this phase.
    Deadline(Phase),
    /// The client left.
    ClientGone,
    /// [`Control::cancel`].
    Cancelled,
}

impl Stop {
    /// The error it makes; `who` is the upstream with its address.
    pub(super) fn error(self, who: &str) -> Error {
        match self {
            Stop::Deadline(phase) => {
                let setting = phase.as_str();
                let what = format!("{who} did not answer within {setting}");
                Error::new(Kind::UpstreamTimeout(phase), what)
            }
            Stop::ClientGone => Error::new(Kind::ClientGone, "the client closed the connection"),
            Stop::Cancelled => Error::new(Kind::Draining, "the gateway is stopping"),
        }
    }
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    Read,
    Write,
    /// Either: an answer may come while the request is being sent.
    Both,
}

/// Waits until `socket` is ready, closed or broken.
pub(super) fn ready(
    socket: impl AsFd,
    interest: Interest,
    watch: &Watch<'_>,
    control: &Control,
) -> Result<(), Stop> {
    lock::assert_none_held();
    let wanted = match interest {
        Interest::Read => PollFlags::IN,
        Interest::Write => PollFlags::OUT,
        Interest::Both => PollFlags::IN | PollFlags::OUT,
    };
    let _waiting = heartbeat::waiting(Doing::Call(watch.phase), watch.deadline);
    let socket = PollFd::from_borrowed_fd(socket.as_fd(), wanted);
    let mut client = watch.client;
    loop {
        if let Some(stop) = control.stopped() {
            return Err(stop);
        }
        // A deadline that has passed still lets what is ready through.
        let left = watch.deadline.saturating_duration_since(clock::now());
        let timeout = timespec(left);
        let result = match client {
            Some(fd) => {
                let mut fds = [socket.clone(), PollFd::from_borrowed_fd(fd, LEAVING)];
                poll(&mut fds, Some(&timeout)).map(|_| (fds[0].revents(), fds[1].revents()))
            }
            None => {
                let mut fds = [socket.clone()];
                poll(&mut fds, Some(&timeout)).map(|_| (fds[0].revents(), PollFlags::empty()))
            }
        };
        let (ours, theirs) = match result {
            Ok(events) => events,
            Err(Errno::INTR) => continue,
            // Only a lack of memory is left (poll(2)); it passes, or the deadline does.
            Err(_) if left.is_zero() => return Err(Stop::Deadline(watch.phase)),
            Err(_) => {
                std::thread::sleep(left.min(Duration::from_millis(10)));
                continue;
            }
        };
        // The cancelled call's socket is ready too, since it was shut.
        if let Some(stop) = control.stopped() {
            return Err(stop);
        }
        if !theirs.is_empty() {
            match client.map(leaving) {
                Some(Leaving::Yes) => return Err(Stop::ClientGone),
                // It has sent the next request already, which says nothing about its leaving.
                Some(Leaving::Unknown) => client = None,
                _ => {}
            }
        }
        if !ours.is_empty() {
            return Ok(());
        }
        if left.is_zero() {
            return Err(Stop::Deadline(watch.phase));
        }
    }
}

/// Looks, without waiting, whether the call should end.
pub(super) fn look(watch: &Watch<'_>, control: &Control) -> Result<(), Stop> {
    if let Some(stop) = control.stopped() {
        return Err(stop);
    }
    if let Some(fd) = watch.client {
        let mut fds = [PollFd::from_borrowed_fd(fd, LEAVING)];
        let found = poll(&mut fds, Some(&timespec(Duration::ZERO)));
        if found.is_ok() && !fds[0].revents().is_empty() && matches!(leaving(fd), Leaving::Yes) {
            return Err(Stop::ClientGone);
        }
    }
    if clock::now() >= watch.deadline {
        return Err(Stop::Deadline(watch.phase));
    }
    Ok(())
}

enum Leaving {
    Yes,
    #[cfg_attr(target_os = "linux", expect(dead_code, reason = "RDHUP tells it from data"))]
    No,
    #[cfg_attr(target_os = "linux", expect(dead_code, reason = "RDHUP tells it from data"))]
    Unknown,
}

/// What a closing client is polled for. Hangups and errors are reported in any case.
#[cfg(target_os = "linux")]
pub(super) const LEAVING: PollFlags = PollFlags::RDHUP;
#[cfg(not(target_os = "linux"))]
pub(super) const LEAVING: PollFlags = PollFlags::IN;

/// Whether a client whose socket was reported has left.
#[cfg(target_os = "linux")]
fn leaving(_: BorrowedFd<'_>) -> Leaving {
    Leaving::Yes
}

/// Where poll cannot tell an end from data, a peek does.
#[cfg(not(target_os = "linux"))]
fn leaving(fd: BorrowedFd<'_>) -> Leaving {
    use rustix::net::{RecvFlags, recv};
    let mut byte = [0u8; 1];
    match recv(fd, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => Leaving::Yes,
        Ok(_) => Leaving::Unknown,
        Err(Errno::AGAIN | Errno::INTR) => Leaving::No,
        Err(_) => Leaving::Yes,
    }
}

fn timespec(left: Duration) -> Timespec {
    // Settings are bounded far below; a clamped wait is only looked at again.
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}
