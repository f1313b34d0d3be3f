//! Keys: who may ask, for which models, and until when.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::base::error::{Error, Kind};
use crate::config::settings::Key;
use crate::net::http::Headers;

/// The fields beside `Authorization` in which clients show a key: those of Anthropic's API, and of
/// Azure's form of the OpenAI API.
const KEY_FIELDS: [&str; 2] = ["x-api-key", "api-key"];

/// The keys of a configuration.
#[derive(Debug, Default)]
pub struct Keys {
    holders: Vec<Arc<Holder>>,
    by_name: HashMap<Arc<str>, Arc<Holder>>,
}

/// One key, and what its holder may do.
#[derive(Debug)]
pub struct Holder {
    /// The name in logs and metrics.
    pub name: Arc<str>,
    sha256: [u8; 32],
    models: Models,
    expires: Option<u64>,
    /// For [`super::lockout`]: from where, and in which hour, this key was last seen to be right.
    pub(super) seen: AtomicU64,
}

/// The models that a key may ask for.
#[derive(Clone, Debug, Default)]
pub struct Models {
    patterns: Box<[Box<str>]>,
}

impl Models {
    /// From patterns, each a name, or with `*` at its end the beginning of one. None at all means
    /// every model.
    pub fn new(patterns: &[String]) -> Self {
        Models { patterns: patterns.iter().map(|pattern| pattern.as_str().into()).collect() }
    }

    /// Whether a name may be asked for. `name:latest` is the same as `name`.
    pub fn allow(&self, name: &str) -> bool {
        let bare = |name: &str| name.strip_suffix(":latest").map_or(name.len(), str::len);
        let fits = |pattern: &str| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => pattern[..bare(pattern)] == name[..bare(name)],
        };
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| fits(pattern))
    }

    /// Whether every name may be asked for.
    pub fn all(&self) -> bool {
        self.patterns.is_empty()
    }
}

impl Holder {
    /// The models that it may ask for.
    pub fn models(&self) -> &Models {
        &self.models
    }
}

impl Keys {
    /// The configured keys; none means open (and loopback only, which the configuration checks).
    pub fn new(keys: &[Key]) -> Self {
        let holder = |key: &Key| {
            Arc::new(Holder {
                name: Arc::from(&*key.name),
                sha256: key.sha256,
                models: Models::new(&key.models),
                expires: key.expires,
                seen: AtomicU64::new(0),
            })
        };
        let holders: Vec<_> = keys.iter().map(holder).collect();
        let by_name = holders.iter().map(|holder| (Arc::clone(&holder.name), Arc::clone(holder)));
        Keys { by_name: by_name.collect(), holders }
    }

    /// Whether there is none: then nobody is asked for one.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// The holder of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Holder>> {
        self.by_name.get(name)
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// [`Kind::Unauthorized`] when it is nobody's.
    pub fn holder(&self, shown: &[u8]) -> Result<&Arc<Holder>, Error> {
        let digest = Sha256::digest(shown);
        // All keys are looked at, each in constant time, so that the time says nothing about which
        // key it was or how far a guess came.
        let mut found = None;
        for holder in &self.holders {
            if bool::from(digest[..].ct_eq(&holder.sha256[..])) {
                found = Some(holder);
            }
        }
        found.ok_or_else(|| {
            Error::new(Kind::Unauthorized, "the key that was sent is not known here")
        })
    }
}

impl Holder {
    /// Whether the key still counts, at this time in seconds since 1970.
    ///
    /// # Errors
    /// [`Kind::KeyExpired`].
    pub fn valid_at(&self, unix: u64) -> Result<(), Error> {
        match self.expires {
            Some(end) if unix >= end => {
                let context = "this key has expired; ask whoever runs the gateway for another";
                Err(Error::new(Kind::KeyExpired, context))
            }
            _ => Ok(()),
        }
    }
}

