use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use super::life::CONTROLS_MAX;
use super::*;
use crate::net::websocket::codec::tests::frame;

const MAX: u64 = 1 << 20;

struct Pair {
    socket: WebSocket,
    peer: TcpStream,
    bell: Bell,
    total: Arc<Limit>,
}

fn pair() -> Pair {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (ours, _) = listener.accept().unwrap();
    let (bell, total) = (Bell::new().unwrap(), Limit::detached(4 * MAX));
    let limits = Limits { message_max: MAX, rate_min: 1024 };
    let socket = WebSocket::new(Upgraded::of(ours), bell.clone(), limits, Arc::clone(&total));
    Pair { socket, peer, bell, total }
}

fn soon() -> Instant {
    clock::now() + Duration::from_secs(5)
}

impl Pair {
    /// Waits for the next thing.
    fn next(&mut self) -> Result<Came, Fault> {
        let until = soon();
        loop {
            if let Some(came) = self.socket.take()? {
                return Ok(came);
            }
            assert!(clock::now() < until, "nothing came");
            self.socket.wait(until, true).unwrap();
        }
    }

    fn reads(&mut self, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        self.peer.read_exact(&mut got).unwrap();
        assert_eq!(got, expected);
    }

    /// Everything until our end, and whether that was an end and no reset.
    fn reads_to_the_end(&mut self) -> (Vec<u8>, bool) {
        let mut got = Vec::new();
        let clean = self.peer.read_to_end(&mut got).is_ok();
        (got, clean)
    }
}

#[test]
fn messages_go_both_ways_and_pings_are_answered() {
    let mut pair = pair();
    pair.peer.write_all(&[frame(0x81, b"one"), frame(0x81, b"two")].concat()).unwrap();
    for expected in ["one", "two"] {
        let Came::Text(text, _) = pair.next().unwrap() else { panic!("no text") };
        assert_eq!(text, expected);
    }
    pair.socket.send_text(&[b"{\"a\":", b"1}"]).unwrap();
    pair.reads(b"\x81\x07{\"a\":1}");
    pair.peer.write_all(&frame(0x89, b"p")).unwrap();
    assert!(matches!(pair.next().unwrap(), Came::Ping));
    pair.reads(b"\x8a\x01p");
    pair.socket.ping(b"q").unwrap();
    pair.reads(b"\x89\x01q");
    pair.peer.write_all(&frame(0x8a, b"q")).unwrap();
    assert!(matches!(pair.next().unwrap(), Came::Pong));
    pair.peer.write_all(&frame(0x82, &[1, 2])).unwrap();
    assert!(matches!(pair.next().unwrap(), Came::Binary(bytes, _) if bytes == [1, 2]));
    assert_eq!(pair.total.now(), 0);
    let parts = [&b"x"[..]; 20];
    pair.socket.send_binary(&parts).unwrap();
    pair.reads(&[&b"\x82\x14"[..], &[b'x'; 20]].concat());
}

#[test]
fn a_long_message_comes_through_its_own_memory_and_gives_it_back() {
    let mut pair = pair();
    let payload: Vec<u8> = (0..MAX).map(|n| u8::try_from(n % 100).unwrap()).collect();
    let bytes = frame(0x82, &payload);
    let mut peer = pair.peer.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || peer.write_all(&bytes).unwrap());
        let Came::Binary(came, lease) = pair.next().unwrap() else { panic!("no bytes") };
        assert_eq!(came, payload);
        assert_eq!(lease.amount(), MAX);
        assert!(came.capacity() as u64 <= MAX + 64);
    });
    assert_eq!(pair.total.now(), 0);
    assert_eq!(pair.socket.input.capacity(), 0);
}

#[test]
fn the_bell_and_the_socket_wake_and_a_peer_that_left_is_noticed() {
    let mut pair = pair();
    let none = pair.socket.wait(clock::now(), true).unwrap();
    assert_eq!(none, Woke::default());
    pair.bell.ring();
    assert!(pair.socket.wait(soon(), true).unwrap().rung);
    assert_eq!(pair.socket.wait(clock::now(), true).unwrap(), Woke::default());
    pair.peer.write_all(&frame(0x81, b"x")).unwrap();
    let unread = pair.socket.wait(clock::now() + Duration::from_millis(20), false).unwrap();
    assert_eq!(unread, Woke::default(), "nothing is read now");
    assert!(pair.socket.wait(soon(), true).unwrap().readable);
    pair.peer.shutdown(Shutdown::Both).unwrap();
    assert!(pair.socket.wait(soon(), false).unwrap().hung_up);
    assert!(matches!(pair.next().unwrap(), Came::Text(..)), "what had come is read first");
    assert!(matches!(pair.next(), Err(Fault::Gone(_))));
}

