//! The global allocator: grows by frames out of own memory when it is full, never shrinks.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use idl::Cap;
use idl::cap::Frame;
use linked_list_allocator::Heap;
use microvisor_abi::FRAME;

use crate::caps::MemoryCap;
use crate::memory::{self, ORDER_4K, OWN_SPACE, READ_WRITE};
use crate::startup::{HEAP_ADDRESS, MAP_ADDRESS};
use crate::sync::Mutex;

/// Bytes added at least when the heap is full.
const GROWTH: u64 = 64 * 1024;

struct Growing {
    heap: Heap,
    /// End of what is mapped; 0 before the first growth.
    end: u64,
}

/// The allocator behind `alloc`.
pub struct ComponentHeap(Mutex<Growing>);

impl ComponentHeap {
    /// An empty heap.
    pub const fn new() -> Self {
        ComponentHeap(Mutex::new(Growing {
            heap: Heap::empty(),
            end: 0,
        }))
    }
}

impl Default for ComponentHeap {
    fn default() -> Self {
        ComponentHeap::new()
    }
}

impl Growing {
    /// Maps at least `bytes` more behind the heap.
    fn grow(&mut self, bytes: u64) -> Option<()> {
        let first = self.end == 0;
        let start = if first { HEAP_ADDRESS } else { self.end };
        let bytes = bytes.max(GROWTH).checked_next_multiple_of(FRAME)?;
        let end = start.checked_add(bytes).filter(|&end| end <= MAP_ADDRESS)?;
        let count = u32::try_from(bytes / FRAME).ok()?;
        let frames: Cap<Frame> = memory::own().retype_many(ORDER_4K, count).ok()?;
        memory::map_run(
            memory::own(),
            OWN_SPACE,
            frames,
            count,
            ORDER_4K,
            start,
            READ_WRITE,
        )
        .ok()?;
        let length = usize::try_from(bytes).ok()?;
        if first {
            // SAFETY: the range was just mapped and belongs to the heap alone.
            unsafe { self.heap.init(start as *mut u8, length) };
        } else {
            // SAFETY: the range follows the heap, was just mapped and belongs to it alone.
            unsafe { self.heap.extend(length) };
        }
        self.end = end;
        Some(())
    }
}

// SAFETY: memory comes from `Heap`, under a lock; it hands out each byte once.
unsafe impl GlobalAlloc for ComponentHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut growing = self.0.lock();
        if let Ok(place) = growing.heap.allocate_first_fit(layout) {
            return place.as_ptr();
        }
        // Room for the block's own bookkeeping and for alignment.
        let bytes = layout
            .size()
            .saturating_add(layout.align())
            .saturating_add(64);
        if growing.grow(bytes as u64).is_none() {
            return core::ptr::null_mut();
        }
        growing
            .heap
            .allocate_first_fit(layout)
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if let Some(place) = NonNull::new(place) {
            // SAFETY: the caller got `place` from `alloc` with this layout.
            unsafe { self.0.lock().heap.deallocate(place, layout) };
        }
    }
}
