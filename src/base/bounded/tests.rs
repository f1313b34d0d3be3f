//! Each container at its limit and one past it, and in step with its limit under random use.

use proptest::prelude::*;

use super::*;

fn limit(max: u64) -> Arc<Limit> {
    Limit::detached(max)
}

#[test]
fn a_full_map_refuses_new_keys_and_takes_new_values_of_old_ones() {
    let limit = limit(2);
    let mut map = Map::new(Arc::clone(&limit));
    assert_eq!(map.insert("a", 1), Ok(None));
    assert_eq!(map.get_or_insert_with("b", || 2), Some(&mut 2));
    assert_eq!(map.insert("c", 3), Err(3));
    assert_eq!(map.get_or_insert_with("c", || unreachable!("there is no room")), None);
    assert_eq!(map.insert("a", 4), Ok(Some(1)));
    assert_eq!((limit.now(), limit.refused()), (2, 2));
    assert_eq!(map.remove(&"a"), Some(4));
    assert_eq!(map.insert("c", 3), Ok(None));
    map.retain(|key, _| *key == "c");
    assert_eq!((map.len(), limit.now(), limit.high_water()), (1, 1, 2));
    drop(map);
    assert_eq!(limit.now(), 0);
}

#[test]
fn a_full_set_refuses_new_members() {
    let limit = limit(1);
    let mut set = Set::new(Arc::clone(&limit));
    assert!(set.insert("a") && set.insert("a") && !set.insert("b"));
    assert!(set.contains(&"a") && !set.contains(&"b"));
    assert!(set.remove(&"a") && !set.remove(&"a") && set.insert("b"));
    assert_eq!((set.len(), limit.refused()), (1, 1));
}

#[test]
fn a_full_lru_lets_the_least_recently_used_go() {
    let limit = limit(2);
    let mut lru = Lru::new(Arc::clone(&limit));
    assert_eq!((lru.put("a", 1), lru.put("b", 2)), (None, None));
    assert_eq!(lru.get("a"), Some(&mut 1));
    assert_eq!(lru.peek("b"), Some(&2));
    assert_eq!(lru.put("c", 3), Some(("b", 2)));
    assert_eq!(lru.put("c", 4), Some(("c", 3)));
    assert_eq!((limit.now(), limit.refused()), (2, 1));
    // A lowered maximum.
    limit.set_max(1);
    assert_eq!(lru.pop_excess(), Some(("a", 1)));
    assert_eq!((lru.pop_excess(), lru.len(), limit.now()), (None, 1, 1));
    limit.set_max(0);
    assert_eq!(lru.pop("c"), Some(4));
    assert_eq!(lru.put("d", 5), Some(("d", 5)), "nothing may be kept");
    assert!(lru.is_empty() && limit.now() == 0);
}

#[test]
fn a_full_history_lets_the_oldest_go() {
    let limit = limit(2);
    let mut history = History::new(Arc::clone(&limit));
    assert_eq!((history.push(1), history.push(2), history.push(3)), (None, None, Some(1)));
    assert_eq!(history.iter().copied().collect::<Vec<_>>(), [2, 3]);
    assert_eq!((limit.now(), limit.refused()), (2, 1));
}

#[test]
fn two_containers_share_a_limit_and_each_gives_its_part_back() {
    let limit = limit(9);
    let (mut a, mut b) = (Lru::new(Arc::clone(&limit)), Lru::new(Arc::clone(&limit)));
    a.put(1, ());
    b.put(1, ());
    b.put(2, ());
    assert_eq!(limit.now(), 3);
    drop(b);
    assert_eq!((limit.now(), limit.high_water()), (1, 3));
}

#[test]
fn a_subscription_ends_with_its_owner_and_a_full_list_names_who_holds_most() {
    let limit = limit(3);
    let list = Subscribers::new(Arc::clone(&limit));
    let leaking: Vec<_> =
        (0..2).map(|n| list.subscribe(&format!("node {n}"), n).unwrap()).collect();
    let other = list.subscribe("other", 7).unwrap();
    assert_eq!(list.all(), [0, 1, 7]);
    let full = list.subscribe("one more", 8).unwrap_err();
    assert_eq!((full.max, full.most, full.owner.as_str()), (3, 2, "node 1"));
    assert!(full.site.starts_with("src/base/bounded/tests.rs:"), "{full}");
    assert_eq!(limit.refused(), 1);
    drop(other);
    assert_eq!((list.len(), limit.now()), (2, 2));
    let again = list.subscribe("one more", 8).unwrap();
    drop((leaking, again));
    assert_eq!((list.is_empty(), limit.now(), limit.high_water()), (true, 0, 3));
}

#[test]
fn threads_that_subscribe_and_leave_leave_nothing_behind() {
    let limit = limit(4);
    let list = Subscribers::new(Arc::clone(&limit));
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let list = Arc::clone(&list);
            crate::base::thread::spawn("t", move || {
                for _ in 0..500 {
                    let _ = list.subscribe("t", n);
                    assert!(list.len() <= 4);
                }
            })
            .unwrap()
        })
        .collect();
    threads.into_iter().for_each(crate::base::thread::Thread::join);
    assert_eq!((list.len(), limit.now()), (0, 0));
    assert!(limit.high_water() <= 4);
}

proptest! {
    /// Whatever is done, the limit says what there is, and there is never more than it allows.
    #[test]
    fn containers_are_in_step_with_their_limits(
        max in 0u64..6,
        steps in proptest::collection::vec((0u8..4, 0u8..8), 0..60),
    ) {
        let (maps, lrus) = (limit(max), limit(max));
        let mut map = Map::new(Arc::clone(&maps));
        let mut lru = Lru::new(Arc::clone(&lrus));
        for (what, key) in steps {
            match what {
                0 => { let _ = map.insert(key, ()); }
                1 => { map.remove(&key); }
                2 => { map.retain(|have, _| *have != key); }
                _ => { let _ = map.get_or_insert_with(key, || ()); }
            }
            match what {
                0 => { lru.put(key, ()); }
                1 => { lru.pop(&key); }
                2 => { lru.get(&key); }
                _ => { lru.pop_lru(); }
            }
            for (limit, len) in [(&maps, map.len()), (&lrus, lru.len())] {
                prop_assert_eq!(limit.now(), len as u64);
                prop_assert!(limit.now() <= max && limit.high_water() <= max);
            }
        }
    }
}