#[test]
fn what_the_socket_does_not_take_waits_and_pongs_in_between_are_one() {
    let mut pair = pair();
    let big = vec![b'x'; 16 << 20];
    pair.socket.send_text(&[&big]).unwrap();
    assert!(pair.socket.unsent() > 0);
    for payload in [b"1", b"2", b"3"] {
        pair.peer.write_all(&frame(0x89, payload)).unwrap();
        assert!(matches!(pair.next().unwrap(), Came::Ping));
    }
    pair.socket.send_text(&[b"behind"]).unwrap();
    let moved = pair.socket.last_moved();
    let mut got = vec![0; 10 + big.len()];
    let mut peer = pair.peer.try_clone().unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            peer.read_exact(&mut got).unwrap();
            got
        });
        while pair.socket.unsent() > 0 {
            assert!(pair.socket.wait(soon(), false).unwrap().writable);
            pair.socket.flush().unwrap();
        }
        assert!(reader.join().unwrap().ends_with(b"xxx"));
    });
    assert!(pair.socket.last_moved() > moved);
    pair.reads(b"\x81\x06behind\x8a\x013");
    assert_eq!(pair.socket.out, Out::new(pair.socket.last_moved()), "no memory is kept");
}

#[test]
fn the_peers_close_is_answered_and_the_socket_closed_by_us() {
    let mut pair = pair();
    pair.peer.write_all(&frame(0x88, b"\x0f\xa0tick timeout")).unwrap();
    assert!(matches!(pair.next().unwrap(), Came::Close(4000)));
    pair.socket.finish(soon());
    let mut got = Vec::new();
    pair.peer.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"\x88\x02\x0f\xa0");
}

#[test]
fn our_close_waits_for_the_peers() {
    let Pair { mut socket, mut peer, .. } = pair();
    socket.close(1012, "service restart").unwrap();
    socket.close(1000, "a second one is none").unwrap();
    socket.send_text(&[b"nothing follows"]).unwrap();
    std::thread::scope(|scope| {
        let finishing = scope.spawn(move || socket.finish(soon()));
        let mut got = [0; 19];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"\x88\x11\x03\xf4service restart");
        peer.write_all(&[frame(0x81, b"late"), frame(0x88, b"\x03\xf4")].concat()).unwrap();
        finishing.join().unwrap();
    });
    assert_eq!(peer.read(&mut [0; 9]).unwrap(), 0, "an end and no reset");
}

#[test]
fn a_message_that_is_too_large_is_told_1009_before_it_is_read_and_no_reset_takes_that_away() {
    let mut pair = pair();
    let bytes = frame(0x81, &vec![b'x'; 3 << 20]);
    let mut peer = pair.peer.try_clone().unwrap();
    peer.write_all(&bytes[..100]).unwrap();
    let Err(Fault::Close(code, reason)) = pair.next() else { panic!("no fault") };
    assert_eq!(code, 1009);
    pair.socket.close(code, reason).unwrap();
    pair.reads(b"\x88\x1a\x03\xf1");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            peer.write_all(&bytes[100..]).unwrap();
            peer.write_all(&frame(0x88, b"\x03\xf1")).unwrap();
        });
        let spare = self::pair().socket;
        std::mem::replace(&mut pair.socket, spare).finish(soon());
    });
    let (rest, clean) = pair.reads_to_the_end();
    assert_eq!((rest, clean), (reason.as_bytes().to_vec(), true));
    assert_eq!(pair.total.high_water(), 0);
}

#[test]
fn a_peer_that_breaks_the_rules_is_told_and_need_not_answer() {
    let Pair { mut socket, mut peer, .. } = pair();
    peer.write_all(b"\x81\x05Hello").unwrap();
    socket.wait(soon(), true).unwrap();
    let Err(Fault::Close(1002, reason)) = socket.take() else { panic!("no fault") };
    socket.close(1002, reason).unwrap();
    std::thread::scope(|scope| {
        let begun = clock::now();
        scope.spawn(move || socket.finish(begun + Duration::from_secs(60)));
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        assert_eq!(got[..4], [0x88, got[1], 3, 234]);
        assert!(clock::now() < begun + Duration::from_secs(30));
        drop(peer);
    });
}

