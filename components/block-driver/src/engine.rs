//! Clients' rings on one side, a device's queues on the other, and every request's end. No request
//! waits for ever: the device is looked at each [`LOOK`] while it has some, and one that it keeps for
//! [`LIMIT`] is a failure of the device. After a failure the device is reset and what it had is put to
//! it once more, which is harmless: the same data to the same blocks. What was with it at two failures
//! is answered with `Device`. A device that fails again and again, and does nothing between, is given
//! up. Without system calls: host tests run it over simulated devices.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use idl::block::Geometry;
use idl::requests::{
    Answer, Checked, Damaged, DriverRing, Operation, RequestPage, SLOTS, Status as Ended,
};

use crate::Failed;

/// How long a device may take for one request, in milliseconds.
pub const LIMIT: u64 = 60_000;
/// How often a device that has requests is looked at, in milliseconds.
pub const LOOK: u64 = 1_000;
/// How often a request is put to a device.
const TRIES: u8 = 2;
/// Failures in a row after which a device is given up.
const FAILURES: u8 = 3;

/// The engine's name of a request.
pub type Tag = u32;

/// The device completed what it was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The queue has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A disk's controller with its queues, which are numbered from 0.
pub trait Device {
    /// The disk.
    fn geometry(&self) -> Geometry;
    /// How many queues there are; one at least.
    fn queues(&self) -> usize;
    /// True if a request can be submitted.
    fn has_room(&self, queue: usize) -> bool;
    /// Gives the device a request whose data it finds at `bus`. Announced by [`Device::announce`].
    fn submit(&mut self, queue: usize, request: &Checked, bus: u64, tag: Tag) -> Result<(), Full>;
    /// Tells the device of what was submitted.
    fn announce(&mut self, queue: usize);
    /// A request that ended, each once. After [`Broken`] only [`Device::recover`] helps.
    fn complete(&mut self, queue: usize) -> Result<Option<(Tag, Ended)>, Broken>;
    /// What the device says is wrong with it.
    fn fault(&self) -> Option<&'static str>;
    /// Resets the device; it has forgotten every request afterwards and touches no memory for them.
    /// An error if it does not come back, or if starting the driver anew is the way to do it.
    fn recover(&mut self) -> Result<(), Failed>;
    /// It does nothing from now on, as far as it obeys.
    fn halt(&mut self);
    /// Milliseconds, from any start.
    fn now(&self) -> u64;
}

/// A client that root knows, attached or not.
struct Client {
    page: &'static RequestPage,
    ring: Option<DriverRing<'static>>,
    bus: u64,
    bytes: u32,
    /// Requests with the device.
    open: u32,
    /// It has not been told of its last answers.
    tell: bool,
}

/// A request with the device.
struct Open {
    client: usize,
    request: Checked,
    until: u64,
    tries: u8,
}

/// A device and those who use it.
pub struct Engine<D> {
    /// The device.
    pub device: D,
    clients: Vec<Client>,
    /// What is with the device, by tag.
    open: Vec<Option<Open>>,
    free: Vec<Tag>,
    /// When to look at the device; `None` while it has nothing.
    look: Option<u64>,
    /// Why the device has to be reset.
    failed: Option<&'static str>,
    failures: u8,
}

