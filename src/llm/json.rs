//! A strict JSON scanner: one pass over borrowed text, no tree, no allocation.
//!
//! serde_json stays in charge wherever a value is rebuilt. This scanner is for the paths that only
//! look at a few members and pass everything else on as it came; it gives what those need and
//! serde does not: byte positions to splice at, every duplicate of a member, member names compared
//! after unescaping, and a limit on depth for values that are skipped. A property test holds that
//! it takes exactly what serde_json takes.

use std::borrow::Cow;
use std::ops::Range;

/// Most levels of arrays and objects inside each other; deeper text is refused. It is what
/// serde_json takes, so that both agree, and it bounds our own recursion.
pub(super) const DEPTH_MAX: u32 = 127;

/// Why a text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    /// Where, in bytes from the start.
    pub at: usize,
    /// What was expected or found there.
    pub what: &'static str,
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

/// What kind of value stands at a place, told by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
}

impl Shape {
    /// With its article, for sentences.
    pub fn with_article(self) -> &'static str {
        match self {
            Shape::Null => "null",
            Shape::Bool => "a boolean",
            Shape::Number => "a number",
            Shape::String => "a string",
            Shape::Array => "an array",
            Shape::Object => "an object",
        }
    }
}

/// A place in a JSON text.
pub(super) struct Scan<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
    /// For each level that [`Scan::skip`] is in: is it an object (1) or an array (0)? The
    /// innermost level is the lowest bit.
    objects: u128,
}

const _: () = assert!(DEPTH_MAX < u128::BITS, "one bit per level");

impl<'a> Scan<'a> {
    /// Starts at the beginning.
    pub fn new(text: &'a str) -> Self {
        Scan { text, at: 0, depth: 0, objects: 0 }
    }

