//! A configuration in the making, and how it is written.

use std::fmt::Write as _;

use super::Source;
use super::notes::Notes;
use super::read::{At, fits, quoted};
use crate::config::names::ECHO;
use crate::config::raw::{FALLBACKS_MAX, KEYS_MAX, MODELS_MAX, PRICES_MAX, UPSTREAMS_MAX};

/// Most characters of a name of an upstream.
const UPSTREAM_CHARS_MAX: usize = 64;
/// Most characters of a name of a model.
pub(super) const MODEL_CHARS_MAX: usize = 256;
/// Places that a comment names.
const PLACES_MAX: usize = 6;
/// The dearest million tokens that a price may have.
const PRICE_MAX: f64 = 1_000_000.0;

/// Whether what names keys is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    Written,
    LeftOut,
}

/// Where the key for an upstream comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum KeyFrom {
    #[default]
    None,
    Env(String),
    /// It stood in the file; told apart by this digest, and given a variable at the end.
    Literal([u8; 32]),
}

/// `[[upstream]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Upstream {
    pub name: String,
    pub kind: &'static str,
    pub url: String,
    pub key: KeyFrom,
    /// Further settings, their values as TOML.
    pub settings: Vec<(&'static str, String)>,
    /// Where it came from.
    pub from: Vec<String>,
}

/// One link of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub upstream: String,
    pub model: String,
    pub tools: bool,
    pub images: bool,
}

/// `[[model]]`.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub name: String,
    pub chain: Vec<Link>,
    pub from: Vec<String>,
}

/// `[[key]]`.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub name: &'static str,
    pub sha256: String,
    pub from: String,
}

/// `[[price]]`, of a million tokens.
#[derive(Clone, Debug)]
pub(super) struct Price {
    pub model: String,
    pub input: String,
    pub output: String,
    pub cached: Option<String>,
}

/// The whole.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// Lines of `[server]`, each with a comment or none.
    pub server: Vec<(&'static str, String, &'static str)>,
    /// Lines of `[ops]`.
    pub ops: Vec<(&'static str, String, &'static str)>,
    pub keys: Vec<Key>,
    pub upstreams: Vec<Upstream>,
    pub models: Vec<Model>,
    pub prices: Vec<Price>,
}

