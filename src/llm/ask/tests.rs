use super::found::{MODEL_BYTES_MAX, folds_to};
use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(route: Route, body: &str) -> Result<Ask> {
    Ask::parse(route, body.as_bytes().to_vec())
}

fn ask(route: Route, body: &str) -> Ask {
    parse(route, body).unwrap()
}

/// The body as the upstream of the same dialect gets it.
fn same(route: Route, body: &str, model: &str, num_ctx: Option<u64>) -> String {
    let outgoing = ask(route, body).outgoing(route.dialect(), model, num_ctx).unwrap();
    assert_eq!(outgoing.path, route.path());
    String::from_utf8(outgoing.body).unwrap()
}

const CHAT: Route = Route::ChatCompletions;

#[test]
fn the_body_goes_on_as_it_came_with_another_model() {
    let body = " {\n \"unknown\" : [1.0, 1e2 ,\"\\u00e9\"], \"model\" : \"a\\u0062\" ,\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"more\":{}}]} ";
    assert_eq!(ask(CHAT, body).model(), "ab");
    assert_eq!(same(CHAT, body, "ab", None), body, "the same name: not a byte differs");
    assert_eq!(same(CHAT, body, "q\"x", None), body.replace("\"a\\u0062\"", "\"q\\\"x\""));
    let body = "{\"model\":\"a\",\"prompt\":\"model\",\"x\":{\"model\":\"a\"}}";
    let expected = "{\"model\":\"b\",\"prompt\":\"model\",\"x\":{\"model\":\"a\"}}";
    assert_eq!(same(Route::OllamaGenerate, body, "b", None), expected);
}

#[test]
fn streams_are_asked_for_their_usage() {
    let check = |options: &str, expected: &str| {
        let body = |options: &str| {
            format!(
                "{{\"messages\":[{{\"role\":\"user\"}}],\"stream\":true{options},\"model\":\"a\"}}"
            )
        };
        let expected = match options {
            "" => body("").replacen('{', &format!("{{{expected},"), 1),
            _ => body(&format!(",{expected}")),
        };
        assert_eq!(same(CHAT, &body(options), "a", None), expected);
    };
    let asked = "\"stream_options\":{\"include_usage\":true}";
    check("", asked);
    check(",\"stream_options\":null", asked);
    check(",\"stream_options\":{}", asked);
    check(
        ",\"stream_options\":{ \"include_usage\" : false }",
        "\"stream_options\":{ \"include_usage\" : true }",
    );
    check(
        ",\"stream_options\":{\"include_usage\":null,\"x\":1}",
        "\"stream_options\":{\"include_usage\":true,\"x\":1}",
    );
    check(",\"stream_options\":{\"x\":1}", "\"stream_options\":{\"include_usage\":true,\"x\":1}");
    check(",\"stream_options\":{\"include_usage\":true}", asked);
    // Not ours to judge here.
    let odd =
        "{\"messages\":[{\"role\":\"user\"}],\"options\":{\"num_ctx\":\"x\"},\"model\":\"a\"}";
    assert_eq!(same(CHAT, odd, "a", Some(1)), odd);
    let whole = "{\"messages\":[{\"role\":\"user\"}],\"model\":\"a\"}";
    assert_eq!(same(CHAT, whole, "a", None), whole);
}

#[test]
fn the_context_length_is_set_unless_the_request_sets_it() {
    let check = |options: &str, expected: &str| {
        let body = |options: &str| format!("{{\"model\":\"a\"{options}}}");
        let expected = match options {
            "" => format!("{{{expected},\"model\":\"b\"}}"),
            _ => body(&format!(",{expected}")).replace("\"a\"", "\"b\""),
        };
        assert_eq!(same(Route::OllamaGenerate, &body(options), "b", Some(8192)), expected);
    };
    check("", "\"options\":{\"num_ctx\":8192}");
    check(",\"options\":null", "\"options\":{\"num_ctx\":8192}");
    check(",\"options\":{ }", "\"options\":{\"num_ctx\":8192 }");
    check(",\"options\":{\"num_ctx\":null}", "\"options\":{\"num_ctx\":8192}");
    check(",\"options\":{\"seed\":1}", "\"options\":{\"num_ctx\":8192,\"seed\":1}");
    check(",\"options\":{\"num_ctx\":2048}", "\"options\":{\"num_ctx\":2048}");
    let with = |number: &str| {
        let body = format!("{{\"model\":\"a\",\"options\":{{\"num_ctx\":{number}}}}}");
        parse(Route::OllamaChat, &body).map(|ask| ask.num_ctx())
    };
    assert_eq!(with("2048").unwrap(), Some(2048));
    assert_eq!(with("2048.0").unwrap(), Some(2048));
    for wrong in ["0", "-1", "1.5", "1e99", "\"x\"", "true"] {
        assert_eq!(with(wrong).unwrap_err().kind(), Kind::InvalidField, "{wrong}");
    }
}

