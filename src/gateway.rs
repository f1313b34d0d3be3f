//! Data-plane routes: who may ask, for what, and what comes back.

pub mod attempt;
pub mod auth;
pub mod browser;
pub mod catalog;
pub mod errors;
pub mod exchange;
pub mod lists;
pub mod metrics;
pub mod record;
pub mod routes;
pub mod source;
pub mod state;

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::base::error::{Error, Kind};
use crate::base::id::RequestId;
use crate::net::http::{Head, Method, Request, Response};
use crate::net::service::{Admission, Service, Step};
use crate::net::turn::Turn;
use crate::upstream::calls::Calls;

use exchange::Exchange;
use metrics::Metrics;
use record::Record;
use routes::{Found, Route};
use state::State;

/// Largest body of a request that needs none, in bytes.
const SMALL_BODY_MAX: u64 = 64 * 1024;

/// The data plane: every request ends here.
pub struct Gateway {
    state: ArcSwap<State>,
    metrics: Arc<Metrics>,
    calls: Arc<Calls>,
}

impl Gateway {
    /// A gateway in this state.
    pub fn new(state: State, metrics: Arc<Metrics>, calls: Arc<Calls>) -> Arc<Self> {
        Arc::new(Gateway { state: ArcSwap::from_pointee(state), metrics, calls })
    }

    /// The state now.
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Takes over a new state: requests that run keep theirs.
    pub fn reconfigure(&self, state: State) {
        self.state.store(Arc::new(state));
    }

    fn admitted(&self, head: &Head) -> Result<Admission, (Error, Option<String>)> {
        let plain = |error| (error, None);
        let state = self.state.load();
        state.rules.host(&head.headers).map_err(plain)?;
        state.rules.origin(&head.headers).map_err(plain)?;
        let row = match routes::find(head.method, head.path()) {
            Found::Row(row) => row,
            Found::Nothing => {
                let context = "no such path; the OpenAI API is under /v1/, Ollama's under /api/";
                return Err(plain(Error::new(Kind::NotFound, context)));
            }
            // Browsers send no key with a preflight.
            Found::OtherMethods(_) if head.method == Method::Options => {
                return Ok(Admission { body_max: 0, route: routes::OPTIONS, key: None });
            }
            Found::OtherMethods(methods) => {
                let allow = routes::allow(methods);
                let context = format!("this path takes {allow}");
                return Err((Error::new(Kind::MethodNotAllowed, context), Some(allow)));
            }
        };
        let key = state.keys.check(&head.headers).map_err(plain)?;
        let body_max = match routes::route(row) {
            Some(Route::Llm(_)) => state.config.server.body_max as u64,
            _ => SMALL_BODY_MAX,
        };
        Ok(Admission { body_max, route: row, key })
    }

    /// Answers what needs no model.
    fn local(&self, request: &Request, state: &State) -> Result<Response, Error> {
        match routes::route(request.route) {
            _ if request.route == routes::OPTIONS => {
                let origin = state.rules.origin(&request.head.headers)?;
                let allow = match routes::find(Method::Options, request.head.path()) {
                    Found::OtherMethods(methods) => routes::allow(methods),
                    _ => String::new(),
                };
                Ok(browser::options(origin, &request.head.headers, &allow))
            }
            Some(Route::Root) => Ok(Response::text(200, "Ollama is running")),
            Some(Route::Version) => Ok(Response::json(200, r#"{"version":"0.9.0"}"#)),
            Some(Route::Models) => {
                let model = |name: &str| serde_json::json!({"id": name, "object": "model", "created": 0, "owned_by": "tidegate"});
                let data: Vec<_> = state
                    .config
                    .models
                    .iter()
                    .map(|m| model(&m.name))
                    .chain([model("echo")])
                    .collect();
                Ok(Response::json(
                    200,
                    serde_json::json!({"object": "list", "data": data}).to_string(),
                ))
            }
            _ => Err(Error::new(Kind::NotFound, "no such path")),
        }
    }
}

impl Service for Gateway {
    fn admit(
        &self,
        head: &Head,
        peer: &SocketAddr,
        id: &RequestId,
    ) -> Result<Admission, Box<Response>> {
        self.admitted(head).map_err(|(error, allow)| {
            let response = self.refuse(&error, Some(head), peer, id);
            Box::new(match allow {
                Some(allow) => response.with("allow", allow),
                None => response,
            })
        })
    }

    fn start(&self, request: Request, turn: &mut Turn<'_>) -> Step {
        let state = self.state.load_full();
        if let Some(Route::Llm(route)) = routes::route(request.route) {
            return match Exchange::new(route, request, &state, &self.metrics, self.calls.begin()) {
                Ok(exchange) => exchange.go(turn),
                Err(response) => Step::Respond(*response),
            };
        }
        let mut record = Record::of_request(&request, &self.metrics);
        let result = self.local(&request, &state);
        let response = result.unwrap_or_else(|error| {
            record.failed(&error);
            errors::response(&error, request.head.path())
        });
        record.finish(response.status, response.body.len() as u64);
        Step::Respond(state.readable(&request.head.headers, response))
    }

    /// Whatever is refused before it is a whole request ends here: one access line, one count.
    fn refuse(
        &self,
        error: &Error,
        head: Option<&Head>,
        peer: &SocketAddr,
        id: &RequestId,
    ) -> Response {
        let response = errors::response(error, head.map_or("", Head::path));
        let mut record = Record::of_head(head, *peer, id, &self.metrics);
        record.failed(error);
        record.finish(response.status, response.body.len() as u64);
        match head {
            Some(head) => self.state.load().readable(&head.headers, response),
            None => response,
        }
    }
}
