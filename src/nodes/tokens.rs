//! Secrets: made here, kept as digests, compared in constant time.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::base::error::{Error, Kind};

/// Random bytes of a device token: nobody guesses 256 bits.
const TOKEN_BYTES: usize = 32;

/// The SHA-256 of a secret. It opens nothing, and is compared in constant time.
#[derive(Clone, Copy)]
pub struct Digest([u8; 32]);

impl Digest {
    /// That of a secret.
    pub fn of(secret: &str) -> Digest {
        Digest(Sha256::digest(secret.as_bytes()).into())
    }

    /// From its bytes; none when they are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Digest> {
        bytes.try_into().ok().map(Digest)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether it is that of the same secret.
    pub fn same(&self, other: &Digest) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest")
    }
}

/// A new device token: 43 characters.
///
/// # Errors
/// When the system has no random bytes.
pub fn token() -> Result<String, Error> {
    Ok(URL_SAFE_NO_PAD.encode(random::<TOKEN_BYTES>()?))
}

/// A number that was never used before, as text of 36 characters in the form of a UUID (RFC 9562,
/// version 4): for challenges, connections and requests to be paired.
///
/// # Errors
/// When the system has no random bytes.
pub fn fresh() -> Result<String, Error> {
    let mut bytes = random::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(parts.join("-"))
}

/// Bytes in hexadecimal digits, lower case.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 0xf)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(Errno::INTR) => {}
            Err(error) => {
                let text = format!("the system has no random bytes: {error}");
                return Err(Error::new(Kind::Internal, text));
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_never_the_same_and_only_the_same_secret_is() {
        let (one, other) = (token().unwrap(), token().unwrap());
        assert_eq!(one.len(), 43);
        assert!(Digest::of(&one).same(&Digest::of(&one)));
        assert!(!Digest::of(&one).same(&Digest::of(&other)));
        let kept = Digest::of(&one);
        assert!(Digest::from_bytes(kept.bytes()).unwrap().same(&kept));
        assert!(Digest::from_bytes(&[1; 31]).is_none());
        assert_eq!(format!("{kept:?}"), "Digest", "nothing of it gets into a log");
    }

    #[test]
    fn fresh_numbers_have_the_form_of_a_uuid() {
        let text = fresh().unwrap();
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(text.as_bytes()[14], b'4');
        assert_ne!(text, fresh().unwrap());
    }
}
