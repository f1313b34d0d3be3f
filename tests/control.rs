//! The control socket: who may use it, what hostile input does to it, and every command on it, with its
//! effect seen from outside.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, command};
use crate::support::patience;
use crate::support::sandbox::Sandbox;
use crate::support::wire;

/// The socket of the daemon in this sandbox.
fn socket(sandbox: &Sandbox) -> PathBuf {
    sandbox.path("state/control/tidegate.sock")
}

/// What comes back for these bytes, until the daemon closes the connection.
fn exchange(sandbox: &Sandbox, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket(sandbox)).unwrap();
    stream.set_read_timeout(Some(patience(Duration::from_secs(20)))).unwrap();
    // The answer may come, and the connection go, before everything is written.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn status_of(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status.and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{text:?}"))
}

/// Runs a command against the daemon of this sandbox.
fn run(sandbox: &Sandbox, daemon: &Daemon, args: &[&str]) -> Output {
    command(sandbox).args(args).arg("--config").arg(&daemon.config).output().unwrap()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_socket_is_its_owners_alone_and_goes_with_the_daemon() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &Conf::new());
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket(&sandbox)), 0o600);
    assert_eq!(mode(&sandbox.path("state/control")), 0o700);
    let answer = exchange(&sandbox, &ask::get("/limits"));
    assert_eq!(status_of(&answer), 200);
    assert!(daemon.stop().success());
    assert!(!socket(&sandbox).exists());
    let late = run(&sandbox, &daemon, &["stop"]);
    assert_eq!(late.status.code(), Some(69), "{late:?}");
}

#[test]
fn reload_reopen_and_stop_are_orders_with_an_outcome_and_an_event() {
    let sandbox = Sandbox::new();
    let mut daemon = Daemon::start(&sandbox, &Conf::new());
    assert!(run(&sandbox, &daemon, &["reopen"]).status.success());
    daemon.rewrite(&Conf::new().model("added", "echo/x", &[]));
    let reloaded = json(&run(&sandbox, &daemon, &["reload", "--json"]));
    assert_eq!(reloaded["reloaded"], true);
    let list = daemon.ask(ask::get("/v1/models")).text();
    assert!(list.contains("added"), "{list}");
    // A configuration that is refused: its exit code, its reason, and the old one runs on.
    daemon.rewrite(&Conf::new().server("queue_max = \"many\""));
    let refused = run(&sandbox, &daemon, &["reload"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(65), "{text}");
    assert!(text.contains("queue_max"), "{text}");
    assert!(daemon.ask(ask::get("/v1/models")).text().contains("added"));
    let log = daemon.log();
    let told = |what: &str| log.lines().any(|l| l.contains("control_order") && l.contains(what));
    assert!(told("/reopen") && told("/reload") && told("code=invalid_config"), "{log}");
    assert!(run(&sandbox, &daemon, &["stop"]).status.success());
    let ended = daemon.wait_exit(Duration::from_secs(10)).expect("it stops");
    assert!(ended.success());
}

#[test]
fn what_is_only_shown_comes_over_the_socket_or_from_the_ops_plane() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let over_the_socket = json(&run(&sandbox, &daemon, &["limits", "--json"]));
    std::fs::remove_file(socket(&sandbox)).unwrap();
    let from_the_plane = json(&run(&sandbox, &daemon, &["limits", "--json"]));
    let names = |document: &Value| -> Vec<String> {
        let rows = document["limits"].as_array().unwrap();
        rows.iter().map(|row| row["limit"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&over_the_socket), names(&from_the_plane));
    let answer = wire::ask(daemon.ops, ask::post("/stop", &serde_json::json!({})));
    assert_ne!(answer.status(), 200, "the write side is not on the ops plane");
    daemon.assert_well("after that");
}
