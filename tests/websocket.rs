//! The WebSocket codec, at the echo of a drill: the cases that the Autobahn test suite lists, by its
//! numbers, driven by the tests' own client, and peers that mean harm to the codec.
//! `tests/autobahn/run.py` runs the suite itself.

mod cases;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start};
use crate::support::patience;
use crate::support::random::Random;
use crate::support::sandbox::Sandbox;
use crate::support::wire::Fault;
use crate::support::ws::{BINARY, CLOSE, Frame, Message, PONG, TEXT, Ws};
use cases::{Case, End, Step, Verdict};

/// Where the echo is.
const ECHO: &str = "/drill/ws-echo";

/// Most echoes at once.
const ECHOES_MAX: usize = 16;

/// The largest message that the echo takes, in bytes.
const MESSAGE_BYTES_MAX: u64 = 25 << 20;

fn start(sandbox: &Sandbox) -> Daemon {
    let env = vec![("TIDEGATE_DRILLS".to_owned(), "1".to_owned())];
    Daemon::start_with(sandbox, &Conf::new(), &Start { env, ..Start::default() })
}

fn connect(daemon: &Daemon) -> Ws {
    Ws::connect(daemon.addr, ECHO, "")
}

fn echoes(daemon: &Daemon) -> usize {
    daemon.process().threads().iter().filter(|name| *name == "ws-echo").count()
}

/// Sends and reads what the case says; a fault is told in words.
fn play(ws: &mut Ws, case: &Case) -> Result<Verdict, String> {
    let mut verdict = Verdict::Ok;
    // The peer may have closed already: then the end tells.
    for step in &case.steps {
        match step {
            Step::Send(bytes) => drop(ws.try_send(bytes)),
            Step::Chops(bytes, size) => {
                let _ = bytes.chunks(*size).try_for_each(|piece| ws.try_send(piece));
            }
            Step::Comes(expected) => {
                let came = ws.message();
                if came.as_ref() != Ok(expected) {
                    return Err(format!("expected {:.80?}, got {:.80?}", expected, came));
                }
            }
            Step::Should(expected) => match ws.message() {
                Ok(came) if came == *expected => {}
                Ok(Message::Close(1002, _)) => return Ok(Verdict::NonStrict),
                came => return Err(format!("expected {expected:?} or the end, got {came:?}")),
            },
        }
    }
    let codes = match &case.end {
        End::Ours => {
            ws.send(&Frame::close(1000, ""));
            vec![1000]
        }
        End::Theirs(codes) => codes.to_vec(),
        End::Answered(codes) => codes.clone(),
        End::Anyhow => return Ok(Verdict::Informational),
    };
    let code = match ws.message() {
        Ok(Message::Close(code, _)) if codes.contains(&code) => code,
        came => return Err(format!("expected a close with one of {codes:?}, got {came:?}")),
    };
    if matches!(case.end, End::Theirs(_)) {
        let _ = ws.try_send(&Frame::close(code, "").bytes());
    }
    match ws.frame() {
        Err(Fault::Closed(_)) => {}
        more => verdict = Verdict::Failed(format!("no end behind the close: {more:?}")),
    }
    Ok(verdict)
}

/// Plays all cases, some at a time: how many, and what came of them.
fn conform(cases: &[Case]) -> (usize, String) {
    let sandbox = Sandbox::new();
    let daemon = start(&sandbox);
    let next = AtomicUsize::new(0);
    let play_some = || {
        let mut played = Vec::new();
        while let Some(case) = cases.get(next.fetch_add(1, SeqCst)) {
            let mut ws = connect(&daemon);
            ws.leave_pings();
            let verdict = play(&mut ws, case).unwrap_or_else(Verdict::Failed);
            played.push((case.number.clone(), verdict));
        }
        played
    };
    let verdicts: Vec<(String, Verdict)> = std::thread::scope(|scope| {
        let players: Vec<_> = (0..3).map(|_| scope.spawn(play_some)).collect();
        players.into_iter().flat_map(|player| player.join().unwrap()).collect()
    });
    let mut counts = BTreeMap::<_, usize>::new();
    for (number, verdict) in &verdicts {
        let chapter = number.split('.').next().unwrap().to_owned();
        let word = match verdict {
            Verdict::Ok => "OK",
            Verdict::NonStrict => "NON-STRICT",
            Verdict::Informational => "INFORMATIONAL",
            Verdict::Failed(_) => "FAILED",
        };
        *counts.entry((chapter, word)).or_default() += 1;
    }
    let report =
        counts.iter().map(|((chapter, word), count)| format!("{chapter}.*: {count} {word}"));
    let report = report.collect::<Vec<_>>().join(", ");
    let strict = |verdict: &Verdict| matches!(verdict, Verdict::Ok | Verdict::Informational);
    let failed: Vec<_> = verdicts.iter().filter(|(_, verdict)| !strict(verdict)).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    daemon.assert_well("after the cases");
    let numbers: BTreeSet<_> = verdicts.iter().map(|(number, _)| number).collect();
    (numbers.len(), report)
}

