//! What upstreams answer about their models, as values. Everything here comes from outside: it is
//! bounded, and what cannot be read is left out, never guessed.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::date;

/// Models kept of one list. Past it: the rest is left out and counted. The largest provider lists
/// about 500.
pub const MODELS_MAX: usize = 2048;
/// Most bytes of one entry of a list. Past it: the entry is left out. Providers' entries have up to
/// 4 KiB.
pub const ENTRY_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of a model's name. Past it: the model is left out.
pub const NAME_BYTES_MAX: usize = 512;
/// Lines looked at in the `parameters` of a model.
const PARAMETER_LINES_MAX: usize = 256;

/// An answer that does not have the shape it should have.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Not JSON, or cut.
    #[error("it is not JSON")]
    Json(#[from] serde_json::Error),
    /// JSON, but no list of models.
    #[error("there is no list of models in it")]
    NoList,
    /// JSON, but no description of a model.
    #[error("it is no description of a model")]
    NoObject,
}

/// What an upstream can do, where its list says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Tool calls.
    pub tools: Option<bool>,
    /// Images.
    pub vision: Option<bool>,
    /// It makes embeddings and nothing else.
    pub embedding: bool,
}

/// One model of an upstream's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name as the upstream knows it.
    pub model: String,
    /// When it was made or last changed, in seconds since 1970; 0 when the upstream does not say.
    pub created: u64,
    /// The context length in tokens, when the list says it.
    pub context: Option<u64>,
    /// What the list says about abilities.
    pub told: Told,
    /// Ollama's fields but `name` and `model`, as JSON members, each with a comma before it.
    pub members: Option<Box<str>>,
}

/// An upstream's list, in its own order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// The models.
    pub models: Vec<Listed>,
    /// Entries that were left out: too many, too large, without a usable name.
    pub left_out: usize,
}

impl List {
    /// The entry of a model. For Ollama a name without a tag means `:latest`.
    pub fn find(&self, model: &str) -> Option<&Listed> {
        let exact = self.models.iter().find(|listed| listed.model == model);
        exact.or_else(|| {
            let short = |name: &str| name.strip_suffix(":latest").unwrap_or(name).len();
            let (length, same) = (short(model), &model[..short(model)]);
            self.models
                .iter()
                .filter(|listed| listed.members.is_some())
                .find(|listed| short(&listed.model) == length && listed.model.starts_with(same))
        })
    }
}

/// A model that an Ollama upstream holds in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The name as the upstream knows it.
    pub model: String,
    /// All other fields, as JSON members, each with a comma before it.
    pub members: Box<str>,
}

/// What an Ollama upstream holds in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ps {
    /// The models.
    pub models: Vec<Loaded>,
}

/// An Ollama upstream's description of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Show {
    /// The answer as it came.
    pub body: Arc<[u8]>,
    /// `num_ctx` of the Modelfile.
    pub num_ctx: Option<u64>,
    /// The context length that the model was trained for.
    pub context_length: Option<u64>,
}

/// Reads `/api/tags`.
///
/// # Errors
/// When there is no list in it.
pub fn tags(body: &[u8]) -> Result<List, Unreadable> {
    let answer: Wrapped<'_> = serde_json::from_slice(body)?;
    let Some(entries) = answer.models else { return Err(Unreadable::NoList) };
    Ok(list(entries, |model, fields| Listed {
        model,
        created: fields.get("modified_at").and_then(Value::as_str).map_or(0, seconds),
        context: None,
        told: Told::default(),
        members: Some(members(fields)),
    }))
}

/// Reads `/v1/models`. Some providers answer with the bare array.
///
/// # Errors
/// When there is no list in it.
pub fn models(body: &[u8]) -> Result<List, Unreadable> {
    let bare = first(body) == Some(b'[');
    let entries = if bare {
        serde_json::from_slice::<Bounded<'_>>(body)?
    } else {
        let answer: Wrapped<'_> = serde_json::from_slice(body)?;
        answer.data.ok_or(Unreadable::NoList)?
    };
    Ok(list(entries, |model, fields| Listed {
        model,
        created: fields.get("created").and_then(whole).unwrap_or(0),
        context: context(&fields),
        told: told(&fields),
        members: None,
    }))
}

