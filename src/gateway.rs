//! Data-plane routes: who may ask, for what, and what comes back.

pub mod attempt;
pub mod auth;
pub mod browser;
pub mod catalog;
pub mod errors;
pub mod exchange;
pub mod flow;
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
use crate::health::overload::{Action, Overload};
use crate::net::http::{Head, Method, Request, Response};
use crate::net::service::{Admission, Service, Step};
use crate::net::turn::Turn;
use crate::upstream::calls::Calls;

use catalog::Catalog;
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
    catalog: Arc<Catalog>,
    overload: Arc<Overload>,
}

impl Gateway {
    /// A gateway in this state.
    pub fn new(
        state: State,
        metrics: Arc<Metrics>,
        calls: Arc<Calls>,
        catalog: Arc<Catalog>,
        overload: Arc<Overload>,
    ) -> Arc<Self> {
        Arc::new(Gateway { state: ArcSwap::from_pointee(state), metrics, calls, catalog, overload })
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
            Found::Nothing if head.method == Method::Options && head.path() == "*" => {
                return Ok(Admission { body_max: 0, route: routes::OPTIONS, key: None });
            }
            Found::Nothing => {
                return Err(plain(Error::new(Kind::NotFound, routes::nothing(head.path()))));
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
            Some(Route::Llm(_)) if self.overload.does(Action::CallsRefused) => {
                let context = "the gateway is overloaded and takes no new model calls; \
                               try again shortly";
                let error = Error::new(Kind::Overloaded, context);
                return Err(plain(error.retry_after(Some(self.overload.retry_after()))));
            }
            Some(Route::Llm(_)) => state.config.server.body_max as u64,
            _ => SMALL_BODY_MAX,
        };
        Ok(Admission { body_max, route: row, key })
    }

    /// Answers what needs no model.
    fn local(&self, request: &Request, state: &State) -> Result<Response, Error> {
        let (config, catalog) = (&*state.config, &*self.catalog);
        match routes::route(request.route) {
            _ if request.route == routes::OPTIONS => {
                let origin = state.rules.origin(&request.head.headers)?;
                let allow = match routes::find(Method::Options, request.head.path()) {
                    Found::OtherMethods(methods) => routes::allow(methods),
                    _ => routes::allow(&[Method::Get, Method::Head, Method::Post]),
                };
                Ok(browser::options(origin, &request.head.headers, &allow))
            }
            Some(Route::Root) => lists::root(),
            Some(Route::Version) => lists::version(),
            Some(Route::Models) => lists::models(config, catalog),
            Some(Route::Model) => {
                let id = request.head.path().strip_prefix(routes::MODEL_PREFIX);
                lists::model(config, catalog, id.unwrap_or_default())
            }
            Some(Route::Tags) => lists::tags(config, catalog),
            Some(Route::Ps) => lists::ps(config, catalog),
            Some(Route::Show) => lists::show(config, catalog, &request.body),
            Some(Route::Llm(_)) | None => Err(Error::new(Kind::Internal, "a route without a hand")),
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
            return match Exchange::new(route, request, &state, self) {
                Ok(exchange) => exchange.go(turn),
                Err(response) => Step::Respond(*response),
            };
        }
        // A list may wait for an upstream that was never seen, for a second at most.
        turn.occupy();
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
