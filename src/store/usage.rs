//! The book of usage, kept over restarts: rows by day, key and model, and rows by session.
//!
//! What is saved is what the sums are, not what was added, so that saving twice does no harm.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row as Found, params};

/// The tables. Parts of a place that are absent are empty texts and -1, so that they can be part of a
/// key. A cost may be larger than SQLite's numbers; it is a text.
pub(super) const SCHEMA: &str = "
CREATE TABLE usage_rows (
    day INTEGER NOT NULL,
    who INTEGER NOT NULL,
    key TEXT NOT NULL,
    what INTEGER NOT NULL,
    asked TEXT NOT NULL,
    upstream TEXT NOT NULL,
    model TEXT NOT NULL,
    sums BLOB NOT NULL,
    cost TEXT NOT NULL,
    PRIMARY KEY (day, who, key, what, asked, upstream, model)
) STRICT, WITHOUT ROWID;
CREATE TABLE usage_sessions (
    who INTEGER NOT NULL,
    key TEXT NOT NULL,
    what INTEGER NOT NULL,
    name TEXT NOT NULL,
    last INTEGER NOT NULL,
    sums BLOB NOT NULL,
    cost TEXT NOT NULL,
    PRIMARY KEY (who, key, what, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE usage_since (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    started INTEGER NOT NULL
) STRICT;
";

/// Most rows that are loaded of each table: as many as `usage.rows_max` may be.
const ROWS_MAX: i64 = 65_536;

/// Numbers of a row, beside its cost.
pub const COUNTS: usize = 11;

/// What is summed in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// In the order that whoever saves them has for them; new ones come last.
    pub counts: [u64; COUNTS],
    /// In millionths of a millionth of the currency.
    pub cost: u128,
}

/// Whose a row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The key of this name.
    Key(String),
    /// Nobody's in particular.
    Nobody,
    /// Those who found no room.
    Others,
}

/// A row by day, key and model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Days since 1970; `None` for those before.
    pub day: Option<u64>,
    /// Whose.
    pub who: Who,
    /// The model that was asked for; `None` for those that found no room.
    pub asked: Option<String>,
    /// The upstream and its model that answered.
    pub answered: Option<(String, String)>,
    /// The sums.
    pub sums: Sums,
}

/// What a row by session stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The session of this name.
    Session(String),
    /// Requests that named none.
    Without,
    /// Sessions that were forgotten.
    Forgotten,
}

/// A row by session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whose.
    pub who: Who,
    /// Which.
    pub what: What,
    /// The last request, in seconds since 1970.
    pub last: u64,
    /// The sums.
    pub sums: Sums,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Since when there are sums, in seconds since 1970.
    pub started: u64,
    /// By day, key and model.
    pub rows: Vec<Row>,
    /// By session.
    pub sessions: Vec<Session>,
}

impl Who {
    fn pack(&self) -> (i64, &str) {
        match self {
            Who::Key(name) => (0, name),
            Who::Nobody => (1, ""),
            Who::Others => (2, ""),
        }
    }

    fn unpack(who: i64, key: String) -> Who {
        match who {
            0 => Who::Key(key),
            1 => Who::Nobody,
            _ => Who::Others,
        }
    }
}

impl Sums {
    fn pack(&self) -> ([u8; COUNTS * 8], String) {
        let mut bytes = [0; COUNTS * 8];
        for (place, count) in bytes.chunks_exact_mut(8).zip(self.counts) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        (bytes, self.cost.to_string())
    }

    fn unpack(bytes: &[u8], cost: &str) -> Sums {
        let mut sums = Sums { cost: cost.parse().unwrap_or_default(), ..Sums::default() };
        for (count, place) in sums.counts.iter_mut().zip(bytes.chunks_exact(8)) {
            *count = place.try_into().map(u64::from_le_bytes).unwrap_or_default();
        }
        sums
    }

    /// Those in the columns from this one on.
    fn at(row: &Found<'_>, column: usize) -> rusqlite::Result<Sums> {
        let (ValueRef::Blob(bytes), cost) =
            (row.get_ref(column)?, row.get::<_, String>(column + 1)?)
        else {
            return Ok(Sums::default());
        };
        Ok(Sums::unpack(bytes, &cost))
    }
}

