//! Making things out of one component's memory, and remembering what they occupy: slots of root's
//! that become free when that memory is revoked, and copies that have to be deleted first.

use alloc::vec::Vec;

use sdk::memory::{ORDER_2M, ORDER_4K, READ};
use sdk::prelude::*;
use sdk::slots;

/// Frames given to an address space each time its pool is empty.
const TABLES: u64 = 4;

/// A stretch of a component's memory that root can look at.
#[derive(Clone, Copy)]
pub struct Region {
    /// Where the component sees it.
    pub address: u64,
    /// Its frames, 4 KiB each, in consecutive slots.
    pub frames: Cap<cap::Frame>,
    /// How many.
    pub count: u32,
}

/// What belongs to one instance.
pub struct Maker {
    /// The memory that all is made of.
    pub memory: Cap<cap::Memory>,
    /// Runs of root's slots that hold it: first, count.
    slots: Vec<(u32, u32)>,
    /// Copies made of other things: not derived from `memory`.
    copies: Vec<Cap<cap::Frame>>,
    /// What reports may read.
    pub regions: Vec<Region>,
}

impl Maker {
    /// Nothing made yet.
    pub fn new(memory: Cap<cap::Memory>) -> Maker {
        Maker {
            memory,
            slots: Vec::new(),
            copies: Vec::new(),
            regions: Vec::new(),
        }
    }

    /// `count` objects; the first.
    pub fn many<K: KindOf>(&mut self, size: u64, count: u32) -> Result<Cap<K>, Status> {
        let first = self.memory.retype_many::<K>(size, count)?;
        self.slots.push((first.slot(), count));
        Ok(first)
    }

    /// One object.
    pub fn one<K: KindOf>(&mut self, size: u64) -> Result<Cap<K>, Status> {
        self.many(size, 1)
    }

    /// Maps with page tables out of the component's memory.
    pub fn map<K: MapKind>(
        &mut self,
        what: Cap<K>,
        space: Cap<cap::AddressSpace>,
        address: u64,
        flags: u64,
    ) -> Result<(), Status> {
        for _ in 0..6 {
            match what.map(space, address, flags) {
                Ok(()) => return Ok(()),
                Err(MapError::NeedTable(_)) => {
                    let tables: Cap<cap::Tables> = self.one(TABLES)?;
                    space.fill(tables)?;
                }
                Err(MapError::Status(status)) => return Err(status),
            }
        }
        Err(Status::NeedTable)
    }

    /// New zeroed frames of 4 KiB, mapped, to be seen in reports.
    pub fn pages(
        &mut self,
        space: Cap<cap::AddressSpace>,
        address: u64,
        count: u32,
        flags: u64,
    ) -> Result<(), Status> {
        let frames = self.many(ORDER_4K, count)?;
        self.map_pages(space, address, frames, count, flags)
    }

    /// Maps frames that were made before.
    pub fn map_pages(
        &mut self,
        space: Cap<cap::AddressSpace>,
        address: u64,
        frames: Cap<cap::Frame>,
        count: u32,
        flags: u64,
    ) -> Result<(), Status> {
        self.regions.push(Region {
            address,
            frames,
            count,
        });
        for index in 0..count {
            let frame = Cap::<cap::Frame>::new(frames.slot() + index);
            self.map(
                frame,
                space,
                address + u64::from(index) * sdk::abi::FRAME,
                flags,
            )?;
        }
        Ok(())
    }

    /// Maps `bytes` of a frame of 2 MiB read-only, from `offset`, by large or small copies as they
    /// fit. All three numbers are multiples of 4 KiB.
    pub fn map_part(
        &mut self,
        source: Cap<cap::Frame>,
        offset: u64,
        bytes: u64,
        space: Cap<cap::AddressSpace>,
        address: u64,
    ) -> Result<(), Status> {
        let whole = offset == 0 && bytes == sdk::memory::LARGE;
        let order = if whole { ORDER_2M } else { ORDER_4K };
        let mut done = 0;
        while done < bytes {
            let copy = self.copy_part(source, offset + done, order)?;
            self.map(copy, space, address + done, READ)?;
            done += 1 << order;
        }
        Ok(())
    }

    /// A read-only copy of a part of a frame; goes away with the instance.
    fn copy_part(
        &mut self,
        source: Cap<cap::Frame>,
        offset: u64,
        order: u64,
    ) -> Result<Cap<cap::Frame>, Status> {
        let slot = slots::take().ok_or(Status::SlotOccupied)?;
        let copied = source.copy_to(CopyTo {
            space: OWN,
            slot,
            rights: Rights::READ,
            badge: offset,
            order,
        });
        match copied {
            Ok(()) => {
                self.copies.push(Cap::new(slot));
                Ok(Cap::new(slot))
            }
            Err(status) => {
                slots::give_back(slot);
                Err(status)
            }
        }
    }

    /// A writable copy of a whole frame of 4 KiB; goes away with the instance.
    pub fn copy_frame(&mut self, source: Cap<cap::Frame>) -> Result<Cap<cap::Frame>, Status> {
        let copy = source.copy(Rights::READ.or(Rights::WRITE))?;
        self.copies.push(copy);
        Ok(copy)
    }

    /// A copy with a badge of an endpoint that was made here; goes away with it.
    pub fn badged(
        &mut self,
        endpoint: Cap<cap::Endpoint>,
        rights: Rights,
        badge: u64,
    ) -> Result<Cap<cap::Endpoint>, Status> {
        let copy = endpoint.mint(rights, badge)?;
        self.slots.push((copy.slot(), 1));
        Ok(copy)
    }

    /// Destroys everything; `memory` is whole again afterwards.
    pub fn destroy(self) -> Result<(), Status> {
        for copy in &self.copies {
            copy.delete()?;
        }
        self.memory.revoke()?;
        for (first, count) in self.slots {
            (first..first + count).for_each(slots::give_back);
        }
        Ok(())
    }
}
