//! Every limit of the table, at it and one past it, in a running daemon: what is refused is refused
//! with its status, its code and, where it is due, a time to come again.

use std::time::{Duration, Instant};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{FakeUpstream, Gate, Step, answers};
use crate::support::sandbox::{Sandbox, free_port};
use crate::support::stream::{Dialect, Stream};
use crate::support::wire::{Answer, Fault, Wire};

fn assert_shed(answer: &Answer, code: &str) {
    assert_eq!(answer.status(), 503, "{}", answer.text());
    assert_eq!(answer.code(), code);
    let wait: u64 = answer.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
}

/// A chat to `echo` whose body has exactly this many bytes.
fn body_of(size: usize) -> String {
    let empty = ask::chat_body("echo", "", false).to_string();
    ask::chat_body("echo", &"x".repeat(size - empty.len()), false).to_string()
}

#[test]
fn a_body_of_body_max_is_taken_and_one_byte_more_is_not() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().server("body_max = \"4KiB\""));
    // The last one is within what is discarded, so that its answer arrives for certain.
    for (size, status) in [(4095, 200), (4096, 200), (4097, 413), (200_000, 413)] {
        let body = body_of(size);
        assert_eq!(body.len(), size);
        let answer = daemon.ask(ask::post_with("/v1/chat/completions", "", body.as_bytes()));
        assert_eq!(answer.status(), status, "{size} bytes with a length");
        let chunks: String = body
            .as_bytes()
            .chunks(1000)
            .map(|c| format!("{:x}\r\n{}\r\n", c.len(), std::str::from_utf8(c).unwrap()))
            .collect();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
        );
        let mut wire = daemon.connect();
        // A refusal may come before all is sent.
        let _ = wire.try_send(request);
        let answer = wire.answer().unwrap();
        assert_eq!(answer.status(), status, "{size} bytes in chunks");
        if status == 413 {
            assert_eq!(answer.code(), "body_too_large");
            assert!(
                answer.text().contains("body_max"),
                "it must say which limit: {}",
                answer.text()
            );
        }
    }
}

#[test]
fn a_head_of_head_max_is_taken_and_a_larger_one_is_not() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().server("head_max = \"2KiB\""));
    let head = |size: usize| {
        let empty = "GET /api/version HTTP/1.1\r\nHost: localhost\r\nX: \r\n\r\n";
        let text = format!(
            "GET /api/version HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
            "x".repeat(size - empty.len())
        );
        assert_eq!(text.len(), size);
        text
    };
    // Whether the empty line at the end counts is nobody's business.
    for (size, status) in [(2000, 200), (2048, 200), (2048 + 5, 431), (4000, 431), (60_000, 431)] {
        let mut wire = daemon.connect();
        wire.send(head(size));
        let answer = wire.answer().unwrap();
        assert_eq!(answer.status(), status, "a head of {size} bytes");
        if status == 431 {
            assert_eq!(answer.code(), "head_too_large");
            assert!(wire.closes_within(Duration::from_secs(2)));
        }
    }
    // Many small lines are as bad as a long one.
    let many =
        format!("GET /api/version HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(500));
    assert_eq!(daemon.ask(many).status(), 431);
}

#[test]
fn the_number_of_header_lines_and_the_length_of_the_target_are_bounded() {
    let sandbox = Sandbox::new();
    let daemon =
        Daemon::start(&sandbox, &Conf::new().server("headers_max = 20\ntarget_max = \"256B\""));
    for (lines, status) in [(19, 200), (20, 200), (21, 431), (200, 431)] {
        let head = format!(
            "GET /api/version HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
            "X: y\r\n".repeat(lines - 1)
        );
        assert_eq!(daemon.ask(head).status(), status, "{lines} header lines");
    }
    for (size, status) in [(255, 404), (256, 404), (257, 414), (5000, 414)] {
        let answer = daemon.ask(ask::get(&format!("/{}", "x".repeat(size - 1))));
        assert_eq!(answer.status(), status, "a target of {size} bytes");
        if status == 414 {
            assert_eq!(answer.code(), "target_too_long");
        }
    }
}

