//! Version 2 of the grant table: entries of 16 bytes, status words, parts of pages, and the way there
//! and back.

use std::cell::Cell;
use std::vec::Vec;

use super::grant::{grant_op, put_copy, status_at};
use super::harness::*;
use crate::domain::number::{GRANT_TABLE_OP, MEMORY_OP};
use crate::grant::{op, status};
use crate::*;

const PERMIT: u16 = 1;
const TRANSITIVE: u16 = 3;
const READONLY: u16 = 4;
const READING: u16 = 8;
const WRITING: u16 = 16;
const SUB_PAGE: u16 = 1 << 8;
/// `XENMAPIDX_grant_table_status`.
const STATUS_FRAME: u64 = 1 << 31;
const BACKEND: u16 = 0;

pub fn set_version(guest: &mut Guest, version: u32) -> i64 {
    guest.put_u32s(ARG, &[version]);
    let reply = grant_op(guest, op::SET_VERSION, 1);
    let told = guest.u32(ARG);
    guest.put_u32s(ARG, &[u32::from(SELF), 0]);
    assert_eq!(grant_op(guest, op::GET_VERSION, 1), 0);
    assert_eq!(guest.u32(ARG + 4), told);
    reply
}

/// A guest that has gone over to version 2.
fn guest() -> Guest {
    let mut guest = Guest::new(1);
    assert_eq!(set_version(&mut guest, 2), 0);
    guest
}

pub fn entry_v1(reference: u32) -> u64 {
    SpecialFrame::GrantTable(0).address() + u64::from(reference) * 8
}

pub fn entry_v2(reference: u32) -> u64 {
    SpecialFrame::GrantTable(reference / 256).address() + u64::from(reference % 256) * 16
}

pub fn status_word(reference: u32) -> u64 {
    SpecialFrame::GrantStatus(0).address() + u64::from(reference) * 2
}

/// `grant_entry_v2_t`.
fn put(guest: &mut Guest, reference: u32, flags: u16, domid: u16, frame: u64) {
    put_part(guest, reference, (flags, domid), (0, 0), frame);
}

fn put_part(
    guest: &mut Guest,
    reference: u32,
    (flags, domid): (u16, u16),
    (offset, length): (u16, u16),
    frame: u64,
) {
    let word = |low: u16, high: u16| u64::from(low) | u64::from(high) << 16;
    let first = word(flags, domid) | word(offset, length) << 32;
    guest.put_u64s(entry_v2(reference), &[first, frame]);
}

fn pin(guest: &mut Guest, domain: u16, reference: u32, write: bool) -> Result<u64, i16> {
    let is_ram = |gfn| gfn < PAGES;
    guest
        .domain
        .pin_grant(domain, reference, write, &guest.memory, is_ram)
}

fn unpin(guest: &mut Guest, reference: u32, write: bool) {
    guest.domain.unpin_grant(reference, write, &guest.memory);
}

fn copy(guest: &mut Guest, source: (u64, u16), target: (u64, u16), length: u16, flags: u16) -> i16 {
    let side = |(name, offset)| (name, SELF, offset);
    put_copy(guest, side(source), side(target), length, flags);
    assert_eq!(grant_op(guest, op::COPY, 1), 0);
    status_at(guest, ARG + 36)
}

