//! How a request stands to the cache: whether its answer may be kept or given again, which one it
//! is, and who asks for it.
//!
//! Embedding requests have one right answer, so their answers are kept unless the configuration
//! says no, and shared by all keys. A language model's answers are kept only where its `[[model]]`
//! or the request itself says so, for each key by itself: what one has asked is not shown to
//! another, not even by an answer that comes too fast.
//!
//! Only answers of the first link of a chain are kept. A fallback's answer goes to those who wait
//! for it, but once the first one is back, it is to be asked.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::base::clock;
use crate::base::error::{Error, Kind, Result};
use crate::base::metrics::Registry;
use crate::base::permits::{Permit, Permits};
use crate::cache::flight::{Follow, Landed, Lead};
use crate::cache::store::{Bounds, Lifetime};
use crate::cache::{Cache, Digest, Limits, Look, Want};
use crate::config::settings::{self, Model, Namespace, UpstreamKind};
use crate::llm::{Ask, Dialect, Kept};
use crate::net::http::{Headers, Request};

use super::state::Chain;

/// The field that says where an answer came from, and what a request wants.
pub const FIELD: &str = "x-tidegate-cache";

/// An answer that is kept, and who gave it.
#[derive(Debug)]
pub struct Answer {
    /// What it says.
    pub kept: Kept,
    /// The upstream that gave it.
    pub upstream: String,
    /// The model, as that upstream knows it.
    pub model: String,
}

/// The cache of answers.
pub type Answers = Cache<Arc<Answer>>;

/// An empty cache of this configuration.
pub fn answers(config: &settings::Cache, registry: &Registry) -> Answers {
    Cache::new(limits(config), registry)
}

/// Takes another configuration over.
pub fn reconfigure(answers: &Answers, config: &settings::Cache) {
    answers.reconfigure(limits(config));
    if !config.enabled {
        for namespace in Namespace::ALL {
            answers.clear(namespace);
        }
    }
}

fn limits(config: &settings::Cache) -> Limits {
    Limits {
        bounds: Bounds {
            entries: config.entries_max as u64,
            bytes: config.bytes_max as u64,
            entry: config.entry_max as u64,
        },
        waiting: config.waiting_max as u64,
    }
}

/// Where an answer came from, as [`FIELD`] and the access line tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was kept.
    Hit,
    /// It was asked for.
    Miss,
    /// It was kept, and is old.
    Stale,
    /// Another request asked for it at the same time.
    Coalesced,
}

impl Origin {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Hit => "hit",
            Origin::Miss => "miss",
            Origin::Stale => "stale",
            Origin::Coalesced => "coalesced",
        }
    }

    /// Whether no upstream was asked for this very request: its tokens were paid for before.
    pub fn kept(self) -> bool {
        self != Origin::Miss
    }
}

/// What a request says about the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Nothing.
    Usual,
    /// To be served from it, and kept.
    Use,
    /// Not to be served from it, but kept. `told`: by our own field, which also asks for keeping.
    Refresh { told: bool },
    /// Neither.
    Bypass,
}

/// Reads the wish of a request.
///
/// # Errors
/// [`Kind::InvalidField`] for a word that our own field does not know.
fn wish(headers: &Headers) -> Result<Wish> {
    if let Some(said) = headers.get(FIELD) {
        return match said.trim_ascii().to_ascii_lowercase().as_slice() {
            b"use" => Ok(Wish::Use),
            b"refresh" => Ok(Wish::Refresh { told: true }),
            b"bypass" => Ok(Wish::Bypass),
            _ => {
                let text = "x-tidegate-cache: is not known; send use, refresh or bypass";
                Err(Error::new(Kind::InvalidField, text))
            }
        };
    }
    let said = headers.get_str("cache-control").unwrap_or_default();
    let mut wish = Wish::Usual;
    for directive in said.split(',').map(str::trim) {
        if directive.eq_ignore_ascii_case("no-store") {
            return Ok(Wish::Bypass);
        }
        if directive.eq_ignore_ascii_case("no-cache") || directive == "max-age=0" {
            wish = Wish::Refresh { told: false };
        }
    }
    Ok(wish)
}

