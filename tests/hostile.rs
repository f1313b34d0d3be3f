//! Clients that mean harm, or are just very slow: others are answered within 100 ms throughout, what
//! is shed is shed by the stated limits, and memory returns.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start};
use crate::support::load::Load;
use crate::support::peers::{FakeUpstream, Gate, Seen, Step, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::{Body, Fault, Wire};
use crate::support::{ask, patience};

/// The bound of every answer to somebody else.
const PROMPT: Duration = Duration::from_millis(100);

/// Asks the daemon small things all the time, on fresh connections and on a kept one, while `attack`
/// runs; fails when a single one took too long or was not answered with 200.
fn others_are_answered<T>(daemon: &Daemon, name: &str, attack: impl FnOnce() -> T) -> T {
    others_are_answered_with(daemon, name, &[200], attack)
}

fn others_are_answered_with<T>(
    daemon: &Daemon,
    name: &str,
    statuses: &[u16],
    attack: impl FnOnce() -> T,
) -> T {
    let over = AtomicBool::new(false);
    let load = Load::watch(daemon.process());
    let addr = daemon.addr;
    let probe = || {
        let mut times = Vec::new();
        let mut kept: Option<Wire> = None;
        let mut turn = 0;
        while !over.load(Ordering::Relaxed) || times.len() < 20 {
            let begun = Instant::now();
            let request = match turn % 3 {
                0 => ask::get("/api/version"),
                1 => ask::chat(Dialect::OpenAi, "echo", "hello", false),
                _ => ask::chat(Dialect::Ollama, "echo", "hello", true),
            };
            let fresh = turn % 2 == 0;
            let mut wire = match kept.take() {
                Some(wire) if !fresh => wire,
                _ => Wire::connect(addr),
            };
            let try_once = |wire: &mut Wire| {
                wire.try_send(&request).map_err(|e| Fault::Closed(e.to_string()))?;
                wire.answer()
            };
            let mut result = try_once(&mut wire);
            // A connection may be closed while it is idle (for a newcomer); then, once more. At a limit
            // of a few connections that goes for a fresh one, too: its request may be later than
            // the next twenty newcomers.
            if result.is_err() && (!fresh || statuses.contains(&503)) {
                wire = Wire::connect(addr);
                result = try_once(&mut wire);
            }
            times.push(begun.elapsed());
            let answer =
                result.unwrap_or_else(|fault| panic!("{name}: no answer to others: {fault:?}"));
            assert!(statuses.contains(&answer.status()), "{name}: others hear {}", answer.status());
            kept = (answer.header("connection") != Some("close")).then_some(wire);
            turn += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
        times
    };
    std::thread::scope(|scope| {
        let probing = scope.spawn(probe);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attack));
        over.store(true, Ordering::Relaxed);
        let times = probing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let worst = times.iter().max().unwrap();
        let (cores, bound) = (load.others(), load.allow(PROMPT));
        let slow = times.iter().filter(|time| **time > bound).count();
        let count = times.len();
        eprintln!(
            "others during {name}: worst {worst:.1?} of {count} (other programs: {cores:.1} cores)"
        );
        assert_eq!(
            slow, 0,
            "{name}: {slow} of {count} answers took over {bound:?}, worst {worst:?}"
        );
        result
    })
}

/// Lets this process have many sockets.
fn many_descriptors() {
    let now = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }).unwrap();
}

/// A crowd of plain sockets driven by one thread.
struct Crowd {
    sockets: Vec<TcpStream>,
}

impl Crowd {
    fn connect(to: SocketAddr, count: usize) -> Crowd {
        let mut sockets = Vec::with_capacity(count);
        for n in 0..count {
            // At most 2,000 a second: more than that is another test (a flood of connections fills
            // the kernel's queue, and whoever comes then waits for its end).
            if n % 50 == 49 {
                std::thread::sleep(Duration::from_millis(25));
            }
            let socket = TcpStream::connect_timeout(&to, patience(Duration::from_secs(5)));
            let socket = socket.unwrap_or_else(|e| panic!("connection {n}: {e}"));
            socket.set_nonblocking(true).unwrap();
            sockets.push(socket);
        }
        Crowd { sockets }
    }

