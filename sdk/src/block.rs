//! A disk for those who need one: a client of interface `block` that outlives the driver. Requests
//! that a driver took with it are put to the next one again, which is harmless: the same data to the
//! same blocks, and nothing that was answered is among them.

use alloc::vec::Vec;

use idl::block::{Attached, BlockClient, BlockError, Geometry};
use idl::cap::{Frame, Notification};
use idl::requests::{
    Answer, ClientRing, NOBODY, Operation, PAGE_BYTES, Request, RequestPage, SLOTS, Status as Ended,
};
use idl::{CallError, Cap, ConnectError, Failure};
use microvisor_abi::Status;

use crate::caps::{AnyCap, NotificationCap};
use crate::ipc::EndpointTransport;
use crate::memory::{self, READ_WRITE, SharedPage};
use crate::startup::PEERS;
use crate::time;

// SAFETY: it consists of atomics and arrays of them, and is 4096 bytes.
unsafe impl SharedPage for RequestPage {}

/// How long a driver may take to answer `attach` with anything but `Busy`.
const PATIENCE_MICROSECONDS: u64 = 60_000_000;
/// Between two questions.
const PAUSE_MICROSECONDS: u64 = 5_000;

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The driver refused to attach.
    Driver(BlockError),
    /// The driver was built from another version of the interface.
    Schema,
    /// There is no driver any more.
    Gone(Failure<Status>),
    /// The core refused.
    Core(Status),
    /// The driver wrote something into the ring that makes no sense.
    Damaged,
    /// As many requests as the ring has places wait for answers.
    Full,
    /// It ended in another way than it should.
    Ended(Ended),
    /// The deadline passed.
    Timeout,
}

/// The memory that a client shares with its disk's driver, behind the ring's page. Whoever put a request
/// into the ring that names a part of it leaves that part alone until the answer; nothing else keeps
/// two users apart, and mixed up data is all that can come of it.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    address: u64,
    bytes: u32,
}

impl Data {
    /// The address of so many bytes, a multiple of 8, at an offset that is one too.
    fn at(self, offset: u32, bytes: usize) -> Option<u64> {
        let end = usize::try_from(offset).ok()?.checked_add(bytes)?;
        let inside = offset >= PAGE_BYTES && end <= self.bytes as usize;
        (inside && offset.is_multiple_of(8) && bytes.is_multiple_of(8))
            .then_some(self.address + u64::from(offset))
    }

    /// Copies bytes in; false if they do not fit, or not in words of 8 bytes.
    pub fn put(self, offset: u32, from: &[u8]) -> bool {
        let Some(address) = self.at(offset, from.len()) else {
            return false;
        };
        let (words, _) = from.as_chunks::<8>();
        for (at, word) in (address..).step_by(8).zip(words) {
            // SAFETY: inside of the mapping, which is for good, behind the ring's page, and aligned;
            // nobody has references into it, because driver and device may change it at any time.
            unsafe { (at as *mut u64).write_volatile(u64::from_le_bytes(*word)) }
        }
        true
    }

    /// Copies bytes out; false if they are not all in there, or not in words of 8 bytes.
    pub fn get(self, offset: u32, into: &mut [u8]) -> bool {
        let Some(address) = self.at(offset, into.len()) else {
            return false;
        };
        let (words, _) = into.as_chunks_mut::<8>();
        for (at, word) in (address..).step_by(8).zip(words) {
            // SAFETY: as in `put`.
            *word = unsafe { (at as *const u64).read_volatile() }.to_le_bytes();
        }
        true
    }
}

/// An attached disk.
pub struct Disk {
    transport: EndpointTransport,
    /// Unbadged: what is waited for.
    events: Cap<Notification>,
    /// Given to the driver.
    wake: Cap<Notification>,
    /// Of the driver.
    peer: Cap<Notification>,
    attached: Attached,
    address: u64,
    page: &'static RequestPage,
    ring: ClientRing<'static>,
    /// Requests without an answer, oldest first.
    open: Vec<Request>,
    next: u32,
    /// How often a driver was found gone, and another one attached to.
    pub reattached: u32,
    /// Requests that the last one that was found gone had not answered.
    pub unanswered: u32,
}