/// Which answer a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    namespace: Namespace,
    digest: Digest,
    want: Want,
    lifetime: Lifetime,
    entry_max: usize,
}

impl Plan {
    /// Of a request that goes along this chain. `None`: the cache has no part in it.
    ///
    /// # Errors
    /// [`Kind::InvalidField`] for a wish that is none.
    pub fn of(
        request: &Request,
        ask: &Ask,
        model: &Model,
        chain: &Chain,
        config: &settings::Cache,
    ) -> Result<Option<Plan>> {
        if !config.enabled {
            return Ok(None);
        }
        let wish = wish(&request.head.headers)?;
        let Some((link, target)) = chain.first() else { return Ok(None) };
        let (embeds, kind) = (ask.route().embeds(), link.settings.kind);
        // Echo costs nothing: only whoever wants to see the cache at work finds it there.
        let usual = embeds && config.embeddings && kind != UpstreamKind::Echo;
        let told = matches!(wish, Wish::Use | Wish::Refresh { told: true });
        let ttl = model.cache.or_else(|| (usual || told).then_some(config.ttl));
        let (Some(ttl), false) = (ttl, wish == Wish::Bypass) else { return Ok(None) };
        let dialect = match kind {
            UpstreamKind::Ollama => Dialect::Ollama,
            UpstreamKind::OpenAi => Dialect::OpenAi,
            UpstreamKind::Echo => ask.route().dialect(),
        };
        let Some((path, text)) = ask.canonical(dialect, &target.model, link.settings.num_ctx)
        else {
            return Ok(None);
        };
        let (namespace, scope) = match embeds {
            true => (Namespace::Embeddings, None),
            false => (Namespace::Chat, request.key.as_deref()),
        };
        Ok(Some(Plan {
            namespace,
            digest: digest(chain, scope, path, &text),
            want: match wish {
                Wish::Refresh { .. } => Want::Refreshed,
                _ => Want::Kept,
            },
            lifetime: Lifetime { ttl, stale_for: config.stale_for },
            entry_max: config.entry_max,
        }))
    }
}

/// What names an answer: whom it is asked of, for whom, and what.
fn digest(chain: &Chain, scope: Option<&str>, path: &str, text: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    // Each part with its length, so that no two lists of parts are the same bytes.
    let mut part = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    part(if scope.is_some() { b"key" } else { b"all" });
    part(scope.unwrap_or_default().as_bytes());
    for (link, target) in chain.iter() {
        let settings = &link.settings;
        part(settings.name.as_bytes());
        part(settings.url.as_ref().map_or_else(String::new, |url| url.to_url()).as_bytes());
        part(target.model.as_bytes());
    }
    part(path.as_bytes());
    part(text);
    hash.finalize().into()
}

/// A request's part in the cache.
pub struct Part {
    answers: Answers,
    plan: Option<Plan>,
    role: Role,
}

enum Role {
    /// It looks for itself only.
    Alone,
    /// It asks, and others wait.
    Leads(Lead<Arc<Answer>>),
    /// It waits.
    Follows(Follow<Arc<Answer>>),
}

/// What a request does next.
pub enum Next {
    /// It is answered with this.
    Serve(Arc<Answer>, Origin),
    /// It fails as the one did that it waited for.
    Fail(Error),
    /// It waits for one of these.
    Wait(Arc<Permits>),
    /// It asks its chain.
    Ask,
}

impl Part {
    /// Before the first look.
    pub fn new(answers: Answers, plan: Option<Plan>) -> Self {
        Part { answers, plan, role: Role::Alone }
    }

    /// Whether the cache has a part in this request at all.
    pub fn planned(&self) -> bool {
        self.plan.is_some()
    }

    /// The first look.
    pub fn look(&mut self) -> Next {
        let Some(plan) = &self.plan else { return Next::Ask };
        match self.answers.look(plan.namespace, &plan.digest, plan.want, clock::now()) {
            Look::Hit(answer) => Next::Serve(answer, Origin::Hit),
            Look::Stale(answer) => Next::Serve(answer, Origin::Stale),
            Look::Lead(lead) => {
                self.role = Role::Leads(lead);
                Next::Ask
            }
            Look::Follow(follow) => {
                let permits = follow.permits();
                self.role = Role::Follows(follow);
                Next::Wait(permits)
            }
            Look::Alone => Next::Ask,
        }
    }

