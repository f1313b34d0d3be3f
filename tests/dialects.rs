//! Both dialects, on both sides: what clients depend on, byte by byte where they do.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{Call, FakeUpstream, Step, answers};
use crate::support::sandbox::{Sandbox, free_port};
use crate::support::stream::{Dialect, Stream};
use crate::support::wire::Answer;

const DIALECTS: [Dialect; 2] = [Dialect::OpenAi, Dialect::Ollama];

fn echo() -> (Sandbox, Daemon) {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    (sandbox, daemon)
}

/// A text with what differs from run to run replaced.
fn normalised(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    // Each member that differs: its key, and what its value is replaced with.
    let members = [
        ("\"id\":\"", '"', "ID"),
        ("\"created\":", ',', "0"),
        ("\"created_at\":\"", '"', "TIME"),
        ("\"total_duration\":", ',', "0"),
        ("\"load_duration\":", ',', "0"),
        ("\"prompt_eval_duration\":", ',', "0"),
        ("\"eval_duration\":", '}', "0"),
    ];
    loop {
        let found = members
            .iter()
            .filter_map(|member| rest.find(member.0).map(|at| (at, member)))
            .min_by_key(|f| f.0);
        let Some((at, (key, end, replacement))) = found else { break };
        let value = &rest[at + key.len()..];
        let length = value.find(*end).unwrap_or(value.len());
        out.push_str(&rest[..at + key.len()]);
        out.push_str(replacement);
        rest = &value[length..];
    }
    out + rest
}

