//! The global allocator: grows by frames out of own memory when it is full, never shrinks.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use idl::Cap;
use idl::cap::Frame;
use linked_list_allocator::Heap;
use microvisor_abi::FRAME;

use crate::caps::MemoryCap;
use crate::memory::{self, LARGE, ORDER_2M, ORDER_4K, OWN_SPACE, READ_WRITE};
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

impl ComponentHeap {
    /// Bytes in use, with what each block takes itself.
    pub fn used(&self) -> usize {
        self.0.lock().heap.used()
    }
}

impl Default for ComponentHeap {
    fn default() -> Self {
        ComponentHeap::new()
    }
}

impl Growing {
    /// Maps `bytes` of new frames at `start`; answers their end.
    fn add(start: u64, bytes: u64, order: u64) -> Option<u64> {
        let end = start.checked_add(bytes).filter(|&end| end <= MAP_ADDRESS)?;
        let count = u32::try_from(bytes >> order).ok()?;
        let memory = memory::own();
        let frames: Cap<Frame> = memory.retype_many(order, count).ok()?;
        memory::map_run(memory, OWN_SPACE, frames, count, order, start, READ_WRITE).ok()?;
        Some(end)
    }

    /// Maps at least `bytes` more behind the heap.
    fn grow(&mut self, bytes: u64) -> Option<()> {
        let first = self.end == 0;
        let start = if first { HEAP_ADDRESS } else { self.end };
        let bytes = bytes.max(GROWTH).checked_next_multiple_of(FRAME)?;
        // A large heap grows by large frames: fewer slots and tables.
        let large = bytes >= LARGE || start - HEAP_ADDRESS >= LARGE;
        let end = (large && start.is_multiple_of(LARGE))
            .then(|| Self::add(start, bytes.checked_next_multiple_of(LARGE)?, ORDER_2M))
            .flatten()
            .or_else(|| {
                // Small frames, at least up to where large ones can begin.
                let aligned = start.next_multiple_of(LARGE) - start;
                let more = if large { bytes.max(aligned) } else { bytes };
                Self::add(start, more, ORDER_4K).or_else(|| Self::add(start, bytes, ORDER_4K))
            })?;
        let length = usize::try_from(end - start).ok()?;
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
