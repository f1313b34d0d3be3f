use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::*;
use crate::base::error::{Error, Kind};
use crate::base::id::RequestId;
use crate::base::lock::{Locked, Rank};
use crate::base::permits::Permit;
use crate::net::conn::ClientConn;
use crate::net::http::{Head, Request, Response};
use crate::net::http1::HeadLimits;
use crate::net::inward::{self, Came, InwardCall, InwardRequest};
use crate::net::pressure::Pressure;
use crate::net::pump::{Flow, FlowStep};
use crate::net::service::{Admission, Caller, GiveUp, Job, Step, Wait};
use crate::net::turn::Turn;
use crate::net::websocket::{self, Upgraded};

struct Hello {
    gate: Arc<Permits>,
    /// Met twice by each `/run`: when it runs, and when it may end.
    running: Arc<Barrier>,
    looks: Arc<AtomicUsize>,
    beats: Arc<Heartbeats>,
    taken: Taken,
}

/// Connections that became WebSockets.
type Taken = Arc<Locked<Vec<Upgraded>>>;

struct Gated {
    gate: Option<Permit>,
}

impl Job for Gated {
    fn run(mut self: Box<Self>, permit: Option<Permit>, _: &mut Turn<'_>) -> Step {
        self.gate = permit;
        Step::Respond(Response::text(200, "gated"))
    }

    fn give_up(self: Box<Self>, error: Error) -> GiveUp {
        GiveUp::Respond(Response::text(error.row().status, error.row().code))
    }
}

/// Brings bytes on until a line ends; panics at an exclamation mark.
struct Lines {
    upstream: Option<UnixStream>,
    _writing: Thread,
}

impl Flow for Lines {
    fn upstream(&self) -> Option<BorrowedFd<'_>> {
        self.upstream.as_ref().map(AsFd::as_fd)
    }

    fn read(&mut self, _: Instant, out: &mut Vec<u8>) -> FlowStep {
        let mut bytes = [0; 64];
        let Some(upstream) = &mut self.upstream else { return FlowStep::Wait };
        match upstream.read(&mut bytes) {
            Ok(n) => out.extend_from_slice(&bytes[..n]),
            Err(_) => return FlowStep::Wait,
        }
        assert!(!out.contains(&b'!'), "as asked");
        if out.ends_with(b"\n") {
            self.upstream = None;
            return FlowStep::End;
        }
        FlowStep::Again
    }

    fn deadline(&self) -> Instant {
        clock::now() + Duration::from_secs(60)
    }

    fn end_by(&self) -> Instant {
        self.deadline()
    }

    fn expired(&mut self, _: Instant, _: &mut Vec<u8>) -> FlowStep {
        FlowStep::Wait
    }

    fn lost(&mut self, _: Error) {}

    fn ended(&mut self, _: u64) {}

    fn tail(&mut self) -> bool {
        true
    }
}

/// Much at once, then nothing; its own deadline is long over, its end is not.
struct Heavy {
    end_by: Instant,
    looks: Arc<AtomicUsize>,
}

impl Flow for Heavy {
    fn upstream(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn read(&mut self, _: Instant, out: &mut Vec<u8>) -> FlowStep {
        out.resize(64 << 20, b'x');
        FlowStep::Wait
    }

    fn deadline(&self) -> Instant {
        self.looks.fetch_add(1, SeqCst);
        clock::now()
    }

    fn end_by(&self) -> Instant {
        self.end_by
    }

    fn expired(&mut self, _: Instant, _: &mut Vec<u8>) -> FlowStep {
        FlowStep::Wait
    }

    fn lost(&mut self, _: Error) {}

    fn ended(&mut self, _: u64) {}

    fn tail(&mut self) -> bool {
        true
    }
}

impl Service for Hello {
    fn admit(
        &self,
        head: &Head,
        _: &SocketAddr,
        _: &RequestId,
    ) -> Result<Admission, Box<Response>> {
        assert!(head.path() != "/panic-early", "as asked");
        if head.path() == "/no" {
            return Err(Box::new(Response::text(403, "no")));
        }
        let body_max = if head.path() == "/large" { 32 << 20 } else { 1000 };
        Ok(Admission { body_max, route: 7, ..Admission::default() })
    }