#[test]
fn an_openai_chat_stream_is_what_openai_clients_expect_to_the_byte() {
    let (_sandbox, daemon) = echo();
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello there", true));
    assert_eq!(answer.status(), 200);
    assert!(answer.header("content-type").unwrap().starts_with("text/event-stream"));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    let chunk = |delta: &str, finish: &str| {
        format!(
            "data: {{\"id\":\"ID\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"echo\",\
             \"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}]}}\n\n"
        )
    };
    let expected = [
        chunk("{\"role\":\"assistant\",\"content\":\"\"}", "null"),
        chunk("{\"content\":\"hello \"}", "null"),
        chunk("{\"content\":\"there\"}", "null"),
        chunk("{}", "\"stop\""),
        "data: [DONE]\n\n".to_owned(),
    ]
    .concat();
    assert_eq!(normalised(&answer.text()), expected);
    // The same with usage asked for: one more chunk, in front of the end.
    let body = json!({"model": "echo", "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "hello there"}]});
    let answer = daemon.ask(ask::post("/v1/chat/completions", &body));
    let stream = Stream::of(Dialect::OpenAi, &answer);
    stream.assert_normal("echo", "hello there", "with usage");
    let usage = stream.events[stream.events.len() - 2].json().unwrap();
    assert_eq!(usage["choices"], json!([]), "{usage}");
    assert_eq!(usage["usage"]["completion_tokens"], 2, "{usage}");
    assert!(usage["usage"]["total_tokens"].as_u64() >= Some(3), "{usage}");
}

#[test]
fn an_ollama_chat_stream_is_what_ollama_clients_expect() {
    let (_sandbox, daemon) = echo();
    for body in [
        ask::chat_body("echo", "hello there", true),
        json!({"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}),
    ] {
        let answer = daemon.ask(ask::post("/api/chat", &body));
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
        let stream = Stream::of(Dialect::Ollama, &answer);
        stream.assert_normal("echo", "hello there", "ollama chat");
        let first = stream.events[0].json().unwrap();
        assert_eq!(first["message"]["role"], "assistant");
        assert_eq!(first["done"], false);
        for event in &stream.events {
            let at = event.json().unwrap()["created_at"].as_str().unwrap().to_owned();
            assert!(
                at.len() >= 20
                    && at.as_bytes()[10] == b'T'
                    && (at.ends_with('Z') || at.contains('+')),
                "{at}"
            );
        }
        let last = stream.events.last().unwrap().json().unwrap();
        assert_eq!(last["done_reason"], "stop");
        for key in [
            "total_duration",
            "load_duration",
            "prompt_eval_count",
            "prompt_eval_duration",
            "eval_count",
            "eval_duration",
        ] {
            assert!(last[key].is_u64(), "{key} is missing: {last}");
        }
    }
}

#[test]
fn whole_answers_of_echo_have_every_member_that_clients_read() {
    let (_sandbox, daemon) = echo();
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hello there", false));
    assert!(answer.header("content-type").unwrap().starts_with("application/json"));
    let json = answer.json();
    assert_eq!(json["object"], "chat.completion");
    assert!(json["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(json["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(
        json["choices"][0],
        json!({"index": 0, "message": {"role": "assistant", "content": "hello there"}, "logprobs": null, "finish_reason": "stop"})
    );
    assert_eq!(json["usage"]["completion_tokens"], 2);

    let body = json!({"model": "echo", "prompt": "hello there"});
    let json = daemon.ask(ask::post("/v1/completions", &body)).json();
    assert_eq!(json["object"], "text_completion");
    assert_eq!(json["choices"][0]["text"], "hello there");
    assert_eq!(json["choices"][0]["finish_reason"], "stop");

    let json = daemon.ask(ask::chat(Dialect::Ollama, "echo", "hello there", false)).json();
    assert_eq!(json["message"], json!({"role": "assistant", "content": "hello there"}));
    assert_eq!(
        (&json["done"], &json["done_reason"], &json["model"]),
        (&json!(true), &json!("stop"), &json!("echo"))
    );

    let body = json!({"model": "echo", "prompt": "hello there", "stream": false});
    let json = daemon.ask(ask::post("/api/generate", &body)).json();
    assert_eq!(json["response"], "hello there");
    assert_eq!(json["done"], true);
}

#[test]
fn completions_and_generate_stream_too() {
    let (_sandbox, daemon) = echo();
    let body = json!({"model": "echo", "prompt": "hello there", "stream": true});
    let stream = Stream::of(Dialect::OpenAi, &daemon.ask(ask::post("/v1/completions", &body)));
    stream.assert_normal("echo", "hello there", "completions");
    assert_eq!(stream.distinct("object"), ["text_completion"]);
    let body = json!({"model": "echo", "prompt": "hello there"});
    let stream = Stream::of(Dialect::Ollama, &daemon.ask(ask::post("/api/generate", &body)));
    stream.assert_normal("echo", "hello there", "generate");
}

/// All the endpoints across all the sides.
#[test]
fn every_endpoint_works_over_either_kind_of_upstream() {
    let sandbox = Sandbox::new();
    let upstreams = DIALECTS
        .map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "two words")));
    let conf = Conf::new().fake("oa", &upstreams[0], "").fake("ol", &upstreams[1], "");
    let daemon = Daemon::start(&sandbox, &conf);
    for (index, upstream) in ["oa/x", "ol/x"].into_iter().enumerate() {
        for stream in [true, false] {
            for (dialect, path) in [
                (Dialect::OpenAi, "/v1/chat/completions"),
                (Dialect::OpenAi, "/v1/completions"),
                (Dialect::Ollama, "/api/chat"),
                (Dialect::Ollama, "/api/generate"),
            ] {
                let context = format!("{path} over {upstream}, stream={stream}");
                let mut body = json!({"model": upstream, "stream": stream});
                if path.contains("chat") {
                    body["messages"] = json!([{"role": "user", "content": "hi"}]);
                } else {
                    body["prompt"] = json!("hi");
                }
                let answer = daemon.ask(ask::post(path, &body));
                assert_eq!(answer.status(), 200, "{context}: {}", answer.text());
                if stream {
                    Stream::of(dialect, &answer).assert_normal(upstream, "two words", &context);
                } else {
                    let json = answer.json();
                    assert_eq!(json["model"], upstream, "{context}: {json}");
                    assert!(json.to_string().contains("\"two words\""), "{context}: {json}");
                    if dialect == Dialect::OpenAi {
                        assert_eq!(
                            json["usage"],
                            json!({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}),
                            "{context}"
                        );
                    } else {
                        assert_eq!(
                            (&json["prompt_eval_count"], &json["eval_count"]),
                            (&json!(5), &json!(2)),
                            "{context}"
                        );
                    }
                }
            }
        }
        for (path, body, vectors) in [
            ("/v1/embeddings", json!({"input": "a"}), 1),
            ("/v1/embeddings", json!({"input": ["a", "b"]}), 2),
            ("/v1/embeddings", json!({"input": ["a", "b"], "encoding_format": "float"}), 2),
            ("/v1/embeddings", json!({"input": ["a", "b"], "encoding_format": "base64"}), 2),
            ("/api/embed", json!({"input": "a"}), 1),
            ("/api/embed", json!({"input": ["a", "b"]}), 2),
            ("/api/embeddings", json!({"prompt": "a"}), 1),
        ] {
            let mut body = body;
            body["model"] = json!(upstream);
            let context = format!("{path} {body}");
            let answer = daemon.ask(ask::post(path, &body));
            assert_eq!(answer.status(), 200, "{context}: {}", answer.text());
            assert_eq!(
                vectors_of(path, &body, &answer.json()),
                vec![vec![0.25, -0.5, 1.0]; vectors],
                "{context}: {}",
                answer.text()
            );
        }
        let asked = upstreams[index].seen();
        let own = if index == 0 { "/v1/" } else { "/api/" };
        assert!(
            asked.iter().all(|seen| seen.call.path.starts_with(own)),
            "an upstream was asked in a foreign dialect"
        );
        assert!(
            asked.iter().all(|seen| seen.call.model() == "x"),
            "the upstream's own name of the model"
        );
    }
}

/// The vectors of an answer, whatever its form.
fn vectors_of(path: &str, body: &Value, json: &Value) -> Vec<Vec<f64>> {
    use base64::Engine;
    let floats = |value: &Value| -> Vec<f64> {
        value
            .as_array()
            .unwrap_or_else(|| panic!("no vector: {value}"))
            .iter()
            .map(|x| x.as_f64().unwrap())
            .collect()
    };
    match path {
        "/api/embeddings" => vec![floats(&json["embedding"])],
        "/api/embed" => json["embeddings"].as_array().unwrap().iter().map(floats).collect(),
        _ => {
            assert_eq!(json["object"], "list");
            let data = json["data"].as_array().unwrap().iter().enumerate().map(|(index, item)| {
                assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(index)));
                if body["encoding_format"] == "base64" {
                    let text =
                        item["embedding"].as_str().unwrap_or_else(|| panic!("not base64: {item}"));
                    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
                    bytes
                        .chunks_exact(4)
                        .map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap())))
                        .collect()
                } else {
                    floats(&item["embedding"])
                }
            });
            data.collect()
        }
    }
}

