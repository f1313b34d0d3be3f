//! Who may ask: keys, the Host and Origin rules that keep web pages away, CORS, and paths and methods.

use std::time::Duration;

use serde_json::Value;

use crate::logs::hex;
use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::Daemon;
use crate::support::peers::{FakeUpstream, answers};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Dialect;
use crate::support::wire::Answer;

/// Two keys, and nobody is locked out, however many wrong ones a test shows.
fn with_keys(conf: Conf) -> Conf {
    conf.text("[auth]\nfailures_max = 0")
        .text(&format!("[[key]]\nname = \"one\"\nsha256 = \"{}\"", hex("key-one")))
        .text(&format!("[[key]]\nname = \"two\"\nsha256 = \"{}\"", hex("key-two").to_uppercase()))
}

fn get_with(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")
}

/// Fails unless this is an error in the form of its path, with this code.
fn assert_error(answer: &Answer, path: &str, status: u16, code: &str) {
    let context = format!("{path}: {:?} {}", answer.head, answer.text());
    assert_eq!(answer.status(), status, "{context}");
    assert!(answer.header("x-request-id").is_some(), "{context}");
    let json = answer.json();
    let content_type = answer.header("content-type").unwrap_or_default();
    let sentence = if path.starts_with("/v1/") {
        assert!(content_type.starts_with("application/json"), "{context}");
        assert_eq!(json["error"]["code"], code, "{context}");
        assert!(
            json["error"]["type"].is_string() && json["error"].get("param").is_some(),
            "{context}"
        );
        &json["error"]["message"]
    } else if path.starts_with("/api/") {
        assert!(content_type.starts_with("application/json"), "{context}");
        &json["error"]
    } else {
        assert_eq!(content_type, "application/problem+json", "{context}");
        assert_eq!(json["status"], status, "{context}");
        assert_eq!(json["code"], code, "{context}");
        assert!(json["title"].is_string(), "{context}");
        &json["detail"]
    };
    assert!(sentence.as_str().is_some_and(|text| text.len() > 8), "no sentence: {context}");
}

#[test]
fn without_a_key_in_the_config_any_bearer_is_ignored() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    for lines in
        ["", "Authorization: Bearer x\r\n", "Authorization: Basic eDp5\r\n", "Authorization:\r\n"]
    {
        assert_eq!(daemon.ask(get_with("/api/version", lines)).status(), 200, "{lines:?}");
    }
}

#[test]
fn with_keys_only_their_holders_are_served() {
    let sandbox = Sandbox::new();
    let upstream = FakeUpstream::start(Dialect::OpenAi, |call| answers::good(call, "hello"));
    let daemon = Daemon::start(&sandbox, &with_keys(Conf::new().fake("u", &upstream, "")));
    for key in ["key-one", "key-two"] {
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let answer =
                daemon.ask(get_with("/v1/models", &format!("Authorization: {scheme} {key}\r\n")));
            assert_eq!(answer.status(), 200, "{scheme} {key}");
        }
    }
    let digest = hex("key-one");
    let wrong = [
        String::new(),
        "Authorization: Bearer\r\n".into(),
        "Authorization: Bearer \r\n".into(),
        "Authorization: Bearer key-on\r\n".into(),
        "Authorization: Bearer key-onee\r\n".into(),
        "Authorization: Bearer KEY-ONE\r\n".into(),
        "Authorization: Bearer key-one x\r\n".into(),
        "Authorization: Bearer key-one, key-two\r\n".into(),
        "Authorization: key-one\r\n".into(),
        "Authorization: Basic key-one\r\n".into(),
        format!("Authorization: Bearer {digest}\r\n"),
        "X-Api-Key: \r\n".into(),
        format!("Authorization: Bearer {}\r\n", "x".repeat(8000)),
        "Authorization: Bearer wrong\r\nAuthorization: Bearer wrong\r\n".into(),
    ];
    let paths = [
        "/v1/models",
        "/v1/models/x",
        "/api/tags",
        "/api/ps",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/api/embeddings",
        "/api/show",
    ];
    for path in paths {
        for lines in &wrong {
            let get = matches!(path, "/v1/models" | "/v1/models/x" | "/api/tags" | "/api/ps");
            let request = if get {
                get_with(path, lines).into_bytes()
            } else {
                ask::post_with(
                    path,
                    lines,
                    br#"{"model":"u/x","messages":[],"prompt":"x","input":"x"}"#,
                )
            };
            let answer = daemon.ask(request);
            assert_error(&answer, path, 401, "unauthorized");
            let challenge = answer.header("www-authenticate").unwrap_or_default();
            assert!(
                challenge.to_lowercase().starts_with("bearer"),
                "{path}: RFC 9110 asks for a challenge: {challenge:?}"
            );
        }
    }
    assert_eq!(
        upstream.seen_all().iter().filter(|seen| seen.call.method == "POST").count(),
        0,
        "an upstream was asked"
    );
    // The gateway's own keys stay here.
    let body = ask::chat_body("u/x", "hi", false).to_string();
    let request = ask::post_with(
        "/v1/chat/completions",
        "Authorization: Bearer key-two\r\n",
        body.as_bytes(),
    );
    assert_eq!(daemon.ask(request).status(), 200);
    assert_eq!(
        upstream.seen()[0].call.header("authorization"),
        None,
        "the client's key went upstream"
    );
}

