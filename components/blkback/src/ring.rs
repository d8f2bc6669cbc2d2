//! The back end's side of a ring (Xen, public/io/ring.h), in pages that the front end writes at any
//! time. Counters are read once and held against what can be; an entry is copied before it is looked at.
//!
//! Answers are given in the order of the requests, although the protocol does not ask for it: an answer
//! goes where its request was, so what lies between the counters of answers and of requests is exactly what
//! was not answered, and the next instance of this component finds it there. Putting answers into a ring
//! is not one store, though; [`Journal`] remembers what was about to be put.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::proto::{Abi, Outcome, PAGE, REQUEST_BYTES, Request, parse};

/// Pages of a ring at most: what this back end says in `max-ring-page-order`, as a power of two.
pub const RING_ORDER_MAX: u32 = 2;

/// A page that a guest granted.
pub trait Granted {
    /// Loads an aligned word; 0 outside of the page.
    fn load(&self, offset: usize) -> u32;
    /// Stores an aligned word; nothing outside.
    fn store(&self, offset: usize, value: u32);
    /// Copies out; false if it is not all in the page.
    fn read(&self, offset: usize, into: &mut [u8]) -> bool;
    /// Copies in; false if it does not fit, or the page is for reading.
    fn write(&self, offset: usize, from: &[u8]) -> bool;
}

impl Granted for sdk::peer::Page {
    fn load(&self, offset: usize) -> u32 {
        sdk::peer::Page::load(self, offset).unwrap_or(0)
    }
    fn store(&self, offset: usize, value: u32) {
        sdk::peer::Page::store(self, offset, value);
    }
    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        sdk::peer::Page::read(self, offset, into)
    }
    fn write(&self, offset: usize, from: &[u8]) -> bool {
        sdk::peer::Page::write(self, offset, from)
    }
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// Of which request.
    pub id: u64,
    /// Its operation.
    pub operation: u8,
    /// How it ended.
    pub outcome: Outcome,
}

/// Where what is about to be put into a ring is noted, so that it can be put again: memory that outlives
/// this component. Each store is done when it returns.
pub trait Journal {
    /// Answers that one note holds.
    const ANSWERS: usize;
    /// Notes that the answers of requests number `first` and the following are these.
    fn note(&mut self, first: u32, answers: &[Response]);
    /// They are in the ring.
    fn done(&mut self);
    /// What was noted last and not done.
    fn pending(&self) -> Option<(u32, Vec<Response>)>;
}

/// The front end wrote a counter that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

// Offsets of the counters.
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// A ring.
#[derive(Debug)]
pub struct Ring<P> {
    pages: Vec<P>,
    abi: Abi,
    entries: u32,
    /// Requests taken.
    taken: u32,
    /// Answers put into the ring.
    answered: u32,
    /// Requests that were taken and have no answer in the ring, oldest first; an answer that waits for
    /// an earlier one.
    open: VecDeque<Option<Response>>,
}

impl<P: Granted> Ring<P> {
    /// A ring in these pages, as far as an earlier back end came: what it took and did not answer is
    /// taken again. With fresh pages that is nothing. The pages come back if they are no ring.
    pub fn open(
        pages: Vec<P>,
        abi: Abi,
        journal: &mut impl Journal,
    ) -> Result<Ring<P>, (Broken, Vec<P>)> {
        let entries = abi.entries(pages.len());
        let mut ring = Ring {
            pages,
            abi,
            entries,
            taken: 0,
            answered: 0,
            open: VecDeque::new(),
        };
        match ring.go_on(journal) {
            Ok(()) => Ok(ring),
            Err(broken) => Err((broken, ring.pages)),
        }
    }

    /// Finds out how far the back end before came.
    fn go_on(&mut self, journal: &mut impl Journal) -> Result<(), Broken> {
        if self.entries == 0 {
            return Err(Broken);
        }
        self.answered = self.load(RSP_PROD);
        if let Some((first, answers)) = journal.pending() {
            // Only for the ring that it was noted for: the counter still stands there.
            if first == self.answered && answers.len() as u32 <= self.asked()? {
                self.put(&answers);
            }
            journal.done();
        }
        self.asked()?;
        self.taken = self.answered;
        Ok(())
    }

    fn load(&self, offset: usize) -> u32 {
        self.pages.first().map_or(0, |page| page.load(offset))
    }

    fn store(&self, offset: usize, value: u32) {
        if let Some(page) = self.pages.first() {
            page.store(offset, value);
        }
    }

