//! What ureq gets from us: names, and TLS with the roots that model calls use too, so that they are
//! read and kept once.

use std::fmt;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as Resolve};
use ureq::unversioned::transport::time::{Duration as Span, Instant as Time};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
    TransportAdapter,
};

use crate::base::clock;
use crate::base::error::Phase;
use crate::net::outbound::resolve::ADDRESSES_MAX;
use crate::net::outbound::{Control, Resolver, Watch};

/// Names to addresses, by the process's resolver.
pub(super) struct Names {
    pub(super) upstream: String,
    pub(super) resolver: Arc<Resolver>,
    pub(super) control: Arc<Control>,
    /// The longest wait for a name.
    pub(super) timeout: Duration,
    /// The proxy to connect to in the place of whatever is asked for.
    pub(super) instead: Option<(String, u16)>,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

impl Resolve for Names {
    fn resolve(
        &self,
        uri: &Uri,
        _: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let scheme_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let (host, port) = match &self.instead {
            Some((host, port)) => (host.as_str(), *port),
            None => (bare_host(uri), uri.port_u16().unwrap_or(scheme_port)),
        };
        let wait = (*timeout.after).min(self.timeout);
        let watch = Watch { client: None, deadline: clock::now() + wait, phase: Phase::Resolve };
        let found = self
            .resolver
            .resolve(&self.upstream, host, &watch, &self.control)
            .map_err(|error| ureq::Error::Other(Box::new(error)))?;
        let mut addresses = self.empty();
        for address in found.iter().take(ADDRESSES_MAX) {
            addresses.push(SocketAddr::new(*address, port));
        }
        Ok(addresses)
    }
}

/// The host of an address, IPv6 without brackets.
fn bare_host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_matches(['[', ']'])
}

/// Wraps a connection in TLS when the address asks for it.
pub(super) struct Tls {
    pub(super) trust: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// A handshake that failed.
#[derive(Debug, thiserror::Error)]
#[error("the TLS handshake failed")]
pub(super) struct Handshake(#[source] std::io::Error);

impl<In: Transport> Connector<In> for Tls {
    type Out = Either<In, Secured>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Err(ureq::Error::ConnectionFailed) };
        if !details.needs_tls() || transport.is_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let Some(trust) = &self.trust else { return Err(ureq::Error::TlsRequired) };
        let name = ServerName::try_from(bare_host(details.uri))
            .map_err(|_| ureq::Error::Tls("its host is no name for a certificate"))?
            .to_owned();
        let mut conn = ClientConnection::new(Arc::clone(trust), name)
            .map_err(|error| ureq::Error::Other(Box::new(error)))?;
        let mut sock = TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        sock.set_timeout(left(details));
        while conn.is_handshaking() {
            conn.complete_io(&mut sock).map_err(|error| match error.into() {
                ureq::Error::Io(error) => ureq::Error::Other(Box::new(Handshake(error))),
                // Its deadline.
                other => other,
            })?;
        }
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        let stream = StreamOwned { conn, sock };
        Ok(Some(Either::B(Secured { buffers, stream })))
    }
}

/// What is left of the time to connect: it began before the TCP handshake.
fn left(details: &ConnectionDetails<'_>) -> NextTimeout {
    let gone = match ((details.current_time)(), details.now) {
        (Time::Exact(now), Time::Exact(begun)) => now.saturating_duration_since(begun),
        _ => Duration::ZERO,
    };
    let after = match details.timeout.after {
        Span::Exact(after) => Span::Exact(after.saturating_sub(gone)),
        Span::NotHappening => Span::NotHappening,
    };
    NextTimeout { after, ..details.timeout }
}

/// A connection in TLS.
pub(super) struct Secured {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secured")
    }
}

impl Transport for Secured {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// Asks a proxy in plain HTTP: the request line names the whole address.
#[derive(Debug)]
pub(super) struct Relay;

impl<In: Transport> Connector<In> for Relay {
    type Out = Relayed;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Err(ureq::Error::ConnectionFailed) };
        let authority = details.uri.authority().map_or("", |authority| authority.as_str());
        let config = details.config;
        Ok(Some(Relayed {
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
            sock: TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time)),
            origin: Some(format!("http://{authority}")),
        }))
    }
}

/// A connection to a proxy, for one request.
pub(super) struct Relayed {
    buffers: LazyBuffers,
    sock: TransportAdapter,
    /// What goes before the path, until it is sent.
    origin: Option<String>,
}

impl fmt::Debug for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Relayed")
    }
}

impl Transport for Relayed {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.sock.set_timeout(timeout);
        let mut output = &self.buffers.output()[..amount];
        if let Some(origin) = self.origin.take() {
            // The request line is the first thing sent: method, space, path.
            let path = output.iter().position(|b| *b == b' ').map_or(0, |space| space + 1);
            let mut line = output[..path].to_vec();
            line.extend_from_slice(origin.as_bytes());
            self.sock.write_all(&line)?;
            output = &output[path..];
        }
        self.sock.write_all(output)?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.sock.set_timeout(timeout);
        let amount = self.sock.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.sock.get_mut().is_open()
    }
}
