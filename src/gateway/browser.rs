//! Rules that keep web pages away from a gateway on loopback.
//!
//! A page from anywhere can make its visitor's browser send requests to 127.0.0.1, and by DNS
//! rebinding even read the answers. So the `Host` must be one of ours, and an `Origin`, which only
//! browsers send, must have been configured.

use std::net::{IpAddr, SocketAddr};

use crate::base::error::{Error, Kind};
use crate::net::http::{Headers, Response};

/// How long a browser may remember a preflight's answer, in seconds.
const PREFLIGHT_SECONDS: &str = "600";

/// The fields of an answer that a page may read.
const EXPOSED: &str = "x-request-id, retry-after, retry-after-ms, ratelimit, ratelimit-policy, \
    x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
    x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";

/// The hosts and origins of a configuration.
#[derive(Debug)]
pub struct Rules {
    listen: SocketAddr,
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Rules {
    /// Rules for a listener, with the further hosts and origins that were configured. The origin
    /// `*` stands for any.
    pub fn new(listen: SocketAddr, hosts: &[String], origins: &[String]) -> Self {
        let lower = |list: &[String]| list.iter().map(|one| one.to_ascii_lowercase()).collect();
        Rules { listen, hosts: lower(hosts), origins: lower(origins) }
    }

    /// Checks `Host`. HTTP/1.0 requests may lack it; the codec has seen to the rest.
    ///
    /// # Errors
    /// [`Kind::HostNotAllowed`].
    pub fn host(&self, headers: &Headers) -> Result<(), Error> {
        let Some(value) = headers.get_str("host") else { return Ok(()) };
        if self.host_is_ours(value) {
            return Ok(());
        }
        let context = "this Host is not one of ours; add it to server.allowed_hosts";
        Err(Error::new(Kind::HostNotAllowed, context))
    }

    /// Checks `Origin`; gives it when the answer should be readable for its page.
    ///
    /// # Errors
    /// [`Kind::OriginNotAllowed`].
    pub fn origin<'a>(&self, headers: &'a Headers) -> Result<Option<&'a str>, Error> {
        let Some(value) = headers.get("origin") else { return Ok(None) };
        let origin = std::str::from_utf8(value).unwrap_or_default();
        let lower = origin.to_ascii_lowercase();
        if self.origins.iter().any(|allowed| allowed == "*" || *allowed == lower) {
            return Ok(Some(origin));
        }
        let context = "web pages of this Origin may not use the gateway; \
                       add it to server.allowed_origins";
        Err(Error::new(Kind::OriginNotAllowed, context))
    }

    fn host_is_ours(&self, value: &str) -> bool {
        let lower = value.to_ascii_lowercase();
        let name = without_port(&lower);
        if self.hosts.iter().any(|host| *host == lower || *host == name) {
            return true;
        }
        if name == "localhost" || name.ends_with(".localhost") {
            return true;
        }
        let literal = name.trim_start_matches('[').trim_end_matches(']');
        match literal.parse::<IpAddr>() {
            // Listening everywhere, any address of this machine is ours. Rebinding needs a name.
            Ok(address) => {
                let listen = self.listen.ip();
                address.to_canonical().is_loopback() || address == listen || listen.is_unspecified()
            }
            Err(_) => false,
        }
    }
}

/// `host:port` or `[v6]:port` without its port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => {
            // `::1` without brackets is not a valid Host; it is not split either.
            if name.contains(':') && !name.ends_with(']') { host } else { name }
        }
        _ => host,
    }
}

/// The fields that let a page of `origin` read an answer.
pub fn readable_by(origin: &str) -> [(&'static str, String); 3] {
    [
        ("access-control-allow-origin", origin.to_owned()),
        ("access-control-expose-headers", EXPOSED.to_owned()),
        ("vary", "origin".to_owned()),
    ]
}

/// Answers an `OPTIONS` request: a preflight of `origin`, or a plain question.
pub fn options(origin: Option<&str>, headers: &Headers, allow: &str) -> Response {
    let mut response = Response::empty(204).with("allow", allow);
    if let Some(origin) = origin {
        for (name, value) in readable_by(origin) {
            response = response.with(name, value);
        }
        let asked = headers.get_str("access-control-request-headers");
        response = response
            .with("access-control-allow-methods", allow)
            .with("access-control-allow-headers", asked.unwrap_or("authorization, content-type"))
            .with("access-control-max-age", PREFLIGHT_SECONDS);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &str, value: &str) -> Headers {
        let mut headers = Headers::default();
        headers.push(name.as_bytes(), value.as_bytes());
        headers
    }

    #[test]
    fn hosts_are_loopback_the_listen_address_or_listed() {
        let hosts = ["gate.home".to_owned(), "gate.lan:8080".to_owned()];
        let rules = Rules::new("192.168.1.9:18789".parse().unwrap(), &hosts, &[]);
        for (host, ours) in [
            ("localhost", true),
            ("LOCALHOST:18789", true),
            ("127.0.0.1:1", true),
            ("127.9.9.9", true),
            ("[::1]:18789", true),
            ("[::ffff:127.0.0.1]", true),
            ("192.168.1.9:18789", true),
            ("192.168.1.8:18789", false),
            ("gate.home:18789", true),
            ("gate.lan", false),
            ("gate.lan:8080", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
        ] {
            assert_eq!(rules.host(&headers("host", host)).is_ok(), ours, "{host}");
        }
        let everywhere = Rules::new("0.0.0.0:18789".parse().unwrap(), &[], &[]);
        assert!(everywhere.host(&headers("host", "10.0.0.5:18789")).is_ok());
        assert!(everywhere.host(&headers("host", "evil.example")).is_err());
    }

    #[test]
    fn an_origin_must_be_configured() {
        let listen = "127.0.0.1:18789".parse().unwrap();
        let rules = Rules::new(listen, &[], &["https://chat.home".to_owned()]);
        let origin = |value: &str| rules.origin(&headers("origin", value)).map(|o| o.is_some());
        assert!(matches!(origin("https://chat.home"), Ok(true)));
        assert!(origin("https://evil.example").is_err());
        assert!(origin("null").is_err());
        assert!(matches!(rules.origin(&Headers::default()), Ok(None)));
    }
}
