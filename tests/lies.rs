//! Upstreams that lie, in HTTP and in their streams: no answer of one request ever becomes that of
//! another, nothing grows, nothing hangs, and the next in the chain is asked.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{Call, FakeUpstream, Step, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::{Dialect, Stream};

const GOOD_TEXT: &str = "the fallback answers";
const DIALECTS: [Dialect; 2] = [Dialect::OpenAi, Dialect::Ollama];

/// A lie: what the upstream sends for a call, beside the good answer it would have sent.
type Lie = fn(&Call) -> Vec<Step>;

fn raw(text: &str) -> Vec<Step> {
    vec![Step::Send(text.as_bytes().to_vec()), Step::Pause(Duration::from_millis(100)), Step::Close]
}

fn good_body(call: &Call) -> String {
    answers::whole_json(call, "a lie").to_string()
}

/// Answers that are no answers: the fallback has to come, for whole and streamed requests alike.
fn no_answers() -> Vec<(&'static str, Lie)> {
    vec![
        ("not HTTP", |_| raw("SSH-2.0-OpenSSH_9.9\r\n")),
        ("an empty line first", |_| raw("\r\n\r\n")),
        ("HTTP/2", |_| raw("HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n")),
        ("a status of two digits", |_| raw("HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n")),
        ("a status of letters", |_| raw("HTTP/1.1 2xx OK\r\nContent-Length: 0\r\n\r\n")),
        ("a status of 99", |_| raw("HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n")),
        ("204", |_| raw("HTTP/1.1 204 No Content\r\n\r\n")),
        ("an empty 200", |_| raw("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")),
        ("a 200 in HTML", |_| {
            raw(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>",
            )
        }),
        ("a redirect", |call| {
            let body = good_body(call);
            raw(&format!(
                "HTTP/1.1 302 Found\r\nLocation: http://{}/v1/elsewhere\r\nContent-Length: {}\r\n\r\n{body}",
                "127.0.0.1:9",
                body.len()
            ))
        }),
        ("an upgrade", |_| {
            raw(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello",
            )
        }),
        ("304", |_| raw("HTTP/1.1 304 Not Modified\r\n\r\n")),
        ("interim answers for ever", |_| {
            vec![Step::Repeat(
                b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".to_vec(),
                Duration::from_millis(2),
            )]
        }),
        ("a head for ever", |_| {
            vec![
                Step::Send(b"HTTP/1.1 200 OK\r\n".to_vec()),
                Step::Repeat(
                    format!("X-Long: {}\r\n", "x".repeat(1000)).into_bytes(),
                    Duration::from_millis(1),
                ),
            ]
        }),
        ("a head line for ever", |_| {
            vec![
                Step::Send(b"HTTP/1.1 200 OK\r\nX: ".to_vec()),
                Step::Repeat(vec![b'x'; 4096], Duration::from_millis(1)),
            ]
        }),
        ("length and coding", |call| {
            let body = good_body(call);
            raw(&format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ))
        }),
        ("two lengths", |call| {
            let body = good_body(call);
            raw(&format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nContent-Length: 3\r\n\r\n{body}",
                body.len()
            ))
        }),
        ("a length below nought", |call| {
            raw(&format!("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}", good_body(call)))
        }),
        ("a length of i64::MAX", |call| {
            raw(&format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9223372036854775807\r\n\r\n{}",
                good_body(call)
            ))
        }),
        ("an unknown coding", |call| {
            raw(&format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{}",
                good_body(call)
            ))
        }),
        ("a bad chunk", |_| {
            raw(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            )
        }),
        ("a chunk of u64::MAX", |_| {
            raw(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
            )
        }),
        ("a chunk extension for ever", |_| {
            vec![
                Step::Send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5;".to_vec()),
                Step::Repeat(vec![b'x'; 4096], Duration::from_millis(1)),
            ]
        }),
        ("a gzip body", |_| {
            let gzip = [
                0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xab, 0xae, 5, 0, 0x43, 0xbf, 0xa6, 0xa3, 2, 0,
                0, 0,
            ];
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
                gzip.len()
            );
            vec![Step::Send([head.as_bytes(), &gzip].concat())]
        }),
        ("JSON that is no object", |_| vec![Step::Send(answers::whole(200, "", b"[1, 2]"))]),
        ("null", |_| vec![Step::Send(answers::whole(200, "", b"null"))]),
        ("an empty object", |_| vec![Step::Send(answers::whole(200, "", b"{}"))]),
        ("bytes that are no UTF-8", |_| {
            vec![Step::Send(answers::whole(200, "", b"{\"id\": \"\xff\xfe\"}"))]
        }),
        ("a bottomless pit", |_| {
            let deep = format!("{}{}", "{\"a\":".repeat(50_000), "1");
            vec![Step::Send(answers::whole(200, "", deep.as_bytes()))]
        }),
        ("status 600", |_| raw("HTTP/1.1 600 Odd\r\nContent-Length: 2\r\n\r\n{}")),
    ]
}

