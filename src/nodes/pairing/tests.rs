//! The table under virtual time, and its copy on disk.

use std::net::IpAddr;
use std::time::Instant;

use super::table::{Asked, Fault, Table};
use super::*;
use crate::base::metrics::Registry;
use crate::config::settings;
use crate::nodes::device;
use crate::nodes::who::Client;
use crate::store::Tools;

fn wish(seed: u8, address: u8) -> Ask {
    let key = [seed; 32];
    Ask {
        device: device::id(&key).into(),
        key,
        role: Role::Node,
        scopes: Scopes::NONE,
        commands: Box::new(["camera.snap".into()]),
        caps: Box::default(),
        client: Client::default(),
        address: IpAddr::from([192, 0, 2, address]),
        why: Why::NotPaired,
    }
}

fn put(table: &mut Table, ask: Ask, id: &str, now: Instant) -> &'static str {
    match table.ask(ask, id.into(), (now, 0), 8) {
        Asked::New(_, None) => "new",
        Asked::New(_, Some(_)) => "instead",
        Asked::Same(_) => "same",
        Asked::Full => "full",
    }
}

#[test]
fn one_request_waits_for_each_device_and_role_and_ends_after_an_hour_of_silence() {
    let (mut table, start) = (Table::default(), clock::now());
    assert_eq!(put(&mut table, wish(1, 1), "a", start), "new");
    let later = start + REQUEST_TTL / 2;
    assert_eq!(put(&mut table, wish(1, 1), "b", later), "same");
    let mut more = wish(1, 1);
    more.commands = Box::new(["x".into()]);
    assert_eq!(put(&mut table, wish(2, 1), "c", later), "new");
    assert_eq!(put(&mut table, more, "d", later), "instead");
    let other = Ask { role: Role::Operator, ..wish(1, 2) };
    assert_eq!(put(&mut table, other, "e", later), "new");
    assert_eq!(table.requests(later).len(), 3);
    let last = later + REQUEST_TTL - Duration::from_secs(1);
    assert_eq!(put(&mut table, wish(2, 1), "f", last), "same", "it is still there");
    assert_eq!(table.requests(later + REQUEST_TTL).len(), 1, "the one that was asked again");
    assert!(table.request("d", later + REQUEST_TTL).is_none());
}

#[test]
fn an_address_has_a_part_of_the_requests_and_all_together_a_bound() {
    let (mut table, now) = (Table::default(), clock::now());
    let mut outcomes = Vec::new();
    for n in 0..12_u8 {
        outcomes.push(put(&mut table, wish(n, n / 3), &n.to_string(), now));
    }
    let of = |outcome| outcomes.iter().filter(|have| **have == outcome).count();
    assert_eq!((of("new"), of("full")), (8, 4), "two of each address, eight in all: {outcomes:?}");
    assert_eq!(put(&mut table, wish(100, 100), "x", now), "full");
    assert!(table.settle("0", now).is_some());
    assert_eq!(put(&mut table, wish(100, 100), "x", now), "new");
}

#[test]
fn an_approval_adds_to_what_there_was() {
    let (mut table, now) = (Table::default(), clock::now());
    let of = |ask: Ask| Request { id: "r".into(), ask, asked_ms: 0, last: now };
    let node = table.approved(&of(wish(1, 1)), 5, 1).unwrap();
    table.put(node);
    let operator = Ask { role: Role::Operator, scopes: Scopes::USE, ..wish(1, 1) };
    let device = table.approved(&of(operator), 6, 1).unwrap();
    assert_eq!((device.created_ms, device.approved_ms, device.grants.len()), (5, 6, 2));
    let id = table.put(device).id.clone();
    assert!(matches!(table.approved(&of(wish(2, 1)), 7, 1), Err(Fault::Full)));
    assert!(table.approved(&of(wish(1, 1)), 7, 1).is_ok(), "one that is there needs no room");
    table.reserve(&id).unwrap();
    assert_eq!(table.reserve(&id), Err(Fault::Busy));
    table.free(&id);
    let (before, stays) = table.remove(&id, Some(Role::Node)).unwrap();
    assert_eq!((before.grants.len(), stays), (2, true));
    assert!(table.remove(&id, Some(Role::Node)).is_none(), "it is none any more");
    assert!(!table.remove(&id, None).unwrap().1);
    assert_eq!(table.len(), 0);
}

