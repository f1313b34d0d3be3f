//! A device proves who it is: its id is the digest of its Ed25519 key, and it signs what it asks for
//! together with our challenge.

use base64::Engine;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use super::tokens::hex;

/// How far a device's clock may be from ours, in milliseconds: ten minutes either way.
pub const SKEW_MS: u64 = 10 * 60 * 1000;

/// Bytes of an Ed25519 key, and of the digest that is its id.
pub const KEY_BYTES: usize = 32;

/// What a device sends of itself.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "as in `connect.device`")]
pub struct Shown<'a> {
    pub id: &'a str,
    pub public_key: &'a str,
    pub signature: &'a str,
    pub signed_at_ms: i64,
    pub nonce: &'a str,
}

/// What it signs beside its id and the time, each as the client sent it.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "as in `connect`")]
pub struct Signed<'a> {
    pub client_id: &'a str,
    pub client_mode: &'a str,
    pub role: &'a str,
    pub scopes: &'a [&'a str],
    pub platform: &'a str,
    pub device_family: &'a str,
    /// The tokens of which the client may have signed one, or none of them (an empty text).
    pub tokens: &'a [&'a str],
}

/// Why a device is not who it says: the code in the error's details, its reason, and the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// `DEVICE_AUTH_…`.
    pub code: &'static str,
    /// The reason, as the reference implementation words it.
    pub reason: &'static str,
    /// The message, which is the close reason too.
    pub message: &'static str,
}

const ID: Wrong = Wrong {
    code: "DEVICE_AUTH_DEVICE_ID_MISMATCH",
    reason: "device-id-mismatch",
    message: "device identity mismatch",
};
const KEY: Wrong = Wrong {
    code: "DEVICE_AUTH_PUBLIC_KEY_INVALID",
    reason: "device-public-key",
    message: "device public key invalid",
};
const STALE: Wrong = Wrong {
    code: "DEVICE_AUTH_SIGNATURE_EXPIRED",
    reason: "device-signature-stale",
    message: "device signature expired",
};
const NONCE_MISSING: Wrong = Wrong {
    code: "DEVICE_AUTH_NONCE_REQUIRED",
    reason: "device-nonce-missing",
    message: "device nonce required",
};
const NONCE: Wrong = Wrong {
    code: "DEVICE_AUTH_NONCE_MISMATCH",
    reason: "device-nonce-mismatch",
    message: "device nonce mismatch",
};
const SIGNATURE: Wrong = Wrong {
    code: "DEVICE_AUTH_SIGNATURE_INVALID",
    reason: "device-signature",
    message: "device signature invalid",
};

/// A device that has proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Hexadecimal SHA-256 of its key.
    pub id: String,
    /// Its key.
    pub key: [u8; KEY_BYTES],
}

/// Whether a device is who it says: its key fits its id, it answered our challenge, lately, and the
/// signature is its own over what it asks for.
///
/// # Errors
/// What is wrong.
pub fn prove(
    shown: &Shown<'_>,
    signed: &Signed<'_>,
    nonce: &str,
    now_ms: u64,
) -> Result<Proven, Wrong> {
    let key: [u8; KEY_BYTES] =
        decoded(shown.public_key).and_then(|key| key.try_into().ok()).ok_or(KEY)?;
    let id = id(&key);
    if id != shown.id {
        return Err(ID);
    }
    let age = i128::from(now_ms) - i128::from(shown.signed_at_ms);
    if age.unsigned_abs() > u128::from(SKEW_MS) {
        return Err(STALE);
    }
    match shown.nonce.trim() {
        "" => return Err(NONCE_MISSING),
        answered if answered != nonce => return Err(NONCE),
        _ => {}
    }
    let bytes = decoded(shown.signature).ok_or(SIGNATURE)?;
    let signature = Signature::from_slice(&bytes).map_err(|_| SIGNATURE)?;
    let verifier = VerifyingKey::from_bytes(&key).map_err(|_| KEY)?;
    let fits = |text: &String| verifier.verify_strict(text.as_bytes(), &signature).is_ok();
    match texts(shown, signed).iter().any(fits) {
        true => Ok(Proven { id, key }),
        false => Err(SIGNATURE),
    }
}

/// The id of the device with this key.
pub fn id(key: &[u8; KEY_BYTES]) -> String {
    hex(&Sha256::digest(key))
}

/// What it may have signed: the texts of version 3 and 2, with each of the tokens.
fn texts(shown: &Shown<'_>, signed: &Signed<'_>) -> Vec<String> {
    let Signed { client_id, client_mode, role, .. } = signed;
    let (id, at, nonce) = (shown.id, shown.signed_at_ms, shown.nonce.trim());
    let scopes = signed.scopes.join(",");
    let platform = signed.platform.trim().to_ascii_lowercase();
    let family = signed.device_family.trim().to_ascii_lowercase();
    let of = |token: &&str| {
        let rest = format!("{id}|{client_id}|{client_mode}|{role}|{scopes}|{at}|{token}|{nonce}");
        [format!("v3|{rest}|{platform}|{family}"), format!("v2|{rest}")]
    };
    signed.tokens.iter().flat_map(of).collect()
}

/// Bytes from base64, in the alphabet for URLs or the other one, with or without padding.
pub(super) fn decoded(text: &str) -> Option<Vec<u8>> {
    let bare = text.trim_end_matches('=');
    let with = |engine: &GeneralPurpose| engine.decode(bare).ok();
    with(&URL_SAFE_NO_PAD).or_else(|| with(&STANDARD_NO_PAD))
}

