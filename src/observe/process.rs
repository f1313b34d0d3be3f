//! What the operating system knows of this process. On Linux from `/proc`; elsewhere only what one
//! call gives. What cannot be had is left out, never invented.

use std::fs;

/// Most bytes read from one file of `/proc`. In the longest one, `/proc/stat`, what is wanted
/// stands behind a line for each processor and a number for each interrupt: 20 KiB on a machine
/// with 256 processors. Past the bound it is not found, and the start time is left out.
#[cfg(target_os = "linux")]
const PROC_BYTES_MAX: u64 = 256 * 1024;

/// Figures of this process; names and units as Prometheus' own clients have them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    /// User and system time, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Resident memory, in bytes.
    pub resident_bytes: Option<u64>,
    /// Resident memory that is no file's: heap and stacks, in bytes.
    pub anonymous_bytes: Option<u64>,
    /// Virtual memory, in bytes.
    pub virtual_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Open descriptors.
    pub open_fds: Option<u64>,
    /// Most descriptors allowed (the soft limit).
    pub max_fds: Option<u64>,
    /// Start, in seconds since the Unix epoch.
    pub start_time_seconds: Option<f64>,
}

impl Process {
    /// Asks for them now. With ten thousand descriptors open this takes some milliseconds, nearly
    /// all of it to count them.
    pub fn now() -> Process {
        let mut process = read_stat().unwrap_or_default();
        process.anonymous_bytes = anonymous_bytes();
        process.open_fds = open_fds();
        process.max_fds = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        process
    }
}

/// `RssAnon` of `/proc/self/status`. `smaps_rollup` knows more, but walks all pages for it.
fn anonymous_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let status = read("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Resident memory, in bytes. Cheap enough for every second.
pub fn resident_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let pages =
            read("/proc/self/statm")?.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Open descriptors of this process, cheaply: since Linux 6.2 the size of their folder is their
/// number. Elsewhere they are counted.
pub fn open_descriptors() -> Option<u64> {
    #[cfg(target_os = "linux")]
    if let Some(size) = fs::metadata("/proc/self/fd").ok().map(|folder| folder.len())
        && size > 0
    {
        return Some(size);
    }
    open_fds()
}

fn open_fds() -> Option<u64> {
    // One of them is the descriptor that lists them.
    let folder = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
    let count = fs::read_dir(folder).ok()?.count();
    Some((count as u64).saturating_sub(1))
}

#[cfg(not(target_os = "linux"))]
fn read_stat() -> Option<Process> {
    None
}

#[cfg(target_os = "linux")]
fn read_stat() -> Option<Process> {
    let ticks = rustix::param::clock_ticks_per_second();
    let page = rustix::param::page_size() as u64;
    let mut process = parse_stat(&read("/proc/self/stat")?, ticks, page)?;
    // Read once: it is a constant, and costs the kernel more than all the rest.
    static BOOT: std::sync::OnceLock<Option<f64>> = std::sync::OnceLock::new();
    let boot = BOOT.get_or_init(|| parse_boot_time(&read("/proc/stat")?));
    let start = process.start_time_seconds.zip(*boot);
    process.start_time_seconds = start.map(|(after_boot, boot)| boot + after_boot);
    Some(process)
}

#[cfg(target_os = "linux")]
fn read(path: &str) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(path).ok()?.take(PROC_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// `/proc/self/stat` (proc_pid_stat(5)). The start time is left in seconds after boot.
#[cfg(target_os = "linux")]
fn parse_stat(text: &str, ticks: u64, page: u64) -> Option<Process> {
    // The second field is the name in parentheses, and may itself hold spaces and parentheses.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The manual counts from 1, and the first field of `rest` is its third.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let seconds = |in_ticks: u64| in_ticks as f64 / ticks.max(1) as f64;
    let (user, system) = (field(14)?, field(15)?);
    Some(Process {
        cpu_seconds: Some(seconds(user + system)),
        threads: field(20),
        start_time_seconds: field(22).map(seconds),
        virtual_bytes: field(23),
        resident_bytes: field(24).map(|pages| pages.saturating_mul(page)),
        ..Process::default()
    })
}

/// The `btime` line of `/proc/stat`, in seconds since the epoch.
#[cfg(target_os = "linux")]
fn parse_boot_time(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::base::clock;
    use std::fs::File;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194304 10 20 30 40 150 50 7 8 20 0 9 0 500 \
                    1048576 256 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0";
        let process = parse_stat(stat, 100, 4096).unwrap();
        let expected = Process {
            cpu_seconds: Some(2.0),
            resident_bytes: Some(1_048_576),
            virtual_bytes: Some(1_048_576),
            threads: Some(9),
            start_time_seconds: Some(5.0),
            ..Process::default()
        };
        assert_eq!(process, expected);
        for cut in ["", "42 (a", "42 (a) S", "42 (a) S 1 x"] {
            assert_eq!(parse_stat(cut, 100, 4096), None, "{cut:?}");
        }
    }

    #[test]
    fn the_figures_of_this_process_are_plausible() {
        let before = Process::now();
        let files: Vec<File> = (0..20).map(|_| File::open("/dev/null").unwrap()).collect();
        let process = Process::now();
        // Other tests open and close their own meanwhile: only these are known to be there.
        assert!(open_descriptors().unwrap() >= 20);
        assert!(process.open_fds.unwrap() >= 20, "{process:?}");
        drop(files);
        assert!(process.max_fds.unwrap() > process.open_fds.unwrap());
        assert!(process.cpu_seconds >= before.cpu_seconds);
        assert!(process.resident_bytes.unwrap() > 1024 * 1024);
        assert!(process.virtual_bytes > process.resident_bytes);
        assert!(process.anonymous_bytes.unwrap() > 64 * 1024, "{process:?}");
        assert!(process.threads.unwrap() >= 2, "the test's own and the runner's");
        let age = clock::unix().as_secs_f64() - process.start_time_seconds.unwrap();
        assert!((-2.0..3600.0).contains(&age), "started {age} s ago");
    }
}
