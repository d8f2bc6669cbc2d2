//! `memory_op`.

use std::vec::Vec;

use super::harness::*;
use crate::domain::number::MEMORY_OP;
use crate::memory_op::op;
use crate::*;

/// `struct xen_memory_reservation` for 64-bit callers, its list at LIST.
fn put_reservation(guest: &mut Guest, gfns: &[u64], order: u32, dom: u16) {
    guest.put_u64s(LIST, gfns);
    guest.put_u64s(ARG, &[LIST, gfns.len() as u64]);
    guest.put_u32s(ARG + 16, &[order, 0, u32::from(dom), 0]);
}

fn add(guest: &mut Guest, dom: u16, space: u32, index: u64, gfn: u64) -> i64 {
    guest.put_u32s(ARG, &[u32::from(dom), space]);
    guest.put_u64s(ARG + 8, &[index, gfn]);
    guest.call(MEMORY_OP, &[op::ADD_TO_PHYSMAP, ARG])
}

fn current(guest: &mut Guest) -> i64 {
    guest.put_u32s(ARG, &[u32::from(SELF)]);
    guest.call(MEMORY_OP, &[op::CURRENT_RESERVATION, ARG])
}

#[test]
fn shared_info_appears_where_the_guest_puts_it_and_moves() {
    let mut guest = Guest::new(1);
    assert_eq!(add(&mut guest, SELF, 0, 0, 0x20), 0);
    assert_eq!(
        guest.env.map[&0x20],
        Page::Special(SpecialFrame::SharedInfo)
    );
    assert_eq!(
        current(&mut guest),
        PAGES as i64 - 1,
        "the RAM there is given back"
    );
    assert_eq!(add(&mut guest, SELF, 0, 0, PAGES + 3), 0);
    assert!(!guest.env.map.contains_key(&0x20), "it left its old place");
    assert_eq!(add(&mut guest, SELF, 0, 1, 0x21), error(Errno::Inval));
}

#[test]
fn shared_info_of_a_32_bit_caller_maps_as_well() {
    let mut guest = Guest::new_32(1);
    guest.put_u32s(ARG, &[u32::from(SELF), 0, 0, 0x20]);
    assert_eq!(guest.call(MEMORY_OP, &[op::ADD_TO_PHYSMAP, ARG]), 0);
    assert_eq!(
        guest.env.map[&0x20],
        Page::Special(SpecialFrame::SharedInfo)
    );
}

#[test]
fn grant_frames_appear_up_to_their_limit() {
    let mut guest = Guest::new(1);
    assert_eq!(add(&mut guest, SELF, 1, 0, 0x20), 0);
    assert_eq!(add(&mut guest, SELF, 1, 3, 0x21), 0);
    assert_eq!(
        guest.env.map[&0x21],
        Page::Special(SpecialFrame::GrantTable(3))
    );
    assert_eq!(add(&mut guest, SELF, 1, 4, 0x22), error(Errno::Inval));
    assert_eq!(
        add(&mut guest, SELF, 1, u64::MAX, 0x22),
        error(Errno::Inval)
    );
    // One special frame in place of another unhooks that.
    assert_eq!(add(&mut guest, SELF, 0, 0, 0x21), 0);
    assert_eq!(
        guest.env.map[&0x21],
        Page::Special(SpecialFrame::SharedInfo)
    );
    assert_eq!(
        guest.domain.special_at(0x21),
        Some(SpecialFrame::SharedInfo)
    );
}

#[test]
fn other_spaces_are_refused_as_for_a_domu() {
    let mut guest = Guest::new(1);
    assert_eq!(
        add(&mut guest, SELF, 2, 5, 0x20),
        error(Errno::Inval),
        "gmfn"
    );
    assert_eq!(
        add(&mut guest, SELF, 3, 5, 0x20),
        0,
        "gmfn_range of nothing"
    );
    assert_eq!(
        add(&mut guest, SELF, 4, 5, 0x20),
        error(Errno::NoSys),
        "foreign"
    );
    assert_eq!(
        add(&mut guest, SELF, 5, 5, 0x20),
        error(Errno::Acces),
        "dev_mmio"
    );
    assert_eq!(add(&mut guest, STRANGER, 0, 0, 0x20), error(Errno::Srch));
    assert_eq!(add(&mut guest, SELF, 0, 0, u64::MAX), error(Errno::Inval));
    assert_eq!(add(&mut guest, SELF, 0, 0, 1 << 50), error(Errno::NoEnt));
}