/// Reads `/api/ps`.
///
/// # Errors
/// When there is no list in it.
pub fn ps(body: &[u8]) -> Result<Ps, Unreadable> {
    let answer: Wrapped<'_> = serde_json::from_slice(body)?;
    let Some(entries) = answer.models else { return Err(Unreadable::NoList) };
    let read = |raw: &RawValue| {
        let (model, fields) = entry(raw)?;
        Some(Loaded { model, members: members(fields) })
    };
    Ok(Ps { models: entries.kept.into_iter().filter_map(read).collect() })
}

/// Reads `/api/show`.
///
/// # Errors
/// When it is not a JSON object.
pub fn show(body: Vec<u8>) -> Result<Show, Unreadable> {
    if first(&body) == Some(b'[') {
        // serde would take it for the fields in their order.
        return Err(Unreadable::NoObject);
    }
    let described: Described<'_> = serde_json::from_slice(&body)?;
    let parameters: Option<String> =
        described.parameters.and_then(|raw| serde_json::from_str(raw.get()).ok());
    let num_ctx = parameters.as_deref().and_then(num_ctx);
    let context_length = described.model_info.and_then(|info| info.context_length());
    Ok(Show { body: body.into(), num_ctx, context_length })
}

/// The first byte of a JSON text.
fn first(body: &[u8]) -> Option<u8> {
    body.iter().copied().find(|b| !b.is_ascii_whitespace())
}

/// `num_ctx   8192` among the lines of a Modelfile's parameters.
fn num_ctx(parameters: &str) -> Option<u64> {
    parameters.lines().take(PARAMETER_LINES_MAX).find_map(|line| {
        let mut words = line.split_whitespace();
        let named = words.next() == Some("num_ctx");
        words.next().filter(|_| named)?.parse().ok().filter(|tokens| *tokens > 0)
    })
}

/// The readable entries of a list.
fn list(entries: Bounded<'_>, make: impl Fn(String, Map<String, Value>) -> Listed) -> List {
    let found = entries.kept.len() + entries.left_out;
    let read = |raw: &RawValue| entry(raw).map(|(model, fields)| make(model, fields));
    let mut models: Vec<_> = entries.kept.into_iter().filter_map(read).collect();
    models.shrink_to_fit();
    List { left_out: found - models.len(), models }
}

/// The name of an entry, taken out of its fields.
fn entry(raw: &RawValue) -> Option<(String, Map<String, Value>)> {
    if raw.get().len() > ENTRY_BYTES_MAX {
        return None;
    }
    let mut fields: Map<String, Value> = serde_json::from_str(raw.get()).ok()?;
    let mut name = None;
    // Ollama's are called `name` and `model` and are the same; OpenAI's is `id`.
    for key in ["name", "model", "id"] {
        // `name` of an OpenAI entry, where there is one, is for people.
        if key == "id" || !fields.contains_key("id") {
            name = fields.shift_remove(key).or(name);
        }
    }
    let Some(Value::String(name)) = name else { return None };
    let usable =
        !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    usable.then_some((name, fields))
}

/// The fields as JSON members, each with a comma before it.
fn members(fields: Map<String, Value>) -> Box<str> {
    if fields.is_empty() {
        return "".into();
    }
    let whole = Value::Object(fields).to_string();
    // Without its braces.
    format!(",{}", &whole[1..whole.len() - 1]).into()
}

fn seconds(time: &str) -> u64 {
    date::unix_seconds(time).unwrap_or(0)
}

/// A number without a sign; some write `1.7e9` or `1700000000.0`.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let float = value.as_f64().filter(|n| (0.0..9.0e15).contains(n))?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within bounds, see above"
        )]
        Some(float as u64)
    })
}

