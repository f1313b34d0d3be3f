//! `tidegate top`: on a terminal, without one, and as JSON.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, command};
use crate::support::patience;
use crate::support::process::Process;
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;

/// A terminal, and what came to its screen.
struct Terminal {
    ours: OwnedFd,
    theirs: File,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    fn new(columns: u16, rows: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let flags = rustix::fs::OFlags::NOCTTY.bits() as i32;
        let theirs = File::options().read(true).write(true).custom_flags(flags).open(name).unwrap();
        let terminal = Terminal { ours, theirs, screen: Arc::default() };
        terminal.resize(columns, rows);
        let (mut from, screen) =
            (File::from(terminal.ours.try_clone().unwrap()), Arc::clone(&terminal.screen));
        // Ends with the terminal's other end.
        std::thread::spawn(move || {
            let mut bytes = [0; 8192];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                screen.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        terminal
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.theirs, size).unwrap();
    }

    fn mode(&self) -> String {
        format!("{:?}", tcgetattr(&self.theirs).unwrap())
    }

    fn press(&self, keys: &str) {
        rustix::io::write(&self.ours, keys.as_bytes()).unwrap();
    }

    /// Everything that was drawn.
    fn drawn(&self) -> String {
        self.screen.lock().unwrap().clone()
    }

    /// The last screen that is whole, without its sequences.
    fn last(&self) -> Vec<String> {
        let drawn = self.drawn();
        let frames: Vec<&str> = drawn.split("\x1b[H").collect();
        let whole = frames.iter().rev().find(|frame| frame.ends_with("\x1b[J"));
        whole.map_or_else(Vec::new, |frame| frame.split('\n').map(bare).collect())
    }

    fn start(&self, sandbox: &Sandbox, daemon: &Daemon) -> Child {
        let stdio = || Stdio::from(self.theirs.try_clone().unwrap());
        let mut top = command(sandbox);
        top.args(["top", "--config"]).arg(&daemon.config).stdin(stdio()).stdout(stdio());
        top.stderr(stdio()).spawn().unwrap()
    }
}

/// A line without what moves the cursor and colours.
fn bare(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\x1b') {
        out.push_str(before);
        let end = after.find(|c: char| c.is_ascii_alphabetic()).map_or(after.len(), |end| end + 1);
        rest = &after[end..];
    }
    (out + rest).trim_end_matches('\r').to_owned()
}

fn end(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + patience(Duration::from_secs(10));
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "top does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Requests in the background for as long as it is held.
struct Traffic(Arc<AtomicBool>);

impl Traffic {
    fn start(daemon: &Daemon) -> Self {
        let (over, addr) = (Arc::new(AtomicBool::new(false)), daemon.addr);
        let seen = Arc::clone(&over);
        std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                crate::support::wire::ask(addr, ask::chat(Dialect::OpenAi, "echo", "a b", true));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Traffic(over)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(60));
    }
}

#[test]
fn a_terminal_shows_it_live_takes_its_size_and_gets_everything_back() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let traffic = Traffic::start(&daemon);
    let terminal = Terminal::new(100, 30);
    let before = terminal.mode();
    let mut top = terminal.start(&sandbox, &daemon);
    let line = |begin: &str| terminal.last().into_iter().find(|line| line.starts_with(begin));
    assert_eventually!(
        line("REQUESTS").is_some_and(|line| !line.contains(" 0.0/s   errors")),
        "{:?}",
        terminal.last()
    );
    assert!(line("tidegate ").unwrap().contains("ready"), "{:?}", terminal.last());
    assert!(line("FIRST TOKEN").unwrap().contains("p95"));
    assert!(terminal.last().iter().any(|line| line.starts_with("echo ")), "{:?}", terminal.last());
    assert_ne!(terminal.mode(), before);
    assert!(terminal.drawn().starts_with("\x1b[?1049h\x1b[?25l"));

    terminal.resize(40, 10);
    Process(top.id()).signal(Signal::WINCH);
    assert_eventually!(
        terminal.last().len() <= 10
            && terminal.last().iter().all(|line| line.chars().count() <= 40),
        "{:?}",
        terminal.last()
    );
    terminal.press("q");
    assert_eq!(end(&mut top).code(), Some(0));
    assert_eq!(terminal.mode(), before);
    assert_eventually!(terminal.drawn().ends_with("\x1b[?25h\x1b[?1049l"));
    drop(traffic);
}

#[test]
fn a_signal_gives_the_terminal_back_and_a_daemon_that_ends_is_told() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &Conf::new());
    let terminal = Terminal::new(100, 30);
    let before = terminal.mode();
    let mut top = terminal.start(&sandbox, &daemon);
    assert_eventually!(terminal.last().iter().any(|line| line.contains("ready")));
    daemon.stop();
    assert_eventually!(
        terminal.last().first().is_some_and(|line| line.contains("NO ANSWER")),
        "{:?}",
        terminal.last()
    );
    Process(top.id()).signal(Signal::TERM);
    assert_eq!(end(&mut top).code(), Some(0));
    assert_eq!(terminal.mode(), before);
    assert_eventually!(terminal.drawn().ends_with("\x1b[?25h\x1b[?1049l"));
}

#[test]
fn without_a_terminal_it_is_one_plain_screen_or_lines_of_json() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let _traffic = Traffic::start(&daemon);
    let ops = daemon.ops.to_string();
    let run = |args: &[&str]| {
        let output = command(&sandbox).arg("top").args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, screen) = run(&["--ops", &ops]);
    assert_eq!(code, Some(0));
    assert!(!screen.contains('\x1b') && screen.contains("UPSTREAM") && screen.contains("EVENTS"));
    let (code, lines) = run(&["--json", "--count", "2", "--ops", &ops]);
    assert_eq!(code, Some(0));
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[1]["requests_per_second"].as_f64().unwrap() > 1.0, "{}", lines[1]);
    assert!(lines[1]["first_token_seconds"]["p50"].as_f64().unwrap() > 0.0, "{}", lines[1]);
    assert_eq!(lines[1]["phase"], "ready");
    drop(daemon);
    let (code, nothing) = run(&["--once", "--ops", &ops]);
    assert!(code.is_some_and(|code| code != 0) && nothing.is_empty(), "{code:?} {nothing}");
}
