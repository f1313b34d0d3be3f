use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::*;
use crate::base::clock;
use crate::base::metrics::Metric;
use crate::config;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

/// Two keys, the first with limits of its own.
const KEYS: &str = "[[key]]\nname = \"laptop\"\n\
    sha256 = \"1111111111111111111111111111111111111111111111111111111111111111\"\n\
    requests_per_minute = 600\nburst = 3\ntokens_per_minute = 1000\n\
    [[key]]\nname = \"phone\"\n\
    sha256 = \"2222222222222222222222222222222222222222222222222222222222222222\"\n";

struct House {
    registry: Arc<Registry>,
    rates: Rates,
    plan: Arc<Plan>,
    now: Instant,
}

fn config(text: &str) -> Config {
    config::parse(text, None, &|_| None).unwrap_or_else(|faults| panic!("{faults}")).config
}

fn house(text: &str) -> House {
    let registry = Arc::new(Registry::default());
    let config = config(text);
    let rates = Rates::new(&registry, config.server.addresses_max);
    let plan = rates.plan(&config);
    rates.adopt(&plan, config.server.addresses_max);
    House { registry, rates, plan, now: clock::now() }
}

fn limit(name: &str, lines: &str) -> String {
    format!("[[limit]]\nname = \"{name}\"\n{lines}\n")
}

