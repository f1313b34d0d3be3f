//! Names that clients ask for, and what they stand for.

use std::sync::Arc;

use super::settings::{Config, Model, Rates, Target, Upstream, UpstreamKind};

/// The name of the built-in upstream, and of its model.
pub const ECHO: &str = "echo";

/// What a name stands for.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The chain to walk. For `upstream/model` it is made at the spot, with one link.
    pub model: Arc<Model>,
    /// Whether the name is that of a `[[model]]`: an alias, so that answers must say this name.
    pub declared: bool,
}

impl Config {
    /// Looks a name up: as a `[[model]]`, exactly and then without `:latest`; then split at the
    /// first `/` into upstream and model; then as the bare name of an `echo` upstream.
    pub fn resolve(&self, name: &str) -> Option<Resolved> {
        let short = name.strip_suffix(":latest");
        let declared = self.model(name).or_else(|| short.and_then(|name| self.model(name)));
        if let Some(model) = declared {
            return Some(Resolved { model: Arc::clone(model), declared: true });
        }
        let target = self.target(name).or_else(|| self.target(short?))?;
        let model =
            Model { name: name.to_owned(), chain: vec![target], total_timeout: None, cache: None };
        Some(Resolved { model: Arc::new(model), declared: false })
    }

    /// The `[[model]]` of exactly this name.
    pub fn model(&self, name: &str) -> Option<&Arc<Model>> {
        self.models.iter().find(|model| model.name == name)
    }

    /// The upstream of exactly this name.
    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.iter().find(|upstream| upstream.name == name)
    }

    /// `upstream/model`, or the bare name of an `echo` upstream.
    fn target(&self, text: &str) -> Option<Target> {
        let (upstream, model) = split(text);
        let upstream = self.upstream(upstream)?;
        let model = match model {
            Some(model) => model,
            None if upstream.kind == UpstreamKind::Echo && upstream.name == text => ECHO,
            None => return None,
        };
        let upstream = Arc::clone(upstream);
        let rates = self.prices.of(&upstream.name, model).or(free(upstream.kind));
        Some(Target { upstream, model: model.to_owned(), tools: true, images: true, rates })
    }
}

/// Nothing stands behind `echo` that anybody would have to pay.
pub(super) fn free(kind: UpstreamKind) -> Option<Rates> {
    (kind == UpstreamKind::Echo).then(Rates::default)
}

/// Splits `upstream/model` at its first `/`; the rest may hold more of them, and `:`. With nothing
/// behind it there is no model.
pub(super) fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((upstream, model)) => (upstream, Some(model).filter(|model| !model.is_empty())),
        None => (text, None),
    }
}