#[test]
fn frames_control_frames_opcodes_fragments_text_and_closes_are_as_the_standard_has_them() {
    let (count, report) = conform(&cases::of_rules());
    eprintln!("WebSocket conformance, {count} cases: {report}");
    assert_eq!(count, 16 + 11 + 7 + 10 + 20 + 145 + 37);
}

#[test]
fn messages_of_all_sizes_whole_and_in_pieces_come_back() {
    let (count, report) = conform(&cases::of_sizes());
    eprintln!("WebSocket conformance, {count} cases: {report}");
    assert_eq!(count, 54 + 1);
}

#[test]
fn the_echo_is_there_in_drills_only_and_what_is_no_opening_handshake_gets_an_http_answer() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let refused = Ws::upgrade(daemon.connect(), ECHO, "").err().unwrap();
    assert_eq!(refused.status(), 404);
    drop(daemon);
    let daemon = start(&sandbox);
    let good = Ws::request(ECHO, "c2l4dGVlbiBieXRlcyBvaw==", "");
    let ask = |from: &str, to: &str| daemon.ask(good.replace(from, to));
    let old = ask("Version: 13", "Version: 8");
    assert_eq!((old.status(), &*old.code()), (426, "websocket_version"));
    assert_eq!(old.header("sec-websocket-version"), Some("13"));
    assert_eq!(old.header("upgrade"), Some("websocket"));
    for (from, to) in [
        ("c2l4dGVlbiBieXRlcyBvaw==", "c2l4dGVlbg=="),
        ("Connection: Upgrade", "Connection: keep-alive"),
        ("HTTP/1.1", "HTTP/1.0"),
    ] {
        assert_eq!(ask(from, to).status(), 400, "{to}");
    }
    // An ordinary request, and a handshake of a page from elsewhere.
    assert_eq!(ask("Upgrade: websocket\r\n", "").status(), 404);
    assert_eq!(ask("Host:", "Origin: https://elsewhere.example\r\nHost:").status(), 403);
    assert_eq!(ask("Host: localhost", "Host: elsewhere.example").status(), 403);
}

#[test]
fn what_is_sent_together_with_the_request_is_read_as_frames() {
    let sandbox = Sandbox::new();
    let daemon = start(&sandbox);
    let mut wire = daemon.connect();
    let request = Ws::request(ECHO, "c2l4dGVlbiBieXRlcyBvaw==", "");
    // So much that more than one read brings it.
    let text = "early ".repeat(10_000);
    wire.send([request.as_bytes(), &Frame::text(&text).bytes()].concat());
    assert_eq!(wire.head().unwrap().status, 101);
    let (mut socket, mut got) = wire.into_parts();
    while got.len() < 4 + text.len() {
        let mut piece = [0; 4096];
        let n = socket.read(&mut piece).unwrap();
        assert!(n > 0, "the end came first");
        got.extend_from_slice(&piece[..n]);
    }
    assert_eq!(&got[4..], text.as_bytes());
}

#[test]
fn a_message_that_is_announced_too_large_is_told_1009_though_all_of_it_is_sent() {
    let sandbox = Sandbox::new();
    let daemon = start(&sandbox);
    let mut ws = connect(&daemon);
    let head = Frame::new(TEXT, "").announcing(64 << 20).bytes();
    ws.try_send(&head).unwrap();
    assert!(matches!(ws.message(), Ok(Message::Close(1009, _))), "before any byte of it is sent");
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..64 {
        ws.try_send(&piece).unwrap();
    }
    ws.send(&Frame::close(1009, ""));
    assert_eq!(ws.frame(), Err(Fault::Closed("FIN".to_owned())), "an end and no reset");
    // The same by a client that reads only after it has sent everything.
    let mut ws = connect(&daemon);
    ws.try_send(&head).unwrap();
    for _ in 0..64 {
        ws.try_send(&piece).unwrap();
    }
    assert!(matches!(ws.message(), Ok(Message::Close(1009, _))));
    // In fragments: the frame that passes the bound.
    let mut ws = connect(&daemon);
    ws.try_send(&Frame::new(TEXT, "x").more().bytes()).unwrap();
    let rest = Frame::new(0, "").announcing(MESSAGE_BYTES_MAX).bytes();
    ws.try_send(&rest).unwrap();
    assert!(matches!(ws.message(), Ok(Message::Close(1009, _))));
}

