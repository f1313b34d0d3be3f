//! A client's request: checked in one pass, kept as it came, sent on with a few bytes replaced.

use std::borrow::Cow;
use std::ops::Range;

use crate::base::error::{Error, Kind, Result};

use super::json::{self, Scan, Shape};
use super::{Dialect, Route, translate};

/// Longest model name, in bytes. Longer ones are refused: names stand in logs and metrics. The
/// longest that are in use (a registry, an owner, a name, a quantisation) stay below 200.
pub const MODEL_BYTES_MAX: usize = 512;

/// What a fallback must be able to carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Tools are declared, or calls and results of tools are part of the conversation.
    pub tools: bool,
    /// There is at least one image.
    pub images: bool,
}

/// A request in an upstream's dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Below the upstream's base URL: `/chat/completions` (the base has `/v1`) or `/api/chat`.
    pub path: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

/// A member that is an object of which one member matters to us: `stream_options.include_usage`,
/// `options.num_ctx`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Slot {
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

/// A client's parsed request. It owns the body.
#[derive(Debug)]
pub struct Ask {
    route: Route,
    /// Valid UTF-8 and JSON: an object.
    body: String,
    model: String,
    /// Where the model's name stands, with its quotes.
    model_at: Range<usize>,
    /// After the body's opening brace.
    open: usize,
    stream: bool,
    needs: Needs,
    stream_options: Slot,
    wants_usage: bool,
    options: Slot,
    num_ctx: Option<u64>,
    base64: bool,
    prompt_bytes: u64,
}

impl Ask {
    /// Checks a body: the whole of it must be JSON, and the members that we read must be what they
    /// should be. What we do not know is left to the upstream.
    ///
    /// # Errors
    /// [`Kind::InvalidJson`] for what is not a JSON object; [`Kind::InvalidField`] for a member that
    /// is missing, of the wrong type or given twice, with its name and what to send.
    pub fn parse(route: Route, body: Vec<u8>) -> Result<Ask> {
        let body = String::from_utf8(body).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Error::new(Kind::InvalidJson, format!("body: not UTF-8 at byte {at}; send UTF-8"))
        })?;
        let mut found = Found { route, ..Found::new(route) };
        let mut scan = Scan::new(&body);
        if scan.peek()? != Shape::Object {
            let found = scan.peek()?.with_article();
            return Err(Error::new(
                Kind::InvalidJson,
                format!("body: is {found}; send a JSON object"),
            ));
        }
        let open = scan.at() + 1;
        scan.members(|scan, name| found.member(scan, &name))?;
        scan.finish()?;
        found.check()?;
        let Found { model, model_at, .. } = found;
        Ok(Ask {
            route,
            model,
            model_at,
            open,
            stream: found.stream.unwrap_or(route.dialect() == Dialect::Ollama) && !route.embeds(),
            needs: found.needs,
            stream_options: found.stream_options,
            wants_usage: found.wants_usage,
            options: found.options,
            num_ctx: found.num_ctx,
            base64: found.base64,
            prompt_bytes: found.prompt_bytes,
            body,
        })
    }

    /// The endpoint.
    pub fn route(&self) -> Route {
        self.route
    }

    /// The model as the client named it.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whether the answer is to be streamed.
    pub fn stream(&self) -> bool {
        self.stream
    }

    /// What a fallback must be able to carry.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// Whether the client asked for the usage chunk of a stream
    /// (`stream_options.include_usage`).
    pub fn wants_usage(&self) -> bool {
        self.wants_usage
    }

    /// `options.num_ctx`, when the request has it.
    pub fn num_ctx(&self) -> Option<u64> {
        self.num_ctx
    }

    /// The size of the body, in bytes.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// Never: an object has at least two bytes.
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// The client wants vectors as base64.
    pub(super) fn base64(&self) -> bool {
        self.base64
    }

    /// The body as text.
    pub(super) fn text(&self) -> &str {
        &self.body
    }

    /// Bytes of text in the prompt, without images: what an estimate of its tokens is made from.
    pub(super) fn prompt_bytes(&self) -> u64 {
        self.prompt_bytes
    }

    /// The request as an upstream takes it.
    ///
    /// In the same dialect these are the client's own bytes with the model's name replaced, and
    /// with `stream_options.include_usage` set in an OpenAI stream: usage is counted whether or not
    /// the client wants to see it. `num_ctx` is put into the `options` of an Ollama upstream when
    /// the request has none.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] naming the field that the other dialect has no way to say;
    /// [`Kind::InvalidField`] for one that has to be taken apart to be translated and cannot be.
    pub fn outgoing(
        &self,
        upstream: Dialect,
        model: &str,
        num_ctx: Option<u64>,
    ) -> Result<Outgoing> {
        if self.route.dialect() != upstream {
            return translate::request(self, upstream, model, num_ctx);
        }
        // At most three places differ: model, stream_options, options.
        let mut edits: Vec<(Range<usize>, Cow<'static, str>)> = Vec::with_capacity(3);
        if model != self.model {
            edits.push((self.model_at.clone(), json::string(model).into()));
        }
        match upstream {
            Dialect::OpenAi => {
                if self.stream && !self.wants_usage {
                    let set = "\"include_usage\":true";
                    edits.push(self.set_in(&self.stream_options, "stream_options", set));
                }
            }
            Dialect::Ollama => {
                if let (None, Some(num_ctx)) = (self.num_ctx, num_ctx) {
                    let set = format!("\"num_ctx\":{num_ctx}");
                    edits.push(self.set_in(&self.options, "options", &set));
                }
            }
        }
        edits.sort_unstable_by_key(|(at, _)| at.start);
        Ok(Outgoing { path: self.route.path(), body: spliced(&self.body, &edits) })
    }

    /// The edit that sets a member (`"name":value`) inside an object that may not be there.
    fn set_in(&self, slot: &Slot, outer: &str, set: &str) -> (Range<usize>, Cow<'static, str>) {
        match slot {
            // The body is not empty (it names a model), so that the comma is always right.
            Slot::Absent => (self.open..self.open, format!("\"{outer}\":{{{set}}},").into()),
            Slot::Null(at) => (at.clone(), format!("{{{set}}}").into()),
            Slot::Object { value: Some(at), .. } => {
                let value = set.split_once(':').map_or("", |(_, value)| value);
                (at.clone(), value.to_owned().into())
            }
            Slot::Object { open, empty: true, .. } => (*open..*open, set.to_owned().into()),
            Slot::Object { open, .. } => (*open..*open, format!("{set},").into()),
        }
    }
}

