//! The hypercalls by number and sub-operation: what their structures hold (Xen's public headers)
//! and what of them is worth logging.
//!
//! Left out, because they end or stop the guest or take its memory for good, by design:
//! `SCHEDOP_shutdown`, `SCHEDOP_block` (interrupts are off, so nothing would end it), a watchdog
//! that bites within days, `VCPUOP_down` of the only vCPU, the parameters VM86_TSS and
//! VM86_TSS_SIZED with values for which Xen crashes the domain, `XENMEM_increase_reservation`
//! with good arguments and `XENMEM_populate_physmap` where memory is (Xen hands out pages that
//! the guest can never give back), counts that go on over all of memory, and reads of memory's
//! addresses or times.

use crate::call::{Arena, Call, Class, Domid, Draft, Pointer};
use crate::layout::{AREAS, HOLE, HOLE_PAGES, LISTS, PAGE};

/// Hypercall numbers that get most of the calls (public/xen.h).
pub mod number {
    #![allow(missing_docs)]
    pub const MEMORY: u64 = 12;
    pub const MULTICALL: u64 = 13;
    pub const SET_TIMER: u64 = 15;
    pub const VERSION: u64 = 17;
    pub const CONSOLE: u64 = 18;
    pub const GRANT: u64 = 20;
    pub const ASSIST: u64 = 21;
    pub const VCPU: u64 = 24;
    pub const MMUEXT: u64 = 26;
    pub const SCHED: u64 = 29;
    pub const EVENT: u64 = 32;
    pub const PHYSDEV: u64 = 33;
    pub const HVM: u64 = 34;
    pub const SYSCTL: u64 = 35;
    pub const DOMCTL: u64 = 36;
    pub const DM: u64 = 41;
    pub const PLATFORM: u64 = 7;
}

/// Parts of a call that depend on its operation.
struct Shape {
    number: u64,
    operation: u8,
    /// Arguments; the pointer goes where [`POINTER`] stands.
    arguments: [u64; 5],
    /// Bytes of the structure; 0 if there is none.
    size: u64,
}

/// Operations that must only find arguments that were drawn for them: what lies at 0 or in the
/// read-only page by chance could take the guest's program away, or end or stop the guest.
fn is_delicate(shape: &Shape) -> bool {
    let operation = shape.operation;
    match shape.number {
        number::MEMORY => matches!(operation, 0 | 1 | 6 | 7 | 15 | 23),
        number::GRANT => matches!(operation, 0 | 1 | 5),
        number::SCHED => matches!(operation, 3 | 6),
        number::HVM => operation == 0,
        number::VCPU => matches!(operation, 5 | 10 | 13),
        number::MULTICALL => true,
        _ => false,
    }
}

/// Stands for the pointer.
const POINTER: u64 = 0x706f_696e_7465_7200;

/// Draws a call.
pub(crate) fn draw<A: Arena>(draft: &mut Draft<'_, A>) -> Call {
    draft.fill();
    let shape = match draft.random.below(32) {
        0..=5 => memory(draft),
        6..=12 => event(draft),
        13..=17 => grant(draft),
        18..=20 => hvm(draft),
        21..=23 => vcpu(draft),
        24..=25 => sched(draft),
        26 => version(draft),
        27 => multicall(draft),
        28 => plain(draft),
        29 => privileged(draft),
        _ => anything(draft),
    };
    let (value, pointer, at) = match shape.size {
        0 => (0, Pointer::None, None),
        size => draft.pointer(size, is_delicate(&shape)),
    };
    let arguments = shape
        .arguments
        .map(|argument| if argument == POINTER { value } else { argument });
    Call {
        number: shape.number,
        arguments,
        class: Class {
            number: u16::try_from(shape.number)
                .unwrap_or(Class::BEYOND)
                .min(Class::BEYOND),
            operation: shape.operation,
            pointer,
            domid: Domid::None,
        },
        at,
    }
}

