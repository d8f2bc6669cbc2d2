//! Loads, stores and calls at addresses that are not the guest's.

use core::sync::atomic::Ordering;

use guest_kit::cpu;
use guest_kit::trap::Exception;
use hostile_calls::layout::RAM;
use hostile_calls::log::{NO_EXCEPTION, logs};
use hostile_calls::places::{OWN, PLACES, Place, SWEEP, address};

use crate::log::{self, Log};

/// Four instructions that each return.
const RETURNS: u32 = 0xc3c3_c3c3;

/// Runs all; the pages logged.
pub fn run() -> u64 {
    // Plain returns, for the mappings of this page that cannot be written.
    // SAFETY: a page that only this function uses.
    unsafe { crate::xen::word(OWN) }.store(RETURNS, Ordering::SeqCst);
    let mut out = Log::new(logs::PLACES);
    for (index, place) in PLACES.iter().enumerate() {
        out.append(&touch(address(index, place), place));
    }
    out.finish();
    let mut out = Log::new(logs::SWEEP);
    for address in (RAM..1 << 32).step_by(SWEEP as usize) {
        let read = cpu::try_load(address);
        let mut record = [vector(read.map(|_| ())); 5];
        record[1..].copy_from_slice(&read.unwrap_or(0).to_le_bytes());
        out.append(&record);
    }
    out.finish();
    log::pages()
}

fn vector(outcome: Result<(), Exception>) -> u8 {
    outcome.map_or_else(|exception| exception.vector, |()| NO_EXCEPTION)
}

fn touch(address: u64, place: &Place) -> [u8; 12] {
    let before = cpu::try_load(address);
    let (mut stored, mut called) = (NO_EXCEPTION, NO_EXCEPTION);
    if place.write {
        // SAFETY: nothing of the program is at a place that may be written. What lies in its own
        // memory there is made a plain return first, and where no memory is, what is fetched is no
        // instruction.
        unsafe {
            stored = vector(cpu::try_store(address, RETURNS));
            called = vector(cpu::try_call(address));
        }
    }
    let after = cpu::try_load(address);
    let mut record = [0; 12];
    record[0] = vector(before.map(|_| ()));
    record[1] = stored;
    record[2] = called;
    record[4..8].copy_from_slice(&before.unwrap_or(0).to_le_bytes());
    record[8..].copy_from_slice(&after.unwrap_or(0).to_le_bytes());
    record
}
