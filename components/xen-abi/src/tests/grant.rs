//! `grant_table_op`.

use super::harness::*;
use crate::domain::number::GRANT_TABLE_OP;
use crate::grant::{op, status};
use crate::*;

pub fn grant_op(guest: &mut Guest, operation: u32, count: u64) -> i64 {
    guest.call(GRANT_TABLE_OP, &[u64::from(operation), ARG, count])
}

pub fn status_at(guest: &Guest, at: u64) -> i16 {
    guest.u16(at) as i16
}

#[test]
fn query_size_tells_frames_and_limit() {
    let mut guest = Guest::new(1);
    guest.put_u32s(ARG, &[u32::from(SELF), 0, 0, 0xffff]);
    assert_eq!(grant_op(&mut guest, op::QUERY_SIZE, 1), 0);
    assert_eq!((guest.u32(ARG + 4), guest.u32(ARG + 8)), (1, 4));
    assert_eq!(status_at(&guest, ARG + 12), status::OKAY);
    guest.put_u32s(ARG, &[u32::from(STRANGER)]);
    assert_eq!(grant_op(&mut guest, op::QUERY_SIZE, 1), 0);
    assert_eq!(status_at(&guest, ARG + 12), status::BAD_DOMAIN);
    assert_eq!(grant_op(&mut guest, op::QUERY_SIZE, 2), error(Errno::Inval));
}

#[test]
fn setup_table_answers_where_frames_are_mapped() {
    let mut guest = Guest::new(1);
    // XENMEM_add_to_physmap of grant frame 1 at 0x20.
    guest.put_u32s(LIST, &[u32::from(SELF), 1]);
    guest.put_u64s(LIST + 8, &[1, 0x20]);
    assert_eq!(guest.call(12, &[7, LIST]), 0);
    guest.put_u32s(ARG, &[u32::from(SELF), 2, 0, 0]);
    guest.put_u64s(ARG + 16, &[LIST]);
    assert_eq!(grant_op(&mut guest, op::SETUP_TABLE, 1), 0);
    assert_eq!(status_at(&guest, ARG + 8), status::OKAY);
    assert_eq!((guest.u64(LIST), guest.u64(LIST + 8)), (u64::MAX, 0x20));
    guest.put_u32s(ARG, &[u32::from(SELF), 5]);
    assert_eq!(grant_op(&mut guest, op::SETUP_TABLE, 1), 0);
    assert_eq!(status_at(&guest, ARG + 8), status::GENERAL_ERROR);
    guest.put_u32s(ARG, &[u32::from(STRANGER), 1]);
    assert_eq!(grant_op(&mut guest, op::SETUP_TABLE, 1), 0);
    assert_eq!(status_at(&guest, ARG + 8), status::BAD_DOMAIN);
    guest.put_u32s(ARG, &[u32::from(SELF), 1]);
    guest.put_u64s(ARG + 16, &[0xdead_0000]);
    assert_eq!(grant_op(&mut guest, op::SETUP_TABLE, 1), 0);
    assert_eq!(status_at(&guest, ARG + 8), status::BAD_VIRT_ADDR);
}

#[test]
fn version_1_is_the_only_one_where_no_other_is_allowed() {
    let mut guest = Guest::with(Config {
        max_grant_version: 1,
        ..config(1)
    });
    for (wanted, reply) in [(1, 0), (2, error(Errno::NoSys)), (3, error(Errno::Inval))] {
        guest.put_u32s(ARG, &[wanted]);
        assert_eq!(grant_op(&mut guest, op::SET_VERSION, 1), reply);
        assert_eq!(guest.u32(ARG), 1);
    }
    guest.put_u32s(ARG, &[u32::from(SELF), 0]);
    assert_eq!(grant_op(&mut guest, op::GET_VERSION, 1), 0);
    assert_eq!(guest.u32(ARG + 4), 1);
    guest.put_u32s(ARG, &[u32::from(STRANGER), 0]);
    assert_eq!(grant_op(&mut guest, op::GET_VERSION, 1), error(Errno::Srch));
}

