//! The call itself.

use std::sync::Arc;
use std::time::Duration;

use super::{Context, Message, Outcome, outcome};
use crate::base::clock;
use crate::base::error::{Causes, Error, Kind};
use crate::config::settings::alerts::{Channel, ChannelKind};
use crate::health::alerts::Notice;
use crate::net::http_client::{Client, Reply, Site};
use crate::net::outbound::{Origin, ProxyAddr, Resolver};

/// Most of a delivery's time that finding the address, connecting and the TLS handshake may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A channel that can be called.
#[derive(Debug)]
pub struct Sender {
    channel: Arc<Channel>,
    client: Client,
}

impl Sender {
    /// One that has not called yet.
    pub fn new(channel: Arc<Channel>, resolver: Arc<Resolver>) -> Self {
        // What the key is for differs: a signature and a DSN are no bearer keys.
        let bearer = matches!(channel.kind, ChannelKind::Ntfy | ChannelKind::Alertmanager);
        let key = channel.key.as_ref().filter(|_| bearer).map(|key| key.expose().to_owned());
        let url = &channel.endpoint.url;
        let proxy = channel.proxy.as_ref().map(|proxy| ProxyAddr {
            host: proxy.host.clone(),
            port: proxy.port,
            authorization: None,
        });
        let site = Site {
            origin: Origin {
                name: channel.name.clone(),
                tls: url.tls,
                host: url.host.clone(),
                port: url.port,
                ca_file: channel.ca_file.clone(),
                ca_digest: channel.ca_digest,
                proxy,
                idle_max: 0,
            },
            prefix: url.path.clone(),
            key,
            connect_timeout: channel.timeout.min(CONNECT_MAX),
        };
        Sender { channel, client: Client::new(site, resolver) }
    }

    /// The channel.
    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Sends a notice. Blocks until it is known what became of it, at most for the channel's timeout.
    pub fn send(&self, notice: &Notice, context: &Context) -> Outcome {
        self.post(&super::render(&self.channel, notice, context))
    }

    /// Sends a message.
    pub fn post(&self, message: &Message) -> Outcome {
        let fields: Vec<(&str, &str)> =
            message.fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let deadline = clock::now() + self.channel.timeout;
        match self.client.post(&message.path, &fields, &message.body, deadline) {
            Ok(reply) => self.read(&reply),
            Err(error) => Outcome::Later { wait: None, why: told(&error) },
        }
    }

    fn read(&self, reply: &Reply) -> Outcome {
        let (after, limits) = (reply.field("retry-after"), reply.field("x-sentry-rate-limits"));
        outcome::read(self.channel.kind, reply.status, after, limits)
    }

    /// Ends a call that runs, and refuses new ones.
    pub fn close(&self) {
        self.client.close();
    }
}

/// An error in words that do not call the channel an upstream.
fn told(error: &Error) -> String {
    match error.kind() {
        Kind::UpstreamTimeout(_) => "no answer in time".to_owned(),
        Kind::UpstreamCut => "the answer was broken off".to_owned(),
        Kind::UpstreamConnect => match std::error::Error::source(error) {
            Some(cause) => format!("no connection: {}", Causes(cause)),
            None => "no connection".to_owned(),
        },
        Kind::UpstreamMalformed => "what came back is no HTTP".to_owned(),
        _ => Causes(error).to_string(),
    }
}
