//! One disk of a guest: takes requests out of its rings, moves data between the guest's pages and the
//! volume, and answers. Called by the thread that serves the guest; waits for nothing. A request that
//! cannot go on, for want of room for data or of mappings, is gone on with when the caller says that
//! something was released.

mod checks;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use idl::requests::{Operation, Status as Ended};
use sdk::sync::Mutex;
use volume::{SECTOR, Volume};

use crate::grants::{Cache, Gone, Guest};
use crate::job::{Flush, Job};
use crate::proto::{Kind, Outcome, Request, Wanted};
use crate::ring::{Broken, Granted, Journal, Response, Ring};
use checks::Refusal;

/// How often the rings are gone through before others have their turn.
const ROUNDS: usize = 16;
/// Requests of one disk that are under way at most.
const JOBS_MAX: usize = 128;
/// Discards of one disk that are with the driver at most: they need no room for data, which bounds the rest.
const DISCARDS_MAX: u32 = 4;

/// The disk that volumes are on, and room for data between it and guests.
pub trait Blocks {
    /// Bytes that one request carries at most.
    fn most(&self) -> u32;
    /// Bytes of the disk that one request gives up at most; 0 if the disk gives up nothing.
    fn most_discarded(&self) -> u32;
    /// Room for so many bytes.
    fn reserve(&mut self, bytes: u32) -> Option<u32>;
    /// It is of no use any more.
    fn release(&mut self, place: u32, bytes: u32);
    /// Puts bytes into a room.
    fn put(&mut self, place: u32, from: &[u8]);
    /// Takes bytes out of it.
    fn get(&self, place: u32, into: &mut [u8]);
    /// Submits a request; false if there is no place for it now. [`Device::complete`] tells its end.
    fn submit(&mut self, token: Token, request: Submission) -> bool;
}

/// A request to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submission {
    /// What to do.
    pub operation: Operation,
    /// First sector of the disk.
    pub sector: u64,
    /// Where the data is.
    pub place: u32,
    /// How much; of a discard, of the disk.
    pub bytes: u32,
}

impl Submission {
    /// Bytes of the room for its data, to be released when it has ended.
    pub fn room(&self) -> u32 {
        match self.operation.carries_data() {
            true => self.bytes,
            false => 0,
        }
    }
}

/// Which part of which request of which disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// The disk: its number in the store.
    pub device: u32,
    /// The request.
    job: usize,
    /// Bytes from its beginning.
    offset: u32,
}

/// A request that has no pages yet.
struct Waiting {
    queue: usize,
    number: u32,
    request: Request,
}

/// One ring, and by which channel its front end hears of answers.
pub struct Queue<P, C> {
    /// The ring.
    pub ring: Ring<P>,
    /// The channel.
    pub channel: C,
}

/// What [`Device::work`] did.
#[derive(Clone, Debug)]
pub struct Work<C> {
    /// The channels whose front ends want to hear of answers.
    pub tell: Vec<C>,
    /// It is to be called again at once: the front end is as fast as we are.
    pub more: bool,
}

/// Why [`Device::work`] cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A ring makes no sense.
    Broken,
    /// There is no guest any more.
    Gone,
}

impl From<Broken> for Fault {
    fn from(Broken: Broken) -> Fault {
        Fault::Broken
    }
}

impl From<Gone> for Fault {
    fn from(Gone: Gone) -> Fault {
        Fault::Gone
    }
}

/// A disk that a guest uses.
pub struct Device<P, C> {
    number: u32,
    volume: Arc<Mutex<Volume>>,
    read_only: bool,
    /// Discards were offered.
    discard: bool,
    queues: Vec<Queue<P, C>>,
    cache: Cache<P>,
    jobs: Vec<Option<Job<P>>>,
    /// Jobs that wait for room, oldest first.
    stuck: VecDeque<usize>,
    /// A request that waits for mappings; none is taken meanwhile.
    waiting: Option<Waiting>,
    /// Requests with the disk.
    in_flight: u32,
    /// Of these, discards.
    discards: u32,
    /// Its rings are not looked at any more.
    closed: bool,
}

