//! Single flight, over every order of events, and the accounting under threads.

use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use super::flight::Landed;
use super::*;
use crate::base::clock;
use crate::base::error::{Error, Kind};
use crate::base::permits::{Permit, Permits, Place, Ticket};
use crate::base::thread;

const NS: Namespace = Namespace::Embeddings;
const KEY: Digest = [1; 32];
const LIFE: Lifetime = Lifetime { ttl: Duration::from_secs(10), stale_for: Duration::from_secs(5) };

fn limits(waiting: u64) -> Limits {
    Limits { bounds: Bounds { entries: 8, bytes: 8 * 1024, entry: 1024 }, waiting }
}

fn cache() -> Cache<u64> {
    Cache::new(limits(100), &Registry::default())
}

fn down() -> Error {
    Error::new(Kind::UpstreamConnect, "no connection to local")
}

fn look(cache: &Cache<u64>) -> Look<u64> {
    cache.look(NS, &KEY, Want::Kept, clock::now())
}

/// Waits as the engine does: a callback that passes the permit on.
struct Waiting {
    permit: Receiver<Permit>,
    _ticket: Option<Ticket>,
}

fn wait(permits: &Arc<Permits>) -> Waiting {
    let (sender, permit) = bounded(1);
    let again = sender.clone();
    let place = permits.acquire_or_wait(move |permit| {
        // One who left drops it, and it goes on to the next.
        let _ = sender.try_send(permit);
    });
    let ticket = match place {
        Place::Granted(permit) => {
            again.try_send(permit).unwrap();
            None
        }
        Place::Queued(ticket) => Some(ticket),
        Place::Full => unreachable!("followers are bounded where they join"),
    };
    Waiting { permit, _ticket: ticket }
}

fn lead(look: Look<u64>) -> Lead<u64> {
    match look {
        Look::Lead(lead) => lead,
        other => panic!("{other:?}"),
    }
}

fn follow(look: Look<u64>) -> Follow<u64> {
    match look {
        Look::Follow(follow) => follow,
        other => panic!("{other:?}"),
    }
}

fn land(follow: Follow<u64>) -> Landed<u64> {
    let waiting = wait(&follow.permits());
    follow.landed(waiting.permit.try_recv().unwrap())
}

fn assert_nothing_left(cache: &Cache<u64>, context: &str) {
    let (flights, counted, totals) = cache.0.state.with(|state| {
        let flights: usize = state.flights.iter().map(HashMap::len).sum();
        (flights, state.store.counted(), state.store.totals())
    });
    assert_eq!(flights, 0, "{context}: flights");
    assert_eq!(counted, totals, "{context}: totals");
    let counters = &cache.0.counters;
    assert_eq!((counters.waiting.now(), counters.flights.now()), (0, 0), "{context}: gauges");
}

#[test]
fn one_leads_the_others_follow_and_all_have_its_answer() {
    let cache = cache();
    let leader = lead(look(&cache));
    let followers: Vec<_> = (0..40).map(|_| follow(look(&cache))).collect();
    let waiting: Vec<_> = followers.iter().map(|f| wait(&f.permits())).collect();
    assert!(waiting.iter().all(|w| w.permit.is_empty()), "nobody goes before there is an answer");
    leader.complete(7, 8, Some(LIFE), clock::now());
    // They are let through some at a time, each by one that is done.
    assert!(waiting.iter().filter(|w| !w.permit.is_empty()).count() < 40);
    for (follower, waiting) in followers.into_iter().zip(waiting) {
        let permit = waiting.permit.try_recv().unwrap();
        assert!(matches!(follower.landed(permit), Landed::Answer(7)));
    }
    assert!(matches!(look(&cache), Look::Hit(7)));
    let stats = cache.stats(NS);
    assert_eq!((stats.misses, stats.coalesced, stats.hits, stats.inserted), (1, 40, 1, 1));
    assert_nothing_left(&cache, "");
}

#[test]
fn a_leader_that_panics_is_followed_by_one_other() {
    let cache = cache();
    let leader = lead(look(&cache));
    let followers = [follow(look(&cache)), follow(look(&cache))];
    let waiting = followers.each_ref().map(|f| wait(&f.permits()));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _leader = leader;
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    let [first, second] = followers;
    let permit = waiting[0].permit.try_recv().unwrap();
    assert!(waiting[1].permit.is_empty(), "one, not all");
    let Landed::Lead(next) = first.landed(permit) else { panic!("the first leads") };
    assert!(matches!(look(&cache), Look::Follow(_)), "a newcomer follows the new leader");
    next.complete(9, 8, Some(LIFE), clock::now());
    assert!(matches!(second.landed(waiting[1].permit.try_recv().unwrap()), Landed::Answer(9)));
    drop(waiting);
    assert_nothing_left(&cache, "");
}

