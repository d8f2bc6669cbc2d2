//! Reads the Multiboot2 information structure (specification 1.6, 3.4). Pure: bytes in, facts out.

use super::bytes::{u32_at, u64_at};
use super::map::{Firmware, Region};

const TAG_END: u32 = 0;
const TAG_MODULE: u32 = 3;
const TAG_MEMORY_MAP: u32 = 6;
const TAG_RSDP_OLD: u32 = 14;
const TAG_RSDP_NEW: u32 = 15;

/// Takes what the core needs from the structure. `address` is the physical address of `bytes`:
/// an RSDP found inside is named by it. Tags that are damaged or unknown are passed over.
pub fn parse(bytes: &[u8], address: u64) -> Firmware {
    let mut firmware = Firmware::default();
    let mut at = 8;
    while let (Some(kind), Some(size)) = (u32_at(bytes, at), u32_at(bytes, at + 4)) {
        let size = size as usize;
        let Some(tag) = bytes.get(at..at.saturating_add(size)) else {
            break;
        };
        match kind {
            TAG_END => break,
            TAG_MODULE if firmware.archive.is_none() => {
                if let (Some(start), Some(end)) = (u32_at(tag, 8), u32_at(tag, 12)) {
                    firmware.archive = Some((start.into(), end.into()));
                }
            }
            TAG_MEMORY_MAP => memory_map(tag, &mut firmware),
            TAG_RSDP_OLD if firmware.rsdp == 0 => firmware.rsdp = address + at as u64 + 8,
            TAG_RSDP_NEW => firmware.rsdp = address + at as u64 + 8,
            _ => {}
        }
        at += size.max(8).next_multiple_of(8);
    }
    firmware
}

fn memory_map(tag: &[u8], firmware: &mut Firmware) {
    let step = u32_at(tag, 8).unwrap_or(0).max(24) as usize;
    let mut at = 16;
    while let (Some(base), Some(length), Some(kind)) =
        (u64_at(tag, at), u64_at(tag, at + 8), u32_at(tag, at + 16))
    {
        firmware.add(Region::new(base, length, kind));
        at += step;
    }
}
