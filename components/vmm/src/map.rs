//! The guest's address space in the core: RAM in 2 MiB mappings, cut into 4 KiB ones only where
//! the guest takes a page out or puts a special frame in, and other guests' pages where this one is their
//! driver domain.
//!
//! Called under its lock by whichever vCPU thread makes the hypercall. While a 2 MiB mapping is
//! being cut, other vCPUs fault on it and try again (see `vcpu::mmio`): nothing is lost.

use alloc::vec::Vec;

use sdk::abi::cap::Map;
use sdk::memory::{self, LARGE, ORDER_4K};
use sdk::prelude::*;
use sdk::slots;
use x86_platform::apic;
use xen_abi::{MapError, SpecialFrame};

use guest_loader::layout::{HIGH_START, LOW_END};

use vmm_guest::ram::Ram;

use crate::abroad::Abroad;

const PAGE: u64 = 4096;
/// 4 KiB frames in one of 2 MiB.
const CHILDREN: u32 = (LARGE / PAGE) as u32;
const GUEST: u64 = Map::READ | Map::WRITE | Map::EXECUTE;

/// What was at a guest frame that was taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// Nothing.
    Nothing,
    /// RAM.
    Ram,
    /// A special frame.
    Special,
}

/// 2 MiB of RAM.
#[derive(Debug)]
struct Chunk {
    frame: Cap<cap::Frame>,
    /// First of [`CHILDREN`] slots, once it was cut.
    children: Option<u32>,
}

/// The mappings.
#[derive(Debug)]
pub struct GuestMap {
    space: Cap<cap::AddressSpace>,
    /// Guest frame numbers are below this.
    gfn_end: u64,
    chunks: Vec<Chunk>,
    special: Vec<Cap<cap::Frame>>,
    /// Pages of other guests.
    foreign: Abroad,
}

fn chunk_address(index: usize) -> u64 {
    let offset = index as u64 * LARGE;
    if offset < LOW_END {
        offset
    } else {
        offset + (HIGH_START - LOW_END)
    }
}

impl GuestMap {
    /// Maps all of RAM into a space of `bits` bits of address. `special` are the special frames in order, mapped nowhere yet.
    pub fn new(
        space: Cap<cap::AddressSpace>,
        bits: u32,
        frames: impl Iterator<Item = Cap<cap::Frame>>,
        special: Vec<Cap<cap::Frame>>,
    ) -> Result<GuestMap, Status> {
        let mut chunks = Vec::new();
        for (index, frame) in frames.enumerate() {
            memory::map_into(memory::own(), space, frame, chunk_address(index), GUEST)?;
            chunks.push(Chunk {
                frame,
                children: None,
            });
        }
        Ok(GuestMap {
            space,
            gfn_end: (1u64 << bits.clamp(32, 52)) / PAGE,
            chunks,
            special,
            foreign: Abroad::default(),
        })
    }

    fn chunk_index(gfn: u64) -> Option<usize> {
        let address = gfn.checked_mul(PAGE)?;
        let offset = if address < LOW_END {
            address
        } else {
            address.checked_sub(HIGH_START - LOW_END)?
        };
        usize::try_from(offset / LARGE).ok()
    }

    /// The 4 KiB frame of a RAM page; cuts the mapping around it if need be.
    fn child(&mut self, gfn: u64) -> Result<Cap<cap::Frame>, MapError> {
        let index = Self::chunk_index(gfn).ok_or(MapError::OutOfRange)?;
        let space = self.space;
        let chunk = self.chunks.get_mut(index).ok_or(MapError::OutOfRange)?;
        let first = match chunk.children {
            Some(first) => first,
            None => {
                let first = cut(chunk.frame, space, chunk_address(index)).map_err(|status| {
                    log::warn!("guest memory not cut at {gfn:#x}: {status:?}");
                    MapError::NoMemory
                })?;
                chunk.children = Some(first);
                first
            }
        };
        Ok(Cap::new(first + (gfn % u64::from(CHILDREN)) as u32))
    }

    /// A capability to the RAM page at `gfn`, in a slot of its own, whatever is mapped where: for
    /// somebody else.
    pub fn page(&self, gfn: u64, write: bool) -> Result<Cap<cap::Frame>, Status> {
        let chunk = Self::chunk_index(gfn).and_then(|index| self.chunks.get(index));
        let chunk = chunk.ok_or(Status::InvalidArgument)?;
        let slot = slots::take().ok_or(Status::SlotOccupied)?;
        let rights = if write {
            Rights::READ.or(Rights::WRITE)
        } else {
            Rights::READ
        };
        let made = chunk.frame.copy_to(CopyTo {
            space: OWN,
            slot,
            rights,
            badge: gfn % u64::from(CHILDREN) * PAGE,
            order: ORDER_4K,
        });
        made.map(|()| Cap::new(slot))
            .inspect_err(|_| slots::give_back(slot))
    }

    /// Maps a page of another guest, which is mapped nowhere, at `gfn` in place of what is there.
    pub fn place(
        &mut self,
        ram: &Ram,
        frame: Cap<cap::Frame>,
        gfn: u64,
        write: bool,
    ) -> Result<(), MapError> {
        if gfn >= self.gfn_end || gfn == apic::BASE_ADDRESS / PAGE {
            return Err(MapError::OutOfRange);
        }
        let flags = if write {
            Map::READ | Map::WRITE
        } else {
            Map::READ
        };
        let removed = self.remove(ram, gfn);
        let mapped = removed.and_then(|_| {
            memory::map_into(memory::own(), self.space, frame, gfn * PAGE, flags)
                .map_err(|_| MapError::NoMemory)
        });
        match mapped {
            Ok(()) => self.foreign.placed(gfn, frame, write),
            Err(_) => {
                if removed == Ok(Removed::Ram) {
                    // What was there comes back; its tables exist.
                    let _ = self.populate(ram, gfn, false);
                }
            }
        }
        mapped
    }

