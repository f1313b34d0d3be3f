//! The devices that are paired and the requests that wait: pure, time comes in as an argument.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::nodes::who::Role;

use super::record::{Ask, Device, Grant, Request, Seen};

/// A request that is not asked again for so long is over.
pub const REQUEST_TTL: Duration = Duration::from_secs(3600);

/// The part of all requests that one address may have: a fourth, so that no one can fill the table.
const ADDRESS_PART: usize = 4;

/// A device's last sight is kept on disk again after so long, in milliseconds.
const SEEN_KEPT_MS: u64 = 10 * 60 * 1000;

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Table {
    devices: HashMap<Arc<str>, Entry>,
    requests: Vec<Request>,
    /// Devices that are being written: nobody else may change them meanwhile.
    busy: Vec<Arc<str>>,
    /// Devices whose copy on disk is not what is here.
    dirty: HashSet<Arc<str>>,
}

#[derive(Debug)]
struct Entry {
    device: Arc<Device>,
    seen: Seen,
    seen_kept_ms: u64,
}

/// A device for the disk: none where it is gone.
pub(super) type Row = (Arc<str>, Option<(Arc<Device>, Seen)>);

/// What became of a request.
#[derive(Debug)]
pub(super) enum Asked {
    /// It is new; the one that it takes the place of, if there was one.
    New(Box<Request>, Option<Box<Request>>),
    /// The same was asked before, and waits.
    Same(Box<Request>),
    /// Too many wait: in all, or of this address.
    Full,
}

/// Why something cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No such device, role or request.
    Unknown,
    /// Somebody else is changing it.
    Busy,
    /// `nodes.devices_max`.
    Full,
}

