//! Devices that were let in once, and those that ask to be.
//!
//! Everything is held in memory, so that a handshake needs no disk; `durable.db` has the copy that the
//! next process begins with. A request to be paired is in memory only: its device asks again, and
//! strangers write nothing to the disk. An approval counts when it is on the disk; a removal counts at
//! once, and is written as soon as the store can.

pub mod acts;
mod record;
mod table;
pub mod wire;
#[cfg(test)]
mod tests;

pub use record::{Ask, Device, Grant, Request, SEEN_REASONS, Seen, Token, Why, dangerous, short};
pub use table::REQUEST_TTL;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use log::Level;

use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::events::Events;
use crate::base::lock::{Locked, Rank};
use crate::base::metrics::Limit;
use crate::store::{Stand, Store, devices};

use super::peer::Peer;
use super::tokens::{self, Digest};
use super::who::{How, Identity, Role, Scopes};
use table::{Asked, Fault, Row, Table};

/// How long the store may take for what somebody waits for.
const STORE_MAX: Duration = Duration::from_secs(5);

/// From this on the disk is slow.
const SLOW: Duration = Duration::from_millis(500);

/// Devices that are written in one job when their copies on disk are behind.
const WASH_MAX: usize = 256;

/// Longest name that an operator may give, in characters (the protocol's own bound).
pub const LABEL_CHARS_MAX: usize = 64;

/// The devices. One for the process.
pub struct Devices {
    store: Arc<Store>,
    events: Arc<Events>,
    table: Locked<Table>,
    loaded: AtomicBool,
    /// The epoch of the file that has the copy.
    epoch: AtomicU64,
    /// Devices on their way to the disk, and what becomes of it.
    washing: Locked<Option<Washing>>,
    patience: Patience,
    devices_max: Arc<Limit>,
    pairings_max: Arc<Limit>,
}

type Washing = (Vec<Arc<str>>, Receiver<Result<(), Error>>);

/// What became of a wish to be paired.
#[derive(Debug)]
pub struct Wish {
    /// The request that waits now.
    pub request: Request,
    /// Whether it is new.
    pub new: bool,
    /// The one that it took the place of.
    pub instead_of: Option<Request>,
}

/// A token that was made just now. It is shown this once.
#[derive(Debug)]
pub struct Issued {
    /// The token.
    pub token: String,
    /// What it gives.
    pub scopes: Scopes,
    /// When, in milliseconds since 1970.
    pub issued_ms: u64,
}

/// A device that lost something.
#[derive(Debug)]
pub struct Lost {
    /// What it was before.
    pub device: Arc<Device>,
    /// Whether it is on the disk. If not, it counts all the same, and is tried again.
    pub kept: Result<(), Error>,
}

impl Devices {
    /// None yet: they are read when the first is asked for. The limits are those of
    /// [`super::limits::Limits`].
    pub fn new(
        devices_max: &Arc<Limit>,
        pairings_max: &Arc<Limit>,
        events: &Arc<Events>,
        store: &Arc<Store>,
    ) -> Self {
        Devices {
            store: Arc::clone(store),
            events: Arc::clone(events),
            table: Locked::new(Rank::Leaf, Table::default()),
            loaded: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            washing: Locked::new(Rank::Leaf, None),
            patience: Patience::default(),
            devices_max: Arc::clone(devices_max),
            pairings_max: Arc::clone(pairings_max),
        }
    }

    /// Reads the devices, if that was not done yet. To be called before anything else here is asked.
    ///
    /// # Errors
    /// Those of the store: nobody is known then, and nobody can be paired.
    pub fn ready(&self) -> Result<(), Error> {
        if self.loaded.load(Relaxed) {
            return Ok(());
        }
        let busy = || Error::new(Kind::StoreBusy, "the paired devices are being read");
        let waits = self.patience.enter().ok_or_else(busy)?;
        let db = self.store.durable();
        let epoch = db.epoch();
        let bodies = devices::load(db, clock::now() + STORE_MAX)?;
        drop(waits);
        let read: Vec<_> = bodies.iter().filter_map(|body| record::read(body)).collect();
        let strange = bodies.len() - read.len();
        let first = self.table.with(|table| {
            let first = !self.loaded.load(Relaxed);
            if first {
                table.load(read);
                self.epoch.store(epoch, Relaxed);
                self.loaded.store(true, Relaxed);
                self.show(table);
            }
            first
        });
        if first && strange > 0 {
            let text = format!("{strange} could not be read: they are not let in");
            self.events.record(Level::Error, "devices_strange", "", text);
        }
        Ok(())
    }

