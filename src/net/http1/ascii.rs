//! Classes of bytes, and the search for the first byte that a field value may not hold.

/// May be in a token (RFC 9110, 5.6.2).
const TOKEN: u8 = 1;
/// May be in a request target: visible ASCII without `#`, which is for fragments only.
const TARGET: u8 = 2;

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "the loop ends at 255")]
        let b = byte as u8;
        let mut class = 0;
        let symbol = matches!(
            b,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        );
        if b.is_ascii_alphanumeric() || symbol {
            class |= TOKEN;
        }
        if b.is_ascii_graphic() && b != b'#' {
            class |= TARGET;
        }
        table[byte] = class;
        byte += 1;
    }
    table
}

static CLASSES: [u8; 256] = classes();

/// Whether `b` may be in a token.
#[inline]
pub(super) fn is_token(b: u8) -> bool {
    CLASSES[b as usize] & TOKEN != 0
}

/// Whether `b` may be in a request target.
#[inline]
pub(super) fn is_target(b: u8) -> bool {
    CLASSES[b as usize] & TARGET != 0
}

/// What a field value may hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    /// Visible ASCII, spaces and tabs: requests.
    Ascii,
    /// Bytes from 0x80 on too (obs-text): answers of upstreams.
    Any,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = ONES << 7;

/// The offset of the first byte that a field value may not hold, or the length of `bytes`. Eight
/// bytes at a time, since values are most of a head.
#[inline]
pub(super) fn value_end(bytes: &[u8], values: Values) -> usize {
    let mut at = 0;
    while let Some(eight) = bytes.get(at..at + 8) {
        let mut word = [0; 8];
        word.copy_from_slice(eight);
        let word = u64::from_le_bytes(word);
        let controls = word.wrapping_sub(ONES * 0x20) & !word;
        let delete = word ^ (ONES * 0x7f);
        let deletes = delete.wrapping_sub(ONES) & !delete;
        let mut stop = (controls | deletes) & HIGHS;
        if values == Values::Ascii {
            stop |= word & HIGHS;
        }
        if stop == 0 {
            at += 8;
            continue;
        }
        // The lowest mark is always a true one; those above it may come from its borrow.
        at += (stop.trailing_zeros() / 8) as usize;
        if bytes[at] != b'\t' {
            return at;
        }
        at += 1;
    }
    while let Some(&b) = bytes.get(at) {
        let fine = matches!(b, b' '..=b'~' | b'\t') || (b >= 0x80 && values == Values::Any);
        if !fine {
            return at;
        }
        at += 1;
    }
    at
}

/// Without spaces and tabs at both ends.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The elements of a comma-separated list, trimmed; empty ones left out.
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(trim).filter(|element| !element.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition that [`value_end`] must agree with.
    fn slowly(bytes: &[u8], values: Values) -> usize {
        let fine = |b: &u8| match *b {
            b'\t' | b' '..=b'~' => true,
            0x80.. => values == Values::Any,
            _ => false,
        };
        bytes.iter().position(|b| !fine(b)).unwrap_or(bytes.len())
    }

    #[test]
    fn every_byte_at_every_place_is_judged_as_by_the_definition() {
        for length in 0..20 {
            for place in 0..length {
                for b in 0..=255u8 {
                    for fill in *b"a\t~ \x80" {
                        let mut bytes = vec![fill; length];
                        bytes[place] = b;
                        for values in [Values::Ascii, Values::Any] {
                            assert_eq!(
                                value_end(&bytes, values),
                                slowly(&bytes, values),
                                "{bytes:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_list_is_split_at_commas_and_trimmed() {
        let elements: Vec<&[u8]> = list(b" close ,\t,keep-alive").collect();
        assert_eq!(elements, [b"close".as_slice(), b"keep-alive"]);
    }
}
