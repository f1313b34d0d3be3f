//! `GET /` and `/dashboard`: one page that shows everything, and the files that it is made of. They
//! are part of the program; the page asks nobody else for anything.

use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use crate::net::http::{Head, Response};

/// What the page may do: its own files, its own data, nothing else, and in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files: name below `/dashboard/`, type, content. The page itself has no name.
const FILES: [(&str, &str, &str); 12] = [
    ("", "text/html; charset=utf-8", include_str!("dashboard/index.html")),
    ("style.css", "text/css; charset=utf-8", include_str!("dashboard/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("dashboard/icon.svg")),
    ("app.js", SCRIPT, include_str!("dashboard/app.js")),
    ("chart.js", SCRIPT, include_str!("dashboard/chart.js")),
    ("charts.js", SCRIPT, include_str!("dashboard/charts.js")),
    ("dom.js", SCRIPT, include_str!("dashboard/dom.js")),
    ("feed.js", SCRIPT, include_str!("dashboard/feed.js")),
    ("figures.js", SCRIPT, include_str!("dashboard/figures.js")),
    ("format.js", SCRIPT, include_str!("dashboard/format.js")),
    ("history.js", SCRIPT, include_str!("dashboard/history.js")),
    ("sections.js", SCRIPT, include_str!("dashboard/sections.js")),
];

/// The files with their tags, which are made when somebody looks for the first time.
#[derive(Debug, Default)]
pub(super) struct Pages {
    tags: OnceLock<[String; FILES.len()]>,
}

impl Pages {
    /// The answer to a path of the page; none when there is no such file.
    pub(super) fn answer(&self, head: &Head) -> Option<Response> {
        let name = match head.path() {
            "/" | "/dashboard" => "",
            // The page's links start from the folder above.
            "/dashboard/" => return Some(Response::empty(308).with("location", "../dashboard")),
            path => path.strip_prefix("/dashboard/")?,
        };
        let index = FILES.iter().position(|(have, ..)| *have == name)?;
        let (_, content_type, content) = FILES[index];
        let tag = &self.tags.get_or_init(|| FILES.map(|(_, _, content)| tag(content)))[index];
        let known = head.headers.get_str("if-none-match").is_some_and(|tags| names(tags, tag));
        let response =
            if known { Response::empty(304) } else { Response::new(200, content_type, content) };
        let response = response
            .with("etag", tag.as_str())
            .with("cache-control", "no-cache")
            .with("content-security-policy", POLICY)
            .with("x-content-type-options", "nosniff")
            .with("referrer-policy", "no-referrer")
            .with("cross-origin-opener-policy", "same-origin")
            .with("cross-origin-resource-policy", "same-origin");
        Some(response)
    }
}

/// A strong tag: 96 bits of the content's digest.
fn tag(content: &str) -> String {
    use std::fmt::Write as _;
    let digest = Sha256::digest(content.as_bytes());
    let mut tag = String::from("\"");
    for byte in &digest[..12] {
        // Writing to a string does not fail.
        let _ = write!(tag, "{byte:02x}");
    }
    tag.push('"');
    tag
}

/// Whether a list of tags, as in `If-None-Match`, names this one; weak ones count as well.
fn names(list: &str, tag: &str) -> bool {
    let bare = |one: &str| one.trim().trim_start_matches("W/").to_owned();
    list.trim() == "*" || list.split(',').any(|one| bare(one) == tag)
}

#[cfg(test)]
mod tests;
