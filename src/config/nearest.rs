//! "Did you mean": the nearest of the names that exist.

/// Longest name that is compared, in characters; longer ones have no nearest.
const CHARS_MAX: usize = 64;

/// The known name nearest to `name`, when it is near enough to be a slip: at most a third of its
/// characters differ.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let wanted = plain(name);
    let length = wanted.chars().count();
    if length == 0 || length > CHARS_MAX {
        return None;
    }
    let near = |known: &'a str| {
        let distance = distance(&wanted, &plain(known));
        (distance <= length.div_ceil(3)).then_some((distance, known))
    };
    known.into_iter().filter_map(near).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Edits from one text to the other: insert, delete, replace, swap neighbours (optimal string
/// alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(CHARS_MAX).collect();
    let b: Vec<char> = b.chars().take(CHARS_MAX).collect();
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_what_was_meant_and_strangers_find_nothing() {
        let known = ["workers", "queue_max", "idle_timeout", "listen"];
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(nearest(name, known), expected, "{name}");
        };
        check("worker", Some("workers"));
        check("wokrers", Some("workers"));
        check("queue-max", Some("queue_max"));
        check("Idle_Timeout", Some("idle_timeout"));
        check("idletimeout", Some("idle_timeout"));
        check("potato", None);
        check("", None);
        check(&"x".repeat(65), None);
    }

    #[test]
    fn neighbours_that_were_swapped_are_one_edit() {
        assert_eq!(distance("abcd", "acbd"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
