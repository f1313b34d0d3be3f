//! Real files in real folders.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::*;
use crate::base::clock;
use crate::base::metrics::Metric;
use crate::config::settings::LogFormat;

/// Longer than any healthy step takes, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(dir: &Path) -> Log {
    Log {
        level: LevelFilter::Info,
        dir: Some(dir.to_owned()),
        format: LogFormat::Text,
        rotate_size: 1024 * 1024,
        keep_files: 3,
        pending_max: 1024,
    }
}

fn open(config: &Log) -> (LogHandle, Registry) {
    let registry = Registry::default();
    let handle = start_detached(config, &registry, &Arc::default()).unwrap();
    (handle, registry)
}

impl LogHandle {
    fn line(&self, event: &str) {
        self.level_line(Level::Info, "tidegate", event);
    }

    fn level_line(&self, level: Level, target: &str, event: &str) {
        let args = format_args!("{event}");
        self.queue.log(&Record::builder().level(level).target(target).args(args).build());
    }
}

fn counter(registry: &Registry, name: &str) -> u64 {
    let (families, _) = registry.gather();
    let family = families.iter().find(|family| family.name == name).unwrap();
    let value = |metric: &Metric| match metric {
        Metric::Counter(counter) => counter.value(),
        _ => 0,
    };
    family.series.iter().map(|(_, metric)| value(metric)).sum()
}

fn dropped(registry: &Registry) -> u64 {
    counter(registry, "tidegate_log_lines_dropped_total")
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start: Instant = clock::now();
    while !check() {
        assert!(clock::now() < start + PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The events in a file, one a line.
fn events(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "half a line: {text:?}");
    let event = |line: &str| line.split(' ').nth(2).unwrap_or_default().to_owned();
    text.lines().map(event).collect()
}

fn rotated(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|path| path.file_name().unwrap() != files::CURRENT_NAME);
    all.sort();
    all
}

#[test]
fn lines_reach_the_file_in_order_and_later_runs_append() {
    let dir = tempfile::tempdir().unwrap();
    let current = LogHandle::current_file(dir.path());
    for run in 0..2 {
        let (log, registry) = open(&config(dir.path()));
        for n in 0..500 {
            log.line(&format!("line-{run}-{n}"));
        }
        assert!(log.stop(PATIENCE));
        assert_eq!(counter(&registry, "tidegate_log_lines_total"), 500);
        assert_eq!(dropped(&registry), 0);
    }
    let expected: Vec<String> =
        (0..2).flat_map(|run| (0..500).map(move |n| format!("line-{run}-{n}"))).collect();
    assert_eq!(events(&current), expected);
}

#[test]
fn a_line_is_in_the_file_soon_without_a_flush() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _registry) = open(&config(dir.path()));
    log.line("alone");
    let current = LogHandle::current_file(dir.path());
    eventually("the line", || fs::read_to_string(&current).is_ok_and(|t| t.contains("alone")));
}

#[test]
fn the_level_holds_and_other_crates_are_heard_from_warn_on() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _registry) = open(&config(dir.path()));
    log.level_line(Level::Debug, "tidegate::net", "too-low");
    log.level_line(Level::Info, "rustls", "foreign-info");
    log.level_line(Level::Warn, "rustls", "foreign-warn");
    log.set_level(LevelFilter::Debug);
    log.level_line(Level::Debug, "tidegate::net", "debug");
    log.level_line(Level::Debug, "rustls", "foreign-debug");
    assert!(log.stop(PATIENCE));
    assert_eq!(events(&LogHandle::current_file(dir.path())), ["foreign-warn", "debug"]);
}

#[test]
fn files_rotate_by_size_and_only_so_many_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let config = Log { rotate_size: 2000, ..config(dir.path()) };
    let (log, _registry) = open(&config);
    for n in 0..1000 {
        log.line(&format!("line-{n}"));
        if n % 10 == 0 {
            assert!(log.flush(PATIENCE));
        }
    }
    assert!(log.stop(PATIENCE));
    let old = rotated(dir.path());
    assert_eq!(old.len(), 3, "{old:?}");
    let mut kept = Vec::new();
    for path in old.iter().chain([&LogHandle::current_file(dir.path())]) {
        let size = fs::metadata(path).unwrap().len();
        assert!(size <= 2000, "{path:?} has {size}");
        kept.extend(events(path));
    }
    // The youngest lines are there, without a gap.
    let first = 1000 - kept.len();
    let expected: Vec<String> = (first..1000).map(|n| format!("line-{n}")).collect();
    assert_eq!(kept, expected);
}

