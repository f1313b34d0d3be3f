use serde_json::{Value, json};

use super::*;
use crate::llm::Route;

/// Translates a body and checks where it goes and what it becomes.
fn check(route: Route, body: &Value, path: &str, expected: &Value) {
    let outgoing = translate(route, body).unwrap_or_else(|error| panic!("{body}: {error}"));
    assert_eq!(outgoing.path, path);
    let found: Value = serde_json::from_slice(&outgoing.body).unwrap();
    assert_eq!(found, *expected, "from {body}");
}

fn translate(route: Route, body: &Value) -> Result<Outgoing> {
    let ask = Ask::parse(route, body.to_string().into_bytes())?;
    let upstream = match route.dialect() {
        Dialect::OpenAi => Dialect::Ollama,
        Dialect::Ollama => Dialect::OpenAi,
    };
    ask.outgoing(upstream, "up", None)
}

/// A body with members added; null takes one away.
fn with(body: &Value, more: &Value) -> Value {
    let mut body = body.clone();
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => drop(body.as_object_mut().unwrap().shift_remove(name)),
            value => body[name] = value.clone(),
        }
    }
    body
}

fn user() -> Value {
    json!([{"role": "user", "content": "hi"}])
}

/// An OpenAI chat with `more`, and what Ollama must get beside the messages.
fn chat(more: &Value, expected: &Value) {
    let body = with(&json!({"model": "m", "messages": user()}), more);
    let expected = with(&json!({"model": "up", "messages": user(), "stream": false}), expected);
    check(Route::ChatCompletions, &body, "/api/chat", &expected);
}

/// OpenAI messages, and what they become.
fn messages_to_ollama(messages: &Value, expected: &Value) {
    let body = json!({"model": "m", "messages": messages});
    let expected = json!({"model": "up", "messages": expected, "stream": false});
    check(Route::ChatCompletions, &body, "/api/chat", &expected);
}

/// An Ollama chat with `more`, and what OpenAI must get beside the messages.
fn ollama_chat(more: &Value, expected: &Value) {
    let body = with(&json!({"model": "m", "messages": user(), "stream": false}), more);
    let expected = with(&json!({"model": "up", "messages": user(), "stream": false}), expected);
    check(Route::OllamaChat, &body, "/chat/completions", &expected);
}

fn messages_to_openai(messages: &Value, expected: &Value) {
    let body = json!({"model": "m", "messages": messages, "stream": false});
    let expected = json!({"model": "up", "messages": expected, "stream": false});
    check(Route::OllamaChat, &body, "/chat/completions", &expected);
}

/// What must be refused, and the field that must be named.
fn refused(route: Route, body: &Value, kind: Kind, name: &str) {
    let error = translate(route, body).unwrap_err();
    assert_eq!(error.kind(), kind, "{body}: {error}");
    assert!(error.context().starts_with(&format!("{name}: ")), "{body}: {error}");
}

fn chat_refused(more: &Value, name: &str) {
    let body = with(&json!({"model": "m", "messages": user()}), more);
    refused(Route::ChatCompletions, &body, Kind::Unsupported, name);
}

// === To Ollama ===

#[test]
fn sampling_becomes_options() {
    chat(
        &json!({"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "max_tokens": 10, "stop": "x",
                "frequency_penalty": 1, "presence_penalty": 0}),
        &json!({"options": {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "num_predict": 10,
                "stop": ["x"], "frequency_penalty": 1, "presence_penalty": 0}}),
    );
    chat(
        &json!({"max_completion_tokens": 5, "stop": ["a", "b"], "n": 1, "logit_bias": {}}),
        &json!({"options": {"num_predict": 5, "stop": ["a", "b"]}}),
    );
    chat(
        &json!({"options": {"num_ctx": 99, "seed": 1}, "seed": 2}),
        &json!({"options": {"num_ctx": 99, "seed": 2}}),
    );
    chat_refused(&json!({"n": 2}), "n");
    chat_refused(&json!({"logit_bias": {"50256": -100}}), "logit_bias");
}

