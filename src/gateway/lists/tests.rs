use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::base::clock;
use crate::base::metrics::Registry;
use crate::net::http_client::peer::{Act, Peer, Seen};
use crate::net::outbound::Resolver;

const TAGS: &str = r#"{"models":[
    {"name":"llama3.2:latest","model":"llama3.2:latest","modified_at":"2026-03-01T10:00:00Z",
     "size":2019393189,"digest":"a80c4f17acd55265feec403c7aef86be0c25983ab279d83f3bcd3abbcb5b8b72",
     "details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],
     "parameter_size":"3.2B","quantization_level":"Q4_K_M"}},
    {"name":"qwen3:8b","model":"qwen3:8b","modified_at":"2026-03-02T10:00:00Z","size":5}]}"#;
const MODELS: &str = r#"{"object":"list","data":[
    {"id":"gpt-oss:120b","object":"model","created":1754300000,"owned_by":"openai",
     "context_length":131072,"supported_parameters":["tools"],
     "architecture":{"input_modalities":["text","image"]}},
    {"id":"meta/llama:free","object":"model","created":0}]}"#;
const PS: &str = r#"{"models":[{"name":"qwen3:8b","model":"qwen3:8b","size":5,
    "expires_at":"2026-03-01T10:05:00.25+01:00","size_vram":5,"context_length":4096}]}"#;
const SHOW: &str = r#"{"modelfile":"FROM x","parameters":"num_ctx 8192","details":{"family":"llama"},"capabilities":["completion","tools"],"model_info":{"general.architecture":"llama","llama.context_length":131072}}"#;

struct House {
    peer: Peer,
    config: Config,
    catalog: Arc<Catalog>,
    allowed: Models,
}