#[test]
fn a_stranger_is_refused_before_its_body_is_taken() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &with_keys(Conf::new()));
    let mut wire = daemon.connect().wait_at_most(Duration::from_secs(2));
    wire.send(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n",
    );
    assert_eq!(wire.answer().expect("an answer to the head alone").status(), 401);
    assert_eq!(
        daemon.metrics().limit("high_water", "server.bodies_total_max"),
        0,
        "room was kept for a stranger"
    );
}

#[test]
fn a_host_that_is_not_ours_is_refused() {
    let sandbox = Sandbox::new();
    let conf = Conf::new().server("allowed_hosts = [\"gate.example\", \"port.example:8080\"]");
    let daemon = Daemon::start(&sandbox, &conf);
    let port = daemon.addr.port();
    let good = [
        "localhost".to_owned(),
        format!("localhost:{port}"),
        "LocalHost".into(),
        "127.0.0.1".into(),
        format!("127.0.0.1:{port}"),
        "[::1]".into(),
        format!("[::1]:{port}"),
        "gate.example".into(),
        "GATE.example".into(),
        "gate.example:443".into(),
        "port.example:8080".into(),
        "localhost:1".into(),
    ];
    for host in good {
        let answer = daemon.ask(format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(answer.status(), 200, "{host}: {}", answer.text());
    }
    let bad = [
        "evil.example",
        "localhost.evil.example",
        "evil.localhost.example",
        "127.0.0.1.evil.example",
        "gate.example.evil",
        "xgate.example",
        "sub.gate.example",
        "port.example",
        "port.example:8081",
        "0.0.0.0",
        "192.0.2.1",
        "[::]",
        "2130706433",
        "127.1.evil",
        "[::ffff:192.0.2.1]",
    ];
    for host in bad {
        for path in ["/v1/models", "/api/tags", "/nowhere", "/"] {
            let answer = daemon.ask(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_error(&answer, path, 403, "host_not_allowed");
        }
    }
}

#[test]
fn a_page_from_elsewhere_is_refused_and_a_configured_one_is_served_with_cors() {
    let sandbox = Sandbox::new();
    let conf = with_keys(
        Conf::new()
            .server("allowed_origins = [\"https://chat.example\", \"http://localhost:3000\"]"),
    );
    let daemon = Daemon::start(&sandbox, &conf);
    let own = format!("http://{}", daemon.addr);
    let bad = [
        "https://evil.example",
        "null",
        "http://chat.example",
        "https://chat.example:444",
        "https://chat.example.evil",
        "https://sub.chat.example",
        "http://localhost:3001",
        "https://chat.example/",
        &own,
        "",
        "file://",
    ];
    for origin in bad {
        for lines in ["", "Authorization: Bearer key-one\r\n"] {
            let answer =
                daemon.ask(get_with("/v1/models", &format!("Origin: {origin}\r\n{lines}")));
            assert_error(&answer, "/v1/models", 403, "origin_not_allowed");
            assert_eq!(answer.header("access-control-allow-origin"), None, "{origin}");
        }
        let preflight = format!(
            "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\n\
             Access-Control-Request-Method: POST\r\n\r\n"
        );
        let answer = daemon.ask(preflight);
        assert_eq!(answer.status(), 403, "{origin}");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{origin}");
    }
    for origin in ["https://chat.example", "http://localhost:3000"] {
        let lines = format!("Origin: {origin}\r\nAuthorization: Bearer key-one\r\n");
        let body = ask::chat_body("echo", "hi", true).to_string();
        let answers = [
            daemon.ask(get_with("/v1/models", &lines)),
            daemon.ask(ask::post_with("/v1/chat/completions", &lines, body.as_bytes())),
            daemon.ask(ask::post_with("/api/chat", &lines, body.as_bytes())),
            // A page must be able to read an error, too.
            daemon.ask(get_with("/v1/nowhere", &lines)),
            daemon.ask(get_with("/v1/models", &format!("Origin: {origin}\r\n"))),
        ];
        for (index, answer) in answers.iter().enumerate() {
            let expected = [200, 200, 200, 404, 401][index];
            assert_eq!(answer.status(), expected, "{origin} {index}");
            assert_eq!(
                answer.header("access-control-allow-origin"),
                Some(origin),
                "{index}: {:?}",
                answer.head
            );
            let vary = answer.header("vary").unwrap_or_default().to_lowercase();
            assert!(vary.contains("origin"), "{index}: caches must know: {:?}", answer.head);
        }
        // The browser asks first, without the key.
        for path in ["/v1/chat/completions", "/api/chat", "/v1/models"] {
            let preflight = format!(
                "OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
                 Access-Control-Request-Headers: authorization, content-type, x-stainless-os\r\n\r\n"
            );
            let answer = daemon.ask(preflight);
            assert!(
                matches!(answer.status(), 200 | 204),
                "{path}: {} {}",
                answer.status(),
                answer.text()
            );
            assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
            let methods = answer.header("access-control-allow-methods").unwrap_or_default();
            assert!(methods.contains("POST") || path == "/v1/models", "{path}: {methods:?}");
            let headers =
                answer.header("access-control-allow-headers").unwrap_or_default().to_lowercase();
            for header in ["authorization", "content-type", "x-stainless-os"] {
                assert!(
                    headers.contains(header) || headers == "*" && header != "authorization",
                    "{path}: {headers:?}"
                );
            }
        }
    }
}

#[test]
fn unknown_paths_are_404_and_wrong_methods_are_405_in_the_dialect_of_the_path() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    for path in [
        "/nowhere",
        "/v1/nowhere",
        "/api/nowhere",
        "/v1/",
        "/V1/models",
        "//v1/models",
        "/v1/chat",
        "/v1/chat/completions/",
        "/v1/chat/completions/x",
        "/api/chat/x",
        "/../etc/passwd",
        "/v1/../v1/models",
        "/metrics",
        "/%2e/",
    ] {
        let answer = daemon.ask(ask::get(path));
        assert_error(&answer, path, 404, "not_found");
        let answer = daemon.ask(ask::post_with(path, "", b"{}"));
        assert_error(&answer, path, 404, "not_found");
    }
    let routes = [
        ("/v1/chat/completions", "POST"),
        ("/v1/completions", "POST"),
        ("/v1/embeddings", "POST"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/models/echo", "GET, HEAD"),
        ("/api/chat", "POST"),
        ("/api/generate", "POST"),
        ("/api/embed", "POST"),
        ("/api/embeddings", "POST"),
        ("/api/tags", "GET, HEAD"),
        ("/api/show", "POST"),
        ("/api/ps", "GET, HEAD"),
        ("/api/version", "GET, HEAD"),
        ("/", "GET, HEAD"),
    ];
    for (path, allowed) in routes {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"] {
            if allowed.contains(method) {
                continue;
            }
            let answer = daemon.ask(format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}"
            ));
            assert_error(&answer, path, 405, "method_not_allowed");
            let allow =
                answer.header("allow").unwrap_or_else(|| panic!("{method} {path}: no Allow"));
            for wanted in allowed.split(", ") {
                assert!(
                    allow.split(", ").any(|have| have == wanted),
                    "{method} {path}: Allow: {allow}"
                );
            }
        }
        // Without an Origin it is a plain question for the methods.
        let answer = daemon.ask(format!("OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert!(matches!(answer.status(), 200 | 204), "OPTIONS {path}: {}", answer.status());
        assert!(
            answer.header("allow").is_some_and(|allow| allow.contains("OPTIONS")),
            "OPTIONS {path}: {:?}",
            answer.head
        );
    }
    let answer = daemon.ask("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(matches!(answer.status(), 200 | 204), "OPTIONS *: {}", answer.status());
    // A query does not change the route.
    assert_eq!(daemon.ask(ask::get("/v1/models?x=1")).status(), 200);
}

/// What an answer says of itself.
#[test]
fn every_answer_has_a_date_and_an_id_and_no_sniffing() {
    let sandbox = Sandbox::new();
    let daemon = Daemon::start(&sandbox, &Conf::new());
    for request in [
        ask::get("/"),
        ask::get("/v1/models"),
        ask::get("/nowhere"),
        ask::chat(Dialect::OpenAi, "echo", "hi", true),
    ] {
        let answer = daemon.ask(request);
        let date = answer.header("date").unwrap_or_default();
        assert!(date.ends_with(" GMT") && date.len() == 29, "{date:?}");
        assert!(answer.header("x-request-id").is_some_and(|id| !id.is_empty()));
        if answer.header("content-type").is_some_and(|t| t.contains("json")) {
            let _: Value = answer.json();
        }
    }
}
