//! What needs a process of its own: its standard error, the global logger, the panic hook. The
//! test binary runs itself, with only `in_the_child`, and a variable that says what to do.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;

const MODE: &str = "TIDEGATE_TEST_LOG_CHILD";
const RESULT: &str = "TIDEGATE_TEST_LOG_RESULT";
const LINES: u64 = 3000;

/// Starts the child; `stderr` is where its standard error goes.
fn start_child(mode: &str, result: &Path, stderr: Stdio) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    as_child(&mut command, mode, result).stderr(stderr).spawn().unwrap()
}

/// Arguments and environment of the child.
fn as_child<'c>(command: &'c mut Command, mode: &str, result: &Path) -> &'c mut Command {
    let (_, test) = concat!(module_path!(), "::in_the_child").split_once("::").unwrap();
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(MODE, mode)
        .env(RESULT, result)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
}

/// Waits for the child's orderly end.
fn wait(mut child: Child) {
    eventually("the end of the child", || child.try_wait().unwrap().is_some());
    assert!(child.wait().unwrap().success());
}

/// What the child found: lines written, dropped, errors, and whether it stopped cleanly.
#[derive(Debug, PartialEq)]
struct Result {
    written: u64,
    dropped: u64,
    errors: u64,
    clean: bool,
}

fn result(path: &Path) -> Result {
    let text = fs::read_to_string(path).unwrap();
    let numbers: Vec<u64> = text.split(' ').map(|n| n.parse().unwrap()).collect();
    Result { written: numbers[0], dropped: numbers[1], errors: numbers[2], clean: numbers[3] == 1 }
}

fn run(mode: &str, stderr: Stdio) -> Result {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result");
    wait(start_child(mode, &path, stderr));
    result(&path)
}

/// Not a test of its own but the other side of those below, whose results they check.
#[test]
fn in_the_child() {
    let Ok(mode) = std::env::var(MODE) else { return };
    let registry = Registry::default();
    let config = Log { dir: None, pending_max: 10_000, ..config(Path::new("")) };
    let handle = start(&config, &registry, &Arc::default()).unwrap();
    assert!(matches!(start(&config, &registry, &Arc::default()), Err(StartError::Running)));
    match &*mode {
        "lines" => {
            for n in 0..LINES {
                log::info!(n; "line");
            }
        }
        "panic" => {
            let broken = thread::spawn("broken", || {
                let unwound = std::panic::catch_unwind(|| panic!("two\nlines"));
                log::info!(unwound = unwound.is_err(); "after");
            });
            broken.unwrap().join();
        }
        "limited" => {
            for n in 0..100 {
                crate::log_limited!(Level::Warn, "flood", n);
            }
            crate::log_limited!(Level::Warn, "other");
        }
        mode => panic!("mode {mode}"),
    }
    let clean = handle.stop(Duration::from_secs(1));
    log::info!("after the end");
    let numbers = [
        counter(&registry, "tidegate_log_lines_total"),
        dropped(&registry),
        counter(&registry, "tidegate_log_write_errors_total"),
        u64::from(clean),
    ];
    let text = numbers.map(|n| n.to_string()).join(" ");
    fs::write(std::env::var_os(RESULT).unwrap(), text).unwrap();
}

#[test]
fn a_full_standard_error_costs_lines_and_nothing_else() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let result = run("lines", full.into());
    assert_eq!((result.written, result.dropped, result.clean), (0, LINES, true), "{result:?}");
    assert!(result.errors > 0);
}

#[test]
fn a_standard_error_that_nobody_holds_any_more_costs_lines_and_nothing_else() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let result = run("lines", writer.into());
    assert_eq!((result.written, result.dropped, result.clean), (0, LINES, true), "{result:?}");
    assert!(result.errors > 0);
}

#[test]
fn a_closed_standard_error_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result");
    // The shell closes the descriptor and becomes the child.
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>&-"]).arg(std::env::current_exe().unwrap());
    wait(as_child(&mut shell, "lines", &path).spawn().unwrap());
    let result = result(&path);
    assert_eq!((result.written + result.dropped, result.clean), (LINES, true), "{result:?}");
}

#[test]
fn a_standard_error_that_nobody_reads_does_not_keep_the_process_from_ending() {
    let (reader, writer) = std::io::pipe().unwrap();
    let result = run("lines", writer.into());
    // Some 64 KiB fit into the pipe; the writer sticks in the middle of the rest.
    assert!(!result.clean && result.written < LINES, "{result:?}");
    drop(reader);
}

#[test]
fn a_standard_error_that_is_non_blocking_and_read_slowly_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result");
    let (mut reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let child = start_child("lines", &path, writer.into());
    let mut text = Vec::new();
    let mut part = [0; 1000];
    loop {
        match reader.read(&mut part).unwrap() {
            0 => break,
            n => text.write_all(&part[..n]).unwrap(),
        }
    }
    wait(child);
    let result = result(&path);
    assert_eq!((result.written, result.dropped, result.clean), (LINES, 0, true), "{result:?}");
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.lines().count() as u64, LINES);
    assert!(text.lines().enumerate().all(|(n, line)| line.ends_with(&format!(" info line n={n}"))));
}

fn stderr_of(mode: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let stderr = dir.path().join("stderr");
    let result = dir.path().join("result");
    wait(start_child(mode, &result, File::create(&stderr).unwrap().into()));
    fs::read_to_string(stderr).unwrap()
}

#[test]
fn a_panic_is_one_line_and_unwinding_goes_on() {
    let text = stderr_of("panic");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    let (_, panic) = lines[0].split_once(" error panic thread=broken place=").unwrap();
    assert!(panic.contains("child.rs:") && panic.ends_with(" message=\"two\\nlines\""), "{text}");
    assert!(lines[1].ends_with(" info after unwound=true"), "{text}");
}

#[test]
fn a_flood_is_limited_at_its_own_place() {
    let text = stderr_of("limited");
    assert_eq!(text.matches(" warn flood n=").count(), 10, "{text}");
    assert_eq!(text.matches(" warn other\n").count(), 1, "{text}");
}
