//! Data-plane routes: who may ask, for what, and what comes back.

pub mod asked;
pub mod attempt;
pub mod auth;
pub mod browser;
pub mod cached;
pub mod catalog;
pub mod client;
pub mod drill;
pub mod errors;
pub mod exchange;
pub mod flow;
pub mod lists;
pub mod lockout;
pub mod media;
mod probes;
pub mod gen_ai;
pub mod hooks;
pub mod metrics;
mod nodes;
pub mod rates;
pub mod record;
pub mod routes;
pub mod source;
pub mod state;
pub mod table;
mod upgrade;
mod told;
pub mod usage;

use std::net::{IpAddr, SocketAddr};
use std::ops::Not;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::health::Board;
use crate::base::heartbeat::Heartbeats;
use crate::base::hold::Hold;
use crate::base::id::RequestId;
use crate::config::settings::Routes;
use crate::health::overload::{Action, Overload};
use crate::net::http::{Head, Method, Request, Response};
use crate::net::service::{Admission, Caller, Service, Step};
use crate::net::turn::Turn;
use crate::nodes::Nodes;
use crate::upstream::calls::Calls;

use auth::Holder;
use cached::Answers;
use catalog::Catalog;
use drill::{Drill, Echoes};
use exchange::Exchange;
use hooks::Hooks;
use lockout::Lockouts;
use metrics::Metrics;
use rates::{Fields, Rates, Who};
use record::Record;
use routes::{Found, Route};
use state::State;
use usage::{Accounts, Question};

/// Largest body of a request that needs none, in bytes.
const SMALL_BODY_MAX: u64 = 64 * 1024;

/// Largest body that is read on a pump, in bytes: some ten microseconds.
const BRISK_BODY_MAX: usize = 16 * 1024;

/// The data plane: every request ends here.
pub struct Gateway {
    state: ArcSwap<State>,
    metrics: Arc<Metrics>,
    calls: Arc<Calls>,
    catalog: Arc<Catalog>,
    overload: Arc<Overload>,
    hold: Arc<Hold>,
    rates: Rates,
    lockouts: Lockouts,
    hooks: Hooks,
    accounts: Arc<Accounts>,
    answers: Answers,
    drill: Option<Arc<Drill>>,
    board: Arc<Board>,
    heartbeats: Arc<Heartbeats>,
    /// Where WebSocket connections go. It holds the gateway, so the gateway does not hold it.
    room: OnceLock<Weak<Nodes>>,
}

/// What outlives the states of a gateway.
#[expect(missing_docs, reason = "each is documented where it is made")]
pub struct Parts {
    pub metrics: Arc<Metrics>,
    pub calls: Arc<Calls>,
    pub catalog: Arc<Catalog>,
    pub overload: Arc<Overload>,
    pub hold: Arc<Hold>,
    pub rates: Rates,
    pub lockouts: Lockouts,
    pub hooks: Hooks,
    pub accounts: Arc<Accounts>,
    pub answers: Answers,
    pub drill: Option<Arc<Drill>>,
    pub board: Arc<Board>,
    pub heartbeats: Arc<Heartbeats>,
}

/// Why a request is refused, and what its answer says beside that.
struct Refused {
    error: Error,
    /// The key that was shown, when it was a right one.
    key: Option<Arc<str>>,
    fields: Fields,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused { error, key: None, fields: Fields::new() }
    }
}

impl Gateway {
    /// A gateway in this state.
    pub fn new(state: State, parts: Parts) -> Arc<Self> {
        parts.metrics.query.set_max(state.config.server.query_max as u64);
        parts.metrics.calls.adopt(&state.config);
        let state = ArcSwap::from_pointee(state);
        let Parts {
            metrics,
            calls,
            catalog,
            overload,
            hold,
            rates,
            lockouts,
            hooks,
            accounts,
            answers,
            drill,
            board,
            heartbeats,
        } = parts;
        Arc::new(Gateway {
            state,
            metrics,
            calls,
            catalog,
            overload,
            hold,
            rates,
            lockouts,
            hooks,
            accounts,
            answers,
            drill,
            board,
            heartbeats,
            room: OnceLock::new(),
        })
    }

