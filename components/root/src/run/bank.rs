//! The machine's RAM in root's hands: what it keeps for itself, and the pool from which instances
//! and guests get theirs and to which it comes back. The bookkeeping is `root_plan::pool`.

use alloc::vec::Vec;

use root_plan::pool::{Carver, Pool, PoolError};
use sdk::abi::FRAME;
use sdk::abi::boot::Info;
use sdk::memory::{LARGE, ORDER_2M};
use sdk::prelude::*;
use sdk::{slots, time};

use super::hardware::DmaMemory;

/// Frames of 4 KiB in a unit of the pool.
const UNIT: u64 = LARGE / FRAME;
/// Units that root keeps for its heap, page tables, endpoints and rings, with what it used before
/// it could count and the alignment of the rest.
const KEPT: u64 = 6;
/// Frames of 2 MiB that are made, and zeroed by the core, in one go.
const PIECE: u32 = 8;

/// Splits and joins the core's `Memory`.
struct Core;

impl Carver for Core {
    type Handle = Cap<cap::Memory>;
    type Error = Status;

    fn split(
        &mut self,
        whole: Cap<cap::Memory>,
        first: u64,
        second: u64,
    ) -> Result<[Cap<cap::Memory>; 2], Status> {
        let first: Cap<cap::Memory> = whole.retype(first * UNIT)?;
        match whole.retype(second * UNIT) {
            Ok(second) => Ok([first, second]),
            Err(status) => {
                first.delete()?;
                Err(status)
            }
        }
    }

    fn join(&mut self, halves: [Cap<cap::Memory>; 2]) -> Result<(), Status> {
        halves.into_iter().try_for_each(AnyCap::delete)
    }
}

fn status(error: PoolError<Status>) -> Status {
    match error {
        PoolError::NoMemory => Status::NoMemory,
        PoolError::NotGiven => Status::InvalidArgument,
        PoolError::Carver(status) => status,
    }
}

/// Who has what.
pub struct Bank {
    pool: Pool<Cap<cap::Memory>>,
    /// Frames of RAM that the core gave to root.
    frames: u64,
    /// Units that are guests' memory.
    guests: u64,
    /// What is set apart for devices.
    pub dma: DmaMemory,
}

/// A guest's memory.
pub struct GuestMemory {
    pieces: Vec<(Cap<cap::Memory>, u64)>,
    /// The first of its frames of 2 MiB; the others are in the slots after it.
    pub frames: Cap<cap::Frame>,
    /// How many.
    pub count: u32,
}

impl Bank {
    /// Takes all RAM but what root keeps. `dma` frames of 2 MiB are set apart for devices.
    pub fn new(info: &Info, dma: u32) -> Bank {
        let mut bank = Bank {
            pool: Pool::default(),
            frames: 0,
            guests: 0,
            dma: DmaMemory::default(),
        };
        let ranges = info.memories.iter().take(info.memory_count as usize);
        for range in ranges.filter(|range| range.device == 0) {
            bank.frames += range.frames;
            let memory = Cap::new(range.slot);
            let own = memory == sdk::memory::own();
            let added = if own {
                bank.add_own(memory, range.base, range.frames, dma)
            } else {
                bank.add(memory, range.base, range.frames)
            };
            if let Err(status) = added {
                log::error!("memory at {:#x} is not used: {status:?}", range.base);
            }
        }
        bank
    }

    fn add(&mut self, memory: Cap<cap::Memory>, base: u64, frames: u64) -> Result<(), Status> {
        let gap = (base.next_multiple_of(LARGE) - base) / FRAME;
        let units = frames.saturating_sub(gap) / UNIT;
        if units == 0 {
            return Ok(());
        }
        if gap != 0 {
            // Never freed: what follows stays aligned.
            let _: Cap<cap::Memory> = memory.retype(gap)?;
        }
        self.pool.add(memory.retype(units * UNIT)?, units);
        Ok(())
    }

