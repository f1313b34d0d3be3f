//! Limits on what clients ask for, wrong keys, keys that end or are for some models only, and the
//! types of bodies, all as clients meet them.

use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::logs::hex;
use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{FakeUpstream, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::Answer;

const CHAT: &str = "/v1/chat/completions";

/// A key with further lines; its secret is `key-NAME`.
fn key(name: &str, lines: &str) -> String {
    format!("[[key]]\nname = \"{name}\"\nsha256 = \"{}\"\n{lines}\n", hex(&format!("key-{name}")))
}

fn limit(name: &str, lines: &str) -> String {
    format!("[[limit]]\nname = \"{name}\"\n{lines}\n")
}

fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")
}

fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

fn chat(lines: &str, body: &Value) -> Vec<u8> {
    ask::post_with(CHAT, lines, body.to_string().as_bytes())
}

fn number(answer: &Answer, field: &str) -> u64 {
    let value = answer.header(field).unwrap_or_else(|| panic!("no {field}: {:?}", answer.head));
    value.parse().unwrap_or_else(|_| panic!("{field}: {value:?}"))
}

/// A duration as the OpenAI clients read it, in seconds: `120ms`, `1s`, `6m0s`.
fn seconds(text: &str) -> f64 {
    if let Some(millis) = text.strip_suffix("ms") {
        return millis.parse::<f64>().unwrap() / 1000.0;
    }
    let rest = text.strip_suffix('s').unwrap_or_else(|| panic!("{text:?}"));
    let (minutes, seconds) = rest.split_once('m').unwrap_or(("0", rest));
    minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
}

/// Fails unless this is a refusal by a limit that tells its reader when to come again.
fn assert_limited(answer: &Answer, code: &str) {
    assert_eq!(answer.status(), 429, "{:?} {}", answer.head, answer.text());
    let (wait, millis) = (number(answer, "retry-after"), number(answer, "retry-after-ms"));
    assert!((1..=60).contains(&wait), "{wait}");
    assert!(millis >= 1 && millis <= wait * 1000, "{millis} ms, {wait} s");
    assert!(answer.header("x-request-id").is_some());
    match &answer.json()["error"] {
        Value::String(text) => assert!(text.len() > 20, "{text}"),
        error => {
            assert_eq!(error["code"], code, "{error}");
            assert_eq!(error["type"], "rate_limit_error");
        }
    }
}

#[test]
fn every_answer_says_what_is_left_and_the_one_too_many_is_429() {
    let sandbox = Sandbox::new();
    let lines = "requests_per_minute = 2\nburst = 3\ntokens_per_minute = 100000";
    let daemon = Daemon::start(&sandbox, &Conf::new().text(&key("a", lines)));
    let mine = bearer("key-a");
    let whole = daemon.ask(chat(&mine, &ask::chat_body("echo", "hi", false)));
    let stream = daemon.ask(chat(&mine, &ask::chat_body("echo", "hi", true)));
    let list = daemon.ask(get("/api/tags", &mine));
    for (answer, left) in [(&whole, 2), (&stream, 1), (&list, 0)] {
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert_eq!(number(answer, "x-ratelimit-limit-requests"), 3);
        assert_eq!(number(answer, "x-ratelimit-remaining-requests"), left);
        let reset = seconds(answer.header("x-ratelimit-reset-requests").unwrap());
        assert!(reset > 0.0 && reset <= 90.0, "{reset}");
        assert_eq!(number(answer, "x-ratelimit-limit-tokens"), 100_000);
        assert!(number(answer, "x-ratelimit-remaining-tokens") > 99_000);
        let policy = "\"key\";q=2;w=60, \"key-tokens\";q=100000;w=60;qu=\"tokens\"";
        assert_eq!(answer.header("ratelimit-policy"), Some(policy));
        let now = answer.header("ratelimit").unwrap();
        assert!(now.starts_with(&format!("\"key\";r={left};t=")), "{now}");
    }
    for path in ["/v1/models", "/api/tags"] {
        let refused = daemon.ask(get(path, &mine));
        assert_limited(&refused, "rate_limited");
        assert_eq!(number(&refused, "x-ratelimit-remaining-requests"), 0);
        // What `RateLimit` says is no later than `Retry-After`.
        let now = refused.header("ratelimit").unwrap();
        let t = now.split(";t=").nth(1).unwrap().split([',', ' ']).next().unwrap();
        assert!(t.parse::<u64>().unwrap() <= number(&refused, "retry-after"), "{now}");
    }
    let labels = [("rate_limit", "key"), ("what", "requests")];
    assert_eq!(daemon.metrics().sum("tidegate_rate_limited_total", &labels), Some(2.0));
}

