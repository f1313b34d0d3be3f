//! `tidegate devices`.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::client::{Ask, table};
use crate::base::exit::Exit;

/// Show which devices are paired with a running daemon and which ask to be, and decide on them
///
/// A request or a device is named by the beginning of its id, as far as there is only one that
/// begins so.
#[derive(Debug, Args)]
pub(super) struct Devices {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show them (the same as without a command)
    List,
    /// Let a device in that asks for it
    Approve {
        /// The request
        request: String,
    },
    /// Do not
    Reject {
        /// The request
        request: String,
    },
    /// Take a device's pairing away, and close its connections
    Remove {
        /// The device
        device: String,
        /// Only as this
        #[arg(long)]
        role: Option<Role>,
    },
    /// Give a device a name
    Rename {
        /// The device
        device: String,
        /// 1 to 64 characters
        name: String,
    },
    /// Make a new token for a device, print it this once, and close what came by the old one
    Rotate {
        /// The device
        device: String,
        /// As what
        role: Role,
    },
    /// Take a device's token back; it stays paired, and gets another when a shared token, a password
    /// or a key lets it in
    Revoke {
        /// The device
        device: String,
        /// As what
        role: Role,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    Node,
    Operator,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Role::Node => "node",
            Role::Operator => "operator",
        }
    }
}

impl Devices {
    pub(super) fn execute(self) -> Exit {
        let ask = self.ask;
        match self.command {
            None | Some(Command::List) => match ask.get_control("/devices") {
                Ok(document) => ask.tell(&document, text),
                Err(exit) => exit,
            },
            Some(Command::Approve { request }) => {
                ask.order("/devices/approve", &json!({"request": request}), approved)
            }
            Some(Command::Reject { request }) => {
                ask.order("/devices/reject", &json!({"request": request}), |done| {
                    format!("{} is not let in\n", short(&done["device"]))
                })
            }
            Some(Command::Remove { device, role }) => {
                let role = role.map(Role::word);
                let body = json!({"device": device, "role": role});
                ask.order("/devices/remove", &body, |done| match role {
                    Some(role) => lost(done, &format!("is no {role} any more")),
                    None => lost(done, "is removed"),
                })
            }
            Some(Command::Rename { device, name }) => {
                let body = json!({"device": device, "name": name});
                ask.order("/devices/rename", &body, |done| {
                    format!("{} is {}\n", short(&done["device"]), word(&done["name"]))
                })
            }
            Some(Command::Rotate { device, role }) => {
                let body = json!({"device": device, "role": role.word()});
                ask.order("/devices/rotate", &body, |done| {
                    format!("{}\n", done["token"].as_str().unwrap_or_default())
                })
            }
            Some(Command::Revoke { device, role }) => {
                let body = json!({"device": device, "role": role.word()});
                ask.order("/devices/revoke", &body, |done| lost(done, "lost its token"))
            }
        }
    }
}

fn approved(done: &Value) -> String {
    let mut out = format!(
        "{} ({}) is let in as {}",
        short(&done["device"]),
        word(&done["name"]),
        word(&done["role"])
    );
    for (key, what) in [("scopes", "with"), ("commands", "with the commands")] {
        let list = list(&done[key]);
        if !list.is_empty() {
            out.push_str(&format!(", {what} {list}"));
        }
    }
    out.push('\n');
    out
}

fn lost(done: &Value, what: &str) -> String {
    let mut out = format!("{} ({}) {what}\n", short(&done["device"]), word(&done["name"]));
    if done["kept"] == false {
        let why = word(&done["why"]);
        out.push_str(&format!("it is not on the disk yet, and tried again: {why}\n"));
    }
    out
}

