use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::llm::Stream;

fn request(route: Route, stream: bool, usage: bool) -> (Ask, Reply) {
    let body = json!({
        "model": "alias", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x",
        "stream": stream, "stream_options": {"include_usage": usage},
    });
    let ask = Ask::parse(route, body.to_string().into_bytes()).unwrap();
    let created = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let reply = Reply::new(&ask, "alias", "chatcmpl-7", created);
    (ask, reply)
}

fn turn(route: Route, upstream: Dialect, body: &str) -> Result<(String, Usage), Fault> {
    let (ask, reply) = request(route, false, false);
    let (out, usage) = whole(&reply, &ask, upstream, body.as_bytes())?;
    Ok((String::from_utf8(out).unwrap(), usage))
}

/// What a whole answer becomes, as JSON.
fn become_json(route: Route, upstream: Dialect, body: &Value) -> Value {
    serde_json::from_str(&turn(route, upstream, &body.to_string()).unwrap().0).unwrap()
}

const TOKENS: Usage = Usage { input: 3, output: 4, cached: 0, estimated: false };

#[test]
fn a_whole_answer_goes_on_as_it_came_with_another_model() {
    let body = " {\"id\":\"u\", \"model\" : \"gpt\",\"choices\":[{\"message\":{\"content\":\"model\"}}],\n\"usage\":{\"completion_tokens\":4,\"prompt_tokens\":3},\"x\":1e2} ";
    let (out, usage) = turn(Route::ChatCompletions, Dialect::OpenAi, body).unwrap();
    assert_eq!(out, body.replace("\"gpt\"", "\"alias\""));
    assert_eq!(usage, TOKENS);
    let body = "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"prompt_eval_count\":3,\"eval_count\":4}\n";
    let (out, usage) = turn(Route::OllamaChat, Dialect::Ollama, body).unwrap();
    assert_eq!(out, body.replace("\"m\"", "\"alias\""));
    assert_eq!(usage, TOKENS);
    for (route, body) in [
        (
            Route::OpenAiEmbeddings,
            "{\"object\":\"list\",\"data\":[{\"embedding\":\"AAAA\"}],\"model\":\"alias\",\"usage\":{\"prompt_tokens\":3}}",
        ),
        (Route::OllamaEmbed, "{\"model\":\"alias\",\"embeddings\":[[1]],\"prompt_eval_count\":3}"),
        (Route::OllamaEmbed, "{\"model\":\"alias\",\"embeddings\":[],\"prompt_eval_count\":3}"),
    ] {
        let (out, usage) = turn(route, route.dialect(), body).unwrap();
        assert_eq!((out.as_str(), usage.input), (body, 3));
    }
    let older = "{\"embedding\":[0.5]}";
    assert_eq!(
        turn(Route::OllamaEmbeddings, Dialect::Ollama, older).unwrap(),
        // The prompt, "x" with its quotes, is 3 bytes; this form tells no tokens.
        (older.to_owned(), Usage { input: 1, estimated: true, ..Usage::default() })
    );
}

