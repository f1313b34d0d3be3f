//! Who is at the other end of a connection: role, scopes, and what it says of itself.

use std::fmt;
use std::sync::Arc;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A person's client, or a program that acts for one.
    Operator,
    /// A device that offers commands.
    Node,
}

impl Role {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Operator => "operator",
            Role::Node => "node",
        }
    }

    /// From the word on the wire; a client that says nothing is an operator.
    pub fn parse(word: Option<&str>) -> Option<Role> {
        match word {
            None | Some("operator") => Some(Role::Operator),
            Some("node") => Some(Role::Node),
            Some(_) => None,
        }
    }
}

/// A right of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Scope {
    /// To look at things.
    Read = 1,
    /// To chat, to invoke commands of nodes.
    Write = 2,
    /// To change the gateway; holds every other one.
    Admin = 4,
    /// To decide on what others ask for.
    Approvals = 8,
    /// To let devices in.
    Pairing = 16,
    /// To talk.
    Talk = 32,
    /// To see secrets for talking.
    TalkSecrets = 64,
    /// To answer questions.
    Questions = 128,
}

/// Every scope and its word on the wire.
const SCOPES: [(Scope, &str); 8] = [
    (Scope::Read, "operator.read"),
    (Scope::Write, "operator.write"),
    (Scope::Admin, "operator.admin"),
    (Scope::Approvals, "operator.approvals"),
    (Scope::Pairing, "operator.pairing"),
    (Scope::Talk, "operator.talk"),
    (Scope::TalkSecrets, "operator.talk.secrets"),
    (Scope::Questions, "operator.questions"),
];

impl Scope {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        SCOPES.iter().find(|(scope, _)| *scope == self).map_or("", |(_, word)| word)
    }
}

/// A set of rights.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u16);

impl Scopes {
    /// None.
    pub const NONE: Scopes = Scopes(0);
    /// To look and to use, not to change the gateway: what a plain key gives.
    pub const USE: Scopes = Scopes(Scope::Read as u16 | Scope::Write as u16);
    /// Everything.
    pub const ALL: Scopes = Scopes(0xff);

    /// From words on the wire; those that are not known are left out.
    pub fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Scopes {
        let bit =
            |word: &str| SCOPES.iter().find(|(_, known)| *known == word).map(|(s, _)| *s as u16);
        Scopes(words.into_iter().filter_map(bit).fold(0, |all, bit| all | bit))
    }

    /// Whether a right is in it: `operator.admin` holds every other one, and `operator.write` holds
    /// `operator.read`.
    pub fn allow(self, scope: Scope) -> bool {
        self.0 & (scope as u16 | Scope::Admin as u16) != 0
            || (scope == Scope::Read && self.0 & Scope::Write as u16 != 0)
    }

    /// Those of `asked` that this set allows.
    #[must_use]
    pub fn grant(self, asked: Scopes) -> Scopes {
        let allowed = SCOPES.iter().filter(|(scope, _)| self.allow(*scope));
        Scopes(asked.0 & allowed.fold(0, |all, (scope, _)| all | *scope as u16))
    }

    /// The rights that this set and `asked` both allow: `asked` itself when this set allows all of it.
    /// Whoever asks for `operator.admin` and may not have it gets what it may have.
    #[must_use]
    pub fn both(self, asked: Scopes) -> Scopes {
        if self.cover(asked) {
            return asked;
        }
        let both = SCOPES.iter().filter(|(scope, _)| self.allow(*scope) && asked.allow(*scope));
        Scopes(both.fold(0, |all, (scope, _)| all | *scope as u16))
    }

    /// The rights of both sets.
    #[must_use]
    pub fn or(self, other: Scopes) -> Scopes {
        Scopes(self.0 | other.0)
    }

    /// Whether everything in `other` is allowed by this set.
    pub fn cover(self, other: Scopes) -> bool {
        self.grant(other) == other
    }

    /// The first right in `other` that this set does not allow.
    pub fn lacks(self, other: Scopes) -> Option<Scope> {
        let missing = |scope: Scope| other.0 & scope as u16 != 0 && !self.allow(scope);
        SCOPES.iter().map(|(scope, _)| *scope).find(|scope| missing(*scope))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The words on the wire.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        SCOPES.iter().filter(move |(scope, _)| self.0 & *scope as u16 != 0).map(|(_, word)| *word)
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.words()).finish()
    }
}

/// How a connection was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The gateway asks nobody for a key.
    Open,
    /// By a `[[key]]`.
    Key,
    /// By the shared token of `[nodes]`.
    Token,
    /// By its password.
    Password,
    /// By a paired device's own token.
    Device,
}

impl How {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            How::Open => "open",
            How::Key => "key",
            How::Token => "token",
            How::Password => "password",
            How::Device => "device",
        }
    }
}

/// What a client says of itself. Claims, cut to a length, never believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `connect`")]
pub struct Client {
    pub id: Box<str>,
    pub mode: Box<str>,
    pub version: Box<str>,
    pub platform: Box<str>,
    pub display_name: Option<Box<str>>,
    pub device_family: Option<Box<str>>,
    pub model_identifier: Option<Box<str>>,
    pub instance: Option<Box<str>>,
    /// The key of a device that proved to have it.
    pub public_key: Option<Box<[u8; 32]>>,
}

/// Who is at the other end, from the handshake on.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What the connection is for.
    pub role: Role,
    /// What it may do, as an operator.
    pub scopes: Scopes,
    /// How it was let in.
    pub how: How,
    /// Under which name its calls are counted and limited; sessions belong to it. None: open.
    pub account: Option<Arc<str>>,
    /// The device, hexadecimal SHA-256 of its public key, when it proved to be one.
    pub device: Option<Arc<str>>,
    /// The protocol's version.
    pub protocol: u32,
    /// What it says of itself.
    pub client: Client,
    /// What a node offers, by its own words.
    pub caps: Box<[Box<str>]>,
    /// The commands of a node that may be invoked.
    pub commands: Box<[Box<str>]>,
}

impl Identity {
    /// Whether the connection stands on the pairing of its device, and ends with it.
    pub fn on_pairing(&self) -> bool {
        self.device.is_some() && (self.role == Role::Node || self.how == How::Device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_may_hold_others_and_nothing_unknown_is_one() {
        let scopes = |words: &[&str]| Scopes::of(words.iter().copied());
        assert!(scopes(&["operator.write"]).allow(Scope::Read));
        assert!(!scopes(&["operator.read"]).allow(Scope::Write));
        assert!(scopes(&["operator.admin"]).cover(Scopes::ALL));
        assert_eq!(scopes(&["operator.root", ""]), Scopes::NONE);
        let asked = scopes(&["operator.admin", "operator.read", "operator.talk"]);
        assert_eq!(Scopes::USE.grant(asked).words().collect::<Vec<_>>(), ["operator.read"]);
        assert_eq!(Scopes::ALL.grant(asked), asked);
        let admin = scopes(&["operator.admin"]);
        assert_eq!(Scopes::USE.both(admin), Scopes::USE);
        assert_eq!(Scopes::ALL.both(admin), admin);
        assert_eq!(Scopes::USE.both(scopes(&["operator.pairing"])), Scopes::NONE);
    }
}