    /// The state now.
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Takes over a new state: requests that run keep theirs.
    pub fn reconfigure(&self, state: State) {
        let old = self.state();
        let keys_changed = old.config.keys != state.config.keys;
        self.metrics.query.set_max(state.config.server.query_max as u64);
        self.metrics.calls.adopt(&state.config);
        let addresses_max = state.config.server.addresses_max;
        self.rates.adopt(&state.plan, addresses_max);
        self.accounts.reconfigure(&state.config.usage);
        cached::reconfigure(&self.answers, &state.config.cache);
        self.state.store(Arc::new(state));
        self.lockouts.reconfigure(addresses_max, keys_changed);
    }

    /// Forgets what says nothing any more. To be called now and then.
    pub fn sweep(&self) {
        let now = clock::now();
        self.lockouts.sweep(now);
        self.hooks.sweep(now);
        self.rates.sweep(now);
    }

    /// What is used of the limits.
    pub fn rates(&self) -> &Rates {
        &self.rates
    }

    fn admitted(&self, head: &Head, peer: &SocketAddr) -> Result<Admission, Refused> {
        let state = self.state.load();
        state.rules.host(&head.headers)?;
        let origin = state.rules.origin(&head.headers)?;
        if upgrade::wanted(head) {
            return self.admit_upgrade(&state, head, peer);
        }
        let row = match routes::find(head.method, head.path()) {
            Found::Row(row) => row,
            Found::Nothing if self.drill.is_some() && Echoes::wanted(head) => routes::ECHO,
            Found::Nothing if head.method == Method::Options && head.path() == "*" => {
                return Ok(Admission { body_max: 0, route: routes::OPTIONS, key: None });
            }
            Found::Nothing => {
                return Err(Error::new(Kind::NotFound, routes::nothing(head.path())).into());
            }
            // Browsers send no key with a preflight.
            Found::OtherMethods(_) if head.method == Method::Options => {
                return Ok(Admission { body_max: 0, route: routes::OPTIONS, key: None });
            }
            Found::OtherMethods(methods) => {
                let allow = routes::allow(methods);
                let context = format!("this path takes {allow}");
                let error = Error::new(Kind::MethodNotAllowed, context);
                return Err(Refused { error, key: None, fields: vec![("allow", allow)] });
            }
        };
        // Probes have no key, and learn one word.
        if let Some(Route::Healthz | Route::Readyz) = routes::route(row) {
            return Ok(Admission { body_max: SMALL_BODY_MAX, route: row, key: None });
        }
        if let Some(Route::Hook(_)) = routes::route(row) {
            return self.admit_hook(&state, head, peer, row, origin.is_some());
        }
        let key = self.key(&state, head, peer, clock::now())?;
        if let Err(error) = media::check(head, origin.is_some()) {
            return Err(Refused { error, key, fields: Fields::new() });
        }
        self.within_limits(&state, head, peer, row, key)
    }

    /// What bounds those who may ask.
    fn within_limits(
        &self,
        state: &State,
        head: &Head,
        peer: &SocketAddr,
        row: u16,
        key: Option<Arc<str>>,
    ) -> Result<Admission, Refused> {
        let now = clock::now();
        let refused = |error, fields| Refused { error, key: key.clone(), fields };
        let query_max = state.config.server.query_max;
        self.metrics.query.saw(head.query().len().min(query_max) as u64);
        if head.query().len() > query_max {
            self.metrics.query.refuse();
            let context = format!("the query is longer than {query_max} bytes (server.query_max)");
            return Err(refused(Error::new(Kind::QueryTooLong, context), Fields::new()));
        }
        let route = routes::route(row);
        if !state.plan.is_empty() {
            let address = address(state, head, peer);
            let routes = route.map_or(Routes::Lists, Route::kind);
            let who = Who { key: key.as_deref(), address, routes };
            let charged = state.plan.request(&who, now);
            charged.map_err(|error| refused(error, state.plan.fields(&who, now)))?;
        }
        let body_max = match route {
            Some(Route::Llm(_)) if self.hold.on() => {
                let context = "the gateway takes no new model calls now: its operator drains it";
                return Err(refused(Error::new(Kind::Draining, context), Fields::new()));
            }
            Some(Route::Llm(_)) if self.overload.does(Action::CallsRefused) => {
                let context = "the gateway is overloaded and takes no new model calls; \
                               try again shortly";
                let error = Error::new(Kind::Overloaded, context);
                let error = error.retry_after(Some(self.overload.retry_after()));
                return Err(refused(error, Fields::new()));
            }
            Some(Route::Llm(_)) => state.config.server.body_max as u64,
            _ => SMALL_BODY_MAX,
        };
        Ok(Admission { body_max, route: row, key })
    }