#[test]
fn maps_and_unmaps_are_refused_entry_by_entry() {
    let mut guest = Guest::new(1);
    let maps = [
        (2, 8, STRANGER, status::BAD_DOMAIN),
        (0, 8, STRANGER, status::BAD_GNTREF),
        // Into a device's map.
        (3, 8, STRANGER, status::GENERAL_ERROR),
        // The domain's own, by its number only.
        (2, 8, OWN, status::GENERAL_ERROR),
        (2, 1 << 20, OWN, status::BAD_GNTREF),
        (2, 8, SELF, status::BAD_DOMAIN),
        // Domain 0's.
        (2, 8, 0, status::GENERAL_ERROR),
        (2, 512, 0, status::BAD_GNTREF),
    ];
    for (at, (flags, reference, dom, _)) in (ARG..).step_by(32).zip(maps) {
        guest.put_u32s(at, &[0, 0, flags, reference, u32::from(dom), 0, 0, 0]);
    }
    assert_eq!(
        grant_op(&mut guest, op::MAP_GRANT_REF, maps.len() as u64),
        0
    );
    for (at, (.., expected)) in (ARG..).step_by(32).zip(maps) {
        assert_eq!(status_at(&guest, at + 18), expected, "{at:#x}");
    }
    guest.put(ARG, &[0; 48]);
    assert_eq!(grant_op(&mut guest, op::UNMAP_GRANT_REF, 2), 0);
    assert_eq!(status_at(&guest, ARG + 20), status::BAD_HANDLE);
    assert_eq!(status_at(&guest, ARG + 24 + 20), status::BAD_HANDLE);
}

#[test]
fn long_lists_of_maps_are_preempted_and_finish() {
    let mut guest = Guest::new(1);
    for index in 0..100 {
        guest.put_u32s(
            ARG + index * 32,
            &[0, 0, 2, 8, u32::from(STRANGER), 0, 0, 0],
        );
    }
    let map = u64::from(op::MAP_GRANT_REF);
    assert_eq!(guest.call_to_end(GRANT_TABLE_OP, &[map, ARG, 100]), (0, 3));
    assert_eq!(status_at(&guest, ARG + 99 * 32 + 18), status::BAD_DOMAIN);
}

#[test]
fn swap_exchanges_two_entries() {
    let mut guest = Guest::new(1);
    let table = SpecialFrame::GrantTable(0).address();
    guest.put_u64s(table + 8 * 8, &[0x1111, 0x2222]);
    guest.put_u32s(ARG, &[8, 9, 0xffff]);
    assert_eq!(grant_op(&mut guest, op::SWAP_GRANT_REF, 1), 0);
    assert_eq!(status_at(&guest, ARG + 8), status::OKAY);
    assert_eq!(
        (guest.u64(table + 64), guest.u64(table + 72)),
        (0x2222, 0x1111)
    );
    guest.put_u32s(ARG, &[8, 512, 0]);
    assert_eq!(grant_op(&mut guest, op::SWAP_GRANT_REF, 1), 0);
    assert_eq!(status_at(&guest, ARG + 8), status::BAD_GNTREF);
}

