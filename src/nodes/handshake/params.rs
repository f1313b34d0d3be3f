//! What a client says in `connect`, read leniently: ids and modes that are not known are taken,
//! strings are cut, lists bounded. None of it is believed.

use std::borrow::Cow;

use serde::Deserialize;

use crate::nodes::device;
use crate::nodes::who::Client;

/// Longest of a client's own words that is kept, in characters.
pub const WORD_CHARS_MAX: usize = 128;

/// Most capabilities that are kept.
pub const CAPS_MAX: usize = 64;

/// Most commands that are kept.
pub const COMMANDS_MAX: usize = 256;

/// Most scopes that are looked at.
const SCOPES_MAX: usize = 64;

/// The parameters of `connect`. What is not here is not looked at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Params<'a> {
    pub(super) min_protocol: u32,
    pub(super) max_protocol: u32,
    #[serde(borrow, default)]
    pub(super) client: RawClient<'a>,
    #[serde(borrow, default)]
    pub(super) role: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    scopes: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow, default)]
    caps: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow, default)]
    commands: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow, default)]
    device: Option<RawDevice<'a>>,
    #[serde(borrow, default)]
    auth: Option<RawAuth<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawClient<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    mode: Option<Cow<'a, str>>,
    #[serde(borrow)]
    version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    platform: Option<Cow<'a, str>>,
    #[serde(borrow)]
    display_name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    device_family: Option<Cow<'a, str>>,
    #[serde(borrow)]
    model_identifier: Option<Cow<'a, str>>,
    #[serde(borrow)]
    instance_id: Option<Cow<'a, str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawDevice<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    public_key: Cow<'a, str>,
    #[serde(borrow)]
    signature: Cow<'a, str>,
    signed_at: i64,
    #[serde(borrow)]
    nonce: Cow<'a, str>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawAuth<'a> {
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    device_token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    bootstrap_token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    password: Option<Cow<'a, str>>,
}

impl std::fmt::Debug for RawAuth<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secrets)")
    }
}

impl<'a> Params<'a> {
    /// From JSON text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &'a str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| format!("invalid connect params: {error}"))
    }

    /// The mode, as it came.
    pub(super) fn mode(&self) -> &str {
        self.client.mode.as_deref().unwrap_or_default()
    }

    /// The scopes as they came; none when the client does not speak of them.
    pub(super) fn scopes(&self) -> Option<Vec<&str>> {
        let scopes = self.scopes.as_ref()?;
        Some(scopes.iter().map(|scope| &**scope).collect())
    }

    /// The shared token, key or device token that is shown in `auth.token`.
    pub(super) fn token(&self) -> Option<&str> {
        shown(self.auth.as_ref()?.token.as_deref())
    }

    /// The device token.
    pub(super) fn device_token(&self) -> Option<&str> {
        shown(self.auth.as_ref()?.device_token.as_deref())
    }

    /// The password.
    pub(super) fn password(&self) -> Option<&str> {
        shown(self.auth.as_ref()?.password.as_deref())
    }

    /// The device, if it is who it says; none when there is none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn proven(
        &self,
        nonce: &str,
        now_ms: u64,
    ) -> Result<Option<device::Proven>, device::Wrong> {
        let Some(device) = &self.device else { return Ok(None) };
        let scopes = self.scopes().unwrap_or_default();
        let bootstrap = || shown(self.auth.as_ref()?.bootstrap_token.as_deref());
        let mut tokens: Vec<&str> =
            [self.token(), self.device_token()].into_iter().flatten().collect();
        if tokens.is_empty() {
            tokens.push(bootstrap().unwrap_or_default());
        }
        let signed = device::Signed {
            client_id: raw_word(&self.client.id),
            client_mode: self.mode(),
            role: self.role.as_deref().unwrap_or("operator"),
            scopes: &scopes,
            platform: raw_word(&self.client.platform),
            device_family: raw_word(&self.client.device_family),
            tokens: &tokens,
        };
        let shown = device::Shown {
            id: &device.id,
            public_key: &device.public_key,
            signature: &device.signature,
            signed_at_ms: device.signed_at,
            nonce: &device.nonce,
        };
        device::prove(&shown, &signed, nonce, now_ms).map(Some)
    }

    /// What the client says of itself, cut.
    pub(super) fn kept_client(&self) -> Client {
        let RawClient {
            id,
            mode,
            version,
            platform,
            display_name,
            device_family,
            model_identifier,
            instance_id,
        } = &self.client;
        let must = |word: &Option<Cow<'_, str>>| cut(raw_word(word)).unwrap_or_default();
        let may = |word: &Option<Cow<'_, str>>| cut(raw_word(word));
        Client {
            id: must(id),
            mode: must(mode),
            version: must(version),
            platform: must(platform),
            display_name: may(display_name),
            device_family: may(device_family),
            model_identifier: may(model_identifier),
            instance: may(instance_id),
            public_key: None,
        }
    }

    /// What a node offers, cut.
    pub(super) fn kept_caps(&self) -> Box<[Box<str>]> {
        list(self.caps.as_deref(), CAPS_MAX)
    }

    /// The commands that a node offers, cut.
    pub(super) fn kept_commands(&self) -> Box<[Box<str>]> {
        list(self.commands.as_deref(), COMMANDS_MAX)
    }

    /// The scopes that are asked for, no more of them than can be meant.
    pub(super) fn asked_scopes(&self) -> Option<impl Iterator<Item = &str>> {
        Some(self.scopes.as_ref()?.iter().take(SCOPES_MAX).map(|scope| &**scope))
    }
}

