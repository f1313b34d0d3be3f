//! `models.list`: what this client may ask for. A context length that nobody told is not there.

use serde_json::{Value, json};

use super::{Call, Done, Method, Needs, Outcome};
use crate::nodes::host::Model;
use crate::nodes::who::Scope;

pub(super) const METHODS: &[Method] =
    &[Method { name: "models.list", needs: Needs::Scope(Scope::Read), run: list }];

fn list(call: &Call<'_>) -> Outcome {
    let models = call.nodes.parts().tables.models(call.who)?;
    let models: Vec<Value> = models.iter().map(shape).collect();
    Done::json(&json!({ "models": models }))
}

fn shape(model: &Model) -> Value {
    let mut shape = json!({"id": model.name, "name": model.name, "provider": model.upstream});
    if let Some(tokens) = model.context.filter(|tokens| *tokens > 0) {
        shape["contextWindow"] = tokens.into();
    }
    shape
}
