//! The one pass over a client's body: what stands where, and whether it is what it should be.

use std::ops::Range;

use crate::base::error::{Error, Result};
use crate::llm::json::{self, Scan, Shape};
use crate::llm::{Dialect, Route};

use super::{Needs, field};

/// Longest model name, in bytes. Longer ones are refused: names stand in logs and metrics. The
/// longest that are in use (a registry, an owner, a name, a quantisation) stay below 200.
pub const MODEL_BYTES_MAX: usize = 512;

/// A member that is an object of which one member matters to us: `stream_options.include_usage`,
/// `options.num_ctx`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Slot {
    /// Not given.
    #[default]
    Absent,
    /// Given as `null`, here.
    Null(Range<usize>),
    /// Given.
    Object {
        /// After its opening brace.
        open: usize,
        /// It has no member at all.
        empty: bool,
        /// Where the value of the member that matters stands.
        value: Option<Range<usize>>,
    },
}

/// What the pass over a body has found so far.
pub(super) struct Found {
    route: Route,
    /// Members that we read and have seen; a second one is refused, since others may take the
    /// first or the last.
    seen: Vec<&'static str>,
    pub model: String,
    pub model_at: Range<usize>,
    pub stream: Option<bool>,
    pub needs: Needs,
    pub stream_options: Slot,
    pub wants_usage: bool,
    pub options: Slot,
    pub num_ctx: Option<u64>,
    pub output_max: Option<u64>,
    pub base64: bool,
    /// More than one answer is asked for, or figures beside it.
    pub several: bool,
    pub prompt_bytes: u64,
}

/// The members that we read, over all routes.
const KNOWN: [&str; 12] = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "options",
    "tools",
    "functions",
    "prompt",
    "system",
    "images",
    "input",
    "encoding_format",
];

impl Found {
    /// Nothing yet.
    pub fn new(route: Route) -> Self {
        Found {
            route,
            seen: Vec::with_capacity(KNOWN.len()),
            model: String::new(),
            model_at: 0..0,
            stream: None,
            needs: Needs::default(),
            stream_options: Slot::Absent,
            wants_usage: false,
            options: Slot::Absent,
            num_ctx: None,
            output_max: None,
            base64: false,
            several: false,
            prompt_bytes: 0,
        }
    }

    /// One member of the body.
    pub fn member(&mut self, scan: &mut Scan<'_>, name: &str) -> Result<()> {
        let Some(known) = KNOWN.into_iter().find(|known| folds_to(name, known)) else {
            match name {
                "max_tokens" | "max_completion_tokens" => self.output_max(scan)?,
                "n" | "best_of" | "logprobs" | "top_logprobs" => {
                    let said = scan.skip()?;
                    let said = scan.slice(&said);
                    // A completion's `logprobs` of 0 asks for those of the tokens themselves.
                    let one = matches!(name, "n" | "best_of") && said == "1";
                    self.several |= !(one || matches!(said, "null" | "false"));
                }
                _ => scan.pass()?,
            }
            return Ok(());
        };
        // What we did not read must not decide there.
        if known != name {
            return Err(field(name, format_args!("is written {known:?}; write it so")));
        }
        if self.seen.contains(&known) {
            return Err(field(known, "is given twice; send it once"));
        }
        self.seen.push(known);
        let openai = self.route.dialect() == Dialect::OpenAi;
        match (known, self.route) {
            ("model", _) => self.model(scan),
            ("stream", route) if !route.embeds() => {
                self.stream = flag(scan, known)?;
                Ok(())
            }
            ("stream_options", _) if openai => self.stream_options(scan),
            ("options", _) if !openai => self.options(scan),
            ("encoding_format", Route::OpenAiEmbeddings) => self.encoding_format(scan),
            ("messages", Route::ChatCompletions | Route::OllamaChat) => self.messages(scan),
            ("tools" | "functions", Route::ChatCompletions | Route::OllamaChat) => {
                self.needs.tools |= list(scan, known)?;
                Ok(())
            }
            ("images", Route::OllamaGenerate) => {
                self.needs.images |= list(scan, known)?;
                Ok(())
            }
            ("prompt", Route::OllamaGenerate | Route::OllamaEmbeddings)
            | ("system", Route::OllamaGenerate) => match scan.peek()? {
                Shape::String | Shape::Null => self.text(scan),
                other => Err(wrong(known, other, "a string")),
            },
            ("prompt", Route::Completions)
            | ("input", Route::OpenAiEmbeddings | Route::OllamaEmbed) => match scan.peek()? {
                Shape::String | Shape::Null | Shape::Array => self.text(scan),
                other => Err(wrong(known, other, "a string, or an array of strings")),
            },
            _ => {
                scan.pass()?;
                Ok(())
            }
        }
    }

