//! Clients that leave, cancels and deadlines, in each phase.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use super::peer::serve;
use super::*;
use crate::net::outbound::resolve::Lookup;

/// Most that a client's leaving may take to end a call: the goal (50 ms) is met by the quickest of
/// `ROUNDS`; a busy machine may delay the others.
const GOAL: Duration = Duration::from_millis(50);
const ROUNDS: usize = 5;

/// How a call ends early.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    ClientLeaves,
    Cancel,
    Deadline,
}

/// Where the call is when it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Resolve,
    Connect,
    Send,
    Head,
    Body,
}

struct Hangs;

impl Lookup for Hangs {
    fn lookup(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
        std::thread::park_timeout(Duration::from_secs(60));
        Ok(Vec::new())
    }
}

/// A listener that takes no more connections, and the connections that fill it.
fn full() -> (TcpListener, Vec<socket2::Socket>) {
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let listener = TcpListener::from(listener);
    let to = listener.local_addr().unwrap();
    let fill = (0..4)
        .map(|_| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&to.into());
            socket
        })
        .collect();
    (listener, fill)
}

fn run(at: At, ending: Ending) -> (Error, Duration) {
    // Held for as long as the call runs.
    let mut listener = None;
    let registry = Registry::default();
    let silent = |at: At| {
        serve(move |mut peer, _| {
            match at {
                At::Send => {
                    peer.head();
                    std::thread::sleep(LONG);
                }
                At::Body => {
                    peer.request();
                    peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n");
                }
                _ => {}
            }
            peer.until_closed();
        })
    };
    let address = match at {
        At::Connect => {
            let full = listener.insert(full());
            full.0.local_addr().unwrap()
        }
        at => silent(at),
    };
    let fixture = match at {
        At::Resolve => {
            let resolver = Arc::new(Resolver::new(Hangs, &registry));
            let origin = Origin { host: "name.test".to_owned(), ..origin(address) };
            Fixture::with(&origin, resolver, registry)
        }
        _ => Fixture::to(address),
    };

    let accepting = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Some(TcpStream::connect(accepting.local_addr().unwrap()).unwrap());
    let (ours, _) = accepting.accept().unwrap();

    let limit = if ending == Ending::Deadline { Duration::from_millis(40) } else { LONG };
    let deadline = clock::now() + limit;
    let body = vec![b'x'; if at == At::Send { 64 << 20 } else { 10 }];
    let call = || -> Error {
        let client = Some(ours.as_fd());
        let until = Begin { client, connect: deadline, send: deadline };
        let mut exchange = match fixture.pool.begin(&post(&body), &until, &fixture.control) {
            Ok(exchange) => exchange,
            Err(error) => return error,
        };
        let watch = Watch { client, deadline, phase: Phase::Idle };
        if let Err(error) = exchange.head(&watch) {
            return error;
        }
        loop {
            match exchange.piece(&watch) {
                Ok(piece) => assert!(piece.is_some(), "not an end"),
                Err(error) => return error,
            }
        }
    };
    while_running(call, || match ending {
        Ending::ClientLeaves => drop(client.take()),
        Ending::Cancel => fixture.control.cancel(),
        Ending::Deadline => {
            std::thread::sleep(deadline.saturating_duration_since(clock::now()));
        }
    })
}

fn check(at: At, ending: Ending, kind: Kind) {
    let mut quickest = LONG;
    for _ in 0..ROUNDS {
        let (error, took) = run(at, ending);
        assert_eq!(error.kind(), kind, "{at:?} {ending:?}: {error}");
        quickest = quickest.min(took);
    }
    assert!(quickest < GOAL, "{at:?} {ending:?}: {quickest:?}");
}

#[test]
fn a_client_that_leaves_ends_its_call_in_every_phase() {
    for at in [At::Resolve, At::Connect, At::Send, At::Head, At::Body] {
        check(at, Ending::ClientLeaves, Kind::ClientGone);
    }
}

#[test]
fn a_cancel_from_another_thread_ends_the_call_in_every_phase() {
    for at in [At::Resolve, At::Connect, At::Send, At::Head, At::Body] {
        check(at, Ending::Cancel, Kind::Draining);
    }
}

#[test]
fn each_phase_has_a_deadline_of_its_name() {
    for (at, phase) in [
        (At::Resolve, Phase::Resolve),
        (At::Connect, Phase::Connect),
        (At::Send, Phase::Send),
        (At::Head, Phase::Idle),
        (At::Body, Phase::Idle),
    ] {
        check(at, Ending::Deadline, Kind::UpstreamTimeout(phase));
    }
}

#[test]
fn a_cancelled_control_ends_later_attempts_too() {
    let address = serve(|mut peer, _| peer.answer_all("hello"));
    let fixture = Fixture::to(address);
    fixture.call(b"{}").unwrap();
    fixture.control.client_left();
    fixture.control.cancel();
    assert!(fixture.control.cancelled());
    assert_eq!(fixture.call(b"{}").unwrap_err().kind(), Kind::ClientGone, "the first reason");
}

#[test]
fn an_answer_that_ends_with_its_connection_is_not_whole_when_it_was_cancelled() {
    let address = serve(|mut peer, _| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\n\r\nhello");
        peer.until_closed();
    });
    let fixture = Fixture::to(address);
    let mut exchange = fixture.begin(b"{}").unwrap();
    assert_eq!(exchange.piece(&within(LONG)).unwrap(), Some(b"hello".as_slice()));
    fixture.control.cancel();
    assert_eq!(exchange.piece(&within(LONG)).unwrap_err().kind(), Kind::Draining);
}

#[test]
fn a_port_that_nobody_listens_on_is_refused_at_once() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Fixture::to(address).call(b"{}").unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::UpstreamConnect, Retry::Never));
    assert!(
        error.context().contains(&format!("upstream peer: no connection to {address}")),
        "{error}"
    );
}
