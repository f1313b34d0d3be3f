//! Start, and failing to start: exit codes, what is told, and what a first run needs.

use std::net::TcpListener;
use std::process::Output;
use std::time::{Duration, Instant};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start, command};
use crate::support::sandbox::{Sandbox, free_port, loopback};
use crate::support::stream::Dialect;

/// Runs the daemon with this file; it must end by itself.
fn run(sandbox: &Sandbox, file: &str) -> Output {
    let path = sandbox.write("bad.toml", file);
    let mut child = command(sandbox)
        .args(["run", "--config"])
        .arg(path)
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + crate::support::patience(Duration::from_secs(5));
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("it runs with\n{file}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn a_bad_config_is_refused_with_every_fault_its_line_and_its_remedy() {
    let sandbox = Sandbox::new();
    let output = run(
        &sandbox,
        "[server]\nworkers = 0\nbody_maxx = \"1MiB\"\nhead_timeout = \"soon\"\n\n[[model]]\nname = \"m\"\nprimary = \"nowhere/x\"\n",
    );
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for (line, words) in [(2, "workers"), (3, "body_max"), (4, "head_timeout"), (8, "nowhere")] {
        let told =
            text.lines().any(|told| told.contains(&format!(":{line}")) && told.contains(words));
        assert!(told, "line {line}, {words}:\n{text}");
    }
}

#[test]
fn a_config_that_is_no_toml_or_not_there_is_refused() {
    let sandbox = Sandbox::new();
    for file in ["[server\n", "listen", "a = [", "\u{0}"] {
        let output = run(&sandbox, file);
        assert_eq!(
            output.status.code(),
            Some(78),
            "{file:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.stderr.is_empty());
    }
    let output =
        command(&sandbox).args(["run", "--config", "/nonexistent/x.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/x.toml"));
}

#[test]
fn a_port_in_use_is_told_with_its_address() {
    let sandbox = Sandbox::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let other = loopback(free_port());
    for (listen, ops, key) in [(address, other, "server.listen"), (other, address, "ops.listen")] {
        let output = run(&sandbox, &Conf::new().render(listen, ops));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&address.to_string()) && text.contains("in use"), "{text}");
        assert!(text.contains(key), "which setting? {text}");
    }
}

#[test]
fn an_open_gateway_on_a_network_address_is_refused() {
    let sandbox = Sandbox::new();
    let port = free_port();
    for address in ["0.0.0.0", "[::]", "192.0.2.1"] {
        let file = format!(
            "[server]\nlisten = \"{address}:{port}\"\n[ops]\nlisten = \"127.0.0.1:{}\"\n",
            free_port()
        );
        let output = run(&sandbox, &file);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{address}: {text}");
        assert!(text.contains("key"), "it must say what to do: {text}");
    }
}

#[test]
fn the_command_line_has_the_usual_exit_codes() {
    let sandbox = Sandbox::new();
    let code = |args: &[&str]| command(&sandbox).args(args).output().unwrap();
    let version = code(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(
        String::from_utf8_lossy(&version.stdout).trim(),
        format!("tidegate {}", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(code(&["--help"]).status.code(), Some(0));
    assert_eq!(code(&["no-such-command"]).status.code(), Some(64));
    assert_eq!(code(&[]).status.code(), Some(64));
    let good = sandbox.write("good.toml", "");
    let bad = sandbox.write("bad.toml", "x = 1");
    assert_eq!(code(&["check", good.to_str().unwrap()]).status.code(), Some(0));
    assert_eq!(code(&["check", bad.to_str().unwrap()]).status.code(), Some(78));
    assert_eq!(code(&["config", "schema"]).status.code(), Some(0));
    let print = code(&["config", "print"]);
    assert_eq!(print.status.code(), Some(0));
    // Whoever closes the pipe has seen enough: no panic, no message.
    let pipe = std::process::Command::new("/bin/sh")
        .arg("-c")
        .arg(format!(
            "{:?} config schema | head -c 1 >/dev/null",
            crate::support::daemon::program()
        ))
        .output()
        .unwrap();
    assert!(pipe.stderr.is_empty(), "{}", String::from_utf8_lossy(&pipe.stderr));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(&sandbox).args(["config", "schema"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "an answer that could not be written is no success");
}

/// What is printed can be used: it is a config that means the same.
#[test]
fn a_printed_config_hides_secrets() {
    let sandbox = Sandbox::new();
    let file = sandbox.write(
        "c.toml",
        "[[upstream]]\nname = \"u\"\nkind = \"openai\"\nurl = \"http://127.0.0.1:1/v1\"\napi_key_env = \"UP\"\n",
    );
    let output = command(&sandbox)
        .env("UP", "SECRET-KEY")
        .args(["config", "print", "--config"])
        .arg(file)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("SECRET"), "{text}");
    assert!(text.contains("127.0.0.1:1"), "{text}");
}

#[test]
fn the_config_that_ships_runs_with_nothing_else_installed() {
    let sandbox = Sandbox::new();
    let shipped =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/tidegate.toml"))
            .unwrap();
    let (addr, ops) = (loopback(free_port()), loopback(free_port()));
    // On ports of the test's own.
    let text = shipped
        .replace("127.0.0.1:18789", &addr.to_string())
        .replace("127.0.0.1:18790", &ops.to_string());
    let text = if text.contains(&ops.to_string()) {
        text
    } else {
        format!("{text}\n[ops]\nlisten = \"{ops}\"\n")
    };
    let config = sandbox.write("tidegate.toml", text);
    let mut daemon = Daemon::spawn(&sandbox, &config, addr, ops, &Start::default());
    daemon.wait_ready().unwrap();
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello there", true));
    assert_eq!(answer.status(), 200);
    assert!(!daemon.log().contains(" warn "), "{}", daemon.log());
}

#[test]
fn it_starts_without_a_folder_that_it_may_write_to() {
    let sandbox = Sandbox::new();
    let start = Start {
        env: vec![("STATE_DIRECTORY".into(), "/proc/nonexistent".into())],
        ..Start::default()
    };
    let daemon = Daemon::start_with(&sandbox, &Conf::new(), &start);
    daemon.assert_well("without a state folder");
}

#[test]
fn it_is_ready_soon_and_small() {
    let sandbox = Sandbox::alone();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    eprintln!(
        "ready after {:?}, {} KiB, {} threads",
        daemon.ready_after,
        daemon.process().rss_kib(),
        daemon.process().threads().len()
    );
    // The budget (50 ms, 16 MB) is of the release build; this is the test's build.
    assert!(daemon.ready_after < daemon.allow(Duration::from_millis(500)));
    assert!(daemon.process().rss_kib() < 32 * 1024);
}

/// The port is usable again at once: a restart is not held up by old connections.
#[test]
fn a_restart_finds_its_port_free() {
    let sandbox = Sandbox::new();
    let (addr, ops) = (loopback(free_port()), loopback(free_port()));
    let config = sandbox.write("tidegate.toml", Conf::new().render(addr, ops));
    for _ in 0..4 {
        let mut daemon = Daemon::spawn(&sandbox, &config, addr, ops, &Start::default());
        daemon.wait_ready().unwrap();
        let mut clients: Vec<_> = (0..20).map(|_| daemon.connect()).collect();
        for wire in &mut clients {
            assert_eq!(wire.ask(ask::get("/api/version")).status(), 200);
        }
        drop(daemon);
    }
}