fn house(lies: &[(&'static str, Lie)]) -> (Sandbox, [FakeUpstream; 2], FakeUpstream, Daemon) {
    let sandbox = Sandbox::new();
    let table: Vec<Lie> = lies.iter().map(|(_, lie)| *lie).collect();
    let liars = DIALECTS.map(|dialect| {
        let table = table.clone();
        FakeUpstream::start(dialect, move |call| {
            answers::catalog(call).unwrap_or_else(|| match call.model().strip_prefix("lie-") {
                Some(index) => table[index.parse::<usize>().unwrap()](call),
                None => answers::good(call, "no lie"),
            })
        })
    });
    let good = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, GOOD_TEXT));
    let lines = "first_token_timeout = \"500ms\"\nanswer_timeout = \"500ms\"\nidle_timeout = \"400ms\"\nanswer_max = \"1MiB\"";
    let mut conf = Conf::new()
        .fake("oa", &liars[0], lines)
        .fake("ol", &liars[1], lines)
        .fake("good", &good, "");
    for index in 0..lies.len() {
        conf = conf.model(&format!("oa-{index}"), &format!("oa/lie-{index}"), &["good/x"]).model(
            &format!("ol-{index}"),
            &format!("ol/lie-{index}"),
            &["good/x"],
        );
    }
    let daemon = Daemon::start(&sandbox, &conf);
    (sandbox, liars, good, daemon)
}

#[test]
fn an_answer_that_is_none_moves_on_to_the_fallback() {
    let lies = no_answers();
    let (_sandbox, liars, _good, daemon) = house(&lies);
    let rss = daemon.process().rss_kib();
    let mut faults = Vec::new();
    for (index, (name, _)) in lies.iter().enumerate() {
        for upstream in ["oa", "ol"] {
            for client in DIALECTS {
                for stream in [true, false] {
                    let model = format!("{upstream}-{index}");
                    let begun = Instant::now();
                    let answer = daemon.ask(ask::chat(client, &model, "hi", stream));
                    let text = answer.text();
                    let right = answer.status() == 200
                        && text.contains(if stream { "fallback" } else { GOOD_TEXT })
                        && !text.contains("lie\"")
                        && begun.elapsed() < daemon.allow(Duration::from_millis(1500));
                    if right && stream {
                        Stream::of(client, &answer).assert_normal(&model, GOOD_TEXT, name);
                    }
                    if !right {
                        let took = begun.elapsed();
                        faults.push(format!("{name} over {upstream} to {client:?} stream={stream}: {} after {took:?}: {text:.300}", answer.status()));
                    }
                }
            }
        }
        assert!(daemon.process().alive(), "{name} killed it");
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    // A liar's connections are not kept.
    assert_eventually!(
        liars.iter().map(FakeUpstream::open).sum::<usize>() <= 4,
        "connections stay open"
    );
    assert!(
        daemon.process().rss_kib() < rss + 24 * 1024,
        "{rss} KiB became {} KiB",
        daemon.process().rss_kib()
    );
    daemon.assert_well("after all lies");
}

/// Bytes behind the end of an answer must never be taken for the next one's.
#[test]
fn what_stands_behind_an_answer_never_becomes_the_next_answer() {
    let poison = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{\"poison\":";
    let lies: Vec<(&'static str, Lie)> = vec![
        ("behind a length", |call| {
            let mut bytes = answers::whole(200, "", good_body(call).as_bytes());
            bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"poison\":true");
            vec![Step::Send(bytes)]
        }),
        ("behind the last chunk", |call| {
            let mut steps = answers::good(call, "a lie");
            steps.push(Step::Send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"poison\":true".to_vec()));
            steps
        }),
        ("a moment later", |call| {
            let mut steps = answers::good(call, "a lie");
            steps.push(Step::Pause(Duration::from_millis(30)));
            steps.push(Step::Send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"poison\":true".to_vec()));
            steps
        }),
        ("to a HEAD-like status", |_| {
            raw("HTTP/1.1 204 No Content\r\nContent-Length: 20\r\n\r\n{\"poison\":true}     ")
        }),
    ];
    assert!(poison.starts_with("HTTP"));
    let (_sandbox, _liars, _good, daemon) = house(&lies);
    for (index, (name, _)) in lies.iter().enumerate() {
        for upstream in ["oa", "ol"] {
            for stream in [false, true] {
                let model = format!("{upstream}-{index}");
                let first = daemon.ask(ask::chat(Dialect::OpenAi, &model, "hi", stream));
                assert_eq!(first.status(), 200, "{}", first.text());
                assert!(!first.text().contains("poison"), "{}", first.text());
                std::thread::sleep(Duration::from_millis(50));
                for _ in 0..3 {
                    let next = daemon.ask(ask::chat(
                        Dialect::OpenAi,
                        &format!("{upstream}/fine"),
                        "hi",
                        false,
                    ));
                    assert_eq!(next.status(), 200, "{}", next.text());
                    assert_eq!(
                        ask::whole_text(Dialect::OpenAi, &next.json()),
                        "no lie",
                        "{name}: {}",
                        next.text()
                    );
                }
            }
        }
    }
}

