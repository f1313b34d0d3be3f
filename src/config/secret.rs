//! Keys: those of clients, held as digests, and those for upstreams, read from the environment or
//! from files. No message here repeats what may be a secret.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::build::Site;
use super::report::{Report, join};
use super::settings::Secret;

/// Largest key file, in bytes. Keys are a few hundred bytes, signed tokens a few thousand.
const KEY_FILE_BYTES_MAX: u64 = 16 * 1024;
/// Largest file of certificates, in bytes; the platform's whole collection has about 220 KiB.
pub(super) const CA_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// SHA-256 of nothing at all: what an empty pipe gives.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Reads 64 hexadecimal digits.
pub(super) fn digest(text: &str) -> Result<[u8; 32], &'static str> {
    let mut digest = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return Err("is not 64 hexadecimal digits");
    }
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else {
            return Err("is not 64 hexadecimal digits");
        };
        *byte = high << 4 | low;
    }
    if text.eq_ignore_ascii_case(EMPTY) {
        return Err("is the digest of nothing");
    }
    if digest == [0; 32] {
        return Err("is only the example's placeholder");
    }
    Ok(digest)
}

/// Where a key is, and which two settings say so.
pub(super) struct Named<'a> {
    /// The setting that names a variable, and the one that names a file.
    pub keys: (&'static str, &'static str),
    /// The variable.
    pub env: Option<&'a str>,
    /// The file.
    pub file: Option<&'a str>,
}

/// A key that is not in the file itself.
pub(super) fn key(
    named: Named<'_>,
    place: &str,
    site: &Site<'_>,
    report: &mut Report,
) -> Option<Secret> {
    let (env_at, file_at) = (join(place, named.keys.0), join(place, named.keys.1));
    if named.env.is_some() && named.file.is_some() {
        report.fault(&file_at, format!("stands beside {}", named.keys.0), "keep one of the two");
    }
    let from_env = named.env.and_then(|name| {
        let upper = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        // A key that was written here by mistake is not repeated.
        let called = if name.bytes().all(upper) { format!("${name}") } else { "it".to_owned() };
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            report.fault(&env_at, "is no variable's name", "name the variable that holds the key");
            return None;
        }
        let Some(value) = site.variable(name) else {
            let remedy = "set it for the daemon, or name another variable";
            report.fault(&env_at, format!("{called} is not set in the environment"), remedy);
            return None;
        };
        fit(&value).map_err(|why| report.fault(&env_at, why, "put only the key there")).ok()
    });
    let from_file = named.file.and_then(|path| {
        let path = site.place(path);
        let (text, mode) = match read_small(&path, KEY_FILE_BYTES_MAX) {
            Ok(read) => read,
            Err(why) => {
                let text = format!("{} cannot be read: {why}", path.display());
                report.fault(&file_at, text, "mend the file, its rights or its path");
                return None;
            }
        };
        if mode & 0o077 != 0 {
            let text =
                format!("{} can be read by others (mode {:03o})", path.display(), mode & 0o777);
            report.warn(&file_at, text, format!("chmod 600 {}", path.display()));
        }
        fit(&text).map_err(|why| report.fault(&file_at, why, "put only the key there")).ok()
    });
    from_env.or(from_file)
}

/// A key must fit into a header line.
fn fit(text: &str) -> Result<Secret, &'static str> {
    let key = text.trim();
    if key.is_empty() {
        Err("holds no key")
    } else if !key.bytes().all(|b| b.is_ascii_graphic()) {
        Err("holds more than a key: blanks, several lines or characters outside ASCII")
    } else {
        Ok(Secret::new(key.to_owned()))
    }
}

/// Reads a small regular file: its text and its mode.
pub(super) fn read_small(path: &Path, bytes_max: u64) -> Result<(String, u32), String> {
    // The kind is asked first: opening a pipe would wait for its writer, for ever.
    let found = std::fs::metadata(path).map_err(|e| reason(&e))?;
    if !found.is_file() {
        return Err("not a regular file".to_owned());
    }
    let file = std::fs::File::open(path).map_err(|e| reason(&e))?;
    let mut text = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut text).map_err(|e| reason(&e))?;
    if text.len() as u64 > bytes_max {
        return Err(format!("larger than {}", super::unit::Size(bytes_max)));
    }
    match String::from_utf8(text) {
        Ok(text) => Ok((text, found.mode())),
        Err(e) => {
            let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
            let line = good.iter().filter(|b| **b == b'\n').count() + 1;
            Err(format!("not UTF-8 on line {line}"))
        }
    }
}

/// An error of the system in words that do not depend on it where there are such.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::{Loaded, parse};
    use super::*;

    /// An upstream whose key is in a file of this content and mode, named relatively.
    fn with_key_file(content: &[u8], mode: u32) -> Result<Loaded, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cloud.key");
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let text = "[[upstream]]\nname = \"c\"\nkind = \"openai\"\nurl = \"https://a.example/v1\"\n\
                    api_key_file = \"cloud.key\"\n";
        let path = folder.path().join("tidegate.toml");
        parse(text, Some(&path), &|_| None).map_err(|faults| faults.faults[0].text.clone())
    }

    #[test]
    fn a_key_file_beside_the_configuration_is_read_and_trimmed() {
        let loaded = with_key_file(b"  sk-hush \r\n", 0o600).unwrap();
        let key = loaded.config.upstream("c").unwrap().key.as_ref().unwrap();
        assert_eq!(key.expose(), "sk-hush");
        assert_eq!(loaded.warnings, []);
        assert!(!format!("{loaded:?}").contains("sk-hush"), "never printed");
    }

    #[test]
    fn a_key_file_that_others_can_read_is_warned_of() {
        for (mode, warned) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            let warnings = with_key_file(b"sk-hush", mode).unwrap().warnings;
            assert_eq!(!warnings.is_empty(), warned, "{mode:o}");
            for warning in warnings {
                assert!(warning.text.contains(&format!("(mode {mode:03o})")), "{warning}");
            }
        }
    }

    #[test]
    fn a_key_file_that_holds_something_else_is_refused_without_showing_it() {
        let check = |content: &[u8], why: &str| {
            let told = with_key_file(content, 0o600).unwrap_err();
            assert!(told.contains(why) && !told.contains("hush"), "{told}");
        };
        check(b" \n", "holds no key");
        check(b"hush hush", "holds more than a key");
        check(b"hush\nhush", "holds more than a key");
        check("hüsh".as_bytes(), "holds more than a key");
        check(b"hush\xff", "not UTF-8 on line 1");
        check(&vec![b'h'; 16 * 1024 + 1], "larger than 16KiB");
    }

    #[test]
    fn the_largest_key_file_is_still_taken() {
        assert!(with_key_file(&vec![b'h'; 16 * 1024], 0o600).is_ok());
    }

    #[test]
    fn digests_are_64_digits_of_either_case_and_not_those_of_nothing() {
        let check = |text: &str, good: bool| assert_eq!(digest(text).is_ok(), good, "{text}");
        check(&"aB".repeat(32), true);
        check(&"ab".repeat(31), false);
        check(&"ab".repeat(33), false);
        check(&"ag".repeat(32), false);
        check(&"é".repeat(32), false);
        check(&"0".repeat(64), false);
        check(EMPTY, false);
        check(&EMPTY.to_uppercase(), false);
        assert_eq!(digest(&format!("01{}", "ff".repeat(31))).unwrap()[..2], [1, 255]);
    }
}
