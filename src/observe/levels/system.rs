//! The machine: memory, load, pressure, sockets and open files, from `/proc`.

use std::path::Path;

use super::{Figure, Read, field, pressure};

/// The figures; what is not there is left out.
pub(super) fn figures(read: Read<'_>) -> Vec<Figure> {
    let text = |path: &str| read(Path::new(path)).unwrap_or_default();
    let mut figures = memory(&text("/proc/meminfo"));
    figures.extend(load(&text("/proc/loadavg")));
    for resource in ["cpu", "memory", "io"] {
        let name = "tidegate_system_pressure_seconds_total";
        let help = "Time that some or all tasks of the machine waited for a resource, in seconds.";
        let waits = text(&format!("/proc/pressure/{resource}"));
        figures.extend(pressure(name, help, resource, &waits));
    }
    figures.extend(sockets(&text("/proc/net/sockstat")));
    figures.extend(files(&text("/proc/sys/fs/file-nr")));
    figures
}

fn memory(text: &str) -> Vec<Figure> {
    let lines = [
        ("tidegate_system_memory_bytes", "Memory of the machine.", "MemTotal"),
        (
            "tidegate_system_memory_available_bytes",
            "Memory that programs of the machine can have without swapping.",
            "MemAvailable",
        ),
        ("tidegate_system_swap_bytes", "Swap space of the machine.", "SwapTotal"),
        ("tidegate_system_swap_free_bytes", "Swap space that is not used.", "SwapFree"),
    ];
    let figure = |(name, help, line)| Some(Figure::gauge(name, help, field(text, line)? * 1024.0));
    lines.into_iter().filter_map(figure).collect()
}

fn load(text: &str) -> Vec<Figure> {
    let lines = [
        ("tidegate_system_load1", "Tasks that ran or waited, over the last minute."),
        ("tidegate_system_load5", "The same over the last five minutes."),
        ("tidegate_system_load15", "The same over the last fifteen minutes."),
    ];
    let loads = text.split_ascii_whitespace().map(|word| word.parse::<f64>().ok());
    let figure =
        |((name, help), load): ((_, _), Option<f64>)| Some(Figure::gauge(name, help, load?));
    lines.into_iter().zip(loads).filter_map(figure).collect()
}

/// `sockets: used 38`, then `TCP: inuse 5 orphan 0 tw 947 …`, of this network namespace.
fn sockets(text: &str) -> Vec<Figure> {
    let find = |line: &str, word: &str| -> Option<f64> {
        let line = text.lines().find_map(|have| have.strip_prefix(line))?;
        let mut words = line.split_ascii_whitespace().skip_while(|have| *have != word);
        words.nth(1)?.parse().ok()
    };
    let help = "Sockets of the machine.";
    let used = find("sockets:", "used").map(|n| Figure::gauge("tidegate_system_sockets", help, n));
    let states = [("inuse", "in_use"), ("orphan", "orphan"), ("tw", "time_wait")];
    let tcp = states.into_iter().filter_map(|(word, state)| {
        let help = "TCP sockets of the machine, by state.";
        let count = find("TCP:", word)?;
        Some(Figure::gauge("tidegate_system_tcp_sockets", help, count).with("state", state))
    });
    used.into_iter().chain(tcp).collect()
}

/// Open files, unused ones, and the most that there may be.
fn files(text: &str) -> Vec<Figure> {
    let mut numbers = text.split_ascii_whitespace().map(|word| word.parse::<f64>().ok());
    let (open, max) = (numbers.next().flatten(), numbers.nth(1).flatten());
    let open = open.map(|n| Figure::gauge("tidegate_system_open_files", "Open files.", n));
    // Without a limit it is a number near 2^63.
    let max = max.filter(|max| *max < (1_u64 << 60) as f64).map(|n| {
        Figure::gauge("tidegate_system_open_files_max", "Open files that there may be.", n)
    });
    open.into_iter().chain(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read_and_nonsense_is_left_out() {
        let read = |path: &Path| {
            let text = match path.to_str()? {
                "/proc/meminfo" => "MemTotal: 2000 kB\nMemFree: 1 kB\nMemAvailable: 1000 kB\n",
                "/proc/loadavg" => "0.50 x 2.00 1/100 1\n",
                "/proc/pressure/io" => "some avg10=0.00 total=2000000\n",
                "/proc/net/sockstat" => "sockets: used 38\nTCP: inuse 5 orphan 0 tw 947 alloc 5\n",
                "/proc/sys/fs/file-nr" => "1000\t0\t9223372036854775807\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let told: Vec<_> = figures(&read).into_iter().map(|f| (f.name, f.value)).collect();
        let expected = [
            ("tidegate_system_memory_bytes", 2_048_000.0),
            ("tidegate_system_memory_available_bytes", 1_024_000.0),
            ("tidegate_system_load1", 0.5),
            ("tidegate_system_load15", 2.0),
            ("tidegate_system_pressure_seconds_total", 2.0),
            ("tidegate_system_sockets", 38.0),
            ("tidegate_system_tcp_sockets", 5.0),
            ("tidegate_system_tcp_sockets", 0.0),
            ("tidegate_system_tcp_sockets", 947.0),
            ("tidegate_system_open_files", 1000.0),
        ];
        assert_eq!(told, expected);
        assert!(figures(&|_| None).is_empty());
        let nonsense: Vec<Figure> = figures(&|_| Some("TCP: inuse\nsockets: used\n\u{0}".into()));
        assert!(nonsense.is_empty(), "{nonsense:?}");
    }
}
