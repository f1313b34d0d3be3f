//! Queries of our own routes: `name=value`, joined by `&`, in percent encoding.

/// Longest value in a query, in bytes: the name of a key has at most 64 characters, that of a model
/// seldom more.
pub const VALUE_BYTES_MAX: usize = 256;

/// The pairs of a query, their values decoded; `None` in the place of a value that is not proper.
pub fn pairs(query: &str) -> impl Iterator<Item = (&str, Option<String>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name, decoded(value))
    })
}

/// A value without its percent encoding; `None` when it is too long or no text.
pub fn decoded(value: &str) -> Option<String> {
    let mut out = Vec::with_capacity(value.len().min(VALUE_BYTES_MAX));
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        if out.len() == VALUE_BYTES_MAX {
            return None;
        }
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

/// For a query: everything but letters, digits and dashes in percent encoding.
pub fn encoded(value: &str) -> String {
    let mut out = String::new();
    for byte in value.bytes() {
        match byte {
            b'-' => out.push('-'),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A name out of a query, for a sentence.
pub fn shown(name: &str) -> String {
    name.chars().take(32).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back() {
        let text = "my \"own\" b\u{f6}x-1";
        assert_eq!(encoded(text), "my%20%22own%22%20b%C3%B6x-1");
        assert_eq!(decoded(&encoded(text)).as_deref(), Some(text));
        let read: Vec<_> = pairs("a=1&&b&c=%zz&d=x%3Dy").collect();
        let value = |text: &str| Some(text.to_owned());
        assert_eq!(read, [("a", value("1")), ("b", value("")), ("c", None), ("d", value("x=y"))]);
        assert_eq!(decoded(&"x".repeat(VALUE_BYTES_MAX + 1)), None);
        assert_eq!(decoded("%C3"), None);
    }
}