    fn send_all(&mut self, bytes: &[u8]) {
        for socket in &mut self.sockets {
            let _ = socket.write_all(bytes);
        }
    }

    /// How many are closed by their peer, and with which statuses.
    fn closed(&mut self) -> (usize, Vec<u16>) {
        let mut closed = 0;
        let mut statuses = Vec::new();
        for socket in &mut self.sockets {
            let mut bytes = [0; 2048];
            loop {
                match socket.read(&mut bytes) {
                    Ok(0) => {
                        closed += 1;
                        break;
                    }
                    Ok(n) => {
                        let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
                        let status: Option<u16> =
                            text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok());
                        statuses.extend(status);
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {
                        closed += 1;
                        break;
                    }
                }
            }
        }
        (closed, statuses)
    }
}

/// Memory may settle a little above its start: the allocator keeps some pages, threads have stacks.
const SETTLED_KIB: u64 = 16 * 1024;

/// How long that may take: what was looked at while it was in use is looked at again within that.
const MEMORY_RETURNS: Duration = Duration::from_secs(30);

fn assert_memory_returns(daemon: &Daemon, before_kib: u64, name: &str) {
    let process = daemon.process();
    let settled = || process.rss_kib() < before_kib + SETTLED_KIB;
    let deadline = Instant::now() + patience(MEMORY_RETURNS);
    while !settled() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(
        settled(),
        "{name}: {} KiB before, {} KiB after, {} KiB at most",
        before_kib,
        process.rss_kib(),
        process.status_kib("VmHWM")
    );
    eprintln!(
        "memory during {name}: {before_kib} KiB before, {} at most, {} after",
        process.status_kib("VmHWM"),
        process.rss_kib()
    );
}

fn warm(daemon: &Daemon) -> u64 {
    daemon.wait_for_the_store();
    for _ in 0..50 {
        daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello", true));
    }
    daemon.process().rss_kib()
}

#[test]
fn a_thousand_slow_heads_cost_buffers_and_end_at_the_head_deadline() {
    let sandbox = Sandbox::alone();
    many_descriptors();
    let daemon = Daemon::start(&sandbox, &Conf::new().server("head_timeout = \"4s\""));
    let before = warm(&daemon);
    let threads = daemon.process().threads().len();
    others_are_answered(&daemon, "1,000 slow heads", || {
        let begun = Instant::now();
        let mut crowd = Crowd::connect(daemon.addr, 1000);
        crowd.send_all(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nX: ");
        let mut statuses = Vec::new();
        let mut closed_in_time = 0;
        while begun.elapsed() < patience(Duration::from_secs(6)) {
            std::thread::sleep(Duration::from_millis(500));
            // A byte now and then must not move an absolute deadline.
            crowd.send_all(b"x");
            let (closed, seen) = crowd.closed();
            statuses.extend(seen);
            if begun.elapsed() < Duration::from_millis(3500) {
                assert_eq!(closed, 0, "closed before the deadline");
                assert!(
                    daemon.process().threads().len() <= threads + 2,
                    "a slow head costs a thread"
                );
            }
            closed_in_time = closed;
        }
        assert_eq!(closed_in_time, 1000, "slow heads outlive head_timeout");
        assert!(statuses.iter().all(|status| *status == 408), "{statuses:?}");
        assert!(statuses.len() > 900, "only {} were told why", statuses.len());
    });
    assert_memory_returns(&daemon, before, "1,000 slow heads");
    daemon.assert_well("after slow heads");
}

#[test]
fn four_hundred_slow_bodies_cost_buffers_and_end_at_the_minimum_rate() {
    let sandbox = Sandbox::alone();
    many_descriptors();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "hello"));
    let daemon =
        Daemon::start(&sandbox, &Conf::new().fake("u", &upstream, "").model("m", "u/x", &[]));
    let before = warm(&daemon);
    let threads = daemon.process().threads().len();
    others_are_answered(&daemon, "400 slow bodies", || {
        let begun = Instant::now();
        let mut crowd = Crowd::connect(daemon.addr, 400);
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{\"model\": \"m\", ";
        crowd.send_all(head.as_bytes());
        let mut statuses = Vec::new();
        let mut closed_at_end = 0;
        // The rate is judged after 5 s.
        while begun.elapsed() < patience(Duration::from_secs(9)) && closed_at_end < 400 {
            std::thread::sleep(Duration::from_secs(1));
            crowd.send_all(b" ");
            let (closed, seen) = crowd.closed();
            statuses.extend(seen);
            if begun.elapsed() < Duration::from_millis(4500) {
                assert_eq!(closed, 0, "closed within the grace");
                assert!(
                    daemon.process().threads().len() <= threads + 2,
                    "a slow body costs a thread"
                );
            }
            closed_at_end = closed;
        }
        assert_eq!(closed_at_end, 400, "slow bodies live on");
        assert!(statuses.iter().all(|status| *status == 408), "{statuses:?}");
    });
    assert_eq!(upstream.seen().len(), 0);
    assert_eventually!(daemon.limit_now("server.bodies_total_max") == 0);
    assert_memory_returns(&daemon, before, "400 slow bodies");
}

