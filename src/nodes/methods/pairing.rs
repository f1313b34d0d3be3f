//! `node.pair.*`, `node.rename`: the same devices, as nodes.

use serde::Deserialize;
use serde_json::json;

use super::devices::{OfRequest, approves, behind, manages, refused, request};
use super::{Call, Done, Method, Needs, Outcome};
use crate::nodes::frame;
use crate::nodes::pairing::{acts, wire};
use crate::nodes::refusal::Refusal;
use crate::nodes::who::{Role, Scope};

const PAIRING: Needs = Needs::Scope(Scope::Pairing);

pub(super) const METHODS: &[Method] = &[
    Method { name: "node.pair.list", needs: PAIRING, run: list },
    Method { name: "node.pair.approve", needs: PAIRING, run: approve },
    Method { name: "node.pair.reject", needs: PAIRING, run: reject },
    Method { name: "node.pair.remove", needs: PAIRING, run: remove },
    Method { name: "node.rename", needs: PAIRING, run: rename },
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OfNode {
    node_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rename {
    node_id: String,
    display_name: String,
}

fn list(call: &Call<'_>) -> Outcome {
    call.params::<Nothing>()?;
    let devices = call.nodes.devices();
    devices.ready()?;
    let shown = |id: &str| manages(call, id).is_ok();
    let pending: Vec<_> = devices
        .requests()
        .iter()
        .filter(|request| request.ask.role == Role::Node && shown(&request.ask.device))
        .map(wire::node_request)
        .collect();
    let paired: Vec<_> = devices
        .all()
        .iter()
        .filter(|(device, _)| shown(&device.id))
        .filter_map(|(device, seen)| wire::node(device, seen))
        .collect();
    Done::json(&json!({"pending": pending, "paired": paired}))
}

fn approve(call: &Call<'_>) -> Outcome {
    let OfRequest { request_id } = call.params()?;
    let request = of_node(call, &request_id)?;
    approves(call, &request)?;
    let (_, device) = acts::approve(call.nodes, &request_id).map_err(refused)?;
    let node = wire::node(&device, &call.nodes.devices().last_seen(&device.id));
    Done::json(&json!({"requestId": request_id, "node": node}))
}

fn reject(call: &Call<'_>) -> Outcome {
    let OfRequest { request_id } = call.params()?;
    manages(call, &of_node(call, &request_id)?.ask.device)?;
    let request = acts::reject(call.nodes, &request_id).map_err(refused)?;
    Done::json(&json!({"requestId": request_id, "nodeId": &*request.ask.device}))
}

fn remove(call: &Call<'_>) -> Outcome {
    let OfNode { node_id } = call.params()?;
    manages(call, &node_id)?;
    let lost = acts::remove(call.nodes, &node_id, Some(Role::Node)).map_err(unknown)?;
    let outcome = lost.kept.map(|()| frame::text(&json!({"nodeId": node_id})));
    call.later().send(&outcome.map_err(behind));
    acts::shut_out(call.nodes, &node_id, Some(Role::Node));
    Ok(Done::Later)
}

fn rename(call: &Call<'_>) -> Outcome {
    let Rename { node_id, display_name } = call.params()?;
    manages(call, &node_id)?;
    let devices = call.nodes.devices();
    devices.ready()?;
    let node = devices.get(&node_id).filter(|device| device.grant(Role::Node).is_some());
    if node.is_none() {
        return Err(Refusal::invalid("unknown nodeId"));
    }
    let device = acts::rename(call.nodes, &node_id, &display_name).map_err(unknown)?;
    Done::json(&json!({"nodeId": node_id, "displayName": device.label}))
}

fn of_node(call: &Call<'_>, id: &str) -> Result<crate::nodes::pairing::Request, Refusal> {
    let found = request(call, id)?;
    match found.ask.role {
        Role::Node => Ok(found),
        Role::Operator => Err(Refusal::invalid("unknown requestId")),
    }
}

fn unknown(error: crate::base::error::Error) -> Refusal {
    match error.kind() {
        crate::base::error::Kind::NotFound => Refusal::invalid("unknown nodeId"),
        _ => refused(error),
    }
}
