//! Calls that move and share pages: `memory_op` and `grant_table_op`.

use super::{POINTER, Shape, number, operation};
use crate::call::{Arena, Class, Draft};
use crate::layout::{HOLE, HOLE_PAGES, LISTS, PAGE};

pub(super) fn memory<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
    let (command, name) = match operation(draft, 30) {
        (command, Class::ODD_OPERATION) => (command & !63 | 63, Class::ODD_OPERATION),
        known => known,
    };
    let mut size = 64;
    match command & 63 {
        0 | 1 | 6 => {
            let (list, bad) = draft.list();
            let count = draft.random.below(4);
            if !bad {
                for index in 0..4 {
                    let frame = match command {
                        6 => draft.empty_frame(),
                        _ => draft.frame(),
                    };
                    // Two frames of one list must not be the same: the second would lose memory.
                    let frame = if command == 6 && index > 0 {
                        1 << 41
                    } else {
                        frame
                    };
                    draft.arena.put(list + index * 8, &frame.to_le_bytes());
                }
            }
            let order = match command {
                0 => draft.random.one_of(&[10, 18, 63, 64, 0xffff_ffff]),
                1 => draft
                    .random
                    .one_of(&[0, 0, 0, 0, 0, 0, 10, 20, 64, 0xffff_ffff]),
                _ => draft.random.one_of(&[0, 0, 0, 0, 0, 0, 10, 64]),
            };
            let wild = draft.random.bits() & 0xffff_ffff;
            let flags = draft
                .random
                .one_of(&[0, 0, 0, 0, 32, 64, 1 << 16, 1 << 17, wild]);
            draft.set64(0, list);
            let many = draft.random.once_in(16);
            draft.set64(8, if many { 1 << 40 } else { count });
            draft.set32(16, order);
            draft.set32(20, flags);
            let domid = draft.domid();
            draft.set16(24, domid);
            size = 32;
        }
        7 => {
            let domid = draft.domid();
            draft.set16(0, domid);
            let length = draft.small();
            let space = draft.random.one_of(&[0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 0xffff]);
            // XENMAPSPACE_gmfn_range moves that many pages: not those past the playground's end,
            // up to which nothing else is for 2 MiB.
            draft.set16(2, if space == 3 { length & 63 } else { length });
            draft.set32(4, space);
            let index = index_in(draft, space);
            draft.set64(8, index);
            let frame = draft.frame();
            draft.set64(16, frame);
            size = 24;
        }
        9 => {
            draft.one32(0, &[0, 1, 2, 8, 64]);
            let (list, _) = draft.list();
            draft.set64(8, list);
            size = 16;
        }
        11 => {
            for at in [0, 32] {
                let (list, _) = draft.list();
                draft.set64(at, list);
                let count = draft.random.below(3);
                draft.set64(at + 8, count);
                let order = draft.random.one_of(&[0, 0, 0, 9, 10]);
                draft.set32(at + 16, order);
                draft.set32(at + 20, 0);
            }
            let domid = draft.domid();
            draft.set16(24, domid);
            draft.set16(56, domid);
            draft.set64(64, 0);
            size = 72;
        }
        13 => {
            let domid = draft.domid();
            draft.set16(0, domid);
            let count = draft.random.one_of(&[0, 1, 2, 3, 1025, 0xffff_ffff]);
            draft.set32(8, count);
            let (list, _) = draft.list();
            draft.set64(16, list);
            size = 24;
        }
        15 => {
            let domid = draft.domid();
            draft.set16(0, domid);
            let frame = draft.frame();
            draft.set64(8, frame);
            size = 16;
        }
        16 | 17 => {
            let domid = draft.domid();
            draft.set16(32, domid);
            size = 40;
        }
        21 | 22 => {
            let domid = draft.domid();
            draft.set16(2, domid);
        }
        23 => {
            let domid = draft.domid();
            draft.set16(0, domid);
            let space = draft.random.one_of(&[0, 1, 1, 1, 2, 3, 4, 5, 6]);
            draft.set16(2, space);
            let length = draft.random.below(5);
            draft.set16(4, length);
            let foreign = draft.random.one_of(&[0, 0x7ff0, 77]);
            draft.set16(6, foreign);
            for at in [8, 16, 24] {
                let (list, bad) = draft.list();
                for index in (0..4).take_while(|_| !bad) {
                    let value = match at {
                        8 => index_in(draft, space),
                        _ => draft.frame(),
                    };
                    draft.arena.put(list + index * 8, &value.to_le_bytes());
                }
                draft.set64(at, list);
            }
            size = 32;
        }
        24 => {
            draft.set64(0, 0);
            draft.one32(16, &[0, 0, 1]);
            draft.set32(20, 0);
            let domid = draft.domid();
            draft.set16(24, domid);
            size = 32;
        }
        2..=5 | 10 | 12 | 14 | 26 | 28 => {
            let domid = draft.domid();
            draft.set16(0, domid);
        }
        _ => {}
    }
    // A position in the list, as a continuation has it.
    let start = match draft.random.below(24) {
        0 => draft.random.one_of(&[1, 2, 3, 5]),
        1 => draft.random.one_of(&[0x1_0000, 1 << 40]),
        _ => 0,
    };
    Shape {
        number: number::MEMORY,
        operation: name,
        arguments: [command | start << 6, POINTER, 0, 0, 0],
        size,
    }
}