#[test]
fn without_limits_answers_say_nothing_of_them() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hi", false));
    let said = answer.head.headers.iter().filter(|(name, _)| name.contains("ratelimit"));
    assert_eq!(said.count(), 0, "{:?}", answer.head);
}

#[test]
fn a_request_too_many_is_refused_before_its_body_is_taken() {
    let sandbox = Sandbox::new();
    let text = limit("chat", "routes = \"chat\"\nrequests_per_minute = 1");
    let daemon = Daemon::start(&sandbox, &Conf::new().text(&text));
    assert_eq!(daemon.ask(ask::chat(Dialect::OpenAi, "echo", "hi", false)).status(), 200);
    let mut wire = daemon.connect();
    wire.send(format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    ));
    assert_limited(&wire.answer().unwrap(), "rate_limited");
    assert_limited(&daemon.ask(ask::chat(Dialect::Ollama, "echo", "hi", false)), "rate_limited");
    // Other kinds of routes are not meant.
    assert_eq!(daemon.ask(ask::get("/v1/models")).status(), 200);
    let embed = json!({"model": "echo", "input": "hi"});
    assert_ne!(daemon.ask(ask::post("/v1/embeddings", &embed)).status(), 429);
}

#[test]
fn tokens_are_settled_by_what_the_upstream_reports() {
    let sandbox = Sandbox::new();
    // One token comes back each second.
    let conf = Conf::new().text(&key("a", "tokens_per_minute = 60"));
    let daemon = Daemon::start(&sandbox, &conf);
    let mine = bearer("key-a");
    let left = || number(&daemon.ask(get("/v1/models", &mine)), "x-ratelimit-remaining-tokens");
    let begun = Instant::now();
    for stream in [false, true] {
        let mut body = ask::chat_body("echo", "one two three four five", stream);
        body["max_tokens"] = json!(20);
        let answer = daemon.ask(chat(&mine, &body));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        // The answer says what is left while the estimate is taken.
        assert!(number(&answer, "x-ratelimit-remaining-tokens") < 40);
    }
    // Echo counts each word in and out: 10 tokens each time.
    assert_eventually!({
        let earned = begun.elapsed().as_secs() + 1;
        (40..=40 + earned).contains(&left())
    });
}

#[test]
fn a_client_that_leaves_pays_for_what_it_got_and_not_for_what_it_might_have() {
    let sandbox = Sandbox::new();
    let conf = Conf::new()
        .upstream("slow", "echo", "", "word_delay = \"30ms\"")
        .text(&key("a", "tokens_per_minute = 600"));
    let daemon = Daemon::start(&sandbox, &conf);
    let mine = bearer("key-a");
    let left = || number(&daemon.ask(get("/v1/models", &mine)), "x-ratelimit-remaining-tokens");
    let mut body = ask::chat_body("slow", &"word ".repeat(50), true);
    body["max_tokens"] = json!(400);
    let mut wire = daemon.connect();
    wire.send(chat(&mine, &body));
    assert_eq!(wire.head().unwrap().status, 200);
    assert!(left() < 250, "charged by estimate");
    wire.reset();
    // Of the estimate, some 60 tokens of prompt and 400 that it might have heard, these come back.
    assert_eventually!(daemon.log().contains("client_gone"));
    assert_eventually!(left() > 450);
    assert!(left() < 600, "it did get something");
}

#[test]
fn a_request_above_a_whole_limit_is_413_and_reaches_nobody() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "hello"));
    let conf = Conf::new().fake("u", &upstream, "").text(&key("a", "tokens_per_minute = 100"));
    let daemon = Daemon::start(&sandbox, &conf);
    let mut body = ask::chat_body("u/x", "hi", false);
    body["max_tokens"] = json!(101);
    let answer = daemon.ask(chat(&bearer("key-a"), &body));
    assert_eq!((answer.status(), &*answer.code()), (413, "tokens_above_limit"));
    assert!(answer.header("retry-after").is_none(), "no wait helps");
    body["max_tokens"] = json!(50);
    assert_eq!(daemon.ask(chat(&bearer("key-a"), &body)).status(), 200);
    body["max_tokens"] = json!(95);
    assert_limited(&daemon.ask(chat(&bearer("key-a"), &body)), "rate_limited");
    assert_eq!(upstream.calls(), 1);
}

