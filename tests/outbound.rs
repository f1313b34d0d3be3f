//! The way to an upstream: HTTPS with the certificates that count, proxies only when configured,
//! names and addresses, and what is sent along.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::ask;
use crate::support::conf::Conf;
use crate::support::daemon::{Daemon, Start};
use crate::support::peers::secure::{Certificate, Secure};
use crate::support::peers::{FakeUpstream, Step, answers};
use crate::support::sandbox::{Sandbox, free_port};
use crate::support::stream::{Dialect, Stream};

const DIALECTS: [Dialect; 2] = [Dialect::OpenAi, Dialect::Ollama];

fn good(dialect: Dialect) -> FakeUpstream {
    FakeUpstream::start(dialect, |call| answers::good(call, "hello there"))
}

fn ca_line(sandbox: &Sandbox, name: &str, secure: &Secure) -> String {
    format!("ca_file = {:?}", sandbox.write(name, secure.ca_pem()))
}

#[test]
fn an_https_upstream_is_asked_when_its_certificate_is_the_named_ones() {
    let sandbox = Sandbox::new();
    let inner = DIALECTS.map(good);
    let secure = [0, 1].map(|n| Secure::start(inner[n].addr(), Certificate::Good, false));
    let conf = Conf::new()
        .upstream(
            "oa",
            "openai",
            &format!("https://{}/v1", secure[0].addr()),
            &ca_line(&sandbox, "a.pem", &secure[0]),
        )
        .upstream(
            "ol",
            "ollama",
            &format!("https://{}", secure[1].addr()),
            &ca_line(&sandbox, "b.pem", &secure[1]),
        );
    let daemon = Daemon::start(&sandbox, &conf);
    for (index, model) in ["oa/x", "ol/x"].into_iter().enumerate() {
        for n in 0..20 {
            let (client, stream) = (DIALECTS[n % 2], n / 2 % 2 == 0);
            let answer = daemon.ask(ask::chat(client, model, "hi", stream));
            assert_eq!(answer.status(), 200, "{}", answer.text());
            if stream {
                Stream::of(client, &answer).assert_normal(model, "hello there", "over TLS");
            } else {
                assert_eq!(ask::whole_text(client, &answer.json()), "hello there");
            }
        }
        // A large body, and connections used again: a handshake is dear.
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, model, &"x".repeat(3 << 20), false));
        assert_eq!(answer.status(), 200);
        assert!(
            secure[index].handshakes() <= 6,
            "{} handshakes for 21 requests",
            secure[index].handshakes()
        );
    }
}

#[test]
fn an_https_upstream_with_a_wrong_certificate_is_not_asked() {
    let sandbox = Sandbox::new();
    let inner = good(Dialect::OpenAi);
    let fallback = FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, "the fallback"));
    let trusted = Secure::start(inner.addr(), Certificate::Good, false);
    let cases = [
        ("stranger", Secure::start(inner.addr(), Certificate::Good, false), true),
        ("name", Secure::start(inner.addr(), Certificate::OtherName, false), false),
        ("expired", Secure::start(inner.addr(), Certificate::Expired, false), false),
    ];
    let mut conf = Conf::new().fake("fallback", &fallback, "");
    for (name, secure, other_ca) in &cases {
        let ca = if *other_ca { &trusted } else { secure };
        conf = conf
            .upstream(
                name,
                "openai",
                &format!("https://{}/v1", secure.addr()),
                &ca_line(&sandbox, name, ca),
            )
            .model(&format!("m-{name}"), &format!("{name}/x"), &["fallback/x"]);
    }
    // The platform's roots do not know ours.
    conf = conf.upstream("platform", "openai", &format!("https://{}/v1", trusted.addr()), "");
    let daemon = Daemon::start(&sandbox, &conf);
    for name in ["stranger", "name", "expired", "platform"] {
        let begun = Instant::now();
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, &format!("{name}/x"), "secret", false));
        assert_eq!(answer.status(), 502, "{name}: {}", answer.text());
        assert_eq!(answer.code(), "upstream_connect", "{name}");
        assert!(
            begun.elapsed() < daemon.allow(Duration::from_secs(2)),
            "{name}: {:?}",
            begun.elapsed()
        );
        if name != "platform" {
            let answer =
                daemon.ask(ask::chat(Dialect::OpenAi, &format!("m-{name}"), "secret", true));
            Stream::of(Dialect::OpenAi, &answer).assert_normal(
                &format!("m-{name}"),
                "the fallback",
                name,
            );
        }
    }
    assert_eq!(inner.seen_all().len(), 0, "something was sent: {:#?}", inner.seen_all());
}

