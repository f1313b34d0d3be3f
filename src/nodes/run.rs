//! One run: an answer on its way, heard event by event. A pure state machine: bytes and time in,
//! what is to be told out.
//!
//! Deltas are collected for a moment, so that a model that says a word each millisecond does not
//! become a frame each millisecond for everybody who listens.

use std::time::{Duration, Instant};

use crate::base::error::{Error, Kind};
use crate::llm::Usage;
use crate::llm::listen::{Failure, Heard, Listener};

/// How long deltas are collected.
pub const COLLECT: Duration = Duration::from_millis(75);

/// From so many bytes on they are told at once.
pub const COLLECT_BYTES: usize = 4 * 1024;

/// Longest answer, in bytes. Past it the run ends with an error.
pub const TEXT_BYTES_MAX: usize = 1024 * 1024;

/// Most bytes of thinking that are kept; more is left out.
pub const THINKING_BYTES_MAX: usize = 256 * 1024;

/// Most bytes of a refusal's body.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Up to here the whole text goes with each event of the older form; from here on only when it has
/// grown by an eighth, so that all of them together are no more than some times the text.
const WHOLE_BYTES: usize = 16 * 1024;

/// Why a run failed, in the protocol's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the protocol's words")]
pub enum ErrorKind {
    Timeout,
    RateLimit,
    ContextLength,
    Unknown,
}

impl ErrorKind {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Timeout => "timeout",
            ErrorKind::RateLimit => "rate_limit",
            ErrorKind::ContextLength => "context_length",
            ErrorKind::Unknown => "unknown",
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Well.
    Final,
    /// By somebody's order.
    Aborted {
        /// Whose: `rpc`, `stop`, `reset`, `interrupt`.
        reason: &'static str,
    },
    /// It failed; what came until then is no answer.
    Failed {
        /// Why.
        message: String,
        /// The same in one word.
        kind: ErrorKind,
        /// The HTTP status of an answer that was none.
        status: Option<u16>,
    },
}

impl Ended {
    fn failed(failure: Failure, status: Option<u16>) -> Self {
        let Failure { mut message, code } = failure;
        let kind = match (status, &*code) {
            (Some(429), _) | (_, "rate_limited" | "upstream_rate_limited") => ErrorKind::RateLimit,
            (Some(408 | 504), _) => ErrorKind::Timeout,
            (_, code) if code.contains("timeout") => ErrorKind::Timeout,
            _ if speaks_of_context(&message) => ErrorKind::ContextLength,
            _ => ErrorKind::Unknown,
        };
        if message.is_empty() {
            message = status.map_or("the run failed".to_owned(), |s| format!("status {s}"));
        }
        Ended::Failed { message, kind, status }
    }

    /// An error of ours.
    pub fn by(error: &Error) -> Self {
        let row = error.row();
        let code = row.code.to_owned();
        Ended::failed(Failure { message: error.context().to_owned(), code }, Some(row.status))
    }

    /// It took too long.
    pub fn late(limit: Duration) -> Self {
        let message = format!("the run took longer than {} s", limit.as_secs_f64());
        Ended::Failed { message, kind: ErrorKind::Timeout, status: None }
    }
}

fn speaks_of_context(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("context length")
        || message.contains("context window")
        || message.contains("maximum context")
}

/// What is new since it was told last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Of the answer.
    pub text: String,
    /// Of the thinking.
    pub thinking: String,
    /// The whole text is to be told to those who do not add up themselves.
    pub whole: bool,
    /// Where the text ended when the whole was told last.
    pub since_whole: usize,
}

/// A run under way.
#[derive(Debug, Default)]
pub struct Run {
    listener: Listener,
    status: Option<u16>,
    refusal: Vec<u8>,
    /// The answer so far.
    pub text: String,
    /// The thinking so far.
    pub thinking: String,
    /// Tokens, once they are told.
    pub usage: Option<Usage>,
    /// Why the model stopped.
    pub finish: Option<String>,
    told: usize,
    told_thinking: usize,
    told_whole: usize,
    told_at: Option<Instant>,
    pending_since: Option<Instant>,
    heard: Vec<Heard>,
}