    fn admit_inward(
        &self,
        head: &Head,
        caller: &Caller,
        id: &RequestId,
    ) -> Result<Admission, Error> {
        self.admit(head, &caller.peer, id)
            .map_err(|response| Error::new(Kind::NotFound, response.status.to_string()))
    }

    fn start(&self, request: Request, turn: &mut Turn<'_>) -> Step {
        match request.head.path() {
            "/panic" => panic!("as asked"),
            "/run" => {
                assert!(turn.begin_exchange());
                self.running.wait();
                self.running.wait();
                Step::Respond(Response::text(200, "ran"))
            }
            "/flow-heavy" => {
                assert!(turn.begin_exchange());
                let mut client = turn.client();
                client.start(200, &[]);
                client.send(b"one").unwrap();
                let end_by = clock::now() + Duration::from_millis(700);
                let flow = Heavy { end_by, looks: Arc::clone(&self.looks) };
                Step::Flow { flow: Box::new(flow), bytes: 3 }
            }
            "/heavy" => {
                assert!(turn.begin_exchange());
                let mut client = turn.client();
                client.end_by(clock::now() + Duration::from_millis(700));
                client.start(200, &[]);
                let sent = client.send(&vec![b'x'; 64 << 20]);
                assert!(matches!(sent, Err(error) if error.kind() == Kind::ClientStalled));
                Step::Streamed { keep_alive: false }
            }
            "/panic-late" => {
                let mut client = turn.client();
                client.start(200, &[]);
                client.send(b"one").unwrap();
                panic!("as asked")
            }
            "/stream" => {
                assert!(turn.begin_exchange());
                let mut client = turn.client();
                client.start(200, &[("content-type", "text/plain")]);
                for word in ["one ", "two ", "three"] {
                    if client.send(word.as_bytes()).is_err() {
                        return Step::Streamed { keep_alive: false };
                    }
                }
                Step::Streamed { keep_alive: client.finish(b"").unwrap_or(false) }
            }
            "/gate-late" => {
                // Asks to wait when there is nobody left to wait with.
                while self.beats.pulses(clock::now()).iter().any(|pulse| pulse.essential) {
                    std::thread::yield_now();
                }
                let wait = Wait { permits: Arc::clone(&self.gate), deadline: clock::now() };
                Step::Wait(Box::new(Gated { gate: None }), wait)
            }
            "/gate" => {
                let deadline = clock::now() + Duration::from_millis(300);
                let wait = Wait { permits: Arc::clone(&self.gate), deadline };
                Step::Wait(Box::new(Gated { gate: None }), wait)
            }
            path @ ("/flow" | "/flow-panic") => {
                assert!(turn.begin_exchange());
                let (upstream, mut writer) = UnixStream::pair().unwrap();
                upstream.set_nonblocking(true).unwrap();
                let words = if path == "/flow" { "four five six\n" } else { "!\n" };
                let writing = thread::spawn("writer", move || {
                    for byte in words.as_bytes() {
                        let _ = writer.write_all(&[*byte]);
                    }
                });
                let mut client = turn.client();
                client.start(200, &[]);
                client.send(b"three ").unwrap();
                let flow = Lines { upstream: Some(upstream), _writing: writing.unwrap() };
                Step::Flow { flow: Box::new(flow), bytes: 0 }
            }
            "/ws" => {
                let accept = websocket::accept(&request.head).unwrap();
                let taken = Arc::clone(&self.taken);
                let taker = Box::new(move |upgraded| {
                    taken.with(|taken| taken.push(upgraded));
                });
                Step::Upgrade { accept, taker }
            }
            "/big" => Step::Respond(Response::text(200, vec![b'x'; 8 << 20])),
            "/huge" => Step::Respond(Response::text(200, vec![b'x'; 64 << 20])),
            _ => Step::Respond(Response::text(200, request.body)),
        }
    }

    fn broken(&self, _: &Error, route: u16) -> Response {
        Response::text(500, format!("broken route {route}"))
    }

