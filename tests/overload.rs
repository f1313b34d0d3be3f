//! Overload: under several times its capacity the daemon answers or refuses cleanly, says what it
//! does, and comes back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start};
use crate::support::peers::{FakeUpstream, Gate, Step, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::{Dialect, Stream};
use crate::support::wire::{self, Answer, Wire};

const NORMAL: u64 = 0;
const DEGRADED: u64 = 2;
const CRITICAL: u64 = 3;

fn level(daemon: &Daemon) -> u64 {
    daemon.metrics().sum("tidegate_overload_level", &[]).unwrap() as u64
}

fn begun(daemon: &Daemon, action: &str) -> u64 {
    let labels = [("action", action)];
    daemon.metrics().sum("tidegate_overload_actions_total", &labels).unwrap() as u64
}

fn events(daemon: &Daemon, kind: &str) -> u64 {
    daemon.metrics().sum("tidegate_events_total", &[("kind", kind)]).unwrap_or(0.0) as u64
}

fn assert_refused(answer: &Answer) {
    assert_eq!(answer.status(), 503, "{}", answer.text());
    let wait: u64 = answer.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    let known = ["queue_full", "queue_timeout", "waiting_full", "waiting_timeout", "overloaded"];
    assert!(known.contains(&answer.code().as_str()), "{}", answer.text());
}

fn chat(prompt: &str, stream: bool) -> Vec<u8> {
    ask::chat(Dialect::OpenAi, "echo", prompt, stream)
}

fn with_memory(memory_max: &str) -> Conf {
    Conf::new().text(&format!("[overload]\ncalm = \"1s\"\nmemory_max = \"{memory_max}\""))
}

#[test]
fn too_little_memory_makes_it_critical_and_enough_of_it_makes_it_normal_again() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &with_memory("16GiB"));
    assert_eq!(level(&daemon), NORMAL);
    let before = daemon.ask(chat("hi", false));
    assert_eq!((before.status(), before.header("x-tidegate-degraded")), (200, None));

    // Began before, and comes to its end.
    let mut stream = daemon.connect();
    let long = "word ".repeat(4000);
    stream.send(chat(&long, true));
    daemon.rewrite(&with_memory("1MiB"));
    daemon.signal(Signal::HUP);
    assert_eventually!(level(&daemon) == CRITICAL);
    assert_eq!(stream.answer().unwrap().status(), 200);

    for streams in [false, true] {
        let refused = daemon.ask(chat("hi", streams));
        assert_refused(&refused);
        assert_eq!(refused.code(), "overloaded");
        let told = refused.header("x-tidegate-degraded").unwrap();
        assert!(told.starts_with("critical; ") && told.contains("calls_refused"), "{told}");
    }
    // What needs no model is still answered, and says so too.
    let list = daemon.ask(ask::get("/v1/models"));
    assert_eq!(list.status(), 200);
    assert!(list.header("x-tidegate-degraded").is_some());
    // The ops plane: alive, not ready, and why.
    assert_eq!(wire::ask(daemon.ops, ask::get("/livez")).status(), 200);
    let ready = wire::ask(daemon.ops, ask::get("/readyz?verbose"));
    assert_eq!((ready.status(), ready.header("x-tidegate-degraded")), (503, None));
    let text = ready.text();
    assert!(text.contains("[-]overload failed: ") && text.contains("memory"), "{text}");
    for action in ["keep_alive_off", "idle_closed", "calls_refused", "memory_trimmed"] {
        assert_eq!(begun(&daemon, action), 1, "{action}");
    }

    daemon.rewrite(&with_memory("16GiB"));
    daemon.signal(Signal::HUP);
    assert_eventually!(level(&daemon) == NORMAL);
    let after = daemon.ask(chat("hi", false));
    assert_eq!((after.status(), after.header("x-tidegate-degraded")), (200, None));
    assert_eq!(wire::ask(daemon.ops, ask::get("/readyz")).status(), 200);
    assert_eq!((events(&daemon, "overload_raised"), events(&daemon, "overload_lowered")), (1, 1));
}

#[test]
fn switched_off_there_are_no_levels() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &with_memory("16GiB"));
    daemon.rewrite(&with_memory("1MiB"));
    daemon.signal(Signal::HUP);
    assert_eventually!(level(&daemon) == CRITICAL);
    let off = "[overload]\nenabled = false\nmemory_max = \"1MiB\"";
    daemon.rewrite(&Conf::new().text(off));
    daemon.signal(Signal::HUP);
    assert_eventually!(level(&daemon) == NORMAL);
    assert_eq!(daemon.ask(chat("hi", true)).status(), 200);
}