    /// The text of a span.
    pub fn slice(&self, span: &Range<usize>) -> &'a str {
        // Spans begin and end at ASCII bytes of this very text, so this is never the empty default.
        self.text.get(span.clone()).unwrap_or_default()
    }

    /// The position, in bytes.
    pub fn at(&self) -> usize {
        self.at
    }

    /// What comes next, after white space.
    pub fn peek(&mut self) -> Result<Shape, Bad> {
        self.blanks();
        match self.byte() {
            Some(b'"') => Ok(Shape::String),
            Some(b'{') => Ok(Shape::Object),
            Some(b'[') => Ok(Shape::Array),
            Some(b't' | b'f') => Ok(Shape::Bool),
            Some(b'n') => Ok(Shape::Null),
            Some(b'-' | b'0'..=b'9') => Ok(Shape::Number),
            Some(_) => Err(self.bad("expected a value")),
            None => Err(self.bad("the text ends before a value")),
        }
    }

    /// Passes over the value that comes next, checking it, and gives where it stood.
    pub fn skip(&mut self) -> Result<Range<usize>, Bad> {
        self.blanks();
        let start = self.at;
        let floor = self.depth;
        'value: loop {
            match self.peek()? {
                Shape::String => {
                    self.string()?;
                }
                Shape::Number => self.number()?,
                Shape::Null | Shape::Bool => {
                    self.word()?;
                }
                Shape::Object => {
                    self.enter(true)?;
                    self.blanks();
                    if self.byte() != Some(b'}') {
                        self.name()?;
                        continue 'value;
                    }
                    self.leave();
                }
                Shape::Array => {
                    self.enter(false)?;
                    self.blanks();
                    if self.byte() != Some(b']') {
                        continue 'value;
                    }
                    self.leave();
                }
            }
            while self.depth > floor {
                self.blanks();
                let object = self.objects & 1 == 1;
                match self.byte() {
                    Some(b',') => {
                        self.at += 1;
                        if object {
                            self.name()?;
                        }
                        continue 'value;
                    }
                    Some(b'}') if object => self.leave(),
                    Some(b']') if !object => self.leave(),
                    _ => return Err(self.bad("expected a comma or the end of an object or array")),
                }
            }
            return Ok(start..self.at);
        }
    }

    /// Passes over the value that comes next, checking it.
    pub fn pass(&mut self) -> Result<(), Bad> {
        self.skip().map(|_| ())
    }

    /// Takes the string that comes next; the text between its quotes, still escaped.
    pub fn string(&mut self) -> Result<&'a str, Bad> {
        self.blanks();
        if self.byte() != Some(b'"') {
            return Err(self.bad("expected a string"));
        }
        self.at += 1;
        let start = self.at;
        let bytes = self.text.as_bytes();
        loop {
            while let Some(eight) = bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
                let found = special(u64::from_le_bytes(*eight));
                if found != 0 {
                    self.at += (found.trailing_zeros() / 8) as usize;
                    break;
                }
                self.at += 8;
            }
            match self.byte() {
                Some(b'"') => {
                    let inside = start..self.at;
                    self.at += 1;
                    return Ok(self.slice(&inside));
                }
                Some(b'\\') => self.escape()?,
                Some(byte) if byte < 0x20 => {
                    return Err(self.bad("a control character in a string; escape it"));
                }
                Some(_) => self.at += 1,
                None => return Err(self.bad("the text ends inside a string")),
            }
        }
    }

    /// Takes `true` or `false`.
    pub fn boolean(&mut self) -> Result<bool, Bad> {
        match self.peek()? {
            Shape::Bool => self.word(),
            _ => Err(self.bad("expected true or false")),
        }
    }

    /// Reads an object. `member` is called with each unescaped name and must take exactly one value.
    pub fn members<E: From<Bad>>(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.blanks();
        if self.byte() != Some(b'{') {
            return Err(self.bad("expected an object").into());
        }
        self.enter(true)?;
        self.blanks();
        if self.byte() == Some(b'}') {
            self.leave();
            return Ok(());
        }
        loop {
            let name = self.name()?;
            member(self, unescaped(name))?;
            self.blanks();
            match self.byte() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.leave();
                    return Ok(());
                }
                _ => return Err(self.bad("expected a comma or the end of an object").into()),
            }
        }
    }

    /// Reads an array. `item` is called with each index and must take exactly one value.
    pub fn items<E: From<Bad>>(
        &mut self,
        mut item: impl FnMut(&mut Self, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        self.blanks();
        if self.byte() != Some(b'[') {
            return Err(self.bad("expected an array").into());
        }
        self.enter(false)?;
        self.blanks();
        if self.byte() == Some(b']') {
            self.leave();
            return Ok(());
        }
        let mut index = 0;
        loop {
            item(self, index)?;
            index += 1;
            self.blanks();
            match self.byte() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.leave();
                    return Ok(());
                }
                _ => return Err(self.bad("expected a comma or the end of an array").into()),
            }
        }
    }

    /// Checks that nothing but white space is left.
    pub fn finish(&mut self) -> Result<(), Bad> {
        self.blanks();
        if self.at == self.text.len() { Ok(()) } else { Err(self.bad("text after the value")) }
    }

    /// An error here.
    pub fn bad(&self, what: &'static str) -> Bad {
        Bad { at: self.at, what }
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline]
    fn blanks(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.byte() {
            self.at += 1;
        }
    }

    fn enter(&mut self, object: bool) -> Result<(), Bad> {
        if self.depth == DEPTH_MAX {
            return Err(self.bad("more than 127 levels of nesting"));
        }
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(object);
        self.at += 1;
        Ok(())
    }

    fn leave(&mut self) {
        self.depth -= 1;
        self.objects >>= 1;
        self.at += 1;
    }

    /// A member's name and its colon.
    fn name(&mut self) -> Result<&'a str, Bad> {
        let name = self.string()?;
        self.blanks();
        if self.byte() != Some(b':') {
            return Err(self.bad("expected a colon after a member's name"));
        }
        self.at += 1;
        Ok(name)
    }

    fn word(&mut self) -> Result<bool, Bad> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        for (word, value) in [("true", true), ("false", false), ("null", false)] {
            if rest.starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.bad("expected true, false or null"))
    }

    fn number(&mut self) -> Result<(), Bad> {
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        match self.byte() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return Err(self.bad("expected a digit")),
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.byte() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Bad> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.byte() {
            self.at += 1;
        }
        if self.at == start { Err(self.bad("expected a digit")) } else { Ok(()) }
    }

    fn escape(&mut self) -> Result<(), Bad> {
        self.at += 1;
        match self.byte() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    match self.byte() {
                        Some(byte) if byte.is_ascii_hexdigit() => self.at += 1,
                        _ => return Err(self.bad("expected four hexadecimal digits")),
                    }
                }
                Ok(())
            }
            _ => Err(self.bad("an escape that JSON does not have")),
        }
    }
}

/// Finds the first of eight bytes that is a quote, a backslash or a control character: the lowest
/// set bit belongs to it, higher ones may be wrong. Zero: none is.
#[inline]
fn special(eight: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let below_space = eight.wrapping_sub(ONES * 0x20) & !eight;
    let quote = eight ^ (ONES * b'"' as u64);
    let quote = quote.wrapping_sub(ONES) & !quote;
    let backslash = eight ^ (ONES * b'\\' as u64);
    let backslash = backslash.wrapping_sub(ONES) & !backslash;
    (below_space | quote | backslash) & HIGH
}

