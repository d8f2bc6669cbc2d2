//! The rings of interface `block`: requests one way, answers the other, in one page that client and
//! driver share. Data lies behind that page, in the same memory.
//!
//! Neither side trusts the other. Words are read once; a counter that no sequence of requests and
//! answers leads to is [`Damaged`], told to the caller, and the ring begins anew after it. Each side
//! keeps its own counters outside of the page. Works over any zeroed page, so hosts test it as it is.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::block::{Discard, Geometry};

/// Requests in the ring at most, those that were not collected yet included.
pub const SLOTS: u32 = 64;
/// Bytes of the page; data begins after it.
pub const PAGE_BYTES: u32 = 4096;
/// Bytes that one discard gives up at most, whatever the device could do: so that none keeps a device
/// from other requests for long.
pub const DISCARD_MOST: u32 = 1 << 30;
const MASK: u32 = SLOTS - 1;

/// The shared page. Counters run freely. All zeros is empty.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct RequestPage {
    /// Requests ever submitted. Written by the client.
    submitted: AtomicU32,
    /// Answers ever collected. Written by the client.
    collected: AtomicU32,
    /// Answers ever given. Written by the driver.
    answered: AtomicU32,
    spare: [AtomicU32; 13],
    /// Written by the client: identity and operation, block, place of the data, unused.
    requests: [[AtomicU64; 4]; SLOTS as usize],
    /// Written by the driver: identity and status.
    answers: [AtomicU64; SLOTS as usize],
}
const _: () = assert!(size_of::<RequestPage>() == PAGE_BYTES as usize);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From the disk into shared memory.
    Read = 1,
    /// From shared memory to the disk.
    Write = 2,
    /// Everything answered before is to survive a loss of power. Carries no data.
    Flush = 3,
    /// Nobody wants these blocks any more: what they read as afterwards is what was there, or zeros, and
    /// never what was elsewhere. Carries no data; its length is what it gives up of the disk.
    Discard = 4,
}

impl Operation {
    /// Data goes between disk and shared memory.
    pub const fn carries_data(self) -> bool {
        matches!(self, Operation::Read | Operation::Write)
    }
}

/// A request as it travels: what the client wrote, believed in nothing but its width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the client, comes back with the answer.
    pub id: u32,
    /// [`Operation`] as a number.
    pub operation: u32,
    /// First block.
    pub block: u64,
    /// Where in the shared memory the data is: bytes from its start.
    pub offset: u32,
    /// Bytes of data; of a discard, of the disk.
    pub bytes: u32,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Done = 0,
    /// There is no such operation, or the disk does not have it.
    Operation = 1,
    /// Blocks beyond the end of the disk.
    Range = 2,
    /// Offset or length is no multiple of the block size, or the length is 0.
    Alignment = 3,
    /// Data outside of the shared memory, or in the ring's page.
    Place = 4,
    /// More than one request carries.
    Length = 5,
    /// The disk is read-only.
    ReadOnly = 6,
    /// The device says that it failed.
    Device = 7,
    /// The ring's counters made no sense: requests were lost. The identity is [`NOBODY`].
    Damaged = 8,
}

/// Identity in answers that belong to no request.
pub const NOBODY: u32 = u32::MAX;

impl Status {
    /// From its number.
    pub const fn from_raw(raw: u32) -> Option<Status> {
        Some(match raw {
            0 => Status::Done,
            1 => Status::Operation,
            2 => Status::Range,
            3 => Status::Alignment,
            4 => Status::Place,
            5 => Status::Length,
            6 => Status::ReadOnly,
            7 => Status::Device,
            8 => Status::Damaged,
            _ => return None,
        })
    }
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of which request.
    pub id: u32,
    /// How it ended.
    pub status: Status,
}

/// The peer wrote a counter or a value that makes no sense. The ring begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// There is no room until answers are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A request whose numbers fit the disk and the shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Comes back with the answer.
    pub id: u32,
    /// What is to be done.
    pub operation: Operation,
    /// First block.
    pub block: u64,
    /// Where the data is in the shared memory; 0 if there is none.
    pub offset: u32,
    /// Bytes of data; of a discard, of the disk; 0 for a flush.
    pub bytes: u32,
}

