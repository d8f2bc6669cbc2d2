//! A split virtqueue (2.7) that carries block requests (5.2.6): three descriptors each, always the
//! same three for a slot. What the device writes is read once; a device that completes what it was not
//! given is [`Broken`].

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use block_driver::engine::{Broken, Full};
use block_driver::memory::Memory;

use crate::layout::SECTOR;

/// Most entries of a queue.
pub const SIZE_MOST: u16 = 256;
/// Bytes that a queue of any size takes.
pub const BYTES: u64 = 16 * 1024;

const DESCRIPTORS: u64 = 0;
const DESCRIPTOR: u64 = 16;
const AVAILABLE: u64 = DESCRIPTOR * SIZE_MOST as u64;
const USED: u64 = AVAILABLE + 1024;
const HEADERS: u64 = USED + 3072;
/// A header of 16 bytes, a status byte behind it, and a discard's segment.
const HEADER: u64 = 64;
const STATUS: u64 = 16;
const SEGMENT: u64 = 32;
const SEGMENT_BYTES: u32 = 16;
const PER_REQUEST: u16 = 3;
const _: () = assert!(HEADERS + HEADER * (SIZE_MOST / PER_REQUEST) as u64 <= BYTES);
const _: () = assert!(USED + 6 + 8 * SIZE_MOST as u64 <= HEADERS);

/// Descriptor flags (2.7.5).
const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// Kinds of request (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the disk.
    In = 0,
    /// To the disk.
    Out = 1,
    /// Make it last.
    Flush = 4,
    /// Give it up.
    Discard = 11,
}

/// Data of a request, as the device sees it. A discard has none, and as many bytes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// Its address.
    pub bus: u64,
    /// How many bytes; 0 for none.
    pub bytes: u32,
}

/// What the device says of a request's end (5.2.6, `status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is done.
    Good,
    /// The device does not do such things.
    Unsupported,
    /// It failed, or the device says something else.
    Failed,
}

/// A request that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed<T> {
    /// What it was submitted with.
    pub token: T,
    /// How it ended.
    pub end: End,
}

/// Where a queue's parts are, as the device sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Descriptors.
    pub descriptors: u64,
    /// What the driver writes.
    pub driver: u64,
    /// What the device writes.
    pub device: u64,
}

/// One queue.
#[derive(Debug)]
pub struct Queue<M, T> {
    memory: M,
    bus: u64,
    size: u16,
    /// What is with the device, by slot.
    slots: Vec<Option<T>>,
    free: Vec<u16>,
    /// Requests ever made available.
    available: u16,
    /// Completions ever taken.
    used: u16,
}

impl<M: Memory, T> Queue<M, T> {
    /// An empty queue in [`BYTES`] bytes of memory, which the device sees at `bus`. `size` is what
    /// the device offers, a power of two; more than [`SIZE_MOST`] is not used. `None` if it is too small.
    pub fn new(mut memory: M, bus: u64, size: u16) -> Option<Self> {
        let size = size.min(SIZE_MOST);
        if !size.is_power_of_two() || size < 4 {
            return None;
        }
        for offset in (0..BYTES).step_by(8) {
            memory.write64(offset, 0);
        }
        let count = size / PER_REQUEST;
        Some(Queue {
            memory,
            bus,
            size,
            slots: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            available: 0,
            used: 0,
        })
    }

    /// Where its parts are.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            descriptors: self.bus + DESCRIPTORS,
            driver: self.bus + AVAILABLE,
            device: self.bus + USED,
        }
    }

    /// Entries: what the device is told.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// True if a request can be submitted.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Requests with the device.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn descriptor(&mut self, index: u16, bus: u64, bytes: u32, flags: u16) {
        let at = DESCRIPTORS + DESCRIPTOR * u64::from(index);
        self.memory.write64(at, bus);
        self.memory.write32(at + 8, bytes);
        self.memory.write16(at + 12, flags);
        self.memory.write16(at + 14, index + 1);
    }

    /// Gives a request to the device. Announce the queue afterwards.
    pub fn submit(&mut self, kind: Kind, sector: u64, data: Data, token: T) -> Result<(), Full> {
        let slot = self.free.pop().ok_or(Full)?;
        if let Some(place) = self.slots.get_mut(usize::from(slot)) {
            *place = Some(token);
        }
        let header = HEADERS + HEADER * u64::from(slot);
        self.memory.write32(header, kind as u32);
        self.memory.write32(header + 4, 0);
        // A discard says where in its segment (5.2.6).
        let first_sector = if kind == Kind::Discard { 0 } else { sector };
        self.memory.write64(header + 8, first_sector);
        // Neither good nor any other known end, until the device says so.
        self.memory.write8(header + STATUS, 0xff);
        let first = slot * PER_REQUEST;
        let bus = self.bus + header;
        self.descriptor(first, bus, 16, NEXT);
        let mut last = first + 1;
        if kind == Kind::Discard {
            self.memory.write64(header + SEGMENT, sector);
            let sectors = data.bytes / SECTOR;
            self.memory.write32(header + SEGMENT + 8, sectors);
            // Flag `unmap` is for zeroes only.
            self.memory.write32(header + SEGMENT + 12, 0);
            self.descriptor(last, bus + SEGMENT, SEGMENT_BYTES, NEXT);
            last += 1;
        } else if data.bytes > 0 {
            let writes = if kind == Kind::In { DEVICE_WRITES } else { 0 };
            self.descriptor(last, data.bus, data.bytes, NEXT | writes);
            last += 1;
        }
        self.descriptor(last, bus + STATUS, 1, DEVICE_WRITES);
        let place = AVAILABLE + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write16(place, first);
        // The device sees the request before it sees that there is one.
        fence(Ordering::Release);
        self.available = self.available.wrapping_add(1);
        self.memory.write16(AVAILABLE + 2, self.available);
        Ok(())
    }

    /// The next request that the device completed.
    pub fn complete(&mut self) -> Result<Option<Completed<T>>, Broken> {
        let used = self.memory.read16(USED + 2);
        let waiting = used.wrapping_sub(self.used);
        if waiting == 0 {
            return Ok(None);
        }
        if usize::from(waiting) > self.in_flight() {
            return Err(Broken);
        }
        // What it completed is read after that it did.
        fence(Ordering::Acquire);
        let place = USED + 4 + 8 * u64::from(self.used % self.size);
        let first = self.memory.read32(place);
        let slot = first / u32::from(PER_REQUEST);
        let taken = usize::try_from(slot).ok();
        let taken = taken.and_then(|slot| self.slots.get_mut(slot));
        let token = match taken.and_then(Option::take) {
            Some(token) if first.is_multiple_of(PER_REQUEST.into()) => token,
            _ => return Err(Broken),
        };
        self.used = self.used.wrapping_add(1);
        self.free.push(slot as u16);
        let status = self
            .memory
            .read8(HEADERS + HEADER * u64::from(slot) + STATUS);
        Ok(Some(Completed {
            token,
            end: match status {
                0 => End::Good,
                2 => End::Unsupported,
                _ => End::Failed,
            },
        }))
    }
}
