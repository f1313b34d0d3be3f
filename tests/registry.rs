//! The registry of limits of a running daemon: it is whole, it holds under load, and what a load took
//! is given back.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use serde_json::Value;
use tidegate::config::schema::{self, Shape};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, command};
use crate::support::peers::{FakeUpstream, answers};
use crate::support::sandbox::{Sandbox, free_port};
use crate::support::stream::Dialect;
use crate::support::wire;
use crate::tidy;

/// What stays after a load because it is kept for the next one: caches, pools, histories, threads.
/// The ops plane is busy with the very question.
fn stays(limit: &str, owner: &str) -> bool {
    let kept = [
        "alerts.active_max",
        "alerts.groups_max",
        "alerts.limits_max",
        "alerts.past_max",
        "alerts.series_max",
        "cache.bytes_max",
        "cache.entries_max",
        "catalog.models_max",
        "catalog.show_bytes_max",
        "catalog.shows_max",
        "catalog.threads_max",
        "checks.entries_max",
        "checks.threads_max",
        "checks_max",
        "config.aside_max",
        "config.damaged_max",
        "config.rejected_max",
        "config.versions_max",
        "descriptors_max",
        "events.history_max",
        "log.recent_max",
        "log.recent_bytes",
        "events.kinds_max",
        "heartbeats_max",
        "gen_ai.models_max",
        "history.disk_max",
        "history.kept_series_max",
        "history.looks_max",
        "history.memory_max",
        "history.series_max",
        "log.keep_files",
        "log.pending_bytes",
        "log.pending_max",
        "metrics.series_max",
        "nodes.devices_max",
        "nodes.idempotency_max",
        "nodes.pairings_max",
        "nodes.presence_max",
        "nodes.runs_kept_max",
        "nodes.sessions_max",
        "nodes.idempotency_bytes",
        "nodes.idempotency_max",
        "nodes.reports_bytes",
        "nodes.reports_max",
        "nodes.writers_max",
        "overload.memory_max",
        "overload.samples_max",
        "overload.trimmers_max",
        "recovery.attempts_max",
        "resolver.names_max",
        "resources.day_max",
        "resources.hour_max",
        "resolver.threads_max",
        "server.addresses_max",
        "store.durable_max",
        "store.events_max",
        "store.metrics_max",
        "threads",
        "upstream.breakers_max",
        "upstream.buffers_max",
        "upstream.idle_max",
        "usage.days_max",
        "usage.keys_max",
        "usage.reports_max",
        "usage.rows_max",
        "usage.sessions_max",
    ];
    owner == "ops" || kept.contains(&limit)
}

/// Settings of which nothing is held: from there on something else happens.
const THRESHOLDS: [&str; 3] =
    ["auth.failures_max", "hooks.failures_max", "upstream.breaker_failures_max"];

/// One row of `GET /limits`.
#[derive(Debug)]
struct Row {
    now: Option<u64>,
    max: u64,
    high_water: u64,
    setting: bool,
}

type Limits = BTreeMap<(String, String), Row>;

fn limits(daemon: &Daemon) -> Limits {
    let answer = wire::ask(daemon.ops, ask::get("/limits"));
    assert_eq!(answer.status(), 200);
    read(&answer.json())
}

fn read(document: &Value) -> Limits {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let mut found = Limits::new();
    for row in document["limits"].as_array().unwrap() {
        assert!(!text(row, "consequence").is_empty(), "{row}");
        assert!(["entries", "bytes"].contains(&&*text(row, "unit")), "{row}");
        assert_eq!(row["each"] == true, row["now"].is_null(), "{row}");
        let number = |key: &str| row[key].as_u64().unwrap();
        let (max, high_water) = (number("max"), number("high_water"));
        let setting = row["setting"] == row["limit"];
        let limit = Row { now: row["now"].as_u64(), max, high_water, setting };
        let name = (text(row, "limit"), text(row, "owner"));
        assert!(found.insert(name, limit).is_none(), "twice: {row}");
    }
    found
}

