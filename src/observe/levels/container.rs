//! The container: what the control groups of this process say, version 2 first, else version 1.

use std::path::{Path, PathBuf};

use super::{Figure, Read, field, pressure};

/// Where the groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// A limit from here on is none: version 1 writes a number near 2^63.
const NO_LIMIT: f64 = (1_u64 << 60) as f64;

/// A file of version 2, and the controller and the file of version 1, that hold one number.
struct File {
    name: &'static str,
    help: &'static str,
    two: &'static str,
    one: Option<(&'static str, &'static str)>,
}

const FILES: [File; 5] = [
    File {
        name: "tidegate_container_memory_bytes",
        help: "Memory of the container, with its page cache.",
        two: "memory.current",
        one: Some(("memory", "memory.usage_in_bytes")),
    },
    File {
        name: "tidegate_container_memory_max_bytes",
        help: "Memory that the container may have; absent when there is no limit.",
        two: "memory.max",
        one: Some(("memory", "memory.limit_in_bytes")),
    },
    File {
        name: "tidegate_container_memory_high_bytes",
        help: "Memory from which on the container is slowed down; absent when there is no limit.",
        two: "memory.high",
        one: None,
    },
    File {
        name: "tidegate_container_pids",
        help: "Tasks of the container.",
        two: "pids.current",
        one: Some(("pids", "pids.current")),
    },
    File {
        name: "tidegate_container_pids_max",
        help: "Tasks that the container may have; absent when there is no limit.",
        two: "pids.max",
        one: Some(("pids", "pids.max")),
    },
];

/// A word in a file of words and numbers, and what its number is to be divided by.
struct Word {
    name: &'static str,
    help: &'static str,
    two: (&'static str, &'static str, f64),
    one: Option<(&'static str, &'static str, &'static str, f64)>,
}

const WORDS: [Word; 5] = [
    Word {
        name: "tidegate_container_oom_kills_total",
        help: "Tasks of the container that the system killed for want of memory.",
        two: ("memory.events", "oom_kill", 1.0),
        one: Some(("memory", "memory.oom_control", "oom_kill", 1.0)),
    },
    Word {
        name: "tidegate_container_memory_limit_hits_total",
        help: "How often the container reached its limit on memory.",
        two: ("memory.events", "max", 1.0),
        one: None,
    },
    Word {
        name: "tidegate_container_cpu_seconds_total",
        help: "CPU time of the container, in seconds.",
        two: ("cpu.stat", "usage_usec", 1e6),
        one: None,
    },
    Word {
        name: "tidegate_container_cpu_throttled_periods_total",
        help: "Periods in which the container had used its share of CPU time up.",
        two: ("cpu.stat", "nr_throttled", 1.0),
        one: Some(("cpu", "cpu.stat", "nr_throttled", 1.0)),
    },
    Word {
        name: "tidegate_container_cpu_throttled_seconds_total",
        help: "Time that the container had to wait therefore, in seconds.",
        two: ("cpu.stat", "throttled_usec", 1e6),
        one: Some(("cpu", "cpu.stat", "throttled_time", 1e9)),
    },
];

/// The groups that this process is in.
struct Groups<'a> {
    read: Read<'a>,
    /// Version 2.
    two: Option<PathBuf>,
    /// Version 1: a controller and its group.
    one: Vec<(String, PathBuf)>,
}

impl<'a> Groups<'a> {
    fn find(read: Read<'a>) -> Option<Groups<'a>> {
        let mut groups = Groups { read, two: None, one: Vec::new() };
        for line in read(Path::new("/proc/self/cgroup"))?.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                groups.two = Some(Path::new(MOUNT).join(path));
            } else {
                for controller in controllers.split(',') {
                    let group = Path::new(MOUNT).join(controller).join(path);
                    groups.one.push((controller.to_owned(), group));
                }
            }
        }
        Some(groups)
    }

    /// A file of the group. Within a container the path is often that of the host; then the root of the
    /// mount is the group.
    fn file(&self, group: &Path, root: &Path, file: &str) -> Option<String> {
        (self.read)(&group.join(file)).or_else(|| (self.read)(&root.join(file)))
    }

    fn two(&self, file: &str) -> Option<String> {
        self.file(self.two.as_ref()?, Path::new(MOUNT), file)
    }

    fn one(&self, controller: &str, file: &str) -> Option<String> {
        let (_, group) = self.one.iter().find(|(have, _)| have == controller)?;
        self.file(group, &Path::new(MOUNT).join(controller), file)
    }
}

