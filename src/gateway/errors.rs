//! The one place that turns errors into answers, in the caller's dialect.

use serde_json::json;

use crate::base::error::{Class, Error, Kind};
use crate::llm::{self, Dialect};
use crate::net::http::Response;

/// The dialect that a path speaks; `None` for paths of neither.
pub fn dialect_of(path: &str) -> Option<Dialect> {
    if path.starts_with("/v1/") {
        Some(Dialect::OpenAi)
    } else if path.starts_with("/api/") {
        Some(Dialect::Ollama)
    } else {
        None
    }
}

/// An error as the answer to a request for `path`.
pub fn response(error: &Error, path: &str) -> Response {
    let row = error.row();
    let mut response = match dialect_of(path) {
        _ if path.starts_with(HOOKS) => hook(error),
        Some(dialect) => Response::json(row.status, llm::error_body(dialect, error)),
        None => Response::new(row.status, "application/problem+json", problem(error)),
    };
    if let Some(seconds) = error.retry_after_seconds() {
        response = response.with("retry-after", seconds.to_string());
    }
    if let Some(millis) = error.retry_after_ms() {
        response = response.with("retry-after-ms", millis.to_string());
    }
    if row.class == Class::Auth && row.status == 401 {
        response = response.with("www-authenticate", "Bearer");
    }
    if error.kind() == Kind::WebSocketVersion {
        response = response.with("upgrade", "websocket").with("sec-websocket-version", "13");
    }
    response
}

/// An answer after the whole chain was tried: the clients' own retries would only repeat it
/// (openai-python and openai-node obey `x-should-retry`).
pub fn after_the_chain(error: &Error, path: &str) -> Response {
    response(error, path).with("x-should-retry", "false")
}

/// What stands before the paths of hooks.
const HOOKS: &str = "/hooks/";

/// An error as the callers of hooks know it.
fn hook(error: &Error) -> Response {
    let row = error.row();
    match row.status {
        401 => Response::text(401, "Unauthorized"),
        429 if row.class == Class::Auth => Response::text(429, "Too Many Requests"),
        413 => Response::json(413, r#"{"ok":false,"error":"payload too large"}"#),
        status => {
            let body = json!({"ok": false, "error": error.context(), "code": row.code});
            Response::json(status, body.to_string())
        }
    }
}

/// A problem document (RFC 9457).
fn problem(error: &Error) -> Vec<u8> {
    let row = error.row();
    let document = json!({
        "type": "about:blank",
        "title": crate::net::http1::reason(row.status),
        "status": row.status,
        "detail": error.context(),
        "code": row.code,
        "class": row.class.as_str(),
    });
    document.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::routes::{self, Found};
    use crate::net::http::Method;

    #[test]
    fn an_error_is_written_in_the_dialect_of_its_path() {
        let error = Error::new(Kind::WaitingFull, "busy");
        let text = |path| {
            let response = response(&error, path);
            assert_eq!(response.status, 503);
            assert!(response.headers.contains(&("retry-after", "1".to_owned())));
            String::from_utf8(response.body).unwrap()
        };
        assert!(text("/v1/chat/completions").starts_with(r#"{"error":{"#));
        assert_eq!(text("/api/chat"), r#"{"error":"busy"}"#);
        assert!(text("/elsewhere").contains(r#""detail":"busy""#));
        // A panic knows its route only.
        for (path, begins) in [("/v1/models/x", r#"{"error":{"#), ("/api/tags", r#"{"error":""#)] {
            let Found::Row(row) = routes::find(Method::Get, path) else { panic!("no {path}") };
            assert!(text(routes::pattern(row)).starts_with(begins), "{path}");
        }
    }
}
