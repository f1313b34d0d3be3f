//! Requests as clients write them.

use serde_json::{Value, json};

use super::stream::Dialect;

/// A `GET` of this path.
pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

/// A `POST` of this JSON.
pub fn post(path: &str, body: &Value) -> Vec<u8> {
    post_with(path, "", body.to_string().as_bytes())
}

/// A `POST` of these bytes, with further header lines (each with its CRLF).
pub fn post_with(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The path of chat in this dialect.
pub fn chat_path(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::OpenAi => "/v1/chat/completions",
        Dialect::Ollama => "/api/chat",
    }
}

/// The body of a chat in this dialect.
pub fn chat_body(model: &str, prompt: &str, stream: bool) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream})
}

/// A chat request in this dialect.
pub fn chat(dialect: Dialect, model: &str, prompt: &str, stream: bool) -> Vec<u8> {
    post(chat_path(dialect), &chat_body(model, prompt, stream))
}

/// The text of a whole chat answer.
pub fn whole_text(dialect: Dialect, answer: &Value) -> &str {
    let path = match dialect {
        Dialect::OpenAi => "/choices/0/message/content",
        Dialect::Ollama => "/message/content",
    };
    answer.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no text: {answer}"))
}
