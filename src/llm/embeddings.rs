//! Vectors, from one dialect to the other.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::seen::Seen;
use super::{Dialect, Fault, Reply, Route, answer, json};

/// One item of OpenAI's `data`.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    embedding: &'a RawValue,
    index: Option<u64>,
}

fn malformed(error: impl std::fmt::Display) -> Fault {
    Fault::Malformed(format!("vectors: {error}"))
}

/// Writes the other dialect's answer to an embedding request in the client's.
pub(super) fn answer(reply: &Reply, upstream: Dialect, seen: &Seen<'_>) -> Result<Vec<u8>, Fault> {
    let text = seen.vectors.unwrap_or("[]");
    let mut out = String::with_capacity(text.len() + 256);
    let model = &reply.model;
    match (upstream, reply.route) {
        (Dialect::Ollama, _) => {
            let vectors: Vec<&RawValue> = serde_json::from_str(text).map_err(malformed)?;
            out.push_str("{\"object\":\"list\",\"data\":[");
            for (index, vector) in vectors.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                let vector = match reply.base64 {
                    true => json::string(&to_base64(vector.get())?),
                    false => vector.get().to_owned(),
                };
                out.push_str(&format!(
                    "{comma}{{\"object\":\"embedding\",\"index\":{index},\"embedding\":{vector}}}"
                ));
            }
            out.push_str(&format!("],\"model\":{model}"));
            if let Some(usage) = seen.usage {
                let tokens = usage.input;
                out.push_str(&format!(
                    ",\"usage\":{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}"
                ));
            }
            out.push('}');
        }
        (Dialect::OpenAi, route) => {
            let mut items: Vec<Item<'_>> = serde_json::from_str(text).map_err(malformed)?;
            items.sort_by_key(|item| item.index);
            let vectors: Vec<String> =
                items.iter().map(|item| numbers(item.embedding.get())).collect::<Result<_, _>>()?;
            if route == Route::OllamaEmbeddings {
                let [vector] = vectors.as_slice() else {
                    return Err(malformed(format_args!("one expected, {} came", vectors.len())));
                };
                out.push_str(&format!("{{\"embedding\":{vector}}}"));
            } else {
                let vectors = vectors.join(",");
                out.push_str(&format!("{{\"model\":{model},\"embeddings\":[{vectors}]"));
                out.push_str(",\"total_duration\":0,\"load_duration\":0");
                if let Some(usage) = seen.usage {
                    out.push_str(&format!(",\"prompt_eval_count\":{}", usage.input));
                }
                out.push('}');
            }
        }
    }
    Ok(out.into_bytes())
}

/// An OpenAI answer with its vectors in the form that the client asks for.
pub(super) fn in_form(reply: &Reply, text: &str, seen: &Seen<'_>) -> Result<Vec<u8>, Fault> {
    let vectors = seen.vectors.unwrap_or("[]");
    let mut items: Vec<Item<'_>> = serde_json::from_str(vectors).map_err(malformed)?;
    let packed = |item: &Item<'_>| item.embedding.get().starts_with('"');
    if items.iter().all(|item| packed(item) == reply.base64) {
        return Ok(answer::with_model(text, seen, &reply.model));
    }
    items.sort_by_key(|item| item.index);
    let mut out = String::with_capacity(text.len());
    out.push_str("{\"object\":\"list\",\"data\":[");
    for (index, item) in items.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let vector = match (reply.base64, packed(item)) {
            (true, false) => json::string(&to_base64(item.embedding.get())?),
            (false, true) => numbers(item.embedding.get())?,
            _ => item.embedding.get().to_owned(),
        };
        out.push_str(&format!(
            "{comma}{{\"object\":\"embedding\",\"index\":{index},\"embedding\":{vector}}}"
        ));
    }
    out.push_str(&format!("],\"model\":{}", reply.model));
    if let Some(usage) = seen.usage {
        let tokens = usage.input;
        out.push_str(&format!(
            ",\"usage\":{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}"
        ));
    }
    out.push('}');
    Ok(out.into_bytes())
}

/// A vector as a JSON array, whether it came as one or as base64.
fn numbers(vector: &str) -> Result<String, Fault> {
    if !vector.starts_with('"') {
        let _: Vec<f64> = serde_json::from_str(vector).map_err(malformed)?;
        return Ok(vector.to_owned());
    }
    let encoded: String = serde_json::from_str(vector).map_err(malformed)?;
    let bytes = STANDARD.decode(encoded).map_err(malformed)?;
    if bytes.len() % 4 != 0 {
        return Err(malformed("base64 of a length that no floats have"));
    }
    let floats: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap_or_default()))
        .collect();
    all_finite(&floats)?;
    serde_json::to_string(&floats).map_err(malformed)
}

/// A JSON array of numbers as base64 of little-endian 32-bit floats, which is what the OpenAI
/// libraries ask for and undo.
fn to_base64(vector: &str) -> Result<String, Fault> {
    let floats: Vec<f32> = serde_json::from_str(vector).map_err(malformed)?;
    all_finite(&floats)?;
    Ok(encode(&floats))
}

fn all_finite(floats: &[f32]) -> Result<(), Fault> {
    match floats.iter().all(|float| float.is_finite()) {
        true => Ok(()),
        false => Err(malformed("a number that is no 32-bit float, or that JSON does not have")),
    }
}

/// Floats as base64.
pub(super) fn encode(floats: &[f32]) -> String {
    let bytes: Vec<u8> = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}
