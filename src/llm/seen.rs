//! One pass over what an upstream sent: an event of a stream or a whole answer, of either dialect.
//!
//! The members that matter are remembered as slices of the text, still in JSON, so that a
//! translation can copy them as they are; everything else is only checked.

use std::ops::Range;

use super::ask::clip;
use super::json::{self, Scan, Shape};
use super::{Dialect, Fault, TOKENS_MAX, Usage};

/// What stands in one event or one whole answer. Slices are JSON values.
#[derive(Debug, Default)]
pub(super) struct Seen<'a> {
    /// Where the model's name stands, with its quotes.
    pub model: Option<Range<usize>>,
    /// An error told in it.
    pub error: Option<Fault>,
    /// The tokens that it tells.
    pub usage: Option<Usage>,
    /// How many choices it has (OpenAI).
    pub choices: usize,
    /// Bytes of content: text, thinking, calls, and whatever else is not empty.
    pub weight: u64,
    /// The reason why the answer ended, not empty.
    pub finish: Option<&'a str>,
    /// `done: true` (Ollama).
    pub done: bool,
    /// The content of the first choice.
    pub piece: Piece<'a>,
    /// The vectors: an array of arrays (Ollama), of objects (OpenAI `data`).
    pub vectors: Option<&'a str>,
    /// The one vector of Ollama's older form.
    pub vector: Option<&'a str>,
    /// It has the member that makes it an answer of its kind.
    pub answers: bool,
}

/// Content, as JSON values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Text: a string, not empty.
    pub text: Option<&'a str>,
    /// Text in parts: an array, not empty.
    pub parts: Option<&'a str>,
    /// Thinking: a string, not empty.
    pub thinking: Option<&'a str>,
    /// A refusal: a string, not empty.
    pub refusal: Option<&'a str>,
    /// Calls of tools: an array, not empty.
    pub calls: Option<&'a str>,
    /// Log probabilities: the array that both dialects have.
    pub logprobs: Option<&'a str>,
}

/// Looks at one event or answer.
///
/// # Errors
/// [`Fault::Malformed`] for what is not a JSON object, or has a member that matters twice or with
/// the wrong type.
pub(super) fn look(dialect: Dialect, text: &str) -> Result<Seen<'_>, Fault> {
    let mut scan = Scan::new(text);
    if scan.peek()? != Shape::Object {
        let found = scan.peek()?.with_article();
        return Err(Fault::Malformed(format!("expected a JSON object, found {found}")));
    }
    let mut look = Look { once: 0, object_error: false, message: None, code: None };
    let mut seen = Seen::default();
    scan.members(|scan, name| match dialect {
        Dialect::OpenAi => look.openai(scan, &name, &mut seen),
        Dialect::Ollama => look.ollama(scan, &name, &mut seen),
    })?;
    scan.finish()?;
    if look.object_error && seen.error.is_none() {
        // vLLM's older form, which client libraries do not notice.
        let message =
            look.message.map_or_else(String::new, |inside| json::unescaped(inside).into());
        seen.error = Some(in_band(&message, look.code));
    }
    Ok(seen)
}

/// State of one pass that is not part of its result.
struct Look<'a> {
    /// Members that were met, a bit for each: a second one would be read differently by different
    /// clients.
    once: u32,
    object_error: bool,
    message: Option<&'a str>,
    code: Option<u16>,
}

impl<'a> Look<'a> {
    fn once(&mut self, bit: u32, name: &str) -> Result<(), Fault> {
        if self.once & 1 << bit != 0 {
            return Err(Fault::Malformed(format!("{name:?} is given twice")));
        }
        self.once |= 1 << bit;
        Ok(())
    }

