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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const DISK: Geometry = Geometry {
        block_bytes: 512,
        blocks: 100,
        request_bytes: 65536,
        read_only: false,
        write_cache: true,
        queues: 1,
        discard: Some(Discard {
            bytes: 40 * 512,
            granularity: 4096,
        }),
    };
    const SHARED: u32 = 1 << 20;

    fn request(id: u32) -> Request {
        Request {
            id,
            operation: Operation::Read as u32,
            block: 0,
            offset: PAGE_BYTES,
            bytes: 512,
        }
    }

    #[test]
    fn a_request_comes_out_as_it_went_in_and_so_does_its_answer() {
        let page = RequestPage::new();
        let (mut driver, mut client) = (DriverRing::new(&page), ClientRing::new(&page));
        let sent = Request {
            id: 7,
            operation: 2,
            block: u64::MAX - 1,
            offset: 123,
            bytes: u32::MAX,
        };
        client.submit(&sent).unwrap();
        assert_eq!(driver.take(), Ok(Some(sent)));
        assert_eq!(driver.take(), Ok(None));
        assert_eq!(client.collect(), Ok(None));
        let answer = Answer {
            id: 7,
            status: Status::Range,
        };
        driver.answer(answer);
        assert_eq!(client.collect(), Ok(Some(answer)));
        assert_eq!(client.pending(), 0);
    }

    #[test]
    fn a_client_that_collects_nothing_is_taken_from_no_more() {
        let page = RequestPage::new();
        let (mut driver, mut client) = (DriverRing::new(&page), ClientRing::new(&page));
        for id in 0..SLOTS {
            client.submit(&request(id)).unwrap();
        }
        assert_eq!(client.submit(&request(0)), Err(Full));
        while let Some(taken) = driver.take().unwrap() {
            driver.answer(Answer {
                id: taken.id,
                status: Status::Done,
            });
        }
        // It claims to have room, without having collected.
        client.jump(1);
        assert_eq!(driver.take(), Ok(None));
    }

    #[test]
    fn a_jump_of_the_counter_is_told_and_the_ring_goes_on() {
        let page = RequestPage::new();
        let (mut driver, mut client) = (DriverRing::new(&page), ClientRing::new(&page));
        client.jump(SLOTS + 1);
        assert_eq!(driver.take(), Err(Damaged));
        driver.damaged();
        let told = client.collect().unwrap().unwrap();
        assert_eq!((told.id, told.status), (NOBODY, Status::Damaged));
        client.forget();
        client.submit(&request(5)).unwrap();
        assert_eq!(driver.take(), Ok(Some(request(5))));
    }

    #[test]
    fn requests_that_do_not_fit_are_named_by_what_is_wrong() {
        let with = |change: fn(&mut Request)| {
            let mut wrong = request(1);
            change(&mut wrong);
            wrong.check(&DISK, SHARED).map(|_| ())
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(with(|r| r.block = 99), Ok(()));
        assert_eq!(with(|r| r.block = 100), Err(Status::Range));
        assert_eq!(with(|r| r.block = u64::MAX), Err(Status::Range));
        assert_eq!(with(|r| r.bytes = 0), Err(Status::Alignment));
        assert_eq!(with(|r| r.bytes = 513), Err(Status::Alignment));
        assert_eq!(with(|r| r.offset += 1), Err(Status::Alignment));
        assert_eq!(with(|r| r.offset = 0), Err(Status::Place));
        assert_eq!(with(|r| r.offset = SHARED), Err(Status::Place));
        assert_eq!(with(|r| r.offset = u32::MAX - 511), Err(Status::Place));
        assert_eq!(with(|r| r.bytes = 1 << 17), Err(Status::Length));
        assert_eq!(with(|r| r.operation = 9), Err(Status::Operation));
        let read_only = Geometry {
            read_only: true,
            ..DISK
        };
        let mut write = request(1);
        write.operation = Operation::Write as u32;
        assert_eq!(write.check(&read_only, SHARED), Err(Status::ReadOnly));
    }

    #[test]
    fn a_discard_has_no_data_and_ends_where_the_disk_ends() {
        let with = |block: u64, bytes: u32, disk: &Geometry| {
            let discard = Request {
                id: 1,
                operation: Operation::Discard as u32,
                block,
                offset: u32::MAX,
                bytes,
            };
            let checked = discard.check(disk, PAGE_BYTES)?;
            assert_eq!((checked.offset, checked.bytes), (0, bytes));
            Ok(())
        };
        assert_eq!(with(60, 40 * 512, &DISK), Ok(()));
        assert_eq!(with(99, 512, &DISK), Ok(()));
        assert_eq!(with(0, 41 * 512, &DISK), Err(Status::Length));
        assert_eq!(with(61, 40 * 512, &DISK), Err(Status::Range));
        assert_eq!(with(u64::MAX, 512, &DISK), Err(Status::Range));
        assert_eq!(with(0, 0, &DISK), Err(Status::Alignment));
        assert_eq!(with(0, 513, &DISK), Err(Status::Alignment));
        let without = Geometry {
            discard: None,
            ..DISK
        };
        assert_eq!(with(0, 512, &without), Err(Status::Operation));
        let read_only = Geometry {
            read_only: true,
            ..DISK
        };
        assert_eq!(with(0, 512, &read_only), Err(Status::ReadOnly));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_passes_lies_inside_disk_and_memory(
            operation in 0u32..6, block in prop_oneof![0u64..200, any::<u64>()],
            offset in prop_oneof![(0u32..3000).prop_map(|n| n * 512), any::<u32>()],
            bytes in prop_oneof![(0u32..200).prop_map(|n| n * 512), any::<u32>()],
        ) {
            let sent = Request { id: 1, operation, block, offset, bytes };
            if let Ok(checked) = sent.check(&DISK, SHARED)
                && checked.operation != Operation::Flush
            {
                prop_assert!(checked.bytes > 0 && checked.bytes <= DISK.request_bytes);
                prop_assert!(checked.block + u64::from(checked.bytes / 512) <= DISK.blocks);
                prop_assert!(operation < 5);
                if !checked.operation.carries_data() {
                    prop_assert!(checked.bytes <= 40 * 512);
                    return Ok(());
                }
                prop_assert!(checked.offset >= PAGE_BYTES);
                prop_assert!(u64::from(checked.offset) + u64::from(checked.bytes) <= u64::from(SHARED));
            }
        }

        #[test]
        fn any_bytes_in_the_page_lead_to_values_and_no_more_work_than_slots(
            words in proptest::collection::vec(any::<u64>(), 60),
            counters: [u32; 3],
        ) {
            let page = RequestPage::new();
            let mut driver = DriverRing::new(&page);
            let mut client = ClientRing::new(&page);
            page.submitted.store(counters[0], Ordering::Release);
            page.collected.store(counters[1], Ordering::Release);
            page.answered.store(counters[2], Ordering::Release);
            for (slot, words) in page.requests.iter().zip(words.chunks(4)) {
                for (place, word) in slot.iter().zip(words) {
                    place.store(*word, Ordering::Relaxed);
                }
            }
            let mut taken = 0;
            while let Ok(Some(request)) = driver.take() {
                let _ = request.check(&DISK, SHARED);
                taken += 1;
                prop_assert!(taken <= SLOTS);
            }
            driver.damaged();
            for _ in 0..=SLOTS {
                let _ = client.collect();
            }
        }

        #[test]
        fn honest_sides_lose_and_repeat_nothing(steps in proptest::collection::vec(0u8..4, 1..400)) {
            let page = RequestPage::new();
            let (mut driver, mut client) = (DriverRing::new(&page), ClientRing::new(&page));
            let (mut next, mut collected) = (0, Vec::new());
            let mut open: Vec<u32> = Vec::new();
            let finish = |driver: &mut DriverRing<'_>, id| driver.answer(Answer { id, status: Status::Done });
            for step in steps {
                match step {
                    0 => if client.submit(&request(next)).is_ok() { next += 1 },
                    1 => if let Some(taken) = driver.take().unwrap() { open.push(taken.id) },
                    // The newest first: answers need not come in order.
                    2 => if let Some(id) = open.pop() { finish(&mut driver, id) },
                    _ => if let Some(answer) = client.collect().unwrap() { collected.push(answer.id) },
                }
            }
            loop {
                while let Some(taken) = driver.take().unwrap() { open.push(taken.id) }
                for id in open.drain(..) { finish(&mut driver, id) }
                while let Some(answer) = client.collect().unwrap() { collected.push(answer.id) }
                if client.pending() == 0 { break }
            }
            collected.sort_unstable();
            prop_assert_eq!(collected, (0..next).collect::<Vec<_>>());
        }
    }
}
