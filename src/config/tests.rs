//! Whole texts in, configurations or faults out.

use std::time::Duration;

use proptest::prelude::*;

use super::settings::UpstreamKind;
use super::*;

const EVERYTHING: &str = include_str!("../../tests/configs/good_everything.toml");

fn cloud_key(name: &str) -> Option<String> {
    (name == "CLOUD_KEY").then(|| "sk-test".to_owned())
}

/// Digests are masked when printed; an open gateway on loopback stands in.
fn without_keys(printed: &str) -> String {
    let (before, rest) = printed.split_once("[[key]]").unwrap_or((printed, ""));
    let after = rest.find("[[upstream]]").map_or("", |at| &rest[at..]);
    format!("{before}{after}").replace("[::]:", "[::1]:")
}

fn no_env(_: &str) -> Option<String> {
    None
}

fn good(text: &str) -> Loaded {
    parse(text, None, &no_env).unwrap_or_else(|faults| panic!("{faults}"))
}

/// Each fault as `line: key: text; remedy`.
fn faults(text: &str) -> Vec<String> {
    let faults = parse(text, None, &no_env).expect_err("must be refused").faults;
    faults.iter().map(|f| format!("{}: {f}", f.line.unwrap_or(0))).collect()
}

#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    assert_eq!(faults(text), expected, "{text}");
}

#[test]
fn nothing_at_all_gives_the_defaults_of_the_design() {
    let config = good("").config;
    let s = &config.server;
    assert_eq!(s.listen.to_string(), "127.0.0.1:18789");
    assert!(s.workers >= 8);
    assert_eq!((s.exchanges_max, s.waiting_max, s.queue_max), (1024, 1024, 512));
    assert_eq!((s.connections_max, s.connections_per_address_max), (4096, 0));
    assert_eq!((s.head_max, s.headers_max, s.target_max), (16 << 10, 100, 8 << 10));
    assert_eq!((s.body_max, s.bodies_total_max), (32 << 20, 256 << 20));
    assert_eq!(s.request_timeout, Duration::from_secs(600));
    assert_eq!(config.ops.listen.to_string(), "127.0.0.1:18790");
    assert_eq!(config.upstreams.len(), 1);
    let echo = &config.upstreams[0];
    assert_eq!((echo.name.as_str(), echo.kind), ("echo", UpstreamKind::Echo));
    assert_eq!(echo.concurrency_max, s.exchanges_max);
    assert!(config.keys.is_empty() && config.models.is_empty());
    assert_eq!((config.log.rotate_size, config.log.keep_files), (50 << 20, 10));
    assert_eq!(config.log.pending_max, 8192);
}

#[test]
fn a_limit_that_nobody_wrote_gives_way_to_a_smaller_whole() {
    let server = good("[server]\nhead_max = \"1KiB\"\nbodies_total_max = \"1MiB\"").config.server;
    assert_eq!((server.target_max, server.body_max), (1 << 10, 1 << 20));
    refused(
        "[server]\nhead_max = \"1KiB\"\ntarget_max = \"1025B\"\nbodies_total_max = \"1MiB\"\nbody_max = \"2MiB\"",
        &[
            "3: server.target_max: 1025B is above server.head_max 1KiB; \
             a target is part of its head: lower it, or raise the head",
            "5: server.body_max: 2MiB is above server.bodies_total_max 1MiB; \
             raise the total, or lower the single body",
        ],
    );
}

const TWO: &str = r#"
[[upstream]]
name = "local"
kind = "ollama"
url = "http://127.0.0.1:11434"

[[upstream]]
name = "cloud"
kind = "openai"
url = "https://api.example.com/v1"

[[model]]
name = "default"
primary = "local/llama3.2"
fallbacks = ["cloud/gpt-oss:120b", { model = "cloud/org/small", tools = false }]
"#;

#[test]
fn names_are_looked_up_as_models_then_without_latest_then_as_upstream_and_model() {
    let config = good(TWO).config;
    let chain = |name: &str| {
        let resolved = config.resolve(name)?;
        let link = |t: &settings::Target| format!("{}|{}", t.upstream.name, t.model);
        let links: Vec<String> = resolved.model.chain.iter().map(link).collect();
        Some((links.join(" "), resolved.declared))
    };
    let all = "local|llama3.2 cloud|gpt-oss:120b cloud|org/small";
    assert_eq!(chain("default"), Some((all.into(), true)));
    assert_eq!(chain("default:latest"), Some((all.into(), true)));
    assert_eq!(chain("cloud/org/a:b"), Some(("cloud|org/a:b".into(), false)));
    assert_eq!(chain("local/x:latest"), Some(("local|x:latest".into(), false)));
    assert_eq!(chain("echo"), Some(("echo|echo".into(), false)));
    assert_eq!(chain("echo:latest"), Some(("echo|echo".into(), false)));
    assert_eq!(chain("echo/anything"), Some(("echo|anything".into(), false)));
    for none in ["", "/", "local", "local/", "/llama3.2", "nobody/x", "default:7b", "echo/"] {
        assert_eq!(chain(none), None, "{none}");
    }
    let fallback = &config.resolve("default").unwrap().model.chain[2];
    assert!(!fallback.tools && fallback.images);
}

