//! `[[price]]` and `[usage]`: what tokens cost, and the bounds of the books about them.

use std::sync::Arc;

use super::build::unique;
use super::fault::shown;
use super::names::split;
use super::nearest::nearest;
use super::raw::Raw;
use super::report::Report;
use super::settings::{Prices, Rates, Upstream, Usage};

/// The bounds of the books.
pub(super) fn usage(raw: &Raw) -> Usage {
    let u = &raw.usage;
    Usage {
        currency: u.currency.clone(),
        sessions_max: u.sessions_max,
        days_max: u.days_max,
        rows_max: u.rows_max,
        cache_ttl: u.cache_ttl.0,
    }
}

/// What tokens cost.
pub(super) fn prices(raw: &Raw, upstreams: &[Arc<Upstream>], report: &mut Report) -> Prices {
    unique("price", "model", raw.price.iter().map(|price| price.model.as_str()), report);
    let mut prices = Vec::with_capacity(raw.price.len());
    for (index, price) in raw.price.iter().enumerate().filter(|(_, p)| !p.model.is_empty()) {
        let place = format!("price.{index}.model");
        let begin = price.model.strip_suffix('*');
        let (name, model) = split(&price.model);
        let known = || upstreams.iter().map(|u| u.name.as_str());
        if begin.unwrap_or(&price.model).contains('*') {
            let text = format!("{} has a * before its end", shown(&price.model));
            report.fault(&place, text, "a * stands for any rest, at the end only");
        } else if model.is_none() && begin.is_none() {
            let text = format!("{} names no model", shown(&price.model));
            report.fault(&place, text, format!("write \"{name}/…\", or \"{name}/*\""));
        } else if model.is_some() && !known().any(|known| known == name) {
            let remedy = match nearest(name, known()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "write upstream/model, and an [[upstream]] of that name".to_owned(),
            };
            report.fault(&place, format!("{} names no upstream", shown(&price.model)), remedy);
        }
        let rates = Rates {
            input: price.input.0,
            output: price.output.0,
            cached: price.cached.unwrap_or(price.input).0,
        };
        prices.push((price.model.clone(), rates));
    }
    Prices::new(prices)
}