#[test]
fn a_domain_goes_over_to_version_2_and_back() {
    let mut guest = Guest::new(1);
    let v1 = |flags: u16, frame: u64| u64::from(flags) | u64::from(BACKEND) << 16 | frame << 32;
    guest.put_u64s(entry_v1(1), &[v1(PERMIT | READING | WRITING, 0x30)]);
    guest.put_u64s(entry_v1(7), &[v1(PERMIT | READONLY, 0xffff_ffff)]);
    guest.put_u64s(entry_v1(8), &[v1(PERMIT, 9)]);
    assert_eq!(set_version(&mut guest, 2), 0);
    assert_eq!(set_version(&mut guest, 2), 0, "again");
    assert_eq!(guest.u64(entry_v2(1)), u64::from(PERMIT));
    assert_eq!(guest.u64(entry_v2(1) + 8), 0x30);
    assert_eq!(guest.u16(status_word(1)), READING | WRITING);
    assert_eq!(guest.u64(entry_v2(7)), u64::from(PERMIT | READONLY));
    assert_eq!(guest.u64(entry_v2(7) + 8), 0xffff_ffff);
    for reference in [0, 2, 4, 8, 100] {
        assert_eq!(guest.bytes::<16>(entry_v2(reference)), [0; 16]);
        assert_eq!(guest.u16(status_word(reference)), 0);
    }
    // What the guest writes to status words of others does not come back.
    guest.put(status_word(8), &[0xff; 2]);
    put(&mut guest, 8, PERMIT, BACKEND, 9);
    assert_eq!(set_version(&mut guest, 1), 0);
    assert_eq!(
        guest.u64(entry_v1(1)),
        v1(PERMIT | READING | WRITING, 0x30),
        "as before"
    );
    assert_eq!(guest.u64(entry_v1(7)), v1(PERMIT | READONLY, 0xffff_ffff));
    for reference in [0, 2, 8, 16, 17] {
        assert_eq!(guest.u64(entry_v1(reference)), 0);
    }
    assert_eq!(set_version(&mut guest, 2), 0);
    assert_eq!(guest.u16(status_word(8)), 0);
    for version in [0, 3, 258] {
        assert_eq!(set_version(&mut guest, version), error(Errno::Inval));
    }
    guest.put_u32s(ARG, &[u32::from(STRANGER), 0]);
    assert_eq!(grant_op(&mut guest, op::GET_VERSION, 1), error(Errno::Srch));
    let bad = [u64::from(op::SET_VERSION), 0xdead_0000, 1];
    assert_eq!(guest.call(GRANT_TABLE_OP, &bad), error(Errno::Fault));
}

#[test]
fn the_version_stays_while_a_grant_is_in_use() {
    let mut guest = guest();
    put(&mut guest, 8, PERMIT, BACKEND, 9);
    assert_eq!(pin(&mut guest, BACKEND, 8, false), Ok(9));
    assert_eq!(set_version(&mut guest, 1), error(Errno::Busy));
    assert_eq!(set_version(&mut guest, 2), 0, "no change");
    assert_eq!(guest.u64(entry_v2(8)), u64::from(PERMIT));
    unpin(&mut guest, 8, false);
    assert_eq!(set_version(&mut guest, 1), 0);
    guest.put_u64s(entry_v1(8), &[9 << 32 | u64::from(PERMIT)]);
    assert_eq!(pin(&mut guest, BACKEND, 8, true), Ok(9));
    assert_eq!(set_version(&mut guest, 2), error(Errno::Busy));
}

#[test]
fn a_toolstacks_grant_stays_in_use_over_a_change_of_version() {
    let mut guest = Guest::new(1);
    guest.put_u64s(entry_v1(5), &[9 << 32 | u64::from(PERMIT)]);
    assert_eq!(pin(&mut guest, BACKEND, 5, true), Ok(9));
    assert_eq!(set_version(&mut guest, 2), 0);
    assert_eq!(guest.u16(status_word(5)), READING | WRITING);
    assert_eq!(guest.u16(entry_v2(5)), PERMIT);
    assert_eq!(pin(&mut guest, BACKEND, 5, false), Ok(9));
    unpin(&mut guest, 5, true);
    assert_eq!(guest.u16(status_word(5)), READING);
    assert_eq!(set_version(&mut guest, 1), 0);
    assert_eq!(guest.u16(entry_v1(5)), PERMIT | READING);
    unpin(&mut guest, 5, false);
    assert_eq!(guest.u16(entry_v1(5)), PERMIT);
}

#[test]
fn what_version_1_cannot_say_keeps_version_2() {
    let mut guest = guest();
    for (flags, frame) in [(PERMIT, 1 << 32), (TRANSITIVE, 9)] {
        put(&mut guest, 3, flags, BACKEND, frame);
        assert_eq!(set_version(&mut guest, 1), error(Errno::Range));
        assert_eq!(guest.u64(entry_v2(3) + 8), frame, "nothing is lost");
    }
    // No grant, and a transfer that is awaited: they are emptied.
    put(&mut guest, 3, 0, BACKEND, u64::MAX);
    put(&mut guest, 4, 2, BACKEND, 9);
    // Only the toolstack's are looked at.
    put(&mut guest, 8, TRANSITIVE, BACKEND, 9);
    assert_eq!(set_version(&mut guest, 1), 0);
    assert_eq!(guest.bytes::<72>(entry_v1(0)), [0; 72]);
}

