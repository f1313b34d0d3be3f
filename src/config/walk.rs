//! The first step: the file's own tree, walked against the schema so that every fault is found.
//! serde would stop at the first one. What is faulty is left out of the result, so that the second
//! step (`config/build.rs`) can judge the rest in the same run.

use std::ops::Range;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::fault::{Fault, shown};
use super::nearest::nearest;
use super::report::{Report, join};
use super::schema::{Setting, Shape, Word};
use super::unit::{Price, Rate, Size, Span};

/// Most settings of a table that a message lists.
const KNOWN_SHOWN_MAX: usize = 8;
/// Longest name of an entry that messages use; longer ones are called by their number.
const NAME_CHARS_MAX: usize = 64;

/// Reads the text. Whether it is TOML at all is `Ok` or `Err`; everything else that is wrong is in
/// the report.
pub(super) fn walk(text: &str, shape: &Shape, report: &mut Report) -> Result<Value, ()> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::new(text);
    let mut broken = Vec::new();
    for error in &errors {
        let line = error.span().map(|span| lines.of(&span));
        broken.extend(line);
        report.push(Fault {
            line,
            key: String::new(),
            text: match line.and_then(|line| text.lines().nth(line - 1)) {
                Some(line) if line.trim_end().ends_with('=') => "no value behind the =".to_owned(),
                _ => format!("not TOML: {}", error.message().trim()),
            },
            remedy: if errors.len() > 1 { String::new() } else { "mend the line".to_owned() },
        });
    }
    let broken = doubtful_lines(text, &broken);
    let mut walker = Walker { lines, broken, root: shape, report };
    let Shape::Table(settings) = shape else { return Err(()) };
    let value = walker.table(table.get_ref(), settings, "");
    if errors.is_empty() { Ok(Value::Object(value)) } else { Err(()) }
}

/// Where each line begins.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Lines(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1).collect())
    }

    /// The line of a span's begin, counted from 1.
    fn of(&self, span: &Range<usize>) -> usize {
        self.0.partition_point(|begin| *begin <= span.start) + 1
    }
}

/// The lines that are no TOML, and those below a header among them, which the parser took for part
/// of another table: what it made of them is not judged further.
fn doubtful_lines(text: &str, broken: &[usize]) -> Vec<usize> {
    let mut doubtful = Vec::new();
    let mut below = false;
    for (index, line) in text.lines().enumerate() {
        let is_broken = broken.contains(&(index + 1));
        if line.trim_start().starts_with('[') {
            below = is_broken;
        }
        if is_broken || below {
            doubtful.push(index + 1);
        }
    }
    doubtful
}

struct Walker<'a> {
    lines: Lines,
    /// See [`doubtful_lines`]; sorted.
    broken: Vec<usize>,
    root: &'a Shape,
    report: &'a mut Report,
}

/// Why a value is not taken: what is wrong, and what to do.
struct Refusal {
    text: String,
    remedy: String,
}

fn refuse<T>(text: impl Into<String>, remedy: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { text: text.into(), remedy: remedy.into() })
}

