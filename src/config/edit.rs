//! Changing single settings of a configuration's text, with everything else of it left as it is:
//! comments, order, blanks.
//!
//! A setting is called as messages call it: `server.body_max`, and `upstream[local].url` for that of
//! the entry whose name is `local`. Names stand in brackets because they may hold dots and slashes.

use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use crate::base::error::{Error, Kind};

/// Longest name of a setting, in bytes.
const KEY_BYTES_MAX: usize = 512;
/// Most parts of one.
const PARTS_MAX: usize = 8;

/// A setting and what it is to be; `None` takes it out, so that its default counts.
pub type Edit = (String, Option<String>);

/// One part of a setting's name: `upstream[local]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part<'a> {
    key: &'a str,
    entry: Option<&'a str>,
}

/// The text with these settings changed. Whether it means anything then is for the caller to check.
///
/// # Errors
/// A name that is none, or a place that is not what the name says.
pub fn edit(text: &str, edits: &[Edit]) -> Result<String, Error> {
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        invalid(format!("the configuration is no TOML: {}", error.message()))
    })?;
    for (key, value) in edits {
        let parts = parse(key).map_err(|why| invalid(format!("{key:?} {why}")))?;
        let value = value.as_deref().map(value_of);
        apply(document.as_table_mut(), &parts, value.as_ref())
            .map_err(|why| invalid(format!("{key}: {why}")))?;
    }
    Ok(document.to_string())
}

fn invalid(text: String) -> Error {
    Error::new(Kind::InvalidConfig, text)
}

/// What was written: TOML when it is a value of TOML, else a text. A date is none of ours, so it is
/// a text too.
fn value_of(written: &str) -> Value {
    match written.trim().parse::<Value>() {
        Ok(mut value) if !value.is_datetime() => {
            value.decor_mut().clear();
            value
        }
        _ => Value::from(written),
    }
}

fn parse(key: &str) -> Result<Vec<Part<'_>>, &'static str> {
    const NAME: &str = "is no setting's name; write it as server.body_max or upstream[local].url";
    if key.len() > KEY_BYTES_MAX {
        return Err("is too long");
    }
    let mut parts = Vec::new();
    let mut rest = key;
    loop {
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(NAME);
        }
        let (entry, after) = match after.strip_prefix('[') {
            Some(inside) => {
                let (entry, after) = inside.split_once(']').ok_or(NAME)?;
                (Some(entry).filter(|entry| !entry.is_empty()).map(Some).ok_or(NAME)?, after)
            }
            None => (None, after),
        };
        parts.push(Part { key: name, entry });
        match after.strip_prefix('.') {
            _ if parts.len() > PARTS_MAX => return Err(NAME),
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(parts),
            None => return Err(NAME),
        }
    }
}

/// Whether it is there at all is no fault of taking something out.
fn apply(
    root: &mut dyn TableLike,
    parts: &[Part<'_>],
    value: Option<&Value>,
) -> Result<(), String> {
    let Some((last, way)) = parts.split_last() else { return Ok(()) };
    let mut table = root;
    for part in way {
        match enter(table, part, value.is_some())? {
            Some(inner) => table = inner,
            None => return Ok(()),
        }
    }
    match (last.entry, value) {
        (Some(_), Some(_)) => Err("names an entry; set one of its settings".to_owned()),
        (Some(entry), None) => {
            remove_entry(table, last.key, entry);
            Ok(())
        }
        (None, None) => {
            table.remove(last.key);
            Ok(())
        }
        (None, Some(value)) => put(table, last.key, value),
    }
}

/// Sets a value; the comment behind the old one stays.
fn put(table: &mut dyn TableLike, key: &str, value: &Value) -> Result<(), String> {
    match table.get_mut(key) {
        Some(Item::Value(old)) => {
            let decor = old.decor().clone();
            *old = value.clone();
            *old.decor_mut() = decor;
        }
        Some(Item::None) | None => {
            table.insert(key, Item::Value(value.clone()));
        }
        Some(_) => return Err("is a table; set one of its settings".to_owned()),
    }
    Ok(())
}

/// The table of a part; with `make` it is made when it is not there.
fn enter<'a>(
    table: &'a mut dyn TableLike,
    part: &Part<'_>,
    make: bool,
) -> Result<Option<&'a mut dyn TableLike>, String> {
    let key = part.key;
    if table.get(key).is_none_or(Item::is_none) {
        if !make {
            return Ok(None);
        }
        let fresh = match part.entry {
            Some(_) => Item::ArrayOfTables(ArrayOfTables::new()),
            None => Item::Table(Table::new()),
        };
        table.insert(key, fresh);
    }
    let Some(item) = table.get_mut(key) else { return Ok(None) };
    match (part.entry, item) {
        (Some(entry), Item::ArrayOfTables(list)) => {
            let at = list.iter().position(|table| named(table, entry));
            let at = match at {
                None if !make => return Ok(None),
                None => {
                    let mut fresh = Table::new();
                    fresh.insert("name", toml_edit::value(entry));
                    list.push(fresh);
                    list.len() - 1
                }
                Some(at) => at,
            };
            Ok(list.get_mut(at).map(|table| table as &mut dyn TableLike))
        }
        (Some(entry), Item::Value(Value::Array(list))) => {
            let is = |value: &Value| value.as_inline_table().is_some_and(|t| named(t, entry));
            if make && !list.iter().any(is) {
                let mut fresh = InlineTable::new();
                fresh.insert("name", entry.into());
                list.push(fresh);
            }
            let found = list.iter_mut().find(|value| is(value));
            let table = found.and_then(Value::as_inline_table_mut);
            Ok(table.map(|table| table as &mut dyn TableLike))
        }
        (Some(_), _) => Err(format!("{key} is no list of entries")),
        (None, Item::ArrayOfTables(_) | Item::Value(Value::Array(_))) => {
            Err(format!("{key} is a list; name the entry, as {key}[local]"))
        }
        (None, item) => match item.as_table_like_mut() {
            Some(table) => Ok(Some(table)),
            None => Err(format!("{key} is no table")),
        },
    }
}

