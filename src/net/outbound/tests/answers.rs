use super::peer::serve;
use super::*;

/// The answer to a request when the server sends these bytes and closes.
fn answered(bytes: &'static str, drip: bool) -> Result<(u16, Vec<u8>), Error> {
    let address = serve(move |mut peer, _| {
        peer.request();
        if drip { peer.drip(bytes) } else { peer.send(bytes) }
    });
    Fixture::to(address).call(b"{}")
}

#[test]
fn whole_chunked_and_closed_answers_are_read_however_they_are_split() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    let interim = format!("{interim}HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").leak();
    for bytes in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x\r\nllo\r\n0\r\na: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\nx: \u{e9}\r\n\r\nhello",
        interim,
    ] {
        for drip in [false, true] {
            let (status, body) = answered(bytes, drip).unwrap_or_else(|e| panic!("{bytes:?}: {e}"));
            assert_eq!((status, body.as_slice()), (200, b"hello".as_slice()), "{bytes:?}");
        }
    }
    let empty = answered("HTTP/1.1 204 No Content\r\n\r\n", true).unwrap();
    assert_eq!(empty, (204, Vec::new()));
}

#[test]
fn an_answer_that_breaks_off_is_an_error_and_never_an_end() {
    for bytes in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-le",
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        let error = answered(bytes, false).expect_err(bytes);
        assert_eq!((error.kind(), error.retry()), (Kind::UpstreamCut, Retry::Never), "{bytes:?}");
        assert!(error.context().starts_with("upstream peer (127.0.0.1:"), "{error}");
    }
}

#[test]
fn an_answer_that_is_not_http_is_malformed() {
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(64 * 1024)).leak();
    let interim = "HTTP/1.1 102 Processing\r\n\r\n".repeat(17).leak();
    for bytes in [
        "SSH-2.0-OpenSSH_9.9\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 999 OK\r\n\r\n",
        endless,
        interim,
    ] {
        let error = answered(bytes, false).expect_err(bytes);
        assert_eq!(error.kind(), Kind::UpstreamMalformed, "{bytes:.60?}");
    }
}

#[test]
fn a_head_may_be_larger_than_a_read_buffer() {
    let fields: String = (0..40).map(|n| format!("x-{n}: {}\r\n", "v".repeat(1000))).collect();
    let address = serve(move |mut peer, _| {
        while peer.request().is_some() {
            peer.send(format!("HTTP/1.1 200 OK\r\n{fields}content-length: 5\r\n\r\nhello"));
        }
    });
    let fixture = Fixture::to(address);
    for _ in 0..2 {
        assert_eq!(fixture.call(b"{}").unwrap(), (200, b"hello".to_vec()));
    }
    assert_eq!(fixture.opened(), 1);
}

#[test]
fn a_refusal_that_comes_before_the_end_of_the_request_is_the_answer() {
    const REFUSAL: &str =
        "HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig";
    let body = vec![b'x'; 8 << 20];
    for closes in [true, false] {
        let (over, end) = crossbeam_channel::bounded::<()>(0);
        let address = serve(move |mut peer, _| {
            peer.head();
            peer.send(REFUSAL);
            // Closing with the request unread makes the kernel send a reset behind the answer; the
            // other server neither reads on nor closes.
            if !closes {
                let _ = end.recv();
            }
        });
        let fixture = Fixture::to(address);
        let answer = fixture.call(&body).unwrap_or_else(|e| panic!("closes {closes}: {e}"));
        assert_eq!(answer, (413, b"big".to_vec()));
        assert_eq!(fixture.pool.idle(), 0, "half a request was sent on it");
        drop(over);
    }
}

