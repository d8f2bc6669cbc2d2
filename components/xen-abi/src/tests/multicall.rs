//! `multicall`.

use super::harness::*;
use crate::domain::number::{CONSOLE_IO, MULTICALL, SCHED_OP, XEN_VERSION};
use crate::*;

fn put_entry(guest: &mut Guest, index: u64, number: u64, arguments: &[u64]) {
    guest.put(LIST + index * 64, &[0; 64]);
    guest.put_u64s(LIST + index * 64, &[number]);
    guest.put_u64s(LIST + index * 64 + 16, arguments);
}

#[test]
fn every_call_of_a_list_gets_its_result() {
    let mut guest = Guest::new(1);
    put_entry(&mut guest, 0, XEN_VERSION, &[0, 0]);
    put_entry(&mut guest, 1, 55, &[]);
    put_entry(&mut guest, 2, MULTICALL, &[LIST, 1]);
    assert_eq!(guest.call(MULTICALL, &[LIST, 3]), 0);
    assert_eq!(guest.u64(LIST + 8), 0x4_0011);
    assert_eq!(guest.u64(LIST + 64 + 8) as i64, error(Errno::NoSys));
    assert_eq!(
        guest.u64(LIST + 128 + 8) as i64,
        error(Errno::Inval),
        "no nesting"
    );
}

#[test]
fn compat_entries_are_half_as_big() {
    let mut guest = Guest::new_32(1);
    guest.put_u32s(LIST, &[XEN_VERSION as u32, 0, 0, 0, 0, 0, 0, 0, 55]);
    assert_eq!(guest.call(MULTICALL, &[LIST, 2]), 0);
    assert_eq!(guest.u32(LIST + 4), 0x4_0011);
    assert_eq!(guest.u32(LIST + 32 + 4) as i32, error(Errno::NoSys) as i32);
}

#[test]
fn long_lists_are_preempted_and_finish() {
    let mut guest = Guest::new(1);
    for index in 0..100 {
        put_entry(&mut guest, index, XEN_VERSION, &[0, 0]);
    }
    assert_eq!(guest.call_to_end(MULTICALL, &[LIST, 100]), (0, 3));
    for index in 0..100 {
        assert_eq!(guest.u64(LIST + index * 64 + 8), 0x4_0011);
    }
}

#[test]
fn a_long_call_within_a_list_continues_in_its_entry() {
    let mut guest = Guest::new(1);
    guest.put(0x8000, &[b'x'; 3000]);
    put_entry(&mut guest, 0, CONSOLE_IO, &[0, 3000, 0x8000]);
    put_entry(&mut guest, 1, XEN_VERSION, &[0, 0]);
    let (result, restarts) = guest.call_to_end(MULTICALL, &[LIST, 2]);
    assert_eq!((result, restarts), (0, 2));
    assert_eq!(guest.u64(LIST + 64 + 8), 0x4_0011);
    let written: usize = guest
        .effects()
        .iter()
        .map(|effect| match effect {
            Effect::Console(bytes) => bytes.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(written, 3000);
}

#[test]
fn block_within_a_list_happens_after_it() {
    let mut guest = Guest::new(1);
    put_entry(&mut guest, 0, SCHED_OP, &[1, 0]);
    put_entry(&mut guest, 1, XEN_VERSION, &[0, 0]);
    let outcome = guest.outcome(MULTICALL, &[LIST, 2]);
    assert_eq!((outcome.result, outcome.next), (0, Next::Block));
    assert_eq!(guest.u64(LIST + 64 + 8), 0x4_0011);
}

#[test]
fn unmapped_list_faults_after_what_was_done() {
    let mut guest = Guest::new(1);
    let end = PAGES * PAGE_SIZE;
    guest.put_u64s(end - 64, &[XEN_VERSION, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.call(MULTICALL, &[end - 64, 2]), error(Errno::Fault));
    assert_eq!(guest.u64(end - 56), 0x4_0011);
}