/// A key as it goes on the wire.
pub fn encoded(key: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(key)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    const ASKED: Signed<'_> = Signed {
        client_id: "node-host",
        client_mode: "node",
        role: "node",
        scopes: &["a", "b"],
        platform: "Linux",
        device_family: "",
        tokens: &["t", ""],
    };

    struct Made {
        id: String,
        key: String,
        signing: SigningKey,
    }

    fn made(seed: u8) -> Made {
        let signing = SigningKey::from_bytes(&[seed; 32]);
        let raw = signing.verifying_key().to_bytes();
        Made { id: hex(&Sha256::digest(raw)), key: encoded(&raw), signing }
    }

    fn check(made: &Made, text: &str, asked: &Signed<'_>) -> Result<(), &'static str> {
        let signature = encoded(&made.signing.sign(text.as_bytes()).to_bytes());
        shown(made, &signature, NOW, "n", asked)
    }

    fn shown(
        made: &Made,
        signature: &str,
        signed_at_ms: i64,
        nonce: &str,
        asked: &Signed<'_>,
    ) -> Result<(), &'static str> {
        let shown = Shown { id: &made.id, public_key: &made.key, signature, signed_at_ms, nonce };
        let proven = prove(&shown, asked, "n", NOW as u64).map_err(|wrong| wrong.code)?;
        assert_eq!(proven.id, made.id);
        Ok(())
    }

    fn v3(id: &str, token: &str) -> String {
        format!("v3|{id}|node-host|node|node|a,b|{NOW}|{token}|n|linux|")
    }

    #[test]
    fn both_versions_of_the_signed_text_are_taken_with_each_token_or_none() {
        let made = made(1);
        for token in ["t", ""] {
            let text = v3(&made.id, token);
            assert_eq!(check(&made, &text, &ASKED), Ok(()));
            let text = text.replace("v3|", "v2|").replace("|linux|", "");
            assert_eq!(check(&made, &text, &ASKED), Ok(()));
        }
        let text = v3(&made.id, "another");
        assert_eq!(check(&made, &text, &ASKED), Err("DEVICE_AUTH_SIGNATURE_INVALID"));
    }

    #[test]
    fn whatever_was_signed_otherwise_is_refused() {
        let made = made(1);
        let text = v3(&made.id, "t");
        let others = [
            Signed { client_id: "cli", ..ASKED },
            Signed { client_mode: "ui", ..ASKED },
            Signed { role: "operator", ..ASKED },
            Signed { scopes: &["a"], ..ASKED },
            Signed { scopes: &["a", "b", "operator.admin"], ..ASKED },
            Signed { platform: "ios", ..ASKED },
            Signed { device_family: "phone", ..ASKED },
            Signed { tokens: &["other"], ..ASKED },
        ];
        for other in others {
            assert_eq!(check(&made, &text, &other), Err("DEVICE_AUTH_SIGNATURE_INVALID"));
        }
    }

    #[test]
    fn another_key_id_nonce_or_time_is_told_apart() {
        let (made, other, third) = (made(1), made(2), made(3));
        let sign = |text: &str| encoded(&made.signing.sign(text.as_bytes()).to_bytes());
        let good = sign(&v3(&made.id, "t"));
        assert_eq!(shown(&made, &good, NOW, "n", &ASKED), Ok(()));
        assert_eq!(shown(&made, &good, NOW, "m", &ASKED), Err("DEVICE_AUTH_NONCE_MISMATCH"));
        assert_eq!(shown(&made, &good, NOW, " ", &ASKED), Err("DEVICE_AUTH_NONCE_REQUIRED"));
        let skew = SKEW_MS as i64;
        for (at, ok) in [(NOW - skew, true), (NOW + skew, true), (NOW - skew - 1, false)] {
            let text = v3(&made.id, "t").replace(&NOW.to_string(), &at.to_string());
            let expected = if ok { Ok(()) } else { Err("DEVICE_AUTH_SIGNATURE_EXPIRED") };
            assert_eq!(shown(&made, &sign(&text), at, "n", &ASKED), expected);
        }
        for at in [i64::MIN, i64::MAX] {
            let expected = Err("DEVICE_AUTH_SIGNATURE_EXPIRED");
            assert_eq!(shown(&made, &good, at, "n", &ASKED), expected);
        }
        let mixed = Made { id: made.id.clone(), key: other.key.clone(), signing: made.signing };
        let expected = Err("DEVICE_AUTH_DEVICE_ID_MISMATCH");
        assert_eq!(shown(&mixed, &good, NOW, "n", &ASKED), expected);
        assert_eq!(
            shown(&other, &good, NOW, "n", &ASKED),
            Err("DEVICE_AUTH_SIGNATURE_INVALID"),
            "another device's signature"
        );
        for key in ["", "AAAA", "!", &"A".repeat(44)] {
            let wrong =
                Made { id: other.id.clone(), key: key.to_owned(), signing: third.signing.clone() };
            assert!(shown(&wrong, &good, NOW, "n", &ASKED).is_err(), "{key}");
        }
    }

    #[test]
    fn both_alphabets_of_base64_are_read_and_weak_keys_refused() {
        let mut made = made(1);
        let bytes = made.signing.sign(v3(&made.id, "").as_bytes()).to_bytes();
        made.key = STANDARD.encode(made.signing.verifying_key().to_bytes());
        assert_eq!(shown(&made, &STANDARD.encode(bytes), NOW, "n", &ASKED), Ok(()));
        // The neutral element: with it any text has a signature that others could make.
        let mut weak = [0; 32];
        weak[0] = 1;
        let made = Made {
            id: hex(&Sha256::digest(weak)),
            key: encoded(&weak),
            signing: SigningKey::from_bytes(&[1; 32]),
        };
        let mut signature = [0; 64];
        signature[0] = 1;
        let expected = Err("DEVICE_AUTH_SIGNATURE_INVALID");
        assert_eq!(shown(&made, &encoded(&signature), NOW, "n", &ASKED), expected);
    }
}
