//! What is known of a device, and of one that asks to be.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::nodes::device::{KEY_BYTES, encoded};
use crate::nodes::tokens::Digest;
use crate::nodes::who::{Client, Role, Scope, Scopes};

/// A paired device.
#[derive(Clone, Debug)]
pub struct Device {
    /// Hexadecimal SHA-256 of its key.
    pub id: Arc<str>,
    /// Its Ed25519 key.
    pub key: [u8; KEY_BYTES],
    /// The name that an operator gave it.
    pub label: Option<Box<str>>,
    /// What it said of itself when it was approved.
    pub client: Client,
    /// When it was first approved, in milliseconds since 1970, as are all times here.
    pub created_ms: u64,
    /// When it was approved last.
    pub approved_ms: u64,
    /// What it may be; one for each role.
    pub grants: Vec<Grant>,
}

/// A role that a device was approved for.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The role.
    pub role: Role,
    /// Its rights, as an operator.
    pub scopes: Scopes,
    /// The commands of a node that may be invoked.
    pub commands: Box<[Box<str>]>,
    /// What a node may offer.
    pub caps: Box<[Box<str>]>,
    /// When the role was approved.
    pub approved_ms: u64,
    /// The device's token for this role. None: it gets one when it connects.
    pub token: Option<Token>,
    /// When its last token was taken back.
    pub revoked_ms: Option<u64>,
}

/// A device's token.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token is kept as its digest.
    pub digest: Digest,
    /// The rights that it gives: those of the grant, or fewer.
    pub scopes: Scopes,
    /// When it was made.
    pub issued_ms: u64,
}

/// When and why a device was seen last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// In milliseconds since 1970; 0: never.
    pub ms: u64,
    /// One of [`SEEN_REASONS`].
    pub reason: &'static str,
    /// From where.
    pub address: Option<IpAddr>,
}

impl Device {
    /// What it may be in this role.
    pub fn grant(&self, role: Role) -> Option<&Grant> {
        self.grants.iter().find(|grant| grant.role == role)
    }

    pub(super) fn grant_mut(&mut self, role: Role) -> Option<&mut Grant> {
        self.grants.iter_mut().find(|grant| grant.role == role)
    }

    /// The name for people: the operator's, else its own, else the beginning of its id.
    pub fn name(&self) -> &str {
        let own = self.label.as_deref().or(self.client.display_name.as_deref());
        own.unwrap_or_else(|| short(&self.id))
    }

    /// Its key as it goes on the wire.
    pub fn public_key(&self) -> String {
        encoded(&self.key)
    }
}

/// The first twelve digits of a device's id: enough to tell devices apart.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Why a device has to be approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is not known at all.
    NotPaired,
    /// It is known, but not in this role.
    Role,
    /// It asks for more rights than were approved.
    Scopes,
    /// It offers more commands than were approved. It is let in all the same, without those.
    Commands,
}

impl Why {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::NotPaired => "not-paired",
            Why::Role => "role-upgrade",
            Why::Scopes => "scope-upgrade",
            Why::Commands => "command-upgrade",
        }
    }
}

/// What a device asks for.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "as in `connect`")]
pub struct Ask {
    pub device: Arc<str>,
    pub key: [u8; KEY_BYTES],
    pub role: Role,
    pub scopes: Scopes,
    pub commands: Box<[Box<str>]>,
    pub caps: Box<[Box<str>]>,
    pub client: Client,
    pub address: IpAddr,
    pub why: Why,
}

/// A request that waits for an operator.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its id, for approval.
    pub id: Arc<str>,
    /// What is asked for.
    pub ask: Ask,
    /// When it came, in milliseconds since 1970.
    pub asked_ms: u64,
    /// When it was last asked again: it ends an hour after that.
    pub last: Instant,
}

impl Request {
    /// The right that an operator needs to approve it, beside `operator.pairing`.
    pub fn needs(&self) -> Option<Scope> {
        let commands = &self.ask.commands;
        match self.ask.role {
            Role::Operator => None,
            Role::Node if commands.iter().any(|command| dangerous(command)) => Some(Scope::Admin),
            Role::Node if !commands.is_empty() => Some(Scope::Write),
            Role::Node => None,
        }
    }
}

/// Commands that act on the machine of the node as its user would.
const DANGEROUS: [&str; 5] =
    ["system.run", "system.which", "system.execApprovals", "browser.proxy", "computer"];

