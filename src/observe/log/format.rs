//! One record as one line. Whatever a value holds, the line stays one line and its fields stay
//! apart: a remote that picks a model name or a path cannot forge another line with it.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::SystemTime;

use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{Level, Record};

use crate::base::time_format::push_rfc3339;
use crate::config::settings::LogFormat;

/// Most bytes of one value, before escaping. Past it the value is cut and ends with `…`.
pub const VALUE_BYTES_MAX: usize = 2 * 1024;
/// Once a line has this many bytes, further fields are left out and `cut=true` says so. An access
/// line of a request that went down a chain of eight takes about 1 KiB.
pub const LINE_BYTES_MAX: usize = 8 * 1024;
/// A new line's buffer, in bytes: an ordinary access line fits without growing it.
const LINE_BYTES_EXPECTED: usize = 384;

/// The names that every line begins with in JSON; a field of that name gets `_` behind it.
const RESERVED: [&str; 3] = ["time", "level", "event"];

/// Writes a record as a line, with its newline.
pub fn line(format: LogFormat, time: SystemTime, record: &Record<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(LINE_BYTES_EXPECTED);
    begin(&mut out, format, time, record.level());
    match record.args().as_str() {
        Some(event) => text(&mut out, format, format_args!("{event}")),
        None => text(&mut out, format, *record.args()),
    }
    let mut fields = Fields { out: &mut out, format };
    if record.key_values().visit(&mut fields).is_err() {
        fields.put("cut", &Value::from(true));
    }
    end(&mut out, format);
    out
}

/// Time and level, up to where the event is to stand.
fn begin(out: &mut Vec<u8>, format: LogFormat, time: SystemTime, level: Level) {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    match format {
        LogFormat::Text => {
            push_rfc3339(out, time, 3);
            out.push(b' ');
            out.extend_from_slice(level.as_bytes());
            out.push(b' ');
        }
        LogFormat::Json => {
            out.extend_from_slice(b"{\"time\":\"");
            push_rfc3339(out, time, 3);
            out.extend_from_slice(b"\",\"level\":\"");
            out.extend_from_slice(level.as_bytes());
            out.extend_from_slice(b"\",\"event\":");
        }
    }
}

fn end(out: &mut Vec<u8>, format: LogFormat) {
    if format == LogFormat::Json {
        out.push(b'}');
    }
    out.push(b'\n');
}

/// Writes text as a value: in quotes where they are needed, always in JSON.
fn text(out: &mut Vec<u8>, format: LogFormat, value: fmt::Arguments<'_>) {
    let start = out.len();
    if format == LogFormat::Json {
        out.push(b'"');
    }
    let mut escaped = Escaped { out, room: VALUE_BYTES_MAX };
    // `Escaped` never fails, so this is a `Display` that did: what it wrote so far stays.
    let _ = escaped.write_fmt(value);
    if format == LogFormat::Json {
        out.push(b'"');
    } else if !bare(&out[start..]) {
        out.insert(start, b'"');
        out.push(b'"');
    }
}

/// Whether a value reads as one word without quotes.
fn bare(value: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'=');
    !value.is_empty() && value.iter().all(plain)
}

/// Whether a character must not reach a terminal or a line reader as it is: controls, line and
/// paragraph separators, and marks that change the direction of the text around them.
fn hostile(c: char) -> bool {
    matches!(c, '"' | '\\')
        || c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Escapes what it is given as JSON strings are, and cuts it after `room` bytes.
struct Escaped<'a> {
    out: &'a mut Vec<u8>,
    room: usize,
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.room == 0 {
            return Ok(());
        }
        let mut text = text;
        if text.len() > self.room {
            let end = (0..=self.room).rev().find(|at| text.is_char_boundary(*at));
            text = &text[..end.unwrap_or(0)];
            self.room = 0;
        } else {
            self.room -= text.len();
        }
        let mut rest = 0;
        for (at, c) in text.char_indices().filter(|(_, c)| hostile(*c)) {
            self.out.extend_from_slice(&text.as_bytes()[rest..at]);
            rest = at + c.len_utf8();
            match c {
                '"' => self.out.extend_from_slice(b"\\\""),
                '\\' => self.out.extend_from_slice(b"\\\\"),
                '\n' => self.out.extend_from_slice(b"\\n"),
                '\r' => self.out.extend_from_slice(b"\\r"),
                '\t' => self.out.extend_from_slice(b"\\t"),
                // All of the others are in the basic plane: four digits are enough.
                _ => write!(self.out, "\\u{:04x}", u32::from(c)).map_err(|_| fmt::Error)?,
            }
        }
        self.out.extend_from_slice(&text.as_bytes()[rest..]);
        if self.room == 0 {
            self.out.extend_from_slice("…".as_bytes());
        }
        Ok(())
    }
}

/// Writes the fields of a record.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    format: LogFormat,
}

impl Fields<'_> {
    fn put(&mut self, key: &str, value: &Value<'_>) {
        match self.format {
            LogFormat::Text => {
                self.out.push(b' ');
                let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
                self.out.extend(key.bytes().map(|b| if word(b) { b } else { b'_' }));
                self.out.push(b'=');
            }
            LogFormat::Json => {
                self.out.push(b',');
                let mark = if RESERVED.contains(&key) { "_" } else { "" };
                text(self.out, self.format, format_args!("{key}{mark}"));
                self.out.push(b':');
            }
        }
        let _ = value.visit(OneValue { out: self.out, format: self.format });
    }
}

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        if self.out.len() > LINE_BYTES_MAX {
            return Err(kv::Error::msg("cut"));
        }
        self.put(key.as_str(), &value);
        Ok(())
    }
}