/// Saves everything. `whole`: rows may have gone since the last time; otherwise only those that are
/// new or have changed are written.
///
/// # Errors
/// Those of SQLite.
pub fn save(connection: &Connection, books: &Books, whole: bool) -> rusqlite::Result<()> {
    if whole {
        connection.execute_batch("DELETE FROM usage_rows; DELETE FROM usage_sessions")?;
    }
    connection
        .prepare_cached("INSERT OR REPLACE INTO usage_since (one, started) VALUES (1, ?1)")?
        .execute([signed(books.started)])?;
    let text = "INSERT INTO usage_rows VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) \
                ON CONFLICT DO UPDATE SET sums = excluded.sums, cost = excluded.cost \
                WHERE sums <> excluded.sums OR cost <> excluded.cost";
    let mut statement = connection.prepare_cached(text)?;
    for row in &books.rows {
        let (who, key) = row.who.pack();
        let what = match (&row.asked, &row.answered) {
            (Some(_), Some(_)) => 0,
            (Some(_), None) => 1,
            (None, _) => 2,
        };
        let (upstream, model) =
            row.answered.as_ref().map_or(("", ""), |(upstream, model)| (upstream, model));
        let (sums, cost) = row.sums.pack();
        let asked = row.asked.as_deref().unwrap_or_default();
        let day = row.day.map_or(-1, signed);
        statement.execute(params![day, who, key, what, asked, upstream, model, &sums[..], cost])?;
    }
    let text = "INSERT INTO usage_sessions VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
                ON CONFLICT DO UPDATE SET last = excluded.last, sums = excluded.sums, \
                cost = excluded.cost WHERE sums <> excluded.sums OR cost <> excluded.cost";
    let mut statement = connection.prepare_cached(text)?;
    for session in &books.sessions {
        let (who, key) = session.who.pack();
        let (what, name) = match &session.what {
            What::Session(name) => (0, &**name),
            What::Without => (1, ""),
            What::Forgotten => (2, ""),
        };
        let (sums, cost) = session.sums.pack();
        statement.execute(params![who, key, what, name, signed(session.last), &sums[..], cost])?;
    }
    Ok(())
}

/// What was saved; `None` when nothing ever was.
///
/// # Errors
/// Those of SQLite.
pub fn load(connection: &Connection) -> rusqlite::Result<Option<Books>> {
    let started = connection.query_row("SELECT started FROM usage_since", [], |row| row.get(0));
    let started: i64 = match started {
        Err(rusqlite::Error::QueryReturnedNoRows) => return Ok(None),
        found => found?,
    };
    let text = "SELECT day, who, key, what, asked, upstream, model, sums, cost FROM usage_rows \
                ORDER BY day LIMIT ?1";
    let mut statement = connection.prepare(text)?;
    let rows = statement.query_map([ROWS_MAX], |row| {
        let what: i64 = row.get(3)?;
        let (upstream, model) = (row.get(5)?, row.get(6)?);
        Ok(Row {
            day: u64::try_from(row.get::<_, i64>(0)?).ok(),
            who: Who::unpack(row.get(1)?, row.get(2)?),
            asked: if what == 2 { None } else { Some(row.get(4)?) },
            answered: (what == 0).then_some((upstream, model)),
            sums: Sums::at(row, 7)?,
        })
    })?;
    let rows = rows.collect::<rusqlite::Result<_>>()?;
    let text = "SELECT who, key, what, name, last, sums, cost FROM usage_sessions \
                ORDER BY last LIMIT ?1";
    let mut statement = connection.prepare(text)?;
    let sessions = statement.query_map([ROWS_MAX], |row| {
        let what: i64 = row.get(2)?;
        Ok(Session {
            who: Who::unpack(row.get(0)?, row.get(1)?),
            what: match what {
                0 => What::Session(row.get(3)?),
                1 => What::Without,
                _ => What::Forgotten,
            },
            last: u64::try_from(row.get::<_, i64>(4)?).unwrap_or_default(),
            sums: Sums::at(row, 5)?,
        })
    })?;
    let sessions = sessions.collect::<rusqlite::Result<_>>()?;
    Ok(Some(Books { started: u64::try_from(started).unwrap_or_default(), rows, sessions }))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(n: u64) -> Sums {
        Sums { counts: [n; COUNTS], cost: u128::from(n) << 70 }
    }

    fn row(day: Option<u64>, who: Who, asked: Option<&str>, n: u64) -> Row {
        let asked = asked.map(str::to_owned);
        let answered = asked.as_ref().filter(|asked| *asked != "lost");
        let answered = answered.map(|asked| ("local".to_owned(), asked.clone()));
        Row { day, who, asked, answered, sums: sums(n) }
    }

    #[test]
    fn books_come_back_as_they_were_saved() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        assert_eq!(load(&connection).unwrap(), None);
        let session = |what, n| Session { who: Who::Nobody, what, last: n, sums: sums(n) };
        let mut books = Books {
            started: 7,
            rows: vec![
                row(None, Who::Others, None, 1),
                row(Some(20_000), Who::Key("laptop".into()), Some("llama"), 2),
                row(Some(20_001), Who::Nobody, Some("lost"), u64::MAX),
            ],
            sessions: vec![
                session(What::Forgotten, 3),
                session(What::Without, 4),
                session(What::Session("dinner".into()), 5),
            ],
        };
        save(&connection, &books, false).unwrap();
        assert_eq!(load(&connection).unwrap().unwrap(), books);
        books.rows[1].sums = sums(9);
        books.sessions[2].sums = sums(9);
        let before = connection.total_changes();
        save(&connection, &books, false).unwrap();
        assert_eq!(connection.total_changes() - before, 3, "what has not changed is not written");
        assert_eq!(load(&connection).unwrap().unwrap(), books);
        books.rows.remove(0);
        books.sessions.remove(0);
        save(&connection, &books, true).unwrap();
        assert_eq!(load(&connection).unwrap().unwrap(), books);
    }
}
