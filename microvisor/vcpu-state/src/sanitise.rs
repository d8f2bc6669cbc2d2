//! Checks what a VMM wrote into a state page before it reaches the CPU.
//!
//! A value that no guest could have is refused and named, rather than bent into shape: a VMM that
//! wrote it has a mistake worth hearing of. Values whose reserved bits the CPU itself ignores or
//! forces (RFLAGS, DR6, segment bases) are normalised as the CPU would.

use crate::limits::Limits;
use microvisor_abi::vcpu::{Segment, event};

/// Why a state was refused; `info[0]` of `Exit::Invalid` is `Reject::CODE | number`, `info[1]` the
/// value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Reject {
    /// CR0 has reserved bits, PG without PE, or NW without CD.
    Cr0 = 1,
    /// CR3 has bits beyond the physical address width.
    Cr3 = 2,
    /// CR4 has bits that this CPU lacks.
    Cr4 = 3,
    /// EFER has bits that this CPU lacks, or long mode is active without PAE.
    Efer = 4,
    /// CS is both 64-bit and 32-bit in long mode.
    Cs = 5,
    /// DR7 has reserved bits.
    Dr7 = 6,
    /// PAT has a type that does not exist.
    Pat = 7,
    /// XCR0 has components that the host lacks, or an illegal combination.
    Xcr0 = 8,
    /// XSS is not 0: no supervisor component is offered.
    Xss = 9,
    /// The event's type does not exist, or not with this vector.
    Event = 10,
}

impl Reject {
    /// Tells these codes from exit codes of the hardware.
    pub const CODE: u64 = 1 << 32;

    /// The word for `info[0]`.
    pub const fn code(self) -> u64 {
        Self::CODE | self as u64
    }
}

/// A refusal and the value refused.
pub type Checked<T> = Result<T, (Reject, u64)>;

/// CR0 bits (AMD APM vol. 2, 3.1.1).
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1;
    /// Extension type, always 1.
    pub const ET: u64 = 1 << 4;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
    /// PE MP EM TS ET NE, WP, AM, NW CD PG.
    pub const DEFINED: u64 = 0xe005_003f;
}

/// CR4.PAE.
pub const CR4_PAE: u64 = 1 << 5;
/// EFER.LME.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.LMA.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER.SVME: set in every VMCB, never shown to a guest.
pub const EFER_SVME: u64 = 1 << 12;

/// RFLAGS.IF.
pub const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.TF.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.VM.
pub const RFLAGS_VM: u64 = 1 << 17;

/// RFLAGS as the CPU would hold it: reserved bits at their fixed values.
#[inline]
pub const fn rflags(value: u64) -> u64 {
    value & 0x3f_7fd7 | 2
}

/// The control registers that decide the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER without SVME.
    pub efer: u64,
    /// CS.
    pub cs: Segment,
    /// SS.
    pub ss: Segment,
}

impl Mode {
    /// The mode as it may be loaded: every reserved bit clear, LMA = LME and PG.
    pub const fn sanitised(self, limits: &Limits) -> Checked<Mode> {
        let Mode { cr3, cr4, cs, .. } = self;
        let value = self.cr0 | cr0::ET;
        if value & !cr0::DEFINED != 0
            || value & (cr0::PE | cr0::PG) == cr0::PG
            || value & (cr0::CD | cr0::NW) == cr0::NW
        {
            return Err((Reject::Cr0, self.cr0));
        }
        if cr3 & !limits.cr3 != 0 {
            return Err((Reject::Cr3, cr3));
        }
        if cr4 & !limits.cr4 != 0 && cfg!(not(planted = "cr4-reserved-bit")) {
            return Err((Reject::Cr4, cr4));
        }
        let mut efer = self.efer & !EFER_LMA;
        let long = efer & EFER_LME != 0 && value & cr0::PG != 0;
        if efer & !limits.efer != 0 || long && cr4 & CR4_PAE == 0 {
            return Err((Reject::Efer, self.efer));
        }
        if long {
            efer |= EFER_LMA;
            // Attribute bits 9 (L) and 10 (D): both set is reserved (AMD APM vol. 2, 15.5.1).
            if cs.attributes() & 0x600 == 0x600 {
                return Err((Reject::Cs, cs.packed));
            }
        }
        let (cs, ss) = (segment(cs, limits), segment(self.ss, limits));
        Ok(Mode {
            cr0: value,
            cr3,
            cr4,
            efer,
            cs,
            ss,
        })
    }

    /// The privilege level that this mode runs at, given RFLAGS.
    pub const fn cpl(&self, rflags: u64) -> u8 {
        if self.cr0 & cr0::PE == 0 {
            0
        } else if rflags & RFLAGS_VM != 0 && self.efer & EFER_LMA == 0 {
            3
        } else {
            (self.ss.attributes() >> 5 & 3) as u8
        }
    }
}

