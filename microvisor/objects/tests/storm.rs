//! Random calls, with arguments that are plausible as often as not: no call panics, and after each
//! run the derivation forest is whole, no memory is counted twice, and no frame is mapped that
//! holds an object of the core.

mod world;

use microvisor_abi::Call;
use microvisor_abi::call::CALLS;
use proptest::prelude::*;
use world::World;

/// Slots that the storm plays with.
const SLOTS: u64 = 40;

fn slot() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 17..17 + SLOTS, 2 => 1..17u64, 1 => 0..70_000u64, 1 => any::<u64>()]
}

fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => slot(),
        2 => 0..8u64,
        1 => (0..8u64).prop_map(|n| n << 12),
        1 => (0..4u64).prop_map(|n| n << 21),
        1 => (0..64u64, 0..64u64).prop_map(|(a, b)| a | (b << 32)),
        1 => (0..16u64, 0..33u64).prop_map(|(a, b)| a | (b << 8)),
        1 => any::<u64>(),
        1 => Just(u64::MAX),
    ]
}

fn storm() -> impl Strategy<Value = Vec<(usize, [u64; 6])>> {
    let call = (
        0..CALLS.len(),
        [word(), word(), word(), word(), word(), word()],
    );
    // Retypes that are likely to work, so that there is something to play with.
    let retype = (
        0..15u64,
        prop_oneof![Just(0), Just(1), Just(2), Just(12), Just(21)],
        17..17 + SLOTS,
    );
    let retype = retype
        .prop_map(|(kind, size, slot)| (0, [19, kind | (size << 8), 0, slot | (1 << 32), 0, 0]));
    proptest::collection::vec(prop_oneof![2 => call, 1 => retype], 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(96), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_sequence_of_calls_breaks_the_forest(calls in storm()) {
        let mut w = World::new();
        // Slot 19: a Memory to play with; root's own stays out of reach of most calls.
        let ram = w.ram();
        w.make(ram, microvisor_abi::Kind::Memory, 3000, 19, 1);
        for (index, arguments) in calls {
            let me = w.kernel.current(0);
            if me.is_null() {
                // Everybody blocked or stopped: time passes, and perhaps somebody wakes.
                w.seen.now.set(w.seen.now.get() + (1 << 40));
                w.kernel.timer(0);
                if w.turn().is_null() {
                    break;
                }
                continue;
            }
            let call = CALLS[index].call;
            if call == Call::VcpuRun {
                continue;
            }
            let _ = w.call(call, &arguments);
            w.turn();
            if let Err(why) = w.kernel.check() {
                prop_assert!(false, "after {call:?} {arguments:x?}: {why}");
            }
        }
    }
}
