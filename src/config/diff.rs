//! What differs between two texts, line by line, as `diff -u` shows it.

use std::fmt::Write as _;
use std::ops::Range;

/// Most cells of the table that finds the fewest changes: 8 MiB. Past it: the part that differs is
/// shown as taken out and put in whole.
const CELLS_MAX: usize = 4 * 1024 * 1024;
/// Lines shown around a change.
const CONTEXT: usize = 3;

/// A line of the way from one text to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step<'a> {
    Same(&'a str),
    Out(&'a str),
    In(&'a str),
}

/// The differences; empty when there are none. `from` and `to` are the names of the two.
pub fn unified(from: &str, old: &str, to: &str, new: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let steps = steps(&old, &new);
    let mut out = String::new();
    let mut at = 0;
    while let Some(first) = steps[at..].iter().position(changed).map(|n| at + n) {
        if out.is_empty() {
            let _ = write!(out, "--- {from}\n+++ {to}\n");
        }
        let begin = first.saturating_sub(CONTEXT).max(at);
        let mut end = first;
        while let Some(next) = steps[end..].iter().position(changed).map(|n| end + n) {
            if next > end + 2 * CONTEXT && next != first {
                break;
            }
            end = next + 1;
        }
        let stop = (end + CONTEXT).min(steps.len());
        hunk(&mut out, &steps, begin..stop);
        at = stop;
    }
    out
}

fn changed(step: &Step<'_>) -> bool {
    !matches!(step, Step::Same(_))
}

fn hunk(out: &mut String, steps: &[Step<'_>], range: Range<usize>) {
    let count = |range: Range<usize>, out: bool| {
        let steps = steps[range].iter();
        steps.filter(|s| !matches!((s, out), (Step::In(_), true) | (Step::Out(_), false))).count()
    };
    let place = |out: bool| {
        let (before, size) = (count(0..range.start, out), count(range.clone(), out));
        format!("{},{size}", if size == 0 { before } else { before + 1 })
    };
    let _ = writeln!(out, "@@ -{} +{} @@", place(true), place(false));
    for step in &steps[range.clone()] {
        let _ = match step {
            Step::Same(line) => writeln!(out, " {line}"),
            Step::Out(line) => writeln!(out, "-{line}"),
            Step::In(line) => writeln!(out, "+{line}"),
        };
    }
}

fn steps<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Step<'a>> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev());
    let tail = tail.take_while(|(a, b)| a == b).count();
    let (a, b) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    let mut steps: Vec<Step<'_>> = old[..head].iter().map(|line| Step::Same(line)).collect();
    let width = b.len() + 1;
    if (a.len() + 1).saturating_mul(width) > CELLS_MAX || a.len().max(b.len()) > u16::MAX.into() {
        steps.extend(a.iter().map(|line| Step::Out(line)));
        steps.extend(b.iter().map(|line| Step::In(line)));
    } else {
        // The longest common part of what is left, from each place on.
        let mut longest = vec![0_u16; (a.len() + 1) * width];
        for (i, x) in a.iter().enumerate().rev() {
            for (j, y) in b.iter().enumerate().rev() {
                let at = i * width + j;
                longest[at] = if x == y {
                    longest[at + width + 1] + 1
                } else {
                    longest[at + width].max(longest[at + 1])
                };
            }
        }
        let (mut i, mut j) = (0, 0);
        while i < a.len() || j < b.len() {
            let at = i * width + j;
            if i < a.len() && j < b.len() && a[i] == b[j] {
                steps.push(Step::Same(a[i]));
                (i, j) = (i + 1, j + 1);
            } else if i < a.len() && (j == b.len() || longest[at + width] >= longest[at + 1]) {
                steps.push(Step::Out(a[i]));
                i += 1;
            } else {
                steps.push(Step::In(b[j]));
                j += 1;
            }
        }
    }
    steps.extend(old[old.len() - tail..].iter().map(|line| Step::Same(line)));
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_difference_reads_as_diff_writes_it() {
        let old: String = (1..=20).map(|n| format!("{n}\n")).collect();
        let new = old.replace("3\n", "three\n").replacen("17\n", "", 1);
        let expected = "--- a\n+++ b\n@@ -1,6 +1,6 @@\n 1\n 2\n-3\n+three\n 4\n 5\n 6\n\
                        @@ -10,11 +10,10 @@\n 10\n 11\n 12\n-13\n+1three\n 14\n 15\n 16\n-17\n 18\n 19\n 20\n";
        assert_eq!(unified("a", &old, "b", &new), expected);
        assert_eq!(unified("a", &old, "b", &old), "");
        assert_eq!(unified("a", "", "b", "x\n"), "--- a\n+++ b\n@@ -0,0 +1,1 @@\n+x\n");
    }

    proptest! {
        #[test]
        fn the_steps_lead_from_one_to_the_other(
            old in proptest::collection::vec("[abc]", 0..30),
            new in proptest::collection::vec("[abc]", 0..30),
        ) {
            let (a, b): (Vec<&str>, Vec<&str>) =
                (old.iter().map(String::as_str).collect(), new.iter().map(String::as_str).collect());
            let steps = steps(&a, &b);
            let side = |leave: fn(&Step<'_>) -> bool| -> Vec<String> {
                let line = |step: &Step<'_>| match step {
                    Step::Same(line) | Step::Out(line) | Step::In(line) => (*line).to_owned(),
                };
                steps.iter().filter(|step| !leave(step)).map(line).collect()
            };
            prop_assert_eq!(side(|step| matches!(step, Step::In(_))), old.clone());
            prop_assert_eq!(side(|step| matches!(step, Step::Out(_))), new.clone());
        }
    }
}
