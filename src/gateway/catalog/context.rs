//! Context discovery: how many tokens a model may be given. Said by somebody or not known; never made
//! up.

use super::question::{Key, Known, What};
use super::state::Found;
use super::{Catalog, IntoList};
use crate::base::clock;
use crate::config::settings::{Upstream, UpstreamKind};

/// How many tokens a model may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Tokens, above 0.
    pub tokens: u64,
    /// Who says so.
    pub source: ContextSource,
}

/// Who says how large the context is; the first that does decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextSource {
    /// The request (`options.num_ctx`).
    Request,
    /// The configuration (`upstream.num_ctx`).
    Config,
    /// The model's Modelfile (`PARAMETER num_ctx`).
    Modelfile,
    /// What the model was trained for (`model_info`).
    ModelInfo,
    /// The upstream's list of models (OpenAI).
    List,
}

impl Catalog {
    /// How many tokens a model of this upstream may be given, when somebody says so. Never waits;
    /// what is not known is asked for, so that a later call knows it.
    pub fn context(
        &self,
        upstream: &Upstream,
        model: &str,
        requested: Option<u64>,
    ) -> Option<Context> {
        self.context_by(upstream, model, requested, |key| self.look(key))
    }

    /// The same, from what is known: asks nothing. For lists, which would ask about each entry.
    pub fn known_context(&self, upstream: &Upstream, model: &str) -> Option<Context> {
        let peek = |key: &Key| self.shared.state.with(|state| state.peek(key, clock::now()));
        self.context_by(upstream, model, None, peek)
    }

    fn context_by(
        &self,
        upstream: &Upstream,
        model: &str,
        requested: Option<u64>,
        find: impl Fn(&Key) -> Found,
    ) -> Option<Context> {
        let context = |source| move |tokens| Context { tokens, source };
        if let Some(tokens) = requested.filter(|tokens| *tokens > 0) {
            return Some(Context { tokens, source: ContextSource::Request });
        }
        if let Some(tokens) = upstream.num_ctx {
            return Some(Context { tokens, source: ContextSource::Config });
        }
        let key = |what| Key { upstream: upstream.name.as_str().into(), what };
        match upstream.kind {
            UpstreamKind::Echo => None,
            UpstreamKind::OpenAi => {
                let list = find(&key(What::List)).known.into_list()?;
                list.find(model)?.context.map(context(ContextSource::List))
            }
            UpstreamKind::Ollama => {
                let what = What::Show { model: model.into(), verbose: false };
                let Some(Known::Show(show)) = find(&key(what)).known else { return None };
                let modelfile = show.num_ctx.map(context(ContextSource::Modelfile));
                modelfile.or_else(|| show.context_length.map(context(ContextSource::ModelInfo)))
            }
        }
    }
}
