//! JSON5, as clients of the OpenClaw protocol write configurations: JSON with comments, trailing
//! commas, names without quotes, and texts in single ones. Numbers are those of JSON and hexadecimal
//! ones; `Infinity` and `NaN` are no values of a setting.

use serde_json::{Map, Number, Value};

/// Deepest nesting that is read.
const DEPTH_MAX: usize = 64;

/// Reads a text.
///
/// # Errors
/// What is wrong with it, and where.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0).and_then(|value| {
        reader.blanks()?;
        if reader.peek().is_some() { Err("something follows the value") } else { Ok(value) }
    });
    value.map_err(|why| {
        let before = text.get(..reader.at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        format!("JSON5: {why} at line {line} column {column}")
    })
}

type Read<T> = Result<T, &'static str>;

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    /// Blanks and comments.
    fn blanks(&mut self) -> Read<()> {
        loop {
            let rest = self.rest();
            let text = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
            self.at += rest.len() - text.len();
            let skip = if text.starts_with("//") {
                text.find(['\n', '\r', '\u{2028}', '\u{2029}']).unwrap_or(text.len())
            } else if text.starts_with("/*") {
                text.find("*/").ok_or("a comment does not end")? + 2
            } else {
                return Ok(());
            };
            self.at += skip;
        }
    }

    fn value(&mut self, depth: usize) -> Read<Value> {
        if depth > DEPTH_MAX {
            return Err("it is nested too deeply");
        }
        self.blanks()?;
        match self.peek() {
            Some('{') => self.object(depth),
            Some('[') => self.array(depth),
            Some(quote @ ('"' | '\'')) => self.string(quote).map(Value::String),
            Some('+' | '-' | '.' | '0'..='9') => self.number(),
            Some(_) => match self.name()?.as_str() {
                "null" => Ok(Value::Null),
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                _ => Err("there is no such word"),
            },
            None => Err("it ends too soon"),
        }
    }

    fn object(&mut self, depth: usize) -> Read<Value> {
        self.next();
        let mut fields = Map::new();
        loop {
            self.blanks()?;
            if self.take('}') {
                return Ok(Value::Object(fields));
            }
            let name = match self.peek() {
                Some(quote @ ('"' | '\'')) => self.string(quote)?,
                Some(_) => self.name()?,
                None => return Err("it ends too soon"),
            };
            self.blanks()?;
            if !self.take(':') {
                return Err("a colon is missing");
            }
            let value = self.value(depth + 1)?;
            fields.insert(name, value);
            self.blanks()?;
            if !self.take(',') && self.peek() != Some('}') {
                return Err("a comma is missing");
            }
        }
    }

    fn array(&mut self, depth: usize) -> Read<Value> {
        self.next();
        let mut list = Vec::new();
        loop {
            self.blanks()?;
            if self.take(']') {
                return Ok(Value::Array(list));
            }
            list.push(self.value(depth + 1)?);
            self.blanks()?;
            if !self.take(',') && self.peek() != Some(']') {
                return Err("a comma is missing");
            }
        }
    }

    /// A name without quotes.
    fn name(&mut self) -> Read<String> {
        let rest = self.rest();
        let of_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
        let end = rest.find(|c| !of_name(c)).unwrap_or(rest.len());
        let name = rest.get(..end).unwrap_or_default();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err("there is a letter that does not belong there");
        }
        self.at += end;
        Ok(name.to_owned())
    }

    fn string(&mut self, quote: char) -> Read<String> {
        self.next();
        let mut out = String::new();
        loop {
            match self.next() {
                None | Some('\n' | '\r') => return Err("a text does not end"),
                Some('\\') => self.escaped(&mut out)?,
                Some(c) if c == quote => return Ok(out),
                Some(c) => out.push(c),
            }
        }
    }

    fn escaped(&mut self, out: &mut String) -> Read<()> {
        let escaped = self.next().ok_or("a text does not end")?;
        match escaped {
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            '0' => out.push('\0'),
            'x' => out.push(char::from_u32(self.hex(2)?).unwrap_or('\u{fffd}')),
            'u' => out.push(self.unicode()?),
            // A line goes on.
            '\r' => {
                self.take('\n');
            }
            '\n' | '\u{2028}' | '\u{2029}' => {}
            '1'..='9' => return Err("an escape is none"),
            other => out.push(other),
        }
        Ok(())
    }

    fn unicode(&mut self) -> Read<char> {
        const LONE: &str = "half of a pair of escapes stands alone";
        let unit = self.hex(4)?;
        if !(0xd800..0xdc00).contains(&unit) {
            return char::from_u32(unit).ok_or(LONE);
        }
        if !(self.take('\\') && self.take('u')) {
            return Err(LONE);
        }
        let low = self.hex(4)?.checked_sub(0xdc00).filter(|low| *low < 0x400).ok_or(LONE)?;
        char::from_u32(0x10000 + ((unit - 0xd800) << 10) + low).ok_or(LONE)
    }

    fn hex(&mut self, digits: usize) -> Read<u32> {
        let found = self.rest().get(..digits);
        let found = found.filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let value = found.and_then(|text| u32::from_str_radix(text, 16).ok());
        self.at += found.map_or(0, str::len);
        value.ok_or("an escape is none")
    }

    fn number(&mut self) -> Read<Value> {
        const WRONG: &str = "a number is none";
        let minus = self.take('-');
        if !minus {
            self.take('+');
        }
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-')))
            .unwrap_or(rest.len());
        let text = rest.get(..end).unwrap_or_default();
        let sign = if minus { "-" } else { "" };
        let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        let number = match hex {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                let value = i64::from_str_radix(digits, 16).map_err(|_| WRONG)?;
                Some(Number::from(if minus { -value } else { value }))
            }
            Some(_) => None,
            None => decimal(sign, text),
        };
        self.at += end;
        number.map(Value::Number).ok_or(WRONG)
    }
}

