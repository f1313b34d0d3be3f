//! TLS in front of another peer, with certificates made on the spot.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};

/// Which certificate it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// A good one for 127.0.0.1.
    Good,
    /// One for another name.
    OtherName,
    /// One that ran out.
    Expired,
}

/// A TLS listener that forwards to a plain one.
pub struct Secure {
    addr: SocketAddr,
    ca_pem: String,
    handshakes: Arc<AtomicUsize>,
}

impl Secure {
    /// Starts one in front of `inner`. With `rude` it ends connections without a `close_notify`.
    pub fn start(inner: SocketAddr, certificate: Certificate, rude: bool) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let name =
            if certificate == Certificate::OtherName { "other.example" } else { "127.0.0.1" };
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if certificate == Certificate::Expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &ca).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key)
                .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let handshakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&handshakes);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let Ok(socket) = socket else { return };
                let (config, counter) = (Arc::clone(&config), Arc::clone(&counter));
                std::thread::spawn(move || {
                    let session = ServerConnection::new(config).unwrap();
                    let _ = forward(socket, session, inner, &counter, rude);
                });
            }
        });
        Secure { addr, ca_pem: ca.as_ref().pem(), handshakes }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The certificate to trust, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Handshakes that succeeded.
    pub fn handshakes(&self) -> usize {
        self.handshakes.load(Ordering::SeqCst)
    }
}

fn forward(
    mut outer: TcpStream,
    mut session: ServerConnection,
    inner: SocketAddr,
    handshakes: &AtomicUsize,
    rude: bool,
) -> std::io::Result<()> {
    while session.is_handshaking() {
        session.complete_io(&mut outer)?;
    }
    handshakes.fetch_add(1, Ordering::SeqCst);
    let mut inner = TcpStream::connect(inner)?;
    inner.set_nodelay(true)?;
    outer.set_nodelay(true)?;
    inner.set_read_timeout(Some(Duration::from_millis(2)))?;
    outer.set_read_timeout(Some(Duration::from_millis(2)))?;
    let idle = |e: &std::io::Error| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let mut bytes = [0; 16 * 1024];
    loop {
        // The end of the handshake may have brought the first bytes of the request along.
        let state = session.process_new_packets().map_err(std::io::Error::other)?;
        let mut plain = vec![0; state.plaintext_bytes_to_read()];
        session.reader().read_exact(&mut plain)?;
        inner.write_all(&plain)?;
        match session.read_tls(&mut outer) {
            Ok(0) => return Ok(()),
            Err(e) if !idle(&e) => return Err(e),
            _ => {}
        }
        match inner.read(&mut bytes) {
            Ok(0) => {
                if !rude {
                    session.send_close_notify();
                    session.write_tls(&mut outer)?;
                }
                return Ok(());
            }
            Ok(n) => session.writer().write_all(&bytes[..n])?,
            Err(e) if idle(&e) => {}
            Err(e) => return Err(e),
        }
        while session.wants_write() {
            session.write_tls(&mut outer)?;
        }
    }
}
