//! Reads the MADT: CPUs, I/O APICs, and how ISA lines are wired. Runs once, at boot.

use super::{bytes, physical};
use crate::cpu::CPUS_MAX;
use crate::paging::DIRECT_MAP;
use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use core::ptr::NonNull;
use heapless::Vec;

/// An I/O APIC.
#[derive(Clone, Copy, Debug)]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u64,
    /// First global system interrupt it serves.
    pub base: u32,
}

/// How an ISA line reaches the I/O APICs.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// Global system interrupt.
    pub gsi: u32,
    /// Level triggered, otherwise edge.
    pub level: bool,
    /// Active low, otherwise high.
    pub low: bool,
}

/// What the MADT says.
pub struct Platform {
    /// Physical address of the local APICs' registers.
    pub local_apic: u64,
    /// Local APIC ids of CPUs that may be started.
    pub cpus: Vec<u32, CPUS_MAX>,
    /// CPUs beyond what the core can run.
    pub ignored_cpus: usize,
    /// I/O APICs.
    pub io_apics: Vec<IoApic, 8>,
    /// ISA lines 0 to 15.
    pub lines: [Line; 16],
}

#[derive(Clone, Copy)]
struct Handler;

impl AcpiHandler for Handler {
    unsafe fn map_physical_region<T>(
        &self,
        address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        // A table beyond the boot tables' reach reads as the zeros at the core's own empty page,
        // whose checksum and signature fail.
        let pointer = match physical(address as u64, size as u64) {
            Some(bytes) => bytes.as_ptr(),
            None => NOWHERE.0.as_ptr(),
        };
        let pointer = NonNull::new(pointer.cast_mut().cast::<T>()).unwrap_or(NonNull::dangling());
        // SAFETY: the pointer covers `size` readable bytes or, out of reach, a page of zeros that
        // is larger than a table header; nothing is unmapped on drop.
        unsafe { PhysicalMapping::new(address, pointer, size, size, *self) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

#[repr(align(4096))]
struct Nowhere([u8; 4096]);
static NOWHERE: Nowhere = Nowhere([0; 4096]);

/// Looks for the RSDP where a PC BIOS leaves it (ACPI 6.5, 5.2.5.1).
pub fn search() -> Option<u64> {
    let segment = bytes::u32_at(physical(0x40c, 4)?, 2)? & 0xffff;
    let ebda = u64::from(segment) << 4;
    [(ebda, 1024), (0xe0000, 0x20000)]
        .into_iter()
        .find_map(|(start, length)| {
            let area = physical(start, length)?;
            let found = area
                .chunks_exact(16)
                .position(|chunk| chunk.starts_with(b"RSD PTR "))?;
            Some(start + found as u64 * 16)
        })
}

/// Reads the MADT behind `rsdp`.
pub fn platform(rsdp: u64) -> Result<Platform, &'static str> {
    if physical(rsdp, 36).is_none() {
        return Err("no ACPI RSDP within the first 4 GiB");
    }
    // SAFETY: the address is readable (just checked); tables are validated by checksum and read
    // within `physical`.
    let tables = unsafe { AcpiTables::from_rsdp(Handler, rsdp as usize) }
        .map_err(|_| "the ACPI root table is damaged")?;
    let madt = tables
        .find_table::<Madt>()
        .map_err(|_| "there is no ACPI MADT")?;
    let mut platform = Platform {
        local_apic: madt.get().local_apic_address.into(),
        cpus: Vec::new(),
        ignored_cpus: 0,
        io_apics: Vec::new(),
        lines: core::array::from_fn(|line| Line {
            gsi: line as u32,
            level: false,
            low: false,
        }),
    };
    let cpu = |platform: &mut Platform, id: u32, flags: u32| {
        // Bit 0: enabled; bit 1 (online capable) alone means hot-plug, which is not handled.
        if flags & 1 != 0 && !platform.cpus.contains(&id) {
            platform.ignored_cpus += usize::from(platform.cpus.push(id).is_err());
        }
    };
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::LocalApic(e) => cpu(&mut platform, e.apic_id.into(), e.flags),
            MadtEntry::LocalX2Apic(e) => cpu(&mut platform, e.x2apic_id, e.flags),
            MadtEntry::LocalApicAddressOverride(e) => platform.local_apic = e.local_apic_address,
            MadtEntry::IoApic(e) => {
                let _ = platform.io_apics.push(IoApic {
                    id: e.io_apic_id,
                    address: e.io_apic_address.into(),
                    base: e.global_system_interrupt_base,
                });
            }
            MadtEntry::InterruptSourceOverride(e) => {
                // MPS INTI flags (ACPI 6.5, table 5.26): 3 = active low, 3 << 2 = level.
                let flags = e.flags;
                if let Some(line) = platform.lines.get_mut(usize::from(e.irq)) {
                    *line = Line {
                        gsi: e.global_system_interrupt,
                        level: flags >> 2 & 3 == 3,
                        low: flags & 3 == 3,
                    };
                }
            }
            _ => {}
        }
    }
    if platform.io_apics.is_empty() {
        return Err("the MADT lists no I/O APIC");
    }
    Ok(platform)
}

const _: () = assert!(DIRECT_MAP >> 47 == 0x1ffff);