#[test]
fn embeddings_of_echo_are_the_same_each_time_in_every_form() {
    let (_sandbox, daemon) = echo();
    let get = |path: &str, body: Value| {
        let answer = daemon.ask(ask::post(path, &body));
        assert_eq!(answer.status(), 200, "{path} {body}: {}", answer.text());
        vectors_of(path, &body, &answer.json())
    };
    let one = get("/v1/embeddings", json!({"model": "echo", "input": "hello"}));
    let norm: f64 = one[0].iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!((norm - 1.0).abs() < 1e-3, "{norm}");
    let close = |a: &[f64], b: &[f64]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
    };
    for (path, body) in [
        ("/v1/embeddings", json!({"model": "echo", "input": "hello", "encoding_format": "base64"})),
        ("/v1/embeddings", json!({"model": "echo", "input": ["hello"]})),
        ("/api/embed", json!({"model": "echo", "input": "hello"})),
        ("/api/embeddings", json!({"model": "echo", "prompt": "hello"})),
    ] {
        assert!(close(&one[0], &get(path, body)[0]), "{path}");
    }
    let other = get("/v1/embeddings", json!({"model": "echo", "input": "other"}));
    assert!(!close(&one[0], &other[0]));
}

/// Same dialect on both sides: the bytes of the upstream, odd as they are.
#[test]
fn events_of_the_same_dialect_are_forwarded_to_the_byte() {
    let sandbox = Sandbox::new();
    let openai = b"data: {\"id\":\"x\" , \"model\":\"same\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"odd\":[1, 2.50, 1e3]}\n\n\
        data: {\"id\":\"x\",\"model\":\"same\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\u00e9 \\/ \xc3\xa9\"},\"finish_reason\":null}],\"system_fingerprint\":null}\n\n\
        data: {\"id\":\"x\",\"model\":\"same\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n\
        data: [DONE]\n\n";
    let ollama = b"{\"model\":\"same\" ,\"message\":{\"role\":\"assistant\",\"content\":\"\\u00e9\"},\"done\":false,\"odd\":1.0}\n\
        {\"model\":\"same\",\"created_at\":\"x\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"context\":[1,2]}\n";
    let bytes: [&'static [u8]; 2] = [openai, ollama];
    let upstreams = [0, 1].map(|index| {
        FakeUpstream::start(DIALECTS[index], move |call| {
            if let Some(catalog) = answers::catalog(call) {
                return catalog;
            }
            let mut steps = vec![Step::Send(answers::stream_head(call.dialect))];
            // However the upstream cuts its bytes into chunks.
            let size = if call.prompt() == "small" { 7 } else { 100_000 };
            steps.extend(bytes[index].chunks(size).map(|piece| Step::Send(answers::chunk(piece))));
            steps.push(Step::Send(answers::LAST_CHUNK.to_vec()));
            steps
        })
    });
    let conf = Conf::new()
        .fake("oa", &upstreams[0], "")
        .fake("ol", &upstreams[1], "")
        .model("same", "oa/same", &[])
        .model("alias", "ol/same", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    for prompt in ["small", "large"] {
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, "same", prompt, true));
        assert_eq!(answer.text(), String::from_utf8_lossy(openai), "{prompt}");
        let answer = daemon.ask(ask::chat(Dialect::Ollama, "alias", prompt, true));
        let expected = String::from_utf8_lossy(ollama).replace("\"same\"", "\"alias\"");
        assert_eq!(answer.text(), expected, "{prompt}: only the model's name may differ");
    }
}

/// A request of the same dialect reaches the upstream as it was written.
#[test]
fn a_request_reaches_an_upstream_of_its_dialect_to_the_byte() {
    let sandbox = Sandbox::new();
    let upstreams =
        DIALECTS.map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "hello")));
    let conf = Conf::new()
        .fake("oa", &upstreams[0], "")
        .fake("ol", &upstreams[1], "")
        .model("one", "oa/real-one", &[])
        .model("two", "ol/real-two", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let odd = r#"{ "messages" : [{"role":"user","content":"\u00e9 \/ é","name":"x"}], "unknown":{"a":[1.50,1e5,{"model":"inner"}]},"model" :"MODEL" ,"stream":false,"big":123456789012345678901234567890}"#;
    for (upstream, path, model, real) in
        [(0, "/v1/chat/completions", "one", "real-one"), (1, "/api/chat", "two", "real-two")]
    {
        let sent = odd.replace("MODEL", model);
        let answer = daemon.ask(ask::post_with(path, "", sent.as_bytes()));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let seen = upstreams[upstream].seen();
        let got = String::from_utf8_lossy(&seen[0].call.body).into_owned();
        assert_eq!(got, odd.replace("MODEL", real));
        assert_eq!(seen[0].call.path, path);
    }
    // A stream of an OpenAI upstream is asked for its usage, and nothing else is touched.
    let sent = odd.replace("MODEL", "one").replace("\"stream\":false", "\"stream\":true");
    daemon.ask(ask::post_with("/v1/chat/completions", "", sent.as_bytes()));
    let seen = upstreams[0].seen();
    let json = &seen[1].call.json;
    assert_eq!(json["stream_options"]["include_usage"], true);
    let mut without = json.clone();
    without.as_object_mut().unwrap().remove("stream_options");
    let mut expected: Value = serde_json::from_str(&sent).unwrap();
    expected["model"] = json!("real-one");
    assert_eq!(without, expected);
}

