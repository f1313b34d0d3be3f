//! The second step: the settings as people write them become those that the program holds. Values
//! that the schema cannot judge (addresses, URLs, names, files) are judged here; rules between two
//! settings stand in `config/intent.rs`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::base::gcra::Quota;
use crate::base::time_parse;

use super::alerts;
use super::checks;
use super::fault::shown;
use super::names::{ECHO, free, split};
use super::nearest::nearest;
use super::nodes;
use super::price;
use super::raw::{
    CONCURRENCY_DEFAULT, Raw, RawFormat, RawKind, RawLevel, RawLink, RawNamespace, RawPer,
    RawRoutes, RawUpstream, RawWatch,
};
use super::report::{Report, join};
use super::secret;
use super::settings::{
    Auth, BaseUrl, Breaker, Cache, Config, History, Key, Limit, Log, LogFormat, Model, Namespace,
    OWN_LIMIT, Ops, Overload, Per, Prices, Recovery, Resources, Routes, Server, Store, Target,
    Upstream, UpstreamKind, Versions, WatchedFolder,
};
use super::unit::Size;
use super::url;

/// What the second step is given.
pub(super) struct Site<'a> {
    /// The file.
    pub path: Option<&'a Path>,
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl Site<'_> {
    /// A path as the file means it: relative ones start from the file's folder.
    pub(super) fn place(&self, text: &str) -> PathBuf {
        match self.path.and_then(Path::parent) {
            Some(folder) => folder.join(text),
            None => PathBuf::from(text),
        }
    }

    /// A variable that is set and not empty.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }

    /// A variable that systemd fills with one or more folders; the first counts.
    fn folder(&self, name: &str) -> Option<PathBuf> {
        let folders = self.variable(name)?;
        folders.split(':').next().filter(|first| !first.is_empty()).map(PathBuf::from)
    }
}

/// Makes the configuration. It is complete even when something was wrong; the caller looks at the
/// report before it uses it.
pub(super) fn build(raw: &Raw, site: &Site<'_>, report: &mut Report) -> Config {
    let server = server(raw, report);
    let upstreams = upstreams(raw, site, &server, report);
    let prices = price::prices(raw, &upstreams, report);
    let models = models(raw, &upstreams, &prices, report);
    Config {
        path: site.path.map(Path::to_owned),
        ops: Ops {
            listen: address(&raw.ops.listen, 18790, "ops.listen", report),
            live_max: raw.ops.live_max,
            dashboard: raw.features.dashboard,
        },
        overload: Overload {
            enabled: raw.overload.enabled && raw.features.overload,
            memory_max: raw.overload.memory_max.map(|size| size.0),
            calm: raw.overload.calm.0,
        },
        resources: Resources {
            log_interval: raw.resources.log_interval.0,
            growth_per_hour: raw.resources.growth_per_hour.0,
            growth_per_day: raw.resources.growth_per_day,
        },
        history: History { enabled: raw.features.history, ..History::from(&raw.history) },
        checks: {
            // Judged in any case: switched on again they must be right.
            let checks = checks::checks(raw, report);
            if raw.features.checks { checks } else { Vec::new() }
        },
        recovery: {
            let recovery = checks::recovery(raw);
            Recovery { enabled: recovery.enabled && raw.features.recovery, ..recovery }
        },
        auth: Auth {
            failures_max: raw.auth.failures_max,
            window: raw.auth.window.0,
            lockout: raw.auth.lockout.0,
        },
        keys: keys(raw, report),
        limits: limits(raw, report),
        upstreams,
        models,
        prices,
        usage: price::usage(raw),
        nodes: nodes::nodes(raw, site, report),
        hooks: nodes::hooks(raw, site, report),
        cache: cache(raw, site, report),
        versions: Versions {
            probation: raw.config.probation.0,
            versions_max: raw.config.versions_max,
        },
        alerts: alerts::build(raw, site, report),
        log: log(raw, site),
        state_dir: state_dir(raw.state.dir.as_deref(), site),
        store: store(raw, report),
        server,
    }
}

