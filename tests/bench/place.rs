//! Which cores the processes may use.
//!
//! At one connection the figures depend on the placement more than on the front: a wake-up on
//! another core costs an interrupt between cores (in a virtual machine an exit to the hypervisor),
//! one on the same core does not, and a scheduler left alone moves between the two for seconds at a
//! time. So both are measured, each held fast.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::account;
use crate::fronts::Front;

/// A placement of front, load and mock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// As the scheduler likes.
    Free,
    /// All on one core.
    Together,
    /// The front on the first half of the cores, load and mock on the rest.
    Apart,
}

/// The cores that the bench was given.
#[derive(Debug)]
pub struct Cores {
    all: Vec<usize>,
}

impl Cores {
    /// Asks the kernel.
    pub fn given() -> Cores {
        let all = sched_getaffinity(None).map_or(Vec::new(), |set| {
            (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
        });
        Cores { all }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Puts the threads of the bench, the mock and these fronts in their places. Threads made later
    /// stay with the one that made them.
    pub fn place(&self, place: Place, fronts: &[Front]) {
        let half = self.all.len() / 2;
        let (front, rig) = match place {
            Place::Free => (&self.all[..], &self.all[..]),
            Place::Together => (&self.all[..1], &self.all[..1]),
            Place::Apart => self.all.split_at(half),
        };
        keep(std::process::id(), rig);
        for process in fronts.iter().filter_map(Front::process) {
            keep(process, front);
        }
    }
}

/// Keeps a process and its descendants to these cores. One that ended meanwhile needs no place.
fn keep(root: u32, cores: &[usize]) {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    for thread in account::tree(root).into_iter().flat_map(account::threads) {
        if let Some(thread) = i32::try_from(thread).ok().and_then(Pid::from_raw) {
            let _ = sched_setaffinity(Some(thread), &set);
        }
    }
}
