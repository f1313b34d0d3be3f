//! `tidegate key`.

use std::fs::File;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use sha2::{Digest, Sha256};

use super::output::{answer, remark};
use crate::base::exit::Exit;

/// Random bytes of a key: nobody guesses 256 bits.
const KEY_BYTES: usize = 32;

/// Make a random key for a client
///
/// The key goes to standard error, this once: give it to the client. Its `[[key]]` entry goes to
/// standard output, so that `tidegate key laptop >> tidegate.toml` adds it to a configuration; the
/// entry holds only the key's digest.
#[derive(Debug, Args)]
pub(super) struct Key {
    /// Who will use it: the name in logs and metrics
    #[arg(default_value = "client", value_parser = name)]
    name: String,
}

fn name(text: &str) -> Result<String, &'static str> {
    match text.chars().count() {
        1..=64 if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err("write 1 to 64 characters, without control characters"),
    }
}

impl Key {
    pub(super) fn execute(self) -> Exit {
        let mut random = [0; KEY_BYTES];
        if let Err(e) = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random))
        {
            remark(&format!("tidegate: reading /dev/urandom: {e}"));
            return Exit::Failure;
        }
        let key = format!("tg-{}", URL_SAFE_NO_PAD.encode(random));
        remark(&format!("key (shown this once): {key}"));
        answer(&entry(&self.name, &key))
    }
}

/// The key's entry in a configuration.
fn entry(name: &str, key: &str) -> String {
    let mut sha256 = String::with_capacity(64);
    for byte in Sha256::digest(key.as_bytes()) {
        sha256.push_str(&format!("{byte:02x}"));
    }
    format!("\n[[key]]\nname = {}\nsha256 = \"{sha256}\"\n", toml::Value::from(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn an_entry_is_taken_by_the_configuration_with_the_digest_of_its_key() {
        for name in ["laptop", "my \"own\" \\ box"] {
            let loaded = config::parse(&entry(name, "abc"), None, &|_| None).unwrap();
            assert_eq!(loaded.config.keys[0].name, name);
            // The digest of "abc" as FIPS 180-2 gives it.
            assert_eq!(loaded.config.keys[0].sha256[..4], [0xba, 0x78, 0x16, 0xbf]);
        }
    }

    #[test]
    fn names_that_a_configuration_refuses_are_refused_here() {
        assert!(name("").is_err() && name(&"x".repeat(65)).is_err() && name("a\nb").is_err());
        assert!(name(&"x".repeat(64)).is_ok());
    }
}