fn add_to_physmap(guest: &mut Guest, index: u64, gfn: u64) -> i64 {
    guest.put_u32s(LIST, &[u32::from(SELF), 1]);
    guest.put_u64s(LIST + 8, &[index, gfn]);
    guest.call(MEMORY_OP, &[7, LIST])
}

fn frames(guest: &mut Guest) -> u32 {
    guest.put_u32s(ARG, &[u32::from(SELF), 0, 0, 0]);
    assert_eq!(grant_op(guest, op::QUERY_SIZE, 1), 0);
    guest.u32(ARG + 4)
}

#[test]
fn frames_of_status_words_come_with_version_2_and_go_with_it() {
    let mut guest = Guest::with(Config {
        grant_frames: 20,
        ..config(1)
    });
    let inval = error(Errno::Inval);
    assert_eq!(add_to_physmap(&mut guest, STATUS_FRAME, 0x20), inval);
    assert_eq!(set_version(&mut guest, 2), 0);
    assert_eq!(add_to_physmap(&mut guest, STATUS_FRAME, 0x20), 0);
    assert_eq!(frames(&mut guest), 1);
    let status = |frame| Some(Page::Special(SpecialFrame::GrantStatus(frame)));
    assert_eq!(guest.env.map.get(&0x20).copied(), status(0));
    // The table grows by whole frames of status words.
    assert_eq!(add_to_physmap(&mut guest, STATUS_FRAME | 1, 0x21), 0);
    assert_eq!(guest.env.map.get(&0x21).copied(), status(1));
    assert_eq!(frames(&mut guest), 16);
    for index in [2, 1 << 10, STATUS_FRAME - 1] {
        assert_eq!(
            add_to_physmap(&mut guest, STATUS_FRAME | index, 0x22),
            inval
        );
    }
    // 20 frames have a third one, which is there when they are.
    assert_eq!(add_to_physmap(&mut guest, 19, 0x23), 0);
    assert_eq!(add_to_physmap(&mut guest, STATUS_FRAME | 2, 0x22), 0);
    assert_eq!(frames(&mut guest), 20);
    // One is seen by the guest, and told by its place.
    put(&mut guest, 256 * 19, PERMIT, BACKEND, 9);
    assert_eq!(pin(&mut guest, BACKEND, 256 * 19, true), Ok(9));
    let at = SpecialFrame::GrantStatus(2).address() + (256 * 19 - 4096) * 2;
    assert_eq!(guest.u16(at), READING | WRITING);
    assert_eq!(set_version(&mut guest, 1), error(Errno::Busy));
    assert_eq!(guest.env.map.get(&0x22).copied(), status(2));
    unpin(&mut guest, 256 * 19, true);
    // Something else takes the place of one.
    assert_eq!(add_to_physmap(&mut guest, 5, 0x21), 0);
    assert_eq!(set_version(&mut guest, 1), 0);
    for (gfn, page) in [
        (0x20, None),
        (0x21, Some(Page::Special(SpecialFrame::GrantTable(5)))),
        (0x22, None),
        (0x23, Some(Page::Special(SpecialFrame::GrantTable(19)))),
    ] {
        assert_eq!(guest.env.map.get(&gfn), page.as_ref(), "{gfn:#x}");
        assert_eq!(guest.domain.special_at(gfn).is_some(), page.is_some());
    }
    assert_eq!(add_to_physmap(&mut guest, STATUS_FRAME, 0x20), inval);
}