    /// Whether what must be there was there.
    pub fn check(&self) -> Result<()> {
        let missing = |name: &'static str| !self.seen.contains(&name);
        if missing("model") {
            return Err(field("model", "is missing; send the name of a model"));
        }
        match self.route {
            Route::ChatCompletions if missing("messages") => {
                Err(field("messages", "is missing; send an array of messages"))
            }
            Route::Completions if missing("prompt") => {
                Err(field("prompt", "is missing; send a string"))
            }
            Route::OpenAiEmbeddings if missing("input") => {
                Err(field("input", "is missing; send a string or an array of strings"))
            }
            // Ollama takes requests without content: they load or unload a model.
            _ => Ok(()),
        }
    }

    fn model(&mut self, scan: &mut Scan<'_>) -> Result<()> {
        match scan.peek()? {
            Shape::String => {}
            other => return Err(wrong("model", other, "the name of a model as a string")),
        }
        let start = scan.at();
        let name = json::unescaped(scan.string()?);
        if name.is_empty() {
            return Err(field("model", "is empty; send the name of a model"));
        }
        if name.len() > MODEL_BYTES_MAX {
            return Err(field(
                "model",
                format_args!("is longer than {MODEL_BYTES_MAX} bytes; send the name of a model"),
            ));
        }
        if name.chars().any(char::is_control) {
            return Err(field("model", "has control characters; send the name of a model"));
        }
        self.model = name.into_owned();
        self.model_at = start..scan.at();
        Ok(())
    }

    fn stream_options(&mut self, scan: &mut Scan<'_>) -> Result<()> {
        let mut wants_usage = None;
        self.stream_options = slot(scan, "stream_options", "include_usage", pass, |scan| {
            wants_usage = flag(scan, "stream_options.include_usage")?;
            Ok(())
        })?;
        self.wants_usage = wants_usage == Some(true);
        Ok(())
    }

    fn options(&mut self, scan: &mut Scan<'_>) -> Result<()> {
        let mut num_ctx = None;
        let mut output_max = None;
        let others = |scan: &mut Scan<'_>, name: &str| match name {
            "num_predict" => {
                output_max = tokens(scan)?;
                Ok(())
            }
            _ => Ok(scan.pass()?),
        };
        self.options = slot(scan, "options", "num_ctx", others, |scan| {
            let shape = scan.peek()?;
            let at = scan.skip()?;
            num_ctx = match shape {
                Shape::Null => None,
                Shape::Number => {
                    let number = scan.slice(&at).parse::<f64>().unwrap_or(-1.0);
                    if !(1.0..=1e12).contains(&number) || number.fract() != 0.0 {
                        return Err(field("options.num_ctx", "send a whole number of tokens"));
                    }
                    #[expect(clippy::cast_possible_truncation, reason = "whole, at most 1e12")]
                    #[expect(clippy::cast_sign_loss, reason = "at least 1")]
                    Some(number as u64)
                }
                other => return Err(wrong("options.num_ctx", other, "a number of tokens")),
            };
            Ok(())
        })?;
        self.num_ctx = num_ctx;
        self.output_max = self.output_max.max(output_max);
        Ok(())
    }

    /// The most tokens that the model may say, for an estimate; what else stands there is the
    /// upstream's to judge.
    fn output_max(&mut self, scan: &mut Scan<'_>) -> Result<()> {
        self.output_max = self.output_max.max(tokens(scan)?);
        Ok(())
    }

    fn encoding_format(&mut self, scan: &mut Scan<'_>) -> Result<()> {
        const SEND: &str = "\"float\" or \"base64\"";
        match scan.peek()? {
            Shape::Null => scan.pass()?,
            Shape::String => match &*json::unescaped(scan.string()?) {
                "base64" => self.base64 = true,
                "float" => {}
                _ => return Err(field("encoding_format", format_args!("send {SEND}"))),
            },
            other => return Err(wrong("encoding_format", other, SEND)),
        }
        Ok(())
    }

    fn messages(&mut self, scan: &mut Scan<'_>) -> Result<()> {
        let openai = self.route == Route::ChatCompletions;
        match scan.peek()? {
            Shape::Array => {}
            Shape::Null if !openai => return Ok(scan.pass()?),
            other => return Err(wrong("messages", other, "an array of messages")),
        }
        let mut any = false;
        scan.items(|scan, index| {
            any = true;
            self.message(scan, index)
        })?;
        if openai && !any {
            return Err(field("messages", "is empty; send at least one message"));
        }
        Ok(())
    }

    fn message(&mut self, scan: &mut Scan<'_>, index: usize) -> Result<()> {
        match scan.peek()? {
            Shape::Object => {}
            other => {
                let name = format!("messages[{index}]");
                return Err(wrong(&name, other, "an object with role and content"));
            }
        }
        let within = |member: &str| format!("messages[{index}].{member}");
        let mut role = false;
        scan.members(|scan, name| {
            match &*name {
                "role" => match scan.peek()? {
                    Shape::String => {
                        role = true;
                        self.needs.tools |= matches!(scan.string()?, "tool" | "function");
                    }
                    other => return Err(wrong(&within("role"), other, "a string")),
                },
                "content" => match scan.peek()? {
                    Shape::String | Shape::Null => self.text(scan)?,
                    Shape::Array if self.route == Route::ChatCompletions => {
                        scan.items(|scan, _| self.part(scan))?;
                    }
                    other => return Err(wrong(&within("content"), other, "a string")),
                },
                "images" => self.needs.images |= list(scan, "images")?,
                "tool_calls" => self.needs.tools |= list(scan, "tool_calls")?,
                _ => scan.pass()?,
            }
            Ok(())
        })?;
        if !role {
            return Err(field(&within("role"), "is missing; send \"user\" or another role"));
        }
        Ok(())
    }

    /// One part of a message's content. What kinds there are is the upstream's to say.
    fn part(&mut self, scan: &mut Scan<'_>) -> Result<()> {
        if scan.peek()? != Shape::Object {
            return self.text(scan);
        }
        scan.members(|scan, name| {
            match (&*name, scan.peek()?) {
                ("type", Shape::String) => {
                    let kind = scan.string()?;
                    self.needs.images |= matches!(kind, "image_url" | "input_image" | "image");
                }
                ("text", Shape::String) => self.text(scan)?,
                _ => scan.pass()?,
            }
            Ok(())
        })
    }

    /// Passes over a value that is part of the prompt, and counts its bytes.
    fn text(&mut self, scan: &mut Scan<'_>) -> Result<()> {
        self.prompt_bytes += scan.skip()?.len() as u64;
        Ok(())
    }
}

