//! `POST /hooks/wake` and `POST /hooks/agent`: something outside has happened, and an agent is to hear
//! of it, or to do something about it. Behind a token of their own; without one there are no hooks.
//!
//! What they start are runs of the operator, as over WebSocket (`nodes/runs.rs`).

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::record::Record;
use super::state::State;
use super::table::{Fades, Table};
use super::{Gateway, Refused, address, errors, media};
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::gcra::{Gcra, Quota};
use crate::base::id::RequestId;
use crate::base::metrics::{Counter, Registry};
use crate::base::query::pairs;
use crate::config::settings::Hooks as Settings;
use crate::net::http::{Head, Request, Response};
use crate::net::service::{Admission, Caller};
use crate::nodes::Nodes;
use crate::nodes::refusal::{Code, Refusal};
use crate::nodes::runs::Sent;
use crate::nodes::runs::turn::{Turn, run_id};
use crate::nodes::sessions::{MAIN, SessionId, agent_known};

/// Under this name the runs of hooks count, and those of the shared token: both are the operator's.
const ACCOUNT: &str = "nodes";

/// Fields that carry the token, beside `Authorization: Bearer`: OpenClaw's, and its older ones.
const TOKEN_FIELDS: [&str; 3] = ["x-openclaw-token", "x-clawdbot-token", "x-moltbot-token"];

/// Fields that carry an idempotency key.
const KEY_FIELDS: [&str; 2] = ["idempotency-key", "x-openclaw-idempotency-key"];

/// Which hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A session is to hear of something.
    Wake,
    /// A turn is to be run.
    Agent,
}

/// Wrong tokens from one address.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    seen: Gcra,
    locked_until: Option<Instant>,
}

impl Failures {
    fn locked(&self, now: Instant) -> Option<Duration> {
        let left = self.locked_until?.checked_duration_since(now)?;
        (!left.is_zero()).then_some(left)
    }
}

impl Fades for Failures {
    fn faded(&self, now: Instant) -> bool {
        self.seen.idle(now) && self.locked(now).is_none()
    }
}

/// Who may use hooks, and who has tried too often. One for the process.
pub struct Hooks {
    failures: Table<IpAddr, Failures>,
    failed: Arc<Counter>,
    refused: Arc<Counter>,
}

impl Hooks {
    /// Nobody has tried yet; room for `addresses_max`.
    pub fn new(registry: &Registry, addresses_max: usize) -> Self {
        let forgotten = "the address that asked longest ago is forgotten";
        let room = registry.limit("server.addresses_max", "hooks", addresses_max as u64, forgotten);
        Hooks {
            failures: Table::new(room),
            failed: registry.counter(
                "tidegate_hook_auth_failures_total",
                "Wrong tokens that were shown to hooks.",
                &[],
            ),
            refused: registry.counter(
                "tidegate_hook_locked_out_total",
                "Hooks refused during a lockout, their token not looked at.",
                &[],
            ),
        }
    }

    /// Throws away what is over. To be called now and then.
    pub fn sweep(&self, now: Instant) {
        self.failures.sweep(now);
    }

    /// Checks the token that is shown.
    fn open(
        &self,
        settings: &Settings,
        shown: Option<&[u8]>,
        address: IpAddr,
        now: Instant,
    ) -> Result<(), Error> {
        let Some(token) = &settings.token else {
            let context = "there are no hooks here; set hooks.token_file or hooks.token_env";
            return Err(Error::new(Kind::NotFound, context));
        };
        if let Some(wait) = self.failures.peek(&address, |failures| failures.locked(now)).flatten()
        {
            self.refused.inc();
            let context =
                "too many wrong tokens came from this address; wait, and send a right one";
            return Err(Error::new(Kind::LockedOut, context).retry_after(Some(wait)));
        }
        let wrong = || Error::new(Kind::Unauthorized, "Unauthorized");
        let shown = shown.ok_or_else(wrong)?;
        let digests = [shown, token.expose().as_bytes()].map(Sha256::digest);
        if bool::from(digests[0][..].ct_eq(&digests[1][..])) {
            return Ok(());
        }
        self.failed.inc();
        let max = settings.failures_max as u64;
        if let Some(quota) = Quota::new(max, settings.window, max) {
            self.failures.with(address, now, |failures| {
                failures.seen.charge(&quota, now, 1);
                let full = !failures.seen.check(&quota, now, 1).allowed();
                if full && failures.locked(now).is_none() {
                    failures.locked_until = now.checked_add(settings.lockout);
                }
            });
        }
        Err(wrong())
    }
}

