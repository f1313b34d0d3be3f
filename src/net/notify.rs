//! The service manager's socket (`$NOTIFY_SOCKET`, sd_notify(3)): what the process is about, in
//! datagrams. The protocol is a few words, so that no library is needed.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Most bytes of a status; the rest is cut.
const STATUS_BYTES_MAX: usize = 256;

/// The way to the service manager. Without one every word goes nowhere.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often the manager wants to hear that all is well.
    interval: Option<Duration>,
}

impl Notifier {
    /// As the environment says, by `env`: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn of(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let socket = env("NOTIFY_SOCKET").and_then(|path| open(&path).ok());
        let micros = env("WATCHDOG_USEC").and_then(|micros| micros.parse().ok());
        // Set for another process, it is not meant for us.
        let ours = env("WATCHDOG_PID").is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        // Half of it, as the manual recommends.
        let interval = micros
            .filter(|micros| ours && *micros > 0)
            .map(|micros: u64| Duration::from_micros(micros / 2));
        Notifier { interval: interval.filter(|_| socket.is_some()), socket }
    }

    /// How often the watchdog wants [`Notifier::alive`]; none when nobody watches.
    pub fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// Requests are welcome; also the end of a reload.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\n{}", told(status)));
    }

    /// A reload begins. [`Notifier::ready`] ends it.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\n"));
    }

    /// The way out begins, and may take so long.
    pub fn stopping(&self, within: Duration) {
        let micros = within.as_micros();
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\n{}", told("draining")));
    }

    /// What it is about now.
    pub fn status(&self, status: &str) {
        self.send(&told(status));
    }

    /// All threads are alive. To be said for as long as that is so, and not a moment longer.
    pub fn alive(&self) {
        self.send("WATCHDOG=1\n");
    }

    /// Sends without waiting: a manager that does not read is no reason to stop.
    fn send(&self, text: &str) {
        if let Some((socket, to)) = &self.socket {
            let _ = socket.send_to_addr(text.as_bytes(), to);
        }
    }
}

/// A status in one line.
fn told(status: &str) -> String {
    let mut line = String::from("STATUS=");
    for c in status.chars().filter(|c| !c.is_control()) {
        if line.len() + c.len_utf8() > STATUS_BYTES_MAX {
            break;
        }
        line.push(c);
    }
    line.push('\n');
    line
}

/// A socket and where to send: a path, or with `@` a name that is in no file system.
fn open(path: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let to = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None if path.starts_with('/') => SocketAddr::from_pathname(path)?,
        None => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_hears_each_word_over_a_path_and_over_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("tidegate-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let managers = [
            (path.display().to_string(), UnixDatagram::bind(&path).unwrap()),
            (format!("@{name}"), UnixDatagram::bind_addr(&abstract_name).unwrap()),
        ];
        for (socket, manager) in managers {
            let notifier = Notifier::of(&|key| (key == "NOTIFY_SOCKET").then(|| socket.clone()));
            notifier.ready("a\nb");
            assert_eq!(heard(&manager), "READY=1\nSTATUS=ab\n");
            notifier.reloading();
            let text = heard(&manager);
            let micros = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            assert!(micros.trim().parse::<u64>().unwrap() > 0);
            notifier.stopping(Duration::from_secs(3));
            assert_eq!(
                heard(&manager),
                "STOPPING=1\nEXTEND_TIMEOUT_USEC=3000000\nSTATUS=draining\n"
            );
            notifier.alive();
            assert_eq!(heard(&manager), "WATCHDOG=1\n");
            notifier.status(&"é".repeat(1000));
            assert!(heard(&manager).len() <= STATUS_BYTES_MAX + 1);
        }
    }

    #[test]
    fn a_watchdog_is_ours_only_when_it_names_us() {
        let interval = |pid: Option<&str>, micros: &str, socket: bool| {
            Notifier::of(&|key| match key {
                "NOTIFY_SOCKET" => socket.then(|| "@nobody-is-there".to_owned()),
                "WATCHDOG_USEC" => Some(micros.to_owned()),
                "WATCHDOG_PID" => pid.map(str::to_owned),
                _ => None,
            })
            .interval()
        };
        let ours = std::process::id().to_string();
        let half = Some(Duration::from_secs(10));
        assert_eq!(interval(None, "20000000", true), half);
        assert_eq!(interval(Some(&ours), "20000000", true), half);
        assert_eq!(interval(Some("1"), "20000000", true), None);
        assert_eq!(interval(None, "0", true), None);
        assert_eq!(interval(None, "soon", true), None);
        assert_eq!(interval(None, "20000000", false), None);
        // A word to nobody harms nobody.
        Notifier::of(&|_| None).alive();
    }
}