#[test]
fn each_client_behind_a_trusted_proxy_has_its_own_and_nobody_else_is_believed() {
    let text = limit("each", "per = \"address\"\nrequests_per_minute = 1\nburst = 2");
    let from = |address: &str| get("/v1/models", &format!("X-Forwarded-For: {address}\r\n"));
    for (trusted, expected) in [(true, [200, 200, 429, 200]), (false, [200, 200, 429, 429])] {
        let sandbox = Sandbox::new();
        let server = if trusted { "trusted_proxies = [\"127.0.0.1\"]" } else { "" };
        let daemon = Daemon::start(&sandbox, &Conf::new().server(server).text(&text));
        let seen = ["203.0.113.1", "10.1.1.1, 203.0.113.1", "203.0.113.1", "203.0.113.2"]
            .map(|address| daemon.ask(from(address)).status());
        assert_eq!(seen, expected, "trusted: {trusted}");
    }
}

#[test]
fn addresses_are_remembered_up_to_their_bound() {
    let sandbox = Sandbox::new();
    let conf = Conf::new()
        .server("trusted_proxies = [\"127.0.0.1\"]\naddresses_max = 64")
        .text(&limit("each", "per = \"address\"\nrequests_per_minute = 1"));
    let daemon = Daemon::start(&sandbox, &conf);
    let mut wire = daemon.connect();
    for n in 0..200 {
        let lines = format!("X-Forwarded-For: 203.0.113.{n}\r\n");
        assert_eq!(wire.ask(get("/v1/models", &lines)).status(), 200);
    }
    let labels = [("limit", "server.addresses_max"), ("owner", "rates")];
    let metrics = daemon.metrics();
    let now = metrics.sum("tidegate_limit_now", &labels).unwrap();
    assert!(now > 0.0 && now <= 64.0, "{now}");
    let forgotten = metrics.sum("tidegate_limit_refused_total", &labels).unwrap();
    assert_eq!(forgotten, 200.0 - now);
}

#[test]
fn a_reload_neither_forgets_what_was_used_nor_shows_what_is_gone() {
    let sandbox = Sandbox::new();
    let conf = |burst: u32, more: &str| {
        let lines = format!("requests_per_minute = 1\nburst = {burst}");
        Conf::new().text(&limit("all", &lines)).text(more)
    };
    let old = limit("old", "requests_per_minute = 1000");
    let daemon = Daemon::start(&sandbox, &conf(2, &old));
    let status = || daemon.ask(ask::get("/v1/models")).status();
    assert_eq!([status(), status(), status()], [200, 200, 429]);
    daemon.rewrite(&conf(3, ""));
    daemon.signal(Signal::HUP);
    let reloads = || daemon.metrics().sum("tidegate_config_reloads_total", &[("outcome", "ok")]);
    assert_eventually!(reloads() == Some(1.0));
    assert_eq!([status(), status()], [200, 429], "one more, not three");
    let series =
        |name| daemon.metrics().sum("tidegate_rate_limited_total", &[("rate_limit", name)]);
    assert_eq!(series("all"), Some(2.0));
    assert_eq!(series("old"), None);
}

#[test]
fn guesses_lock_their_address_out_but_no_key_that_was_right_there() {
    let sandbox = Sandbox::new();
    let auth = "[auth]\nfailures_max = 3\nlockout = \"1h\"";
    let conf = Conf::new().text(auth).text(&key("a", "")).text(&key("b", ""));
    let daemon = Daemon::start(&sandbox, &conf);
    let with = |key: &str| daemon.ask(get("/v1/models", &bearer(key)));
    assert_eq!(with("key-a").status(), 200);
    for guess in ["x", "y", "z"] {
        assert_eq!(with(guess).status(), 401);
    }
    let refused = with("w");
    assert_limited(&refused, "locked_out");
    assert_eq!(number(&refused, "retry-after"), 60);
    // A neighbour that was served before is served on; one that comes only now waits.
    assert_eq!(with("key-a").status(), 200);
    assert_limited(&with("key-b"), "locked_out");
    // Who shows no key guesses nothing, and is told what to do.
    assert_eq!(daemon.ask(get("/v1/models", "")).status(), 401);
    let metrics = daemon.metrics();
    assert_eq!(metrics.sum("tidegate_auth_failures_total", &[]), Some(3.0));
    assert_eq!(metrics.sum("tidegate_auth_locked_out_total", &[]), Some(2.0));
    let lockouts = metrics.sum("tidegate_auth_lockouts_total", &[("what", "address")]);
    assert_eq!(lockouts, Some(1.0));
    assert_eq!(metrics.sum("tidegate_events_total", &[("kind", "auth_lockout")]), Some(1.0));
    assert_eventually!(daemon.log().contains("auth_lockout"));
    for secret in ["key-a", "Bearer w"] {
        assert!(!daemon.log().contains(secret), "a key in the log");
    }
}