/// Whether a server written in Go, as Ollama is, would take `name` for `known`: it compares names
/// after Unicode case folding, and of several the last one wins.
pub(super) fn folds_to(name: &str, known: &str) -> bool {
    if name.is_ascii() {
        return name.eq_ignore_ascii_case(known);
    }
    let fold = |c: char| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    name.chars().map(fold).eq(known.chars())
}

/// Reads an object in which one member matters.
fn slot(
    scan: &mut Scan<'_>,
    outer: &str,
    inner: &str,
    mut others: impl FnMut(&mut Scan<'_>, &str) -> Result<()>,
    mut read: impl FnMut(&mut Scan<'_>) -> Result<()>,
) -> Result<Slot> {
    match scan.peek()? {
        Shape::Null => return Ok(Slot::Null(scan.skip()?)),
        Shape::Object => {}
        other => return Err(wrong(outer, other, "an object")),
    }
    let open = scan.at() + 1;
    let (mut empty, mut value) = (true, None);
    scan.members(|scan, name| {
        empty = false;
        if !folds_to(&name, inner) {
            return others(scan, &name);
        }
        let path = format!("{outer}.{name}");
        if name != inner {
            return Err(field(&path, format_args!("is written {inner:?}; write it so")));
        }
        if value.is_some() {
            return Err(field(&path, "is given twice; send it once"));
        }
        scan.peek()?;
        let start = scan.at();
        read(scan)?;
        value = Some(start..scan.at());
        Ok(())
    })?;
    Ok(Slot::Object { open, empty, value })
}

/// Passes over a member.
fn pass(scan: &mut Scan<'_>, _: &str) -> Result<()> {
    Ok(scan.pass()?)
}

/// A count of tokens where a value is one.
fn tokens(scan: &mut Scan<'_>) -> Result<Option<u64>> {
    let at = scan.skip()?;
    Ok(scan.slice(&at).parse().ok())
}

/// A boolean that may be null.
fn flag(scan: &mut Scan<'_>, name: &str) -> Result<Option<bool>> {
    match scan.peek()? {
        Shape::Bool => Ok(Some(scan.boolean()?)),
        Shape::Null => {
            scan.pass()?;
            Ok(None)
        }
        other => Err(wrong(name, other, "true or false")),
    }
}

/// An array that may be null; whether it has an item.
fn list(scan: &mut Scan<'_>, name: &str) -> Result<bool> {
    match scan.peek()? {
        Shape::Array => {
            let mut any = false;
            scan.items::<Error>(|scan, _| {
                any = true;
                scan.pass()?;
                Ok(())
            })?;
            Ok(any)
        }
        Shape::Null => {
            scan.pass()?;
            Ok(false)
        }
        other => Err(wrong(name, other, "an array")),
    }
}

/// An error about a field of the wrong type.
fn wrong(name: &str, found: Shape, send: &str) -> Error {
    field(name, format_args!("is {}; send {send}", found.with_article()))
}
