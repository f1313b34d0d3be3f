//! Which requests come from our own page, and which from pages of other sites.

use std::net::{IpAddr, Ipv6Addr};

use crate::net::http::Head;

/// Whether a request does not come from a page of another site, as far as the browser says: no
/// `Origin` but our own, and by `Sec-Fetch-Site` ours, or no page's at all, or a person who follows
/// a link. An image or a script of another site has no `Origin`; it could not read an answer, but
/// it could hold one of the few places for live pages.
pub(super) fn from_ourselves(head: &Head, host: &str) -> bool {
    let field = |name| head.headers.get(name);
    if let Some(origin) = field("origin") {
        let own = |scheme: &str| origin.strip_prefix(scheme.as_bytes());
        let named = own("http://").or_else(|| own("https://"));
        if host.is_empty()
            || !named.is_some_and(|named| named.eq_ignore_ascii_case(host.as_bytes()))
        {
            return false;
        }
    }
    let link = field("sec-fetch-mode") == Some(b"navigate")
        && field("sec-fetch-dest").is_none_or(|dest| dest == b"document");
    match field("sec-fetch-site") {
        Some(b"cross-site" | b"same-site") => link,
        _ => true,
    }
}

/// Whether a host is an address or `localhost`, with or without a port.
pub(super) fn names_no_site(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.split_once(']').map(|(address, _)| address);
        return address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}