/// An operation below `known`, or, seldom, one that does not exist; and its name in the class.
fn operation<A: Arena>(draft: &mut Draft<'_, A>, known: u64) -> (u64, u8) {
    if draft.random.once_in(24) {
        let wild = draft.random.one_of(&[
            known + 200,
            63 << 6 | 63,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
        ]);
        return (wild, Class::ODD_OPERATION);
    }
    let operation = draft.random.below(known);
    (operation, operation as u8)
}

fn memory<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
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

fn event<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
    let (command, name) = operation(draft, 15);
    let size = match command {
        0 => {
            let domid = draft.domid();
            draft.set16(0, domid);
            let port = draft.port();
            draft.set32(4, port);
            12
        }
        1 => {
            let virq = draft.random.below(26);
            draft.set32(0, virq);
            let vcpu = draft.vcpu();
            draft.set32(4, vcpu);
            12
        }
        3 | 4 | 9 => {
            let port = draft.port();
            draft.set32(0, port);
            4
        }
        5 => {
            let domid = draft.domid();
            draft.set16(0, domid);
            let port = draft.port();
            draft.set32(4, port);
            24
        }
        6 => {
            let domid = draft.domid();
            draft.set16(0, domid);
            let remote = draft.random.one_of(&[0x7ff0, 0x7ff0, 0, 77, 0x7ff4]);
            draft.set16(2, remote);
            8
        }
        7 => {
            let vcpu = draft.vcpu();
            draft.set32(0, vcpu);
            8
        }
        8 => {
            let port = draft.port();
            draft.set32(0, port);
            let vcpu = draft.vcpu();
            draft.set32(4, vcpu);
            8
        }
        10 | 14 => {
            let domid = draft.domid();
            draft.set16(0, domid);
            2
        }
        11 => {
            let frame = draft.frame();
            draft.set64(0, frame);
            draft.one32(8, &[0, 8, 2048, 4090, 1]);
            let vcpu = draft.vcpu();
            draft.set32(12, vcpu);
            24
        }
        12 => {
            let frame = draft.frame();
            draft.set64(0, frame);
            8
        }
        13 => {
            let port = draft.port();
            draft.set32(0, port);
            8
        }
        _ => 24,
    };
    Shape {
        number: number::EVENT,
        operation: name,
        arguments: [command, POINTER, 0, 0, 0],
        size,
    }
}

fn grant<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
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

fn hvm<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
    let (command, name) = operation(draft, 27);
    // Reading and setting parameters is half of it.
    let (command, name) = match draft.random.below(4) {
        0 => (0, 0),
        1 => (1, 1),
        _ => (command, name),
    };
    match command {
        0 | 1 => {
            let domid = draft.domid();
            draft.set16(0, domid);
            draft.set16(2, 0);
            let index = draft.random.below(42);
            draft.set32(4, index);
            let wild = draft.random.bits();
            let value = draft.random.one_of(&[
                0,
                1,
                4,
                8,
                2 << 56 | 0x33,
                1 << 56,
                2 << 56,
                0xffff_f000,
                wild,
            ]);
            // Values with which these do not crash the domain.
            draft.set64(
                8,
                match index {
                    15 => value & 0xffff_ffff,
                    37 => value | 0x100 << 32,
                    _ => value,
                },
            );
        }
        9 => {
            let domid = draft.domid();
            draft.set16(0, domid);
        }
        15 => {
            let domid = draft.domid();
            draft.set16(0, domid);
            let frame = draft.frame();
            draft.set64(8, frame);
        }
        23 => {
            let vcpu = draft.vcpu();
            draft.set32(0, vcpu);
            let vector = draft.random.one_of(&[0, 1, 15, 16, 0x33, 0xf3, 0xff]);
            draft.set(4, &[vector as u8]);
        }
        25 => {
            draft.one32(0, &[1, 1, 0, 2]);
            let command = draft.random.below(16);
            draft.set32(4, command);
            let domid = draft.domid();
            draft.set16(8, domid);
        }
        _ => {
            let domid = draft.domid();
            draft.set16(0, domid);
        }
    }
    // These want a null handle.
    let null = matches!(command, 5 | 24) && draft.random.once_in(2);
    Shape {
        number: number::HVM,
        operation: name,
        arguments: [command, if null { 0 } else { POINTER }, 0, 0, 0],
        size: if null { 0 } else { 32 },
    }
}