fn text(document: &Value) -> String {
    let mut out = String::new();
    let requests = rows(document, "requests");
    if !requests.is_empty() {
        let row = |request: &Value| {
            let named = match &request["name"] {
                Value::Null => &request["client"],
                name => name,
            };
            let asks = [&request["scopes"], &request["commands"]].map(list).concat();
            vec![
                request["id"].as_str().unwrap_or_default().chars().take(8).collect(),
                short(&request["device"]),
                word(named),
                word(&request["role"]),
                word(&request["why"]),
                word(&request["address"]),
                time(&request["asked"]),
                if asks.is_empty() { "-".to_owned() } else { asks },
            ]
        };
        let header = ["REQUEST", "DEVICE", "NAME", "ROLE", "WHY", "FROM", "ASKED", "ASKS FOR"];
        out.push_str(&table(&header, &requests.iter().map(row).collect::<Vec<_>>()));
        out.push_str("\nlet one in: tidegate devices approve REQUEST\n\n");
    }
    let devices = rows(document, "devices");
    if devices.is_empty() {
        out.push_str("no devices are paired\n");
        return out;
    }
    let row = |device: &Value| {
        let roles = rows(device, "roles");
        let role = |role: &Value| {
            let mut text = word(&role["role"]);
            let has = [&role["scopes"], &role["commands"]].map(list).concat();
            if !has.is_empty() {
                text.push_str(&format!(" ({has})"));
            }
            text
        };
        let connections = device["connections"].as_u64().unwrap_or_default();
        vec![
            short(&device["id"]),
            word(&device["name"]),
            word(&device["platform"]),
            connections.to_string(),
            time(&device["seen"]),
            roles.iter().map(role).collect::<Vec<_>>().join("; "),
        ]
    };
    let header = ["DEVICE", "NAME", "PLATFORM", ">CONNECTIONS", "SEEN", "MAY"];
    out.push_str(&table(&header, &devices.iter().map(row).collect::<Vec<_>>()));
    out
}

/// What devices say of themselves is shown without what a terminal would act on.
fn word(value: &Value) -> String {
    match value.as_str() {
        None | Some("") => "-".to_owned(),
        Some(text) => text.escape_debug().to_string(),
    }
}

fn short(value: &Value) -> String {
    value.as_str().unwrap_or_default().chars().take(12).collect()
}

fn rows<'a>(document: &'a Value, key: &str) -> &'a [Value] {
    document[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn list(words: &Value) -> String {
    let words = words.as_array().map(Vec::as_slice).unwrap_or_default();
    words.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn time(value: &Value) -> String {
    word(value).split('.').next().unwrap_or_default().replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn requests_and_devices_are_shown_and_how_to_approve() {
        let document = json!({
            "requests": [{
                "id": "0a1b2c3d-0000-4000-8000-000000000000", "device": "0123456789abcdef",
                "name": "kit\u{1b}chen", "client": "node-host", "role": "node", "scopes": [],
                "commands": ["camera.snap", "system.run"], "why": "not-paired",
                "address": "192.0.2.1", "asked": "2026-11-22T10:00:00.000Z",
            }],
            "devices": [{
                "id": "fedcba9876543210", "name": "phone", "platform": "ios", "connections": 1,
                "seen": null, "roles": [
                    {"role": "operator", "scopes": ["operator.read"], "commands": []},
                    {"role": "node", "scopes": [], "commands": []},
                ],
            }],
        });
        let lines = lines(&text(&document));
        let expected = "0a1b2c3d 0123456789ab kit\\u{1b}chen node not-paired 192.0.2.1 \
                        2026-11-22 10:00:00 camera.snap, system.run";
        assert_eq!(lines[1], expected);
        assert_eq!(lines[3], "let one in: tidegate devices approve REQUEST");
        assert_eq!(lines[6], "fedcba987654 phone ios 1 - operator (operator.read); node");
        assert_eq!(text(&json!({})), "no devices are paired\n");
    }

    #[test]
    fn what_is_not_on_the_disk_is_said() {
        let done = json!({"device": "0123456789abcdef", "name": "x", "kept": false, "why": "gone"});
        let lines = lines(&lost(&done, "is removed"));
        assert_eq!(
            lines,
            ["0123456789ab (x) is removed", "it is not on the disk yet, and tried again: gone"]
        );
    }
}