/// Many at once over few connections: each gets its own answer.
#[test]
fn answers_are_never_swapped_under_load() {
    let sandbox = Sandbox::new();
    let upstreams = DIALECTS.map(|dialect| {
        FakeUpstream::start(dialect, |call| {
            if let Some(catalog) = answers::catalog(call) {
                return catalog;
            }
            let prompt = call.prompt().to_owned();
            let mut steps = answers::good(call, &format!("answer to {prompt} and no other"));
            // Now and then a server closes behind its answer, or breaks off in front of it.
            match prompt.len() % 5 {
                0 => steps.push(Step::Close),
                1 if prompt.ends_with('7') => steps = vec![Step::Reset],
                _ => {}
            }
            steps
        })
    });
    let conf = Conf::new()
        .fake("oa", &upstreams[0], "concurrency_max = 8")
        .fake("ol", &upstreams[1], "concurrency_max = 8")
        .model("m", "oa/x", &["ol/y"])
        .model("n", "ol/y", &["oa/x"]);
    let daemon = Daemon::start(&sandbox, &conf);
    std::thread::scope(|scope| {
        for lane in 0..16 {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut wire = daemon.connect();
                for n in 0..60 {
                    let prompt = format!("{}{lane}-{n}", "p".repeat(n % 7));
                    let client = DIALECTS[n % 2];
                    let stream = n / 2 % 2 == 0;
                    let model = ["m", "n"][lane % 2];
                    let answer = wire.ask(ask::chat(client, model, &prompt, stream));
                    let expected = format!("answer to {prompt} and no other");
                    if answer.status() != 200 {
                        // Both links reset: that is an honest failure.
                        assert!(
                            prompt.ends_with('7') && prompt.len() % 5 == 1,
                            "{}: {}",
                            answer.status(),
                            answer.text()
                        );
                        continue;
                    }
                    if stream {
                        Stream::of(client, &answer).assert_normal(model, &expected, &prompt);
                    } else {
                        assert_eq!(ask::whole_text(client, &answer.json()), expected);
                    }
                }
            });
        }
    });
    assert_eventually!(daemon.limit_now("server.exchanges_max") == 0);
    daemon.assert_well("after the load");
}

