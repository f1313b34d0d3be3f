//! The store as the rest of the program uses it, with real files.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::base::error::Kind;

/// Long enough on a busy machine.
pub(super) fn soon() -> Instant {
    clock::now() + Duration::from_secs(20)
}

pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = soon();
    while !holds() {
        assert!(clock::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(super) fn open(dir: &Path) -> Arc<Store> {
    open_with(dir).0
}

/// A store with what it tells.
pub(super) fn open_with(dir: &Path) -> (Arc<Store>, Tools) {
    let tools = Tools::bare();
    (Store::open(Some(dir), &settings(), tools.clone()), tools)
}

/// Those of nothing written, on a machine whose disk may be fuller than the tests want.
pub(super) fn settings() -> Settings {
    let ballast = 1 << 16;
    Settings { free_warn: 0, free_shed: 0, free_refuse: 0, ballast, ..Settings::default() }
}

/// A table of the test's own, in the file.
fn prepare(db: &Db) {
    let make = |tx: &rusqlite::Transaction<'_>| {
        tx.execute_batch("CREATE TABLE IF NOT EXISTS tried (n INTEGER PRIMARY KEY) STRICT")
    };
    db.write("make", soon(), make).unwrap();
}

fn put(db: &Db, n: i64) -> Result<(), Kind> {
    db.write("put", soon(), move |tx| tx.execute("INSERT INTO tried VALUES (?1)", [n]).map(drop))
        .map_err(|error| error.kind())
}

fn all(db: &Db) -> Vec<i64> {
    db.read(soon(), |connection| {
        let mut statement = connection.prepare("SELECT n FROM tried ORDER BY n")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        rows.collect()
    })
    .unwrap()
}

#[test]
fn what_is_written_is_read_and_is_there_again_after_a_restart() {
    let sandbox = tempfile::tempdir().unwrap();
    let dir = sandbox.path().join("state");
    let store = open(&dir);
    for db in [store.durable(), store.metrics()] {
        prepare(db);
        put(db, 1).unwrap();
        for n in 2..=100 {
            db.submit("put", move |tx| tx.execute("INSERT INTO tried VALUES (?1)", [n]).map(drop))
                .unwrap();
        }
        put(db, 101).unwrap();
        assert_eq!(all(db), (1..=101).collect::<Vec<i64>>());
    }
    assert!(store.stop(soon()));
    let refused = put(store.durable(), 200).unwrap_err();
    assert_eq!(refused, Kind::StoreUnavailable, "it is closed");
    assert!(!dir.join("durable.db-wal").exists(), "the log of changes went into the file");
    let store = open(&dir);
    for db in [store.durable(), store.metrics()] {
        assert_eq!(all(db).len(), 101);
        assert_eq!(db.epoch(), 0);
    }
}

#[test]
fn without_a_folder_everything_is_refused_with_the_reason() {
    let store = Store::open(None, &settings(), Tools::bare());
    let db = store.durable();
    assert_eq!(db.submit("x", |_| Ok(())).unwrap_err().kind(), Kind::StoreUnavailable);
    let error = db.read(soon(), |_| Ok(())).unwrap_err();
    assert_eq!(error.kind(), Kind::StoreUnavailable);
    assert!(error.context().contains("state.dir"), "{error}");
    assert!(store.stop(soon()));
}

#[test]
fn a_job_that_fails_or_panics_takes_nothing_else_with_it() {
    let sandbox = tempfile::tempdir().unwrap();
    let store = open(sandbox.path());
    let db = store.durable();
    prepare(db);
    // Together in one batch: the first one holds the writer up until all of them wait.
    db.submit("hold", |_| {
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    })
    .unwrap();
    let insert = |n: i64| {
        move |tx: &rusqlite::Transaction<'_>| {
            tx.execute("INSERT INTO tried VALUES (?1)", [n]).map(drop)
        }
    };
    db.submit("put", insert(1)).unwrap();
    db.submit("half", |tx| {
        tx.execute("INSERT INTO tried VALUES (7)", [])?;
        tx.execute("INSERT INTO nowhere VALUES (7)", []).map(drop)
    })
    .unwrap();
    db.submit("panics", |tx| {
        tx.execute("INSERT INTO tried VALUES (8)", [])?;
        panic!("on purpose")
    })
    .unwrap();
    put(db, 2).unwrap();
    assert_eq!(all(db), [1, 2]);
    assert_eq!(put(db, 2).unwrap_err(), Kind::StoreFailed, "a constraint");
}

