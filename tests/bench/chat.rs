//! What is asked and what must come back, to the byte: the mock sends it, the load checks it.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

/// Chunks of a stream. Each is one server-sent event with one word of content; `[DONE]` follows.
pub const CHUNKS: usize = 100;

/// Chunks of a slow stream, which is for counting memory and not work.
pub const CHUNKS_SLOW: usize = 20;

/// The kinds of question that the bench asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole answer of about 600 bytes.
    Whole,
    /// A stream of [`CHUNKS`], one write each, as fast as they go.
    Burst,
    /// A stream of [`CHUNKS`], one every 2 ms: a front that keeps up passes each on by itself. As
    /// fast as they go, a front that falls behind reads several at once, and so does less.
    Brisk,
    /// A stream of [`CHUNKS`], one every 50 ms.
    Paced,
    /// A stream of [`CHUNKS_SLOW`], one every 500 ms.
    Slow,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 5] = [Kind::Whole, Kind::Burst, Kind::Brisk, Kind::Paced, Kind::Slow];

    /// The model that is asked for; it tells the mock how to answer.
    pub fn model(self) -> &'static str {
        match self {
            Kind::Whole | Kind::Burst => "bench",
            Kind::Brisk => "bench-2ms",
            Kind::Paced => "bench-50ms",
            Kind::Slow => "bench-500ms",
        }
    }

    /// Whether the answer is a stream.
    pub fn streamed(self) -> bool {
        self != Kind::Whole
    }

    /// Events that carry content.
    pub fn chunks(self) -> usize {
        match self {
            Kind::Whole => 0,
            Kind::Burst | Kind::Brisk | Kind::Paced => CHUNKS,
            Kind::Slow => CHUNKS_SLOW,
        }
    }

    /// Time between two chunks.
    pub fn pause(self) -> Duration {
        match self {
            Kind::Whole | Kind::Burst => Duration::ZERO,
            Kind::Brisk => Duration::from_millis(2),
            Kind::Paced => Duration::from_millis(50),
            Kind::Slow => Duration::from_millis(500),
        }
    }
}

/// The models that a front must know; the mock lists them too.
pub fn models() -> Vec<&'static str> {
    let mut models: Vec<&str> = Kind::ALL.into_iter().map(Kind::model).collect();
    models.dedup();
    models
}

/// The request as it goes on the wire, about 650 bytes.
pub fn request(kind: Kind, to: SocketAddr) -> Vec<u8> {
    let body = format!(
        concat!(
            r#"{{"model":"{}","messages":[{{"role":"system","content":"You are a terse assistant. "#,
            r#"Answer in plain words."}},{{"role":"user","content":"Which tide gate stays shut "#,
            r#"when the sea is high, and which one opens when the river is?"}}],"#,
            r#""temperature":0.2,"max_tokens":128,"stream":{}}}"#
        ),
        kind.model(),
        kind.streamed()
    );
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {to}\r\nAuthorization: Bearer bench\r\n\
         Content-Type: application/json\r\nAccept: application/json\r\n\
         User-Agent: tidegate-bench\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

/// The body of a whole answer.
pub fn whole(model: &str) -> String {
    let content = "A flap gate hangs from a hinge on the river side of the wall. While the sea stands \
                   higher than the river its weight of water holds the flap shut, and when the river \
                   stands higher it pushes the flap open and runs out. Nobody has to be awake for it.";
    format!(
        concat!(
            r#"{{"id":"chatcmpl-bench","object":"chat.completion","created":1767225600,"model":"{}","#,
            r#""system_fingerprint":"fp_bench","choices":[{{"index":0,"message":{{"role":"assistant","#,
            r#""content":"{}"}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"#,
            r#""prompt_tokens":41,"completion_tokens":62,"total_tokens":103}}}}"#
        ),
        model, content
    )
}

/// The events of a stream, each with its blank line: the chunks, the usage when it was asked for,
/// and `[DONE]`.
pub fn events(kind: Kind, usage: bool) -> Vec<String> {
    let chunks = kind.chunks();
    let common = format!(
        r#""id":"chatcmpl-bench","object":"chat.completion.chunk","created":1767225600,"model":"{}""#,
        kind.model()
    );
    let mut events: Vec<String> = (0..chunks)
        .map(|index| {
            let role = if index == 0 { r#""role":"assistant","# } else { "" };
            let finish = if index + 1 == chunks { r#""stop""# } else { "null" };
            format!(
                concat!(
                    "data: {{{},",
                    r#""choices":[{{"index":0,"delta":{{{}"content":" word{:03}"}},"#,
                    r#""finish_reason":{}}}]}}"#,
                    "\n\n"
                ),
                common, role, index, finish
            )
        })
        .collect();
    if usage {
        events.push(format!(
            concat!(
                "data: {{{},",
                r#""choices":[],"usage":{{"prompt_tokens":41,"completion_tokens":{},"total_tokens":{}}}}}"#,
                "\n\n"
            ),
            common,
            chunks,
            chunks + 41
        ));
    }
    events.push("data: [DONE]\n\n".to_owned());
    events
}

/// The body that a client must get for this kind, which never asked for the usage.
pub fn expected(kind: Kind) -> Expected {
    if !kind.streamed() {
        return Expected { body: whole(kind.model()).into_bytes(), ends: Vec::new() };
    }
    let mut body = String::new();
    let mut ends = Vec::new();
    for event in events(kind, false) {
        let _ = write!(body, "{event}");
        ends.push(body.len());
    }
    // The terminator is no chunk.
    ends.pop();
    Expected { body: body.into_bytes(), ends }
}

/// A right answer.
#[derive(Debug)]
pub struct Expected {
    /// The body without its transfer coding.
    pub body: Vec<u8>,
    /// Where each chunk ends in it.
    pub ends: Vec<usize>,
}
