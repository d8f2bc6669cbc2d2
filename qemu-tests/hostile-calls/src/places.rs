//! Guest-physical addresses that are not the guest's, and how the guest names them.
//!
//! What is below 4 GiB is named one to one. Everything else has a virtual page of its own above
//! [`crate::layout::ODD`], whose page-table entry is [`Place::entry`].

use crate::layout::{HOLE, LAPIC, ODD, PAGE, RAM};

/// Something to touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is.
    pub name: &'static str,
    /// Its page-table entry.
    pub entry: u64,
    /// Offset in the page.
    pub offset: u64,
    /// Whether it may be written: what is in the guest's own memory or a device must not.
    pub write: bool,
}

/// Present and writable.
const MAPPED: u64 = 3;

const fn place(name: &'static str, address: u64) -> Place {
    Place {
        name,
        entry: address & !0xfff | MAPPED,
        offset: address & 0xffc,
        write: true,
    }
}

const fn entry(name: &'static str, entry: u64) -> Place {
    Place {
        name,
        entry,
        offset: 0,
        write: true,
    }
}

/// A page of the guest that the entries below with odd rights point at: nothing needs it.
pub const OWN: u64 = RAM - (2 << 20);

/// The places. The first two are those that `layout` names.
pub const PLACES: &[Place] = &[
    entry("own page, read only", OWN | 1),
    entry("own page, not present", OWN),
    entry("own page, reserved bit 51", OWN | 1 << 51 | MAPPED),
    entry("own page, reserved bit 48", OWN | 1 << 48 | MAPPED),
    entry("own page", OWN | MAPPED),
    place("first page past the end of RAM", RAM),
    place("last word below 128 MiB", (128 << 20) - 4),
    place("hole", HOLE),
    place("1 GiB", 1 << 30),
    place("2 GiB", 2 << 30),
    place("3 GiB", 3 << 30),
    place("PC's PCI ECAM", 0xb000_0000),
    place("PC's PCI hole", 0xc000_0000),
    place("last page before the special ones", 0xfeff_7000),
    place("I/O APIC", 0xfec0_0000),
    place("HPET", 0xfed0_0000),
    place("TPM", 0xfed4_0000),
    place("VT-d unit", 0xfed9_0000),
    Place {
        write: false,
        ..place("local APIC's version", LAPIC + 0x30)
    },
    place("past the local APIC", LAPIC + PAGE),
    place("firmware's end", 0xffff_f000),
    place("legacy video memory, as RAM", 0xb_8000),
    place("4 GiB", 4 << 30),
    place("8 GiB", 8 << 30),
    place("end of the host's RAM", (4 << 30) + (512 << 20)),
    place("512 GiB", 512 << 30),
    place("1 TiB", 1 << 40),
    place("end of 40 bits", (1 << 40) - PAGE),
    place("HyperTransport hole", 0xfd_0000_0000),
    place("46 bits", 1 << 46),
    place("47 bits", 1 << 47),
    place("last page of 48 bits", (1 << 48) - PAGE),
    place("last page of 51 bits", (1 << 51) - PAGE),
    place("last page of 52 bits", (1 << 52) - PAGE),
];

/// The virtual address of a place.
#[must_use]
pub const fn address(index: usize, place: &Place) -> u64 {
    ODD + index as u64 * PAGE + place.offset
}

/// Besides the places: one load in each step of this many bytes from the end of RAM to 4 GiB.
pub const SWEEP: u64 = 2 << 20;
