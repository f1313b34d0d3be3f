//! What model calls came to, under the names of OpenTelemetry's semantic conventions for generative AI, as
//! they are written for Prometheus: tokens, durations, the time to the first token and the time for each
//! further one. Beside the conventions' labels there is `upstream`.
//!
//! A request finds its series with one look at a table that is never changed in place, and counts with
//! atomics. Only models of the configuration have series of their own: names that clients invent, and what
//! upstreams have beside those, are counted as `other`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::base::lock::{Locked, Rank};
use crate::base::metrics::{Histogram, Limit, Registry};
use crate::config::Config;

/// Models of the configuration with series of their own, each five histograms. Past it: counted as
/// `other`, one for each upstream, as those that the configuration does not name.
const MODELS_MAX: usize = 64;

/// The model that stands for all that have no series of their own.
const OTHER: &str = "other";

/// Tokens of a request (the conventions' buckets, up to four million).
const TOKEN_BOUNDS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
];

/// Durations of requests, in seconds (the conventions' buckets, and beyond: ten minutes is our own bound).
const DURATION_BOUNDS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84,
    327.68, 655.36,
];

/// Time to the first token, in seconds (the conventions' buckets, and beyond: a cold model loads).
const FIRST_BOUNDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    30.0, 60.0, 120.0,
];

/// Time for each further token, in seconds (the conventions' buckets, and below).
const TOKEN_TIME_BOUNDS: &[f64] =
    &[0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

/// Name and help of each.
const TOKENS: (&str, &str) =
    ("gen_ai_client_token_usage", "Tokens of a request, as the upstream told them, by type.");
const DURATION: (&str, &str) = (
    "gen_ai_server_request_duration_seconds",
    "Time from a model call's first byte to the end of its answer; with error_type when it failed.",
);
const FIRST: (&str, &str) = (
    "gen_ai_server_time_to_first_token_seconds",
    "Time from a model call's first byte to the first content of its answer.",
);
const TOKEN_TIME: (&str, &str) = (
    "gen_ai_server_time_per_output_token_seconds",
    "Time for each token of a streamed answer after its first one.",
);

/// What a model is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A conversation.
    Chat,
    /// A text to go on with.
    TextCompletion,
    /// Vectors.
    Embeddings,
}

impl Operation {
    const ALL: [Operation; 3] = [Operation::Chat, Operation::TextCompletion, Operation::Embeddings];

    /// That of a route.
    pub fn of(pattern: &str) -> Operation {
        if pattern.contains("embed") {
            Operation::Embeddings
        } else if pattern.contains("chat") {
            Operation::Chat
        } else {
            Operation::TextCompletion
        }
    }

    /// The conventions' word.
    fn as_str(self) -> &'static str {
        match self {
            Operation::Chat => "chat",
            Operation::TextCompletion => "text_completion",
            Operation::Embeddings => "embeddings",
        }
    }
}

/// One model call that is over.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What was asked for.
    pub operation: Operation,
    /// Who answered, or failed last.
    pub upstream: &'a str,
    /// The model as that upstream knows it, when it answered.
    pub model: Option<&'a str>,
    /// From the first byte of the request to the end of the answer.
    pub took: Duration,
    /// Until the first content.
    pub first_token: Option<Duration>,
    /// Tokens of the prompt and of the answer, unless they are estimates.
    pub tokens: Option<(u64, u64)>,
    /// It was streamed: only then the time of each token can be told.
    pub stream: bool,
    /// Why it failed.
    pub error: Option<&'static str>,
}

/// The series of a model of an upstream, for one operation.
#[derive(Debug)]
struct Series {
    input: Arc<Histogram>,
    /// Vectors have no tokens that come one after the other.
    spoken: Option<Spoken>,
    duration: Arc<Histogram>,
}

#[derive(Debug)]
struct Spoken {
    output: Arc<Histogram>,
    first: Arc<Histogram>,
    token_time: Arc<Histogram>,
}

/// By model: a series for each operation.
type Models = HashMap<Box<str>, [Option<Arc<Series>>; Operation::ALL.len()]>;

/// What model calls came to.
#[derive(Debug)]
pub struct GenAi {
    registry: Arc<Registry>,
    /// By upstream.
    known: ArcSwap<HashMap<Box<str>, Models>>,
    /// Held by whoever changes the table.
    change: Locked<()>,
    limit: Arc<Limit>,
}

impl GenAi {
    /// Nothing yet.
    pub fn new(registry: &Arc<Registry>) -> GenAi {
        let consequence = "further models are counted together, as other";
        GenAi {
            registry: Arc::clone(registry),
            known: ArcSwap::default(),
            change: Locked::new(Rank::Guard, ()),
            limit: registry.limit("gen_ai.models_max", "", MODELS_MAX as u64, consequence),
        }
    }