#[test]
fn a_range_that_begins_behind_its_end_is_out_of_sequence() {
    let mut guest = Guest::new(1);
    guest.put(ARG, &[0; 24]);
    guest.put(ARG, &SELF.to_le_bytes());
    guest.put(ARG + 4, &3u32.to_le_bytes());
    let mut from = |start: u64, size: u16| {
        guest.put(ARG + 2, &size.to_le_bytes());
        guest.call(MEMORY_OP, &[op::ADD_TO_PHYSMAP | start << 6, ARG])
    };
    assert_eq!(from(2, 0), error(Errno::IlSeq));
    assert_eq!(from(2, 1), error(Errno::IlSeq));
    assert_eq!(from(2, 2), 0);
    assert_eq!(from(0, 0), 0);
    assert_eq!(from(1, 2), error(Errno::Inval));
}

#[test]
fn a_range_that_wraps_overflows() {
    let mut guest = Guest::new(1);
    for (index, gfn, size, errno) in [
        (5, u64::MAX - 1, 2, Errno::Overflow),
        (u64::MAX, 5, 1, Errno::Overflow),
        (5, u64::MAX - 1, 1, Errno::Inval),
    ] {
        guest.put_u32s(ARG, &[u32::from(SELF) | size << 16, 3]);
        guest.put_u64s(ARG + 8, &[index, gfn]);
        let reply = guest.call(MEMORY_OP, &[op::ADD_TO_PHYSMAP, ARG]);
        assert_eq!(reply, error(errno), "{index:#x} {gfn:#x}");
    }
}

#[test]
fn batch_gives_each_entry_its_error() {
    let mut guest = Guest::new(1);
    guest.put(ARG, &[0; 32]);
    guest.put(ARG, &SELF.to_le_bytes());
    guest.put(ARG + 2, &1u16.to_le_bytes());
    guest.put(ARG + 4, &3u16.to_le_bytes());
    guest.put_u64s(ARG + 8, &[LIST, LIST + 64, LIST + 128]);
    guest.put_u64s(LIST, &[0, 9, 1]);
    guest.put_u64s(LIST + 64, &[0x20, 0x21, 0x22]);
    assert_eq!(guest.call(MEMORY_OP, &[op::ADD_TO_PHYSMAP_BATCH, ARG]), 0);
    let errors: [i32; 3] =
        core::array::from_fn(|index| guest.u32(LIST + 128 + index as u64 * 4) as i32);
    assert_eq!(errors, [0, -22, 0]);
    // Foreign frames: there is no other domain.
    guest.put(ARG + 2, &4u16.to_le_bytes());
    guest.put(ARG + 6, &STRANGER.to_le_bytes());
    assert_eq!(guest.call(MEMORY_OP, &[op::ADD_TO_PHYSMAP_BATCH, ARG]), 0);
    assert_eq!(guest.u32(LIST + 128) as i32, -3);
    guest.put(ARG + 2, &3u16.to_le_bytes());
    let reply = guest.call(MEMORY_OP, &[op::ADD_TO_PHYSMAP_BATCH, ARG]);
    assert_eq!(reply, error(Errno::OpNotSupp));
}

#[test]
fn long_batches_are_preempted_and_finish() {
    let mut guest = Guest::new(1);
    guest.put(ARG, &[0; 32]);
    guest.put(ARG, &SELF.to_le_bytes());
    guest.put(ARG + 4, &200u16.to_le_bytes());
    guest.put_u64s(ARG + 8, &[0x8000, 0x9000, 0xa000]);
    let gfns: Vec<u64> = (0..200).map(|index| PAGES + index).collect();
    guest.put_u64s(0x9000, &gfns);
    let batch = op::ADD_TO_PHYSMAP_BATCH;
    assert_eq!(guest.call_to_end(MEMORY_OP, &[batch, ARG]), (0, 3));
    assert_eq!(
        guest.domain.special_at(PAGES + 199),
        Some(SpecialFrame::SharedInfo)
    );
}