impl Table {
    /// Takes over what was read.
    pub(super) fn load(&mut self, devices: Vec<(Device, Seen)>) {
        for (device, seen) in devices {
            let seen_kept_ms = seen.ms;
            let entry = Entry { seen, seen_kept_ms, device: Arc::new(device) };
            self.devices.insert(Arc::clone(&entry.device.id), entry);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.devices.len()
    }

    pub(super) fn waiting(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn get(&self, id: &str) -> Option<&Arc<Device>> {
        self.devices.get(id).map(|entry| &entry.device)
    }

    pub(super) fn seen_of(&self, id: &str) -> Seen {
        self.devices.get(id).map(|entry| entry.seen.clone()).unwrap_or_default()
    }

    pub(super) fn all(&self) -> Vec<(Arc<Device>, Seen)> {
        let entry = |entry: &Entry| (Arc::clone(&entry.device), entry.seen.clone());
        self.devices.values().map(entry).collect()
    }

    /// The requests that wait; those that are over go.
    pub(super) fn requests(&mut self, now: Instant) -> &[Request] {
        self.requests.retain(|request| now.saturating_duration_since(request.last) < REQUEST_TTL);
        &self.requests
    }

    /// A device asks. One request waits for each device and role; `max` in all.
    pub(super) fn ask(
        &mut self,
        ask: Ask,
        id: Arc<str>,
        (now, now_ms): (Instant, u64),
        max: usize,
    ) -> Asked {
        self.requests(now);
        let same = |r: &Request| r.ask.device == ask.device && r.ask.role == ask.role;
        let mut old = None;
        if let Some(at) = self.requests.iter().position(same) {
            let have = &mut self.requests[at];
            let (a, b) = (&have.ask, &ask);
            if a.scopes == b.scopes && a.commands == b.commands && a.why == b.why {
                have.last = now;
                return Asked::Same(Box::new(have.clone()));
            }
            old = Some(Box::new(self.requests.swap_remove(at)));
        }
        let of =
            |address: IpAddr| self.requests.iter().filter(|r| r.ask.address == address).count();
        if self.requests.len() >= max || of(ask.address) >= (max / ADDRESS_PART).max(1) {
            // Only another device can be too many.
            return Asked::Full;
        }
        let request = Request { id, ask, asked_ms: now_ms, last: now };
        self.requests.push(request.clone());
        Asked::New(Box::new(request), old)
    }

    /// The request of this id.
    pub(super) fn request(&mut self, id: &str, now: Instant) -> Option<Request> {
        self.requests(now).iter().find(|request| *request.id == *id).cloned()
    }

    /// Takes a request away.
    pub(super) fn settle(&mut self, id: &str, now: Instant) -> Option<Request> {
        self.requests(now);
        let at = self.requests.iter().position(|request| *request.id == *id)?;
        Some(self.requests.swap_remove(at))
    }

    /// The device as it is once this request is approved.
    pub(super) fn approved(
        &self,
        request: &Request,
        now_ms: u64,
        max: usize,
    ) -> Result<Device, Fault> {
        let ask = &request.ask;
        let mut device = match self.get(&ask.device) {
            Some(device) => Device::clone(device),
            None if self.devices.len() >= max => return Err(Fault::Full),
            None => Device {
                id: Arc::clone(&ask.device),
                key: ask.key,
                label: None,
                client: ask.client.clone(),
                created_ms: now_ms,
                approved_ms: now_ms,
                grants: Vec::new(),
            },
        };
        device.client = ask.client.clone();
        device.approved_ms = now_ms;
        let (role, commands, caps) = (ask.role, ask.commands.clone(), ask.caps.clone());
        match device.grant_mut(role) {
            Some(grant) => {
                grant.scopes = grant.scopes.or(ask.scopes);
                (grant.commands, grant.caps, grant.approved_ms) = (commands, caps, now_ms);
                // Not those of the grant: the token may have been made with fewer on purpose.
                if let Some(token) = &mut grant.token {
                    token.scopes = token.scopes.or(ask.scopes);
                }
            }
            None => device.grants.push(Grant {
                role,
                scopes: ask.scopes,
                commands,
                caps,
                approved_ms: now_ms,
                token: None,
                revoked_ms: None,
            }),
        }
        Ok(device)
    }

    /// Puts a device in the place of what was known of it.
    pub(super) fn put(&mut self, device: Device) -> Arc<Device> {
        let device = Arc::new(device);
        match self.devices.get_mut(&device.id) {
            Some(entry) => entry.device = Arc::clone(&device),
            None => {
                let (seen, seen_kept_ms) = (Seen::default(), 0);
                let entry = Entry { device: Arc::clone(&device), seen, seen_kept_ms };
                self.devices.insert(Arc::clone(&device.id), entry);
            }
        }
        device
    }

    /// Takes a device away, or one of its roles; what it was, and whether anything of it is left.
    pub(super) fn remove(&mut self, id: &str, role: Option<Role>) -> Option<(Arc<Device>, bool)> {
        let before = Arc::clone(self.get(id)?);
        let mut left = Device::clone(&before);
        left.grants.retain(|grant| role.is_some_and(|role| grant.role != role));
        if left.grants.len() == before.grants.len() {
            return None;
        }
        self.requests.retain(|request| {
            *request.ask.device != *id || role.is_some_and(|role| request.ask.role != role)
        });
        let stays = !left.grants.is_empty();
        if stays {
            self.put(left);
        } else {
            self.devices.remove(id);
        }
        Some((before, stays))
    }

    /// A device was seen.
    pub(super) fn saw(&mut self, id: &str, seen: Seen) {
        let Some((id, entry)) = self.devices.get_key_value(id) else { return };
        let (id, due) =
            (Arc::clone(id), seen.ms >= entry.seen_kept_ms.saturating_add(SEEN_KEPT_MS));
        if let Some(entry) = self.devices.get_mut(&id) {
            entry.seen = seen;
        }
        if due {
            self.dirty.insert(id);
        }
    }

    /// Nobody else may change this device from now on.
    pub(super) fn reserve(&mut self, id: &Arc<str>) -> Result<(), Fault> {
        if self.busy.contains(id) {
            return Err(Fault::Busy);
        }
        self.busy.push(Arc::clone(id));
        Ok(())
    }

    /// It may be changed again.
    pub(super) fn free(&mut self, id: &str) {
        self.busy.retain(|busy| **busy != *id);
    }

    /// The copy on disk is not what is here.
    pub(super) fn soil(&mut self, id: &Arc<str>) {
        self.dirty.insert(Arc::clone(id));
    }

    /// Nothing of all this is on the disk.
    pub(super) fn soil_all(&mut self) {
        self.dirty.extend(self.devices.keys().cloned());
    }

    /// What has to be written: the ids, each with the device or none where it is gone. They are as
    /// good as written then.
    pub(super) fn washing(&mut self, max: usize) -> Vec<Row> {
        let idle = |id: &&Arc<str>| !self.busy.contains(*id);
        let ids: Vec<Arc<str>> = self.dirty.iter().filter(idle).take(max).cloned().collect();
        let mut rows = Vec::with_capacity(ids.len());
        for id in ids {
            self.dirty.remove(&id);
            let row = self.devices.get_mut(&id).map(|entry| {
                entry.seen_kept_ms = entry.seen.ms;
                (Arc::clone(&entry.device), entry.seen.clone())
            });
            rows.push((id, row));
        }
        rows
    }

    /// The ids that begin with this text: of devices, and of requests.
    pub(super) fn beginning(&self, text: &str) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let begins = |id: &&Arc<str>| id.starts_with(text);
        let requests = self.requests.iter().map(|request| &request.id);
        (
            self.devices.keys().filter(begins).cloned().collect(),
            requests.filter(begins).cloned().collect(),
        )
    }
}