/// Whether a command is one of those that only an administrator may approve.
pub fn dangerous(command: &str) -> bool {
    DANGEROUS.iter().any(|bad| {
        command.strip_prefix(bad).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// A device as it is kept.
#[derive(Deserialize, Serialize)]
#[serde(default)]
#[derive(Default)]
struct Kept {
    id: String,
    key: String,
    label: Option<Box<str>>,
    client: KeptClient,
    created_ms: u64,
    approved_ms: u64,
    seen_ms: u64,
    seen_reason: String,
    address: Option<IpAddr>,
    grants: Vec<KeptGrant>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct KeptClient {
    id: Box<str>,
    mode: Box<str>,
    version: Box<str>,
    platform: Box<str>,
    display_name: Option<Box<str>>,
    device_family: Option<Box<str>>,
    model_identifier: Option<Box<str>>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct KeptGrant {
    role: String,
    scopes: Vec<String>,
    commands: Box<[Box<str>]>,
    caps: Box<[Box<str>]>,
    approved_ms: u64,
    token: Option<KeptToken>,
    revoked_ms: Option<u64>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct KeptToken {
    sha256: String,
    scopes: Vec<String>,
    issued_ms: u64,
}

/// Why a device was seen, in words of the protocol: when it came, when it went, and what it says
/// itself when it wakes for a moment (`node.presence.alive`).
pub const SEEN_REASONS: [&str; 7] = [
    "disconnect",
    "background",
    "silent_push",
    "bg_app_refresh",
    "significant_location",
    "manual",
    "connect",
];

/// One of them; the first for any other word.
fn seen_reason(word: &str) -> &'static str {
    SEEN_REASONS.into_iter().find(|known| *known == word).unwrap_or(SEEN_REASONS[0])
}

/// A device as text for the store.
pub(super) fn write(device: &Device, seen: &Seen) -> String {
    let words = |scopes: Scopes| scopes.words().map(str::to_owned).collect();
    let token = |token: &Token| KeptToken {
        sha256: encoded(token.digest.bytes()),
        scopes: words(token.scopes),
        issued_ms: token.issued_ms,
    };
    let grant = |grant: &Grant| KeptGrant {
        role: grant.role.as_str().to_owned(),
        scopes: words(grant.scopes),
        commands: grant.commands.clone(),
        caps: grant.caps.clone(),
        approved_ms: grant.approved_ms,
        token: grant.token.as_ref().map(token),
        revoked_ms: grant.revoked_ms,
    };
    let client = device.client.clone();
    crate::nodes::frame::text(&Kept {
        id: device.id.as_ref().to_owned(),
        key: device.public_key(),
        label: device.label.clone(),
        client: KeptClient {
            id: client.id,
            mode: client.mode,
            version: client.version,
            platform: client.platform,
            display_name: client.display_name,
            device_family: client.device_family,
            model_identifier: client.model_identifier,
        },
        created_ms: device.created_ms,
        approved_ms: device.approved_ms,
        seen_ms: seen.ms,
        seen_reason: seen.reason.to_owned(),
        address: seen.address,
        grants: device.grants.iter().map(grant).collect(),
    })
}

/// A device from its text; none when it makes no sense: then it is not let in.
pub(super) fn read(text: &str) -> Option<(Device, Seen)> {
    let kept: Kept = serde_json::from_str(text).ok()?;
    let scopes = |words: &[String]| Scopes::of(words.iter().map(String::as_str));
    let digest = |text: &str| crate::nodes::device::decoded(text);
    let token = |kept: KeptToken| {
        let digest = Digest::from_bytes(&digest(&kept.sha256)?)?;
        Some(Token { digest, scopes: scopes(&kept.scopes), issued_ms: kept.issued_ms })
    };
    let grant = |kept: KeptGrant| {
        Some(Grant {
            role: Role::parse(Some(&kept.role))?,
            scopes: scopes(&kept.scopes),
            commands: kept.commands,
            caps: kept.caps,
            approved_ms: kept.approved_ms,
            token: kept.token.and_then(token),
            revoked_ms: kept.revoked_ms,
        })
    };
    let key: [u8; KEY_BYTES] = digest(&kept.key)?.try_into().ok()?;
    let id = crate::nodes::device::id(&key);
    let seen =
        Seen { ms: kept.seen_ms, reason: seen_reason(&kept.seen_reason), address: kept.address };
    let client = kept.client;
    let device = Device {
        id: id.as_str().into(),
        key,
        label: kept.label,
        client: Client {
            id: client.id,
            mode: client.mode,
            version: client.version,
            platform: client.platform,
            display_name: client.display_name,
            device_family: client.device_family,
            model_identifier: client.model_identifier,
            instance: None,
            public_key: None,
        },
        created_ms: kept.created_ms,
        approved_ms: kept.approved_ms,
        grants: kept.grants.into_iter().filter_map(grant).collect(),
    };
    (id == kept.id && !device.grants.is_empty()).then_some((device, seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_was_written_and_nothing_else_is_one() {
        let key = [7; KEY_BYTES];
        let digest = Digest::of("secret-token");
        let token = Token { digest, scopes: Scopes::USE, issued_ms: 3 };
        let grant = Grant {
            role: Role::Operator,
            scopes: Scopes::ALL,
            commands: Box::default(),
            caps: Box::new(["camera".into()]),
            approved_ms: 2,
            token: Some(token),
            revoked_ms: Some(9),
        };
        let client = Client { id: "cli".into(), ..Client::default() };
        let device = Device {
            id: crate::nodes::device::id(&key).as_str().into(),
            key,
            label: Some("phone".into()),
            client,
            created_ms: 1,
            approved_ms: 2,
            grants: vec![grant],
        };
        let address = Some(IpAddr::from([192, 0, 2, 1]));
        let seen = Seen { ms: 5, reason: "connect", address };
        let text = write(&device, &seen);
        assert!(!text.contains("secret-token"));
        let (read_back, seen_back) = read(&text).unwrap();
        assert_eq!(seen_back, seen);
        assert_eq!(format!("{read_back:?}"), format!("{device:?}"));
        let token = read_back.grants[0].token.as_ref().unwrap();
        assert!(token.digest.same(&digest));
        for wrong in [
            "",
            "{}",
            "[]",
            &text.replace("operator\"", "worker\""),
            &text.replace(&*device.id, "x"),
        ] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn commands_that_act_on_a_machine_need_an_administrator() {
        for command in ["system.run", "system.run.prepare", "computer.act", "browser.proxy"] {
            assert!(dangerous(command), "{command}");
        }
        for command in ["system.notify", "camera.snap", "computers", "system.running"] {
            assert!(!dangerous(command), "{command}");
        }
    }
}
