//! Good answers of an upstream, in pieces that a fault can take apart.

use serde_json::{Value, json};

use super::{Call, Step};
use crate::support::stream::Dialect;

/// The id that every fake answer carries.
pub const ID: &str = "chatcmpl-fake";

/// The head of a streamed answer.
pub fn stream_head(dialect: Dialect) -> Vec<u8> {
    let content_type = match dialect {
        Dialect::OpenAi => "text/event-stream",
        Dialect::Ollama => "application/x-ndjson",
    };
    format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n")
        .into_bytes()
}

/// The head of a streamed answer that ends when the connection closes.
pub fn stream_head_until_close(dialect: Dialect) -> Vec<u8> {
    let head = String::from_utf8(stream_head(dialect)).unwrap();
    head.replace("Transfer-Encoding: chunked", "Connection: close").into_bytes()
}

/// One HTTP chunk.
pub fn chunk(data: &[u8]) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", data.len()).into_bytes();
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
    out
}

/// The last chunk.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// An answer with a length.
pub fn whole(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut out = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// A JSON answer.
pub fn json_answer(status: u16, body: &Value) -> Vec<Step> {
    vec![Step::Send(whole(status, "", body.to_string().as_bytes()))]
}

/// One event as it goes on the wire: `data: …` or a line.
pub fn event(dialect: Dialect, json: &Value) -> Vec<u8> {
    match dialect {
        Dialect::OpenAi => format!("data: {json}\n\n").into_bytes(),
        Dialect::Ollama => format!("{json}\n").into_bytes(),
    }
}

fn openai(call: &Call, delta: Value, finish: Value) -> Value {
    if call.path.ends_with("/chat/completions") {
        json!({"id": ID, "object": "chat.completion.chunk", "created": 1_700_000_000, "model": call.model(),
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
    } else {
        let text = delta["content"].as_str().unwrap_or_default();
        json!({"id": ID, "object": "text_completion", "created": 1_700_000_000, "model": call.model(),
            "choices": [{"index": 0, "text": text, "finish_reason": finish}]})
    }
}

fn ollama(call: &Call, text: &str) -> Value {
    let mut line = json!({"model": call.model(), "created_at": "2026-01-02T03:04:05.678901234Z"});
    if call.path == "/api/generate" {
        line["response"] = text.into();
    } else {
        line["message"] = json!({"role": "assistant", "content": text});
    }
    line["done"] = false.into();
    line
}

/// The frame without content that opens a stream.
pub fn opening(call: &Call) -> Vec<u8> {
    let json = match call.dialect {
        Dialect::OpenAi => openai(call, json!({"role": "assistant", "content": ""}), Value::Null),
        Dialect::Ollama => ollama(call, ""),
    };
    event(call.dialect, &json)
}

/// A frame with text.
pub fn text(call: &Call, text: &str) -> Vec<u8> {
    let json = match call.dialect {
        Dialect::OpenAi => openai(call, json!({"content": text}), Value::Null),
        Dialect::Ollama => ollama(call, text),
    };
    event(call.dialect, &json)
}

/// The frames that end a stream.
pub fn ending(call: &Call, words: usize) -> Vec<u8> {
    match call.dialect {
        Dialect::OpenAi => {
            let mut out = event(call.dialect, &openai(call, json!({}), "stop".into()));
            if call.json.pointer("/stream_options/include_usage") == Some(&Value::Bool(true)) {
                let usage = json!({"id": ID, "object": "chat.completion.chunk", "created": 1_700_000_000,
                    "model": call.model(), "choices": [], "usage": openai_usage(words)});
                out.extend_from_slice(&event(call.dialect, &usage));
            }
            out.extend_from_slice(b"data: [DONE]\n\n");
            out
        }
        Dialect::Ollama => event(call.dialect, &ollama_end(call, "", words)),
    }
}

fn openai_usage(words: usize) -> Value {
    json!({"prompt_tokens": 5, "completion_tokens": words, "total_tokens": 5 + words})
}

fn ollama_end(call: &Call, text: &str, words: usize) -> Value {
    let mut line = ollama(call, text);
    line["done"] = true.into();
    let end = json!({"done_reason": "stop", "total_duration": 5, "load_duration": 1, "prompt_eval_count": 5,
        "prompt_eval_duration": 2, "eval_count": words, "eval_duration": 2});
    line.as_object_mut().unwrap().append(&mut end.as_object().unwrap().clone());
    line
}

/// A whole answer with this text.
pub fn whole_json(call: &Call, text: &str) -> Value {
    let words = text.split_whitespace().count();
    match call.dialect {
        Dialect::OpenAi if call.path.ends_with("/chat/completions") => {
            json!({"id": ID, "object": "chat.completion", "created": 1_700_000_000, "model": call.model(),
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": openai_usage(words)})
        }
        Dialect::OpenAi => {
            json!({"id": ID, "object": "text_completion", "created": 1_700_000_000, "model": call.model(),
                "choices": [{"index": 0, "text": text, "finish_reason": "stop"}], "usage": openai_usage(words)})
        }
        Dialect::Ollama => ollama_end(call, text, words),
    }
}

/// The words of a text, each with the space before it, so that they join to the text.
pub fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = text.split(' ').map(|word| format!(" {word}")).collect();
    if let Some(first) = words.first_mut() {
        first.remove(0);
    }
    words
}

/// A good answer of any endpoint with this text, streamed when the call asks for that.
pub fn good(call: &Call, answer: &str) -> Vec<Step> {
    if let Some(catalog) = catalog(call) {
        return catalog;
    }
    if call.path.contains("embed") {
        return json_answer(200, &embeddings(call));
    }
    if !call.stream() {
        return json_answer(200, &whole_json(call, answer));
    }
    let mut steps = vec![Step::Send(stream_head(call.dialect)), Step::Send(chunk(&opening(call)))];
    let words = words(answer);
    steps.extend(words.iter().map(|word| Step::Send(chunk(&text(call, word)))));
    steps.push(Step::Send(chunk(&ending(call, words.len()))));
    steps.push(Step::Send(LAST_CHUNK.to_vec()));
    steps
}

fn embeddings(call: &Call) -> Value {
    let inputs = call.json["input"].as_array().map_or(1, Vec::len);
    let vectors = vec![json!([0.25, -0.5, 1.0]); inputs];
    match (call.dialect, call.path.as_str()) {
        (Dialect::OpenAi, _) => {
            // As base64 that is little-endian f32: 0.25, -0.5, 1.0.
            let base64 = call.json["encoding_format"] == "base64";
            let data = vectors.iter().enumerate().map(|(index, vector)| {
                let vector = if base64 { json!("AACAPgAAAL8AAIA/") } else { vector.clone() };
                json!({"object": "embedding", "index": index, "embedding": vector})
            });
            json!({"object": "list", "data": data.collect::<Vec<_>>(), "model": call.model(),
                "usage": {"prompt_tokens": 3, "total_tokens": 3}})
        }
        (Dialect::Ollama, "/api/embeddings") => json!({"embedding": vectors[0]}),
        (Dialect::Ollama, _) => {
            json!({"model": call.model(), "embeddings": vectors, "prompt_eval_count": 3})
        }
    }
}

/// The answers of the catalog; `None` for other paths.
pub fn catalog(call: &Call) -> Option<Vec<Step>> {
    let details = json!({"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
        "parameter_size": "3B", "quantization_level": "Q4_0"});
    let body = match call.path.as_str() {
        "/v1/models" => json!({"object": "list", "data": [
            {"id": "fake-model", "object": "model", "created": 1_700_000_000, "owned_by": "fake"}]}),
        "/api/tags" => {
            json!({"models": [{"name": "fake-model:latest", "model": "fake-model:latest",
            "modified_at": "2026-01-02T03:04:05.678901234Z", "size": 42, "digest": "abc", "details": details}]})
        }
        "/api/ps" => {
            json!({"models": [{"name": "fake-model:latest", "model": "fake-model:latest", "size": 42,
            "digest": "abc", "details": details, "expires_at": "2026-01-02T03:09:05.678901234Z", "size_vram": 42,
            "context_length": 4096}]})
        }
        "/api/show" => {
            json!({"parameters": "num_ctx                        8192", "template": "", "details": details,
            "model_info": {"general.architecture": "llama", "llama.context_length": 131_072},
            "capabilities": ["completion", "tools"]})
        }
        "/api/version" => json!({"version": "0.9.9"}),
        _ => return None,
    };
    Some(json_answer(200, &body))
}
