use proptest::prelude::*;

use super::*;
use crate::base::clock;

const BOUNDS: Bounds = Bounds { entries: 4, bytes: 4000, entry: 2000 };
const LIFE: Lifetime = Lifetime { ttl: Duration::from_secs(10), stale_for: Duration::from_secs(5) };

fn digest(n: u8) -> Digest {
    [n; 32]
}

struct Bench {
    store: Store<u64>,
    left: Left<u64>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Bench { store: Store::new(BOUNDS), left: Left::default(), now: clock::now() }
    }

    fn put(&mut self, namespace: Namespace, n: u8, value: u64, size: u64) -> Kept {
        let version = self.store.version(namespace);
        let (digest, now) = (digest(n), self.now);
        self.store.insert(namespace, digest, value, size, version, LIFE, now, &mut self.left)
    }

    fn get(&mut self, namespace: Namespace, n: u8) -> Found<u64> {
        self.store.get(namespace, &digest(n), self.now, &mut self.left)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

const A: Namespace = Namespace::Embeddings;
const B: Namespace = Namespace::Chat;

#[test]
fn a_value_is_fresh_then_stale_then_gone() {
    let mut bench = Bench::new();
    assert_eq!(bench.put(A, 1, 7, 10), Kept::Stored);
    assert_eq!(bench.get(A, 1), Found::Fresh(7));
    assert_eq!(bench.get(B, 1), Found::Nothing, "namespaces are apart");
    bench.pass(9);
    assert_eq!(bench.get(A, 1), Found::Fresh(7));
    bench.pass(1);
    assert_eq!(bench.get(A, 1), Found::Stale { value: 7, retry: true });
    bench.store.hold_off(A, &digest(1), bench.now);
    assert_eq!(bench.get(A, 1), Found::Stale { value: 7, retry: false });
    bench.pass(4);
    assert_eq!(bench.get(A, 1), Found::Stale { value: 7, retry: false });
    bench.pass(1);
    assert_eq!(bench.get(A, 1), Found::Nothing);
    assert_eq!((bench.left.expired, bench.left.evicted), ([1, 0], [0, 0]));
    assert_eq!(bench.store.totals(), (0, 0));
}

#[test]
fn the_bound_on_entries_evicts_what_was_not_used_for_longest_over_all_namespaces() {
    let mut bench = Bench::new();
    for (namespace, n) in [(A, 1), (B, 2), (A, 3), (B, 4)] {
        bench.put(namespace, n, u64::from(n), 1);
    }
    assert_eq!(bench.left.evicted, [0, 0], "exactly at the bound");
    assert_eq!(bench.get(A, 1), Found::Fresh(1));
    bench.put(A, 5, 5, 1);
    assert_eq!(bench.left.values, [2]);
    assert_eq!(bench.left.evicted, [0, 1]);
    assert_eq!(bench.get(B, 2), Found::Nothing);
    assert_eq!(bench.get(A, 1), Found::Fresh(1));
}

#[test]
fn the_bound_on_bytes_counts_what_keeping_an_entry_takes() {
    let mut bench = Bench::new();
    let two = BOUNDS.bytes / 2 - ENTRY_BYTES;
    assert_eq!(bench.put(A, 1, 1, two), Kept::Stored);
    assert_eq!(bench.put(A, 2, 2, two), Kept::Stored);
    assert_eq!(bench.store.totals(), (2, BOUNDS.bytes), "exactly at the bound");
    assert_eq!(bench.put(A, 3, 3, 0), Kept::Stored);
    assert_eq!(bench.left.values, [1]);
    assert_eq!(bench.put(A, 4, 4, BOUNDS.entry), Kept::Stored, "exactly one entry's bound");
    assert_eq!(bench.put(A, 5, 5, BOUNDS.entry + 1), Kept::TooLarge);
    assert_eq!(bench.get(A, 5), Found::Nothing);
}

#[test]
fn a_cleared_namespace_is_empty_and_takes_nothing_that_was_asked_for_before() {
    let mut bench = Bench::new();
    bench.put(A, 1, 1, 1);
    bench.put(B, 1, 2, 1);
    let version = bench.store.version(A);
    let (count, held) = bench.store.clear(A);
    drop(held);
    assert_eq!(count, 1);
    assert_eq!(bench.get(A, 1), Found::Nothing);
    assert_eq!(bench.get(B, 1), Found::Fresh(2));
    let (now, mut left) = (bench.now, Left::default());
    let kept = bench.store.insert(A, digest(1), 3, 1, version, LIFE, now, &mut left);
    assert_eq!(kept, Kept::Outdated);
    assert_eq!(bench.get(A, 1), Found::Nothing);
    assert_eq!(bench.store.totals(), bench.store.counted());
}

#[test]
fn a_sweep_takes_the_dead_from_the_end_and_stops_at_the_living() {
    let mut bench = Bench::new();
    bench.put(A, 1, 1, 1);
    bench.put(A, 2, 2, 1);
    bench.pass(14);
    bench.put(A, 3, 3, 1);
    bench.pass(1);
    bench.store.sweep(bench.now, 1, &mut bench.left);
    assert_eq!(bench.left.values, [1], "one at a time");
    bench.store.sweep(bench.now, 9, &mut bench.left);
    assert_eq!(bench.left.values, [1, 2]);
    assert_eq!(bench.store.totals().0, 1);
}

/// What a test does to a store.
#[derive(Clone, Debug)]
enum Op {
    Put(bool, u8, u64),
    Get(bool, u8),
    Clear(bool),
    Shrink(u64),
    Bounds(u64, u64),
    Sweep,
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any::<bool>(), 0..12_u8, 0..2500_u64).prop_map(|(b, n, size)| Op::Put(b, n, size)),
        6 => (any::<bool>(), 0..12_u8).prop_map(|(b, n)| Op::Get(b, n)),
        1 => any::<bool>().prop_map(Op::Clear),
        1 => (0..5000_u64).prop_map(Op::Shrink),
        1 => (0..6_u64, 1000..6000_u64).prop_map(|(entries, bytes)| Op::Bounds(entries, bytes)),
        1 => Just(Op::Sweep),
        2 => (0..6_u64).prop_map(Op::Pass),
    ]
}

