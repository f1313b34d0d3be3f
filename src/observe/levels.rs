//! The levels around the process: the container that it runs in, from the files of its control groups,
//! and the machine, from `/proc`. What cannot be read is left out; it is never told as 0.

mod container;
mod system;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::reading::{Head, Kind, Reader, Value};
use crate::base::clock;
use crate::base::folder;
use crate::base::lock::{Locked, Rank};

/// How long figures are told again before they are read again: a page and a look at the same moment
/// read them once.
const FRESH: Duration = Duration::from_secs(1);

/// Most bytes read from a file of the kernel.
#[cfg(target_os = "linux")]
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    labels: Vec<(&'static str, &'static str)>,
    value: f64,
}

impl Figure {
    /// A level.
    fn gauge(name: &'static str, help: &'static str, value: f64) -> Figure {
        Figure { name, help, kind: Kind::Gauge, labels: Vec::new(), value }
    }

    /// What the system counts.
    fn counter(name: &'static str, help: &'static str, value: f64) -> Figure {
        Figure { kind: Kind::SystemCounter, ..Figure::gauge(name, help, value) }
    }

    fn with(mut self, key: &'static str, value: &'static str) -> Figure {
        self.labels.push((key, value));
        self
    }
}

/// Reads a file of the kernel.
type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// The figures of both levels, read at most once a second.
#[derive(Debug)]
pub struct Levels {
    /// Folders whose disks are told, with the word for each.
    folders: Vec<(&'static str, PathBuf)>,
    known: Locked<Option<(Instant, Arc<Vec<Figure>>)>>,
}

impl Default for Levels {
    fn default() -> Self {
        Levels::new(Vec::new())
    }
}

impl Levels {
    /// With the disks of these folders.
    pub fn new(folders: Vec<(&'static str, PathBuf)>) -> Levels {
        Levels { folders, known: Locked::new(Rank::Leaf, None) }
    }

    /// The figures, at most a second old. Those of one name stand together.
    pub fn figures(&self) -> Arc<Vec<Figure>> {
        let now = clock::now();
        let fresh = |at: Instant| now.saturating_duration_since(at) < FRESH;
        let known = self.known.with(|known| known.clone());
        if let Some((_, figures)) = known.filter(|(at, _)| fresh(*at)) {
            return figures;
        }
        // Two who find them old at once both read: that is no harm, and nobody waits.
        let figures = Arc::new(self.read());
        self.known.with(|known| *known = Some((now, Arc::clone(&figures))));
        figures
    }

    fn read(&self) -> Vec<Figure> {
        let mut figures = container::figures(&read);
        figures.extend(system::figures(&read));
        let spaces: Vec<_> = self
            .folders
            .iter()
            .filter_map(|(word, folder)| Some((*word, folder::free(folder)?)))
            .collect();
        let name = "tidegate_system_disk_free_bytes";
        let help = "What may still be written to the disk of a folder.";
        let free = |(word, space): &(&'static str, folder::Space)| {
            Figure::gauge(name, help, space.free as f64).with("folder", word)
        };
        figures.extend(spaces.iter().map(free));
        let name = "tidegate_system_disk_bytes";
        let help = "The size of the disk of a folder.";
        let total = |(word, space): &(&'static str, folder::Space)| {
            Figure::gauge(name, help, space.total as f64).with("folder", word)
        };
        figures.extend(spaces.iter().map(total));
        figures
    }
}

/// Hands the figures to `reader`.
pub(super) fn walk(figures: &[Figure], reader: &mut dyn Reader) {
    for (at, figure) in figures.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|before| figures.get(before));
        if before.is_none_or(|before| before.name != figure.name) {
            let Figure { name, help, kind, .. } = *figure;
            reader.family(Head { name, help, kind });
        }
        reader.series(&figure.labels, Value::Number(figure.value));
    }
}

#[cfg(target_os = "linux")]
fn read(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Elsewhere there are no such files.
#[cfg(not(target_os = "linux"))]
fn read(_path: &Path) -> Option<String> {
    None
}

/// The number behind a word at the beginning of a line.
fn field(text: &str, word: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(word)?;
        let rest = rest.strip_prefix(':').unwrap_or(rest);
        rest.starts_with([' ', '\t']).then(|| rest.split_ascii_whitespace().next()?.parse().ok())?
    })
}

/// Time that tasks waited for a resource: the lines `some` and `full` of a pressure file, with their
/// `total` in microseconds.
fn pressure(
    name: &'static str,
    help: &'static str,
    resource: &'static str,
    text: &str,
) -> Vec<Figure> {
    let kinds = ["some", "full"].into_iter();
    kinds
        .filter_map(|kind| {
            let line = text.lines().find(|line| line.split(' ').next() == Some(kind))?;
            let total = line.split(' ').find_map(|part| part.strip_prefix("total="))?;
            let seconds = total.parse::<f64>().ok()? / 1e6;
            let figure = Figure::counter(name, help, seconds);
            Some(figure.with("resource", resource).with("tasks", kind))
        })
        .collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_this_machine_are_plausible_and_those_of_a_name_stand_together() {
        let levels = Levels::new(vec![("state", "/".into()), ("log", "/nonexistent".into())]);
        let figures = levels.figures();
        let find = |name: &str| figures.iter().find(|figure| figure.name == name);
        let total = find("tidegate_system_memory_bytes").unwrap().value;
        let available = find("tidegate_system_memory_available_bytes").unwrap().value;
        assert!(total >= available && available > 1e6, "{total} {available}");
        assert!(find("tidegate_system_load1").unwrap().value >= 0.0);
        let disks: Vec<_> =
            figures.iter().filter(|f| f.name == "tidegate_system_disk_free_bytes").collect();
        assert_eq!(disks.len(), 1, "of a folder that is not there nothing is told: {disks:?}");
        let mut names: Vec<_> = figures.iter().map(|figure| figure.name).collect();
        names.dedup();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a name in two places: {figures:?}");
        assert!(Arc::ptr_eq(&figures, &levels.figures()), "read once a second");
    }

    #[test]
    fn lines_are_found_by_their_whole_word() {
        let text = "MemFreeX: 1 kB\nMemFree:  2 kB\nmax 7\noom 3\noom_kill 4\n";
        assert_eq!(field(text, "MemFree"), Some(2.0));
        assert_eq!((field(text, "oom"), field(text, "oom_kill")), (Some(3.0), Some(4.0)));
        assert_eq!(field(text, "MemTotal"), None);
        let text =
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 total=x\n";
        let figures = pressure("p", "P.", "cpu", text);
        assert_eq!(figures.len(), 1);
        assert_eq!((figures[0].value, figures[0].labels[1]), (1.5, ("tasks", "some")));
    }
}
