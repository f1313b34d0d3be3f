//! A folder and ports of a test's own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Share;

/// A folder that goes when the test ends, and the test's share of the machine.
pub struct Sandbox {
    dir: tempfile::TempDir,
    _share: Share,
}

impl Sandbox {
    /// For a test that may run beside others.
    pub fn new() -> Self {
        Sandbox::with(Share::shared())
    }

    /// For a test that measures time: no other test runs meanwhile.
    pub fn alone() -> Self {
        Sandbox::with(Share::alone())
    }

    fn with(share: Share) -> Self {
        let dir = tempfile::Builder::new().prefix("tidegate-test-").tempdir().unwrap();
        Sandbox { dir, _share: share }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Writes a file and gives its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

/// A loopback port that nobody listens on. Taken below the range that the system gives to outgoing
/// connections, and never twice by one process, so that nobody takes it between here and its use
/// but another test process, which starts elsewhere in the range; see `Daemon::start`, which tries again.
pub fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(7919);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + start.wrapping_add(step) % COUNT) as u16;
        if TcpListener::bind(loopback(port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// `127.0.0.1:port`.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
