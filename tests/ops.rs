//! The ops plane: health that means it, and metrics that a scraper can read.

use std::time::Duration;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::{self, Wire};

#[test]
fn health_is_told_in_the_words_that_probes_know() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let get = |path: &str| wire::ask(daemon.ops, ask::get(path));
    for path in ["/livez", "/healthz", "/readyz", "/ready"] {
        let answer = get(path);
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        assert!(answer.header("content-type").unwrap().starts_with("text/plain"), "{path}");
        let head =
            wire::ask(daemon.ops, format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!(head.status(), 200, "HEAD {path}");
        let post = wire::ask(daemon.ops, ask::post_with(path, "", b"{}"));
        assert_eq!(post.status(), 405, "POST {path}");
        assert!(post.header("allow").is_some_and(|allow| allow.contains("GET")), "{path}");
    }
    let verbose = get("/readyz?verbose").text();
    assert!(
        verbose.lines().any(|line| line.starts_with("[+]") && line.ends_with(" ok")),
        "{verbose}"
    );
    assert!(verbose.trim_end().ends_with("readyz check passed"), "{verbose}");
    // One check by itself, and one left out.
    let name =
        verbose.lines().find_map(|line| line.strip_prefix("[+]")?.strip_suffix(" ok")).unwrap();
    assert_eq!(get(&format!("/readyz/{name}")).status(), 200, "{name}");
    assert_eq!(get("/readyz/no-such-check").status(), 404);
    let without = get(&format!("/readyz?verbose&exclude={name}")).text();
    let excluded = without.contains(&format!("[+]{name} excluded: ok"));
    assert!(excluded || without.contains(&format!("{name} cannot be excluded")), "{without}");
    for path in ["/nowhere", "/v1/models", "/api/chat"] {
        assert_eq!(get(path).status(), 404, "{path}");
    }
    // The two planes do not mix.
    for path in ["/livez", "/readyz/phase", "/metrics", "/limits"] {
        assert_eq!(daemon.ask(ask::get(path)).status(), 404, "{path} on the data plane");
    }
}

#[test]
fn the_metrics_page_is_well_formed_and_counts_what_happens() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let answer = wire::ask(daemon.ops, ask::get("/metrics"));
    let content_type = answer.header("content-type").unwrap();
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    let before = daemon.metrics();
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
        "tidegate_build_info",
    ] {
        // A process this young may have used less than one tick of CPU time.
        let least = if name == "process_cpu_seconds_total" { 0.0 } else { 1.0 };
        assert!(before.sum(name, &[]).is_some_and(|value| value >= least), "{name}");
    }
    for limit in [
        "server.connections_max",
        "server.exchanges_max",
        "server.waiting_max",
        "server.queue_max",
        "server.bodies_total_max",
    ] {
        assert!(before.limit("max", limit) > 0, "{limit}");
        before.limit("now", limit);
        before.limit("high_water", limit);
    }
    for _ in 0..7 {
        daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello there", true));
        daemon.ask(ask::chat(Dialect::Ollama, "echo", "hello there", false));
        daemon.ask(ask::get("/nowhere"));
    }
    let after = daemon.metrics();
    let grown =
        |name: &str| after.sum(name, &[]).unwrap_or(0.0) - before.sum(name, &[]).unwrap_or(0.0);
    let counters: Vec<&String> =
        after.types.iter().filter(|(_, kind)| *kind == "counter").map(|(name, _)| name).collect();
    for name in &counters {
        assert!(grown(name) >= 0.0, "{name} went down");
        assert!(name.ends_with("_total"), "{name}: a counter's name ends in _total");
    }
    assert!(
        counters.iter().any(|name| name.contains("request") && grown(name) >= 21.0),
        "no counter of requests grew by 21"
    );
    let histograms: Vec<&String> =
        after.types.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name).collect();
    assert!(
        histograms
            .iter()
            .any(|name| name.contains("first_token") && grown(&format!("{name}_count")) >= 7.0),
        "{histograms:?}"
    );
    assert!(
        histograms
            .iter()
            .any(|name| name.contains("request") && grown(&format!("{name}_count")) >= 14.0),
        "{histograms:?}"
    );
    // Tokens have no unit in the conventions that this name comes from.
    let unit = |name: &str| name.ends_with("_seconds") || name == "gen_ai_client_token_usage";
    assert!(histograms.iter().all(|name| unit(name)), "{histograms:?}");
}

/// What strangers choose must not make new series.
#[test]
fn names_that_clients_invent_do_not_become_series() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    daemon.ask(ask::get("/nowhere"));
    daemon.ask(ask::chat(Dialect::OpenAi, "no-such", "hi", false));
    daemon.ask("BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    daemon.ask(ask::chat(Dialect::OpenAi, "echo/first", "hi", false));
    let before = daemon.metrics().samples.len();
    for n in 0..200 {
        daemon.ask(ask::get(&format!("/invented-{n}")));
        daemon.ask(ask::chat(Dialect::OpenAi, &format!("invented-{n}"), "hi", false));
        daemon.ask(ask::chat(Dialect::OpenAi, &format!("echo/invented-{n}"), "hi", false));
        daemon.ask(format!("INVENTED{n} / HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    }
    let after = daemon.metrics();
    assert!(after.samples.len() <= before + 4, "{before} series became {}", after.samples.len());
    assert!(
        !after
            .samples
            .iter()
            .any(|sample| sample.labels.values().any(|value| value.contains("nvented")))
    );
}

/// Trouble on the data plane does not reach the ops plane, nor the other way round.
#[test]
fn the_ops_plane_answers_while_every_exchange_is_busy() {
    let sandbox = Sandbox::alone();
    let conf = Conf::new().server("exchanges_max = 2\nworkers = 1\nwaiting_max = 2").upstream(
        "slow",
        "echo",
        "",
        "word_delay = \"1s\"",
    );
    let daemon = Daemon::start(&sandbox, &conf);
    let mut busy = Vec::new();
    for _ in 0..20 {
        let mut wire = daemon.connect();
        wire.send(ask::chat(Dialect::OpenAi, "slow/echo", "a b c d e f g h", true));
        busy.push(wire);
    }
    // And slow visitors of the ops plane itself.
    let slow: Vec<Wire> = (0..30)
        .map(|_| {
            let mut wire = Wire::connect(daemon.ops);
            let _ = wire.try_send("GET /livez HT");
            wire
        })
        .collect();
    for _ in 0..50 {
        let begun = std::time::Instant::now();
        assert_eq!(wire::ask(daemon.ops, ask::get("/livez")).status(), 200);
        assert_eq!(
            daemon.ask(ask::get("/api/version")).status(),
            200,
            "local answers need no exchange"
        );
        assert!(
            begun.elapsed() < daemon.allow(Duration::from_millis(200)),
            "{:?}",
            begun.elapsed()
        );
    }
    drop(slow);
}