proptest! {
    /// After every step the totals are what the entries say, nothing is above its bound, and each
    /// value that went in is there once or has left once.
    #[test]
    fn totals_are_exact_and_bounds_hold_after_every_step(ops in prop::collection::vec(op(), 1..80)) {
        let mut bench = Bench::new();
        let mut bounds = BOUNDS;
        let (mut given, mut cleared) = (0, 0);
        let namespace = |b: bool| if b { B } else { A };
        for op in ops {
            match op {
                Op::Put(b, n, size) => {
                    given += 1;
                    bench.put(namespace(b), n, given, size);
                }
                Op::Get(b, n) => { bench.get(namespace(b), n); }
                Op::Clear(b) => cleared += bench.store.clear(namespace(b)).0,
                Op::Shrink(bytes) => {
                    bench.store.shrink_to(bytes, &mut bench.left);
                    prop_assert!(bench.store.totals().1 <= bytes);
                }
                Op::Bounds(entries, bytes) => {
                    bounds = Bounds { entries, bytes, entry: 2000 };
                    bench.store.set_bounds(bounds, &mut bench.left);
                }
                Op::Sweep => bench.store.sweep(bench.now, 3, &mut bench.left),
                Op::Pass(seconds) => bench.pass(seconds),
            }
            let (entries, bytes) = bench.store.totals();
            prop_assert_eq!(bench.store.counted(), (entries, bytes));
            prop_assert!(entries <= bounds.entries && bytes <= bounds.bytes);
            let spaces = [bench.store.size(A), bench.store.size(B)];
            prop_assert_eq!(spaces[0].0 + spaces[1].0, entries);
            prop_assert_eq!(spaces[0].1 + spaces[1].1, bytes);
            prop_assert_eq!(given, entries + cleared + bench.left.values.len() as u64);
        }
    }
}
