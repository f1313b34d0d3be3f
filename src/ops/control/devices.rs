//! Paired devices and those that ask to be, for the owner.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Ask, Done, Route};
use crate::base::error::{Error, Kind};
use crate::base::time_format::rfc3339;
use crate::net::http::Method;
use crate::nodes::Nodes;
use crate::nodes::pairing::{Device, Grant, Lost, REQUEST_TTL, Request, Seen, acts, short, wire};
use crate::nodes::who::Role;
use crate::ops::Parts;

pub(super) const ROUTES: &[Route] = &[
    Route { method: Method::Get, path: "/devices", run: list },
    Route { method: Method::Post, path: "/devices/approve", run: approve },
    Route { method: Method::Post, path: "/devices/reject", run: reject },
    Route { method: Method::Post, path: "/devices/remove", run: remove },
    Route { method: Method::Post, path: "/devices/rename", run: rename },
    Route { method: Method::Post, path: "/devices/rotate", run: rotate },
    Route { method: Method::Post, path: "/devices/revoke", run: revoke },
];

fn room(parts: &Parts) -> Result<&Arc<Nodes>, Error> {
    parts.nodes.as_ref().ok_or_else(|| Error::new(Kind::Unsupported, "there is no WebSocket here"))
}

/// Everything; never a token.
fn list(parts: &Parts, _: &Ask<'_>) -> Result<Done, Error> {
    let nodes = room(parts)?;
    let (devices, peers) = (nodes.devices(), nodes.peers());
    devices.ready()?;
    let connections = |id: &str| {
        let its = |who: &crate::nodes::who::Identity| who.device.as_deref() == Some(id);
        peers.iter().filter(|peer| peer.identity().is_some_and(its)).count()
    };
    let paired: Vec<Value> = devices
        .all()
        .iter()
        .map(|(device, seen)| device_row(device, seen, connections(&device.id)))
        .collect();
    let requests: Vec<Value> = devices.requests().iter().map(request_row).collect();
    let limits = &nodes.parts().limits;
    Ok(Done::json(&json!({
        "devices": paired,
        "requests": requests,
        "devices_max": limits.devices.max(),
        "requests_max": limits.pairings.max(),
        "request_seconds": REQUEST_TTL.as_secs(),
    })))
}

fn device_row(device: &Device, seen: &Seen, connections: usize) -> Value {
    let role = |grant: &Grant| {
        json!({
            "role": grant.role.as_str(),
            "scopes": wire::words(grant.scopes),
            "commands": grant.commands,
            "approved": time(grant.approved_ms),
            "token": match (&grant.token, grant.revoked_ms) {
                (Some(_), _) => "given",
                (None, Some(_)) => "taken back",
                (None, None) => "not given yet",
            },
        })
    };
    json!({
        "id": &*device.id,
        "name": device.name(),
        "client": device.client.id,
        "platform": device.client.platform,
        "roles": device.grants.iter().map(role).collect::<Vec<_>>(),
        "created": time(device.created_ms),
        "seen": (seen.ms > 0).then(|| time(seen.ms)),
        "seen_reason": (seen.ms > 0).then_some(seen.reason),
        "address": seen.address,
        "connections": connections,
    })
}

fn request_row(request: &Request) -> Value {
    let ask = &request.ask;
    json!({
        "id": &*request.id,
        "device": &*ask.device,
        "name": ask.client.display_name,
        "client": ask.client.id,
        "platform": ask.client.platform,
        "role": ask.role.as_str(),
        "scopes": wire::words(ask.scopes),
        "commands": ask.commands,
        "why": ask.why.as_str(),
        "address": ask.address,
        "asked": time(request.asked_ms),
    })
}

fn time(ms: u64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_millis(ms), 3)
}

/// `{"request": …}`, the beginning of its id.
fn approve(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let nodes = room(parts)?;
    let id = nodes.devices().request_beginning(ask.must("request")?)?;
    let (request, device) = acts::approve(nodes, &id)?;
    let role = request.ask.role.as_str();
    let document = json!({
        "request": &*id,
        "device": &*device.id,
        "name": device.name(),
        "role": role,
        "scopes": wire::words(request.ask.scopes),
        "commands": request.ask.commands,
    });
    Ok(Done::json(&document).told(format!("{} approved as {role}", short(&device.id))))
}

/// `{"request": …}`.
fn reject(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let nodes = room(parts)?;
    let id = nodes.devices().request_beginning(ask.must("request")?)?;
    let request = acts::reject(nodes, &id)?;
    let device = &request.ask.device;
    let document = json!({"request": &*id, "device": &**device});
    Ok(Done::json(&document).told(format!("{} rejected", short(device))))
}

/// `{"device": …, "role": … or nothing}`.
fn remove(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let (nodes, id) = found(parts, ask)?;
    let role = ask.text("role")?.map(role).transpose()?;
    let lost = acts::remove(nodes, &id, role)?;
    acts::shut_out(nodes, &id, role);
    let document = outcome(&lost);
    Ok(Done::json(&document).told(format!("{} removed", short(&id))))
}

/// `{"device": …, "name": …}`.
fn rename(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let (nodes, id) = found(parts, ask)?;
    let device = acts::rename(nodes, &id, ask.must("name")?)?;
    let document = json!({"device": &*device.id, "name": device.name()});
    Ok(Done::json(&document).told(format!("{} named", short(&id))))
}

/// `{"device": …, "role": …}`. The owner is told the token, this once.
fn rotate(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let (nodes, id) = found(parts, ask)?;
    let role = role(ask.must("role")?)?;
    let issued = acts::rotate(nodes, &id, role, None)?;
    acts::stale(nodes, &id, role);
    let document = json!({
        "device": &*id,
        "role": role.as_str(),
        "token": issued.token,
        "scopes": wire::words(issued.scopes),
    });
    Ok(Done::json(&document).told(format!("{} has a new token", short(&id))))
}

/// `{"device": …, "role": …}`.
fn revoke(parts: &Parts, ask: &Ask<'_>) -> Result<Done, Error> {
    let (nodes, id) = found(parts, ask)?;
    let role = role(ask.must("role")?)?;
    let lost = nodes.devices().revoke(&id, role)?;
    acts::stale(nodes, &id, role);
    Ok(Done::json(&outcome(&lost)).told(format!("{} lost its token", short(&id))))
}

fn found<'a>(parts: &'a Parts, ask: &Ask<'_>) -> Result<(&'a Arc<Nodes>, Arc<str>), Error> {
    let nodes = room(parts)?;
    Ok((nodes, nodes.devices().device_beginning(ask.must("device")?)?))
}

fn role(word: &str) -> Result<Role, Error> {
    let wrong = || Error::new(Kind::InvalidField, "a role is operator or node");
    Role::parse(Some(word)).ok_or_else(wrong)
}

/// Whether a restart would undo it.
fn outcome(lost: &Lost) -> Value {
    let why = lost.kept.as_ref().err().map(ToString::to_string);
    json!({
        "device": &*lost.device.id,
        "name": lost.device.name(),
        "kept": lost.kept.is_ok(),
        "why": why,
    })
}
