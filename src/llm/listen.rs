//! The other end of a streamed chat: what a client hears of the events that the gateway sends it.
//! For those in the house who are clients themselves.

use serde::Deserialize;

use super::frames::{Event, Search};
use super::seen::{self, Piece};
use super::{Dialect, Fault, Usage, json};

/// Longest event that is taken, in bytes (as `upstream.stream_line_max` is by default).
pub const EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// More of the answer.
    Text(String),
    /// More of what the model thinks.
    Thinking(String),
    /// The tokens that it took.
    Usage(Usage),
    /// Why the answer ended.
    Finish(String),
    /// It failed; nothing else comes.
    Failed(Failure),
    /// It has ended well; nothing else comes.
    Done,
}

/// An error as the gateway tells it on `/v1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The sentence.
    pub message: String,
    /// Its stable code (`tidegate(7)` has them), empty when there is none.
    pub code: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorShape,
}

#[derive(Deserialize)]
struct ErrorShape {
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    code: Option<String>,
}

impl Failure {
    /// From a body that holds one; what is none is told as such.
    pub fn of(body: &[u8]) -> Failure {
        let parsed = std::str::from_utf8(body).ok().and_then(|text| json::read(text).ok());
        match parsed {
            Some(ErrorBody { error }) => Failure {
                message: error.message.unwrap_or_default(),
                code: error.code.unwrap_or_default(),
            },
            None => {
                let message = "the answer is no error of ours".to_owned();
                Failure { message, code: String::new() }
            }
        }
    }
}

/// Listens to one streamed chat (`/v1/chat/completions`).
#[derive(Debug, Default)]
pub struct Listener {
    /// The beginning of an event. At most [`EVENT_BYTES_MAX`], beyond one piece.
    pending: Vec<u8>,
    search: Search,
    over: bool,
}

impl Listener {
    /// Whether the stream has come to an end that was told, good or bad.
    pub fn over(&self) -> bool {
        self.over
    }

    /// Takes bytes, and appends what was heard.
    ///
    /// # Errors
    /// What is no stream of ours.
    pub fn feed(&mut self, bytes: &[u8], heard: &mut Vec<Heard>) -> Result<(), Fault> {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut start = 0;
        while let Some(end) = self.search.sse_end(&pending).filter(|_| !self.over) {
            self.event(&pending[start..end], heard)?;
            start = end;
        }
        if self.over {
            return Ok(());
        }
        self.search = self.search.moved_back(start);
        if pending.len() - start > EVENT_BYTES_MAX {
            return Err(Fault::LineTooLong);
        }
        self.pending = pending;
        self.pending.drain(..start);
        Ok(())
    }

    fn event(&mut self, raw: &[u8], heard: &mut Vec<Heard>) -> Result<(), Fault> {
        let event = Event::parse(raw)?;
        let data = event.data.trim();
        if data.is_empty() {
            return Ok(());
        }
        if data == "[DONE]" {
            self.over = true;
            heard.push(Heard::Done);
            return Ok(());
        }
        let seen = seen::look(Dialect::OpenAi, data)?;
        if seen.error.is_some() {
            self.over = true;
            heard.push(Heard::Failed(Failure::of(data.as_bytes())));
            return Ok(());
        }
        let Piece { text, thinking, refusal, .. } = seen.piece;
        for (said, make) in [
            (thinking, Heard::Thinking as fn(String) -> Heard),
            (text, Heard::Text),
            (refusal, Heard::Text),
            (seen.finish, Heard::Finish),
        ] {
            if let Some(said) = said {
                let said = json::read(said);
                heard.push(make(said.map_err(|error| Fault::Malformed(error.to_string()))?));
            }
        }
        heard.extend(seen.usage.map(Heard::Usage));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        ": keep-alive\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\\n\\u00e9\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n",
        "data: [DONE]\n\nanything",
    );

    fn listen(text: &str, size: usize) -> (Vec<Heard>, bool) {
        let (mut listener, mut heard) = (Listener::default(), Vec::new());
        for piece in text.as_bytes().chunks(size) {
            listener.feed(piece, &mut heard).unwrap();
        }
        (heard, listener.over())
    }

    #[test]
    fn a_stream_is_heard_alike_however_it_is_cut() {
        let usage = Usage { input: 3, output: 2, ..Usage::default() };
        let expected = [
            Heard::Thinking("hm".to_owned()),
            Heard::Text("a\n\u{e9}".to_owned()),
            Heard::Finish("stop".to_owned()),
            Heard::Usage(usage),
            Heard::Done,
        ];
        for size in [1, 7, 64, 10_000] {
            assert_eq!(listen(STREAM, size), (expected.to_vec(), true), "{size}");
        }
    }

    #[test]
    fn an_error_ends_it_and_half_of_an_event_is_nothing() {
        let failed =
            "data: {\"error\":{\"message\":\"no\",\"type\":\"x\",\"code\":\"upstream_cut\"}}\n\n";
        let failure = Failure { message: "no".to_owned(), code: "upstream_cut".to_owned() };
        assert_eq!(listen(failed, 5), (vec![Heard::Failed(failure)], true));
        assert_eq!(listen(&failed[..failed.len() - 1], 5), (vec![], false));
        assert!(Listener::default().feed(b"data: [1]\n\n", &mut Vec::new()).is_err());
        assert_eq!(Failure::of(b"<html>").code, "");
    }

    #[test]
    fn an_event_without_an_end_is_not_kept_for_ever() {
        let (mut listener, mut heard) = (Listener::default(), Vec::new());
        let piece = vec![b'x'; 1 << 20];
        let fed = (0..9).map(|_| listener.feed(&piece, &mut heard)).find(Result::is_err);
        assert_eq!(fed, Some(Err(Fault::LineTooLong)));
    }
}
