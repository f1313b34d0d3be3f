use super::peer::serve;
use super::*;
use crate::net::outbound::pool::IDLE_AGE_MAX;

#[test]
fn a_connection_serves_one_call_after_another() {
    let address = serve(|mut peer, number| peer.answer_all(&format!("connection {number}")));
    let fixture = Fixture::to(address);
    for _ in 0..5 {
        assert_eq!(fixture.call(b"{}").unwrap().1, b"connection 0");
    }
    assert_eq!((fixture.opened(), fixture.pool.idle()), (1, 1));
}

#[test]
fn a_connection_that_its_server_closed_is_found_before_use() {
    let (closed, wait) = crossbeam_channel::bounded::<()>(8);
    let address = serve(move |mut peer, _| {
        peer.request();
        peer.answer("hello");
        drop(peer);
        let _ = closed.send(());
    });
    let fixture = Fixture::to(address);
    fixture.call(b"{}").unwrap();
    assert_eq!(fixture.pool.idle(), 1);
    wait.recv().unwrap();
    assert_eq!(fixture.call(b"{}").unwrap().1, b"hello");
    assert_eq!((fixture.opened(), fixture.stale()), (2, 1));
}

#[test]
fn a_stale_connection_is_told_apart_and_the_request_goes_through_on_a_fresh_one() {
    // Closes when it sees a second request: as if it had closed just before that came.
    let address = serve(|mut peer, number| {
        peer.request();
        peer.answer("hello");
        if number > 0 {
            peer.answer_all("hello");
        }
        peer.head();
    });
    let fixture = Fixture::to(address);
    fixture.call(b"{}").unwrap();
    let error = fixture.call(b"{}").unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::UpstreamCut, Retry::FreshConnection));
    assert_eq!(fixture.stale(), 1);
    let exchange = fixture.pool.begin_fresh(&post(b"{}"), &begin(LONG), &fixture.control);
    assert_eq!(exchange.unwrap().body(100, &within(LONG)).unwrap(), b"hello");

    // A fresh connection that is closed without an answer is no stale one.
    let address = serve(|mut peer, _| {
        peer.request();
    });
    let error = Fixture::to(address).call(b"{}").unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::UpstreamCut, Retry::Never));
}

#[test]
fn a_cut_after_the_first_byte_of_an_answer_is_never_sent_again() {
    let address = serve(|mut peer, _| {
        peer.request();
        peer.answer("hello");
        peer.request();
        peer.send("H");
    });
    let fixture = Fixture::to(address);
    fixture.call(b"{}").unwrap();
    let error = fixture.call(b"{}").unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::UpstreamCut, Retry::Never));
}

#[test]
fn a_connection_goes_back_only_after_a_whole_answer_with_keep_alive_and_nothing_behind_it() {
    for (answer, idle) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", 1),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 1),
        ("HTTP/1.1 204 No Content\r\n\r\n", 1),
        ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\nx", 1),
        ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", 0),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx", 0),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n", 0),
        ("HTTP/1.1 204 No Content\r\ncontent-length: 1\r\n\r\n", 0),
    ] {
        let address = serve(move |mut peer, _| {
            peer.request();
            peer.send(answer);
            peer.until_closed();
        });
        let fixture = Fixture::to(address);
        fixture.call(b"{}").unwrap();
        assert_eq!(fixture.pool.idle(), idle, "{answer:?}");
    }
}

#[test]
fn a_connection_is_free_when_the_last_byte_is_read_and_not_when_the_call_is_dropped() {
    let address = serve(|mut peer, _| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n");
        }
    });
    let fixture = Fixture::to(address);
    let mut exchange = fixture.begin(b"{}").unwrap();
    assert_eq!(exchange.piece(&within(LONG)).unwrap(), Some(b"x".as_slice()));
    assert_eq!(fixture.pool.idle(), 1);
    // A cancel that comes now must not touch the next call's connection.
    let other: Arc<Control> = Arc::default();
    let mut next = fixture.pool.begin(&post(b"{}"), &begin(LONG), &other).unwrap();
    fixture.control.cancel();
    assert_eq!(next.body(10, &within(LONG)).unwrap(), b"x");
    assert_eq!(exchange.piece(&within(LONG)).unwrap(), None);
}

#[test]
fn idle_connections_are_bounded_and_age() {
    let address = serve(|mut peer, _| peer.answer_all("hello"));
    let fixture = Fixture::to(address);
    let mut exchanges: Vec<_> = (0..6)
        .map(|_| {
            let control: Arc<Control> = Arc::default();
            fixture.pool.begin(&post(b"{}"), &begin(LONG), &control).unwrap()
        })
        .collect();
    for exchange in &mut exchanges {
        exchange.body(10, &within(LONG)).unwrap();
    }
    assert_eq!(fixture.pool.idle(), 4);
    let (_, limits) = fixture.registry.gather();
    let limit = limits.iter().find(|limit| limit.name == "upstream.idle_max").unwrap();
    assert_eq!((limit.limit.now(), limit.limit.max(), &*limit.owner), (4, 4, "peer"));

    let now = clock::now();
    fixture.pool.sweep(now + IDLE_AGE_MAX / 2);
    assert_eq!(fixture.pool.idle(), 4);
    fixture.pool.sweep(now + IDLE_AGE_MAX + Duration::from_secs(1));
    assert_eq!(fixture.pool.idle(), 0);
}

#[test]
fn without_room_for_idle_connections_none_is_kept() {
    let address = serve(|mut peer, _| peer.answer_all("hello"));
    let fixture = Fixture::new(&Origin { idle_max: 0, ..origin(address) });
    fixture.call(b"{}").unwrap();
    assert_eq!(fixture.pool.idle(), 0);
}

#[test]
fn an_abandoned_call_closes_its_connection() {
    let (closed, wait) = crossbeam_channel::bounded::<()>(1);
    let address = serve(move |mut peer, _| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n");
        peer.until_closed();
        let _ = closed.send(());
    });
    let fixture = Fixture::to(address);
    let mut exchange = fixture.begin(b"{}").unwrap();
    exchange.piece(&within(LONG)).unwrap();
    drop(exchange);
    wait.recv_timeout(LONG).unwrap();
    assert_eq!(fixture.pool.idle(), 0);
}