    fn openai(
        &mut self,
        scan: &mut Scan<'a>,
        name: &str,
        seen: &mut Seen<'a>,
    ) -> Result<(), Fault> {
        match name {
            "choices" => {
                self.once(0, name)?;
                if scan.peek()? == Shape::Null {
                    scan.pass()?;
                    return Ok(());
                }
                scan.items(|scan, index| {
                    seen.choices += 1;
                    choice(scan, index == 0, seen)
                })?;
                Ok(())
            }
            "model" => {
                self.once(1, name)?;
                model(scan, seen)
            }
            "usage" => {
                self.once(2, name)?;
                usage(scan, seen)
            }
            "error" => {
                self.once(3, name)?;
                error(scan, seen)
            }
            "object" => {
                self.object_error = string(scan)? == Some("error");
                Ok(())
            }
            "message" => {
                self.message = string(scan)?;
                Ok(())
            }
            "code" => {
                self.code = status(scan)?;
                Ok(())
            }
            "data" => {
                self.once(4, name)?;
                seen.vectors = non_empty(scan)?;
                seen.answers = seen.vectors.is_some();
                Ok(())
            }
            _ => Ok(scan.pass()?),
        }
    }

    fn ollama(
        &mut self,
        scan: &mut Scan<'a>,
        name: &str,
        seen: &mut Seen<'a>,
    ) -> Result<(), Fault> {
        match name {
            "message" => {
                self.once(0, name)?;
                if scan.peek()? == Shape::Null {
                    scan.pass()?;
                    return Ok(());
                }
                seen.answers = true;
                content(scan, true, seen)
            }
            "model" => {
                self.once(1, name)?;
                model(scan, seen)
            }
            "error" => {
                self.once(3, name)?;
                error(scan, seen)
            }
            "response" => {
                self.once(4, name)?;
                let text = weigh(scan, seen)?;
                seen.answers = true;
                seen.piece.text = text.filter(|text| text.starts_with('"'));
                Ok(())
            }
            "thinking" => {
                self.once(5, name)?;
                let text = weigh(scan, seen)?;
                seen.piece.thinking = text.filter(|text| text.starts_with('"'));
                Ok(())
            }
            // Pictures, of models that make them.
            "image" => weigh(scan, seen).map(drop),
            "tool_calls" => {
                self.once(6, name)?;
                let calls = weigh(scan, seen)?;
                seen.piece.calls = calls.filter(|calls| calls.starts_with('['));
                Ok(())
            }
            "logprobs" => {
                self.once(7, name)?;
                seen.piece.logprobs = non_empty(scan)?.filter(|list| list.starts_with('['));
                Ok(())
            }
            "done" => {
                self.once(8, name)?;
                seen.done = match scan.peek()? {
                    Shape::Bool => scan.boolean()?,
                    Shape::Null => {
                        scan.pass()?;
                        false
                    }
                    other => {
                        let found = other.with_article();
                        return Err(Fault::Malformed(format!("\"done\" is {found}")));
                    }
                };
                Ok(())
            }
            "done_reason" => {
                self.once(9, name)?;
                seen.finish = non_empty(scan)?.filter(|text| text.starts_with('"'));
                Ok(())
            }
            "prompt_eval_count" => {
                self.once(10, name)?;
                if let Some(count) = tokens(scan)? {
                    seen.usage.get_or_insert_default().input = count;
                }
                Ok(())
            }
            "eval_count" => {
                self.once(11, name)?;
                if let Some(count) = tokens(scan)? {
                    seen.usage.get_or_insert_default().output = count;
                }
                Ok(())
            }
            "embeddings" => {
                self.once(12, name)?;
                // Empty for an empty input, and an answer all the same.
                seen.answers = scan.peek()? == Shape::Array;
                let span = scan.skip()?;
                seen.vectors = Some(scan.slice(&span)).filter(|_| seen.answers);
                Ok(())
            }
            "embedding" => {
                self.once(13, name)?;
                seen.answers = scan.peek()? == Shape::Array;
                let span = scan.skip()?;
                seen.vector = Some(scan.slice(&span)).filter(|_| seen.answers);
                Ok(())
            }
            _ => Ok(scan.pass()?),
        }
    }
}