/// The text of a string's inside. Half a surrogate pair, which no Rust string can hold, becomes
/// U+FFFD; the inside must have passed the scanner.
pub(super) fn unescaped(inside: &str) -> Cow<'_, str> {
    let Some(first) = memchr::memchr(b'\\', inside.as_bytes()) else {
        return Cow::Borrowed(inside);
    };
    let (clean, mut rest) = inside.split_at(first);
    let mut text = String::with_capacity(inside.len());
    text.push_str(clean);
    while let Some(after) = rest.strip_prefix('\\') {
        let mut chars = after.chars();
        let escaped = chars.next().unwrap_or('\\');
        rest = chars.as_str();
        match escaped {
            'b' => text.push('\u{8}'),
            'f' => text.push('\u{c}'),
            'n' => text.push('\n'),
            'r' => text.push('\r'),
            't' => text.push('\t'),
            'u' => {
                let high = unit(rest);
                rest = rest.get(4..).unwrap_or_default();
                let low = rest.strip_prefix("\\u").map(unit);
                let both = low.and_then(|low| char::decode_utf16([high, low]).next()?.ok());
                match (char::from_u32(u32::from(high)), both) {
                    (Some(whole), _) => text.push(whole),
                    (None, Some(pair)) => {
                        text.push(pair);
                        rest = rest.get(6..).unwrap_or_default();
                    }
                    (None, None) => text.push(char::REPLACEMENT_CHARACTER),
                }
            }
            other => text.push(other),
        }
        let next = memchr::memchr(b'\\', rest.as_bytes()).unwrap_or(rest.len());
        let (clean, more) = rest.split_at(next);
        text.push_str(clean);
        rest = more;
    }
    Cow::Owned(text)
}

/// The UTF-16 unit of the four hexadecimal digits at the start.
fn unit(text: &str) -> u16 {
    text.get(..4).and_then(|digits| u16::from_str_radix(digits, 16).ok()).unwrap_or_default()
}

/// Writes a string with its quotes.
pub(super) fn write_string(out: &mut Vec<u8>, text: &str) {
    // Writing a string into memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

/// A string with its quotes.
pub(super) fn string(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    write_string(&mut out, text);
    String::from_utf8(out).unwrap_or_default()
}

/// Reads a text into a typed value. Half a surrogate pair, which serde_json refuses but the scanner
/// lets pass and other languages write, is read as U+FFFD.
pub(super) fn read<T: serde::de::DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(text).or_else(|error| match without_half_pairs(text) {
        Some(mended) => serde_json::from_str(&mended),
        None => Err(error),
    })
}

