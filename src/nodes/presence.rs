//! Who is there, as operators see it. Pure: it is told who came, who left, and the time.
//!
//! An entry is a device, else an instance of a program, else a connection, and may be there by more
//! than one connection. Each is known by its number, so that a late end of an old connection never
//! takes a newer one away.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::who::{Identity, Role, Scopes};

/// Modes of clients that come and go, and are not listed.
const UNLISTED: [&str; 2] = ["cli", "probe"];

/// A connection that is there.
#[derive(Clone, Debug)]
pub struct Present {
    /// The connection's number.
    pub number: u64,
    /// Its id.
    pub conn: Box<str>,
    /// Where it comes from.
    pub address: IpAddr,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Who it is.
    pub who: Identity,
}

impl Present {
    fn key(&self) -> String {
        let who = &self.who;
        let key = who.device.as_deref().or(who.client.instance.as_deref());
        key.unwrap_or(&self.conn).to_owned()
    }
}

#[derive(Debug)]
struct Entry {
    /// The newest last. Never empty.
    by: Vec<Present>,
    /// When its connection was last seen to be there.
    seen: Instant,
}

/// The list.
#[derive(Debug)]
pub struct Presence {
    entries: BTreeMap<String, Entry>,
    max: usize,
    ttl: Duration,
    version: u64,
    dropped: u64,
    /// The gateway itself, always there.
    own: Value,
}

impl Presence {
    /// Nobody but the gateway itself, which runs on `host`.
    pub fn new(host: &str, max: usize, ttl: Duration) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let mut own = json!({
            "version": version,
            "platform": std::env::consts::OS,
            "mode": "gateway",
            "reason": "self",
            "text": format!("Gateway: {host} ({version})"),
        });
        if !host.is_empty() {
            own["host"] = host.into();
        }
        Presence { entries: BTreeMap::new(), max, ttl, version: 1, dropped: 0, own }
    }

    /// Takes over other bounds.
    pub fn reconfigure(&mut self, max: usize, ttl: Duration) {
        (self.max, self.ttl) = (max, ttl);
        self.bound();
    }

    /// A connection is there.
    pub fn join(&mut self, present: Present, now: Instant) {
        if UNLISTED.contains(&&*present.who.client.mode) {
            return;
        }
        let entry = self
            .entries
            .entry(present.key())
            .or_insert_with(|| Entry { by: Vec::with_capacity(1), seen: now });
        entry.seen = now;
        entry.by.push(present);
        self.version += 1;
        self.bound();
    }

    /// The connection of this number is not there any more.
    pub fn leave(&mut self, number: u64) {
        let held = |entry: &Entry| entry.by.iter().any(|present| present.number == number);
        let found = self.entries.iter().find(|(_, entry)| held(entry)).map(|(key, _)| key.clone());
        let Some(key) = found else { return };
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.by.retain(|present| present.number != number);
            if entry.by.is_empty() {
                self.entries.remove(&key);
            }
            self.version += 1;
        }
    }

    /// Entries of connections that are there are young again; others are left out when they are old.
    pub fn refresh(&mut self, now: Instant, there: impl Fn(u64) -> bool) {
        let (ttl, before) = (self.ttl, self.entries.len());
        self.entries.retain(|_, entry| {
            if entry.by.iter().any(|present| there(present.number)) {
                entry.seen = now;
            }
            now.saturating_duration_since(entry.seen) < ttl
        });
        if self.entries.len() != before {
            self.version += 1;
        }
    }

    /// How often it has changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Entries beside the gateway's own.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entries that were left out because there were too many.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The list, as the protocol has it: the gateway first, then the newest.
    pub fn list(&self, now_ms: u64) -> Vec<Value> {
        let mut own = self.own.clone();
        own["ts"] = now_ms.into();
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_by_key(|entry| {
            std::cmp::Reverse(entry.by.last().map_or(0, |present| present.number))
        });
        let shown = entries.into_iter().filter_map(|entry| shown(entry, now_ms));
        std::iter::once(own).chain(shown).collect()
    }

    /// The oldest are left out.
    fn bound(&mut self) {
        while self.entries.len() > self.max {
            let newest = |entry: &Entry| entry.by.last().map_or(0, |present| present.number);
            let oldest = self.entries.iter().min_by_key(|(_, entry)| (entry.seen, newest(entry)));
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
            self.entries.remove(&key);
            self.dropped += 1;
            self.version += 1;
        }
    }
}

