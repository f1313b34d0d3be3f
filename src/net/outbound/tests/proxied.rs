use std::net::TcpStream;

use super::peer::serve;
use super::secure::{Authority, tls_server};
use super::*;

fn through(proxy: SocketAddr, origin: Origin) -> Origin {
    let proxy = ProxyAddr {
        host: proxy.ip().to_string(),
        port: proxy.port(),
        authorization: Some("Basic c2VjcmV0".to_owned()),
    };
    Origin { proxy: Some(proxy), ..origin }
}

#[test]
fn a_plain_request_goes_to_the_proxy_in_absolute_form() {
    let proxy = serve(|mut peer, _| {
        while let Some(request) = peer.request() {
            peer.answer(&request);
        }
    });
    let fixture = Fixture::new(&through(
        proxy,
        Origin {
            host: "model.test".to_owned(),
            ..origin(SocketAddr::from(([127, 0, 0, 1], 8080)))
        },
    ));
    let (_, request) = fixture.call(b"{}").unwrap();
    let request = String::from_utf8(request).unwrap();
    assert!(request.starts_with("POST http://model.test:8080/v1/chat HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nhost: model.test:8080\r\n"), "{request}");
    assert!(request.contains("\r\nproxy-authorization: Basic c2VjcmV0\r\n"), "{request}");
}

#[test]
fn https_goes_through_a_tunnel() {
    let authority = Authority::new();
    let server = tls_server(&authority, |mut peer| peer.answer_all("hello"));
    let proxy = serve(move |mut peer, _| {
        let request = peer.head().unwrap();
        assert!(request.starts_with(&format!("CONNECT localhost:{} HTTP/1.1\r\n", server.port())));
        assert!(request.contains("\r\nproxy-authorization: Basic c2VjcmV0\r\n"), "{request}");
        let inner = TcpStream::connect(server).unwrap();
        inner.set_nodelay(true).unwrap();
        peer.drip("HTTP/1.1 200 Connection established\r\n\r\n");
        let (from, to) = (peer.stream.try_clone().unwrap(), inner.try_clone().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| std::io::copy(&mut &from, &mut &to));
            let _ = std::io::copy(&mut &inner, &mut &peer.stream);
        });
    });
    let origin = Origin {
        tls: true,
        host: "localhost".to_owned(),
        ca_file: Some(authority.file()),
        ..origin(server)
    };
    let fixture = Fixture::new(&through(proxy, origin));
    for _ in 0..2 {
        assert_eq!(fixture.call(b"{}").unwrap().1, b"hello");
    }
    assert_eq!(fixture.opened(), 1);
}

#[test]
fn a_proxy_that_refuses_or_talks_nonsense_is_a_failed_connection() {
    for (answer, kind, says) in [
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 3\r\n\r\nno!",
            Kind::UpstreamProxyRejected,
            "wants credentials",
        ),
        ("HTTP/1.1 200 OK\r\n\r\nsurprise", Kind::UpstreamConnect, "data of its own"),
        ("hello\r\n", Kind::UpstreamConnect, "no HTTP"),
        ("", Kind::UpstreamConnect, "closed"),
    ] {
        let proxy = serve(move |mut peer, _| {
            peer.head();
            peer.send(answer);
        });
        let target = Origin { tls: true, host: "model.test".to_owned(), ..origin(proxy) };
        let error = Fixture::new(&through(proxy, target)).call(b"{}").unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.context().contains(says), "{error}");
        assert!(!format!("{error:?}").contains("c2VjcmV0"), "{error:?}");
    }
}
