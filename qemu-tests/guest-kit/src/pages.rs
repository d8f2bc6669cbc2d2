//! Pages of the program that others write too, and their words. One to one: a page's frame number is its
//! address divided by 4096.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A page, or what of foreign memory is mapped one to one.
#[derive(Clone, Copy)]
pub struct Page(u64);

#[repr(C, align(4096))]
struct Bytes(UnsafeCell<[u8; 4096]>);

// SAFETY: used through atomics only, see `Page`.
unsafe impl Sync for Bytes {}

/// Pages that [`Page::own`] knows.
pub const PAGES: usize = 48;
static POOL: [Bytes; PAGES] = [const { Bytes(UnsafeCell::new([0; 4096])) }; PAGES];

impl Page {
    /// Page `index` of the program's own; the last one beyond the end.
    pub fn own(index: usize) -> Page {
        Page(POOL[index.min(PAGES - 1)].0.get() as u64)
    }

    /// The page at a frame that the hypervisor named, if it is mapped.
    pub fn at(frame: u64) -> Option<Page> {
        let address = frame.checked_mul(4096)?;
        (frame != 0 && address < crate::boot::MAPPED_END).then_some(Page(address))
    }

    /// The page at an address that is mapped one to one, with whatever is there.
    pub(crate) const fn mapped(address: u64) -> Page {
        Page(address)
    }

    /// Its frame.
    pub fn frame(self) -> u32 {
        (self.0 >> 12) as u32
    }

    fn place(self, offset: usize, size: usize) -> u64 {
        self.0 + (offset & 4095 & !(size - 1)) as u64
    }

    /// The byte at `offset`.
    pub fn byte(self, offset: usize) -> &'static AtomicU8 {
        // SAFETY: inside the page, which is mapped for good and used through atomics only.
        unsafe { &*(self.place(offset, 1) as *const AtomicU8) }
    }

    /// The aligned half-word at `offset`.
    pub fn half(self, offset: usize) -> &'static AtomicU16 {
        // SAFETY: as in `byte`, and aligned.
        unsafe { &*(self.place(offset, 2) as *const AtomicU16) }
    }

    /// The aligned 32-bit word at `offset`.
    pub fn word(self, offset: usize) -> &'static AtomicU32 {
        // SAFETY: as in `byte`, and aligned.
        unsafe { &*(self.place(offset, 4) as *const AtomicU32) }
    }

    /// The aligned 64-bit word at `offset`.
    pub fn long(self, offset: usize) -> &'static AtomicU64 {
        // SAFETY: as in `byte`, and aligned.
        unsafe { &*(self.place(offset, 8) as *const AtomicU64) }
    }

    /// Zeros.
    pub fn clear(self) {
        for offset in (0..4096).step_by(8) {
            self.long(offset).store(0, Ordering::SeqCst);
        }
    }
}