#[test]
fn the_context_length_comes_along_unless_the_request_has_one() {
    let num_ctx = |body: &Value| {
        let ask = Ask::parse(Route::ChatCompletions, body.to_string().into_bytes()).unwrap();
        let body = ask.outgoing(Dialect::Ollama, "up", Some(4096)).unwrap().body;
        let body: Value = serde_json::from_slice(&body).unwrap();
        body["options"]["num_ctx"].clone()
    };
    assert_eq!(num_ctx(&json!({"model": "m", "messages": user()})), 4096);
    assert_eq!(num_ctx(&json!({"model": "m", "messages": user(), "options": {"num_ctx": 8}})), 8);
}

#[test]
fn hints_are_dropped_and_unknown_members_go_along() {
    chat(
        &json!({"user": "u", "store": true, "metadata": {"a": "b"}, "service_tier": "auto", "verbosity": "low",
                "stream_options": {"include_usage": true}, "prediction": {}, "something_new": [1, {"x": null}],
                "logprobs": true, "top_logprobs": 2, "keep_alive": "5m", "modalities": ["text"]}),
        &json!({"something_new": [1, {"x": null}], "logprobs": true, "top_logprobs": 2, "keep_alive": "5m"}),
    );
    chat_refused(&json!({"modalities": ["text", "audio"]}), "modalities");
    chat_refused(&json!({"audio": {"voice": "x"}}), "audio");
    chat_refused(&json!({"web_search_options": {}}), "web_search_options");
}

#[test]
fn json_mode_and_thinking_are_said_the_other_way() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let response = |format: Value| json!({"response_format": format});
    chat(&response(json!({"type": "text"})), &json!({}));
    chat(&response(json!({"type": "json_object"})), &json!({"format": "json"}));
    chat(
        &response(
            json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}),
        ),
        &json!({"format": schema}),
    );
    chat_refused(&response(json!({"type": "grammar"})), "response_format");
    let body =
        with(&json!({"model": "m", "messages": user()}), &response(json!({"type": "json_schema"})));
    refused(
        Route::ChatCompletions,
        &body,
        Kind::InvalidField,
        "response_format.json_schema.schema",
    );
    for (effort, think) in [
        ("none", json!(false)),
        ("minimal", json!("low")),
        ("low", json!("low")),
        ("medium", json!("medium")),
        ("high", json!("high")),
        ("xhigh", json!("high")),
    ] {
        chat(&json!({"reasoning_effort": effort}), &json!({"think": think}));
    }
    chat(&json!({"reasoning_effort": null, "think": true}), &json!({"think": true}));
}

#[test]
fn tools_go_along_unless_something_is_asked_that_ollama_lacks() {
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    chat(&json!({"tools": tools}), &json!({"tools": tools}));
    chat(
        &json!({"tools": tools, "tool_choice": "auto", "parallel_tool_calls": true}),
        &json!({"tools": tools}),
    );
    chat(&json!({"tools": tools, "tool_choice": "none"}), &json!({}));
    chat(&json!({"tools": [], "parallel_tool_calls": false}), &json!({}));
    chat_refused(&json!({"tools": tools, "tool_choice": "required"}), "tool_choice");
    let named = json!({"type": "function", "function": {"name": "f"}});
    chat_refused(&json!({"tools": tools, "tool_choice": named}), "tool_choice");
    chat_refused(&json!({"tools": tools, "parallel_tool_calls": false}), "parallel_tool_calls");
    chat_refused(&json!({"functions": [{"name": "f"}]}), "functions");
    chat_refused(&json!({"function_call": {"name": "f"}}), "function_call");
}