/// Writes one value: numbers and truth values as they are, everything else as text.
struct OneValue<'a> {
    out: &'a mut Vec<u8>,
    format: LogFormat,
}

impl OneValue<'_> {
    fn plain(&mut self, value: impl fmt::Display) -> Result<(), kv::Error> {
        // Writing to a vector does not fail.
        let _ = write!(self.out, "{value}");
        Ok(())
    }
}

impl<'v> VisitValue<'v> for OneValue<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        text(self.out, self.format, format_args!("{value}"));
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.plain("null")
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.plain(value)
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.plain(value)
    }

    fn visit_u128(&mut self, value: u128) -> Result<(), kv::Error> {
        self.plain(value)
    }

    fn visit_i128(&mut self, value: i128) -> Result<(), kv::Error> {
        self.plain(value)
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        // JSON has no infinity and no "not a number".
        if value.is_finite() { self.plain(value) } else { self.visit_null() }
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.plain(value)
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        text(self.out, self.format, format_args!("{value}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn write(format: LogFormat, event: &str, fields: &[(&str, Value<'_>)]) -> String {
        let time = UNIX_EPOCH + Duration::from_millis(1_795_344_412_123);
        let args = format_args!("{event}");
        let record = Record::builder().level(Level::Info).args(args).key_values(&fields).build();
        String::from_utf8(line(format, time, &record)).unwrap()
    }

    fn check(fields: &[(&str, Value<'_>)], expected_text: &str, expected_json: &str) {
        let text = write(LogFormat::Text, "event", fields);
        assert_eq!(text, format!("2026-11-22T10:46:52.123Z info event{expected_text}\n"));
        let json = write(LogFormat::Json, "event", fields);
        let head = r#"{"time":"2026-11-22T10:46:52.123Z","level":"info","event":"event""#;
        assert_eq!(json, format!("{head}{expected_json}}}\n"));
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
    }

    #[test]
    fn values_are_quoted_only_when_they_need_it() {
        check(&[], "", "");
        check(&[("a", Value::from("b/c:d"))], " a=b/c:d", r#","a":"b/c:d""#);
        check(&[("a", Value::from("b c"))], " a=\"b c\"", r#","a":"b c""#);
        check(&[("a", Value::from(""))], " a=\"\"", r#","a":"""#);
        check(&[("a", Value::from("b=c"))], " a=\"b=c\"", r#","a":"b=c""#);
        check(&[("a", Value::from("é"))], " a=\"é\"", r#","a":"é""#);
        check(
            &[("n", Value::from(7_u64)), ("t", Value::from(true)), ("f", Value::from(0.5))],
            " n=7 t=true f=0.5",
            r#","n":7,"t":true,"f":0.5"#,
        );
        check(&[("f", Value::from(f64::NAN))], " f=null", r#","f":null"#);
    }

    #[test]
    fn a_value_cannot_forge_a_line_or_a_field() {
        let forged =
            "x\n2026-11-22T10:46:52.124Z error fire key=\"stolen\"\r\u{1b}[2J\u{85}\u{202e}";
        let escaped =
            "x\\n2026-11-22T10:46:52.124Z error fire key=\\\"stolen\\\"\\r\\u001b[2J\\u0085\\u202e";
        check(
            &[("model", Value::from(forged))],
            &format!(" model=\"{escaped}\""),
            &format!(",\"model\":\"{escaped}\""),
        );
        check(&[("a\nb", Value::from(1))], " a_b=1", r#","a\nb":1"#);
        check(&[("time", Value::from(1))], " time=1", r#","time_":1"#);
        let event = write(LogFormat::Text, "two\nlines", &[]);
        assert!(event.ends_with(" info \"two\\nlines\"\n"), "{event}");
    }

    #[test]
    fn long_values_and_long_lines_are_cut_and_say_so() {
        let exact = "a".repeat(VALUE_BYTES_MAX - 1);
        assert!(!write(LogFormat::Text, "event", &[("a", Value::from(&*exact))]).contains('…'));
        let long = "é".repeat(VALUE_BYTES_MAX);
        let line = write(LogFormat::Text, "event", &[("a", Value::from(&*long))]);
        assert!(line.ends_with("é…\"\n"), "{line}");
        assert!(line.len() < VALUE_BYTES_MAX + 60);
        let many: Vec<_> = (0..1000).map(|_| ("key", Value::from(&*exact))).collect();
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = write(format, "event", &many);
            assert!(line.len() < LINE_BYTES_MAX + VALUE_BYTES_MAX + 100, "{}", line.len());
            assert!(line.contains("cut"), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_a_json_line(value in ".{0,200}", key in "[a-z]{1,8}x") {
            let line = write(LogFormat::Json, &value, &[(&*key, Value::from(&*value))]);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert!(!line.trim_end().chars().any(char::is_control));
            let read: serde_json::Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(read[&key].as_str(), Some(&*value));
            prop_assert_eq!(read["event"].as_str(), Some(&*value));
        }

        #[test]
        fn any_text_stays_within_its_field_of_a_text_line(value in "\\PC{0,50}|[\\x00-\\x7f]{0,50}") {
            let line = write(LogFormat::Text, "event", &[("a", Value::from(&*value)), ("z", Value::from(1))]);
            prop_assert_eq!(line.matches('\n').count(), 1);
            let field = line.split_once(" event a=").unwrap().1.strip_suffix(" z=1\n").unwrap();
            let quoted = if field.starts_with('"') { field.to_owned() } else { format!("\"{field}\"") };
            let read: String = serde_json::from_str(&quoted).unwrap();
            prop_assert_eq!(read, value);
        }
    }
}
