//! The addresses of upstreams and proxies, the hosts and origins of browsers: taken apart, refused
//! with a reason that never repeats what may hold a secret.

use std::net::IpAddr;

use super::settings::BaseUrl;

/// Why a text is not taken: what is wrong, and what to do.
pub(super) type Refusal = (&'static str, &'static str);

impl BaseUrl {
    /// Takes a URL apart: scheme, host, port and path, nothing else.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let (scheme, rest) =
            text.split_once("://").ok_or(("has no scheme", "write http://… or https://…"))?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(("has an unknown scheme", "write http://… or https://…")),
        };
        if !rest.bytes().all(|b| b.is_ascii_graphic()) {
            return Err((
                "holds blanks or characters outside ASCII",
                "write the host in its xn-- form and the path percent-encoded",
            ));
        }
        if rest.contains(['?', '#', '\\']) {
            return Err(("holds a query or a fragment", "write it without ?, # and \\"));
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err((
                "holds a user or a password",
                "take them out and name the key by api_key_env or api_key_file",
            ));
        }
        let (host, port) = host_and_port(authority)?;
        let port = port.unwrap_or(if tls { 443 } else { 80 });
        Ok(BaseUrl { tls, host, port, path: path.trim_end_matches('/').to_owned() })
    }

    /// Whether it stays on this machine.
    pub(super) fn loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => self.host == "localhost" || self.host.ends_with(".localhost"),
        }
    }
}

/// A host in lower case, without brackets, and its port.
pub(super) fn host_and_port(authority: &str) -> Result<(String, Option<u16>), Refusal> {
    const PORT: Refusal = ("has no valid port", "write a port from 1 to 65535, or none");
    let port_of = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<u16>().ok().filter(|port| *port > 0).ok_or(PORT),
        false => Err(PORT),
    };
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) =
            rest.split_once(']').ok_or(("has no closing bracket", "write [address]:port"))?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(("has no IPv6 address in its brackets", "write [address]:port"));
        }
        let port = match after.strip_prefix(':') {
            Some(port) => Some(port_of(port)?),
            None if after.is_empty() => None,
            None => return Err(PORT),
        };
        return Ok((host.to_ascii_lowercase(), port));
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port_of(port)?)),
        None => (authority, None),
    };
    let valid = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > 253 || !name.split('.').all(valid) {
        return Err(("has no valid host", "write a host name or an address"));
    }
    Ok((host.to_ascii_lowercase(), port))
}

/// A `Host` that clients may name: `host` or `host:port`, in lower case.
pub(super) fn host(text: &str) -> Result<String, Refusal> {
    if text.contains('/') {
        return Err(("is a URL", "write only the host, or host:port"));
    }
    if text.contains('*') {
        return Err(("holds a wildcard", "list each host by its name"));
    }
    // A bare IPv6 address is what people write; on the wire it has brackets.
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok(format!("[{}]", text.to_ascii_lowercase()));
    }
    let (host, port) = host_and_port(text)?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Ok(port.map_or(host.clone(), |port| format!("{host}:{port}")))
}