/// An address made canonical by repeating its highest significant bit, as VMRUN and VMLOAD do.
#[inline]
pub const fn canonical(address: u64, limits: &Limits) -> u64 {
    let unused = 64 - limits.linear_bits;
    ((address << unused) as i64 >> unused) as u64
}

/// A segment with the attribute bits that do not exist cleared and a canonical base.
#[inline]
pub const fn segment(segment: Segment, limits: &Limits) -> Segment {
    Segment {
        packed: segment.packed & !(0xf000 << 16),
        base: canonical(segment.base, limits),
    }
}

/// DR6 with its fixed bits (AMD APM vol. 2, 13.1.1.3).
#[inline]
pub const fn dr6(value: u64, limits: &Limits) -> u64 {
    value & limits.dr6 | 0xffff_0ff0
}

/// DR7: bits 11, 12, 14, 15 and the upper half must be 0, bit 10 is 1.
#[inline]
pub const fn dr7(value: u64) -> Checked<u64> {
    if value & !0xffff_2fff != 0 || value & 1 << 11 != 0 {
        return Err((Reject::Dr7, value));
    }
    Ok(value | 1 << 10)
}

/// True if DR7 enables a breakpoint, so that DR0-DR3 matter while the guest runs.
#[inline]
pub const fn dr7_enables(value: u64) -> bool {
    value & 0xff != 0
}

/// PAT: each byte one of UC, WC, WT, WP, WB, UC- (AMD APM vol. 2, 7.8.1).
pub const fn pat(value: u64) -> Checked<u64> {
    let mut i = 0;
    while i < 64 {
        if !matches!(value >> i & 0xff, 0 | 1 | 4 | 5 | 6 | 7) {
            return Err((Reject::Pat, value));
        }
        i += 8;
    }
    Ok(value)
}

/// XCR0: x87 always; AVX needs SSE; the three AVX-512 parts come together and need AVX; the two
/// MPX parts come together (Intel SDM vol. 1, 13.3).
pub const fn xcr0(value: u64, limits: &Limits) -> Checked<u64> {
    if limits.xcr0 == 0 {
        // No XSAVE: there is no XCR0 to load, and the word means nothing.
        return Ok(0);
    }
    let (sse, avx) = (value >> 1 & 1, value >> 2 & 1);
    let (mpx, avx512) = (value >> 3 & 3, value >> 5 & 7);
    if value & !limits.xcr0 != 0
        || value & 1 == 0
        || avx > sse
        || !matches!(mpx, 0 | 3)
        || !(avx512 == 0 || avx512 == 7 && avx == 1)
    {
        return Err((Reject::Xcr0, value));
    }
    Ok(value)
}

/// XSS: nothing is offered.
pub const fn xss(value: u64) -> Checked<u64> {
    if value != 0 {
        return Err((Reject::Xss, value));
    }
    Ok(0)
}

/// Exceptions that push an error code: #DF #TS #NP #SS #GP #PF #AC #CP #VC #SX.
const WITH_ERROR_CODE: u32 = 1 << 8
    | 1 << 10
    | 1 << 11
    | 1 << 12
    | 1 << 13
    | 1 << 14
    | 1 << 17
    | 1 << 21
    | 1 << 29
    | 1 << 30;

/// An event to inject, as EVENTINJ takes it (AMD APM vol. 2, 15.20); 0 if there is none.
#[inline]
pub const fn inject(value: u64) -> Checked<u64> {
    if value & event::VALID == 0 {
        return Ok(0);
    }
    let vector = value & 0xff;
    let bare = vector | value & 0x700 | event::VALID;
    match value & 0x700 {
        event::INTERRUPT | event::SOFTWARE => Ok(bare),
        event::NMI => Ok(event::NMI | event::VALID | 2),
        event::EXCEPTION if vector < 32 && vector != 2 => {
            // Real mode pushes no error code, so its presence is the VMM's choice.
            if WITH_ERROR_CODE >> vector & 1 != 0 && value & event::ERROR_CODE != 0 {
                Ok(bare | event::ERROR_CODE | value & !0xffff_ffff)
            } else {
                Ok(bare)
            }
        }
        _ => Err((Reject::Event, value)),
    }
}

/// What becomes of an event whose delivery an exit cut short: the same event, to be injected
/// again, or 0 if running the instruction again raises it (INT n, INT3, INTO).
#[inline(always)]
pub const fn interrupted_delivery(exit_int_info: u64) -> u64 {
    if exit_int_info & event::VALID == 0 {
        0
    } else {
        deliver_again(exit_int_info)
    }
}

#[cold]
const fn deliver_again(exit_int_info: u64) -> u64 {
    match (exit_int_info & 0x700, exit_int_info & 0xff) {
        (event::SOFTWARE, _) | (event::EXCEPTION, 3 | 4) => 0,
        _ => match inject(exit_int_info) {
            Ok(event) => event,
            Err(_) => 0,
        },
    }
}
