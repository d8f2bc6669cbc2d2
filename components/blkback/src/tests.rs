//! Front ends, honest and hostile, against the back end's logic.

mod discard;
mod disk;
mod front;
mod hostile;
mod restart;

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use crate::pool::Pool;
use crate::proto::{Abi, Outcome, Segment, op};
use crate::xenbus::{State, Step, step};
use front::{Bench, Shape, segments};

const BOTH: [Abi; 2] = [Abi::X86_64, Abi::X86_32];

#[test]
fn rings_have_as_many_entries_as_xen_says() {
    // RING_SIZE of public/io/ring.h for requests of 112 and 108 bytes.
    for (pages, entries) in [(1, 32), (2, 64), (4, 128), (8, 256)] {
        assert_eq!(Abi::X86_64.entries(pages), entries);
        assert_eq!(Abi::X86_32.entries(pages), entries);
    }
    assert_eq!(Abi::X86_64.entries(0), 0);
}

#[test]
fn what_was_written_is_read_back_in_either_layout() {
    for abi in BOTH {
        let mut bench = Bench::new(Shape {
            abi,
            ..Shape::default()
        });
        bench.fill(10, 0xa5);
        let written = bench.transfer(op::WRITE, 100, &segments(&[(10, 0, 7), (10, 2, 3)]));
        assert_eq!(bench.answers(), [(written, op::WRITE, 0)]);
        let read = bench.transfer(op::READ, 104, &segments(&[(11, 1, 4)]));
        assert_eq!(bench.answers(), [(read, op::READ, 0)]);
        let page = bench.page(11);
        assert!(page[512..5 * 512].iter().all(|byte| *byte == 0xa5));
        assert!(
            page[..512]
                .iter()
                .chain(&page[5 * 512..])
                .all(|byte| *byte == 0)
        );
        assert_eq!(bench.disk(100, 10), vec![0xa5; 5120]);
        assert_eq!(bench.mapped(), bench.ring_pages(), "pages are given back");
    }
}

#[test]
fn indirect_requests_carry_a_megabyte() {
    for abi in BOTH {
        let mut bench = Bench::new(Shape {
            abi,
            pages: 4,
            ..Shape::default()
        });
        let list: Vec<Segment> = segments(&vec![(10, 0, 7); 256]);
        bench.fill(10, 7);
        let id = bench.indirect(op::WRITE, 0, &list, 256, 12);
        assert_eq!(bench.answers(), [(id, op::WRITE, 0)]);
        assert_eq!(bench.disk(0, 2048), vec![7; 1 << 20]);
        for count in [0, 257, 65535] {
            let id = bench.indirect(op::READ, 0, &list, count, 12);
            assert_eq!(bench.answers(), [(id, op::READ, -1)], "{count}");
        }
        let id = bench.indirect(op::FLUSH_DISKCACHE, 0, &list, 8, 12);
        assert_eq!(bench.answers(), [(id, op::FLUSH_DISKCACHE, -1)]);
    }
}

#[test]
fn answers_come_in_order_however_the_disk_answers() {
    for pages in [1, 2, 4] {
        let mut bench = Bench::new(Shape {
            pages,
            reverse: true,
            ..Shape::default()
        });
        for round in 0..3 {
            let ids: Vec<u64> = (0..bench.entries())
                .map(|n| {
                    let kind = if n % 5 == 4 {
                        op::FLUSH_DISKCACHE
                    } else {
                        op::WRITE
                    };
                    let list = if n % 5 == 4 {
                        vec![]
                    } else {
                        segments(&[(10, 0, 7)])
                    };
                    bench.put(kind, u64::from(n) * 8, &list)
                })
                .collect();
            bench.run();
            let answered: Vec<u64> = bench.answers().iter().map(|(id, ..)| *id).collect();
            assert_eq!(answered, ids, "{pages} {round}");
        }
    }
}