fn raw_word<'a>(word: &'a Option<Cow<'_, str>>) -> &'a str {
    word.as_deref().unwrap_or_default()
}

/// A secret that is shown: an empty one is none.
fn shown(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

/// A word for keeping: no control characters, not too long, none when nothing is left.
fn cut(word: &str) -> Option<Box<str>> {
    let kept: String =
        word.trim().chars().filter(|c| !c.is_control()).take(WORD_CHARS_MAX).collect();
    (!kept.is_empty()).then(|| kept.into_boxed_str())
}

/// A list for keeping: each word once.
fn list(words: Option<&[Cow<'_, str>]>, max: usize) -> Box<[Box<str>]> {
    let mut kept: Vec<Box<str>> = Vec::new();
    for word in words.unwrap_or_default().iter().filter_map(|word| cut(word)) {
        if kept.len() == max {
            break;
        }
        if !kept.contains(&word) {
            kept.push(word);
        }
    }
    kept.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_taken_and_what_is_too_much_is_cut() {
        let long = "x".repeat(500);
        let commands: Vec<String> = (0..1000).map(|n| format!("c{n}")).collect();
        let text = serde_json::json!({
            "minProtocol": 3, "maxProtocol": 4, "future": [1],
            "client": {"id": "my-own", "mode": "strange", "platform": format!("a\u{1b}[31m{long}"), "new": 1},
            "commands": commands, "caps": ["a", "a", "", "b"], "auth": {"token": " ", "password": "p"},
            "permissions": {"x": true}, "scopes": ["operator.read"],
        })
        .to_string();
        let params = Params::parse(&text).unwrap();
        let client = params.kept_client();
        assert_eq!((&*client.id, &*client.mode), ("my-own", "strange"));
        assert!(client.platform.starts_with("a[31mx"), "no control characters");
        assert_eq!(client.platform.chars().count(), WORD_CHARS_MAX);
        assert_eq!(params.kept_commands().len(), COMMANDS_MAX);
        assert_eq!(params.kept_caps().len(), 2);
        assert_eq!((params.token(), params.password()), (None, Some("p")));
        assert!(!format!("{params:?}").contains("\"p\""), "no secret in a log");
        for wrong in ["{}", "[]", "1", r#"{"minProtocol":-1,"maxProtocol":4}"#] {
            assert!(Params::parse(wrong).is_err(), "{wrong}");
        }
    }
}