/// One entry. What is not known is not there: the protocol takes no empty texts.
fn shown(entry: &Entry, now_ms: u64) -> Option<Value> {
    let present = entry.by.last()?;
    let (who, client) = (&present.who, &present.who.client);
    let name = client.display_name.as_deref().unwrap_or(&client.id);
    let mut map = Map::new();
    let mut text = |key: &str, value: &str| {
        if !value.is_empty() {
            map.insert(key.to_owned(), value.into());
        }
    };
    text("host", name);
    if !present.address.is_loopback() {
        text("ip", &present.address.to_string());
    }
    text("version", &client.version);
    text("platform", &client.platform);
    text("deviceFamily", client.device_family.as_deref().unwrap_or_default());
    text("modelIdentifier", client.model_identifier.as_deref().unwrap_or_default());
    text("mode", &client.mode);
    text("reason", "connect");
    text("deviceId", who.device.as_deref().unwrap_or_default());
    text("instanceId", client.instance.as_deref().unwrap_or_default());
    let is = |role: Role| entry.by.iter().any(|present| present.who.role == role);
    let roles = [Role::Operator, Role::Node].into_iter().filter(|role| is(*role));
    let roles: Vec<&str> = roles.map(Role::as_str).collect();
    let scopes = entry.by.iter().fold(Scopes::NONE, |all, present| all.or(present.who.scopes));
    map.insert("roles".to_owned(), roles.into());
    map.insert("scopes".to_owned(), scopes.words().collect::<Vec<_>>().into());
    map.insert("onlineSince".to_owned(), present.since_ms.into());
    map.insert("ts".to_owned(), now_ms.into());
    Some(Value::Object(map))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use crate::nodes::who::{Client, How};

    const MINUTE: Duration = Duration::from_secs(60);

    fn present(number: u64, device: Option<&str>, instance: Option<&str>, mode: &str) -> Present {
        let client = Client {
            id: "test".into(),
            mode: mode.into(),
            instance: instance.map(Into::into),
            ..Client::default()
        };
        let who = Identity {
            role: if mode == "node" { Role::Node } else { Role::Operator },
            scopes: if mode == "node" { Scopes::NONE } else { Scopes::USE },
            how: How::Open,
            account: None,
            device: device.map(Into::into),
            protocol: 4,
            client,
            caps: Box::default(),
            commands: Box::default(),
        };
        let address = IpAddr::from([127, 0, 0, 1]);
        Present { number, conn: format!("c{number}").into(), address, since_ms: 7, who }
    }

    fn list(max: usize) -> (Presence, Instant) {
        (Presence::new("here", max, 5 * MINUTE), clock::now())
    }

    #[test]
    fn an_entry_is_a_device_then_an_instance_then_a_connection() {
        let (mut presence, now) = list(200);
        presence.join(present(1, Some("d"), Some("i"), "ui"), now);
        presence.join(present(2, Some("d"), None, "node"), now);
        presence.join(present(3, None, Some("i"), "ui"), now);
        presence.join(present(4, None, None, "ui"), now);
        presence.join(present(5, None, None, "cli"), now);
        presence.join(present(6, None, None, "probe"), now);
        assert_eq!(presence.len(), 3);
        let all = presence.list(9);
        assert_eq!(all[0]["reason"], "self");
        let device = all.iter().find(|entry| entry["deviceId"] == "d").unwrap();
        assert_eq!(device["roles"], json!(["operator", "node"]));
        assert_eq!(device["scopes"], json!(["operator.read", "operator.write"]));
        assert_eq!((&device["ts"], &device["onlineSince"]), (&9.into(), &7.into()));
        assert!(device.get("ip").is_none() && device.get("version").is_none(), "{device}");
    }

    #[test]
    fn a_late_end_takes_nothing_of_a_newer_connection_away() {
        let (mut presence, now) = list(200);
        presence.join(present(1, Some("d"), None, "node"), now);
        presence.join(present(2, Some("d"), None, "node"), now);
        let version = presence.version();
        presence.leave(1);
        presence.leave(1);
        assert_eq!((presence.len(), presence.version()), (1, version + 1));
        presence.leave(2);
        assert_eq!(presence.len(), 0);
        assert_eq!(presence.list(0).len(), 1, "the gateway stays");
    }

    #[test]
    fn there_are_never_more_than_its_bound_and_the_oldest_goes_first() {
        let (mut presence, now) = list(3);
        for number in 1..=10 {
            presence.join(present(number, None, None, "ui"), now);
            assert!(presence.len() <= 3);
        }
        assert_eq!(presence.dropped(), 7);
        let kept = |presence: &Presence| presence.entries.keys().cloned().collect::<Vec<_>>();
        assert_eq!(kept(&presence), ["c10", "c8", "c9"]);
        presence.reconfigure(1, MINUTE);
        assert_eq!(kept(&presence), ["c10"]);
        presence.leave(3);
        assert_eq!(presence.len(), 1, "one that was left out leaves nothing behind");
    }

    #[test]
    fn what_is_there_never_grows_old_and_what_is_not_does() {
        let (mut presence, start) = list(200);
        presence.join(present(1, None, None, "ui"), start);
        presence.join(present(2, None, None, "ui"), start);
        let day = 24 * 60;
        for minute in 1..=day {
            presence.refresh(start + MINUTE * minute, |number| number == 1);
            assert_eq!(presence.len(), if minute < 5 { 2 } else { 1 }, "{minute}");
        }
    }
}
