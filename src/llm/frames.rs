//! Where one event ends and the next begins, whatever pieces the bytes come in: server-sent events
//! and lines of JSON.

use std::borrow::Cow;
use std::ops::Range;

use super::Fault;

/// Where the search for the end of an event stands, so that no byte is looked at twice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Search {
    /// Start of the line that has not ended.
    line: usize,
    /// Up to here there is no further end of a line.
    at: usize,
}

impl Search {
    /// The start of an event.
    pub fn from(start: usize) -> Self {
        Search { line: start, at: start }
    }

    /// The same place when the first bytes have gone.
    pub fn moved_back(self, bytes: usize) -> Self {
        Search { line: self.line.saturating_sub(bytes), at: self.at.saturating_sub(bytes) }
    }

    /// Finds the end of the event (after its blank line), if it is there. A carriage return in the
    /// last place decides nothing yet: a line feed may follow.
    pub fn sse_end(&mut self, bytes: &[u8]) -> Option<usize> {
        loop {
            let rest = bytes.get(self.at..)?;
            let Some(found) = memchr::memchr2(b'\n', b'\r', rest) else {
                self.at = bytes.len();
                return None;
            };
            let stop = self.at + found;
            let next = match (bytes[stop], bytes.get(stop + 1)) {
                (b'\n', _) => stop + 1,
                (_, Some(b'\n')) => stop + 2,
                (_, Some(_)) => stop + 1,
                (_, None) => {
                    self.at = stop;
                    return None;
                }
            };
            let blank = stop == self.line;
            *self = Search::from(next);
            if blank {
                return Some(next);
            }
        }
    }

    /// Finds the end of the line, if it is there.
    pub fn line_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let rest = bytes.get(self.at..)?;
        let Some(found) = memchr::memchr(b'\n', rest) else {
            self.at = bytes.len();
            return None;
        };
        *self = Search::from(self.at + found + 1);
        Some(self.at)
    }
}

/// One server-sent event, or one line of JSON, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// All its bytes.
    pub raw: &'a str,
    /// Its data. Lines after the first are joined with a blank: between the tokens of JSON that is
    /// what the line feed of the specification is, and inside a string neither may stand.
    pub data: Cow<'a, str>,
    /// Where the data stands in `raw`, when it is one line.
    pub at: Option<usize>,
    /// `event: error`.
    pub error: bool,
    /// It has nothing but comments (and at least one).
    pub comment: bool,
}

impl<'a> Event<'a> {
    /// Takes an event apart as the specification of server-sent events has it.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub fn parse(raw: &'a [u8]) -> Result<Self, Fault> {
        let raw = std::str::from_utf8(raw)
            .map_err(|_| Fault::Malformed("an event is not UTF-8".to_owned()))?;
        let mut event =
            Event { raw, data: Cow::Borrowed(""), at: None, error: false, comment: false };
        let (mut lines, mut others) = (0, false);
        for (start, line) in lines_of(raw) {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let stripped = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "data" => {
                    if lines == 0 {
                        event.at = Some(start + line.len() - stripped.len());
                        event.data = Cow::Borrowed(stripped);
                    } else {
                        event.at = None;
                        let data = event.data.to_mut();
                        data.push(' ');
                        data.push_str(stripped);
                    }
                    lines += 1;
                }
                "" => event.comment |= line.starts_with(':'),
                "event" => {
                    event.error |= stripped == "error";
                    others = true;
                }
                _ => others = true,
            }
        }
        event.comment &= lines == 0 && !others;
        Ok(event)
    }

    /// Takes a line as an event that is nothing but data.
    ///
    /// # Errors
    /// When it is not UTF-8, or has a carriage return before its end: some clients end lines there.
    pub fn line(raw: &'a [u8]) -> Result<Self, Fault> {
        let raw = std::str::from_utf8(raw)
            .map_err(|_| Fault::Malformed("a line is not UTF-8".to_owned()))?;
        let line = raw.strip_suffix('\n').unwrap_or(raw);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if memchr::memchr(b'\r', line.as_bytes()).is_some() {
            return Err(Fault::Malformed("a carriage return inside a line".to_owned()));
        }
        Ok(Event { raw, data: Cow::Borrowed(line), at: Some(0), error: false, comment: false })
    }

    /// Writes the event as it came, but with `model` (a JSON string) where the model's name stands
    /// in its data.
    pub fn forward(&self, model_at: Option<&Range<usize>>, model: &str, out: &mut Vec<u8>) {
        let raw = self.raw.as_bytes();
        let Some(span) = model_at.filter(|span| self.data.get((*span).clone()) != Some(model))
        else {
            out.extend_from_slice(raw);
            return;
        };
        match self.at {
            Some(at) => {
                out.extend_from_slice(&raw[..at + span.start]);
                out.extend_from_slice(model.as_bytes());
                out.extend_from_slice(&raw[at + span.end..]);
            }
            None => {
                let (before, after) = (&self.data[..span.start], &self.data[span.end..]);
                self.write_with_data(&[before, model, after].concat(), out);
            }
        }
    }

    /// Writes the event again with other data.
    fn write_with_data(&self, data: &str, out: &mut Vec<u8>) {
        let mut written = false;
        for (_, line) in lines_of(self.raw) {
            if line == "data" || line.starts_with("data:") {
                if !written {
                    out.extend_from_slice(b"data: ");
                    out.extend_from_slice(data.as_bytes());
                    out.push(b'\n');
                    written = true;
                }
            } else if !line.is_empty() {
                out.extend_from_slice(line.as_bytes());
                out.push(b'\n');
            }
        }
        out.push(b'\n');
    }
}