#[test]
fn a_stream_is_what_the_dialect_says_when_the_request_does_not() {
    let check = |route, body: &str, expected| assert_eq!(ask(route, body).stream(), expected);
    let chat = "{\"model\":\"a\",\"messages\":[{\"role\":\"user\"}]";
    check(CHAT, &format!("{chat}}}"), false);
    check(CHAT, &format!("{chat},\"stream\":null}}"), false);
    check(CHAT, &format!("{chat},\"stream\":true}}"), true);
    check(Route::OllamaChat, &format!("{chat}}}"), true);
    check(Route::OllamaChat, &format!("{chat},\"stream\":false}}"), false);
    check(Route::OllamaGenerate, "{\"model\":\"a\"}", true);
    check(Route::OllamaEmbed, "{\"model\":\"a\",\"input\":\"x\",\"stream\":true}", false);
    check(Route::OpenAiEmbeddings, "{\"model\":\"a\",\"input\":\"x\",\"stream\":true}", false);
}

#[test]
fn what_a_fallback_must_carry_is_seen() {
    let check = |route, rest: &str, tools, images| {
        let found = ask(route, &format!("{{\"model\":\"a\",{rest}}}")).needs();
        assert_eq!(found, Needs { tools, images }, "{rest}");
    };
    let user = "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]";
    check(CHAT, user, false, false);
    check(CHAT, &format!("{user},\"tools\":[]"), false, false);
    check(CHAT, &format!("{user},\"tools\":[{{}}]"), true, false);
    check(Route::OllamaChat, &format!("{user},\"tools\":[{{}}]"), true, false);
    check(CHAT, "\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]", true, false);
    check(CHAT, "\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{}]}]", true, false);
    let part = "\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"},{\"image_url\":{\"url\":\"data:\"},\"type\":\"image_url\"}]}]";
    check(CHAT, part, false, true);
    check(Route::OllamaChat, "\"messages\":[{\"role\":\"user\",\"images\":[\"x\"]}]", false, true);
    check(Route::OllamaChat, "\"messages\":[{\"role\":\"user\",\"images\":[]}]", false, false);
    check(Route::OllamaGenerate, "\"prompt\":\"x\",\"images\":[\"x\"]", false, true);
}

#[test]
fn what_is_not_a_json_object_is_told_apart_from_a_wrong_field() {
    for body in
        ["", "{", "nonsense", "[]", "\"x\"", "1", "{\"model\":\"a\"} x", "{\"model\":\"a\",}"]
    {
        let error = parse(Route::OllamaGenerate, body).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidJson, "{body}: {error}");
    }
    let error = Ask::parse(CHAT, b"{\"model\":\"\xff\"}".to_vec()).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidJson);
    let deep = format!("{{\"model\":\"a\",\"x\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    assert_eq!(parse(CHAT, &deep).unwrap_err().kind(), Kind::InvalidJson);
}

