//! Changing a configuration's text by a JSON document: a merge patch, or a whole one that takes its
//! place. Comments, order and blanks of what stays are left as they are.
//!
//! A merge patch is that of RFC 7396, with lists of named entries taken by their names: `null` takes
//! a setting out, a table is merged, an entry of a list is merged into the one of its name or added.
//! What would take entries out of a list is refused unless the list is named in `replace`.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

/// Deepest nesting of what is merged.
const DEPTH_MAX: usize = 16;

/// Why a document cannot be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The text is no TOML.
    Text,
    /// Entries of these lists would be lost.
    Lost(Vec<String>),
    /// A value that a configuration cannot hold: where, and why.
    Value(String, &'static str),
}

/// The text after a merge patch. Lists that are named in `replace` are taken whole.
///
/// # Errors
/// [`Unfit`]; nothing has changed then.
pub fn patch(
    text: &str,
    patch: &Map<String, Json>,
    replace: &BTreeSet<String>,
) -> Result<String, Unfit> {
    let mut merge = Merge { replace: Some(replace), lost: Vec::new() };
    let mut document: DocumentMut = text.parse().map_err(|_| Unfit::Text)?;
    merge.table(document.as_table_mut(), patch, "", 0)?;
    if merge.lost.is_empty() { Ok(document.to_string()) } else { Err(Unfit::Lost(merge.lost)) }
}

/// The text with exactly what this document says.
///
/// # Errors
/// As [`patch`].
pub fn replace(text: &str, whole: &Map<String, Json>) -> Result<String, Unfit> {
    let mut merge = Merge { replace: None, lost: Vec::new() };
    let mut document: DocumentMut = text.parse().map_err(|_| Unfit::Text)?;
    merge.table(document.as_table_mut(), whole, "", 0)?;
    Ok(document.to_string())
}

struct Merge<'a> {
    /// Lists that may lose entries; `None` when everything that is not said goes.
    replace: Option<&'a BTreeSet<String>>,
    lost: Vec<String>,
}