    /// The device of this id.
    pub fn get(&self, id: &str) -> Option<Arc<Device>> {
        self.table.with(|table| table.get(id).cloned())
    }

    /// All devices, those approved last first.
    pub fn all(&self) -> Vec<(Arc<Device>, Seen)> {
        let mut all = self.table.with(|table| table.all());
        all.sort_by(|(a, _), (b, _)| b.approved_ms.cmp(&a.approved_ms).then(a.id.cmp(&b.id)));
        all
    }

    /// When a device was seen last.
    pub fn last_seen(&self, id: &str) -> Seen {
        self.table.with(|table| table.seen_of(id))
    }

    /// The requests that wait, the newest first.
    pub fn requests(&self) -> Vec<Request> {
        let now = clock::now();
        let mut requests = self.table.with(|table| {
            let requests = table.requests(now).to_vec();
            self.show(table);
            requests
        });
        requests.sort_by_key(|request| std::cmp::Reverse(request.asked_ms));
        requests
    }

    /// The request of this id.
    pub fn request(&self, id: &str) -> Option<Request> {
        let now = clock::now();
        self.table.with(|table| table.request(id, now))
    }

    /// Whether a connection still stands on a pairing: true for one that never did.
    pub fn stands(&self, who: &Identity) -> bool {
        let (Some(id), true) = (&who.device, who.on_pairing()) else { return true };
        self.table.with(|table| {
            let grant = table.get(id).and_then(|device| device.grant(who.role));
            grant.is_some_and(|grant| who.how != How::Device || grant.token.is_some())
        })
    }

    /// A device asks to be paired.
    ///
    /// # Errors
    /// [`Kind::PairingsFull`]; when there are no random numbers.
    pub fn ask(&self, ask: Ask) -> Result<Wish, Error> {
        let id: Arc<str> = tokens::fresh()?.into();
        let now = (clock::now(), unix_ms());
        let max = usize::try_from(self.pairings_max.max()).unwrap_or(usize::MAX);
        let (device, role, why) = (Arc::clone(&ask.device), ask.role, ask.why);
        let asked = self.table.with(|table| {
            let asked = table.ask(ask, id, now, max);
            self.show(table);
            asked
        });
        match asked {
            Asked::Same(request) => Ok(Wish { request: *request, new: false, instead_of: None }),
            Asked::New(request, instead_of) => {
                let (role, why) = (role.as_str(), why.as_str());
                let text = format!("as {role}, {why}: tidegate devices approve {}", request.id);
                self.events.record(Level::Warn, "device_asks", short(&device), text);
                let instead_of = instead_of.map(|old| *old);
                Ok(Wish { request: *request, new: true, instead_of })
            }
            Asked::Full => {
                self.pairings_max.refuse();
                let text = "too many requests to be paired wait, in all or from this address \
                            (nodes.pairings_max); approve or reject some: tidegate devices";
                Err(Error::new(Kind::PairingsFull, text))
            }
        }
    }

    /// Approves a request. It counts once it is on the disk.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::DevicesFull`], those of the store: nothing has changed then.
    pub fn approve(&self, id: &str) -> Result<(Request, Arc<Device>), Error> {
        self.ready()?;
        let (now, now_ms) = (clock::now(), unix_ms());
        let max = usize::try_from(self.devices_max.max()).unwrap_or(usize::MAX);
        let (request, device) = self
            .table
            .with(|table| {
                let request = table.request(id, now).ok_or(Fault::Unknown)?;
                let device = table.approved(&request, now_ms, max)?;
                table.reserve(&device.id)?;
                Ok((request, device))
            })
            .map_err(|fault| self.fault(fault, "requestId"))?;
        let busy = Busy { devices: self, id: Arc::clone(&device.id) };
        self.keep(&device)?;
        let device = self.table.with(|table| {
            table.settle(id, now);
            let device = table.put(device);
            self.show(table);
            device
        });
        drop(busy);
        let text = format!("approved as {}", request.ask.role.as_str());
        self.events.record(Level::Info, "device_paired", short(&device.id), text);
        Ok((request, device))
    }