impl Run {
    /// Takes what came of an answer with this status; says when it is over.
    pub fn feed(&mut self, status: u16, bytes: &[u8], now: Instant) -> Option<Ended> {
        self.status = Some(status);
        if status != 200 {
            let room = REFUSAL_BYTES_MAX.saturating_sub(self.refusal.len());
            self.refusal.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return None;
        }
        let mut heard = std::mem::take(&mut self.heard);
        let fed = self.listener.feed(bytes, &mut heard);
        let mut ended = None;
        for heard in heard.drain(..) {
            ended = ended.or_else(|| self.heard(heard));
        }
        self.heard = heard;
        if self.told < self.text.len() || self.told_thinking < self.thinking.len() {
            self.pending_since.get_or_insert(now);
        }
        match fed {
            Err(fault) if ended.is_none() => Some(Ended::Failed {
                message: format!("the gateway's own answer cannot be read: {fault}"),
                kind: ErrorKind::Unknown,
                status: None,
            }),
            _ => ended,
        }
    }

    fn heard(&mut self, heard: Heard) -> Option<Ended> {
        match heard {
            Heard::Text(text) => {
                if self.text.len() + text.len() > TEXT_BYTES_MAX {
                    let message = format!("the answer is longer than {TEXT_BYTES_MAX} bytes");
                    let kind = ErrorKind::Unknown;
                    return Some(Ended::Failed { message, kind, status: None });
                }
                self.text.push_str(&text);
            }
            Heard::Thinking(text) => {
                if self.thinking.len() + text.len() <= THINKING_BYTES_MAX {
                    self.thinking.push_str(&text);
                }
            }
            Heard::Usage(usage) => self.usage = Some(usage),
            Heard::Finish(finish) => self.finish = Some(finish),
            Heard::Failed(failure) => return Some(Ended::failed(failure, None)),
            Heard::Done => return Some(Ended::Final),
        }
        None
    }

    /// The connection has come to its end, well or not. An answer that was not told to be over is
    /// none.
    pub fn closed(&mut self, cut: Option<&Error>) -> Ended {
        match (self.status, cut) {
            (Some(status), None) if status != 200 => {
                Ended::failed(Failure::of(&self.refusal), Some(status))
            }
            (_, Some(error)) => Ended::by(error),
            (_, None) => {
                let context = "the answer ended without its terminator";
                Ended::by(&Error::new(Kind::UpstreamCut, context))
            }
        }
    }

    /// When something is to be told; none while there is nothing new.
    pub fn due(&self) -> Option<Instant> {
        let since = self.pending_since?;
        if self.text.len() - self.told >= COLLECT_BYTES {
            return Some(since);
        }
        // The first words at once.
        Some(self.told_at.map_or(since, |told| (told + COLLECT).max(since)))
    }