#[test]
fn plain_and_tls_are_not_confused() {
    let sandbox = Sandbox::new();
    let inner = good(Dialect::OpenAi);
    let secure = Secure::start(inner.addr(), Certificate::Good, false);
    let conf = Conf::new()
        .upstream(
            "tls-to-plain",
            "openai",
            &format!("https://{}/v1", inner.addr()),
            &format!("{}\nconnect_timeout = \"500ms\"", ca_line(&sandbox, "a.pem", &secure)),
        )
        .upstream("plain-to-tls", "openai", &format!("http://{}/v1", secure.addr()), "");
    let daemon = Daemon::start(&sandbox, &conf);
    for name in ["tls-to-plain", "plain-to-tls"] {
        for stream in [true, false] {
            let begun = Instant::now();
            let answer = daemon.ask(ask::chat(Dialect::OpenAi, &format!("{name}/x"), "hi", stream));
            // A plain server may wait for the rest of what it takes for a request.
            assert!(matches!(answer.status(), 502 | 504), "{name}: {}", answer.text());
            assert!(
                begun.elapsed() < daemon.allow(Duration::from_secs(1)),
                "{name}: {:?}",
                begun.elapsed()
            );
        }
    }
}

/// Whoever is on the way can end a TCP connection; without `close_notify` that is a cut, not an end.
#[test]
fn the_end_of_a_tls_connection_without_a_word_is_a_cut() {
    let sandbox = Sandbox::new();
    let behaviour = |call: &crate::support::peers::Call| {
        if let Some(catalog) = answers::catalog(call) {
            return catalog;
        }
        let body = answers::whole_json(call, "all of it").to_string();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
        vec![
            Step::Send([head.as_bytes(), body.as_bytes()].concat()),
            Step::Pause(Duration::from_millis(50)),
            Step::Close,
        ]
    };
    let inner = FakeUpstream::start(Dialect::OpenAi, behaviour);
    let polite = Secure::start(inner.addr(), Certificate::Good, false);
    let rude = Secure::start(inner.addr(), Certificate::Good, true);
    let conf = Conf::new()
        .upstream(
            "polite",
            "openai",
            &format!("https://{}/v1", polite.addr()),
            &ca_line(&sandbox, "a.pem", &polite),
        )
        .upstream(
            "rude",
            "openai",
            &format!("https://{}/v1", rude.addr()),
            &ca_line(&sandbox, "b.pem", &rude),
        );
    let daemon = Daemon::start(&sandbox, &conf);
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "polite/x", "hi", false));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "rude/x", "hi", false));
    assert_eq!(
        (answer.status(), answer.code().as_str()),
        (502, "upstream_cut"),
        "{}",
        answer.text()
    );
}

#[test]
fn a_proxy_is_used_when_it_is_configured_and_never_because_the_environment_says_so() {
    let sandbox = Sandbox::new();
    let upstream = good(Dialect::OpenAi);
    // A proxy for plain http is asked in absolute form; this one answers by itself.
    let proxy = FakeUpstream::start(Dialect::OpenAi, |call| {
        let mut call = call.clone();
        call.path =
            call.path.strip_prefix("http://far.example:8080").unwrap_or("/not-absolute").to_owned();
        answers::good(&call, "by the proxy")
    });
    let conf = Conf::new().fake("near", &upstream, "").upstream(
        "far",
        "openai",
        "http://far.example:8080/v1",
        &format!("proxy = \"http://{}\"", proxy.addr()),
    );
    let dead = format!("http://127.0.0.1:{}", free_port());
    let names =
        ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    let start = Start {
        env: names.iter().map(|name| ((*name).into(), dead.clone())).collect(),
        ..Start::default()
    };
    let daemon = Daemon::start_with(&sandbox, &conf, &start);
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "near/x", "hi", false));
    assert_eq!(ask::whole_text(Dialect::OpenAi, &answer.json()), "hello there");
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "far/x", "hi", true));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    Stream::of(Dialect::OpenAi, &answer).assert_normal("far/x", "by the proxy", "through a proxy");
    let seen = proxy.seen();
    assert!(
        seen.iter().all(|seen| seen.call.header("host") == Some("far.example:8080")),
        "{:#?}",
        seen[0].call.head
    );
    // The lists of `near` came without a proxy, too.
    assert!(daemon.ask(ask::get("/v1/models")).text().contains("near/fake-model"));
}

