//! What is done with devices, and everybody told of it: the same for operators on WebSocket and for
//! the owner at the control socket.

use std::sync::Arc;

use super::record::{Device, Request, Why};
use super::wire::{self, Decision};
use super::{Issued, Lost, concerns};
use crate::base::error::Error;
use crate::nodes::Nodes;
use crate::nodes::who::{How, Role, Scope, Scopes};

/// The close reason of connections whose device lost its pairing.
const REMOVED: &str = "device pairing removed";

/// The close reason of connections whose device lost its token.
const TOKEN: &str = "device token changed";

/// Approves a request.
///
/// # Errors
/// Those of [`super::Devices::approve`].
pub fn approve(nodes: &Nodes, request: &str) -> Result<(Request, Arc<Device>), Error> {
    let (request, device) = nodes.devices().approve(request)?;
    tell(nodes, &wire::resolved(&request, Decision::Approved));
    if request.ask.why == Why::Commands {
        // Its commands are read at the handshake: it comes back at once, with all of them.
        let (id, role) = (&device.id, Some(Role::Node));
        nodes.dismiss(1012, "commands approved: connect again", |peer| {
            peer.identity().is_some_and(|who| concerns(who, id, role))
        });
    }
    nodes.upgrades().settled(nodes, &request, Decision::Approved);
    Ok((request, device))
}

/// Rejects a request.
///
/// # Errors
/// Those of [`super::Devices::reject`].
pub fn reject(nodes: &Nodes, request: &str) -> Result<Request, Error> {
    let request = nodes.devices().reject(request)?;
    tell(nodes, &wire::resolved(&request, Decision::Rejected));
    nodes.upgrades().settled(nodes, &request, Decision::Rejected);
    Ok(request)
}

/// Takes a pairing away, or one of its roles. Its connections end with [`shut_out`].
///
/// # Errors
/// Those of [`super::Devices::remove`].
pub fn remove(nodes: &Nodes, device: &str, role: Option<Role>) -> Result<Lost, Error> {
    let lost = nodes.devices().remove(device, role)?;
    let node = lost.device.grant(Role::Node).is_some() && role != Some(Role::Operator);
    if node {
        nodes.fleet().forget(device);
        tell(nodes, &wire::node_resolved("", device, Decision::Removed));
    }
    tell(nodes, &wire::changed());
    Ok(lost)
}

/// Closes the connections that stood on a pairing that is gone.
pub fn shut_out(nodes: &Nodes, device: &str, role: Option<Role>) {
    nodes.dismiss(1008, REMOVED, |peer| {
        peer.identity().is_some_and(|who| concerns(who, device, role))
    });
}

/// Gives a device a name.
///
/// # Errors
/// Those of [`super::Devices::rename`].
pub fn rename(nodes: &Nodes, device: &str, label: &str) -> Result<Arc<Device>, Error> {
    let device = nodes.devices().rename(device, label)?;
    tell(nodes, &wire::changed());
    Ok(device)
}

/// Gives a device a new token. Its connections by the old one end with [`stale`].
///
/// # Errors
/// Those of [`super::Devices::rotate`].
pub fn rotate(
    nodes: &Nodes,
    device: &str,
    role: Role,
    scopes: Option<Scopes>,
) -> Result<Issued, Error> {
    nodes.devices().rotate(device, role, scopes)
}

/// Closes the connections that came by a token that is gone.
pub fn stale(nodes: &Nodes, device: &str, role: Role) {
    nodes.dismiss(1008, TOKEN, |peer| {
        let by_token = |who: &crate::nodes::who::Identity| who.how == How::Device;
        peer.identity().is_some_and(|who| by_token(who) && concerns(who, device, Some(role)))
    });
}

/// Tells operators who may pair.
pub fn tell(nodes: &Nodes, event: &crate::nodes::outbox::Event) {
    nodes.broadcast(event, |peer| peer.may(Scope::Pairing));
}