    /// The models that may be asked for.
    fn models<'a>(&self, state: &'a State, request: &Request) -> Option<&'a auth::Models> {
        state.models(request.key.as_deref().filter(|_| !request.granted))
    }

    /// The name of the key that is shown. Without keys nobody is asked for one, and one that is shown
    /// is ignored.
    fn key(
        &self,
        state: &State,
        head: &Head,
        peer: &SocketAddr,
        now: Instant,
    ) -> Result<Option<Arc<str>>, Error> {
        if state.keys.is_empty() {
            return Ok(None);
        }
        let shown = auth::shown(&head.headers)?;
        let address = || address(state, head, peer);
        self.holder(state, shown, address, now).map(|holder| Some(Arc::clone(&holder.name)))
    }

    /// The holder of a key that is shown from an address; failures are counted.
    fn holder<'a>(
        &self,
        state: &'a State,
        shown: &[u8],
        address: impl FnOnce() -> IpAddr,
        now: Instant,
    ) -> Result<&'a Holder, Error> {
        let settings = &state.config.auth;
        if settings.failures_max == 0 {
            let holder = state.keys.holder(shown)?;
            holder.valid_at(clock::unix().as_secs())?;
            return Ok(holder);
        }
        let address = address();
        self.lockouts.check(address, shown, now)?;
        match state.keys.holder(shown) {
            Ok(holder) => {
                holder.valid_at(clock::unix().as_secs())?;
                self.lockouts.right(address, shown, holder, now);
                Ok(holder)
            }
            Err(error) => {
                self.lockouts.failed(address, shown, now, settings);
                Err(error)
            }
        }
    }

    /// Who asks, as limits see it.
    fn who<'a>(&self, state: &State, request: &'a Request) -> Who<'a> {
        let routes = routes::route(request.route).map_or(Routes::Lists, Route::kind);
        let address = match state.plan.is_empty() {
            // Nobody looks at it.
            true => request.peer.ip(),
            false => address(state, &request.head, &request.peer),
        };
        Who { key: request.key.as_deref(), address, routes }
    }

    /// What an answer says about limits.
    fn limit_fields(&self, state: &State, request: &Request) -> Fields {
        if state.plan.is_empty() || request.route == routes::OPTIONS {
            return Fields::new();
        }
        state.plan.fields(&self.who(state, request), clock::now())
    }

    /// The answer to what is refused before it is a whole request: one access line, one count.
    fn refused(&self, error: &Error, head: Option<&Head>, mut record: Record) -> Response {
        let response = errors::response(error, head.map_or("", Head::path));
        record.failed(error);
        record.finish(response.status, response.body.len() as u64);
        match head {
            Some(head) => self.state.load().readable(&head.headers, response),
            None => response,
        }
    }

    /// Answers what needs no model.
    fn local(&self, request: &Request, state: &State) -> Result<Response, Error> {
        match routes::route(request.route) {
            Some(Route::Healthz) => return Ok(probes::live(&self.heartbeats)),
            Some(Route::Readyz) => return Ok(probes::ready(&self.board)),
            _ => {}
        }
        let (config, catalog) = (&*state.config, &*self.catalog);
        let allowed = self.models(state, request).ok_or_else(lists::key_is_gone)?;
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
            Some(Route::Models) => lists::models(config, catalog, allowed),
            Some(Route::Model) => {
                let id = request.head.path().strip_prefix(routes::MODEL_PREFIX);
                lists::model(config, catalog, allowed, id.unwrap_or_default())
            }
            Some(Route::Tags) => lists::tags(config, catalog, allowed),
            Some(Route::Ps) => lists::ps(config, catalog, allowed),
            Some(Route::Show) => lists::show(config, catalog, allowed, &request.body),
            Some(Route::Usage) => {
                let own = config.keys.is_empty().not().then_some(request.key.as_deref());
                let question = Question::parse(request.head.query())?.of_own(own)?;
                Ok(self.accounts.answer(&question))
            }
            Some(Route::WebSocket) => Err(Error::new(
                Kind::BadRequest,
                "this path is for WebSocket connections: Connection: Upgrade, Upgrade: websocket",
            )),
            Some(Route::Llm(_) | Route::Hook(_) | Route::Healthz | Route::Readyz) | None => {
                Err(Error::new(Kind::Internal, "a route without a hand"))
            }
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
        self.admitted(head, peer).map_err(|Refused { error, key, fields }| {
            let record = Record::of_head(Some(head), *peer, id, &self.metrics).of_key(key);
            let mut response = self.refused(&error, Some(head), record);
            response.headers.extend(fields);
            Box::new(response)
        })
    }

    fn admit_inward(
        &self,
        head: &Head,
        caller: &Caller,
        id: &RequestId,
    ) -> Result<Admission, Error> {
        let admitted = match routes::find(head.method, head.path()) {
            Found::Row(row) => {
                let key = caller.key.clone();
                self.within_limits(&self.state.load(), head, &caller.peer, row, key)
            }
            _ => Err(Error::new(Kind::NotFound, routes::nothing(head.path())).into()),
        };
        admitted.map_err(|Refused { error, .. }| {
            let record = Record::of_head(Some(head), caller.peer, id, &self.metrics);
            self.refused(&error, Some(head), record.of_key(caller.key.clone()));
            error
        })
    }

    /// Model calls with a small body: what they have to wait for is waited for as data.
    fn brisk(&self, request: &Request) -> bool {
        matches!(routes::route(request.route), Some(Route::Llm(_)))
            && request.body.len() <= BRISK_BODY_MAX
    }

    fn start(&self, request: Request, turn: &mut Turn<'_>) -> Step {
        let state = self.state.load_full();
        if let Some(Route::Llm(route)) = routes::route(request.route) {
            return match Exchange::new(route, request, &state, self) {
                Ok(exchange) => exchange.begin(turn),
                Err(response) => Step::Respond(*response),
            };
        }
        if let (routes::ECHO, Some(drill)) = (request.route, &self.drill) {
            return self.echo(&request, drill);
        }
        if upgrade::wanted(&request.head) {
            return self.upgrade(&request, &state);
        }
        if let Some(Route::Hook(hook)) = routes::route(request.route) {
            let response = self.hook(hook, &request, &state);
            return Step::Respond(state.readable(&request.head.headers, response));
        }
        // A list may wait for an upstream that was never seen, for a second at most. What never waits
        // starts no thread: five hundred questions for the version at once made nearly as many.
        if let Some(Route::Models | Route::Model | Route::Tags | Route::Ps | Route::Show) =
            routes::route(request.route)
        {
            turn.occupy();
        }
        let mut record = Record::of_request(&request, &self.metrics);
        let result = self.local(&request, &state);
        let mut response = result.unwrap_or_else(|error| {
            record.failed(&error);
            errors::response(&error, request.head.path())
        });
        record.finish(response.status, response.body.len() as u64);
        if !matches!(routes::route(request.route), Some(Route::Healthz | Route::Readyz)) {
            response.headers.extend(self.limit_fields(&state, &request));
        }
        Step::Respond(state.readable(&request.head.headers, response))
    }

    fn broken(&self, error: &Error, route: u16) -> Response {
        errors::response(error, routes::pattern(route))
    }

    fn refuse(
        &self,
        error: &Error,
        head: Option<&Head>,
        peer: &SocketAddr,
        id: &RequestId,
    ) -> Response {
        self.refused(error, head, Record::of_head(head, *peer, id, &self.metrics))
    }
}

/// The address that limits count by.
fn address(state: &State, head: &Head, peer: &SocketAddr) -> IpAddr {
    client::address(peer, &head.headers, &state.config.server.trusted_proxies)
}