#[test]
fn the_bodies_of_all_requests_share_a_budget() {
    let sandbox = Sandbox::new();
    let conf = Conf::new().server("body_max = \"64KiB\"\nbodies_total_max = \"100KiB\"");
    let daemon = Daemon::start(&sandbox, &conf);
    let body = body_of(60 * 1024);
    let request = ask::post_with("/v1/chat/completions", "", body.as_bytes());
    let mut first = daemon.connect();
    first.send(&request[..request.len() - 1]);
    assert_eventually!(daemon.limit_now("server.bodies_total_max") >= 60 * 1024);
    let mut second = daemon.connect();
    second.send(&request[..request.len() - body.len()]);
    assert_shed(&second.answer().expect("refused by its head alone"), "bodies_full");
    // What fits is served beside it.
    assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hi", false)).status(), 200);
    first.send(&request[request.len() - 1..]);
    assert_eq!(first.answer().unwrap().status(), 200);
    assert_eq!(daemon.ask(&request).status(), 200);
    assert_eventually!(daemon.limit_now("server.bodies_total_max") == 0);
    // A chunked body has no length to tell; it is held to the same budget as it grows.
    let mut first = daemon.connect();
    first.send(&request[..request.len() - 1]);
    assert_eventually!(daemon.limit_now("server.bodies_total_max") >= 60 * 1024);
    let mut chunked = daemon.connect();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let _ = chunked.try_send(format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
    assert_shed(&chunked.answer().unwrap(), "bodies_full");
    assert!(daemon.metrics().limit("high_water", "server.bodies_total_max") <= 100 * 1024);
    drop(first);
    assert_eventually!(daemon.limit_now("server.bodies_total_max") == 0);
    assert!(
        daemon
            .metrics()
            .sum("tidegate_limit_refused_total", &[("limit", "server.bodies_total_max")])
            .unwrap()
            >= 2.0
    );
}

/// An upstream that answers when the gate opens.
fn gated(gate: &std::sync::Arc<Gate>) -> FakeUpstream {
    let gate = gate.clone();
    FakeUpstream::start(Dialect::OpenAi, move |call| {
        answers::catalog(call).unwrap_or_else(|| {
            [vec![Step::Until(gate.clone())], answers::good(call, "hello")].concat()
        })
    })
}

fn send(daemon: &Daemon, model: &str, prompt: &str) -> Wire {
    let mut wire = daemon.connect();
    wire.send(ask::chat(Dialect::OpenAi, model, prompt, false));
    wire
}

#[test]
fn exchanges_past_their_limit_wait_as_data_and_past_that_are_shed() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let upstream = gated(&gate);
    let conf = Conf::new()
        .server("exchanges_max = 3\nwaiting_max = 2\nwaiting_timeout = \"60s\"")
        .fake("u", &upstream, "");
    let daemon = Daemon::start(&sandbox, &conf);
    let mut running: Vec<Wire> =
        (0..3).map(|n| send(&daemon, "u/x", &format!("run {n}"))).collect();
    for n in 0..3 {
        upstream.wait_seen(&format!("run {n}"));
    }
    let threads = daemon.process().threads().len();
    let mut waiting: Vec<Wire> =
        (0..2).map(|n| send(&daemon, "u/x", &format!("wait {n}"))).collect();
    assert_eventually!(daemon.limit_now("server.waiting_max") == 2);
    assert_eq!(daemon.process().threads().len(), threads, "a request that waits costs a thread");
    let begun = Instant::now();
    let mut shed = send(&daemon, "u/x", "shed");
    assert_shed(&shed.answer().unwrap(), "waiting_full");
    assert!(
        begun.elapsed() < daemon.allow(Duration::from_millis(500)),
        "a refusal waits: {:?}",
        begun.elapsed()
    );
    // Local answers need no exchange.
    assert_eq!(daemon.ask(ask::get("/api/version")).status(), 200);
    assert_eq!(upstream.seen().len(), 3);
    gate.open();
    for wire in running.iter_mut().chain(&mut waiting) {
        assert_eq!(wire.answer().unwrap().status(), 200);
    }
    // The connection of the one that was shed is still good.
    assert_eq!(shed.ask(ask::chat(Dialect::OpenAi, "u/x", "again", false)).status(), 200);
    let metrics = daemon.metrics();
    assert_eq!(metrics.limit("high_water", "server.exchanges_max"), 3);
    assert_eq!(metrics.limit("high_water", "server.waiting_max"), 2);
    assert_eventually!(
        daemon.limit_now("server.exchanges_max") == 0
            && daemon.limit_now("server.waiting_max") == 0
    );
}

