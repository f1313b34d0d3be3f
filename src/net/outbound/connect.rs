//! Fresh connections: addresses, TCP, a proxy's tunnel, TLS, all within one deadline.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::control::Control;
use super::resolve::Resolver;
use super::stream::{Stream, flush_tls, retry};
use super::wait::{self, Interest, Stop, Watch};
use super::{Origin, ProxyAddr, tls};
use crate::base::clock;
use crate::base::error::{Error, Kind, Phase, Result};
use crate::base::lock::{self, Locked, Rank};
use crate::net::http::{BodyLength, Method};
use crate::net::http1::response_head;

/// Silence before the first keepalive probe: below the 60 s after which some home routers forget a
/// connection, so that a model that thinks for long is not cut off.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(45);
/// Between two probes that got no answer.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// Probes without an answer before the connection is taken for dead.
const KEEPALIVE_PROBES: u32 = 3;
/// Longest answer of a proxy to CONNECT, in bytes. Past it: `upstream_connect`.
const TUNNEL_HEAD_BYTES_MAX: usize = 16 * 1024;

/// What connecting to one upstream needs, checked once.
pub(super) struct Dialer {
    pub(super) upstream: String,
    /// Where TCP goes: the upstream, or its proxy.
    host: String,
    port: u16,
    /// `host:port` of the upstream, for errors and CONNECT.
    pub(super) authority: String,
    proxy: Option<ProxyAddr>,
    tls: Option<Tls>,
    /// Of several addresses, the one that took the last connection, if it was not the first. It is
    /// tried first, so that a dead one costs its share of the time once and not each time.
    better: Locked<Option<IpAddr>>,
}

struct Tls {
    name: ServerName<'static>,
    /// With the certificates of `ca_file`; else the platform's, read at first use.
    config: Option<Arc<ClientConfig>>,
}

/// Connects to a place until the deadline, and closes the connection: whether anybody listens there.
///
/// # Errors
/// [`Kind::UpstreamConnect`], or [`Kind::UpstreamTimeout`] at the deadline.
pub fn reach(origin: &Origin, resolver: &Resolver, deadline: Instant) -> Result<()> {
    let watch = Watch { client: None, deadline, phase: Phase::Connect };
    Dialer::new(origin)?.dial(resolver, &watch, &Control::default()).map(drop)
}

impl Dialer {
    pub(super) fn new(origin: &Origin) -> Result<Self> {
        let unusable = |what: &str| {
            let (name, host) = (&origin.name, &origin.host);
            Error::new(Kind::Internal, format!("upstream {name}: {host:?} {what}"))
        };
        let tls = if origin.tls {
            let name = ServerName::try_from(origin.host.clone())
                .map_err(|_| unusable("is neither a DNS name nor an address"))?;
            let config = origin.ca_file.as_deref().map(tls::only).transpose()?;
            Some(Tls { name, config })
        } else {
            None
        };
        let (host, port) = match &origin.proxy {
            Some(proxy) => (proxy.host.clone(), proxy.port),
            None => (origin.host.clone(), origin.port),
        };
        Ok(Dialer {
            upstream: origin.name.clone(),
            host,
            port,
            authority: authority(&origin.host, origin.port),
            proxy: origin.proxy.clone(),
            tls,
            better: Locked::new(Rank::Leaf, None),
        })
    }

    /// A connection that is ready for a request. `control` holds its socket.
    ///
    /// # Errors
    /// [`Kind::UpstreamConnect`], or how a wait ended. Nothing was sent to the upstream itself.
    pub(super) fn dial(
        &self,
        resolver: &Resolver,
        watch: &Watch<'_>,
        control: &Control,
    ) -> Result<Stream> {
        lock::assert_none_held();
        let stream = self.connect(resolver, watch, control);
        if stream.is_err() {
            control.release();
        }
        stream
    }

    fn connect(&self, resolver: &Resolver, watch: &Watch<'_>, control: &Control) -> Result<Stream> {
        let addresses = resolver.resolve(&self.upstream, &self.host, watch, control)?;
        let watch = Watch { phase: Phase::Connect, ..*watch };
        let better = self.better.with(|better| *better);
        let mut order: Vec<&IpAddr> = addresses.iter().collect();
        // Those behind it keep their order.
        order.sort_by_key(|address| Some(**address) != better);
        let mut last = None;
        for (index, address) in order.into_iter().enumerate() {
            // The addresses left share the time left, so that a dead one does not use up all of it.
            let left = watch.deadline.saturating_duration_since(clock::now());
            let shares = u32::try_from(addresses.len() - index).unwrap_or(1);
            let until = Watch { deadline: clock::now() + left / shares, ..watch };
            let to = SocketAddr::new(*address, self.port);
            match self.connect_to(to, &until, control) {
                Ok(socket) => {
                    if index > 0 {
                        self.better.with(|better| *better = Some(*address));
                    }
                    return self.secure(socket, &watch, control);
                }
                Err(error) if matches!(error.kind(), Kind::ClientGone | Kind::Draining) => {
                    return Err(error);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.error("the name has no address")))
    }

    fn connect_to(
        &self,
        to: SocketAddr,
        watch: &Watch<'_>,
        control: &Control,
    ) -> Result<Arc<Socket>> {
        let failed = |error: io::Error| {
            let what = format!("upstream {}: no connection to {to}: {error}", self.upstream);
            Error::new(Kind::UpstreamConnect, what).because(error)
        };
        let stopped = |stop: Stop| match stop {
            Stop::Deadline(phase) => Error::new(
                Kind::UpstreamTimeout(phase),
                format!("upstream {}: no connection to {to} within connect_timeout", self.upstream),
            ),
            other => other.error(&self.upstream),
        };
        let socket = Arc::new(open(&to).map_err(failed)?);
        match retry(|| socket.connect(&to.into())) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(failed(error)),
        }
        control.hold(&socket).map_err(stopped)?;
        wait::ready(&*socket, Interest::Write, watch, control).map_err(stopped)?;
        match socket.take_error() {
            Ok(None) => Ok(socket),
            Ok(Some(error)) | Err(error) => Err(failed(error)),
        }
    }

