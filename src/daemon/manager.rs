//! What the service manager hears: ready, reloading, stopping, and for as long as no thread hangs that
//! the process is alive. A process that hangs falls silent, and is restarted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::base::heartbeat::Heartbeats;
use crate::net::notify::Notifier;

/// Between two words about how the process is.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// The line to the service manager.
pub(super) struct Manager {
    notifier: Notifier,
    heartbeats: Arc<Heartbeats>,
    /// When it is to hear next that the process is alive.
    alive_at: Option<Instant>,
    status_at: Instant,
    said: String,
}

impl Manager {
    /// As the environment says.
    pub(super) fn new(heartbeats: Arc<Heartbeats>) -> Self {
        Manager::over(Notifier::of(&|name| std::env::var(name).ok()), heartbeats)
    }

    fn over(notifier: Notifier, heartbeats: Arc<Heartbeats>) -> Self {
        let now = clock::now();
        let alive_at = notifier.interval().map(|_| now);
        Manager { notifier, heartbeats, alive_at, status_at: now, said: String::new() }
    }

    /// The process is ready, or a reload is over; `what` it is about.
    pub(super) fn ready(&mut self, what: &str) {
        self.notifier.ready(what);
    }

    /// A reload begins.
    pub(super) fn reloading(&self) {
        self.notifier.reloading();
    }

    /// The way out begins.
    pub(super) fn stopping(&self, within: Duration) {
        self.notifier.stopping(within);
    }

    /// To be called every second or so by the main loop, which hangs itself when it is not. `status`
    /// makes the words about how the process is.
    pub(super) fn tick(&mut self, now: Instant, status: impl FnOnce() -> String) {
        if let (Some(at), Some(interval)) = (self.alive_at, self.notifier.interval())
            && now >= at
        {
            // Somebody hangs: not a word, until that thread goes on or the manager loses patience.
            if self.heartbeats.late(now).iter().all(|pulse| !pulse.essential) {
                self.notifier.alive();
                self.alive_at = Some(now + interval);
            }
        }
        if now >= self.status_at {
            self.status_at = now + STATUS_INTERVAL;
            let status = status();
            if status != self.said {
                self.notifier.status(&status);
                self.said = status;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_thread_that_hangs_silences_the_watchdog_and_one_that_goes_on_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notifier = Notifier::of(&|key| match key {
            "NOTIFY_SOCKET" => Some(path.display().to_string()),
            "WATCHDOG_USEC" => Some("20000000".to_owned()),
            _ => None,
        });
        let heartbeats = Arc::new(Heartbeats::default());
        let beat = heartbeats.register("worker", Duration::from_secs(15));
        let mut line = Manager::over(notifier, Arc::clone(&heartbeats));
        let alive = |manager: &UnixDatagram| {
            let (mut count, mut bytes) = (0, [0; 1024]);
            while let Ok(length) = manager.recv(&mut bytes) {
                count += usize::from(bytes[..length].starts_with(b"WATCHDOG=1"));
            }
            count
        };
        let begun = clock::now();
        let second = |n: u64| begun + Duration::from_secs(n);
        // Beats for a minute: a word every ten seconds.
        for n in 0..60 {
            beat.tick_at(second(n));
            line.tick(second(n), String::new);
        }
        assert_eq!(alive(&manager), 6);
        // Silent from here on: its silence is long enough from the 75th second on.
        for n in 60..200 {
            line.tick(second(n), String::new);
        }
        assert!(alive(&manager) <= 2, "a hanging thread must not look alive");
        for n in 160..200 {
            line.tick(second(n), String::new);
        }
        assert_eq!(alive(&manager), 0);
        beat.tick_at(second(200));
        line.tick(second(200), String::new);
        assert_eq!(alive(&manager), 1, "it goes on");
    }
}
