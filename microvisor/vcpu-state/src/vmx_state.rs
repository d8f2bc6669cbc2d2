//! Between the state page's formats and the VMCS's: segments, events, control registers (Intel SDM
//! vol. 3, 25.4.1, 25.8.3, 27.3.1).

use crate::sanitise::cr0;
use microvisor_abi::vcpu::{Segment, event};

/// Which register a segment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// CS, SS, DS, ES, FS, GS.
    Memory,
    /// LDTR.
    Local,
    /// TR.
    Task,
}

/// Access rights: the segment cannot be used.
const UNUSABLE: u32 = 1 << 16;
const PRESENT: u32 = 1 << 7;
const GRANULARITY: u32 = 1 << 15;

/// Access rights of a segment, as an entry wants them: what a descriptor may have and the register
/// cannot (not accessed, not busy, a granularity that does not go with the limit) is mended.
pub const fn access_rights(segment: Segment, kind: Use) -> u32 {
    let attributes = segment.attributes() as u32;
    let mut rights = attributes & 0xff | (attributes & 0xf00) << 4;
    match kind {
        // Entries want a TR that can be used; whoever has none never uses it.
        Use::Task => {
            let busy = if rights & 5 == 1 { 2 } else { 0xb };
            rights = rights & !0x10 | busy | PRESENT;
        }
        Use::Local => {}
        Use::Memory => rights |= 1 | 0x10,
    }
    if rights & PRESENT == 0 {
        return rights | UNUSABLE;
    }
    let limit = segment.limit();
    if limit >> 20 != 0 {
        rights |= GRANULARITY;
    } else if limit & 0xfff != 0xfff {
        rights &= !GRANULARITY;
    }
    rights
}

/// The state page's segment.
pub const fn segment(selector: u64, rights: u64, limit: u64, base: u64) -> Segment {
    let mut attributes = rights & 0xff | rights >> 4 & 0xf00;
    if rights & UNUSABLE as u64 != 0 {
        attributes &= !(PRESENT as u64);
    }
    Segment {
        packed: selector & 0xffff | attributes << 16 | limit << 32,
        base,
    }
}

/// CR0 bits that stay the core's: NE, which VMX wants set, and NW and CD, which entries and exits do
/// not switch.
pub const CR0_OWNED: u64 = 1 << 5 | cr0::NW | cr0::CD;

/// CR0 as the guest runs with it.
pub const fn guest_cr0(seen: u64) -> u64 {
    seen & !(cr0::NW | cr0::CD) | 1 << 5
}

/// What the guest sees of a register, some bits of which are kept for it in `shadow`.
pub const fn seen(actual: u64, shadow: u64, owned: u64) -> u64 {
    actual & !owned | shadow & owned
}

/// Exceptions with an error code that VMX knows: #DF #TS #NP #SS #GP #PF #AC.
const WITH_ERROR_CODE: u64 = 1 << 8 | 0x1f << 10 | 1 << 17;

/// An event as an entry takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// Interruption information.
    pub info: u32,
    /// Error code.
    pub error: u32,
    /// True if an instruction raises it: what is pushed is RIP and the instruction's length.
    pub software: bool,
}

/// A sanitised event (`sanitise::inject`) for a guest with this CR0. An entry wants an error code
/// exactly where the exception has one, and none in real mode.
pub const fn injection(event: u64, cr0: u64) -> Injection {
    let (kind, vector) = (event & 0x700, event & 0xff);
    let mut info = (event::VALID | kind | vector) as u32;
    let mut error = 0;
    if kind == event::EXCEPTION
        && vector < 32
        && WITH_ERROR_CODE >> vector & 1 != 0
        && cr0 & cr0::PE != 0
    {
        info |= event::ERROR_CODE as u32;
        // Bits 15 to 31 must be 0 (27.2.1.3).
        error = (event >> 32) as u32 & 0x7fff;
    }
    // INT3 and INTO are "software exceptions", type 6.
    let software = kind == event::SOFTWARE;
    if software && matches!(vector, 3 | 4) {
        info |= 2 << 8;
    }
    Injection {
        info,
        error,
        software,
    }
}