#[test]
fn slow_readers_are_closed_when_nothing_moves_and_their_upstream_with_them() {
    let sandbox = Sandbox::alone();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        if let Some(catalog) = answers::catalog(call) {
            return catalog;
        }
        let text = "x".repeat(16 * 1024);
        vec![
            Step::Send(answers::stream_head(Dialect::OpenAi)),
            // Not so fast that the upstream itself is what holds the machine up.
            Step::Repeat(answers::chunk(&answers::text(call, &text)), Duration::from_millis(8)),
        ]
    });
    let conf = Conf::new().server("write_timeout = \"2s\"").fake("u", &upstream, "");
    let daemon = Daemon::start(&sandbox, &conf);
    let before = warm(&daemon);
    others_are_answered(&daemon, "40 slow readers", || {
        let readers: Vec<(usize, Wire)> = (0..40)
            .map(|n| {
                let mut wire = daemon.connect();
                // Small, so that the kernel's buffers are full soon, and what is timed is the stall.
                socket2::SockRef::from(wire.socket()).set_recv_buffer_size(128 * 1024).unwrap();
                wire.send(ask::chat(Dialect::OpenAi, "u/x", &format!("reader {n}"), true));
                (n, wire)
            })
            .collect();
        for (n, _) in &readers {
            let prompt = format!("reader {n}");
            upstream.wait_seen(&prompt);
            // How long it takes says how fast the machine fills those buffers; that it ends, counts.
            let closed = |seen: &[Seen]| seen.iter().find(|s| s.call.prompt() == prompt)?.closed_at;
            let closed = upstream.wait_for(Duration::from_secs(60), closed);
            assert!(closed.is_some(), "{prompt}: its upstream goes on");
        }
        for (n, mut wire) in readers {
            let head = wire.head().unwrap();
            assert_eq!(head.status, 200);
            let mut body = Body::of(&head, "POST").unwrap();
            let end = loop {
                match wire.piece(&mut body) {
                    Ok(Some(_)) => {}
                    other => break other,
                }
            };
            assert!(
                matches!(end, Err(Fault::Closed(_))),
                "reader {n}: it looks like a good end: {end:?}"
            );
        }
    });
    assert_memory_returns(&daemon, before, "slow readers");
    assert_eventually!(daemon.limit_now("server.exchanges_max") == 0);
}