    /// Rejects a request.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    pub fn reject(&self, id: &str) -> Result<Request, Error> {
        let now = clock::now();
        let request = self.table.with(|table| {
            let request = table.settle(id, now);
            self.show(table);
            request
        });
        let request = request.ok_or_else(|| self.fault(Fault::Unknown, "requestId"))?;
        let text = format!("rejected as {}", request.ask.role.as_str());
        self.events.record(Level::Info, "device_rejected", short(&request.ask.device), text);
        Ok(request)
    }

    /// Takes a device's pairing away, or one of its roles. It counts at once.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; when the devices could not be read yet; when somebody else changes it.
    pub fn remove(&self, id: &str, role: Option<Role>) -> Result<Lost, Error> {
        self.ready()?;
        let removed = self.table.with(|table| {
            let id = Arc::clone(&table.get(id).ok_or(Fault::Unknown)?.id);
            table.reserve(&id)?;
            let removed = table.remove(&id, role);
            if removed.is_none() {
                table.free(&id);
            }
            self.show(table);
            removed.ok_or(Fault::Unknown)
        });
        let (device, stays) = removed.map_err(|fault| self.fault(fault, "deviceId"))?;
        let _busy = Busy { devices: self, id: Arc::clone(&device.id) };
        let kept = match self.get(id).filter(|_| stays) {
            Some(left) => self.keep(&left),
            None => self.write(vec![devices::Change::Drop(device.id.to_string())]),
        };
        if kept.is_err() {
            self.table.with(|table| table.soil(&device.id));
        }
        let text = role.map_or_else(|| "removed".to_owned(), |r| format!("no {} more", r.as_str()));
        self.events.record(Level::Warn, "device_removed", short(&device.id), text);
        Ok(Lost { device, kept })
    }

    /// Gives a device a name.
    ///
    /// # Errors
    /// [`Kind::InvalidField`], [`Kind::NotFound`], those of the store: nothing has changed then.
    pub fn rename(&self, id: &str, label: &str) -> Result<Arc<Device>, Error> {
        let label = label.trim();
        let sane = !label.is_empty()
            && label.chars().count() <= LABEL_CHARS_MAX
            && !label.chars().any(char::is_control);
        if !sane {
            let text = "a name has 1 to 64 characters, none of them a control character";
            return Err(Error::new(Kind::InvalidField, text));
        }
        self.change(id, |device| {
            device.label = Some(label.into());
            Ok(())
        })
    }

    /// Gives a device a new token for a role; the old one is worth nothing any more. With `scopes`
    /// it gives only those.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::InvalidField`] for rights that were not approved, those of the
    /// store: nothing has changed then.
    pub fn rotate(&self, id: &str, role: Role, scopes: Option<Scopes>) -> Result<Issued, Error> {
        let issued = self.issue(id, role, scopes)?;
        let text = format!("new token as {}", role.as_str());
        self.events.record(Level::Info, "device_token", short(id), text);
        Ok(issued)
    }

    fn issue(&self, id: &str, role: Role, scopes: Option<Scopes>) -> Result<Issued, Error> {
        let (token, issued_ms) = (tokens::token()?, unix_ms());
        let mut given = Scopes::NONE;
        self.change(id, |device| {
            let grant = device.grant_mut(role).ok_or(Fault::Unknown)?;
            let scopes = scopes.unwrap_or(grant.scopes);
            if !grant.scopes.cover(scopes) {
                return Err(Fault::Unknown);
            }
            given = scopes;
            grant.token = Some(Token { digest: Digest::of(&token), scopes, issued_ms });
            grant.revoked_ms = None;
            Ok(())
        })?;
        Ok(Issued { token, scopes: given, issued_ms })
    }

    /// A device's first token for a role, or its first after one was taken back; none when it has
    /// one, or when it cannot be kept: then it gets one the next time. While the disk is slow one
    /// handshake at a time waits for it, so that the others are not kept.
    pub fn first_token(&self, id: &str, role: Role) -> Option<Issued> {
        if self.get(id)?.grant(role)?.token.is_some() {
            return None;
        }
        let _waits = self.patience.enter()?;
        self.issue(id, role, None).ok()
    }

    /// Takes a device's token for a role back. It counts at once.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; when the devices could not be read yet; when somebody else changes it.
    pub fn revoke(&self, id: &str, role: Role) -> Result<Lost, Error> {
        self.ready()?;
        let now_ms = unix_ms();
        let changed = self.table.with(|table| {
            let before = Arc::clone(table.get(id).ok_or(Fault::Unknown)?);
            let mut device = Device::clone(&before);
            let grant = device.grant_mut(role).ok_or(Fault::Unknown)?;
            table.reserve(&before.id)?;
            (grant.token, grant.revoked_ms) = (None, Some(now_ms));
            Ok((before, table.put(device)))
        });
        let (before, after) = changed.map_err(|fault| self.fault(fault, "deviceId or role"))?;
        let _busy = Busy { devices: self, id: Arc::clone(&before.id) };
        let kept = self.keep(&after);
        if kept.is_err() {
            self.table.with(|table| table.soil(&before.id));
        }
        let text = format!("token taken back as {}", role.as_str());
        self.events.record(Level::Warn, "device_token", short(id), text);
        Ok(Lost { device: after, kept })
    }

    /// A device was seen. It is kept on disk now and then.
    pub fn saw(&self, id: &str, seen: Seen) {
        self.table.with(|table| table.saw(id, seen));
    }

    /// A connection has ended.
    pub fn gone(&self, peer: &Peer) {
        let Some(id) = peer.identity().and_then(|who| who.device.as_ref()) else { return };
        let (ms, address) = (unix_ms(), Some(peer.address));
        self.saw(id, Seen { ms, reason: "disconnect", address });
    }

    /// The one device whose id begins with this text.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is none, [`Kind::InvalidField`] when there are several.
    pub fn device_beginning(&self, text: &str) -> Result<Arc<str>, Error> {
        self.ready()?;
        let (devices, _) = self.table.with(|table| table.beginning(text));
        one(devices, "device", text)
    }

    /// The one request whose id begins with this text.
    ///
    /// # Errors
    /// As [`Devices::device_beginning`].
    pub fn request_beginning(&self, text: &str) -> Result<Arc<str>, Error> {
        let (_, requests) = self.table.with(|table| table.beginning(text));
        one(requests, "request", text)
    }

    /// Brings the copy on disk up to date. To be called about once a second; it never waits.
    pub fn tick(&self) {
        let db = self.store.durable();
        if !self.loaded.load(Relaxed) || db.stand() != Stand::Open {
            return;
        }
        let before = self.washing.with(Option::take);
        if let Some((ids, outcome)) = before {
            match outcome.try_recv() {
                Ok(Ok(())) => {}
                Err(TryRecvError::Empty) => {
                    self.washing.with(|washing| *washing = Some((ids, outcome)));
                    return;
                }
                Ok(Err(_)) | Err(TryRecvError::Disconnected) => {
                    self.table.with(|table| ids.iter().for_each(|id| table.soil(id)));
                }
            }
        }
        let epoch = db.epoch();
        let anew = self.epoch.swap(epoch, Relaxed) != epoch;
        let rows = self.table.with(|table| {
            if anew {
                table.soil_all();
            }
            table.washing(WASH_MAX)
        });
        if rows.is_empty() {
            return;
        }
        let ids: Vec<Arc<str>> = rows.iter().map(|(id, _)| Arc::clone(id)).collect();
        let change = |(id, row): Row| match row {
            Some((device, seen)) => {
                devices::Change::Keep(id.to_string(), record::write(&device, &seen))
            }
            None => devices::Change::Drop(id.to_string()),
        };
        match devices::submit(db, rows.into_iter().map(change).collect()) {
            Ok(outcome) => self.washing.with(|washing| *washing = Some((ids, outcome))),
            Err(_) => self.table.with(|table| ids.iter().for_each(|id| table.soil(id))),
        }
    }

    /// Changes a device, first on the disk and then here.
    fn change(
        &self,
        id: &str,
        change: impl FnOnce(&mut Device) -> Result<(), Fault>,
    ) -> Result<Arc<Device>, Error> {
        self.ready()?;
        let changed = self.table.with(|table| {
            let mut device = Device::clone(table.get(id).ok_or(Fault::Unknown)?);
            change(&mut device)?;
            table.reserve(&device.id)?;
            Ok(device)
        });
        let device = changed.map_err(|fault| self.fault(fault, "deviceId or role"))?;
        let _busy = Busy { devices: self, id: Arc::clone(&device.id) };
        self.keep(&device)?;
        Ok(self.table.with(|table| table.put(device)))
    }

    fn keep(&self, device: &Device) -> Result<(), Error> {
        let seen = self.last_seen(&device.id);
        let body = record::write(device, &seen);
        self.write(vec![devices::Change::Keep(device.id.to_string(), body)])
    }

    fn write(&self, changes: Vec<devices::Change>) -> Result<(), Error> {
        devices::save(self.store.durable(), changes, clock::now() + STORE_MAX)
    }

    fn fault(&self, fault: Fault, what: &str) -> Error {
        match fault {
            Fault::Unknown => Error::new(Kind::NotFound, format!("unknown {what}")),
            Fault::Busy => {
                let text = "somebody else is changing this device; try again";
                Error::new(Kind::StoreBusy, text)
            }
            Fault::Full => {
                self.devices_max.refuse();
                let text = "as many devices are paired as may be (nodes.devices_max); \
                            remove one: tidegate devices remove";
                Error::new(Kind::DevicesFull, text)
            }
        }
    }

    fn show(&self, table: &mut Table) {
        self.devices_max.set_now(table.len() as u64);
        self.pairings_max.set_now(table.waiting() as u64);
    }
}