impl Walker<'_> {
    fn table(
        &mut self,
        table: &DeTable<'_>,
        settings: &[Setting],
        place: &str,
    ) -> Map<String, Value> {
        let mut taken = Map::new();
        for (key, value) in table.iter() {
            let line = self.lines.of(&key.span());
            let Some(setting) = settings.iter().find(|s| s.key == key.get_ref().as_ref()) else {
                self.unknown(key.get_ref(), line, settings, place);
                continue;
            };
            let place = join(place, &setting.key);
            self.report.note(&place, line);
            if let Some(value) = self.value(value, &setting.shape, &place, setting.secret) {
                taken.insert(setting.key.clone(), value);
            }
        }
        let absent = |s: &&Setting| s.required && !table.contains_key(s.key.as_str());
        for setting in settings.iter().filter(absent) {
            if self.broken.is_empty() {
                let remedy = format!("write {} = {}", setting.key, sample(setting));
                self.report.fault(&join(place, &setting.key), "is missing", remedy);
            }
        }
        taken
    }

    fn unknown(&mut self, key: &str, line: usize, settings: &[Setting], place: &str) {
        let known = || settings.iter().map(|s| s.key.as_str());
        let secret = ["api_key", "apikey", "key", "token", "api_token", "password", "secret"];
        let remedy = if known().any(|k| k == "api_key_env")
            && secret.contains(&key.to_lowercase().replace('-', "_").as_str())
        {
            "keys do not stand in this file; name the variable or the file that holds it: \
             api_key_env, api_key_file"
                .to_owned()
        } else if let Some(table) = self.home_of(key).filter(|_| !place.is_empty()) {
            format!("it belongs in {table}")
        } else if let Some(near) = nearest(key, known()) {
            format!("did you mean {near}?")
        } else if let Some(table) = self.home_of(key) {
            format!("it belongs in {table}")
        } else if settings.len() <= KNOWN_SHOWN_MAX {
            let known: Vec<&str> = known().collect();
            format!("known are {}", known.join(", "))
        } else {
            "take it out, or see tidegate.toml(5)".to_owned()
        };
        let label = self.report.label(place);
        let shown_key: String = key.chars().take(NAME_CHARS_MAX).collect();
        if self.broken.binary_search(&line).is_err() {
            self.report.push(Fault {
                line: Some(line),
                key: join(&label, &shown_key.escape_debug().to_string()),
                text: "is not known".to_owned(),
                remedy,
            });
        }
    }

    /// The table at the top that has a setting of this name.
    fn home_of(&self, key: &str) -> Option<String> {
        let Shape::Table(tables) = self.root else { return None };
        let has =
            |shape: &Shape| matches!(shape, Shape::Table(s) if s.iter().any(|s| s.key == key));
        tables.iter().find_map(|table| match &table.shape {
            Shape::List { item, .. } if has(item) => Some(format!("[[{}]]", table.key)),
            shape if has(shape) => Some(format!("[{}]", table.key)),
            _ => None,
        })
    }

    fn value(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        shape: &Shape,
        place: &str,
        secret: bool,
    ) -> Option<Value> {
        match (shape, value.get_ref()) {
            (Shape::Table(settings), DeValue::Table(table)) => {
                Some(Value::Object(self.table(table, settings, place)))
            }
            (Shape::Table(settings), DeValue::Array(items)) => {
                let remedy = format!("write [{place}] with single brackets, once");
                self.refused(place, value, "is a list", remedy);
                let first = items.iter().find_map(|item| item.get_ref().as_table());
                first.map(|table| Value::Object(self.table(table, settings, place)))
            }
            (Shape::List { item, max }, DeValue::Array(items)) => {
                if items.len() > *max {
                    let text = format!("{} entries are more than {max}", items.len());
                    self.refused(place, value, text, format!("keep {max} or fewer"));
                }
                let items = items.iter().take(*max).enumerate();
                Some(items.filter_map(|(n, v)| self.entry(v, item, place, n, secret)).collect())
            }
            (Shape::List { item, .. }, DeValue::Table(_)) if matches!(**item, Shape::Table(_)) => {
                let remedy = format!("write [[{place}]] with double brackets");
                self.refused(place, value, "is a single table", remedy);
                self.entry(value, item, place, 0, secret).map(|only| Value::Array(vec![only]))
            }
            (Shape::Either(a, b), found) => {
                let table = matches!(found, DeValue::Table(_));
                let shape = if table == matches!(**a, Shape::Table(_)) { a } else { b };
                self.value(value, shape, place, secret)
            }
            (shape, found) => match leaf(found, shape, secret) {
                Ok(value) => Some(value),
                Err(refusal) => {
                    self.refused(place, value, refusal.text, refusal.remedy);
                    None
                }
            },
        }
    }

    /// One entry of a list; entries of lists of tables are called by their names.
    fn entry(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        shape: &Shape,
        place: &str,
        index: usize,
        secret: bool,
    ) -> Option<Value> {
        let list = place;
        let place = join(place, &index.to_string());
        self.report.note(&place, self.lines.of(&value.span()));
        if let (Shape::Table(_), DeValue::Table(table)) = (shape, value.get_ref()) {
            let name = table.get("name").and_then(|name| name.get_ref().as_str());
            let short = |name: &&str| {
                (1..=NAME_CHARS_MAX).contains(&name.chars().count())
                    && !name.chars().any(char::is_control)
            };
            let number = format!("#{}", index + 1);
            let name = name.filter(short).unwrap_or(&number);
            self.report.name(&place, format!("{list}[{name}]"));
        }
        self.value(value, shape, &place, secret)
    }

    fn refused(
        &mut self,
        place: &str,
        value: &Spanned<DeValue<'_>>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        if self.broken.binary_search(&self.lines.of(&value.span())).is_err() {
            self.report.fault(place, text, remedy);
        }
    }
}

