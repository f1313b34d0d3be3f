use super::*;
use proptest::prelude::*;
use serde_json::Value;
use serde_json::value::RawValue;

fn check(text: &str) -> Result<(), Bad> {
    let mut scan = Scan::new(text);
    let span = scan.skip()?;
    scan.finish()?;
    assert_eq!(scan.slice(&span), text.trim_matches([' ', '\n', '\t', '\r']));
    Ok(())
}

#[test]
fn what_json_has_is_taken() {
    for text in [
        "null",
        " true ",
        "false",
        "0",
        "-0",
        "10",
        "-1.5e+10",
        "1E5",
        "0.0",
        "\"\"",
        "\"a\\\"b\\\\\\/\\b\\f\\n\\r\\t\\u00e9\"",
        "[]",
        "[ ]",
        "{}",
        "{ }",
        "[1,2 , [3], {\"a\":[{}]}]",
        "{\"a\":1,\"b\":{\"c\":[]},\"a\":null}",
        "\"é€😀 and a long tail without anything special\"",
        "\"\\ud83d\"",
    ] {
        assert_eq!(check(text), Ok(()), "{text}");
    }
}

#[test]
fn what_json_does_not_have_is_refused() {
    for text in [
        "",
        " ",
        "nul",
        "True",
        "01",
        "1.",
        ".5",
        "1e",
        "+1",
        "-",
        "\"",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"\n\"",
        "\"1234567\u{1}\"",
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "{",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1,",
        "{\"a\":1,}",
        "{a:1}",
        "{\"a\" 1}",
        "[1}",
        "{\"a\":1]",
        "1 2",
        "[] []",
        "\u{feff}1",
        "NaN",
    ] {
        assert!(check(text).is_err(), "{text}");
    }
}

#[test]
fn the_127th_level_is_taken_and_the_128th_refused() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for (levels, fine) in [(127, true), (128, false), (100_000, false)] {
            let text = open.repeat(levels) + "1" + &close.repeat(levels);
            assert_eq!(check(&text).is_ok(), fine, "{levels} {open}");
        }
    }
    // The callback forms count as well.
    fn dive(scan: &mut Scan<'_>) -> Result<(), Bad> {
        match scan.peek()? {
            Shape::Array => scan.items(|scan, _| dive(scan)),
            _ => scan.skip().map(drop),
        }
    }
    let deep = |levels: usize| "[".repeat(levels) + "1" + &"]".repeat(levels);
    assert!(dive(&mut Scan::new(&deep(127))).is_ok());
    assert!(dive(&mut Scan::new(&deep(128))).is_err());
}

#[test]
fn members_and_items_give_names_positions_and_duplicates() {
    let text = r#"{"a":[10,"x"],"mod\u0065l":"é","a":null}"#;
    let mut scan = Scan::new(text);
    let mut seen = Vec::new();
    scan.members::<Bad>(|scan, name| {
        let span = scan.skip()?;
        seen.push((name.into_owned(), scan.slice(&span).to_owned()));
        Ok(())
    })
    .unwrap();
    scan.finish().unwrap();
    let seen: Vec<_> = seen.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(seen, [("a", "[10,\"x\"]"), ("model", "\"é\""), ("a", "null")]);
}

#[test]
fn escapes_are_undone_as_serde_undoes_them() {
    for inside in ["plain", "\\\"\\\\\\/\\b\\f\\n\\r\\t", "\\u0041\\u00e9x", "a\\ud83d\\ude00b"] {
        let text = format!("\"{inside}\"");
        let expected: String = serde_json::from_str(&text).unwrap();
        assert_eq!(unescaped(inside), expected);
    }
    assert_eq!(unescaped("a\\ud83d"), "a\u{fffd}");
    assert_eq!(unescaped("\\ud83d\\u0041"), "\u{fffd}A");
    assert_eq!(unescaped("\\udc00\\n"), "\u{fffd}\n");
}

#[test]
fn half_a_surrogate_pair_is_read_as_a_replacement_character() {
    let value: Value = read(r#"["\\ud83d","\ud83d","\ud83d\ude00","\udc00x"]"#).unwrap();
    assert_eq!(value, serde_json::json!(["\\ud83d", "\u{fffd}", "😀", "\u{fffd}x"]));
    assert!(read::<Value>("[1").is_err());
}

#[test]
fn what_python_takes_for_a_line_end_is_escaped() {
    let text = "a\u{85}b\u{2028}\u{2029}c\u{2030}é";
    let written = string(text);
    assert_eq!(written, "\"a\\u0085b\\u2028\\u2029c\u{2030}é\"");
    assert_eq!(unescaped(&written[1..written.len() - 1]), text);
}

/// Text that is nearly JSON.
fn nearly_json() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("{".to_owned()),
        Just("}".to_owned()),
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just(",".to_owned()),
        Just(":".to_owned()),
        Just("\"a\"".to_owned()),
        Just("\"".to_owned()),
        Just("\\".to_owned()),
        Just("\\u00".to_owned()),
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("-1.5e3".to_owned()),
        Just("0".to_owned()),
        Just(" \n".to_owned()),
        "[ -~]{0,12}",
        "\\PC{0,6}",
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Any JSON value, as text.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    let tree = leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((".{0,5}", inner), 0..5)
                .prop_map(|members| members.into_iter().collect()),
        ]
    });
    (tree, any::<bool>()).prop_map(|(value, pretty)| {
        if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() }
    })
}

proptest! {
    #[test]
    fn the_scanner_takes_exactly_what_serde_takes(text in prop_oneof![nearly_json(), json()]) {
        // A raw value, since the text of numbers is not looked at: 1e999 is JSON.
        let serde = serde_json::from_str::<&RawValue>(&text).is_ok();
        prop_assert_eq!(check(&text).is_ok(), serde, "{}", text);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_judged_as_serde_judges_it(
        text in json(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let at = at.index(text.len());
        let mut bytes = text.into_bytes();
        for bytes in [bytes[..at].to_vec(), { bytes[at] = byte; bytes }] {
            if let Ok(text) = std::str::from_utf8(&bytes) {
                let serde = serde_json::from_str::<&RawValue>(text).is_ok();
                prop_assert_eq!(check(text).is_ok(), serde, "{}", text);
            }
        }
    }

    #[test]
    fn a_string_survives_writing_and_unescaping(text in any::<String>()) {
        let written = string(&text);
        let mut scan = Scan::new(&written);
        prop_assert_eq!(unescaped(scan.string().unwrap()), text);
    }
}