    fn refuse(&self, error: &Error, _: Option<&Head>, _: &SocketAddr, _: &RequestId) -> Response {
        Response::text(error.row().status, error.row().code)
    }
}

fn settings() -> Settings {
    Settings {
        head: HeadLimits { head_max: 16 << 10, headers_max: 100, target_max: 8 << 10 },
        head_timeout: Duration::from_millis(300),
        body_rate_min: 1024,
        body_timeout: Duration::from_millis(600),
        keepalive_timeout: Duration::from_secs(5),
        write_timeout: Duration::from_millis(500),
        queue_timeout: Duration::from_millis(500),
        waiting_timeout: Duration::from_secs(1),
        connections_max: 8,
        connections_per_address_max: 0,
        trusted_proxies: Vec::new(),
        body_max: 1 << 20,
        bodies_total_max: 1 << 20,
        answers_total_max: 256 << 20,
        request_timeout: Duration::from_secs(60),
        exchanges_max: 4,
        waiting_max: 4,
    }
}

struct Running {
    engine: Option<Engine>,
    gate: Arc<Permits>,
    running: Arc<Barrier>,
    looks: Arc<AtomicUsize>,
    registry: Registry,
    taken: Taken,
}

fn start() -> Running {
    let gate = Permits::new(Limit::detached(1), Limit::detached(2));
    // More exchanges than `settings` allows, and the test.
    let running = Arc::new(Barrier::new(8 + 1));
    let looks = Arc::<AtomicUsize>::default();
    let beats = Arc::<Heartbeats>::default();
    let taken = Arc::new(Locked::new(Rank::Leaf, Vec::new()));
    let service = Arc::new(Hello {
        gate: Arc::clone(&gate),
        running: Arc::clone(&running),
        looks: Arc::clone(&looks),
        beats: Arc::clone(&beats),
        taken: Arc::clone(&taken),
    });
    let fixed = Fixed {
        name: "data",
        listen: "127.0.0.1:0".parse().unwrap(),
        workers: 2,
        queue_max: 8,
        pumps: 1,
    };
    let registry = Registry::default();
    let engine = Engine::start(&fixed, settings(), service, &registry, &beats).unwrap();
    Running { engine: Some(engine), gate, running, looks, registry, taken }
}

impl Running {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.engine.as_ref().unwrap().address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    fn now(&self, name: &str) -> u64 {
        let (_, limits) = self.registry.gather();
        limits.iter().find(|limit| limit.name == name).unwrap().limit.now()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.taken.with(Vec::clear);
        let engine = self.engine.take().unwrap();
        let late = engine.stop(clock::now() + Duration::from_secs(5));
        assert_eq!(late, 0, "threads left");
        assert_eq!(self.now("server.bodies_total_max"), 0);
        assert_eq!(self.now("server.exchanges_max"), 0);
        assert_eq!(self.now("server.connections_max"), 0);
    }
}

/// Everything until the peer closes, or `until` was seen.
fn read_until(stream: &mut TcpStream, until: &str) -> String {
    let mut got = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(n) => got.extend_from_slice(&bytes[..n]),
        }
        if String::from_utf8_lossy(&got).contains(until) {
            break;
        }
    }
    String::from_utf8(got).unwrap()
}

#[test]
fn requests_are_answered_in_order_also_when_they_come_at_once_or_byte_by_byte() {
    let running = start();
    let mut stream = running.connect();
    let one = "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello";
    let two = "GET /stream HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(format!("{one}{two}{one}").as_bytes()).unwrap();
    let got = read_until(&mut stream, "0\r\n\r\n");
    assert!(got.contains("content-length: 5\r\n"), "{got}");
    assert!(got.contains("\r\n\r\nhello"), "{got}");
    assert!(got.contains("4\r\none \r\n"), "{got}");
    let got = if got.matches("hello").count() == 2 {
        String::new()
    } else {
        read_until(&mut stream, "hello")
    };
    assert!(got.is_empty() || got.contains("hello"), "{got}");
    for byte in one.as_bytes() {
        stream.write_all(&[*byte]).unwrap();
    }
    assert!(read_until(&mut stream, "hello").ends_with("hello"));
}

