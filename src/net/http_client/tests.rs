use super::peer::{Act, Peer, Seen};
use super::*;
use crate::base::metrics::Registry;
use crate::net::outbound::ProxyAddr;
use crate::net::outbound::resolve::Lookup;
use crate::net::outbound::tests::secure::{Authority, greeter};

const SECOND: Duration = Duration::from_secs(1);

fn origin(port: u16) -> Origin {
    Origin {
        name: "local".to_owned(),
        tls: false,
        host: "127.0.0.1".to_owned(),
        port,
        ca_file: None,
        ca_digest: None,
        proxy: None,
        idle_max: 0,
    }
}

fn client_of(origin: Origin) -> Client {
    let site = Site {
        origin,
        prefix: "/v1".to_owned(),
        key: Some("sk-1".to_owned()),
        connect_timeout: SECOND,
    };
    Client::new(site, Arc::new(Resolver::system(&Registry::default())))
}

fn client(peer: &Peer) -> Client {
    client_of(origin(peer.port()))
}

fn soon() -> Instant {
    clock::now() + SECOND * 3
}

fn kind(result: Result<Answer>) -> Kind {
    result.map(|answer| answer.status).unwrap_err().kind()
}

#[test]
fn an_answer_comes_with_its_status_whatever_it_is() {
    let peer = Peer::start(|seen: &Seen| match seen.path.as_str() {
        "/v1/moved" => Act::Raw(
            b"HTTP/1.1 302 Found\r\nlocation: /v1/else\r\ncontent-length: 0\r\n\r\n".to_vec(),
        ),
        _ => Act::Json(503, "{}".to_owned()),
    });
    let client = client(&peer);
    let answer = client.get("/models", soon()).unwrap();
    assert_eq!((answer.status, answer.body), (503, b"{}".to_vec()));
    assert_eq!(client.get("/moved", soon()).unwrap().status, 302, "a redirect is not followed");
    assert_eq!(peer.calls("/v1/else"), 0);
    let head = &peer.seen()[0].head;
    assert!(head.contains("Bearer sk-1") || head.contains("bearer sk-1"), "{head}");
    assert!(head.contains(USER_AGENT), "{head}");
}

#[test]
fn a_body_is_sent_as_it_is() {
    let peer = Peer::start(|seen: &Seen| Act::Json(200, seen.body.clone()));
    let answer = client(&peer).post_json("/show", br#"{"model":"m"}"#, soon()).unwrap();
    assert_eq!(answer.body, br#"{"model":"m"}"#);
    assert_eq!(peer.seen()[0].method, "POST");
}

#[test]
fn silence_ends_at_the_deadline() {
    let peer = Peer::start(|_: &Seen| Act::Hang);
    let begun = clock::now();
    let result = client(&peer).get("/models", begun + Duration::from_millis(200));
    assert_eq!(kind(result), Kind::UpstreamTimeout(Phase::Answer));
    let took = clock::now() - begun;
    assert!(took >= Duration::from_millis(200) && took < SECOND, "{took:?}");
    assert_eq!(kind(client(&peer).get("/models", begun)), Kind::UpstreamTimeout(Phase::Answer));
    assert_eq!(peer.calls("/v1/models"), 1, "without time left it is not asked");
}

#[test]
fn an_answer_that_stalls_half_way_ends_at_the_deadline() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_vec();
    let peer = Peer::start(move |_: &Seen| Act::Stall(head.clone()));
    let begun = clock::now();
    let result = client(&peer).get("/models", begun + Duration::from_millis(200));
    assert_eq!(kind(result), Kind::UpstreamTimeout(Phase::Answer));
    assert!(clock::now() - begun < SECOND);
}

#[test]
fn what_is_cut_short_is_not_whole() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_vec();
    let peer = Peer::start(move |_: &Seen| Act::Raw(head.clone()));
    assert_eq!(kind(client(&peer).get("/models", soon())), Kind::UpstreamCut);
}

#[test]
fn a_refused_connection_is_told() {
    let result = client_of(origin(Peer::nobody())).get("/models", soon());
    assert_eq!(kind(result), Kind::UpstreamConnect);
}

#[test]
fn nonsense_is_malformed() {
    let peer = Peer::start(|_: &Seen| Act::Raw(b"SSH-2.0-OpenSSH_9.9\r\n\r\n".to_vec()));
    assert_eq!(kind(client(&peer).get("/models", soon())), Kind::UpstreamMalformed);
}

#[test]
fn an_answer_is_bounded_exactly_at_its_limit() {
    let limit = usize::try_from(ANSWER_BYTES_MAX).unwrap();
    let peer = Peer::start(move |seen: &Seen| {
        let more = usize::from(seen.path.ends_with("more"));
        Act::Json(200, " ".repeat(limit + more))
    });
    let client = client(&peer);
    assert_eq!(client.get("/fits", soon()).unwrap().body.len(), limit);
    assert_eq!(kind(client.get("/more", soon())), Kind::UpstreamMalformed);
}

#[test]
fn a_head_is_bounded() {
    let mut bytes = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
    bytes.resize(HEAD_BYTES_MAX + 1024, b'a');
    bytes.extend_from_slice(b"\r\ncontent-length: 0\r\n\r\n");
    let peer = Peer::start(move |_: &Seen| Act::Raw(bytes.clone()));
    assert_eq!(kind(client(&peer).get("/models", soon())), Kind::UpstreamMalformed);
}