    /// What root uses itself is in the same range, before and behind.
    fn add_own(
        &mut self,
        memory: Cap<cap::Memory>,
        base: u64,
        frames: u64,
        dma: u32,
    ) -> Result<(), Status> {
        let units = (frames / UNIT).saturating_sub(KEPT + u64::from(dma));
        if units == 0 {
            return Err(Status::NoMemory);
        }
        // How much is used already only the core knows; a large frame is aligned, and so is what
        // comes after it.
        let _: Cap<cap::Frame> = memory.retype(ORDER_2M)?;
        match DmaMemory::carve(memory, base, dma) {
            Ok(carved) => self.dma = carved,
            Err(status) => log::error!("no memory for devices: {status:?}"),
        }
        self.pool.add(memory.retype(units * UNIT)?, units);
        Ok(())
    }

    /// Memory of at least `frames` of 4 KiB, and how many it has.
    pub fn take(&mut self, frames: u64) -> Result<(Cap<cap::Memory>, u64), Status> {
        let units = frames.div_ceil(UNIT);
        let memory = self.pool.take(&mut Core, units).map_err(status)?;
        Ok((memory, units * UNIT))
    }

    /// Takes back memory of which nothing is left.
    pub fn give(&mut self, memory: Cap<cap::Memory>) {
        if let Err(error) = self.pool.give(&mut Core, memory) {
            // It is lost; whoever had it has it no more.
            log::error!("memory not taken back: {error:?}");
        }
    }

    /// `count` zeroed frames of 2 MiB for a guest.
    pub fn take_guest(&mut self, count: u32) -> Result<GuestMemory, Status> {
        let pieces = self
            .pool
            .take_pieces(&mut Core, count.into())
            .map_err(status)?;
        let made = slots::take_run(count).ok_or(Status::SlotOccupied);
        let made = made.and_then(|first| {
            fill(&pieces, first).inspect_err(|_| {
                (first..first + count).for_each(slots::give_back);
            })?;
            Ok(Cap::new(first))
        });
        match made {
            Ok(frames) => {
                self.guests += u64::from(count);
                Ok(GuestMemory {
                    pieces,
                    frames,
                    count,
                })
            }
            Err(status) => {
                self.empty(pieces);
                Err(status)
            }
        }
    }

    /// Takes a guest's memory back from whoever has it.
    pub fn give_guest(&mut self, memory: GuestMemory) {
        self.guests = self.guests.saturating_sub(memory.count.into());
        let first = memory.frames.slot();
        if self.empty(memory.pieces) {
            (first..first + memory.count).for_each(slots::give_back);
        }
    }

    /// True if all of it is free again.
    fn empty(&mut self, pieces: Vec<(Cap<cap::Memory>, u64)>) -> bool {
        let mut all = true;
        for (memory, _) in pieces {
            match memory.revoke() {
                Ok(()) => self.give(memory),
                Err(status) => {
                    log::error!("memory not taken back: {status:?}");
                    all = false;
                }
            }
        }
        all
    }

    /// RAM that the core gave to root, what of it guests have, and what is free; in KiB.
    pub fn kib(&self) -> [u64; 3] {
        let unit = LARGE / 1024;
        [
            self.frames * (FRAME / 1024),
            self.guests * unit,
            self.pool.free() * unit,
        ]
    }
}

/// Makes frames in consecutive slots. The core zeroes them at root's priority, above all guests
/// and the console, so root rests as long as each piece took.
fn fill(pieces: &[(Cap<cap::Memory>, u64)], first: u32) -> Result<(), Status> {
    let mut slot = first;
    for &(memory, units) in pieces {
        let mut left = u32::try_from(units).map_err(|_| Status::NoMemory)?;
        while left != 0 {
            let count = left.min(PIECE);
            let start = time::now();
            memory.retype_in::<cap::Frame>(ORDER_2M, OWN, slot, count)?;
            slot += count;
            left -= count;
            let now = time::now();
            let rest = now.saturating_add(now.saturating_sub(start));
            // A rest that is cut short does no harm.
            let _ = time::sleep_until(rest);
        }
    }
    Ok(())
}