#[test]
fn requests_that_cannot_be_carried_out_are_refused_alone() {
    let mut bench = Bench::new(Shape::default());
    let sectors = bench.sectors();
    bench.read_only_grant(20);
    let page = segments(&[(10, 0, 7)]);
    for (what, kind, sector, list, status) in [
        ("beyond the end", op::READ, sectors - 7, page.clone(), -1),
        ("far beyond", op::WRITE, u64::MAX - 3, page.clone(), -1),
        ("backwards", op::READ, 0, segments(&[(10, 5, 4)]), -1),
        ("beyond the page", op::READ, 0, segments(&[(10, 0, 8)]), -1),
        ("no segment", op::READ, 0, vec![], -1),
        (
            "no such grant",
            op::READ,
            0,
            segments(&[(10, 0, 7), (99, 0, 7)]),
            -1,
        ),
        (
            "read into a page for reading",
            op::READ,
            0,
            segments(&[(20, 0, 7)]),
            -1,
        ),
        ("write from it", op::WRITE, 0, segments(&[(20, 0, 7)]), 0),
        ("barrier", 2, 0, page.clone(), -2),
        ("no such operation", 77, 0, page.clone(), -2),
        ("the last sectors", op::READ, sectors - 8, page.clone(), 0),
    ] {
        let id = bench.transfer(kind, sector, &list);
        assert_eq!(bench.answers(), [(id, kind, status)], "{what}");
        assert_eq!(bench.mapped(), bench.ring_pages(), "{what}");
    }
    let mut bench = Bench::new(Shape {
        read_only: true,
        ..Shape::default()
    });
    let id = bench.transfer(op::WRITE, 0, &page);
    assert_eq!(bench.answers(), [(id, op::WRITE, -1)]);
}

#[test]
fn a_disk_with_large_blocks_takes_no_half_ones() {
    let mut bench = Bench::new(Shape {
        block_bytes: 4096,
        ..Shape::default()
    });
    for (sector, last, status) in [(8, 7, 0), (4, 7, -1), (8, 3, -1)] {
        let id = bench.transfer(op::READ, sector, &segments(&[(10, 0, last)]));
        assert_eq!(bench.answers(), [(id, op::READ, status)]);
    }
    let halves = segments(&[(10, 0, 3), (11, 4, 7)]);
    let id = bench.transfer(op::WRITE, 16, &halves);
    assert_eq!(bench.answers(), [(id, op::WRITE, 0)]);
}

#[test]
fn an_overlay_keeps_the_disk_as_it_was_and_says_when_it_is_full() {
    let mut bench = Bench::new(Shape {
        overlay: 8192,
        ..Shape::default()
    });
    bench.fill(10, 3);
    for (sector, status) in [(0, 0), (12, 0), (40, -1)] {
        let id = bench.transfer(op::WRITE, sector, &segments(&[(10, 0, 3)]));
        assert_eq!(bench.answers(), [(id, op::WRITE, status)], "{sector}");
    }
    bench.transfer(op::READ, 0, &segments(&[(11, 0, 7), (12, 0, 7)]));
    let both = [bench.page(11), bench.page(12)].concat();
    for (sector, bytes) in both.chunks(512).enumerate() {
        let expected = if [0, 1, 2, 3, 12, 13, 14, 15].contains(&sector) {
            3
        } else {
            0
        };
        assert!(bytes.iter().all(|byte| *byte == expected), "{sector}");
    }
    assert_eq!(bench.disk(0, 16), vec![0; 8192]);
}

#[test]
fn persistent_grants_stay_mapped_within_bounds() {
    let mut bench = Bench::new(Shape {
        kept: 4,
        ..Shape::default()
    });
    for round in 0..3 {
        for reference in 10..20 {
            bench.transfer(op::READ, 0, &segments(&[(reference, 0, 7)]));
            assert!(bench.mapped() <= bench.ring_pages() + 4);
        }
        assert_eq!(bench.mapped(), bench.ring_pages() + 4, "{round}");
    }
    let before = bench.maps();
    for _ in 0..10 {
        bench.transfer(op::WRITE, 0, &segments(&[(19, 0, 7), (19, 0, 7)]));
    }
    assert_eq!(bench.maps(), before, "what is kept is not mapped again");
    // A page that may only be read is kept for what it is good for.
    bench.read_only_grant(30);
    let id = bench.transfer(op::WRITE, 0, &segments(&[(30, 0, 7)]));
    bench.answers();
    let other = bench.transfer(op::READ, 0, &segments(&[(30, 0, 7)]));
    assert_eq!(bench.answers(), [(other, op::READ, -1)], "{id}");
    bench.close();
    assert_eq!(bench.mapped(), 0);
}

