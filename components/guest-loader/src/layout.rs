//! The guest-physical memory map of a PVH guest.
//!
//! | from | to | what |
//! |---|---|---|
//! | 0 | min(RAM, 3 GiB) | RAM; its last [`ACPI_BYTES`] hold the ACPI tables |
//! | [`SPECIAL_START`] | +[`SPECIAL_PAGES`] pages | xenstore and console rings |
//! | 0xfee0_0000 | +4 KiB | local APIC |
//! | 4 GiB | | the rest of RAM |
//!
//! Special pages are where Xen's tool stack puts them for PVH guests (libxenguest: the last eight
//! pages before guest frame 0xff000; numbers 4 and 7 of them).

use alloc::vec::Vec;

/// Guest-physical end of the lower part of RAM.
pub const LOW_END: u64 = 3 << 30;
/// Guest-physical start of the upper part of RAM.
pub const HIGH_START: u64 = 4 << 30;
/// Start info, memory map and command line end at or below this: the tables with which Linux starts
/// (arch/x86/platform/pvh) map no more than the first GiB.
pub const START_INFO_END: u64 = 1 << 30;
/// Bytes at the end of lower RAM that hold ACPI tables.
pub const ACPI_BYTES: u64 = 64 << 10;
/// First of the special pages.
pub const SPECIAL_START: u64 = 0xfeff_8000;
/// Number of special pages.
pub const SPECIAL_PAGES: u64 = 8;
/// Guest frame of the xenstore ring.
pub const STORE_GFN: u64 = SPECIAL_START / PAGE + 4;
/// Guest frame of the console ring.
pub const CONSOLE_GFN: u64 = SPECIAL_START / PAGE + 7;
/// Where the local APIC appears.
pub const LAPIC: u64 = 0xfee0_0000;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Smallest guest that anything fits into.
pub const RAM_MIN: u64 = 2 << 20;

/// Kinds of range in a memory map, with their E820 numbers (ACPI 6.4, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// RAM.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
    /// ACPI tables.
    Acpi = 3,
}

/// A range of a memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// What is there.
    pub kind: RangeKind,
}

/// End of lower RAM in a guest of `ram` bytes.
pub const fn low_end(ram: u64) -> u64 {
    if ram < LOW_END { ram } else { LOW_END }
}

/// Start of the ACPI tables in a guest of `ram` bytes.
pub const fn acpi_start(ram: u64) -> u64 {
    low_end(ram) - ACPI_BYTES
}

/// The memory map of a guest of `ram` bytes (a multiple of 4 KiB, at least [`RAM_MIN`]).
pub fn memory_map(ram: u64) -> Vec<Range> {
    let acpi = acpi_start(ram);
    let range = |start, bytes, kind| Range { start, bytes, kind };
    let mut map = alloc::vec![
        range(0, acpi, RangeKind::Ram),
        range(acpi, ACPI_BYTES, RangeKind::Acpi),
        range(LAPIC, PAGE, RangeKind::Reserved),
        range(SPECIAL_START, SPECIAL_PAGES * PAGE, RangeKind::Reserved),
    ];
    if ram > LOW_END {
        map.push(range(HIGH_START, ram - LOW_END, RangeKind::Ram));
    }
    map
}

/// The local APIC id of a vCPU: twice its number, as under Xen.
pub const fn apic_id(vcpu: u32) -> u32 {
    vcpu * 2
}