/// One choice of an OpenAI answer or chunk.
fn choice<'a>(scan: &mut Scan<'a>, first: bool, seen: &mut Seen<'a>) -> Result<(), Fault> {
    if scan.peek()? != Shape::Object {
        let found = scan.peek()?.with_article();
        return Err(Fault::Malformed(format!("a choice is {found}")));
    }
    scan.members(|scan, name| match &*name {
        "delta" | "message" => {
            if scan.peek()? == Shape::Null {
                scan.pass()?;
                return Ok(());
            }
            seen.answers = true;
            content(scan, first, seen)
        }
        "text" => {
            seen.answers |= scan.peek()? == Shape::String;
            let text = weigh(scan, seen)?;
            if first {
                seen.piece.text = text.filter(|text| text.starts_with('"'));
            }
            Ok(())
        }
        "finish_reason" => {
            let reason = non_empty(scan)?.filter(|text| text.starts_with('"'));
            if reason == Some("\"error\"") && seen.error.is_none() {
                seen.error = Some(in_band("the upstream ended the answer with an error", None));
            }
            if reason.is_some() {
                seen.finish = reason;
            }
            Ok(())
        }
        "logprobs" if first && scan.peek()? == Shape::Object => scan.members(|scan, name| {
            if name == "content" {
                seen.piece.logprobs = non_empty(scan)?.filter(|list| list.starts_with('['));
            } else {
                scan.pass()?;
            }
            Ok(())
        }),
        _ => Ok(scan.pass()?),
    })
}

/// A message, or a piece of one.
fn content<'a>(scan: &mut Scan<'a>, first: bool, seen: &mut Seen<'a>) -> Result<(), Fault> {
    if scan.peek()? != Shape::Object {
        let found = scan.peek()?.with_article();
        return Err(Fault::Malformed(format!("a message is {found}")));
    }
    scan.members(|scan, name| {
        if name == "role" {
            scan.pass()?;
            return Ok(());
        }
        let Some(value) = weigh(scan, seen)?.filter(|_| first) else { return Ok(()) };
        let piece = &mut seen.piece;
        match (&*name, value.as_bytes().first()) {
            ("content", Some(b'"')) => piece.text = Some(value),
            ("content", Some(b'[')) => piece.parts = Some(value),
            // Some servers send the same thinking under several names.
            ("reasoning_content" | "reasoning" | "thinking", Some(b'"')) => {
                piece.thinking = piece.thinking.or(Some(value));
            }
            ("refusal", Some(b'"')) => piece.refusal = Some(value),
            ("tool_calls", Some(b'[')) => piece.calls = Some(value),
            _ => {}
        }
        Ok(())
    })
}

/// Passes over a value of a message; when it is not empty its bytes count as content and it is
/// given.
fn weigh<'a>(scan: &mut Scan<'a>, seen: &mut Seen<'a>) -> Result<Option<&'a str>, Fault> {
    let value = non_empty(scan)?;
    seen.weight += value.map_or(0, |value| value.len() as u64 - 2);
    Ok(value)
}

/// Passes over a value and gives it when it is a string, array or object that is not empty.
fn non_empty<'a>(scan: &mut Scan<'a>) -> Result<Option<&'a str>, Fault> {
    let shape = scan.peek()?;
    let span = scan.skip()?;
    let value = scan.slice(&span);
    let inside = value.get(1..value.len() - 1).unwrap_or_default();
    let full = match shape {
        Shape::Null | Shape::Bool | Shape::Number => false,
        Shape::String => !inside.is_empty(),
        Shape::Array | Shape::Object => !inside.trim_ascii().is_empty(),
    };
    Ok(full.then_some(value))
}

fn model<'a>(scan: &mut Scan<'a>, seen: &mut Seen<'a>) -> Result<(), Fault> {
    let string = scan.peek()? == Shape::String;
    let span = scan.skip()?;
    seen.model = string.then_some(span);
    Ok(())
}

/// The inside of a string; other values are passed over.
fn string<'a>(scan: &mut Scan<'a>) -> Result<Option<&'a str>, Fault> {
    if scan.peek()? == Shape::String {
        return Ok(Some(scan.string()?));
    }
    scan.pass()?;
    Ok(None)
}

/// A number of things; what is not a whole number is passed over.
fn number(scan: &mut Scan<'_>) -> Result<Option<u64>, Fault> {
    let span = scan.skip()?;
    let text = scan.slice(&span);
    #[expect(clippy::cast_possible_truncation, reason = "below 2^53, as JSON's whole numbers are")]
    #[expect(clippy::cast_sign_loss, reason = "not negative")]
    let whole = |number: f64| {
        (0.0..9e15).contains(&number).then_some(number as u64).filter(|_| number.fract() == 0.0)
    };
    Ok(text.parse().ok().or_else(|| text.parse().ok().and_then(whole)))
}

