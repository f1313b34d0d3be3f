//! A strict JSON scanner: one pass over borrowed text, no tree, no allocation.
//!
//! serde_json stays in charge wherever a value is rebuilt. This scanner is for the paths that only
//! look at a few members and pass everything else on as it came; it gives what those need and
//! serde does not: byte positions to splice at, every duplicate of a member, member names compared
//! after unescaping, and a limit on depth for values that are skipped. A property test holds that
//! it takes exactly what serde_json takes.

use std::borrow::Cow;
use std::ops::Range;

use super::unescaped;

/// Most levels of arrays and objects inside each other; deeper text is refused. It is what
/// serde_json takes, so that both agree, and it bounds our own recursion.
pub(in crate::llm) const DEPTH_MAX: u32 = 127;

/// Why a text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::llm) struct Bad {
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
pub(in crate::llm) enum Shape {
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
pub(in crate::llm) struct Scan<'a> {
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
        self.quoted().map(|(inside, _)| inside)
    }

    /// The same, and whether there is an escape in it.
    fn quoted(&mut self) -> Result<(&'a str, bool), Bad> {
        let mut escaped = false;
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
                    return Ok((self.slice(&inside), escaped));
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
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
            let (name, escaped) = self.name()?;
            member(self, if escaped { unescaped(name) } else { Cow::Borrowed(name) })?;
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
    fn name(&mut self) -> Result<(&'a str, bool), Bad> {
        let name = self.quoted()?;
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
