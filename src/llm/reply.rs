//! What one client sees, whatever happens behind: one id, one model name, one time, one role chunk
//! over all attempts; and keep-alives and errors in its own dialect.

use std::cell::OnceCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::base::error::{Error, Kind};

use super::{Ask, Dialect, Route, json};

/// The client's side of one request.
#[derive(Debug)]
pub struct Reply {
    pub(super) route: Route,
    pub(super) stream: bool,
    /// The client asked for the usage chunk.
    pub(super) usage: bool,
    /// The client wants vectors as base64.
    pub(super) base64: bool,
    pub(super) id: String,
    /// The model's name as a JSON string, with its quotes.
    pub(super) model: String,
    /// Since the Unix epoch.
    pub(super) created: Duration,
    head: OnceCell<Vec<u8>>,
    /// The chunk with the role is out (OpenAI chat).
    pub(super) role_sent: bool,
    /// Tool calls written so far (OpenAI chat): the index of the next one.
    pub(super) calls_sent: usize,
}

/// The latest time that is written as such, 9999-12-31T23:59:59Z in seconds; later ones are
/// written as this one, since the form has four digits for the year.
const CREATED_SECONDS_MAX: u64 = 253_402_300_799;

impl Reply {
    /// The id of answers that we write ourselves.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// For one request. `shown_model` is the name that every answer carries; `id` is the whole id
    /// (`chatcmpl-…`) of answers that we write ourselves.
    pub fn new(ask: &Ask, shown_model: &str, id: &str, created: SystemTime) -> Reply {
        let since = created.duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = since.min(Duration::from_secs(CREATED_SECONDS_MAX));
        Reply {
            route: ask.route(),
            stream: ask.stream(),
            usage: ask.wants_usage(),
            base64: ask.base64(),
            id: id.to_owned(),
            model: json::string(shown_model),
            created: since,
            head: OnceCell::new(),
            role_sent: false,
            calls_sent: 0,
        }
    }

    /// The time as Ollama writes it.
    pub(super) fn created_at(&self) -> String {
        humantime::format_rfc3339_nanos(UNIX_EPOCH + self.created).to_string()
    }

    /// The beginning of every chunk that we write ourselves, up to and without the first member
    /// that differs. Most answers are forwarded, so it is made when it is first needed.
    pub(super) fn head(&self) -> &[u8] {
        self.head.get_or_init(|| self.chunk_head())
    }

    /// The `Content-Type` of a good answer.
    pub fn content_type(&self) -> &'static str {
        match (self.stream, self.route.dialect()) {
            (true, Dialect::OpenAi) => "text/event-stream",
            (true, Dialect::Ollama) => "application/x-ndjson",
            (false, _) => "application/json",
        }
    }

    /// Whether the answer is streamed.
    pub fn streams(&self) -> bool {
        self.stream
    }

    /// Tells a waiting client that we are still there, without saying anything about the answer: a
    /// comment (events), or a chunk with empty content (lines; a blank one crashes clients).
    /// Nothing for whole answers.
    pub fn keep_alive(&self, out: &mut Vec<u8>) {
        match (self.stream, self.route.dialect()) {
            (false, _) => {}
            (true, Dialect::OpenAi) => out.extend_from_slice(b": keep-alive\n\n"),
            (true, Dialect::Ollama) => {
                out.extend_from_slice(self.head());
                out.extend_from_slice(match self.route {
                    Route::OllamaGenerate => b"\"response\":\"\",\"done\":false}\n",
                    _ => b"\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":false}\n",
                });
            }
        }
    }

    /// An error inside a stream that has begun. It is the last thing in that stream: no terminator
    /// may follow. For a whole answer it writes nothing.
    pub fn error_event(&self, error: &Error, out: &mut Vec<u8>) {
        if !self.stream {
            return;
        }
        match self.route.dialect() {
            Dialect::OpenAi => {
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(&error_body(Dialect::OpenAi, error));
                out.extend_from_slice(b"\n\n");
            }
            Dialect::Ollama => {
                out.extend_from_slice(&error_body(Dialect::Ollama, error));
                out.push(b'\n');
            }
        }
    }

    /// The body of an answer that is an error.
    pub fn error_body(&self, error: &Error) -> Vec<u8> {
        error_body(self.route.dialect(), error)
    }

    fn chunk_head(&self) -> Vec<u8> {
        let Reply { id, model, .. } = self;
        let created = self.created.as_secs();
        let id = json::string(id);
        match self.route.dialect() {
            Dialect::Ollama => {
                format!("{{\"model\":{model},\"created_at\":\"{}\",", self.created_at())
            }
            Dialect::OpenAi => {
                let object = match self.route {
                    Route::Completions => "text_completion",
                    _ => "chat.completion.chunk",
                };
                format!(
                    "data: {{\"id\":{id},\"object\":\"{object}\",\"created\":{created},\
                     \"model\":{model},"
                )
            }
        }
        .into_bytes()
    }
}

