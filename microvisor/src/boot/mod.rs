//! From the loader's hand-over to facts: memory map, archive, ACPI. Used once, by the boot CPU,
//! while the boot tables (first 4 GiB) are loaded.

pub mod acpi;
mod bytes;
pub mod entry;
pub mod map;
mod multiboot2;
mod pvh;
pub mod remap;

use crate::paging::DIRECT_MAP;
use map::Firmware;

/// First address that the boot tables do not map.
pub const BOOT_MAPPED: u64 = 1 << 32;

/// Bytes of physical memory through the direct map, if the boot tables reach them.
fn physical(address: u64, length: u64) -> Option<&'static [u8]> {
    if address == 0 || address.checked_add(length)? > BOOT_MAPPED {
        return None;
    }
    // SAFETY: the boot tables map the first 4 GiB at DIRECT_MAP, nothing else writes there while
    // the loader's structures are read, and address 0 was excluded.
    Some(unsafe {
        core::slice::from_raw_parts((DIRECT_MAP + address) as *const u8, length as usize)
    })
}

/// What ACPI says of IOMMUs.
pub fn remapping(rsdp: u64) -> remap::Remapping {
    if let Some(bytes) = remap::table(rsdp, b"DMAR", physical) {
        return remap::dmar(bytes);
    }
    remap::table(rsdp, b"IVRS", physical).map_or(Default::default(), remap::ivrs)
}

/// What the loader told; `Err` names what is missing.
pub fn firmware(magic: u32, info: u32) -> Result<Firmware, &'static str> {
    let info = u64::from(info);
    let mut firmware = if magic == entry::MULTIBOOT2_MAGIC {
        let header = physical(info, 8).ok_or("the Multiboot2 information is out of reach")?;
        let size = bytes::u32_at(header, 0).unwrap_or(0);
        let bytes = physical(info, size.into()).ok_or("the Multiboot2 information is too long")?;
        multiboot2::parse(bytes, info)
    } else {
        pvh::parse(info, physical)
            .ok_or("neither a Multiboot2 nor a PVH loader started the core")?
    };
    if firmware.map.is_empty() {
        return Err("the loader gave no memory map");
    }
    if firmware.rsdp == 0 {
        firmware.rsdp = acpi::search().unwrap_or(0);
    }
    Ok(firmware)
}
