//! A request that is under way: its pages, how far it is, and the moving of its data. For [`crate::device`].

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;

use volume::{SECTOR, Volume};

use crate::proto::{Outcome, PAGE};
use crate::ring::Granted;

/// A part of a page that data is in.
pub(crate) struct Part<P> {
    pub page: Rc<P>,
    /// Where in the page.
    pub offset: usize,
    /// Where in the request's data.
    pub start: u32,
    pub bytes: u32,
}

/// How far a request's flush is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    Needed,
    Sent,
    Done,
}

/// A request that has its pages, or needs none.
pub(crate) struct Job<P> {
    pub queue: usize,
    pub number: u32,
    pub id: u64,
    pub operation: u8,
    pub read: bool,
    pub flush: Flush,
    pub sector: u64,
    pub parts: Vec<Part<P>>,
    pub bytes: u32,
    /// Bytes that were given to the disk, or moved.
    pub next: u32,
    /// Of a discard, the sectors of the volume that the disk has not been told of.
    pub discard: Range<u64>,
    pub in_flight: u32,
    /// What is wrong, once something is.
    pub failed: Option<Outcome>,
}

impl<P: Granted> Job<P> {
    /// Calls `each` with the stretches of `bytes` bytes from `offset` on that lie in one page each: the
    /// page, the place in it, and the place after `offset`.
    fn stretches(&self, offset: u32, bytes: u32, mut each: impl FnMut(&P, usize, u32, usize)) {
        let end = offset + bytes;
        for part in &self.parts {
            let first = part.start.max(offset);
            let last = (part.start + part.bytes).min(end);
            if first < last {
                let inside = part.offset + (first - part.start) as usize;
                each(&part.page, inside, first - offset, (last - first) as usize);
            }
        }
    }

    /// Takes data out of the guest's pages.
    pub fn gather(&self, offset: u32, bytes: u32, mut to: impl FnMut(u32, &[u8])) {
        let mut buffer = [0; PAGE];
        self.stretches(offset, bytes, |page, inside, at, count| {
            if let Some(buffer) = buffer.get_mut(..count) {
                page.read(inside, buffer);
                to(at, buffer);
            }
        });
    }

    /// Puts data into the guest's pages.
    pub fn scatter(&self, offset: u32, bytes: u32, mut from: impl FnMut(u32, &mut [u8])) {
        let mut buffer = [0; PAGE];
        self.stretches(offset, bytes, |page, inside, at, count| {
            if let Some(buffer) = buffer.get_mut(..count) {
                from(at, buffer);
                page.write(inside, buffer);
            }
        });
    }

    /// Moves everything between pages and memory.
    pub fn local(&mut self, volume: &mut Volume) -> Result<(), volume::overlay::Full> {
        let mut outcome = Ok(());
        let place = |at: u32| self.sector + u64::from(at) / SECTOR;
        if self.read {
            self.scatter(0, self.bytes, |at, into| volume.read(place(at), into));
        } else {
            self.gather(0, self.bytes, |at, from| {
                outcome = outcome.and_then(|()| volume.write(place(at), from));
            });
        }
        self.next = self.bytes;
        outcome
    }
}