    /// Begins anew with the models of a configuration: their series are there, with 0, before anybody asks.
    /// Series that there are already go on.
    pub fn adopt(&self, config: &Config) {
        let mut known: HashMap<Box<str>, Models> = HashMap::new();
        let mut count = 0;
        let targets = || config.models.iter().flat_map(|model| &model.chain);
        for target in targets() {
            let models = known.entry(target.upstream.name.as_str().into()).or_default();
            if models.contains_key(target.model.as_str()) {
                continue;
            }
            if count >= self.limit.max() {
                self.limit.refuse();
                continue;
            }
            count += 1;
            models.insert(target.model.as_str().into(), Default::default());
        }
        self.limit.set_now(count);
        self.change.with(|()| self.known.store(Arc::new(known)));
        for target in targets() {
            let _ = self.series(&target.upstream.name, &target.model, Operation::Chat);
        }
    }

    /// Counts a call.
    pub fn count(&self, call: &Call<'_>) {
        let series = self.series(call.upstream, call.model.unwrap_or(OTHER), call.operation);
        match call.error {
            None => series.duration.observe(call.took),
            Some(error) => {
                let model = call.model.filter(|model| self.has(call.upstream, model));
                let labels = [
                    ("upstream", call.upstream),
                    ("gen_ai_request_model", model.unwrap_or(OTHER)),
                    ("gen_ai_operation_name", call.operation.as_str()),
                    ("error_type", error),
                ];
                let (name, help) = DURATION;
                self.registry.histogram_of(name, help, DURATION_BOUNDS, &labels).observe(call.took);
            }
        }
        if let Some((input, output)) = call.tokens {
            series.input.observe_count(input);
            if let Some(spoken) = &series.spoken {
                spoken.output.observe_count(output);
            }
        }
        let (Some(spoken), Some(first)) = (&series.spoken, call.first_token) else { return };
        spoken.first.observe(first);
        if let Some((_, output)) = call.tokens
            && call.stream
            && call.error.is_none()
            && let Some(further) = output.checked_sub(1).filter(|further| *further > 0)
        {
            let nanos = call.took.saturating_sub(first).as_nanos() / u128::from(further);
            let each = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            spoken.token_time.observe(each);
        }
    }

    fn has(&self, upstream: &str, model: &str) -> bool {
        self.known.load().get(upstream).is_some_and(|models| models.contains_key(model))
    }

    /// The series of a model, or of all others of its upstream.
    fn series(&self, upstream: &str, model: &str, operation: Operation) -> Arc<Series> {
        let find = |known: &HashMap<Box<str>, Models>, model: &str| {
            known.get(upstream)?.get(model)?[operation as usize].clone()
        };
        let known = self.known.load();
        if let Some(series) = find(&known, model) {
            return series;
        }
        // One of those that have none of their own: most often that is known, too.
        let named = known.get(upstream).is_some_and(|models| models.contains_key(model));
        if !named && let Some(series) = find(&known, OTHER) {
            return series;
        }
        self.change.with(|()| {
            let known = self.known.load_full();
            let named = known.get(upstream).is_some_and(|models| models.contains_key(model));
            let model = if named { model } else { OTHER };
            if let Some(series) = find(&known, model) {
                return series;
            }
            let series = Arc::new(self.register(upstream, model, operation));
            let mut known = HashMap::clone(&known);
            let models = known.entry(upstream.into()).or_default();
            models.entry(model.into()).or_default()[operation as usize] = Some(Arc::clone(&series));
            self.known.store(Arc::new(known));
            series
        })
    }

