//! `VCPUOP_initialise`: checks and translates `struct vcpu_hvm_context`
//! (`public/hvm/hvm_vcpu.h`), as Xen's `arch_set_info_hvm_guest` does.

use crate::access::Fields;
use crate::env::{StartSegment, VcpuStart, VcpuStart32, VcpuStart64};
use crate::errno::Errno;

/// Bytes in `struct vcpu_hvm_context`, in both widths.
pub(crate) const CONTEXT_SIZE: usize = 8 + 120;

const MODE_32B: u32 = 0;
const MODE_64B: u32 = 1;

const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

pub(crate) fn parse(context: &[u8; CONTEXT_SIZE]) -> Result<VcpuStart, Errno> {
    if context.u32_at(4) != 0 {
        return Err(Errno::Inval);
    }
    match context.u32_at(0) {
        MODE_32B => parse_32(context).map(VcpuStart::Mode32),
        MODE_64B => parse_64(context).map(VcpuStart::Mode64),
        _ => Err(Errno::Inval),
    }
}

fn parse_64(context: &[u8; CONTEXT_SIZE]) -> Result<VcpuStart64, Errno> {
    let register = |index: usize| context.u64_at(8 + index * 8);
    let state = VcpuStart64 {
        registers: core::array::from_fn(register),
        rip: register(8),
        rflags: register(9),
        cr0: register(10),
        cr3: register(11),
        cr4: register(12),
        efer: register(13) | EFER_LMA,
    };
    let canonical = ((state.rip as i64) << 16 >> 16) as u64 == state.rip;
    let long = state.cr0 & CR0_PG != 0 && state.cr4 & CR4_PAE != 0 && state.efer & EFER_LME != 0;
    if canonical && long {
        Ok(state)
    } else {
        Err(Errno::Inval)
    }
}

/// A segment's role decides what its attributes may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Code,
    Data,
    Stack,
    Task,
}

const TYPE: u16 = 0xf;
const ACCESSED: u16 = 1;
const WRITABLE: u16 = 2;
const CODE: u16 = 8;
const NON_SYSTEM: u16 = 1 << 4;
const PRESENT: u16 = 1 << 7;
const GRANULARITY: u16 = 1 << 11;
/// A busy 32-bit TSS.
const TYPE_TSS_BUSY: u16 = 0xb;

fn dpl(segment: StartSegment) -> u16 {
    segment.attributes >> 5 & 3
}

/// Xen's `check_segment`.
fn check(mut segment: StartSegment, role: Role) -> Result<StartSegment, Errno> {
    if segment.attributes >> 12 != 0 {
        return Err(Errno::Inval);
    }
    if segment.attributes == 0 {
        return match role {
            Role::Data => Ok(segment),
            Role::Code | Role::Stack | Role::Task => Err(Errno::Inval),
        };
    }
    if segment.attributes & PRESENT == 0 {
        return Err(Errno::Inval);
    }
    segment.attributes |= match role {
        Role::Task => WRITABLE,
        Role::Code | Role::Data | Role::Stack => ACCESSED,
    };
    let kind = segment.attributes & TYPE;
    let non_system = segment.attributes & NON_SYSTEM != 0;
    let fits = match role {
        Role::Task => !non_system && kind == TYPE_TSS_BUSY,
        Role::Code => non_system && kind & CODE != 0,
        Role::Stack => non_system && kind & CODE == 0 && kind & WRITABLE != 0,
        // For code segments the bit means readable.
        Role::Data => non_system && (kind & CODE == 0 || kind & WRITABLE != 0),
    };
    if fits { Ok(segment) } else { Err(Errno::Inval) }
}

fn parse_32(context: &[u8; CONTEXT_SIZE]) -> Result<VcpuStart32, Errno> {
    // Words: 8 registers, eip, eflags, cr0, cr3, cr4, pad, efer (2), 5 bases, 5 limits; then 5
    // attributes and 3 pads of 2 bytes.
    let word = |index: usize| context.u32_at(8 + index * 4);
    let tail = |index: usize| context.u16_at(8 + 104 + index * 2);
    if word(13) != 0 || (5..8).any(|index| tail(index) != 0) {
        return Err(Errno::Inval);
    }
    let segment = |index: usize, role| {
        let raw = StartSegment {
            base: word(16 + index),
            limit: word(21 + index),
            attributes: tail(index),
        };
        check(raw, role)
    };
    let cs = segment(0, Role::Code)?;
    let ds = segment(1, Role::Data)?;
    let ss = segment(2, Role::Stack)?;
    let es = segment(3, Role::Data)?;
    let tr = segment(4, Role::Task)?;
    let mut state = VcpuStart32 {
        registers: core::array::from_fn(word),
        eip: word(8),
        eflags: word(9),
        cr0: word(10),
        cr3: word(11),
        cr4: word(12),
        efer: context.u64_at(8 + 56),
        segments: [cs, ds, ss, es, tr],
    };
    let limit = if cs.attributes & GRANULARITY != 0 {
        cs.limit << 12 | 0xfff
    } else {
        cs.limit
    };
    let too_privileged = |data: StartSegment| data.attributes & PRESENT != 0 && dpl(data) > dpl(cs);
    if state.eip > limit
        || dpl(ss) != dpl(cs)
        || too_privileged(ds)
        || too_privileged(es)
        || (state.efer & EFER_LMA != 0 && state.efer & EFER_LME == 0)
    {
        return Err(Errno::Inval);
    }
    if state.efer & EFER_LME != 0 {
        state.efer |= EFER_LMA;
    }
    Ok(state)
}
