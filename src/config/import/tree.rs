//! YAML and JSON5 as one kind of tree, within bounds: neither nesting nor aliases nor size can make the
//! reading of a file expensive.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};
use serde_json::{Map, Number, Value};

/// Largest file, in bytes. LiteLLM's own largest example has 40 KiB.
pub const INPUT_BYTES_MAX: usize = 1024 * 1024;
/// Deepest nesting. Real files have ten levels.
pub const DEPTH_MAX: usize = 64;
/// Most that a file may come to once its aliases are written out: bytes of text, and
/// [`NODE_WEIGHT`] for each node. About 50 MiB of memory at most.
pub const WEIGHT_MAX: usize = 16 * 1024 * 1024;
/// What a node counts for beside its text.
const NODE_WEIGHT: usize = 32;
/// Most anchors of a file: each keeps what it stands for until the end.
const ANCHORS_MAX: usize = 1024;

const TOO_DEEP: &str = "is nested too deeply";
const TOO_LARGE: &str = "comes to too much once its aliases are written out";

fn too_long(text: &str) -> Result<(), String> {
    match text.len() > INPUT_BYTES_MAX {
        true => Err(format!("is larger than {} KiB", INPUT_BYTES_MAX / 1024)),
        false => Ok(()),
    }
}

/// Reads JSON5.
///
/// # Errors
/// Why it is none, without its text.
pub(super) fn json5(text: &str) -> Result<Value, String> {
    too_long(text)?;
    // The parser recurses and does not count.
    if nesting(text) > DEPTH_MAX {
        return Err(TOO_DEEP.to_owned());
    }
    json5::from_str(text).map_err(|e| match e.position() {
        Some(at) => format!("is no JSON5 (line {})", at.line + 1),
        None => "is no JSON5 (it ends too early)".to_owned(),
    })
}

/// How deep brackets nest, outside strings and comments.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '[' | '{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            ']' | '}' => depth = depth.saturating_sub(1),
            '"' | '\'' => {
                while let Some(inside) = letters.next() {
                    match inside {
                        '\\' => {
                            letters.next();
                        }
                        end if end == letter => break,
                        _ => {}
                    }
                }
            }
            '/' if letters.peek() == Some(&'/') => {
                letters.find(|c| matches!(c, '\n' | '\r' | '\u{2028}' | '\u{2029}'));
            }
            '/' if letters.peek() == Some(&'*') => {
                letters.next();
                let mut star = false;
                letters.find(|c| {
                    let end = star && *c == '/';
                    star = *c == '*';
                    end
                });
            }
            _ => {}
        }
    }
    deepest
}

/// A collection that is being read.
enum Open {
    List(Vec<Value>),
    /// With the key whose value is awaited, and what `<<` gave.
    Table(Map<String, Value>, Option<String>, Vec<Value>),
}

#[derive(Default)]
struct Reader {
    open: Vec<(Open, usize)>,
    /// What anchors stand for, by their numbers.
    anchors: Vec<(usize, Value)>,
    weight: usize,
    root: Option<Value>,
}

/// Reads YAML: one document, with anchors, aliases and merge keys.
///
/// # Errors
/// Why it is none, without its text.
pub(super) fn yaml(text: &str) -> Result<Value, String> {
    too_long(text)?;
    let mut reader = Reader::default();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e: ScanError| {
            format!("is no YAML (line {}): {}", e.marker().line(), e.info())
        })?;
        let at = |why: &str| format!("line {}: {why}", span.start.line());
        match event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err(at("a second document begins; keep one"));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let text_tag = tag
                    .as_ref()
                    .is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                if tag.is_some() && !text_tag {
                    return Err(at("a tag other than !!str; write the value without it"));
                }
                let plain = style == ScalarStyle::Plain && !text_tag;
                reader.put(scalar(&text, plain), anchor).map_err(at)?;
            }
            Event::SequenceStart(anchor, _) => {
                reader.begin(Open::List(Vec::new()), anchor).map_err(at)?;
            }
            Event::MappingStart(anchor, _) => {
                let table = Open::Table(Map::new(), None, Vec::new());
                reader.begin(table, anchor).map_err(at)?;
            }
            Event::SequenceEnd | Event::MappingEnd => reader.end().map_err(at)?,
            Event::Alias(anchor) => reader.alias(anchor).map_err(at)?,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }
    Ok(reader.root.unwrap_or(Value::Null))
}