#[test]
fn a_long_history_is_cut_to_its_bound_right_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    // Six digits: an order by name would take 100000 for the oldest.
    for n in [3, 4, 99_998, 99_999, 100_000, 100_001] {
        fs::write(dir.path().join(format!("tidegate_r{n:05}.log")), "old\n").unwrap();
    }
    let other = ["tidegate_rOLD.log", "tidegate_r7.txt", "nginx_r00001.log"];
    for name in other {
        fs::write(dir.path().join(name), "not ours").unwrap();
    }
    let (log, _registry) = open(&config(dir.path()));
    log.line("first");
    assert!(log.flush(PATIENCE));
    let names = |dir: &Path| -> Vec<String> {
        let name = |p: PathBuf| p.file_name().unwrap().to_string_lossy().into_owned();
        rotated(dir).into_iter().map(name).filter(|n| !other.contains(&&**n)).collect()
    };
    let kept = ["tidegate_r100000.log", "tidegate_r100001.log", "tidegate_r99999.log"];
    assert_eq!(names(dir.path()), kept);
    assert_eq!(rotated(dir.path()).len(), kept.len() + other.len(), "only our own are deleted");
    // A smaller bound is in force at once.
    log.reconfigure(&Log { keep_files: 1, ..config(dir.path()) }).unwrap();
    assert_eq!(names(dir.path()), ["tidegate_r100001.log"]);
    log.reconfigure(&Log { keep_files: 0, ..config(dir.path()) }).unwrap();
    assert!(names(dir.path()).is_empty());
    assert!(log.stop(PATIENCE));
}

#[test]
fn a_file_that_was_moved_away_is_made_anew_on_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let current = LogHandle::current_file(dir.path());
    let moved = dir.path().join("moved");
    let (log, registry) = open(&config(dir.path()));
    log.line("before");
    assert!(log.flush(PATIENCE));
    fs::rename(&current, &moved).unwrap();
    log.reopen();
    assert!(log.flush(PATIENCE));
    log.line("after");
    assert!(log.flush(PATIENCE));
    assert_eq!((events(&moved), events(&current)), (vec!["before".into()], vec!["after".into()]));
    assert_eq!(dropped(&registry), 0);
}

#[test]
fn a_folder_that_was_deleted_is_made_anew_without_being_told() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("logs");
    let current = LogHandle::current_file(&inner);
    let (log, _registry) = open(&config(&inner));
    log.line("before");
    assert!(log.flush(PATIENCE));
    fs::remove_dir_all(&inner).unwrap();
    eventually("a new file", || {
        log.line("after");
        assert!(log.flush(PATIENCE));
        current.exists()
    });
    assert!(log.stop(PATIENCE));
    assert!(events(&current).contains(&"after".to_owned()));
}

#[test]
fn a_new_folder_and_format_come_into_force_and_a_bad_folder_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let (log, registry) = open(&config(&one));
    log.line("first");
    log.reconfigure(&Log { format: LogFormat::Json, ..config(&two) }).unwrap();
    log.line("second");
    fs::write(dir.path().join("file"), "").unwrap();
    let refused = log.reconfigure(&config(&dir.path().join("file/logs"))).unwrap_err();
    assert!(
        matches!(&refused, ReconfigureError::Refused(why)
            if why.contains("file/logs") && why.contains("os error")),
        "{refused}"
    );
    log.line("third");
    assert!(log.stop(PATIENCE));
    assert_eq!(events(&LogHandle::current_file(&one)), ["first"]);
    let json = fs::read_to_string(LogHandle::current_file(&two)).unwrap();
    let event = |line: &str| -> String {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].as_str().unwrap().into()
    };
    assert_eq!(json.lines().map(event).collect::<Vec<_>>(), ["second", "third"]);
    assert_eq!(dropped(&registry), 0);
}

/// A FIFO that nobody reads, in the place of the file: opening it blocks, as a dead NFS server does.
fn stalled(dir: &Path) -> PathBuf {
    let path = LogHandle::current_file(dir);
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    path
}

#[test]
fn a_stalled_disk_blocks_nobody_and_what_it_cost_is_counted_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = stalled(dir.path());
    let (log, registry) = open(&Log { pending_max: 10, ..config(dir.path()) });
    let start = clock::now();
    for n in 0..1000 {
        log.line(&format!("line-{n}"));
    }
    assert!(clock::now() - start < Duration::from_secs(2), "logging waited for the disk");
    assert!(!log.flush(Duration::from_millis(50)), "nothing can have been flushed");
    assert!(dropped(&registry) >= 900);
    // The disk comes back.
    let mut reader = fs::File::open(&fifo).unwrap();
    log.line("awake");
    assert!(log.flush(PATIENCE));
    log.line("last");
    assert!(log.stop(PATIENCE));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let told: u64 = text
        .lines()
        .filter_map(|line| line.split_once("log_lines_dropped queue_full=")?.1.split(' ').next())
        .map(|n| n.parse::<u64>().unwrap())
        .sum();
    assert_eq!(told, dropped(&registry), "{text}");
    let written = text.lines().filter(|line| !line.contains("log_lines_dropped")).count() as u64;
    assert_eq!(written + dropped(&registry), 1002);
    assert_eq!(counter(&registry, "tidegate_log_lines_total"), written);
    assert!(text.ends_with(" info last\n"), "{text}");
}