impl Request {
    /// Holds it against a disk and `shared_bytes` of shared memory.
    pub fn check(&self, disk: &Geometry, shared_bytes: u32) -> Result<Checked, Status> {
        let operation = match self.operation {
            1 => Operation::Read,
            2 => Operation::Write,
            3 => Operation::Flush,
            4 => Operation::Discard,
            _ => return Err(Status::Operation),
        };
        let mut checked = Checked {
            id: self.id,
            operation,
            block: self.block,
            offset: self.offset,
            bytes: self.bytes,
        };
        if operation == Operation::Flush {
            (checked.block, checked.offset, checked.bytes) = (0, 0, 0);
            return Ok(checked);
        }
        if operation != Operation::Read && disk.read_only {
            return Err(Status::ReadOnly);
        }
        let unit = disk.block_bytes.max(1);
        let most = match (operation, disk.discard) {
            (Operation::Discard, None) => return Err(Status::Operation),
            (Operation::Discard, Some(Discard { bytes, .. })) => {
                checked.offset = 0;
                bytes
            }
            _ => disk.request_bytes,
        };
        if self.bytes == 0
            || !self.bytes.is_multiple_of(unit)
            || !checked.offset.is_multiple_of(unit)
        {
            return Err(Status::Alignment);
        }
        if self.bytes > most {
            return Err(Status::Length);
        }
        let inside = self.offset.checked_add(self.bytes);
        if operation.carries_data()
            && (self.offset < PAGE_BYTES || inside.is_none_or(|end| end > shared_bytes))
        {
            return Err(Status::Place);
        }
        let end = self.block.checked_add(u64::from(self.bytes / unit));
        if end.is_none_or(|end| end > disk.blocks) {
            return Err(Status::Range);
        }
        Ok(checked)
    }
}

impl RequestPage {
    /// Empty rings.
    pub const fn new() -> Self {
        RequestPage {
            submitted: AtomicU32::new(0),
            collected: AtomicU32::new(0),
            answered: AtomicU32::new(0),
            spare: [const { AtomicU32::new(0) }; 13],
            requests: [const { [const { AtomicU64::new(0) }; 4] }; SLOTS as usize],
            answers: [const { AtomicU64::new(0) }; SLOTS as usize],
        }
    }

    /// Empties the rings: the driver does, before it gives the page to a client.
    pub fn clear(&self) {
        for counter in [&self.submitted, &self.collected, &self.answered] {
            counter.store(0, Ordering::Release);
        }
    }

    fn request(&self, counter: u32) -> &[AtomicU64; 4] {
        // The mask keeps the index below the array's length; the compiler sees it too.
        &self.requests[(counter & MASK) as usize]
    }

    fn answer(&self, counter: u32) -> &AtomicU64 {
        &self.answers[(counter & MASK) as usize]
    }
}

impl Default for RequestPage {
    fn default() -> Self {
        RequestPage::new()
    }
}

/// The client's side. There is one at a time.
#[derive(Debug)]
pub struct ClientRing<'a> {
    page: &'a RequestPage,
    submitted: u32,
    collected: u32,
    /// Submitted, and not answered.
    pending: u32,
}

impl<'a> ClientRing<'a> {
    /// Over a page that was just attached, and is empty.
    pub fn new(page: &'a RequestPage) -> Self {
        ClientRing {
            page,
            submitted: 0,
            collected: 0,
            pending: 0,
        }
    }

    /// Requests that were submitted, and whose answers were not collected.
    pub fn pending(&self) -> u32 {
        self.pending
    }

    /// Puts a request into the ring. Signal the driver afterwards.
    pub fn submit(&mut self, request: &Request) -> Result<(), Full> {
        if self.pending >= SLOTS {
            return Err(Full);
        }
        let words = [
            u64::from(request.id) | u64::from(request.operation) << 32,
            request.block,
            u64::from(request.offset) | u64::from(request.bytes) << 32,
            0,
        ];
        for (place, word) in self.page.request(self.submitted).iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.submitted = self.submitted.wrapping_add(1);
        self.pending += 1;
        self.page.submitted.store(self.submitted, Ordering::Release);
        Ok(())
    }

