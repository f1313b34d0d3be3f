//! What a body may be, and who may send one from a web page.
//!
//! A page from anywhere can make its visitor's browser send a "simple" request here: a `POST` of a
//! form or of plain text, without asking first. So what a browser sends has to be JSON, for which it
//! asks first, and is refused when it says that another site sent it. Programs are no browsers:
//! `curl -d` sends a form's type, some send none, and Node's `fetch` sends plain text. Ollama takes
//! all of these, and so does this gateway, as long as nothing in the request says "browser".

use crate::base::error::{Error, Kind};
use crate::net::http::{BodyLength, Head, Method};

/// What the type of a body says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Json,
    /// What programs send for JSON without meaning it, and browsers without asking.
    Simple,
    Other,
}

/// Checks a request that may carry a body. `own` is whether its `Origin` is a configured one.
///
/// # Errors
/// [`Kind::OriginNotAllowed`], [`Kind::MediaType`].
pub fn check(head: &Head, own: bool) -> Result<(), Error> {
    if head.method != Method::Post {
        return Ok(());
    }
    // `same-origin` is a page of ours, `none` is the user's own doing.
    let site = head.headers.get("sec-fetch-site");
    let foreign = site.is_some_and(|site| !matches!(site, b"same-origin" | b"none"));
    if foreign && !own {
        let context = "web pages of other sites may not use the gateway; \
                       add their Origin to server.allowed_origins";
        return Err(Error::new(Kind::OriginNotAllowed, context));
    }
    if head.body == BodyLength::None {
        return Ok(());
    }
    let browser = site.is_some() || head.headers.get("origin").is_some();
    match says(head.headers.get("content-type")) {
        Says::Json => Ok(()),
        Says::Simple if !browser => Ok(()),
        _ => {
            let context = "a body is JSON in UTF-8; send `Content-Type: application/json`";
            Err(Error::new(Kind::MediaType, context))
        }
    }
}

fn says(value: Option<&[u8]>) -> Says {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Says::Simple };
    let Ok(text) = std::str::from_utf8(value) else { return Says::Other };
    let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
    let essence = essence.trim().to_ascii_lowercase();
    let charset = parameters.split(';').filter_map(|parameter| parameter.split_once('='));
    let mut charset = charset.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    let utf8 = charset.all(|(_, value)| {
        let value = value.trim().trim_matches('"');
        value.eq_ignore_ascii_case("utf-8") || value.eq_ignore_ascii_case("utf8")
    });
    match &*essence {
        _ if !utf8 => Says::Other,
        "application/json" | "text/json" => Says::Json,
        "application/x-www-form-urlencoded" | "text/plain" => Says::Simple,
        other if other.starts_with("application/") && other.ends_with("+json") => Says::Json,
        _ => Says::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::Headers;

    #[track_caller]
    fn check_of(fields: &[(&str, &str)], own: bool, expected: Result<(), u16>) {
        let mut headers = Headers::default();
        for (name, value) in fields {
            headers.push(name.as_bytes(), value.as_bytes());
        }
        let head = Head {
            method: Method::Post,
            target: "/api/chat".into(),
            http11: true,
            headers,
            body: BodyLength::Exact(2),
            keep_alive: true,
            expects_continue: false,
        };
        let found = check(&head, own).map_err(|error| error.row().status);
        assert_eq!(found, expected, "{fields:?}");
    }

    #[test]
    fn programs_may_send_json_under_the_types_that_they_are_known_to_write() {
        for good in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/vnd.api+json",
            "text/json",
            "application/x-www-form-urlencoded",
            "text/plain;charset=UTF-8",
            "",
        ] {
            check_of(&[("content-type", good)], false, Ok(()));
        }
        check_of(&[], false, Ok(()));
        for bad in [
            "multipart/form-data; boundary=x",
            "application/octet-stream",
            "application/xml",
            "application/json; charset=utf-16",
            "application/json; charset=iso-8859-1",
            "json",
            "text/html",
        ] {
            check_of(&[("content-type", bad)], false, Err(415));
        }
    }

    #[test]
    fn browsers_must_send_json_and_come_from_a_configured_page() {
        let json = ("content-type", "application/json");
        let form = ("content-type", "application/x-www-form-urlencoded");
        let origin = ("origin", "https://chat.example.org");
        check_of(&[origin, json], true, Ok(()));
        check_of(&[origin, form], true, Err(415));
        check_of(&[origin, ("content-type", "text/plain")], true, Err(415));
        check_of(&[origin], true, Err(415));
        for site in ["cross-site", "same-site", "anything"] {
            check_of(&[("sec-fetch-site", site), json], false, Err(403));
            check_of(&[("sec-fetch-site", site), origin, json], true, Ok(()));
            check_of(&[("sec-fetch-site", site), origin, form], true, Err(415));
        }
        check_of(&[("sec-fetch-site", "same-origin"), json], false, Ok(()));
        check_of(&[("sec-fetch-site", "same-origin"), form], false, Err(415));
        check_of(&[("sec-fetch-site", "none"), form], false, Err(415));
    }
}
