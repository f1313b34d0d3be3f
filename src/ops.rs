//! The ops plane: health, readiness, metrics and limits, on a listener of its own. Thin handlers over what
//! the parts below keep up to date; nothing here calls out or waits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::id::RequestId;
use crate::config::settings::Ops;
use crate::gateway::usage::Question;
use crate::log_limited;
use crate::net::http::{Head, Method, Request, Response};
use crate::net::http1::reason;
use crate::net::service::{Admission, Service, Step};
use crate::net::turn::Turn;
use crate::observe::prometheus;

mod alerts;
mod breakers;
mod browser;
mod cache;
mod events;
pub mod control;
mod dashboard;
pub mod health;
mod history;
mod limits;
pub mod live;
mod nodes;
mod parts;
mod probes;
pub mod shown;
pub mod snapshot;
mod status;

use dashboard::Pages;
use live::Live;
pub use parts::Parts;

/// Largest body taken, in bytes. No route wants one; this much is read so that a probe that sends
/// one anyway is answered and not cut off.
const BODY_BYTES_MAX: u64 = 4 * 1024;
/// What every route takes.
const METHODS: &str = "GET, HEAD";

/// The handlers of the ops plane.
#[derive(Debug)]
pub struct OpsHandler {
    parts: Parts,
    /// Only callers on this machine can reach the listener.
    loopback: bool,
    live: Arc<Live>,
    pages: Pages,
}

impl OpsHandler {
    /// Handlers over these.
    pub fn new(parts: Parts, ops: &Ops) -> Self {
        let live = Live::new(parts.clone(), ops.live_max);
        let loopback = ops.listen.ip().is_loopback();
        OpsHandler { parts, loopback, live, pages: Pages::default() }
    }

    /// The same handlers for the control socket, which no browser reaches.
    pub(crate) fn behind_the_socket(parts: Parts) -> Self {
        let live = Live::without_pages(parts.clone());
        OpsHandler { parts, loopback: true, live, pages: Pages::default() }
    }

    /// Answers one request. For `HEAD` the answer is that to `GET`; the engine leaves its body out.
    pub fn handle(&self, request: &Request) -> Response {
        self.handle_head(&request.head, clock::now())
    }

    /// The same at a given time; no route looks at a body.
    fn handle_head(&self, head: &Head, now: Instant) -> Response {
        let path = head.path();
        let (root, part) = match path.get(1..).and_then(|rest| rest.split_once('/')) {
            Some((root, part)) => (root, Some(part)),
            None => (path.get(1..).unwrap_or_default(), None),
        };
        let query = head.query();
        let answer: &dyn Fn() -> Option<Response> = match root {
            "health" if part.is_none() => &|| Some(health::answer(&self.parts, now)),
            "livez" | "healthz" => {
                &|| probes::live(&self.parts.heartbeats, now).answer("livez", part, query)
            }
            "readyz" | "ready" => &|| self.ready(now).answer("readyz", part, query),
            "status" if part.is_none() => &|| Some(status::answer(&self.parts, now)),
            "metrics" if part.is_none() => &|| Some(self.metrics(head)),
            "limits" if part.is_none() => &|| Some(limits::answer(&self.parts.registry)),
            "alerts" if part.is_none() => &|| Some(alerts::answer(&self.parts)),
            "nodes" if part.is_none() => &|| Some(nodes::answer(&self.parts)),
            "breakers" if part.is_none() => &|| Some(self.breakers()),
            "cache" if part.is_none() => &|| Some(cache::answer(self.parts.answers.as_ref())),
            "events" if part.is_none() => &|| Some(events::answer(&self.parts, query, now)),
            "history" if part.is_none() => {
                &|| Some(history::answer(&self.parts.history, query, clock::unix().as_secs()))
            }
            "config" if part.is_none() => &|| self.config(),
            "usage" if part.is_none() => &|| self.usage(query),
            "" | "dashboard" | "live" if !self.dashboard() => return switched_off(path),
            "live" if part.is_none() => &|| Some(Live::head()),
            "live.json" if part.is_none() => &|| Some(self.live.once()),
            "" | "dashboard" if path.starts_with('/') => &|| self.pages.answer(head),
            "snapshot" if part.is_none() => &|| Some(snapshot::answer(self, now)),
            _ => return not_found(path),
        };
        if !matches!(head.method, Method::Get | Method::Head) {
            let kind = Kind::MethodNotAllowed;
            let text = format!("{path} takes {METHODS}");
            return problem(&Error::new(kind, text)).with("allow", METHODS);
        }
        answer().unwrap_or_else(|| not_found(path))
    }

    /// Whether the dashboard is on: it can be switched off while the daemon runs.
    fn dashboard(&self) -> bool {
        let gateway = self.parts.gateway.as_ref();
        gateway.is_none_or(|gateway| gateway.state().config.ops.dashboard)
    }