fn server(raw: &Raw, report: &mut Report) -> Server {
    let s = &raw.server;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers_default = (2 * cores).clamp(8, 1024);
    // A part that nobody wrote gives way to a whole that somebody made small.
    let within = |key: &str, part: Size, whole: Size| {
        if report.written(&join("server", key)) { part } else { part.min(whole) }
    };
    let (target_max, body_max) = (
        within("target_max", s.target_max, s.head_max),
        within("body_max", s.body_max, s.bodies_total_max),
    );
    Server {
        listen: address(&s.listen, 18789, "server.listen", report),
        workers: s.workers.unwrap_or(workers_default),
        exchanges_max: s.exchanges_max,
        waiting_max: s.waiting_max,
        waiting_timeout: s.waiting_timeout.0,
        queue_max: s.queue_max,
        queue_timeout: s.queue_timeout.0,
        connections_max: s.connections_max,
        connections_per_address_max: s.connections_per_address_max,
        head_max: bytes(s.head_max),
        headers_max: s.headers_max,
        target_max: bytes(target_max),
        query_max: bytes(s.query_max),
        head_timeout: s.head_timeout.0,
        body_max: bytes(body_max),
        bodies_total_max: bytes(s.bodies_total_max),
        answers_total_max: bytes(s.answers_total_max),
        body_rate_min: bytes(Size(s.body_rate_min.0)),
        body_timeout: s.body_timeout.0,
        keepalive_timeout: s.keepalive_timeout.0,
        write_timeout: s.write_timeout.0,
        early_head: s.early_head.0,
        request_timeout: s.request_timeout.0,
        drain_timeout: s.drain_timeout.0,
        allowed_hosts: list(&s.allowed_hosts, "server.allowed_hosts", report, url::host),
        allowed_origins: list(&s.allowed_origins, "server.allowed_origins", report, url::origin),
        trusted_proxies: list(&s.trusted_proxies, "server.trusted_proxies", report, |text| {
            IpAddr::from_str(text)
                .map_err(|_| ("is no address", "write one, such as \"192.0.2.1\""))
        }),
        addresses_max: s.addresses_max,
    }
}

/// Sizes are below 64 GiB by their bounds; a 32-bit machine gets the most that it can address.
pub(super) fn bytes(size: Size) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}

fn list<T>(
    texts: &[String],
    place: &str,
    report: &mut Report,
    parse: impl Fn(&str) -> Result<T, url::Refusal>,
) -> Vec<T> {
    let one = |(index, text): (usize, &String)| match parse(text) {
        Ok(value) => Some(value),
        Err((why, remedy)) => {
            let place = join(place, &index.to_string());
            report.fault(&place, format!("{} {why}", shown(text)), remedy);
            None
        }
    };
    texts.iter().enumerate().filter_map(one).collect()
}

fn address(text: &str, port: u16, place: &str, report: &mut Report) -> SocketAddr {
    text.parse().unwrap_or_else(|_| {
        let remedy = format!("write both, such as \"127.0.0.1:{port}\" or \"[::1]:{port}\"");
        report.fault(place, format!("{} is no address with a port", shown(text)), remedy);
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    })
}

fn cache(raw: &Raw, site: &Site<'_>, report: &Report) -> Cache {
    let c = &raw.cache;
    let written = report.written("cache.entry_max");
    let entry_max = if written { c.entry_max } else { c.entry_max.min(c.bytes_max) };
    Cache {
        enabled: c.enabled && raw.features.cache,
        embeddings: c.embeddings,
        ttl: c.ttl.0,
        stale_for: c.stale_for.0,
        entries_max: c.entries_max,
        bytes_max: bytes(c.bytes_max),
        entry_max: bytes(entry_max),
        waiting_max: c.waiting_max,
        watch: c.watch.iter().map(|watch| watched(watch, site)).collect(),
    }
}

fn watched(raw: &RawWatch, site: &Site<'_>) -> WatchedFolder {
    let namespace = match raw.namespace {
        RawNamespace::Embeddings => Namespace::Embeddings,
        RawNamespace::Chat => Namespace::Chat,
    };
    WatchedFolder { path: site.place(&raw.path), namespace }
}

fn log(raw: &Raw, site: &Site<'_>) -> Log {
    let l = &raw.log;
    Log {
        level: match l.level {
            RawLevel::Off => log::LevelFilter::Off,
            RawLevel::Error => log::LevelFilter::Error,
            RawLevel::Warn => log::LevelFilter::Warn,
            RawLevel::Info => log::LevelFilter::Info,
            RawLevel::Debug => log::LevelFilter::Debug,
            RawLevel::Trace => log::LevelFilter::Trace,
        },
        dir: l.dir.as_ref().map(|dir| site.place(dir)).or_else(|| site.folder("LOGS_DIRECTORY")),
        format: match l.format {
            RawFormat::Text => LogFormat::Text,
            RawFormat::Json => LogFormat::Json,
        },
        rotate_size: l.rotate_size.0,
        keep_files: l.keep_files,
        pending_max: l.pending_max,
    }
}

