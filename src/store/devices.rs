//! Paired devices: the copy on disk of what `nodes::pairing` holds in memory. Their tokens are kept
//! as digests only.

use std::time::Instant;

use crossbeam_channel::Receiver;
use rusqlite::{Transaction, params};

use super::Db;
use crate::base::error::Error;

/// The table. Bodies are JSON of `nodes::pairing`.
pub(super) const SCHEMA: &str = "
CREATE TABLE devices (
    id TEXT PRIMARY KEY,
    body TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Most devices that are read: as many as may be set.
const ROWS_MAX: i64 = 100_000;

/// One change of what is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device is like this now: its id and its body.
    Keep(String, String),
    /// It is no more.
    Drop(String),
}

/// Reads the bodies of all devices.
///
/// # Errors
/// Those of [`Db::read`].
pub fn load(db: &Db, deadline: Instant) -> Result<Vec<String>, Error> {
    db.read(deadline, |conn| {
        let mut query = conn.prepare("SELECT body FROM devices ORDER BY id LIMIT ?1")?;
        query.query_map([ROWS_MAX], |row| row.get(0))?.collect()
    })
}

/// Writes changes, all of them or none, and waits until they are on the disk.
///
/// # Errors
/// Those of [`Db::write`].
pub fn save(db: &Db, changes: Vec<Change>, deadline: Instant) -> Result<(), Error> {
    db.write("devices", deadline, move |tx| apply(tx, &changes))
}

/// Has changes written, and returns at once: the end of a channel that says once what came of it.
///
/// # Errors
/// Those of [`Db::submit`].
pub fn submit(db: &Db, changes: Vec<Change>) -> Result<Receiver<Result<(), Error>>, Error> {
    db.submit_told("devices", move |tx| apply(tx, &changes))
}

fn apply(tx: &Transaction<'_>, changes: &[Change]) -> rusqlite::Result<()> {
    for change in changes {
        match change {
            Change::Keep(id, body) => {
                tx.prepare_cached("INSERT OR REPLACE INTO devices VALUES (?1, ?2)")?
                    .execute(params![id, body])?;
            }
            Change::Drop(id) => {
                tx.prepare_cached("DELETE FROM devices WHERE id = ?1")?.execute(params![id])?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::clock;
    use crate::config::settings;
    use crate::store::{Store, Tools};

    fn soon() -> Instant {
        clock::now() + Duration::from_secs(10)
    }

    #[test]
    fn devices_are_there_for_the_next_process_and_gone_when_they_were_removed() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Store::open(Some(folder.path()), &settings::Store::default(), Tools::bare());
        let keep = |id: &str, body: &str| Change::Keep(id.into(), body.into());
        {
            let store = open();
            let db = store.durable();
            save(db, vec![keep("a", "1"), keep("b", "2")], soon()).unwrap();
            save(db, vec![keep("a", "3"), Change::Drop("b".into())], soon()).unwrap();
            let told = submit(db, vec![keep("c", "4")]).unwrap();
            assert!(told.recv_deadline(soon()).unwrap().is_ok());
            assert!(store.stop(soon()));
        }
        assert_eq!(load(open().durable(), soon()).unwrap(), ["3", "4"]);
    }

    #[test]
    fn a_file_of_an_older_version_gets_its_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("durable.db");
        let open = || Store::open(Some(folder.path()), &settings::Store::default(), Tools::bare());
        {
            let store = open();
            save(store.durable(), vec![Change::Drop("x".into())], soon()).unwrap();
            assert!(store.stop(soon()));
        }
        let old = rusqlite::Connection::open(&path).unwrap();
        old.execute_batch("DROP TABLE devices; PRAGMA user_version = 1").unwrap();
        drop(old);
        let store = open();
        save(store.durable(), vec![Change::Keep("a".into(), "1".into())], soon()).unwrap();
        assert_eq!(load(store.durable(), soon()).unwrap(), ["1"]);
        assert_eq!(store.durable().epoch(), 0, "nothing was thrown away");
    }

    #[test]
    fn without_a_store_it_says_so() {
        let store = Store::nowhere();
        assert!(load(store.durable(), soon()).is_err());
        assert!(save(store.durable(), vec![Change::Drop("x".into())], soon()).is_err());
        assert!(submit(store.durable(), Vec::new()).is_err());
    }
}