impl Merge<'_> {
    fn table(
        &mut self,
        table: &mut dyn TableLike,
        with: &Map<String, Json>,
        place: &str,
        depth: usize,
    ) -> Result<(), Unfit> {
        if depth >= DEPTH_MAX {
            return Err(Unfit::Value(place.to_owned(), "is nested too deeply"));
        }
        if self.replace.is_none() {
            let gone: Vec<String> = table
                .iter()
                .filter(|(key, _)| !with.contains_key(*key))
                .map(|(key, _)| key.to_owned())
                .collect();
            for key in gone {
                table.remove(&key);
            }
        }
        for (key, value) in with {
            let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
            self.one(table, key, value, &place, depth)?;
        }
        Ok(())
    }

    fn one(
        &mut self,
        table: &mut dyn TableLike,
        key: &str,
        value: &Json,
        place: &str,
        depth: usize,
    ) -> Result<(), Unfit> {
        match value {
            Json::Null => {
                if let Some(item) = table.get(key) {
                    self.lose(item, place);
                }
                table.remove(key);
                Ok(())
            }
            Json::Object(with) => self.object(table, key, with, place, depth),
            Json::Array(list) => self.list(table, key, list, place, depth),
            value => {
                if let Some(item) = table.get(key).filter(|item| !item.is_value()) {
                    self.lose(item, place);
                }
                put(table, key, scalar(value, place)?);
                Ok(())
            }
        }
    }

    fn object(
        &mut self,
        table: &mut dyn TableLike,
        key: &str,
        with: &Map<String, Json>,
        place: &str,
        depth: usize,
    ) -> Result<(), Unfit> {
        let there = table.get_mut(key).and_then(Item::as_table_like_mut);
        if let Some(there) = there {
            return self.table(there, with, place, depth + 1);
        }
        if let Some(item) = table.get(key) {
            self.lose(item, place);
        }
        table.remove(key);
        let mut fresh = Table::new();
        self.table(&mut fresh, with, place, depth + 1)?;
        if depth == 0 {
            table.insert(key, Item::Table(fresh));
        } else {
            table.insert(key, Item::Value(Value::InlineTable(fresh.into_inline_table())));
        }
        Ok(())
    }

    fn list(
        &mut self,
        table: &mut dyn TableLike,
        key: &str,
        list: &[Json],
        place: &str,
        depth: usize,
    ) -> Result<(), Unfit> {
        let whole = self.replace.is_some_and(|replace| replace.contains(place));
        // An empty one means that there shall be none, and is no list of entries to be merged.
        let names = names_of(list).filter(|_| self.replace.is_none() || !list.is_empty());
        if let (Some(names), false) = (names, whole) {
            match table.get_mut(key) {
                Some(Item::ArrayOfTables(there)) if self.fits(&names, &named_tables(there)) => {
                    return self.entries(there, list, place, depth);
                }
                Some(Item::Value(Value::Array(there)))
                    if self.fits(&names, &named_values(there)) =>
                {
                    return self.inline_entries(there, list, place, depth);
                }
                _ => {}
            }
        }
        let old = table.get(key).map(json);
        if let (Some(Json::Array(old)), false, true) = (&old, whole, self.replace.is_some())
            && !holds_all(list, old)
        {
            self.lost.push(place.to_owned());
        }
        if old == Some(Json::Array(list.to_vec())) {
            return Ok(());
        }
        let tables = depth == 0 && !list.is_empty() && list.iter().all(Json::is_object);
        if tables {
            let mut fresh = ArrayOfTables::new();
            for entry in list.iter().filter_map(Json::as_object) {
                fresh.push(self.fresh(entry, place, depth)?);
            }
            table.remove(key);
            table.insert(key, Item::ArrayOfTables(fresh));
        } else {
            put(table, key, array(list, place, depth)?);
        }
        Ok(())
    }

    /// Whether a list can be merged entry by entry: each has a name, and when the document is a whole
    /// one those that stay are in the same order.
    fn fits(&self, names: &[&str], there: &Option<Vec<String>>) -> bool {
        let Some(there) = there else { return false };
        if self.replace.is_some() {
            return true;
        }
        let kept = there.iter().filter(|name| names.contains(&name.as_str()));
        let asked = names.iter().filter(|name| there.iter().any(|known| known == *name));
        let new_last = names.iter().skip_while(|name| there.iter().any(|known| known == *name));
        kept.eq(asked) && new_last.clone().all(|name| !there.iter().any(|known| known == name))
    }

    fn entries(
        &mut self,
        there: &mut ArrayOfTables,
        list: &[Json],
        place: &str,
        depth: usize,
    ) -> Result<(), Unfit> {
        if self.replace.is_none() {
            there.retain(|table| stays(table, list));
        }
        let inner = format!("{place}[]");
        for entry in list.iter().filter_map(Json::as_object) {
            let found = there.iter_mut().find(|table| name(*table) == named(entry));
            match found {
                Some(table) => self.table(table, entry, &inner, depth + 1)?,
                None => there.push(self.fresh(entry, &inner, depth)?),
            }
        }
        Ok(())
    }

    fn inline_entries(
        &mut self,
        there: &mut Array,
        list: &[Json],
        place: &str,
        depth: usize,
    ) -> Result<(), Unfit> {
        if self.replace.is_none() {
            there.retain(|value| value.as_inline_table().is_some_and(|table| stays(table, list)));
        }
        let inner = format!("{place}[]");
        for entry in list.iter().filter_map(Json::as_object) {
            let tables = there.iter_mut().filter_map(Value::as_inline_table_mut);
            let found = tables.into_iter().find(|table| name(*table) == named(entry));
            match found {
                Some(table) => self.table(table, entry, &inner, depth + 1)?,
                None => there.push(self.fresh(entry, &inner, depth)?.into_inline_table()),
            }
        }
        Ok(())
    }

    fn fresh(
        &mut self,
        entry: &Map<String, Json>,
        place: &str,
        depth: usize,
    ) -> Result<Table, Unfit> {
        let mut fresh = Table::new();
        self.table(&mut fresh, entry, place, depth + 1)?;
        Ok(fresh)
    }

    /// Lists in what is taken out are lost.
    fn lose(&mut self, item: &Item, place: &str) {
        let Some(replace) = self.replace else { return };
        match json(item) {
            Json::Array(_) if !replace.contains(place) => self.lost.push(place.to_owned()),
            Json::Object(_) => {
                let Some(table) = item.as_table_like() else { return };
                for (key, item) in table.iter() {
                    self.lose(item, &format!("{place}.{key}"));
                }
            }
            _ => {}
        }
    }
}

fn name(table: &dyn TableLike) -> Option<&str> {
    table.get("name").and_then(Item::as_str)
}