#[test]
fn stopping_does_not_wait_for_a_stalled_disk() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = stalled(dir.path());
    let (log, _registry) = open(&config(dir.path()));
    log.line("late");
    let start = clock::now();
    assert!(!log.stop(Duration::from_millis(100)));
    assert!(clock::now() - start < Duration::from_secs(5));
    // The thread that was left behind writes and ends when the disk comes back.
    let mut text = String::new();
    fs::File::open(fifo).unwrap().read_to_string(&mut text).unwrap();
    assert!(text.ends_with(" info late\n"), "{text}");
}

#[test]
fn a_full_disk_is_counted_and_writing_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let current = LogHandle::current_file(dir.path());
    symlink("/dev/full", &current).unwrap();
    let registry = Registry::default();
    let log = start_without_stderr(&config(dir.path()), &registry);
    for round in 1..=3 {
        log.line("lost");
        assert!(log.flush(PATIENCE));
        assert_eq!(dropped(&registry), round);
        assert!(counter(&registry, "tidegate_log_write_errors_total") >= round);
    }
    fs::remove_file(&current).unwrap();
    log.reopen();
    assert!(log.flush(PATIENCE));
    log.line("kept");
    assert!(log.stop(PATIENCE));
    assert_eq!(dropped(&registry), 3);
    let text = fs::read_to_string(&current).unwrap();
    assert!(text.contains("log_lines_dropped queue_full=0 write_error=3"), "{text}");
    assert!(text.contains(" info kept\n"), "{text}");
}

#[test]
fn a_file_that_cannot_be_rotated_stays_within_twice_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let current = LogHandle::current_file(dir.path());
    // A folder where the first rotated file should be.
    fs::create_dir(dir.path().join("tidegate_r00000.log")).unwrap();
    let (log, registry) = open(&Log { rotate_size: 2000, ..config(dir.path()) });
    for n in 0..500 {
        log.line(&format!("line-{n}"));
        assert!(n % 10 != 0 || log.flush(PATIENCE));
        let size = fs::metadata(&current).map_or(0, |metadata| metadata.len());
        assert!(size <= 4000, "{size}");
    }
    assert!(log.stop(PATIENCE));
    assert_eq!(dropped(&registry), 0);
    assert!(counter(&registry, "tidegate_log_write_errors_total") > 0);
    assert_eq!(events(&current).last().map(String::as_str), Some("line-499"));
}

#[test]
fn a_large_file_from_before_is_rotated_before_the_first_line() {
    let dir = tempfile::tempdir().unwrap();
    let current = LogHandle::current_file(dir.path());
    fs::write(&current, "x".repeat(5000)).unwrap();
    let (log, _registry) = open(&Log { rotate_size: 2000, ..config(dir.path()) });
    log.line("first");
    assert!(log.stop(PATIENCE));
    assert_eq!(events(&current), ["first"]);
    assert_eq!(rotated(dir.path()).len(), 1);
}

#[test]
fn settings_changed_on_a_stalled_disk_come_into_force_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = stalled(dir.path());
    let healthy = dir.path().join("healthy");
    let (log, _registry) = open(&config(dir.path()));
    log.line("first");
    eventually("the writer to be stuck", || log.queue.pending() == 0);
    let change = Log { level: LevelFilter::Warn, ..config(&healthy) };
    assert!(matches!(log.reconfigure(&change), Err(ReconfigureError::Pending)));
    let mut reader = fs::File::open(&fifo).unwrap();
    assert!(log.flush(PATIENCE));
    log.line("below the level");
    log.level_line(Level::Warn, "tidegate", "second");
    assert!(log.stop(PATIENCE));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.ends_with(" info first\n"), "{text}");
    assert_eq!(events(&LogHandle::current_file(&healthy)), ["second"]);
}

/// A log whose standard error is as full as its disk.
fn start_without_stderr(config: &Log, registry: &Registry) -> LogHandle {
    let (queue, ends) = Queue::new(config, registry);
    let queue = Arc::new(queue);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let stderr = stderr::Stderr::from_file(full);
    let writer = writer::Writer::with_stderr(Arc::clone(&queue), ends, config, stderr);
    let beat = Arc::<Heartbeats>::default().register_one_of_many("log", WRITE_MAX);
    let thread = thread::spawn("log", move || writer.run(&beat)).unwrap();
    LogHandle { queue, thread: Some(thread), global: false }
}

mod child;