#[test]
fn messages_become_ollamas() {
    messages_to_ollama(
        &json!([
            {"role": "developer", "content": "be short"},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                {"type": "image_url", "image_url": "DATA:;BASE64,BBBB"},
            ]},
            {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
            ]},
            {"role": "tool", "tool_call_id": "c2", "content": "two"},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "one"}]},
            {"role": "tool", "tool_call_id": "c9", "name": "h", "content": "nine"},
        ]),
        &json!([
            {"role": "system", "content": "be short"},
            {"role": "user", "name": "ann", "content": "a\nb"},
            {"role": "user", "content": "look", "images": ["AAAA", "BBBB"]},
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
                {"id": "c1", "function": {"name": "f", "arguments": {"x": 1}}},
                {"id": "c2", "function": {"name": "g", "arguments": {}}},
            ]},
            {"role": "tool", "content": "two", "tool_name": "g", "tool_call_id": "c2"},
            {"role": "tool", "content": "one", "tool_name": "f", "tool_call_id": "c1"},
            {"role": "tool", "content": "nine", "tool_name": "h", "tool_call_id": "c9"},
        ]),
    );
}

#[test]
fn messages_that_ollama_cannot_take_are_refused_by_name() {
    let check = |message: Value, kind, name: &str| {
        let body = json!({"model": "m", "messages": [message]});
        refused(Route::ChatCompletions, &body, kind, &format!("messages[0].{name}"));
    };
    let image = |url: &str| json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]});
    check(image("https://example.com/a.png"), Kind::Unsupported, "content[0].image_url.url");
    check(image("data:image/svg+xml,<svg/>"), Kind::Unsupported, "content[0].image_url.url");
    let part = |part: Value| json!({"role": "user", "content": [part]});
    check(
        part(json!({"type": "input_audio", "input_audio": {}})),
        Kind::Unsupported,
        "content[0].type",
    );
    check(part(json!({"type": "text"})), Kind::InvalidField, "content[0].text");
    check(part(json!({"text": "x"})), Kind::InvalidField, "content[0].type");
    check(json!({"role": "function", "content": "x"}), Kind::Unsupported, "role");
    let call = |arguments: Value| json!({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": arguments}}]});
    check(call(json!("{\"x\"")), Kind::InvalidField, "tool_calls[0].function.arguments");
    check(call(json!([1])), Kind::InvalidField, "tool_calls[0].function.arguments");
    let nameless = json!({"role": "assistant", "tool_calls": [{"id": "a", "type": "custom"}]});
    check(nameless, Kind::InvalidField, "tool_calls[0].function.name");
    check(
        json!({"role": "assistant", "function_call": {"name": "f"}}),
        Kind::Unsupported,
        "function_call",
    );
}

#[test]
fn completions_become_raw_generate_requests() {
    let raw = |more: &Value, expected: &Value| {
        let body = with(&json!({"model": "m", "prompt": "once", "stream": true}), more);
        let expected = with(&json!({"model": "up", "prompt": "once", "stream": true}), expected);
        check(Route::Completions, &body, "/api/generate", &expected);
    };
    raw(&json!({}), &json!({"raw": true}));
    raw(
        &json!({"prompt": ["once"], "max_tokens": 3, "echo": false, "best_of": 1, "logprobs": null}),
        &json!({"raw": true, "options": {"num_predict": 3}}),
    );
    raw(&json!({"suffix": "end"}), &json!({"suffix": "end"}));
    raw(&json!({"suffix": ""}), &json!({"raw": true}));
    let body = |more: Value| with(&json!({"model": "m", "prompt": "once"}), &more);
    for (more, name) in [
        (json!({"prompt": ["a", "b"]}), "prompt"),
        (json!({"prompt": [1, 2]}), "prompt"),
        (json!({"prompt": [[1, 2]]}), "prompt"),
        (json!({"echo": true}), "echo"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"n": 2}), "n"),
        (json!({"logprobs": 0}), "logprobs"),
    ] {
        refused(Route::Completions, &body(more), Kind::Unsupported, name);
    }
}

// === To OpenAI ===

