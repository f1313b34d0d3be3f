//! The syntax of `Host`.

use std::net::Ipv6Addr;

/// Longest host with port, in bytes: a DNS name has at most 253, and `:65535` follows.
const HOST_BYTES_MAX: usize = 259;

/// Whether `value` is a host name or address with an optional port.
///
/// Narrower than RFC 3986: no percent-encoding, no commas and the like, no empty port. Names that
/// reach a gateway have none of them, and each is a way to be understood differently by two servers.
pub(super) fn valid(value: &[u8]) -> bool {
    if value.len() > HOST_BYTES_MAX {
        return false;
    }
    let Ok(text) = std::str::from_utf8(value) else { return false };
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else { return false };
        return address.parse::<Ipv6Addr>().is_ok() && (rest.is_empty() || port(rest));
    }
    let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
    let in_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    !name.is_empty() && name.bytes().all(in_name) && (rest.is_empty() || port(rest))
}

/// Whether `text` is a colon and a port.
fn port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| {
        digits.len() <= 5
            && digits.bytes().all(|b| b.is_ascii_digit())
            && digits.parse::<u16>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_with_an_optional_port() {
        for good in ["localhost", "a_b.example:80", "127.0.0.1:18789", "[::1]", "[::1]:65535", "x."]
        {
            assert!(valid(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ":80",
            "a:",
            "a:65536",
            "a:+80",
            "a b",
            "a,b",
            "a/b",
            "u@a",
            "[::1",
            "[::1]x",
            "::1",
            "[1.2.3.4]",
            "a:80:80",
            "a%20b",
            "é",
        ] {
            assert!(!valid(bad.as_bytes()), "{bad}");
        }
        assert!(valid("a".repeat(259).as_bytes()));
        assert!(!valid("a".repeat(260).as_bytes()));
    }
}
