use std::time::Duration;

use super::*;
use crate::base::clock;
use crate::base::error::{Error, Kind, Phase};
use crate::base::metrics::Registry;
use crate::config::settings::Config;
use crate::gateway::catalog::parse::Show;
use crate::gateway::catalog::question::{LIST_FRESH_FOR, PS_STALE_FOR, SHOW_FRESH_FOR};
use crate::gateway::catalog::slot::{BACK_OFF_MAX, BACK_OFF_MIN};
use crate::net::outbound::Resolver;

const SECOND: Duration = Duration::from_secs(1);

fn sources(text: &str) -> Vec<Arc<Source>> {
    let config: Config = crate::config::parse(text, None, &|_| None).unwrap().config;
    let resolver = Arc::new(Resolver::system(&Registry::default()));
    let made = config.upstreams.iter().filter_map(|u| Source::new(u, &resolver));
    made.map(Arc::new).collect()
}

/// Ollama upstreams of these names.
fn upstreams(names: &[&str]) -> String {
    let one = |name: &&str| {
        format!(
            "[[upstream]]\nname = \"{name}\"\nkind = \"ollama\"\nurl = \"http://192.0.2.1:{}\"\n",
            1000 + name.bytes().map(u32::from).sum::<u32>()
        )
    };
    names.iter().map(one).collect()
}

fn state(names: &[&str]) -> State {
    let mut state = State::default();
    state.reconfigure(sources(&upstreams(names)));
    state
}

fn list(upstream: &str) -> Key {
    Key { upstream: upstream.into(), what: What::List }
}

fn show(upstream: &str, model: &str) -> Key {
    let what = What::Show { model: model.into(), verbose: false };
    Key { upstream: upstream.into(), what }
}

fn a_list() -> Outcome {
    Ok(Known::List(Arc::default()))
}

fn a_show(bytes: usize) -> Outcome {
    let body = vec![b' '; bytes].into();
    Ok(Known::Show(Arc::new(Show { body, num_ctx: None, context_length: None })))
}

fn away() -> Outcome {
    Err(Fault::of(&Error::new(Kind::UpstreamTimeout(Phase::Answer), "away")))
}

fn broken() -> Outcome {
    Err(Fault::of(&Error::new(Kind::UpstreamStatus(500), "broken")))
}

/// Asks and answers.
fn exchange(state: &mut State, key: &Key, outcome: Outcome, now: Instant) -> Landed {
    assert!(state.look(key, now).started, "{key:?} is due");
    let job = state.pick().unwrap();
    assert_eq!(job.key, *key);
    state.land(&job, outcome, now)
}

#[test]
fn one_question_for_all_who_want_the_same() {
    let (mut state, now) = (state(&["a"]), clock::now());
    let first = state.look(&list("a"), now);
    assert!(first.started && first.known.is_none());
    let second = state.look(&list("a"), now + SECOND);
    assert!(!second.started);
    assert_eq!(second.asked, Some(now), "waits count from the question");
    let waiters: Vec<_> = (0..5).map(|_| state.wait(&list("a")).unwrap()).collect();
    let job = state.pick().unwrap();
    assert!(state.pick().is_none());
    let landed = state.land(&job, a_list(), now);
    assert_eq!(landed.waiters.len(), 5);
    assert!(state.wait(&list("a")).is_none());
    drop(waiters);
}

#[test]
fn what_is_old_is_shown_while_it_is_asked_for_again() {
    let (mut state, now) = (state(&["a"]), clock::now());
    exchange(&mut state, &list("a"), a_list(), now);
    let just = now + LIST_FRESH_FOR - Duration::from_millis(1);
    assert!(state.look(&list("a"), just).fresh);
    let old = state.look(&list("a"), now + LIST_FRESH_FOR);
    assert!(!old.fresh && old.known.is_some() && old.started);
    // For as long as the upstream is away.
    let job = state.pick().unwrap();
    state.land(&job, away(), now);
    let later = state.look(&list("a"), now + SECOND * 86_400);
    assert!(later.known.is_some());
}

#[test]
fn what_was_in_memory_is_forgotten_soon() {
    let (mut state, now) = (state(&["a"]), clock::now());
    let key = Key { upstream: "a".into(), what: What::Ps };
    exchange(&mut state, &key, Ok(Known::Ps(Arc::default())), now);
    assert!(state.peek(&key, now + PS_STALE_FOR - SECOND).known.is_some());
    assert!(state.peek(&key, now + PS_STALE_FOR).known.is_none());
}

#[test]
fn failures_are_followed_by_growing_pauses_with_an_end() {
    let (mut state, mut now) = (state(&["a"]), clock::now());
    let mut pauses = Vec::new();
    for _ in 0..8 {
        exchange(&mut state, &list("a"), broken(), now);
        let begun = now;
        while !state.look(&list("a"), now).started {
            now += Duration::from_millis(500);
        }
        // Take it back: the next round asks by itself.
        let job = state.pick().unwrap();
        pauses.push((now - begun).as_secs());
        state.land(&job, broken(), now);
        now += SECOND * 60;
    }
    assert_eq!(&pauses[..4], [1, 4, 16, 30]);
    assert!(pauses.iter().all(|pause| *pause <= BACK_OFF_MAX.as_secs()));
    now += SECOND * 60;
    exchange(&mut state, &list("a"), a_list(), now);
    now += LIST_FRESH_FOR;
    exchange(&mut state, &list("a"), broken(), now);
    assert!(state.look(&list("a"), now + BACK_OFF_MIN).started, "a success begins anew");
}

