//! What the control socket answers: everything that the ops plane shows, and the write side. One file for
//! each subject, each with its table of routes.
//!
//! A route that changes something is an order (`POST`). Each leaves an event: who, what, and what came
//! of it.

mod breakers;
mod cache;
mod alerts;
mod config;
mod devices;
mod drain;
mod logs;
mod nodes;
mod process;

use serde_json::{Value, json};

use super::{OpsHandler, Parts, problem};
use crate::base::error::{Error, Kind};
use crate::base::{clock, query};
use crate::net::control::{Call, Caller, Reply, Service, Stream};
use crate::net::http::{BodyLength, Head, Headers, Method, Response};
use crate::net::http1::reason;

/// All routes. A subject's own are in its file.
const TABLE: &[&[Route]] = &[
    process::ROUTES,
    alerts::ROUTES,
    config::ROUTES,
    devices::ROUTES,
    drain::ROUTES,
    cache::ROUTES,
    breakers::ROUTES,
    logs::ROUTES,
    nodes::ROUTES,
];

/// The kind of the events that orders leave.
const ORDERED: &str = "control_order";

/// One route.
pub(super) struct Route {
    /// `GET` shows; `POST` changes and leaves an event.
    pub(super) method: Method,
    /// The whole path.
    pub(super) path: &'static str,
    /// What it does. May block for as long as an order to the main loop takes.
    pub(super) run: fn(&Parts, &Ask<'_>) -> Result<Done, Error>,
}

/// What a route is asked.
pub(super) struct Ask<'a> {
    call: &'a Call,
    body: Value,
}

impl Ask<'_> {
    /// Who asks.
    pub(super) fn caller(&self) -> Caller {
        self.call.caller
    }

    /// The body of a `POST`, an object.
    pub(super) fn body(&self) -> &Value {
        &self.body
    }

    /// A text in the body; none when it is not there or `null`.
    ///
    /// # Errors
    /// When it is something else.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match &self.body[key] {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            _ => Err(Error::new(Kind::InvalidField, format!("{key} is no text"))),
        }
    }

    /// A text that has to be in the body.
    ///
    /// # Errors
    /// When it is not.
    pub(super) fn must(&self, key: &str) -> Result<&str, Error> {
        let missing = || Error::new(Kind::InvalidField, format!("{key} is missing"));
        self.text(key)?.ok_or_else(missing)
    }

    /// A value of the query, decoded; none when it is not there.
    ///
    /// # Errors
    /// When it is too long or no text.
    pub(super) fn query(&self, key: &str) -> Result<Option<String>, Error> {
        let found = query::pairs(&self.call.query).find(|(name, _)| *name == key);
        match found {
            None => Ok(None),
            Some((_, Some(value))) => Ok(Some(value)),
            Some((_, None)) => {
                Err(Error::new(Kind::InvalidField, format!("{key} is no text, or too long")))
            }
        }
    }
}

/// What a route came to.
pub(super) struct Done {
    reply: Reply,
    told: String,
}

impl Done {
    /// A document.
    pub(super) fn json(document: &Value) -> Self {
        let response = Response::json(200, document.to_string()).with("cache-control", "no-store");
        Done { reply: Reply::Whole(response), told: String::new() }
    }

    /// Lines that go on and on.
    pub(super) fn stream(stream: impl Stream + 'static) -> Self {
        Done { reply: Reply::Stream(Box::new(stream)), told: String::new() }
    }

    /// What an order did, for its event: short, without secrets.
    #[must_use]
    pub(super) fn told(mut self, told: impl Into<String>) -> Self {
        self.told = told.into();
        self
    }
}

/// The handlers of the control socket.
#[derive(Debug)]
pub struct ControlHandler {
    parts: Parts,
    shown: OpsHandler,
}

impl ControlHandler {
    /// Handlers over these.
    pub fn new(parts: Parts) -> Self {
        ControlHandler { shown: OpsHandler::behind_the_socket(parts.clone()), parts }
    }

    /// Carries an order out, and tells it.
    fn order(&self, route: &Route, call: &Call) -> Reply {
        let outcome = body(call).and_then(|body| (route.run)(&self.parts, &Ask { call, body }));
        let (level, text) = match &outcome {
            Ok(done) if done.told.is_empty() => (log::Level::Info, "done".to_owned()),
            Ok(done) => (log::Level::Info, done.told.clone()),
            Err(error) => {
                (log::Level::Warn, format!("refused, code={}: {error}", error.row().code))
            }
        };
        let detail = format!("by {}: {text}", call.caller);
        self.parts.events.record(level, ORDERED, route.path, detail);
        replied(outcome)
    }
}

impl Service for ControlHandler {
    fn answer(&self, call: &Call) -> Reply {
        let mut routes = TABLE.iter().copied().flatten().filter(|route| route.path == call.path);
        let Some(first) = routes.next() else { return self.show(call) };
        let method = if call.method == Method::Head { Method::Get } else { call.method };
        match std::iter::once(first).chain(routes).find(|route| route.method == method) {
            Some(route) if method == Method::Post => self.order(route, call),
            Some(route) => replied((route.run)(&self.parts, &Ask { call, body: Value::Null })),
            // What is ordered here may be shown on the ops plane under the same path.
            None if method == Method::Get => self.show(call),
            None => {
                let text = format!("{} does not take this method", call.path);
                Reply::Whole(problem(&Error::new(Kind::MethodNotAllowed, text)))
            }
        }
    }

    fn refuse(&self, status: u16, code: &'static str, detail: &str) -> Response {
        let document = json!({
            "type": "about:blank",
            "title": reason(status),
            "status": status,
            "detail": detail,
            "code": code,
        });
        Response::new(status, "application/problem+json", document.to_string())
    }
}

impl ControlHandler {
    /// What the ops plane would answer.
    fn show(&self, call: &Call) -> Reply {
        let target = match call.query.as_str() {
            "" => call.path.clone(),
            query => format!("{}?{query}", call.path),
        };
        let head = Head {
            method: call.method,
            target: target.into(),
            http11: true,
            headers: Headers::default(),
            body: BodyLength::None,
            keep_alive: false,
            expects_continue: false,
        };
        Reply::Whole(self.shown.handle_head(&head, clock::now()))
    }
}

fn replied(outcome: Result<Done, Error>) -> Reply {
    match outcome {
        Ok(done) => done.reply,
        Err(error) => Reply::Whole(problem(&error)),
    }
}

/// The body of an order: an object, or nothing.
fn body(call: &Call) -> Result<Value, Error> {
    if call.body.is_empty() {
        return Ok(json!({}));
    }
    let wrong = |what: String| Error::new(Kind::InvalidJson, what);
    let body: Value = serde_json::from_slice(&call.body)
        .map_err(|error| wrong(format!("the body is no JSON: {error}")))?;
    if !body.is_object() {
        return Err(wrong("the body is no JSON object".to_owned()));
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
