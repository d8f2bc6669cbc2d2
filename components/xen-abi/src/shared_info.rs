//! Layouts of `shared_info` and `vcpu_info` (`public/xen.h`, `public/arch-x86/xen.h`), native and
//! compat, and the bit operations that guest and VMM do on them at the same time.
//!
//! Bit arrays are addressed by 32-bit words: little-endian, so the same for both widths.

use crate::call::Width;
use crate::memory::{GuestMemory, SpecialFrame, Unbacked};

/// vCPUs that have a `vcpu_info` inside shared info (`XEN_LEGACY_MAX_VCPUS`).
pub(crate) const LEGACY_VCPUS: u32 = 32;
/// Bytes in a `vcpu_info`, in both widths.
pub(crate) const VCPU_INFO_SIZE: u64 = 64;
/// Offset of `vcpu_info.time`, in both widths.
pub(crate) const VCPU_TIME_OFFSET: u64 = 32;

/// The offsets that differ between the widths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// `evtchn_pending`, as an address.
    pub pending: u64,
    /// `evtchn_mask`, as an address.
    pub mask: u64,
    /// `wc_version`, `wc_sec`, `wc_nsec` in a row, as an address.
    pub wallclock: u64,
    /// `wc_sec_hi`, as an address.
    pub wallclock_high: u64,
    /// Offset of `evtchn_pending_sel` in `vcpu_info`.
    pub selector: u64,
    /// Ports per bit of the selector.
    pub word_bits: u32,
}

impl Layout {
    #[inline(always)]
    pub const fn of(width: Width) -> Layout {
        let base = SpecialFrame::SharedInfo.address();
        match width {
            Width::Bits64 => Layout {
                pending: base + 2048,
                mask: base + 2560,
                wallclock: base + 3072,
                wallclock_high: base + 3084,
                selector: 8,
                word_bits: 64,
            },
            Width::Bits32 => Layout {
                pending: base + 2048,
                mask: base + 2176,
                wallclock: base + 2304,
                wallclock_high: base + 2340,
                selector: 4,
                word_bits: 32,
            },
        }
    }

    /// Ports that the arrays have room for.
    pub const fn ports(&self) -> u32 {
        self.word_bits * self.word_bits
    }
}

/// Sets a bit of an array; answers whether it was set.
#[inline(always)]
pub(crate) fn test_and_set<M: GuestMemory>(
    memory: &M,
    array: u64,
    bit: u32,
) -> Result<bool, Unbacked> {
    let mask = 1 << (bit % 32);
    Ok(memory.fetch_or_u32(array + u64::from(bit / 32) * 4, mask)? & mask != 0)
}

/// Clears a bit of an array; answers whether it was set.
pub(crate) fn test_and_clear<M: GuestMemory>(
    memory: &M,
    array: u64,
    bit: u32,
) -> Result<bool, Unbacked> {
    let mask = 1 << (bit % 32);
    Ok(memory.fetch_and_u32(array + u64::from(bit / 32) * 4, !mask)? & mask != 0)
}

/// Reads a bit of an array.
#[inline(always)]
pub(crate) fn test<M: GuestMemory>(memory: &M, array: u64, bit: u32) -> Result<bool, Unbacked> {
    Ok(memory.read_u32(array + u64::from(bit / 32) * 4)? >> (bit % 32) & 1 != 0)
}

/// Changes a record under Xen's version protocol: odd while it changes, even when done.
pub(crate) fn update_versioned<M: GuestMemory>(
    memory: &M,
    version: u64,
    write: impl FnOnce(&M) -> Result<(), Unbacked>,
) -> Result<(), Unbacked> {
    let begin = memory.read_u32(version)?.wrapping_add(1) | 1;
    memory.write_u32(version, begin)?;
    write(memory)?;
    memory.write_u32(version, begin.wrapping_add(1))
}
