//! Front ends that do what they must not.

use proptest::prelude::*;
use std::vec::Vec;

use super::BOTH;
use super::front::{Bench, Shape, segments};
use crate::device::Fault;
use crate::proto::{REQUEST_BYTES, op, parse};

#[test]
fn counters_that_make_no_sense_break_the_ring() {
    for (offset, value) in [(0, 33), (0, u32::MAX), (0, 1 << 31)] {
        let bench = &mut Bench::new(Shape::default());
        bench.counter(offset, value);
        assert_eq!(bench.try_run(100), Err(Fault::Broken), "{offset} {value}");
        bench.close();
        assert_eq!(bench.mapped(), 0);
    }
    // Back again, while requests are under way.
    let bench = &mut Bench::new(Shape::default());
    bench.put(op::READ, 0, &segments(&[(10, 0, 7)]));
    bench.put(op::READ, 0, &segments(&[(11, 0, 7)]));
    assert_eq!(bench.try_run(1), Ok(()));
    bench.counter(0, 0);
    assert_eq!(bench.try_run(100), Err(Fault::Broken));
    // What the front end writes of answers is not read again.
    let bench = &mut Bench::new(Shape::default());
    bench.counter(8, 17);
    bench.put(op::READ, 0, &segments(&[(10, 0, 7)]));
    assert_eq!(bench.try_run(100), Ok(()));
}

#[test]
fn a_ring_that_was_broken_before_is_not_opened() {
    let bench = &mut Bench::new(Shape::default());
    bench.counter(8, 100);
    bench.counter(0, 99);
    assert!(bench.open().is_err());
    assert_eq!(bench.mapped(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_request_is_parsed_within_bounds(bytes in proptest::collection::vec(any::<u8>(), REQUEST_BYTES)) {
        for abi in BOTH {
            let request = parse(abi, bytes.as_slice().try_into().unwrap());
            if let crate::proto::Wanted::Transfer { segments: crate::proto::Segments::Pages(count, pages), .. } = request.wanted {
                prop_assert!(count <= 256 && pages.len() == 1);
            }
        }
    }

    #[test]
    fn any_bytes_in_a_ring_reach_nothing_beside_the_volume(
        requests in proptest::collection::vec(
            (prop_oneof![0u8..8, any::<u8>()], prop_oneof![0u64..4200, any::<u64>()],
             proptest::collection::vec((prop_oneof![8u32..22, 998u32..1004], 0u8..9, 0u8..9), 0..14)),
            1..32),
        jumps in proptest::collection::vec((0usize..32, prop_oneof![Just(0usize), Just(8), Just(4), Just(12)], any::<u32>()), 0..3),
        persistent: bool, reverse: bool, large: bool, overlay: bool,
    ) {
        let mut bench = Bench::new(Shape {
            kept: if persistent { 6 } else { 0 },
            block_bytes: if large { 4096 } else { 512 },
            overlay: if overlay { 16384 } else { 0 },
            room_pages: 40,
            mappings: 24,
            reverse,
            ..Shape::default()
        });
        let mut broken = false;
        bench.fill(10, 1);
        for (index, (kind, sector, list)) in requests.into_iter().enumerate() {
            let list: Vec<(u32, u8, u8)> = list.into_iter().take(11).collect();
            // A discard's count is where the first segment of others is.
            match list.first() {
                Some((low, high, _)) if kind == op::DISCARD => {
                    let count = u64::from(*low) << (8 * high % 64);
                    bench.put_discard(*high, sector, count)
                }
                _ => bench.put(kind, sector, &segments(&list)),
            };
            for (at, offset, value) in &jumps {
                if *at == index {
                    bench.counter(*offset, *value);
                }
            }
            // The work of one turn is bounded, whatever is in the ring.
            match bench.try_run(2000) {
                Ok(()) => {}
                Err(Fault::Broken) => { broken = true; break }
                Err(Fault::Gone) => prop_assert!(false, "nobody went"),
            }
        }
        prop_assert!(bench.outside_is_untouched());
        if !broken && jumps.is_empty() {
            // Each has an answer, whatever it was.
            bench.answers();
            prop_assert_eq!(bench.open_requests(), 0);
        }
        bench.close();
        prop_assert_eq!(bench.mapped(), 0);
    }
}