impl Draft {
    /// An upstream like this one: one that is there, or a new one under a free name. Gives its name.
    pub(super) fn upstream(&mut self, wanted: Upstream) -> String {
        let same = |u: &&mut Upstream| {
            (u.kind, &u.url, &u.key, &u.settings)
                == (wanted.kind, &wanted.url, &wanted.key, &wanted.settings)
        };
        if let Some(known) = self.upstreams.iter_mut().find(same) {
            known.from.extend(wanted.from);
            return known.name.clone();
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name: String = wanted.name.chars().map(|c| if plain(c) { c } else { '-' }).collect();
        let name: String = name.chars().take(UPSTREAM_CHARS_MAX - 5).collect();
        let name = if name.is_empty() { "upstream".to_owned() } else { name };
        let taken = |name: &str| name == ECHO || self.upstreams.iter().any(|u| u.name == name);
        let mut free = name.clone();
        let mut number = 1;
        while taken(&free) {
            number += 1;
            free = format!("{name}-{number}");
        }
        self.upstreams.push(Upstream { name: free.clone(), ..wanted });
        free
    }

    /// Adds links to the chain of a model, which is made when it is new. Says whether the name can be
    /// one of ours.
    pub(super) fn model(&mut self, name: &str, from: &str, links: Vec<Link>) -> bool {
        if !fits(name, MODEL_CHARS_MAX) {
            return false;
        }
        match self.models.iter_mut().find(|model| model.name == name) {
            Some(model) => {
                model.chain.extend(links);
                model.from.push(from.to_owned());
            }
            None => {
                let from = vec![from.to_owned()];
                self.models.push(Model { name: name.to_owned(), chain: links, from });
            }
        }
        true
    }

    /// Adds what a million tokens cost; `million` makes the file's numbers prices of a million.
    pub(super) fn price(
        &mut self,
        link: &Link,
        million: f64,
        [input, output, cached]: [Option<At<'_>>; 3],
        notes: &mut Notes,
    ) {
        let (Some(input), Some(output)) = (input, output) else { return };
        let model = format!("{}/{}", link.upstream, link.model);
        if self.prices.iter().any(|price| price.model == model) {
            return;
        }
        let price = |at: &At<'_>| {
            let value = at.number().map(|number| number * million);
            let value = value.filter(|value| (0.0..=PRICE_MAX).contains(value));
            value.map(|value| {
                let text = format!("{value:.6}");
                let text = text.trim_end_matches('0').trim_end_matches('.');
                if text.contains('.') { text.to_owned() } else { format!("{text}.0") }
            })
        };
        let cached = cached.and_then(|at| price(&at));
        match (price(&input), price(&output)) {
            (Some(input), Some(output)) => self.prices.push(Price { model, input, output, cached }),
            _ => notes.add(&input.path, "is no price; left out: write a [[price]]"),
        }
    }

    /// The last step: variables for literal keys, chains without doubles, everything within bounds.
    pub(super) fn finish(&mut self, notes: &mut Notes) {
        let mut taken: Vec<String> = Vec::new();
        for upstream in &mut self.upstreams {
            if !matches!(upstream.key, KeyFrom::Literal(_)) {
                continue;
            }
            let upper =
                |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            let base: String = upstream.name.chars().map(upper).collect();
            let mut variable = format!("TIDEGATE_{base}_KEY");
            while taken.contains(&variable) {
                variable.push('_');
            }
            let place = upstream.from.first().map_or("", String::as_str);
            let text =
                format!("its key stands there in clear; put it into ${variable} for the daemon");
            notes.add(place, text);
            taken.push(variable.clone());
            upstream.key = KeyFrom::Env(variable);
        }
        for model in &mut self.models {
            let mut chain: Vec<Link> = Vec::new();
            for link in model.chain.drain(..) {
                let same =
                    |have: &Link| (&have.upstream, &have.model) == (&link.upstream, &link.model);
                if !chain.iter().any(same) {
                    chain.push(link);
                }
            }
            if chain.len() > FALLBACKS_MAX + 1 {
                let text = format!("has more than {FALLBACKS_MAX} fallbacks; the rest is left out");
                notes.add(&model.name, text);
                chain.truncate(FALLBACKS_MAX + 1);
            }
            model.chain = chain;
        }
        self.models.retain(|model| !model.chain.is_empty());
        let mut cut = |what: &str, len: usize, max: usize| {
            if len > max {
                notes.add(
                    what,
                    format!("there are {len}; tidegate takes {max}, so divide the file"),
                );
            }
        };
        cut("models", self.models.len(), MODELS_MAX);
        cut("prices", self.prices.len(), PRICES_MAX);
        cut("keys", self.keys.len(), KEYS_MAX);
        cut("upstreams", self.upstreams.len(), UPSTREAMS_MAX);
    }

    /// The file.
    pub(super) fn render(&self, source: Source, name: &str, keys: Keys) -> String {
        let mut out = String::new();
        let mut line = |text: &str| {
            out.push_str(text);
            out.push('\n');
        };
        line(&format!("# Made by tidegate import from {}'s {}.", source.as_str(), comment(name)));
        line("# Every setting: tidegate.toml(5). To check it: tidegate check FILE.");
        for (table, lines) in [("server", &self.server), ("ops", &self.ops)] {
            if !lines.is_empty() {
                line(&format!("\n[{table}]"));
            }
            for (key, value, why) in lines {
                let why = if why.is_empty() { String::new() } else { format!("  # {why}") };
                line(&format!("{key} = {value}{why}"));
            }
        }
        for key in &self.keys {
            line(&format!("\n# {}: only the digest of the key stands here.", comment(&key.from)));
            line(&format!("[[key]]\nname = {}\nsha256 = \"{}\"", quoted(key.name), key.sha256));
        }
        for upstream in &self.upstreams {
            upstream.render(&mut out, keys);
        }
        for model in &self.models {
            model.render(&mut out);
        }
        for price in &self.prices {
            let Price { model, input, output, cached } = price;
            let _ = write!(out, "\n[[price]]\nmodel = {}\n", quoted(model));
            let _ = writeln!(out, "input = {input}\noutput = {output}");
            if let Some(cached) = cached {
                let _ = writeln!(out, "cached = {cached}");
            }
        }
        out
    }
}

impl Upstream {
    fn render(&self, out: &mut String, keys: Keys) {
        // Writing to a string does not fail.
        let _ = write!(out, "\n# {}\n[[upstream]]\n", places(&self.from));
        let _ = writeln!(out, "name = {}\nkind = {}", quoted(&self.name), quoted(self.kind));
        let _ = writeln!(out, "url = {}", quoted(&self.url));
        let key = match &self.key {
            KeyFrom::None | KeyFrom::Literal(_) => None,
            KeyFrom::Env(variable) => Some(format!("api_key_env = {}", quoted(variable))),
        };
        if let Some(key) = key.filter(|_| keys == Keys::Written) {
            let _ = writeln!(out, "{key}");
        }
        for (key, value) in &self.settings {
            let _ = writeln!(out, "{key} = {value}");
        }
    }
}

impl Model {
    fn render(&self, out: &mut String) {
        let _ =
            write!(out, "\n# {}\n[[model]]\nname = {}\n", places(&self.from), quoted(&self.name));
        let mut links = self.chain.iter().map(Link::written);
        let _ = writeln!(out, "primary = {}", links.next().unwrap_or_default());
        let fallbacks: Vec<String> = links.collect();
        match fallbacks.len() {
            0 => {}
            1 => {
                let _ = writeln!(out, "fallbacks = [{}]", fallbacks[0]);
            }
            _ => {
                let _ = writeln!(out, "fallbacks = [\n    {},\n]", fallbacks.join(",\n    "));
            }
        }
    }
}

impl Link {
    fn written(&self) -> String {
        let name = quoted(&format!("{}/{}", self.upstream, self.model));
        if self.tools && self.images {
            return name;
        }
        let mut table = format!("{{ model = {name}");
        if !self.tools {
            table.push_str(", tools = false");
        }
        if !self.images {
            table.push_str(", images = false");
        }
        table + " }"
    }
}

/// Places as a comment names them.
fn places(from: &[String]) -> String {
    let shown: Vec<String> = from.iter().take(PLACES_MAX).map(|place| comment(place)).collect();
    let more = from.len().saturating_sub(PLACES_MAX);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("from {}{more}", shown.join(", "))
}

/// A text as it may stand in a comment.
fn comment(text: &str) -> String {
    text.chars().take(120).flat_map(char::escape_debug).collect()
}