    /// The next answer, if there is one.
    pub fn collect(&mut self) -> Result<Option<Answer>, Damaged> {
        let answered = self.page.answered.load(Ordering::Acquire);
        match answered.wrapping_sub(self.collected) {
            0 => return Ok(None),
            // An answer that tells of damage belongs to no request, hence one more.
            waiting if waiting > SLOTS => return Err(Damaged),
            _ => {}
        }
        let word = self.page.answer(self.collected).load(Ordering::Relaxed);
        self.collected = self.collected.wrapping_add(1);
        self.page.collected.store(self.collected, Ordering::Release);
        let status = Status::from_raw((word >> 32) as u32).ok_or(Damaged)?;
        let id = word as u32;
        if id != NOBODY {
            self.pending = self.pending.saturating_sub(1);
        }
        Ok(Some(Answer { id, status }))
    }

    /// For tests of drivers: writes the submission counter as an honest client never would.
    pub fn jump(&mut self, by: u32) {
        self.submitted = self.submitted.wrapping_add(by);
        self.page.submitted.store(self.submitted, Ordering::Release);
    }

    /// After [`Status::Damaged`]: what was submitted and not answered is lost on both sides.
    pub fn forget(&mut self) {
        self.submitted = self.page.submitted.load(Ordering::Relaxed);
        self.collected = self.page.answered.load(Ordering::Acquire);
        self.page.collected.store(self.collected, Ordering::Release);
        self.pending = 0;
    }
}

/// The driver's side. There is one at a time.
#[derive(Debug)]
pub struct DriverRing<'a> {
    page: &'a RequestPage,
    /// Requests taken.
    taken: u32,
    /// Answers given.
    answered: u32,
    /// Requests taken and not answered.
    open: u32,
}

impl<'a> DriverRing<'a> {
    /// Empties the page and serves it.
    pub fn new(page: &'a RequestPage) -> Self {
        page.clear();
        DriverRing {
            page,
            taken: 0,
            answered: 0,
            open: 0,
        }
    }

    /// Answers that the client has not collected.
    fn uncollected(&self) -> Result<u32, Damaged> {
        let collected = self.page.collected.load(Ordering::Acquire);
        let waiting = self.answered.wrapping_sub(collected);
        if waiting <= SLOTS {
            Ok(waiting)
        } else {
            Err(Damaged)
        }
    }

    /// The next request, if there is one and its answer will have a place. [`Damaged`]: what was
    /// submitted is lost; answer it with [`DriverRing::damaged`].
    pub fn take(&mut self) -> Result<Option<Request>, Damaged> {
        let submitted = self.page.submitted.load(Ordering::Acquire);
        match submitted.wrapping_sub(self.taken) {
            0 => return Ok(None),
            waiting if waiting > SLOTS => return Err(Damaged),
            _ => {}
        }
        if self.uncollected()? + self.open >= SLOTS {
            return Ok(None);
        }
        let [head, block, place, _] = self.page.request(self.taken);
        let (head, block, place) = (
            head.load(Ordering::Relaxed),
            block.load(Ordering::Relaxed),
            place.load(Ordering::Relaxed),
        );
        self.taken = self.taken.wrapping_add(1);
        self.open += 1;
        Ok(Some(Request {
            id: head as u32,
            operation: (head >> 32) as u32,
            block,
            offset: place as u32,
            bytes: (place >> 32) as u32,
        }))
    }

    /// Answers one of the requests that were taken. Signal the client afterwards.
    pub fn answer(&mut self, answer: Answer) {
        // A client that counted wrongly loses an answer, nothing else: `take` left room.
        self.open = self.open.saturating_sub(1);
        self.put(answer);
    }

    fn put(&mut self, answer: Answer) {
        let word = u64::from(answer.id) | (answer.status as u64) << 32;
        self.page
            .answer(self.answered)
            .store(word, Ordering::Relaxed);
        self.answered = self.answered.wrapping_add(1);
        self.page.answered.store(self.answered, Ordering::Release);
    }

    /// After [`Damaged`]: forgets what was submitted, and says so. Requests that were taken are
    /// still answered.
    pub fn damaged(&mut self) {
        self.taken = self.page.submitted.load(Ordering::Acquire);
        self.page.collected.store(self.answered, Ordering::Release);
        self.put(Answer {
            id: NOBODY,
            status: Status::Damaged,
        });
    }
}

#[cfg(test)]
mod tests;