/// Slow is allowed, standing still is not: progress keeps a slow reader alive.
#[test]
fn a_reader_that_is_slow_but_moves_gets_everything() {
    let sandbox = Sandbox::new();
    let text = "word ".repeat(200_000);
    let daemon = Daemon::start(&sandbox, &Conf::new().server("write_timeout = \"3s\""));
    let mut wire = daemon.connect();
    socket2::SockRef::from(wire.socket()).set_recv_buffer_size(8192).unwrap();
    wire.send(ask::chat(Dialect::OpenAi, "echo", text.trim_end(), false));
    let mut all = Vec::new();
    let mut piece = [0; 16 * 1024];
    let mut socket = wire.socket();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        let n = socket.read(&mut piece).unwrap();
        all.extend_from_slice(&piece[..n]);
        if n == 0 || all.ends_with(b"}") && all.len() > text.len() {
            break;
        }
        if all.len() < 20 * piece.len() {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    assert!(all.len() > text.len(), "only {} of {} bytes", all.len(), text.len());
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_the_longest_idle_make_room() {
    let sandbox = Sandbox::alone();
    many_descriptors();
    let conf = Conf::new().server("connections_max = 10000");
    let start = Start { descriptors_soft: Some(1024), ..Start::default() };
    let daemon = Daemon::start_with(&sandbox, &conf, &start);
    let before = warm(&daemon);
    let threads = daemon.process().threads().len();
    let allowed = daemon.metrics().limit("max", "server.connections_max");
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    assert!(allowed <= 10_000.min(hard / 2), "{allowed} connections, of {hard} descriptors");
    assert!(
        allowed + 100 >= 10_000.min(hard / 2),
        "the soft limit of descriptors was not raised: {allowed}"
    );
    if allowed < 10_000 {
        assert_eventually!(
            daemon.log().contains("connections_max"),
            "no warning that the limit was lowered"
        );
    }
    let crowd = others_are_answered(&daemon, "10,000 idle connections", || {
        // As many as this process may have, where that is less.
        let count = 10_000.min(hard as usize - 500);
        let mut crowd = Crowd::connect(daemon.addr, count);
        assert_eventually!(
            daemon.metrics().limit("now", "server.connections_max") + 100
                >= allowed.min(count as u64)
        );
        let held = daemon.metrics().limit("now", "server.connections_max");
        assert!(held <= allowed, "{held} connections, {allowed} allowed");
        let now = daemon.process().threads();
        assert!(
            now.len() <= threads + 16,
            "idle connections cost threads: {threads}, then {now:?}"
        );
        // Some have spoken before they idle.
        for socket in crowd.sockets.iter_mut().rev().take(500) {
            let _ = socket.write_all(&ask::get("/api/version"));
        }
        std::thread::sleep(Duration::from_secs(2));
        let rss = daemon.process().rss_kib();
        eprintln!(
            "10,000 idle connections: {} bytes each",
            rss.saturating_sub(before) * 1024 / held
        );
        assert!(rss < before + 64 * 1024, "{before} KiB became {rss} KiB");
        crowd
    });
    drop(crowd);
    assert_eventually!(daemon.limit_now("server.connections_max") == 0);
    assert_memory_returns(&daemon, before, "10,000 idle connections");
    daemon.assert_well("after idle connections");
}

/// What large bodies took goes back, also where the allocator would keep it for the next one.
#[test]
fn memory_of_large_bodies_returns() {
    let sandbox = Sandbox::alone();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "hello"));
    let conf = Conf::new().fake("u", &upstream, "").model("m", "u/x", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let before = warm(&daemon);
    // Bodies of many sizes, among them those that lie below and above every threshold.
    let sizes = [100, 400, 900, 3_000, 12_000, 20_000].map(|kib: usize| kib * 1024);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut wire = daemon.connect().wait_at_most(patience(Duration::from_secs(60)));
                for size in sizes {
                    let prompt = "x".repeat(size);
                    let answer = wire.ask(ask::chat(Dialect::OpenAi, "m", &prompt, false));
                    assert_eq!(answer.status(), 200, "{}", answer.text());
                }
            });
        }
    });
    assert_memory_returns(&daemon, before, "large bodies");
}

