//! The front end of a block device (public/io/blkif.h, protocol `x86_64-abi`), opened by hand: nothing in
//! it keeps its user from misbehaving.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::{Acquire, Release, SeqCst};

use super::event::Events;
use super::store::{Answer, Dead, Kind, Store};
use crate::grants::{Grants, PERMIT};
use crate::pages::Page;
use crate::xen::Xen;

/// Where the toolstack writes of the guest's disk `xvda` (Xen, docs/man/xen-vbd-interface.7).
const FRONT: &str = "device/vbd/51712";
/// The backend's domain.
const BACKEND: u16 = 0;
/// Requests that a ring of one page has room for: the power of two not above (4096 - 64) / 112.
pub const RING: u32 = 32;
/// Bytes of `blkif_request` and where the ring's first is.
const REQUEST: usize = 112;
const FIRST: usize = 64;
/// Indices of `blkif_sring`.
const REQUEST_PRODUCER: usize = 0;
const ANSWER_PRODUCER: usize = 8;
const ANSWER_EVENT: usize = 12;
/// How often a second is waited for.
pub const PATIENCE: u32 = 120;

/// `XenbusStateInitialising` (public/io/xenbus.h); the others follow.
pub const INITIALISING: &str = "1";
/// `XenbusStateInitWait`.
pub const INIT_WAIT: &str = "2";
/// `XenbusStateInitialised`.
pub const INITIALISED: &str = "3";
/// `XenbusStateConnected`.
pub const CONNECTED: &str = "4";
/// `XenbusStateClosing`.
pub const CLOSING: &str = "5";
/// `XenbusStateClosed`.
pub const CLOSED: &str = "6";

/// `BLKIF_OP_READ`.
pub const READ: u8 = 0;
/// `BLKIF_OP_WRITE`.
pub const WRITE: u8 = 1;
/// `BLKIF_OP_DISCARD`.
pub const DISCARD: u8 = 5;
/// `BLKIF_OP_INDIRECT`.
pub const INDIRECT: u8 = 6;

/// A piece of a page.
#[derive(Clone, Copy)]
pub struct Segment {
    /// Grant of the page.
    pub grant: u32,
    /// First sector in it.
    pub first: u8,
    /// Last sector in it.
    pub last: u8,
}

/// The whole page.
pub const fn whole(grant: u32) -> Segment {
    Segment {
        grant,
        first: 0,
        last: 7,
    }
}

/// What was answered: `BLKIF_RSP_*`, or nothing in time.
pub type Status = Option<i16>;

/// A text of a few letters, for numbers in nodes.
pub struct Text([u8; 160], usize);

impl Text {
    /// As much as there is room for.
    pub fn of(arguments: fmt::Arguments<'_>) -> Text {
        let mut text = Text([0; 160], 0);
        let _ = text.write_fmt(arguments);
        text
    }

    /// The letters.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.0.get(..self.1).unwrap_or(&[])).unwrap_or("")
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            *self.0.get_mut(self.1).ok_or(fmt::Error)? = byte;
            self.1 += 1;
        }
        Ok(())
    }
}

/// The front end.
pub struct Front<'a> {
    events: &'a Events,
    /// The store, for more than the front end needs.
    pub store: Store<'a>,
    /// The grant table.
    pub grants: Grants,
    /// The ring.
    pub ring: Page,
    port: u32,
    /// Our side of `req_prod`, and answers taken.
    pub produced: u32,
    consumed: u32,
    next: u64,
}

impl<'a> Front<'a> {
    /// With its ring in `ring` and the grant table at `grants`.
    pub fn new(xen: Xen, events: &'a Events, grants: Page, ring: Page) -> Result<Front<'a>, Dead> {
        let grants = Grants::at(xen, grants).map_err(|_| Dead)?;
        Ok(Front {
            events,
            store: Store::find(xen, events)?,
            grants,
            ring,
            port: xen.offer(BACKEND).map_err(|_| Dead)?,
            produced: 0,
            consumed: 0,
            next: 1,
        })
    }

    /// Grants a page, or takes a grant back; `flags` as they are in the table.
    pub fn grant(&self, reference: u32, page: u32, flags: u16, domain: u16) {
        self.grants.set(reference, page, flags, domain);
    }

    /// The flags of a grant now.
    pub fn flags(&self, reference: u32) -> &'static core::sync::atomic::AtomicU16 {
        self.grants.flags(reference)
    }

    /// A node of the backend's.
    pub fn of_backend(&mut self, name: &str) -> Result<Answer, Dead> {
        let folder = self.node("backend")?;
        let path = Text::of(format_args!("{}/{name}", folder.text()));
        self.store.read(path.as_str())
    }

    /// Waits until the backend's node `state` has this value.
    pub fn backend_is(&mut self, state: &str) -> Result<bool, Dead> {
        let folder = self.node("backend")?;
        let path = Text::of(format_args!("{}/state", folder.text()));
        for _ in 0..PATIENCE {
            if self.store.read(path.as_str())?.text() == state {
                return Ok(true);
            }
            self.events.wait(self.port);
        }
        Ok(false)
    }

    /// A node of ours.
    pub fn node(&mut self, name: &str) -> Result<Answer, Dead> {
        let path = Text::of(format_args!("{FRONT}/{name}"));
        self.store.read(path.as_str())
    }

    /// Writes a node of ours.
    pub fn set(&mut self, name: &str, value: &str) -> Result<bool, Dead> {
        self.store.write(FRONT, name, value)
    }

