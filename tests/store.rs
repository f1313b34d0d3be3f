//! What is kept on disk, and every way in which the disk can fail: the gateway answers throughout,
//! says what is degraded, and goes on by itself.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::conf::Conf;
use crate::support::daemon::{self, Daemon, Start};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::{ask, patience, wire};

/// Small, and with marks that no disk of a test machine meets by itself.
const STORE: &str = "[store]\nballast = \"64KiB\"\nfree_warn = 0\nfree_shed = 0\nfree_refuse = 0\n";

fn conf() -> Conf {
    Conf::new().text(STORE)
}

/// Longer than other waits: the store looks once a second, and tries again after up to 5.
fn eventually(what: &str, daemon: &Daemon, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience(Duration::from_secs(20));
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: {}\n{}", check(daemon), daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The line of the check `store`.
fn check(daemon: &Daemon) -> String {
    let text = daemon.readyz().map(|answer| answer.text()).unwrap_or_default();
    text.lines().find(|line| line.contains("]store ")).unwrap_or_default().to_owned()
}

fn degraded(daemon: &Daemon, word: &str) -> bool {
    let line = check(daemon);
    line.contains("degraded") && line.contains(word)
}

fn up(daemon: &Daemon) -> bool {
    let metrics = daemon.metrics();
    let up = |file| metrics.sum("tidegate_store_up", &[("file", file)]) == Some(1.0);
    up("durable") && up("metrics") && !check(daemon).contains("degraded")
}

/// It answers, and is ready.
fn serves(daemon: &Daemon) {
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello", false));
    assert_eq!(answer.status(), 200, "{}", daemon.log());
    assert_eq!(daemon.readyz().unwrap().status(), 200, "{}", daemon.log());
}

fn events(daemon: &Daemon, query: &str) -> Value {
    let answer = wire::ask(daemon.ops, ask::get(&format!("/events?{query}")));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.json()
}

fn count(daemon: &Daemon, kind: &str) -> usize {
    events(daemon, &format!("kind={kind}"))["events"].as_array().unwrap().len()
}

fn told(daemon: &Daemon, kind: &str) -> bool {
    count(daemon, kind) > 0
}

fn durable(sandbox: &Sandbox) -> PathBuf {
    sandbox.path("state/durable.db")
}

/// What another process sees of the events that are committed.
fn committed(path: &Path) -> i64 {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let found = Connection::open_with_flags(path, flags).and_then(|connection| {
        connection.busy_timeout(Duration::from_secs(2))?;
        connection.query_row("SELECT count(*) FROM events", [], |row| row.get(0))
    });
    found.unwrap_or_default()
}

fn aside(sandbox: &Sandbox) -> Vec<PathBuf> {
    let entries = fs::read_dir(sandbox.path("state")).unwrap();
    let broken = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("durable.db.corrupt-")
            && !name.ends_with("-wal")
            && !name.ends_with("-shm")
    };
    entries.map(|entry| entry.unwrap().path()).filter(broken).collect()
}

#[test]
fn events_outlive_a_restart_and_are_shown_by_the_command() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &conf());
    daemon.signal(Signal::HUP);
    eventually("kept", &daemon, || committed(&durable(&sandbox)) > 0 && told(&daemon, "reloaded"));
    assert!(daemon.stop().success());
    let leftover = fs::read_dir(sandbox.path("state")).unwrap().any(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.ends_with("-wal") || name.ends_with("-shm")
    });
    assert!(!leftover, "the files were closed");
    let daemon = Daemon::start(&sandbox, &conf());
    eventually("kept", &daemon, || events(&daemon, "")["kept"] == true);
    assert!(told(&daemon, "reloaded"));
    let mut command = daemon::command(&sandbox);
    command.args(["events", "--kind", "reloaded", "--since", "1h", "--ops"]);
    let output = command.arg(daemon.ops.to_string()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("reloaded"), "{text}");
    let refused = wire::ask(daemon.ops, ask::get("/events?since=yesterday"));
    assert_eq!(refused.status(), 400);
}

#[test]
fn usage_outlives_a_restart() {
    let sandbox = Sandbox::new();
    let conf = conf().text("[usage]\ncache_ttl = \"0s\"\n");
    let requests = |daemon: &Daemon| {
        let answer = wire::ask(daemon.ops, ask::get("/usage"));
        answer.json()["totals"]["requests"].as_u64().unwrap()
    };
    for before in 0..3 {
        let mut daemon = Daemon::start(&sandbox, &conf);
        serves(&daemon);
        eventually("summed", &daemon, || requests(&daemon) == before + 1);
        assert!(daemon.stop().success());
    }
}

