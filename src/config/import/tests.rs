//! Rules of both imports, one by one, and that nothing makes them panic or print a secret.

use proptest::prelude::*;

use super::*;

fn env(name: &str) -> Option<String> {
    (name == "SET").then(|| "http://set.example:1/v1".to_owned())
}

fn litellm(text: &str) -> Imported {
    import(Source::Litellm, text, "a.yaml", &env).unwrap_or_else(|why| panic!("{why}"))
}

fn openclaw(text: &str) -> Imported {
    import(Source::Openclaw, text, "a.json", &env).unwrap_or_else(|why| panic!("{why}"))
}

fn told(imported: &Imported, words: &str) {
    assert!(imported.notes.iter().any(|note| note.contains(words)), "{words}: {imported:#?}");
}

#[test]
fn deployments_of_one_name_are_a_chain_in_the_order_of_the_file() {
    let imported = litellm(
        "model_list:\n\
         - {model_name: m, litellm_params: {model: openai/b, order: 2}}\n\
         - {model_name: m, litellm_params: {model: openai/a, order: 1}}\n\
         - {model_name: m, litellm_params: {model: openai/a, order: 3}}\n\
         - {model_name: n, litellm_params: {model: claude-x}}\n\
         litellm_settings: {default_fallbacks: [n]}\n",
    );
    let chain =
        "primary = \"openai/a\"\nfallbacks = [\n    \"openai/b\",\n    \"anthropic/claude-x\",\n]";
    assert!(imported.text.contains(chain), "{}", imported.text);
    assert_eq!(imported.counts, [2, 2, 0]);
    told(&imported, "several deployments of one name");
}

#[test]
fn deployments_with_limits_of_their_own_are_upstreams_of_their_own() {
    let imported = litellm(
        "model_list:\n\
         - {model_name: a, litellm_params: {model: openai/a, rpm: 10}}\n\
         - {model_name: b, litellm_params: {model: openai/b}, rpm: 20}\n\
         - {model_name: c, litellm_params: {model: openai/c, rpm: none}}\n",
    );
    assert!(imported.text.contains("name = \"openai-2\""), "{}", imported.text);
    assert!(imported.text.contains("requests_per_minute = 20"), "{}", imported.text);
    told(&imported, "litellm_params.rpm: is no count");
}

#[test]
fn keys_are_variables_and_two_keys_are_two_upstreams() {
    let imported = litellm(
        "model_list:\n\
         - {model_name: a, litellm_params: {model: openai/a, api_key: sk-hush-1}}\n\
         - {model_name: b, litellm_params: {model: openai/b, api_key: sk-hush-2}}\n\
         - {model_name: c, litellm_params: {model: openai/c, api_key: os.environ/MINE}}\n\
         - {model_name: d, litellm_params: {model: openai/d, api_key: 'os.environ/hush hush'}}\n\
         general_settings: {master_key: os.environ/UNSET}\n",
    );
    let all = format!("{imported:?}");
    assert!(!all.contains("hush"), "{all}");
    for variable in ["TIDEGATE_OPENAI_KEY", "TIDEGATE_OPENAI_2_KEY", "MINE"] {
        assert!(imported.text.contains(&format!("api_key_env = \"{variable}\"")), "{variable}");
    }
    told(&imported, "$TIDEGATE_OPENAI_2_KEY");
    told(&imported, "general_settings.master_key: the key is not at hand");
    told(&imported, "is neither a key nor a variable");
}

#[test]
fn addresses_come_from_the_environment_or_are_left_out() {
    let imported = litellm(
        "model_list:\n\
         - {model_name: a, litellm_params: {model: openai/a, api_base: os.environ/SET}}\n\
         - {model_name: b, litellm_params: {model: openai/b, api_base: os.environ/UNSET}}\n\
         - {model_name: c, litellm_params: {model: hosted_vllm/c}}\n\
         - {model_name: d, litellm_params: {model: new/d, api_base: 'http://d.example/v1'}}\n",
    );
    assert!(imported.text.contains("url = \"http://set.example:1/v1\""), "{}", imported.text);
    assert_eq!(imported.counts, [2, 2, 0]);
    told(&imported, "names a variable that is not set here");
    told(&imported, "has no api_base");
    told(&imported, "not known here: taken to speak the OpenAI API");
}

#[test]
fn too_many_fallbacks_are_cut_and_doubles_fall_out() {
    let names: Vec<String> = (0..30).map(|n| format!("m{n}")).collect();
    let list: String = names
        .iter()
        .map(|name| format!("- {{model_name: {name}, litellm_params: {{model: ollama/{name}}}}}\n"))
        .collect();
    let all = names.join(", ");
    let text = format!("model_list:\n{list}litellm_settings: {{fallbacks: [{{m0: [{all}]}}]}}\n");
    let imported = litellm(&text);
    told(&imported, "m0: has more than 15 fallbacks");
    assert!(imported.text.contains("\"ollama/m15\",\n]"), "{}", imported.text);
}