/// Two upstreams and their models; one more may be away.
fn house(more: &str) -> House {
    let peer = Peer::start(|seen: &Seen| match seen.path.as_str() {
        "/api/tags" => Act::Json(200, TAGS.to_owned()),
        "/api/ps" => Act::Json(200, PS.to_owned()),
        "/v1/models" => Act::Json(200, MODELS.to_owned()),
        "/api/show" if seen.body.contains("llama3.2") => Act::Json(200, SHOW.to_owned()),
        "/api/show" => Act::Json(404, r#"{"error":"model 'x' not found"}"#.to_owned()),
        _ => Act::Hang,
    });
    let port = peer.port();
    let text = format!(
        r#"
[[upstream]]
name = "local"
kind = "ollama"
url = "http://127.0.0.1:{port}"
[[upstream]]
name = "cloud"
kind = "openai"
url = "http://127.0.0.1:{port}/v1"
[[model]]
name = "default"
primary = "local/llama3.2"
fallbacks = ["cloud/gpt-oss:120b"]
[[model]]
name = "big"
primary = "cloud/gpt-oss:120b"
{}"#,
        more.replace("PORT", &port.to_string())
    );
    let config = crate::config::parse(&text, None, &|_| None).unwrap().config;
    let registry = Registry::default();
    let resolver = Arc::new(Resolver::system(&registry));
    let catalog = Catalog::start(&config, resolver, &registry, Arc::default());
    House { peer, config, catalog, allowed: Models::default() }
}

fn json(response: Result<Response>) -> Value {
    let response = response.unwrap();
    assert_eq!(response.status, 200);
    serde_json::from_slice(&response.body).unwrap()
}

fn each(list: &Value, members: &str, key: &str) -> Vec<String> {
    let text = |model: &Value| model[key].as_str().unwrap().to_owned();
    list[members].as_array().unwrap().iter().map(text).collect()
}

const NAMES: [&str; 7] = [
    "default",
    "big",
    "echo",
    "local/llama3.2:latest",
    "local/qwen3:8b",
    "cloud/gpt-oss:120b",
    "cloud/meta/llama:free",
];

#[test]
fn both_lists_hold_every_name_that_can_be_asked_for_once() {
    let house = house("");
    let models = json(models(&house.config, &house.catalog, &house.allowed));
    assert_eq!(each(&models, "data", "id"), NAMES);
    assert_eq!(models["object"], "list");
    let tags = json(tags(&house.config, &house.catalog, &house.allowed));
    assert_eq!(each(&tags, "models", "name"), NAMES);
    assert_eq!(each(&tags, "models", "model"), NAMES);
    for name in NAMES {
        assert!(house.config.resolve(name).is_some(), "{name}");
        let one = json(model(&house.config, &house.catalog, &house.allowed, name));
        assert_eq!(one["id"], name);
        let listed = &models["data"][NAMES.iter().position(|n| *n == name).unwrap()];
        assert_eq!(one["owned_by"], listed["owned_by"]);
    }
}

#[test]
fn models_have_the_shape_that_clients_want() {
    let house = house("");
    let models = json(models(&house.config, &house.catalog, &house.allowed));
    assert_eq!(
        models["data"][5],
        serde_json::json!({"id": "cloud/gpt-oss:120b", "object": "model", "created": 1754300000,
            "owned_by": "cloud", "context_length": 131072})
    );
    assert_eq!(models["data"][0]["created"], 1_772_359_200, "an alias has its primary's");
    assert_eq!(models["data"][0]["owned_by"], "local");
    assert_eq!(
        models["data"][2],
        serde_json::json!({"id": "echo", "object": "model", "created": 0, "owned_by": "echo"})
    );
}

#[test]
fn a_declared_model_tells_its_context_once_it_is_known() {
    let house = house("");
    let begun = clock::now();
    loop {
        let one = json(model(&house.config, &house.catalog, &house.allowed, "default"));
        if one["context_length"] == 8192 {
            break;
        }
        assert_eq!(one["context_length"], Value::Null, "nothing is made up");
        assert!(clock::now() - begun < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(2));
    }
    // Listing all models asked about those that are declared, and no others.
    models(&house.config, &house.catalog, &house.allowed).unwrap();
    assert_eq!(house.peer.calls("/api/show"), 1);
}

#[test]
fn tags_have_all_the_fields_that_clients_of_ollama_want() {
    let house = house("");
    let tags = json(tags(&house.config, &house.catalog, &house.allowed));
    let theirs: Value = serde_json::from_str(TAGS).unwrap();
    let mut expected = theirs["models"][0].clone();
    (expected["name"], expected["model"]) = ("default".into(), "default".into());
    assert_eq!(tags["models"][0], expected, "an alias has all of its primary's");
    for made_up in [1, 2, 5, 6] {
        let entry = &tags["models"][made_up];
        assert!(entry["digest"].as_str().unwrap().len() >= 12, "the command line cuts it there");
        assert_eq!(entry["size"], 0);
        assert!(entry["details"]["families"].is_array());
        assert_eq!(entry["details"]["parameter_size"], "");
    }
    assert_eq!(tags["models"][1]["digest"], tags["models"][5]["digest"]);
    assert_eq!(tags["models"][2]["modified_at"], "0001-01-01T00:00:00Z");
    assert_eq!(tags["models"][5]["modified_at"], "2025-08-04T09:33:20Z");
}

#[test]
fn an_upstream_that_is_away_costs_its_own_entries_only() {
    let away = r#"
[[upstream]]
name = "slow"
kind = "ollama"
url = "http://127.0.0.1:PORT/hang"
[[model]]
name = "dreams"
primary = "slow/dream"
"#;
    let house = house(away);
    let begun = clock::now();
    let listed = json(models(&house.config, &house.catalog, &house.allowed));
    assert!(clock::now() - begun < Duration::from_millis(1500));
    let mut expected = NAMES.to_vec();
    expected.insert(2, "dreams");
    assert_eq!(each(&listed, "data", "id"), expected);
    assert_eq!(
        json(model(&house.config, &house.catalog, &house.allowed, "dreams"))["id"],
        "dreams"
    );
    let unknown = model(&house.config, &house.catalog, &house.allowed, "slow/dream").unwrap_err();
    assert!(matches!(unknown.kind(), Kind::UpstreamTimeout(_)), "it is not said to be missing");
    let tags = json(tags(&house.config, &house.catalog, &house.allowed));
    assert_eq!(each(&tags, "models", "name"), expected);
    let ps = json(ps(&house.config, &house.catalog, &house.allowed));
    assert_eq!(each(&ps, "models", "name"), ["local/qwen3:8b"]);
}

#[test]
fn a_declared_name_hides_what_an_upstream_lists_under_it() {
    let house = house("[[model]]\nname = \"local/llama3.2\"\nprimary = \"cloud/gpt-oss:120b\"\n");
    let listed = json(models(&house.config, &house.catalog, &house.allowed));
    let names = each(&listed, "data", "id");
    assert!(names.contains(&"local/llama3.2".to_owned()));
    assert!(!names.contains(&"local/llama3.2:latest".to_owned()), "it would mean the other one");
    let one = json(model(&house.config, &house.catalog, &house.allowed, "local/llama3.2:latest"));
    assert_eq!(one["owned_by"], "cloud");
}

#[test]
fn ids_come_as_they_are_or_escaped() {
    let house = house("");
    let check = |id: &str, expected: &str| {
        let one = json(model(&house.config, &house.catalog, &house.allowed, id));
        assert_eq!(one["id"], expected, "{id}");
    };
    check("cloud%2Fmeta%2fllama%3Afree", "cloud/meta/llama:free");
    check("default:latest", "default:latest");
    check("local/llama3.2", "local/llama3.2");
    for id in ["%", "%4", "%zz", "%ff", "100%"] {
        let error = model(&house.config, &house.catalog, &house.allowed, id).unwrap_err();
        assert_eq!(error.kind(), Kind::ModelNotFound, "{id}");
    }
}

#[test]
fn a_wrong_name_is_told_what_it_may_have_meant() {
    let house = house("");
    json(models(&house.config, &house.catalog, &house.allowed));
    let check = |name: &str, expected: &str| {
        let error = not_found(&house.config, &house.catalog, &house.allowed, name);
        assert_eq!(error.kind(), Kind::ModelNotFound);
        assert_eq!(error.context(), format!("model '{name}' not found; {expected}"));
    };
    check("qwen3:8b", "did you mean local/qwen3:8b?");
    check("llama3.2", "did you mean local/llama3.2:latest?");
    check("defualt", "did you mean default?");
    check("local/qwen3:9b", "did you mean local/qwen3:8b?");
    check("a-name-like-no-other-at-all", "GET /v1/models lists what there is");
    check("", "GET /v1/models lists what there is");
    let long = "é".repeat(5000);
    let told = not_found(&house.config, &house.catalog, &house.allowed, &long);
    assert!(told.context().len() < 600);
    for name in ["local/nothing", "cloud/nothing"] {
        let error = model(&house.config, &house.catalog, &house.allowed, name).unwrap_err();
        assert_eq!(error.kind(), Kind::ModelNotFound, "{name}");
    }
}

#[test]
fn an_ollama_upstream_describes_its_models_itself() {
    let house = house("");
    for name in ["default", "default:latest", "local/llama3.2:latest"] {
        let body = format!(r#"{{"model":"{name}"}}"#);
        let response =
            show(&house.config, &house.catalog, &house.allowed, body.as_bytes()).unwrap();
        assert_eq!(response.body, SHOW.as_bytes(), "{name}");
    }
    let seen = house.peer.seen();
    let asked: Vec<_> = seen.iter().filter(|seen| seen.path == "/api/show").collect();
    assert_eq!(asked.len(), 2, "an alias and its other spelling are one question");
    assert_eq!(asked[0].body, r#"{"model":"llama3.2"}"#);
    let verbose = br#"{"name":"default","verbose":true}"#;
    show(&house.config, &house.catalog, &house.allowed, verbose).unwrap();
    assert!(house.peer.seen().iter().any(|s| s.body == r#"{"model":"llama3.2","verbose":true}"#));
    let unknown = show(&house.config, &house.catalog, &house.allowed, br#"{"model":"local/none"}"#)
        .unwrap_err();
    assert_eq!(unknown.kind(), Kind::ModelNotFound);
}

#[test]
fn what_ollama_does_not_describe_is_described_without_figures() {
    let house = house("");
    let check = |name: &str, capabilities: &[&str]| {
        let body = format!(r#"{{"model":"{name}"}}"#);
        let shown = json(show(&house.config, &house.catalog, &house.allowed, body.as_bytes()));
        assert_eq!(shown["capabilities"], serde_json::json!(capabilities), "{name}");
        assert_eq!(shown["model_info"], serde_json::json!({}));
        assert_eq!(shown["details"]["parameter_size"], "");
    };
    check("big", &["completion", "tools", "vision"]);
    check("cloud/meta/llama:free", &["completion", "tools"]);
    check("echo", &["completion"]);
    let unknown =
        show(&house.config, &house.catalog, &house.allowed, br#"{"model":"cloud/x"}"#).unwrap_err();
    assert_eq!(unknown.kind(), Kind::ModelNotFound);
}

#[test]
fn a_body_that_names_no_model_is_refused() {
    let house = house("");
    let check = |body: &str, expected: Kind| {
        let error =
            show(&house.config, &house.catalog, &house.allowed, body.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), expected, "{body}");
    };
    check("", Kind::InvalidJson);
    check("{", Kind::InvalidJson);
    check("[]", Kind::InvalidField);
    check("{}", Kind::InvalidField);
    check(r#"{"model":""}"#, Kind::InvalidField);
    check(r#"{"model":7}"#, Kind::InvalidField);
    check(r#"{"model":"no such"}"#, Kind::ModelNotFound);
    let both = br#"{"model":"","name":"echo"}"#;
    assert!(show(&house.config, &house.catalog, &house.allowed, both).is_ok());
}

#[test]
fn what_is_in_memory_keeps_its_times() {
    let house = house("");
    let ps = json(ps(&house.config, &house.catalog, &house.allowed));
    assert_eq!(
        ps["models"],
        serde_json::json!([{"name": "local/qwen3:8b", "model": "local/qwen3:8b", "size": 5,
            "expires_at": "2026-03-01T10:05:00.25+01:00", "size_vram": 5, "context_length": 4096}])
    );
}

#[test]
fn clients_of_ollama_see_a_server_that_they_know() {
    let version = json(version());
    let parts: Vec<u64> =
        version["version"].as_str().unwrap().split('.').map(|part| part.parse().unwrap()).collect();
    assert!(parts >= vec![0, 6, 4], "the least that VS Code wants");
    let root = root().unwrap();
    assert_eq!(root.body, b"Ollama is running");
    assert_eq!(root.headers[0].1, "text/plain; charset=utf-8");
}