fn store(raw: &Raw, report: &mut Report) -> Store {
    let s = &raw.store;
    let marks =
        [("free_refuse", s.free_refuse), ("free_shed", s.free_shed), ("free_warn", s.free_warn)];
    for two in marks.windows(2) {
        let ((low, below), (key, above)) = (two[0], two[1]);
        if below > above {
            let text = format!("is {above}, below store.{low} ({below})");
            report.fault(&join("store", key), text, "write free_refuse <= free_shed <= free_warn");
        }
    }
    Store::from(s)
}

/// `written`: what the file says.
pub(super) fn state_dir(written: Option<&str>, site: &Site<'_>) -> Option<PathBuf> {
    if let Some(dir) = written {
        return Some(site.place(dir));
    }
    site.folder("STATE_DIRECTORY").or_else(|| {
        // Relative ones are ignored, as the XDG specification has it.
        let absolute =
            |name: &str| site.variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || absolute("HOME").map(|home| home.join(".local/state"));
        Some(absolute("XDG_STATE_HOME").or_else(home)?.join("tidegate"))
    })
}

fn keys(raw: &Raw, report: &mut Report) -> Vec<Key> {
    let names = raw.key.iter().map(|key| key.name.as_str());
    unique("key", "name", names, report);
    let digests: Vec<String> = raw.key.iter().map(|key| key.sha256.to_ascii_lowercase()).collect();
    unique("key", "sha256", digests.iter().map(String::as_str), report);
    let mut keys = Vec::with_capacity(raw.key.len());
    for (index, key) in raw.key.iter().enumerate().filter(|(_, key)| !key.sha256.is_empty()) {
        let place = format!("key.{index}");
        if key.name == "nodes" || key.name == "-" || key.name.starts_with("device:") {
            let text = format!("{} is an account of the gateway's own", shown(&key.name));
            report.fault(&join(&place, "name"), text, "give it another name");
        }
        let sha256 = secret::digest(&key.sha256).unwrap_or_else(|why| {
            report.fault(&join(&place, "sha256"), why, "make a key with tidegate key");
            [0; 32]
        });
        for (at, pattern) in key.models.iter().enumerate() {
            let place = join(&join(&place, "models"), &at.to_string());
            models_pattern(pattern, &place, report);
        }
        let expires = key.expires.as_ref().and_then(|text| {
            let seconds = time_parse::unix_seconds(text);
            if seconds.is_none() {
                let text = format!("{} is no RFC 3339 time", shown(text));
                let remedy = "write one with its zone, such as \"2030-01-01T00:00:00Z\"";
                report.fault(&join(&place, "expires"), text, remedy);
            }
            seconds
        });
        keys.push(Key {
            name: key.name.clone(),
            sha256,
            models: key.models.clone(),
            expires,
            requests: requests(key.requests_per_minute, key.burst, &place, report),
            tokens: Quota::per_minute(key.tokens_per_minute, None),
            scopes: nodes::scopes(key, &place, report),
        });
    }
    keys
}

/// A name of a model, or the beginning of one with a `*` behind it.
fn models_pattern(pattern: &str, place: &str, report: &mut Report) {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    if pattern.is_empty() {
        report.fault(place, "is empty", "write the name of a model, or take it out");
    } else if name.contains('*') {
        let text = format!("{} has a * that is not at its end", shown(pattern));
        report.fault(place, text, "write it at the end only, as in \"local/*\"");
    } else if pattern.trim() != pattern {
        report.fault(place, "begins or ends with a blank", "take the blanks out");
    }
}

fn requests(
    per_minute: u64,
    burst: Option<u64>,
    place: &str,
    report: &mut Report,
) -> Option<Quota> {
    if burst.is_some() && per_minute == 0 {
        let remedy = "set requests_per_minute too, or take it out";
        report.fault(&join(place, "burst"), "has no meaning without requests_per_minute", remedy);
    }
    Quota::per_minute(per_minute, burst)
}