#[test]
fn usage_that_the_client_did_not_ask_for_is_not_shown_to_it() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "two words"));
    let daemon =
        Daemon::start(&sandbox, &Conf::new().fake("oa", &upstream, "").model("m", "oa/x", &[]));
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "m", "hi", true));
    assert!(!answer.text().contains("prompt_tokens"), "{}", answer.text());
    Stream::of(Dialect::OpenAi, &answer).assert_normal("m", "two words", "no usage");
    for (options, wanted) in [
        (json!({"include_usage": true}), true),
        (json!({"include_usage": false}), false),
        (json!(null), false),
        (json!({}), false),
    ] {
        let mut body = ask::chat_body("m", "hi", true);
        body["stream_options"] = options.clone();
        let answer = daemon.ask(ask::post("/v1/chat/completions", &body));
        assert_eq!(answer.text().contains("prompt_tokens"), wanted, "{options}: {}", answer.text());
    }
    // To the Ollama client it belongs to the last line.
    let stream =
        Stream::of(Dialect::Ollama, &daemon.ask(ask::chat(Dialect::Ollama, "m", "hi", true)));
    let last = stream.events.last().unwrap().json().unwrap();
    assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(5), &json!(2)), "{last}");
}

fn tool_call(call: &Call) -> Vec<Step> {
    if let Some(catalog) = answers::catalog(call) {
        return catalog;
    }
    let arguments = "{\"city\":\"Ghent\",\"days\":2}";
    let events: Vec<Value> = match call.dialect {
        Dialect::OpenAi => {
            let chunk = |delta: Value, finish: Value| {
                json!({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": call.model(),
                    "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
            };
            vec![
                chunk(json!({"role": "assistant", "content": null}), Value::Null),
                chunk(
                    json!({"tool_calls": [{"index": 0, "id": "call_7", "type": "function",
                    "function": {"name": "weather", "arguments": ""}}]}),
                    Value::Null,
                ),
                chunk(
                    json!({"tool_calls": [{"index": 0, "function": {"arguments": &arguments[..10]}}]}),
                    Value::Null,
                ),
                chunk(
                    json!({"tool_calls": [{"index": 0, "function": {"arguments": &arguments[10..]}}]}),
                    Value::Null,
                ),
                chunk(json!({}), "tool_calls".into()),
            ]
        }
        Dialect::Ollama => vec![
            json!({"model": call.model(), "created_at": "2026-01-02T03:04:05Z", "done": false, "message": {"role": "assistant",
                "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Ghent", "days": 2}}}]}}),
            json!({"model": call.model(), "created_at": "2026-01-02T03:04:05Z", "done": true, "done_reason": "stop",
                "message": {"role": "assistant", "content": ""}, "total_duration": 1, "eval_count": 3, "prompt_eval_count": 4}),
        ],
    };
    let mut steps = vec![Step::Send(answers::stream_head(call.dialect))];
    steps.extend(
        events.iter().map(|json| Step::Send(answers::chunk(&answers::event(call.dialect, json)))),
    );
    if call.dialect == Dialect::OpenAi {
        steps.push(Step::Send(answers::chunk(b"data: [DONE]\n\n")));
    }
    steps.push(Step::Send(answers::LAST_CHUNK.to_vec()));
    steps
}

