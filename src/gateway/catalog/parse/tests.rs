use super::*;

#[test]
fn the_list_of_ollama_keeps_every_field_but_the_name() {
    let list = tags(
        br#"{"models":[{"name":"llama3.2:latest","model":"llama3.2:latest",
            "modified_at":"2026-03-01T10:00:00.123456789+01:00","size":2019393189,
            "digest":"a80c","details":{"families":["llama"]},"new":null}]}"#,
    )
    .unwrap();
    let listed = &list.models[0];
    assert_eq!(listed.model, "llama3.2:latest");
    assert_eq!(listed.created, 1_772_355_600);
    assert_eq!(
        listed.members.as_deref().unwrap(),
        concat!(
            r#","modified_at":"2026-03-01T10:00:00.123456789+01:00","size":2019393189"#,
            r#","digest":"a80c","details":{"families":["llama"]},"new":null"#
        )
    );
    assert!(list.find("llama3.2").is_some() && list.find("llama3.2:latest").is_some());
    assert!(list.find("llama3").is_none() && list.find("llama3.2:1b").is_none());
    assert!(list.find("llama3.2:latest:latest").is_none());
}

#[test]
fn the_lists_of_openai_and_its_relatives_are_read() {
    let check = |body: &str, expected: &[(&str, u64, Option<u64>)]| {
        let list = models(body.as_bytes()).unwrap();
        let found: Vec<_> = list
            .models
            .iter()
            .map(|listed| (listed.model.as_str(), listed.created, listed.context))
            .collect();
        assert_eq!(found, expected, "{body}");
    };
    check(
        r#"{"object":"list","data":[{"id":"gpt","object":"model","created":17,"owned_by":"o"}]}"#,
        &[("gpt", 17, None)],
    );
    check(r#"[{"id":"a","created":1.5e3}]"#, &[("a", 1500, None)]);
    check(
        r#"{"data":[{"id":"x/y:free","name":"X: Y","created":-1,"context_length":131072}]}"#,
        &[("x/y:free", 0, Some(131_072))],
    );
    check(r#"{"data":[{"id":"v","max_model_len":8192}]}"#, &[("v", 0, Some(8192))]);
    check(
        r#"{"models":[{"name":"l"}],"data":[{"id":"l","meta":{"n_ctx":4096,"n_ctx_train":9}}]}"#,
        &[("l", 0, Some(4096))],
    );
    check(r#"{"data":[{"id":"l","meta":{"n_ctx_train":131072}}]}"#, &[("l", 0, None)]);
    check(r#"{"data":null}"#, &[]);
}

#[test]
fn abilities_are_what_the_list_says() {
    let check = |entry: &str, tools: Option<bool>, vision: Option<bool>| {
        let list = models(format!(r#"[{{"id":"m",{entry}}}]"#).as_bytes()).unwrap();
        let told = list.models[0].told;
        assert_eq!((told.tools, told.vision), (tools, vision), "{entry}");
    };
    check(r#""x":1"#, None, None);
    check(r#""supported_parameters":["tools"]"#, Some(true), None);
    check(r#""supported_parameters":["seed"]"#, Some(false), None);
    check(r#""architecture":{"input_modalities":["text","image"]}"#, None, Some(true));
    check(r#""capabilities":{"function_calling":true,"vision":false}"#, Some(true), Some(false));
    check(r#""capabilities":["tool_use","vision"]"#, Some(true), Some(true));
}

#[test]
fn what_cannot_be_read_is_left_out_and_counted() {
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    let fat = "y".repeat(ENTRY_BYTES_MAX);
    let body = format!(
        r#"{{"models":[{{"name":"ok"}},{{"name":"{long}"}},{{"name":"f","v":"{fat}"}},7,null,
        {{}},{{"name":3}},{{"name":""}},{{"name":"a\nb"}},{{"model":"only"}}]}}"#
    );
    let list = tags(body.as_bytes()).unwrap();
    let names: Vec<_> = list.models.iter().map(|listed| listed.model.as_str()).collect();
    assert_eq!((names, list.left_out), (vec!["ok", "only"], 8));
    assert!(tags(b"{}").is_err(), "an object without a list is no list");
    assert!(tags(b"<html>").is_err());
    assert!(tags(br#"{"models":[{"name":"cut"#).is_err());
    assert!(tags(br#"{"models":7}"#).is_err());
    assert!(models(br#"{"error":"x"}"#).is_err());
    assert_eq!(tags(br#"{"models":null}"#).unwrap(), List::default());
}

#[test]
fn a_list_is_bounded_exactly_at_its_limit() {
    let of = |count: usize| {
        let entries: Vec<_> = (0..count).map(|n| format!(r#"{{"id":"m{n}"}}"#)).collect();
        let list = models(format!("[{}]", entries.join(",")).as_bytes()).unwrap();
        (list.models.len(), list.left_out)
    };
    assert_eq!(of(MODELS_MAX), (MODELS_MAX, 0));
    assert_eq!(of(MODELS_MAX + 3), (MODELS_MAX, 3));
}

#[test]
fn a_description_tells_its_context() {
    let check = |body: &str, num_ctx: Option<u64>, context_length: Option<u64>| {
        let show = show(body.as_bytes().to_vec()).unwrap();
        assert_eq!((show.num_ctx, show.context_length), (num_ctx, context_length), "{body}");
        assert_eq!(&*show.body, body.as_bytes());
    };
    check(
        r#"{"parameters":"stop   \"x\"\nnum_ctx                        8192","model_info":
        {"general.architecture":"llama","llama.context_length":131072,"x":[[1]]}}"#,
        Some(8192),
        Some(131_072),
    );
    // The key of another architecture says nothing, and neither does one without its owner.
    check(r#"{"model_info":{"general.architecture":"qwen","llama.context_length":1}}"#, None, None);
    check(r#"{"model_info":{"llama.context_length":1}}"#, None, None);
    check(r#"{"parameters":"num_ctx x","model_info":null}"#, None, None);
    check(r#"{"parameters":"num_ctx 0\nnum_ctx_max 5"}"#, None, None);
    check(r#"{"parameters":["num_ctx 1"]}"#, None, None);
    assert!(show(b"[\"num_ctx 5\",{}]".to_vec()).is_err());
    assert!(show(b"nothing".to_vec()).is_err());
}

#[test]
fn what_is_loaded_keeps_its_times_as_they_came() {
    let found = ps(br#"{"models":[{"name":"m:1","model":"m:1","size":5,
            "expires_at":"2026-03-01T10:05:00.5+01:00","context_length":4096}]}"#)
    .unwrap();
    assert_eq!(found.models[0].model, "m:1");
    assert_eq!(
        &*found.models[0].members,
        r#","size":5,"expires_at":"2026-03-01T10:05:00.5+01:00","context_length":4096"#
    );
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(body in proptest::collection::vec(0u8.., 0..200)) {
        let _ = (tags(&body), models(&body), ps(&body), show(body));
    }

    #[test]
    fn no_text_like_json_makes_the_readers_panic(
        body in r#"\{"(models|data|parameters|model_info)":[\[\{]?("(name|id|general.architecture)":)?["0-9a-z\\\[\]{},:.\-]{0,40}"#
    ) {
        let body = body.into_bytes();
        let _ = (tags(&body), models(&body), ps(&body), show(body));
    }
}
