//! The part of a vCPU's state that decides how it fetches, translates and decodes.

use microvisor_abi::vcpu::Segment;

/// CR0: protection.
pub const CR0_PE: u64 = 1 << 0;
/// CR0: supervisor writes obey write protection.
pub const CR0_WP: u64 = 1 << 16;
/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4: 4 MiB pages in 32-bit paging.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4: physical address extension.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4: five levels.
pub const CR4_LA57: u64 = 1 << 12;
/// CR4: XSAVE enabled.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4: no supervisor fetch from user pages.
pub const CR4_SMEP: u64 = 1 << 20;
/// CR4: no supervisor access to user pages.
pub const CR4_SMAP: u64 = 1 << 21;
/// CR4: protection keys.
pub const CR4_PKE: u64 = 1 << 22;
/// EFER: SYSCALL enabled.
pub const EFER_SCE: u64 = 1 << 0;
/// EFER: long mode enabled.
pub const EFER_LME: u64 = 1 << 8;
/// EFER: long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER: no-execute enabled.
pub const EFER_NXE: u64 = 1 << 11;
/// RFLAGS: alignment check; overrides SMAP.
pub const RFLAGS_AC: u64 = 1 << 18;

/// Attribute bit of a 64-bit code segment, in `Segment::attributes`.
const SEGMENT_LONG: u16 = 1 << 9;
/// Attribute bit of a 32-bit segment.
const SEGMENT_BIG: u16 = 1 << 10;

/// How wide code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, 16-bit segments.
    Bits16,
    /// 32-bit segments.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

impl CodeSize {
    /// The width in bits.
    pub const fn bits(self) -> u32 {
        match self {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        }
    }
}

/// A snapshot of `group::MODE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// CS.
    pub cs: Segment,
    /// SS.
    pub ss: Segment,
}

impl Mode {
    /// Whether both say the same of all that fetching, translating and decoding depend on: all but
    /// the base of SS. One comparison in effect, because exits make it.
    #[inline(always)]
    pub fn is(&self, other: &Mode) -> bool {
        let differs = (self.cr0 ^ other.cr0)
            | (self.cr3 ^ other.cr3)
            | (self.cr4 ^ other.cr4)
            | (self.efer ^ other.efer)
            | (self.cs.packed ^ other.cs.packed)
            | (self.cs.base ^ other.cs.base)
            | (self.ss.packed ^ other.ss.packed);
        differs == 0
    }

    /// Width of the code that runs.
    #[inline]
    pub fn code_size(&self) -> CodeSize {
        let attributes = self.cs.attributes();
        if self.efer & EFER_LMA != 0 && attributes & SEGMENT_LONG != 0 {
            CodeSize::Bits64
        } else if attributes & SEGMENT_BIG != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    /// Current privilege level.
    #[inline]
    pub fn privilege(&self) -> u8 {
        (self.ss.attributes() >> 5 & 3) as u8
    }

    /// Linear address of the instruction at `rip`.
    #[inline]
    pub fn linear_rip(&self, rip: u64) -> u64 {
        match self.code_size() {
            CodeSize::Bits64 => rip,
            _ => self.cs.base.wrapping_add(rip) & 0xffff_ffff,
        }
    }

    /// `rip` after an instruction of `length` bytes, wrapped at the code size.
    #[inline]
    pub fn advance(&self, rip: u64, length: u8) -> u64 {
        let next = rip.wrapping_add(length.into());
        match self.code_size() {
            CodeSize::Bits64 => next,
            CodeSize::Bits32 => next & 0xffff_ffff,
            CodeSize::Bits16 => next & 0xffff,
        }
    }
}