/// The lines of an event and where they start; they end with CR LF, LF or CR.
fn lines_of(raw: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = raw.get(at..).filter(|rest| !rest.is_empty())?;
        let start = at;
        let stop = memchr::memchr2(b'\n', b'\r', rest.as_bytes()).unwrap_or(rest.len());
        let line = &rest[..stop];
        let end = if rest[stop..].starts_with("\r\n") { 2 } else { 1 };
        at = start + stop + end;
        Some((start, line))
    })
}

/// The mark that some servers put before the first event; the specification drops it.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Vec<&str> {
        let mut search = Search::default();
        let mut start = 0;
        let mut events = Vec::new();
        while let Some(end) = search.sse_end(text.as_bytes()) {
            events.push(&text[start..end]);
            start = end;
        }
        events
    }

    #[test]
    fn an_event_ends_at_a_blank_line_of_any_kind() {
        assert_eq!(events("a\n\nb\n\nc"), ["a\n\n", "b\n\n"]);
        assert_eq!(events("a\r\n\r\nb\r\n"), ["a\r\n\r\n"]);
        assert_eq!(events("a\r\rb\r\r."), ["a\r\r", "b\r\r"]);
        assert_eq!(events("a\n\r\nb\r\n\n"), ["a\n\r\n", "b\r\n\n"]);
        assert_eq!(events("\n\na\n\n"), ["\n", "\n", "a\n\n"]);
        assert_eq!(events("a\r\n\r"), Vec::<&str>::new(), "a line feed may follow");
    }

    #[test]
    fn the_search_goes_on_where_it_stopped() {
        let text = b"data: 1\r\ndata: 2\r\n\r\n";
        let mut search = Search::default();
        for end in 0..text.len() {
            assert_eq!(search.sse_end(&text[..end]), None, "{end}");
        }
        assert_eq!(search.sse_end(text), Some(text.len()));
        let mut search = Search::default();
        assert_eq!(search.line_end(b"ab"), None);
        assert_eq!(search.line_end(b"abc\nd\n"), Some(4));
        assert_eq!(search.line_end(b"abc\nd\n"), Some(6));
    }

    #[test]
    fn fields_are_read_as_the_specification_has_them() {
        let data = |raw: &str| Event::parse(raw.as_bytes()).unwrap().data.into_owned();
        assert_eq!(data("data: x\n\n"), "x");
        assert_eq!(data("data:x\n\n"), "x");
        assert_eq!(data("data:  x\n\n"), " x", "one blank only");
        assert_eq!(data("data\n\n"), "");
        assert_eq!(data("id: 7\nevent: chunk\ndata: x\nretry: 1\n\n"), "x");
        assert_eq!(data("data: {\ndata: }\n\n"), "{ }");
        assert_eq!(data("database: x\n\n"), "");
        assert_eq!(data(": a: b\n\n"), "");
        let event = Event::parse(b"id: 7\r\ndata: x\r\n\r\n").unwrap();
        assert_eq!(event.at, Some(13));
        assert!(!event.comment);
        assert!(Event::parse(b": ping\n\n").unwrap().comment);
        assert!(!Event::parse(b"\n").unwrap().comment);
        assert!(!Event::parse(b": a\nid: 7\n\n").unwrap().comment);
        assert!(Event::parse(b"event: error\ndata: x\n\n").unwrap().error);
        assert!(Event::parse(b"data: \xff\n\n").is_err());
    }
}