/// What holds more than it may; a limit of 0 on connections of an address means none.
fn above(limits: &Limits) -> Vec<String> {
    let above = limits.iter().filter(|((name, _), row)| {
        let off = name == "server.connections_per_address_max" && row.max == 0;
        !off && row.now.is_some_and(|now| now > row.max)
    });
    above.map(|(name, row)| format!("{name:?} {row:?}")).collect()
}

/// Requests of many kinds, good and bad, some of them left early.
fn load(daemon: &Daemon, over: &AtomicBool) {
    let mut round = 0;
    while !over.load(Ordering::Relaxed) {
        round += 1;
        for dialect in [Dialect::OpenAi, Dialect::Ollama] {
            for model in ["m", "ol/x", "echo", "nobody"] {
                for stream in [true, false] {
                    daemon.ask(ask::chat(dialect, model, &"word ".repeat(round % 50), stream));
                }
            }
            let mut leaving = daemon.connect();
            leaving.send(ask::chat(dialect, "m", "leave", true));
        }
        for path in ["/v1/models", "/api/tags", "/api/ps", "/nowhere"] {
            daemon.ask(ask::get(path));
        }
        daemon.ask(format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(9000)));
        let _ = daemon.connect().try_send(ask::post_with("/api/chat", "", b"{"));
    }
}

#[test]
fn every_container_of_a_daemon_under_load_is_within_a_limit_and_gives_back_what_it_took() {
    let sandbox = Sandbox::new();
    let upstreams = [Dialect::OpenAi, Dialect::Ollama].map(|dialect| {
        FakeUpstream::start(dialect, |call| {
            answers::catalog(call).unwrap_or_else(|| answers::good(call, "one two three"))
        })
    });
    let conf = |extra: &str| {
        Conf::new()
            .log(&format!("dir = {:?}", sandbox.path("logs")))
            .fake("oa", &upstreams[0], "concurrency_max = 2")
            .fake("ol", &upstreams[1], "")
            .model("m", "oa/x", &["ol/x"])
            .text(extra)
    };
    let daemon = Daemon::start(&sandbox, &conf(""));
    let before = limits(&daemon);
    let over = AtomicBool::new(false);
    let mut names = BTreeSet::new();
    let mut busy = BTreeSet::new();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| load(&daemon, &over));
        }
        for look in 0..40 {
            let limits = limits(&daemon);
            if look < 39 {
                assert_eq!(above(&limits), Vec::<String>::new(), "look {look}");
            }
            for ((name, owner), row) in limits {
                if row.high_water > 0 && owner != "ops" {
                    busy.insert(name.clone());
                }
                names.insert(name);
            }
            if look % 10 == 5 {
                daemon
                    .rewrite(&conf(&format!("[[model]]\nname = \"n{look}\"\nprimary = \"echo\"")));
                daemon.signal(Signal::HUP);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        over.store(true, Ordering::Relaxed);
    });
    daemon.assert_well("after the load");

    // Every container names limits that there are.
    for (file, container, limits) in tidy::growing() {
        for limit in limits.iter().filter(|limit| *limit != "configuration") {
            assert!(names.contains(limit), "{file} {container}: no limit {limit:?} in {names:?}");
        }
    }
    // The gauges are alive: what such a load must touch was touched.
    for name in [
        "server.connections_max",
        "server.exchanges_max",
        "server.head_max",
        "server.headers_max",
        "server.target_max",
        "server.body_max",
        "server.bodies_total_max",
        "upstream.concurrency_max",
        "upstream.idle_max",
        "upstream.stream_line_max",
        "upstream.answer_max",
        "catalog.models_max",
        "events.history_max",
        "heartbeats_max",
        "parked",
        "threads",
    ] {
        assert!(busy.contains(name), "{name} was never counted: {busy:?}");
    }
    let held = || {
        let now = limits(&daemon);
        let more = now.iter().filter(|((name, owner), row)| {
            let at_start = before.get(&(name.clone(), owner.clone())).and_then(|row| row.now);
            !stays(name, owner) && row.now > at_start.max(Some(0))
        });
        more.map(|(name, row)| format!("{name:?} {row:?}")).collect::<Vec<_>>()
    };
    assert_eventually!(held().is_empty(), "not given back: {:?}", held());
}

