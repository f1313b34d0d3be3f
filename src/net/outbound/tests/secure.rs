use std::io::Write;
use std::net::TcpStream;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::peer::{Peer, serve};
use super::*;

type TlsStream = StreamOwned<ServerConnection, TcpStream>;

/// A certificate authority of this test.
pub(in crate::net) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    pub(in crate::net) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { issuer, folder }
    }

    /// Its certificate, as a file.
    pub(in crate::net) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// What a server called `localhost` shows.
    fn server(&self) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate =
            CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(builder.with_single_cert(vec![certificate.into()], key).unwrap())
    }
}

/// A scripted server under TLS.
pub(super) fn tls_server(
    authority: &Authority,
    script: impl Fn(Peer<TlsStream>) + Send + Sync + 'static,
) -> SocketAddr {
    let config = authority.server();
    serve(move |peer, _| {
        let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
        script(Peer::new(StreamOwned::new(tls, peer.stream)));
    })
}

/// A server under TLS that answers `hello`.
pub(in crate::net) fn greeter(authority: &Authority) -> SocketAddr {
    tls_server(authority, |mut peer| peer.answer_all("hello"))
}

fn secured(address: SocketAddr, authority: &Authority) -> Origin {
    Origin {
        tls: true,
        host: "localhost".to_owned(),
        ca_file: Some(authority.file()),
        ..origin(address)
    }
}

/// Ends the TLS session as it should be ended, or not at all.
fn close(mut peer: Peer<TlsStream>, politely: bool) {
    if politely {
        peer.stream.conn.send_close_notify();
        let _ = peer.stream.flush();
    }
    // Else the socket is closed with the stream.
}

#[test]
fn calls_under_tls_reuse_their_connection() {
    let authority = Authority::new();
    let address = tls_server(&authority, |mut peer| peer.answer_all("hello"));
    for host in ["localhost", "127.0.0.1"] {
        let fixture =
            Fixture::new(&Origin { host: host.to_owned(), ..secured(address, &authority) });
        for _ in 0..3 {
            assert_eq!(fixture.call(b"{}").unwrap(), (200, b"hello".to_vec()));
        }
        assert_eq!((fixture.opened(), fixture.stale()), (1, 0));
    }
}

#[test]
fn large_bodies_pass_both_ways_under_tls() {
    let authority = Authority::new();
    let address = tls_server(&authority, |mut peer| {
        while let Some(request) = peer.request() {
            peer.answer(&request);
        }
    });
    let fixture = Fixture::new(&secured(address, &authority));
    let body = vec![b'x'; 3 << 20];
    let (_, answer) = fixture.call(&body).unwrap();
    assert!(answer.len() > body.len() && answer.ends_with(&body));
    assert_eq!(fixture.pool.idle(), 1);
}

#[test]
fn a_server_that_is_not_who_it_should_be_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let address = tls_server(&authority, |mut peer| peer.answer_all("hello"));
    let fixture = Fixture::new(&secured(address, &other));
    let error = fixture.call(b"{}").unwrap_err();
    assert_eq!(error.kind(), Kind::UpstreamConnect);
    assert!(error.context().contains("TLS handshake failed"), "{error}");

    let plain = serve(|mut peer, _| peer.send("HTTP/1.1 400 Bad Request\r\n\r\n"));
    let error = Fixture::new(&secured(plain, &authority)).call(b"{}").unwrap_err();
    assert_eq!(error.kind(), Kind::UpstreamConnect);
}

#[test]
fn a_silent_server_ends_at_the_connect_deadline() {
    let authority = Authority::new();
    let address = serve(|mut peer, _| peer.until_closed());
    let fixture = Fixture::new(&secured(address, &authority));
    let error = fixture
        .pool
        .begin(&post(b"{}"), &begin(Duration::from_millis(50)), &fixture.control)
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::UpstreamTimeout(Phase::Connect));
}

#[test]
fn an_answer_without_length_is_whole_only_after_a_close_notify() {
    let authority = Authority::new();
    for politely in [true, false] {
        let address = tls_server(&authority, move |mut peer| {
            peer.request();
            peer.drip("HTTP/1.1 200 OK\r\n\r\nhello");
            close(peer, politely);
        });
        let answer = Fixture::new(&secured(address, &authority)).call(b"{}");
        if politely {
            assert_eq!(answer.unwrap(), (200, b"hello".to_vec()));
        } else {
            assert_eq!(answer.unwrap_err().kind(), Kind::UpstreamCut);
        }
    }
}

#[test]
fn a_refusal_survives_the_rest_of_a_large_request_under_tls() {
    let authority = Authority::new();
    let address = tls_server(&authority, |mut peer| {
        peer.head();
        peer.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig");
        close(peer, true);
    });
    let fixture = Fixture::new(&secured(address, &authority));
    assert_eq!(fixture.call(&vec![b'x'; 8 << 20]).unwrap(), (413, b"big".to_vec()));
    assert_eq!(fixture.pool.idle(), 0);
}

#[test]
fn a_certificate_file_that_cannot_be_used_is_found_at_load() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "nothing here").unwrap();
    let registry = Registry::default();
    let resolver = Arc::new(Resolver::system(&registry));
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    for (file, says) in
        [(empty, "no certificate"), (folder.path().join("missing.pem"), "cannot be read")]
    {
        let origin = Origin { tls: true, ca_file: Some(file), ..origin(address) };
        let error = Pool::new(&origin, Arc::clone(&resolver), &registry).err().unwrap();
        assert!(error.context().contains(says), "{error}");
    }
}