#[test]
fn balloon_takes_pages_out_and_puts_them_back() {
    let mut guest = Guest::new(1);
    put_reservation(&mut guest, &[10, 11, 12], 0, SELF);
    assert_eq!(guest.call(MEMORY_OP, &[op::DECREASE_RESERVATION, ARG]), 3);
    assert!(!guest.env.map.contains_key(&11));
    assert_eq!(current(&mut guest), PAGES as i64 - 3);
    put_reservation(&mut guest, &[11, 500], 0, SELF);
    assert_eq!(guest.call(MEMORY_OP, &[op::POPULATE_PHYSMAP, ARG]), 2);
    assert_eq!(guest.env.map[&500], Page::Ram);
    put_reservation(&mut guest, &[501, 502], 0, SELF);
    assert_eq!(
        guest.call(MEMORY_OP, &[op::POPULATE_PHYSMAP, ARG]),
        1,
        "max_pages"
    );
}

#[test]
fn decrease_stops_at_the_first_hole() {
    let mut guest = Guest::new(1);
    put_reservation(&mut guest, &[10, PAGES + 1, 12], 0, SELF);
    assert_eq!(guest.call(MEMORY_OP, &[op::DECREASE_RESERVATION, ARG]), 1);
    assert!(guest.env.map.contains_key(&12));
}

#[test]
fn populate_that_fails_in_an_extent_gives_that_extent_back() {
    let mut with_room = config(1);
    with_room.max_pages = 1000;
    let mut guest = Guest::with(with_room);
    guest.env.fresh_pages = 10;
    put_reservation(&mut guest, &[100, 200], 3, SELF);
    assert_eq!(guest.call(MEMORY_OP, &[op::POPULATE_PHYSMAP, ARG]), 1);
    assert!(guest.env.map.contains_key(&107) && !guest.env.map.contains_key(&200));
    assert_eq!(current(&mut guest), PAGES as i64 + 8);
}

#[test]
fn reservations_that_xen_refuses_do_nothing() {
    let mut guest = Guest::new(1);
    for (order, dom) in [(10, SELF), (40, SELF), (0, STRANGER)] {
        put_reservation(&mut guest, &[10], order, dom);
        for operation in [op::DECREASE_RESERVATION, op::POPULATE_PHYSMAP] {
            assert_eq!(guest.call(MEMORY_OP, &[operation, ARG]), 0);
        }
    }
    put_reservation(&mut guest, &[0], 0, SELF);
    assert_eq!(guest.call(MEMORY_OP, &[op::INCREASE_RESERVATION, ARG]), 0);
    assert_eq!(
        guest.call(MEMORY_OP, &[op::DECREASE_RESERVATION, 0xdead_0000]),
        0
    );
    assert_eq!(current(&mut guest), PAGES as i64);
}

#[test]
fn long_reservations_are_preempted_and_finish() {
    let mut with_room = config(1);
    with_room.max_pages = 1000;
    let mut guest = Guest::with(with_room);
    let gfns: Vec<u64> = (100..300).collect();
    put_reservation(&mut guest, &gfns, 0, SELF);
    assert_eq!(
        guest.call_to_end(MEMORY_OP, &[op::POPULATE_PHYSMAP, ARG]),
        (200, 3)
    );
    assert_eq!(current(&mut guest), PAGES as i64 + 200);
}

#[test]
fn compat_reservation_has_its_own_layout() {
    let mut guest = Guest::new_32(1);
    guest.put_u32s(LIST, &[10, 11]);
    guest.put_u32s(ARG, &[LIST as u32, 2, 0, 0, u32::from(SELF)]);
    assert_eq!(guest.call(MEMORY_OP, &[op::DECREASE_RESERVATION, ARG]), 2);
    assert!(!guest.env.map.contains_key(&11));
}

#[test]
fn removed_page_is_gone_and_special_frames_are_unhooked() {
    let mut guest = Guest::new(1);
    add(&mut guest, SELF, 0, 0, PAGES);
    for (gfn, reply) in [(7, 0), (7, error(Errno::NoEnt)), (PAGES, 0)] {
        guest.put_u64s(ARG, &[u64::from(SELF), gfn]);
        assert_eq!(
            guest.call(MEMORY_OP, &[op::REMOVE_FROM_PHYSMAP, ARG]),
            reply
        );
    }
    assert_eq!(guest.domain.special_at(PAGES), None);
    assert_eq!(current(&mut guest), PAGES as i64 - 1);
}

