//! Writes the log. One at a time: the next begins where the last ended.

use core::sync::atomic::{AtomicU64, Ordering};

use hostile_calls::layout::{LOG, LOG_END, PAGE};
use hostile_calls::log::{HEADER, ROOM, seal};

/// First page that is free.
static NEXT: AtomicU64 = AtomicU64::new(LOG);
/// Pages in all.
static SEALED: AtomicU64 = AtomicU64::new(0);

/// A log under way.
pub struct Log {
    log: u32,
    number: u32,
    used: usize,
}

impl Log {
    /// Begins a log.
    pub fn new(log: u32) -> Log {
        Log {
            log,
            number: 0,
            used: 0,
        }
    }

    /// Appends a record, which may go across pages.
    pub fn append(&mut self, record: &[u8]) {
        for &byte in record {
            if self.used == ROOM {
                self.seal();
            }
            let at = NEXT.load(Ordering::Relaxed);
            if at >= LOG_END {
                return;
            }
            let place = (at as usize + HEADER + self.used) as *mut u8;
            // SAFETY: in the page at `at`, which is RAM that only the log uses.
            unsafe { place.write(byte) };
            self.used += 1;
        }
    }

    fn seal(&mut self) {
        let at = NEXT.load(Ordering::Relaxed);
        if at >= LOG_END {
            return;
        }
        // SAFETY: as in `append`; no other reference to the page exists.
        let page = unsafe { &mut *(at as *mut [u8; PAGE as usize]) };
        seal(page, self.log, self.number, self.used);
        NEXT.store(at + PAGE, Ordering::Relaxed);
        SEALED.fetch_add(1, Ordering::Relaxed);
        self.number += 1;
        self.used = 0;
    }

    /// Ends the log.
    pub fn finish(mut self) {
        self.seal();
    }
}

/// Pages of all logs so far.
pub fn pages() -> u64 {
    SEALED.load(Ordering::Relaxed)
}