fn named(table: &dyn TableLike, name: &str) -> bool {
    table.get("name").and_then(Item::as_str) == Some(name)
}

fn remove_entry(table: &mut dyn TableLike, key: &str, name: &str) {
    let empty = match table.get_mut(key) {
        Some(Item::ArrayOfTables(list)) => {
            list.retain(|table| !named(table, name));
            list.is_empty()
        }
        Some(Item::Value(Value::Array(list))) => {
            list.retain(|value| !value.as_inline_table().is_some_and(|t| named(t, name)));
            false
        }
        _ => false,
    };
    if empty {
        table.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "# above\nserver.body_max = \"1MiB\" # why\n\n[log]\n  level = \"info\"\n\n\
                        # the local one\n[[upstream]]\nname = \"local\"\nkind = \"ollama\" # mine\n\
                        url = \"http://127.0.0.1:1\"\n\n[[upstream]]\nname = \"a.b/c\"\n# below\n";

    fn set(text: &str, key: &str, value: &str) -> Result<String, String> {
        edit(text, &[(key.into(), Some(value.into()))]).map_err(|error| error.to_string())
    }

    fn unset(text: &str, key: &str) -> String {
        edit(text, &[(key.into(), None)]).unwrap()
    }

    #[test]
    fn one_value_changes_and_every_other_byte_stays() {
        let check = |key: &str, value: &str, from: &str, to: &str| {
            assert!(TEXT.contains(from));
            assert_eq!(set(TEXT, key, value).unwrap(), TEXT.replacen(from, to, 1), "{key}");
        };
        check("server.body_max", "2MiB", "\"1MiB\"", "\"2MiB\"");
        check("server.body_max", "2048", "\"1MiB\"", "2048");
        check("log.level", "\"debug\"", "\"info\"", "\"debug\"");
        check("upstream[local].kind", "openai", "\"ollama\"", "\"openai\"");
        check("upstream[a.b/c].num_ctx", "7", "\"a.b/c\"\n", "\"a.b/c\"\nnum_ctx = 7\n");
        assert_eq!(
            unset(TEXT, "upstream[local].kind"),
            TEXT.replace("kind = \"ollama\" # mine\n", "")
        );
        for absent in ["log.dir", "ops.listen", "upstream[x].url", "upstream[x]", "model[x].cache"]
        {
            assert_eq!(unset(TEXT, absent), TEXT, "{absent}");
        }
        let without = unset(&unset(TEXT, "upstream[local]"), "upstream[a.b/c]");
        assert!(!without.contains("upstream") && without.starts_with("# above\n"), "{without}");
    }

    #[test]
    fn what_is_not_there_is_made() {
        assert_eq!(set("", "log.level", "debug").unwrap(), "[log]\nlevel = \"debug\"\n");
        let edits = |pairs: &[(&str, &str)]| -> Vec<Edit> {
            pairs.iter().map(|(key, value)| ((*key).into(), Some((*value).into()))).collect()
        };
        let made =
            edit("", &edits(&[("upstream[n].kind", "echo"), ("upstream[n].word_delay", "0s")]));
        let expected = "[[upstream]]\nname = \"n\"\nkind = \"echo\"\nword_delay = \"0s\"\n";
        assert_eq!(made.unwrap(), expected);
        let inline = "upstream = [{ name = \"n\", kind = \"echo\" }]\n";
        let changed = set(inline, "upstream[n].word_delay", "1s").unwrap();
        assert!(changed.contains("word_delay = \"1s\""), "{changed}");
        assert!(crate::config::parse(&changed, None, &|_| None).is_ok());
        let date = set("", "key[k].expires", "2030-01-01").unwrap();
        assert!(date.contains("expires = \"2030-01-01\""), "{date}");
    }

    #[test]
    fn names_that_mean_nothing_are_refused_with_what_to_write() {
        for (key, why) in [
            ("", "is no setting's name"),
            ("a..b", "is no setting's name"),
            ("a[b", "is no setting's name"),
            ("a[].b", "is no setting's name"),
            ("a[b]c", "is no setting's name"),
            ("upstream.url", "upstream is a list; name the entry, as upstream[local]"),
            ("upstream[local]", "names an entry"),
            ("log", "is a table"),
            ("log[x].level", "log is no list"),
            ("log.level.x", "level is no table"),
        ] {
            let error = set(TEXT, key, "1").unwrap_err();
            assert!(error.contains(why), "{key}: {error}");
        }
        assert!(set("[", "a.b", "1").unwrap_err().contains("no TOML"));
    }

    proptest! {
        #[test]
        fn no_name_and_no_value_panics(key in "[a-z.\\[\\]_]{0,20}", value in ".{0,20}") {
            if let Ok(text) = set(TEXT, &key, &value) {
                prop_assert!(text.parse::<DocumentMut>().is_ok(), "{}", text);
            }
        }
    }
}
