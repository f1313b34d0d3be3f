use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::peer::serve;
use super::*;
use crate::net::outbound::resolve::{Lookup, THREADS_MAX};

/// Answers each lookup with what the test sends, when it sends it.
struct Stub {
    asked: Arc<AtomicU64>,
    answers: Receiver<io::Result<Vec<IpAddr>>>,
}

impl Lookup for Stub {
    fn lookup(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.answers.recv().unwrap_or_else(|_| Err(io::Error::other("the test is over")))
    }
}

struct Names {
    resolver: Resolver,
    asked: Arc<AtomicU64>,
    answers: Sender<io::Result<Vec<IpAddr>>>,
    control: Control,
}

impl Names {
    fn new() -> Self {
        let asked: Arc<AtomicU64> = Arc::default();
        let (answers, receiver) = bounded(100);
        let stub = Stub { asked: Arc::clone(&asked), answers: receiver };
        let resolver = Resolver::new(stub, &Registry::default());
        Names { resolver, asked, answers, control: Control::default() }
    }

    fn resolve(&self, host: &str, limit: Duration) -> Result<Vec<IpAddr>, Error> {
        let found = self.resolver.resolve("up", host, &within(limit), &self.control);
        found.map(|addresses| addresses.to_vec())
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

#[test]
fn literals_and_localhost_are_not_looked_up() {
    let names = Names::new();
    let check = |host: &str, expected: &[&str]| {
        let expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(names.resolve(host, Duration::ZERO).unwrap(), expected);
    };
    check("10.0.0.1", &["10.0.0.1"]);
    check("::1", &["::1"]);
    check("localhost", &["127.0.0.1", "::1"]);
    assert_eq!(names.asked(), 0);
}

#[test]
fn an_answer_is_kept_and_repeated_addresses_are_dropped() {
    let names = Names::new();
    names.answers.send(Ok(vec![ip(1), ip(1), ip(2)])).unwrap();
    for _ in 0..3 {
        assert_eq!(names.resolve("a.test", LONG).unwrap(), [ip(1), ip(2)]);
    }
    assert_eq!(names.asked(), 1);
}

#[test]
fn a_failure_is_remembered_for_a_moment_only() {
    let names = Names::new();
    names.answers.send(Err(io::Error::other("no such name"))).unwrap();
    for _ in 0..3 {
        let error = names.resolve("a.test", LONG).unwrap_err();
        assert_eq!(error.kind(), Kind::UpstreamConnect);
        assert!(error.context().ends_with("a.test cannot be resolved: no such name"), "{error}");
    }
    assert_eq!(names.asked(), 1);
}

#[test]
fn callers_of_one_name_share_one_lookup() {
    let names = Names::new();
    std::thread::scope(|scope| {
        let callers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| names.resolve("a.test", LONG))).collect();
        eventually("the lookup begins", || names.asked() == 1);
        names.answers.send(Ok(vec![ip(1)])).unwrap();
        for caller in callers {
            assert_eq!(caller.join().unwrap().unwrap(), [ip(1)]);
        }
    });
    assert_eq!(names.asked(), 1);
}

#[test]
fn names_that_hang_hold_neither_their_callers_nor_a_stop() {
    let names = Names::new();
    for n in 0..THREADS_MAX as u64 {
        let error = names.resolve(&format!("{n}.test"), Duration::from_millis(30)).unwrap_err();
        assert_eq!(error.kind(), Kind::UpstreamTimeout(Phase::Resolve));
        eventually("each has a thread", || names.asked() == n + 1);
    }
    // No thread is left for this one; it waits in the queue, and for its deadline only.
    let error = names.resolve("late.test", Duration::from_millis(30)).unwrap_err();
    assert_eq!(error.kind(), Kind::UpstreamTimeout(Phase::Resolve));
    assert_eq!(names.asked(), THREADS_MAX as u64);
    let Names { resolver, answers, .. } = names;
    let before = clock::now();
    drop(resolver);
    assert!(clock::now() - before < Duration::from_secs(5), "a stop waits for no lookup");
    drop(answers);
}

#[test]
fn the_next_address_is_tried_when_one_refuses() {
    let address = serve(|mut peer, _| peer.answer_all("hello"));
    struct Two;
    impl Lookup for Two {
        fn lookup(&self, _: &str) -> io::Result<Vec<IpAddr>> {
            // Nobody listens on this port of the first one.
            Ok(vec![[127, 0, 0, 2].into(), [127, 0, 0, 1].into()])
        }
    }
    let registry = Registry::default();
    let resolver = Arc::new(Resolver::new(Two, &registry));
    let origin = Origin { host: "two.test".to_owned(), ..origin(address) };
    let fixture = Fixture::with(&origin, resolver, registry);
    assert_eq!(fixture.call(b"{}").unwrap().1, b"hello");
}

/// A listener on another address and the same port whose queue of connections is full: whoever
/// connects to it waits.
#[cfg(target_os = "linux")]
fn black_hole(address: SocketAddr) -> (socket2::Socket, Vec<std::net::TcpStream>) {
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let mut inside = Vec::new();
    while let Ok(socket) =
        std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200))
    {
        assert!(inside.len() < 16, "its queue never fills");
        inside.push(socket);
    }
    (listener, inside)
}

#[test]
#[cfg(target_os = "linux")]
fn an_address_that_does_not_answer_leaves_time_for_the_next_and_is_not_the_first_again() {
    struct Two;
    impl Lookup for Two {
        fn lookup(&self, _: &str) -> io::Result<Vec<IpAddr>> {
            Ok(vec![[127, 0, 0, 2].into(), [127, 0, 0, 1].into()])
        }
    }
    let address = serve(|mut peer, _| peer.answer_all("hello"));
    let _hole = black_hole(SocketAddr::new([127, 0, 0, 2].into(), address.port()));
    let registry = Registry::default();
    let resolver = Arc::new(Resolver::new(Two, &registry));
    let origin = Origin { host: "two.test".to_owned(), ..origin(address) };
    let fixture = Fixture::with(&origin, resolver, registry);
    let connect = || {
        let began = clock::now();
        let begun = fixture.pool.begin_fresh(
            &post(b"{}"),
            &begin(Duration::from_secs(4)),
            &fixture.control,
        );
        begun.unwrap();
        clock::now() - began
    };
    // Half of the time is the first one's.
    let first = connect();
    assert!(first >= Duration::from_secs(1), "the first address answered: {first:?}");
    let second = connect();
    assert!(second < first / 2, "{second:?}, and {first:?} before");
}