#[test]
fn a_wrong_field_is_named_with_what_to_send() {
    let check = |route, body: &str, expected: &str| {
        let error = parse(route, body).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidField, "{body}: {error}");
        assert_eq!(error.context(), expected);
    };
    let generate = Route::OllamaGenerate;
    check(generate, "{}", "model: is missing; send the name of a model");
    check(generate, "{\"model\":1}", "model: is a number; send the name of a model as a string");
    check(generate, "{\"model\":null}", "model: is null; send the name of a model as a string");
    check(generate, "{\"model\":\"\"}", "model: is empty; send the name of a model");
    check(
        generate,
        "{\"model\":\"a\\n\"}",
        "model: has control characters; send the name of a model",
    );
    check(generate, "{\"model\":\"a\",\"prompt\":[]}", "prompt: is an array; send a string");
    check(
        generate,
        "{\"model\":\"a\",\"stream\":\"true\"}",
        "stream: is a string; send true or false",
    );
    check(generate, "{\"model\":\"a\",\"options\":[]}", "options: is an array; send an object");
    check(generate, "{\"model\":\"a\",\"images\":\"x\"}", "images: is a string; send an array");
    let chat = |messages: &str| format!("{{\"model\":\"a\",\"messages\":{messages}}}");
    check(CHAT, "{\"model\":\"a\"}", "messages: is missing; send an array of messages");
    check(CHAT, &chat("null"), "messages: is null; send an array of messages");
    check(CHAT, &chat("[]"), "messages: is empty; send at least one message");
    check(CHAT, &chat("[1]"), "messages[0]: is a number; send an object with role and content");
    check(
        CHAT,
        &chat("[{\"role\":\"user\"},{\"content\":\"x\"}]"),
        "messages[1].role: is missing; send \"user\" or another role",
    );
    check(CHAT, &chat("[{\"role\":1}]"), "messages[0].role: is a number; send a string");
    check(
        CHAT,
        &chat("[{\"role\":\"user\",\"content\":{}}]"),
        "messages[0].content: is an object; send a string",
    );
    check(
        Route::OllamaChat,
        &chat("[{\"role\":\"user\",\"content\":[]}]"),
        "messages[0].content: is an array; send a string",
    );
    check(Route::Completions, "{\"model\":\"a\"}", "prompt: is missing; send a string");
    check(
        Route::OpenAiEmbeddings,
        "{\"model\":\"a\"}",
        "input: is missing; send a string or an array of strings",
    );
    check(
        Route::OpenAiEmbeddings,
        "{\"model\":\"a\",\"input\":1}",
        "input: is a number; send a string, or an array of strings",
    );
    check(
        Route::OpenAiEmbeddings,
        "{\"model\":\"a\",\"input\":\"x\",\"encoding_format\":\"hex\"}",
        "encoding_format: send \"float\" or \"base64\"",
    );
    let usage = "{\"model\":\"a\",\"messages\":[{\"role\":\"user\"}],\"stream_options\":{\"include_usage\":1}}";
    check(CHAT, usage, "stream_options.include_usage: is a number; send true or false");
    // Ollama loads a model when it is asked nothing.
    assert!(parse(Route::OllamaChat, "{\"model\":\"a\"}").is_ok());
    assert!(parse(Route::OllamaChat, &chat("null")).is_ok());
}

#[test]
fn a_model_name_has_a_limit() {
    let named = |length: usize| format!("{{\"model\":\"{}\"}}", "m".repeat(length));
    assert!(parse(Route::OllamaGenerate, &named(MODEL_BYTES_MAX)).is_ok());
    let error = parse(Route::OllamaGenerate, &named(MODEL_BYTES_MAX + 1)).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidField);
}

#[test]
fn no_second_spelling_of_a_member_slips_through() {
    for (route, body) in [
        (Route::OllamaGenerate, "{\"model\":\"a\",\"model\":\"b\"}"),
        (Route::OllamaGenerate, "{\"model\":\"a\",\"mo\\u0064el\":\"b\"}"),
        (Route::OllamaGenerate, "{\"model\":\"a\",\"Model\":\"b\"}"),
        (Route::OllamaGenerate, "{\"MODEL\":\"b\"}"),
        (Route::OllamaGenerate, "{\"model\":\"a\",\"ſtream\":false}"),
        (Route::OllamaGenerate, "{\"model\":\"a\",\"stream\":true,\"stream\":false}"),
        (Route::OllamaGenerate, "{\"model\":\"a\",\"options\":{\"num_ctx\":1,\"num_ctx\":2}}"),
        (Route::OllamaGenerate, "{\"model\":\"a\",\"options\":{\"Num_Ctx\":1}}"),
        (CHAT, "{\"model\":\"a\",\"messages\":[{\"role\":\"user\"}],\"messages\":[]}"),
    ] {
        assert_eq!(parse(route, body).unwrap_err().kind(), Kind::InvalidField, "{body}");
    }
    // What we do not read may come as it likes.
    assert!(parse(Route::OllamaGenerate, "{\"model\":\"a\",\"x\":1,\"x\":2,\"X\":3}").is_ok());
    assert!(!folds_to("möðel", "model"));
}

#[test]
fn a_long_name_of_a_field_is_cut_in_the_error() {
    let name = "a".repeat(500);
    let error = field(&name, "is odd");
    assert_eq!(error.context().len(), 80 + ": is odd".len());
    assert_eq!(clip("aé", 2), "a");
    assert_eq!(clip("aé", 3), "aé");
    assert_eq!(clip("", 0), "");
}

