//! WebSocket peers that mean harm, or are just very slow: each is bounded, closed with the right code,
//! and costs nobody else anything.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::daemon::Daemon;
use crate::support::patience;
use crate::support::sandbox::Sandbox;
use crate::support::wire::{Fault, Wire};
use crate::support::ws::room::{TOKEN, admin, conf};
use crate::support::ws::{BINARY, CONTINUATION, Client, Frame, Hello, PING, TEXT, Ws};

/// Small bounds, so that each is reached soon.
const SMALL: &str = "handshake_timeout = \"1s\"\npayload_max = \"1MiB\"\nbuffered_max = \"64KiB\"\n\
                     telemetry_max = \"16KiB\"\nmessages_total_max = \"4MiB\"\nwrite_timeout = \"1s\"\n\
                     ping_interval = \"20s\"\nconnections_per_address_max = 40";

/// The bound of an answer to somebody else meanwhile, as for HTTP.
const PROMPT: Duration = Duration::from_millis(100);

/// Memory that a hostile peer may cost, beyond what the settings let it.
const GROWTH_KIB: u64 = 12 * 1024;

/// A daemon with small bounds, and somebody well-behaved who asks it things all the time while
/// `attack` runs; fails when one answer was late, or when memory or connections are not back after it.
fn under_attack<T>(name: &str, lines: &str, attack: impl FnOnce(&Daemon) -> T) -> T {
    let sandbox = Sandbox::alone();
    let daemon = Daemon::start(&sandbox, &conf(&sandbox, lines));
    let mut operator = admin(&daemon);
    operator.request("health", json!({})).unwrap();
    daemon.wait_for_the_store();
    let memory = daemon.process().rss_kib();
    let over = AtomicBool::new(false);
    let neighbour = || {
        let mut slowest = Duration::ZERO;
        let mut asked = 0;
        while !over.load(Ordering::Relaxed) || asked < 20 {
            let begun = Instant::now();
            operator.request("health", json!({})).unwrap();
            slowest = slowest.max(begun.elapsed());
            asked += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        slowest
    };
    let (result, slowest) = std::thread::scope(|scope| {
        let asking = scope.spawn(neighbour);
        let attack = std::panic::AssertUnwindSafe(|| attack(&daemon));
        let result = std::panic::catch_unwind(attack);
        over.store(true, Ordering::Relaxed);
        let slowest = asking.join().unwrap();
        (result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), slowest)
    });
    let allowed = daemon.allow(PROMPT);
    assert!(slowest <= allowed, "{name}: another waited {slowest:?} of {allowed:?}");
    let high = daemon.process().status_kib("VmHWM").saturating_sub(memory);
    assert!(high <= GROWTH_KIB, "{name}: {high} KiB more than {memory} KiB");
    let ws = || daemon.process().threads().iter().filter(|name| name.starts_with("ws-")).count();
    assert_eventually!(ws() == 1, "{name}: {} threads", ws());
    daemon.assert_well(name);
    result
}

fn operator(daemon: &Daemon) -> Client {
    Client::operator(daemon, Some(TOKEN), &["operator.read", "operator.write"])
}

/// What a client hears of a close; a reset is one, too.
fn code(closed: Result<(u16, String), Fault>) -> u16 {
    closed.unwrap_or_else(|fault| panic!("no close: {fault:?}")).0
}