#[test]
fn an_interim_answer_does_not_end_the_sending_of_a_request() {
    // More than the buffers between the two hold, so that it is seen while sending.
    const BYTES: usize = 32 << 20;
    let address = serve(|mut peer, _| {
        peer.head();
        peer.drip("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n");
        peer.drip("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n");
        let length = peer.rest(BYTES);
        peer.send(format!("content-length: 8\r\n\r\n{length}"));
    });
    let fixture = Fixture::to(address);
    let answer = fixture.call(&vec![b'x'; BYTES]).unwrap();
    assert_eq!(answer, (200, b"33554432".to_vec()));
    assert_eq!(fixture.pool.idle(), 1);
}

#[test]
fn each_chunk_is_handed_on_when_it_comes() {
    let (go, gate) = crossbeam_channel::bounded::<()>(0);
    let address = serve(move |mut peer, _| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        for chunk in ["1\r\na\r\n", "1\r\nb\r\n1\r\nc\r\n", "0\r\n\r\n"] {
            let _ = gate.recv();
            peer.send(chunk);
        }
        peer.until_closed();
    });
    let fixture = Fixture::to(address);
    let mut exchange = fixture.begin(b"{}").unwrap();
    assert_eq!(exchange.head(&within(LONG)).unwrap().status, 200);
    let mut next = || exchange.piece(&within(LONG)).unwrap().map(<[u8]>::to_vec);
    go.send(()).unwrap();
    assert_eq!(next(), Some(b"a".to_vec()));
    go.send(()).unwrap();
    assert_eq!(next(), Some(b"b".to_vec()));
    assert_eq!(next(), Some(b"c".to_vec()));
    go.send(()).unwrap();
    assert_eq!(next(), None);
    assert_eq!(next(), None, "the end stays the end");
    assert!(exchange.finished());
}

#[test]
fn a_deadline_ends_the_wait_and_not_the_call() {
    let (go, gate) = crossbeam_channel::bounded::<()>(0);
    let address = serve(move |mut peer, _| {
        peer.request();
        let _ = gate.recv();
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na");
        let _ = gate.recv();
        peer.send("b");
    });
    let fixture = Fixture::to(address);
    let mut exchange = fixture.begin(b"{}").unwrap();
    let soon = |phase| Watch { phase, ..within(Duration::from_millis(30)) };
    let error = exchange.head(&soon(Phase::FirstToken)).unwrap_err();
    assert_eq!(error.kind(), Kind::UpstreamTimeout(Phase::FirstToken));
    assert!(error.context().contains("first_token_timeout"), "{error}");
    go.send(()).unwrap();
    assert_eq!(exchange.head(&within(LONG)).unwrap().status, 200);
    assert_eq!(exchange.piece(&within(LONG)).unwrap(), Some(b"a".as_slice()));
    let error = exchange.piece(&soon(Phase::Idle)).unwrap_err();
    assert_eq!(error.kind(), Kind::UpstreamTimeout(Phase::Idle));
    go.send(()).unwrap();
    assert_eq!(exchange.piece(&within(LONG)).unwrap(), Some(b"b".as_slice()));
}

#[test]
fn a_body_is_read_up_to_a_bound() {
    let address = serve(|mut peer, _| peer.answer_all(&"x".repeat(100_000)));
    let fixture = Fixture::to(address);
    let mut exchange = fixture.begin(b"{}").unwrap();
    assert_eq!(exchange.body(70_000, &within(LONG)).unwrap().len(), 70_000);
    assert!(!exchange.finished());
    drop(exchange);
    assert_eq!(fixture.pool.idle(), 0);
    assert_eq!(fixture.call(b"{}").unwrap().1.len(), 100_000);
}

#[test]
fn a_field_that_cannot_be_sent_is_an_error_without_its_value() {
    let address = serve(|mut peer, _| peer.answer_all("x"));
    let fixture = Fixture::to(address);
    let fields: &[(&str, &[u8])] = &[("authorization", b"Bearer secret\n")];
    let request = Outgoing { fields, ..post(b"{}") };
    let error = fixture.pool.begin(&request, &begin(LONG), &fixture.control).err().unwrap();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(!error.context().contains("secret"), "{error}");
}
