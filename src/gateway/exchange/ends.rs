//! How a request ends: its answer, its error, or an error within its stream.

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::gateway::cached::Origin;
use crate::gateway::errors;
use crate::net::http::Response;
use crate::net::service::Step;
use crate::net::turn::ClientStream;

use super::Exchange;

impl Exchange {
    pub(super) fn whole(mut self: Box<Self>, body: Vec<u8>) -> Response {
        self.record.finish(200, body.len() as u64);
        let mut response = Response::new(200, self.reply.content_type(), body);
        if let Some((link, target)) = self.chain.get(self.at) {
            response = response
                .with("x-tidegate-upstream", link.settings.name.as_str())
                .with("x-tidegate-model", target.model.as_str());
        }
        for (name, value) in std::mem::take(&mut self.fields) {
            response = response.with(name, value);
        }
        response
    }

    /// The stream ends with an error, in the client's own protocol and without its terminator.
    pub(super) fn cut(mut self: Box<Self>, error: &Error, client: &mut ClientStream<'_>) -> Step {
        self.cached.failed(error);
        self.record.failed(error);
        let gone = matches!(error.kind(), Kind::ClientGone | Kind::ClientStalled);
        let mut keep_alive = false;
        if !gone {
            self.record.metrics().streams_cut.inc();
            let mut event = Vec::new();
            self.reply.error_event(error, &mut event);
            keep_alive = client.finish(&event).unwrap_or(false);
        }
        self.record.finish(200, client.bytes());
        Step::Streamed { keep_alive }
    }

    /// The chain came to nothing before any content.
    pub(super) fn end(mut self: Box<Self>, client: &mut ClientStream<'_>) -> Step {
        if client.started() {
            let error = self.take_error();
            let stale = self.cached.failed(&error);
            let replayed = stale.and_then(|stale| self.replayed(&stale, Origin::Stale));
            return match replayed.map(|response| client.finish(&response.body)) {
                Some(sent) => Step::Streamed { keep_alive: sent.unwrap_or(false) },
                None => self.cut(&error, client),
            };
        }
        let gone = |error: &Error| matches!(error.kind(), Kind::ClientGone | Kind::ClientStalled);
        if self.last_error.as_ref().is_some_and(gone) {
            let error = self.take_error();
            self.record.failed(&error);
            self.record.finish(error.row().status, 0);
            return Step::Streamed { keep_alive: false };
        }
        self.failed()
    }

    pub(super) fn failed(mut self: Box<Self>) -> Step {
        let error = self.take_error();
        Step::Respond(self.answer(&error))
    }

    /// A link did not answer. What the client is told is the last cause that says what went wrong:
    /// that a fallback was busy, or could not have carried the request, does not. The log has all.
    pub(super) fn noted(&mut self, error: Error) {
        let told = self.last_error.as_ref();
        if told.is_none_or(|told| says_little(told.kind()) || !says_little(error.kind())) {
            self.last_error = Some(error);
        }
    }

    pub(super) fn take_error(&mut self) -> Error {
        let unavailable = self.unavailable.take().map(|link| link.error(clock::now()));
        let busy = || Error::new(Kind::WaitingTimeout, "every upstream of the chain is busy");
        match self.last_error.take() {
            Some(told) if !says_little(told.kind()) => told,
            told => unavailable.or(told).unwrap_or_else(busy),
        }
    }

    pub(super) fn answer(&mut self, error: &Error) -> Response {
        let stale = self.cached.failed(error);
        if let Some(response) = stale.and_then(|stale| self.replayed(&stale, Origin::Stale)) {
            return response;
        }
        // A stop is nothing that the chain said: a client may well try again.
        let mut response = match error.kind() {
            // And of what was left alone nothing was tried: after `Retry-After` it will be.
            Kind::Draining | Kind::UpstreamUnavailable | Kind::UpstreamQuota => {
                errors::response(error, self.path)
            }
            _ => errors::after_the_chain(error, self.path),
        };
        for (name, value) in std::mem::take(&mut self.fields) {
            response = response.with(name, value);
        }
        self.record.failed(error);
        self.record.finish(response.status, response.body.len() as u64);
        response
    }
}

/// Whether this is about a link that was not asked.
fn says_little(kind: Kind) -> bool {
    matches!(kind, Kind::Unsupported | Kind::WaitingFull | Kind::WaitingTimeout)
}