#[test]
fn who_waits_too_long_for_an_exchange_or_a_permit_is_told_so() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let upstream = gated(&gate);
    for (server, lines) in [("exchanges_max = 1", ""), ("", "concurrency_max = 1")] {
        let conf = Conf::new()
            .server(&format!("{server}\nwaiting_timeout = \"400ms\""))
            .fake("u", &upstream, lines);
        let daemon = Daemon::start(&sandbox, &conf);
        let prompt = format!("holder {server}");
        let holder = send(&daemon, "u/x", &prompt);
        upstream.wait_seen(&prompt);
        for stream in [true, false] {
            let begun = Instant::now();
            let answer = daemon.ask(ask::chat(Dialect::OpenAi, "u/x", "late", stream));
            assert_shed(&answer, "waiting_timeout");
            let took = begun.elapsed();
            assert!(
                took >= Duration::from_millis(380)
                    && took < Duration::from_millis(400) + daemon.allow(Duration::from_millis(250)),
                "{server}{lines}: {took:?}"
            );
        }
        assert_eq!(upstream.seen_with("late").len(), 0);
        drop(holder);
    }
    gate.open();
}

#[test]
fn an_upstreams_permits_and_its_waiting_room_are_bounded() {
    let sandbox = Sandbox::new();
    let gate = Gate::new();
    let upstream = gated(&gate);
    let conf = Conf::new().server("waiting_timeout = \"60s\"").fake(
        "u",
        &upstream,
        "concurrency_max = 2\nwaiting_max = 3",
    );
    let daemon = Daemon::start(&sandbox, &conf);
    let mut running: Vec<Wire> =
        (0..2).map(|n| send(&daemon, "u/x", &format!("run {n}"))).collect();
    for n in 0..2 {
        upstream.wait_seen(&format!("run {n}"));
    }
    let mut waiting: Vec<Wire> =
        (0..3).map(|n| send(&daemon, "u/x", &format!("wait {n}"))).collect();
    assert_eventually!(daemon.limit_now("upstream.waiting_max") == 3);
    assert_shed(&send(&daemon, "u/x", "shed").answer().unwrap(), "waiting_full");
    // Another upstream is not concerned.
    assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hi", false)).status(), 200);
    assert_eq!(upstream.seen().len(), 2, "more than concurrency_max at once");
    gate.open();
    for wire in running.iter_mut().chain(&mut waiting) {
        assert_eq!(wire.answer().unwrap().status(), 200);
    }
    assert_eq!(daemon.metrics().limit("high_water", "upstream.waiting_max"), 3);
    assert_eventually!(
        daemon.limit_now("upstream.concurrency_max") == 0
            && daemon.limit_now("upstream.waiting_max") == 0
    );
}

/// Whoever waited longest goes first, and nobody is forgotten, whatever the crowd.
#[test]
fn a_crowd_in_front_of_one_permit_is_served_whole_and_in_order() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, "hello"));
    let conf =
        Conf::new().server("waiting_timeout = \"60s\"").fake("u", &upstream, "concurrency_max = 1");
    let daemon = Daemon::start(&sandbox, &conf);
    std::thread::scope(|scope| {
        for lane in 0..32 {
            let daemon = &daemon;
            scope.spawn(move || {
                for n in 0..20 {
                    let stream = (lane + n) % 2 == 0;
                    let answer = daemon.ask(ask::chat(Dialect::Ollama, "u/x", "hi", stream));
                    assert_eq!(answer.status(), 200, "{}", answer.text());
                }
            });
        }
    });
    assert_eq!(upstream.seen().len(), 640);
    assert!(
        daemon.metrics().limit("high_water", "upstream.concurrency_max") <= 1 + 1024,
        "echo's permits count too"
    );
    assert_eventually!(
        daemon.limit_now("upstream.waiting_max") == 0
            && daemon.limit_now("server.exchanges_max") == 0
    );
}

