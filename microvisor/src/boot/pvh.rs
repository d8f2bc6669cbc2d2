//! Reads `hvm_start_info` (Xen public/arch-x86/hvm/start_info.h). Pure: the caller supplies a
//! function that reads physical memory.

use super::bytes::{u32_at, u64_at};
use super::map::{Firmware, Region};

/// `XEN_HVM_START_MAGIC_VALUE`.
pub const MAGIC: u32 = 0x336e_c578;
/// Bytes of a version 1 structure.
pub const BYTES: usize = 56;
const ENTRY_BYTES: u64 = 24;
const MODULE_BYTES: u64 = 32;

/// Takes what the core needs from the structure at `info`; `None` if it is not one. `read` gives
/// the bytes at a physical address, or `None` where it cannot.
pub fn parse<'a>(info: u64, read: impl Fn(u64, u64) -> Option<&'a [u8]>) -> Option<Firmware> {
    let bytes = read(info, BYTES as u64)?;
    if u32_at(bytes, 0)? != MAGIC {
        return None;
    }
    let mut firmware = Firmware {
        rsdp: u64_at(bytes, 32)?,
        ..Firmware::default()
    };
    if u32_at(bytes, 12)? > 0 {
        let module = read(u64_at(bytes, 16)?, MODULE_BYTES)?;
        let start = u64_at(module, 0)?;
        firmware.archive = Some((start, start.checked_add(u64_at(module, 8)?)?));
    }
    let map = u64_at(bytes, 40)?;
    for index in 0..u64::from(u32_at(bytes, 48)?) {
        let entry = read(map.checked_add(index * ENTRY_BYTES)?, ENTRY_BYTES)?;
        firmware.add(Region::new(
            u64_at(entry, 0)?,
            u64_at(entry, 8)?,
            u32_at(entry, 16)?,
        ));
    }
    Some(firmware)
}