    /// The tunnel and TLS, as far as the upstream needs them.
    fn secure(&self, socket: Arc<Socket>, watch: &Watch<'_>, control: &Control) -> Result<Stream> {
        let Some(tls) = &self.tls else { return Ok(Stream::Plain(socket)) };
        let mut stream = Stream::Plain(socket);
        if let Some(proxy) = &self.proxy {
            self.tunnel(proxy, &mut stream, watch, control)?;
        }
        let config = match &tls.config {
            Some(config) => Arc::clone(config),
            None => tls::platform()?,
        };
        let connection = ClientConnection::new(config, tls.name.clone())
            .map_err(|error| self.error("TLS cannot begin").because(error))?;
        self.handshake(Arc::clone(stream.socket()), connection, watch, control)
    }

    fn handshake(
        &self,
        socket: Arc<Socket>,
        mut tls: ClientConnection,
        watch: &Watch<'_>,
        control: &Control,
    ) -> Result<Stream> {
        let failed = |error: &dyn std::fmt::Display| {
            self.error(&format!("the TLS handshake failed: {error}"))
        };
        let blocked = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        while tls.is_handshaking() {
            let interest = match flush_tls(&socket, &mut tls) {
                Err(error) if blocked(&error) => Interest::Write,
                Err(error) => return Err(failed(&error).because(error)),
                Ok(()) => Interest::Read,
            };
            if interest == Interest::Read && !tls.is_handshaking() {
                break;
            }
            wait::ready(&*socket, interest, watch, control).map_err(|stop| self.stopped(stop))?;
            if interest == Interest::Write {
                continue;
            }
            match retry(|| tls.read_tls(&mut &*socket)) {
                Ok(0) => return Err(self.error("it closed the connection in the TLS handshake")),
                Err(error) if blocked(&error) => continue,
                Err(error) => return Err(failed(&error).because(error)),
                Ok(_) => {}
            }
            if let Err(error) = tls.process_new_packets() {
                // The alert says why, to whom it concerns.
                let _ = flush_tls(&socket, &mut tls);
                return Err(failed(&error).because(error));
            }
        }
        Ok(Stream::Tls(socket, Box::new(tls)))
    }

    /// Asks the proxy for a tunnel to the upstream.
    fn tunnel(
        &self,
        proxy: &ProxyAddr,
        stream: &mut Stream,
        watch: &Watch<'_>,
        control: &Control,
    ) -> Result<()> {
        let to = &self.authority;
        let mut request = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n");
        if let Some(authorization) = &proxy.authorization {
            request.push_str(&format!("proxy-authorization: {authorization}\r\n"));
        }
        request.push_str("\r\n");
        let failed = |error: io::Error| {
            self.error(&format!("the proxy {proxy:?} broke off: {error}")).because(error)
        };
        let mut rest = request.as_bytes();
        while !rest.is_empty() {
            match stream.write(rest, &[]) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait::ready(&**stream.socket(), Interest::Write, watch, control)
                        .map_err(|stop| self.stopped(stop))?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let mut answer = vec![0; TUNNEL_HEAD_BYTES_MAX];
        let (mut filled, mut scanned) = (0, 0);
        loop {
            wait::ready(&**stream.socket(), Interest::Read, watch, control)
                .map_err(|stop| self.stopped(stop))?;
            match stream.read(&mut answer[filled..]) {
                Ok(0) => return Err(self.error(&format!("the proxy {proxy:?} closed"))),
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(failed(error)),
            }
            let head = response_head(
                &answer[..filled],
                &mut scanned,
                TUNNEL_HEAD_BYTES_MAX,
                // No body is expected, whatever the fields say (RFC 9110, 9.3.6).
                Method::Head,
            );
            let head = head.map_err(|error| {
                self.error(&format!("the proxy {proxy:?} answers no HTTP")).because(error)
            })?;
            let Some((head, used)) = head else { continue };
            debug_assert_eq!(head.body, BodyLength::None);
            return match head.status {
                200..=299 if used == filled => Ok(()),
                200..=299 => Err(self.error(&format!("the proxy {proxy:?} sent data of its own"))),
                407 => {
                    let (upstream, to) = (&self.upstream, &self.authority);
                    let what = format!("upstream {upstream} ({to}): its proxy wants credentials");
                    Err(Error::new(Kind::UpstreamProxyRejected, what))
                }
                status => Err(self.error(&format!("the proxy {proxy:?} answered {status}"))),
            };
        }
    }

    fn stopped(&self, stop: Stop) -> Error {
        stop.error(&format!("upstream {} ({})", self.upstream, self.authority))
    }

    fn error(&self, what: &str) -> Error {
        let (upstream, authority) = (&self.upstream, &self.authority);
        Error::new(Kind::UpstreamConnect, format!("upstream {upstream} ({authority}): {what}"))
    }
}

/// A socket that does not block and does not hold small writes back.
fn open(to: &SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(*to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    Ok(socket)
}

/// `host:port`, an IPv6 address in brackets.
pub(super) fn authority(host: &str, port: u16) -> String {
    format!("{}:{port}", bracketed(host))
}

/// The host as it stands in a URL.
pub(super) fn bracketed(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => host.to_owned(),
    }
}
