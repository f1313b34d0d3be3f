//! The page of the ops plane, and the document behind it: who gets it, how often, and that it says what
//! `/metrics` says. `tests/browser/run.py` looks at the page itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, command};
use crate::support::metrics::Metrics;
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::{self, Body, Wire};

fn get_with(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
}

/// One who looks at `/live`.
struct Viewer {
    wire: Wire,
    body: Body,
    text: String,
}

impl Viewer {
    /// Opens a stream; the status when it is refused.
    fn open(ops: SocketAddr) -> Result<Viewer, u16> {
        let mut wire = Wire::connect(ops);
        wire.send(ask::get("/live"));
        let head = wire.head().unwrap();
        if head.status != 200 {
            return Err(head.status);
        }
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        assert_eq!(head.header("cache-control"), Some("no-store"));
        let body = Body::of(&head, "GET").unwrap();
        let mut viewer = Viewer { wire, body, text: String::new() };
        assert_eq!(viewer.block(), "retry: 2000");
        Ok(viewer)
    }

    /// What stands before the next empty line.
    fn block(&mut self) -> String {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                return block;
            }
            let piece = self.wire.piece(&mut self.body).unwrap().expect("the stream ended");
            self.text.push_str(std::str::from_utf8(&piece.data).unwrap());
        }
    }

    /// The next document.
    fn document(&mut self) -> Value {
        let block = self.block();
        let (id, data) = block.split_once('\n').unwrap();
        let document: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(id, format!("id: {}", document["number"]));
        document
    }
}

fn live_now(daemon: &Daemon) -> u64 {
    daemon.limit_now("ops.live_max")
}

