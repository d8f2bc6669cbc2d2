//! Sectors that nobody wants any more: what reaches the disk of it, and what must not.

use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

use super::BOTH;
use super::front::{Bench, Shape, segments};
use crate::proto::{REQUEST_BYTES, Wanted, op, parse};

#[test]
fn what_is_given_up_is_given_up_and_nothing_beside_it() {
    for abi in BOTH {
        let mut bench = Bench::new(Shape {
            abi,
            ..Shape::default()
        });
        bench.disk_is(7);
        assert_eq!(bench.discard(100, 10), 0);
        assert_eq!(bench.discarded().0, [(100, 10)]);
        assert_eq!(bench.disk(99, 1), vec![7; 512]);
        assert_eq!(bench.disk(100, 10), vec![0; 5120]);
        assert_eq!(bench.disk(110, 1), vec![7; 512]);
        // All of it.
        let sectors = bench.sectors();
        assert_eq!(bench.discard(0, sectors), 0);
        let all = bench.disk(0, sectors);
        assert!(all.iter().all(|byte| *byte == 0) && bench.outside_is_untouched());
        assert_eq!(bench.mapped(), bench.ring_pages());
    }
}

#[test]
fn a_discard_is_put_to_the_disk_in_pieces_and_few_at_a_time() {
    let mut bench = Bench::new(Shape {
        granularity: 4096,
        reverse: true,
        ..Shape::default()
    });
    bench.disk_is(7);
    assert_eq!(bench.discard(3, 100), 0);
    let (mut pieces, at_once) = bench.discarded();
    pieces.sort_unstable();
    // 16 sectors each; seams are where the disk's stretches of 8 begin.
    let expected: Vec<(u64, u64)> = [(3, 13)]
        .into_iter()
        .chain((1..6).map(|n| (n * 16, 16)))
        .chain([(96, 7)])
        .collect();
    assert_eq!((pieces, at_once), (expected, 4));
    // Other requests are carried out between, and answered in order.
    let first = bench.put_discard(0, 0, 1000);
    let second = bench.put(op::WRITE, 2000, &segments(&[(10, 0, 7)]));
    bench.run();
    assert_eq!(
        bench.answers(),
        [(first, op::DISCARD, 0), (second, op::WRITE, 0)]
    );
}

#[test]
fn discards_that_cannot_be_carried_out_are_refused() {
    let mut bench = Bench::new(Shape::default());
    bench.disk_is(7);
    let end = bench.sectors();
    for (what, sector, sectors) in [
        ("nothing", 0, 0),
        ("nothing at the end", end, 0),
        ("behind the end", end, 1),
        ("across the end", end - 1, 2),
        ("more than there is", 0, end + 1),
        ("before the beginning", u64::MAX, 1),
        ("across the beginning", u64::MAX - 7, 16),
        ("all numbers", 0, u64::MAX),
        ("all numbers twice", u64::MAX, u64::MAX),
        ("beyond addresses", 1 << 63, 1 << 63),
    ] {
        assert_eq!(bench.discard(sector, sectors), -1, "{what}");
    }
    let secure = bench.put_discard(1, 0, 8);
    bench.run();
    assert_eq!(bench.answers(), [(secure, op::DISCARD, -2)]);
    assert_eq!(bench.discarded().0, []);
    assert_eq!(bench.disk(0, end), vec![7; end as usize * 512]);
    assert!(bench.outside_is_untouched());
    assert_eq!(bench.discard(end - 1, 1), 0);
}

#[test]
fn a_disk_with_large_blocks_gives_up_no_half_ones() {
    let mut bench = Bench::new(Shape {
        block_bytes: 4096,
        granularity: 4096,
        ..Shape::default()
    });
    for (sector, sectors, status) in [(8, 8, 0), (4, 8, -1), (8, 4, -1), (16, 4000, 0)] {
        assert_eq!(bench.discard(sector, sectors), status, "{sector} {sectors}");
    }
}

#[test]
fn what_was_not_offered_is_not_supported() {
    for shape in [
        Shape {
            discard: false,
            ..Shape::default()
        },
        Shape {
            granularity: 0,
            ..Shape::default()
        },
        Shape {
            read_only: true,
            ..Shape::default()
        },
        // The driver that came after another one has a disk that does not.
        Shape {
            most_discarded: 0,
            ..Shape::default()
        },
        // The device refuses what it said it could.
        Shape {
            unable: true,
            ..Shape::default()
        },
    ] {
        let mut bench = Bench::new(shape);
        bench.disk_is(7);
        assert_eq!(bench.discard(0, 8), -2);
        assert_eq!(bench.disk(0, 8), vec![7; 4096]);
    }
}