#[test]
fn a_refusal_that_all_would_hear_is_told_at_once_other_failures_after_three() {
    let cache = cache();
    let leader = lead(look(&cache));
    let follower = follow(look(&cache));
    let rejected = Error::new(Kind::UpstreamRejected(422), "upstream local: input is too long");
    leader.failed(&rejected, clock::now());
    match land(follower) {
        Landed::Failed(error) => {
            assert_eq!(error.kind(), Kind::UpstreamRejected(422));
            assert_eq!(error.context(), "upstream local: input is too long");
        }
        _ => panic!("the same is told to the follower"),
    }
    let mut leader = lead(look(&cache));
    let mut followers: Vec<_> = (0..5).map(|_| follow(look(&cache))).collect();
    for _ in 0..2 {
        leader.failed(&down(), clock::now());
        let Landed::Lead(next) = land(followers.remove(0)) else { panic!("the next one leads") };
        leader = next;
    }
    leader.failed(&down(), clock::now());
    for follower in followers {
        assert!(matches!(land(follower), Landed::Failed(_)));
    }
    assert_eq!(cache.stats(NS).misses, 4);
    assert_nothing_left(&cache, "");
}

#[test]
fn an_old_value_is_served_while_one_asks_again_and_after_that_failed() {
    let cache = cache();
    let begun = clock::now();
    lead(look(&cache)).complete(1, 8, Some(LIFE), clock::now());
    let late = begun + Duration::from_secs(12);
    let at = |when| cache.look(NS, &KEY, Want::Kept, when);
    let leader = lead(at(late));
    assert!(leader.has_stale());
    assert!(matches!(at(late), Look::Stale(1)), "nobody waits for the refresh");
    assert_eq!(leader.failed(&down(), late), Some(1));
    let next = late + Duration::from_secs(2);
    assert!(matches!(at(next), Look::Stale(1)), "not each request pays for the upstream");
    // Dead by then: there is nothing to fall back to.
    assert!(!lead(at(begun + Duration::from_secs(20))).has_stale());
    let stats = cache.stats(NS);
    assert_eq!((stats.stale, stats.expired, stats.misses), (3, 1, 3));
}

#[test]
fn a_refresh_passes_over_what_is_kept_and_replaces_it() {
    let cache = cache();
    lead(look(&cache)).complete(1, 8, Some(LIFE), clock::now());
    let refresh = || cache.look(NS, &KEY, Want::Refreshed, clock::now());
    let leader = lead(refresh());
    assert!(!leader.has_stale(), "whoever wants a new one is not served the old one");
    assert!(matches!(refresh(), Look::Follow(_)));
    assert!(matches!(look(&cache), Look::Hit(1)));
    leader.complete(2, 8, Some(LIFE), clock::now());
    assert!(matches!(look(&cache), Look::Hit(2)));
    assert_nothing_left(&cache, "");
}

#[test]
fn what_is_cleared_while_it_is_asked_for_is_not_kept_and_nobody_new_waits_for_it() {
    let cache = cache();
    let old = lead(look(&cache));
    let follower = follow(look(&cache));
    cache.clear(NS);
    let new = lead(look(&cache));
    old.complete(1, 8, Some(LIFE), clock::now());
    assert!(matches!(land(follower), Landed::Answer(1)), "it asked before the change");
    new.complete(2, 8, Some(LIFE), clock::now());
    assert!(matches!(look(&cache), Look::Hit(2)));
    assert_eq!((cache.stats(NS).version, cache.stats(NS).cleared), (1, 1));
    assert_nothing_left(&cache, "");
}

#[test]
fn an_answer_without_a_lifetime_is_for_the_followers_only() {
    let cache = cache();
    let leader = lead(look(&cache));
    let follower = follow(look(&cache));
    leader.complete(1, 8, None, clock::now());
    assert!(matches!(land(follower), Landed::Answer(1)));
    let leader = lead(look(&cache));
    let follower = follow(look(&cache));
    leader.not_shared();
    assert!(matches!(land(follower), Landed::Alone));
    // Too large to be kept, but not to be shared.
    let leader = lead(look(&cache));
    let follower = follow(look(&cache));
    leader.complete(3, 4096, Some(LIFE), clock::now());
    assert!(matches!(land(follower), Landed::Answer(3)));
    assert_eq!(cache.stats(NS).entries, 0);
    assert_nothing_left(&cache, "");
}