#[test]
fn what_is_wrong_is_refused_and_the_connection_closed() {
    let running = start();
    for (request, code) in [
        ("GET / HTTP/1.1\r\n\r\n", "bad_request"),
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n", "body_too_large"),
        ("POST /no HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n", "\r\n\r\nno"),
        ("GET / HTT", "request_timeout"),
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx", "request_timeout"),
        // The service is not asked to refuse it, which it would count and log once more.
        ("GET /panic HTTP/1.1\r\nhost: x\r\n\r\n", "broken route 7"),
    ] {
        let mut stream = running.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let got = read_until(&mut stream, "never");
        assert!(got.ends_with(code), "{request:?}: {got}");
        assert!(got.contains("connection: close\r\n"), "{got}");
    }
}

#[test]
fn a_waiting_request_gets_its_permit_its_timeout_or_is_gone() {
    let running = start();
    let held = running.gate.try_acquire().unwrap();
    let ask = "GET /gate HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut late = running.connect();
    late.write_all(ask.as_bytes()).unwrap();
    assert!(read_until(&mut late, "waiting_timeout").contains("503"));
    let mut first = running.connect();
    first.write_all(ask.as_bytes()).unwrap();
    let mut leaver = running.connect();
    leaver.write_all(ask.as_bytes()).unwrap();
    while running.gate.waiting().now() < 2 {
        std::thread::yield_now();
    }
    let mut full = running.connect();
    full.write_all(ask.as_bytes()).unwrap();
    assert!(read_until(&mut full, "waiting_full").contains("503"));
    drop(leaver);
    while running.gate.waiting().now() > 1 {
        std::thread::yield_now();
    }
    drop(held);
    assert!(read_until(&mut first, "gated").contains("200 OK"));
}

#[test]
fn the_longest_idle_connection_makes_room_for_a_new_one() {
    let running = start();
    let mut idle: Vec<_> = (0..8).map(|_| running.connect()).collect();
    while running.now("server.connections_max") < 8 {
        std::thread::yield_now();
    }
    let ask = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut new = running.connect();
    new.write_all(ask.as_bytes()).unwrap();
    assert!(read_until(&mut new, "\r\n\r\n").contains("200 OK"));
    assert_eq!(read_until(&mut idle[0], "x"), "", "the first was closed");
    idle[7].write_all(ask.as_bytes()).unwrap();
    assert!(read_until(&mut idle[7], "\r\n\r\n").contains("200 OK"));
}