#[test]
fn memory_map_is_given_as_far_as_there_is_room_and_can_be_replaced() {
    let mut guest = Guest::new(1);
    guest.put_u64s(ARG, &[5, LIST]);
    assert_eq!(guest.call(MEMORY_OP, &[op::MEMORY_MAP, ARG]), 0);
    assert_eq!(guest.u32(ARG), 1);
    assert_eq!(
        (guest.u64(LIST + 8), guest.u32(LIST + 16)),
        (PAGES * PAGE_SIZE, 1)
    );
    guest.put_u64s(ARG, &[0, LIST]);
    assert_eq!(guest.call(MEMORY_OP, &[op::MEMORY_MAP, ARG]), 0);
    assert_eq!(guest.u32(ARG), 0);
    // Two entries of its own.
    guest.put(LIST, &[3; 40]);
    guest.put_u64s(ARG, &[u64::from(SELF), 2, LIST]);
    assert_eq!(guest.call(MEMORY_OP, &[op::SET_MEMORY_MAP, ARG]), 0);
    guest.put_u64s(ARG, &[9, LIST]);
    assert_eq!(guest.call(MEMORY_OP, &[op::MEMORY_MAP, ARG]), 0);
    assert_eq!(guest.u32(ARG), 2);
    guest.put_u64s(ARG, &[u64::from(SELF), 1025, LIST]);
    assert_eq!(
        guest.call(MEMORY_OP, &[op::SET_MEMORY_MAP, ARG]),
        error(Errno::Inval)
    );
}

#[test]
fn sizes_are_told_to_the_domain_itself() {
    let mut guest = Guest::new(1);
    assert_eq!(
        guest.call(MEMORY_OP, &[op::MAXIMUM_RAM_PAGE, 0]),
        PAGES as i64
    );
    guest.put_u32s(ARG, &[u32::from(OWN)]);
    let maximum = guest.call(MEMORY_OP, &[op::MAXIMUM_RESERVATION, ARG]);
    assert_eq!(maximum, PAGES as i64);
    let gpfn = guest.call(MEMORY_OP, &[op::MAXIMUM_GPFN, ARG]);
    assert_eq!(gpfn, PAGES as i64 - 1);
    guest.put_u32s(ARG, &[u32::from(STRANGER)]);
    for operation in [
        op::CURRENT_RESERVATION,
        op::MAXIMUM_RESERVATION,
        op::MAXIMUM_GPFN,
    ] {
        assert_eq!(guest.call(MEMORY_OP, &[operation, ARG]), error(Errno::Srch));
        assert_eq!(
            guest.call(MEMORY_OP, &[operation | 64, ARG]),
            error(Errno::Inval)
        );
    }
}

#[test]
fn operations_of_toolstacks_and_absent_features_are_refused() {
    let mut guest = Guest::new(1);
    guest.put(ARG, &[0; 64]);
    for (operation, dom_at, own, stranger) in [
        (op::GET_VNUMAINFO, 0, Errno::OpNotSupp, Errno::Srch),
        (op::ACQUIRE_RESOURCE, 0, Errno::Acces, Errno::Acces),
        (op::ACCESS_OP, 2, Errno::Perm, Errno::Srch),
        (op::SET_POD_TARGET, 32, Errno::Perm, Errno::Srch),
        (op::GET_POD_TARGET, 32, Errno::Perm, Errno::Srch),
        (op::CLAIM_PAGES, 24, Errno::Perm, Errno::Inval),
        // Domain 0, as what is not there in these.
        (op::ACCESS_OP, 4, Errno::Inval, Errno::Inval),
        (op::SET_POD_TARGET, 34, Errno::Inval, Errno::Inval),
        (op::CLAIM_PAGES, 26, Errno::Perm, Errno::Perm),
        (op::GET_VNUMAINFO, 4, Errno::Perm, Errno::Perm),
    ] {
        guest.put(ARG, &[0; 64]);
        guest.put(ARG + dom_at, &OWN.to_le_bytes());
        assert_eq!(
            guest.call(MEMORY_OP, &[operation, ARG]),
            error(own),
            "{operation}"
        );
        guest.put(ARG + dom_at, &STRANGER.to_le_bytes());
        assert_eq!(
            guest.call(MEMORY_OP, &[operation, ARG]),
            error(stranger),
            "{operation}"
        );
    }
    for operation in [8, 10, 12, 20, 22, 29, 63] {
        assert_eq!(
            guest.call(MEMORY_OP, &[operation, ARG]),
            error(Errno::NoSys),
            "{operation}"
        );
    }
    assert_eq!(guest.call(MEMORY_OP, &[25, ARG]), error(Errno::OpNotSupp));
}