    fn ready(&self, now: Instant) -> probes::Found {
        let line = self.parts.config.as_ref().map(|config| config.line());
        probes::ready(&self.parts.board, now).with(line)
    }

    /// Which configuration is in force.
    fn config(&self) -> Option<Response> {
        let document = self.parts.config.as_ref()?.document();
        Some(Response::json(200, document.to_string()).with("cache-control", "no-store"))
    }

    fn breakers(&self) -> Response {
        let views = self.parts.links.as_ref().map(|links| links.breakers()).unwrap_or_default();
        breakers::answer(&views)
    }

    /// What everybody's requests came to.
    fn usage(&self, query: &str) -> Option<Response> {
        let accounts = self.parts.accounts.as_ref()?;
        Some(match Question::parse(query) {
            Ok(question) => accounts.answer(&question),
            Err(error) => problem(&error),
        })
    }

    fn metrics(&self, head: &Head) -> Response {
        let accept = head.headers.get_str("accept").unwrap_or_default();
        let format = prometheus::Format::of(accept);
        let mut page = Vec::with_capacity(64 * 1024);
        prometheus::render(&self.parts.registry, &self.parts.levels, format, &mut page);
        Response::new(200, format.content_type(), page)
            .with("cache-control", "no-store")
            .with("vary", "accept")
    }

    /// Refuses what pages of other sites send. Such a page can make its reader's browser ask a
    /// loopback address, under a name of its own that it pointed there; an address or `localhost`
    /// cannot be such a name. Where others may reach the listener anyway, any name is taken.
    fn check_browser(&self, head: &Head) -> Result<(), Error> {
        let host = head.headers.get_str("host").unwrap_or_default();
        if !browser::from_ourselves(head, host) {
            let text = "the ops plane takes no requests of other web pages";
            return Err(Error::new(Kind::OriginNotAllowed, text));
        }
        if self.loopback && !host.is_empty() && !browser::names_no_site(host) {
            let text = "this Host is not allowed here; use the address or localhost";
            return Err(Error::new(Kind::HostNotAllowed, text));
        }
        Ok(())
    }
}

fn not_found(path: &str) -> Response {
    let text = format!(
        "no {path} here; ask for /, /livez, /readyz, /health, /status, /alerts, /metrics, /limits, \
         /breakers, /cache, /config, /events, /history, /nodes, /usage or /live"
    );
    problem(&Error::new(Kind::NotFound, text))
}

fn switched_off(path: &str) -> Response {
    let text = format!(
        "{path} is part of the dashboard, which is switched off (features.dashboard); \
         tidegate top and /live.json show the same"
    );
    problem(&Error::new(Kind::NotFound, text))
}

/// An error as RFC 9457 has it.
fn problem(error: &Error) -> Response {
    let row = error.row();
    let document = serde_json::json!({
        "type": "about:blank",
        "title": reason(row.status),
        "status": row.status,
        "detail": error.context(),
        "code": row.code,
    });
    let response = Response::new(row.status, "application/problem+json", document.to_string());
    match error.retry_after_seconds() {
        Some(seconds) => response.with("retry-after", seconds.to_string()),
        None => response,
    }
}

impl Service for OpsHandler {
    fn admit(
        &self,
        head: &Head,
        peer: &SocketAddr,
        id: &RequestId,
    ) -> Result<Admission, Box<Response>> {
        match self.check_browser(head) {
            Ok(()) => Ok(Admission { body_max: BODY_BYTES_MAX, ..Admission::default() }),
            Err(error) => Err(Box::new(self.refuse(&error, Some(head), peer, id))),
        }
    }

    fn start(&self, request: Request, turn: &mut Turn<'_>) -> Step {
        let head = &request.head;
        if head.method != Method::Get || head.path() != "/live" || !self.dashboard() {
            return Step::Respond(self.handle(&request));
        }
        match self.live.follow(turn) {
            Ok(step) => step,
            // It left before it had anything.
            Err(error) if error.row().status == 499 => Step::Streamed { keep_alive: false },
            Err(error) => {
                Step::Respond(self.refuse(&error, Some(head), &request.peer, &request.id))
            }
        }
    }

    fn broken(&self, error: &Error, _route: u16) -> Response {
        problem(error)
    }

    fn refuse(
        &self,
        error: &Error,
        _head: Option<&Head>,
        peer: &SocketAddr,
        id: &RequestId,
    ) -> Response {
        let row = error.row();
        let help = "Requests that the ops plane refused, by code.";
        self.parts
            .registry
            .counter("tidegate_ops_refused_total", help, &[("code", row.code)])
            .inc();
        log_limited!(
            row.level, "ops_refused", id:% = id, peer:% = peer, code = row.code, reason:% = error
        );
        problem(error)
    }
}

#[cfg(test)]
mod tests;