#[test]
fn a_slow_reader_holds_no_worker_and_is_closed_when_nothing_moves() {
    let running = start();
    let ask = "GET /big HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut slow: Vec<_> = (0..5).map(|_| running.connect()).collect();
    for stream in &mut slow {
        stream.write_all(ask.as_bytes()).unwrap();
    }
    let mut other = running.connect();
    other.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert!(read_until(&mut other, "\r\n\r\n").contains("200 OK"));
    let mut reader = running.connect();
    reader.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert!(all.len() > 8 << 20);
    while running.now("server.connections_max") > 1 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_flowing_stream_reaches_its_client_and_a_panic_in_one_harms_no_other() {
    let running = start();
    let mut stream = running.connect();
    for _ in 0..3 {
        stream.write_all(b"GET /flow HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let got = read_until(&mut stream, "0\r\n\r\n");
        let (_, body) = got.split_once("\r\n\r\n").unwrap();
        let text: String = body.split("\r\n").skip(1).step_by(2).collect();
        assert_eq!(text, "three four five six\n");
    }
    let mut broken = running.connect();
    broken.write_all(b"GET /flow-panic HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let got = read_until(&mut broken, "never");
    assert!(!got.ends_with("0\r\n\r\n"), "no end is told: {got}");
    stream.write_all(b"GET /flow HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert!(read_until(&mut stream, "0\r\n\r\n").contains("200 OK"));
    while running.now("server.exchanges_max") > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_panic_costs_one_connection_wherever_the_service_is_asked() {
    let running = start();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    for _ in 0..4 {
        // On the parking thread; then on a worker, behind another request.
        for requests in [get("/panic-early"), get("/") + &get("/panic-early")] {
            let mut stream = running.connect();
            stream.write_all(requests.as_bytes()).unwrap();
            let got = read_until(&mut stream, "never");
            assert_eq!(got.matches("200 OK").count(), requests.matches("GET").count() - 1);
        }
    }
    let mut stream = running.connect();
    stream.write_all(get("/panic-late").as_bytes()).unwrap();
    let got = read_until(&mut stream, "never");
    assert!(got.ends_with("3\r\none\r\n"), "no second head, no end: {got}");
    let mut stream = running.connect();
    stream.write_all(get("/").as_bytes()).unwrap();
    assert!(read_until(&mut stream, "\r\n\r\n").contains("200 OK"));
}

#[test]
fn a_reload_that_allows_more_exchanges_allows_their_threads_too() {
    let running = start();
    let engine = running.engine.as_ref().unwrap();
    engine.reconfigure(Settings { exchanges_max: 8, connections_max: 16, ..settings() });
    let (_, limits) = running.registry.gather();
    let threads = limits.iter().find(|limit| limit.name == "threads").unwrap();
    assert_eq!(threads.limit.max(), 2 + 8);
    let get = |path: &str| {
        let mut stream = running.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
        stream
    };
    let mut runs: Vec<_> = (0..8).map(|_| get("/run")).collect();
    running.running.wait();
    // All eight run, and others are answered.
    assert!(read_until(&mut get("/"), "\r\n\r\n").contains("200 OK"));
    running.running.wait();
    for run in &mut runs {
        assert!(read_until(run, "ran").contains("200 OK"));
    }
}

#[test]
fn a_client_that_reads_a_little_now_and_then_does_not_outlive_its_request() {
    let running = start();
    // On a pump, then on a worker.
    for path in ["/flow-heavy", "/heavy"] {
        let mut slow = running.connect();
        slow.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
        let mut bytes = [0; 16 * 1024];
        let began = clock::now();
        assert!(slow.read(&mut bytes).unwrap() > 0);
        // At this pace the whole of it takes far longer, whatever the kernel's buffers hold.
        while running.now("server.exchanges_max") > 0 {
            std::thread::sleep(Duration::from_millis(20));
            assert!(slow.read(&mut bytes).unwrap() > 0);
        }
        let took = clock::now() - began;
        assert!(took < Duration::from_secs(30), "{path}: {took:?}");
    }
    let looks = running.looks.load(SeqCst);
    assert!(looks < 50, "{looks} looks at one stream whose client takes its time");
}

#[test]
fn a_request_that_would_wait_after_the_end_is_answered_all_the_same() {
    let mut running = start();
    let mut stream = running.connect();
    stream.write_all(b"GET /gate-late HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    // It runs, once it is neither parked nor queued.
    while running.now("server.connections_max") == 0 || running.now("parked") > 0 {
        std::thread::yield_now();
    }
    // The drop stops the engine.
    running.engine.as_mut().unwrap().halt(clock::now() + Duration::from_secs(5));
    let got = read_until(&mut stream, "never");
    assert!(got.ends_with("draining"), "{got}");
}

#[test]
fn a_drain_closes_idle_connections_and_lets_refusals_arrive() {
    let mut running = start();
    let mut idle = running.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert!(read_until(&mut idle, "\r\n\r\n").contains("200 OK"));
    let mut refused = running.connect();
    refused.write_all(b"POST /no HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n").unwrap();
    assert!(read_until(&mut refused, "\r\n\r\nno").contains("403"));
    running.engine.as_mut().unwrap().begin_drain();
    assert_eq!(read_until(&mut idle, "never"), "");
    // What comes of its body is still taken: a reset would take the answer away.
    for _ in 0..20 {
        refused.write_all(&[b'x'; 1000]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_that_reads_slowly_but_steadily_gets_everything() {
    let running = start();
    let mut steady = running.connect();
    steady.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let (mut bytes, mut all) = ([0; 16 * 1024], 0);
    loop {
        let n = steady.read(&mut bytes).unwrap();
        if n == 0 {
            break;
        }
        all += n;
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(all > 8 << 20, "cut after {all} bytes");
}

#[test]
fn a_whole_answer_is_not_sent_for_longer_than_a_request_may_take() {
    let running = start();
    let engine = running.engine.as_ref().unwrap();
    engine.reconfigure(Settings { request_timeout: Duration::from_millis(700), ..settings() });
    let mut slow = running.connect();
    slow.write_all(b"GET /huge HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut bytes = [0; 16 * 1024];
    let began = clock::now();
    while running.now("server.connections_max") > 0 {
        // At this pace the whole of it takes far longer, whatever the kernel's buffers hold.
        let _ = slow.read(&mut bytes).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(clock::now() - began < Duration::from_secs(30), "it is sent for ever");
    }
    assert_eq!(running.now("server.answers_total_max"), 0);
}

#[test]
fn unsent_answers_are_bounded_and_whoever_stands_still_makes_room() {
    let running = start();
    let engine = running.engine.as_ref().unwrap();
    let write_timeout = Duration::from_secs(60);
    engine.reconfigure(Settings { answers_total_max: 100 << 20, write_timeout, ..settings() });
    let ask = b"GET /huge HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut still = running.connect();
    still.write_all(ask).unwrap();
    while running.now("server.answers_total_max") == 0 {
        std::thread::yield_now();
    }
    // One that has just come in the way of another that still moves is cut itself; but not for ever.
    loop {
        let mut reader = running.connect();
        reader.write_all(ask).unwrap();
        let mut all = Vec::new();
        // A cut may show as a reset.
        let _ = reader.read_to_end(&mut all);
        if all.len() > 64 << 20 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut all = Vec::new();
    let _ = still.read_to_end(&mut all);
    assert!(all.len() < 64 << 20, "it stood still, and was not cut");
    let (_, limits) = running.registry.gather();
    let answers = limits.iter().find(|l| l.name == "server.answers_total_max").unwrap();
    assert!(answers.limit.high_water() <= 100 << 20);
    assert!(answers.limit.refused() > 0);
}

/// A client as many are: it reads only after it has sent everything.
fn send_all_then_read(running: &Running, path: &str, length: usize) -> io::Result<String> {
    let mut stream = running.connect();
    write!(stream, "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")?;
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..length >> 20 {
        stream.write_all(&piece)?;
    }
    Ok(read_until(&mut stream, "never"))
}

#[test]
fn the_refusal_of_a_large_body_reaches_a_client_that_sends_before_it_reads() {
    let running = start();
    for _ in 0..3 {
        let got = send_all_then_read(&running, "/large", 33 << 20).unwrap();
        assert!(got.starts_with("HTTP/1.1 413 ") && got.ends_with("body_too_large"), "{got}");
    }
    // Not for a stranger, nor where it is known to be too much.
    let stranger = send_all_then_read(&running, "/no", 33 << 20);
    assert!(stranger.is_err(), "{stranger:?}");
    let endless = send_all_then_read(&running, "/large", 65 << 20);
    assert!(endless.is_err(), "{endless:?}");
    while running.now("drains") > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn bodies_that_are_read_to_be_thrown_away_are_bounded() {
    let running = start();
    let engine = running.engine.as_ref().unwrap();
    engine.reconfigure(Settings { connections_max: 256, ..settings() });
    let mut refused: Vec<TcpStream> = Vec::new();
    for _ in 0..DRAINS_MAX + 1 {
        let mut stream = running.connect();
        stream
            .write_all(b"POST /large HTTP/1.1\r\nhost: x\r\ncontent-length: 40000000\r\n\r\n")
            .unwrap();
        refused.push(stream);
    }
    for stream in &mut refused {
        assert!(read_until(stream, "body_too_large").contains(" 413 "));
    }
    let (_, limits) = running.registry.gather();
    let drains = limits.iter().find(|limit| limit.name == "drains").unwrap();
    let began = clock::now();
    while drains.limit.refused() == 0 {
        assert!(clock::now() - began < Duration::from_secs(3), "all of them are read on");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!((drains.limit.high_water(), drains.limit.max()), (DRAINS_MAX, DRAINS_MAX));
}

#[test]
fn a_thread_that_was_refused_is_asked_for_again_and_nobody_waits_for_it_for_ever() {
    let running = start();
    let engine = running.engine.as_ref().unwrap();
    engine.reconfigure(Settings { exchanges_max: 8, connections_max: 16, ..settings() });
    let get = |path: &str| {
        let mut stream = running.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
        stream
    };
    let refuse = &engine.shared.workers.refuse_threads;
    refuse.store(true, SeqCst);
    // Both workers run exchanges, and nobody takes their place.
    let mut runs: Vec<_> = (0..2).map(|_| get("/run")).collect();
    while running.now("server.exchanges_max") < 2 {
        std::thread::yield_now();
    }
    for _ in 0..2 {
        let got = read_until(&mut get("/"), "queue_timeout");
        assert!(got.starts_with("HTTP/1.1 503 "), "{got}");
    }
    assert_eq!(running.now("server.queue_max"), 0);
    // Threads may be had again: the queue is served although the exchanges run on.
    refuse.store(false, SeqCst);
    while !read_until(&mut get("/"), "\r\n\r\n").contains("200 OK") {}
    assert_eq!(running.now("server.exchanges_max"), 2);
    // The barrier wants eight, and the test.
    runs.extend((0..6).map(|_| get("/run")));
    running.running.wait();
    running.running.wait();
    for run in &mut runs {
        assert!(read_until(run, "ran").contains("200 OK"));
    }
}

#[test]
fn under_pressure_answers_are_marked_and_close_and_idle_connections_go() {
    let running = start();
    let throttle = running.engine.as_ref().unwrap().throttle();
    let ask = |stream: &mut TcpStream| {
        stream.write_all(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        read_until(stream, "0\r\n\r\n").to_ascii_lowercase()
    };
    let mut stays = running.connect();
    assert!(!ask(&mut stays).contains("x-mark"));
    let marked = Pressure { notice: Some(("x-mark", "yes")), ..Pressure::default() };
    throttle.press(marked);
    let got = ask(&mut stays);
    assert!(got.contains("x-mark: yes\r\n") && !got.contains("connection: close"), "{got}");
    // One of eight is 12 %.
    throttle.press(Pressure { keep_alive_percent: Some(10), ..marked });
    let got = ask(&mut stays);
    assert!(got.contains("connection: close\r\n"), "{got}");
    assert_eq!(stays.read(&mut [0; 1]).unwrap(), 0);
    throttle.press(Pressure::default());
    let mut idles = running.connect();
    assert!(!ask(&mut idles).contains("connection: close"));
    throttle.press(Pressure { idle_max: Some(Duration::ZERO), ..Pressure::default() });
    assert_eq!(idles.read(&mut [0; 1]).unwrap(), 0, "closed while it was idle");
    throttle.press(Pressure::default());
    assert!(ask(&mut running.connect()).contains("200 ok"));
    let load = throttle.load();
    assert_eq!((load.running.1, load.waiting.1, load.queued.1), (4, 4, 8));
}

fn from_inside(path: &'static str) -> InwardRequest {
    let peer = "127.0.0.1:9".parse().unwrap();
    let caller = Caller { key: Some("somebody".into()), granted: true, peer };
    InwardRequest { path, fields: vec![("x-a", "b".to_owned())], body: b"hello".to_vec(), caller }
}

/// The whole answer: its status and body.
fn answer_of(call: &mut InwardCall) -> Result<(u16, String), Error> {
    let bell = websocket::Bell::new().unwrap();
    let until = clock::now() + Duration::from_secs(10);
    let (mut body, mut ready) = (Vec::new(), Vec::new());
    while clock::now() < until {
        inward::wait(&bell, [&*call].into_iter(), until, &mut ready);
        if call.read(&mut body)? == Came::End {
            break;
        }
    }
    Ok((call.head().unwrap().status, String::from_utf8(body).unwrap()))
}

#[test]
fn what_the_process_asks_itself_is_served_like_any_request() {
    let running = start();
    let engine = running.engine.as_ref().unwrap();
    let inward = engine.inward(&running.registry, 8);
    for (path, expected) in [
        ("/a", (200, "hello")),
        ("/stream", (200, "one two three")),
        ("/flow", (200, "three four five six\n")),
        ("/panic", (500, "broken route 7")),
    ] {
        let mut call = inward.call(from_inside(path)).unwrap();
        let (status, body) = answer_of(&mut call).unwrap();
        assert_eq!((status, &*body), expected, "{path}");
    }
    // Bytes that nobody has a use for do not become a request.
    let mut big = inward.call(from_inside("/big")).unwrap();
    assert_eq!(answer_of(&mut big).unwrap().1.len(), 8 << 20);
    let mut broken = inward.call(from_inside("/panic-late")).unwrap();
    assert_eq!(answer_of(&mut broken).unwrap_err().kind(), Kind::UpstreamCut);
}

#[test]
fn what_the_process_asks_itself_is_refused_at_the_bounds_and_ends_with_its_client() {
    let mut running = start();
    let kind = |result: Result<InwardCall, Error>| result.unwrap_err().kind();
    let engine = running.engine.as_ref().unwrap();
    let inward = engine.inward(&running.registry, 2);
    assert_eq!(kind(inward.call(from_inside("/no"))), Kind::NotFound);
    let large = InwardRequest { body: vec![b'x'; 1001], ..from_inside("/a") };
    assert_eq!(kind(inward.call(large)), Kind::BodyTooLarge);
    let huge = InwardRequest { body: vec![b'x'; 2 << 20], ..from_inside("/large") };
    assert_eq!(kind(inward.call(huge)), Kind::BodiesFull);
    // Two wait for the one permit there is, and are held by somebody who leaves.
    let permit = running.gate.try_acquire().unwrap();
    let calls = [inward.call(from_inside("/gate")), inward.call(from_inside("/gate"))];
    assert!(calls.iter().all(Result::is_ok));
    assert_eq!(kind(inward.call(from_inside("/a"))), Kind::ConnectionsFull);
    assert_eq!((running.now("inward_max"), running.now("server.connections_max")), (2, 0));
    assert!(!engine.drained());
    drop(calls);
    let patience = clock::now() + Duration::from_secs(5);
    while running.now("inward_max") > 0 {
        assert!(clock::now() < patience, "a call whose client left goes on");
        std::thread::yield_now();
    }
    assert!(engine.drained());
    drop(permit);
    running.engine.as_mut().unwrap().begin_drain();
    assert_eq!(kind(inward.call(from_inside("/a"))), Kind::Draining);
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn a_connection_that_becomes_a_websocket_is_handed_over_with_what_came_and_keeps_its_place() {
    let running = start();
    let mut stream = running.connect();
    // On a connection that had an answer before, and with bytes behind the request.
    stream
        .write_all(format!("GET / HTTP/1.1\r\nhost: x\r\n\r\n{UPGRADE}early").as_bytes())
        .unwrap();
    let got = read_until(&mut stream, "connection: upgrade\r\n\r\n");
    assert!(got.contains("HTTP/1.1 101 Switching Protocols\r\n"), "{got}");
    while running.taken.with(|taken| taken.is_empty()) {
        std::thread::yield_now();
    }
    let upgraded = running.taken.with(Vec::pop).unwrap();
    assert_eq!(upgraded.leftover, b"early");
    assert_eq!(upgraded.peer(), stream.local_addr().unwrap());
    assert_eq!(running.now("server.connections_max"), 1);
    assert!(!running.engine.as_ref().unwrap().drained());
    drop(upgraded);
    assert_eq!(read_until(&mut stream, "never"), "", "the engine has no hand on it");
    assert_eq!(running.now("server.connections_max"), 0);
}

#[test]
fn a_101_that_the_socket_does_not_take_at_once_is_parked_and_the_connection_handed_over_then() {
    let running = start();
    let shared = &running.engine.as_ref().unwrap().shared;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (stream, peer) = listener.accept().unwrap();
    let place = shared.connections.try_take(1).unwrap();
    let conn = Box::new(ClientConn::new(stream, peer, place, None).unwrap());
    let taken = Arc::clone(&running.taken);
    let taker = Box::new(move |upgraded| taken.with(|taken| taken.push(upgraded)));
    let out = vec![b'x'; 16 << 20];
    shared.inbox.park(conn, Purpose::Upgrade { out, taker });
    while running.now("server.answers_total_max") == 0 {
        std::thread::yield_now();
    }
    assert!(running.taken.with(|taken| taken.is_empty()), "its rest is not out");
    let mut got = vec![0; 16 << 20];
    client.read_exact(&mut got).unwrap();
    while running.taken.with(|taken| taken.is_empty()) {
        std::thread::yield_now();
    }
    assert_eq!(running.now("server.answers_total_max"), 0);
    assert_eq!(running.now("server.connections_max"), 1);
}
