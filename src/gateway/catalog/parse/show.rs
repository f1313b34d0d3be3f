//! `/api/show`: the answer itself, and what it says of the context length.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Unreadable, first, whole};

/// Lines looked at in the `parameters` of a model.
const PARAMETER_LINES_MAX: usize = 256;

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

/// `num_ctx   8192` among the lines of a Modelfile's parameters.
fn num_ctx(parameters: &str) -> Option<u64> {
    parameters.lines().take(PARAMETER_LINES_MAX).find_map(|line| {
        let mut words = line.split_whitespace();
        let named = words.next() == Some("num_ctx");
        words.next().filter(|_| named)?.parse().ok().filter(|tokens| *tokens > 0)
    })
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
