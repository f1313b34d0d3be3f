//! Keys: who may ask.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::base::error::{Error, Kind};
use crate::config::settings::Key;
use crate::net::http::Headers;

/// The keys of a configuration.
#[derive(Debug)]
pub struct Keys {
    keys: Vec<(Arc<str>, [u8; 32])>,
}

impl Keys {
    /// The configured keys; none means open (and loopback only, which the configuration checks).
    pub fn new(keys: &[Key]) -> Self {
        let keys = keys.iter().map(|key| (Arc::from(&*key.name), key.sha256)).collect();
        Keys { keys }
    }

    /// The name of the key that was shown. Without keys nobody is asked for one, and one that is
    /// shown is ignored.
    ///
    /// # Errors
    /// [`Kind::Unauthorized`] when there are keys and none of them was shown.
    pub fn check(&self, headers: &Headers) -> Result<Option<Arc<str>>, Error> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        let Some(shown) = headers.get("authorization").and_then(bearer) else {
            let context = "no key was sent; send `Authorization: Bearer <key>`";
            return Err(Error::new(Kind::Unauthorized, context));
        };
        let digest = Sha256::digest(shown);
        // All keys are looked at, each in constant time, so that the time says nothing about which
        // key it was or how far a guess came.
        let mut found = None;
        for (name, expected) in &self.keys {
            if bool::from(digest[..].ct_eq(&expected[..])) {
                found = Some(Arc::clone(name));
            }
        }
        match found {
            Some(name) => Ok(Some(name)),
            None => Err(Error::new(Kind::Unauthorized, "the key that was sent is not known here")),
        }
    }
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

    fn keys() -> Keys {
        let key = |name: &str, secret: &str| Key {
            name: name.to_owned(),
            sha256: Sha256::digest(secret.as_bytes()).into(),
        };
        Keys::new(&[key("laptop", "s3cret"), key("phone", "other")])
    }

    fn check(keys: &Keys, value: Option<&str>) -> Result<Option<String>, u16> {
        let mut headers = Headers::default();
        if let Some(value) = value {
            headers.push(b"Authorization", value.as_bytes());
        }
        match keys.check(&headers) {
            Ok(name) => Ok(name.map(|name| name.to_string())),
            Err(error) => Err(error.row().status),
        }
    }

    #[test]
    fn only_a_configured_key_opens_and_it_is_known_by_its_name() {
        let keys = keys();
        assert_eq!(check(&keys, Some("Bearer s3cret")), Ok(Some("laptop".to_owned())));
        assert_eq!(check(&keys, Some("bearer other")), Ok(Some("phone".to_owned())));
        for wrong in [None, Some(""), Some("Bearer "), Some("Bearer S3cret"), Some("Basic s3cret")]
        {
            assert_eq!(check(&keys, wrong), Err(401), "{wrong:?}");
        }
    }

    #[test]
    fn without_keys_any_bearer_is_ignored() {
        assert_eq!(check(&Keys::new(&[]), Some("Bearer ollama")), Ok(None));
        assert_eq!(check(&Keys::new(&[]), None), Ok(None));
    }
}
