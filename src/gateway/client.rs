//! Who a client is, as far as its address tells: the peer, or whom a trusted proxy names.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::net::http::Headers;

/// Most addresses of one `X-Forwarded-For` that are looked at, from the nearest on.
const HOPS_MAX: usize = 32;

/// The address that limits count by. What `X-Forwarded-For` says is believed only as far as it was
/// written by a trusted proxy: from its end, over proxies that are trusted, to the first address
/// that is not. What cannot be read ends the search at the last address that was sure: everybody
/// behind it then counts as one, which is strict and never loose.
pub fn address(peer: &SocketAddr, headers: &Headers, trusted: &[IpAddr]) -> IpAddr {
    let mut sure = peer.ip().to_canonical();
    if trusted.is_empty() || !trusted.contains(&sure) {
        return prefix(sure);
    }
    let lines: Vec<&[u8]> = headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"))
        .map(|(_, value)| value)
        .collect();
    let hops = lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
    for hop in hops.take(HOPS_MAX) {
        let Some(address) = parse(hop) else { break };
        sure = address;
        if !trusted.contains(&sure) {
            break;
        }
    }
    prefix(sure)
}

/// An address, perhaps with a port behind it, as proxies write it.
fn parse(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    let plain = text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    plain.or_else(with_port).or_else(in_brackets).map(|address| address.to_canonical())
}

/// Whoever has an IPv6 address has the other 2^64 of its network too.
fn prefix(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) if v6.is_loopback() => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(peer: &str, forwarded: &[&str], expected: &str) {
        let trusted = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let mut headers = Headers::default();
        for line in forwarded {
            headers.push(b"X-Forwarded-For", line.as_bytes());
        }
        let found = address(&peer.parse().unwrap(), &headers, &trusted);
        assert_eq!(found.to_string(), expected, "{peer} {forwarded:?}");
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        check("203.0.113.9:1", &["198.51.100.7"], "203.0.113.9");
        check("192.0.2.1:1", &["198.51.100.7"], "198.51.100.7");
        check("[::ffff:192.0.2.1]:1", &["198.51.100.7"], "198.51.100.7");
        check("192.0.2.1:1", &[], "192.0.2.1");
    }

    #[test]
    fn what_the_client_wrote_itself_stands_first_and_counts_nothing() {
        check("192.0.2.1:1", &["10.0.0.1, 198.51.100.7"], "198.51.100.7");
        check("192.0.2.1:1", &["10.0.0.1", "198.51.100.7"], "198.51.100.7");
        check("192.0.2.1:1", &["10.0.0.1, 198.51.100.7, 192.0.2.2"], "198.51.100.7");
        check("192.0.2.1:1", &["192.0.2.2"], "192.0.2.2");
    }

    #[test]
    fn what_cannot_be_read_ends_the_search() {
        check("192.0.2.1:1", &["198.51.100.7, unknown"], "192.0.2.1");
        check("192.0.2.1:1", &["198.51.100.7, junk, 192.0.2.2"], "192.0.2.2");
        check("192.0.2.1:1", &[""], "192.0.2.1");
        check("192.0.2.1:1", &["198.51.100.7:4711"], "198.51.100.7");
        check("192.0.2.1:1", &["[2001:db8::5]:4711"], "2001:db8::");
        check("192.0.2.1:1", &["[2001:db8::5]"], "2001:db8::");
    }

    #[test]
    fn ipv6_counts_by_its_network() {
        check("[2001:db8:1:2:3:4:5:6]:1", &[], "2001:db8:1:2::");
        check("[::1]:1", &[], "::1");
        check("[::ffff:203.0.113.9]:1", &[], "203.0.113.9");
    }
}
