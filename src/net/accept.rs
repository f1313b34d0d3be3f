//! The accept thread: it takes connections for as long as the engine takes new ones, and nothing
//! else ends it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::engine::Shared;
use super::park::{Accepted, turn_away};
use crate::base::error::Kind;
use crate::base::heartbeat::Beat;

/// Connections the kernel holds before they are accepted.
const BACKLOG: i32 = 1024;

/// Wait after an error that only time cures (EMFILE, ENFILE, ENOBUFS, ENOMEM): from here …
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// … doubled up to here.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Opens the listener.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for old connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The thread's life: until a byte comes through `stop`, or its other end is closed.
pub fn run(
    shared: &Shared,
    listener: &TcpListener,
    stop: &UnixStream,
    accepted: &Sender<Accepted>,
    beat: &Beat,
) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        beat.rest();
        let polled = rustix::event::poll(&mut fds, None);
        beat.tick();
        match polled {
            Ok(_) if !fds[1].revents().is_empty() => return,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => {
                if stopped_within(stop, BACKOFF_MAX) {
                    return;
                }
                continue;
            }
        }
        match listener.accept() {
            Ok((stream, peer)) => {
                backoff = BACKOFF_MIN;
                shared.accepted.inc();
                // This thread never ends by what the service makes of a refusal.
                let admitted = AssertUnwindSafe(|| admit(shared, stream, peer, accepted));
                if catch_unwind(admitted).is_err() {
                    shared.panics.inc();
                }
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
                _ => {
                    shared.accept_errors.inc();
                    crate::log_limited!(
                        log::Level::Warn,
                        "accept_error",
                        engine = shared.name,
                        error:% = error
                    );
                    if stopped_within(stop, backoff) {
                        return;
                    }
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            },
        }
    }
}

fn admit(shared: &Shared, stream: TcpStream, peer: SocketAddr, accepted: &Sender<Accepted>) {
    let settings = shared.settings.load();
    let max = settings.connections_per_address_max;
    let address = canonical(peer.ip());
    let exempt = address.is_loopback() || settings.trusted_proxies.contains(&address);
    let mut lease = None;
    if max > 0 && !exempt {
        lease = shared.addresses.try_take(address, max);
        if lease.is_none() {
            shared.per_address.refuse();
            let context = "too many connections from your address \
                           (server.connections_per_address_max); reuse or close some";
            turn_away(shared, &stream, peer, Kind::ConnectionsFull, context);
            return;
        }
    }
    // A full channel holds the accept thread, and so the kernel's backlog: the back-pressure we
    // want. The parking thread always empties it.
    if accepted.send(Accepted { stream, peer, address: lease }).is_ok() {
        shared.inbox.wake();
    }
}

/// IPv4 clients of a dual-stack listener count under their IPv4 address.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Waits; true when the engine stopped meanwhile.
fn stopped_within(stop: &UnixStream, wait: Duration) -> bool {
    let mut fds = [PollFd::new(stop, PollFlags::IN)];
    let timeout = Timespec::try_from(wait).ok();
    matches!(rustix::event::poll(&mut fds, timeout.as_ref()), Ok(n) if n > 0)
}