#[test]
fn a_token_that_was_made_narrower_gets_what_is_approved_and_not_what_its_grant_has() {
    let (mut table, now) = (Table::default(), clock::now());
    let of = |scopes: &[&str]| {
        let scopes = Scopes::of(scopes.iter().copied());
        let ask = Ask { role: Role::Operator, scopes, ..wish(1, 1) };
        Request { id: "r".into(), ask, asked_ms: 0, last: now }
    };
    let mut device = table.approved(&of(&["operator.admin"]), 5, 1).unwrap();
    let narrow = Scopes::of(["operator.pairing"]);
    let token = Token { digest: Digest::of("x"), scopes: narrow, issued_ms: 5 };
    device.grant_mut(Role::Operator).unwrap().token = Some(token);
    table.put(device);
    let device = table.approved(&of(&["operator.read"]), 6, 1).unwrap();
    let token = device.grant(Role::Operator).unwrap().token.as_ref().unwrap();
    assert_eq!(token.scopes, Scopes::of(["operator.pairing", "operator.read"]));
}

fn paired(store: &Arc<Store>, max: u64) -> Devices {
    let events = Events::new(Arc::new(Registry::default()));
    Devices::new(&Limit::detached(max), &Limit::detached(64), &events, store)
}

fn open(folder: &tempfile::TempDir) -> Arc<Store> {
    Store::open(Some(folder.path()), &settings::Store::default(), Tools::bare())
}

fn soon() -> Instant {
    clock::now() + Duration::from_secs(10)
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = soon();
    while !done() {
        assert!(clock::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_was_approved_is_there_for_the_next_process_and_what_was_removed_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (wish(1, 1), wish(2, 1));
    let token = {
        let store = open(&folder);
        let devices = paired(&store, 2);
        for ask in [first.clone(), second.clone()] {
            let request = devices.ask(ask).unwrap().request;
            devices.approve(&request.id[..]).unwrap();
        }
        let error = devices.approve("nobody").unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        let request = devices.ask(wish(3, 2)).unwrap().request;
        assert_eq!(devices.approve(&request.id).unwrap_err().kind(), Kind::DevicesFull);
        devices.rename(&first.device, " Kitchen ").unwrap();
        assert!(devices.rename(&first.device, "\u{7}").is_err());
        let issued = devices.first_token(&first.device, Role::Node).unwrap();
        assert!(devices.first_token(&first.device, Role::Node).is_none());
        assert!(devices.remove(&second.device, None).unwrap().kept.is_ok());
        assert!(store.stop(soon()));
        issued.token
    };
    let store = open(&folder);
    let devices = paired(&store, 2);
    devices.ready().unwrap();
    let device = devices.get(&first.device).unwrap();
    assert_eq!((device.name(), devices.all().len()), ("Kitchen", 1));
    let kept = device.grant(Role::Node).unwrap().token.as_ref().unwrap();
    assert!(kept.digest.same(&Digest::of(&token)));
    assert_eq!(devices.requests().len(), 0, "requests are asked again");
    assert_eq!(devices.device_beginning(&first.device[..5]).unwrap(), first.device);
    assert_eq!(devices.device_beginning("zz").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(devices.device_beginning("").unwrap_err().kind(), Kind::NotFound);
    let bytes = std::fs::read(folder.path().join("durable.db")).unwrap();
    let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|part| part == needle);
    assert!(!holds(token.as_bytes()), "the token itself is nowhere");
}

#[test]
fn while_the_disk_is_slow_one_handshake_waits_for_it() {
    let patience = Patience::default();
    let (first, second) = (patience.enter(), patience.enter());
    assert!(first.is_some() && second.is_some());
    drop((first, second));
    patience.slow.store(true, Relaxed);
    let first = patience.enter();
    assert!(first.is_some() && patience.enter().is_none());
    drop(first);
    assert!(!patience.slow.load(Relaxed), "it was quick again");
    assert!(patience.enter().is_some() && patience.waiting.load(Relaxed) == 0);
}

#[test]
fn the_copy_on_disk_is_made_again_when_its_file_is_lost_and_follows_what_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let ask = wish(1, 1);
    let store = open(&folder);
    let paired = paired(&store, 2);
    let request = paired.ask(ask.clone()).unwrap().request;
    paired.approve(&request.id).unwrap();
    std::fs::remove_file(folder.path().join("durable.db")).unwrap();
    eventually("a new file", || store.durable().epoch() == 1);
    let kept = || devices::load(store.durable(), soon()).unwrap();
    eventually("written again", || {
        paired.tick();
        kept().len() == 1
    });
    let seen = |ms| Seen { ms, reason: "connect", address: Some(ask.address) };
    paired.saw(&ask.device, seen(1_000_000));
    eventually("seen is written", || {
        paired.tick();
        kept()[0].contains("1000000")
    });
    paired.saw(&ask.device, seen(1_000_001));
    for _ in 0..3 {
        paired.tick();
    }
    assert!(!kept()[0].contains("1000001"), "not each time");
    assert_eq!(paired.last_seen(&ask.device).ms, 1_000_001);
}
