//! Wrong keys: who shows too many of them is not listened to for a while, so that guessing is slow
//! and a client with an old key costs nothing.
//!
//! Two things are counted, each in a window. The *same* wrong key again and again is a mistake: that
//! key is locked out, wherever it comes from, and nobody else. *Different* wrong keys from one address
//! are guesses: the address is locked out. Behind one address there may be many clients, and on
//! loopback all of them; so a key that was right from there before goes on being right during a
//! lockout. Only a key that this address has not used yet has to wait for its end. The price: who
//! shares an address with such a client may guess at that one key without being slowed. Keys of
//! `tidegate key` have 256 bits.
//!
//! A lockout is judged before the key is hashed, by a keyed 64-bit fingerprint, which opens nothing:
//! whoever passes is still asked for the key itself. Requests without a key are refused and not
//! counted: they guess nothing.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::base::error::{Error, Kind};
use crate::base::events::Events;
use crate::base::gcra::{Gcra, Quota};
use crate::base::metrics::{Counter, Registry};
use crate::config::settings::Auth;

use super::auth::Holder;
use super::table::{Fades, Table};

/// How long a right key is remembered after it was last seen from an address.
const KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);

/// How often that is noted again.
const NOTED_EVERY: Duration = Duration::from_secs(3600);

/// Whose failures are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Address(IpAddr),
    /// A shown key, by its fingerprint.
    Shown(u64),
}

/// Failures of one subject.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    seen: Gcra,
    locked_until: Option<Instant>,
}

impl Failures {
    fn locked(&self, now: Instant) -> Option<Duration> {
        self.locked_until
            .and_then(|until| until.checked_duration_since(now))
            .filter(|d| !d.is_zero())
    }
}

impl Fades for Failures {
    fn faded(&self, now: Instant) -> bool {
        self.seen.idle(now) && self.locked(now).is_none()
    }
}

/// Until when a right key of an address is remembered.
#[derive(Clone, Copy, Debug, Default)]
struct Known(Option<Instant>);

impl Fades for Known {
    fn faded(&self, now: Instant) -> bool {
        self.0.is_none_or(|until| until <= now)
    }
}

/// The failures of all, over all reloads. One for the process.
pub struct Lockouts {
    failures: Table<Subject, Failures>,
    known: Table<(IpAddr, u64), Known>,
    hasher: RandomState,
    begun: Instant,
    registry: Arc<Registry>,
    events: Arc<Events>,
    failed: Arc<Counter>,
    refused: Arc<Counter>,
}

/// What is said about the tables' bounds.
const FORGOTTEN: &str = "the address that asked longest ago is forgotten";

impl Lockouts {
    /// No failures yet, room for `addresses_max` of each kind.
    pub fn new(
        registry: &Arc<Registry>,
        events: &Arc<Events>,
        addresses_max: usize,
        now: Instant,
    ) -> Self {
        let max = addresses_max as u64;
        let limit = |owner| registry.limit("server.addresses_max", owner, max, FORGOTTEN);
        let counter = |name, help| registry.counter(name, help, &[]);
        Lockouts {
            failures: Table::new(limit("failed_keys")),
            known: Table::new(limit("known_keys")),
            hasher: RandomState::new(),
            begun: now,
            registry: Arc::clone(registry),
            events: Arc::clone(events),
            failed: counter("tidegate_auth_failures_total", "Wrong keys that were shown."),
            refused: counter(
                "tidegate_auth_locked_out_total",
                "Requests refused during a lockout, their key not looked at.",
            ),
        }
    }

    /// Takes over another bound. When the keys are others, what was wrong may be right now: all
    /// failures are forgotten.
    pub fn reconfigure(&self, addresses_max: usize, keys_changed: bool) {
        for owner in ["failed_keys", "known_keys"] {
            self.registry.limit("server.addresses_max", owner, addresses_max as u64, FORGOTTEN);
        }
        if keys_changed {
            self.failures.clear();
        }
    }