#[test]
fn what_is_announced_and_not_sent_costs_no_memory() {
    let sandbox = Sandbox::new();
    let daemon = start(&sandbox);
    daemon.wait_for_the_store();
    // What the first connections of a process cost is not of these.
    drop((0..12).map(|_| connect(&daemon)).collect::<Vec<_>>());
    let before = daemon.process().rss_kib();
    let mut all: Vec<Ws> = (0..12).map(|_| connect(&daemon)).collect();
    for ws in &mut all {
        let head = Frame::new(BINARY, "").announcing(MESSAGE_BYTES_MAX).bytes();
        ws.try_send(&[&head[..], &[b'x'; 2000]].concat()).unwrap();
    }
    let mut other = connect(&daemon);
    other.text("still there");
    assert_eq!(other.message(), Ok(Message::Text("still there".to_owned())));
    let grown = daemon.process().rss_kib().saturating_sub(before);
    assert!(grown < 12 * 200, "{grown} KiB for 12 messages of which 2 KB came");
    assert!(all.iter_mut().all(|ws| !ws.is_closing()), "they wait for the rest");
}

#[test]
fn a_flood_of_pings_ends_with_1008_and_some_are_fine() {
    let sandbox = Sandbox::new();
    let daemon = start(&sandbox);
    let mut ws = connect(&daemon);
    for number in 0..100 {
        ws.send(&Frame::ping(number.to_string()));
    }
    for number in 0..100 {
        assert_eq!(ws.message(), Ok(Message::Pong(number.to_string().into_bytes())));
    }
    let mut flooded = connect(&daemon);
    let flood = Frame::new(PONG, "").bytes().repeat(50_000);
    let _ = flooded.try_send(&flood);
    assert!(matches!(flooded.message(), Ok(Message::Close(1008, _))));
    let mut other = connect(&daemon);
    other.text("harmed nobody");
    assert_eq!(other.message(), Ok(Message::Text("harmed nobody".to_owned())));
}

#[test]
fn a_message_that_comes_a_byte_at_a_time_ends_with_1008() {
    let sandbox = Sandbox::new();
    let daemon = start(&sandbox);
    let mut slow = connect(&daemon);
    let head = Frame::new(BINARY, "").announcing(1000).bytes();
    slow.try_send(&head).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < patience(Duration::from_secs(30)) && !slow.is_closing() {
        let _ = slow.try_send(b"x");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(begun.elapsed() >= Duration::from_secs(4), "5 s are grace");
    assert!(matches!(slow.message(), Ok(Message::Close(1008, _))));
}

#[test]
fn connections_that_end_anywhere_leave_nothing_behind() {
    let sandbox = Sandbox::new();
    let daemon = start(&sandbox);
    daemon.wait_for_the_store();
    drop(connect(&daemon));
    assert_eventually!(echoes(&daemon) == 0, "an echo goes on");
    let descriptors = daemon.process().fds();
    let whole = [
        Frame::new(TEXT, vec![b'x'; 300]).more().bytes(),
        Frame::ping("p").bytes(),
        Frame::new(0, vec![b'x'; 300]).bytes(),
        Frame::close(1000, "bye").bytes(),
    ]
    .concat();
    for (number, end) in (0..whole.len()).step_by(5).enumerate() {
        let mut ws = connect(&daemon);
        ws.try_send(&whole[..end]).unwrap();
        if number % 2 == 0 {
            ws.reset();
        }
    }
    assert_eventually!(echoes(&daemon) == 0, "an echo goes on");
    assert_eventually!(daemon.limit_now("server.connections_max") <= 1, "a place is taken");
    // An echo that has ended leaves its bell in its place, until the place is used again.
    let most = descriptors + ECHOES_MAX + 2;
    let targets = || daemon.process().fd_targets();
    assert_eventually!(targets().len() <= most, "more than {most} descriptors: {:?}", targets());
}

#[test]
fn bytes_at_random_harm_nobody() {
    let sandbox = Sandbox::new();
    let daemon = start(&sandbox);
    let mut random = Random::new(6455);
    for _ in 0..200 {
        let mut ws = connect(&daemon);
        let length = random.below(300) + 1;
        let mut bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        if random.below(2) == 0 {
            // A good frame first, and then a masked one, so that more than the first check is tried.
            bytes[1 % length as usize] |= 0x80;
            bytes.splice(0..0, Frame::text("fine").bytes());
        }
        let _ = ws.try_send(&bytes);
        ws.wait_at_most(Duration::from_millis(1));
        if let Ok(got) = ws.frame()
            && got.opcode == CLOSE
        {
            assert!(matches!(got.close_code().0, 1000..=1009), "{got:?}");
        }
    }
    daemon.assert_well("after bytes at random");
    assert_eventually!(echoes(&daemon) == 0, "an echo goes on");
}
