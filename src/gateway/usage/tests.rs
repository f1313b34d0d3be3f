use serde_json::{Value, json};

use super::*;
use crate::base::thread;
use crate::llm::Usage;
use crate::llm::usage::{Charge, Outcome, SECONDS_PER_DAY};

fn settings() -> Settings {
    let config = crate::config::parse("", None, &|_| None).unwrap().config;
    Settings { cache_ttl: Duration::ZERO, ..config.usage }
}

fn accounts(settings: &Settings) -> Arc<Accounts> {
    Accounts::new(settings, &Registry::default())
}

fn today() -> u64 {
    clock::unix().as_secs() / SECONDS_PER_DAY
}

fn entry(key: &str, model: &str) -> Entry {
    Entry {
        at: clock::unix().as_secs(),
        key: Some(key.into()),
        asked: model.into(),
        answered: Some(("local".into(), "llama".into())),
        charge: Some(Charge {
            usage: Usage { input: 10, output: 5, cached: 4, estimated: false },
            cost: Some(1_500_000),
        }),
        ..Entry::default()
    }
}

fn ask(accounts: &Accounts, query: &str) -> Value {
    let response = accounts.answer(&Question::parse(query).unwrap());
    assert_eq!(response.status, 200);
    serde_json::from_slice(&response.body).unwrap()
}

#[test]
fn the_answer_has_the_names_that_tools_read() {
    let accounts = accounts(&settings());
    accounts.enter(entry("laptop", "m"));
    let mut free = entry("phone", "n");
    free.charge = Some(Charge { cost: None, ..free.charge.unwrap() });
    free.outcome = Outcome::Cut;
    accounts.enter(free);
    let told = ask(&accounts, "by=model");
    let row = json!({
        "model": "n", "answeredBy": "local/llama", "requests": 1, "failed": 0, "cut": 1,
        "cancelled": 0, "fromCache": 0, "estimated": 0, "input": 10, "output": 5, "cacheRead": 4,
        "totalTokens": 15, "totalCost": null, "costMicros": null, "missingCostEntries": 1,
    });
    assert_eq!(told["rows"][1], row);
    assert_eq!((&told["currency"], &told["complete"]), (&json!("USD"), &json!(true)));
    assert_eq!(told["missingPrices"], json!(["local/llama"]));
    let totals = &told["totals"];
    // 1.5 millionths are shown as two.
    assert_eq!((&totals["costMicros"], &totals["totalCost"]), (&json!(2), &json!(2e-6)));
    assert_eq!((&totals["requests"], &totals["missingCostEntries"]), (&json!(2), &json!(1)));
}

#[test]
fn a_key_filters_rows_totals_and_names() {
    let accounts = accounts(&settings());
    accounts.enter(Entry { session: Some("s".into()), ..entry("laptop", "m") });
    let mut other = entry("phone", "n");
    other.charge = Some(Charge { cost: None, ..other.charge.unwrap() });
    accounts.enter(other);
    for by in ["day", "model", "key", "session"] {
        let told = ask(&accounts, &format!("by={by}&key=laptop"));
        assert_eq!(told["rows"].as_array().unwrap().len(), 1, "{told}");
        assert_eq!((&told["totals"]["requests"], &told["missingPrices"]), (&json!(1), &json!([])));
        let all = ask(&accounts, &format!("by={by}"));
        assert_eq!(all["totals"]["requests"], 2, "{all}");
    }
}

#[test]
fn days_that_were_asked_for_and_have_no_rows_any_more_are_told() {
    let accounts = accounts(&Settings { days_max: 2, ..settings() });
    let at = |days: u64| Entry { at: (today() - days) * SECONDS_PER_DAY, ..entry("k", "m") };
    for days in [5, 1, 0] {
        accounts.enter(at(days));
    }
    let since = |days: u64| {
        let told = ask(&accounts, &format!("since={}", report::day_text(today() - days)));
        (told["totals"]["requests"].as_u64().unwrap(), told["complete"].as_bool().unwrap())
    };
    assert_eq!([since(0), since(1), since(3)], [(1, true), (2, true), (2, false)]);
    let all = ask(&accounts, "");
    assert_eq!((all["rows"].as_array().unwrap().len(), &all["complete"]), (3, &json!(true)));
    assert_eq!(all["rows"][0]["date"], Value::Null);
}