    /// The wait for another one's answer is over; without a permit it came to nothing.
    pub fn landed(&mut self, permit: Option<Permit>) -> Next {
        let Role::Follows(follow) = std::mem::replace(&mut self.role, Role::Alone) else {
            return Next::Ask;
        };
        let Some(permit) = permit else {
            follow.gave_up();
            return Next::Ask;
        };
        match follow.landed(permit) {
            Landed::Answer(answer) => Next::Serve(answer, Origin::Coalesced),
            Landed::Failed(error) => Next::Fail(error),
            Landed::Lead(lead) => {
                self.role = Role::Leads(lead);
                Next::Ask
            }
            Landed::Alone => Next::Ask,
        }
    }

    /// How large an answer may be to be collected; `None`: nobody wants it.
    pub fn collects(&self) -> Option<usize> {
        let plan = self.plan.as_ref().filter(|_| matches!(self.role, Role::Leads(_)))?;
        Some(plan.entry_max)
    }

    /// The answer is whole. `kept` makes of it what can be given again, if anything; `from` is the
    /// upstream and its model, `first` that they are the first of the chain.
    pub fn answered(
        &mut self,
        kept: impl FnOnce() -> Option<Kept>,
        from: (&str, &str),
        first: bool,
    ) {
        let Role::Leads(lead) = std::mem::replace(&mut self.role, Role::Alone) else { return };
        let (Some(kept), Some(plan)) = (kept(), &self.plan) else {
            lead.not_shared();
            return;
        };
        let (upstream, model) = (from.0.to_owned(), from.1.to_owned());
        let size = kept.size() + upstream.len() + model.len();
        let answer = Arc::new(Answer { kept, upstream, model });
        let lifetime = first.then_some(plan.lifetime);
        lead.complete(answer, size as u64, lifetime, clock::now());
    }

    /// The chain came to nothing. An old answer instead, if there is one and the failure is none
    /// that the request itself is to blame for.
    pub fn failed(&mut self, error: &Error) -> Option<Arc<Answer>> {
        match std::mem::replace(&mut self.role, Role::Alone) {
            Role::Leads(lead) => lead.failed(error, clock::now()),
            Role::Alone | Role::Follows(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(name: &str, value: &str) -> Result<Wish> {
        let mut headers = Headers::default();
        headers.push(name.as_bytes(), value.as_bytes());
        wish(&headers)
    }

    #[test]
    fn a_request_says_what_it_wants_of_the_cache() {
        let check = |name, value, expected| assert_eq!(wishes(name, value).unwrap(), expected);
        check("x-other", "", Wish::Usual);
        check("X-Tidegate-Cache", "Use", Wish::Use);
        check(FIELD, "refresh", Wish::Refresh { told: true });
        check(FIELD, " bypass ", Wish::Bypass);
        check("cache-control", "no-cache", Wish::Refresh { told: false });
        check("cache-control", "max-age=0", Wish::Refresh { told: false });
        check("cache-control", "no-cache, No-Store", Wish::Bypass);
        check("cache-control", "max-age=60, private", Wish::Usual);
        let error = wishes(FIELD, "hit").unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidField);
        assert!(error.context().contains("send use, refresh or bypass"));
    }

    #[test]
    fn parts_of_a_name_do_not_run_into_each_other() {
        let chain: Chain = Arc::from([]);
        let name = |scope, path, text: &str| digest(&chain, scope, path, text.as_bytes());
        let all = [
            name(None, "/a", "b"),
            name(None, "/ab", ""),
            name(None, "/", "ab"),
            name(Some(""), "/a", "b"),
            name(Some("/a"), "b", ""),
            name(Some("k"), "/a", "b"),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
        assert_eq!(name(Some("k"), "/a", "b"), all[5]);
    }
}
