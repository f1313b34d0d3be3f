//! `device.pair.*`, `device.token.*`: who is let in.

use serde::Deserialize;
use serde_json::json;

use super::{Call, Done, Method, Needs, Outcome};
use crate::base::error::{Error, Kind};
use crate::nodes::frame;
use crate::nodes::pairing::{Ask, Request, Why, acts, wire};
use crate::nodes::refusal::Refusal;
use crate::nodes::who::{How, Role, Scope, Scopes};

const PAIRING: Needs = Needs::Scope(Scope::Pairing);
const READ: Needs = Needs::Scope(Scope::Read);

pub(super) const METHODS: &[Method] = &[
    Method { name: "device.pair.list", needs: PAIRING, run: list },
    Method { name: "device.pair.approve", needs: PAIRING, run: approve },
    Method { name: "device.pair.reject", needs: PAIRING, run: reject },
    Method { name: "device.pair.remove", needs: PAIRING, run: remove },
    Method { name: "device.pair.rename", needs: PAIRING, run: rename },
    Method { name: "device.token.rotate", needs: PAIRING, run: rotate },
    Method { name: "device.token.revoke", needs: PAIRING, run: revoke },
    Method { name: "device.scopes.requestUpgrade", needs: READ, run: ask_for_more },
    Method { name: "device.scopes.waitUpgrade", needs: READ, run: wait_for_more },
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OfRequest {
    pub(super) request_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OfDevice {
    device_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rename {
    device_id: String,
    label: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OfToken {
    device_id: String,
    role: String,
    scopes: Option<Vec<String>>,
}

/// The device that may change only itself: one that came by its own token and is no administrator.
fn own<'a>(call: &'a Call<'_>) -> Option<&'a str> {
    let who = call.who;
    let bound = who.how == How::Device && !who.scopes.allow(Scope::Admin);
    who.device.as_deref().filter(|_| bound)
}

/// Whether the caller may change this device.
pub(super) fn manages(call: &Call<'_>, device: &str) -> Result<(), Refusal> {
    match own(call) {
        Some(own) if own != device => {
            let mut refusal = Refusal::missing(Scope::Admin);
            refusal.message = "a device without operator.admin may change only itself".into();
            Err(refusal)
        }
        _ => Ok(()),
    }
}

/// Whether the caller may approve a request: nobody gives away more than he has.
pub(super) fn approves(call: &Call<'_>, request: &Request) -> Result<(), Refusal> {
    let scopes = call.who.scopes;
    if scopes.allow(Scope::Admin) {
        return Ok(());
    }
    manages(call, &request.ask.device)?;
    if request.ask.role == Role::Node && own(call).is_some() {
        return Err(Refusal::missing(Scope::Admin));
    }
    if let Some(needed) = request.needs().filter(|needed| !scopes.allow(*needed)) {
        return Err(Refusal::missing(needed));
    }
    match scopes.lacks(request.ask.scopes) {
        Some(scope) => Err(Refusal::missing(scope)),
        None => Ok(()),
    }
}

/// An error of the devices, in the protocol's words.
pub(super) fn refused(error: Error) -> Refusal {
    match error.kind() {
        Kind::NotFound | Kind::InvalidField => Refusal::invalid(error.context().to_owned()),
        _ => error.into(),
    }
}

/// The request of this id.
pub(super) fn request(call: &Call<'_>, id: &str) -> Result<Request, Refusal> {
    let unknown = || Refusal::invalid("unknown requestId");
    call.nodes.devices().request(id).ok_or_else(unknown)
}

fn list(call: &Call<'_>) -> Outcome {
    call.params::<Nothing>()?;
    let devices = call.nodes.devices();
    devices.ready()?;
    let (own, peers) = (own(call), call.nodes.peers());
    let shown = |id: &str| own.is_none_or(|own| own == id);
    let connected = |id: &str| {
        peers
            .iter()
            .any(|peer| peer.identity().is_some_and(|who| who.device.as_deref() == Some(id)))
    };
    let pending: Vec<_> = devices
        .requests()
        .iter()
        .filter(|request| request.ask.why != Why::Commands && shown(&request.ask.device))
        .map(wire::device_request)
        .collect();
    let paired: Vec<_> = devices
        .all()
        .iter()
        .filter(|(device, _)| shown(&device.id))
        .map(|(device, seen)| wire::device(device, seen, connected(&device.id)))
        .collect();
    Done::json(&json!({"pending": pending, "paired": paired}))
}

fn approve(call: &Call<'_>) -> Outcome {
    let OfRequest { request_id } = call.params()?;
    approves(call, &request(call, &request_id)?)?;
    let (_, device) = acts::approve(call.nodes, &request_id).map_err(refused)?;
    let seen = call.nodes.devices().last_seen(&device.id);
    let device = wire::device(&device, &seen, false);
    Done::json(&json!({"requestId": request_id, "device": device}))
}

fn reject(call: &Call<'_>) -> Outcome {
    let OfRequest { request_id } = call.params()?;
    manages(call, &request(call, &request_id)?.ask.device)?;
    let request = acts::reject(call.nodes, &request_id).map_err(refused)?;
    Done::json(&json!({"requestId": request_id, "deviceId": &*request.ask.device}))
}

fn remove(call: &Call<'_>) -> Outcome {
    let OfDevice { device_id } = call.params()?;
    manages(call, &device_id)?;
    let lost = acts::remove(call.nodes, &device_id, None).map_err(refused)?;
    let outcome = lost.kept.map(|()| frame::text(&json!({"deviceId": device_id})));
    // The caller may be one of those who are shut out: first the answer.
    call.later().send(&outcome.map_err(behind));
    acts::shut_out(call.nodes, &device_id, None);
    Ok(Done::Later)
}

fn rename(call: &Call<'_>) -> Outcome {
    let Rename { device_id, label } = call.params()?;
    manages(call, &device_id)?;
    let device = acts::rename(call.nodes, &device_id, &label).map_err(refused)?;
    Done::json(&json!({"deviceId": device_id, "label": device.label}))
}

fn rotate(call: &Call<'_>) -> Outcome {
    let OfToken { device_id, role, scopes } = call.params()?;
    let role = role_of(call, &device_id, &role)?;
    let scopes = scopes.map(|words| Scopes::of(words.iter().map(String::as_str)));
    let myself = call.who.device.as_deref() == Some(&*device_id);
    let nodes = call.nodes;
    let mut answer = json!({"deviceId": device_id, "role": role.as_str()});
    if myself {
        let issued = acts::rotate(nodes, &device_id, role, scopes).map_err(refused)?;
        answer["token"] = issued.token.into();
        answer["scopes"] = wire::words(issued.scopes);
        answer["rotatedAtMs"] = issued.issued_ms.into();
        answer["tokenDelivery"] = "in-band".into();
    } else {
        // Nobody but the device itself is told its token: it gets it when it connects by what else
        // lets it in.
        let lost = nodes.devices().revoke(&device_id, role).map_err(refused)?;
        lost.kept.map_err(behind)?;
        let grant = lost.device.grant(role);
        answer["scopes"] = wire::words(grant.map_or(Scopes::NONE, |grant| grant.scopes));
        answer["rotatedAtMs"] = grant.and_then(|grant| grant.revoked_ms).into();
        answer["tokenDelivery"] = "withheld-cross-device".into();
    }
    call.later().send(&Ok(frame::text(&answer)));
    acts::stale(nodes, &device_id, role);
    Ok(Done::Later)
}

fn revoke(call: &Call<'_>) -> Outcome {
    let OfToken { device_id, role, .. } = call.params()?;
    let role = role_of(call, &device_id, &role)?;
    let lost = call.nodes.devices().revoke(&device_id, role).map_err(refused)?;
    let revoked_ms = lost.device.grant(role).and_then(|grant| grant.revoked_ms);
    let answer = json!({"deviceId": device_id, "role": role.as_str(), "revokedAtMs": revoked_ms});
    call.later().send(&lost.kept.map(|()| frame::text(&answer)).map_err(behind));
    acts::stale(call.nodes, &device_id, role);
    Ok(Done::Later)
}

/// The role whose token is meant, which the caller may change.
fn role_of(call: &Call<'_>, device: &str, role: &str) -> Result<Role, Refusal> {
    manages(call, device)?;
    let known = ["operator", "node"].contains(&role).then(|| Role::parse(Some(role))).flatten();
    let role = known.ok_or_else(|| Refusal::invalid("unknown role"))?;
    let scopes = call.who.scopes;
    if role == Role::Node && own(call).is_some() {
        return Err(Refusal::missing(Scope::Admin));
    }
    // A token of an operator is worth its rights: nobody makes one that has more than he.
    let grant = call.nodes.devices().get(device);
    let theirs = grant.as_ref().and_then(|device| device.grant(role)).map(|grant| grant.scopes);
    match scopes.lacks(theirs.unwrap_or_default()) {
        Some(scope) => Err(Refusal::missing(scope)),
        None => Ok(role),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct More {
    scopes: Vec<String>,
}

/// A connected device asks for more rights: an operator approves them as he lets devices in.
fn ask_for_more(call: &Call<'_>) -> Outcome {
    let More { scopes } = call.params()?;
    // As at the handshake: nobody vouches for whoever comes to an open gateway from elsewhere.
    if call.who.how == How::Open && !call.peer.address.to_canonical().is_loopback() {
        return Err(Refusal::invalid("pairing is asked for with a secret of the gateway"));
    }
    let asked = Scopes::of(scopes.iter().map(String::as_str));
    if asked.is_empty() || asked.words().count() != scopes.len() {
        return Err(Refusal::invalid("scopes has to name scopes of operators, each once"));
    }
    let client = &call.who.client;
    let key = client.public_key.as_deref().copied();
    let (Some(device), Some(key)) = (call.who.device.clone(), key) else {
        return Err(Refusal::invalid("device identity required"));
    };
    let devices = call.nodes.devices();
    devices.ready()?;
    let why = match devices.get(&device) {
        None => Why::NotPaired,
        Some(known) if known.grant(Role::Operator).is_none() => Why::Role,
        Some(_) => Why::Scopes,
    };
    let ask = Ask {
        device,
        key,
        role: Role::Operator,
        scopes: asked,
        commands: Box::default(),
        caps: Box::default(),
        client: client.clone(),
        address: call.peer.address,
        why,
    };
    let wish = devices.ask(ask)?;
    for event in wire::wished(&wish) {
        acts::tell(call.nodes, &event);
    }
    Done::json(&json!({"requestId": &*wish.request.id}))
}

/// Answers once the request is settled, with a token that has the rights.
fn wait_for_more(call: &Call<'_>) -> Outcome {
    let OfRequest { request_id } = call.params()?;
    let request = request(call, &request_id)?;
    if call.who.device.as_deref() != Some(&*request.ask.device)
        || request.ask.role != Role::Operator
    {
        return Err(Refusal::invalid("unknown requestId"));
    }
    call.nodes.upgrades().wait(&request, call.later());
    Ok(Done::Later)
}

/// It counts, but the disk does not have it yet.
pub(super) fn behind(error: Error) -> Refusal {
    let text = format!(
        "done, but not kept on disk yet, so that a restart may undo it; it is tried again: {error}"
    );
    Refusal::unavailable(text)
}