#[test]
fn references_of_console_and_store_are_in_use_by_domain_0() {
    let mut guest = Guest::new(1);
    let table = SpecialFrame::GrantTable(0).address();
    let entries = [0, 1, 8].map(|page| (10 + page) << 32 | u64::from(OWN) << 16 | 1);
    guest.put_u64s(table, &entries[..2]);
    guest.put_u64s(table + 64, &entries[2..]);
    for (one, other, expected) in [
        (0, 8, status::EAGAIN),
        (8, 1, status::EAGAIN),
        (1, 512, status::BAD_GNTREF),
        (1, 1, status::OKAY),
        (8, 9, status::OKAY),
        (9, 8, status::OKAY),
    ] {
        guest.put_u32s(ARG, &[one, other, 0xffff]);
        assert_eq!(grant_op(&mut guest, op::SWAP_GRANT_REF, 1), 0);
        assert_eq!(status_at(&guest, ARG + 8), expected, "{one} {other}");
    }
    for (reference, expected) in [
        (0, status::GENERAL_ERROR),
        (1, status::GENERAL_ERROR),
        (8, status::OKAY),
    ] {
        put_copy(&mut guest, (reference, SELF, 0), (9, SELF, 0), 8, 1);
        assert_eq!(grant_op(&mut guest, op::COPY, 1), 0);
        assert_eq!(status_at(&guest, ARG + 36), expected, "{reference}");
    }
}

/// A `struct gnttab_copy`: (name, domain, offset) of source and destination, length, flags.
pub fn put_copy(
    guest: &mut Guest,
    source: (u64, u16, u16),
    target: (u64, u16, u16),
    length: u16,
    flags: u16,
) {
    guest.put(ARG, &[0; 40]);
    for (at, (name, dom, offset)) in [(ARG, source), (ARG + 16, target)] {
        guest.put_u64s(at, &[name]);
        guest.put(at + 8, &dom.to_le_bytes());
        guest.put(at + 10, &offset.to_le_bytes());
    }
    guest.put(ARG + 32, &length.to_le_bytes());
    guest.put(ARG + 34, &flags.to_le_bytes());
}

#[test]
fn copy_works_between_own_pages_and_own_grants() {
    let mut guest = Guest::new(1);
    guest.put(0x8000, &[7; 4096]);
    put_copy(&mut guest, (8, SELF, 0), (9, SELF, 16), 1000, 0);
    assert_eq!(grant_op(&mut guest, op::COPY, 1), 0);
    assert_eq!(status_at(&guest, ARG + 36), status::OKAY);
    assert_eq!(
        (guest.bytes::<1>(0x900f), guest.bytes::<1>(0x9010)),
        ([0], [7])
    );
    assert_eq!(
        (
            guest.bytes::<1>(0x9010 + 999),
            guest.bytes::<1>(0x9010 + 1000)
        ),
        ([7], [0])
    );
    // Reference 3 grants page 10 to the domain itself, read-only.
    let entry = SpecialFrame::GrantTable(0).address() + 24;
    guest.put_u64s(entry, &[10 << 32 | u64::from(OWN) << 16 | 5]);
    guest.put(0xa000, &[9; 64]);
    put_copy(&mut guest, (3, OWN, 0), (9, SELF, 0), 64, 1);
    assert_eq!(grant_op(&mut guest, op::COPY, 1), 0);
    assert_eq!(status_at(&guest, ARG + 36), status::OKAY);
    assert_eq!(guest.bytes::<1>(0x9000), [9]);
    put_copy(&mut guest, (9, SELF, 0), (3, OWN, 0), 64, 2);
    assert_eq!(grant_op(&mut guest, op::COPY, 1), 0);
    assert_eq!(
        status_at(&guest, ARG + 36),
        status::GENERAL_ERROR,
        "read-only"
    );
}