#[test]
fn an_https_upstream_behind_a_proxy_is_reached_by_a_tunnel() {
    use std::io::{Read, Write};
    let sandbox = Sandbox::new();
    let inner = good(Dialect::OpenAi);
    let secure = Secure::start(inner.addr(), Certificate::Good, false);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = listener.local_addr().unwrap();
    let heads: std::sync::Arc<std::sync::Mutex<Vec<String>>> = std::sync::Arc::default();
    let told = std::sync::Arc::clone(&heads);
    let target = secure.addr();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut outer) = socket else { return };
            let told = std::sync::Arc::clone(&told);
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && outer.read(&mut byte).is_ok_and(|n| n == 1) {
                    head.push(byte[0]);
                }
                told.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
                let mut tunnel = std::net::TcpStream::connect(target).unwrap();
                outer.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
                let (mut a, mut b) = (outer.try_clone().unwrap(), tunnel.try_clone().unwrap());
                let back = std::thread::spawn(move || {
                    let _ = std::io::copy(&mut b, &mut a);
                    let _ = a.shutdown(std::net::Shutdown::Both);
                });
                let _ = std::io::copy(&mut outer, &mut tunnel);
                let _ = tunnel.shutdown(std::net::Shutdown::Both);
                let _ = back.join();
            });
        }
    });
    let lines = format!("{}\nproxy = \"http://{proxy}\"", ca_line(&sandbox, "a.pem", &secure));
    let url = format!("https://{}/v1", secure.addr());
    let daemon = Daemon::start(&sandbox, &Conf::new().upstream("far", "openai", &url, &lines));
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "far/x", "hi", true));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    Stream::of(Dialect::OpenAi, &answer).assert_normal("far/x", "hello there", "through a tunnel");
    let heads = heads.lock().unwrap();
    assert!(
        heads.iter().all(|head| head.starts_with(&format!("CONNECT {target} HTTP/1.1\r\n"))),
        "{heads:?}"
    );
    assert!(
        heads.iter().all(|head| !head.to_lowercase().contains("authorization")),
        "the key went to the proxy"
    );
}

/// What an upstream hears of the client: the request, and nothing else.
#[test]
fn an_upstream_hears_the_request_and_nothing_else_of_the_client() {
    let sandbox = Sandbox::new();
    let upstreams = DIALECTS.map(good);
    let conf = Conf::new().fake("oa", &upstreams[0], "api_key_env = \"UP\"").fake(
        "ol",
        &upstreams[1],
        "api_key_file = \"up.key\"",
    );
    sandbox.write("up.key", "file-key\n");
    let start = Start { env: vec![("UP".into(), "env-key".into())], ..Start::default() };
    let daemon = Daemon::start_with(&sandbox, &conf, &start);
    let headers = "Authorization: Bearer mine\r\nCookie: a=b\r\nX-Forwarded-For: 192.0.2.7\r\nAccept-Encoding: gzip, br\r\n\
                   Connection: keep-alive, X-Secret\r\nX-Secret: s\r\nTE: trailers\r\nUser-Agent: someone\r\nProxy-Authorization: x\r\n";
    for model in ["oa/x", "ol/x"] {
        for stream in [true, false] {
            let body = ask::chat_body(model, "hi", stream).to_string();
            let answer =
                daemon.ask(ask::post_with("/v1/chat/completions", headers, body.as_bytes()));
            assert_eq!(answer.status(), 200, "{}", answer.text());
        }
    }
    for (upstream, key) in upstreams.iter().zip(["env-key", "file-key"]) {
        for seen in upstream.seen() {
            let call = &seen.call;
            assert_eq!(call.header("authorization"), Some(format!("Bearer {key}").as_str()));
            assert_eq!(call.header("host"), Some(upstream.addr().to_string().as_str()));
            assert!(
                call.header("content-type").is_some_and(|t| t.starts_with("application/json")),
                "{}",
                call.head
            );
            for name in ["cookie", "x-forwarded-for", "x-secret", "te", "proxy-authorization"] {
                assert_eq!(call.header(name), None, "{name} went upstream: {}", call.head);
            }
            let coding = call.header("accept-encoding").unwrap_or("identity");
            assert_eq!(coding, "identity", "an answer that nobody here can read was asked for");
        }
    }
}

