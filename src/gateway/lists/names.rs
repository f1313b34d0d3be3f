//! The names that can be asked for, each once, and those that a wrong one may have meant.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use crate::config::settings::{Config, Upstream, UpstreamKind};
use crate::config::{ECHO, nearest};
use crate::gateway::auth::Models;
use crate::gateway::catalog::Catalog;
use crate::gateway::catalog::parse::{List, Listed};

/// Names shown for one that is wrong.
const NEAR_MAX: usize = 3;
/// Names compared letter by letter with one that is wrong: a comparison takes up to 10 µs.
const COMPARED_MAX: usize = 256;
/// Most characters of a wrong name that are repeated to who sent it.
const SHOWN_MAX: usize = 200;

/// What the upstreams of a configuration list, in their order.
pub(super) struct Lists<'a> {
    config: &'a Config,
    allowed: &'a Models,
    lists: Vec<Option<Arc<List>>>,
}

/// One name that can be asked for.
pub(super) struct Entry<'a> {
    /// The name.
    pub(super) name: Cow<'a, str>,
    /// The upstream that answers first.
    pub(super) upstream: &'a Upstream,
    /// The model as that upstream knows it.
    pub(super) model: &'a str,
    /// What that upstream lists about it.
    pub(super) listed: Option<&'a Listed>,
    /// Whether it is the name of a `[[model]]`.
    pub(super) declared: bool,
}

impl<'a> Lists<'a> {
    /// As the catalog has them; waits a moment for what was never known.
    pub(super) fn of(config: &'a Config, catalog: &Catalog, allowed: &'a Models) -> Self {
        Lists::from(config, allowed, catalog.lists(askable(config)))
    }

    /// What is known, without waiting.
    fn known(config: &'a Config, catalog: &Catalog, allowed: &'a Models) -> Self {
        Lists::from(config, allowed, catalog.known_lists(askable(config)))
    }

    /// `found` holds one for each upstream that can be asked, in their order.
    fn from(config: &'a Config, allowed: &'a Models, found: Vec<Option<Arc<List>>>) -> Self {
        let mut found = found.into_iter();
        let lists = config.upstreams.iter().map(|upstream| match upstream.kind {
            UpstreamKind::Echo => None,
            _ => found.next().flatten(),
        });
        Lists { config, allowed, lists: lists.collect() }
    }

    /// The list of an upstream.
    pub(super) fn list(&self, upstream: &str) -> Option<&List> {
        let index = self.config.upstreams.iter().position(|known| known.name == upstream)?;
        self.lists.get(index)?.as_deref()
    }

    /// Every name that may be asked for, each once: first what is declared, then `echo`, then `upstream/model` for what
    /// each upstream lists. A name that means something declared is not listed as anything else.
    pub(super) fn entries(&self) -> Vec<Entry<'_>> {
        let mut seen: HashSet<Cow<'_, str>> = HashSet::new();
        let mut entries = Vec::new();
        for model in &self.config.models {
            let Some(target) = model.chain.first() else { continue };
            if seen.insert(Cow::Borrowed(&model.name)) {
                entries.push(Entry {
                    name: Cow::Borrowed(&model.name),
                    upstream: &target.upstream,
                    model: &target.model,
                    listed: self.list(&target.upstream.name).and_then(|l| l.find(&target.model)),
                    declared: true,
                });
            }
        }
        let declared = seen.clone();
        let taken = |name: &str| {
            let short = name.strip_suffix(":latest").unwrap_or(name);
            declared.contains(name) || declared.contains(short)
        };
        for upstream in &self.config.upstreams {
            if upstream.kind == UpstreamKind::Echo && !taken(&upstream.name) {
                let name = Cow::Borrowed(upstream.name.as_str());
                let model = ECHO;
                entries.push(Entry { name, upstream, model, listed: None, declared: false });
            }
        }
        for (upstream, list) in self.config.upstreams.iter().zip(&self.lists) {
            for listed in list.iter().flat_map(|list| &list.models) {
                let name = format!("{}/{}", upstream.name, listed.model);
                if !taken(&name) && seen.insert(Cow::Owned(name.clone())) {
                    entries.push(Entry {
                        name: Cow::Owned(name),
                        upstream,
                        model: &listed.model,
                        listed: Some(listed),
                        declared: false,
                    });
                }
            }
        }
        if !self.allowed.all() {
            entries.retain(|entry| self.allowed.allow(&entry.name));
        }
        entries
    }
}

/// The names of the upstreams that have a list.
fn askable(config: &Config) -> impl Iterator<Item = &str> {
    let all = config.upstreams.iter().filter(|upstream| upstream.kind != UpstreamKind::Echo);
    all.map(|upstream| upstream.name.as_str())
}

/// Names that a wrong one may have meant: the same model behind an upstream's name, then slips.
pub(super) fn near(
    config: &Config,
    catalog: &Catalog,
    allowed: &Models,
    name: &str,
) -> Vec<String> {
    let lists = Lists::known(config, catalog, allowed);
    let entries = lists.entries();
    let bare = |name: &str| name.strip_suffix(":latest").unwrap_or(name).len();
    let same = |entry: &&Entry<'_>| {
        !entry.declared && entry.model[..bare(entry.model)] == name[..bare(name)]
    };
    let mut near: Vec<String> =
        entries.iter().filter(same).map(|entry| entry.name.to_string()).take(NEAR_MAX).collect();
    let close = |other: &str| other.len().abs_diff(name.len()) <= name.len().div_ceil(3);
    let mut others: Vec<&str> = entries.iter().map(|entry| &*entry.name).collect();
    others.retain(|other| close(other));
    others.truncate(COMPARED_MAX);
    while near.len() < NEAR_MAX {
        let Some(next) = nearest(name, others.iter().copied()) else { break };
        others.retain(|other| *other != next);
        if !near.iter().any(|known| known == next) {
            near.push(next.to_owned());
        }
    }
    near
}

/// A name as it may be repeated in an error.
pub(super) fn shown(name: &str) -> Cow<'_, str> {
    match name.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}…", &name[..end])),
        None => Cow::Borrowed(name),
    }
}

/// An id of a path: clients write `:` and `/` as they are, or escaped.
pub(super) fn decoded(id: &str) -> Cow<'_, str> {
    if !id.contains('%') {
        return Cow::Borrowed(id);
    }
    let mut out = Vec::with_capacity(id.len());
    let mut rest = id.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = |at: usize| tail.get(at).and_then(|b| char::from(*b).to_digit(16));
        rest = tail;
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                rest = &tail[2..];
            }
            _ => out.push(*first),
        }
    }
    // What is not UTF-8 is no name of ours.
    String::from_utf8(out).map_or(Cow::Borrowed(id), Cow::Owned)
}