    /// Another guest's page is about to go, and unmaps itself by that. The guest may have put something else
    /// in its place.
    pub fn let_go(&mut self, frame: Cap<cap::Frame>, gfn: u64) {
        self.foreign.let_go(gfn, frame);
    }

    /// The guest touched a page of another guest that is gone: true if something stands in for it, or it is
    /// there after all, so that the guest can try again.
    pub fn stands_in(&mut self, gfn: u64, write: bool) -> bool {
        self.foreign.stands_in(self.space, gfn, write)
    }

    fn map_page(&self, frame: Cap<cap::Frame>, gfn: u64) -> Result<(), MapError> {
        memory::map_into(memory::own(), self.space, frame, gfn * PAGE, GUEST).map_err(|status| {
            log::warn!("guest frame {gfn:#x} not mapped: {status:?}");
            MapError::NoMemory
        })
    }

    /// Takes out what is mapped at `gfn`; answers what it was.
    pub fn remove(&mut self, ram: &Ram, gfn: u64) -> Result<Removed, MapError> {
        if let Some(index) = ram.special_of(gfn) {
            if let Some(frame) = usize::try_from(index)
                .ok()
                .and_then(|i| self.special.get(i))
            {
                unmapped(frame.unmap(), gfn);
            }
            ram.set_special(index, None);
            return Ok(Removed::Special);
        }
        if self.foreign.take_out(gfn) {
            return Ok(Removed::Special);
        }
        if !ram.is_plain(gfn) {
            return Ok(Removed::Nothing);
        }
        let frame = self.child(gfn)?;
        ram.set_plain(gfn, false);
        unmapped(frame.unmap(), gfn);
        Ok(Removed::Ram)
    }

    /// Maps a special frame at `gfn` in place of what is there.
    pub fn map_special(
        &mut self,
        ram: &Ram,
        frame: SpecialFrame,
        gfn: u64,
    ) -> Result<(), MapError> {
        self.map_frame(ram, frame.index(), gfn)
    }

    /// Maps own frame `index` at `gfn` in place of what is there.
    pub fn map_frame(&mut self, ram: &Ram, index: u64, gfn: u64) -> Result<(), MapError> {
        if gfn >= self.gfn_end || gfn == apic::BASE_ADDRESS / PAGE {
            return Err(MapError::OutOfRange);
        }
        let cap = usize::try_from(index)
            .ok()
            .and_then(|index| self.special.get(index))
            .copied()
            .ok_or(MapError::OutOfRange)?;
        if let Some(before) = ram.special_at(index) {
            if before == gfn {
                return Ok(());
            }
            self.remove(ram, before)?;
        }
        let removed = self.remove(ram, gfn)?;
        match self.map_page(cap, gfn) {
            Ok(()) => {
                ram.set_special(index, Some(gfn));
                Ok(())
            }
            Err(error) => {
                if removed == Removed::Ram {
                    // What was there comes back; its tables exist.
                    let _ = self.populate(ram, gfn, false);
                }
                Err(error)
            }
        }
    }

    /// Puts RAM back at a guest frame where it belongs, zeroed if asked. Answers false if
    /// something is mapped there: it stays.
    pub fn populate(&mut self, ram: &Ram, gfn: u64, zero: bool) -> Result<bool, MapError> {
        if ram.is_plain(gfn) || ram.special_of(gfn).is_some() || self.foreign.is_at(gfn) {
            return Ok(false);
        }
        if !ram.belongs(gfn) {
            return Err(MapError::NoMemory);
        }
        let frame = self.child(gfn)?;
        if zero {
            ram.clear(gfn);
        }
        self.map_page(frame, gfn)?;
        ram.set_plain(gfn, true);
        Ok(true)
    }
}

fn unmapped(result: Result<(), Status>, gfn: u64) {
    if let Err(status) = result {
        log::error!("guest frame {gfn:#x} not unmapped: {status:?}");
    }
}

/// Replaces the mapping of a 2 MiB frame by mappings of its 4 KiB parts; answers their first slot.
/// On an error the large mapping is back.
fn cut(frame: Cap<cap::Frame>, space: Cap<cap::AddressSpace>, address: u64) -> Result<u32, Status> {
    let first = slots::take_run(CHILDREN).ok_or(Status::SlotOccupied)?;
    let child = |index: u32| Cap::<cap::Frame>::new(first + index);
    let undo = |made: u32| {
        (0..made).for_each(|index| {
            let _ = child(index).delete();
        });
        (made..CHILDREN).for_each(|index| slots::give_back(first + index));
    };
    for index in 0..CHILDREN {
        let made = frame.copy_to(CopyTo {
            space: OWN,
            slot: first + index,
            rights: Rights::ALL,
            badge: u64::from(index) * PAGE,
            order: ORDER_4K,
        });
        if let Err(status) = made {
            undo(index);
            return Err(status);
        }
    }
    frame.unmap()?;
    for index in 0..CHILDREN {
        let at = address + u64::from(index) * PAGE;
        if let Err(status) = memory::map_into(memory::own(), space, child(index), at, GUEST) {
            undo(CHILDREN);
            memory::map_into(memory::own(), space, frame, address, GUEST)?;
            return Err(status);
        }
    }
    Ok(first)
}