/// The figures; none outside of control groups.
pub(super) fn figures(read: Read<'_>) -> Vec<Figure> {
    let Some(groups) = Groups::find(read) else { return Vec::new() };
    let mut figures = Vec::new();
    for file in &FILES {
        let text = groups.two(file.two).or_else(|| {
            let (controller, name) = file.one?;
            groups.one(controller, name)
        });
        // `max` is no number.
        let number = text.and_then(|text| text.trim().parse::<f64>().ok());
        let Some(number) = number.filter(|number| *number < NO_LIMIT) else { continue };
        figures.push(Figure::gauge(file.name, file.help, number));
    }
    for word in &WORDS {
        let (file, key, unit) = word.two;
        let two = groups.two(file).and_then(|text| Some(field(&text, key)? / unit));
        let one = || {
            let (controller, file, key, unit) = word.one?;
            Some(field(&groups.one(controller, file)?, key)? / unit)
        };
        if let Some(number) = two.or_else(one) {
            figures.push(Figure::counter(word.name, word.help, number));
        }
    }
    for resource in ["cpu", "memory", "io"] {
        let name = "tidegate_container_pressure_seconds_total";
        let help =
            "Time that some or all tasks of the container waited for a resource, in seconds.";
        let text = groups.two(&format!("{resource}.pressure")).unwrap_or_default();
        figures.extend(pressure(name, help, resource, &text));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(files: &[(&str, &str)]) -> Vec<(&'static str, f64)> {
        let read = |path: &Path| {
            let found = files.iter().find(|(have, _)| Path::new(have) == path);
            found.map(|(_, text)| (*text).to_owned())
        };
        figures(&read).into_iter().map(|figure| (figure.name, figure.value)).collect()
    }

    #[test]
    fn version_two_is_read_in_its_group() {
        let told = told(&[
            ("/proc/self/cgroup", "0::/system.slice/x.service\n"),
            ("/sys/fs/cgroup/system.slice/x.service/memory.current", "1048576\n"),
            ("/sys/fs/cgroup/system.slice/x.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/system.slice/x.service/memory.high", "2097152\n"),
            (
                "/sys/fs/cgroup/system.slice/x.service/memory.events",
                "high 1\nmax 2\noom 3\noom_kill 4\n",
            ),
            (
                "/sys/fs/cgroup/system.slice/x.service/cpu.stat",
                "usage_usec 5000000\nnr_throttled 6\nthrottled_usec 7000000\n",
            ),
            (
                "/sys/fs/cgroup/system.slice/x.service/memory.pressure",
                "some avg10=0.00 total=1000000\nfull avg10=0.00 total=0\n",
            ),
        ]);
        let expected = [
            ("tidegate_container_memory_bytes", 1_048_576.0),
            ("tidegate_container_memory_high_bytes", 2_097_152.0),
            ("tidegate_container_oom_kills_total", 4.0),
            ("tidegate_container_memory_limit_hits_total", 2.0),
            ("tidegate_container_cpu_seconds_total", 5.0),
            ("tidegate_container_cpu_throttled_periods_total", 6.0),
            ("tidegate_container_cpu_throttled_seconds_total", 7.0),
            ("tidegate_container_pressure_seconds_total", 1.0),
            ("tidegate_container_pressure_seconds_total", 0.0),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn version_one_is_read_by_controller_and_the_root_stands_in_for_a_path_of_the_host() {
        let told = told(&[
            ("/proc/self/cgroup", "8:pids:/\n4:memory:/host/abc\n2:cpu,cpuacct:/\n0::/\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "10"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
            ("/sys/fs/cgroup/memory/memory.oom_control", "oom_kill_disable 0\noom_kill 1\n"),
            (
                "/sys/fs/cgroup/cpu/cpu.stat",
                "nr_periods 9\nnr_throttled 2\nthrottled_time 3000000000\n",
            ),
            ("/sys/fs/cgroup/pids/pids.current", "5"),
        ]);
        let expected = [
            ("tidegate_container_memory_bytes", 10.0),
            ("tidegate_container_pids", 5.0),
            ("tidegate_container_oom_kills_total", 1.0),
            ("tidegate_container_cpu_throttled_periods_total", 2.0),
            ("tidegate_container_cpu_throttled_seconds_total", 3.0),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn nonsense_is_left_out() {
        for groups in ["", "x", "0:", "::", "4:memory:/\nbroken"] {
            assert_eq!(told(&[("/proc/self/cgroup", groups)]), [], "{groups:?}");
        }
        assert_eq!(told(&[]), []);
        let files = [("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.current", "much\n")];
        assert_eq!(told(&files), []);
    }
}