    /// Whether a shown key is listened to.
    ///
    /// # Errors
    /// [`Kind::LockedOut`].
    pub fn check(&self, address: IpAddr, shown: &[u8], now: Instant) -> Result<(), Error> {
        // The usual case: nobody has failed of late.
        if self.failures.is_empty() {
            return Ok(());
        }
        let print = self.print(shown);
        let locked = |subject| self.failures.peek(&subject, |f| f.locked(now)).flatten();
        let (wait, why) = if let Some(wait) = locked(Subject::Shown(print)) {
            (wait, "this key was wrong too often; send another, or wait")
        } else if let Some(wait) = locked(Subject::Address(address)) {
            if self.known.peek(&(address, print), |known| !known.faded(now)) == Some(true) {
                return Ok(());
            }
            (wait, "too many wrong keys came from this address; wait, and send a right one")
        } else {
            return Ok(());
        };
        self.refused.inc();
        Err(Error::new(Kind::LockedOut, why).retry_after(Some(wait)))
    }

    /// A key was wrong.
    pub fn failed(&self, address: IpAddr, shown: &[u8], now: Instant, settings: &Auth) {
        self.failed.inc();
        let max = settings.failures_max as u64;
        let Some(quota) = Quota::new(max, settings.window, max) else { return };
        let count = |subject| {
            self.failures.with(subject, now, |failures| {
                let first = failures.seen.idle(now);
                failures.seen.charge(&quota, now, 1);
                let full = !failures.seen.check(&quota, now, 1).allowed();
                let locks = full && failures.locked(now).is_none();
                if locks {
                    failures.locked_until = now.checked_add(settings.lockout);
                }
                (first, locks)
            })
        };
        let (first, key_locked) = count(Subject::Shown(self.print(shown)));
        // Only another key is another guess.
        let address_locked = first && count(Subject::Address(address)).1;
        let seconds = settings.lockout.as_secs();
        if key_locked {
            self.locked(
                "key",
                &address.to_string(),
                format!("one wrong key, {max} times; refused for {seconds} s"),
            );
        }
        if address_locked {
            self.locked(
                "address",
                &address.to_string(),
                format!("{max} wrong keys; locked out for {seconds} s"),
            );
        }
    }

    /// A key was right: it stays so, here, whatever others do.
    pub fn right(&self, address: IpAddr, shown: &[u8], holder: &Holder, now: Instant) {
        let period = now.saturating_duration_since(self.begun).as_secs() / NOTED_EVERY.as_secs();
        // From the same place in the same hour: that is noted already.
        let mark = self.hasher.hash_one((address, period)) | 1;
        if holder.seen.load(Relaxed) == mark {
            return;
        }
        let until = now.checked_add(KNOWN_FOR);
        self.known.with((address, self.print(shown)), now, |known| known.0 = until);
        holder.seen.store(mark, Relaxed);
    }

    /// A secret that is no key was right: likewise.
    pub fn knows(&self, address: IpAddr, shown: &[u8], now: Instant) {
        let until = now.checked_add(KNOWN_FOR);
        self.known.with((address, self.print(shown)), now, |known| known.0 = until);
    }

    /// Throws away what is over. To be called now and then.
    pub fn sweep(&self, now: Instant) {
        self.failures.sweep(now);
        self.known.sweep(now);
    }

    fn locked(&self, what: &'static str, address: &str, detail: String) {
        let help = "Lockouts, by what was locked out.";
        self.registry.counter("tidegate_auth_lockouts_total", help, &[("what", what)]).inc();
        self.events.record(log::Level::Warn, "auth_lockout", address, detail);
    }