#[test]
fn tool_calls_come_through_in_the_clients_own_form() {
    let sandbox = Sandbox::new();
    let upstreams = DIALECTS.map(|dialect| FakeUpstream::start(dialect, tool_call));
    let conf = Conf::new().fake("oa", &upstreams[0], "").fake("ol", &upstreams[1], "");
    let daemon = Daemon::start(&sandbox, &conf);
    let tools = json!([{"type": "function", "function": {"name": "weather", "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]);
    for (index, model) in ["oa/x", "ol/x"].into_iter().enumerate() {
        for client in DIALECTS {
            let context = format!("{model} {client:?}");
            let mut body = ask::chat_body(model, "weather?", true);
            body["tools"] = tools.clone();
            let answer = daemon.ask(ask::post(ask::chat_path(client), &body));
            assert_eq!(answer.status(), 200, "{context}: {}", answer.text());
            let sent =
                &upstreams[index].seen().last().unwrap().call.json["tools"][0]["function"]["name"]
                    .clone();
            assert_eq!(sent, "weather", "{context}");
            let stream = Stream::of(client, &answer);
            assert_eq!(stream.errors(), [], "{context}");
            assert_eq!(stream.terminators(), 1, "{context}: {stream:#?}");
            match client {
                Dialect::OpenAi => {
                    let deltas: Vec<Value> = stream
                        .events
                        .iter()
                        .filter_map(|event| {
                            event.json()?.pointer("/choices/0/delta/tool_calls/0").cloned()
                        })
                        .collect();
                    assert!(!deltas.is_empty(), "{context}: {stream:#?}");
                    let ids: Vec<&Value> =
                        deltas.iter().filter_map(|delta| delta.get("id")).collect();
                    assert_eq!(
                        ids.len(),
                        1,
                        "{context}: the id stands on the first fragment only: {deltas:#?}"
                    );
                    assert!(ids[0].as_str().is_some_and(|id| !id.is_empty()), "{context}");
                    assert!(deltas.iter().all(|delta| delta["index"] == 0), "{context}");
                    let arguments: String = deltas
                        .iter()
                        .filter_map(|delta| delta.pointer("/function/arguments")?.as_str())
                        .collect();
                    let arguments: Value = serde_json::from_str(&arguments).unwrap();
                    assert_eq!(arguments, json!({"city": "Ghent", "days": 2}), "{context}");
                    assert_eq!(stream.finish_reasons(), ["tool_calls"], "{context}");
                }
                Dialect::Ollama => {
                    let calls: Vec<Value> = stream
                        .events
                        .iter()
                        .filter_map(|event| {
                            event.json()?.pointer("/message/tool_calls/0/function").cloned()
                        })
                        .collect();
                    assert_eq!(calls.len(), 1, "{context}: {stream:#?}");
                    assert_eq!(calls[0]["name"], "weather", "{context}");
                    assert_eq!(
                        calls[0]["arguments"],
                        json!({"city": "Ghent", "days": 2}),
                        "{context}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_conversation_with_tools_and_images_crosses_over() {
    let sandbox = Sandbox::new();
    let upstreams =
        DIALECTS.map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "fine")));
    let conf = Conf::new().fake("oa", &upstreams[0], "").fake("ol", &upstreams[1], "");
    let daemon = Daemon::start(&sandbox, &conf);
    let png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    let openai = json!({"model": "ol/x", "stream": false, "max_tokens": 7, "temperature": 0.5, "stop": ["a"], "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{png}")}}]},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call_7", "type": "function", "function": {"name": "look", "arguments": "{\"at\":1}"}}]},
        {"role": "tool", "tool_call_id": "call_7", "content": "a dot"}]});
    let answer = daemon.ask(ask::post("/v1/chat/completions", &openai));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let got = upstreams[1].seen()[0].call.json.clone();
    assert_eq!(got["messages"][1]["images"], json!([png]), "{got:#}");
    assert_eq!(got["messages"][1]["content"], "what is it");
    assert_eq!(
        got["messages"][2]["tool_calls"][0]["function"],
        json!({"name": "look", "arguments": {"at": 1}}),
        "{got:#}"
    );
    assert_eq!(got["messages"][3]["content"], "a dot");
    assert_eq!(got["options"]["num_predict"], 7);
    assert_eq!(got["options"]["temperature"], 0.5);
    assert_eq!(got["stream"], false);

    let ollama = json!({"model": "oa/x", "stream": false, "options": {"num_predict": 7, "temperature": 0.5, "seed": 3}, "messages": [
        {"role": "user", "content": "what is it", "images": [png]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"at": 1}}}]},
        {"role": "tool", "tool_name": "look", "content": "a dot"}]});
    let answer = daemon.ask(ask::post("/api/chat", &ollama));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let got = upstreams[0].seen()[0].call.json.clone();
    let url = got
        .pointer("/messages/0/content/1/image_url/url")
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("{got:#}"));
    assert!(url.starts_with("data:image/") && url.ends_with(png), "{url}");
    let made = &got["messages"][1]["tool_calls"][0];
    assert_eq!(made["function"]["name"], "look");
    assert_eq!(made["function"]["arguments"], "{\"at\":1}", "{got:#}");
    assert_eq!(
        got["messages"][2]["tool_call_id"], made["id"],
        "the answer belongs to its call: {got:#}"
    );
    assert!(made["id"].is_string());
    assert_eq!(got["seed"], 3);
    let most = got
        .get("max_tokens")
        .or(got.get("max_completion_tokens"))
        .unwrap_or_else(|| panic!("{got:#}"));
    assert_eq!(most, 7);
}

/// A fallback that cannot carry the request is skipped.
#[test]
fn a_fallback_that_cannot_carry_images_or_tools_is_skipped() {
    let sandbox = Sandbox::new();
    let down = format!("http://127.0.0.1:{}/v1", free_port());
    let upstreams =
        DIALECTS.map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "fine")));
    let conf = Conf::new()
        .upstream("down", "openai", &down, "")
        .fake("plain", &upstreams[0], "")
        .fake("full", &upstreams[1], "")
        .text("[[model]]\nname = \"m\"\nprimary = \"down/x\"\nfallbacks = [{ model = \"plain/x\", tools = false, images = false }, \"full/x\"]");
    let daemon = Daemon::start(&sandbox, &conf);
    let mut body = ask::chat_body("m", "hi", false);
    body["tools"] = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    assert_eq!(daemon.ask(ask::post("/v1/chat/completions", &body)).status(), 200);
    assert_eq!((upstreams[0].seen().len(), upstreams[1].seen().len()), (0, 1));
    assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "m", "hi", false)).status(), 200);
    assert_eq!((upstreams[0].seen().len(), upstreams[1].seen().len()), (1, 1));
}

