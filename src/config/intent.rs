//! Rules between settings: what contradicts itself is refused, what cannot mean what it says is
//! warned of. Each names both keys.

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::clock;

use super::nearest::nearest;
use super::nodes;
use super::raw::Raw;
use super::report::{Report, join};
use super::settings::{Config, Model, Per, Upstream, UpstreamKind};
use super::unit::{Size, Span};

/// Judges a configuration that was built.
pub(super) fn judge(raw: &Raw, config: &Config, report: &mut Report) {
    listeners(raw, config, report);
    server(config, report);
    cache(config, report);
    limits(config, report);
    keys(config, report);
    nodes::judge(config, report);
    let totals = config.models.iter().filter_map(|model| model.total_timeout);
    let request = totals.fold(config.server.request_timeout, Duration::max);
    for (index, upstream) in config.upstreams.iter().enumerate() {
        let place = format!("upstream.{index}");
        // The built-in one stands at the end and is not written anywhere.
        if report.written(&place) {
            address(upstream, &place, report);
            budgets(upstream, request, &place, report);
            breaker(upstream, &place, report);
            concurrency(upstream, &place, report);
        }
    }
    for (index, (model, raw)) in config.models.iter().zip(&raw.model).enumerate() {
        // A chain with a link that names nothing was refused already, and its places are off.
        if model.chain.len() != 1 + raw.fallbacks.len() {
            continue;
        }
        let place = format!("model.{index}");
        chain(model, &place, report);
        time(config, model, &place, report);
    }
}

fn listeners(raw: &Raw, config: &Config, report: &mut Report) {
    let (data, ops) = (config.server.listen, config.ops.listen);
    for (place, listen) in [("server.listen", data), ("ops.listen", ops)] {
        if !loopback(listen) && raw.key.is_empty() {
            report.fault(
                place,
                format!("{listen} can be reached from other machines, and there is no [[key]]"),
                "make one with tidegate key, or listen on 127.0.0.1",
            );
        }
    }
    let same_host =
        data.ip() == ops.ip() || data.ip().is_unspecified() || ops.ip().is_unspecified();
    if same_host && data.port() == ops.port() && data.port() != 0 {
        let text = format!("{ops} is taken by server.listen ({data})");
        report.fault("ops.listen", text, "give it another port");
    }
}

fn loopback(listen: SocketAddr) -> bool {
    listen.ip().to_canonical().is_loopback()
}

fn server(config: &Config, report: &mut Report) {
    let s = &config.server;
    let size = |bytes: usize| Size(bytes as u64);
    if s.body_max > s.bodies_total_max {
        let one = ("server.body_max", size(s.body_max));
        let all = ("server.bodies_total_max", size(s.bodies_total_max));
        let (place, text) = between(one, "is above", all, report);
        report.fault(place, text, "raise the total, or lower the single body");
    }
    if s.target_max > s.head_max {
        let target = ("server.target_max", size(s.target_max));
        let head = ("server.head_max", size(s.head_max));
        let (place, text) = between(target, "is above", head, report);
        report.fault(place, text, "a target is part of its head: lower it, or raise the head");
    }
    if s.connections_per_address_max > s.connections_max {
        let one = ("server.connections_per_address_max", s.connections_per_address_max);
        let all = ("server.connections_max", s.connections_max);
        let (place, text) = between(one, "is above", all, report);
        report.warn(place, text, "it is never reached; lower it, or set 0");
    }
    let request = ("server.request_timeout", Span(s.request_timeout));
    for (key, wait) in
        [("server.waiting_timeout", s.waiting_timeout), ("server.early_head", s.early_head)]
    {
        let default = key == "server.early_head" && !report.written(key);
        if wait >= s.request_timeout && !default {
            let (place, text) = between((key, Span(wait)), "is not below", request, report);
            report.warn(place, text, format!("the request ends first; lower {key}"));
        }
    }
}

fn cache(config: &Config, report: &mut Report) {
    let c = &config.cache;
    let size = |bytes: usize| Size(bytes as u64);
    if c.entry_max > c.bytes_max {
        let one = ("cache.entry_max", size(c.entry_max));
        let all = ("cache.bytes_max", size(c.bytes_max));
        let (place, text) = between(one, "is above", all, report);
        report.fault(place, text, "raise the total, or lower the single answer");
    }
}

/// Limits that cover nobody.
fn limits(config: &Config, report: &mut Report) {
    for (index, limit) in config.limits.iter().enumerate() {
        if limit.per == Per::Key && config.keys.is_empty() {
            let place = format!("limit.{index}.per");
            let remedy = "add a [[key]], or set per = \"address\"";
            report.warn(&place, "is for each key, and there is no [[key]]", remedy);
        }
    }
}

