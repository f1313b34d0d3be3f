//! `[[notify]]`: channels, their addresses and keys.

use std::sync::Arc;

use super::severity_of;
use crate::config::build::{Site, ca_file, plain_name, unique};
use crate::config::raw::{Raw, RawNotify, RawNotifyKind};
use crate::config::report::{Report, join};
use crate::config::secret::{self, Named};
use crate::config::settings::alerts::{Channel, ChannelKind, Endpoint};
use crate::config::settings::{BaseUrl, Secret};
use crate::config::unit::Span;
use crate::config::url::Refusal;

impl Endpoint {
    /// Takes an address apart, its query too.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let (before, query) = match text.find('?') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let query_fits = query.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if !query_fits {
            return Err(("holds a fragment or characters outside ASCII", "write it without them"));
        }
        let url = BaseUrl::parse(before)?;
        let slash = if before.ends_with('/') && !url.path.is_empty() { "/" } else { "" };
        Ok(Endpoint { url, rest: format!("{slash}{query}") })
    }
}

/// The channels; those that are not whole are told and left out.
pub(super) fn channels(raw: &Raw, site: &Site<'_>, report: &mut Report) -> Vec<Arc<Channel>> {
    unique("notify", "name", raw.notify.iter().map(|channel| channel.name.as_str()), report);
    let one =
        |(index, raw): (usize, &RawNotify)| channel(raw, &format!("notify.{index}"), site, report);
    raw.notify.iter().enumerate().filter_map(one).map(Arc::new).collect()
}

fn channel(raw: &RawNotify, place: &str, site: &Site<'_>, report: &mut Report) -> Option<Channel> {
    let at = |key: &str| join(place, key);
    plain_name(&raw.name, &at("name"), report);
    let kind = match raw.kind? {
        RawNotifyKind::Ntfy => ChannelKind::Ntfy,
        RawNotifyKind::Sentry => ChannelKind::Sentry,
        RawNotifyKind::Alertmanager => ChannelKind::Alertmanager,
        RawNotifyKind::Webhook => ChannelKind::Webhook,
    };
    fits_kind(raw, kind, place, report);
    let named = Named {
        keys: ("key_env", "key_file"),
        env: raw.key_env.as_deref(),
        file: raw.key_file.as_deref(),
    };
    let key = secret::key(named, place, site, report);
    let proxy = raw.proxy.as_ref().and_then(|text| {
        BaseUrl::parse(text).map_err(|(why, remedy)| report.fault(&at("proxy"), why, remedy)).ok()
    });
    let (ca_file, ca_digest) =
        ca_file(raw.ca_file.as_deref(), &at("ca_file"), site, report).unzip();
    let (endpoint, key) = if kind == ChannelKind::Sentry {
        let (endpoint, public) = dsn(key?.expose()).or_else(|| {
            let text = "holds no DSN";
            let remedy = "put it there as Sentry shows it: https://KEY@HOST/PROJECT";
            let key = if raw.key_env.is_some() { "key_env" } else { "key_file" };
            report.fault(&at(key), text, remedy);
            None
        })?;
        (endpoint, Some(public))
    } else {
        let parsed = Endpoint::parse(raw.url.as_ref()?);
        (parsed.map_err(|(why, remedy)| report.fault(&at("url"), why, remedy)).ok()?, key)
    };
    Some(Channel {
        name: raw.name.clone(),
        kind,
        endpoint,
        topic: raw.topic.clone().unwrap_or_default(),
        key,
        ca_file,
        ca_digest,
        proxy,
        severities: raw.severities.iter().copied().map(severity_of).collect(),
        per_minute: raw.per_minute,
        timeout: raw.timeout.0,
        resend: raw.resend.unwrap_or(Span::seconds(60)).0,
    })
}

/// `https://PUBLIC@HOST[:PORT][/PATH]/PROJECT` as the address of its envelopes and the public key.
fn dsn(text: &str) -> Option<(Endpoint, Secret)> {
    let (scheme, rest) = text.split_once("://")?;
    let (keys, place) = rest.split_once('@')?;
    // An old DSN has a secret key behind the public one, which nobody needs any more.
    let public = keys.split(':').next().filter(|public| !public.is_empty())?;
    let mut url = BaseUrl::parse(&format!("{scheme}://{place}")).ok()?;
    let (path, project) = url.path.rsplit_once('/')?;
    if project.is_empty() {
        return None;
    }
    url.path = format!("{path}/api/{project}/envelope");
    Some((Endpoint { url, rest: "/".to_owned() }, Secret::new(public.to_owned())))
}

/// A setting that would silently do nothing is refused, and one that is needed must be there.
fn fits_kind(raw: &RawNotify, kind: ChannelKind, place: &str, report: &mut Report) {
    let mut only = |key: &str, set: bool, fits: bool| {
        if set && !fits {
            let text = format!("has no meaning for kind = \"{}\"", kind.as_str());
            report.fault(&join(place, key), text, "take it out");
        }
    };
    let sentry = kind == ChannelKind::Sentry;
    only("url", raw.url.is_some(), !sentry);
    only("topic", raw.topic.is_some(), kind == ChannelKind::Ntfy);
    only("resend", raw.resend.is_some(), kind == ChannelKind::Alertmanager);
    let mut needed = |key: &str, set: bool, remedy: &str| {
        if !set {
            report.fault(&join(place, key), "is missing", remedy);
        }
    };
    needed("url", sentry || raw.url.is_some(), "write url = \"https://…\"");
    let topic = kind != ChannelKind::Ntfy || raw.topic.is_some();
    needed("topic", topic, "write the topic that the phone listens to");
    let key = !sentry || raw.key_env.is_some() || raw.key_file.is_some();
    needed("key_env", key, "name the variable, or by key_file the file, that holds the DSN");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dsn_is_taken_apart_and_others_are_not() {
        let check = |text: &str, expected: Option<(&str, u16, &str, &str)>| {
            let found = dsn(text);
            let found = found.as_ref().map(|(endpoint, public)| {
                let url = &endpoint.url;
                (url.host.as_str(), url.port, url.path.as_str(), public.expose())
            });
            assert_eq!(found, expected, "{text}");
        };
        check(
            "https://abc@o1.ingest.example/42",
            Some(("o1.ingest.example", 443, "/api/42/envelope", "abc")),
        );
        check(
            "http://abc:old@127.0.0.1:9000/base/7",
            Some(("127.0.0.1", 9000, "/base/api/7/envelope", "abc")),
        );
        for text in
            ["", "abc", "https://o1.example/42", "https://@h/1", "https://a@h", "https://a@h/"]
        {
            check(text, None);
        }
    }

    #[test]
    fn an_address_keeps_its_slash_and_its_query() {
        let check = |text: &str, path: &str, rest: &str| {
            let found = Endpoint::parse(text).unwrap();
            assert_eq!((found.url.path.as_str(), found.rest.as_str()), (path, rest), "{text}");
        };
        check("https://h/a?b=c&d", "/a", "?b=c&d");
        check("https://h/a/", "/a", "/");
        check("https://h/", "", "");
        check("https://h", "", "");
        assert!(Endpoint::parse("https://h/a?b#c").is_err());
        assert!(Endpoint::parse("ftp://h/").is_err());
    }
}