#[test]
fn an_upstream_that_is_away_is_asked_nothing_for_a_while() {
    let (mut state, now) = (state(&["a", "b"]), clock::now());
    for key in [list("a"), show("a", "1"), show("a", "2"), show("a", "3"), list("b")] {
        state.look(&key, now);
    }
    let waiter = state.wait(&show("a", "3")).unwrap();
    let job = state.pick().unwrap();
    let landed = state.land(&job, away(), now);
    assert_eq!(landed.turned, Some(false));
    assert_eq!(landed.waiters.len(), 1, "those that wait for a thread are told at once");
    drop(waiter);
    assert_eq!(state.pick().unwrap().key, list("b"), "nothing of a is left to ask");
    let found = state.look(&show("a", "4"), now);
    assert!(!found.started && found.fault.is_some());
    assert!(state.look(&show("a", "4"), now + BACK_OFF_MIN).started);
    let job = state.pick().unwrap();
    assert_eq!(state.land(&job, a_show(1), now + SECOND).turned, Some(true));
}

#[test]
fn upstreams_that_hang_leave_a_thread_for_the_others() {
    let names = ["a", "b", "c", "d", "e"];
    let (mut state, now) = (state(&names), clock::now());
    for name in &names[..4] {
        exchange(&mut state, &list(name), away(), now);
    }
    let later = now + SECOND * 60;
    for name in &names[..4] {
        state.look(&list(name), later);
    }
    let running: Vec<_> = std::iter::from_fn(|| state.pick()).collect();
    assert_eq!(running.len(), DOUBTFUL_MAX);
    state.look(&list("e"), later);
    assert_eq!(state.pick().unwrap().key, list("e"));
    // When one of them ends, the fourth is asked.
    state.land(&running[0], away(), later);
    assert_eq!(state.pick().unwrap().key, list("d"));
}

#[test]
fn one_upstream_is_asked_few_things_at_once() {
    let (mut state, now) = (state(&["a"]), clock::now());
    for model in ["1", "2", "3"] {
        state.look(&show("a", model), now);
    }
    let running: Vec<_> = std::iter::from_fn(|| state.pick()).collect();
    assert_eq!(running.len(), PER_UPSTREAM_MAX);
    assert!(state.land(&running[0], a_show(1), now).more);
    assert_eq!(state.pick().unwrap().key, show("a", "3"));
}

#[test]
fn questions_are_bounded_exactly_at_their_limit() {
    let (mut state, now) = (state(&["a"]), clock::now());
    for n in 0..FLIGHTS_MAX {
        assert!(state.look(&show("a", &n.to_string()), now).started);
    }
    let one_more = state.look(&show("a", "more"), now);
    assert!(one_more.refused && !one_more.started);
    assert_eq!(state.sizes().0, FLIGHTS_MAX);
}

#[test]
fn descriptions_are_bounded_by_number_and_by_bytes() {
    let (mut state, now) = (state(&["a"]), clock::now());
    for n in 0..SHOWS_MAX + 10 {
        exchange(&mut state, &show("a", &n.to_string()), a_show(10), now);
    }
    assert_eq!(state.sizes(), (0, SHOWS_MAX, SHOWS_MAX * 10));
    assert!(state.peek(&show("a", "9"), now).known.is_none());
    assert!(state.peek(&show("a", "10"), now).known.is_some());
    let fits = SHOW_BYTES_MAX / SHOW_KEPT_BYTES_MAX;
    for n in 0..fits + 3 {
        let key = show("a", &format!("big{n}"));
        exchange(&mut state, &key, a_show(SHOW_KEPT_BYTES_MAX), now);
        assert!(state.sizes().2 <= SHOW_BYTES_MAX);
    }
    assert_eq!(state.sizes(), (0, fits, SHOW_BYTES_MAX));
    // One that is too large is handed over and not kept.
    let key = show("a", "vocabulary");
    let landed = exchange(&mut state, &key, a_show(SHOW_KEPT_BYTES_MAX + 1), now);
    assert!(landed.waiters.is_empty());
    assert!(state.peek(&key, now).known.is_none());
    assert_eq!(state.sizes(), (0, fits, SHOW_BYTES_MAX));
}

#[test]
fn a_model_that_was_removed_is_no_longer_described() {
    let (mut state, now) = (state(&["a"]), clock::now());
    exchange(&mut state, &show("a", "m"), a_show(10), now);
    let later = now + SHOW_FRESH_FOR;
    let gone = Error::new(Kind::UpstreamModelNotFound, "gone");
    exchange(&mut state, &show("a", "m"), Err(Fault::of(&gone)), later);
    let found = state.peek(&show("a", "m"), later);
    assert!(found.known.is_none());
    assert_eq!(found.fault.unwrap().kind(), Kind::UpstreamModelNotFound);
    assert_eq!(state.sizes().2, 0);
}