#[test]
fn the_page_and_its_files_are_served_by_the_program_itself_and_only_once() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let get = |path: &str| wire::ask(daemon.ops, ask::get(path));
    for path in ["/", "/dashboard"] {
        let page = get(path);
        assert_eq!(page.status(), 200, "{path}");
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        let policy = page.header("content-security-policy").unwrap();
        for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.split("; ").any(|have| have == rule), "{policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    }
    let page = get("/").text();
    let named = |text: &str, before: &str| -> Vec<String> {
        text.split('"').filter_map(|part| part.strip_prefix(before)).map(str::to_owned).collect()
    };
    let mut files: BTreeSet<String> = named(&page, "dashboard/").into_iter().collect();
    files.extend(named(&get("/dashboard/app.js").text(), "./"));
    assert!(files.len() >= 8, "{files:?}");
    for file in &files {
        let path = format!("/dashboard/{file}");
        let first = get(&path);
        assert_eq!(first.status(), 200, "{path}");
        let tag = first.header("etag").unwrap();
        let known = format!("If-None-Match: {tag}\r\n");
        let again = wire::ask(daemon.ops, get_with(&path, &known));
        assert_eq!((again.status(), again.body().len()), (304, 0), "{path}");
        assert_eq!(again.header("etag"), Some(tag));
        let head = format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let head = wire::ask(daemon.ops, head);
        assert_eq!(head.header("content-length"), first.header("content-length"), "{path}");
    }
    for path in ["/", "/dashboard/app.js", "/live", "/live.json"] {
        let post = wire::ask(daemon.ops, ask::post_with(path, "", b"{}"));
        assert_eq!((post.status(), post.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
    for path in ["/dashboard/x.js", "/dashboard/../Cargo.toml", "/app.js", "/live/x"] {
        assert_eq!(get(path).status(), 404, "{path}");
    }
    let head = wire::ask(daemon.ops, "HEAD /live HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((head.status(), head.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(live_now(&daemon), 0, "a look at the head holds no place");
}

#[test]
fn our_own_page_may_ask_and_pages_of_other_sites_may_not() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let ask = |path: &str, fields: &str| wire::ask(daemon.ops, get_with(path, fields));
    for path in ["/", "/dashboard/app.js", "/live.json", "/metrics", "/limits"] {
        let own = "Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n";
        assert_eq!(ask(path, own).status(), 200, "{path}");
        let link = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n\
                    Sec-Fetch-Dest: document\r\n";
        assert_eq!(ask(path, link).status(), 200, "{path}: a link");
    }
    let foreign = [
        "Origin: http://evil.example\r\n",
        "Origin: http://localhost.evil.example\r\n",
        "Origin: http://localhost:3000\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n",
        "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\n",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n",
    ];
    for path in ["/", "/live", "/live.json", "/metrics"] {
        for fields in foreign {
            let refused = ask(path, fields);
            let (status, code) = (refused.status(), refused.code());
            assert_eq!((status, &*code), (403, "origin_not_allowed"), "{path} {fields}");
        }
        // A name that somebody else pointed at this address.
        let rebound = format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
        assert_eq!(wire::ask(daemon.ops, rebound).code(), "host_not_allowed", "{path}");
    }
    assert_eq!(live_now(&daemon), 0);
}

#[test]
fn viewers_get_one_document_a_second_and_give_their_place_back() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let threads = daemon.process().threads().len();
    let mut viewers: Vec<Viewer> = (0..5).map(|_| Viewer::open(daemon.ops).unwrap()).collect();
    let documents: Vec<Vec<Value>> =
        viewers.iter_mut().map(|viewer| (0..3).map(|_| viewer.document()).collect()).collect();
    for seen in &documents {
        for two in seen.windows(2) {
            let number = |document: &Value| document["number"].as_u64().unwrap();
            assert_eq!(number(&two[1]), number(&two[0]) + 1, "none is left out");
            let apart = two[1]["at"].as_f64().unwrap() - two[0]["at"].as_f64().unwrap();
            assert!(apart > 0.9, "{apart}");
        }
    }
    // All are told the same: a document is made once for all of them.
    assert_eq!(documents[0][2], documents[4][2]);
    assert_eq!(live_now(&daemon), 5);
    assert!(daemon.process().threads().len() <= threads + 1, "no thread for a viewer");
    viewers.truncate(1);
    assert_eventually!(live_now(&daemon) == 1, "places come back");
    // Who leaves takes nothing from who stays.
    let next = viewers[0].document();
    assert!(next["number"].as_u64() > documents[0][2]["number"].as_u64());
    drop(viewers);
    assert_eventually!(live_now(&daemon) == 0, "the last place comes back");
    daemon.assert_well("after its viewers");
}

/// Of a document, what `/metrics` has one by one.
fn compare(document: &Value, metrics: &Metrics) {
    let mut compared = 0;
    for (name, family) in document["metrics"].as_object().unwrap() {
        let by: Vec<&str> =
            family["by"].as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
        for row in family["rows"].as_array().unwrap() {
            let row = row.as_array().unwrap();
            let values = row.iter().map(|value| value.as_str().unwrap_or_default());
            let labels: Vec<(&str, &str)> = by.iter().copied().zip(values).collect();
            if labels.contains(&("engine", "ops")) {
                continue;
            }
            let figure = row.last().unwrap();
            if family.get("bounds").is_none() {
                assert_eq!(metrics.sum(name, &labels), figure.as_f64(), "{name} {labels:?}");
            } else {
                let counts = figure[0].as_array().unwrap().iter().filter_map(Value::as_u64);
                let count = metrics.sum(&format!("{name}_count"), &labels).unwrap();
                assert_eq!(counts.sum::<u64>() as f64, count, "{name} {labels:?}");
                let sum = metrics.sum(&format!("{name}_sum"), &labels).unwrap();
                assert!((figure[1].as_f64().unwrap() - sum).abs() < 1e-9, "{name} {labels:?}");
            }
            compared += 1;
        }
        // And nothing is missing.
        if family.get("bounds").is_none() && !by.contains(&"engine") {
            let rows = family["rows"].as_array().unwrap();
            let all: f64 = rows.iter().map(|row| row[by.len()].as_f64().unwrap()).sum();
            assert_eq!(metrics.sum(name, &[]), Some(all), "{name}");
        }
    }
    for row in document["limits"].as_array().unwrap() {
        let (name, owner) = (row["limit"].as_str().unwrap(), row["owner"].as_str().unwrap());
        if owner != "ops" && !["overload.memory_max", "descriptors_max"].contains(&name) {
            let labels = [("limit", name), ("owner", owner)];
            for (field, figure) in [
                ("now", "now"),
                ("max", "max"),
                ("high_water", "high_water"),
                ("refused", "refused_total"),
            ] {
                let metric = format!("tidegate_limit_{figure}");
                assert_eq!(metrics.sum(&metric, &labels), row[field].as_f64(), "{name} {owner}");
            }
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn the_figures_of_a_document_are_those_of_metrics_at_the_same_moment() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    for _ in 0..5 {
        daemon.ask(ask::chat(Dialect::OpenAi, "echo", "one two", true));
        daemon.ask(ask::chat(Dialect::Ollama, "echo", "one two", false));
        daemon.ask(ask::chat(Dialect::OpenAi, "nobody", "one", false));
    }
    let quiet = |metrics: &Metrics| {
        // The process, its container and the machine are never quiet; the store writes by itself.
        let moving = ["process", "container", "system", "store"].map(|n| format!("tidegate_{n}_"));
        let own = ["overload.memory_max", "descriptors_max"];
        let mut figures: Vec<String> = Vec::new();
        for sample in &metrics.samples {
            let mut labels = sample.labels.values();
            let ops = labels.any(|value| value == "ops" || own.contains(&value.as_str()));
            let ours = sample.name.starts_with("tidegate_") || sample.name.starts_with("gen_ai_");
            if ours && !ops && !moving.iter().any(|name| sample.name.starts_with(name.as_str())) {
                figures.push(format!("{} {:?} {}", sample.name, sample.labels, sample.value));
            }
        }
        figures
    };
    // A moment is quiet when nothing was counted around it. What watches the process counts a little
    // of itself in its first seconds. A document may be as old as a second, so the next one is awaited.
    let document = || wire::ask(daemon.ops, ask::get("/live.json")).json();
    let found = (0..30).find_map(|_| {
        let old = document();
        let before = daemon.metrics();
        let next = (0..400).find_map(|_| {
            std::thread::sleep(Duration::from_millis(5));
            Some(document()).filter(|next| next["number"] != old["number"])
        });
        let after = daemon.metrics();
        (quiet(&before) == quiet(&after)).then_some((next.expect("another document"), after))
    });
    let (document, metrics) = found.expect("a quiet moment");
    assert_eq!(document["metrics"]["tidegate_streams_total"]["rows"], serde_json::json!([[5]]));
    compare(&document, &metrics);
    assert_eq!(document["ready"], true);
    assert_eq!(document["overload"], "normal");
    let process = &document["process"];
    assert_eq!(process["max_fds"].as_f64(), metrics.sum("process_max_fds", &[]));
    let started = metrics.sum("process_start_time_seconds", &[]).unwrap();
    assert!((process["start_time_seconds"].as_f64().unwrap() - started).abs() < 0.011);
    let health = wire::ask(daemon.ops, ask::get("/health")).json();
    assert_eq!(document["health"]["status"], health["status"]);
    assert_eq!(document["health"]["threads"], health["threads"]);
    let config = wire::ask(daemon.ops, ask::get("/config")).json();
    assert_eq!(document["config"]["version"], config["version"]);
    assert_eq!(config["version"], 1);
}

#[test]
fn one_viewer_too_many_is_told_and_has_another_way() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let mut viewers: Vec<Viewer> = (0..16).map(|_| Viewer::open(daemon.ops).unwrap()).collect();
    let refused = wire::ask(daemon.ops, ask::get("/live"));
    assert_eq!((refused.status(), &*refused.code()), (503, "live_full"));
    assert!(refused.header("retry-after").is_some());
    assert!(refused.text().contains("ops.live_max"), "{}", refused.text());
    // The way out, and everything else, is open.
    for path in ["/live.json", "/metrics", "/readyz", "/"] {
        assert_eq!(wire::ask(daemon.ops, ask::get(path)).status(), 200, "{path}");
    }
    // The first one may be a moment older than the sixteenth viewer.
    viewers[15].document();
    let document = viewers[15].document();
    let rows = document["limits"].as_array().unwrap();
    let row = rows.iter().find(|row| row["limit"] == "ops.live_max").unwrap();
    assert_eq!((&row["now"], &row["max"]), (&16.into(), &16.into()));
    assert_eq!(daemon.metrics().limit("refused_total", "ops.live_max"), 1);
    viewers.pop();
    assert_eventually!(Viewer::open(daemon.ops).is_ok(), "the place of one who left");
    // Fewer by a reload: who looks goes on looking.
    drop(viewers.split_off(2));
    assert_eventually!(live_now(&daemon) == 2, "two are left");
    daemon.rewrite(&Conf::new().ops("live_max = 1"));
    daemon.signal(Signal::HUP);
    let max = || daemon.metrics().limit("max", "ops.live_max");
    assert_eventually!(max() == 1, "reloaded");
    assert_eq!(Viewer::open(daemon.ops).err(), Some(503));
    viewers[0].document();
    daemon.rewrite(&Conf::new().ops("live_max = 33"));
    daemon.signal(Signal::HUP);
    assert_eventually!(daemon.log().contains("ops.live_max"), "above its bound, refused");
    assert_eq!(max(), 1);
}

#[test]
fn the_page_the_history_and_the_alerts_are_switched_off_and_on_while_it_runs() {
    let sandbox = Sandbox::new();
    let conf = |on: bool| {
        let features = ["dashboard", "history", "alerts"].map(|name| format!("{name} = {on}\n"));
        let quick = "[history]\ninterval = \"1s\"\n";
        Conf::new().text(&format!("{quick}[features]\n{}", features.concat()))
    };
    let daemon = Daemon::start(&sandbox, &conf(true));
    let ask = |path: &str| wire::ask(daemon.ops, ask::get(path));
    let looks = || daemon.metrics().limit("now", "history.looks_max");
    assert_eventually!(looks() >= 2);
    daemon.rewrite(&conf(false));
    daemon.signal(Signal::HUP);
    assert_eventually!(ask("/").status() == 404);
    for path in ["/", "/dashboard", "/dashboard/app.js", "/live"] {
        let answer = ask(path);
        assert_eq!(answer.status(), 404, "{path}");
        assert!(answer.text().contains("features.dashboard"), "{path}: {}", answer.text());
    }
    assert_eq!(ask("/live.json").json()["alerts"]["enabled"], false);
    let config = daemon.config.to_str().unwrap();
    for (name, says) in [("alerts", "alerts are switched off"), ("status", "alerts: switched off")]
    {
        let output = command(&sandbox).args([name, "--config", config]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(says), "{name}: {text}");
    }
    // One look may have been under way. Then there is none in more than two intervals.
    let before = looks();
    std::thread::sleep(Duration::from_millis(2500));
    assert!(looks() <= before + 1, "{} after {before}", looks());
    assert_eq!(ask("/history?metric=process_open_fds").status(), 200, "what was before");
    daemon.rewrite(&conf(true));
    daemon.signal(Signal::HUP);
    assert_eventually!(ask("/").status() == 200);
    assert_eventually!(looks() > before + 1);
    assert_eq!(ask("/alerts").json()["enabled"], true);
    Viewer::open(daemon.ops).unwrap().document();
}

#[test]
fn a_viewer_that_does_not_read_is_let_go_and_holds_nobody_up() {
    let sandbox = Sandbox::new();
    // Many upstreams make a large document, which fills a small window soon.
    let many = (0..40).fold(Conf::new(), |conf, n| conf.upstream(&format!("u{n}"), "echo", "", ""));
    let mut daemon = Daemon::start(&sandbox, &many);
    let mut reader = Viewer::open(daemon.ops).unwrap();
    let slow = Wire::connect(daemon.ops);
    socket2::SockRef::from(slow.socket()).set_recv_buffer_size(4096).unwrap();
    let mut slow = slow;
    slow.send(ask::get("/live"));
    assert_eventually!(live_now(&daemon) == 2, "both look");
    let before = daemon.process().rss_kib();
    let stalled = || daemon.metrics().sum("tidegate_live_stalled_total", &[]);
    let mut last = reader.document()["number"].as_u64().unwrap();
    let mut documents = 0;
    while stalled() != Some(1.0) {
        let document = reader.document();
        let number = document["number"].as_u64().unwrap();
        assert_eq!(number, last + 1, "the one who reads misses none");
        last = number;
        documents += 1;
        assert!(documents < 60, "it is never let go");
    }
    assert!(documents >= 4, "not before its time: {documents}");
    assert_eventually!(live_now(&daemon) == 1, "its place is free");
    let more = daemon.process().rss_kib().saturating_sub(before);
    // A daemon of this age still grows by its first looks at forty upstreams.
    assert!(more < 8192, "{more} KiB were kept for it");
    reader.document();
    // An open page does not hold up the end.
    assert!(daemon.stop().success());
}
