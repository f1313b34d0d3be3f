//! The copy of alerts, silences and notices in `durable.db`. Memory is what counts while the process runs;
//! the copy is what the next one begins with. When the store was away, all of it is written anew.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::alert::Notice;
use super::engine::Dirty;
use super::service::Handle;
use super::{Alert, Silence};
use crate::base::clock;
use crate::health::notify::queue::Entry;
use crate::log_limited;
use crate::store::Stand;
use crate::store::spool::{self, Change, Kind, Spooled};

/// How long a write may take. Past it what is told is told all the same.
const SAVE_MAX: Duration = Duration::from_secs(5);

fn soon() -> Instant {
    clock::now() + SAVE_MAX
}

/// Whether the store is still being opened.
pub(super) fn opening(handle: &Handle) -> bool {
    handle.hands.store.durable().stand() == Stand::Opening
}

/// Whether the store can be asked now.
fn open(handle: &Handle) -> bool {
    matches!(handle.hands.store.durable().stand(), Stand::Open | Stand::Full)
}

/// Takes over what an earlier process kept, once the store can be read.
pub(super) fn load(handle: &Handle) {
    if handle.loaded.load(Relaxed) || !open(handle) {
        return;
    }
    let kept = match spool::load(handle.hands.store.durable(), soon()) {
        Ok(kept) => kept,
        Err(error) => {
            log_limited!(log::Level::Warn, "alerts_not_loaded", why:% = error);
            return;
        }
    };
    let alerts = kept.alerts.iter().filter_map(|text| read::<Alert>(text)).collect();
    let silences = kept.silences.iter().filter_map(|text| read::<Silence>(text)).collect();
    let now = handle.now();
    handle.engine.with(|engine| engine.restore(alerts, silences, now));
    let known = handle.queue.with(|queue| queue.lanes());
    let mut gone = Vec::new();
    for spooled in kept.spool {
        let Some(notice) = read::<Notice>(&spooled.body).map(Arc::new) else { continue };
        let own = known.iter().any(|(channel, _, _)| channel.name == spooled.channel);
        let targets = match own {
            true => vec![spooled.channel],
            // Its channel was taken out meanwhile.
            false => handle.queue.with(|queue| queue.targets(&notice)),
        };
        for channel in targets {
            gone.extend(handle.queue.with(|queue| queue.push(&notice, &channel, spooled.tries)));
        }
    }
    handle.give_up(gone, "no room", now);
    handle.loaded.store(true, Relaxed);
    // What was found before the store was there is not in it.
    handle.unsaved.store(true, Relaxed);
    handle.wake();
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    let read = serde_json::from_str(text);
    if let Err(error) = &read {
        log_limited!(log::Level::Warn, "alert_unreadable", why:% = error);
    }
    read.ok()
}

/// A notice on its way, as it is kept.
pub(super) fn spooled((notice, channel): &(Arc<Notice>, String)) -> Change {
    let (channel, body) = (channel.clone(), text(&**notice));
    Change::Send(Spooled { notice: notice.id.clone(), channel, tries: 0, body })
}

fn text(value: &impl serde::Serialize) -> String {
    // Texts, numbers and lists of them: this does not fail.
    serde_json::to_string(value).unwrap_or_default()
}

/// Writes what changed of alerts and silences, and `more` with it: all or nothing. False when it is not on
/// the disk; then all of it is written when that can be done.
pub(super) fn save_dirty(handle: &Handle, more: Vec<Change>) -> bool {
    let dirty = handle.engine.with(|engine| engine.take_dirty());
    let mut changes = changes(dirty);
    changes.extend(more);
    changes.is_empty() || save(handle, changes)
}

fn save(handle: &Handle, changes: Vec<Change>) -> bool {
    // One that is still being opened takes jobs.
    if !(open(handle) || opening(handle)) {
        handle.unsaved.store(true, Relaxed);
        return false;
    }
    match spool::save(handle.hands.store.durable(), changes, soon()) {
        Ok(()) => true,
        Err(error) => {
            log_limited!(log::Level::Warn, "alerts_not_kept", why:% = error);
            handle.unsaved.store(true, Relaxed);
            false
        }
    }
}

fn changes(dirty: Dirty) -> Vec<Change> {
    let alerts = dirty.alerts.into_iter().map(|(id, alert)| match alert {
        Some(alert) => Change::Keep(Kind::Alert, id, text(&alert)),
        None => Change::Drop(Kind::Alert, id),
    });
    let silences = dirty.silences.into_iter().map(|(id, silence)| match silence {
        Some(silence) => Change::Keep(Kind::Silence, id, text(&silence)),
        None => Change::Drop(Kind::Silence, id),
    });
    alerts.chain(silences).collect()
}

/// Notes that entries are done with.
pub(in crate::health) fn done(handle: &Handle, entries: &[Entry]) {
    let done = |entry: &Entry| Change::Done(entry.notice.id.clone(), entry.channel.clone());
    save(handle, entries.iter().map(done).collect());
}

/// Notes how often an entry was tried.
pub(in crate::health) fn tried(handle: &Handle, entry: &Entry) {
    let (notice, channel) = (entry.notice.id.clone(), entry.channel.clone());
    save(handle, vec![Change::Tried(notice, channel, entry.tries.saturating_add(1))]);
}

/// Writes everything anew when the copy is not what it should be: after the store was away, and when an empty
/// file took the place of a broken one.
pub(super) fn resync(handle: &Handle) {
    let db = handle.hands.store.durable();
    let epoch = db.epoch();
    let renewed = handle.epoch.swap(epoch, Relaxed) != epoch;
    let due = handle.loaded.load(Relaxed) && open(handle);
    if !due || !(handle.unsaved.swap(false, Relaxed) || renewed) {
        return;
    }
    let (alerts, silences) = handle.engine.with(|engine| {
        // What is on its way to the disk by itself is in it anyway.
        engine.take_dirty();
        (engine.alerts(), engine.silences())
    });
    let entries = handle.queue.with(|queue| queue.entries().to_vec());
    let mut changes = vec![Change::Clear];
    let told = |alert: &&Alert| alert.fired.is_some() || alert.told.is_some();
    changes.extend(
        alerts
            .iter()
            .filter(told)
            .map(|alert| Change::Keep(Kind::Alert, alert.fingerprint.clone(), text(alert))),
    );
    let keep = |silence: &Silence| Change::Keep(Kind::Silence, silence.id.clone(), text(silence));
    changes.extend(silences.iter().map(keep));
    changes.extend(entries.iter().map(|entry| {
        Change::Send(Spooled {
            notice: entry.notice.id.clone(),
            channel: entry.channel.clone(),
            tries: entry.tries,
            body: text(&*entry.notice),
        })
    }));
    if !save(handle, changes) {
        return;
    }
    // What was delivered while this was written must not be there again.
    let left = handle.queue.with(|queue| queue.entries().to_vec());
    let waits = |entry: &Entry| {
        left.iter().any(|have| have.notice.id == entry.notice.id && have.channel == entry.channel)
    };
    let gone: Vec<Entry> = entries.into_iter().filter(|entry| !waits(entry)).collect();
    if !gone.is_empty() {
        done(handle, &gone);
    }
}