#[test]
fn past_the_limit_of_connections_the_longest_idle_is_closed_for_the_newcomer() {
    let sandbox = Sandbox::alone();
    let daemon = Daemon::start(&sandbox, &Conf::new().server("connections_max = 50"));
    let mut crowd = Crowd::connect(daemon.addr, 50);
    assert_eventually!(daemon.limit_now("server.connections_max") == 50);
    for _ in 0..3 {
        let answer = daemon.ask(ask::get("/api/version"));
        assert_eq!(answer.status(), 200, "a newcomer must be served");
    }
    assert!(daemon.metrics().limit("high_water", "server.connections_max") <= 50);
    let mut bytes = [0; 16];
    let first = crowd.sockets[0].read(&mut bytes);
    assert!(matches!(first, Ok(0)), "the longest idle is closed, silently: {first:?}");
    let last = crowd.sockets[49].read(&mut bytes);
    assert!(last.is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "the youngest stays");
}

#[test]
fn past_the_limit_of_connections_a_newcomer_hears_503_when_all_are_busy() {
    let sandbox = Sandbox::alone();
    let gate = Gate::new();
    let opener = gate.clone();
    let upstream = FakeUpstream::start(Dialect::OpenAi, move |call| {
        [vec![Step::Until(gate.clone())], answers::good(call, "hello")].concat()
    });
    let conf = Conf::new().server("connections_max = 10").fake("u", &upstream, "");
    let daemon = Daemon::start(&sandbox, &conf);
    let mut busy: Vec<Wire> = (0..10).map(|_| daemon.connect()).collect();
    for (n, wire) in busy.iter_mut().enumerate() {
        wire.send(ask::chat(Dialect::OpenAi, "u/x", &format!("busy {n}"), false));
    }
    for n in 0..10 {
        upstream.wait_seen(&format!("busy {n}"));
    }
    let mut wire = daemon.connect();
    let _ = wire.try_send(ask::get("/api/version"));
    let answer = wire.answer().expect("a newcomer is told");
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.code(), "connections_full");
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    assert!(wire.closes_within(Duration::from_secs(2)));
    opener.open();
    for mut wire in busy {
        assert_eq!(wire.answer().unwrap().status(), 200, "those inside are not disturbed");
    }
    assert_eq!(daemon.ask(ask::get("/api/version")).status(), 200);
}

#[test]
fn pipelined_requests_of_a_client_that_never_reads_stay_in_its_own_socket() {
    let sandbox = Sandbox::alone();
    let daemon = Daemon::start(&sandbox, &Conf::new().server("write_timeout = \"3s\""));
    let before = warm(&daemon);
    let request = ask::get("/api/version");
    others_are_answered(&daemon, "300,000 pipelined requests", || {
        let mut socket = TcpStream::connect(daemon.addr).unwrap();
        socket.set_write_timeout(Some(patience(Duration::from_secs(10)))).unwrap();
        let batch = request.repeat(1000);
        let mut sent = 0;
        let begun = Instant::now();
        while sent < 300_000 {
            match socket.write_all(&batch) {
                Ok(()) => sent += 1000,
                Err(_) => break,
            }
        }
        assert!(sent < 300_000, "it took them all from a client that reads nothing");
        assert!(begun.elapsed() < patience(Duration::from_secs(9)), "not closed by write_timeout");
        let most = daemon.process().status_kib("VmHWM");
        assert!(most < before + 32 * 1024, "{before} KiB became {most} KiB");
    });
    assert_memory_returns(&daemon, before, "pipelined requests");
    assert_eventually!(daemon.limit_now("server.connections_max") == 0);
}

