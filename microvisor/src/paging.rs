//! The core's own page tables: image, direct map of memory, device registers, stacks. Built once
//! by the boot CPU; afterwards the top half never changes, so that every address space can share
//! its 256 entries.

use crate::boot::map::{PAGE, Ranges};
use crate::speculation::site;

/// Where physical memory appears, never executable, supervisor only.
pub const DIRECT_MAP: u64 = microvisor_objects::arena::DIRECT_MAP;
/// Where registers of local and I/O APICs appear.
pub const DEVICES: u64 = 0xffff_ff00_0000_0000;
/// Where CPUs' stacks appear.
pub const STACKS: u64 = 0xffff_ff40_0000_0000;
/// Image address minus physical address (`link.ld`).
pub const IMAGE: u64 = 0xffff_ffff_8000_0000;

/// With the user bit in a control build, bit 2.
const PRESENT: u64 = if cfg!(control = "supervisor") { 5 } else { 1 };
const WRITE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const UNCACHED: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Protection of a mapping in the core's half.
#[derive(Clone, Copy)]
pub enum Protection {
    /// Code.
    Execute,
    /// Constants.
    Read,
    /// Data.
    Write,
    /// Device registers.
    Device,
}

impl Protection {
    const fn bits(self) -> u64 {
        PRESENT
            | GLOBAL
            | match self {
                Protection::Execute => 0,
                Protection::Read => NO_EXECUTE,
                Protection::Write => WRITE | NO_EXECUTE,
                Protection::Device => WRITE | NO_EXECUTE | UNCACHED | WRITE_THROUGH,
            }
    }
}

/// Takes `bytes` of memory below 4 GiB for the core, zeroed; the boot tables must still reach it.
/// Panics when there is not enough: nothing could run then.
pub fn take(free: &mut Ranges, bytes: u64, align: u64) -> u64 {
    let Some(start) = free.take(
        bytes.next_multiple_of(PAGE),
        align,
        crate::boot::BOOT_MAPPED,
    ) else {
        panic!("not enough memory below 4 GiB: {} KiB wanted", bytes >> 10);
    };
    // SAFETY: the range was free memory and now belongs to the caller; the direct map reaches it
    // both in the boot tables and in the final ones.
    unsafe {
        core::ptr::write_bytes(
            (DIRECT_MAP + start) as *mut u8,
            0,
            bytes.next_multiple_of(PAGE) as usize,
        );
    }
    start
}

/// The tables under construction.
pub struct Tables<'a> {
    /// Physical address of the top table.
    pub root: u64,
    free: &'a mut Ranges,
    gigabyte_pages: bool,
}

impl<'a> Tables<'a> {
    /// Empty tables with every top-half entry that the core will ever use in place.
    pub fn new(free: &'a mut Ranges, gigabyte_pages: bool) -> Self {
        let root = take(free, PAGE, PAGE);
        Tables {
            root,
            free,
            gigabyte_pages,
        }
    }

    fn entry(&mut self, table: u64, index: u64) -> &mut u64 {
        // SAFETY: `table` is a table that `take` gave to this structure; `index` is below 512.
        unsafe { &mut *((DIRECT_MAP + table + (index & 511) * 8) as *mut u64) }
    }

    /// Maps a range with the largest pages that fit. All arguments are multiples of 4 KiB.
    pub fn map(&mut self, mut address: u64, mut physical: u64, bytes: u64, protection: Protection) {
        let end = address + bytes;
        while address < end {
            let fits =
                |size: u64| (address | physical).is_multiple_of(size) && end - address >= size;
            let level = if self.gigabyte_pages && fits(1 << 30) {
                2
            } else if fits(1 << 21) {
                1
            } else {
                0
            };
            self.map_one(address, physical | protection.bits(), level);
            let size = PAGE << (9 * level);
            address += size;
            physical += size;
        }
    }

    fn map_one(&mut self, address: u64, value: u64, level: u64) {
        let mut table = self.root;
        for depth in (level + 1..4).rev() {
            let index = address >> (12 + 9 * depth);
            if *self.entry(table, index) == 0 {
                let fresh = take(self.free, PAGE, PAGE);
                *self.entry(table, index) = fresh | PRESENT | WRITE;
            }
            table = *self.entry(table, index) & ADDRESS;
        }
        let large = if level > 0 { LARGE } else { 0 };
        *self.entry(table, address >> (12 + 9 * level)) = value | large;
    }

    /// Maps the core's own image, each section with its own rights.
    pub fn map_image(&mut self) {
        let [text, text_end, rodata_end, data_end] = image_bounds();
        for (start, end, protection) in [
            (text, text_end, Protection::Execute),
            (text_end, rodata_end, Protection::Read),
            (rodata_end, data_end, Protection::Write),
        ] {
            self.map(start, start - IMAGE, end - start, protection);
        }
    }
}

/// Virtual bounds of the sections: text, its end, the end of constants, the end of data.
fn image_bounds() -> [u64; 4] {
    unsafe extern "C" {
        static text_start: u8;
        static text_end: u8;
        static rodata_end: u8;
        static data_end: u8;
    }
    [
        &raw const text_start,
        &raw const text_end,
        &raw const rodata_end,
        &raw const data_end,
    ]
    .map(|symbol| symbol as u64)
}

/// True if an address lies in the core's code.
pub fn is_text(address: u64) -> bool {
    let [text, text_end, ..] = image_bounds();
    (text..text_end).contains(&address)
}

/// Physical bounds of the image, boot section included.
pub fn image_physical() -> (u64, u64) {
    (2 << 20, image_bounds()[3] - IMAGE)
}

/// Loads a table root.
///
/// # Safety
/// Its top half must be the core's.
#[inline(always)]
pub unsafe fn load(root: u64) {
    // SAFETY: see above; the address is a page-aligned physical address, and no CR3 flag is wanted.
    unsafe {
        core::arch::asm!(site!(".byte 0x3e, 0x3e; mov cr3, rdi", switch_space), in("rdi") root,
            switch_space = sym crate::speculation::switch_space, options(preserves_flags));
    }
}