fn vcpu<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
    let (command, name) = operation(draft, 15);
    let mut vcpu = draft.vcpu();
    let past_or_never = draft.random.one_of(&[0, 1, 1, u64::MAX >> 1]);
    match command {
        // The only vCPU must stay.
        2 if vcpu == 0 => vcpu = 1,
        5 | 13 => {
            let at =
                draft
                    .random
                    .one_of(&[AREAS + 256, AREAS + 1024, 0, HOLE + (1 << 20), 1 << 47]);
            draft.set64(0, at);
        }
        6 => {
            let period = draft.random.one_of(&[0, 1, 999_999, 1 << 50, u64::MAX]);
            draft.set64(0, period);
        }
        8 => {
            draft.set64(0, past_or_never);
            let flags = draft.random.below(3);
            draft.set32(8, flags);
        }
        10 => {
            let frame = draft.frame();
            draft.set64(0, frame);
            draft.one32(8, &[0, 64, 4, 4032, 4040, 4096]);
        }
        _ => {}
    }
    let null = command == 11 && draft.random.once_in(2);
    Shape {
        number: number::VCPU,
        operation: name,
        arguments: [command, vcpu, if null { 0 } else { POINTER }, 0, 0],
        size: if null { 0 } else { 24 },
    }
}

fn sched<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
    let (command, name) = match operation(draft, 9) {
        (1 | 2, _) => (0, 0),
        other => other,
    };
    match command {
        3 => {
            let (list, bad) = draft.list();
            let count = draft.random.one_of(&[0, 1, 1, 2, 129, 0xffff_ffff]);
            for index in (0..2).take_while(|_| !bad) {
                let port = draft.port();
                draft
                    .arena
                    .put(list + index * 4, &(port as u32).to_le_bytes());
            }
            draft.set64(0, list);
            draft.set32(8, count);
            // In the past: the call comes back at once.
            draft.set64(16, 1);
        }
        4 => {
            let domid = draft.domid();
            draft.set16(0, domid);
        }
        6 => {
            let id = draft.random.below(4);
            draft.set32(0, id);
            // Weeks, or off.
            let seconds = draft.random.one_of(&[0, 1 << 24, 1 << 28]);
            draft.set32(4, if id == 0 { seconds | 1 << 24 } else { seconds });
        }
        _ => {}
    }
    Shape {
        number: number::SCHED,
        operation: name,
        arguments: [command, POINTER, 0, 0, 0],
        size: 24,
    }
}

fn version<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
    let (command, name) = operation(draft, 12);
    if command == 6 {
        let map = draft.random.one_of(&[0, 0, 1, 2, 0xffff_ffff]);
        draft.set32(0, map);
    }
    let null = command == 7 && draft.random.once_in(2);
    Shape {
        number: number::VERSION,
        operation: name,
        arguments: [command, if null { 0 } else { POINTER }, 0, 0, 0],
        size: if null { 0 } else { 64 },
    }
}

/// A list of up to four calls without pointers.
fn multicall<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
    for at in [0, 64] {
        let (call, command) = match draft.random.below(6) {
            0 => (number::VERSION, 0),
            1 => (number::SCHED, 0),
            2 => (number::MULTICALL, 0),
            3 => (number::VCPU, 3),
            4 => (number::ASSIST, 7),
            _ => (50, 0),
        };
        draft.set64(at, call);
        draft.set64(at + 8, 0x1234);
        draft.set64(at + 16, command);
        for word in 3..8 {
            draft.set64(at + word * 8, 0);
        }
    }
    let count = draft.random.one_of(&[0, 1, 1, 2, 2]);
    Shape {
        number: number::MULTICALL,
        operation: Class::NO_OPERATION,
        arguments: [POINTER, count, 0, 0, 0],
        size: 128,
    }
}