/// An `Origin` as a browser writes it: `scheme://host[:port]`, in lower case.
pub(super) fn origin(text: &str) -> Result<String, Refusal> {
    const FORM: &str = "write it as the browser does, such as \"https://chat.example.org\"";
    if text == "*" {
        return Err(("would let every web page in", "list each origin"));
    }
    let (scheme, rest) = text.split_once("://").ok_or(("has no scheme", FORM))?;
    let mut letters = scheme.bytes();
    let sane = letters.next().is_some_and(|b| b.is_ascii_alphabetic())
        && letters.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    if !sane {
        return Err(("has no valid scheme", FORM));
    }
    if rest.contains(['/', '?', '#', '@', '*']) {
        return Err(("holds more than scheme, host and port", FORM));
    }
    let (host, port) = host_and_port(rest)?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let scheme = scheme.to_ascii_lowercase();
    // Browsers leave the scheme's own port out.
    let own = matches!((scheme.as_str(), port), ("http", Some(80)) | ("https", Some(443)));
    match port.filter(|_| !own) {
        Some(port) => Ok(format!("{scheme}://{host}:{port}")),
        None => Ok(format!("{scheme}://{host}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let check = |text: &str, expected: &str, port: u16| {
            let url = BaseUrl::parse(text).unwrap();
            assert_eq!((url.to_url().as_str(), url.port), (expected, port), "{text}");
        };
        check("http://127.0.0.1:11434", "http://127.0.0.1:11434", 11434);
        check("http://127.0.0.1:11434/", "http://127.0.0.1:11434", 11434);
        check("HTTPS://API.Example.com/v1/", "https://api.example.com/v1", 443);
        check("https://api.example.com:443/v1", "https://api.example.com/v1", 443);
        check("http://[::1]:8080/v1", "http://[::1]:8080/v1", 8080);
        check("http://ollama", "http://ollama", 80);
        check("http://my_box.lan.:1", "http://my_box.lan.:1", 1);
    }

    #[test]
    fn what_is_no_base_url_is_refused_with_a_reason() {
        let check = |text: &str, why: &str| {
            assert_eq!(BaseUrl::parse(text).unwrap_err().0, why, "{text}");
        };
        check("127.0.0.1:11434", "has no scheme");
        check("ftp://a", "has an unknown scheme");
        check("http://", "has no valid host");
        check("http:///v1", "has no valid host");
        check("http://a b", "holds blanks or characters outside ASCII");
        check("http://bücher.example", "holds blanks or characters outside ASCII");
        check("http://u:p@host", "holds a user or a password");
        check("http://host?key=1", "holds a query or a fragment");
        check("http://host:0", "has no valid port");
        check("http://host:65536", "has no valid port");
        check("http://host:+1", "has no valid port");
        check("http://host:", "has no valid port");
        check("http://[::1", "has no closing bracket");
        check("http://[::zz]", "has no IPv6 address in its brackets");
        check("http://[::1]x", "has no valid port");
        check("http://a..b", "has no valid host");
    }

    #[test]
    fn loopback_is_seen_in_each_of_its_forms() {
        for (text, loopback) in [
            ("http://localhost:1", true),
            ("http://a.localhost", true),
            ("http://127.9.9.9", true),
            ("http://[::1]", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(BaseUrl::parse(text).unwrap().loopback(), loopback, "{text}");
        }
    }

    #[test]
    fn hosts_and_origins_are_kept_as_they_come_on_the_wire() {
        assert_eq!(host("Box.LAN"), Ok("box.lan".into()));
        assert_eq!(host("box.lan:18789"), Ok("box.lan:18789".into()));
        assert_eq!(host("::1"), Ok("[::1]".into()));
        assert_eq!(host("[::1]:80"), Ok("[::1]:80".into()));
        assert!(host("http://box").is_err() && host("*.lan").is_err() && host("").is_err());
        assert_eq!(origin("https://Chat.example.org"), Ok("https://chat.example.org".into()));
        assert_eq!(origin("https://chat.example.org:443"), Ok("https://chat.example.org".into()));
        assert_eq!(origin("http://localhost:3000"), Ok("http://localhost:3000".into()));
        assert_eq!(origin("app://obsidian.md"), Ok("app://obsidian.md".into()));
        for bad in ["*", "null", "chat.example.org", "https://a/", "https://*.a", "://a"] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_taken_again_unchanged(
            host in "([a-z0-9][a-z0-9-]{0,8}\\.){0,2}[a-z0-9]{1,5}", port in 1_u16.., path in "(/[a-z0-9]{1,4}){0,3}",
        ) {
            let url = BaseUrl::parse(&format!("http://{host}:{port}{path}")).unwrap();
            prop_assert_eq!(BaseUrl::parse(&url.to_url()), Ok(url));
        }

        #[test]
        fn no_text_makes_them_panic(text in ".*", rest in ".*") {
            let _ = BaseUrl::parse(&text);
            let _ = BaseUrl::parse(&format!("http://{rest}"));
            let _ = host(&text);
            let _ = origin(&text);
        }
    }
}
