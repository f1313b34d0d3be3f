//! The handshake: our challenge, the client's `connect`, and who it is from then on.
//!
//! Pure but for what [`Context`] gives: the gateway's keys, and the devices (which touch the disk only
//! when a device gets its first token). Whoever is not sure who it is stays outside.

mod params;
mod refuse;
#[cfg(test)]
mod tests;

pub use params::{CAPS_MAX, COMMANDS_MAX, WORD_CHARS_MAX};

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::base::error::{Error, Kind};
use crate::config::settings;

use super::device::Proven;
use super::frame::Incoming;
use super::host::{Host, Opened};
use super::outbox::Event;
use super::pairing::{Ask, Device, Devices, Grant, Issued, Seen, Why, short, wire};
use super::refusal::Refusal;
use super::tokens::Digest;
use super::who::{Client, How, Identity, Role, Scopes};
use params::Params;
use refuse::Reason;

/// The protocol's version that is spoken.
pub const PROTOCOL: u32 = 4;

/// The oldest that nodes and probes may speak.
pub const PROTOCOL_MIN: u32 = 3;

/// Under this name those with the shared token or password are counted.
pub const SHARED_ACCOUNT: &str = "nodes";

/// The shared secrets of `[nodes]`, as digests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Secrets {
    token: Option<Digest>,
    password: Option<Digest>,
}

impl Secrets {
    /// Those of these settings.
    pub fn of(settings: &settings::Nodes) -> Secrets {
        let digest = |secret: &Option<settings::Secret>| {
            secret.as_ref().map(|secret| Digest::of(secret.expose()))
        };
        Secrets { token: digest(&settings.token), password: digest(&settings.password) }
    }

    /// Whether what a connection was let in by still counts, after a change from `old`.
    pub fn still(&self, old: &Secrets, how: How) -> bool {
        let same = |new: &Option<Digest>, old: &Option<Digest>| match (new, old) {
            (Some(new), Some(old)) => new.same(old),
            (None, None) => true,
            _ => false,
        };
        match how {
            How::Token => same(&self.token, &old.token),
            How::Password => same(&self.password, &old.password),
            How::Open => self.token.is_none() && self.password.is_none(),
            How::Key | How::Device => true,
        }
    }

    fn any(&self) -> bool {
        self.token.is_some() || self.password.is_some()
    }
}

/// What a handshake looks at.
pub struct Context<'a> {
    /// The gateway's keys.
    pub host: &'a dyn Host,
    /// The devices.
    pub devices: &'a Devices,
    /// The shared secrets.
    pub secrets: &'a Secrets,
    /// From where the client comes.
    pub address: IpAddr,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// What a first frame comes to.
#[derive(Debug)]
pub enum Step {
    /// The client is let in.
    Welcome(Box<Welcome>),
    /// It is not.
    Refuse(Box<Refused>),
}

/// Somebody is let in.
#[derive(Debug)]
pub struct Welcome {
    /// The id of the request, for the answer.
    pub id: Box<str>,
    /// Who it is.
    pub identity: Identity,
    /// The object `auth` of `hello-ok`. It may hold a token: not for logs.
    pub auth: Value,
    /// For operators who may pair.
    pub announce: Vec<Event>,
}

/// Somebody is not let in.
#[derive(Debug)]
pub struct Refused {
    /// The frame that is sent before the connection is closed; none for what was no frame.
    pub frame: Option<String>,
    /// The close code.
    pub code: u16,
    /// The close reason.
    pub reason: &'static str,
    /// A word for counters and logs: a code of the error's details, in lower case.
    pub outcome: &'static str,
    /// For operators who may pair.
    pub announce: Vec<Event>,
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    nonce: Box<str>,
    began_ms: u64,
}

/// By what a client comes in.
#[derive(Debug)]
enum Way {
    Open,
    Key(Arc<str>, Scopes),
    Token,
    Password,
    /// With the rights of its token.
    Device(Scopes),
}

impl Way {
    fn how(&self) -> How {
        match self {
            Way::Open => How::Open,
            Way::Key(..) => How::Key,
            Way::Token => How::Token,
            Way::Password => How::Password,
            Way::Device(_) => How::Device,
        }
    }