/// Nothing that was accepted is lost: each request has an answer, and each refusal says why.
#[test]
fn a_burst_is_answered_or_shed_and_nothing_is_lost() {
    let sandbox = Sandbox::alone();
    let daemon = Daemon::start(
        &sandbox,
        &Conf::new().server("workers = 1\nqueue_max = 1\nexchanges_max = 2\nwaiting_max = 1"),
    );
    let mut statuses = std::collections::BTreeMap::new();
    for _ in 0..5 {
        let mut wires: Vec<Wire> = (0..200).map(|_| daemon.connect()).collect();
        for wire in &mut wires {
            wire.send(ask::chat(Dialect::OpenAi, "echo", "hello there", true));
        }
        for mut wire in wires {
            let answer = wire
                .answer()
                .unwrap_or_else(|fault| panic!("a request without an answer: {fault:?}"));
            match answer.status() {
                200 => Stream::of(Dialect::OpenAi, &answer).assert_normal(
                    "echo",
                    "hello there",
                    "in a burst",
                ),
                _ => assert!(
                    matches!(answer.code().as_str(), "queue_full" | "waiting_full"),
                    "{}",
                    answer.text()
                ),
            }
            if answer.status() != 200 {
                assert_shed(&answer, &answer.code());
            }
            *statuses.entry(answer.status()).or_insert(0) += 1;
        }
    }
    eprintln!("bursts: {statuses:?}");
    assert!(statuses[&200] >= 5);
    assert_eventually!(daemon.limit_now("server.queue_max") == 0);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let sandbox = Sandbox::alone();
    let daemon = Daemon::start(&sandbox, &Conf::new().server("keepalive_timeout = \"2s\""));
    let mut wire = daemon.connect();
    let mut begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(wire.ask(ask::get("/api/version")).status(), 200);
        begun = Instant::now();
        std::thread::sleep(Duration::from_secs(1));
    }
    let rest = wire.rest(Duration::from_secs(10));
    let after = begun.elapsed();
    assert_eq!(rest, b"", "a word at the end of an idle connection");
    assert!(
        // We may have been late to see the answer.
        after + daemon.late() >= Duration::from_millis(1980)
            && after < Duration::from_secs(2) + daemon.allow(Duration::from_millis(500)),
        "closed after {after:?}"
    );
    assert!(wire.closes_within(Duration::from_millis(100)));
}

#[test]
fn a_head_and_a_body_have_absolute_deadlines() {
    let sandbox = Sandbox::alone();
    let conf = Conf::new().server("head_timeout = \"600ms\"\nbody_timeout = \"900ms\"");
    let daemon = Daemon::start(&sandbox, &conf);
    let drip = |first: &[u8], then: &[u8], deadline: u64| {
        let mut wire = daemon.connect();
        let begun = Instant::now();
        wire.send(first);
        while begun.elapsed() < Duration::from_millis(deadline - 150) {
            wire.send(then);
            std::thread::sleep(Duration::from_millis(40));
        }
        let answer = wire.answer().unwrap();
        let took = begun.elapsed();
        assert_eq!(answer.status(), 408);
        assert_eq!(answer.code(), "request_timeout");
        let deadline = Duration::from_millis(deadline);
        assert!(
            took + Duration::from_millis(30) > deadline
                && took < deadline + daemon.allow(Duration::from_millis(250)),
            "{took:?}"
        );
        assert!(wire.closes_within(Duration::from_secs(2)));
    };
    drip(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nX: ", b"x", 600);
    drip(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n",
        &[b' '; 1000],
        900,
    );
    drip(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"5\r\nhello\r\n",
        900,
    );
}

#[test]
fn a_models_own_total_bounds_its_requests() {
    let sandbox = Sandbox::alone();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |_| vec![Step::Silence]);
    let conf = Conf::new()
        .fake("u", &upstream, "first_token_timeout = \"60s\"")
        .text("[[model]]\nname = \"brief\"\nprimary = \"u/x\"\ntotal_timeout = \"700ms\"");
    let daemon = Daemon::start(&sandbox, &conf);
    for stream in [true, false] {
        let begun = Instant::now();
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, "brief", "hi", stream));
        let took = begun.elapsed();
        assert_eq!(answer.status(), 504, "{}", answer.text());
        assert!(
            took > Duration::from_millis(650)
                && took < Duration::from_millis(700) + daemon.allow(Duration::from_millis(250)),
            "{took:?}"
        );
    }
}

