//! What answers say about limits: `RateLimit` and `RateLimit-Policy` as the IETF draft has them, and
//! the `x-ratelimit-*` fields that the clients of OpenAI's API read.

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
        if self.is_empty() {
            return Fields::new();
        }
        let mut policies = [const { String::new() }; 2];
        let mut nearest: [Option<Nearest<'_>>; 2] = [None, None];
        for bound in self.covering(who) {
            let bucket = bound.bucket(who.address);
            for what in BOTH {
                let Some(level) = bound.level(&bucket, now, what) else { continue };
                let Some(quota) = bound.rule.quota(what) else { continue };
                separated(&mut policies[what as usize])
                    .push_str(&bound.rule.policies[what as usize]);
                let near = Nearest { bound, quota, level };
                let slot = &mut nearest[what as usize];
                if slot.as_ref().is_none_or(|other| near.left() < other.left()) {
                    *slot = Some(near);
                }
            }
        }
        let [mut policy, more] = policies;
        if !more.is_empty() {
            separated(&mut policy).push_str(&more);
        }
        if policy.is_empty() {
            return Fields::new();
        }
        let mut fields = Fields::with_capacity(8);
        let mut now_left = String::with_capacity(64);
        for (what, near) in BOTH.into_iter().zip(nearest) {
            let Some(Nearest { bound, quota, level }) = near else { continue };
            let mut number = itoa::Buffer::new();
            let remaining = number.format(level.remaining).to_owned();
            separated(&mut now_left).push_str(&bound.rule.items[what as usize]);
            now_left.push_str(&remaining);
            now_left.push_str(";t=");
            now_left.push_str(number.format(ceil(next(quota, &level))));
            let [limit, left, reset] = names(what);
            fields.push((limit, bound.rule.bursts[what as usize].clone()));
            fields.push((left, remaining));
            fields.push((reset, duration(level.reset)));
        }
        fields.push(("ratelimit-policy", policy));
        fields.push(("ratelimit", now_left));
        fields
    }
}

/// A limit of which little is left.
struct Nearest<'a> {
    bound: &'a Bound,
    quota: &'a Quota,
    level: Level,
}

impl Nearest<'_> {
    /// How much of it, in parts of 2^30: bursts are below that.
    fn left(&self) -> u64 {
        (self.level.remaining << 30) / self.quota.burst()
    }
}

/// In the order of the answer.
const BOTH: [What; 2] = [What::Requests, What::Tokens];

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
    let (mut text, mut number) = (String::with_capacity(16), itoa::Buffer::new());
    let mut push = |count: u64, unit: &str| {
        text.push_str(number.format(count));
        text.push_str(unit);
    };
    if time < Duration::from_secs(1) {
        push(u64::from(time.subsec_nanos()).div_ceil(1_000_000), "ms");
        return text;
    }
    let seconds = ceil(time);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    if hours > 0 {
        push(hours, "h");
    }
    if hours > 0 || minutes > 0 {
        push(minutes, "m");
    }
    push(seconds % 60, "s");
    text
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