    /// The rights that it gives, at most.
    fn scopes(&self) -> Scopes {
        match self {
            Way::Open => Scopes::USE,
            Way::Key(_, scopes) | Way::Device(scopes) => *scopes,
            Way::Token | Way::Password => Scopes::ALL,
        }
    }
}

impl Handshake {
    /// A handshake with this challenge, which nobody has had before ([`super::tokens::fresh`]).
    pub fn new(now_ms: u64, nonce: &str) -> Self {
        Handshake { nonce: nonce.into(), began_ms: now_ms }
    }

    /// The first frame, which we send.
    pub fn challenge(&self) -> String {
        let payload = json!({"nonce": self.nonce, "ts": self.began_ms});
        let frame = json!({"type": "event", "event": "connect.challenge", "payload": payload});
        frame.to_string()
    }

    /// The first frame of the client.
    pub fn step(&self, text: &str, ctx: &Context<'_>) -> Step {
        let (id, params) = match Incoming::parse(text) {
            Ok(Incoming::Request { id, method, params }) if method == "connect" => (id, params),
            Ok(Incoming::Request { id, .. } | Incoming::Cancel { id }) => {
                let text = "invalid handshake: the first request must be connect";
                let reason = Reason::plain(Refusal::invalid(text), "first request must be connect");
                return Step::Refuse(Box::new(reason.frame(&id)));
            }
            Err(why) => return Step::Refuse(Box::new(refuse::no_frame(why))),
        };
        match self.connect(params.unwrap_or("{}"), ctx) {
            Ok((identity, auth, announce)) => {
                Step::Welcome(Box::new(Welcome { id: (&*id).into(), identity, auth, announce }))
            }
            Err(reason) => Step::Refuse(Box::new(reason.frame(&id))),
        }
    }

    fn connect(
        &self,
        params: &str,
        ctx: &Context<'_>,
    ) -> Result<(Identity, Value, Vec<Event>), Box<Reason>> {
        let params = Params::parse(params)
            .map_err(|why| Reason::plain(Refusal::invalid(why), "invalid connect params"))?;
        let Some(role) = Role::parse(params.role.as_deref()) else {
            return Err(Reason::plain(Refusal::invalid("invalid role"), "invalid role"));
        };
        let protocol = version(&params, role)?;
        let proven = params.proven(&self.nonce, ctx.now_ms).map_err(refuse::device)?;
        if proven.is_none() && (role == Role::Node || params.device_token().is_some()) {
            return Err(refuse::no_device());
        }
        let arrival = Arrival { params: &params, role, protocol, ctx };
        let known = match &proven {
            Some(proven) => arrival.known(proven),
            None => Ok(None),
        };
        let way = arrival.way(proven.is_some(), &known)?;
        match (role, proven) {
            (Role::Node, Some(proven)) => arrival.node(proven, &way, known),
            (Role::Node, None) => Err(refuse::no_device()),
            (Role::Operator, proven) => arrival.operator(proven, &way, known),
        }
    }
}

/// The version that both sides speak.
fn version(params: &Params<'_>, role: Role) -> Result<u32, Box<Reason>> {
    let older = role == Role::Node || params.mode() == "probe";
    let least = if older { PROTOCOL_MIN } else { PROTOCOL };
    let (min, max) = (params.min_protocol, params.max_protocol);
    if min > max || min > PROTOCOL || max < least {
        return Err(refuse::protocol(min, max));
    }
    Ok(max.min(PROTOCOL))
}

/// What is known of a device, or why nothing can be.
type Known = Result<Option<Arc<Device>>, Error>;

/// A client at the door.
struct Arrival<'a> {
    params: &'a Params<'a>,
    role: Role,
    protocol: u32,
    ctx: &'a Context<'a>,
}