    /// Requests that have no answer in the ring.
    fn asked(&self) -> Result<u32, Broken> {
        let asked = self.load(REQ_PROD).wrapping_sub(self.answered);
        match asked <= self.entries {
            true => Ok(asked),
            false => Err(Broken),
        }
    }

    /// Splits a range of the ring at the ends of pages.
    fn pieces(offset: usize, bytes: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut done = 0;
        core::iter::from_fn(move || {
            let at = offset + done;
            let count = (PAGE - at % PAGE).min(bytes - done);
            (count > 0).then(|| {
                done += count;
                (at / PAGE, at % PAGE, count)
            })
        })
    }

    /// The next request, if there is one, and its number. While there is none, the front end is asked for
    /// an event with the next.
    pub fn take(&mut self) -> Result<Option<(u32, Request)>, Broken> {
        let asked = self.asked()?;
        let waiting = self.load(REQ_PROD).wrapping_sub(self.taken);
        // Taken requests are among those that were asked for, unless a counter went back.
        if waiting > self.entries || asked < self.open.len() as u32 {
            return Err(Broken);
        }
        if waiting == 0 {
            return Ok(None);
        }
        let mut bytes = [0; REQUEST_BYTES];
        let start = self.abi.entry(self.taken & (self.entries - 1));
        let length = self.abi.entry(1) - self.abi.entry(0);
        let mut into = bytes.as_mut_slice();
        for (page, offset, count) in Self::pieces(start, length) {
            let (piece, after) = core::mem::take(&mut into)
                .split_at_mut_checked(count)
                .ok_or(Broken)?;
            let page = self.pages.get(page).ok_or(Broken)?;
            page.read(offset, piece);
            into = after;
        }
        let number = self.taken;
        self.taken = number.wrapping_add(1);
        self.open.push_back(None);
        Ok(Some((number, parse(self.abi, &bytes))))
    }

    /// Asks for an event with the next request; true if there is one already (`RING_FINAL_CHECK_FOR_REQUESTS`).
    pub fn sleep(&mut self) -> bool {
        self.store(REQ_EVENT, self.taken.wrapping_add(1));
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        self.load(REQ_PROD) != self.taken
    }

    /// Requests without an answer in the ring, taken or not; none if its counter makes no sense.
    pub fn unanswered(&self) -> u32 {
        self.asked().unwrap_or(0)
    }

    /// Requests that were taken and whose answers are not in the ring.
    pub fn open_requests(&self) -> usize {
        self.open.len()
    }

    /// Answers request `number`, as soon as all before it are answered.
    pub fn answer(&mut self, number: u32, response: Response) {
        let index = number.wrapping_sub(self.answered) as usize;
        if let Some(place) = self.open.get_mut(index) {
            *place = Some(response);
        }
    }

    /// Puts answers into the ring; true if the front end wants an event.
    pub fn push<J: Journal>(&mut self, journal: &mut J) -> bool {
        let mut tell = false;
        loop {
            let ready = self.open.iter().map_while(|answer| *answer);
            let answers: Vec<Response> = ready.take(J::ANSWERS.max(1)).collect();
            if answers.is_empty() {
                return tell;
            }
            journal.note(self.answered, &answers);
            self.open.drain(..answers.len());
            tell |= self.put(&answers);
            journal.done();
        }
    }

    /// Writes answers, then the counter; true if the front end wants an event.
    fn put(&mut self, answers: &[Response]) -> bool {
        let old = self.answered;
        for answer in answers {
            let start = self.abi.entry(self.answered & (self.entries - 1));
            let bytes = self
                .abi
                .response(answer.id, answer.operation, answer.outcome);
            let mut from = bytes.as_slice();
            for (page, offset, count) in Self::pieces(start, bytes.len()) {
                let (piece, after) = from.split_at_checked(count).unwrap_or((from, &[]));
                if let Some(page) = self.pages.get(page) {
                    page.write(offset, piece);
                }
                from = after;
            }
            self.answered = self.answered.wrapping_add(1);
        }
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        self.store(RSP_PROD, self.answered);
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        // `RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`: whether the counter passed what was asked for.
        let event = self.load(RSP_EVENT);
        self.answered.wrapping_sub(event) < self.answered.wrapping_sub(old)
    }

    /// The pages, when it is given up.
    pub fn into_pages(self) -> Vec<P> {
        self.pages
    }
}