fn plain<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
    let shape = |number, operation, arguments, size| Shape {
        number,
        operation,
        arguments,
        size,
    };
    match draft.random.below(4) {
        0 => {
            let time = draft.random.one_of(&[0, 1, 1000, u64::MAX >> 1, u64::MAX]);
            shape(
                number::SET_TIMER,
                Class::NO_OPERATION,
                [time, 0, 0, 0, 0],
                0,
            )
        }
        1 => {
            let (command, name) = operation(draft, 4);
            let kind = draft.random.below(34);
            shape(number::ASSIST, name, [command, kind, 0, 0, 0], 0)
        }
        2 => {
            let (command, name) = operation(draft, 3);
            draft.set(0, b"hostile\n");
            let count = draft.random.one_of(&[0, 0, 0, 8]);
            shape(number::CONSOLE, name, [command, count, POINTER, 0, 0], 8)
        }
        _ => {
            let (command, name) = operation(draft, 32);
            let domid = draft.domid();
            draft.set16(0, domid);
            shape(number::PHYSDEV, name, [command, POINTER, 0, 0, 0], 32)
        }
    }
}

/// Calls for toolstacks and for dom0, with the right interface version half of the time.
fn privileged<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
    let shape = |number, arguments, size| Shape {
        number,
        operation: Class::NO_OPERATION,
        arguments,
        size,
    };
    let command = draft.random.below(90);
    draft.set32(0, command);
    let version = |draft: &mut Draft<'_, A>, right: u64| {
        let value = draft.random.one_of(&[right, right, 0, 0x12, 0xffff_ffff]);
        draft.set32(4, value);
    };
    match draft.random.below(5) {
        0 => {
            version(draft, 0x0300_0000);
            shape(number::PLATFORM, [POINTER, 0, 0, 0, 0], 128)
        }
        1 => {
            version(draft, 0x15);
            shape(number::SYSCTL, [POINTER, 0, 0, 0, 0], 128)
        }
        2 => {
            version(draft, 0x15);
            let domid = draft.domid();
            draft.set16(8, domid);
            shape(number::DOMCTL, [POINTER, 0, 0, 0, 0], 128)
        }
        3 => {
            let domid = draft.domid();
            let count = draft.random.below(3);
            shape(number::DM, [domid, count, POINTER, 0, 0], 32)
        }
        _ => {
            let domid = draft.domid();
            let count = draft.random.below(3);
            shape(number::MMUEXT, [POINTER, count, 0, domid, 0], 64)
        }
    }
}

/// Any number, with what may or may not be its arguments.
fn anything<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
    let number = match draft.random.below(8) {
        0 => draft.random.bits() | 64,
        1 => 64 + draft.random.below(1000),
        2 => 1 << 32 | draft.random.below(64),
        _ => draft.random.below(64),
    };
    // Those that could do harm with random arguments are drawn above, with care.
    let number = match number {
        number::MEMORY
        | number::MULTICALL
        | number::VCPU
        | number::SCHED
        | number::GRANT
        | number::EVENT
        | number::HVM
        | number::CONSOLE
        | number::SET_TIMER => 40,
        other => other,
    };
    let (first, last) = (draft.small(), draft.small());
    Shape {
        number,
        operation: Class::NO_OPERATION,
        arguments: [first, POINTER, last, 0, 0],
        size: 64,
    }
}

/// What of a call's structure is logged beside the answer, as far as it is no address and no time:
/// offset, and bytes (2 or 4).
#[must_use]
pub fn told(call: &Call) -> Option<(u64, u8)> {
    if call.class.operation >= Class::ODD_OPERATION {
        return match call.number {
            number::MULTICALL => Some((8, 4)),
            _ => None,
        };
    }
    Some(match (call.number, call.class.operation) {
        (number::EVENT, 5) => (8, 4),
        (number::GRANT, 0) => (18, 2),
        (number::GRANT, 1) => (20, 2),
        (number::GRANT, 2) => (8, 2),
        (number::GRANT, 5) => (36, 2),
        (number::GRANT, 6) => (12, 2),
        (number::GRANT, 10) => (4, 4),
        (number::GRANT, 11) => (8, 2),
        (number::HVM, 15) => (2, 2),
        (number::VERSION, 6) => (4, 4),
        _ => return None,
    })
}
