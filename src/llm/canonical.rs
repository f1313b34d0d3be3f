//! What a request asks for, whatever way it is written: the text that two requests have in common
//! when one answer is right for both.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::json;

/// Members that are about the form of the answer, or named elsewhere.
const FORM: [&str; 4] = ["model", "stream", "stream_options", "encoding_format"];

/// A request's body with its members in order and without blanks, without those that are only about
/// the form of the answer. `None` for a body that has a member twice, which could be read in two
/// ways.
pub(super) fn canonical(body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(body.len());
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let seed = Writer { out: &mut out, top: true };
    seed.deserialize(&mut deserializer).ok()?;
    Some(out)
}

/// Writes the next value.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// The body itself, whose members are chosen.
    top: bool,
}

impl Writer<'_> {
    fn put(self, value: impl fmt::Display) {
        self.out.extend_from_slice(value.to_string().as_bytes());
    }
}

impl<'de> DeserializeSeed<'de> for Writer<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Writer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.put("null");
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.put(value);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.put(value);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.put(value);
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        // With a point or an exponent, always: never taken for a whole number.
        self.put(format_args!("{value:e}"));
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        json::write_string(self.out, value);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.out.push(b'[');
        loop {
            let seed = Writer { out: &mut *self.out, top: false };
            if items.next_element_seed(seed)?.is_none() {
                break;
            }
            self.out.push(b',');
        }
        self.out.push(b']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
        while let Some(name) = members.next_key::<String>()? {
            let mut value = Vec::new();
            members.next_value_seed(Writer { out: &mut value, top: false })?;
            if !(self.top && FORM.contains(&name.as_str())) {
                parts.push((name, value));
            }
        }
        parts.sort_unstable();
        if parts.windows(2).any(|two| two[0].0 == two[1].0) {
            return Err(A::Error::custom("a member twice"));
        }
        self.out.push(b'{');
        for (name, value) in parts {
            json::write_string(self.out, &name);
            self.out.push(b':');
            self.out.extend_from_slice(&value);
            self.out.push(b',');
        }
        self.out.push(b'}');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(body: &str) -> Option<String> {
        canonical(body.as_bytes()).map(|out| String::from_utf8(out).unwrap())
    }

    #[test]
    fn blanks_order_escapes_and_form_make_no_difference() {
        let a = r#"{"model":"m","input":["h\u0069"],"user":{"b":1,"a":null},"encoding_format":"base64"}"#;
        let b = r#"{ "user": {"a": null, "b": 1}, "stream": false,
            "input": [ "hi" ], "model": "n" }"#;
        assert_eq!(text(a), text(b));
        assert_eq!(text(a).unwrap(), r#"{"input":["hi",],"user":{"a":null,"b":1,},}"#);
    }

    #[test]
    fn what_asks_for_something_else_differs() {
        let all = [
            r#"{"input":"a"}"#,
            r#"{"input":"b"}"#,
            r#"{"input":["a"]}"#,
            r#"{"input":["a","b"]}"#,
            r#"{"input":["a,b"]}"#,
            r#"{"input":["a\",\"b"]}"#,
            r#"{"input":[["a"],"b"]}"#,
            r#"{"input":1}"#,
            r#"{"input":1.0}"#,
            r#"{"input":1.5}"#,
            r#"{"input":-1}"#,
            r#"{"input":"1"}"#,
            r#"{"input":null}"#,
            r#"{"input":true}"#,
            r#"{"input":{}}"#,
            r#"{"input":[]}"#,
            r#"{"inputs":"a"}"#,
            r#"{"input":"a","x":{"stream":true}}"#,
            r#"{"input":"a","x":{"stream":false}}"#,
        ];
        let texts: std::collections::HashSet<_> =
            all.iter().map(|body| text(body).unwrap()).collect();
        assert_eq!(texts.len(), all.len());
    }

    #[test]
    fn requests_for_several_answers_tools_or_figures_have_none_that_could_be_kept() {
        use crate::llm::{Ask, Dialect, Route};
        let keeps = |more: &str| {
            let body =
                format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}]{more}}}"#);
            let ask = Ask::parse(Route::ChatCompletions, body.into_bytes()).unwrap();
            ask.canonical(Dialect::OpenAi, "up", None).is_some()
        };
        for more in ["", r#","n":1"#, r#","n":null"#, r#","logprobs":false"#, r#","tools":[]"#] {
            assert!(keeps(more), "{more}");
        }
        for more in [r#","n":2"#, r#","logprobs":true"#, r#","logprobs":0"#, r#","tools":[{}]"#] {
            assert!(!keeps(more), "{more}");
        }
    }

    #[test]
    fn a_member_twice_could_be_read_in_two_ways() {
        assert_eq!(text(r#"{"a":1,"a":1}"#), None);
        assert_eq!(text(r#"{"a":{"b":1,"\u0062":2}}"#), None);
        assert_eq!(text(r#"{"a":1e999}"#), None);
        assert_eq!(text("{"), None);
    }
}