impl Reader {
    fn begin(&mut self, open: Open, anchor: usize) -> Result<(), &'static str> {
        if self.open.len() >= DEPTH_MAX {
            return Err(TOO_DEEP);
        }
        self.open.push((open, anchor));
        Ok(())
    }

    fn end(&mut self) -> Result<(), &'static str> {
        let value = match self.open.pop() {
            Some((Open::List(list), anchor)) => (Value::Array(list), anchor),
            Some((Open::Table(mut table, _, merged), anchor)) => {
                merge(&mut table, merged);
                (Value::Object(table), anchor)
            }
            None => return Err("an end without a beginning"),
        };
        self.put(value.0, value.1)
    }

    fn alias(&mut self, anchor: usize) -> Result<(), &'static str> {
        let Some((_, value)) = self.anchors.iter().find(|(known, _)| *known == anchor) else {
            return Err("an alias for what it stands in itself");
        };
        let room = WEIGHT_MAX.saturating_sub(self.weight);
        let weight = weight(value, room).ok_or(TOO_LARGE)?;
        self.weight += weight;
        let value = value.clone();
        self.put(value, 0)
    }

    fn put(&mut self, value: Value, anchor: usize) -> Result<(), &'static str> {
        // Inner values were counted when they came.
        self.weight += NODE_WEIGHT + value.as_str().map_or(0, str::len);
        if anchor > 0 {
            let room = WEIGHT_MAX.saturating_sub(self.weight);
            self.weight += weight(&value, room).ok_or(TOO_LARGE)?;
            if self.anchors.len() >= ANCHORS_MAX {
                return Err("there are too many anchors");
            }
            self.anchors.push((anchor, value.clone()));
        }
        if self.weight > WEIGHT_MAX {
            return Err(TOO_LARGE);
        }
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some((Open::List(list), _)) => list.push(value),
            Some((Open::Table(table, key, merged), _)) => match key.take() {
                None => *key = Some(name(value).ok_or("a key that is no text")?),
                Some(key) if key == "<<" => merged.push(value),
                Some(key) => {
                    if table.insert(key, value).is_some() {
                        return Err("a key that stands in this table already");
                    }
                }
            },
        }
        Ok(())
    }
}

/// What a value weighs, when that is at most `room`.
fn weight(value: &Value, room: usize) -> Option<usize> {
    let own = NODE_WEIGHT + value.as_str().map_or(0, str::len);
    let mut sum = own;
    let mut add = |inner: usize| {
        sum += inner;
        (sum <= room).then_some(())
    };
    add(0)?;
    match value {
        Value::Array(list) => {
            for inner in list {
                add(weight(inner, room)?)?;
            }
        }
        Value::Object(table) => {
            for (key, inner) in table {
                add(key.len())?;
                add(weight(inner, room)?)?;
            }
        }
        _ => {}
    }
    Some(sum)
}

/// What `<<` brings: keys that the table has not.
fn merge(table: &mut Map<String, Value>, merged: Vec<Value>) {
    for value in merged {
        match value {
            Value::Object(more) => {
                for (key, value) in more {
                    table.entry(key).or_insert(value);
                }
            }
            Value::Array(list) => merge(table, list),
            _ => {}
        }
    }
}