/// The text with `\ufffd` for each escape that is half a surrogate pair; `None` when there is none.
fn without_half_pairs(text: &str) -> Option<String> {
    let mut mended = String::new();
    let mut copied = 0;
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', text.as_bytes().get(at..)?) {
        at += found;
        let here = text.get(at..)?;
        if !here.starts_with("\\u") {
            at += 2;
            continue;
        }
        let high = here.get(2..).map(unit)?;
        let low = here.get(6..).and_then(|next| next.strip_prefix("\\u")).map(unit);
        match (high, low) {
            (0xd800..=0xdbff, Some(0xdc00..=0xdfff)) => at += 12,
            (0xd800..=0xdfff, _) => {
                mended.push_str(text.get(copied..at)?);
                mended.push_str("\\ufffd");
                at += 6;
                copied = at;
            }
            _ => at += 6,
        }
    }
    if copied == 0 {
        return None;
    }
    mended.push_str(text.get(copied..)?);
    Some(mended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use serde_json::value::RawValue;

    fn check(text: &str) -> Result<(), Bad> {
        let mut scan = Scan::new(text);
        let span = scan.skip()?;
        scan.finish()?;
        assert_eq!(scan.slice(&span), text.trim_matches([' ', '\n', '\t', '\r']));
        Ok(())
    }

    #[test]
    fn what_json_has_is_taken() {
        for text in [
            "null",
            " true ",
            "false",
            "0",
            "-0",
            "10",
            "-1.5e+10",
            "1E5",
            "0.0",
            "\"\"",
            "\"a\\\"b\\\\\\/\\b\\f\\n\\r\\t\\u00e9\"",
            "[]",
            "[ ]",
            "{}",
            "{ }",
            "[1,2 , [3], {\"a\":[{}]}]",
            "{\"a\":1,\"b\":{\"c\":[]},\"a\":null}",
            "\"é€😀 and a long tail without anything special\"",
            "\"\\ud83d\"",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_json_does_not_have_is_refused() {
        for text in [
            "",
            " ",
            "nul",
            "True",
            "01",
            "1.",
            ".5",
            "1e",
            "+1",
            "-",
            "\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\n\"",
            "\"1234567\u{1}\"",
            "[",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1,",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\" 1}",
            "[1}",
            "{\"a\":1]",
            "1 2",
            "[] []",
            "\u{feff}1",
            "NaN",
        ] {
            assert!(check(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_127th_level_is_taken_and_the_128th_refused() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            for (levels, fine) in [(127, true), (128, false), (100_000, false)] {
                let text = open.repeat(levels) + "1" + &close.repeat(levels);
                assert_eq!(check(&text).is_ok(), fine, "{levels} {open}");
            }
        }
        // The callback forms count as well.
        fn dive(scan: &mut Scan<'_>) -> Result<(), Bad> {
            match scan.peek()? {
                Shape::Array => scan.items(|scan, _| dive(scan)),
                _ => scan.skip().map(drop),
            }
        }
        let deep = |levels: usize| "[".repeat(levels) + "1" + &"]".repeat(levels);
        assert!(dive(&mut Scan::new(&deep(127))).is_ok());
        assert!(dive(&mut Scan::new(&deep(128))).is_err());
    }

    #[test]
    fn members_and_items_give_names_positions_and_duplicates() {
        let text = r#"{"a":[10,"x"],"mod\u0065l":"é","a":null}"#;
        let mut scan = Scan::new(text);
        let mut seen = Vec::new();
        scan.members::<Bad>(|scan, name| {
            let span = scan.skip()?;
            seen.push((name.into_owned(), scan.slice(&span).to_owned()));
            Ok(())
        })
        .unwrap();
        scan.finish().unwrap();
        let seen: Vec<_> = seen.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(seen, [("a", "[10,\"x\"]"), ("model", "\"é\""), ("a", "null")]);
    }

    #[test]
    fn escapes_are_undone_as_serde_undoes_them() {
        for inside in ["plain", "\\\"\\\\\\/\\b\\f\\n\\r\\t", "\\u0041\\u00e9x", "a\\ud83d\\ude00b"]
        {
            let text = format!("\"{inside}\"");
            let expected: String = serde_json::from_str(&text).unwrap();
            assert_eq!(unescaped(inside), expected);
        }
        assert_eq!(unescaped("a\\ud83d"), "a\u{fffd}");
        assert_eq!(unescaped("\\ud83d\\u0041"), "\u{fffd}A");
        assert_eq!(unescaped("\\udc00\\n"), "\u{fffd}\n");
    }

    #[test]
    fn half_a_surrogate_pair_is_read_as_a_replacement_character() {
        let value: Value = read(r#"["\\ud83d","\ud83d","\ud83d\ude00","\udc00x"]"#).unwrap();
        assert_eq!(value, serde_json::json!(["\\ud83d", "\u{fffd}", "😀", "\u{fffd}x"]));
        assert!(read::<Value>("[1").is_err());
    }

    /// Text that is nearly JSON.
    fn nearly_json() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("{".to_owned()),
            Just("}".to_owned()),
            Just("[".to_owned()),
            Just("]".to_owned()),
            Just(",".to_owned()),
            Just(":".to_owned()),
            Just("\"a\"".to_owned()),
            Just("\"".to_owned()),
            Just("\\".to_owned()),
            Just("\\u00".to_owned()),
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("-1.5e3".to_owned()),
            Just("0".to_owned()),
            Just(" \n".to_owned()),
            "[ -~]{0,12}",
            "\\PC{0,6}",
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    /// Any JSON value, as text.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
        ];
        let tree = leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((".{0,5}", inner), 0..5)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        });
        (tree, any::<bool>()).prop_map(|(value, pretty)| {
            if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() }
        })
    }

    proptest! {
        #[test]
        fn the_scanner_takes_exactly_what_serde_takes(text in prop_oneof![nearly_json(), json()]) {
            // A raw value, since the text of numbers is not looked at: 1e999 is JSON.
            let serde = serde_json::from_str::<&RawValue>(&text).is_ok();
            prop_assert_eq!(check(&text).is_ok(), serde, "{}", text);
        }

        #[test]
        fn every_cut_and_every_changed_byte_is_judged_as_serde_judges_it(
            text in json(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let at = at.index(text.len());
            let mut bytes = text.into_bytes();
            for bytes in [bytes[..at].to_vec(), { bytes[at] = byte; bytes }] {
                if let Ok(text) = std::str::from_utf8(&bytes) {
                    let serde = serde_json::from_str::<&RawValue>(text).is_ok();
                    prop_assert_eq!(check(text).is_ok(), serde, "{}", text);
                }
            }
        }

        #[test]
        fn a_string_survives_writing_and_unescaping(text in any::<String>()) {
            let written = string(&text);
            let mut scan = Scan::new(&written);
            prop_assert_eq!(unescaped(scan.string().unwrap()), text);
        }
    }
}
