use proptest::prelude::*;
use serde_json::json;

use super::*;

const TEXT: &str = "# above\nserver.body_max = \"1MiB\" # why\n\n[log]\n  level = \"info\" # here\n\n\
                    # the local one\n[[upstream]]\nname = \"local\"\nkind = \"ollama\" # mine\n\n\
                    [[upstream]]\nname = \"cloud\"\nkind = \"openai\"\n\n\
                    [[model]]\nname = \"m\"\nprimary = \"local/x\"\nfallbacks = [\"cloud/y\", \"cloud/z\"] # both\n";

fn object(value: Json) -> Map<String, Json> {
    value.as_object().unwrap().clone()
}

fn patched(value: Json, replaced: &[&str]) -> Result<String, Unfit> {
    let replaced = replaced.iter().map(|path| (*path).to_owned()).collect();
    patch(TEXT, &object(value), &replaced)
}

#[test]
fn a_patch_changes_what_it_says_and_no_other_byte() {
    let check = |value: Json, from: &str, to: &str| {
        assert!(TEXT.contains(from));
        assert_eq!(patched(value.clone(), &[]).unwrap(), TEXT.replacen(from, to, 1), "{value}");
    };
    check(json!({}), "", "");
    check(json!({"log": {"level": "info"}, "server": {"body_max": "1MiB"}}), "", "");
    check(json!({"log": {"level": "debug"}}), "\"info\"", "\"debug\"");
    check(json!({"log": {"level": null}}), "  level = \"info\" # here\n", "");
    check(json!({"server": {"body_max": 2048}}), "\"1MiB\"", "2048");
    check(json!({"log": {"nothing": null}, "nowhere": null}), "", "");
    check(json!({"upstream": [{"name": "local", "kind": "openai"}]}), "\"ollama\"", "\"openai\"");
    check(
        json!({"upstream": [{"name": "cloud", "num_ctx": 7}]}),
        "\"openai\"\n",
        "\"openai\"\nnum_ctx = 7\n",
    );
    check(
        json!({"model": [{"name": "m", "fallbacks": ["cloud/z", "cloud/y", "local/w"]}]}),
        "[\"cloud/y\", \"cloud/z\"]",
        "[\"cloud/z\", \"cloud/y\", \"local/w\"]",
    );
}

#[test]
fn what_is_new_is_added_in_the_shape_that_people_write() {
    let text = patched(
        json!({
            "upstream": [{"name": "echo2", "kind": "echo", "word_delay": "0s"}],
            "alerts": {"enabled": false},
            "limit": [{"name": "all", "requests_per_minute": 5}],
        }),
        &[],
    );
    let text = text.unwrap();
    for part in [
        "[[upstream]]\nname = \"echo2\"\nkind = \"echo\"\nword_delay = \"0s\"\n",
        "[alerts]\nenabled = false\n",
        "[[limit]]\nname = \"all\"\nrequests_per_minute = 5\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(text.starts_with("# above\n") && text.contains("# mine"), "{text}");
    let values = values(&text).unwrap();
    assert_eq!(values["upstream"].as_array().unwrap().len(), 3);
}

#[test]
fn entries_of_a_list_are_lost_only_on_purpose() {
    let lost = |value: Json, paths: &[&str]| {
        let expected: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        assert_eq!(patched(value.clone(), &[]), Err(Unfit::Lost(expected)), "{value}");
        assert!(patched(value.clone(), paths).is_ok(), "{value}");
    };
    lost(json!({"upstream": null}), &["upstream"]);
    lost(json!({"upstream": []}), &["upstream"]);
    lost(json!({"upstream": [{"kind": "echo"}]}), &["upstream"]);
    lost(json!({"upstream": "none"}), &["upstream"]);
    lost(json!({"model": [{"name": "m", "fallbacks": ["cloud/y"]}]}), &["model[].fallbacks"]);
    lost(json!({"model": [{"name": "m", "fallbacks": null}]}), &["model[].fallbacks"]);
    let only = patched(json!({"upstream": [{"name": "cloud", "kind": "echo"}]}), &["upstream"]);
    let values = values(&only.unwrap()).unwrap();
    assert_eq!(values["upstream"], json!([{"name": "cloud", "kind": "echo"}]));
}

#[test]
fn a_whole_document_takes_the_place_of_the_text_and_comments_of_what_stays_are_kept() {
    let mut whole = values(TEXT).unwrap();
    assert_eq!(replace(TEXT, &whole).unwrap(), TEXT);
    whole["upstream"].as_array_mut().unwrap().remove(1);
    whole.remove("log");
    whole["model"][0]["fallbacks"] = json!([]);
    let text = replace(TEXT, &whole).unwrap();
    assert_eq!(values(&text).unwrap(), whole);
    assert!(
        text.contains("# above") && text.contains("# mine") && !text.contains("cloud"),
        "{text}"
    );
    // Another order is another list.
    let mut turned = values(TEXT).unwrap();
    turned["upstream"].as_array_mut().unwrap().reverse();
    assert_eq!(values(&replace(TEXT, &turned).unwrap()).unwrap(), turned);
    let mut first = values(TEXT).unwrap();
    first["upstream"].as_array_mut().unwrap().insert(0, json!({"name": "new"}));
    assert_eq!(values(&replace(TEXT, &first).unwrap()).unwrap(), first);
    assert_eq!(replace("", &object(json!({}))).unwrap(), "");
}

#[test]
fn what_no_configuration_can_hold_is_refused_with_its_place() {
    let check = |value: Json, place: &str| match patched(value, &[]) {
        Err(Unfit::Value(found, _)) => assert_eq!(found, place),
        other => panic!("{other:?}"),
    };
    check(json!({"log": {"level": u64::MAX}}), "log.level");
    check(json!({"model": [{"name": "m", "x": [null]}]}), "model[].x");
    let mut deep = json!("x");
    for _ in 0..40 {
        deep = json!({"a": deep});
    }
    assert!(matches!(patched(deep, &[]), Err(Unfit::Value(..))));
    let mut deep = json!("x");
    for _ in 0..40 {
        deep = json!([deep]);
    }
    assert!(matches!(patched(json!({"a": deep}), &[]), Err(Unfit::Value(..))));
    assert_eq!(patch("[", &Map::new(), &BTreeSet::new()), Err(Unfit::Text));
}

proptest! {
    #[test]
    fn what_comes_out_is_what_was_put_in(
        numbers in proptest::collection::vec((-9i64..9, "[a-c]{1,2}", "[a-z.\"\\]]{0,4}"), 0..6),
    ) {
        let mut whole = Map::new();
        for (n, key, text) in numbers {
            let value = match n.rem_euclid(4) {
                0 => json!(n),
                1 => json!([text, n]),
                2 => json!({"k": text, "l": [{"name": n.to_string()}]}),
                _ => json!([{"name": text.clone(), "v": n}, {"name": format!("{text}2")}]),
            };
            whole.insert(key, value);
        }
        for text in ["", TEXT] {
            let out = replace(text, &whole).unwrap();
            prop_assert_eq!(&values(&out).unwrap(), &whole, "{}", out);
        }
        let again = patch(TEXT, &whole, &BTreeSet::new());
        if let Ok(text) = again {
            prop_assert!(text.parse::<DocumentMut>().is_ok(), "{}", text);
        }
    }
}
