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

mod domain;
mod memory;

use crate::call::{Arena, Call, Class, Domid, Draft, Pointer};
use domain::{anything, event, hvm, multicall, plain, privileged, sched, vcpu, version};
use memory::{grant, memory};

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