#[test]
fn what_is_no_answer_is_a_fault() {
    for body in [
        "",
        "null",
        "{}",
        "[]",
        "{\"choices\":null}",
        "{\"choices\":[]}",
        "{\"choices\":[{}]",
        "{\"choices\":[{\"text\":\"\"}],\"choices\":[]}",
        "{\"choices\":[{}]}",
        "{\"choices\":[{\"message\":null,\"text\":null,\"finish_reason\":\"stop\"}]}",
        "\u{feff}{}",
        "<html>",
    ] {
        let fault = turn(Route::ChatCompletions, Dialect::OpenAi, body).unwrap_err();
        assert!(matches!(fault, Fault::Malformed(_)), "{body}");
    }
    for body in ["{}", "{\"message\":{},\"done\":false}", "{\"message\":{}}", "{\"done\":true}"] {
        let fault = turn(Route::OllamaChat, Dialect::Ollama, body).unwrap_err();
        assert!(matches!(fault, Fault::Malformed(_)), "{body}");
    }
    for (route, upstream) in [
        (Route::OpenAiEmbeddings, Dialect::OpenAi),
        (Route::OllamaEmbed, Dialect::Ollama),
        (Route::OllamaEmbeddings, Dialect::Ollama),
        (Route::OllamaEmbed, Dialect::OpenAi),
    ] {
        let fault = turn(route, upstream, "{\"data\":[]}").unwrap_err();
        assert!(matches!(fault, Fault::Malformed(_)), "{route:?}");
    }
    let (ask, reply) = request(Route::ChatCompletions, false, false);
    assert!(whole(&reply, &ask, Dialect::OpenAi, b"{\"\xff\":1}").is_err());
    let told = Fault::InBand { message: "no".to_owned(), status: Some(500) };
    let body = "{\"error\":{\"message\":\"no\",\"code\":500},\"choices\":[{}]}";
    assert_eq!(turn(Route::ChatCompletions, Dialect::OpenAi, body), Err(told.clone()));
    assert_eq!(turn(Route::OllamaChat, Dialect::OpenAi, body), Err(told));
}

#[test]
fn an_ollama_answer_becomes_a_completion() {
    let ollama = json!({
        "model": "m", "created_at": "x", "done": true, "done_reason": "stop",
        "message": {"role": "assistant", "content": "hi", "thinking": "hm"},
        "prompt_eval_count": 3, "eval_count": 4,
    });
    let expected = json!({
        "id": "chatcmpl-7", "object": "chat.completion", "created": 1_700_000_000, "model": "alias",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": "hi", "reasoning_content": "hm"},
            "logprobs": null, "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    });
    assert_eq!(become_json(Route::ChatCompletions, Dialect::Ollama, &ollama), expected);
    let ollama = json!({
        "done": true, "logprobs": [{"token": "x"}],
        "message": {"content": "", "tool_calls": [
            {"function": {"name": "f", "arguments": {"x": [1]}}}, {"id": "c", "function": {"name": "g", "arguments": {}}},
        ]},
    });
    let found = become_json(Route::ChatCompletions, Dialect::Ollama, &ollama);
    let expected = json!([{
        "index": 0, "finish_reason": "tool_calls", "logprobs": {"content": [{"token": "x"}], "refusal": null},
        "message": {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_7_0", "type": "function", "function": {"name": "f", "arguments": "{\"x\":[1]}"}},
            {"id": "c", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ]},
    }]);
    assert_eq!(found["choices"], expected);
    assert_eq!(found.get("usage"), None, "nothing was told");
    let generate = json!({"response": "hi", "done": true, "done_reason": "length"});
    let found = become_json(Route::Completions, Dialect::Ollama, &generate);
    let expected = json!([{"index": 0, "text": "hi", "logprobs": null, "finish_reason": "length"}]);
    assert_eq!((&found["object"], &found["choices"]), (&json!("text_completion"), &expected));
}

#[test]
fn a_completion_becomes_an_ollama_answer() {
    let openai = json!({
        "choices": [{"index": 0, "finish_reason": "tool_calls", "logprobs": {"content": [{"token": "x"}]}, "message": {
            "role": "assistant", "content": "hi", "reasoning": "hm",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}],
        }}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    });
    let expected = json!({
        "model": "alias", "created_at": "2023-11-14T22:13:20.000000000Z",
        "message": {"role": "assistant", "content": "hi", "thinking": "hm", "tool_calls": [
            {"id": "c", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}},
        ]},
        "logprobs": [{"token": "x"}], "done": true, "done_reason": "stop", "total_duration": 0, "load_duration": 0,
        "prompt_eval_count": 3, "prompt_eval_duration": 0, "eval_count": 4, "eval_duration": 0,
    });
    assert_eq!(become_json(Route::OllamaChat, Dialect::OpenAi, &openai), expected);
    for openai in [
        json!({"choices": [{"message": {"content": "hi"}, "finish_reason": "length"}]}),
        json!({"choices": [{"text": "hi", "finish_reason": "length"}]}),
    ] {
        let expected = json!({
            "model": "alias", "created_at": "2023-11-14T22:13:20.000000000Z", "response": "hi", "done": true,
            "done_reason": "length", "total_duration": 0, "load_duration": 0, "prompt_eval_duration": 0, "eval_duration": 0,
        });
        assert_eq!(become_json(Route::OllamaGenerate, Dialect::OpenAi, &openai), expected);
    }
}