#[test]
fn one_client_with_an_old_key_stops_only_itself() {
    let sandbox = Sandbox::new();
    let auth = "[auth]\nfailures_max = 3\nlockout = \"1h\"";
    let daemon = Daemon::start(&sandbox, &Conf::new().text(auth).text(&key("a", "")));
    let with = |key: &str| daemon.ask(get("/v1/models", &bearer(key))).status();
    assert_eq!([with("old"), with("old"), with("old"), with("old")], [401, 401, 401, 429]);
    assert_eq!([with("key-a"), with("other")], [200, 401]);
    // A reload that brings that key in lets it in.
    daemon.rewrite(
        &Conf::new()
            .text(auth)
            .text(&format!("[[key]]\nname = \"old\"\nsha256 = \"{}\"", hex("old"))),
    );
    daemon.signal(Signal::HUP);
    assert_eventually!(with("old") == 200);
}

#[test]
fn a_lockout_ends() {
    let sandbox = Sandbox::new();
    let auth = "[auth]\nfailures_max = 2\nwindow = \"1s\"\nlockout = \"1s\"";
    let daemon = Daemon::start(&sandbox, &Conf::new().text(auth).text(&key("a", "")));
    let with = |key: &str| daemon.ask(get("/v1/models", &bearer(key))).status();
    assert_eventually!({
        with("x");
        with("y");
        with("key-a") == 429
    });
    assert_eventually!(with("key-a") == 200);
    assert_eventually!(daemon.limit_now("server.addresses_max") <= 1, "failures do not fade");
}

#[test]
fn a_key_comes_in_the_fields_of_other_apis_and_ends_at_its_time() {
    let sandbox = Sandbox::new();
    let conf = Conf::new()
        .text(&key("now", "expires = \"2099-01-01T00:00:00+01:00\""))
        .text(&key("then", "expires = \"2020-01-01T00:00:00Z\""));
    let daemon = Daemon::start(&sandbox, &conf);
    for field in ["Authorization: Bearer ", "x-api-key: ", "api-key: ", "X-Api-Key:"] {
        let with = |key: &str| daemon.ask(get("/v1/models", &format!("{field}{key}\r\n")));
        assert_eq!(with("key-now").status(), 200, "{field}");
        let ended = with("key-then");
        assert_eq!((ended.status(), &*ended.code()), (401, "key_expired"), "{field}");
        assert!(ended.header("www-authenticate").is_some());
        assert_eq!(with("wrong").status(), 401, "{field}");
    }
}

#[test]
fn a_key_sees_and_gets_only_its_own_models() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "hello"));
    let conf = Conf::new()
        .fake("u", &upstream, "")
        .fake("v", &upstream, "")
        .model("house", "v/secret", &[])
        .text(&key("child", "models = [\"house\", \"echo\", \"u/x*\"]"))
        .text(&key("parent", ""));
    let daemon = Daemon::start(&sandbox, &conf);
    let child = bearer("key-child");
    let names = |lines: &str| -> Vec<String> {
        let list = daemon.ask(get("/v1/models", lines)).json();
        let models = list["data"].as_array().unwrap().iter();
        models.map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    assert!(names(&bearer("key-parent")).len() > names(&child).len());
    let tags = daemon.ask(get("/api/tags", &child)).json();
    let tags = tags["models"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap());
    for name in names(&child).iter().map(String::as_str).chain(tags) {
        assert!(matches!(name, "house" | "echo") || name.starts_with("u/x"), "{name}");
    }
    let ask =
        |lines: &str, model: &str| daemon.ask(chat(lines, &ask::chat_body(model, "hi", false)));
    for allowed in ["house", "house:latest", "echo", "u/xyz"] {
        assert_eq!(ask(&child, allowed).status(), 200, "{allowed}");
    }
    let calls = upstream.calls();
    // What stands behind an alias is not what was allowed; nor does the answer tell what there is.
    for refused in ["v/secret", "u/y", "nothing", "House"] {
        let answer = ask(&child, refused);
        assert_eq!((answer.status(), &*answer.code()), (403, "model_not_allowed"), "{refused}");
        let one = daemon.ask(get(&format!("/v1/models/{refused}"), &child));
        assert_eq!(one.status(), 403, "{refused}");
        let show = json!({"model": refused}).to_string();
        let show = daemon.ask(ask::post_with("/api/show", &child, show.as_bytes()));
        assert_eq!(show.status(), 403, "{refused}");
    }
    assert_eq!(upstream.calls(), calls);
    assert_eq!(ask(&bearer("key-parent"), "u/y").status(), 200);
}