impl<D: Device> Engine<D> {
    /// Nobody attached. For each client: the page of its ring, and where the device sees the memory
    /// that starts with this page, and its bytes.
    pub fn new(
        device: D,
        clients: impl IntoIterator<Item = (&'static RequestPage, u64, u32)>,
    ) -> Self {
        let clients = clients.into_iter().map(|(page, bus, bytes)| Client {
            page,
            ring: None,
            bus,
            bytes,
            open: 0,
            tell: false,
        });
        Engine {
            device,
            clients: clients.collect(),
            open: Vec::new(),
            free: Vec::new(),
            look: None,
            failed: None,
            failures: 0,
        }
    }

    /// When [`Engine::work`] is to be called although nobody asked for it, in the device's time.
    pub fn deadline(&self) -> Option<u64> {
        self.look
    }

    /// The device has requests.
    pub fn is_busy(&self) -> bool {
        self.open.len() > self.free.len()
    }

    /// Requests of a client that are with the device.
    pub fn open(&self, client: usize) -> u32 {
        self.clients.get(client).map_or(0, |client| client.open)
    }

    /// Ends a client's attachment: nothing is written into its ring from now on. Its memory is the
    /// device's while [`Engine::open`] is not 0.
    pub fn detach(&mut self, client: usize) {
        if let Some(client) = self.clients.get_mut(client) {
            client.ring = None;
        }
    }

    /// Begins an attachment with an empty ring; the bytes of its memory. `None` if there is no such
    /// client, or requests of an attachment before are with the device.
    pub fn attach(&mut self, client: usize) -> Option<u32> {
        let client = self.clients.get_mut(client).filter(|it| it.open == 0)?;
        client.ring = Some(DriverRing::new(client.page));
        Some(client.bytes)
    }

    /// Moves what can be moved, both ways, and sees to a device that failed. `tell` hears who has
    /// answers. An error: the device is lost to this driver.
    pub fn work(&mut self, mut tell: impl FnMut(usize)) -> Result<(), Failed> {
        loop {
            let answered = self.complete();
            self.look();
            if let Some(why) = self.failed.take() {
                self.recover(why)?;
            }
            let taken = self.take();
            for (index, client) in self.clients.iter_mut().enumerate() {
                if core::mem::take(&mut client.tell) {
                    tell(index);
                }
            }
            if !answered && !taken && self.failed.is_none() {
                return Ok(());
            }
        }
    }

    /// Answers what the device completed; true if there was something.
    pub fn complete(&mut self) -> bool {
        let mut any = false;
        for queue in 0..self.device.queues() {
            while self.failed.is_none() {
                match self.device.complete(queue) {
                    Ok(None) => break,
                    Ok(Some((tag, status))) if self.end(tag, status) => {
                        self.failures = 0;
                        any = true;
                    }
                    Ok(Some(_)) | Err(Broken) => {
                        self.failed = Some("the device completed what it was not given");
                    }
                }
            }
        }
        any
    }

    /// Ends a request; false if there is no such one.
    fn end(&mut self, tag: Tag, status: Ended) -> bool {
        let place = usize::try_from(tag).ok();
        let place = place.and_then(|tag| self.open.get_mut(tag));
        let Some(open) = place.and_then(Option::take) else {
            return false;
        };
        self.free.push(tag);
        if let Some(client) = self.clients.get_mut(open.client) {
            client.open = client.open.saturating_sub(1);
            client.answer(Answer {
                id: open.request.id,
                status,
            });
        }
        true
    }

    /// Looks at the device if it is time to.
    fn look(&mut self) {
        let now = self.device.now();
        if self.look.is_none_or(|time| now < time) {
            return;
        }
        if !self.is_busy() {
            self.look = None;
            return;
        }
        self.look = Some(now.saturating_add(LOOK));
        if self.failed.is_some() {
            return;
        }
        self.failed = self.device.fault();
        let late = |open: &Open| open.until <= now;
        if self.failed.is_none() && self.open.iter().flatten().any(late) {
            self.failed = Some("the device does not answer");
        }
    }

    /// Resets the device and puts to it what it had.
    fn recover(&mut self, why: &str) -> Result<(), Failed> {
        self.failures += 1;
        if self.failures > FAILURES {
            return Err(format!("{why}, and so it did after each reset"));
        }
        let before = self.device.geometry();
        let again = |error: String| format!("{why}; {error}");
        self.device.recover().map_err(again)?;
        if self.device.geometry() != before {
            return Err(format!("{why}; after its reset it is another disk"));
        }
        log::warn!("{why}: it was reset");
        let until = self.device.now().saturating_add(LIMIT);
        for tag in 0..self.open.len() {
            let Some(open) = self.open.get_mut(tag).and_then(Option::as_mut) else {
                continue;
            };
            open.tries += 1;
            open.until = until;
            let client = self.clients.get(open.client);
            let bus = client.map(|client| client.bus + u64::from(open.request.offset));
            let queue = open.client % self.device.queues().max(1);
            let submitted = bus
                .filter(|_| open.tries <= TRIES)
                .map(|bus| self.device.submit(queue, &open.request, bus, tag as Tag));
            if submitted != Some(Ok(())) {
                self.end(tag as Tag, Ended::Device);
            }
        }
        for queue in 0..self.device.queues() {
            self.device.announce(queue);
        }
        Ok(())
    }

    /// Gives the device what clients submitted; true if there was something.
    fn take(&mut self) -> bool {
        let geometry = self.device.geometry();
        let count = self.device.queues().max(1);
        let mut any = false;
        for index in 0..self.clients.len() {
            let queue = index % count;
            let mut announce = false;
            // One client's turn ends when the ring was gone through once.
            for _ in 0..SLOTS {
                let Some(client) = self.clients.get_mut(index) else {
                    break;
                };
                let Some(ring) = &mut client.ring else {
                    break;
                };
                if !self.device.has_room(queue) {
                    break;
                }
                let request = match ring.take() {
                    Ok(Some(request)) => request,
                    Ok(None) => break,
                    Err(Damaged) => {
                        ring.damaged();
                        client.tell = true;
                        break;
                    }
                };
                any = true;
                let status = match request.check(&geometry, client.bytes) {
                    Err(status) => Some(status),
                    Ok(request)
                        if request.operation == Operation::Flush && !geometry.write_cache =>
                    {
                        Some(Ended::Done)
                    }
                    Ok(request) => match self.submit(queue, index, request) {
                        Ok(()) => {
                            announce = true;
                            None
                        }
                        // There was room a moment ago.
                        Err(Full) => Some(Ended::Device),
                    },
                };
                if let Some(status) = status
                    && let Some(client) = self.clients.get_mut(index)
                {
                    client.answer(Answer {
                        id: request.id,
                        status,
                    });
                }
            }
            if announce {
                self.device.announce(queue);
            }
        }
        any
    }

    fn submit(&mut self, queue: usize, index: usize, request: Checked) -> Result<(), Full> {
        let client = self.clients.get_mut(index).ok_or(Full)?;
        let tag = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            (self.open.len() - 1) as Tag
        });
        let bus = client.bus + u64::from(request.offset);
        if self.device.submit(queue, &request, bus, tag).is_err() {
            self.free.push(tag);
            return Err(Full);
        }
        let now = self.device.now();
        if let Some(place) = self.open.get_mut(tag as usize) {
            *place = Some(Open {
                client: index,
                request,
                until: now.saturating_add(LIMIT),
                tries: 1,
            });
        }
        client.open += 1;
        if self.look.is_none() {
            self.look = Some(now.saturating_add(LOOK));
        }
        Ok(())
    }
}

impl Client {
    fn answer(&mut self, answer: Answer) {
        if let Some(ring) = &mut self.ring {
            ring.answer(answer);
            self.tell = true;
        }
    }
}