#[test]
fn vectors_become_the_other_dialects() {
    let (ask, mut reply) = request(Route::OpenAiEmbeddings, false, false);
    let ollama =
        json!({"model": "m", "embeddings": [[0.5, -1], [1e-3, 2.0]], "prompt_eval_count": 3})
            .to_string();
    let (float, usage) = whole(&reply, &ask, Dialect::Ollama, ollama.as_bytes()).unwrap();
    assert_eq!(usage.input, 3);
    let expected = json!({
        "object": "list", "model": "alias", "usage": {"prompt_tokens": 3, "total_tokens": 3},
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -1]},
            {"object": "embedding", "index": 1, "embedding": [0.001, 2.0]},
        ],
    });
    assert_eq!(serde_json::from_slice::<Value>(&float).unwrap(), expected);
    reply.base64 = true;
    let (coded, _) = whole(&reply, &ask, Dialect::Ollama, ollama.as_bytes()).unwrap();
    let coded: Value = serde_json::from_slice(&coded).unwrap();
    let huge = "{\"embeddings\":[[1e39]]}";
    assert!(whole(&reply, &ask, Dialect::Ollama, huge.as_bytes()).is_err(), "no 32-bit float");
    // 0.5 and -1 as little-endian floats: 0000003f 000080bf.
    assert_eq!(coded["data"][0]["embedding"], "AAAAPwAAgL8=");

    let openai = json!({
        "data": [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": "AAAAPwAAgL8="}],
        "usage": {"prompt_tokens": 3},
    });
    let expected = json!({
        "model": "alias", "embeddings": [[0.5, -1.0], [2]], "total_duration": 0, "load_duration": 0, "prompt_eval_count": 3,
    });
    assert_eq!(become_json(Route::OllamaEmbed, Dialect::OpenAi, &openai), expected);
    let one = json!({"data": [{"index": 0, "embedding": [0.25]}]});
    assert_eq!(
        become_json(Route::OllamaEmbeddings, Dialect::OpenAi, &one),
        json!({"embedding": [0.25]})
    );
    for wrong in [
        json!([{"embedding": "!"}]),
        json!([{"embedding": "AAA="}]),
        json!([{"embedding": ["x"]}]),
        json!([1]),
        json!([{}]),
        json!([{"embedding": "AADAfw=="}]),
        json!({"embedding": [1]}),
    ] {
        let body = json!({"data": wrong}).to_string();
        let fault = turn(Route::OllamaEmbed, Dialect::OpenAi, &body).unwrap_err();
        assert!(matches!(fault, Fault::Malformed(_)), "{body}");
    }
    let fault = turn(Route::OllamaEmbeddings, Dialect::OpenAi, &openai.to_string()).unwrap_err();
    assert!(matches!(fault, Fault::Malformed(_)), "two vectors for one text");
}

// === Whole answers as streams ===