    fn print(&self, shown: &[u8]) -> u64 {
        self.hasher.hash_one(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::super::auth::Keys;
    use super::*;
    use crate::base::clock;
    use crate::config::settings::Key;

    const SETTINGS: Auth = Auth {
        failures_max: 5,
        window: Duration::from_secs(60),
        lockout: Duration::from_secs(300),
    };

    fn lockouts(addresses_max: usize) -> (Lockouts, Instant, Arc<Events>) {
        let registry = Arc::new(Registry::default());
        let events = Events::new(Arc::clone(&registry));
        let now = clock::now();
        (Lockouts::new(&registry, &events, addresses_max, now), now, events)
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn holder() -> Arc<Holder> {
        let key = Key { name: "laptop".to_owned(), ..Key::default() };
        Arc::clone(Keys::new(&[key]).named("laptop").unwrap())
    }

    #[test]
    fn different_wrong_keys_lock_their_address_out_and_no_other() {
        let (lockouts, now, events) = lockouts(1000);
        for guess in 0..5_u8 {
            assert!(lockouts.check(address(1), &[guess], now).is_ok(), "{guess}");
            lockouts.failed(address(1), &[guess], now, &SETTINGS);
        }
        let error = lockouts.check(address(1), b"another", now).unwrap_err();
        assert_eq!((error.row().code, error.retry_after_seconds()), ("locked_out", Some(60)));
        assert!(lockouts.check(address(2), b"another", now).is_ok());
        let over = now + SETTINGS.lockout;
        assert!(lockouts.check(address(1), b"another", over).is_ok());
        assert_eq!(events.recent().len(), 1);
        assert_eq!(events.recent()[0].kind, "auth_lockout");
    }

    #[test]
    fn one_wrong_key_again_and_again_locks_only_itself_out() {
        let (lockouts, now, _) = lockouts(1000);
        for _ in 0..5 {
            lockouts.failed(address(1), b"old", now, &SETTINGS);
        }
        assert!(lockouts.check(address(1), b"old", now).is_err());
        assert!(lockouts.check(address(2), b"old", now).is_err(), "wherever it comes from");
        assert!(lockouts.check(address(1), b"right", now).is_ok(), "its neighbours are served");
    }

    #[test]
    fn a_key_that_was_right_here_stays_right_during_a_lockout() {
        let (lockouts, now, _) = lockouts(1000);
        lockouts.right(address(1), b"right", &holder(), now);
        for guess in 0..9_u8 {
            lockouts.failed(address(1), &[guess], now, &SETTINGS);
        }
        assert!(lockouts.check(address(1), b"right", now).is_ok());
        assert!(lockouts.check(address(1), b"other", now).is_err());
    }

    #[test]
    fn a_key_in_steady_use_is_remembered_for_as_long() {
        let (lockouts, start, _) = lockouts(1000);
        let holder = holder();
        let mut now = start;
        for _ in 0..100 {
            now += Duration::from_secs(3000);
            lockouts.right(address(1), b"right", &holder, now);
        }
        for guess in 0..9_u8 {
            lockouts.failed(address(1), &[guess], now, &SETTINGS);
        }
        assert!(lockouts.check(address(1), b"right", now).is_ok());
    }

    #[test]
    fn slow_failures_never_lock_out() {
        let (lockouts, mut now, _) = lockouts(1000);
        for guess in 0..100_u8 {
            lockouts.failed(address(1), &[guess], now, &SETTINGS);
            assert!(lockouts.check(address(1), b"x", now).is_ok(), "{guess}");
            now += Duration::from_secs(13);
        }
    }

    #[test]
    fn guesses_from_everywhere_stay_within_the_bound_and_fade() {
        let (lockouts, now, _) = lockouts(64);
        for n in 0..10_000_u32 {
            let from = IpAddr::from(n.to_be_bytes());
            lockouts.failed(from, &n.to_be_bytes(), now, &SETTINGS);
        }
        let (_, limits) = lockouts.registry.gather();
        let limit = &limits.iter().find(|limit| limit.owner == "failed_keys").unwrap().limit;
        assert!(limit.high_water() <= 64 && limit.refused() > 9000);
        lockouts.sweep(now + SETTINGS.window);
        assert_eq!(limit.now(), 0);
    }

    #[test]
    fn nobody_is_locked_out_when_it_is_off_and_a_reload_with_other_keys_forgets() {
        let (lockouts, now, _) = lockouts(1000);
        let off = Auth { failures_max: 0, ..SETTINGS };
        for guess in 0..100_u8 {
            lockouts.failed(address(1), &[guess], now, &off);
        }
        assert!(lockouts.check(address(1), b"x", now).is_ok());
        for _ in 0..9 {
            lockouts.failed(address(1), b"new", now, &SETTINGS);
        }
        assert!(lockouts.check(address(1), b"new", now).is_err());
        lockouts.reconfigure(1000, true);
        assert!(lockouts.check(address(1), b"new", now).is_ok());
    }
}
