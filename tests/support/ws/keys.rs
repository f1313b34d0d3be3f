//! A device's identity: Ed25519, with another library than the program's.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair};
use sha2::{Digest, Sha256};

/// A device's key pair.
pub struct Keys(Ed25519KeyPair);

impl Keys {
    /// The device number `number`: the same keys each time.
    pub fn new(number: u64) -> Self {
        let seed: [u8; 32] = Sha256::digest(format!("device {number}")).into();
        Keys(Ed25519KeyPair::from_seed_unchecked(&seed).unwrap())
    }

    /// Its id: the hexadecimal SHA-256 of the public key.
    pub fn id(&self) -> String {
        Sha256::digest(self.0.public_key()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Its public key on the wire.
    pub fn public(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.public_key())
    }

    /// A signature on the wire.
    pub fn sign(&self, text: &str) -> String {
        URL_SAFE_NO_PAD.encode(self.0.sign(text.as_bytes()))
    }
}