fn ask(
    transport: EndpointTransport,
    wake: Cap<Notification>,
) -> Result<(Attached, Cap<Frame>, Cap<Notification>), DiskError> {
    let end = time::now().saturating_add(time::microseconds(PATIENCE_MICROSECONDS));
    loop {
        let answer = match BlockClient::connect(transport) {
            Err(ConnectError::Schema { .. }) => return Err(DiskError::Schema),
            Err(ConnectError::Failure(failure)) => Err(CallError::Failure(failure)),
            Ok(driver) => driver.attach(wake),
        };
        match answer {
            Ok(attached) => return Ok(attached),
            Err(CallError::Failure(Failure::Transport(Status::Restarted))) => {}
            Err(CallError::Answer(BlockError::Busy)) if time::now() < end => {
                let pause = time::microseconds(PAUSE_MICROSECONDS);
                let _ = time::sleep_until(time::now().saturating_add(pause));
            }
            Err(CallError::Answer(error)) => return Err(DiskError::Driver(error)),
            Err(CallError::Failure(failure)) => return Err(DiskError::Gone(failure)),
        }
    }
}

impl Disk {
    /// Attaches. `events` is the own notification, without a badge, on which nobody else waits;
    /// `bit` of it is the disk's.
    pub fn attach(
        transport: EndpointTransport,
        events: Cap<Notification>,
        bit: u64,
    ) -> Result<Disk, DiskError> {
        let wake = events
            .mint(microvisor_abi::Rights::SIGNAL, bit)
            .map_err(DiskError::Core)?;
        let (attached, frame, peer) = ask(transport, wake)?;
        let bytes = u64::from(attached.shared_bytes);
        if bytes != memory::LARGE {
            return Err(DiskError::Core(Status::Unsupported));
        }
        let address = memory::map(frame, bytes, READ_WRITE).map_err(DiskError::Core)?;
        // SAFETY: just mapped, writable, for good: the memory is root's.
        let page: &'static RequestPage = unsafe { memory::shared_at(address) };
        Ok(Disk {
            transport,
            events,
            wake,
            peer,
            attached,
            address,
            page,
            ring: ClientRing::new(page),
            open: Vec::new(),
            next: 0,
            reattached: 0,
            unanswered: 0,
        })
    }

    /// The disk's shape.
    pub fn geometry(&self) -> Geometry {
        self.attached.geometry
    }

    /// Where data may be: offsets from, up to but not including.
    pub fn places(&self) -> (u32, u32) {
        (PAGE_BYTES, self.attached.shared_bytes)
    }

    /// The shared memory, for those who put data in it while others use the ring. It stays where it is
    /// when the driver is another one.
    pub fn data(&self) -> Data {
        Data {
            address: self.address,
            bytes: self.attached.shared_bytes,
        }
    }

    /// To be called when bit [`PEERS`] came: if the driver is gone, attaches to the next one, and puts
    /// to it what was not answered. True if so.
    pub fn look(&mut self) -> Result<bool, DiskError> {
        let gone = self.peer.signal(1).is_err();
        if gone {
            self.again()?;
        }
        Ok(gone)
    }

    /// The address of `bytes` bytes at `offset`, if all of them are data.
    fn place(&self, offset: u32, bytes: usize) -> Option<u64> {
        let end = usize::try_from(offset).ok()?.checked_add(bytes)?;
        let (first, last) = self.places();
        (offset >= first && end <= last as usize).then_some(self.address + u64::from(offset))
    }

    /// Puts words into the shared memory from `offset` on, a multiple of 8; false if they do not fit.
    pub fn put(&mut self, offset: u32, words: &[u64]) -> bool {
        let Some(address) = self.place(offset, 8 * words.len()) else {
            return false;
        };
        for (index, word) in words.iter().enumerate() {
            let at = (address + 8 * index as u64) as *mut u64;
            if at.is_aligned() {
                // SAFETY: inside of the mapping and behind the ring's page, aligned; nobody has
                // references into it, because driver and device may change it at any time.
                unsafe { at.write_volatile(*word) }
            }
        }
        offset.is_multiple_of(8)
    }