impl Arrival<'_> {
    fn known(&self, proven: &Proven) -> Known {
        self.ctx.devices.ready()?;
        Ok(self.ctx.devices.get(&proven.id))
    }

    /// By what it comes in: the device's own token first, which its signature vouches for, then the
    /// shared secrets and keys, whose failures are counted.
    fn way(&self, proven: bool, known: &Known) -> Result<Way, Box<Reason>> {
        let Context { host, secrets, address, .. } = *self.ctx;
        let (token, own) = (self.params.token(), self.params.device_token());
        let grant = known.as_ref().ok().and_then(|device| device.as_ref()?.grant(self.role));
        if let Some(way) = grant.and_then(|grant| by_device([own, token], grant)) {
            return Ok(way);
        }
        // Clients show a stored device token in both places.
        let token = token.filter(|token| own != Some(token));
        let paired = matches!(known, Ok(Some(_))) && own.is_none();
        if let Some(token) = token {
            host.listens(token, address).map_err(refuse::secret)?;
            if secrets.token.is_some_and(|ours| ours.same(&Digest::of(token))) {
                host.right(token, address);
                return Ok(Way::Token);
            }
            match host.open(Some(token), address) {
                Ok(Opened::Key { name, scopes }) => return Ok(Way::Key(name, scopes)),
                Ok(Opened::Open) if !secrets.any() => return Ok(Way::Open),
                Ok(Opened::Open) => host.failed(token, address),
                Err(error) if error.kind() == Kind::LockedOut => return Err(refuse::secret(error)),
                Err(_) => {}
            }
            return Err(refuse::wrong_token(paired));
        }
        if let Some(password) = self.params.password().filter(|_| secrets.password.is_some()) {
            host.listens(password, address).map_err(refuse::secret)?;
            if secrets.password.is_some_and(|ours| ours.same(&Digest::of(password))) {
                host.right(password, address);
                return Ok(Way::Password);
            }
            host.failed(password, address);
            return Err(refuse::wrong_password());
        }
        // An open gateway ignores what is shown to it, on HTTP as here.
        if !secrets.any() && matches!(host.open(None, address), Ok(Opened::Open)) {
            return Ok(Way::Open);
        }
        match own.filter(|_| proven) {
            None => {
                Err(refuse::nothing_shown(secrets.token.is_none() && secrets.password.is_some()))
            }
            Some(own) => {
                // A device that cannot be looked up is not told that its token is wrong: it would
                // throw it away.
                if let Err(error) = known {
                    return Err(refuse::store(error));
                }
                host.listens(own, address).map_err(refuse::secret)?;
                host.failed(own, address);
                Err(refuse::wrong_device_token())
            }
        }
    }

    /// A node: it has to be paired, whatever else it has.
    fn node(
        &self,
        proven: Proven,
        way: &Way,
        known: Known,
    ) -> Result<(Identity, Value, Vec<Event>), Box<Reason>> {
        let known = known.map_err(|error| refuse::store(&error))?;
        let offered = self.params.kept_commands();
        let grant = known.as_ref().and_then(|device| device.grant(Role::Node));
        let Some(grant) = grant else {
            let why = if known.is_some() { Why::Role } else { Why::NotPaired };
            return Err(self.ask(&proven, why, Scopes::NONE, known.as_deref(), way));
        };
        let approved: Box<[Box<str>]> =
            offered.iter().filter(|command| grant.commands.contains(command)).cloned().collect();
        let mut announce = Vec::new();
        if approved.len() < offered.len() {
            // It is let in without them, and an operator may approve the rest.
            let ask = self.asks(&proven, Why::Commands, Scopes::NONE);
            if let Ok(wish) = self.ctx.devices.ask(ask) {
                announce = wire::wished(&wish);
            }
        }
        let mut identity = self.identity(way, Some(&proven), Scopes::NONE);
        identity.commands = approved;
        identity.caps = self.params.kept_caps();
        let auth = self.admit(&identity, way, grant);
        Ok((identity, auth, announce))
    }

    /// An operator: what lets it in says what it may do.
    fn operator(
        &self,
        proven: Option<Proven>,
        way: &Way,
        known: Known,
    ) -> Result<(Identity, Value, Vec<Event>), Box<Reason>> {
        let device = known.ok().flatten();
        let grant = device.as_ref().and_then(|device| device.grant(Role::Operator));
        let asked = self.params.asked_scopes().map(Scopes::of);
        let scopes = match (asked, way) {
            (Some(asked), Way::Device(scopes)) if !scopes.cover(asked) => {
                let approved = grant.map_or(Scopes::NONE, |grant| grant.scopes);
                return Err(match &proven {
                    Some(proven) if !approved.cover(asked) => {
                        self.ask(proven, Why::Scopes, asked, device.as_deref(), way)
                    }
                    _ => refuse::narrow_token(),
                });
            }
            (Some(asked), way) => way.scopes().both(asked),
            // A client that does not speak of scopes: what a key gives, else to look and to use.
            (None, Way::Key(_, scopes) | Way::Device(scopes)) => *scopes,
            (None, _) => Scopes::USE,
        };
        let identity = self.identity(way, proven.as_ref(), scopes);
        let auth = match grant {
            Some(grant) => self.admit(&identity, way, grant),
            None => auth(&identity, None),
        };
        Ok((identity, auth, Vec::new()))
    }

    /// A paired device is let in: it was seen, and gets its token if it has none.
    fn admit(&self, identity: &Identity, way: &Way, grant: &Grant) -> Value {
        let Some(id) = &identity.device else { return auth(identity, None) };
        let (ms, address) = (self.ctx.now_ms, Some(self.ctx.address));
        self.ctx.devices.saw(id, Seen { ms, reason: "connect", address });
        let has = grant.token.is_some() || matches!(way, Way::Device(_));
        let issued = if has { None } else { self.ctx.devices.first_token(id, identity.role) };
        auth(identity, issued)
    }

    /// The device has to be approved first: the request waits from now on.
    fn ask(
        &self,
        proven: &Proven,
        why: Why,
        scopes: Scopes,
        known: Option<&Device>,
        way: &Way,
    ) -> Box<Reason> {
        // Nobody vouches for whoever comes to an open gateway but the machine itself.
        if matches!(way, Way::Open) && !self.ctx.address.to_canonical().is_loopback() {
            return refuse::pairing(why, None, self.role, scopes, &proven.id, known);
        }
        match self.ctx.devices.ask(self.asks(proven, why, scopes)) {
            Ok(wish) => {
                let id = Arc::clone(&wish.request.id);
                let mut reason =
                    refuse::pairing(why, Some(&id), self.role, scopes, &proven.id, known);
                reason.announce = wire::wished(&wish);
                reason
            }
            Err(error) => refuse::full(error, why, &proven.id),
        }
    }

    fn asks(&self, proven: &Proven, why: Why, scopes: Scopes) -> Ask {
        let node = self.role == Role::Node;
        let (commands, caps) = (self.params.kept_commands(), self.params.kept_caps());
        Ask {
            device: proven.id.as_str().into(),
            key: proven.key,
            role: self.role,
            scopes,
            commands: if node { commands } else { Box::default() },
            caps: if node { caps } else { Box::default() },
            client: self.params.kept_client(),
            address: self.ctx.address,
            why,
        }
    }

    fn identity(&self, way: &Way, proven: Option<&Proven>, scopes: Scopes) -> Identity {
        let account: Option<Arc<str>> = match (way, proven) {
            (Way::Open, _) => None,
            (Way::Key(name, _), _) => Some(Arc::clone(name)),
            (Way::Device(_), Some(proven)) => Some(account_of(&proven.id)),
            (Way::Token | Way::Password | Way::Device(_), _) => Some(SHARED_ACCOUNT.into()),
        };
        let public_key = proven.map(|proven| Box::new(proven.key));
        Identity {
            role: self.role,
            scopes,
            how: way.how(),
            account,
            device: proven.map(|proven| proven.id.as_str().into()),
            protocol: self.protocol,
            client: Client { public_key, ..self.params.kept_client() },
            caps: Box::default(),
            commands: Box::default(),
        }
    }
}

/// The account of a device that comes by its own token.
pub fn account_of(device: &str) -> Arc<str> {
    format!("device:{}", short(device)).into()
}

fn by_device(shown: [Option<&str>; 2], grant: &Grant) -> Option<Way> {
    let token = grant.token.as_ref()?;
    let right = |shown: &str| token.digest.same(&Digest::of(shown));
    shown.into_iter().flatten().any(right).then_some(Way::Device(token.scopes))
}

/// The object `auth` of `hello-ok`.
fn auth(identity: &Identity, issued: Option<Issued>) -> Value {
    let mut auth = Map::new();
    if let Some(issued) = issued {
        auth.insert("deviceToken".to_owned(), issued.token.into());
        auth.insert("issuedAtMs".to_owned(), issued.issued_ms.into());
    }
    auth.insert("role".to_owned(), identity.role.as_str().into());
    auth.insert("scopes".to_owned(), wire::words(identity.scopes));
    Value::Object(auth)
}
