//! What `/proc` says about a process, and signals.

use rustix::process::{Pid, Signal, kill_process};

/// A process, by id.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

impl Process {
    fn path(self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0)
    }

    /// How many descriptors are open.
    pub fn fds(self) -> usize {
        std::fs::read_dir(self.path("fd")).map_or(0, Iterator::count)
    }

    /// What the descriptors point at.
    pub fn fd_targets(self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path("fd")) else { return Vec::new() };
        let targets = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        targets.map(|target| target.display().to_string()).collect()
    }

    /// The names of the threads.
    pub fn threads(self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path("task")) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| {
            std::fs::read_to_string(entry.path().join("comm"))
                .ok()
                .map(|name| name.trim_end().to_owned())
        });
        names.collect()
    }

    /// A figure of `/proc/PID/status` in KiB, such as `VmRSS` or `VmHWM`.
    pub fn status_kib(self, key: &str) -> u64 {
        let status = std::fs::read_to_string(self.path("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let digits = line.and_then(|line| line.split_whitespace().next());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// Resident memory in KiB.
    pub fn rss_kib(self) -> u64 {
        self.status_kib("VmRSS")
    }

    /// CPU time used so far, user and system, in clock ticks (10 ms on Linux).
    pub fn cpu_ticks(self) -> u64 {
        let stat = std::fs::read_to_string(self.path("stat")).unwrap_or_default();
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        after.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
    }

    /// Whether it lives (and is no zombie).
    pub fn alive(self) -> bool {
        let stat = std::fs::read_to_string(self.path("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, after)| !after.starts_with('Z'))
    }

    /// Sends a signal.
    pub fn signal(self, signal: Signal) {
        let pid = Pid::from_raw(self.0 as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

/// Whether some socket of this machine is trying to connect to this loopback port (`SYN_SENT`).
pub fn connecting_to(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!("0100007F:{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next() == Some(&remote) && fields.next() == Some("02")
    })
}