fn limits(raw: &Raw, report: &mut Report) -> Vec<Limit> {
    unique("limit", "name", raw.limit.iter().map(|limit| limit.name.as_str()), report);
    let mut limits = Vec::with_capacity(raw.limit.len());
    for (index, limit) in raw.limit.iter().enumerate() {
        let place = format!("limit.{index}");
        plain_name(&limit.name, &join(&place, "name"), report);
        if limit.name == OWN_LIMIT {
            let remedy = "give it another name";
            report.fault(&join(&place, "name"), "is what a key's own limits are called", remedy);
        }
        let requests = requests(limit.requests_per_minute, limit.burst, &place, report);
        let tokens = Quota::per_minute(limit.tokens_per_minute, None);
        let written = |key: &str| report.written(&join(&place, key));
        if !written("requests_per_minute") && !written("tokens_per_minute") {
            let remedy = "set requests_per_minute or tokens_per_minute, or take it out";
            report.fault(&place, "limits nothing", remedy);
        }
        if limit.routes == RawRoutes::Lists && tokens.is_some() {
            let remedy = "take it out; lists have no tokens";
            report.fault(
                &join(&place, "tokens_per_minute"),
                "has no meaning for routes = \"lists\"",
                remedy,
            );
        }
        limits.push(Limit {
            name: limit.name.clone(),
            per: match limit.per {
                RawPer::All => Per::All,
                RawPer::Address => Per::Address,
                RawPer::Key => Per::Key,
            },
            routes: match limit.routes {
                RawRoutes::All => None,
                RawRoutes::Chat => Some(Routes::Chat),
                RawRoutes::Embeddings => Some(Routes::Embeddings),
                RawRoutes::Lists => Some(Routes::Lists),
            },
            requests,
            tokens,
        });
    }
    limits
}

/// Names that stand in headers and metrics.
pub(super) fn plain_name(name: &str, place: &str, report: &mut Report) {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !name.bytes().all(plain) {
        let text = format!("{} holds other characters", shown(name));
        report.fault(place, text, "write letters, digits, -, _ and . only");
    }
}

/// Names must differ. Empty ones are missing, which the first step has told.
pub(super) fn unique<'a>(
    table: &str,
    key: &str,
    values: impl Iterator<Item = &'a str>,
    report: &mut Report,
) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, value) in values.enumerate().filter(|(_, value)| !value.is_empty()) {
        let Some(first) = seen.insert(value, index) else { continue };
        seen.insert(value, first);
        let line = report.line(&format!("{table}.{first}.{key}"));
        let at = line.map_or_else(String::new, |line| format!(" on line {line}"));
        let remedy = match key {
            "name" => "give each its own",
            "model" => "keep one of them",
            _ => "make another key",
        };
        report.fault(&format!("{table}.{index}.{key}"), format!("stands already{at}"), remedy);
    }
}

fn upstreams(
    raw: &Raw,
    site: &Site<'_>,
    server: &Server,
    report: &mut Report,
) -> Vec<Arc<Upstream>> {
    unique("upstream", "name", raw.upstream.iter().map(|u| u.name.as_str()), report);
    let mut upstreams = Vec::with_capacity(raw.upstream.len() + 1);
    for (index, raw) in raw.upstream.iter().enumerate() {
        let place = format!("upstream.{index}");
        upstreams.push(Arc::new(upstream(raw, &place, site, server, report)));
    }
    if !raw.upstream.iter().any(|u| u.name == ECHO) {
        let raw = RawUpstream {
            name: ECHO.to_owned(),
            kind: Some(RawKind::Echo),
            ..RawUpstream::default()
        };
        upstreams.push(Arc::new(upstream(&raw, "", site, server, report)));
    }
    upstreams
}