/// The body of an error in a dialect, for requests that never became an [`Ask`].
pub fn error_body(dialect: Dialect, error: &Error) -> Vec<u8> {
    let message = json::string(error.context());
    match dialect {
        Dialect::Ollama => format!("{{\"error\":{message}}}"),
        Dialect::OpenAi => {
            let row = error.row();
            let kind = error_type(row.status);
            let param = param(error).map_or_else(|| "null".to_owned(), json::string);
            let code = row.code;
            format!(
                "{{\"error\":{{\"message\":{message},\"type\":\"{kind}\",\"param\":{param},\
                 \"code\":\"{code}\"}}}}"
            )
        }
    }
    .into_bytes()
}

/// The OpenAI error type that goes with a status.
fn error_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        408 | 504 => "timeout_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

/// The field that an error is about: our messages about fields begin with its name and a colon.
fn param(error: &Error) -> Option<&str> {
    if !matches!(error.kind(), Kind::InvalidField | Kind::Unsupported) {
        return None;
    }
    let (field, _) = error.context().split_once(": ")?;
    (!field.contains(' ')).then_some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(route: Route, body: &str) -> Reply {
        let ask = Ask::parse(route, body.as_bytes().to_vec()).unwrap();
        Reply::new(&ask, "m\"1", "chatcmpl-1", UNIX_EPOCH + Duration::new(1_700_000_000, 5))
    }

    #[test]
    fn keep_alives_are_what_client_libraries_ignore() {
        let check = |route, body: &str, expected: &str| {
            let mut out = Vec::new();
            reply(route, body).keep_alive(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        let chat = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}"#;
        check(Route::ChatCompletions, chat, ": keep-alive\n\n");
        check(
            Route::OllamaChat,
            chat,
            "{\"model\":\"m\\\"1\",\"created_at\":\"2023-11-14T22:13:20.000000005Z\",\
             \"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":false}\n",
        );
        check(
            Route::OllamaGenerate,
            r#"{"model":"m","prompt":"x"}"#,
            "{\"model\":\"m\\\"1\",\"created_at\":\"2023-11-14T22:13:20.000000005Z\",\
             \"response\":\"\",\"done\":false}\n",
        );
        check(Route::OllamaGenerate, r#"{"model":"m","prompt":"x","stream":false}"#, "");
    }

    #[test]
    fn errors_have_the_shape_of_the_dialect_and_end_nothing() {
        let error = Error::new(Kind::InvalidField, "messages[0].role: say \"user\"");
        let chat = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}"#;
        let mut out = Vec::new();
        reply(Route::ChatCompletions, chat).error_event(&error, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "data: {\"error\":{\"message\":\"messages[0].role: say \\\"user\\\"\",\
             \"type\":\"invalid_request_error\",\"param\":\"messages[0].role\",\
             \"code\":\"invalid_field\"}}\n\n"
        );
        let mut out = Vec::new();
        let cut = Error::new(Kind::UpstreamCut, "local: the stream broke off");
        reply(Route::OllamaChat, chat).error_event(&cut, &mut out);
        assert_eq!(out, b"{\"error\":\"local: the stream broke off\"}\n");
        let body = reply(Route::ChatCompletions, chat).error_body(&cut);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["type"], "server_error");
        assert_eq!(body["error"]["param"], serde_json::Value::Null);
    }

    #[test]
    fn a_time_that_has_no_rfc_3339_form_does_no_harm() {
        let ask = Ask::parse(Route::OllamaGenerate, br#"{"model":"m"}"#.to_vec()).unwrap();
        let far = UNIX_EPOCH + Duration::from_secs(CREATED_SECONDS_MAX + 10);
        assert_eq!(Reply::new(&ask, "m", "", far).created_at(), "9999-12-31T23:59:59.000000000Z");
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(
            Reply::new(&ask, "m", "", before).created_at(),
            "1970-01-01T00:00:00.000000000Z"
        );
    }
}
