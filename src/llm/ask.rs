//! A client's request: checked in one pass, kept as it came, sent on with a few bytes replaced.

mod found;

use std::borrow::Cow;
use std::ops::Range;

use crate::base::error::{Error, Kind, Result};

use self::found::{Found, Slot};
use super::json::{self, Scan, Shape};
use super::{Dialect, Route, Usage, translate};

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
    output_max: Option<u64>,
    base64: bool,
    /// More than one answer is asked for, or figures beside it.
    several: bool,
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
        let mut found = Found::new(route);
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
        Ok(Ask {
            route,
            model: found.model,
            model_at: found.model_at,
            open,
            stream: found.stream.unwrap_or(route.dialect() == Dialect::Ollama) && !route.embeds(),
            needs: found.needs,
            stream_options: found.stream_options,
            wants_usage: found.wants_usage,
            options: found.options,
            num_ctx: found.num_ctx,
            output_max: found.output_max,
            base64: found.base64,
            several: found.several,
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

    /// `options.num_ctx` of an Ollama request, when it has it.
    pub fn num_ctx(&self) -> Option<u64> {
        self.num_ctx
    }

    /// Tokens that it may take, by estimate: its prompt, and the most that it lets the model say
    /// where it says that.
    pub fn estimate(&self) -> u64 {
        self.prompt_estimate().saturating_add(self.output_max.unwrap_or(0))
    }

    /// Tokens of its prompt, by estimate.
    pub fn prompt_estimate(&self) -> u64 {
        self.prompt_bytes.div_ceil(super::ESTIMATE_BYTES_PER_TOKEN)
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

    /// The tokens of the prompt by estimate, without its images.
    pub fn prompt_tokens(&self) -> Usage {
        Usage::or_estimate(None, self.prompt_bytes, 0)
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

    /// What this request asks an upstream of this dialect for, whatever way it is written and in
    /// whatever form the answer is wanted: the path, and the body in one order. Two requests with
    /// the same text have the same answer. `None` when there is no answer that could be kept: for
    /// several choices, tools and log probabilities, and for what can be read in two ways.
    pub fn canonical(
        &self,
        upstream: Dialect,
        model: &str,
        num_ctx: Option<u64>,
    ) -> Option<(&'static str, Vec<u8>)> {
        if self.needs.tools || self.several {
            return None;
        }
        let outgoing = self.outgoing(upstream, model, num_ctx).ok()?;
        Some((outgoing.path, super::canonical::canonical(&outgoing.body)?))
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

/// An error about a field.
pub(super) fn field(name: &str, problem: impl std::fmt::Display) -> Error {
    // A name that we did not choose may be of any length.
    Error::new(Kind::InvalidField, format!("{}: {problem}", clip(name, 80)))
}

/// The beginning of a text, at most this many bytes.
pub(super) fn clip(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

impl From<json::Bad> for Error {
    fn from(bad: json::Bad) -> Self {
        Error::new(Kind::InvalidJson, format!("body: not JSON: {bad}; send a JSON object"))
    }
}

#[cfg(test)]
mod tests;