#[test]
fn every_setting_that_is_a_limit_is_in_the_registry() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let limits = limits(&daemon);
    let Shape::Table(tables) = schema::tree() else { panic!("no table") };
    let mut settings = 0;
    for table in tables {
        let inner = match table.shape {
            Shape::Table(inner) => inner,
            Shape::List { item, .. } => match *item {
                Shape::Table(inner) => inner,
                _ => continue,
            },
            _ => continue,
        };
        // What a table in plural has is shown for those that there are.
        for setting in inner.iter().filter(|setting| table.key != "key" || setting.key == "name") {
            // A longest time is a deadline, and holds nothing.
            let amount = matches!(setting.shape, Shape::Integer { .. } | Shape::Size { .. });
            let key = format!("{}.{}", table.key, setting.key);
            if amount
                && !THRESHOLDS.contains(&&*key)
                && (setting.key.ends_with("_max") || setting.key == "keep_files")
            {
                let found = limits.iter().find(|((name, _), _)| *name == key);
                let (_, row) = found.unwrap_or_else(|| panic!("{key} is in no registry"));
                assert!(row.setting, "{key} does not say that it is a setting");
                settings += 1;
            }
        }
    }
    assert!(settings >= 15, "{settings}");
    // What is shown as a metric is the same.
    let metrics = daemon.metrics();
    for ((name, owner), row) in &limits {
        let labels = [("limit", name.as_str()), ("owner", owner.as_str())];
        let max = metrics.sum("tidegate_limit_max", &labels);
        // What the machine allows is read a moment after the start.
        let machine = ["overload.memory_max", "descriptors_max"].contains(&&**name);
        let same = max == Some(row.max as f64) || (machine && max.is_some());
        assert!(same, "{name}: {max:?} {row:?}");
        let now = metrics.sum("tidegate_limit_now", &labels);
        assert_eq!(now.is_some(), row.now.is_some(), "{name}");
    }
}

fn tidegate(sandbox: &Sandbox, args: &[&str]) -> Output {
    command(sandbox).args(args).output().unwrap()
}

#[test]
fn the_command_shows_what_the_ops_plane_says() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let config = daemon.config.to_str().unwrap();
    let ops = daemon.ops.to_string();
    for args in [["limits", "--config", config], ["limits", "--ops", &*ops]] {
        let shown = tidegate(&sandbox, &args);
        let text = String::from_utf8(shown.stdout).unwrap();
        assert_eq!(shown.status.code(), Some(0), "{args:?}");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("LIMIT"), "{text}");
        for (name, _) in limits(&daemon).keys() {
            let named = |line: &&&str| line.split([' ', '*']).next() == Some(name);
            assert!(lines.iter().any(|line| named(&line)), "{name} is not in {text}");
        }
    }
    let shown = tidegate(&sandbox, &["limits", "--json", "--config", config]);
    let document: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert!(read(&document).keys().eq(limits(&daemon).keys()));
    // A fault of the file elsewhere is no reason not to ask.
    let faulty = std::fs::read_to_string(config).unwrap() + "\n[nonsense]\n";
    let faulty = sandbox.write("faulty.toml", faulty);
    let shown = tidegate(&sandbox, &["limits", "--config", faulty.to_str().unwrap()]);
    assert_eq!(shown.status.code(), Some(0), "{}", String::from_utf8_lossy(&shown.stderr));
    // Nobody there, and somebody else there.
    let fails = |args: &[&str], code: i32, says: &str| {
        let shown = tidegate(&sandbox, args);
        let error = String::from_utf8(shown.stderr).unwrap();
        assert_eq!((shown.status.code(), shown.stdout.len()), (Some(code), 0), "{error}");
        assert!(error.contains(says), "{error}");
    };
    let nobody = format!("127.0.0.1:{}", free_port());
    fails(&["limits", "--ops", &nobody], 69, "nothing answers at");
    fails(&["limits", "--ops", &daemon.addr.to_string()], 65, "answered 404");
    fails(&["limits", "--config", "/nonexistent.toml"], 78, "no such file");
}
