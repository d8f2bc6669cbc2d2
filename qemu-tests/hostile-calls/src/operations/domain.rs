//! Calls about the domain itself, its events, vCPUs and parameters; and those that are a
//! toolstack's, dom0's or nobody's.

use super::{POINTER, Shape, number, operation};
use crate::call::{Arena, Class, Draft};
use crate::layout::{AREAS, HOLE};

pub(super) fn event<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
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
pub(super) fn hvm<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
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

pub(super) fn vcpu<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
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

pub(super) fn sched<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
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

pub(super) fn version<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
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
pub(super) fn multicall<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
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

pub(super) fn plain<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
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
pub(super) fn privileged<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
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
pub(super) fn anything<A: Arena>(draft: &mut Draft<'_, A>) -> Shape {
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