#[test]
fn three_hundred_thousand_pipelined_requests_are_all_answered_to_a_client_that_reads() {
    const COUNT: usize = 300_000;
    let sandbox = Sandbox::alone();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let before = warm(&daemon);
    let request = ask::get("/api/version");
    others_are_answered(&daemon, "300,000 answered requests", || {
        let socket = TcpStream::connect(daemon.addr).unwrap();
        let mut writer = socket.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            let batch = request.repeat(1000);
            for _ in 0..COUNT / 1000 {
                writer.write_all(&batch).unwrap();
            }
        });
        let mut socket = socket;
        socket.set_read_timeout(Some(patience(Duration::from_secs(10)))).unwrap();
        let mut piece = vec![0; 256 * 1024];
        let (mut count, mut tail) = (0, Vec::new());
        while count < COUNT {
            let n = socket.read(&mut piece).unwrap_or_else(|e| panic!("{count} answers, then {e}"));
            assert!(n > 0, "closed after {count} answers");
            tail.extend_from_slice(&piece[..n]);
            let what = b"HTTP/1.1 200 OK\r\n";
            count += tail.windows(what.len()).filter(|window| window == what).count();
            let keep = tail.len().saturating_sub(what.len() - 1);
            tail.drain(..keep);
        }
        assert_eq!(count, COUNT);
        sender.join().unwrap();
        let most = daemon.process().status_kib("VmHWM");
        assert!(most < before + 32 * 1024, "{before} KiB became {most} KiB");
    });
}

#[test]
fn a_header_line_of_200_megabytes_is_refused_at_its_first_kilobytes() {
    let sandbox = Sandbox::alone();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let before = warm(&daemon);
    others_are_answered(&daemon, "a header line of 200 MB", || {
        for _ in 0..5 {
            let begun = Instant::now();
            let mut wire = daemon.connect();
            wire.send("GET /api/version HTTP/1.1\r\nHost: localhost\r\nX: ");
            let piece = vec![b'x'; 1 << 20];
            let mut sent = 0;
            while sent < 200 && wire.try_send(&piece).is_ok() {
                sent += 1;
            }
            assert!(sent < 200, "it reads all of it");
            match wire.answer() {
                Ok(answer) => assert_eq!(answer.status(), 431),
                // The reset may overtake the answer once more than the linger takes was sent.
                Err(fault) => assert!(matches!(fault, Fault::Closed(_)), "{fault:?}"),
            }
            assert!(begun.elapsed() < patience(Duration::from_secs(3)));
        }
        let most = daemon.process().status_kib("VmHWM");
        assert!(most < before + 16 * 1024, "{before} KiB became {most} KiB");
    });
    // A client that stops in time hears why.
    let mut wire = daemon.connect();
    wire.send(format!(
        "GET /api/version HTTP/1.1\r\nHost: localhost\r\nX: {}",
        "x".repeat(100_000)
    ));
    assert_eq!(wire.answer().unwrap().status(), 431);
}

