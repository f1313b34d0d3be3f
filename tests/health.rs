//! How the process is: threads that hang, checks, the status, and what is tried when it is bad.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start};
use crate::support::patience;
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::{self, Answer};

fn ops(daemon: &Daemon, path: &str) -> Answer {
    wire::ask(daemon.ops, ask::get(path))
}

fn health(daemon: &Daemon) -> Value {
    serde_json::from_str(&ops(daemon, "/health").text()).unwrap()
}

/// Waits for longer than `assert_eventually!` does.
fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < patience(limit), "never held: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    begun.elapsed()
}

#[test]
fn a_worker_that_hangs_is_named_with_what_it_blocks_on_while_the_others_answer() {
    let sandbox = Sandbox::new();
    let env = vec![("TIDEGATE_DRILLS".to_owned(), "1".to_owned())];
    let start = Start { env, ..Start::default() };
    let daemon = Daemon::start_with(&sandbox, &Conf::new().server("workers = 2"), &start);
    let mut hung = daemon.connect();
    hung.send(ask::chat(Dialect::OpenAi, "echo/drill-deadlock", "hi", false));
    let told =
        || daemon.log().lines().find(|line| line.contains("thread_stalled")).map(str::to_owned);
    let took = within(Duration::from_secs(30), "a stall is told", || {
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello", true));
        assert_eq!(answer.status(), 200);
        told().is_some()
    });
    eprintln!("a worker that hangs was told after {took:?}");
    let line = told().unwrap();
    assert!(line.contains("data-") && line.contains("a lock of rank Drill"), "{line}");
    if cfg!(target_os = "linux") {
        assert!(line.contains("state=S"), "{line}");
    }
    let verbose = ops(&daemon, "/readyz?verbose").text();
    assert!(verbose.contains("[+]threads degraded: data-"), "{verbose}");
    assert_eq!(ops(&daemon, "/livez").status(), 200, "the others go on");
    let health_now = health(&daemon);
    assert_eq!((&health_now["status"], &health_now["ok"]), (&"degraded".into(), &true.into()));
    assert!(health_now["threads"]["late"][0]["why"].as_str().unwrap().contains("rank Drill"));
    assert_eq!(daemon.metrics().sum("tidegate_health_status", &[]), Some(1.0));
    let state = daemon.metrics().sum("tidegate_check_state", &[("check", "threads")]);
    assert_eq!(state, Some(1.0));

    // And all is well again when it goes on.
    let released = daemon.ask(ask::chat(Dialect::OpenAi, "echo/drill-release", "hi", false));
    assert_eq!(released.status(), 200);
    assert_eq!(hung.answer().unwrap().status(), 200);
    within(Duration::from_secs(10), "it is told that the thread goes on", || {
        daemon.log().contains("thread_went_on") && health(&daemon)["status"] == "healthy"
    });
    assert_eq!(daemon.log().matches("thread_stalled").count(), 1);
}

#[test]
fn without_leave_there_are_no_drills() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "echo/drill-deadlock", "hi", false));
    assert_eq!(answer.status(), 200, "a name like any other");
}