fn who(key: Option<&'static str>, address: IpAddr, routes: Routes) -> Who<'static> {
    Who { key, address, routes }
}

fn chat(key: Option<&'static str>, address: IpAddr) -> Who<'static> {
    who(key, address, Routes::Chat)
}

impl House {
    /// A reload.
    fn adopt(&mut self, text: &str) {
        let config = config(text);
        self.plan = self.rates.plan(&config);
        self.rates.adopt(&self.plan, config.server.addresses_max);
    }

    /// How many of many requests at once go through.
    fn admitted(&self, who: &Who<'_>) -> usize {
        (0..100).filter(|_| self.plan.request(who, self.now).is_ok()).count()
    }

    fn field(&self, who: &Who<'_>, name: &str) -> String {
        let fields = self.plan.fields(who, self.now);
        fields.into_iter().find(|(have, _)| *have == name).map_or(String::new(), |(_, v)| v)
    }

    /// What is left of the requests of a limit that all share.
    fn left(&self, index: usize) -> u64 {
        let bound = &self.plan.shared[index];
        bound.level(&bound.bucket(HERE), self.now, What::Requests).unwrap().remaining
    }

    fn remaining_tokens(&self, who: &Who<'_>) -> String {
        self.field(who, "x-ratelimit-remaining-tokens")
    }
}

#[test]
fn each_address_has_its_own_and_all_share_one() {
    let text = limit("all", "requests_per_minute = 12")
        + &limit("each", "per = \"address\"\nrequests_per_minute = 60\nburst = 7");
    let house = house(&text);
    assert_eq!(house.admitted(&chat(None, HERE)), 7);
    assert_eq!(house.admitted(&chat(None, THERE)), 5);
}

#[test]
fn a_key_has_its_own_and_that_of_every_key() {
    let text = KEYS.to_owned() + &limit("keys", "per = \"key\"\nrequests_per_minute = 5");
    let house = house(&text);
    assert_eq!(house.admitted(&chat(Some("laptop"), HERE)), 3);
    assert_eq!(house.admitted(&chat(Some("phone"), HERE)), 5);
    assert_eq!(house.admitted(&chat(Some("phone"), THERE)), 0, "wherever it is");
}

#[test]
fn a_limit_covers_its_kind_of_route_only() {
    let house = house(&limit("chat", "routes = \"chat\"\nrequests_per_minute = 2"));
    assert_eq!(house.admitted(&chat(None, HERE)), 2);
    assert_eq!(house.admitted(&who(None, HERE, Routes::Lists)), 100);
    assert_eq!(house.admitted(&who(None, HERE, Routes::Embeddings)), 100);
    assert!(house.plan.fields(&who(None, HERE, Routes::Lists), house.now).is_empty());
}

#[test]
fn a_refused_request_costs_no_limit_anything() {
    let text = limit("wide", "requests_per_minute = 100")
        + &limit("narrow", "per = \"address\"\nrequests_per_minute = 1");
    let house = house(&text);
    assert_eq!(house.admitted(&chat(None, HERE)), 1);
    // The wide one has been charged once, not a hundred times.
    let who = who(None, THERE, Routes::Chat);
    assert_eq!(house.left(0), 99);
    assert!(house.plan.request(&who, house.now).is_ok());
}

#[test]
fn a_refusal_says_which_limit_and_when_to_come_again() {
    let house = house(&limit("slow", "requests_per_minute = 2\nburst = 1"));
    house.plan.request(&chat(None, HERE), house.now).unwrap();
    let error = house.plan.request(&chat(None, HERE), house.now).unwrap_err();
    assert_eq!(error.row().code, "rate_limited");
    assert_eq!((error.retry_after_seconds(), error.retry_after_ms()), (Some(30), Some(30_000)));
    assert!(error.context().contains("\"slow\"") && error.context().contains("30.0 s"), "{error}");
    let later = house.now + Duration::from_secs(30);
    assert!(house.plan.request(&chat(None, HERE), later).is_ok());
    let (families, _) = house.registry.gather();
    let family = families.iter().find(|f| f.name == "tidegate_rate_limited_total").unwrap();
    assert!(matches!(&family.series[0].1, Metric::Counter(count) if count.value() == 1));
}

#[test]
fn tokens_are_charged_by_estimate_and_settled_by_what_was_used() {
    let house = house(KEYS);
    let laptop = chat(Some("laptop"), HERE);
    let bill = |estimate| house.plan.tokens(&laptop, house.now, estimate);
    let mut one = bill(600).unwrap().unwrap();
    assert_eq!(house.remaining_tokens(&laptop), "400");
    assert_eq!(bill(600).err().map(|error| error.row().code), Some("rate_limited"));
    one.used(100);
    drop(one);
    assert_eq!(house.remaining_tokens(&laptop), "900");
    drop(bill(900).unwrap());
    assert_eq!(house.remaining_tokens(&laptop), "900", "what came to nothing costs nothing");
    let mut more = bill(100).unwrap().unwrap();
    more.used(1100);
    drop(more);
    assert_eq!(house.remaining_tokens(&laptop), "0");
    // 200 tokens of debt are paid before anything goes through.
    let error = bill(1).err().unwrap();
    assert!(error.retry_after_ms() > Some(12_000), "{:?}", error.retry_after_ms());
}

#[test]
fn a_request_above_what_a_limit_ever_lets_through_is_told_so() {
    let house = house(KEYS);
    let error = house.plan.tokens(&chat(Some("laptop"), HERE), house.now, 1001).err().unwrap();
    assert_eq!((error.row().status, error.retry_after_seconds()), (413, None));
    assert!(error.context().contains("1001") && error.context().contains("max_tokens"), "{error}");
}

#[test]
fn who_is_not_covered_gets_no_bill() {
    let house = house(KEYS);
    let bill = |who| house.plan.tokens(&who, house.now, 5).unwrap();
    assert!(bill(chat(Some("phone"), HERE)).is_none());
    assert!(bill(chat(None, HERE)).is_none());
}

#[test]
fn answers_say_what_is_left_of_the_nearest_limit() {
    let text = KEYS.to_owned() + &limit("all", "requests_per_minute = 100");
    let house = house(&text);
    let laptop = chat(Some("laptop"), HERE);
    house.plan.request(&laptop, house.now).unwrap();
    let check = |name: &str, expected: &str| {
        assert_eq!(house.field(&laptop, name), expected, "{name}");
    };
    check("x-ratelimit-limit-requests", "3");
    check("x-ratelimit-remaining-requests", "2");
    check("x-ratelimit-reset-requests", "100ms");
    check("x-ratelimit-limit-tokens", "1000");
    check("x-ratelimit-remaining-tokens", "1000");
    check("x-ratelimit-reset-tokens", "0ms");
    check("ratelimit", "\"key\";r=2;t=1, \"key-tokens\";r=1000;t=0");
    check(
        "ratelimit-policy",
        "\"all\";q=100;w=60, \"key\";q=600;w=60, \"key-tokens\";q=1000;w=60;qu=\"tokens\"",
    );
}

#[test]
fn a_reload_keeps_what_was_used_by_name() {
    let mut house = house(KEYS);
    let laptop = chat(Some("laptop"), HERE);
    assert_eq!(house.admitted(&laptop), 3);
    let bill = house.plan.tokens(&laptop, house.now, 500).unwrap();
    let more = KEYS.replace("burst = 3", "burst = 5")
        + &limit("each", "per = \"address\"\nrequests_per_minute = 50");
    house.adopt(&more);
    assert_eq!(house.admitted(&laptop), 2, "only what the larger burst adds");
    drop(bill);
    house.now = clock::now();
    assert_eq!(house.remaining_tokens(&laptop), "1000", "an old bill is settled all the same");
    assert_eq!(house.admitted(&chat(None, THERE)), 50);
    house.adopt(&more);
    assert_eq!(house.admitted(&chat(None, THERE)), 0, "addresses are remembered too");
    house.adopt("");
    assert!(house.plan.is_empty());
    assert_eq!(house.rates.kept.with(|kept| (kept.buckets.len(), kept.numbers.len())), (0, 0));
}

#[test]
fn addresses_are_forgotten_when_their_limits_are_whole_again() {
    let house = house(&limit("each", "per = \"address\"\nrequests_per_minute = 60"));
    let table = house.registry.limit("server.addresses_max", "rates", 1 << 14, "");
    for n in 0..1000_u32 {
        house.plan.request(&chat(None, IpAddr::from(n.to_be_bytes())), house.now).unwrap();
    }
    assert_eq!(table.now(), 1000);
    for _ in 0..16 {
        house.rates.sweep(house.now + Duration::from_secs(1));
    }
    assert_eq!((table.now(), table.refused()), (0, 0));
}

#[test]
fn more_addresses_than_are_remembered_push_out_the_longest_silent() {
    let text = "[server]\naddresses_max = 64\n".to_owned()
        + &limit("each", "per = \"address\"\nrequests_per_minute = 1");
    let house = house(&text);
    for n in 0..1000_u32 {
        let who = chat(None, IpAddr::from(n.to_be_bytes()));
        assert!(house.plan.request(&who, house.now).is_ok());
    }
    let table = house.registry.limit("server.addresses_max", "rates", 64, "");
    assert_eq!((table.now(), table.refused()), (64, 1000 - 64));
}

/// Eight threads at once on limits that all share: exactly as much goes through as there is.
#[test]
fn threads_that_race_are_admitted_exactly_as_many_as_the_limit_says() {
    const THREADS: usize = 8;
    const EACH: usize = 100_000;
    const MOST: u64 = 50_000;
    // With the time standing still nothing comes back.
    let text = limit("all", &format!("requests_per_minute = {MOST}"));
    let house = house(&text);
    let admitted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let who = chat(None, HERE);
                let ok = (0..EACH).filter(|_| house.plan.request(&who, house.now).is_ok()).count();
                admitted.fetch_add(ok as u64, Relaxed);
            });
        }
    });
    assert_eq!(admitted.load(Relaxed), MOST);
}