/// Lines of both dialects, just below and just above `stream_line_max`.
#[test]
fn an_event_may_be_as_long_as_stream_line_max() {
    let sandbox = Sandbox::new();
    let line_max: usize = 64 * 1024;
    let upstreams = [Dialect::OpenAi, Dialect::Ollama].map(|dialect| {
        FakeUpstream::start(dialect, |call| {
            let size: usize = call.prompt().parse().unwrap_or(0);
            answers::good(call, &"x".repeat(size))
        })
    });
    let lines = "stream_line_max = \"64KiB\"";
    let conf = Conf::new().fake("oa", &upstreams[0], lines).fake("ol", &upstreams[1], lines);
    let daemon = Daemon::start(&sandbox, &conf);
    for model in ["oa/x", "ol/x"] {
        for client in [Dialect::OpenAi, Dialect::Ollama] {
            // The frame around the text takes less than 512 bytes.
            let size = line_max - 512;
            let answer = daemon.ask(ask::chat(client, model, &size.to_string(), true));
            assert_eq!(answer.status(), 200, "{model} {client:?}");
            Stream::of(client, &answer).assert_normal(model, &"x".repeat(size), "just below");
            let answer = daemon.ask(ask::chat(client, model, &(line_max + 1).to_string(), true));
            assert_eq!(answer.status(), 502, "{model} {client:?}: {:.200}", answer.text());
            if client == Dialect::OpenAi {
                assert_eq!(answer.code(), "upstream_line_too_long");
            }
        }
    }
}

#[test]
fn a_whole_answer_may_be_as_long_as_answer_max() {
    let sandbox = Sandbox::new();
    let upstreams = [Dialect::OpenAi, Dialect::Ollama].map(|dialect| {
        FakeUpstream::start(dialect, |call| {
            let size: usize = call.prompt().parse().unwrap_or(0);
            answers::good(call, &"x".repeat(size))
        })
    });
    let conf = Conf::new().fake("oa", &upstreams[0], "answer_max = \"64KiB\"").fake(
        "ol",
        &upstreams[1],
        "answer_max = \"64KiB\"",
    );
    let daemon = Daemon::start(&sandbox, &conf);
    for model in ["oa/x", "ol/x"] {
        let size = 64 * 1024 - 1024;
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, model, &size.to_string(), false));
        assert_eq!(ask::whole_text(Dialect::OpenAi, &answer.json()).len(), size);
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, model, "65537", false));
        assert_eq!(answer.status(), 502, "{model}");
    }
}

/// Loopback is exempt, so this one needs an address of the machine that is not loopback.
#[test]
fn connections_of_one_address_are_bounded_when_asked_for() {
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr());
    let Some(ip) =
        own.ok().map(|addr| addr.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
    else {
        eprintln!("this machine has no address but loopback: nothing to test");
        return;
    };
    let sandbox = Sandbox::new();
    let addr = std::net::SocketAddr::new(ip, free_port());
    let ops = crate::support::sandbox::loopback(free_port());
    let conf = Conf::new()
        .server("connections_per_address_max = 5")
        .text(&format!("[[key]]\nname = \"k\"\nsha256 = \"{}\"", crate::logs::hex("k")));
    let config = sandbox.write("tidegate.toml", conf.render(addr, ops));
    let mut daemon =
        Daemon::spawn(&sandbox, &config, addr, ops, &crate::support::daemon::Start::default());
    daemon.wait_ready().unwrap();
    let request =
        format!("GET /api/version HTTP/1.1\r\nHost: {addr}\r\nAuthorization: Bearer k\r\n\r\n");
    let mut inside: Vec<Wire> = (0..5).map(|_| daemon.connect()).collect();
    for wire in &mut inside {
        assert_eq!(wire.ask(&request).status(), 200);
    }
    let mut sixth = daemon.connect();
    let _ = sixth.try_send(&request);
    match sixth.answer() {
        Ok(answer) => assert_shed(&answer, "connections_full"),
        Err(fault) => panic!("the sixth is not told: {fault:?}"),
    }
    inside.pop();
    let served = || {
        let mut wire = daemon.connect().wait_at_most(Duration::from_secs(1));
        wire.try_send(&request).is_ok() && wire.answer().is_ok_and(|answer| answer.status() == 200)
    };
    assert_eventually!(served(), "room is not given back");
    for wire in &mut inside {
        assert_eq!(wire.ask(&request).status(), 200, "those inside are not disturbed");
    }
}

/// The first request may come as late as it likes, but not for ever.
#[test]
fn a_connection_that_never_speaks_is_closed() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(
        &sandbox,
        &Conf::new().server("head_timeout = \"300ms\"\nkeepalive_timeout = \"300ms\""),
    );
    let mut wire = daemon.connect().wait_at_most(Duration::from_secs(3));
    match wire.answer() {
        Ok(answer) => assert_eq!(answer.status(), 408),
        Err(fault) => assert_eq!(fault, Fault::Closed(String::new())),
    }
    assert_eventually!(daemon.limit_now("server.connections_max") == 0);
}