/// Keys that open nothing.
fn keys(config: &Config, report: &mut Report) {
    let now = clock::unix().as_secs();
    for (index, key) in config.keys.iter().enumerate() {
        let place = format!("key.{index}");
        if key.expires.is_some_and(|end| end <= now) {
            let remedy = "take the key out, or set a later time";
            report.warn(&join(&place, "expires"), "is over", remedy);
        }
        for (at, pattern) in key.models.iter().enumerate() {
            if !names_something(config, pattern) {
                let text = format!("{pattern:?} is the name of no model");
                let known = config.models.iter().map(|model| model.name.as_str());
                let remedy = match nearest(pattern, known) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "write what clients ask for: the name of a [[model]], or \
                             \"upstream/model\""
                        .to_owned(),
                };
                report.warn(&join(&join(&place, "models"), &at.to_string()), text, remedy);
            }
        }
    }
}

/// Whether a pattern of a key stands for a name that could be asked for.
fn names_something(config: &Config, pattern: &str) -> bool {
    let Some(prefix) = pattern.strip_suffix('*') else { return config.resolve(pattern).is_some() };
    let upstream = |name: &str| match prefix.split_once('/') {
        Some((upstream, _)) => upstream == name,
        None => name.starts_with(prefix),
    };
    config.models.iter().any(|model| model.name.starts_with(prefix))
        || config.upstreams.iter().any(|known| upstream(&known.name))
}