    /// What is to be told now.
    pub fn tell(&mut self, now: Instant) -> Delta {
        let delta = Delta {
            text: self.text[self.told..].to_owned(),
            thinking: self.thinking[self.told_thinking..].to_owned(),
            whole: self.text.len() <= WHOLE_BYTES
                || self.text.len() - self.told_whole >= self.text.len() / 8,
            since_whole: self.told_whole,
        };
        if delta.whole {
            self.told_whole = self.text.len();
        }
        (self.told, self.told_thinking) = (self.text.len(), self.thinking.len());
        (self.told_at, self.pending_since) = (Some(now), None);
        delta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    fn text(said: &str) -> String {
        let delta = serde_json::json!({"choices": [{"index": 0, "delta": {"content": said}}]});
        format!("data: {delta}\n\n")
    }

    const DONE: &str = "data: [DONE]\n\n";

    #[test]
    fn the_first_words_go_out_at_once_and_others_are_collected() {
        let (mut run, start) = (Run::default(), clock::now());
        assert_eq!(run.due(), None);
        assert_eq!(run.feed(200, text("a").as_bytes(), start), None);
        assert_eq!(run.due(), Some(start));
        let first = Delta { text: "a".to_owned(), whole: true, ..Delta::default() };
        assert_eq!(run.tell(start), first);
        assert_eq!(run.due(), None);
        let later = start + Duration::from_millis(10);
        for word in ["b", "c"] {
            run.feed(200, text(word).as_bytes(), later);
        }
        assert_eq!(run.due(), Some(start + COLLECT));
        assert_eq!(run.tell(start + COLLECT).text, "bc");
        run.feed(200, text(&"x".repeat(COLLECT_BYTES)).as_bytes(), start + COLLECT);
        assert_eq!(run.due(), Some(start + COLLECT), "much goes out at once");
        // After a pause as well.
        run.tell(start + COLLECT);
        let late = start + Duration::from_secs(9);
        run.feed(200, text("y").as_bytes(), late);
        assert_eq!(run.due(), Some(late));
        assert_eq!(run.feed(200, DONE.as_bytes(), late), Some(Ended::Final));
    }

    #[test]
    fn the_whole_text_is_told_so_seldom_that_it_adds_up_to_some_times_itself() {
        let (mut run, now) = (Run::default(), clock::now());
        let mut whole = 0;
        for _ in 0..10_000 {
            run.feed(200, text("0123456789abcdef0123456789abcdef").as_bytes(), now);
            if run.tell(now).whole {
                whole += run.text.len();
            }
        }
        assert!(whole < 20 * run.text.len() + WHOLE_BYTES * 512, "{whole}");
        assert!(run.told_whole * 9 / 8 + 64 >= run.text.len());
    }

    #[test]
    fn what_breaks_is_never_a_good_end() {
        let now = clock::now();
        let failed = |ended: Ended| match ended {
            Ended::Failed { message, kind, status } => (message, kind, status),
            other => panic!("{other:?}"),
        };
        let mut run = Run::default();
        run.feed(200, text("half").as_bytes(), now);
        let (message, kind, _) = failed(run.closed(None));
        assert_eq!(
            (&*message, kind),
            ("the answer ended without its terminator", ErrorKind::Unknown)
        );
        let cut = Error::new(Kind::UpstreamCut, "broke off");
        assert_eq!(failed(run.closed(Some(&cut))).0, "broke off");

        let mut run = Run::default();
        let body =
            br#"{"error":{"message":"slow down","type":"rate_limit_error","code":"rate_limited"}}"#;
        assert_eq!(run.feed(429, body, now), None);
        let expected = ("slow down".to_owned(), ErrorKind::RateLimit, Some(429));
        assert_eq!(failed(run.closed(None)), expected);

        let mut run = Run::default();
        let in_band =
            "data: {\"error\":{\"message\":\"maximum context length\",\"code\":null}}\n\n";
        let ended = run.feed(200, in_band.as_bytes(), now).unwrap();
        assert_eq!(failed(ended).1, ErrorKind::ContextLength);
        assert_eq!(failed(Ended::late(Duration::from_secs(2))).1, ErrorKind::Timeout);
        let ended = Run::default().feed(200, b"data: [1]\n\n", now).unwrap();
        assert!(failed(ended).0.contains("cannot be read"));
    }

    #[test]
    fn an_answer_has_a_bound_and_thinking_too() {
        let (mut run, now) = (Run::default(), clock::now());
        let piece = text(&"x".repeat(64 * 1024));
        let ended = (0..17).find_map(|_| run.feed(200, piece.as_bytes(), now));
        assert!(matches!(ended, Some(Ended::Failed { .. })), "{ended:?}");
        assert!(run.text.len() <= TEXT_BYTES_MAX);
        let mut run = Run::default();
        for _ in 0..6 {
            run.heard(Heard::Thinking("x".repeat(64 * 1024)));
        }
        assert_eq!(run.thinking.len(), THINKING_BYTES_MAX);
    }
}