fn named(entry: &Map<String, Json>) -> Option<&str> {
    entry.get("name").and_then(Json::as_str)
}

fn stays(table: &dyn TableLike, list: &[Json]) -> bool {
    let same = |entry: &Json| entry.as_object().and_then(named) == name(table);
    name(table).is_some() && list.iter().any(same)
}

/// The names of entries, if each has one of its own.
fn names_of(list: &[Json]) -> Option<Vec<&str>> {
    let names: Option<Vec<&str>> =
        list.iter().map(|entry| entry.as_object().and_then(named)).collect();
    names.filter(|names| names.iter().collect::<BTreeSet<_>>().len() == names.len())
}

fn named_tables(list: &ArrayOfTables) -> Option<Vec<String>> {
    list.iter().map(|table| name(table).map(str::to_owned)).collect()
}

fn named_values(list: &Array) -> Option<Vec<String>> {
    let named = |value: &Value| name(value.as_inline_table()?).map(str::to_owned);
    list.iter().map(named).collect()
}

/// Whether everything in `old` is in `new` too, as often.
fn holds_all(new: &[Json], old: &[Json]) -> bool {
    let mut left: Vec<&Json> = new.iter().collect();
    old.iter().all(|entry| match left.iter().position(|other| *other == entry) {
        Some(at) => {
            left.swap_remove(at);
            true
        }
        None => false,
    })
}

/// Sets a value; the comment behind the old one stays. The same value is left as it was written.
fn put(table: &mut dyn TableLike, key: &str, mut value: Value) {
    match table.get_mut(key) {
        Some(Item::Value(old)) => {
            if json_of(old) != json_of(&value) {
                *value.decor_mut() = old.decor().clone();
                *old = value;
            }
        }
        Some(_) => {
            table.remove(key);
            table.insert(key, Item::Value(value));
        }
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

fn scalar(value: &Json, place: &str) -> Result<Value, Unfit> {
    let unfit = |why| Err(Unfit::Value(place.to_owned(), why));
    match value {
        Json::Bool(value) => Ok((*value).into()),
        Json::String(text) => Ok(text.as_str().into()),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Ok(number.into()),
            (None, Some(number)) if number.is_finite() && !value.is_u64() => Ok(number.into()),
            _ => unfit("is too large a number"),
        },
        _ => unfit("is no value of a setting"),
    }
}

fn array(list: &[Json], place: &str, depth: usize) -> Result<Value, Unfit> {
    let mut out = Array::new();
    for entry in list {
        out.push(value(entry, place, depth + 1)?);
    }
    Ok(Value::Array(out))
}

fn value(value: &Json, place: &str, depth: usize) -> Result<Value, Unfit> {
    if depth >= DEPTH_MAX {
        return Err(Unfit::Value(place.to_owned(), "is nested too deeply"));
    }
    match value {
        Json::Array(list) => array(list, place, depth),
        Json::Object(fields) => {
            let mut out = InlineTable::new();
            for (key, field) in fields {
                out.insert(key, self::value(field, place, depth + 1)?);
            }
            Ok(Value::InlineTable(out))
        }
        other => scalar(other, place),
    }
}

/// What a text says, as JSON; `None` for what is no TOML.
pub fn values(text: &str) -> Option<Map<String, Json>> {
    let document: DocumentMut = text.parse().ok()?;
    Some(fields(document.as_table()))
}

fn fields(table: &dyn TableLike) -> Map<String, Json> {
    table.iter().map(|(key, item)| (key.to_owned(), json(item))).collect()
}

fn json(item: &Item) -> Json {
    match item {
        Item::None => Json::Null,
        Item::Value(value) => json_of(value),
        Item::Table(table) => Json::Object(fields(table)),
        Item::ArrayOfTables(list) => {
            Json::Array(list.iter().map(|table| Json::Object(fields(table))).collect())
        }
    }
}

fn json_of(value: &Value) -> Json {
    match value {
        Value::String(text) => text.value().as_str().into(),
        Value::Integer(number) => (*number.value()).into(),
        Value::Float(number) => (*number.value()).into(),
        Value::Boolean(value) => (*value.value()).into(),
        Value::Datetime(time) => time.value().to_string().into(),
        Value::Array(list) => Json::Array(list.iter().map(json_of).collect()),
        Value::InlineTable(table) => Json::Object(fields(table)),
    }
}

#[cfg(test)]
mod tests;