/// A value that is no table and no list.
fn leaf(value: &DeValue<'_>, shape: &Shape, secret: bool) -> Result<Value, Refusal> {
    match (shape, value) {
        (Shape::Text { min, max }, DeValue::String(text)) => text_of(text, *min, *max),
        (Shape::Word(words), DeValue::String(text)) => word_of(text, words),
        (Shape::Bool, DeValue::Boolean(value)) => Ok(Value::Bool(*value)),
        (Shape::Bool, DeValue::String(text)) if matches!(text.as_ref(), "true" | "false") => {
            refuse(format!("{text:?} is a text"), format!("write {text} without quotes"))
        }
        (Shape::Integer { min, max }, DeValue::Integer(number)) => {
            let show = |n: u64| n.to_string();
            within(whole(number, show(*max))?, *min, *max, show).map(Value::from)
        }
        (Shape::Integer { .. }, DeValue::String(text)) if text.parse::<u64>().is_ok() => {
            refuse(format!("{text:?} is a text"), format!("write {text} without quotes"))
        }
        (Shape::Duration { min, max }, DeValue::String(text)) => match text.parse::<Span>() {
            Ok(span) => within(span, *min, *max, quoted).map(|_| Value::from(text.as_ref())),
            Err(why) => refuse(format!("{} {why}", shown(text)), duration_remedy(text)),
        },
        (Shape::Duration { .. }, DeValue::Integer(number)) => {
            refuse(format!("{number} has no unit"), duration_remedy(number.as_str()))
        }
        (Shape::Duration { .. }, DeValue::Float(number)) => {
            refuse(format!("{} has no unit", number.as_str()), "write a text such as \"1500ms\"")
        }
        (Shape::Size { min, max }, DeValue::String(text)) => match text.parse::<Size>() {
            Ok(size) => within(size, *min, *max, quoted).map(|size| Value::from(size.0)),
            Err(why) => refuse(
                format!("{} {why}", shown(text)),
                "write a size such as \"20MiB\", or a count of bytes",
            ),
        },
        (Shape::Size { min, max }, DeValue::Integer(number)) => {
            within(Size(whole(number, quoted(max))?), *min, *max, quoted)
                .map(|size| Value::from(size.0))
        }
        (Shape::Rate { min, max }, DeValue::String(text)) => match text.parse::<Rate>() {
            Ok(rate) => within(rate, *min, *max, quoted).map(|rate| Value::from(rate.0)),
            Err(why) => refuse(
                format!("{} {why}", shown(text)),
                "write a rate such as \"1KiB/s\", or a count of bytes",
            ),
        },
        (Shape::Rate { min, max }, DeValue::Integer(number)) => {
            within(Rate(whole(number, quoted(max))?), *min, *max, quoted)
                .map(|rate| Value::from(rate.0))
        }
        (Shape::Price { max }, DeValue::String(text)) => price_of(text, *max),
        // As they stand in the file: a binary fraction would not be what was written.
        (Shape::Price { max }, DeValue::Float(number)) => price_of(number.as_str(), *max),
        (Shape::Price { max }, DeValue::Integer(number)) => {
            price_of(&whole(number, max.to_string())?.to_string(), *max)
        }
        (Shape::List { item, .. }, DeValue::String(text))
            if matches!(**item, Shape::Text { .. } | Shape::Either(..)) && !secret =>
        {
            refuse("is a text, not a list", format!("write [{}]", shown(text)))
        }
        (shape, found) => {
            refuse(format!("is {}, not {}", found_name(found), shape_name(shape)), remedy(shape))
        }
    }
}

fn text_of(text: &str, min: usize, max: usize) -> Result<Value, Refusal> {
    let length = text.chars().count();
    if length < min && length == 0 {
        return refuse("is empty", "write a value");
    }
    if length < min || length > max {
        let bound = if min == max {
            format!("{max}")
        } else if length > max {
            format!("{max} or fewer")
        } else {
            format!("{min} or more")
        };
        return refuse(format!("has {length} characters"), format!("write {bound}"));
    }
    if text.chars().any(char::is_control) {
        return refuse("holds a control character", "take it out");
    }
    Ok(Value::from(text))
}

fn price_of(text: &str, max: Price) -> Result<Value, Refusal> {
    match text.parse::<Price>() {
        Ok(price) => within(price, Price(0), max, |price| price.to_string())
            .map(|price| Value::from(price.to_string())),
        Err(why) => refuse(format!("{} {why}", shown(text)), PRICE_REMEDY),
    }
}

