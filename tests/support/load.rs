//! How busy the machine is with something else: a test of times says nothing then.

use std::time::{Duration, Instant};

use super::process::Process;

/// Cores that others may keep busy for a bound to hold as it is written.
const OTHERS_CORES: f64 = 0.3;

/// How much larger a bound is when others are busier than that.
const SLACK: u32 = 10;

/// Watches how much of the machine others than this test and its daemon take.
pub struct Load {
    daemon: Process,
    total: u64,
    ours: u64,
    begun: Instant,
}

impl Load {
    /// From here on.
    pub fn watch(daemon: Process) -> Self {
        let (total, ours) = ticks(daemon);
        Load { daemon, total, ours, begun: Instant::now() }
    }

    /// Cores that others kept busy since then, on average.
    pub fn others(&self) -> f64 {
        let (total, ours) = ticks(self.daemon);
        let others = (total - self.total).saturating_sub(ours - self.ours);
        others as f64 / 100.0 / self.begun.elapsed().as_secs_f64().max(0.001)
    }

    /// The bound that a time has to keep: as written, or ten times that when others are busy.
    pub fn allow(&self, bound: Duration) -> Duration {
        super::patience(if self.others() > OTHERS_CORES { bound * SLACK } else { bound })
    }
}

/// Clock ticks that the machine was busy, and that we were.
fn ticks(daemon: Process) -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let line = stat.lines().next().unwrap();
    let cpu: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // User, nice, system, irq, softirq and steal: all but idle and waiting for disks.
    let busy = cpu[0] + cpu[1] + cpu[2] + cpu[5] + cpu[6] + cpu[7];
    (busy, Process(std::process::id()).cpu_ticks() + daemon.cpu_ticks())
}
