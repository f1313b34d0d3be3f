//! The ways in which an upstream fails, as scripts.

use std::time::Duration;

use serde_json::json;

use super::answers::{
    self, LAST_CHUNK, chunk, ending, event, opening, stream_head, stream_head_until_close, text,
};
use super::{Call, Step};
use crate::support::stream::Dialect;

/// What goes wrong (issue 2, "What it must show", 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nobody listens.
    Refuse,
    /// Takes the connection and the request, and says nothing.
    AcceptThenSilence,
    /// Sends the head of the answer, and nothing more.
    HeadThenSilence,
    /// Sends the role chunk, and nothing more.
    RoleThenSilence,
    /// Breaks the connection in the middle of an event.
    Cut,
    /// Resets the connection between two events.
    Reset,
    /// Ends the HTTP message well, without the terminator of the stream.
    EndWithoutTerminator,
    /// The same, where the end of the connection is the end of the message.
    CloseWithoutTerminator,
    /// Stops sending.
    Stall,
    /// Sends keep-alive comments or empty frames, and no content.
    KeepAliveOnly,
    /// Sends an event a byte at a time, so that it never ends in time.
    Drip,
    /// Sends a line that is not JSON.
    MalformedLine,
    /// Sends an error inside the stream (or in a 200).
    InBandError,
    /// 429 with `Retry-After`.
    RateLimited,
    /// 503.
    Unavailable,
    /// 500 with a page that is not JSON.
    ServerError,
    /// 404 for the model.
    WrongModel,
    /// 401 for the key.
    WrongKey,
    /// A line longer than `stream_line_max`.
    LineTooLong,
}

/// Every fault.
pub const ALL: [Fault; 19] = [
    Fault::Refuse,
    Fault::AcceptThenSilence,
    Fault::HeadThenSilence,
    Fault::RoleThenSilence,
    Fault::Cut,
    Fault::Reset,
    Fault::EndWithoutTerminator,
    Fault::CloseWithoutTerminator,
    Fault::Stall,
    Fault::KeepAliveOnly,
    Fault::Drip,
    Fault::MalformedLine,
    Fault::InBandError,
    Fault::RateLimited,
    Fault::Unavailable,
    Fault::ServerError,
    Fault::WrongModel,
    Fault::WrongKey,
    Fault::LineTooLong,
];