#[test]
fn a_grant_of_version_2_is_marked_in_its_status_word_only() {
    let mut guest = guest();
    for reference in [8, 9] {
        put(&mut guest, reference, PERMIT, BACKEND, 9);
        guest.put(status_word(8), &[0; 4]);
        assert_eq!(pin(&mut guest, BACKEND, reference, false), Ok(9));
        assert_eq!(guest.u16(status_word(reference)), READING);
        assert_eq!(guest.u16(status_word(17 - reference)), 0, "its neighbour");
        assert_eq!(pin(&mut guest, BACKEND, reference, true), Ok(9));
        assert_eq!(guest.u16(status_word(reference)), READING | WRITING);
        assert_eq!(guest.u16(entry_v2(reference)), PERMIT);
        // A changed entry is not asked again, but one that is for reading by now is.
        put(&mut guest, reference, PERMIT | READONLY, BACKEND, 10);
        assert_eq!(pin(&mut guest, BACKEND, reference, false), Ok(9));
        unpin(&mut guest, reference, true);
        let refused = Err(status::GENERAL_ERROR);
        assert_eq!(pin(&mut guest, BACKEND, reference, true), refused);
        assert_eq!(guest.u16(status_word(reference)), READING);
        assert_eq!(pin(&mut guest, 3, reference, false), refused, "in use");
        unpin(&mut guest, reference, false);
        unpin(&mut guest, reference, false);
        assert_eq!(guest.u16(status_word(reference)), 0);
        assert_eq!(guest.domain.pinned_grants(), 0);
    }
}

#[test]
fn what_cannot_be_mapped_is_refused_and_leaves_no_mark() {
    let mut guest = guest();
    for (flags, domid, frame, write, expected) in [
        (PERMIT, BACKEND, 9, true, Ok(9)),
        (PERMIT | SUB_PAGE, BACKEND, 9, false, Err(-1)),
        (TRANSITIVE, BACKEND, 9, false, Err(-1)),
        (2, BACKEND, 9, false, Err(-1)),
        (0, BACKEND, 9, false, Err(-1)),
        (PERMIT, 3, 9, false, Err(-1)),
        (PERMIT | READONLY, BACKEND, 9, true, Err(-1)),
        (PERMIT, BACKEND, PAGES, true, Err(status::BAD_PAGE)),
        (PERMIT, BACKEND, 1 << 32 | 9, true, Err(status::BAD_PAGE)),
        (PERMIT, BACKEND, u64::MAX, false, Err(status::BAD_PAGE)),
    ] {
        put_part(&mut guest, 8, (flags, domid), (0, 4096), frame);
        let answer = pin(&mut guest, BACKEND, 8, write);
        assert_eq!(answer, expected, "{flags:#x} {domid} {frame:#x}");
        if answer.is_ok() {
            unpin(&mut guest, 8, write);
        }
        assert_eq!(guest.u16(status_word(8)), 0);
    }
    let beyond = pin(&mut guest, BACKEND, 256, false);
    assert_eq!(beyond, Err(status::BAD_GNTREF), "half as many as before");
}

#[test]
fn copies_keep_to_the_part_of_a_page_that_is_granted() {
    let mut guest = guest();
    let pattern: Vec<u8> = (0..4096).map(|at| (at / 16) as u8).collect();
    guest.put(0xa000, &pattern);
    put_part(&mut guest, 8, (PERMIT | SUB_PAGE, OWN), (160, 64), 10);
    for (offset, length, expected) in [
        (160, 64, status::OKAY),
        (192, 32, status::OKAY),
        (159, 2, status::GENERAL_ERROR),
        (160, 65, status::GENERAL_ERROR),
        (224, 1, status::GENERAL_ERROR),
        // Nothing, at its end and behind it.
        (224, 0, status::OKAY),
        (225, 0, status::GENERAL_ERROR),
        // Beyond the page comes first.
        (4000, 97, status::BAD_COPY_ARG),
        (u16::MAX, u16::MAX, status::BAD_COPY_ARG),
    ] {
        guest.put(0x9000, &[0xee; 128]);
        let answer = copy(&mut guest, (8, offset), (9, 0), length, 1);
        assert_eq!(answer, expected, "{offset} {length}");
        let copied = if answer == status::OKAY { length } else { 0 };
        let first = usize::from(offset);
        let bytes: [u8; 128] = guest.bytes(0x9000);
        assert_eq!(
            bytes[..copied.into()],
            pattern[first.min(4096)..][..copied.into()]
        );
        assert!(bytes[copied.into()..].iter().all(|byte| *byte == 0xee));
        // To it as well.
        let answer = copy(&mut guest, (9, 0), (8, offset), length, 2);
        assert_eq!(answer, expected, "{offset} {length}");
        guest.put(0xa000, &pattern);
        assert_eq!(guest.u16(status_word(8)), 0, "over");
    }
}

