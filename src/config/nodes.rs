//! `[nodes]` and `[hooks]`, from what people write to what the program holds, and what of them
//! contradicts itself.

use std::fmt::Display;

use super::build::{Site, bytes};
use super::fault::shown;
use super::intent::between;
use super::nearest::nearest;
use super::raw::{Raw, RawKey, RawNodes};
use super::report::{Report, join};
use super::secret;
use super::settings::nodes::SCOPES;
use super::settings::{Config, Hooks, Nodes};
use super::unit::{Size, Span};

/// `[nodes]` of a file.
pub(super) fn nodes(raw: &Raw, site: &Site<'_>, report: &mut Report) -> Nodes {
    let r = &raw.nodes;
    // A part that nobody wrote gives way to a whole that somebody made small.
    let written = |key: &str| report.written(&join("nodes", key));
    let size = |key, part: Size, whole: Size| if written(key) { part } else { part.min(whole) };
    let count = |key, part: usize| if written(key) { part } else { part.min(r.connections_max) };
    let buffered_max = size("buffered_max", r.buffered_max, r.buffered_total_max);
    let telemetry_max = size("telemetry_max", r.telemetry_max, Size(buffered_max.0 / 2));
    let payload_max = size("payload_max", r.payload_max, r.messages_total_max);
    let made = Nodes {
        enabled: r.enabled && raw.features.nodes,
        connections_per_key_max: count("connections_per_key_max", r.connections_per_key_max),
        connections_per_address_max: count(
            "connections_per_address_max",
            r.connections_per_address_max,
        ),
        hello_max: bytes(size("hello_max", r.hello_max, payload_max)),
        payload_max: bytes(payload_max),
        buffered_max: buffered_max.0,
        telemetry_max: telemetry_max.0,
        ..plain(r)
    };
    let token = secret::key(r.token(), "nodes", site, report);
    let password = secret::key(r.password(), "nodes", site, report);
    Nodes { token, password, ..made }
}

/// Each setting as it stands, without the secrets.
pub(super) fn plain(r: &RawNodes) -> Nodes {
    Nodes {
        enabled: r.enabled,
        token: None,
        password: None,
        connections_max: r.connections_max,
        connections_per_key_max: r.connections_per_key_max,
        connections_per_address_max: r.connections_per_address_max,
        handshake_timeout: r.handshake_timeout.0,
        hello_max: bytes(r.hello_max),
        ping_interval: r.ping_interval.0,
        pong_timeout: r.pong_timeout.0,
        tick_interval: r.tick_interval.0,
        payload_max: bytes(r.payload_max),
        messages_total_max: r.messages_total_max.0,
        buffered_max: r.buffered_max.0,
        telemetry_max: r.telemetry_max.0,
        buffered_total_max: r.buffered_total_max.0,
        write_timeout: r.write_timeout.0,
        presence_max: r.presence_max,
        presence_ttl: r.presence_ttl.0,
        invoke_timeout: r.invoke_timeout.0,
        pending_max: r.pending_max,
        sessions_max: r.sessions_max,
        session_bytes_max: r.session_bytes_max.0,
        runs_max: r.runs_max,
        run_timeout: r.run_timeout.0,
        devices_max: r.devices_max,
        pairings_max: r.pairings_max,
        idempotency_max: r.idempotency_max,
        writes_per_minute: r.writes_per_minute,
    }
}

/// `[hooks]` of a file.
pub(super) fn hooks(raw: &Raw, site: &Site<'_>, report: &mut Report) -> Hooks {
    let r = &raw.hooks;
    Hooks {
        token: secret::key(r.token(), "hooks", site, report),
        body_max: r.body_max.0,
        failures_max: r.failures_max,
        window: r.window.0,
        lockout: r.lockout.0,
    }
}

/// `key.scopes`.
pub(super) fn scopes(key: &RawKey, place: &str, report: &mut Report) -> Vec<&'static str> {
    let place = join(place, "scopes");
    let one = |(index, word): (usize, &String)| {
        let known = SCOPES.iter().find(|known| *known == word).copied();
        if known.is_none() {
            let remedy = match nearest(word, SCOPES) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("write some of {}", SCOPES.join(", ")),
            };
            let text = format!("{} is no scope", shown(word));
            report.fault(&join(&place, &index.to_string()), text, remedy);
        }
        known
    };
    key.scopes.iter().enumerate().filter_map(one).collect()
}