#[test]
fn past_the_bound_on_those_who_wait_a_request_goes_alone() {
    let cache = Cache::new(limits(1), &Registry::default());
    let _leader = lead(look(&cache));
    let first = follow(look(&cache));
    assert!(matches!(look(&cache), Look::Alone));
    assert_eq!(cache.0.counters.waiting.refused(), 1);
    drop(first);
    assert!(matches!(look(&cache), Look::Follow(_)));
}

#[test]
fn trimming_gives_back_what_was_not_used_for_longest() {
    let cache = cache();
    for n in 0..8 {
        lead(cache.look(NS, &[n; 32], Want::Kept, clock::now())).complete(
            0,
            256,
            Some(LIFE),
            clock::now(),
        );
    }
    let bytes = cache.stats(NS).bytes;
    cache.trim(0.5);
    assert_eq!(cache.stats(NS).bytes, bytes / 2);
    assert!(matches!(cache.look(NS, &[7; 32], Want::Kept, clock::now()), Look::Hit(_)));
    cache.trim(f64::NAN);
    assert_eq!(cache.stats(NS).entries, 4);
    cache.trim(7.0);
    assert_eq!((cache.stats(NS).entries, cache.stats(NS).evicted), (0, 8));
    cache.reconfigure(Limits { bounds: Bounds { entries: 1, ..limits(1).bounds }, waiting: 1 });
    for n in 0..2 {
        lead(cache.look(NS, &[n; 32], Want::Kept, clock::now())).complete(
            0,
            256,
            Some(LIFE),
            clock::now(),
        );
    }
    assert_eq!(cache.stats(NS).entries, 1);
}

// === Every order of events ===

/// What an actor does when it leads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Answers,
    Fails,
    Leaves,
    KeepsItToItself,
}

const DOES: [Does; 4] = [Does::Answers, Does::Fails, Does::Leaves, Does::KeepsItToItself];

/// How an actor ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ended {
    Asked(Does),
    Served(u64),
    Told,
    Alone,
    Left,
}

enum Actor {
    Comes,
    Joined(Follow<u64>),
    Queued(Follow<u64>, Waiting),
    Leads(Lead<u64>),
    Over(Ended),
}

/// One run over one order of events; `order` says which of those that can move does, and is filled
/// up with zeros. Gives how many there were to choose from at each step.
fn run(does: &[Does], order: &[usize]) -> Vec<usize> {
    let cache = cache();
    let mut actors: Vec<Actor> = does.iter().map(|_| Actor::Comes).collect();
    let mut choices = Vec::new();
    let mut answered_first = None;
    loop {
        let moves: Vec<usize> = (0..actors.len())
            .filter(|n| match &actors[*n] {
                Actor::Queued(_, waiting) => does[*n] == Does::Leaves || !waiting.permit.is_empty(),
                Actor::Over(_) => false,
                _ => true,
            })
            .collect();
        if moves.is_empty() {
            break;
        }
        let leaders = actors.iter().filter(|actor| matches!(actor, Actor::Leads(_))).count();
        assert!(leaders <= 1, "{does:?} {order:?}: two leaders");
        let at = moves[order.get(choices.len()).copied().unwrap_or(0)];
        choices.push(moves.len());
        let actor = std::mem::replace(&mut actors[at], Actor::Over(Ended::Alone));
        actors[at] = match actor {
            Actor::Comes => match look(&cache) {
                Look::Hit(value) => Actor::Over(Ended::Served(value)),
                Look::Lead(lead) => Actor::Leads(lead),
                Look::Follow(follow) => Actor::Joined(follow),
                other => panic!("{does:?} {order:?}: {other:?}"),
            },
            Actor::Joined(follow) => {
                let waiting = wait(&follow.permits());
                Actor::Queued(follow, waiting)
            }
            // With its turn or before it.
            Actor::Queued(_, _) if does[at] == Does::Leaves => Actor::Over(Ended::Left),
            Actor::Queued(follow, waiting) => {
                let permit = waiting.permit.try_recv().unwrap();
                match follow.landed(permit) {
                    Landed::Answer(value) => Actor::Over(Ended::Served(value)),
                    Landed::Failed(_) => Actor::Over(Ended::Told),
                    Landed::Alone => Actor::Over(Ended::Alone),
                    Landed::Lead(lead) => Actor::Leads(lead),
                }
            }
            Actor::Leads(lead) => {
                match does[at] {
                    Does::Answers => {
                        assert!(answered_first.is_none(), "{does:?} {order:?}: asked twice");
                        answered_first = Some(at as u64);
                        lead.complete(at as u64, 8, Some(LIFE), clock::now());
                    }
                    Does::Fails => drop(lead.failed(&down(), clock::now())),
                    Does::Leaves => drop(lead),
                    Does::KeepsItToItself => lead.not_shared(),
                }
                Actor::Over(Ended::Asked(does[at]))
            }
            Actor::Over(_) => unreachable!("it does not move"),
        };
    }
    for actor in &actors {
        match actor {
            Actor::Over(Ended::Served(value)) => assert_eq!(Some(*value), answered_first),
            Actor::Over(Ended::Alone) => assert!(does.contains(&Does::KeepsItToItself)),
            Actor::Over(Ended::Told) => {
                assert!(does.iter().filter(|d| **d == Does::Fails).count() >= 3, "{does:?}");
            }
            Actor::Over(Ended::Asked(_) | Ended::Left) => {}
            _ => panic!("{does:?} {order:?}: somebody waits for ever"),
        }
    }
    drop(actors);
    assert_nothing_left(&cache, &format!("{does:?} {order:?}"));
    choices
}