#[test]
fn a_refusal_keeps_the_connection_when_the_body_was_with_its_head() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &with_memory("16GiB"));
    daemon.rewrite(&with_memory("1MiB"));
    daemon.signal(Signal::HUP);
    assert_eventually!(level(&daemon) == CRITICAL);
    let mut wire = daemon.connect();
    for _ in 0..3 {
        assert_refused(&wire.ask(chat("hi", true)));
        assert_eq!(wire.ask(ask::get("/api/version")).status(), 200);
    }
    // Two at once: the body of the first is not taken for a request.
    wire.send([chat("hi", true), ask::get("/api/version")].concat());
    assert_refused(&wire.answer().unwrap());
    assert_eq!(wire.answer().unwrap().status(), 200);
    // A body that is still on its way is not waited for.
    let mut slow = daemon.connect();
    let request = chat("hi", true);
    slow.send(&request[..request.len() - 1]);
    let refused = slow.answer().unwrap();
    assert_refused(&refused);
    assert_eq!(refused.header("connection"), Some("close"));
    // Neither are the bytes of a client that closes when it is told.
    let closing = ask::post_with(
        "/v1/chat/completions",
        "Connection: close\r\n",
        ask::chat_body("echo", "hi", true).to_string().as_bytes(),
    );
    let mut last = daemon.connect();
    last.send(closing);
    assert_refused(&last.answer().unwrap());
    assert!(last.closes_within(Duration::from_secs(2)));
}

/// Sends chats until told to stop; counts what came back.
fn client(daemon: &Daemon, number: usize, stop: &AtomicBool) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mut wire: Option<Wire> = None;
    while !stop.load(Ordering::Relaxed) {
        let mut open = wire.take().unwrap_or_else(|| daemon.connect());
        let stream = number.is_multiple_of(2);
        open.send(chat("one two three four", stream));
        let answer = open.answer().unwrap_or_else(|fault| panic!("no answer: {fault:?}"));
        let key = if answer.status() == 200 {
            if stream {
                let stream = Stream::of(Dialect::OpenAi, &answer);
                stream.assert_normal("echo", "one two three four", "under load");
            }
            "ok".to_owned()
        } else {
            assert_refused(&answer);
            answer.code()
        };
        if answer.header("x-tidegate-degraded").is_some() {
            *counts.entry("told".to_owned()).or_insert(0) += 1;
        }
        *counts.entry(key).or_insert(0) += 1;
        if answer.header("connection") != Some("close") {
            wire = Some(open);
        }
        // A refused client comes again soon, not at once.
        std::thread::sleep(Duration::from_millis(5));
    }
    counts
}

/// Tells the clients to stop when it is dropped.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn at_several_times_its_capacity_everyone_is_answered_or_refused_and_it_comes_back() {
    let sandbox = Sandbox::alone();
    let conf = Conf::new()
        .server("workers = 2\nexchanges_max = 4\nwaiting_max = 8\nwaiting_timeout = \"1s\"")
        .upstream("echo", "echo", "", "word_delay = \"20ms\"\nconcurrency_max = 64")
        .text("[overload]\ncalm = \"1s\"");
    let daemon = Daemon::start(&sandbox, &conf);
    let stop = AtomicBool::new(false);
    let alive = AtomicUsize::new(0);
    let counts = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..64)
            .map(|number| {
                let (daemon, stop) = (&daemon, &stop);
                scope.spawn(move || client(daemon, number, stop))
            })
            .collect();
        // Also when something below fails.
        let _stops = Stops(&stop);
        // Saturation alone degrades and refuses nothing by itself: its limits do.
        assert_eventually!(level(&daemon) == DEGRADED);
        for _ in 0..50 {
            let live = wire::ask(daemon.ops, ask::get("/livez"));
            assert_eq!(live.status(), 200, "{}", live.text());
            alive.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(wire::ask(daemon.ops, ask::get("/readyz")).status(), 200);
        stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for client in clients {
            for (key, count) in client.join().unwrap() {
                *all.entry(key).or_insert(0) += count;
            }
        }
        all
    });
    eprintln!("64 clients: {counts:?}");
    assert!(counts["ok"] >= 20, "work goes on: {counts:?}");
    assert!(counts["told"] > 0, "answers say that it is degraded: {counts:?}");
    assert_eq!(alive.load(Ordering::Relaxed), 50);
    assert_eventually!(level(&daemon) == NORMAL);
    let after = daemon.ask(chat("hi", true));
    assert_eq!((after.status(), after.header("x-tidegate-degraded")), (200, None));
    assert_eventually!(
        daemon.limit_now("server.exchanges_max") == 0
            && daemon.limit_now("server.waiting_max") == 0
            && daemon.limit_now("server.queue_max") == 0
    );
    daemon.assert_well("after the load");
}

