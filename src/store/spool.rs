//! Alerts that outlive a restart: what was told of each, silences, and notices on their way. All of it is
//! held in memory as well (`health/alerts`, `health/notify`); this is the copy that a new process
//! begins with.

use std::time::Instant;

use rusqlite::{Connection, Transaction, params};

use super::Db;
use crate::base::error::Error;

/// The tables. Bodies are JSON of whoever keeps them.
pub(super) const SCHEMA: &str = "
CREATE TABLE alert_kept (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE alert_spool (
    number INTEGER PRIMARY KEY,
    notice TEXT NOT NULL,
    channel TEXT NOT NULL,
    tries INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (notice, channel)
) STRICT;
";

/// Most rows that are read of each table: twice what is ever held at once.
const ROWS_MAX: i64 = 20_000;

/// What a kept thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An alert and what was told of it.
    Alert,
    /// A silence.
    Silence,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Alert => "alert",
            Kind::Silence => "silence",
        }
    }
}

/// One change of what is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Everything goes: what follows is all there is.
    Clear,
    /// A thing is like this now.
    Keep(Kind, String, String),
    /// It is no more.
    Drop(Kind, String),
    /// A notice is on its way to a channel.
    Send(Spooled),
    /// It was tried so often.
    Tried(String, String, u32),
    /// It is there, or was given up.
    Done(String, String),
}

/// A notice on its way to a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spooled {
    /// The notice's id.
    pub notice: String,
    /// The channel.
    pub channel: String,
    /// How often it was tried.
    pub tries: u32,
    /// The notice.
    pub body: String,
}

/// Everything that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Alerts.
    pub alerts: Vec<String>,
    /// Silences.
    pub silences: Vec<String>,
    /// Notices, in the order in which they came.
    pub spool: Vec<Spooled>,
}

/// Reads all that is kept.
///
/// # Errors
/// Those of [`Db::read`].
pub fn load(db: &Db, deadline: Instant) -> Result<Kept, Error> {
    db.read(deadline, |conn| {
        Ok(Kept {
            alerts: kept(conn, Kind::Alert)?,
            silences: kept(conn, Kind::Silence)?,
            spool: spooled(conn)?,
        })
    })
}

fn kept(conn: &Connection, kind: Kind) -> rusqlite::Result<Vec<String>> {
    let mut query = conn.prepare("SELECT body FROM alert_kept WHERE kind = ?1 LIMIT ?2")?;
    query.query_map(params![kind.as_str(), ROWS_MAX], |row| row.get(0))?.collect()
}

fn spooled(conn: &Connection) -> rusqlite::Result<Vec<Spooled>> {
    let mut query = conn
        .prepare("SELECT notice, channel, tries, body FROM alert_spool ORDER BY number LIMIT ?1")?;
    let row = |row: &rusqlite::Row<'_>| {
        Ok(Spooled {
            notice: row.get(0)?,
            channel: row.get(1)?,
            tries: row.get(2)?,
            body: row.get(3)?,
        })
    };
    query.query_map(params![ROWS_MAX], row)?.collect()
}

/// Writes changes, all of them or none, and waits until they are on the disk.
///
/// # Errors
/// Those of [`Db::write`].
pub fn save(db: &Db, changes: Vec<Change>, deadline: Instant) -> Result<(), Error> {
    if changes.is_empty() {
        return Ok(());
    }
    db.write("alerts", deadline, move |tx| changes.iter().try_for_each(|change| apply(tx, change)))
}

fn apply(tx: &Transaction<'_>, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::Clear => {
            tx.execute("DELETE FROM alert_kept", [])?;
            tx.execute("DELETE FROM alert_spool", [])?;
        }
        Change::Keep(kind, id, body) => {
            tx.prepare_cached("INSERT OR REPLACE INTO alert_kept VALUES (?1, ?2, ?3)")?
                .execute(params![kind.as_str(), id, body])?;
        }
        Change::Drop(kind, id) => {
            tx.prepare_cached("DELETE FROM alert_kept WHERE kind = ?1 AND id = ?2")?
                .execute(params![kind.as_str(), id])?;
        }
        Change::Send(Spooled { notice, channel, tries, body }) => {
            tx.prepare_cached(
                "INSERT OR REPLACE INTO alert_spool (notice, channel, tries, body) \
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![notice, channel, tries, body])?;
        }
        Change::Tried(notice, channel, tries) => {
            tx.prepare_cached(
                "UPDATE alert_spool SET tries = ?3 WHERE notice = ?1 AND channel = ?2",
            )?
            .execute(params![notice, channel, tries])?;
        }
        Change::Done(notice, channel) => {
            tx.prepare_cached("DELETE FROM alert_spool WHERE notice = ?1 AND channel = ?2")?
                .execute(params![notice, channel])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::clock;
    use crate::store::{Store, Tools};

    fn soon() -> Instant {
        clock::now() + Duration::from_secs(10)
    }

    fn spooled(notice: &str, channel: &str, tries: u32) -> Spooled {
        let (notice, channel) = (notice.to_owned(), channel.to_owned());
        Spooled { notice, channel, tries, body: "{}".to_owned() }
    }

    #[test]
    fn what_is_kept_is_there_for_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let keep = |id: &str, body: &str| Change::Keep(Kind::Alert, id.into(), body.into());
        let (a, b) = (spooled("1", "a", 0), spooled("1", "b", 0));
        {
            let store = Store::open(
                Some(folder.path()),
                &crate::config::settings::Store::default(),
                Tools::bare(),
            );
            let db = store.durable();
            save(db, vec![keep("x", "1"), keep("y", "2")], soon()).unwrap();
            save(db, vec![Change::Keep(Kind::Silence, "x".into(), "3".into())], soon()).unwrap();
            let changes = vec![
                keep("x", "4"),
                Change::Drop(Kind::Alert, "y".into()),
                Change::Send(b.clone()),
                Change::Send(a.clone()),
                Change::Tried("1".into(), "b".into(), 7),
            ];
            save(db, changes, soon()).unwrap();
            save(db, Vec::new(), soon()).unwrap();
            assert!(store.stop(soon()));
        }
        let store = Store::open(
            Some(folder.path()),
            &crate::config::settings::Store::default(),
            Tools::bare(),
        );
        let expected = Kept {
            alerts: vec!["4".into()],
            silences: vec!["3".into()],
            spool: vec![Spooled { tries: 7, ..b }, a.clone()],
        };
        assert_eq!(load(store.durable(), soon()).unwrap(), expected);
        let changes = vec![Change::Done("1".into(), "b".into())];
        save(store.durable(), changes, soon()).unwrap();
        assert_eq!(load(store.durable(), soon()).unwrap().spool, [a]);
        save(store.durable(), vec![Change::Clear, keep("z", "5")], soon()).unwrap();
        let expected = Kept { alerts: vec!["5".into()], ..Kept::default() };
        assert_eq!(load(store.durable(), soon()).unwrap(), expected);
    }

    #[test]
    fn without_a_store_it_says_so() {
        let store = Store::nowhere();
        assert!(load(store.durable(), soon()).is_err());
        let change = Change::Drop(Kind::Alert, "x".into());
        assert!(save(store.durable(), vec![change], soon()).is_err());
    }
}
