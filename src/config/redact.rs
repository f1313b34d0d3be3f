//! The configuration's text without its secrets, and back: whoever edits it does not need to know
//! them, and what comes back with the mask in a secret's place means the secret that stands there.
//!
//! Beside the secrets of the schema everything is masked that the schema does not know: a misspelt
//! setting, or a key that was written where only its file's name belongs. Comments are not looked at.

use std::collections::BTreeMap;

use toml_edit::{DocumentMut, Item, TableLike, Value};

use super::schema::{Setting, Shape, tree};

/// What stands in a secret's place, as clients of the OpenClaw protocol know it.
pub const MASK: &str = "__OPENCLAW_REDACTED__";

/// The text with the mask in every secret's place; `None` for what is no TOML, in which nobody can
/// tell where they are.
pub fn redact(text: &str) -> Option<String> {
    let mut document: DocumentMut = text.parse().ok()?;
    visit_root(&mut document, &mut |_, value| put(value, Value::from(MASK)));
    Some(document.to_string())
}

/// The text with the secrets of `from` in place of its masks.
///
/// # Errors
/// The settings whose secret is not known there: none of this name, or no TOML.
pub fn restore(text: &str, from: &str) -> Result<String, Vec<String>> {
    // What is no TOML is told by whoever reads it next, with its line.
    let Ok(mut document) = text.parse::<DocumentMut>() else { return Ok(text.to_owned()) };
    let mut known = BTreeMap::new();
    if let Ok(mut from) = from.parse::<DocumentMut>() {
        visit_root(&mut from, &mut |place, value| {
            known.insert(place.to_owned(), value.clone());
        });
    }
    let (mut missing, mut found) = (Vec::new(), false);
    visit_root(&mut document, &mut |place, value| {
        if value.as_str() != Some(MASK) {
            return;
        }
        match known.get(place) {
            Some(secret) => {
                put(value, secret.clone());
                found = true;
            }
            None => missing.push(place.to_owned()),
        }
    });
    match (missing.is_empty(), found) {
        (false, _) => Err(missing),
        (true, true) => Ok(document.to_string()),
        (true, false) => Ok(text.to_owned()),
    }
}

/// Another value, with what stands around the old one.
fn put(value: &mut Value, new: Value) {
    let decor = value.decor().clone();
    *value = new;
    *value.decor_mut() = decor;
}

/// Sees a secret and its place.
type See<'a> = &'a mut dyn FnMut(&str, &mut Value);

fn visit_root(document: &mut DocumentMut, see: See<'_>) {
    visit_table(document.as_table_mut(), &tree(), "", see);
}

fn visit_table(table: &mut dyn TableLike, shape: &Shape, place: &str, see: See<'_>) {
    let none = Vec::new();
    let settings = match shape {
        Shape::Table(settings) => settings,
        _ => &none,
    };
    for (key, item) in table.iter_mut() {
        let place = match place {
            "" => key.get().to_owned(),
            place => format!("{place}.{}", key.get()),
        };
        let setting: Option<&Setting> = settings.iter().find(|known| known.key == key.get());
        match setting {
            Some(setting) if !setting.secret => visit(item, &setting.shape, &place, see),
            _ => hide(item, &place, see),
        }
    }
}

/// Goes into what may hold secrets; a value of a setting that is known is none.
fn visit(item: &mut Item, shape: &Shape, place: &str, see: See<'_>) {
    match (item, shape) {
        (Item::ArrayOfTables(list), Shape::List { item: inner, .. }) => {
            for (index, table) in list.iter_mut().enumerate() {
                let place = entry(table, place, index);
                visit_table(table, inner, &place, see);
            }
        }
        (Item::Value(Value::Array(list)), Shape::List { item: inner, .. }) => {
            for (index, value) in list.iter_mut().enumerate() {
                let Value::InlineTable(table) = value else { continue };
                let place = entry(table, place, index);
                visit_table(table, inner, &place, see);
            }
        }
        (item, Shape::Either(one, other)) if item.is_table_like() => {
            let shape = if matches!(**one, Shape::Table(_)) { one } else { other };
            visit(item, shape, place, see);
        }
        (item, shape) => {
            if let Some(table) = item.as_table_like_mut() {
                visit_table(table, shape_of_list(shape), place, see);
            }
        }
    }
}