fn as_stream(route: Route, usage: bool, upstream: Dialect, body: &str) -> Result<String, Fault> {
    let (ask, mut reply) = request(route, true, usage);
    let (out, _) = whole_as_stream(&mut reply, &ask, upstream, body.as_bytes())?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn a_whole_completion_becomes_a_stream() {
    let body = serde_json::to_string_pretty(&json!({
        "id": "u", "model": "gpt", "choices": [
            {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": "a\nb", "x": [1, 2],
             "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}},
            {"index": 1, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 3},
    }))
    .unwrap();
    let head = "data: {\"id\":\"chatcmpl-7\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"alias\",\"choices\":[";
    let expected = [
        head, "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"a\\nb\",\"x\":[1,2],\"tool_calls\":[{\"id\":\"c\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"},\"index\":0}]},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
        head, "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"tool_calls\"}]}\n\n",
        head, "{\"index\":1,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
        head, "{\"index\":1,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n",
    ]
    .concat();
    let found = as_stream(Route::ChatCompletions, false, Dialect::OpenAi, &body).unwrap();
    assert_eq!(found, format!("{expected}data: [DONE]\n\n"));
    let found = as_stream(Route::ChatCompletions, true, Dialect::OpenAi, &body).unwrap();
    let (before, after) = found.split_at(expected.len());
    assert_eq!(before, expected);
    assert!(after.starts_with(&format!("{head}],\"usage\":{{ ")), "{after}");
    let found = as_stream(
        Route::Completions,
        false,
        Dialect::OpenAi,
        "{\"choices\":[{\"text\":\"x\",\"finish_reason\":\"length\"}]}",
    )
    .unwrap();
    let head = head.replace("chat.completion.chunk", "text_completion");
    let expected = [
        &head,
        "{\"index\":0,\"text\":\"x\",\"logprobs\":null,\"finish_reason\":null}]}\n\n",
        &head,
        "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n",
    ];
    assert_eq!(found, expected.concat());
    let (ask, mut reply) = request(Route::ChatCompletions, true, false);
    let fault =
        whole_as_stream(&mut reply, &ask, Dialect::OpenAi, b"{\"error\":\"x\"}").unwrap_err();
    assert_eq!(fault, Fault::InBand { message: "x".to_owned(), status: None });
}

#[test]
fn a_whole_ollama_answer_is_the_last_line_of_a_stream() {
    let body = json!({"model": "m", "message": {"content": "a\nb"}, "done": true});
    let pretty = serde_json::to_string_pretty(&body).unwrap();
    let found =
        as_stream(Route::OllamaChat, false, Dialect::Ollama, &format!("{pretty}\r\n")).unwrap();
    assert_eq!(found.matches('\n').count(), 1);
    let mut expected = body;
    expected["model"] = "alias".into();
    assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), expected);
}

#[test]
fn a_whole_answer_and_its_stream_say_the_same_across() {
    let pretty = "{\n\"choices\": [\n{\"message\": {\"content\": [\n{\"type\":\"text\",\"text\":\"a\\nb\"}]}, \"logprobs\": {\"content\": [\n1]}, \"finish_reason\":\"stop\"}]}";
    let found = as_stream(Route::OllamaChat, false, Dialect::OpenAi, pretty).unwrap();
    let lines: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["message"]["content"], "a\nb");
    assert_eq!(lines[1]["done"], true);
    let ollama = "{\"message\":{\"content\":\"hi\"},\"done\":true,\"eval_count\":1}";
    let found = as_stream(Route::ChatCompletions, true, Dialect::Ollama, ollama).unwrap();
    let (ask, mut reply) = request(Route::ChatCompletions, true, true);
    let mut stream = Stream::new(&reply, &ask, Dialect::Ollama, 1000);
    let mut expected = Vec::new();
    stream.feed(&mut reply, format!("{ollama}\n").as_bytes(), &mut expected).unwrap();
    assert_eq!(found.as_bytes(), expected);
}

#[test]
fn a_stream_that_is_called_json_is_taken_as_what_it_is() {
    let lines = "{\"message\":{\"content\":\"a\"},\"done\":false}\n{\"message\":{\"content\":\"\"},\"done\":true}\n";
    assert_eq!(as_stream(Route::OllamaChat, false, Dialect::Ollama, lines).unwrap(), lines);
    let events = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
    assert_eq!(as_stream(Route::ChatCompletions, false, Dialect::OpenAi, events).unwrap(), events);
    let across = as_stream(Route::ChatCompletions, false, Dialect::Ollama, lines).unwrap();
    assert!(across.ends_with("data: [DONE]\n\n"), "{across}");
    // One that was cut is no answer, and leaves no trace for the next attempt.
    let (ask, mut reply) = request(Route::ChatCompletions, true, false);
    let cut = &lines.as_bytes()[..60];
    let fault = whole_as_stream(&mut reply, &ask, Dialect::Ollama, cut).unwrap_err();
    assert!(matches!(fault, Fault::Malformed(_)));
    assert!(!reply.role_sent);
}

