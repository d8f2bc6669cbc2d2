//! Writes kept in memory: which sectors, and what is in them. Bounded: a write that does not fit is
//! refused and changes nothing of what was there before in other blocks.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::SECTOR;

/// Bytes of a block: what memory is taken by. Eight sectors, so that one byte says which are there.
pub const BLOCK: usize = 4096;
const SECTORS: u64 = BLOCK as u64 / SECTOR;
/// Blocks that memory is asked for at once.
const RUN: usize = 64;

/// No memory is left, of that which was allowed or of any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Clone, Copy, Debug)]
struct Kept {
    /// Which of `data`'s blocks.
    place: usize,
    /// Bit for each sector that was written.
    sectors: u8,
}

/// What was written.
#[derive(Debug)]
pub struct Overlay {
    blocks: BTreeMap<u64, Kept>,
    data: Vec<Vec<u8>>,
    /// Blocks of `data` that were given back. There is room in it for all of them.
    free: Vec<usize>,
    most: usize,
}

impl Overlay {
    /// Nothing yet, and at most `bytes`.
    pub fn new(bytes: u64) -> Overlay {
        Overlay {
            blocks: BTreeMap::new(),
            data: Vec::new(),
            free: Vec::new(),
            most: usize::try_from(bytes / BLOCK as u64).unwrap_or(usize::MAX),
        }
    }

    /// Bytes in use, and that there are.
    pub fn usage(&self) -> (u64, u64) {
        let bytes = |blocks: usize| blocks as u64 * BLOCK as u64;
        (bytes(self.blocks.len()), bytes(self.most))
    }

    fn sector_of(&self, kept: Kept, index: u64) -> Option<&[u8]> {
        let run = self.data.get(kept.place / RUN)?;
        let start = kept.place % RUN * BLOCK + (index * SECTOR) as usize;
        run.get(start..start + SECTOR as usize)
    }

    /// Puts the sectors that were written over what is in `into`, which begins with `sector`.
    pub fn read(&self, sector: u64, into: &mut [u8]) {
        for (number, bytes) in (sector..).zip(into.chunks_mut(SECTOR as usize)) {
            let (block, index) = (number / SECTORS, number % SECTORS);
            if let Some(kept) = self.blocks.get(&block)
                && kept.sectors >> index & 1 != 0
                && let Some(data) = self.sector_of(*kept, index)
                && let Some(data) = data.get(..bytes.len())
            {
                bytes.copy_from_slice(data);
            }
        }
    }

    /// Keeps whole sectors from `sector` on. If there is no room, sectors before that are kept.
    pub fn write(&mut self, sector: u64, from: &[u8]) -> Result<(), Full> {
        for (number, bytes) in (sector..).zip(from.chunks_exact(SECTOR as usize)) {
            let (block, index) = (number / SECTORS, number % SECTORS);
            let place = match self.blocks.get(&block) {
                Some(kept) => kept.place,
                None => self.take(block)?,
            };
            let start = place % RUN * BLOCK + (index * SECTOR) as usize;
            let run = self.data.get_mut(place / RUN).ok_or(Full)?;
            let to = run.get_mut(start..start + SECTOR as usize).ok_or(Full)?;
            to.copy_from_slice(bytes);
            if let Some(kept) = self.blocks.get_mut(&block) {
                kept.sectors |= 1 << index;
            }
        }
        Ok(())
    }

    /// Forgets what was written to `count` sectors from `sector` on, and gives back blocks of which nothing
    /// is left. They may be another sector's next: what was in them is not read again, as only sectors
    /// that were written since are.
    pub fn forget(&mut self, sector: u64, count: u64) {
        let Some(last) = sector.checked_add(count).and_then(|end| end.checked_sub(1)) else {
            return;
        };
        let (first_block, last_block) = (sector / SECTORS, last / SECTORS);
        if count == 0 {
            return;
        }
        let mut left = first_block;
        while left <= last_block
            && let Some((&block, kept)) = self.blocks.range_mut(left..=last_block).next()
        {
            let first = sector.max(block * SECTORS) - block * SECTORS;
            let end = last.min(block * SECTORS + SECTORS - 1) - block * SECTORS + 1;
            kept.sectors &= !(((1u16 << end) - (1u16 << first)) as u8);
            if kept.sectors == 0 {
                self.free.push(kept.place);
                self.blocks.remove(&block);
            }
            left = block + 1;
        }
    }

    /// Room for a block, of which nothing is there yet.
    fn take(&mut self, block: u64) -> Result<usize, Full> {
        let place = match self.free.pop() {
            Some(place) => place,
            None => self.grow()?,
        };
        self.blocks.insert(block, Kept { place, sectors: 0 });
        Ok(place)
    }

    /// A place that none had before.
    fn grow(&mut self) -> Result<usize, Full> {
        // None was given back, so those before are all in use.
        let place = self.blocks.len();
        if place >= self.most {
            return Err(Full);
        }
        if place / RUN >= self.data.len() {
            let blocks = RUN.min(self.most - place);
            let bytes = blocks * BLOCK;
            let mut run = Vec::new();
            run.try_reserve_exact(bytes).map_err(|_| Full)?;
            run.resize(bytes, 0);
            self.data.try_reserve(1).map_err(|_| Full)?;
            self.free.try_reserve(place + blocks).map_err(|_| Full)?;
            self.data.push(run);
        }
        Ok(place)
    }
}