#[test]
fn options_become_sampling() {
    ollama_chat(
        &json!({"options": {"temperature": 0, "top_p": 0.5, "seed": 1, "stop": ["x"], "num_predict": 9,
                "frequency_penalty": 0.1, "presence_penalty": 0.2, "mirostat": 2, "num_ctx": 8192, "top_k": 5, "num_gpu": 1}}),
        &json!({"temperature": 0, "top_p": 0.5, "seed": 1, "stop": ["x"], "max_tokens": 9,
                "frequency_penalty": 0.1, "presence_penalty": 0.2}),
    );
    for unlimited in [-1, -2, 0] {
        ollama_chat(&json!({"options": {"num_predict": unlimited}}), &json!({}));
    }
}

#[test]
fn an_ollama_stream_is_asked_for_its_usage() {
    let body = json!({"model": "m", "messages": user(), "keep_alive": "5m", "truncate": true, "unknown": 1});
    let expected = json!({"model": "up", "messages": user(), "stream": true, "stream_options": {"include_usage": true}, "unknown": 1});
    check(Route::OllamaChat, &body, "/chat/completions", &expected);
}

#[test]
fn format_think_and_tools_are_said_the_other_way() {
    let schema = json!({"type": "object"});
    ollama_chat(&json!({"format": "json"}), &json!({"response_format": {"type": "json_object"}}));
    ollama_chat(&json!({"format": ""}), &json!({}));
    ollama_chat(
        &json!({"format": schema}),
        &json!({"response_format": {"type": "json_schema", "json_schema": {"name": "format", "schema": schema}}}),
    );
    for (think, effort) in
        [(json!(true), "medium"), (json!(false), "none"), (json!("high"), "high")]
    {
        ollama_chat(&json!({"think": think}), &json!({"reasoning_effort": effort}));
    }
    ollama_chat(
        &json!({"tools": [{"function": {"name": "f"}}], "logprobs": true, "top_logprobs": 1}),
        &json!({"tools": [{"type": "function", "function": {"name": "f"}}], "logprobs": true, "top_logprobs": 1}),
    );
    let body = json!({"model": "m", "messages": user(), "format": "yaml"});
    refused(Route::OllamaChat, &body, Kind::InvalidField, "format");
}

#[test]
fn messages_become_openais() {
    messages_to_openai(
        &json!([
            {"role": "system", "content": "be short"},
            {"role": "user", "content": "look", "images": ["iVBORw0KGgoAAA", "/9j/AAA"]},
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
                {"function": {"name": "f", "arguments": {"x": 1}}},
                {"function": {"name": "f", "arguments": {"x": 2}}},
                {"id": "call_u", "function": {"index": 2, "name": "g"}},
            ]},
            {"role": "tool", "tool_name": "f", "content": "one"},
            {"role": "tool", "tool_call_id": "call_u", "content": "three"},
            {"role": "tool", "content": "two"},
        ]),
        &json!([
            {"role": "system", "content": "be short"},
            {"role": "user", "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgoAAA"}},
                {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/AAA"}},
            ]},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
                {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": "{\"x\":2}"}},
                {"id": "call_u", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ]},
            {"role": "tool", "content": "one", "tool_call_id": "call_1"},
            {"role": "tool", "content": "three", "tool_call_id": "call_u"},
            {"role": "tool", "content": "two", "tool_call_id": "call_2"},
        ]),
    );
    let body = |message: Value| json!({"model": "m", "messages": [message]});
    let lost = body(json!({"role": "tool", "tool_name": "f", "content": "x"}));
    refused(Route::OllamaChat, &lost, Kind::InvalidField, "messages[0].tool_name");
    let picture = body(json!({"role": "assistant", "content": "", "images": ["x"]}));
    refused(Route::OllamaChat, &picture, Kind::Unsupported, "messages[0].images");
    refused(Route::OllamaChat, &json!({"model": "m"}), Kind::Unsupported, "messages");
}

