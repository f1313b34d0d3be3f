//! How busy the machine is with something else: a test of times says nothing then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::process::Process;

/// Cores that others may keep busy for a bound to hold as it is written.
const OTHERS_CORES: f64 = 0.3;

/// How much larger a bound is when others are busier than that.
const SLACK: u32 = 10;

/// Between two looks at how late this process is woken.
const BEAT: Duration = Duration::from_millis(10);

/// How often a thread may have to be woken for one thing that a test times: the client, the gateway,
/// its upstream, and back.
const WAKES: u32 = 4;

/// Watches how much of the machine others than this test and its daemon take, and how late a sleeping
/// thread is woken on it.
pub struct Load {
    daemon: Process,
    total: u64,
    ours: u64,
    begun: Instant,
    beat: Arc<Beat>,
}

#[derive(Default)]
struct Beat {
    over: AtomicBool,
    late_max_us: AtomicU64,
}

impl Beat {
    fn run(&self) {
        while !self.over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            std::thread::sleep(BEAT);
            let late = begun.elapsed().saturating_sub(BEAT).as_micros() as u64;
            self.late_max_us.fetch_max(late, Ordering::Relaxed);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.beat.over.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// From here on.
    pub fn watch(daemon: Process) -> Self {
        let (total, ours) = ticks(daemon);
        let beat = Arc::<Beat>::default();
        let beating = Arc::clone(&beat);
        std::thread::spawn(move || beating.run());
        Load { daemon, total, ours, begun: Instant::now(), beat }
    }

    /// Cores that others kept busy since then, on average.
    pub fn others(&self) -> f64 {
        let (total, ours) = ticks(self.daemon);
        let others = (total - self.total).saturating_sub(ours - self.ours);
        others as f64 / 100.0 / self.begun.elapsed().as_secs_f64().max(0.001)
    }

    /// The longest time that a thread which was due waited for a core since then.
    pub fn late(&self) -> Duration {
        Duration::from_micros(self.beat.late_max_us.load(Ordering::Relaxed))
    }

    /// The bound that a time has to keep: as written, or ten times that when others are busy; and
    /// what the machine itself was late, since a moment's burst does not show in the average.
    pub fn allow(&self, bound: Duration) -> Duration {
        let bound = if self.others() > OTHERS_CORES { bound * SLACK } else { bound };
        super::patience(bound) + self.late() * WAKES
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