#[test]
fn parts_that_reach_beyond_their_page_are_good_to_its_end() {
    let mut guest = guest();
    for (offset, length) in [(4000, u16::MAX), (4000, 97), (0x8000 | 4000, 96)] {
        put_part(
            &mut guest,
            8,
            (PERMIT | SUB_PAGE, OWN),
            (offset, length),
            10,
        );
        assert_eq!(copy(&mut guest, (8, 4000), (9, 0), 96, 1), status::OKAY);
        let beyond = copy(&mut guest, (8, 4000), (9, 0), 97, 1);
        assert_eq!(beyond, status::BAD_COPY_ARG);
        let before = copy(&mut guest, (8, 3999), (9, 0), 1, 1);
        assert_eq!(before, status::GENERAL_ERROR);
    }
    put_part(
        &mut guest,
        8,
        (PERMIT | SUB_PAGE, OWN),
        (0x7fff, u16::MAX),
        10,
    );
    let nowhere = copy(&mut guest, (8, 4095), (9, 0), 1, 1);
    assert_eq!(nowhere, status::GENERAL_ERROR);
    put_part(&mut guest, 8, (PERMIT | SUB_PAGE, OWN), (0, 4096), 1 << 40);
    assert_eq!(copy(&mut guest, (8, 0), (9, 0), 1, 1), status::BAD_PAGE);
    assert_eq!(guest.u16(status_word(8)), 0);
}

#[test]
fn a_part_may_be_both_sides_of_a_copy() {
    let mut guest = guest();
    guest.put(0xa000, &[1, 2, 3, 4]);
    put_part(&mut guest, 8, (PERMIT | SUB_PAGE, OWN), (0, 8), 10);
    assert_eq!(copy(&mut guest, (8, 0), (8, 4), 4, 3), status::OKAY);
    assert_eq!(guest.bytes(0xa000), [1, 2, 3, 4, 1, 2, 3, 4]);
    put_part(
        &mut guest,
        8,
        (PERMIT | SUB_PAGE | READONLY, OWN),
        (0, 8),
        10,
    );
    let refused = copy(&mut guest, (8, 0), (8, 4), 4, 3);
    assert_eq!(refused, status::GENERAL_ERROR);
    assert_eq!(guest.u16(status_word(8)), 0);
    assert_eq!(guest.domain.pinned_grants(), 0);
}

#[test]
fn transitive_grants_are_not_followed() {
    let mut guest = guest();
    // To domain 3's reference 8, and to the own one.
    for domid in [3, OWN, 0] {
        put_part(&mut guest, 9, (TRANSITIVE, OWN), (domid, 0), 8);
        for (source, flags) in [((9, 0), 1), ((8, 0), 2)] {
            let answer = copy(&mut guest, source, (9, 0), 8, flags);
            assert_eq!(answer, status::GENERAL_ERROR);
            assert_eq!(guest.u16(status_word(9)), 0);
        }
    }
    put_part(&mut guest, 9, (TRANSITIVE, STRANGER), (3, 0), 8);
    let foreign = copy(&mut guest, (9, 0), (9, 0), 8, 1);
    assert_eq!(foreign, status::GENERAL_ERROR);
}

#[test]
fn swap_exchanges_entries_and_their_status() {
    let mut guest = guest();
    put(&mut guest, 8, PERMIT, BACKEND, 9);
    guest.put(status_word(8), &[1, 2, 3, 4]);
    let (one, other) = (
        guest.bytes::<16>(entry_v2(8)),
        guest.bytes::<16>(entry_v2(9)),
    );
    guest.put_u32s(ARG, &[8, 9, 0xffff]);
    assert_eq!(grant_op(&mut guest, op::SWAP_GRANT_REF, 1), 0);
    assert_eq!(status_at(&guest, ARG + 8), status::OKAY);
    assert_eq!(guest.bytes(entry_v2(8)), other);
    assert_eq!(guest.bytes(entry_v2(9)), one);
    assert_eq!(guest.bytes(status_word(8)), [3, 4, 1, 2]);
    guest.put_u32s(ARG, &[8, 256, 0]);
    assert_eq!(grant_op(&mut guest, op::SWAP_GRANT_REF, 1), 0);
    assert_eq!(status_at(&guest, ARG + 8), status::BAD_GNTREF);
}