proptest! {
    #[test]
    fn a_splice_changes_what_it_should_and_nothing_else(
        before in prop::collection::vec(("[a-c]{1,3}", any::<i32>()), 0..4),
        after in prop::collection::vec(("[d-f]{1,3}", ".{0,8}"), 0..4),
        model in "\\PC{1,20}",
        stream in any::<Option<bool>>(),
        options in prop::sample::select(vec![None, Some("null"), Some("{}"), Some("{\"include_usage\":false}"), Some("{\"include_usage\":true}"), Some("{\"a\":[]}")]),
        shuffle in any::<bool>(),
    ) {
        let mut members: Vec<String> = before.iter().map(|(n, v)| format!("\"{n}\":{v}")).collect();
        members.push(" \"model\" : \"m\\u002d1\"".to_owned());
        members.push("\"prompt\":\"x\"".to_owned());
        members.extend(stream.map(|stream| format!("\"stream\":{stream}")));
        members.extend(options.map(|options| format!("\"stream_options\": {options}")));
        members.extend(after.iter().map(|(n, v)| format!("\"{n}\":{}", Value::from(v.as_str()))));
        if shuffle {
            members.reverse();
        }
        let body = format!("{{{}}}", members.join(" ,"));
        let out = same(Route::Completions, &body, &model, None);
        let mut expected: Value = serde_json::from_str(&body).unwrap();
        expected["model"] = model.into();
        if stream == Some(true) {
            if !expected["stream_options"].is_object() {
                expected["stream_options"] = json!({});
            }
            expected["stream_options"]["include_usage"] = true.into();
        }
        let found: Value = serde_json::from_str(&out).unwrap();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn no_body_makes_it_panic(
        route in prop::sample::select(vec![
            CHAT, Route::Completions, Route::OpenAiEmbeddings, Route::OllamaChat,
            Route::OllamaGenerate, Route::OllamaEmbed, Route::OllamaEmbeddings,
        ]),
        body in prop::sample::select(vec![
            "{\"model\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,xx\"}}],\"images\":[\"x\"],\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{}}}]},{\"role\":\"tool\",\"tool_name\":\"f\",\"content\":\"x\"}],\"tools\":[{}],\"format\":\"json\",\"think\":true}",
            "{\"model\":\"a\",\"prompt\":[\"x\"],\"input\":[\"x\"],\"suffix\":\"y\",\"raw\":true,\"options\":{\"num_ctx\":1,\"stop\":[\"x\"],\"num_predict\":-1},\"response_format\":{\"type\":\"json_schema\"},\"stop\":\"x\"}",
        ]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut body = body.as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Ok(ask) = Ask::parse(route, body) {
            for upstream in [Dialect::OpenAi, Dialect::Ollama] {
                if let Ok(outgoing) = ask.outgoing(upstream, "m", Some(1)) {
                    let body: Value = json::read(std::str::from_utf8(&outgoing.body).unwrap()).unwrap();
                    prop_assert_eq!(&body["model"], "m");
                }
            }
        }
    }
}

#[test]
fn an_estimate_is_the_prompt_and_the_most_that_may_be_said() {
    let check = |route: Route, rest: &str, expected: u64| {
        let body = format!(
            "{{\"model\":\"m\",\"prompt\":\"123456\",\"messages\":[{{\"role\":\"user\",\"content\":\"123456\"}}]{rest}}}"
        );
        let ask = Ask::parse(route, body.into_bytes()).unwrap();
        assert_eq!(ask.estimate(), expected, "{route:?} {rest}");
        assert_eq!(ask.prompt_estimate(), 2);
    };
    check(Route::ChatCompletions, "", 2);
    check(Route::ChatCompletions, ",\"max_tokens\":100", 102);
    check(Route::ChatCompletions, ",\"max_tokens\":100,\"max_completion_tokens\":200", 202);
    check(Route::Completions, ",\"max_tokens\":1e3", 2);
    check(Route::OllamaChat, ",\"options\":{\"num_predict\":50,\"num_ctx\":9}", 52);
    check(Route::OllamaGenerate, ",\"options\":{\"num_predict\":-1}", 2);
    check(Route::ChatCompletions, ",\"max_tokens\":18446744073709551615", u64::MAX);
    check(Route::ChatCompletions, ",\"max_tokens\":\"many\"", 2);
    check(Route::ChatCompletions, ",\"max_tokens\":null", 2);
}