#[test]
fn readers_cannot_write_and_stop_at_their_deadline() {
    let sandbox = tempfile::tempdir().unwrap();
    let store = open(sandbox.path());
    let db = store.durable();
    prepare(db);
    let wrote = db.read(soon(), |c| c.execute("INSERT INTO tried VALUES (1)", []).map(drop));
    assert_eq!(wrote.unwrap_err().kind(), Kind::StoreFailed);
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) \
                   SELECT count(*) FROM n";
    let deadline = clock::now() + Duration::from_millis(50);
    let late = db.read(deadline, |c| c.query_row(endless, [], |row| row.get::<_, i64>(0)));
    assert_eq!(late.unwrap_err().kind(), Kind::StoreBusy);
    // They go on, also after one that left a transaction open.
    for _ in 0..2 * readers::READERS_MAX {
        db.read(soon(), |c| c.execute_batch("BEGIN; SELECT * FROM tried")).unwrap();
    }
    assert!(all(db).is_empty());
}

#[test]
fn a_full_queue_refuses_and_the_store_goes_on() {
    let sandbox = tempfile::tempdir().unwrap();
    let store = open(sandbox.path());
    let db = store.durable();
    prepare(db);
    let (go, gone) = bounded::<()>(1);
    db.submit("hold", move |_| {
        let _ = gone.recv();
        Ok(())
    })
    .unwrap();
    let refused = loop {
        if let Err(error) = db.submit("more", |_| Ok(())) {
            break error;
        }
    };
    assert_eq!(refused.kind(), Kind::StoreBusy);
    drop(go);
    eventually("room again", || db.submit("more", |_| Ok(())).is_ok());
}

#[test]
fn a_broken_file_is_set_aside_and_a_new_one_takes_its_place() {
    let sandbox = tempfile::tempdir().unwrap();
    fs::write(sandbox.path().join("durable.db"), "no database, but long enough ".repeat(500))
        .unwrap();
    let store = open(sandbox.path());
    prepare(store.durable());
    put(store.durable(), 1).unwrap();
    let names: Vec<String> = fs::read_dir(sandbox.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("durable.db.corrupt-")), "{names:?}");
    assert_eq!(store.durable().epoch(), 1);
}

#[test]
fn a_deleted_file_is_made_again() {
    let sandbox = tempfile::tempdir().unwrap();
    let store = open(sandbox.path());
    let db = store.durable();
    prepare(db);
    fs::remove_file(sandbox.path().join("durable.db")).unwrap();
    eventually("a new file", || db.epoch() == 1);
    prepare(db);
    put(db, 1).unwrap();
    fs::remove_dir_all(sandbox.path()).unwrap();
    eventually("a new folder", || db.epoch() == 2);
    prepare(db);
    put(db, 1).unwrap();
}

#[test]
fn two_stores_do_not_share_a_folder_and_the_second_takes_over() {
    let sandbox = tempfile::tempdir().unwrap();
    let first = open(sandbox.path());
    prepare(first.durable());
    let second = open(sandbox.path());
    eventually("refused", || second.durable().stand() == Stand::Down);
    let error = second.durable().submit("x", |_| Ok(())).unwrap_err();
    assert!(error.context().contains("another tidegate holds it"), "{error}");
    first.stop(soon());
    eventually("taken over", || second.durable().stand() == Stand::Open);
    put(second.durable(), 1).unwrap();
}

#[test]
fn a_newer_file_and_one_of_another_program_are_left_as_they_are() {
    let check = |version: i64, application: i64, word: &str| {
        let sandbox = tempfile::tempdir().unwrap();
        let path = sandbox.path().join("durable.db");
        let other = rusqlite::Connection::open(&path).unwrap();
        other.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE a (b)").unwrap();
        other.pragma_update(None, "application_id", application).unwrap();
        other.pragma_update(None, "user_version", version).unwrap();
        drop(other);
        let before = fs::read(&path).unwrap();
        let store = open(sandbox.path());
        eventually("refused", || store.durable().stand() == Stand::Down);
        let error = store.durable().submit("x", |_| Ok(())).unwrap_err();
        assert!(error.context().contains(word), "{error}");
        // The other file is used all the same.
        prepare(store.metrics());
        store.stop(soon());
        assert_eq!(fs::read(&path).unwrap(), before);
    };
    check(schema::VERSION + 1, i64::from(file::APPLICATION_ID), "newer");
    check(1, 7, "another program");
}
