//! What all threads share: the store, the disk behind the driver, volumes, and a seat for each thread that
//! serves a guest. Locks are taken in the order volume, disk, seat; none is held while a guest's VMM is
//! called.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use blkback::device::{Blocks, Submission, Token};
use blkback::pool::Pool;
use idl::Name;
use idl::requests::{Operation, Status as Ended};
use sdk::block::{Data, Disk, DiskError};
use sdk::keep::Kept;
use sdk::prelude::*;
use sdk::store::Store;
use sdk::sync::Mutex;
use volume::{SECTOR, Volume};

/// Bits of a seat's notification: the store changed, the disk answered or has room again, the guest sent
/// events, a peer died.
pub const STORE_BIT: u64 = 1;
pub const DISK_BIT: u64 = 1 << 1;
pub const GUEST_BIT: u64 = 1 << 2;
pub const GONE_BIT: u64 = 1 << 3;

/// Bytes of one request to the driver at most: small enough that several fit into the memory at a time.
const REQUEST_MAX: u32 = 128 << 10;

/// An answer of the disk.
pub struct Done {
    pub token: Token,
    pub request: Submission,
    pub status: Ended,
}

/// A thread that serves one guest.
pub struct Seat {
    /// Wakes it.
    pub bell: Cap<cap::Notification>,
    /// The guest; 0 if it is free.
    pub domain: AtomicU32,
    /// What the disk answered.
    pub done: Mutex<Vec<Done>>,
}

/// The disk behind the driver.
pub struct Line {
    disk: Disk,
    pool: Pool,
    /// What is with the driver, by the request's identity.
    open: BTreeMap<u32, (usize, Token, Submission)>,
    /// Seats that wait for room, one bit each.
    waiting: u64,
    /// How many drivers were found gone, as far as the log says.
    reattached: u32,
}

/// A volume, or why there is none.
pub type Served = (Name, Result<Arc<Mutex<Volume>>, String>);

pub struct Hub {
    pub name: Name,
    pub store: Mutex<Store>,
    /// Of the main thread: it fetches events.
    pub main: Cap<cap::Notification>,
    pub peers: EndpointTransport,
    pub line: Option<Mutex<Line>>,
    pub data: Option<Data>,
    pub block_bytes: u32,
    pub request_bytes: u32,
    /// Bytes that one discard gives up at most; 0 if the disk gives up nothing.
    pub discard_bytes: u32,
    pub volumes: Vec<Served>,
    pub seats: Vec<Seat>,
    pub kept: Kept,
    /// Places in `kept` that are in use.
    pub notes: Mutex<Vec<u64>>,
}

impl Line {
    pub fn new(disk: Disk, seats: usize) -> Line {
        let (first, end) = disk.places();
        Line {
            disk,
            pool: Pool::new(first, end, seats),
            open: BTreeMap::new(),
            waiting: 0,
            reattached: 0,
        }
    }

    /// Seats that waited for room, and may have it now.
    fn has_room(&mut self) -> u64 {
        core::mem::take(&mut self.waiting)
    }
}

impl Hub {
    /// The volume of this name.
    pub fn volume(&self, name: &str) -> Result<&Arc<Mutex<Volume>>, String> {
        match self.volumes.iter().find(|(own, _)| own == name) {
            Some((_, Ok(volume))) => Ok(volume),
            Some((_, Err(why))) => Err(why.clone()),
            None => Err(alloc::format!("there is no volume {name:?}")),
        }
    }

    /// Wakes the seats of these bits.
    fn wake(&self, seats: u64) {
        for (index, seat) in self.seats.iter().enumerate() {
            if seats >> index & 1 != 0 {
                let _ = seat.bell.signal(DISK_BIT);
            }
        }
    }

    /// Hands out the disk's answers; `look`: the driver may be gone.
    pub fn collect(&self, look: bool) -> Result<(), DiskError> {
        let Some(line) = &self.line else {
            return Ok(());
        };
        let mut wake = 0;
        let mut line = line.lock();
        if look {
            line.disk.look()?;
        }
        // Whoever found it gone, this thread or one that submitted something.
        if line.reattached != line.disk.reattached {
            line.reattached = line.disk.reattached;
            log::info!(
                "the disk's driver was started again; {} requests were put to it again",
                line.disk.unanswered
            );
        }
        while let Some(answer) = line.disk.collect()? {
            if answer.status == Ended::Damaged {
                return Err(DiskError::Damaged);
            }
            let Some((seat, token, request)) = line.open.remove(&answer.id) else {
                continue;
            };
            if let Some(place) = self.seats.get(seat) {
                place.done.lock().push(Done {
                    token,
                    request,
                    status: answer.status,
                });
                wake |= 1 << seat;
            }
        }
        // A place in the ring is room, too.
        wake |= line.has_room();
        drop(line);
        self.wake(wake);
        Ok(())
    }

    /// The store was used by another thread than the one that fetches events.
    pub fn store<R>(&self, work: impl FnOnce(&mut Store) -> R) -> R {
        let mut store = self.store.lock();
        let outcome = work(&mut store);
        let events = store.has_events();
        drop(store);
        if events {
            let _ = self.main.signal(crate::server::STORE_EVENTS);
        }
        outcome
    }

    /// The seat that serves this guest.
    pub fn seat_of(&self, domain: u16) -> Option<&Seat> {
        let mut seats = self.seats.iter();
        seats.find(|seat| seat.domain.load(Ordering::Acquire) == u32::from(domain))
    }
}

/// The disk, from a seat.
pub struct Way<'a> {
    pub hub: &'a Hub,
    pub seat: usize,
}

impl Blocks for Way<'_> {
    fn most(&self) -> u32 {
        let unit = self.hub.block_bytes.max(SECTOR as u32);
        self.hub.request_bytes.min(REQUEST_MAX).max(unit) & !(unit - 1)
    }

    fn most_discarded(&self) -> u32 {
        self.hub.discard_bytes
    }

    fn reserve(&mut self, bytes: u32) -> Option<u32> {
        let mut line = self.hub.line.as_ref()?.lock();
        let place = line.pool.take(self.seat, bytes);
        if place.is_none() {
            line.waiting |= 1 << self.seat;
        }
        place
    }

    fn release(&mut self, place: u32, bytes: u32) {
        if bytes == 0 {
            return;
        }
        if let Some(line) = &self.hub.line {
            let mut line = line.lock();
            line.pool.give_back(self.seat, place, bytes);
            let wake = line.has_room();
            drop(line);
            self.hub.wake(wake);
        }
    }

    fn put(&mut self, place: u32, from: &[u8]) {
        if let Some(data) = self.hub.data {
            data.put(place, from);
        }
    }

    fn get(&self, place: u32, into: &mut [u8]) {
        if let Some(data) = self.hub.data {
            data.get(place, into);
        }
    }

    fn submit(&mut self, token: Token, request: Submission) -> bool {
        let Some(line) = &self.hub.line else {
            return false;
        };
        let mut line = line.lock();
        let block = match request.operation {
            Operation::Flush => 0,
            _ => request.sector / (u64::from(self.hub.block_bytes) / SECTOR).max(1),
        };
        let submitted = line
            .disk
            .submit(request.operation, block, request.place, request.bytes);
        match submitted {
            Ok(id) => {
                line.open.insert(id, (self.seat, token, request));
                true
            }
            Err(error) => {
                if error != DiskError::Full {
                    log::error!("the disk takes no request: {error:?}");
                }
                line.waiting |= 1 << self.seat;
                false
            }
        }
    }
}