/// Of two settings that do not go together, the one to blame (that which stands in the file, else
/// the first), and the words for it. The words name the other one.
pub(super) fn between<'a, T: std::fmt::Display>(
    first: (&'a str, T),
    relation: &str,
    second: (&'a str, T),
    report: &Report,
) -> (&'a str, String) {
    let ((place, value), (other, bound)) = (first, second);
    if report.written(place) || !report.written(other) {
        let other = report.label(other);
        (place, format!("{value} {relation} {other} {bound}"))
    } else {
        let first = report.label(place);
        (other, format!("{first} {value} {relation} its {bound}"))
    }
}

/// Where an upstream is, judged by what client libraries of its kind expect.
fn address(upstream: &Upstream, place: &str, report: &mut Report) {
    if let Some(proxy) = &upstream.proxy
        && (proxy.tls || !proxy.path.is_empty())
    {
        let remedy = "write http://host:port";
        report.fault(&join(place, "proxy"), "is not a plain HTTP proxy", remedy);
    }
    let Some(url) = &upstream.url else { return };
    let at = join(place, "url");
    match upstream.kind {
        UpstreamKind::OpenAi if url.path.is_empty() => report.warn(
            &at,
            format!("{} has no path", url.to_url()),
            format!("most providers want {}/v1", url.to_url()),
        ),
        UpstreamKind::OpenAi => {
            for end in ["/chat/completions", "/completions", "/embeddings", "/models"] {
                if let Some(base) = url.path.strip_suffix(end) {
                    let text = format!("ends in {end}, which is added to it");
                    report.warn(&at, text, format!("end it in {base:?}"));
                    break;
                }
            }
        }
        UpstreamKind::Ollama => {
            if url.path.ends_with("/v1") || url.path.ends_with("/api") {
                report.warn(
                    &at,
                    format!("ends in {:?}, which Ollama's own API does not want", url.path),
                    "take the path out, or set kind = \"openai\" for /v1",
                );
            }
        }
        UpstreamKind::Echo => {}
    }
    if upstream.key.is_some() && !url.tls && !url.loopback() {
        report.warn(
            &at,
            format!("the key goes unencrypted to {}", url.host),
            "use https, or be sure of the network between",
        );
    }
    if upstream.ca_file.is_some() && !url.tls {
        report.warn(&join(place, "ca_file"), "has no effect on http", "use https, or take it out");
    }
}

/// Deadlines within an attempt that its total hides, and a total that every request's hides.
fn budgets(upstream: &Upstream, request: Duration, place: &str, report: &mut Report) {
    if upstream.kind == UpstreamKind::Echo {
        return;
    }
    let total = upstream.total_timeout;
    let total_at = join(place, "total_timeout");
    for (key, wait) in [
        ("connect_timeout", Some(upstream.connect_timeout)),
        ("first_token_timeout", Some(upstream.first_token_timeout)),
        ("answer_timeout", upstream.answer_timeout),
        ("idle_timeout", Some(upstream.idle_timeout)),
    ] {
        let Some(wait) = wait.filter(|wait| *wait >= total) else { continue };
        let at = join(place, key);
        // A default that a short total hides loses nothing, but without an idle timeout a stall
        // shows only at the end.
        if !report.written(&at) && key != "idle_timeout" {
            continue;
        }
        let total = (total_at.as_str(), Span(total));
        let (place, text) = between((&at, Span(wait)), "is not below", total, report);
        report.warn(
            place,
            text,
            format!("the attempt ends first; lower {key}, or raise the total"),
        );
    }
    // The defaults of both are equal; who writes a longer one expects it to count.
    if report.written(&total_at) && total > request {
        let text = format!("{} is above every request's total {}", Span(total), Span(request));
        report.warn(&total_at, text, "the request ends first; lower it, or raise request_timeout");
    }
}

/// A breaker's first time and its longest.
fn breaker(upstream: &Upstream, place: &str, report: &mut Report) {
    let Some(breaker) = upstream.breaker else { return };
    if breaker.open_time > breaker.open_time_max {
        let (first, most) =
            (join(place, "breaker_open_time"), join(place, "breaker_open_time_max"));
        let (open, max) = (Span(breaker.open_time), Span(breaker.open_time_max));
        let (place, text) = between((&first, open), "is above", (&most, max), report);
        report.fault(place, text, "lower the first, or raise the longest");
    }
    let slow = join(place, "breaker_slow_percent");
    if breaker.slow_call.is_none() && report.written(&slow) {
        let remedy = "set breaker_slow_call too, or take it out";
        report.warn(&slow, "has no effect without breaker_slow_call", remedy);
    }
}

/// The bounds of a concurrency that adapts itself.
fn concurrency(upstream: &Upstream, place: &str, report: &mut Report) {
    let (min, max) = (upstream.concurrency_min, upstream.concurrency_max);
    let least = join(place, "concurrency_min");
    if upstream.concurrency_adaptive && min > max && report.written(&least) {
        let most = join(place, "concurrency_max");
        let (place, text) = between((&least, min), "is above", (&most, max), report);
        report.fault(place, text, "lower the least, or raise the most");
    } else if !upstream.concurrency_adaptive && report.written(&least) {
        let remedy = "set concurrency_adaptive = true, or take it out";
        report.warn(&least, "has no effect without concurrency_adaptive", remedy);
    }
}

/// Links that can never answer.
fn chain(model: &Model, place: &str, report: &mut Report) {
    for (index, link) in model.chain.iter().enumerate() {
        let at = link_place(place, index);
        let name = format!("{}/{}", link.upstream.name, link.model);
        let before = &model.chain[..index];
        let same = |other: &super::settings::Target| {
            other.upstream.name == link.upstream.name && other.model == link.model
        };
        let echo = |other: &super::settings::Target| {
            other.upstream.kind == UpstreamKind::Echo && other.tools && other.images
        };
        if before.iter().any(same) {
            let text = format!("{name:?} stands earlier in the chain, so it can never fire");
            report.fault(&at, text, "take it out, or name another model");
        } else if let Some(earlier) = before.iter().find(|other| echo(other)) {
            let text = format!(
                "{name:?} stands behind {:?}, which always answers, so it can never fire",
                format!("{}/{}", earlier.upstream.name, earlier.model)
            );
            report.fault(&at, text, "put it before that one, or take it out");
        } else if index > 0 && link.upstream.kind == UpstreamKind::Echo {
            let text =
                format!("{name:?} stands behind a real model and would answer with the prompt");
            report.warn(&at, text, "take it out, unless that is what you want");
        }
    }
}

fn link_place(place: &str, index: usize) -> String {
    match index.checked_sub(1) {
        None => join(place, "primary"),
        Some(fallback) => join(place, &format!("fallbacks.{fallback}")),
    }
}

/// Whether the chain fits into the request's time.
fn time(config: &Config, model: &Model, place: &str, report: &mut Report) {
    let own_at = join(place, "total_timeout");
    let (total, key, at) = match model.total_timeout {
        Some(total) => (total, "total_timeout", own_at.as_str()),
        None => (config.server.request_timeout, "server.request_timeout", place),
    };
    let real: Vec<&Upstream> = model.chain.iter().map(|link| &*link.upstream).collect();
    let real = || real.iter().filter(|upstream| upstream.kind != UpstreamKind::Echo);
    let needed: Duration = real().map(|u| u.connect_timeout + u.first_token_timeout).sum();
    // A single attempt with the default simply gets the request's time, as it should.
    let written = |name: &str| {
        let index = config.upstreams.iter().position(|upstream| upstream.name == name);
        index.is_some_and(|i| report.written(&format!("upstream.{i}.first_token_timeout")))
    };
    if needed > total && (real().count() > 1 || real().any(|upstream| written(&upstream.name))) {
        let (attempts, needed, total) = (real().count(), Span(needed), Span(total));
        let who = if attempts == 1 {
            "its attempt".to_owned()
        } else {
            format!("its {attempts} attempts")
        };
        report.warn(
            at,
            format!(
                "{who} may take {needed} to the first token (connect_timeout and \
                 first_token_timeout), above {key} {total}"
            ),
            format!("each is cut to its share; lower first_token_timeout, or raise {key}"),
        );
    }
    let wait = config.server.waiting_timeout;
    if let Some(total) = model.total_timeout.filter(|total| wait >= *total) {
        let (total, wait) = (Span(total), Span(wait));
        let text = format!("{total} is not above server.waiting_timeout {wait}");
        report.warn(&own_at, text, "a request that waits ends first; raise it, or lower the wait");
    }
}