#[test]
fn nothing_that_was_committed_is_lost_by_a_kill() {
    let sandbox = Sandbox::new();
    let mut before = 0;
    for round in 0..4 {
        let daemon = Daemon::start(&sandbox, &conf());
        let seen = || committed(&durable(&sandbox));
        assert!(seen() >= before, "round {round}: {} of {before} are there", seen());
        let mut last = seen();
        eventually("events are written", &daemon, || {
            daemon.signal(Signal::HUP);
            last = last.max(seen());
            last > before
        });
        // In the middle of whatever it does.
        before = last;
        daemon.signal(Signal::KILL);
        drop(daemon);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = Connection::open_with_flags(durable(&sandbox), flags).unwrap();
    let sound: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    assert!(committed(&durable(&sandbox)) >= before);
    assert!(aside(&sandbox).is_empty(), "a kill breaks no file");
}

/// Ways to break a file.
fn broken(bytes: &[u8]) -> [(&'static str, Vec<u8>); 4] {
    let random: Vec<u8> = (0..bytes.len()).map(|n| ((n * 7919) >> 3) as u8).collect();
    let mut headless = bytes.to_vec();
    headless[..100].fill(0);
    let mut scribbled = bytes.to_vec();
    let middle = 4096..scribbled.len();
    scribbled[middle].fill(0xa5);
    let cut = bytes[..bytes.len() / 2].to_vec();
    [("random bytes", random), ("cut", cut), ("no header", headless), ("scribbled over", scribbled)]
}

#[test]
fn a_broken_file_is_set_aside_at_the_start_with_an_event_and_a_new_one_made() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &conf());
    eventually("open", &daemon, || up(&daemon));
    assert!(daemon.stop().success());
    let good = fs::read(durable(&sandbox)).unwrap();
    for (n, (what, bytes)) in broken(&good).into_iter().enumerate() {
        fs::write(durable(&sandbox), &bytes).unwrap();
        let mut daemon = Daemon::start(&sandbox, &conf());
        serves(&daemon);
        eventually(what, &daemon, || up(&daemon) && told(&daemon, "store_quarantined"));
        let found = events(&daemon, "kind=store_quarantined");
        assert_eq!(found["events"][0]["level"], "error", "{what}: {found}");
        let kept = aside(&sandbox);
        assert_eq!(kept.len(), (n + 1).min(3), "{what}: no more than three are kept");
        // One that is a database after all may have been written to before it was found broken.
        let scribbled = |kept: &[u8]| kept.iter().filter(|byte| **byte == 0xa5).count() > 4096;
        let same = |kept: &[u8]| kept == bytes || (scribbled(&bytes) && scribbled(kept));
        assert!(kept.iter().any(|path| same(&fs::read(path).unwrap())), "{what}: as it was");
        assert!(daemon.stop().success());
    }
}

#[test]
fn a_file_that_somebody_writes_over_or_deletes_while_it_is_used_is_replaced() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &conf());
    eventually("open", &daemon, || up(&daemon));
    // What is in the log of changes only would not be touched.
    assert!(daemon.stop().success());
    let daemon = Daemon::start(&sandbox, &conf());
    eventually("open", &daemon, || up(&daemon));
    fs::write(durable(&sandbox), "no database at all ".repeat(1000)).unwrap();
    eventually("set aside", &daemon, || told(&daemon, "store_quarantined") && up(&daemon));
    serves(&daemon);
    fs::remove_file(durable(&sandbox)).unwrap();
    eventually("made again", &daemon, || told(&daemon, "store_file_lost") && up(&daemon));
    assert!(durable(&sandbox).exists());
    fs::remove_dir_all(sandbox.path("state")).unwrap();
    serves(&daemon);
    eventually("made again", &daemon, || told(&daemon, "store_lost") && up(&daemon));
    assert!(durable(&sandbox).exists());
    serves(&daemon);
    daemon.assert_well("after all of it");
}

#[test]
fn a_file_of_a_newer_version_is_left_as_it_is_and_the_way_out_is_told() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &conf());
    eventually("open", &daemon, || up(&daemon));
    assert!(daemon.stop().success());
    let newer = Connection::open(durable(&sandbox)).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let before = fs::read(durable(&sandbox)).unwrap();
    let mut daemon = Daemon::start(&sandbox, &conf());
    eventually("refused", &daemon, || degraded(&daemon, "newer tidegate"));
    serves(&daemon);
    // Events go on in memory.
    daemon.signal(Signal::HUP);
    eventually("in memory", &daemon, || told(&daemon, "reloaded"));
    assert_eq!(events(&daemon, "")["kept"], false);
    assert_eq!(fs::read(durable(&sandbox)).unwrap(), before);
    fs::rename(durable(&sandbox), sandbox.path("newer.db")).unwrap();
    eventually("goes on without a restart", &daemon, || up(&daemon));
    assert!(daemon.stop().success());
}

