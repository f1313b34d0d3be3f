//! What upstreams answer about their models, as values. Everything here comes from outside: it is
//! bounded, and what cannot be read is left out, never guessed.

mod show;

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::base::time_parse;

pub use show::{Show, show};

/// Models kept of one list. Past it: the rest is left out and counted. The largest provider lists
/// about 500.
pub const MODELS_MAX: usize = 2048;
/// Most bytes of one entry of a list. Past it: the entry is left out. Providers' entries have up to
/// 4 KiB.
pub const ENTRY_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of a model's name. Past it: the model is left out.
pub const NAME_BYTES_MAX: usize = 512;
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

/// The first byte of a JSON text.
fn first(body: &[u8]) -> Option<u8> {
    body.iter().copied().find(|b| !b.is_ascii_whitespace())
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
    time_parse::unix_seconds(time).unwrap_or(0)
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

#[cfg(test)]
mod tests;
