//! What processes cost, as the kernel counts it.
//!
//! CPU is user and system time of a process, its threads and its descendants. The kernel's own
//! work on a loopback packet (softirq) runs in the context of whoever sends it and is counted to
//! the sender, unless the kernel was built with `IRQ_TIME_ACCOUNTING`.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use tidegate::base::clock;

use crate::Outcome;

/// Most processes of one tree. nginx has one master and a few workers; past it the rest is not seen.
const TREE_PROCESSES_MAX: usize = 256;

/// A process and all its descendants that are alive.
pub fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() && found.len() < TREE_PROCESSES_MAX {
        let pid = found[next];
        next += 1;
        for thread in threads(pid) {
            let path = format!("/proc/{pid}/task/{thread}/children");
            let children = fs::read_to_string(path).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// The threads of a process.
pub fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// CPU time used so far by a tree of processes.
#[derive(Debug)]
pub struct Cpu {
    /// From `stat`: whole ticks, with threads and children that ended.
    ticks: Duration,
    /// From `schedstat`: nanoseconds of each thread that lives.
    threads: BTreeMap<u32, u64>,
    /// How far `ticks` may be off.
    slack: Duration,
}

impl Cpu {
    /// Reads it.
    pub fn of(root: u32) -> Cpu {
        let tick = tick();
        let mut cpu =
            Cpu { ticks: Duration::ZERO, threads: BTreeMap::new(), slack: Duration::ZERO };
        for pid in tree(root) {
            cpu.ticks += tick * stat_ticks(pid);
            // Four counters, each rounded down, at each of two readings.
            cpu.slack += tick * 8;
            for thread in threads(pid) {
                let path = format!("/proc/{pid}/task/{thread}/schedstat");
                let text = fs::read_to_string(path).unwrap_or_default();
                let run = text.split_whitespace().next().and_then(|run| run.parse().ok());
                if let Some(run) = run {
                    cpu.threads.insert(thread, run);
                }
            }
        }
        cpu
    }

    /// CPU time since an earlier reading of the same tree: to the nanosecond when no thread ended
    /// in between, else in ticks.
    pub fn since(&self, before: &Cpu) -> Duration {
        let ticks = self.ticks.saturating_sub(before.ticks);
        let mut exact = 0;
        for (thread, run) in &self.threads {
            exact += run.saturating_sub(before.threads.get(thread).copied().unwrap_or(0));
        }
        let exact = Duration::from_nanos(exact);
        let lost = before.threads.keys().any(|thread| !self.threads.contains_key(thread));
        if lost || exact.is_zero() || exact.abs_diff(ticks) > self.slack { ticks } else { exact }
    }
}

/// The length of one tick of `stat`, 10 ms nearly everywhere.
fn tick() -> Duration {
    let per_second = rustix::param::clock_ticks_per_second().clamp(1, 1_000_000);
    Duration::from_secs(1) / u32::try_from(per_second).unwrap_or(100)
}

/// utime, stime, cutime and cstime.
fn stat_ticks(pid: u32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold spaces and brackets: what follows the last bracket starts with field 3.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u32>().ok()).sum()
}

/// Memory of a tree of processes, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident now; pages that processes share count once for each.
    pub resident: u64,
    /// The sum of each one's own peak.
    pub resident_peak: u64,
    /// Resident now; shared pages are divided among their users.
    pub proportional: u64,
    /// Threads.
    pub threads: u64,
}

/// Reads it.
pub fn memory(root: u32) -> Memory {
    let mut memory = Memory::default();
    for pid in tree(root) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        memory.resident += field(&status, "VmRSS:") * 1024;
        memory.resident_peak += field(&status, "VmHWM:") * 1024;
        memory.proportional += field(&rollup, "Pss:") * 1024;
        memory.threads += field(&status, "Threads:");
    }
    memory
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// What other processes do meanwhile makes the figures worse: it is watched and told.
#[derive(Debug)]
pub struct Machine {
    /// CPU time of all processes that are not ours, in ticks.
    others: u64,
    stolen: u64,
    cores: usize,
    at: Instant,
}

/// What others took, as shares of all cores.
#[derive(Clone, Copy, Debug, Default)]
pub struct Foreign {
    /// Other processes of this machine.
    pub others: f64,
    /// The hypervisor.
    pub stolen: f64,
}

impl Machine {
    /// Reads it.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn now() -> Outcome<Machine> {
        let text = fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().unwrap_or_default();
        let stolen = line.split_whitespace().nth(8).and_then(|count| count.parse().ok());
        let cores = text.lines().skip(1).take_while(|line| line.starts_with("cpu")).count();
        let ours = tree(std::process::id());
        let mut others = 0;
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // Threads of the kernel work for us as much as for anybody; they have no memory.
            if !ours.contains(&pid)
                && fs::read(format!("/proc/{pid}/statm")).is_ok_and(|m| m[0] != b'0')
            {
                others += u64::from(stat_ticks(pid));
            }
        }
        Ok(Machine { others, stolen: stolen.unwrap_or(0), cores, at: clock::now() })
    }

    /// What others took since `before`. A process that ended is in its parent's count.
    pub fn foreign_since(&self, before: &Machine) -> Foreign {
        let whole = self.at.duration_since(before.at).as_secs_f64() * self.cores as f64;
        let share = |now: u64, before: u64| {
            let ticks = u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX);
            (tick() * ticks).as_secs_f64() / whole.max(1e-3)
        };
        Foreign {
            others: share(self.others, before.others),
            stolen: share(self.stolen, before.stolen),
        }
    }
}