fn upstream(
    raw: &RawUpstream,
    place: &str,
    site: &Site<'_>,
    server: &Server,
    report: &mut Report,
) -> Upstream {
    let kind = match raw.kind {
        Some(RawKind::OpenAi) => UpstreamKind::OpenAi,
        Some(RawKind::Echo) => UpstreamKind::Echo,
        Some(RawKind::Ollama) | None => UpstreamKind::Ollama,
    };
    let at = |key: &str| join(place, key);
    plain_name(&raw.name, &at("name"), report);
    if raw.name == ECHO && raw.kind.is_some_and(|kind| kind != RawKind::Echo) {
        let remedy = "give it another name, or kind = \"echo\"";
        report.fault(&at("name"), "\"echo\" is the name of the built-in upstream", remedy);
    }
    if raw.kind.is_some() {
        fits_kind(raw, kind, place, report);
    }
    let mut url_of = |text: &Option<String>, key: &str| {
        let (text, place) = (text.as_ref()?, at(key));
        BaseUrl::parse(text).map_err(|(why, remedy)| report.fault(&place, why, remedy)).ok()
    };
    let url = url_of(&raw.url, "url").filter(|_| kind != UpstreamKind::Echo);
    let proxy = url_of(&raw.proxy, "proxy");
    let ca = ca_file(raw.ca_file.as_deref(), &at("ca_file"), site, report);
    let (ca_file, ca_digest) = ca.unzip();
    Upstream {
        name: raw.name.clone(),
        kind,
        url,
        key: secret::key(raw.api_key(), place, site, report),
        ca_file,
        ca_digest,
        proxy,
        connect_timeout: raw.connect_timeout.0,
        first_token_timeout: raw.first_token_timeout.0,
        answer_timeout: raw.answer_timeout.map(|span| span.0),
        idle_timeout: raw.idle_timeout.0,
        total_timeout: raw.total_timeout.0,
        stream_line_max: bytes(raw.stream_line_max),
        answer_max: bytes(raw.answer_max),
        concurrency_max: raw.concurrency_max.unwrap_or(match kind {
            UpstreamKind::Echo => server.exchanges_max,
            _ => CONCURRENCY_DEFAULT,
        }),
        waiting_max: raw.waiting_max,
        breaker: raw.breaker.then(|| breaker(raw, place, report)),
        cooldown_max: raw.cooldown_max.0,
        requests_per_minute: raw.requests_per_minute,
        tokens_per_minute: raw.tokens_per_minute,
        concurrency_adaptive: raw.concurrency_adaptive,
        concurrency_min: raw.concurrency_min,
        num_ctx: raw.num_ctx,
        word_delay: raw.word_delay.unwrap_or_default().0,
    }
}

/// The settings of guards that `echo` has none of.
pub(super) const GUARD_KEYS: [&str; 13] = [
    "breaker_failure_percent",
    "breaker_calls_min",
    "breaker_failures_max",
    "breaker_slow_call",
    "breaker_slow_percent",
    "breaker_open_time",
    "breaker_open_time_max",
    "breaker_probes",
    "cooldown_max",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrency_adaptive",
    "concurrency_min",
];

fn breaker(raw: &RawUpstream, place: &str, report: &Report) -> Breaker {
    let open_time_max = raw.breaker_open_time_max.0;
    // A part that nobody wrote gives way to a whole that somebody made small, and the other way.
    let written = |key: &str| report.written(&join(place, key));
    let (open_time, open_time_max) =
        match (written("breaker_open_time"), written("breaker_open_time_max")) {
            (true, false) => (raw.breaker_open_time.0, open_time_max.max(raw.breaker_open_time.0)),
            // Of two that contradict each other, `config/intent.rs` tells.
            (true, true) => (raw.breaker_open_time.0, open_time_max),
            _ => (raw.breaker_open_time.0.min(open_time_max), open_time_max),
        };
    Breaker {
        failure_percent: raw.breaker_failure_percent,
        calls_min: raw.breaker_calls_min,
        failures_max: raw.breaker_failures_max,
        slow_call: raw.breaker_slow_call.map(|span| span.0),
        slow_percent: raw.breaker_slow_percent,
        open_time,
        open_time_max,
        probes: raw.breaker_probes,
    }
}

/// A setting that would silently do nothing for this kind is refused; `url` must be there for those
/// that are called.
fn fits_kind(raw: &RawUpstream, kind: UpstreamKind, place: &str, report: &mut Report) {
    let known: Vec<&str> =
        GUARD_KEYS.into_iter().filter(|key| report.written(&join(place, key))).collect();
    let written = |key: &str| known.contains(&key);
    let mut only = |key: &str, set: bool, fits: bool, whom: &str| {
        if set && !fits {
            let text = format!("has no meaning for kind = \"{}\"", kind_name(kind));
            report.fault(&join(place, key), text, format!("take it out; it is for {whom} only"));
        }
    };
    let called = kind != UpstreamKind::Echo;
    let whom = "ollama and openai";
    only("url", raw.url.is_some(), called, whom);
    only("api_key_env", raw.api_key_env.is_some(), called, whom);
    only("api_key_file", raw.api_key_file.is_some(), called, whom);
    only("ca_file", raw.ca_file.is_some(), called, whom);
    only("proxy", raw.proxy.is_some(), called, whom);
    for key in GUARD_KEYS {
        only(key, written(key), called, whom);
    }
    only("num_ctx", raw.num_ctx.is_some(), kind == UpstreamKind::Ollama, "ollama");
    only("word_delay", raw.word_delay.is_some(), !called, "echo");
    if called && !report.written(&join(place, "url")) {
        let remedy = match kind {
            UpstreamKind::OpenAi => "write url = \"https://api.openai.com/v1\" or the like",
            _ => "write url = \"http://127.0.0.1:11434\" or the like",
        };
        report.fault(&join(place, "url"), "is missing", remedy);
    }
}