#[test]
fn names_and_addresses_of_every_kind_are_reached_or_given_up_in_time() {
    let sandbox = Sandbox::new();
    let upstream = good(Dialect::OpenAi);
    let port = upstream.addr().port();
    let fallback = FakeUpstream::start(Dialect::Ollama, |call| answers::good(call, "the fallback"));
    let conf = Conf::new()
        .fake("fallback", &fallback, "")
        .upstream("name", "openai", &format!("http://localhost:{port}/v1"), "")
        .upstream(
            "nobody",
            "openai",
            "http://no-such-host.invalid/v1",
            "connect_timeout = \"700ms\"",
        )
        // TEST-NET-1: packets to it go nowhere.
        .upstream("void", "openai", "http://192.0.2.1:9/v1", "connect_timeout = \"700ms\"")
        .model("a", "nobody/x", &["fallback/x"])
        .model("b", "void/x", &["fallback/x"]);
    let daemon = Daemon::start(&sandbox, &conf);
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "name/x", "hi", false));
    assert_eq!(
        answer.status(),
        200,
        "localhost is 127.0.0.1 where ::1 does not answer: {}",
        answer.text()
    );
    for model in ["a", "b"] {
        for stream in [true, false] {
            let begun = Instant::now();
            let answer = daemon.ask(ask::chat(Dialect::OpenAi, model, "hi", stream));
            assert_eq!(answer.status(), 200, "{model}: {}", answer.text());
            assert!(answer.text().contains("fallback"));
            assert!(
                begun.elapsed() < daemon.allow(Duration::from_millis(1000)),
                "{model}: {:?}",
                begun.elapsed()
            );
        }
    }
}

/// A certificate authority is replaced in its file, as `certbot` and company policies do it.
#[test]
fn a_ca_file_that_changed_is_read_again_by_a_reload() {
    let sandbox = Sandbox::new();
    let inner = good(Dialect::OpenAi);
    let secure = Secure::start(inner.addr(), Certificate::Good, false);
    let other = Secure::start(inner.addr(), Certificate::Good, false);
    let lines = ca_line(&sandbox, "ca.pem", &other);
    let url = format!("https://{}/v1", secure.addr());
    let daemon = Daemon::start(&sandbox, &Conf::new().upstream("u", "openai", &url, &lines));
    let reload = |secure: &Secure, times: f64| {
        sandbox.write("ca.pem", secure.ca_pem());
        daemon.signal(Signal::HUP);
        let labels = [("outcome", "ok")];
        assert_eventually!(
            daemon.metrics().sum("tidegate_config_reloads_total", &labels) == Some(times)
        );
    };
    let status = || daemon.ask(ask::chat(Dialect::OpenAi, "u/x", "hi", false)).status();
    assert_eq!(status(), 502, "nobody named signed its certificate");
    reload(&secure, 1.0);
    assert_eq!(status(), 200);
    // Nor does a connection from before live on.
    reload(&other, 2.0);
    assert_eq!(status(), 502);
    reload(&secure, 3.0);
    assert_eq!(status(), 200);
}

/// The upstream was not asked, so it says nothing about the request: the next one may well answer.
#[test]
fn a_proxy_that_wants_credentials_moves_on_and_has_a_code_of_its_own() {
    let sandbox = Sandbox::new();
    let proxy = FakeUpstream::start(Dialect::OpenAi, |_| {
        vec![Step::Send(answers::whole(407, "Proxy-Authenticate: Basic\r\n", b"no"))]
    });
    let well = good(Dialect::Ollama);
    let lines = format!("proxy = \"http://{}\"", proxy.addr());
    let conf = Conf::new()
        .upstream("far", "openai", "http://far.example/v1", &lines)
        .upstream("tls", "openai", "https://far.example/v1", &lines)
        .fake("well", &well, "")
        .model("m", "far/x", &["tls/x", "well/x"]);
    let daemon = Daemon::start(&sandbox, &conf);
    let answer = daemon.ask(ask::chat(Dialect::OpenAi, "m", "hi", false));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    for model in ["far/x", "tls/x"] {
        let answer = daemon.ask(ask::chat(Dialect::OpenAi, model, "hi", false));
        let told = (answer.status(), answer.code());
        assert_eq!(told, (502, "upstream_proxy_rejected".to_owned()), "{model}");
    }
}