impl Fault {
    /// The word in model names.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// The fault of this word.
    pub fn named(name: &str) -> Option<Fault> {
        ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// Whether it can come after content.
    pub fn after_commit(self) -> bool {
        !matches!(
            self,
            Fault::Refuse
                | Fault::AcceptThenSilence
                | Fault::HeadThenSilence
                | Fault::RoleThenSilence
                | Fault::RateLimited
                | Fault::Unavailable
                | Fault::ServerError
                | Fault::WrongModel
                | Fault::WrongKey
                // After commit a comment may or may not count as a sign of life.
                | Fault::KeepAliveOnly
        )
    }

    /// Whether a deadline has to run out before anybody can know.
    pub fn waits(self) -> bool {
        matches!(
            self,
            Fault::AcceptThenSilence
                | Fault::HeadThenSilence
                | Fault::RoleThenSilence
                | Fault::Stall
                | Fault::KeepAliveOnly
                | Fault::Drip
        )
    }

    /// The status that a client sees when this was the last cause of a chain that failed whole.
    pub fn status(self) -> u16 {
        match self {
            Fault::Refuse
            | Fault::Cut
            | Fault::Reset
            | Fault::EndWithoutTerminator
            | Fault::CloseWithoutTerminator
            | Fault::MalformedLine
            | Fault::InBandError
            | Fault::LineTooLong => 502,
            Fault::RateLimited => 429,
            Fault::Unavailable => 503,
            Fault::ServerError => 500,
            Fault::WrongModel => 404,
            Fault::WrongKey => 401,
            _ => 504,
        }
    }

    /// What the upstream does: first these words, then the fault.
    pub fn script(self, call: &Call, words: &[String], line_max: usize) -> Vec<Step> {
        if let Some(catalog) = answers::catalog(call) {
            return catalog;
        }
        let error = |text: &str| match call.dialect {
            Dialect::OpenAi => {
                json!({"error": {"message": text, "type": "server_error", "param": null, "code": null}})
            }
            Dialect::Ollama => json!({"error": text}),
        };
        let status = |status: u16, headers: &str, text: &str| {
            vec![Step::Send(answers::whole(status, headers, error(text).to_string().as_bytes()))]
        };
        match self {
            Fault::Refuse => return vec![Step::Reset],
            Fault::AcceptThenSilence => return vec![Step::Silence],
            Fault::RateLimited => return status(429, "Retry-After: 7\r\n", "slow down"),
            Fault::Unavailable => {
                return status(
                    503,
                    "",
                    "server busy, please try again.  maximum pending requests exceeded",
                );
            }
            Fault::ServerError => {
                let page = b"<html>oops</html>";
                let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/html\r\nContent-Length: 17\r\n\r\n";
                return vec![Step::Send([head.as_bytes(), page].concat())];
            }
            Fault::WrongModel => return status(404, "", "model 'x' not found"),
            Fault::WrongKey => return status(401, "", "invalid api key"),
            _ => {}
        }
        if call.stream() {
            self.streamed(call, words, line_max, &error("boom"))
        } else {
            self.whole(call, &error("boom"))
        }
    }

    fn streamed(
        self,
        call: &Call,
        words: &[String],
        line_max: usize,
        error: &serde_json::Value,
    ) -> Vec<Step> {
        let dialect = call.dialect;
        let head = if self == Fault::CloseWithoutTerminator {
            stream_head_until_close(dialect)
        } else {
            stream_head(dialect)
        };
        let framed = |data: &[u8]| {
            Step::Send(if self == Fault::CloseWithoutTerminator {
                data.to_vec()
            } else {
                chunk(data)
            })
        };
        let mut steps = vec![Step::Send(head)];
        if self == Fault::HeadThenSilence {
            steps.push(Step::Silence);
            return steps;
        }
        steps.push(framed(&opening(call)));
        steps.extend(words.iter().map(|word| framed(&text(call, word))));
        let next = text(call, " never");
        match self {
            Fault::RoleThenSilence | Fault::Stall => steps.push(Step::Silence),
            Fault::Cut => {
                steps.push(framed(&next[..next.len() / 2]));
                steps.push(Step::Close);
            }
            Fault::Reset => {
                // The pause lets what went before arrive: a reset destroys what the peer has not read.
                steps.push(Step::Pause(Duration::from_millis(50)));
                steps.push(Step::Reset);
            }
            Fault::EndWithoutTerminator => steps.push(Step::Send(LAST_CHUNK.to_vec())),
            Fault::CloseWithoutTerminator => steps.push(Step::Close),
            Fault::KeepAliveOnly => {
                let nothing = match dialect {
                    Dialect::OpenAi => b": keepalive\n\n".to_vec(),
                    Dialect::Ollama => opening(call),
                };
                steps.push(Step::Repeat(chunk(&nothing), Duration::from_millis(40)));
            }
            Fault::Drip => {
                let long = text(call, &"x".repeat(400));
                let mut whole = format!("{:x}\r\n", long.len()).into_bytes();
                whole.extend_from_slice(&long);
                steps.push(Step::Drip(whole, Duration::from_millis(15)));
                steps.push(Step::Silence);
            }
            Fault::MalformedLine => {
                let bad: &[u8] = match dialect {
                    Dialect::OpenAi => b"data: {\"id\": \"x\", \"choices\": [{]}\n\n",
                    Dialect::Ollama => b"{\"model\": \"x\", \"message\": {]}\n",
                };
                steps.push(framed(bad));
                steps.push(framed(&next));
                steps.push(framed(&ending(call, 1)));
                steps.push(Step::Send(LAST_CHUNK.to_vec()));
            }
            Fault::InBandError => {
                steps.push(framed(&event(dialect, error)));
                steps.push(Step::Send(LAST_CHUNK.to_vec()));
            }
            Fault::LineTooLong => {
                let long = text(call, &"x".repeat(line_max + 1));
                steps.push(framed(&long));
                steps.push(framed(&ending(call, 1)));
                steps.push(Step::Send(LAST_CHUNK.to_vec()));
            }
            other => panic!("{other:?} is no stream"),
        }
        steps
    }

    fn whole(self, call: &Call, error: &serde_json::Value) -> Vec<Step> {
        let body = answers::whole_json(call, "never this text").to_string().into_bytes();
        let bytes = answers::whole(200, "", &body);
        let head_end = bytes.len() - body.len();
        let half = head_end + body.len() / 2;
        let until_close = || {
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
                .to_vec()
        };
        match self {
            Fault::HeadThenSilence => vec![Step::Send(bytes[..head_end].to_vec()), Step::Silence],
            Fault::RoleThenSilence | Fault::Stall | Fault::KeepAliveOnly => {
                vec![Step::Send(bytes[..half].to_vec()), Step::Silence]
            }
            Fault::Cut => vec![Step::Send(bytes[..half].to_vec()), Step::Close],
            Fault::Reset => vec![
                Step::Send(bytes[..half].to_vec()),
                Step::Pause(Duration::from_millis(50)),
                Step::Reset,
            ],
            // A body that ends with the connection, half of it missing.
            Fault::EndWithoutTerminator | Fault::CloseWithoutTerminator => {
                vec![
                    Step::Send([until_close(), body[..body.len() / 2].to_vec()].concat()),
                    Step::Close,
                ]
            }
            Fault::Drip => vec![
                Step::Send(bytes[..head_end].to_vec()),
                Step::Drip(body, Duration::from_millis(15)),
                Step::Silence,
            ],
            Fault::MalformedLine => vec![Step::Send(answers::whole(200, "", b"{\"id\": [}"))],
            Fault::InBandError => {
                vec![Step::Send(answers::whole(200, "", error.to_string().as_bytes()))]
            }
            Fault::LineTooLong => {
                let long = answers::whole_json(call, &"x".repeat(ANSWER_MAX + 1)).to_string();
                vec![Step::Send(answers::whole(200, "", long.as_bytes()))]
            }
            other => panic!("{other:?} is no whole answer"),
        }
    }
}

/// `upstream.answer_max` of the tests that send too long a whole answer.
pub const ANSWER_MAX: usize = 256 * 1024;