#[test]
fn a_second_daemon_on_the_same_folder_serves_without_it_and_takes_over() {
    let sandbox = Sandbox::new();
    let mut first = Daemon::start(&sandbox, &conf());
    eventually("open", &first, || up(&first));
    let second = Daemon::start(&sandbox, &conf());
    let pid = first.process().0.to_string();
    eventually("refused", &second, || degraded(&second, &pid));
    serves(&second);
    assert!(up(&first), "the first one is not disturbed");
    assert!(first.stop().success());
    eventually("taken over", &second, || up(&second));
}

#[test]
fn a_folder_that_cannot_be_written_degrades_the_store_until_it_can() {
    let sandbox = Sandbox::new();
    // Nobody makes files there, whatever his rights are.
    let link = sandbox.path("disk");
    symlink("/proc/self", &link).unwrap();
    let conf = conf().text("[state]\ndir = \"disk/state\"\n");
    let daemon = Daemon::start(&sandbox, &conf);
    eventually("told", &daemon, || degraded(&daemon, "disk/state"));
    serves(&daemon);
    fs::create_dir(sandbox.path("good")).unwrap();
    fs::remove_file(&link).unwrap();
    symlink(sandbox.path("good"), &link).unwrap();
    eventually("goes on", &daemon, || up(&daemon));
    assert!(told(&daemon, "store_down") && sandbox.path("good/state/durable.db").exists());
}

#[test]
fn a_disk_with_little_room_sheds_history_first_and_then_refuses_and_goes_on_with_room() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &conf());
    let ballast = sandbox.path("state/ballast");
    eventually("a ballast", &daemon, || ballast.exists() && up(&daemon));
    let marks = |warn: u8, shed: u8, refuse: u8| {
        let text = format!(
            "[store]\nballast = \"64KiB\"\ndisk_counted = \"1024GiB\"\nfree_warn = {warn}\n\
             free_shed = {shed}\nfree_refuse = {refuse}\n"
        );
        daemon.rewrite(&Conf::new().text(&text));
        daemon.signal(Signal::HUP);
    };
    marks(100, 0, 0);
    eventually("low", &daemon, || degraded(&daemon, "little room") && told(&daemon, "disk_low"));
    assert!(ballast.exists());
    marks(100, 100, 0);
    eventually("shed", &daemon, || told(&daemon, "disk_shed"));
    assert!(ballast.exists(), "durable jobs are still taken");
    marks(100, 100, 100);
    eventually("refused", &daemon, || degraded(&daemon, "nearly full") && !ballast.exists());
    serves(&daemon);
    assert!(told(&daemon, "disk_full"), "it is in memory");
    marks(0, 0, 0);
    eventually("goes on", &daemon, || up(&daemon) && ballast.exists());
    eventually("kept after all", &daemon, || {
        let found = Connection::open(durable(&sandbox)).unwrap().query_row(
            "SELECT count(*) FROM events WHERE kind = 'disk_full'",
            [],
            |row| row.get::<_, i64>(0),
        );
        found.is_ok_and(|found| found == 1)
    });
}

/// Whether this process may mount something, in a world of its own.
fn mounts() -> bool {
    let mut command = Command::new("unshare");
    command.args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"]);
    command.output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_disk_that_is_really_full_refuses_what_it_cannot_take_and_nothing_else() {
    if !mounts() {
        // The marks are tried above; there is nothing here that could be filled.
        return;
    }
    let sandbox = Sandbox::new();
    let state = sandbox.path("state");
    let start = Start { tmpfs: Some((state.clone(), "1m".to_owned())), ..Start::default() };
    let daemon = Daemon::start_with(&sandbox, &conf(), &start);
    eventually("open", &daemon, || up(&daemon));
    // As the daemon sees it.
    let inside = PathBuf::from(format!("/proc/{}/root", daemon.process().0))
        .join(state.strip_prefix("/").unwrap());
    let filler = inside.join("filler");
    let fill = || {
        let mut file = fs::File::options().append(true).create(true).open(&filler).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    };
    eventually("found full", &daemon, || {
        fill();
        daemon.signal(Signal::HUP);
        degraded(&daemon, "no room on the disk")
    });
    serves(&daemon);
    assert!(!inside.join("ballast").exists(), "its room is given free");
    fs::remove_file(&filler).unwrap();
    eventually("goes on", &daemon, || up(&daemon) && inside.join("ballast").exists());
    let kept = || {
        let labels = [("file", "durable"), ("outcome", "done")];
        daemon.metrics().sum("tidegate_store_jobs_total", &labels).unwrap_or_default()
    };
    let before = kept();
    daemon.signal(Signal::HUP);
    eventually("and writes", &daemon, || kept() > before);
    assert!(events(&daemon, "")["kept"] == true && told(&daemon, "store_full"));
    daemon.assert_well("after a full disk");
}