/// Streams as odd as the SSE specification allows are understood.
#[test]
fn a_stream_of_events_may_be_written_in_any_way_that_the_specification_allows() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| {
        if let Some(catalog) = answers::catalog(call) {
            return catalog;
        }
        let event = |text: &str| {
            json!({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": call.model(),
                "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
            .to_string()
        };
        let (one, two, three) = (event("one"), event(" two"), event(" three"));
        let end = event("")
            .replace("\"finish_reason\":null", "\"finish_reason\":\"stop\"")
            .replace("\"content\":\"\"", "\"role\":\"assistant\"");
        let text = match call.prompt() {
            "crlf" => format!(
                "data: {one}\r\n\r\ndata: {two}\r\n\r\ndata: {three}\r\n\r\ndata: {end}\r\n\r\ndata: [DONE]\r\n\r\n"
            ),
            "no space" => {
                format!("data:{one}\n\ndata:{two}\n\ndata:{three}\n\ndata:{end}\n\ndata:[DONE]\n\n")
            }
            "comments" => format!(
                ": hi\n\ndata: {one}\n\n: OPENROUTER PROCESSING\n\ndata: {two}\n\n:\ndata: {three}\n\ndata: {end}\n\n:x\n\ndata: [DONE]\n\n"
            ),
            "fields" => format!(
                "event: message\nid: 1\nretry: 5\ndata: {one}\n\nevent: x\ndata: {two}\n\nunknown: y\ndata: {three}\n\ndata: {end}\n\ndata: [DONE]\n\n"
            ),
            "bom" => format!(
                "\u{feff}data: {one}\n\ndata: {two}\n\ndata: {three}\n\ndata: {end}\n\ndata: [DONE]\n\n"
            ),
            "split" => {
                let (left, right) = one.split_at(one.find(",\"choices\"").unwrap() + 1);
                format!(
                    "data: {left}\ndata: {right}\n\ndata: {two}\n\ndata: {three}\n\ndata: {end}\n\ndata: [DONE]\n\n"
                )
            }
            "empty" => format!(
                "data:\n\ndata: {one}\n\ndata\n\ndata: {two}\n\n\n\n\n\ndata: {three}\n\ndata: {end}\n\ndata: [DONE]\n\n"
            ),
            "glued" => format!(
                "data: {one}\n\ndata: {two}\n\ndata: {three}\n\ndata: {end}\n\ndata: [DONE]\n\ndata: {one}\n\nrubbish"
            ),
            "trailing space" => format!(
                "data: {one} \n\ndata: {two}\t\n\ndata: {three}\n\ndata: {end}\n\ndata: [DONE] \n\n"
            ),
            other => panic!("{other}"),
        };
        let mut steps = vec![Step::Send(answers::stream_head(Dialect::OpenAi))];
        steps.extend(text.as_bytes().chunks(11).map(|piece| Step::Send(answers::chunk(piece))));
        steps.push(Step::Send(answers::LAST_CHUNK.to_vec()));
        steps
    });
    let daemon =
        Daemon::start(&sandbox, &Conf::new().fake("u", &upstream, "").model("m", "u/x", &[]));
    let mut faults = Vec::new();
    for prompt in [
        "crlf",
        "no space",
        "comments",
        "fields",
        "bom",
        "split",
        "empty",
        "glued",
        "trailing space",
    ] {
        for (client, model) in
            [(Dialect::OpenAi, "m"), (Dialect::Ollama, "m"), (Dialect::OpenAi, "u/x")]
        {
            let answer = daemon.ask(ask::chat(client, model, prompt, true));
            let check = std::panic::AssertUnwindSafe(|| {
                assert_eq!(answer.status(), 200, "{}", answer.text());
                // What openai-python makes of it: data lines only, joined until an empty line.
                let text = answer.text().replace("\r\n", "\n");
                let mut content = String::new();
                let mut done = 0;
                match client {
                    Dialect::Ollama => {
                        Stream::of(client, &answer).assert_normal(model, "one two three", prompt)
                    }
                    Dialect::OpenAi => {
                        for block in text
                            .trim_start_matches('\u{feff}')
                            .split("\n\n")
                            .filter(|block| !block.is_empty())
                        {
                            let data: Vec<&str> = block
                                .lines()
                                .filter_map(|line| line.strip_prefix("data:"))
                                .map(|data| data.strip_prefix(' ').unwrap_or(data))
                                .collect();
                            if data.is_empty() {
                                continue;
                            }
                            let data = data.join("\n");
                            assert!(
                                !data.trim().is_empty(),
                                "an empty event breaks openai-python: {text:?}"
                            );
                            if data.starts_with("[DONE]") {
                                done += 1;
                                continue;
                            }
                            assert_eq!(done, 0, "something behind the end: {text:?}");
                            let json: serde_json::Value = serde_json::from_str(&data).unwrap();
                            assert_eq!(json["model"], model);
                            content +=
                                json["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                        }
                        assert_eq!((content.as_str(), done), ("one two three", 1), "{text:?}");
                    }
                }
            });
            if let Err(panic) = std::panic::catch_unwind(check) {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                faults.push(format!("{prompt} {client:?} {model}: {text}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Two readings of one request: what the gateway understood is what the upstream is asked.
#[test]
fn a_request_with_two_readings_has_one_meaning() {
    let sandbox = Sandbox::new();
    let upstreams =
        DIALECTS.map(|dialect| FakeUpstream::start(dialect, |call| answers::good(call, "fine")));
    let conf = Conf::new()
        .fake("oa", &upstreams[0], "")
        .fake("ol", &upstreams[1], "")
        .model("m", "oa/real", &[])
        .model("n", "ol/real", &[]);
    let daemon = Daemon::start(&sandbox, &conf);
    let messages = r#""messages":[{"role":"user","content":"PROMPT"}]"#;
    let bodies = [
        r#"{"model":"MODEL","model":"evil",MESSAGES}"#,
        r#"{"model":"evil","model":"MODEL",MESSAGES}"#,
        r#"{"mod\u0065l":"MODEL",MESSAGES}"#,
        r#"{"model":"MODEL","mod\u0065l":"evil",MESSAGES}"#,
        r#"{"mod\u0065l":"evil","model":"MODEL",MESSAGES}"#,
        r#"{"model":"MODEL","Model":"evil",MESSAGES}"#,
        r#"{"model":"\u004dODEL",MESSAGES}"#,
        r#"{"model":"MODEL","stream":false,"stream":true,MESSAGES}"#,
        r#"{"model":"MODEL","stream":true,"stream":false,MESSAGES}"#,
        r#"{"model":"MODEL","str\u0065am":true,MESSAGES}"#,
        r#"{"model":"MODEL","stream":true,"stream_options":null,MESSAGES}"#,
        r#"{"model":"MODEL","stream":true,"stream_options":{},MESSAGES}"#,
        r#"{"model":"MODEL","stream":true,"stream_options":{"include_usage":false,"x":1},MESSAGES}"#,
        r#"{"model":"MODEL","stream":true,"stream_options":{"include_usage":false},"stream_options":{"include_usage":true},MESSAGES}"#,
        r#"{"model":"MODEL","options":{"num_ctx":1},"options":{"num_ctx":2},"stream":false,MESSAGES}"#,
    ];
    for (index, name) in ["m", "n"].into_iter().enumerate() {
        for (number, body) in bodies.iter().enumerate() {
            let prompt = format!("{name} {number}");
            let escaped = if number == 6 {
                format!("\\u00{:02x}", name.as_bytes()[0])
            } else {
                name.to_owned()
            };
            let body = body.replace("\\u004dODEL", &escaped).replace("MODEL", &escaped);
            let body = body.replace("MESSAGES", messages).replace("PROMPT", &prompt);
            let path = ask::chat_path(DIALECTS[index]);
            let answer = daemon.ask(ask::post_with(path, "", body.as_bytes()));
            let seen = upstreams[index].seen_with(&prompt);
            if answer.status() != 200 {
                assert!(matches!(answer.status(), 400 | 404), "{body}: {}", answer.status());
                assert_eq!(seen.len(), 0, "{body}: refused, and asked all the same");
                continue;
            }
            assert_eq!(seen.len(), 1, "{body}");
            let sent = String::from_utf8_lossy(&seen[0].call.body).into_owned();
            // No reader of the sent text may find another model in it, the first or the last.
            assert!(
                !sent.contains("evil") || sent.contains("\"Model\":\"evil\""),
                "{body} became {sent}"
            );
            assert_eq!(seen[0].call.model(), "real", "{body} became {sent}");
            let asked_stream = seen[0].call.stream();
            let got_stream =
                answer.header("content-type").is_some_and(|t| !t.starts_with("application/json"));
            assert_eq!(asked_stream, got_stream, "{body} became {sent}");
            let streams =
                sent.matches("\"stream\"").count() + sent.matches("\"str\\u0065am\"").count();
            assert!(
                streams <= 1 || !body.contains("true") || !body.contains("false") || number >= 10,
                "{body} became {sent}: an upstream that takes the first differs from one that takes the last"
            );
        }
    }
}

/// A thousand streams at once: each is whole, and each thread and permit comes back.
#[test]
fn a_thousand_streams_at_once_are_all_whole() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let sandbox = Sandbox::alone();
    let now = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }).unwrap();
    // They come in one burst: the queue in front of the workers is not what this is about.
    let conf = Conf::new().server("queue_max = 2000").upstream(
        "slow",
        "echo",
        "",
        "word_delay = \"100ms\"",
    );
    let daemon = Daemon::start(&sandbox, &conf);
    let rss = daemon.process().rss_kib();
    let prompt = "one two three four five six seven eight nine ten";
    let mut wires: Vec<_> = (0..1000).map(|_| daemon.connect()).collect();
    for (n, wire) in wires.iter_mut().enumerate() {
        wire.send(ask::chat(DIALECTS[n % 2], "slow/echo", prompt, true));
    }
    assert_eventually!(daemon.limit_now("server.exchanges_max") >= 900, "not at once");
    let begun = Instant::now();
    assert_eq!(daemon.ask(ask::get("/api/version")).status(), 200);
    let waited = begun.elapsed();
    let peak = daemon.process().rss_kib();
    for (n, wire) in wires.iter_mut().enumerate() {
        let answer = wire.answer().unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
        Stream::of(DIALECTS[n % 2], &answer).assert_normal(
            "slow/echo",
            prompt,
            "one of a thousand",
        );
    }
    eprintln!(
        "a thousand streams: {rss} KiB became {peak} KiB, a local answer took {waited:?} meanwhile"
    );
    assert!(waited < daemon.allow(Duration::from_millis(500)), "{waited:?}");
    assert!(peak < rss + 96 * 1024, "{peak} KiB");
    drop(wires);
    assert_eventually!(daemon.limit_now("server.exchanges_max") == 0);
}

/// A stream of many megabytes to a client that reads slowly: all of it arrives, and none of it piles up.
#[test]
fn a_long_stream_to_a_slow_reader_does_not_pile_up_in_the_gateway() {
    let sandbox = Sandbox::alone();
    let count = 4000;
    let piece = "x".repeat(10_000);
    let text = piece.clone();
    let upstream = FakeUpstream::start(Dialect::OpenAi, move |call| {
        if let Some(catalog) = answers::catalog(call) {
            return catalog;
        }
        let mut steps = vec![Step::Send(answers::stream_head(Dialect::OpenAi))];
        let event = answers::chunk(&answers::text(call, &text));
        steps.extend((0..count).map(|_| Step::Send(event.clone())));
        steps.push(Step::Send(answers::chunk(&answers::ending(call, count))));
        steps.push(Step::Send(answers::LAST_CHUNK.to_vec()));
        steps
    });
    let daemon =
        Daemon::start(&sandbox, &Conf::new().fake("u", &upstream, "idle_timeout = \"20s\""));
    daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hi", true));
    let rss = daemon.process().rss_kib();
    for client in DIALECTS {
        let mut wire = daemon.connect().wait_at_most(Duration::from_secs(30));
        wire.send(ask::chat(client, "u/x", "hi", true));
        // The gateway has time to take in all that the upstream would give.
        std::thread::sleep(Duration::from_millis(1500));
        let grown = daemon.process().rss_kib().saturating_sub(rss);
        assert!(grown < 16 * 1024, "{grown} KiB piled up for a client that does not read");
        let answer = wire.answer().unwrap();
        let stream = Stream::of(client, &answer);
        assert_eq!(stream.content().len(), count * piece.len());
        assert_eq!(stream.terminators(), 1);
        assert_eq!(stream.errors(), []);
    }
}