#[test]
fn thinking_and_json_mode_cross_over() {
    let sandbox = Sandbox::new();
    let upstreams = DIALECTS.map(|dialect| {
        FakeUpstream::start(dialect, move |call| {
            if let Some(catalog) = answers::catalog(call) {
                return catalog;
            }
            let mut steps = answers::good(call, "the answer");
            let thought = match dialect {
                Dialect::OpenAi => json!({"id": answers::ID, "object": "chat.completion.chunk", "created": 1, "model": call.model(),
                    "choices": [{"index": 0, "delta": {"reasoning_content": "hmm"}, "finish_reason": null}]}),
                Dialect::Ollama => json!({"model": call.model(), "created_at": "2026-01-02T03:04:05Z", "done": false,
                    "message": {"role": "assistant", "content": "", "thinking": "hmm"}}),
            };
            steps.insert(2, Step::Send(answers::chunk(&answers::event(dialect, &thought))));
            steps
        })
    });
    let conf = Conf::new().fake("oa", &upstreams[0], "").fake("ol", &upstreams[1], "");
    let daemon = Daemon::start(&sandbox, &conf);
    for model in ["oa/x", "ol/x"] {
        for client in DIALECTS {
            let mut body = ask::chat_body(model, "hi", true);
            if client == Dialect::OpenAi {
                body["response_format"] = json!({"type": "json_object"});
            } else {
                body["format"] = json!("json");
                body["think"] = json!(true);
            }
            let answer = daemon.ask(ask::post(ask::chat_path(client), &body));
            let context = format!("{model} {client:?}");
            assert_eq!(answer.status(), 200, "{context}: {}", answer.text());
            let stream = Stream::of(client, &answer);
            stream.assert_normal(model, "the answer", &context);
            let thoughts: Vec<Value> = stream
                .events
                .iter()
                .filter_map(|event| {
                    let json = event.json()?;
                    let paths: &[&str] = match client {
                        Dialect::OpenAi => {
                            &["/choices/0/delta/reasoning_content", "/choices/0/delta/reasoning"]
                        }
                        Dialect::Ollama => &["/message/thinking"],
                    };
                    paths.iter().find_map(|path| json.pointer(path).cloned())
                })
                .collect();
            assert!(
                thoughts.contains(&json!("hmm")),
                "{context}: the thought is lost: {stream:#?}"
            );
        }
    }
    let format = |upstream: usize| {
        upstreams[upstream].seen().iter().map(|s| s.call.json.clone()).collect::<Vec<_>>()
    };
    for json in format(0) {
        assert_eq!(json["response_format"]["type"], "json_object", "{json}");
    }
    for json in format(1) {
        assert_eq!(json["format"], "json", "{json}");
    }
}

#[test]
fn models_are_listed_and_found_in_both_dialects() {
    let sandbox = Sandbox::new();
    let upstreams =
        DIALECTS.map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "fine")));
    let conf = Conf::new()
        .fake("oa", &upstreams[0], "")
        .fake("ol", &upstreams[1], "")
        .model("plain", "oa/x", &[])
        .model("with:tag", "ol/x:7b", &[])
        .model("org/name:8b", "ol/hf.co/org/name:8b", &["oa/y"]);
    let daemon = Daemon::start(&sandbox, &conf);
    let list = daemon.ask(ask::get("/v1/models")).json();
    assert_eq!(list["object"], "list");
    let ids: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    for id in ["plain", "with:tag", "org/name:8b"] {
        assert!(ids.contains(&id), "{id} is not in {ids:?}");
        let one = daemon.ask(ask::get(&format!("/v1/models/{id}")));
        assert_eq!(one.status(), 200, "{id}: {}", one.text());
        assert_eq!(one.json()["id"], id);
    }
    for model in list["data"].as_array().unwrap() {
        assert_eq!(model["object"], "model");
        assert!(model["created"].is_u64() && model["owned_by"].is_string(), "{model}");
    }
    assert_eq!(daemon.ask(ask::get("/v1/models/nope")).status(), 404);
    let encoded = daemon.ask(ask::get("/v1/models/org%2Fname%3A8b"));
    assert_eq!(encoded.status(), 200, "clients encode the slash: {}", encoded.text());
    let tags = daemon.ask(ask::get("/api/tags")).json();
    let names: Vec<&str> =
        tags["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    for name in ["plain", "with:tag", "org/name:8b"] {
        assert!(
            names.iter().any(|have| *have == name || *have == format!("{name}:latest")),
            "{name} is not in {names:?}"
        );
    }
    for model in tags["models"].as_array().unwrap() {
        for key in ["name", "model", "modified_at", "digest"] {
            assert!(model[key].is_string(), "{key}: {model}");
        }
        assert!(model["size"].is_u64() && model["details"].is_object(), "{model}");
    }
    // Every name that is listed can be asked for.
    for name in ids.iter().chain(&names) {
        for client in DIALECTS {
            let answer = daemon.ask(ask::chat(client, name, "hi", false));
            assert_eq!(answer.status(), 200, "{name} is listed and not found: {}", answer.text());
            assert_eq!(answer.json()["model"], *name, "the name that was asked for");
        }
    }
    // Names: exactly, without `:latest`, by upstream.
    for (name, upstream, real) in [
        ("plain:latest", 0, "x"),
        ("oa/any/thing:at-all", 0, "any/thing:at-all"),
        ("ol/any:7b", 1, "any:7b"),
        ("org/name:8b", 1, "hf.co/org/name:8b"),
        ("with:tag", 1, "x:7b"),
    ] {
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, name, name, false));
        assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
        let seen = upstreams[upstream].seen();
        assert!(
            seen.iter().any(|seen| seen.call.prompt() == name && seen.call.model() == real),
            "{name} is not {real}"
        );
    }
    for name in ["nope", "nowhere/x", "with", "with:other", "oa/", "/x", ""] {
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, name, "hi", false));
        assert!(matches!(answer.status(), 404 | 400), "{name:?}: {}", answer.status());
        assert!(
            answer.status() == 400 || answer.code() == "model_not_found",
            "{name:?}: {}",
            answer.text()
        );
        let answer = daemon.ask(ask::chat(Dialect::Ollama, name, "hi", true));
        assert!(
            matches!(answer.status(), 404 | 400) && answer.json()["error"].is_string(),
            "{name:?}"
        );
    }
}