/// A number as JSON has it, but for a point at either end.
fn decimal(sign: &str, text: &str) -> Option<Number> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, format!("e{exponent}")),
        None => (text, String::new()),
    };
    let whole = match mantissa.split_once('.') {
        Some(("", "")) => return None,
        Some((before, after)) => {
            let zero = |part: &str| if part.is_empty() { "0".to_owned() } else { part.to_owned() };
            format!("{}.{}", zero(before), zero(after))
        }
        None => mantissa.to_owned(),
    };
    serde_json::from_str(&format!("{sign}{whole}{exponent}")).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn json5_is_read_as_people_write_it() {
        let text = "// a patch\n{ log: { 'level': \"debug\", /* so */ }, $n_1: [1, -2.5, +0x1F, .5, 5., 1e3,],\n\
                    \"a\\u00e9\\ud83d\\ude00\\x41\\\nb\\'\": null, t: true, f: false, s: 'it\\'s \"so\"', }\n";
        let expected = json!({
            "log": {"level": "debug"},
            "$n_1": [1, -2.5, 31, 0.5, 5.0, 1000.0],
            "aé😀Ab'": null,
            "t": true,
            "f": false,
            "s": "it's \"so\"",
        });
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn what_is_none_is_refused_with_its_place() {
        for (text, why) in [
            ("", "ends too soon at line 1 column 1"),
            ("{a:1}\n\n x", "something follows the value at line 3 column 2"),
            ("{a 1}", "a colon is missing"),
            ("[1 2]", "a comma is missing"),
            ("{a:1 b:2}", "a comma is missing"),
            ("'a", "does not end"),
            ("'a\nb'", "does not end"),
            ("/* a", "comment does not end"),
            ("NaN", "no such word"),
            ("-Infinity", "a number is none"),
            ("01", "a number is none"),
            (".", "a number is none"),
            ("0xg", "a number is none"),
            ("1e999", "a number is none"),
            ("'\\ud800'", "stands alone"),
            ("'\\u12'", "an escape is none"),
            ("{,}", "does not belong there"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(parse(&"[".repeat(100_000)).unwrap_err().contains("nested too deeply"));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_json_is_read_as_itself(text in "[\\[\\]{}:,a1\"'\\\\/*ux0.e+ \n-]{0,40}") {
            let found = parse(&text);
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                prop_assert_eq!(found, Ok(value));
            }
        }
    }
}