#[test]
fn an_answer_is_given_again_until_its_time_is_over_and_few_are_kept() {
    let accounts = accounts(&Settings { cache_ttl: Duration::from_secs(3600), ..settings() });
    accounts.enter(entry("k", "m"));
    assert_eq!(ask(&accounts, "by=key")["totals"]["requests"], 1);
    accounts.enter(entry("k", "m"));
    assert_eq!(ask(&accounts, "by=key")["totals"]["requests"], 1, "the kept one");
    assert_eq!(ask(&accounts, "by=key&key=k")["totals"]["requests"], 2, "another question");
    for n in 0..REPORTS_MAX {
        ask(&accounts, &format!("key=k{n}"));
    }
    let limit = &accounts.limits.reports;
    assert_eq!((limit.now(), limit.high_water()), (REPORTS_MAX as u64, REPORTS_MAX as u64));
    assert_eq!(ask(&accounts, "by=key")["totals"]["requests"], 2, "the oldest made room");
    // A reload forgets them.
    accounts.enter(entry("k", "m"));
    accounts.reconfigure(&settings());
    assert_eq!(
        (ask(&accounts, "by=key")["totals"]["requests"].as_u64(), limit.now()),
        (Some(3), 0)
    );
}

#[test]
fn limits_show_what_there_is_and_how_often_they_were_met() {
    let accounts = accounts(&Settings { sessions_max: 2, rows_max: 1024, ..settings() });
    for n in 0..5 {
        accounts.enter(Entry { session: Some(format!("s{n}").into()), ..entry("k", "m") });
    }
    let sessions = &accounts.limits.sessions;
    assert_eq!((sessions.now(), sessions.high_water(), sessions.refused()), (2, 2, 3));
    // Half of three quarters of the rows are for the models of one key.
    for n in 0..500 {
        accounts.enter(entry("k", &format!("m{n}")));
    }
    let rows = &accounts.limits.rows;
    assert_eq!((rows.now(), rows.refused()), (385, 117));
    accounts.reconfigure(&Settings { sessions_max: 1, ..settings() });
    assert_eq!((sessions.now(), sessions.max(), sessions.refused()), (1, 1, 4));
}

#[test]
fn nothing_is_lost_while_many_enter_and_others_ask() {
    const THREADS: u64 = 4;
    const EACH: u64 = 5_000;
    let accounts =
        accounts(&Settings { sessions_max: 3, rows_max: 1024, days_max: 2, ..settings() });
    let enter = |thread: u64| {
        let accounts = Arc::clone(&accounts);
        thread::spawn(&format!("enter-{thread}"), move || {
            for n in 0..EACH {
                let session = Some(format!("s{}", n % 7).into());
                let mut entry = entry(&format!("k{thread}"), &format!("m{}", n % 300));
                // The days go by, so that rows move while they are read.
                entry.at = (20_000 + n / 1000) * SECONDS_PER_DAY;
                accounts.enter(Entry { session, ..entry });
            }
        })
        .unwrap()
    };
    let threads: Vec<_> = (0..THREADS).map(enter).collect();
    let mut last = 0;
    while last < THREADS * EACH {
        let totals = ask(&accounts, "by=model");
        let sum: u64 = totals["rows"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["requests"].as_u64().unwrap())
            .sum();
        assert_eq!(totals["totals"]["requests"], sum);
        assert!((last..=THREADS * EACH).contains(&sum), "{last} then {sum}");
        last = sum;
    }
    drop(threads);
    let total = THREADS * EACH;
    for by in ["day", "model", "key", "session"] {
        let totals = &ask(&accounts, &format!("by={by}"))["totals"];
        assert_eq!(totals["requests"], total);
        assert_eq!((&totals["input"], &totals["output"]), (&json!(10 * total), &json!(5 * total)));
        assert_eq!(totals["costMicros"], total * 3 / 2);
    }
}

#[test]
fn books_are_there_again_after_a_restart_and_grow_on() {
    let sandbox = tempfile::tempdir().unwrap();
    let life = |entries: u64, expected: u64| {
        let store = crate::store::Store::open(
            Some(sandbox.path()),
            &crate::config::settings::Store::default(),
            crate::store::Tools::bare(),
        );
        let accounts = accounts(&settings());
        // What comes before the store has opened is added to what was.
        for _ in 0..entries {
            accounts.enter(entry("laptop", "llama"));
        }
        let mut now = clock::now();
        let mut keeper = Keeper::new(Arc::clone(&accounts), Arc::clone(&store), now);
        let until = clock::now() + Duration::from_secs(20);
        while ask(&accounts, "")["kept"] == false {
            assert!(clock::now() < until, "never loaded");
            keeper.tick(now);
            std::thread::sleep(Duration::from_millis(5));
        }
        now += 2 * keep::SAVE;
        keeper.tick(now);
        accounts.enter(entry("phone", "llama"));
        keeper.save();
        assert_eq!(ask(&accounts, "")["totals"]["requests"], expected);
        let models = ask(&accounts, "by=key");
        assert!(store.stop(until));
        models["rows"].as_array().unwrap().len()
    };
    assert_eq!(life(3, 4), 2);
    assert_eq!(life(0, 5), 2);
    assert_eq!(life(2, 8), 2);
}