/// The key that a request shows: `Authorization: Bearer`, else one of the fields that other APIs
/// have for it. Only the first of them counts.
///
/// # Errors
/// [`Kind::Unauthorized`] when it shows none.
pub fn shown(headers: &Headers) -> Result<&[u8], Error> {
    let plain = |name: &&str| headers.get(name).filter(|value| !value.is_empty());
    let shown =
        headers.get("authorization").and_then(bearer).or_else(|| KEY_FIELDS.iter().find_map(plain));
    shown.ok_or_else(|| {
        let context = "no key was sent; send `Authorization: Bearer <key>`";
        Error::new(Kind::Unauthorized, context)
    })
}

/// The token of `Bearer <token>`; the scheme's case does not matter (RFC 9110 section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, secret: &str) -> Key {
        Key {
            name: name.to_owned(),
            sha256: Sha256::digest(secret.as_bytes()).into(),
            ..Key::default()
        }
    }

    fn check(keys: &Keys, fields: &[(&str, &str)]) -> Result<String, u16> {
        let mut headers = Headers::default();
        for (name, value) in fields {
            headers.push(name.as_bytes(), value.as_bytes());
        }
        match shown(&headers).and_then(|shown| keys.holder(shown)) {
            Ok(holder) => Ok(holder.name.to_string()),
            Err(error) => Err(error.row().status),
        }
    }

    #[test]
    fn only_a_configured_key_opens_and_it_is_known_by_its_name() {
        let keys = Keys::new(&[key("laptop", "s3cret"), key("phone", "other")]);
        let bearer = |value| check(&keys, &[("Authorization", value)]);
        assert_eq!(bearer("Bearer s3cret"), Ok("laptop".to_owned()));
        assert_eq!(bearer("bearer other"), Ok("phone".to_owned()));
        for wrong in ["", "Bearer ", "Bearer S3cret", "Basic s3cret"] {
            assert_eq!(bearer(wrong), Err(401), "{wrong:?}");
        }
        assert_eq!(check(&keys, &[]), Err(401));
        assert_eq!(keys.named("phone").map(|holder| &*holder.name), Some("phone"));
        assert!(keys.named("s3cret").is_none());
    }

    #[test]
    fn a_key_may_come_in_the_fields_of_other_apis() {
        let keys = Keys::new(&[key("laptop", "s3cret")]);
        let laptop = Ok("laptop".to_owned());
        assert_eq!(check(&keys, &[("X-Api-Key", "s3cret")]), laptop);
        assert_eq!(check(&keys, &[("api-key", "s3cret")]), laptop);
        // A proxy's own Basic does not stand in the way; a wrong Bearer does.
        let basic = ("Authorization", "Basic eDp5");
        assert_eq!(check(&keys, &[basic, ("x-api-key", "s3cret")]), laptop);
        let wrong = ("Authorization", "Bearer wrong");
        assert_eq!(check(&keys, &[wrong, ("x-api-key", "s3cret")]), Err(401));
        assert_eq!(check(&keys, &[("x-api-key", "")]), Err(401));
    }

    #[test]
    fn a_key_ends_at_its_time_and_not_before() {
        let keys = Keys::new(&[Key { expires: Some(1000), ..key("guest", "x") }]);
        let guest = keys.named("guest").unwrap();
        assert!(guest.valid_at(999).is_ok());
        assert_eq!(guest.valid_at(1000).map_err(|error| error.row().code), Err("key_expired"));
    }

    #[test]
    fn models_are_allowed_by_name_or_beginning() {
        let check = |patterns: &[&str], name: &str, allowed: bool| {
            let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
            assert_eq!(Models::new(&patterns).allow(name), allowed, "{patterns:?} {name}");
        };
        check(&[], "anything", true);
        check(&["default"], "default", true);
        check(&["default"], "default:latest", true);
        check(&["default:latest"], "default", true);
        check(&["default"], "default2", false);
        check(&["default"], "Default", false);
        check(&["local/*"], "local/llama3.2:1b", true);
        check(&["local/*"], "local2/llama", false);
        check(&["a", "b*"], "bc", true);
        check(&["*"], "x/y", true);
        check(&["local/x"], "", false);
    }
}