impl<P: Granted, C: Copy> Device<P, C> {
    /// A disk with this number. `discard`: the guest was told that it may, if the volume can. `kept` pages stay
    /// mapped, if the guest's grants persist.
    pub fn new(
        number: u32,
        volume: Arc<Mutex<Volume>>,
        read_only: bool,
        discard: bool,
        queues: Vec<Queue<P, C>>,
        kept: usize,
    ) -> Device<P, C> {
        let (read_only, discard) = {
            let volume = volume.lock();
            let read_only = read_only || volume.read_only;
            (
                read_only,
                discard && !read_only && volume.discard().is_some(),
            )
        };
        Device {
            number,
            volume,
            read_only,
            discard,
            queues,
            cache: Cache::new(kept),
            jobs: Vec::new(),
            stuck: VecDeque::new(),
            waiting: None,
            in_flight: 0,
            discards: 0,
            closed: false,
        }
    }

    /// Nothing of it is with the disk.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// The channels of its rings.
    pub fn channels(&self) -> impl Iterator<Item = C> + '_ {
        self.queues.iter().map(|queue| queue.channel)
    }

    /// Moves what can be moved.
    pub fn work<G: Guest<Page = P>, J: Journal>(
        &mut self,
        guest: &mut G,
        blocks: &mut impl Blocks,
        mut journal: impl FnMut(usize) -> J,
    ) -> Result<Work<C>, Fault> {
        let mut tell = Vec::new();
        if self.closed {
            return Ok(Work { tell, more: false });
        }
        for _ in 0..self.stuck.len() {
            if let Some(job) = self.stuck.pop_front() {
                self.advance(job, guest, blocks)?;
            }
        }
        for _ in 0..ROUNDS {
            let mut any = false;
            if let Some(waiting) = self.waiting.take() {
                self.begin(waiting, guest, blocks)?;
            }
            for queue in 0..self.queues.len() {
                any |= self.fill(queue, guest, blocks)?;
            }
            for (index, queue) in self.queues.iter_mut().enumerate() {
                if queue.ring.push(&mut journal(index)) {
                    tell.push(queue.channel);
                }
            }
            if !self.takes() {
                // For want of room: an event would be of no use, the end of a request will tell.
                return Ok(Work { tell, more: false });
            }
            for queue in &mut self.queues {
                any |= queue.ring.sleep();
            }
            if !any {
                return Ok(Work { tell, more: false });
            }
        }
        Ok(Work { tell, more: true })
    }

    /// Requests are taken at all.
    fn takes(&self) -> bool {
        self.waiting.is_none()
            && self.stuck.is_empty()
            && self.jobs.iter().flatten().count() < JOBS_MAX
    }

    /// Takes requests; true if there was one.
    fn fill<G: Guest<Page = P>>(
        &mut self,
        index: usize,
        guest: &mut G,
        blocks: &mut impl Blocks,
    ) -> Result<bool, Fault> {
        let mut any = false;
        while self.takes() {
            let Some(queue) = self.queues.get_mut(index) else {
                break;
            };
            let Some((number, request)) = queue.ring.take()? else {
                break;
            };
            any = true;
            let waiting = Waiting {
                queue: index,
                number,
                request,
            };
            self.begin(waiting, guest, blocks)?;
        }
        Ok(any)
    }

    fn answer(&mut self, queue: usize, number: u32, response: Response) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.ring.answer(number, response);
        }
    }

    /// Begins a request, or keeps it waiting.
    fn begin<G: Guest<Page = P>>(
        &mut self,
        waiting: Waiting,
        guest: &mut G,
        blocks: &mut impl Blocks,
    ) -> Result<(), Fault> {
        let Waiting {
            queue,
            number,
            request,
        } = &waiting;
        let mut job = Job {
            queue: *queue,
            number: *number,
            id: request.id,
            operation: request.operation,
            read: false,
            flush: Flush::Done,
            sector: 0,
            parts: Vec::new(),
            bytes: 0,
            next: 0,
            discard: 0..0,
            in_flight: 0,
            failed: None,
        };
        let refused = match &request.wanted {
            Wanted::Unknown => Some(Outcome::NotSupported),
            Wanted::Malformed => Some(Outcome::Error),
            Wanted::Discard {
                sector,
                sectors,
                secure,
            } => match self.given_up(*sector, *sectors, *secure) {
                Ok(range) => {
                    job.discard = range;
                    None
                }
                Err(outcome) => Some(outcome),
            },
            Wanted::Transfer {
                kind,
                sector,
                segments,
            } => match self.pages(guest, *kind, *sector, segments) {
                Ok(parts) => {
                    job.read = *kind == Kind::Read;
                    if *kind == Kind::Flush {
                        job.flush = Flush::Needed;
                    }
                    job.sector = *sector;
                    job.bytes = parts.iter().map(|part| part.bytes).sum();
                    job.parts = parts;
                    None
                }
                Err(Refusal::Outcome(outcome)) => Some(outcome),
                Err(Refusal::Gone) => return Err(Fault::Gone),
                Err(Refusal::Room) => {
                    self.waiting = Some(waiting);
                    return Ok(());
                }
            },
        };
        if let Some(outcome) = refused {
            let response = Response {
                id: job.id,
                operation: job.operation,
                outcome,
            };
            self.answer(job.queue, job.number, response);
            return Ok(());
        }
        let place = match self.jobs.iter().position(Option::is_none) {
            Some(place) => place,
            None => {
                self.jobs.push(None);
                self.jobs.len() - 1
            }
        };
        if let Some(slot) = self.jobs.get_mut(place) {
            *slot = Some(job);
        }
        self.advance(place, guest, blocks)
    }

    /// Gives the disk what can be given of a job, moves what is in memory, ends it if that was all.
    fn advance<G: Guest<Page = P>>(
        &mut self,
        index: usize,
        guest: &mut G,
        blocks: &mut impl Blocks,
    ) -> Result<(), Fault> {
        let Some(job) = self.jobs.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        let mut volume = self.volume.lock();
        let token = Token {
            device: self.number,
            job: index,
            offset: 0,
        };
        let mut stuck = false;
        if job.flush == Flush::Needed {
            let flush = Submission {
                operation: Operation::Flush,
                sector: 0,
                place: 0,
                bytes: 0,
            };
            if !volume.writes_disk() {
                job.flush = Flush::Done;
            } else if blocks.submit(token, flush) {
                job.flush = Flush::Sent;
                job.in_flight += 1;
                self.in_flight += 1;
            } else {
                stuck = true;
            }
        }
        let on_disk = match job.read {
            true => volume.reads_disk(),
            false => volume.writes_disk(),
        };
        while !job.discard.is_empty() && job.failed.is_none() && !stuck {
            let Range { start, end } = job.discard;
            if !volume.writes_disk() {
                volume.forget(start, end - start);
                job.discard.start = end;
                break;
            }
            let most = u64::from(blocks.most_discarded()) / SECTOR;
            let count = volume.discarded_at_once(start, end - start, most);
            let sector = volume.on_disk(start, count);
            let Some(sector) = sector.filter(|_| (1..=most).contains(&count)) else {
                // The driver is another one, and its disk does not do it.
                job.failed = Some(Outcome::NotSupported);
                break;
            };
            let submission = Submission {
                operation: Operation::Discard,
                sector,
                place: 0,
                bytes: (count * SECTOR) as u32,
            };
            if self.discards >= DISCARDS_MAX || !blocks.submit(token, submission) {
                stuck = true;
                break;
            }
            job.discard.start += count;
            job.in_flight += 1;
            self.discards += 1;
            self.in_flight += 1;
        }
        while job.flush == Flush::Done && job.next < job.bytes && job.failed.is_none() {
            let offset = job.next;
            let sector = job.sector + u64::from(offset) / SECTOR;
            if !on_disk {
                if job.local(&mut volume).is_err() {
                    job.failed = Some(Outcome::Error);
                }
                break;
            }
            let bytes = (job.bytes - offset).min(blocks.most());
            let Some(sector) = volume.on_disk(sector, u64::from(bytes) / SECTOR) else {
                job.failed = Some(Outcome::Error);
                break;
            };
            let Some(place) = blocks.reserve(bytes) else {
                stuck = true;
                break;
            };
            if !job.read {
                job.gather(offset, bytes, |at, from| blocks.put(place + at, from));
            }
            let submission = Submission {
                operation: match job.read {
                    true => Operation::Read,
                    false => Operation::Write,
                },
                sector,
                place,
                bytes,
            };
            if !blocks.submit(Token { offset, ..token }, submission) {
                blocks.release(place, bytes);
                stuck = true;
                break;
            }
            job.next += bytes;
            job.in_flight += 1;
            self.in_flight += 1;
        }
        drop(volume);
        let done = job.in_flight == 0 && !stuck;
        if stuck {
            self.stuck.push_back(index);
        }
        if done {
            self.end(index, guest)?;
        }
        Ok(())
    }

    /// Answers a job and gives its pages back.
    fn end<G: Guest<Page = P>>(&mut self, index: usize, guest: &mut G) -> Result<(), Fault> {
        let Some(job) = self.jobs.get_mut(index).and_then(Option::take) else {
            return Ok(());
        };
        let response = Response {
            id: job.id,
            operation: job.operation,
            outcome: job.failed.unwrap_or(Outcome::Okay),
        };
        // Before the guest is told, its pages are its own again.
        let pages = job.parts.into_iter().map(|part| part.page).collect();
        self.cache.give_back(guest, pages)?;
        self.answer(job.queue, job.number, response);
        Ok(())
    }

    /// The disk answered. The room for its data is the caller's to release, afterwards. Answers are put
    /// into the ring by the next [`Device::work`].
    pub fn complete<G: Guest<Page = P>>(
        &mut self,
        token: Token,
        request: Submission,
        status: Ended,
        guest: &mut G,
        blocks: &mut impl Blocks,
    ) -> Result<(), Fault> {
        self.in_flight = self.in_flight.saturating_sub(1);
        if request.operation == Operation::Discard {
            self.discards = self.discards.saturating_sub(1);
        }
        if self.closed {
            return Ok(());
        }
        let Some(job) = self.jobs.get_mut(token.job).and_then(Option::as_mut) else {
            return Ok(());
        };
        job.in_flight = job.in_flight.saturating_sub(1);
        let failed = match (status, request.operation) {
            (Ended::Done, _) => None,
            (Ended::Operation, Operation::Discard) => Some(Outcome::NotSupported),
            _ => Some(Outcome::Error),
        };
        job.failed = job.failed.or(failed);
        if job.flush == Flush::Sent {
            job.flush = Flush::Done;
        } else if job.read && failed.is_none() {
            let volume = self.volume.lock();
            job.scatter(token.offset, request.bytes, |at, into| {
                blocks.get(request.place + at, into);
                volume.read(job.sector + u64::from(token.offset + at) / SECTOR, into);
            });
        }
        // One that is stuck is gone on with in its turn.
        if job.in_flight == 0 && !self.stuck.contains(&token.job) {
            self.advance(token.job, guest, blocks)?;
        }
        Ok(())
    }

    /// The disk answered something of a device that was closed, of whose guest nothing is left.
    pub fn drained(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Stops looking at rings, and gives pages back. What is with the disk ends there; the disk may be
    /// opened again when [`Device::is_idle`]. Answers the channels, to be given up, and all pages of rings.
    pub fn close<G: Guest<Page = P>>(&mut self, guest: &mut G) -> Result<Vec<C>, Gone> {
        self.closed = true;
        self.stuck.clear();
        self.waiting = None;
        let mut outcome = Ok(());
        for job in core::mem::take(&mut self.jobs).into_iter().flatten() {
            let pages = job.parts.into_iter().map(|part| part.page).collect();
            outcome = outcome.and(self.cache.give_back(guest, pages));
        }
        outcome = outcome.and(self.cache.clear(guest));
        let mut channels = Vec::new();
        for queue in core::mem::take(&mut self.queues) {
            channels.push(queue.channel);
            outcome = outcome.and(guest.unmap(queue.ring.into_pages()));
        }
        outcome.map(|()| channels)
    }
}