/// With several limits a race may refuse one that would just have fitted, and never the reverse.
#[test]
fn threads_that_race_over_several_limits_never_get_more_than_the_least() {
    const MOST: u64 = 1000;
    let text = limit("all", &format!("requests_per_minute = {MOST}"))
        + &limit("each", "per = \"address\"\nrequests_per_minute = 700")
        + &limit("wide", "requests_per_minute = 100000");
    let house = house(&text);
    let admitted: Vec<AtomicU64> = (0..2).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (house, admitted) = (&house, &admitted);
            scope.spawn(move || {
                let place = thread % 2;
                let who = chat(None, [HERE, THERE][place]);
                let ok = (0..10_000).filter(|_| house.plan.request(&who, house.now).is_ok());
                admitted[place].fetch_add(ok.count() as u64, Relaxed);
            });
        }
    });
    let each: Vec<u64> = admitted.iter().map(|count| count.load(Relaxed)).collect();
    assert!(each.iter().all(|count| *count <= 700), "{each:?}");
    assert_eq!(each.iter().sum::<u64>(), MOST, "all of it is used up in the end");
    // What was refused left nothing behind in the wide one.
    assert_eq!(house.left(2), 100_000 - MOST);
}

/// Figures for people: `cargo test --release --lib rates::tests::what -- --nocapture`.
#[test]
fn what_the_limits_cost_is_told() {
    let text = KEYS
        .replace("600", "1000000000")
        .replace("burst = 3\n", "")
        .replace("1000\n", "1000000000\n")
        + &limit("all", "requests_per_minute = 1000000000\ntokens_per_minute = 1000000000")
        + &limit(
            "each",
            "per = \"address\"\nrequests_per_minute = 1000000000\ntokens_per_minute = 1000000000",
        );
    let house = house(&text);
    let laptop = chat(Some("laptop"), HERE);
    let tell = |what: &str, f: &dyn Fn(Instant)| {
        const TURNS: u32 = 20_000;
        let begun = clock::now();
        for _ in 0..TURNS {
            f(clock::now());
        }
        println!("{what}: {:?}", begun.elapsed() / TURNS);
    };
    tell("a look at the clock", &|_| {});
    tell("a request under three limits", &|now| house.plan.request(&laptop, now).unwrap());
    tell("a bill of tokens under three limits, settled", &|now| {
        let mut bill = house.plan.tokens(&laptop, now, 10).unwrap().unwrap();
        bill.used(12);
    });
    tell("the fields of an answer", &|now| drop(house.plan.fields(&laptop, now)));
    let none = Plan::default();
    tell("a request without limits", &|now| none.request(&laptop, now).unwrap());
    assert!(house.plan.request(&laptop, clock::now()).is_ok());
}