/// A text with pieces of it replaced; the edits are in order and do not overlap.
fn spliced(text: &str, edits: &[(Range<usize>, Cow<'static, str>)]) -> Vec<u8> {
    let grown: usize = edits.iter().map(|(_, new)| new.len()).sum();
    let mut out = Vec::with_capacity(text.len() + grown);
    let mut copied = 0;
    for (at, new) in edits {
        out.extend_from_slice(&text.as_bytes()[copied..at.start]);
        out.extend_from_slice(new.as_bytes());
        copied = at.end;
    }
    out.extend_from_slice(&text.as_bytes()[copied..]);
    out
}

/// What the pass over a body has found so far.
struct Found {
    route: Route,
    /// Members that we read and have seen; a second one is refused, since others may take the
    /// first or the last.
    seen: Vec<&'static str>,
    model: String,
    model_at: Range<usize>,
    stream: Option<bool>,
    needs: Needs,
    stream_options: Slot,
    wants_usage: bool,
    options: Slot,
    num_ctx: Option<u64>,
    base64: bool,
    prompt_bytes: u64,
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
    fn new(route: Route) -> Self {
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
            base64: false,
            prompt_bytes: 0,
        }
    }

    fn member(&mut self, scan: &mut Scan<'_>, name: &str) -> Result<()> {
        let Some(known) = KNOWN.into_iter().find(|known| folds_to(name, known)) else {
            scan.pass()?;
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
            ("options", _) => self.options(scan, !openai),
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

    /// What must be there.
    fn check(&self) -> Result<()> {
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
        self.stream_options = slot(scan, "stream_options", "include_usage", |scan| {
            wants_usage = flag(scan, "stream_options.include_usage")?;
            Ok(())
        })?;
        self.wants_usage = wants_usage == Some(true);
        Ok(())
    }

    /// `options`: Ollama's own, or an extension that some OpenAI clients send to Ollama.
    fn options(&mut self, scan: &mut Scan<'_>, ours: bool) -> Result<()> {
        if !ours && scan.peek()? != Shape::Object {
            scan.pass()?;
            return Ok(());
        }
        let mut num_ctx = None;
        self.options = slot(scan, "options", "num_ctx", |scan| {
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
fn folds_to(name: &str, known: &str) -> bool {
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

/// The beginning of a text, at most this many bytes.
pub(super) fn clip(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Reads an object in which one member matters.
fn slot(
    scan: &mut Scan<'_>,
    outer: &str,
    inner: &str,
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
            scan.pass()?;
            return Ok(());
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

/// An error about a field.
pub(super) fn field(name: &str, problem: impl std::fmt::Display) -> Error {
    // A name that we did not choose may be of any length.
    Error::new(Kind::InvalidField, format!("{}: {problem}", clip(name, 80)))
}

/// An error about a field of the wrong type.
fn wrong(name: &str, found: Shape, send: &str) -> Error {
    field(name, format_args!("is {}; send {send}", found.with_article()))
}

impl From<json::Bad> for Error {
    fn from(bad: json::Bad) -> Self {
        Error::new(Kind::InvalidJson, format!("body: not JSON: {bad}; send a JSON object"))
    }
}

#[cfg(test)]
mod tests;
