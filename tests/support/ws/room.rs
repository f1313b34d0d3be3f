//! A daemon with a shared token, and devices that are paired with it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::{Client, Hello, Keys};
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::sandbox::Sandbox;

/// The operators' shared token in these tests.
pub const TOKEN: &str = "the-shared-token-of-the-tests";

/// A configuration with [`TOKEN`] and these further lines of `[nodes]`.
pub fn conf(sandbox: &Sandbox, lines: &str) -> Conf {
    let file = sandbox.write("nodes.token", TOKEN);
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    Conf::new().text(&format!("[nodes]\ntoken_file = {file:?}\n{lines}"))
}

/// An operator who may do everything.
pub fn admin(daemon: &Daemon) -> Client {
    Client::operator(daemon, Some(TOKEN), &["operator.admin"])
}

/// Pairs a device as a node with these commands, as an operator who may, and connects it.
pub fn pair(daemon: &Daemon, operator: &mut Client, keys: &Keys, commands: &[&str]) -> Client {
    let hello = Hello::node(commands).token(TOKEN).keys(keys);
    match hello.connect(daemon.addr) {
        Ok(client) => client,
        Err(refused) => {
            let request = &refused.error["details"]["requestId"];
            assert!(request.is_string(), "{refused:?}");
            let approved = operator.request("device.pair.approve", json!({"requestId": request}));
            approved.unwrap_or_else(|error| panic!("not approved: {error}"));
            hello.connect(daemon.addr).unwrap_or_else(|refused| panic!("{refused:?}"))
        }
    }
}