/// A number of tokens; what cannot be one is passed over.
fn tokens(scan: &mut Scan<'_>) -> Result<Option<u64>, Fault> {
    Ok(number(scan)?.filter(|count| *count <= TOKENS_MAX))
}

/// A member that may be an HTTP status, as a number or as a string of digits.
fn status(scan: &mut Scan<'_>) -> Result<Option<u16>, Fault> {
    let span = scan.skip()?;
    let text = scan.slice(&span).trim_matches('"');
    Ok(text.parse().ok().filter(|status| (300..600).contains(status)))
}

fn usage<'a>(scan: &mut Scan<'a>, seen: &mut Seen<'a>) -> Result<(), Fault> {
    if scan.peek()? != Shape::Object {
        scan.pass()?;
        return Ok(());
    }
    let mut usage = Usage::default();
    let mut told = false;
    scan.members::<Fault>(|scan, name| {
        let count = match &*name {
            "prompt_tokens" => &mut usage.input,
            "completion_tokens" => &mut usage.output,
            // OpenAI's place for it, and DeepSeek's.
            "prompt_tokens_details" if scan.peek()? == Shape::Object => {
                return scan.members(|scan, name| {
                    match &*name {
                        "cached_tokens" => usage.cached = tokens(scan)?.unwrap_or(usage.cached),
                        _ => scan.pass()?,
                    }
                    Ok(())
                });
            }
            "prompt_cache_hit_tokens" => {
                usage.cached = tokens(scan)?.unwrap_or(usage.cached);
                return Ok(());
            }
            _ => return Ok(scan.pass()?),
        };
        if let Some(told_count) = tokens(scan)? {
            *count = told_count;
            told = true;
        }
        Ok(())
    })?;
    usage.cached = usage.cached.min(usage.input);
    seen.usage = told.then_some(usage);
    Ok(())
}

/// An `error` member: anything that Python takes for true is one.
fn error<'a>(scan: &mut Scan<'a>, seen: &mut Seen<'a>) -> Result<(), Fault> {
    let (message, code) = match scan.peek()? {
        Shape::Object => {
            let (mut any, mut message, mut code) = (false, "", None);
            scan.members::<Fault>(|scan, name| {
                any = true;
                match &*name {
                    "message" => message = string(scan)?.unwrap_or(message),
                    "code" | "status" | "status_code" => code = code.or(status(scan)?),
                    _ => scan.pass()?,
                }
                Ok(())
            })?;
            if !any {
                return Ok(());
            }
            (message, code)
        }
        Shape::String => match scan.string()? {
            "" => return Ok(()),
            message => (message, None),
        },
        Shape::Array => match non_empty(scan)? {
            None => return Ok(()),
            Some(_) => ("", None),
        },
        Shape::Bool => match scan.boolean()? {
            false => return Ok(()),
            true => ("", None),
        },
        Shape::Null | Shape::Number => {
            let span = scan.skip()?;
            match scan.slice(&span).parse::<f64>() {
                Ok(number) if number != 0.0 => ("", None),
                _ => return Ok(()),
            }
        }
    };
    seen.error = Some(in_band(&json::unescaped(message), code));
    Ok(())
}

/// Longest part of an upstream's own sentence that is passed on, in bytes.
const MESSAGE_BYTES_MAX: usize = 400;

/// An error told inside an answer.
pub(super) fn in_band(message: &str, status: Option<u16>) -> Fault {
    let message = match printable(message, MESSAGE_BYTES_MAX) {
        empty if empty.is_empty() => "the upstream told an error without a reason".to_owned(),
        message => message,
    };
    Fault::InBand { message, status }
}

/// A text on one line, without control characters, at most this many bytes.
pub(super) fn printable(text: &str, bytes_max: usize) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(clip(word, bytes_max + 1));
        if line.len() > bytes_max {
            let kept = clip(&line, bytes_max.saturating_sub('…'.len_utf8())).trim_end().len();
            line.truncate(kept);
            line.push('…');
            break;
        }
    }
    line
}