/// The token that a request shows.
fn shown(head: &Head) -> Option<&[u8]> {
    let bearer = head.headers.get("authorization").and_then(|value| {
        let (scheme, token) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
    });
    bearer.or_else(|| TOKEN_FIELDS.iter().find_map(|name| head.headers.get(name)))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wake {
    text: String,
    mode: Option<String>,
    agent_id: Option<String>,
    session_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Agent {
    message: String,
    name: Option<String>,
    agent_id: Option<String>,
    session_key: Option<String>,
    idempotency_key: Option<String>,
    deliver: Option<bool>,
    model: Option<String>,
    timeout_seconds: Option<u64>,
}

impl Gateway {
    /// Whether a hook may be used, as far as its head tells.
    pub(super) fn admit_hook(
        &self,
        state: &State,
        head: &Head,
        peer: &SocketAddr,
        row: u16,
        own_page: bool,
    ) -> Result<Admission, Refused> {
        let settings = &state.config.hooks;
        if pairs(head.query()).any(|(name, _)| name == "token") {
            // It would stand in the logs of everybody on the way.
            let context = "the token does not belong into the address; send it as \
                           Authorization: Bearer, or as x-openclaw-token";
            return Err(Error::new(Kind::InvalidField, context).into());
        }
        self.hooks.open(settings, shown(head), address(state, head, peer), clock::now())?;
        media::check(head, own_page)?;
        let admission = self.within_limits(state, head, peer, row, None)?;
        Ok(Admission { body_max: settings.body_max, ..admission })
    }

    /// Does what a hook asks for.
    pub(super) fn hook(&self, hook: Hook, request: &Request, state: &State) -> Response {
        let mut record = Record::of_request(request, &self.metrics);
        let done = match hook {
            Hook::Wake => self.wake(request, state),
            Hook::Agent => self.agent(request, state),
        };
        let response = done.map_or_else(
            |error| {
                record.failed(&error);
                errors::response(&error, request.head.path())
            },
            |answer| Response::json(200, answer.to_string()),
        );
        record.finish(response.status, response.body.len() as u64);
        response
    }

    fn wake(&self, request: &Request, state: &State) -> Result<Value, Error> {
        let Wake { text, mode, agent_id, session_key } = body(&request.body)?;
        let mode = mode.unwrap_or_else(|| "now".to_owned());
        let nodes = self.nodes()?;
        let session = session(state, session_key.as_deref().unwrap_or(MAIN), agent_id.as_deref())?;
        if text.trim().is_empty() {
            return Err(Error::new(Kind::InvalidField, "text: is missing"));
        }
        match mode.as_str() {
            "next-heartbeat" => nodes.runs().remind(&session, &text).map_err(refused)?,
            "now" => {
                let key = RequestId::generate().to_string();
                let text = format!("System: {text}");
                let turn = turn(request, state, session, &key, text)?;
                nodes.runs().send(turn, || ()).map(drop).map_err(refused)?;
            }
            _ => {
                let context = "mode: write now or next-heartbeat";
                return Err(Error::new(Kind::InvalidField, context));
            }
        }
        Ok(json!({"ok": true, "mode": mode}))
    }

    fn agent(&self, request: &Request, state: &State) -> Result<Value, Error> {
        let params: Agent = body(&request.body)?;
        if params.message.trim().is_empty() {
            return Err(Error::new(Kind::InvalidField, "message: is missing"));
        }
        if params.deliver == Some(true) {
            let context = "deliver: this gateway delivers to no channels; leave it out";
            return Err(Error::new(Kind::InvalidField, context));
        }
        let nodes = self.nodes()?;
        let fields = &request.head.headers;
        let key = KEY_FIELDS.iter().find_map(|name| fields.get_str(name)).map(ToOwned::to_owned);
        let key = key.or(params.idempotency_key);
        let key = key.unwrap_or_else(|| RequestId::generate().to_string());
        let fresh = || format!("hook:{}", RequestId::generate());
        let on = params.session_key.unwrap_or_else(fresh);
        let session = session(state, &on, params.agent_id.as_deref())?;
        let turn = turn(request, state, session.clone(), &key, params.message)?;
        let model = params.model.filter(|model| !model.trim().is_empty());
        let seconds = params.timeout_seconds.filter(|seconds| *seconds > 0);
        let turn = Turn { model, timeout: seconds.map(Duration::from_secs), ..turn };
        let run = turn.run.clone();
        let sent = nodes.runs().send(turn, || ()).map_err(refused)?;
        if let (Sent::Started, Some(name)) = (sent, params.name) {
            nodes.runs().label(&session, &name);
        }
        Ok(json!({"ok": true, "runId": &*run.id}))
    }

    fn nodes(&self) -> Result<Arc<Nodes>, Error> {
        let room = self.room.get().and_then(Weak::upgrade);
        room.ok_or_else(|| Error::new(Kind::Draining, "the gateway is starting; try again shortly"))
    }
}

fn body<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| {
        let kind = if error.is_data() { Kind::InvalidField } else { Kind::InvalidJson };
        Error::new(kind, format!("body: {error}"))
    })
}