/// Memory whose guest changes an entry at the moment when it is marked.
struct Racing<'a> {
    memory: &'a TestMemory,
    entry: u64,
    becomes: u32,
    /// How often yet.
    left: Cell<u32>,
}

impl Racing<'_> {
    fn now(&self) {
        if let Some(left) = self.left.get().checked_sub(1) {
            self.left.set(left);
            // A value of its own each time, so that no exchange finds what it expects.
            let word = self.becomes ^ left << 9;
            self.memory.write_u32(self.entry, word).unwrap();
        }
    }
}

impl GuestMemory for Racing<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unbacked> {
        self.memory.read(address, buffer)
    }
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unbacked> {
        self.memory.write(address, bytes)
    }
    fn read_u32(&self, address: u64) -> Result<u32, Unbacked> {
        self.memory.read_u32(address)
    }
    fn write_u32(&self, address: u64, value: u32) -> Result<(), Unbacked> {
        self.memory.write_u32(address, value)
    }
    fn fetch_or_u32(&self, address: u64, bits: u32) -> Result<u32, Unbacked> {
        self.now();
        self.memory.fetch_or_u32(address, bits)
    }
    fn fetch_and_u32(&self, address: u64, bits: u32) -> Result<u32, Unbacked> {
        self.memory.fetch_and_u32(address, bits)
    }
    fn compare_exchange_u32(&self, address: u64, current: u32, new: u32) -> Result<u32, Unbacked> {
        self.now();
        self.memory.compare_exchange_u32(address, current, new)
    }
}

#[test]
fn an_entry_that_changes_while_it_is_marked_is_refused() {
    let to = |flags: u16, domid: u16| u32::from(flags) | u32::from(domid) << 16;
    for (becomes, write, expected) in [
        (to(0, BACKEND), false, Err(status::GENERAL_ERROR)),
        (to(PERMIT, 3), true, Err(status::GENERAL_ERROR)),
        (
            to(PERMIT | SUB_PAGE, BACKEND),
            true,
            Err(status::GENERAL_ERROR),
        ),
        (
            to(PERMIT | READONLY, BACKEND),
            true,
            Err(status::GENERAL_ERROR),
        ),
        (to(PERMIT | READONLY, BACKEND), false, Ok(9)),
    ] {
        for version in [1, 2] {
            let mut guest = Guest::new(1);
            assert_eq!(set_version(&mut guest, version), 0);
            let entry = if version == 1 {
                guest.put_u64s(entry_v1(8), &[9 << 32 | u64::from(PERMIT)]);
                entry_v1(8)
            } else {
                put(&mut guest, 8, PERMIT, BACKEND, 9);
                entry_v2(8)
            };
            let memory = Racing {
                memory: &guest.memory,
                entry,
                becomes,
                left: Cell::new(1),
            };
            let domain = &mut guest.domain;
            let answer = domain.pin_grant(BACKEND, 8, write, &memory, |gfn| gfn < PAGES);
            assert_eq!(answer, expected, "{becomes:#x} in version {version}");
            let marked = if version == 1 {
                guest.u16(entry) & (READING | WRITING)
            } else {
                guest.u16(status_word(8))
            };
            assert_eq!(marked, if answer.is_ok() { READING } else { 0 });
        }
    }
}

#[test]
fn a_guest_that_writes_without_end_gets_an_error() {
    let mut guest = Guest::new(1);
    guest.put_u64s(entry_v1(8), &[9 << 32 | u64::from(PERMIT)]);
    let memory = Racing {
        memory: &guest.memory,
        entry: entry_v1(8),
        becomes: u32::from(PERMIT),
        left: Cell::new(100),
    };
    let answer = guest.domain.pin_grant(BACKEND, 8, false, &memory, |_| true);
    assert_eq!(answer, Err(status::GENERAL_ERROR));
    assert_eq!(memory.left.get(), 95);
}