/// The next order: the last choice that has another one is changed. `None` after the last.
fn next(order: &mut Vec<usize>, choices: &[usize]) -> Option<()> {
    order.resize(choices.len(), 0);
    let last = (0..choices.len()).rev().find(|at| order[*at] + 1 < choices[*at])?;
    order.truncate(last + 1);
    order[last] += 1;
    Some(())
}

#[test]
fn in_every_order_of_events_there_is_one_leader_and_nobody_is_left_behind() {
    let mut runs = 0_u32;
    for a in DOES {
        for b in DOES {
            for c in DOES {
                let mut order = Vec::new();
                loop {
                    runs += 1;
                    let choices = run(&[a, b, c], &order);
                    if next(&mut order, &choices).is_none() {
                        break;
                    }
                }
            }
        }
    }
    assert!(runs > 10_000, "{runs}");
}

#[test]
fn threads_that_fight_leave_exact_totals_and_nothing_behind() {
    let cache: Cache<u64> = Cache::new(limits(1000), &Registry::default());
    let workers: Vec<_> = (0..8_u64)
        .map(|worker| {
            let cache = cache.clone();
            thread::spawn("t", move || {
                let mut random = 0x9e37_79b9_7f4a_7c15 ^ worker;
                for _ in 0..1500 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let key = [(random % 20) as u8; 32];
                    let namespace = Namespace::ALL[(random >> 8) as usize % NAMESPACES];
                    let finish = |lead: Lead<u64>| match (random >> 16) % 8 {
                        0 => drop(lead),
                        1 => drop(lead.failed(&down(), clock::now())),
                        2 => lead.not_shared(),
                        _ => lead.complete(random, (random >> 24) % 1200, Some(LIFE), clock::now()),
                    };
                    match (random >> 40) % 64 {
                        0 => drop(cache.clear(namespace)),
                        1 => cache.trim(0.3),
                        _ => {}
                    }
                    match cache.look(namespace, &key, Want::Kept, clock::now()) {
                        Look::Lead(lead) => finish(lead),
                        Look::Follow(follow) => {
                            let waiting = wait(&follow.permits());
                            if (random >> 48) % 8 != 0 {
                                let permit = waiting.permit.recv().unwrap();
                                if let Landed::Lead(lead) = follow.landed(permit) {
                                    finish(lead);
                                }
                            }
                        }
                        Look::Hit(_) | Look::Stale(_) | Look::Alone => {}
                    }
                }
            })
            .unwrap()
        })
        .collect();
    drop(workers);
    assert_nothing_left(&cache, "");
    let counters = &cache.0.counters;
    let totals = cache.0.state.with(|state| state.store.totals());
    let spaces = Namespace::ALL.map(|namespace| cache.stats(namespace));
    assert_eq!(spaces.iter().map(|s| s.entries).sum::<u64>(), totals.0);
    assert_eq!(spaces.iter().map(|s| s.bytes).sum::<u64>(), totals.1);
    assert_eq!(counters.gauges(), totals, "the gauges are what is there");
    assert!(spaces.iter().all(|s| s.hits > 0 && s.misses > 0 && s.evicted > 0));
}
