//! The dialects: what clients ask and upstreams answer, and how one becomes the other.
//!
//! Everything here is sans-I/O. Bytes and plain arguments go in, bytes and facts come out; there is
//! no socket, clock, thread or setting in this room, so that whatever an upstream may send can be
//! tried in a test. The way of a request:
//!
//! 1. [`Ask::parse`] checks a client's body once and keeps it;
//! 2. [`Ask::outgoing`] makes an upstream's body of it, per attempt: the client's own bytes with
//!    the model's name replaced, or a translation ([`translate`] holds the table of what is
//!    translated, dropped and refused);
//! 3. [`Stream`] turns an upstream's stream into the client's, [`whole`] a whole answer; both say
//!    what went wrong as a [`Fault`];
//! 4. [`Reply`] holds what the client must see unchanged over all attempts, and writes keep-alives
//!    and errors in its dialect.
//!
//! [`Kept`] is an answer that is given again, in whatever form its next reader asks for.
//!
//! [`echo`] is an upstream without a socket: it makes the bytes that one would send.

mod answer;
mod ask;
mod calls;
mod canonical;
pub mod echo;
mod embeddings;
mod frames;
mod json;
mod kept;
pub mod listen;
mod reply;
mod seen;
mod stream;
pub mod translate;
pub mod usage;
mod write;

use std::fmt;

use crate::base::error::Kind;

pub use answer::{upstream_message, whole, whole_as_stream};
pub use ask::{Ask, Needs, Outgoing};
pub use kept::Kept;
pub use reply::{Reply, error_body};
pub use stream::{Feed, Stream};

/// The two languages that clients and upstreams speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// The OpenAI API: server-sent events, `data: [DONE]`, error objects.
    OpenAi,
    /// Ollama's own API: a JSON object a line, `done: true`, error strings.
    Ollama,
}

/// The endpoints that run a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `POST /v1/chat/completions`.
    ChatCompletions,
    /// `POST /v1/completions`.
    Completions,
    /// `POST /v1/embeddings`.
    OpenAiEmbeddings,
    /// `POST /api/chat`.
    OllamaChat,
    /// `POST /api/generate`.
    OllamaGenerate,
    /// `POST /api/embed`.
    OllamaEmbed,
    /// `POST /api/embeddings`, the older form.
    OllamaEmbeddings,
}

impl Route {
    /// The dialect it belongs to.
    pub fn dialect(self) -> Dialect {
        match self {
            Route::ChatCompletions | Route::Completions | Route::OpenAiEmbeddings => {
                Dialect::OpenAi
            }
            Route::OllamaChat
            | Route::OllamaGenerate
            | Route::OllamaEmbed
            | Route::OllamaEmbeddings => Dialect::Ollama,
        }
    }

    /// Whether it answers with vectors, which are never streamed.
    pub fn embeds(self) -> bool {
        matches!(self, Route::OpenAiEmbeddings | Route::OllamaEmbed | Route::OllamaEmbeddings)
    }

    /// Its path below an upstream's base URL: that of an OpenAI upstream has `/v1`, that of an
    /// Ollama upstream has nothing.
    pub fn path(self) -> &'static str {
        match self {
            Route::ChatCompletions => "/chat/completions",
            Route::Completions => "/completions",
            Route::OpenAiEmbeddings => "/embeddings",
            Route::OllamaChat => "/api/chat",
            Route::OllamaGenerate => "/api/generate",
            Route::OllamaEmbed => "/api/embed",
            Route::OllamaEmbeddings => "/api/embeddings",
        }
    }
}

/// Tokens of one exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, those that the upstream had in its cache among them.
    pub input: u64,
    /// Tokens that were made.
    pub output: u64,
    /// Tokens of the prompt that the upstream had in its own cache, as it told them: at most
    /// `input`.
    pub cached: u64,
    /// True when counted here from bytes because the upstream never said; such figures are marked
    /// wherever they are shown.
    pub estimated: bool,
}

impl Usage {
    /// What the upstream told; where it told nothing of what there was, an estimate from the bytes
    /// of the prompt and of the content.
    pub fn or_estimate(told: Option<Usage>, prompt_bytes: u64, content_bytes: u64) -> Usage {
        let mut usage = told.unwrap_or_default();
        for (tokens, bytes) in
            [(&mut usage.input, prompt_bytes), (&mut usage.output, content_bytes)]
        {
            if *tokens == 0 && bytes > 0 {
                *tokens = bytes.div_ceil(ESTIMATE_BYTES_PER_TOKEN);
                usage.estimated = true;
            }
        }
        usage
    }
}

/// Most tokens of one answer's prompt or content that an upstream is believed. A larger count is
/// none, so that no sum is spoiled by one bad figure; the largest contexts have a few million.
pub const TOKENS_MAX: u64 = 1_000_000_000;

/// Bytes of text that are taken as one token when an upstream did not count: the usual figure for
/// English. Only estimates, which are marked, use it.
pub const ESTIMATE_BYTES_PER_TOKEN: u64 = 4;

/// What is wrong with an upstream's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not what the protocol says; the text says where.
    Malformed(String),
    /// One event, or the events held before the commit, are longer than `stream_line_max`.
    LineTooLong,
    /// An error told inside a stream, or with status 200.
    InBand {
        /// The upstream's own sentence, short and printable.
        message: String,
        /// The HTTP status that it named, if it named one.
        status: Option<u16>,
    },
    /// It ended without its terminator.
    Cut,
}

impl Fault {
    /// The row of the error table.
    pub fn kind(&self) -> Kind {
        match self {
            Fault::Malformed(_) => Kind::UpstreamMalformed,
            Fault::LineTooLong => Kind::UpstreamLineTooLong,
            Fault::InBand { .. } => Kind::UpstreamInBand,
            Fault::Cut => Kind::UpstreamCut,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Malformed(what) => write!(f, "malformed answer: {what}"),
            Fault::LineTooLong => f.write_str("an event is longer than stream_line_max"),
            Fault::InBand { message, .. } => write!(f, "error inside the answer: {message}"),
            Fault::Cut => f.write_str("the stream ended without its terminator"),
        }
    }
}

impl std::error::Error for Fault {}

impl From<json::Bad> for Fault {
    fn from(bad: json::Bad) -> Self {
        Fault::Malformed(format!("not JSON: {bad}"))
    }
}