#[test]
fn what_an_overlay_gives_up_reads_as_before_and_leaves_room() {
    let mut bench = Bench::new(Shape {
        overlay: 8192,
        granularity: 0,
        ..Shape::default()
    });
    bench.disk_is(7);
    bench.fill(10, 3);
    let page = segments(&[(10, 0, 7)]);
    for (sector, status) in [(0, 0), (8, 0), (16, -1)] {
        let id = bench.transfer(op::WRITE, sector, &page);
        assert_eq!(bench.answers(), [(id, op::WRITE, status)], "{sector}");
    }
    // The disk behind it is not the guest's to give up.
    assert_eq!(bench.discard(0, bench.sectors()), 0);
    assert_eq!(bench.discarded().0, []);
    let id = bench.transfer(op::WRITE, 16, &page);
    assert_eq!(bench.answers(), [(id, op::WRITE, 0)]);
    bench.transfer(
        op::READ,
        0,
        &segments(&[(11, 0, 7), (12, 0, 7), (13, 0, 7)]),
    );
    assert_eq!(bench.page(11), vec![7; 4096]);
    assert_eq!(bench.page(12), vec![7; 4096]);
    assert_eq!(bench.page(13), vec![3; 4096]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_discard_is_read_as_it_was_written(
        flag: u8, id: u64, sector: u64, count: u64,
        garbage in proptest::collection::vec(any::<u8>(), REQUEST_BYTES),
    ) {
        for abi in BOTH {
            let mut bytes: [u8; REQUEST_BYTES] = garbage.as_slice().try_into().unwrap();
            bytes[..2].copy_from_slice(&[op::DISCARD, flag]);
            // 8-byte words are aligned to 8 bytes in one layout, to 4 in the other.
            let at = if abi == BOTH[0] { 8 } else { 4 };
            for (index, word) in [id, sector, count].into_iter().enumerate() {
                bytes[at + 8 * index..][..8].copy_from_slice(&word.to_le_bytes());
            }
            let request = parse(abi, &bytes);
            prop_assert_eq!((request.id, request.operation), (id, op::DISCARD));
            let wanted = Wanted::Discard { sector, sectors: count, secure: flag & 1 != 0 };
            prop_assert_eq!(request.wanted, wanted);
        }
    }

    #[test]
    fn any_discard_reaches_nothing_beside_what_it_names(
        discards in proptest::collection::vec(
            (prop_oneof![0u64..4200, any::<u64>()], prop_oneof![0u64..4200, any::<u64>()], 0u8..3), 1..12),
        granularity in prop_oneof![Just(512u32), Just(4096), Just(65536), Just(1536)],
        most in prop_oneof![Just(512u32), Just(8192), Just(1 << 20)],
        large: bool, reverse: bool,
    ) {
        let unit = if large { 8 } else { 1 };
        let block_bytes = unit as u32 * 512;
        let mut bench = Bench::new(Shape {
            block_bytes,
            granularity: granularity.next_multiple_of(block_bytes),
            most_discarded: most.next_multiple_of(block_bytes),
            reverse,
            places: 3,
            ..Shape::default()
        });
        bench.disk_is(7);
        let mut given_up = vec![false; bench.sectors() as usize];
        let total = bench.sectors();
        for (sector, count, flag) in discards {
            let id = bench.put_discard(flag, sector, count);
            bench.run();
            let answers = bench.answers();
            prop_assert_eq!(answers.len(), 1);
            let inside = sector.checked_add(count).is_some_and(|end| end <= total);
            let whole = sector % unit == 0 && count % unit == 0;
            let expected = match flag & 1 {
                1 => -2,
                _ if inside && whole && count > 0 => 0,
                _ => -1,
            };
            prop_assert_eq!(answers[0], (id, op::DISCARD, expected));
            if expected == 0 {
                given_up[sector as usize..(sector + count) as usize].fill(true);
            }
        }
        let (_, at_once) = bench.discarded();
        prop_assert!(bench.outside_is_untouched() && at_once <= 4);
        for (bytes, given_up) in bench.disk(0, total).chunks(512).zip(given_up) {
            let expected = if given_up { 0 } else { 7 };
            prop_assert!(bytes.iter().all(|byte| *byte == expected));
        }
    }
}