#[test]
fn a_peer_that_never_reads_is_closed_once_its_answers_do_not_fit() {
    under_attack("never reads", SMALL, |daemon| {
        let mut peer = operator(daemon);
        peer.wait_at_most(Duration::from_millis(300));
        let request = json!({"type": "req", "id": "x".repeat(200), "method": "health"});
        let frame = Frame::text(&request.to_string()).bytes().repeat(100);
        let begun = Instant::now();
        // Until the gateway takes nothing more: it reads no further request before there is an answer
        // to the last, and those that it has answered have filled what may wait.
        while peer.ws().try_send(&frame).is_ok() {
            assert!(begun.elapsed() < patience(Duration::from_secs(15)), "it takes for ever");
        }
        // Now it reads: what had gone out already, and why there is no more.
        peer.wait_at_most(Duration::from_secs(10));
        // A Close can only stand behind the frame that is half out: who reads it too late finds the end.
        let close = peer.ws().close_frame();
        assert!(matches!(close, Ok((1008, _)) | Err(Fault::Closed(_))), "{close:?}");
        let slow = ("tidegate_nodes_ended_total", [("reason", "slow")]);
        let ended = || daemon.metrics().sum(slow.0, &slow.1);
        assert_eventually!(ended() == Some(1.0), "{:?}", ended());
    });
}

#[test]
fn peers_that_send_for_ever_without_coming_to_an_end_are_closed() {
    under_attack("slow", SMALL, |daemon| {
        std::thread::scope(|scope| {
            scope.spawn(|| hello_by_the_byte(daemon));
            scope.spawn(|| message_by_the_byte(daemon));
            for size in [0, 1, 1000] {
                scope.spawn(move || fragments(daemon, size));
            }
            scope.spawn(|| announced_and_not_sent(daemon));
        });
    });
}