#[test]
fn with_96_descriptors_it_starts_serves_and_recovers() {
    let sandbox = Sandbox::alone();
    let start = Start { descriptors: Some(96), ..Start::default() };
    let daemon = Daemon::start_with(&sandbox, &Conf::new(), &start);
    let allowed = daemon.metrics().limit("max", "server.connections_max");
    assert!((1..=16).contains(&allowed), "{allowed} connections with 96 descriptors");
    // Shed by the stated limit is an answer, too: 503 when nobody idle can make room.
    others_are_answered_with(&daemon, "a descriptor limit of 96", &[200, 503], || {
        for _ in 0..5 {
            let mut crowd = Crowd::connect(daemon.addr, 200);
            std::thread::sleep(Duration::from_millis(200));
            crowd.send_all(&ask::get("/api/version"));
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    assert_eventually!(daemon.limit_now("server.connections_max") == 0);
    // Upstream connections need descriptors too.
    let upstream_answers = (0..30)
        .filter(|_| daemon.ask(ask::chat(Dialect::Ollama, "echo", "hi", true)).status() == 200);
    assert_eq!(upstream_answers.count(), 30);
    let errors = daemon.metrics().sum("tidegate_accept_errors_total", &[("engine", "data")]);
    assert_eq!(
        errors,
        Some(0.0),
        "it ran out of descriptors although idle connections could make room"
    );
    daemon.assert_well("after 96 descriptors");
}

/// The same, and its own limit does not help: every descriptor is taken by exchanges.
#[test]
fn running_out_of_descriptors_for_upstreams_is_an_error_and_not_the_end() {
    let sandbox = Sandbox::alone();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        let mut steps = vec![Step::Pause(Duration::from_millis(500))];
        steps.extend(answers::good(call, "hello"));
        steps
    });
    let start = Start { descriptors: Some(96), ..Start::default() };
    let daemon = Daemon::start_with(&sandbox, &Conf::new().fake("u", &upstream, ""), &start);
    std::thread::scope(|scope| {
        for _ in 0..60 {
            scope.spawn(|| {
                let Ok(mut wire) = Wire::try_connect(daemon.addr) else { return };
                if wire.try_send(ask::chat(Dialect::OpenAi, "u/x", "hi", false)).is_err() {
                    return;
                }
                match wire.answer() {
                    Ok(answer) => {
                        assert!(matches!(answer.status(), 200 | 502 | 503), "{}", answer.status())
                    }
                    Err(fault) => assert!(matches!(fault, Fault::Closed(_)), "{fault:?}"),
                }
            });
        }
    });
    assert_eventually!(daemon.limit_now("server.connections_max") == 0);
    assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "u/x", "hi", false)).status(), 200);
    daemon.assert_well("after running out of descriptors");
}

/// 2 of 960 got no answer from the server that this project does not use.
#[test]
fn simultaneous_connections_are_all_answered() {
    let sandbox = Sandbox::alone();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let idle = Crowd::connect(daemon.addr, 24);
    for _ in 0..40 {
        std::thread::scope(|scope| {
            for _ in 0..24 {
                scope.spawn(|| {
                    let mut wire = daemon.connect().wait_at_most(Duration::from_millis(1500));
                    assert_eq!(wire.ask(ask::get("/api/version")).status(), 200);
                });
            }
        });
    }
    drop(idle);
    assert_eventually!(daemon.limit_now("server.connections_max") == 0);
}

/// Connections that come and go without a word, half a request, or a reset in the middle of an answer.
#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let sandbox = Sandbox::alone();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let before = warm(&daemon);
    assert_eventually!(daemon.limit_now("server.connections_max") == 0);
    let (fds, threads) = (daemon.process().fds(), daemon.process().threads().len());
    others_are_answered(&daemon, "comings and goings", || {
        for n in 0..3000 {
            let Ok(mut wire) = Wire::try_connect(daemon.addr) else { panic!("refused at {n}") };
            let _ = match n % 6 {
                0 => Ok(()),
                1 => wire.try_send("GET /api/ver"),
                2 => wire.try_send(&ask::chat(Dialect::OpenAi, "echo", "hello", true)[..60]),
                3 => wire.try_send(ask::chat(Dialect::OpenAi, "echo", &"hello ".repeat(200), true)),
                4 => wire.try_send(ask::chat(Dialect::Ollama, "echo", "hello", false)),
                _ => wire.try_send([0xff; 100]),
            };
            if n % 2 == 0 { wire.reset() } else { drop(wire) }
        }
    });
    assert_eventually!(daemon.limit_now("server.connections_max") == 0);
    // The control socket looks after its own server from time to time.
    assert_eventually!(daemon.process().fds() <= fds + 2, "{:?}", daemon.process().fd_targets());
    assert_eventually!(
        daemon.process().threads().len() <= threads + 8,
        "{:?}",
        daemon.process().threads()
    );
    assert_memory_returns(&daemon, before, "comings and goings");
    daemon.assert_well("after comings and goings");
}