/// Handshakes that wait for the disk: while it is slow, one.
#[derive(Debug, Default)]
struct Patience {
    waiting: AtomicUsize,
    slow: AtomicBool,
}

/// One that waits.
struct Waits<'a> {
    patience: &'a Patience,
    since: Instant,
}

impl Patience {
    fn enter(&self) -> Option<Waits<'_>> {
        let before = self.waiting.fetch_add(1, Relaxed);
        if before > 0 && self.slow.load(Relaxed) {
            self.waiting.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Waits { patience: self, since: clock::now() })
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let took = clock::now().saturating_duration_since(self.since);
        self.patience.slow.store(took > SLOW, Relaxed);
        self.patience.waiting.fetch_sub(1, Relaxed);
    }
}

/// A device that is being written.
struct Busy<'a> {
    devices: &'a Devices,
    id: Arc<str>,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.devices.table.with(|table| table.free(&self.id));
    }
}

fn one(mut found: Vec<Arc<str>>, what: &str, text: &str) -> Result<Arc<str>, Error> {
    match (found.pop(), found.len()) {
        (Some(id), 0) if !text.is_empty() => Ok(id),
        (Some(_), more) if !text.is_empty() => {
            let text = format!("{} {what}s begin with {text}; write more of it", more + 1);
            Err(Error::new(Kind::InvalidField, text))
        }
        _ => {
            let text = format!("there is no {what} {text}; see tidegate devices");
            Err(Error::new(Kind::NotFound, text))
        }
    }
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    u64::try_from(clock::unix().as_millis()).unwrap_or(u64::MAX)
}

/// Whether a connection has to end because its device lost this role; all roles when none is named.
pub fn concerns(who: &Identity, device: &str, role: Option<Role>) -> bool {
    let its_own = who.device.as_deref() == Some(device) && role.is_none_or(|role| role == who.role);
    its_own && who.on_pairing()
}