/// Whose runs those of hooks are: the operator's; nobody's where nobody is asked for a key.
fn account(state: &State) -> Option<Arc<str>> {
    let nodes = &state.config.nodes;
    let asked = !state.keys.is_empty() || nodes.token.is_some() || nodes.password.is_some();
    asked.then(|| ACCOUNT.into())
}

fn session(state: &State, key: &str, agent: Option<&str>) -> Result<SessionId, Error> {
    agent.map_or(Ok(()), agent_known).map_err(refused)?;
    SessionId::parse(account(state).as_ref(), key, false).map_err(refused)
}

fn turn(
    request: &Request,
    state: &State,
    session: SessionId,
    key: &str,
    text: String,
) -> Result<Turn, Error> {
    let account = account(state);
    let from = address(state, &request.head, &request.peer);
    Ok(Turn {
        run: run_id(account.as_ref(), key).map_err(refused)?,
        session,
        caller: Caller { granted: account.is_some(), key: account, peer: SocketAddr::new(from, 0) },
        text,
        images: Vec::new(),
        model: None,
        system: None,
        timeout: None,
        interrupts: false,
    })
}

/// A refusal of the room, as HTTP has it.
fn refused(refusal: Refusal) -> Error {
    let reason = refusal.details.as_ref().and_then(|details| details["reason"].as_str());
    let kind = match (refusal.code, reason) {
        (_, Some("rate_limited" | "tokens_above_limit")) => Kind::RateLimited,
        (_, Some("draining")) => Kind::Draining,
        (Code::InvalidRequest, _) => Kind::InvalidField,
        _ => Kind::Overloaded,
    };
    Error::new(kind, refusal.message.into_owned()).retry_after(refusal.retry_after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Secret;
    use crate::net::http::Headers;

    fn settings() -> Settings {
        Settings {
            token: Some(Secret::new("right".to_owned())),
            body_max: 1000,
            failures_max: 3,
            window: Duration::from_secs(60),
            lockout: Duration::from_secs(30),
        }
    }

    #[test]
    fn wrong_tokens_lock_an_address_out_for_a_while_and_no_other() {
        let (hooks, now) = (Hooks::new(&Registry::default(), 2), clock::now());
        let open = |token: Option<&str>, last: u8, now| {
            let address = IpAddr::from([192, 0, 2, last]);
            let opened = hooks.open(&settings(), token.map(str::as_bytes), address, now);
            opened.map_err(|error| error.kind())
        };
        assert_eq!(open(None, 1, now), Err(Kind::Unauthorized));
        for _ in 0..3 {
            assert_eq!(open(Some("right"), 1, now), Ok(()));
            assert_eq!(open(Some("wrong"), 1, now), Err(Kind::Unauthorized));
        }
        assert_eq!(open(Some("right"), 1, now), Err(Kind::LockedOut));
        assert_eq!(open(Some("right"), 2, now), Ok(()));
        assert_eq!(open(Some("right"), 1, now + Duration::from_secs(30)), Ok(()));
        // Room is for two addresses, one in a shard: so many others take every place.
        for last in 2..=255 {
            assert_eq!(open(Some("wrong"), last, now), Err(Kind::Unauthorized));
        }
        assert_eq!(open(Some("right"), 1, now), Ok(()));
        let none = Settings { token: None, ..settings() };
        let opened = hooks.open(&none, Some(b""), IpAddr::from([192, 0, 2, 9]), now);
        assert_eq!(opened.unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn the_token_is_read_where_clients_put_it() {
        let check = |name: &str, value: &str, expected: Option<&str>| {
            let mut headers = Headers::default();
            headers.push(name.as_bytes(), value.as_bytes());
            let head = Head {
                method: crate::net::http::Method::Post,
                target: "/hooks/wake".into(),
                http11: true,
                headers,
                body: crate::net::http::BodyLength::None,
                keep_alive: true,
                expects_continue: false,
            };
            assert_eq!(shown(&head), expected.map(str::as_bytes), "{name}: {value}");
        };
        check("authorization", "Bearer abc", Some("abc"));
        check("authorization", "bearer  abc ", Some("abc"));
        check("authorization", "Basic abc", None);
        check("x-openclaw-token", "abc", Some("abc"));
        check("x-other", "abc", None);
    }
}