/// Rules between two settings.
pub(super) fn judge(config: &Config, report: &mut Report) {
    let n = &config.nodes;
    let size = |bytes: usize| Size(bytes as u64);
    let remedy = "lower the one, or raise the other";
    if !n.ping_interval.is_zero() && n.pong_timeout >= n.ping_interval {
        let pong = ("nodes.pong_timeout", Span(n.pong_timeout));
        not_below(pong, ("nodes.ping_interval", Span(n.ping_interval)), report);
    }
    if n.hello_max > n.payload_max {
        let one = ("nodes.hello_max", size(n.hello_max));
        above(one, ("nodes.payload_max", size(n.payload_max)), remedy, report);
    }
    if n.payload_max as u64 > n.messages_total_max {
        let one = ("nodes.payload_max", size(n.payload_max));
        above(one, ("nodes.messages_total_max", Size(n.messages_total_max)), remedy, report);
    }
    if n.telemetry_max >= n.buffered_max {
        let one = ("nodes.telemetry_max", Size(n.telemetry_max));
        not_below(one, ("nodes.buffered_max", Size(n.buffered_max)), report);
    }
    if n.buffered_max > n.buffered_total_max {
        let one = ("nodes.buffered_max", Size(n.buffered_max));
        above(one, ("nodes.buffered_total_max", Size(n.buffered_total_max)), remedy, report);
    }
    let all = n.connections_max;
    for (key, one) in [
        ("nodes.connections_per_key_max", n.connections_per_key_max),
        ("nodes.connections_per_address_max", n.connections_per_address_max),
    ] {
        if one > all {
            let (place, text) =
                between((key, one), "is above", ("nodes.connections_max", all), report);
            report.warn(place, text, "it is never reached; lower it");
        }
    }
    let server = ("server.connections_max", config.server.connections_max);
    if report.written("nodes.connections_max") && all > server.1 {
        let (place, text) = between(("nodes.connections_max", all), "is above", server, report);
        report.warn(place, text, "a WebSocket connection is one of both; raise the latter");
    }
}

fn above<T: Display>(first: (&str, T), second: (&str, T), remedy: &str, report: &mut Report) {
    let (place, text) = between(first, "is above", second, report);
    report.fault(place, text, remedy);
}

fn not_below<T: Display>(first: (&str, T), second: (&str, T), report: &mut Report) {
    let (place, text) = between(first, "is not below", second, report);
    report.fault(place, text, "lower the one, or raise the other");
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    fn told(text: &str) -> String {
        match parse(text, None, &|name| (name == "SECRET").then(|| "hush".to_owned())) {
            Ok(loaded) => loaded.warnings.iter().map(|w| w.at(None) + "\n").collect(),
            Err(faults) => faults.to_string(),
        }
    }

    #[test]
    fn what_contradicts_itself_is_told() {
        let check = |text: &str, expected: &str| {
            let told = told(&format!("[nodes]\n{text}\n"));
            assert!(told.contains(expected), "{text}: {told}");
        };
        check("pong_timeout = \"25s\"", "nodes.pong_timeout: 25s is not below");
        check("ping_interval = \"5s\"", "nodes.ping_interval");
        check("ping_interval = \"0s\"\npong_timeout = \"1m\"", "");
        check("hello_max = \"1MiB\"\npayload_max = \"64KiB\"", "nodes.hello_max: 1MiB is above");
        check("payload_max = \"200MiB\"", "nodes.payload_max: 200MiB is above");
        check("telemetry_max = \"8MiB\"", "nodes.telemetry_max: 8MiB is not below");
        check("buffered_max = \"300MiB\"", "nodes.buffered_max: 300MiB is above");
        check("connections_per_key_max = 2000", "it is never reached");
        check("connections_max = 5000", "is above server.connections_max");
        check("token_env = \"NONE\"", "nodes.token_env: $NONE is not set");
        check("token_env = \"SECRET\"\ntoken_file = \"x\"", "stands beside token_env");
    }

    #[test]
    fn a_part_that_nobody_wrote_gives_way() {
        let text = "[nodes]\nconnections_max = 10\nmessages_total_max = \"1MiB\"\n\
                    buffered_total_max = \"1MiB\"\n";
        assert_eq!(told(text), "");
        let text = "[nodes]\nbuffered_max = \"64KiB\"\npayload_max = \"64KiB\"\n";
        assert_eq!(told(text), "");
        let nodes = parse(text, None, &|_| None).unwrap().config.nodes;
        assert_eq!((nodes.telemetry_max, nodes.hello_max), (32 * 1024, 64 * 1024));
    }

    #[test]
    fn the_token_is_a_secret_and_off_is_off() {
        let text = "features.nodes = false\nnodes.token_env = \"SECRET\"\n\
                    nodes.password_env = \"SECRET\"\nhooks.token_env = \"SECRET\"\n";
        let secret = |name: &str| (name == "SECRET").then(|| "hush".to_owned());
        let config = parse(text, None, &secret).unwrap().config;
        assert!(!config.nodes.enabled);
        let secrets = [&config.nodes.token, &config.nodes.password, &config.hooks.token];
        assert!(secrets.iter().all(|secret| secret.as_ref().unwrap().expose() == "hush"));
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn scopes_of_a_key_are_those_of_the_protocol() {
        let key = |scopes: &str| {
            let sha256 = "ab".repeat(32);
            format!("[[key]]\nname = \"a\"\nsha256 = \"{sha256}\"\n{scopes}\n")
        };
        let of = |scopes: &str| {
            parse(&key(scopes), None, &|_| None).unwrap().config.keys[0].scopes.clone()
        };
        assert_eq!(of(""), ["operator.read", "operator.write"]);
        assert_eq!(of("scopes = [\"operator.admin\"]"), ["operator.admin"]);
        assert!(of("scopes = []").is_empty());
        let wrong = told(&key("scopes = [\"operator.raed\"]"));
        assert!(wrong.contains("did you mean \"operator.read\"?"), "{wrong}");
    }
}