#[test]
fn what_left_the_configuration_is_forgotten_and_the_rest_is_kept() {
    let (mut state, now) = (state(&["a", "b"]), clock::now());
    for name in ["a", "b"] {
        exchange(&mut state, &list(name), a_list(), now);
        exchange(&mut state, &show(name, "m"), a_show(10), now);
    }
    let later = now + LIST_FRESH_FOR;
    state.look(&list("a"), later);
    let waiter = state.wait(&list("a")).unwrap();
    let job = state.pick().unwrap();
    let dropped = state.reconfigure(sources(&upstreams(&["b"])));
    assert_eq!(dropped.len(), 1);
    assert!(waiter.recv().is_err(), "who waits is told by the end of its channel");
    assert_eq!(state.sizes(), (0, 1, 10));
    assert!(state.peek(&list("a"), now).known.is_none());
    assert!(!state.look(&list("a"), later).started);
    assert!(state.peek(&list("b"), now).known.is_some());
    assert!(state.peek(&show("b", "m"), now).known.is_some());
    // The answer that was on its way is nobody's.
    state.land(&job, a_list(), later);
    assert!(state.peek(&list("a"), later).known.is_none());
}

#[test]
fn another_key_asks_again_and_another_server_begins_anew() {
    let (mut state, now) = (state(&["a"]), clock::now());
    exchange(&mut state, &list("a"), a_list(), now);
    let same = upstreams(&["a"]);
    assert!(state.reconfigure(sources(&same)).is_empty());
    assert!(state.peek(&list("a"), now).fresh);
    let limits = format!("{same}first_token_timeout = \"7s\"\n");
    assert!(state.reconfigure(sources(&limits)).is_empty(), "nothing that matters here changed");
    let slower = format!("{same}connect_timeout = \"7s\"\n");
    assert_eq!(state.reconfigure(sources(&slower)).len(), 1);
    let found = state.look(&list("a"), now);
    assert!(found.known.is_some() && !found.fresh && found.started);
    let elsewhere = same.replace("192.0.2.1", "192.0.2.2");
    assert_eq!(state.reconfigure(sources(&elsewhere)).len(), 1);
    assert!(state.peek(&list("a"), now).known.is_none());
}

/// Random events; after each, what must hold.
#[test]
fn invariants_hold_through_random_events() {
    let mut seed: u64 = 0x7469_6465_6761_7465;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below as u64).unwrap()
    };
    let names = ["a", "b", "c", "d", "e", "f"];
    let (mut state, mut now) = (state(&names), clock::now());
    let mut jobs: Vec<Job> = Vec::new();
    let mut waiting = Vec::new();
    for step in 0..20_000 {
        now += Duration::from_millis(random(500) as u64);
        match random(10) {
            0..4 => {
                let upstream = names[random(names.len())];
                let key = match random(3) {
                    0 => list(upstream),
                    1 => Key { upstream: upstream.into(), what: What::Ps },
                    _ => show(upstream, &random(400).to_string()),
                };
                let found = state.look(&key, now);
                assert!(!(found.started && found.fresh), "step {step}");
                assert_eq!(found.asked.is_some(), state.wait(&key).is_some(), "step {step}");
                waiting.extend(state.wait(&key));
            }
            4..6 if jobs.len() < THREADS_MAX => jobs.extend(state.pick()),
            9 if step % 50 == 0 => {
                let some: Vec<_> = names.iter().copied().filter(|_| random(5) > 0).collect();
                state.reconfigure(sources(&upstreams(&some)));
            }
            _ if !jobs.is_empty() => {
                let job = jobs.swap_remove(random(jobs.len()));
                let outcome = match (random(4), &job.key.what) {
                    (0, _) => away(),
                    (1, _) => broken(),
                    (_, What::Show { .. }) => a_show(random(200_000)),
                    (_, What::List) => a_list(),
                    (_, What::Ps) => Ok(Known::Ps(Arc::default())),
                };
                for (waiter, outcome) in state.land(&job, outcome, now).waiters {
                    let _ = waiter.try_send(outcome);
                }
            }
            _ => {}
        }
        let (flights, shows, bytes) = state.sizes();
        assert!(flights <= FLIGHTS_MAX && shows <= SHOWS_MAX && bytes <= SHOW_BYTES_MAX);
        let kept: usize = state.shows.iter().map(|(_, slot)| slot.bytes()).sum();
        assert_eq!(kept, bytes, "step {step}: every byte is counted once");
        assert!(state.running() <= jobs.len(), "step {step}");
        assert!(state.upstreams.iter().all(|u| u.running <= PER_UPSTREAM_MAX), "step {step}");
    }
    for job in jobs {
        state.land(&job, away(), now);
    }
    while let Some(job) = state.pick() {
        state.land(&job, a_list(), now);
    }
    assert_eq!(state.sizes().0, 0, "no question is left behind");
}