/// A key as text.
fn name(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

/// A scalar as PyYAML reads it, which LiteLLM uses.
fn scalar(text: &str, plain: bool) -> Value {
    if !plain {
        return text.into();
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return true.into();
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return false.into();
        }
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return text.into();
    }
    let grouped = digits.replace('_', "");
    let sign = if text.starts_with('-') { "-" } else { "" };
    let number = format!("{sign}{grouped}");
    let whole = number.parse::<i64>().ok().map(Value::from);
    // 1e5 is text there: a float needs its point.
    let float = || number.contains('.').then(|| number.parse::<f64>().ok()).flatten();
    whole.or_else(|| float().and_then(Number::from_f64).map(Value::Number)).unwrap_or(text.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_are_read_as_python_reads_them() {
        let check = |text: &str, expected: Value| assert_eq!(yaml(text), Ok(expected), "{text}");
        check(
            "a: 1\nb: '1'\nc: yes\nd: ~\ne: 2.5\nf: sk-1\n",
            json!(
            {"a": 1, "b": "1", "c": true, "d": null, "e": 2.5, "f": "sk-1"}),
        );
        check(
            "[1_000, 0.0000015, 1.5e-6, 1.2.3, -4, 4o, .5]",
            json!([1000, 0.0000015, 0.0000015, "1.2.3", -4, "4o", 0.5]),
        );
        check("", Value::Null);
        check("a: !!str 1", json!({"a": "1"}));
        assert!(yaml("a: !!python/object:os.system x").is_err());
        assert!(yaml("a: 1\n---\nb: 2").unwrap_err().contains("second document"));
        assert!(yaml("a: 1\na: 2").unwrap_err().contains("already"));
        assert!(yaml("a: [").unwrap_err().contains("is no YAML (line "));
    }

    #[test]
    fn aliases_and_merge_keys_are_written_out() {
        let text =
            "base: &b {x: 1, y: 2}\none:\n  <<: *b\n  y: 3\ntwo: *b\nmany:\n  <<: [*b, {z: 4}]\n";
        let expected = json!({
            "base": {"x": 1, "y": 2}, "one": {"y": 3, "x": 1}, "two": {"x": 1, "y": 2},
            "many": {"x": 1, "y": 2, "z": 4},
        });
        assert_eq!(yaml(text), Ok(expected));
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let before = format!("*a{}", n - 1);
            let all = vec![before; 10].join(", ");
            text.push_str(&format!("a{n}: &a{n} [{all}]\n"));
        }
        assert!(yaml(&text).unwrap_err().contains(TOO_LARGE));
        let long = "x".repeat(INPUT_BYTES_MAX / 2);
        let text = format!("a: &a {long}\nb: [{}]", vec!["*a"; 1000].join(", "));
        assert!(yaml(&text).unwrap_err().contains(TOO_LARGE));
        assert!(yaml("a: &a [*a]").unwrap_err().contains("itself"));
        let anchors: String = (0..=ANCHORS_MAX).map(|n| format!("- &a{n} x\n")).collect();
        assert!(yaml(&anchors).unwrap_err().contains("anchors"));
    }

    #[test]
    fn nesting_and_size_are_bounded_at_their_limits() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        for read in [yaml, json5] {
            assert!(read(&nested(DEPTH_MAX)).is_ok());
            assert!(read(&nested(DEPTH_MAX + 1)).unwrap_err().contains(TOO_DEEP));
            let long = format!("\"{}\"", "x".repeat(INPUT_BYTES_MAX - 2));
            assert!(read(&long).is_ok());
            assert!(read(&(long + " ")).unwrap_err().contains("is larger than 1024 KiB"));
        }
        assert!(yaml(&"[".repeat(100_000)).is_err());
        assert!(yaml(&"- ".repeat(100_000)).is_err());
        assert!(json5(&"{a:".repeat(100_000)).is_err());
        // Brackets in strings and comments do not nest, and nothing hides those that do.
        assert_eq!(nesting("['[[', \"[\\\"[\", /* [[[ **/ [], // [[\n{}]"), 2);
        assert_eq!(nesting("// x\u{2028}[[["), 3);
        assert_eq!(nesting("/*/[*/[["), 2);
    }

    #[test]
    fn json5_is_read_and_its_faults_are_told_by_line() {
        let text = "// c\n{a: 'x', \"b\": [1, 0x10, .5,], /* d */ c: +Infinity}";
        assert_eq!(json5(text), Ok(json!({"a": "x", "b": [1, 16, 0.5], "c": null})));
        assert_eq!(json5("{\na: sk-hush}").unwrap_err(), "is no JSON5 (line 2)");
        assert!(json5("{").is_err() && json5("").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = (yaml(&text), json5(&text));
        }

        #[test]
        fn any_text_of_marks_is_read_or_refused(text in "[ \\n\\[\\]{}:,&*a<'\"!|>?%@#/\\\\-]{0,80}") {
            let _ = (yaml(&text), json5(&text));
        }
    }
}