/// An index for `XENMAPSPACE_*`.
fn index_in<A: Arena>(draft: &mut Draft<'_, A>, space: u64) -> u64 {
    let wild = draft.random.bits();
    match space {
        0 => draft.random.one_of(&[0, 0, 0, 1, 1 << 40]),
        1 => draft
            .random
            .one_of(&[0, 1, 2, 31, 63, 64, 1 << 31, 1 << 31 | 1, wild]),
        _ => draft.frame(),
    }
}
pub(super) fn grant<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
    let (command, name) = operation(draft, 13);
    match command {
        0 => {
            let place = HOLE + PAGE * draft.random.below(HOLE_PAGES);
            let address = draft
                .random
                .one_of(&[place, place, place, place | 8, 1 << 60]);
            draft.set64(0, address);
            let flags = draft
                .random
                .one_of(&[2, 2, 2, 6, 6, 1, 3, 0, 4, 0x16, 0xffff]);
            draft.set32(8, flags);
            let grant = draft.grant();
            draft.set32(12, grant);
            let domid = draft.domid();
            draft.set16(16, domid);
        }
        1 | 7 => {
            let place = HOLE + PAGE * draft.random.below(HOLE_PAGES);
            draft.set64(0, place);
            draft.set64(8, 0);
            // Handles of mappings are given back by the guest itself, which knows them.
            let handle = draft.random.one_of(&[0x7fff_fff0, 0xffff_ffff, 1 << 20]);
            draft.set32(16, handle);
        }
        2 | 9 => {
            let domid = draft.domid();
            draft.set16(0, domid);
            draft.one32(4, &[0, 1, 4, 64, 65, 0xffff_ffff]);
            draft.set64(16, LISTS + 1024);
        }
        5 => {
            for at in [0, 16] {
                let by_grant = draft.random.once_in(2);
                let name = if by_grant {
                    draft.grant()
                } else {
                    draft.frame()
                };
                draft.set64(at, name);
                let domid = draft.domid();
                draft.set16(at + 8, domid);
                let offset = draft.random.one_of(&[0, 0, 8, 2048, 4095, 4096, 0xffff]);
                draft.set16(at + 10, offset);
            }
            let length = draft.random.one_of(&[0, 1, 64, 2048, 4096, 4097, 0xffff]);
            draft.set16(32, length);
            let flags = draft.random.below(5);
            draft.set16(34, flags);
        }
        8 => {
            let version = draft.random.one_of(&[0, 1, 1, 2, 3, 0xffff_ffff]);
            draft.set32(0, version);
        }
        11 => {
            let (one, other) = (draft.grant(), draft.grant());
            draft.set32(0, one);
            draft.set32(4, other);
        }
        _ => {
            let domid = draft.domid();
            draft.set16(0, domid);
        }
    }
    // One entry mostly; lists of more have the bytes that are there by chance, so only operations
    // that no such entry makes do anything get them.
    let count = match command {
        1 | 11 => draft
            .random
            .one_of(&[1, 1, 1, 1, 0, 2, 0x8000_0000, 0xffff_ffff]),
        _ => draft
            .random
            .one_of(&[1, 1, 1, 1, 1, 0, 0x8000_0000, 0xffff_ffff]),
    };
    let opaque = if draft.random.once_in(32) { 1 << 12 } else { 0 };
    Shape {
        number: number::GRANT,
        operation: name,
        arguments: [command | opaque, POINTER, count, 0, 0],
        size: 40,
    }
}