/// The word that stands in the file.
fn kind_name(kind: UpstreamKind) -> &'static str {
    match kind {
        UpstreamKind::Ollama => "ollama",
        UpstreamKind::OpenAi => "openai",
        UpstreamKind::Echo => "echo",
    }
}

/// The file, and the digest of what is in it.
pub(super) fn ca_file(
    named: Option<&str>,
    place: &str,
    site: &Site<'_>,
    report: &mut Report,
) -> Option<(PathBuf, [u8; 32])> {
    let path = site.place(named?);
    let mut digest = [0; 32];
    match secret::read_small(&path, secret::CA_FILE_BYTES_MAX) {
        Ok((text, _)) if text.contains("-----BEGIN CERTIFICATE-----") => {
            digest = Sha256::digest(text.as_bytes()).into();
        }
        Ok(_) => report.fault(place, "holds no certificate", "name a file in PEM form"),
        Err(why) => {
            report.fault(place, format!("cannot be read: {why}"), "mend the file or its path")
        }
    }
    Some((path, digest))
}

fn models(
    raw: &Raw,
    upstreams: &[Arc<Upstream>],
    prices: &Prices,
    report: &mut Report,
) -> Vec<Arc<Model>> {
    unique("model", "name", raw.model.iter().map(|m| m.name.as_str()), report);
    let mut models = Vec::with_capacity(raw.model.len());
    for (index, raw) in raw.model.iter().enumerate() {
        let place = format!("model.{index}");
        if raw.name.trim() != raw.name {
            let remedy = "take the blanks out";
            report.fault(&join(&place, "name"), "begins or ends with a blank", remedy);
        }
        let mut chain = Vec::with_capacity(1 + raw.fallbacks.len());
        let link = &raw.primary;
        chain.extend(target(link, &join(&place, "primary"), upstreams, prices, report));
        for (index, link) in raw.fallbacks.iter().enumerate() {
            let place = join(&place, &format!("fallbacks.{index}"));
            chain.extend(target(link, &place, upstreams, prices, report));
        }
        let total_timeout = raw.total_timeout.map(|span| span.0);
        let cache = raw.cache.map(|span| span.0);
        models.push(Arc::new(Model { name: raw.name.clone(), chain, total_timeout, cache }));
    }
    models
}

/// One link; `None` when it is missing, which the first step has told, or names nothing.
fn target(
    link: &RawLink,
    place: &str,
    upstreams: &[Arc<Upstream>],
    prices: &Prices,
    report: &mut Report,
) -> Option<Target> {
    let (text, tools, images) = match link {
        RawLink::Name(text) => (text, true, true),
        RawLink::Table(table) => (&table.model, table.tools, table.images),
    };
    if text.is_empty() {
        return None;
    }
    let (name, model) = split(text);
    let Some(upstream) = upstreams.iter().find(|u| u.name == name) else {
        let known = upstreams.iter().map(|u| u.name.as_str());
        let remedy = match nearest(name, known) {
            Some(near) => format!("did you mean {near:?}?"),
            None => "write upstream/model, and an [[upstream]] of that name".to_owned(),
        };
        report.fault(place, format!("{} names no upstream", shown(text)), remedy);
        return None;
    };
    let model = match model {
        Some(model) => model,
        None if upstream.kind == UpstreamKind::Echo => ECHO,
        None => {
            let remedy = format!("write \"{name}/…\" with the model as {name} knows it");
            report.fault(place, format!("{} names no model", shown(text)), remedy);
            return None;
        }
    };
    if model.trim() != model {
        report.fault(place, "begins or ends with a blank", "take the blanks out");
    }
    let rates = prices.of(name, model).or(free(upstream.kind));
    Some(Target { upstream: Arc::clone(upstream), model: model.to_owned(), tools, images, rates })
}