#[test]
fn the_rest_of_the_catalog_is_what_ollama_clients_probe() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, "fine"));
    let daemon = Daemon::start(
        &sandbox,
        &Conf::new().fake("ol", &upstream, "").model("m", "ol/fake-model", &[]),
    );
    assert_eq!(daemon.ask(ask::get("/")).text(), "Ollama is running");
    assert!(daemon.ask(ask::get("/api/version")).json()["version"].is_string());
    let ps = daemon.ask(ask::get("/api/ps"));
    assert_eq!(ps.status(), 200);
    assert!(ps.json()["models"].is_array());
    for body in [json!({"model": "m"}), json!({"name": "m"}), json!({"model": "ol/fake-model"})] {
        let show = daemon.ask(ask::post("/api/show", &body));
        assert_eq!(show.status(), 200, "{body}: {}", show.text());
        let json = show.json();
        assert_eq!(json["model_info"]["llama.context_length"], 131_072, "{json}");
        assert!(
            json["capabilities"].as_array().is_some_and(|all| all.contains(&json!("completion"))),
            "{json}"
        );
        assert!(json["details"].is_object());
    }
    assert_eq!(daemon.ask(ask::post("/api/show", &json!({"model": "nope"}))).status(), 404);
    assert_eq!(daemon.ask(ask::post("/api/show", &json!({}))).status(), 400);
}

#[test]
fn the_catalog_answers_within_a_second_while_an_upstream_hangs() {
    let sandbox = Sandbox::alone();
    let hanging = DIALECTS.map(|dialect| FakeUpstream::start(dialect, |_| vec![Step::Silence]));
    let good = FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, "fine"));
    let conf = Conf::new()
        .fake("hang-oa", &hanging[0], "")
        .fake("hang-ol", &hanging[1], "")
        .fake("good", &good, "")
        .upstream("down", "openai", &format!("http://127.0.0.1:{}/v1", free_port()), "")
        .model("mine", "hang-oa/x", &["good/fake-model"]);
    let daemon = Daemon::start(&sandbox, &conf);
    for round in 0..3 {
        for path in ["/v1/models", "/api/tags", "/api/ps", "/v1/models/mine", "/api/version", "/"] {
            let begun = Instant::now();
            let answer = daemon.ask(ask::get(path));
            assert_eq!(answer.status(), 200, "{path}");
            assert!(
                begun.elapsed() < daemon.allow(Duration::from_secs(1)),
                "{path} took {:?} in round {round}",
                begun.elapsed()
            );
            if matches!(path, "/v1/models" | "/api/tags") {
                assert!(
                    answer.text().contains("mine"),
                    "{path}: what is known is missing: {}",
                    answer.text()
                );
            }
        }
        let begun = Instant::now();
        let show = daemon.ask(ask::post("/api/show", &json!({"model": "mine"})));
        assert!(
            begun.elapsed() < daemon.allow(Duration::from_secs(1)),
            "/api/show took {:?}",
            begun.elapsed()
        );
        assert!(matches!(show.status(), 200 | 502 | 503 | 504), "{}", show.status());
    }
}