#[test]
fn generate_becomes_a_chat_or_a_completion() {
    let base = json!({"model": "m", "prompt": "hi", "stream": false});
    let generate = |more: &Value, path: &str, expected: &Value| {
        let expected = with(&json!({"model": "up", "stream": false}), expected);
        check(Route::OllamaGenerate, &with(&base, more), path, &expected);
    };
    let chat = "/chat/completions";
    generate(&json!({}), chat, &json!({"messages": user()}));
    generate(
        &json!({"template": "", "context": [], "suffix": "", "raw": false}),
        chat,
        &json!({"messages": user()}),
    );
    generate(
        &json!({"system": "s", "images": ["R0lGOD"], "format": "json", "think": true, "options": {"seed": 1}}),
        chat,
        &json!({"messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [
                {"type": "text", "text": "hi"},
                {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGOD"}},
            ]},
        ], "response_format": {"type": "json_object"}, "reasoning_effort": "medium", "seed": 1}),
    );
    let completion = "/completions";
    generate(
        &json!({"raw": true, "options": {"num_predict": 2}}),
        completion,
        &json!({"prompt": "hi", "max_tokens": 2}),
    );
    generate(&json!({"suffix": "end"}), completion, &json!({"prompt": "hi", "suffix": "end"}));
    for (more, name) in [
        (json!({"template": "{{ .Prompt }}"}), "template"),
        (json!({"context": [1, 2]}), "context"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"raw": true, "system": "s"}), "system"),
        (json!({"raw": true, "format": "json"}), "format"),
        (json!({"suffix": "x", "images": ["x"]}), "images"),
    ] {
        refused(Route::OllamaGenerate, &with(&base, &more), Kind::Unsupported, name);
    }
}

// === Embeddings ===

#[test]
fn embedding_requests_are_translated_both_ways() {
    check(
        Route::OpenAiEmbeddings,
        &json!({"model": "m", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8, "user": "u"}),
        "/api/embed",
        &json!({"model": "up", "input": ["a", "b"], "dimensions": 8}),
    );
    check(
        Route::OllamaEmbed,
        &json!({"model": "m", "input": "a", "truncate": true, "keep_alive": 1, "dimensions": 8, "options": {"num_ctx": 1}}),
        "/embeddings",
        &json!({"model": "up", "input": "a", "dimensions": 8, "encoding_format": "float"}),
    );
    check(
        Route::OllamaEmbeddings,
        &json!({"model": "m", "prompt": "a"}),
        "/embeddings",
        &json!({"model": "up", "input": "a", "encoding_format": "float"}),
    );
    for input in [json!([1, 2]), json!([[1], [2]])] {
        let body = json!({"model": "m", "input": input});
        refused(Route::OpenAiEmbeddings, &body, Kind::Unsupported, "input");
    }
    refused(Route::OllamaEmbed, &json!({"model": "m"}), Kind::Unsupported, "input");
    refused(Route::OllamaEmbed, &json!({"model": "m", "input": [1]}), Kind::InvalidField, "input");
}

// === Whole bodies ===

#[test]
fn a_number_that_nothing_holds_is_told() {
    let body = br#"{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":1e999}"#;
    let ask = Ask::parse(Route::ChatCompletions, body.to_vec()).unwrap();
    assert!(ask.outgoing(Dialect::OpenAi, "up", None).is_ok(), "it is JSON");
    let error = ask.outgoing(Dialect::Ollama, "up", None).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidJson);
}

#[test]
fn half_a_surrogate_pair_does_not_stop_a_translation() {
    let body = br#"{"model":"m","messages":[{"role":"user","content":"cut \ud83d"}]}"#;
    let ask = Ask::parse(Route::ChatCompletions, body.to_vec()).unwrap();
    let body = ask.outgoing(Dialect::Ollama, "up", None).unwrap().body;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["messages"][0]["content"], "cut \u{fffd}");
}