/// The context length that is served. `meta.n_ctx_train` of llama.cpp is left alone: it is what the
/// model was made for, while the server was started with less as a rule.
fn context(fields: &Map<String, Value>) -> Option<u64> {
    let named = ["context_length", "max_model_len", "context_window", "max_context_length"];
    let own = named.iter().find_map(|key| fields.get(*key).and_then(whole));
    let served = || fields.get("meta").and_then(|meta| whole(meta.get("n_ctx")?));
    own.or_else(served).filter(|tokens| *tokens > 0)
}

fn told(fields: &Map<String, Value>) -> Told {
    let holds = |value: Option<&Value>, words: &[&str]| {
        let all = value?.as_array()?;
        Some(all.iter().filter_map(Value::as_str).any(|word| words.contains(&word)))
    };
    let abilities = fields.get("capabilities");
    let flag = |key: &str| abilities?.get(key)?.as_bool();
    let modalities = fields.get("architecture").and_then(|a| a.get("input_modalities"));
    Told {
        tools: holds(fields.get("supported_parameters"), &["tools"])
            .or_else(|| holds(abilities, &["tools", "tool_use", "function_calling"]))
            .or_else(|| flag("function_calling")),
        vision: holds(modalities, &["image"])
            .or_else(|| holds(abilities, &["vision"]))
            .or_else(|| flag("vision")),
        embedding: fields.get("type").and_then(Value::as_str) == Some("embeddings"),
    }
}

/// The lists in either dialect.
#[derive(serde::Deserialize)]
struct Wrapped<'a> {
    /// Ollama's. Its server writes null for none.
    #[serde(borrow, default, deserialize_with = "present")]
    models: Option<Bounded<'a>>,
    /// OpenAI's.
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<Bounded<'a>>,
}

/// A list that is there, be it null.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Bounded<'de>>, D::Error> {
    let found = Option::<Bounded<'de>>::deserialize(from)?;
    Ok(Some(found.unwrap_or_default()))
}

/// The first [`MODELS_MAX`] elements of an array.
#[derive(Default)]
struct Bounded<'a> {
    kept: Vec<&'a RawValue>,
    left_out: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Bounded<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Elements<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for Elements<'a> {
            type Value = Bounded<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Bounded<'a>, A::Error> {
                let mut bounded = Bounded::default();
                while bounded.kept.len() < MODELS_MAX {
                    let Some(element) = all.next_element()? else { return Ok(bounded) };
                    bounded.kept.push(element);
                }
                while all.next_element::<IgnoredAny>()?.is_some() {
                    bounded.left_out += 1;
                }
                Ok(bounded)
            }
        }
        from.deserialize_seq(Elements(PhantomData))
    }
}

/// What we read of a description.
#[derive(serde::Deserialize)]
struct Described<'a> {
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
    #[serde(default)]
    model_info: Option<Info>,
}

/// What we read of `model_info`: its arrays of a hundred thousand words are skipped.
#[derive(Default)]
struct Info {
    architecture: Option<String>,
    lengths: Vec<(String, Value)>,
}

/// Keys that end in `.context_length`, looked at in one `model_info`.
const LENGTHS_MAX: usize = 16;

impl Info {
    /// `model_info["A.context_length"]`, where `model_info["general.architecture"]` is A.
    fn context_length(&self) -> Option<u64> {
        let wanted = format!("{}.context_length", self.architecture.as_ref()?);
        let found = self.lengths.iter().find(|(key, _)| *key == wanted);
        found.and_then(|(_, value)| whole(value)).filter(|tokens| *tokens > 0)
    }
}

impl<'de> Deserialize<'de> for Info {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Info;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Info, A::Error> {
                let mut info = Info::default();
                while let Some(key) = all.next_key::<String>()? {
                    if key == "general.architecture" {
                        info.architecture = all.next_value::<Value>()?.as_str().map(str::to_owned);
                    } else if key.ends_with(".context_length") && info.lengths.len() < LENGTHS_MAX {
                        info.lengths.push((key, all.next_value()?));
                    } else {
                        all.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(info)
            }
        }
        from.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
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
        check(
            r#""capabilities":{"function_calling":true,"vision":false}"#,
            Some(true),
            Some(false),
        );
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
        check(
            r#"{"model_info":{"general.architecture":"qwen","llama.context_length":1}}"#,
            None,
            None,
        );
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
}