#[test]
fn no_page_is_shared_and_no_machine_frame_is_told() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.call(MEMORY_OP, &[op::GET_SHARING_FREED_PAGES, 0]), 0);
    assert_eq!(guest.call(MEMORY_OP, &[op::GET_SHARING_SHARED_PAGES, 0]), 0);
    guest.put_u64s(ARG, &[4, LIST, 7]);
    guest.put_u64s(LIST, &[5; 4]);
    assert_eq!(guest.call(MEMORY_OP, &[op::MACHPHYS_MFN_LIST, ARG]), 0);
    assert_eq!((guest.u32(ARG + 16), guest.u32(LIST)), (0, 5));
    assert_eq!(
        guest.call(MEMORY_OP, &[op::MACHPHYS_MFN_LIST, 0xdead_0000]),
        error(Errno::Fault)
    );
}

#[test]
fn a_position_is_for_operations_on_lists() {
    let mut guest = Guest::new(1);
    guest.put(ARG, &[0; 80]);
    for operation in [2, 3, 4, 11, 14, 15, 24, 26, 27] {
        let reply = guest.call(MEMORY_OP, &[operation | 1 << 6, ARG]);
        assert_eq!(reply, error(Errno::Inval), "{operation}");
    }
    for operation in [5, 8, 9, 10, 12, 13, 16, 17, 18, 19, 20, 22, 25, 29] {
        let reply = guest.call(MEMORY_OP, &[operation | 1 << 6, ARG]);
        assert_eq!(reply, error(Errno::NoSys), "{operation}");
    }
}

#[test]
fn exchange_is_refused_for_a_translated_domain() {
    let mut guest = Guest::new(1);
    guest.put(ARG, &[0; 80]);
    for half in [ARG, ARG + 32] {
        guest.put_u64s(half, &[LIST, 1]);
        guest.put(half + 24, &SELF.to_le_bytes());
    }
    // The first page is looked for, then refused.
    for (page, errno) in [
        (0x20, Errno::OpNotSupp),
        (PAGES, Errno::Inval),
        (u64::MAX, Errno::Inval),
    ] {
        guest.put_u64s(LIST, &[page]);
        assert_eq!(
            guest.call(MEMORY_OP, &[op::EXCHANGE, ARG]),
            error(errno),
            "{page:#x}"
        );
    }
    guest.put_u64s(ARG, &[0xdead_0000]);
    assert_eq!(
        guest.call(MEMORY_OP, &[op::EXCHANGE, ARG]),
        error(Errno::Fault)
    );
    // A node that is not there.
    guest.put_u32s(ARG + 32 + 20, &[1 << 17 | 2 << 8]);
    assert_eq!(
        guest.call(MEMORY_OP, &[op::EXCHANGE, ARG]),
        error(Errno::Inval)
    );
    guest.put_u64s(ARG, &[LIST]);
    guest.put_u32s(ARG + 32 + 20, &[0]);
    // All done already, more than all.
    for (done, reply) in [(1, 0), (2, error(Errno::Inval))] {
        guest.put_u64s(ARG + 64, &[done]);
        assert_eq!(guest.call(MEMORY_OP, &[op::EXCHANGE, ARG]), reply);
    }
    guest.put_u64s(ARG + 64, &[0]);
    guest.put_u32s(ARG + 16, &[10]);
    assert_eq!(
        guest.call(MEMORY_OP, &[op::EXCHANGE, ARG]),
        error(Errno::Perm)
    );
    guest.put_u32s(ARG + 16, &[1]);
    assert_eq!(
        guest.call(MEMORY_OP, &[op::EXCHANGE, ARG]),
        error(Errno::Inval)
    );
}

#[test]
fn no_device_memory_is_reserved() {
    let mut guest = Guest::new(1);
    guest.put_u32s(ARG, &[0, 5]);
    assert_eq!(
        guest.call(MEMORY_OP, &[op::RESERVED_DEVICE_MEMORY_MAP, ARG]),
        0
    );
    assert_eq!(guest.u32(ARG + 4), 0);
}
