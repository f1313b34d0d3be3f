//! How much memory the process may have: what its control group or the machine allows.

#[cfg(target_os = "linux")]
use std::path::{Path, PathBuf};

/// The part of the machine's memory that is ours when nobody says otherwise, in percent.
#[cfg(target_os = "linux")]
const MACHINE_PERCENT: u64 = 80;

/// Most bytes read from a file of the kernel.
#[cfg(target_os = "linux")]
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The smaller one of the control group's limit and 80 % of the machine's memory, in bytes. `None`
/// where neither can be learned.
#[cfg(target_os = "linux")]
pub fn allowed() -> Option<u64> {
    let cgroup = read(Path::new("/proc/self/cgroup"))
        .and_then(|text| cgroup_limit(&text, Path::new("/sys/fs/cgroup"), &|path| read(path)));
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| machine(&text));
    cgroup.into_iter().chain(machine).min()
}

/// The same where there is no `/proc`: unknown.
#[cfg(not(target_os = "linux"))]
pub fn allowed() -> Option<u64> {
    None
}

#[cfg(target_os = "linux")]
fn read(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(target_os = "linux")]
fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.checked_mul(1024)? / 100 * MACHINE_PERCENT)
}

/// The least limit of the group and of those above it: version 2 (`0::/path`, `memory.max`), else
/// version 1 (`N:memory:/path`, `memory.limit_in_bytes`). Within a container the path is often that
/// of the host; then the root of the mount is the group.
#[cfg(target_os = "linux")]
fn cgroup_limit(groups: &str, mount: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (mount, file) = if controllers.is_empty() {
            (mount.to_owned(), "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (mount.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let group: PathBuf = path.trim_start_matches('/').into();
        for above in group.ancestors() {
            let text = read(&mount.join(above).join(file));
            // `max`, or for version 1 a number near 2^63, is no limit.
            let limit = text.and_then(|text| text.trim().parse::<u64>().ok());
            let limit = limit.filter(|limit| *limit < 1 << 60);
            least = least.into_iter().chain(limit).min();
        }
    }
    least
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn limit(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        let files: HashMap<PathBuf, String> =
            files.iter().map(|(path, text)| ((*path).into(), (*text).to_owned())).collect();
        cgroup_limit(groups, Path::new("/c"), &|path| files.get(path).cloned())
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let files = [
            ("/c/a/b/memory.max", "max\n"),
            ("/c/a/memory.max", "4096\n"),
            ("/c/memory.max", "8192\n"),
        ];
        assert_eq!(limit("0::/a/b\n", &files), Some(4096));
        assert_eq!(limit("0::/elsewhere\n", &files), Some(8192));
        assert_eq!(limit("0::/\n", &files), Some(8192));
        assert_eq!(limit("0::/a/b\n", &files[..1]), None);
    }

    #[test]
    fn the_first_version_has_other_names_and_a_huge_number_for_no_limit() {
        let files = [
            ("/c/memory/x/memory.limit_in_bytes", "1024"),
            ("/c/memory/memory.limit_in_bytes", "9223372036854771712"),
        ];
        let groups = "12:cpu,cpuacct:/x\n5:memory:/x\n0::/x\n";
        assert_eq!(limit(groups, &files), Some(1024));
        assert_eq!(limit(groups, &files[1..]), None);
    }

    #[test]
    fn nonsense_is_no_limit() {
        for groups in ["", "x", "0:", "::", "0::/a\nbroken"] {
            assert_eq!(limit(groups, &[]), None, "{groups:?}");
        }
        assert_eq!(machine("MemTotal:  1000 kB\n"), Some(1_024_000 / 100 * 80));
        assert_eq!(machine("MemTotal: many\n"), None);
        assert!(allowed().is_some_and(|bytes| bytes > 1 << 20));
    }
}