#[test]
fn closing_ends_a_call_that_hangs() {
    let peer = Arc::new(Peer::start(|_: &Seen| Act::Hang));
    let client = Arc::new(client(&peer));
    let (done, ended) = crossbeam_channel::bounded(1);
    let theirs = Arc::clone(&client);
    let caller = crate::base::thread::spawn("caller", move || {
        done.send(theirs.get("/models", clock::now() + SECOND * 60)).unwrap();
    })
    .unwrap();
    while peer.calls("/v1/models") == 0 {
        std::thread::yield_now();
    }
    client.close();
    let result = ended.recv_timeout(SECOND * 5).unwrap();
    assert_eq!(kind(result), Kind::Draining);
    assert_eq!(kind(client.get("/models", soon())), Kind::Draining);
    caller.join();
}

#[test]
fn a_name_that_hangs_ends_at_connect_timeout() {
    struct Hanging(crossbeam_channel::Receiver<()>);
    impl Lookup for Hanging {
        fn lookup(&self, _: &str) -> std::io::Result<Vec<std::net::IpAddr>> {
            let _ = self.0.recv();
            Err(std::io::Error::other("never"))
        }
    }
    let (_open, hang) = crossbeam_channel::bounded(1);
    let resolver = Arc::new(Resolver::new(Hanging(hang), &Registry::default()));
    let site = Site {
        origin: Origin { host: "models.example".to_owned(), ..origin(80) },
        prefix: String::new(),
        key: None,
        connect_timeout: Duration::from_millis(150),
    };
    let begun = clock::now();
    let result = Client::new(site, resolver).get("/models", begun + SECOND * 30);
    assert_eq!(kind(result), Kind::UpstreamTimeout(Phase::Resolve));
    assert!(clock::now() - begun < SECOND * 5);
}

/// A client of `models.example` behind a proxy.
fn behind(peer: &Peer, tls: bool, port: u16) -> Client {
    let proxy = ProxyAddr { host: "127.0.0.1".to_owned(), port: peer.port(), authorization: None };
    let host = "models.example".to_owned();
    client_of(Origin { tls, host, proxy: Some(proxy), ..origin(port) })
}

#[test]
fn https_goes_through_a_tunnel_of_the_configured_proxy() {
    let peer = Peer::start(|_: &Seen| Act::Json(407, "{}".to_owned()));
    let result = behind(&peer, true, 443).get("/models", soon());
    assert_eq!(kind(result), Kind::UpstreamConnect);
    let seen = &peer.seen()[0];
    assert_eq!((&*seen.method, &*seen.path), ("CONNECT", "models.example:443"));
    assert!(!seen.head.contains("sk-1"), "the key is not the proxy's");
}

#[test]
fn plain_http_asks_the_configured_proxy_for_the_whole_address() {
    let peer = Peer::start(|seen: &Seen| Act::Json(200, seen.body.clone()));
    let answer = behind(&peer, false, 11434).post_json("/show", b"{}", soon()).unwrap();
    assert_eq!((answer.status, answer.body), (200, b"{}".to_vec()));
    let seen = &peer.seen()[0];
    assert_eq!(seen.path, "http://models.example:11434/v1/show");
    assert!(
        seen.head.to_lowercase().contains("\r\nhost: models.example:11434\r\n"),
        "{}",
        seen.head
    );
}

#[test]
fn a_proxy_with_a_password_is_refused_and_not_left_out() {
    let peer = Peer::start(|_: &Seen| Act::Json(200, "{}".to_owned()));
    let mut site = behind(&peer, false, 80).site().clone();
    site.origin.proxy.as_mut().unwrap().authorization = Some("Basic eA==".to_owned());
    let client = Client::new(site, Arc::new(Resolver::system(&Registry::default())));
    assert_eq!(kind(client.get("/models", soon())), Kind::Internal);
    assert!(peer.seen().is_empty());
}

#[test]
fn https_trusts_the_named_authority_and_no_other() {
    let (authority, other) = (Authority::new(), Authority::new());
    let address = greeter(&authority);
    let ask = |host: &str, ca_file| {
        let host = host.to_owned();
        let client = client_of(Origin { tls: true, host, ca_file, ..origin(address.port()) });
        client.get("/models", soon())
    };
    for host in ["localhost", "127.0.0.1"] {
        let answer = ask(host, Some(authority.file())).unwrap();
        assert_eq!((answer.status, answer.body), (200, b"hello".to_vec()), "{host}");
    }
    assert_eq!(kind(ask("localhost", Some(other.file()))), Kind::UpstreamConnect);
    assert_eq!(kind(ask("localhost", None)), Kind::UpstreamConnect, "the platform knows it not");
    let missing = Some(std::path::PathBuf::from("/nowhere/ca.pem"));
    assert_eq!(kind(ask("localhost", missing)), Kind::Internal);
}

#[test]
fn a_handshake_that_hangs_ends_at_connect_timeout() {
    let authority = Authority::new();
    let silent = Peer::start(|_: &Seen| Act::Hang);
    let site = Site {
        origin: Origin { tls: true, ca_file: Some(authority.file()), ..origin(silent.port()) },
        prefix: String::new(),
        key: None,
        connect_timeout: Duration::from_millis(150),
    };
    let client = Client::new(site, Arc::new(Resolver::system(&Registry::default())));
    let begun = clock::now();
    let result = client.get("/models", begun + SECOND * 30);
    assert_eq!(kind(result), Kind::UpstreamTimeout(Phase::Connect));
    assert!(clock::now() - begun < SECOND * 5);
}

#[test]
fn the_key_is_not_shown() {
    let peer = Peer::start(|_: &Seen| Act::Hang);
    let client = client(&peer);
    assert!(!format!("{client:?}{:?}", client.site()).contains("sk-1"));
    let site = Site { key: Some("sk\n-secret".to_owned()), ..client.site().clone() };
    let client = Client::new(site, Arc::new(Resolver::system(&Registry::default())));
    let error = client.get("/models", soon()).unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}
