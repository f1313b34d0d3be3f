//! The page's files.

use super::*;
use crate::net::http::{BodyLength, Headers, Method};

fn get(target: &str, fields: &[(&str, &str)]) -> Option<Response> {
    let mut headers = Headers::default();
    for (name, value) in fields {
        headers.push(name.as_bytes(), value.as_bytes());
    }
    let head = Head {
        method: Method::Get,
        target: target.into(),
        http11: true,
        headers,
        body: BodyLength::None,
        keep_alive: true,
        expects_continue: false,
    };
    Pages::default().answer(&head)
}

fn field(response: &Response, name: &str) -> String {
    let found = response.headers.iter().find(|(have, _)| *have == name);
    found.map(|(_, value)| value.clone()).unwrap_or_default()
}

#[test]
fn what_is_known_is_not_sent_again() {
    let first = get("/dashboard/app.js", &[]).unwrap();
    let tag = field(&first, "etag");
    assert_eq!((first.status, tag.len()), (200, 26), "{tag}");
    for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let again = get("/dashboard/app.js", &[("if-none-match", &known)]).unwrap();
        assert_eq!((again.status, again.body.len()), (304, 0), "{known}");
        assert_eq!(field(&again, "etag"), tag);
    }
    for other in ["", "\"x\"", "x", &tag[1..]] {
        let again = get("/dashboard/app.js", &[("if-none-match", other)]).unwrap();
        assert_eq!(again.status, 200, "{other}");
    }
    assert_ne!(field(&get("/", &[]).unwrap(), "etag"), tag, "each has its own");
}

#[test]
fn the_page_is_found_and_links_only_to_what_there_is() {
    for path in ["/", "/dashboard", "/?x=1", "/dashboard?x"] {
        assert_eq!(get(path, &[]).unwrap().status, 200, "{path}");
    }
    let folder = get("/dashboard/", &[]).unwrap();
    assert_eq!((folder.status, field(&folder, "location")), (308, "../dashboard".into()));
    for path in ["/dashboard/x", "/dashboard//", "/dashboard/../app.js", "/app.js", "/dashboardx"] {
        assert!(get(path, &[]).is_none(), "{path}");
    }
    let mut linked = 0;
    for (name, _, content) in FILES {
        let quoted = content.split('"').skip(1).step_by(2);
        let files = quoted.filter_map(|text| {
            let name = text.strip_prefix("dashboard/").or_else(|| text.strip_prefix("./"))?;
            (!name.contains(' ')).then_some(name)
        });
        for file in files {
            linked += 1;
            assert!(get(&format!("/dashboard/{file}"), &[]).is_some(), "{name} names {file}");
        }
        // Nobody else is asked, and nothing is written that the policy forbids.
        for forbidden in ["https://", "style=\"", "innerHTML", "onclick=", "eval("] {
            assert!(!content.contains(forbidden), "{name}: {forbidden}");
        }
    }
    assert!(linked >= 10, "{linked}");
}