// === Error bodies ===

#[test]
fn the_sentence_in_an_error_body_is_found() {
    let check =
        |body: &str, expected: &str| assert_eq!(upstream_message(body.as_bytes()), expected);
    check(r#"{"error":{"message":"Invalid\nkey","type":"x","code":null}}"#, "Invalid key");
    check(r#"{"error":"model 'x' not found"}"#, "model 'x' not found");
    check(r#"{"object":"error","message":"too long","code":400}"#, "too long");
    check(r#"{"detail":[{"loc":["body"],"msg":"field required"}]}"#, "field required");
    check(r#"{"detail":"Not Found"}"#, "Not Found");
    check(r#"{"type":"about:blank","title":"Overloaded","status":503}"#, "Overloaded");
    check(r#"{"title":"Overloaded","detail":"try later"}"#, "try later");
    check("upstream connect error\r\n\x07 or disconnect", "upstream connect error or disconnect");
    check("", "");
    check("{}", "{}");
    check("<html>\n  <h1>502 Bad Gateway</h1>", "<html> <h1>502 Bad Gateway</h1>");
    let long = upstream_message(&b"a b".repeat(500));
    assert!(long.len() <= EXCERPT_BYTES_MAX && long.ends_with('…'), "{long}");
    let huge = format!("{{\"error\":\"{}\"}}", "x".repeat(100_000));
    assert!(upstream_message(huge.as_bytes()).len() <= EXCERPT_BYTES_MAX);
    assert!(upstream_message(b"\xff\xfe").len() < 10);
    let deep = "[".repeat(1000) + "\"x\"" + &"]".repeat(1000);
    assert!(upstream_message(deep.as_bytes()).len() <= EXCERPT_BYTES_MAX);
}

proptest! {
    #[test]
    fn no_answer_makes_it_panic(
        upstream in prop::sample::select(vec![Dialect::OpenAi, Dialect::Ollama]),
        route in prop::sample::select(vec![
            Route::ChatCompletions, Route::Completions, Route::OpenAiEmbeddings, Route::OllamaChat,
            Route::OllamaGenerate, Route::OllamaEmbed, Route::OllamaEmbeddings,
        ]),
        body in prop::sample::select(vec![
            r#"{"model":"m","choices":[{"index":0,"message":{"content":[{"type":"text","text":"x"}],"reasoning":"y","tool_calls":[{"id":"a","function":{"name":"f","arguments":"{}"}}]},"text":"x","logprobs":{"content":[]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1},"data":[{"index":0,"embedding":"AAAAPw=="}]}"#,
            r#"{"model":"m","message":{"content":"x","thinking":"y","tool_calls":[{"id":"a","function":{"name":"f","arguments":{}}}]},"response":"x","done":true,"done_reason":"stop","eval_count":1,"embeddings":[[0.5]],"embedding":[1],"error":""}"#,
        ]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut body = body.as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        upstream_message(&body);
        let (ask, mut reply) = request(route, true, true);
        if let Ok((out, _)) = whole(&reply, &ask, upstream, &body) {
            prop_assert!(serde_json::from_slice::<&RawValue>(&out).is_ok(), "{}", String::from_utf8_lossy(&out));
        }
        if !route.embeds() && let Ok((out, _)) = whole_as_stream(&mut reply, &ask, upstream, &body) {
            // What was made is a stream that ends well.
            let (ask, mut reply) = request(route, true, true);
            let mut stream = Stream::new(&reply, &ask, route.dialect(), 1 << 20);
            let fed = stream.feed(&mut reply, &out, &mut Vec::new());
            prop_assert!(fed.is_ok() && stream.done(), "{:?} {}", fed, String::from_utf8_lossy(&out));
        }
    }
}