    fn register(&self, upstream: &str, model: &str, operation: Operation) -> Series {
        let labels = [
            ("upstream", upstream),
            ("gen_ai_request_model", model),
            ("gen_ai_operation_name", operation.as_str()),
        ];
        let with = |kind| [labels[0], labels[1], labels[2], ("gen_ai_token_type", kind)];
        let tokens =
            |kind| self.registry.distribution(TOKENS.0, TOKENS.1, TOKEN_BOUNDS, &with(kind));
        let times = |(name, help), bounds| self.registry.histogram_of(name, help, bounds, &labels);
        Series {
            input: tokens("input"),
            spoken: (operation != Operation::Embeddings).then(|| Spoken {
                output: tokens("output"),
                first: times(FIRST, FIRST_BOUNDS),
                token_time: times(TOKEN_TIME, TOKEN_TIME_BOUNDS),
            }),
            duration: times(DURATION, DURATION_BOUNDS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::metrics::Metric;

    /// Of a metric's series: label values, how much was observed, and the sum.
    fn told(registry: &Registry, metric: &str) -> Vec<(String, u64, f64)> {
        let (families, _) = registry.gather();
        let family = families.into_iter().find(|family| family.name == metric).unwrap();
        let series = family.series.into_iter().map(|(labels, metric)| {
            let Metric::Histogram(histogram) = metric else { panic!("no histogram") };
            let labels: Vec<_> = labels.iter().map(|(_, value)| value.as_str()).collect();
            (labels.join("/"), histogram.counts().iter().sum(), histogram.sum())
        });
        series.collect()
    }

    fn call() -> Call<'static> {
        Call {
            operation: Operation::Chat,
            upstream: "local",
            model: Some("m"),
            took: Duration::from_millis(1100),
            first_token: Some(Duration::from_millis(100)),
            tokens: Some((50, 11)),
            stream: true,
            error: None,
        }
    }

    /// A configuration with so many models of the upstream `local`, `m` among them.
    fn config(models: usize) -> Config {
        let mut text = "[[upstream]]\nname = \"local\"\nkind = \"echo\"\n".to_owned();
        for n in 0..models {
            let model = if n == 0 { "m".to_owned() } else { format!("m{n}") };
            text.push_str(&format!("[[model]]\nname = \"x{n}\"\nprimary = \"local/{model}\"\n"));
        }
        crate::config::parse(&text, None, &|_| None).unwrap().config
    }

    #[test]
    fn a_streamed_answer_counts_tokens_and_times() {
        let registry = Arc::new(Registry::default());
        let calls = GenAi::new(&registry);
        calls.adopt(&config(1));
        calls.count(&call());
        let tokens = told(&registry, TOKENS.0);
        let row = |labels: &str, count, sum| (labels.to_owned(), count, sum);
        assert_eq!(
            tokens,
            [row("local/m/chat/input", 1, 50.0), row("local/m/chat/output", 1, 11.0)]
        );
        assert_eq!(told(&registry, DURATION.0), [row("local/m/chat", 1, 1.1)]);
        assert_eq!(told(&registry, FIRST.0), [row("local/m/chat", 1, 0.1)]);
        assert_eq!(told(&registry, TOKEN_TIME.0), [row("local/m/chat", 1, 0.1)]);
        // One token, a whole answer, or an estimate says nothing of the time of each.
        calls.count(&Call { tokens: Some((50, 1)), ..call() });
        calls.count(&Call { stream: false, ..call() });
        calls.count(&Call { tokens: None, ..call() });
        assert_eq!(told(&registry, TOKEN_TIME.0)[0].1, 1);
        assert_eq!(told(&registry, TOKENS.0)[0].1, 3);
    }

    #[test]
    fn a_call_that_failed_is_told_by_why_and_vectors_have_no_tokens_to_speak() {
        let registry = Arc::new(Registry::default());
        let calls = GenAi::new(&registry);
        calls.adopt(&config(1));
        let failed = Call { model: None, tokens: None, first_token: None, ..call() };
        calls.count(&Call { error: Some("upstream_timeout"), ..failed });
        let timed_out = ("local/other/chat/upstream_timeout".to_owned(), 1, 1.1);
        let durations = told(&registry, DURATION.0);
        assert!(durations.contains(&timed_out), "{durations:?}");
        assert_eq!(durations.iter().map(|row| row.1).sum::<u64>(), 1, "it counts once");
        calls.count(&Call { operation: Operation::Embeddings, ..call() });
        assert!(!told(&registry, TOKENS.0).iter().any(|row| row.0 == "local/m/embeddings/output"));
        assert!(!told(&registry, FIRST.0).iter().any(|row| row.0.ends_with("embeddings")));
    }

    #[test]
    fn models_past_the_limit_and_invented_ones_are_counted_together_and_exactly() {
        let registry = Arc::new(Registry::default());
        let calls = GenAi::new(&registry);
        calls.adopt(&config(MODELS_MAX + 10));
        assert_eq!((calls.limit.now(), calls.limit.refused()), (MODELS_MAX as u64, 10));
        for n in 1..MODELS_MAX + 20 {
            calls.count(&Call { model: Some(&format!("m{n}")), ..call() });
        }
        let rows = told(&registry, DURATION.0);
        assert_eq!(rows.len(), MODELS_MAX + 1);
        let other = rows.iter().find(|row| row.0 == "local/other/chat").unwrap();
        assert_eq!((other.1, rows.iter().map(|row| row.1).sum::<u64>()), (20, 83));
        // A reload goes on with what was counted, and begins with what is new.
        calls.adopt(&config(1));
        calls.count(&call());
        let rows = told(&registry, DURATION.0);
        assert!(rows.contains(&("local/m/chat".to_owned(), 1, 1.1)), "{rows:?}");
        assert_eq!(calls.limit.now(), 1);
    }

    #[test]
    fn operations_are_those_of_the_routes() {
        for (pattern, word) in [
            ("/v1/chat/completions", "chat"),
            ("/api/chat", "chat"),
            ("/api/generate", "text_completion"),
            ("/v1/completions", "text_completion"),
            ("/v1/embeddings", "embeddings"),
            ("/api/embed", "embeddings"),
            ("/api/embeddings", "embeddings"),
        ] {
            assert_eq!(Operation::of(pattern).as_str(), word, "{pattern}");
        }
    }
}
