//! Mappings that are not one to one: a page for each of `hostile_calls::places`, above `ODD`.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_kit::boot;
use hostile_calls::places::PLACES;

/// A table.
#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

static POINTERS: Table = Table([const { AtomicU64::new(0) }; 512]);
static DIRECTORY: Table = Table([const { AtomicU64::new(0) }; 512]);
static ENTRIES: Table = Table([const { AtomicU64::new(0) }; 512]);

/// CR0 with write protection, so that read-only pages are so for ring 0 (Intel SDM vol. 3, 2.5):
/// what `boot` set, and WP.
const CR0: u64 = 0x8001_0031;

/// Maps them.
pub fn prepare() {
    let address = |table: &'static Table| &raw const *table as u64;
    for (entry, place) in ENTRIES.0.iter().zip(PLACES) {
        entry.store(place.entry, Ordering::SeqCst);
    }
    DIRECTORY.0[0].store(address(&ENTRIES) | 3, Ordering::SeqCst);
    POINTERS.0[0].store(address(&DIRECTORY) | 3, Ordering::SeqCst);
    // SAFETY: entry 1 is free, and the tables are static. CR0 keeps all that the program needs;
    // nothing of it lies in a read-only page.
    unsafe {
        boot::set_top_entry(1, address(&POINTERS) | 3);
        core::arch::asm!("mov cr0, {}", in(reg) CR0, options(nostack));
    }
}