/// Before the handshake's end its deadline holds, whatever comes.
fn hello_by_the_byte(daemon: &Daemon) {
    let mut ws = Ws::connect(daemon.addr, "/", "");
    ws.message().unwrap();
    let begun = Instant::now();
    for byte in Frame::text(&"x".repeat(1000)).bytes() {
        if ws.try_send(&[byte]).is_err() || ws.is_closing() {
            break;
        }
        assert!(begun.elapsed() < patience(Duration::from_secs(5)), "it may take for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(code(ws.close_frame()), 1008);
}

/// After it, a message has to come at a least rate.
fn message_by_the_byte(daemon: &Daemon) {
    let mut peer = operator(daemon);
    let begun = Instant::now();
    for piece in Frame::text(&" ".repeat(100_000)).bytes().chunks(5) {
        if peer.ws().try_send(piece).is_err() || peer.ws().is_closing() {
            break;
        }
        assert!(begun.elapsed() < patience(Duration::from_secs(15)), "it may take for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(code(peer.ws().close_frame()), 1008);
}

/// Fragments of one message: its size is bounded like that of any, and so is its time.
fn fragments(daemon: &Daemon, size: usize) {
    let mut peer = operator(daemon);
    peer.ws().send(&Frame::text("{").more());
    let one = Frame::new(CONTINUATION, vec![b' '; size]).more().bytes();
    let many = one.repeat(10_000 / one.len());
    let begun = Instant::now();
    while peer.ws().try_send(&many).is_ok() && !peer.ws().is_closing() {
        assert!(
            begun.elapsed() < patience(Duration::from_secs(15)),
            "{size}: it may take for ever"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    // What is sent on behind the close may end in a reset, which takes the close away.
    match peer.ws().close_frame() {
        Ok((code, _)) => assert!([1008, 1009].contains(&code), "{size}: {code}"),
        Err(fault) => assert!(matches!(fault, Fault::Closed(_)), "{size}: {fault:?}"),
    }
}

/// Messages that are refused for what their head announces.
fn announced_and_not_sent(daemon: &Daemon) {
    let mut peers = Vec::new();
    for length in [64 << 20, 1 << 62, (1 << 20) + 1] {
        let mut peer = operator(daemon);
        let begun = Instant::now();
        peer.ws().try_send(&Frame::text("").announcing(length).bytes()).unwrap();
        assert_eq!(code(peer.ws().close_frame()), 1009, "{length}");
        assert!(begun.elapsed() < daemon.allow(Duration::from_secs(1)), "{:?}", begun.elapsed());
        peers.push(peer);
    }
    // Before the handshake the bound is smaller.
    let mut ws = Ws::connect(daemon.addr, "/", "");
    ws.message().unwrap();
    ws.send(&Frame::text("").announcing(65 * 1024));
    assert_eq!(code(ws.close_frame()), 1009);
    // The end is the gateway's to make, though there is nothing that it could take for a close.
    for peer in &mut peers {
        assert_eq!(peer.ws().end(), Ok(()));
    }
}

#[test]
fn a_flood_of_pings_is_closed() {
    under_attack("pings", SMALL, |daemon| {
        let mut peer = operator(daemon);
        let pings = Frame::new(PING, vec![7; 125]).bytes().repeat(1000);
        for _ in 0..1000 {
            if peer.ws().try_send(&pings).is_err() {
                break;
            }
        }
        assert_eq!(code(peer.closed()), 1008);
    });
}

#[test]
fn a_message_of_64_mib_is_refused_and_not_kept() {
    // As it is by default: a message may have 25 MiB.
    under_attack("64 MiB", "", |daemon| {
        let mut peer = operator(daemon);
        let piece = vec![b'x'; 1 << 20];
        peer.ws().try_send(&Frame::text("").announcing(64 << 20).bytes()).unwrap();
        for _ in 0..64 {
            if peer.ws().try_send(&piece).is_err() {
                break;
            }
        }
        assert_eq!(code(peer.ws().close_frame()), 1009);
    });
}

#[test]
fn handshakes_that_never_end_are_few_and_short() {
    under_attack("half-open", SMALL, |daemon| {
        let begun = Instant::now();
        let mut open = Vec::new();
        let mut refused = 0;
        // One place is the neighbour's.
        for _ in 0..60 {
            match Ws::upgrade(Wire::connect(daemon.addr), "/", "") {
                Ok(ws) => open.push(ws),
                Err(answer) => {
                    assert_eq!(answer.status(), 503, "{}", answer.text());
                    assert!(answer.header("retry-after").is_some(), "{:?}", answer.head);
                    refused += 1;
                }
            }
        }
        if begun.elapsed() < Duration::from_millis(900) {
            assert_eq!((open.len(), refused), (39, 21));
        }
        for ws in &mut open {
            assert_eq!(code(ws.closed()), 1008);
        }
        // Their places are free again.
        drop(open);
        assert_eventually!(Ws::upgrade(Wire::connect(daemon.addr), "/", "").is_ok());
    });
}

#[test]
fn frames_that_break_the_protocol_are_told_so() {
    under_attack("wrong frames", SMALL, |daemon| {
        let wrong = [
            ("without a mask", Frame::text("{}").mask(None), 1002),
            ("a reserved bit", Frame::text("{}").rsv(4), 1002),
            ("an unknown opcode", Frame::new(3, ""), 1002),
            ("a long ping", Frame::new(PING, vec![0; 126]), 1002),
            ("half a ping", Frame::ping("").more(), 1002),
            ("an end of nothing", Frame::new(CONTINUATION, ""), 1002),
            ("no UTF-8", Frame::new(TEXT, vec![0xFF]), 1007),
            ("bytes", Frame::new(BINARY, "{}"), 1003),
        ];
        for (name, frame, expected) in wrong {
            let mut peer = operator(daemon);
            peer.ws().send(&frame);
            assert_eq!(code(peer.closed()), expected, "{name}");
        }
    });
}

#[test]
fn a_first_message_that_is_no_connect_ends_the_connection() {
    under_attack("no connect", SMALL, |daemon| {
        for text in ["{}", "[]", "x", r#"{"type":"req","id":"1","method":"health"}"#] {
            let mut ws = Ws::connect(daemon.addr, "/", "");
            ws.message().unwrap();
            ws.text(text);
            assert_eq!(code(ws.closed()), 1008, "{text}");
        }
        let refused = Hello::operator(&[]).token("wrong").connect(daemon.addr).err().unwrap();
        assert_eq!(refused.close.unwrap().0, 1008, "{}", refused.error);
    });
}
