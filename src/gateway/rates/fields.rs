//! What answers say about limits: `RateLimit` and `RateLimit-Policy` as the IETF draft has them, and
//! the `x-ratelimit-*` fields that the clients of OpenAI's API read.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::base::gcra::{Level, Quota};

use super::rule::Bound;
use super::{Plan, What, Who};

/// Header fields of an answer.
pub type Fields = Vec<(&'static str, String)>;

impl Plan {
    /// What an answer says about the limits that cover its request: each of them as a policy; of
    /// requests and of tokens the limit that is nearest to its end. Nothing where there is none.
    pub fn fields(&self, who: &Who<'_>, now: Instant) -> Fields {
        let mut fields = Fields::new();
        if self.is_empty() {
            return fields;
        }
        let (mut policy, mut now_left) = (String::new(), String::new());
        for what in [What::Requests, What::Tokens] {
            let Some((bound, quota, level)) = self.nearest(who, now, what) else { continue };
            for bound in self.covering(who, what) {
                separated(&mut policy).push_str(&bound.rule.policies[what as usize]);
            }
            let suffix = if what == What::Tokens { "-tokens" } else { "" };
            let more = ceil(next(quota, &level));
            // Writing to a text cannot fail.
            let _ = write!(
                separated(&mut now_left),
                "\"{}{suffix}\";r={};t={more}",
                bound.rule.name,
                level.remaining
            );
            let [limit, remaining, reset] = names(what);
            fields.push((limit, quota.burst().to_string()));
            fields.push((remaining, level.remaining.to_string()));
            fields.push((reset, duration(level.reset)));
        }
        if !policy.is_empty() {
            fields.push(("ratelimit-policy", policy));
            fields.push(("ratelimit", now_left));
        }
        fields
    }

    /// The limit of which the smallest part is left.
    fn nearest<'a>(
        &'a self,
        who: &Who<'_>,
        now: Instant,
        what: What,
    ) -> Option<(&'a Bound, &'a Quota, Level)> {
        let left = |(_, quota, level): &(&Bound, &Quota, Level)| {
            // In parts of 2^32: bursts are below 2^30.
            (u128::from(level.remaining) << 32) / u128::from(quota.burst())
        };
        self.covering(who, what)
            .filter_map(|bound| {
                Some((bound, bound.rule.quota(what)?, bound.level(who.address, now, what)?))
            })
            .min_by_key(left)
    }
}

fn names(what: What) -> [&'static str; 3] {
    match what {
        What::Requests => [
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
        ],
        What::Tokens => {
            ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"]
        }
    }
}

/// Until one more is there; zero when all are.
fn next(quota: &Quota, level: &Level) -> Duration {
    let missing = quota.burst().saturating_sub(level.remaining);
    match missing.checked_sub(1) {
        Some(others) => level.reset.saturating_sub(quota.cost(others)),
        None => Duration::ZERO,
    }
}

fn separated(list: &mut String) -> &mut String {
    if !list.is_empty() {
        list.push_str(", ");
    }
    list
}

fn ceil(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// A duration as OpenAI writes it, after Go: `120ms`, `1s`, `6m0s`, `1h0m3s`. Rounded up.
fn duration(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        return format!("{}ms", time.as_nanos().div_ceil(1_000_000));
    }
    let seconds = ceil(time);
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_writes_them() {
        let check = |millis: u64, expected: &str| {
            assert_eq!(duration(Duration::from_millis(millis)), expected);
        };
        check(0, "0ms");
        check(120, "120ms");
        check(1000, "1s");
        check(1001, "2s");
        check(360_000, "6m0s");
        check(3_603_000, "1h0m3s");
        assert_eq!(duration(Duration::from_nanos(1)), "1ms");
    }
}