#[test]
fn more_than_tidegate_takes_is_refused_by_its_own_check() {
    let list: String = (0..65)
        .map(|n| {
            let at = format!("http://h{n}.example/v1");
            format!(
                "- {{model_name: m{n}, litellm_params: {{model: openai/x, api_base: '{at}'}}}}\n"
            )
        })
        .collect();
    let refused = import(Source::Litellm, &format!("model_list:\n{list}"), "a", &env);
    assert!(matches!(refused, Err(Refusal::Faults(_))), "{refused:?}");
}

#[test]
fn a_gateway_listens_beyond_loopback_only_with_a_key() {
    let base = "agents: {defaults: {model: 'ollama/x'}}";
    let listen = |gateway: &str| openclaw(&format!("{{{base}, gateway: {gateway}}}"));
    let imported = listen("{bind: 'lan', port: 18790}");
    assert!(imported.text.contains("[server]\nlisten = \"127.0.0.1:18790\""), "{}", imported.text);
    assert!(imported.text.contains("[ops]\nlisten = \"127.0.0.1:18791\""), "{}", imported.text);
    told(&imported, "gateway.bind: left out, so that it listens on loopback");
    let imported = listen("{bind: 'lan', auth: {token: '${UNSET}'}}");
    assert!(imported.text.contains("listen = \"127.0.0.1:"), "{}", imported.text);
    let imported = listen("{bind: 'lan', auth: {token: '${SET}', password: 'hush'}}");
    assert!(imported.text.contains("listen = \"0.0.0.0:18789\""), "{}", imported.text);
    assert_eq!(imported.counts[2], 2);
    assert!(!format!("{imported:?}").contains("hush"));
}

#[test]
fn what_is_written_where_a_key_is_wanted() {
    let key = |text: &str| {
        let provider = format!("{{baseUrl: 'http://a.example/v1', apiKey: {text}}}");
        openclaw(&format!("{{models: {{providers: {{a: {provider}}}}}}}")).text
    };
    assert!(key("'${MINE}'").contains("api_key_env = \"MINE\""));
    assert!(key("'MY_KEY'").contains("api_key_env = \"MY_KEY\""));
    assert!(key("{source: 'env', id: 'MINE'}").contains("api_key_env = \"MINE\""));
    assert!(key("'HUSH_HUSH'").contains("api_key_env = \"TIDEGATE_A_KEY\""));
    assert!(key("'${hush hush}'").contains("api_key_env = \"TIDEGATE_A_KEY\""));
    assert!(!key("{source: 'exec', id: 'hush'}").contains("api_key"));
    assert!(!key("''").contains("api_key"));
}

/// Pieces that files are made of, right and wrong.
const PIECES: [&str; 24] = [
    "model_list:",
    "\n- ",
    "\n  ",
    "model_name: ",
    "litellm_params: ",
    "{model: ollama/x}",
    "a",
    ": ",
    "\n",
    "*",
    "&a ",
    "general_settings: {master_key: ",
    "}",
    "[",
    "]",
    "{",
    "router_settings:",
    "fallbacks: ",
    "rpm: -1",
    "agents: {defaults: {model: 'ollama/x'",
    "models: {providers: {",
    "apiKey: '${",
    ", ",
    "\u{0}",
];

proptest! {
    #[test]
    fn no_file_makes_it_panic(picks in proptest::collection::vec(0..PIECES.len(), 0..40)) {
        let text: String = picks.iter().map(|n| PIECES[*n]).collect();
        for source in [Source::Litellm, Source::Openclaw] {
            let _ = import(source, &text, "a\n[[x]]", &env);
        }
    }

    #[test]
    fn whatever_names_a_file_has_the_result_is_taken_or_refused(
        name in "\\PC{0,20}", model in "\\PC{0,20}", key in "\\PC{0,20}",
    ) {
        let entry = serde_json::json!({"model_name": name, "litellm_params": {
            "model": format!("ollama/{model}"), "api_key": key, "rpm": name, "timeout": model}});
        let text = serde_json::json!({"model_list": [entry]}).to_string();
        match import(Source::Litellm, &text, &name, &env) {
            Ok(_) | Err(Refusal::Empty(_)) | Err(Refusal::Format(_)) => {}
            Err(Refusal::Faults(faults)) => prop_assert!(false, "{}", faults),
        }
    }
}
