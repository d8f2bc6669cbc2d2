//! Claims about memory that goes away while another CPU uses it.

use core::ptr::{read_volatile, write_volatile};

use sdk::abi::thread::State;
use sdk::abi::{Call, FRAME};
use sdk::memory::{self, READ, READ_WRITE};
use sdk::prelude::*;

use crate::lab::{Claim, Failure, Lab, ROUNDS, WRONG, call, same, until};

pub const CLAIMS: &[Claim] = &[
    ("no_read_succeeds_after_a_revoke", revoke),
    ("a_revoke_of_many_pages_reaches_every_one", many),
    ("a_page_unmapped_here_is_gone_at_once", here),
];

/// What stands in a page while others may read it, and after they may not.
const GIVEN: u64 = 0x600d;
const TAKEN: u64 = 0xbad;

/// Reads pages in turn for ever, on another CPU.
fn reader(addresses: u64, count: u64) {
    loop {
        for page in 0..count {
            // SAFETY: mapped readable until it is revoked; then the read faults, as intended.
            let seen = unsafe { read_volatile((addresses + page * FRAME) as *const u64) };
            match seen {
                GIVEN => ROUNDS.count(),
                _ => WRONG.count(),
            }
        }
    }
}

/// Gives `count` pages to a reader, takes them away by one revoke, and then writes into them.
fn round(lab: &mut Lab, count: u32) -> Result<(), Failure> {
    let frame: Cap<cap::Frame> = memory::own().retype(memory::ORDER_2M)?;
    let own = memory::map(frame, memory::LARGE, READ_WRITE)?;
    let write = |value: u64| {
        for page in 0..u64::from(count) {
            // SAFETY: memory that was mapped writable for this claim alone.
            unsafe { write_volatile((own + page * FRAME) as *mut u64, value) };
        }
    };
    write(GIVEN);
    let shared = memory::reserve(u64::from(count) * FRAME)?;
    for page in 0..count {
        let offset = u64::from(page) * FRAME;
        let slot = sdk::slots::take().ok_or(Status::SlotOccupied)?;
        frame.copy_to(CopyTo {
            space: OWN,
            slot,
            rights: Rights::READ,
            badge: offset,
            order: memory::ORDER_4K,
        })?;
        let copy: Cap<cap::Frame> = Cap::new(slot);
        memory::map_into(
            memory::own(),
            memory::OWN_SPACE,
            copy,
            shared + offset,
            READ,
        )?;
    }
    let worker = lab.worker(1, move |_| reader(shared, count.into()))?;
    ROUNDS.grows("it reads", 100)?;
    frame.revoke()?;
    write(TAKEN);
    until("it faults", || {
        worker
            .thread
            .inspect()
            .is_ok_and(|report| report.state == State::Faulted as u64)
    })?;
    same("reads of what was taken away", WRONG.get(), 0)?;
    let fault = worker.thread.inspect()?;
    same("the fault", fault.vector, 14)?;
    let within = fault.address.wrapping_sub(shared) < u64::from(count) * FRAME;
    same("it is one of the pages", within.into(), 1)?;
    worker.end()?;
    Ok(frame.delete()?)
}

fn revoke(lab: &mut Lab) -> Result<(), Failure> {
    (0..20).try_for_each(|_| round(lab, 1))
}

fn many(lab: &mut Lab) -> Result<(), Failure> {
    (0..5).try_for_each(|_| round(lab, 8))
}

/// A thread reads a page, unmaps it and reads it again, on one CPU: whoever takes a translation away
/// forgets it too.
fn here(lab: &mut Lab) -> Result<(), Failure> {
    for _ in 0..20 {
        let frame: Cap<cap::Frame> = memory::own().retype(memory::ORDER_4K)?;
        let address = memory::map(frame, FRAME, READ_WRITE)?;
        let slot = u64::from(frame.slot());
        let worker = lab.worker(1, move |_| {
            // SAFETY: mapped readable until the call below; the last read faults, as intended.
            let read = || unsafe { read_volatile(address as *const u64) };
            read();
            ROUNDS.count();
            let (status, _) = call(Call::Unmap, [slot, 0, 0, 0]);
            if status == Status::Ok {
                read();
            }
            WRONG.count();
        })?;
        let state = || worker.thread.inspect().map(|report| report.state);
        until("it ends", || {
            WRONG.get() != 0 || state() == Ok(State::Faulted as u64)
        })?;
        same("reads before", ROUNDS.get(), 1)?;
        same("reads of what it unmapped, or refusals", WRONG.get(), 0)?;
        let fault = worker.thread.inspect()?;
        same("where it faults", fault.address, address)?;
        worker.end()?;
        frame.delete()?;
    }
    Ok(())
}