#[test]
fn bad_requests_are_refused_with_a_sentence_that_says_what_to_do() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "fine"));
    let daemon = Daemon::start(&sandbox, &Conf::new().fake("u", &upstream, ""));
    let deep =
        format!("{{\"model\":\"u/x\",\"messages\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", b"".to_vec()),
        ("half", b"{\"model\":\"u/x\",\"messages\":[".to_vec()),
        ("no object", b"[]".to_vec()),
        ("no object", b"\"x\"".to_vec()),
        ("no object", b"null".to_vec()),
        ("a word", b"hello".to_vec()),
        ("two values", b"{\"model\":\"u/x\",\"messages\":[]} {}".to_vec()),
        (
            "no UTF-8",
            b"{\"model\":\"u/x\",\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}".to_vec(),
        ),
        ("a lone surrogate in a key", b"{\"model\":\"u/x\",\"\\ud800\":1,\"messages\":3}".to_vec()),
        ("no model", b"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}".to_vec()),
        ("model is no text", b"{\"model\":3,\"messages\":[]}".to_vec()),
        ("model is null", b"{\"model\":null,\"messages\":[]}".to_vec()),
        (
            "stream is no boolean",
            b"{\"model\":\"u/x\",\"stream\":\"yes\",\"messages\":[]}".to_vec(),
        ),
        ("messages is no list", b"{\"model\":\"u/x\",\"messages\":\"x\"}".to_vec()),
        ("no messages", b"{\"model\":\"u/x\"}".to_vec()),
        ("deep", deep.into_bytes()),
        ("two models", b"{\"model\":\"u/x\",\"messages\":[],\"model\":3}".to_vec()),
        ("NaN", b"{\"model\":\"u/x\",\"messages\":[],\"temperature\":NaN}".to_vec()),
    ];
    for (name, body) in &cases {
        for client in DIALECTS {
            let answer = daemon.ask(ask::post_with(ask::chat_path(client), "", body));
            let context = format!("{name} {client:?}: {}", answer.text());
            if *name == "no messages" && client == Dialect::Ollama {
                // Ollama itself takes that as "load the model".
                continue;
            }
            assert_eq!(answer.status(), 400, "{context}");
            let json = answer.json();
            let sentence = match client {
                Dialect::OpenAi => {
                    assert!(
                        matches!(answer.code().as_str(), "invalid_json" | "invalid_field"),
                        "{context}"
                    );
                    assert_eq!(json["error"]["type"], "invalid_request_error", "{context}");
                    json["error"]["message"].as_str()
                }
                Dialect::Ollama => json["error"].as_str(),
            };
            let sentence = sentence.unwrap_or_default();
            assert!(sentence.len() > 8, "{context}");
            if name.contains("model") && !name.contains("two") {
                assert!(sentence.contains("model"), "which field? {context}");
            }
            if name.contains("stream") {
                assert!(sentence.contains("stream"), "which field? {context}");
            }
        }
    }
    assert_eq!(upstream.seen().len(), 0, "an upstream was asked: {:#?}", upstream.seen().last());
    // The connection stays good after such a refusal.
    let mut wire = daemon.connect();
    assert_eq!(wire.ask(ask::post_with("/v1/chat/completions", "", b"{")).status(), 400);
    assert_eq!(wire.ask(ask::chat(Dialect::OpenAi, "u/x", "hi", false)).status(), 200);
}

#[test]
fn large_bodies_with_images_arrive_whole() {
    let sandbox = Sandbox::new();
    let upstreams =
        DIALECTS.map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "fine")));
    let conf = Conf::new().fake("oa", &upstreams[0], "").fake("ol", &upstreams[1], "");
    let daemon = Daemon::start(&sandbox, &conf);
    let image = "QUJD".repeat(5 << 20);
    let openai = |model: &str| {
        json!({"model": model, "stream": false, "messages": [{"role": "user", "content": [{"type": "text", "text": "see"},
            {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{image}")}}]}]})
    };
    let begun = Instant::now();
    for (index, model) in ["oa/x", "ol/x"].into_iter().enumerate() {
        let answer = daemon.ask(ask::post("/v1/chat/completions", &openai(model)));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let seen = upstreams[index].seen();
        let json = &seen[0].call.json;
        let got = match index {
            0 => json
                .pointer("/messages/0/content/1/image_url/url")
                .unwrap()
                .as_str()
                .unwrap()
                .trim_start_matches("data:image/png;base64,"),
            _ => json.pointer("/messages/0/images/0").unwrap().as_str().unwrap(),
        };
        assert!(
            got == image,
            "the image changed on its way ({} bytes became {})",
            image.len(),
            got.len()
        );
    }
    eprintln!("two bodies of 20 MiB took {:?}", begun.elapsed());
    assert_eventually!(daemon.limit_now("server.bodies_total_max") == 0);
}

/// num_ctx: request > config > nothing; never invented.
#[test]
fn the_context_length_is_the_requests_or_the_configs_and_never_invented() {
    let sandbox = Sandbox::new();
    let upstreams =
        [(); 2].map(|()| FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, "fine")));
    let conf =
        Conf::new().fake("set", &upstreams[0], "num_ctx = 9000").fake("unset", &upstreams[1], "");
    let daemon = Daemon::start(&sandbox, &conf);
    let mut body = ask::chat_body("set/x", "plain", false);
    daemon.ask(ask::post("/api/chat", &body));
    body["options"] = json!({"num_ctx": 1234});
    daemon.ask(ask::post("/api/chat", &body));
    daemon.ask(ask::post("/v1/chat/completions", &ask::chat_body("set/x", "plain", false)));
    let seen: Vec<Value> = upstreams[0]
        .seen()
        .iter()
        .map(|seen| seen.call.json["options"]["num_ctx"].clone())
        .collect();
    assert_eq!(seen, [json!(9000), json!(1234), json!(9000)]);
    daemon.ask(ask::post("/api/chat", &ask::chat_body("unset/x", "plain", false)));
    let got = upstreams[1].seen()[0].call.json["options"]["num_ctx"].clone();
    // The Modelfile's own 8192 (which /api/show tells) or nothing; anything else is invented.
    assert!(got.is_null() || got == 8192, "{got}");
}

/// An OpenAI upstream that answers a stream request with a whole JSON answer is understood.
#[test]
fn a_whole_answer_to_a_stream_request_becomes_a_stream() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        answers::catalog(call)
            .unwrap_or_else(|| answers::json_answer(200, &answers::whole_json(call, "two words")))
    });
    let daemon = Daemon::start(&sandbox, &Conf::new().fake("u", &upstream, ""));
    for client in DIALECTS {
        let answer: Answer = daemon.ask(ask::chat(client, "u/x", "hi", true));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let stream = Stream::of(client, &answer);
        assert_eq!(stream.errors(), []);
        assert_eq!(stream.content(), "two words");
        assert_eq!(stream.terminators(), 1);
    }
}