/// A chat with this header, by somebody who sends no other type.
fn typed(path: &str, lines: &str) -> String {
    let body = r#"{"model":"echo","messages":[{"role":"user","content":"hi"}],"stream":false}"#;
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn bodies_are_json_and_browsers_have_to_say_so() {
    let sandbox = Sandbox::new();
    let conf = Conf::new().server("allowed_origins = [\"https://chat.example.org\"]");
    let daemon = Daemon::start(&sandbox, &conf);
    let curl = "Content-Type: application/x-www-form-urlencoded\r\n";
    let json = "Content-Type: application/json\r\n";
    let page = "Origin: https://chat.example.org\r\n";
    let cases = [
        (String::new(), 200),
        (json.to_owned(), 200),
        (curl.to_owned(), 200),
        ("Content-Type: text/plain;charset=UTF-8\r\n".to_owned(), 200),
        ("Content-Type: application/json; charset=utf-16\r\n".to_owned(), 415),
        ("Content-Type: multipart/form-data; boundary=x\r\n".to_owned(), 415),
        ("Content-Type: application/xml\r\n".to_owned(), 415),
        (format!("{page}{json}"), 200),
        (format!("{page}{json}Sec-Fetch-Site: cross-site\r\n"), 200),
        (format!("{page}{curl}"), 415),
        (page.to_owned(), 415),
        (format!("Origin: https://evil.example\r\n{json}"), 403),
        (format!("Origin: null\r\n{json}"), 403),
        (format!("Sec-Fetch-Site: cross-site\r\n{json}"), 403),
        (format!("Sec-Fetch-Site: same-site\r\n{curl}"), 403),
        (format!("Sec-Fetch-Site: same-origin\r\n{json}"), 200),
    ];
    for path in [CHAT, "/api/chat"] {
        for (lines, status) in &cases {
            let answer = daemon.ask(typed(path, lines));
            assert_eq!(answer.status(), *status, "{path} {lines:?} {}", answer.text());
            if *status == 415 {
                assert!(answer.text().contains("application/json"), "no remedy: {}", answer.text());
            }
        }
    }
}

#[test]
fn a_query_is_bounded_and_what_it_says_is_ignored() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new().server("query_max = \"1KiB\""));
    let ask = |bytes: usize| daemon.ask(get(&format!("/v1/models?{}", "x".repeat(bytes)), ""));
    assert_eq!(ask(1024).status(), 200);
    let refused = ask(1025);
    assert_eq!((refused.status(), &*refused.code()), (414, "query_too_long"));
    assert_eq!(daemon.ask(get("/api/version?verbose=%zz&api_key=x", "")).status(), 200);
}

#[test]
fn a_body_that_is_not_utf8_is_a_400_everywhere() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    for path in [CHAT, "/v1/completions", "/v1/embeddings", "/api/chat", "/api/embed", "/api/show"]
    {
        let body = b"{\"model\":\"echo\",\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}";
        assert_eq!(daemon.ask(ask::post_with(path, "", body)).status(), 400, "{path}");
    }
    daemon.assert_well("after bodies that are no text");
}

#[test]
fn a_client_past_its_limit_harms_nobody_else() {
    let sandbox = Sandbox::new();
    let conf = Conf::new().text(&key("greedy", "requests_per_minute = 1")).text(&key("fair", ""));
    let daemon = Daemon::start(&sandbox, &conf);
    let greedy = bearer("key-greedy");
    assert_eq!(daemon.ask(get("/v1/models", &greedy)).status(), 200);
    for _ in 0..200 {
        assert_eq!(daemon.ask(get("/v1/models", &greedy)).status(), 429);
    }
    let fair = daemon.ask(chat(&bearer("key-fair"), &ask::chat_body("echo", "hi", true)));
    assert_eq!(fair.status(), 200);
}