#[test]
fn descriptors_that_run_short_degrade_it_until_they_are_free_again() {
    const STREAMS: usize = 30;
    const DESCRIPTORS: u32 = 160;
    let sandbox = Sandbox::alone();
    let gate = Gate::new();
    let upstream = {
        let gate = gate.clone();
        FakeUpstream::start(Dialect::OpenAi, move |call| {
            answers::catalog(call).unwrap_or_else(|| {
                [vec![Step::Until(gate.clone())], answers::good(call, "hello")].concat()
            })
        })
    };
    let conf = Conf::new().fake("u", &upstream, "").text("[overload]\ncalm = \"1s\"");
    let start = Start { descriptors: Some(DESCRIPTORS), ..Start::default() };
    let daemon = Daemon::start_with(&sandbox, &conf, &start);
    let mut streams: Vec<Wire> = (0..STREAMS).map(|_| daemon.connect()).collect();
    for wire in &mut streams {
        wire.send(ask::chat(Dialect::OpenAi, "u/x", "hi", true));
    }
    assert_eventually!(daemon.limit_now("server.exchanges_max") == STREAMS as u64);
    // How many descriptors it needs for itself differs; idle operators make up what lacks, to 89 %.
    let mut operators: Vec<Wire> = Vec::new();
    while daemon.process().fds() < DESCRIPTORS as usize * 89 / 100 {
        let mut wire = Wire::connect(daemon.ops);
        wire.send(ask::get("/livez"));
        assert_eq!(wire.answer().unwrap().status(), 200);
        operators.push(wire);
    }
    assert_eventually!(level(&daemon) >= DEGRADED, "{} of 160", daemon.process().fds());
    drop(operators);
    let ready = wire::ask(daemon.ops, ask::get("/readyz?verbose")).text();
    assert!(ready.contains("descriptors"), "{ready}");
    gate.open();
    // Their heads leave with their first content: now.
    let told = |answer: &Answer| answer.header("x-tidegate-degraded").is_some();
    let answers: Vec<Answer> = streams.iter_mut().map(|wire| wire.answer().unwrap()).collect();
    assert!(answers.iter().all(|answer| answer.status() == 200));
    assert!(answers.iter().any(told), "no stream says that it is degraded");
    drop(streams);
    assert_eventually!(level(&daemon) == NORMAL, "{} of 160", daemon.process().fds());
    assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "u/x", "hi", true)).status(), 200);
}

#[test]
fn clients_that_announce_much_and_send_little_do_not_keep_others_out() {
    const HOLDERS: usize = 8;
    let sandbox = Sandbox::new();
    let conf = Conf::new().server("body_max = \"1MiB\"\nbodies_total_max = \"1MiB\"");
    let daemon = Daemon::start(&sandbox, &conf);
    let honest = chat(&"word ".repeat(60_000), false);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/json\r\nContent-Length: 1048576\r\n\r\n";
    let mut holders: Vec<Wire> = (0..HOLDERS).map(|_| daemon.connect()).collect();
    for wire in &mut holders {
        wire.send(head);
        wire.send([b' '; 100]);
    }
    assert_eventually!(daemon.limit_now("server.bodies_total_max") > 0);
    // What they announce is no loss to anybody.
    assert_eq!(daemon.ask(&honest).status(), 200);
    // What they send is, until it shows that no more comes of it.
    for wire in &mut holders {
        wire.send([b' '; 90_000]);
    }
    assert_eventually!(daemon.limit_now("server.bodies_total_max") == 1 << 20);
    assert_eventually!(daemon.ask(&honest).status() == 200);
    let cut = daemon.metrics().sum("tidegate_bodies_cut_total", &[]).unwrap() as usize;
    assert!((1..=HOLDERS).contains(&cut), "{cut}");
    // Those that were not in the way are still waited for.
    let told = holders.iter_mut().filter_map(|wire| {
        wire.socket().set_nonblocking(true).unwrap();
        let answered = wire.socket().peek(&mut [0; 1]).is_ok();
        wire.socket().set_nonblocking(false).unwrap();
        answered.then(|| wire.answer().unwrap())
    });
    let told: Vec<Answer> = told.collect();
    assert_eq!(told.len(), cut);
    for answer in told {
        assert_eq!((answer.status(), answer.code()), (503, "bodies_full".to_owned()));
        assert!(answer.header("retry-after").is_some());
    }
    drop(holders);
    assert_eventually!(daemon.limit_now("server.bodies_total_max") == 0);
}