    /// Removes a node of ours.
    pub fn remove(&mut self, name: &str) -> Result<(), Dead> {
        let path = Text::of(format_args!("{FRONT}/{name}\0"));
        self.store.request(Kind::REMOVE, &[path.as_str()])?;
        Ok(())
    }

    /// Opens the ring, which is granted as `reference`; true once the backend is connected.
    pub fn connect(&mut self, reference: u32) -> Result<bool, Dead> {
        if !self.prepare(reference)? {
            return Ok(false);
        }
        self.set("state", INITIALISED)?;
        let connected = self.backend_is(CONNECTED)?;
        if connected {
            self.set("state", CONNECTED)?;
        }
        Ok(connected)
    }

    /// Everything of [`Front::connect`] but the word that the ring is ready; true if the backend waits for it.
    pub fn prepare(&mut self, reference: u32) -> Result<bool, Dead> {
        self.set("state", INITIALISING)?;
        if !self.backend_is(INIT_WAIT)? {
            return Ok(false);
        }
        self.ring.clear();
        // `req_event` and `rsp_event` begin at 1.
        self.ring.word(4).store(1, SeqCst);
        self.ring.word(ANSWER_EVENT).store(1, SeqCst);
        (self.produced, self.consumed) = (0, 0);
        self.grant(reference, self.ring.frame(), PERMIT, BACKEND);
        let port = self.port;
        self.set("ring-ref", Text::of(format_args!("{reference}")).as_str())?;
        self.set("event-channel", Text::of(format_args!("{port}")).as_str())?;
        self.set("protocol", "x86_64-abi")?;
        Ok(true)
    }

    /// Parts, so that the ring can be opened anew; true once the backend has parted too.
    pub fn close(&mut self) -> Result<bool, Dead> {
        self.set("state", CLOSED)?;
        self.backend_is(CLOSED)
    }

    /// Waits for an event of the backend or a second.
    pub fn wait(&self) {
        self.events.wait(self.port);
    }

    fn slot(&self) -> usize {
        FIRST + (self.produced % RING) as usize * REQUEST
    }

    /// Puts a request into the ring without telling; its id.
    pub fn put(&mut self, operation: u8, sector: u64, segments: u8, list: &[Segment]) -> u64 {
        let (slot, id) = (self.slot(), self.next);
        self.next += 1;
        self.ring.byte(slot).store(operation, SeqCst);
        self.ring.byte(slot + 1).store(segments, SeqCst);
        self.ring.half(slot + 2).store(0xca00, SeqCst);
        self.ring.long(slot + 8).store(id, SeqCst);
        self.ring.long(slot + 16).store(sector, SeqCst);
        for (index, segment) in list.iter().take(11).enumerate() {
            let at = slot + 24 + index * 8;
            self.ring.word(at).store(segment.grant, SeqCst);
            self.ring.byte(at + 4).store(segment.first, SeqCst);
            self.ring.byte(at + 5).store(segment.last, SeqCst);
        }
        self.produced = self.produced.wrapping_add(1);
        id
    }

    /// The same for sectors that nobody wants any more (`blkif_request_discard`).
    pub fn put_discard(&mut self, flag: u8, sector: u64, sectors: u64) -> u64 {
        let slot = self.slot();
        let id = self.put(DISCARD, sector, flag, &[]);
        self.ring.long(slot + 24).store(sectors, SeqCst);
        id
    }

    /// The same with pages of segments (`blkif_request_indirect`).
    pub fn put_indirect(
        &mut self,
        operation: u8,
        sector: u64,
        segments: u16,
        pages: &[u32],
    ) -> u64 {
        let (slot, id) = (self.slot(), self.next);
        self.next += 1;
        self.ring.byte(slot).store(INDIRECT, SeqCst);
        self.ring.byte(slot + 1).store(operation, SeqCst);
        self.ring.half(slot + 2).store(segments, SeqCst);
        self.ring.long(slot + 8).store(id, SeqCst);
        self.ring.long(slot + 16).store(sector, SeqCst);
        self.ring.half(slot + 24).store(0xca00, SeqCst);
        for (index, page) in pages.iter().take(8).enumerate() {
            self.ring.word(slot + 28 + index * 4).store(*page, SeqCst);
        }
        self.produced = self.produced.wrapping_add(1);
        id
    }

    /// Says how far requests go, whatever was put.
    pub fn publish(&self, producer: u32) {
        self.ring.word(REQUEST_PRODUCER).store(producer, Release);
        self.events.send(self.port);
    }

    /// The next answer, if one comes in time: whose, and what.
    pub fn answer(&mut self) -> Option<(u64, i16)> {
        for _ in 0..PATIENCE {
            if self.ring.word(ANSWER_PRODUCER).load(Acquire) != self.consumed {
                let slot = FIRST + (self.consumed % RING) as usize * REQUEST;
                self.consumed = self.consumed.wrapping_add(1);
                let event = self.consumed.wrapping_add(1);
                self.ring.word(ANSWER_EVENT).store(event, SeqCst);
                let id = self.ring.long(slot).load(SeqCst);
                return Some((id, self.ring.half(slot + 10).load(SeqCst) as i16));
            }
            if !self.events.wait(self.port) && self.closed() {
                return None;
            }
        }
        None
    }

    /// The backend has closed the connection.
    pub fn closed(&mut self) -> bool {
        let state = self.of_backend("state");
        state.map_or(true, |state| [CLOSING, CLOSED].contains(&state.text()))
    }

    /// Tells of what was put, and waits for one answer.
    pub fn go(&mut self) -> Status {
        self.publish(self.produced);
        Some(self.answer()?.1)
    }
}