#[test]
fn a_model_name_comes_before_an_upstream_of_the_same_name() {
    let text = format!("{TWO}\n[[model]]\nname = \"local/llama3.2\"\nprimary = \"cloud/big\"\n");
    let resolved = good(&text).config.resolve("local/llama3.2").unwrap();
    assert_eq!(resolved.model.chain[0].upstream.name, "cloud");
    let text = "[[model]]\nname = \"echo\"\nprimary = \"echo\"\n[[model]]\nname = \"a:latest\"\nprimary = \"echo/x\"";
    let config = good(text).config;
    assert!(config.resolve("echo").unwrap().declared);
    assert_eq!(config.resolve("a:latest").unwrap().model.chain[0].model, "x");
    assert!(config.resolve("a").is_none());
}

#[test]
fn an_echo_may_be_declared_with_another_name_and_a_delay() {
    let config =
        good("[[upstream]]\nname = \"parrot\"\nkind = \"echo\"\nword_delay = \"50ms\"").config;
    assert_eq!(config.upstream("parrot").unwrap().word_delay, Duration::from_millis(50));
    assert_eq!(config.resolve("parrot").unwrap().model.chain[0].upstream.name, "parrot");
    assert!(config.resolve("echo").is_some());
}

#[test]
fn every_fault_is_told_at_once_with_its_line() {
    refused(
        "[server]\nworkers = 0\nrequest_timeout = 30\nbody_max = \"20 potatoes\"\nlissen = \"x\"\n\n\
         [[upstream]]\nkind = \"olama\"\nurl = \"127.0.0.1\"\n\n[[model]]\nname = \"a\"\nprimary = \"clowd/x\"\n",
        &[
            "2: server.workers: 0 is below 1; set 1 or more",
            "3: server.request_timeout: 30 has no unit; write \"30s\" for seconds, or use ms, m, h",
            "4: server.body_max: \"20 potatoes\" is not a size; write a size such as \"20MiB\", or a count of bytes",
            "5: server.lissen: is not known; did you mean listen?",
            "7: upstream[#1].name: is missing; write name = \"local\"",
            "8: upstream[#1].kind: \"olama\" is not known; did you mean \"ollama\"?",
            "9: upstream[#1].url: has no scheme; write http://… or https://…",
            "13: model[a].primary: \"clowd/x\" names no upstream; write upstream/model, and an [[upstream]] of that name",
        ],
    );
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = parse(&text, None, &no_env);
    }

    #[test]
    fn damage_to_a_good_file_is_told_as_faults_of_the_file(
        at in 0..EVERYTHING.len(), cut in 0..40_usize, put in "[\\[\\]\"={}.,a0\n-]{0,6}",
    ) {
        let end = (at + cut).min(EVERYTHING.len());
        let text = format!("{}{put}{}", &EVERYTHING[..at], &EVERYTHING[end..]);
        match parse(&text, None, &cloud_key) {
            Ok(loaded) => {
                // Without its keys it may listen on loopback only.
                let listens = [loaded.config.ops.listen, loaded.config.server.listen];
                prop_assume!(listens.iter().all(|listen| listen.ip().is_loopback()));
                let again = parse(&without_keys(&loaded.print()), None, &cloud_key).unwrap();
                prop_assert_eq!(loaded.config.models, again.config.models);
                prop_assert_eq!(loaded.config.server.request_timeout, again.config.server.request_timeout);
            }
            Err(faults) => {
                prop_assert!(!faults.faults.is_empty());
                for fault in &faults.faults {
                    prop_assert!(!fault.text.contains("cannot be read:"), "{}", fault);
                    prop_assert!(fault.line.is_some(), "{}", fault);
                }
            }
        }
    }
}

#[test]
fn a_key_has_no_name_that_is_an_account_of_the_gateways_own() {
    for name in ["nodes", "-", "device:0123456789ab"] {
        let digest = "1".repeat(64);
        let found = faults(&format!("[[key]]\nname = \"{name}\"\nsha256 = \"{digest}\"\n"));
        assert!(found.len() == 1 && found[0].contains("account of the gateway's own"), "{found:?}");
    }
}