    /// Takes words out of the shared memory; false if they are not all in there.
    pub fn get(&self, offset: u32, words: &mut [u64]) -> bool {
        let Some(address) = self.place(offset, 8 * words.len()) else {
            return false;
        };
        for (index, word) in words.iter_mut().enumerate() {
            let at = (address + 8 * index as u64) as *const u64;
            if at.is_aligned() {
                // SAFETY: as in `put`.
                *word = unsafe { at.read_volatile() };
            }
        }
        offset.is_multiple_of(8)
    }

    /// Submits a request; its identity. Nothing is believed of it here: the driver checks. A discard's
    /// `bytes` are of the disk, and its `offset` means nothing.
    pub fn submit(
        &mut self,
        operation: Operation,
        block: u64,
        offset: u32,
        bytes: u32,
    ) -> Result<u32, DiskError> {
        let id = self.next;
        self.submit_raw(Request {
            id,
            operation: operation as u32,
            block,
            offset,
            bytes,
        })?;
        Ok(id)
    }

    /// Submits what may be no request at all, under the identity that it has. For tests of drivers.
    pub fn submit_raw(&mut self, request: Request) -> Result<(), DiskError> {
        if self.open.len() >= SLOTS as usize {
            return Err(DiskError::Full);
        }
        self.ring.submit(&request).map_err(|_| DiskError::Full)?;
        self.open.push(request);
        // The identity of answers that belong to nobody is never one of ours.
        self.next = request.id.wrapping_add(1) % NOBODY;
        if self.peer.signal(1).is_err() {
            self.again()?;
            // This one it never had.
            self.unanswered = self.unanswered.saturating_sub(1);
        }
        Ok(())
    }

    /// The driver is gone: attaches to the next one, and puts to it what was not answered.
    fn again(&mut self) -> Result<(), DiskError> {
        self.unanswered = self.open.len() as u32;
        loop {
            let (attached, frame, peer) = ask(self.transport, self.wake)?;
            // The same memory as before, which is still mapped here.
            let _ = frame.delete();
            let _ = core::mem::replace(&mut self.peer, peer).delete();
            self.attached = attached;
            self.reattached += 1;
            self.ring = ClientRing::new(self.page);
            for request in &self.open {
                // The ring is empty and has a place for each.
                let _ = self.ring.submit(request);
            }
            if self.peer.signal(1).is_ok() {
                return Ok(());
            }
        }
    }

    /// The next answer that is there already.
    pub fn collect(&mut self) -> Result<Option<Answer>, DiskError> {
        match self.ring.collect() {
            Err(_) => Err(DiskError::Damaged),
            Ok(None) => Ok(None),
            Ok(Some(answer)) => {
                if answer.status == Ended::Damaged {
                    // What was in the ring is lost; the driver said so.
                    self.ring.forget();
                    self.open.clear();
                } else {
                    self.open.retain(|request| request.id != answer.id);
                }
                Ok(Some(answer))
            }
        }
    }

    /// Waits for an answer until the absolute TSC `deadline`.
    pub fn wait(&mut self, deadline: u64) -> Result<Answer, DiskError> {
        loop {
            if let Some(answer) = self.collect()? {
                return Ok(answer);
            }
            match self.events.wait(deadline) {
                Ok(bits) if bits & PEERS != 0 && self.peer.signal(1).is_err() => self.again()?,
                Ok(_) => {}
                Err(Status::Timeout) => return Err(DiskError::Timeout),
                Err(status) => return Err(DiskError::Core(status)),
            }
        }
    }

    /// For tests of drivers: moves the ring's counter as no honest client does.
    pub fn jump(&mut self, by: u32) {
        self.ring.jump(by);
        let _ = self.peer.signal(1);
    }
}
