//! Rules between settings: what contradicts itself is refused, what cannot mean what it says is
//! warned of. Each names both keys.

use std::net::SocketAddr;
use std::time::Duration;

use super::raw::Raw;
use super::report::{Report, join};
use super::settings::{Config, Model, Upstream, UpstreamKind};
use super::unit::{Size, Span};

/// Judges a configuration that was built.
pub(super) fn judge(raw: &Raw, config: &Config, report: &mut Report) {
    listeners(raw, config, report);
    server(config, report);
    for (index, upstream) in config.upstreams.iter().enumerate() {
        let place = format!("upstream.{index}");
        // The built-in one stands at the end and is not written anywhere.
        if report.written(&place) {
            address(upstream, &place, report);
            budgets(upstream, &place, report);
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
        let (one, all) = (size(s.body_max), size(s.bodies_total_max));
        report.fault(
            blame("server.body_max", "server.bodies_total_max", report),
            format!("server.body_max {one} is above server.bodies_total_max {all}"),
            "raise the total, or lower the single body",
        );
    }
    if s.target_max > s.head_max {
        let (target, head) = (size(s.target_max), size(s.head_max));
        report.fault(
            blame("server.target_max", "server.head_max", report),
            format!("server.target_max {target} is above server.head_max {head}"),
            "a target is part of its head: lower it, or raise the head",
        );
    }
    if s.connections_per_address_max > s.connections_max {
        report.warn(
            blame("server.connections_per_address_max", "server.connections_max", report),
            format!(
                "server.connections_per_address_max {} is above server.connections_max {}",
                s.connections_per_address_max, s.connections_max
            ),
            "it is never reached; lower it, or set 0",
        );
    }
    let request = s.request_timeout;
    for (key, wait) in [("waiting_timeout", s.waiting_timeout), ("early_head", s.early_head)] {
        let place = join("server", key);
        if wait >= request {
            report.warn(
                blame(&place, "server.request_timeout", report),
                format!(
                    "server.{key} {} is not below server.request_timeout {}",
                    Span(wait),
                    Span(request)
                ),
                format!("the request ends first; lower {key}"),
            );
        }
    }
}

/// Of two settings, the one that stands in the file.
fn blame<'a>(first: &'a str, second: &'a str, report: &Report) -> &'a str {
    if !report.written(first) && report.written(second) { second } else { first }
}

/// Where an upstream is, judged by what client libraries of its kind expect.
fn address(upstream: &Upstream, place: &str, report: &mut Report) {
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
    if let Some(proxy) = &upstream.proxy
        && (proxy.tls || !proxy.path.is_empty())
    {
        let remedy = "write http://host:port";
        report.fault(&join(place, "proxy"), "is not a plain HTTP proxy", remedy);
    }
}

/// Deadlines within an attempt that its total hides.
fn budgets(upstream: &Upstream, place: &str, report: &mut Report) {
    let total = upstream.total_timeout;
    let total_at = join(place, "total_timeout");
    for (key, wait) in [
        ("connect_timeout", Some(upstream.connect_timeout)),
        ("first_token_timeout", Some(upstream.first_token_timeout)),
        ("answer_timeout", upstream.answer_timeout),
        ("idle_timeout", Some(upstream.idle_timeout)),
    ] {
        let Some(wait) = wait.filter(|wait| *wait >= total && upstream.kind != UpstreamKind::Echo)
        else {
            continue;
        };
        let at = join(place, key);
        report.warn(
            blame(&at, &total_at, report),
            format!("{key} {} is not below total_timeout {}", Span(wait), Span(total)),
            format!("the attempt ends first; lower {key}, or raise total_timeout"),
        );
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
    let real = || model.chain.iter().filter(|link| link.upstream.kind != UpstreamKind::Echo);
    let first = |upstream: &Upstream| upstream.connect_timeout + upstream.first_token_timeout;
    let needed: Duration = real().map(|link| first(&link.upstream)).sum();
    if real().count() > 1 && needed > total {
        report.warn(
            at,
            format!(
                "its {} attempts may take {} to their first tokens (connect_timeout and \
                 first_token_timeout), above {key} {}",
                real().count(),
                Span(needed),
                Span(total)
            ),
            format!("each is cut to its share; lower first_token_timeout, or raise {key}"),
        );
    }
    if model.total_timeout.is_some_and(|total| config.server.waiting_timeout >= total) {
        report.warn(
            &own_at,
            format!(
                "total_timeout {} is not above server.waiting_timeout {}",
                Span(total),
                Span(config.server.waiting_timeout)
            ),
            "a request that waits ends first; raise it, or lower the wait",
        );
    }
}