#[test]
fn a_flood_of_pings_ends_with_1008() {
    let mut pair = pair();
    let flood = frame(0x89, b"").repeat(CONTROLS_MAX as usize + 1);
    pair.peer.write_all(&flood).unwrap();
    for _ in 0..CONTROLS_MAX {
        assert!(matches!(pair.next().unwrap(), Came::Ping));
    }
    assert!(matches!(pair.next(), Err(Fault::Close(1008, _))));
    let mut window = Window::new(clock::now());
    let later = clock::now() + Duration::from_secs(11);
    assert!((0..CONTROLS_MAX).all(|_| window.count(clock::now())));
    assert!(!window.count(clock::now()) && window.count(later));
}

#[test]
fn without_room_for_a_message_nothing_is_read_until_there_is_some() {
    let mut pair = pair();
    pair.total.set_max(0);
    pair.peer.write_all(&frame(0x81, b"waits")).unwrap();
    pair.socket.wait(soon(), true).unwrap();
    assert!(pair.socket.take().unwrap().is_none());
    assert!(pair.socket.starved.is_some());
    let woke = pair.socket.wait(soon(), true).unwrap();
    assert!(woke.readable, "it looks again");
    assert!(pair.socket.take().unwrap().is_none());
    pair.total.set_max(MAX);
    assert!(matches!(pair.next().unwrap(), Came::Text(text, _) if text == "waits"));
    assert!(pair.socket.starved.is_none());
    // For so long, and no longer.
    pair.total.set_max(0);
    pair.peer.write_all(&frame(0x81, b"in vain")).unwrap();
    pair.socket.wait(soon(), true).unwrap();
    assert!(pair.socket.take().unwrap().is_none());
    pair.socket.starved = clock::now().checked_sub(ROOM_WAIT_MAX);
    pair.socket.wait(soon(), true).unwrap();
    assert!(matches!(pair.socket.take(), Err(Fault::Close(1013, _))));
}

#[test]
fn one_look_takes_so_much_and_the_next_wait_comes_back_at_once() {
    let mut pair = pair();
    let many = TAKEN_AT_ONCE_MAX as usize + 1;
    pair.peer.write_all(&frame(0x81, b"x").repeat(many)).unwrap();
    assert!(pair.socket.wait(soon(), true).unwrap().readable);
    let mut taken = 0;
    while let Some(came) = pair.socket.take().unwrap() {
        assert!(matches!(came, Came::Text(..)));
        taken += 1;
    }
    assert!(taken <= TAKEN_AT_ONCE_MAX, "{taken}");
    assert!(pair.socket.wait(clock::now(), true).unwrap().readable);
    while taken < TAKEN_AT_ONCE_MAX + 1 {
        assert!(matches!(pair.next().unwrap(), Came::Text(..)));
        taken += 1;
    }
}

#[test]
fn what_came_with_the_request_is_read_first() {
    let Pair { socket, mut peer, .. } = pair();
    let upgraded = Upgraded {
        leftover: frame(0x81, b"early"),
        ..Upgraded::of(socket.stream.try_clone().unwrap().into())
    };
    let limits = Limits { message_max: MAX, rate_min: 0 };
    let bell = Bell::new().unwrap();
    let mut socket = WebSocket::new(upgraded, bell, limits, Limit::detached(MAX));
    peer.write_all(&frame(0x81, b"later")).unwrap();
    assert!(socket.wait(soon(), true).unwrap().readable);
    assert!(matches!(socket.take().unwrap(), Some(Came::Text(text, _)) if text == "early"));
    assert_eq!(socket.input.capacity(), 0);
}

#[test]
fn the_system_holds_little_of_what_a_peer_does_not_read() {
    let mut pair = pair();
    let size = 16 * SEND_BUFFER_BYTES;
    pair.socket.send_binary(&[&vec![7; size]]).unwrap();
    let held = rustix::net::sockopt::socket_send_buffer_size(&pair.socket.stream).unwrap();
    assert!(held <= 2 * SEND_BUFFER_BYTES, "{held}");
    // And what it did not take goes out as the peer reads.
    let Pair { mut socket, mut peer, bell: _bell, total: _total } = pair;
    #[expect(clippy::disallowed_methods, reason = "the peer of a test")]
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; size + 10];
        peer.read_exact(&mut got).map(|()| got)
    });
    let until = soon();
    while socket.unsent() > 0 {
        assert!(socket.wait(until, false).unwrap().writable, "stuck");
        socket.flush().unwrap();
    }
    assert!(reader.join().unwrap().unwrap().ends_with(&[7; 100]));
}