/// What a price looks like.
const PRICE_REMEDY: &str = "write the price of a million tokens, such as 0.15";

fn word_of(text: &str, words: &[Word]) -> Result<Value, Refusal> {
    if words.iter().any(|word| word.name == text) {
        return Ok(Value::from(text));
    }
    let text_wrong = format!("{} is not known", shown(text));
    match nearest(text, words.iter().map(|w| w.name.as_str())) {
        Some(near) => refuse(text_wrong, format!("did you mean {near:?}?")),
        None => refuse(text_wrong, format!("write {}", words_list(words))),
    }
}

/// `"a", "b" or "c"`.
fn words_list(words: &[Word]) -> String {
    let names: Vec<String> = words.iter().map(|word| format!("{:?}", word.name)).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, before)) => format!("{} or {last}", before.join(", ")),
        None => String::new(),
    }
}

/// A whole number from 0 up. What is too large for the machine is told with the setting's bound.
fn whole(number: &DeInteger<'_>, max: String) -> Result<u64, Refusal> {
    match i128::from_str_radix(number.as_str(), number.radix()) {
        Ok(n) if n < 0 => refuse(format!("{n} is below 0"), "set 0 or more"),
        Ok(n) => u64::try_from(n).or_else(|_| {
            refuse(format!("{n} is above {}", max.trim_matches('"')), format!("set {max} or less"))
        }),
        Err(_) => refuse("is too large a number", format!("set {max} or less")),
    }
}

fn within<T: PartialOrd + Copy>(
    value: T,
    min: T,
    max: T,
    write: impl Fn(T) -> String,
) -> Result<T, Refusal> {
    let plain = |value| write(value).trim_matches('"').to_owned();
    if value < min {
        let text = format!("{} is below {}", plain(value), plain(min));
        refuse(text, format!("set {} or more", write(min)))
    } else if value > max {
        let text = format!("{} is above {}", plain(value), plain(max));
        refuse(text, format!("set {} or less", write(max)))
    } else {
        Ok(value)
    }
}

fn quoted(value: impl ToString) -> String {
    format!("{:?}", value.to_string())
}

fn duration_remedy(text: &str) -> String {
    let digits = text.trim();
    let number =
        !digits.is_empty() && digits.len() < 9 && digits.bytes().all(|b| b.is_ascii_digit());
    let example = if number { digits } else { "30" };
    format!("write \"{example}s\" for seconds, or use ms, m, h")
}

fn found_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn shape_name(shape: &Shape) -> &'static str {
    match shape {
        Shape::Text { .. } | Shape::Word(_) => "a text",
        Shape::Integer { .. } => "a whole number",
        Shape::Bool => "true or false",
        Shape::Duration { .. } => "a duration",
        Shape::Size { .. } => "a size",
        Shape::Rate { .. } => "a rate",
        Shape::Price { .. } => "a price",
        Shape::List { .. } => "a list",
        Shape::Table(_) | Shape::Either(..) | Shape::Unknown => "a table",
    }
}

fn remedy(shape: &Shape) -> String {
    match shape {
        Shape::Text { .. } => "write a text in quotes".to_owned(),
        Shape::Word(words) => format!("write {}", words_list(words)),
        Shape::Integer { .. } => "write a whole number, without quotes".to_owned(),
        Shape::Bool => "write true or false, without quotes".to_owned(),
        Shape::Duration { .. } => "write a duration such as \"30s\"".to_owned(),
        Shape::Size { .. } => "write a size such as \"20MiB\"".to_owned(),
        Shape::Rate { .. } => "write a rate such as \"1KiB/s\"".to_owned(),
        Shape::Price { .. } => PRICE_REMEDY.to_owned(),
        Shape::List { item, .. } if matches!(**item, Shape::Table(_)) => {
            "write its entries as tables under a header in double brackets".to_owned()
        }
        Shape::List { .. } => "write a list in square brackets".to_owned(),
        Shape::Table(_) | Shape::Either(..) | Shape::Unknown => "see tidegate.toml(5)".to_owned(),
    }
}

/// What a missing setting could look like.
fn sample(setting: &Setting) -> String {
    match &setting.shape {
        Shape::Word(words) => words_list(words),
        _ if setting.secret => "\"…\"".to_owned(),
        _ => setting.example.as_ref().map_or_else(|| "…".to_owned(), Value::to_string),
    }
}