#[test]
fn copies_reach_special_frames_that_are_mapped() {
    let mut guest = Guest::new(1);
    // XENMEM_add_to_physmap of grant frame 1 at 0x20.
    guest.put_u32s(LIST, &[u32::from(SELF), 1]);
    guest.put_u64s(LIST + 8, &[1, 0x20]);
    assert_eq!(guest.call(12, &[7, LIST]), 0);
    let frame = SpecialFrame::GrantTable(1).address();
    guest.put(0x9000, &[5; 16]);
    put_copy(&mut guest, (9, SELF, 0), (0x20, SELF, 8), 16, 0);
    assert_eq!(grant_op(&mut guest, op::COPY, 1), 0);
    assert_eq!(status_at(&guest, ARG + 36), status::OKAY);
    assert_eq!(guest.bytes::<16>(frame + 8), [5; 16]);
    put_copy(&mut guest, (0x20, SELF, 8), (10, SELF, 0), 16, 0);
    assert_eq!(grant_op(&mut guest, op::COPY, 1), 0);
    assert_eq!(guest.bytes::<16>(0xa000), [5; 16]);
    // Not by the addresses that only the hypervisor has for them.
    let hidden = SpecialFrame::GrantTable(0).address() / PAGE_SIZE;
    put_copy(&mut guest, (hidden, SELF, 0), (10, SELF, 0), 16, 0);
    assert_eq!(grant_op(&mut guest, op::COPY, 1), 0);
    assert_eq!(status_at(&guest, ARG + 36), status::BAD_PAGE);
}

#[test]
fn copies_that_name_what_is_not_there_get_xens_status() {
    let mut guest = Guest::new(1);
    for (source, target, length, flags, expected) in [
        // Absent domains come first, then all of the source, then the target.
        ((8, STRANGER, 0), (9, SELF, 0), 8, 0, status::BAD_DOMAIN),
        ((8, OWN, 0), (9, STRANGER, 0), 8, 0, status::BAD_DOMAIN),
        ((PAGES, SELF, 0), (9, OWN, 0), 8, 0, status::BAD_PAGE),
        ((8, SELF, 0), (9, OWN, 0), 8, 0, status::PERMISSION_DENIED),
        ((8, 0, 0), (9, SELF, 0), 8, 0, status::PERMISSION_DENIED),
        // Domain 0's grants, and a reference below what is left of a frame.
        ((8, 0, 0), (9, SELF, 0), 8, 1, status::GENERAL_ERROR),
        ((512, 0, 0), (9, SELF, 0), 8, 1, status::BAD_GNTREF),
        (
            (1 << 32 | 3, SELF, 0),
            (9, SELF, 0),
            8,
            1,
            status::GENERAL_ERROR,
        ),
        ((8, OWN, 0), (9, SELF, 0), 8, 0, status::PERMISSION_DENIED),
        ((8, STRANGER, 0), (9, SELF, 0), 8, 1, status::BAD_DOMAIN),
        ((8, SELF, 4000), (9, SELF, 0), 100, 0, status::BAD_COPY_ARG),
        ((8, SELF, 0), (PAGES, SELF, 0), 8, 0, status::BAD_PAGE),
        ((600, SELF, 0), (9, SELF, 0), 8, 1, status::BAD_GNTREF),
        ((3, SELF, 0), (9, SELF, 0), 8, 1, status::GENERAL_ERROR),
    ] {
        put_copy(&mut guest, source, target, length, flags);
        assert_eq!(grant_op(&mut guest, op::COPY, 1), 0);
        assert_eq!(
            status_at(&guest, ARG + 36),
            expected,
            "{source:?} {target:?}"
        );
    }
}

#[test]
fn compat_copy_is_24_bytes() {
    let mut guest = Guest::new_32(1);
    guest.put(0x8000, &[7; 64]);
    let own = u32::from(SELF);
    guest.put_u32s(ARG, &[8, own, 9, own, 64, 0xffff]);
    assert_eq!(grant_op(&mut guest, op::COPY, 1), 0);
    assert_eq!(status_at(&guest, ARG + 20), status::OKAY);
    assert_eq!(guest.bytes::<1>(0x903f), [7]);
}

#[test]
fn operations_outside_an_hvm_domains_filter_are_refused() {
    let mut guest = Guest::new(1);
    for operation in [3, 4, 7, 9, 12, 13, 1 << 12 | 6] {
        assert_eq!(grant_op(&mut guest, operation, 1), error(Errno::NoSys));
    }
    assert_eq!(grant_op(&mut guest, op::COPY, 1 << 31), error(Errno::Inval));
}