/// A table in a list's place is looked at as an entry of it.
fn shape_of_list(shape: &Shape) -> &Shape {
    match shape {
        Shape::List { item, .. } => item,
        shape => shape,
    }
}

/// Everything in there is a secret.
fn hide(item: &mut Item, place: &str, see: See<'_>) {
    match item {
        Item::Value(value) if !value.is_inline_table() => see(place, value),
        Item::ArrayOfTables(list) => {
            for (index, table) in list.iter_mut().enumerate() {
                let place = entry(table, place, index);
                visit_table(table, &Shape::Unknown, &place, see);
            }
        }
        item => {
            if let Some(table) = item.as_table_like_mut() {
                visit_table(table, &Shape::Unknown, place, see);
            }
        }
    }
}

/// `upstream[local]`, or its number where it has no name.
fn entry(table: &dyn TableLike, place: &str, index: usize) -> String {
    match table.get("name").and_then(Item::as_str) {
        Some(name) => format!("{place}[{name}]"),
        None => format!("{place}[{index}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# mine\nserver.workers = 3\nalerts.heartbeat_url = \"https://x.example/SECRET1\" # why\n\
        [[key]]\nname = \"laptop\"\nsha256 = \"SECRET2\"\nmodels = [\"a\"]\n\
        [[upstream]]\nname = \"cloud\"\napi_key = \"SECRET3\"\nurl = \"https://cloud.example/v1\"\n\
        [[notify]]\nname = \"hook\"\nurl = \"https://y.example/SECRET4\"\n\
        [unknown.deep]\nx = { y = \"SECRET5\", z = [\"SECRET6\"] }\n[[odd]]\ntoken = \"SECRET7\"\n";

    #[test]
    fn no_secret_and_nothing_unknown_is_shown_and_everything_else_is_as_it_was() {
        let shown = redact(TEXT).unwrap();
        assert!(!shown.contains("SECRET"), "{shown}");
        for kept in [
            "# mine",
            "server.workers = 3",
            "heartbeat_url = \"__OPENCLAW_REDACTED__\" # why",
            "name = \"laptop\"",
            "models = [\"a\"]",
            "url = \"https://cloud.example/v1\"",
            "[[odd]]",
        ] {
            assert!(shown.contains(kept), "{kept}\n{shown}");
        }
        assert_eq!(restore(&shown, TEXT).unwrap(), TEXT);
        assert_eq!(redact("a = \"SECRET"), None);
        let inline = "key = [{ name = \"a\", sha256 = \"SECRET\" }]\n";
        let shown = redact(inline).unwrap();
        assert!(!shown.contains("SECRET"), "{shown}");
        assert_eq!(restore(&shown, inline).unwrap(), inline);
    }

    #[test]
    fn a_mask_means_the_secret_of_the_entry_of_that_name_wherever_it_stands() {
        let from =
            "[[key]]\nname = \"a\"\nsha256 = \"SA\"\n[[key]]\nname = \"b\"\nsha256 = \"SB\"\n";
        let turned = format!(
            "[[key]]\nname = \"b\"\nsha256 = \"{MASK}\" # b\n[[key]]\nname = \"a\"\nsha256 = \"{MASK}\"\n"
        );
        let expected =
            "[[key]]\nname = \"b\"\nsha256 = \"SB\" # b\n[[key]]\nname = \"a\"\nsha256 = \"SA\"\n";
        assert_eq!(restore(&turned, from).unwrap(), expected);
        let new = format!("[[key]]\nname = \"c\"\nsha256 = \"{MASK}\"\n");
        assert_eq!(restore(&new, from).unwrap_err(), ["key[c].sha256"]);
        // A mask elsewhere is a text like any other.
        let elsewhere = format!("[[model]]\nname = \"{MASK}\"\n");
        assert_eq!(restore(&elsewhere, from).unwrap(), elsewhere);
        assert_eq!(restore("no TOML [", from).unwrap(), "no TOML [");
    }
}