#[test]
fn requests_wait_for_room_and_none_is_lost() {
    let mut bench = Bench::new(Shape {
        room_pages: 3,
        places: 2,
        mappings: 8,
        pages: 2,
        ..Shape::default()
    });
    let ids: Vec<u64> = (0..bench.entries())
        .map(|n| bench.put(op::READ, u64::from(n), &segments(&[(10, 0, 7), (11, 0, 6)])))
        .collect();
    bench.run();
    let answers = bench.answers();
    assert!(
        answers.iter().all(|(_, _, status)| *status == 0),
        "{answers:?}"
    );
    assert_eq!(answers.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), ids);
}

#[test]
fn a_front_end_that_wants_no_event_gets_none() {
    let mut bench = Bench::new(Shape::default());
    bench.event_at(2);
    bench.transfer(op::READ, 0, &segments(&[(10, 0, 7)]));
    assert_eq!(bench.told(), 0);
    bench.transfer(op::READ, 0, &segments(&[(10, 0, 7)]));
    assert_eq!(bench.told(), 1);
}

#[test]
fn front_and_back_end_meet_and_part() {
    use State::*;
    for (back, front, serving, failed, next) in [
        (Initialising, Initialising, false, false, Step::Offer),
        (InitWait, Initialising, false, false, Step::Stay),
        (InitWait, Initialised, false, false, Step::Connect),
        (Connected, Connected, true, false, Step::Stay),
        // The instance before was connected.
        (Connected, Connected, false, false, Step::Connect),
        (Connected, Closing, true, false, Step::Part(Closing)),
        (Connected, Closing, false, false, Step::Part(Closing)),
        (Closing, Closing, false, false, Step::Stay),
        (Closing, Closed, false, false, Step::Part(Closed)),
        (Closed, Closed, false, false, Step::Stay),
        (Closed, Closing, false, false, Step::Stay),
        // A guest that starts again, with and without parting.
        (Closed, Initialising, false, false, Step::Offer),
        (Connected, Initialising, true, false, Step::Part(Closed)),
        (Connected, Initialising, false, false, Step::Offer),
        // A front end that broke its ring.
        (Closing, Connected, false, true, Step::Stay),
        // One whose disk is not there.
        (Closing, Initialising, false, true, Step::Stay),
        (Connected, Unknown, true, false, Step::Part(Closed)),
        (Closed, Unknown, false, false, Step::Stay),
    ] {
        assert_eq!(
            step(back, front, serving, failed),
            next,
            "{back:?} {front:?}"
        );
    }
    for state in [
        Unknown,
        Initialising,
        InitWait,
        Initialised,
        Connected,
        Closing,
        Closed,
    ] {
        assert_eq!(State::of_node(Some(state.node().as_bytes())), state);
    }
}

#[test]
fn statuses_have_the_numbers_of_xen() {
    let bytes = Abi::X86_64.response(7, op::WRITE, Outcome::NotSupported);
    assert_eq!(bytes, [7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0xfe, 0xff]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_pool_gives_nothing_twice_and_loses_nothing(
        steps in proptest::collection::vec((0usize..4, 1u32..40_000, any::<bool>()), 0..60),
    ) {
        let mut pool = Pool::new(4096, 1 << 18, 3);
        let mut out: Vec<(usize, u32, u32)> = Vec::new();
        for (user, bytes, take) in steps {
            if take {
                if let Some(place) = pool.take(user, bytes) {
                    prop_assert!(place >= 4096 && place + bytes <= 1 << 18 && place % 4096 == 0);
                    for (_, other, length) in &out {
                        prop_assert!(place + bytes <= *other || other + length <= place);
                    }
                    out.push((user, place, bytes));
                }
            } else if let Some((user, place, bytes)) = out.pop() {
                pool.give_back(user, place, bytes);
            }
        }
        for (user, place, bytes) in out {
            pool.give_back(user, place, bytes);
        }
        for user in 0..3 {
            let all = pool.take(user, (1 << 18) / 2);
            prop_assert!(all.is_some());
            pool.give_back(user, all.unwrap(), (1 << 18) / 2);
        }
    }

    #[test]
    fn any_states_lead_to_a_step(back in 0u8..8, front in 0u8..8, serving: bool, failed: bool) {
        let state = |n: u8| State::of_node(Some(&[b'0' + n]));
        let next = step(state(back), state(front), serving, failed);
        // Rings are never taken twice.
        prop_assert!(!(serving && next == Step::Connect));
    }
}
