//! A small client of the shared store (public/io/xs_wire.h), as a guest's own driver is one.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::event::Events;
use crate::pages::Page;
use crate::xen::Xen;

/// `HVM_PARAM_STORE_PFN` and `_EVTCHN` (public/hvm/params.h).
const STORE_PFN: u32 = 1;
const STORE_EVTCHN: u32 = 2;
/// `xenstore_domain_interface`: bytes of each ring, where answers begin, and the indices.
const RING: u32 = 1024;
const ANSWERS: usize = 1024;
const REQUEST_CONSUMER: usize = 2048;
const REQUEST_PRODUCER: usize = 2052;
const ANSWER_CONSUMER: usize = 2056;
const ANSWER_PRODUCER: usize = 2060;
/// Bytes of `xsd_sockmsg`.
const HEADER: usize = 16;
/// Bytes of an answer that are kept.
const KEPT: usize = 256;
/// How often a second is waited for before the store is taken for dead.
const PATIENCE: u32 = 300;

/// `xsd_sockmsg_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kind(pub u32);

impl Kind {
    /// `XS_READ`.
    pub const READ: Kind = Kind(2);
    /// `XS_WATCH`.
    pub const WATCH: Kind = Kind(4);
    /// `XS_TRANSACTION_START`.
    pub const TRANSACTION_START: Kind = Kind(6);
    /// `XS_WRITE`.
    pub const WRITE: Kind = Kind(11);
    /// `XS_RM`.
    pub const REMOVE: Kind = Kind(13);
    const WATCH_EVENT: Kind = Kind(15);
    const ERROR: Kind = Kind(16);
}

/// What the store said.
pub struct Answer {
    /// It refused: the text is an error's name.
    pub refused: bool,
    bytes: [u8; KEPT],
    length: usize,
}

impl Answer {
    /// Its text, without what ends it.
    pub fn text(&self) -> &str {
        let bytes = self.bytes.get(..self.length.min(KEPT)).unwrap_or(&[]);
        let text = core::str::from_utf8(bytes).unwrap_or("?");
        text.trim_end_matches('\0')
    }
}

/// The store does not answer, or it is not there.
#[derive(Debug)]
pub struct Dead;

/// The connection.
pub struct Store<'a> {
    events: &'a Events,
    ring: Page,
    port: u32,
    next: u32,
}

impl<'a> Store<'a> {
    /// The one that the domain was given.
    pub fn find(xen: Xen, events: &'a Events) -> Result<Self, Dead> {
        let ring = xen.param(STORE_PFN).ok().and_then(Page::at).ok_or(Dead)?;
        let port = xen.param(STORE_EVTCHN).map_err(|_| Dead)? as u32;
        Ok(Store {
            events,
            ring,
            port,
            next: 1,
        })
    }

    fn put(&mut self, bytes: impl Iterator<Item = u8>) -> Result<(), Dead> {
        for byte in bytes {
            let producer = self.ring.word(REQUEST_PRODUCER).load(Relaxed);
            let used = || {
                let consumer = self.ring.word(REQUEST_CONSUMER).load(Acquire);
                producer.wrapping_sub(consumer)
            };
            self.until(|| used() < RING)?;
            let place = (producer % RING) as usize;
            self.ring.byte(place).store(byte, Relaxed);
            let next = producer.wrapping_add(1);
            self.ring.word(REQUEST_PRODUCER).store(next, Release);
        }
        self.events.send(self.port);
        Ok(())
    }

    fn take(&mut self) -> Result<u8, Dead> {
        let consumer = self.ring.word(ANSWER_CONSUMER).load(Relaxed);
        self.until(|| self.ring.word(ANSWER_PRODUCER).load(Acquire) != consumer)?;
        let place = ANSWERS + (consumer % RING) as usize;
        let byte = self.ring.byte(place).load(Relaxed);
        let next = consumer.wrapping_add(1);
        self.ring.word(ANSWER_CONSUMER).store(next, Release);
        Ok(byte)
    }

    fn until(&self, done: impl Fn() -> bool) -> Result<(), Dead> {
        for _ in 0..PATIENCE {
            if done() {
                return Ok(());
            }
            self.events.send(self.port);
            if done() {
                return Ok(());
            }
            self.events.wait(self.port);
        }
        Err(Dead)
    }

    /// A request of parts that follow each other, outside of transactions; its answer. What watches fire
    /// meanwhile is thrown away.
    pub fn request(&mut self, kind: Kind, parts: &[&str]) -> Result<Answer, Dead> {
        let id = self.next;
        self.next = id.wrapping_add(1);
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let header = [kind.0, id, 0, length as u32];
        let header = header.into_iter().flat_map(u32::to_le_bytes);
        self.put(header.chain(parts.iter().flat_map(|part| part.bytes())))?;
        loop {
            let mut header = [0; HEADER];
            for byte in &mut header {
                *byte = self.take()?;
            }
            let field = |at: usize| {
                let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
                bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
            };
            let mut answer = Answer {
                refused: Kind(field(0)) == Kind::ERROR,
                bytes: [0; KEPT],
                length: field(12) as usize,
            };
            for index in 0..answer.length {
                let byte = self.take()?;
                if let Some(place) = answer.bytes.get_mut(index) {
                    *place = byte;
                }
            }
            self.events.send(self.port);
            if Kind(field(0)) != Kind::WATCH_EVENT && field(4) == id {
                return Ok(answer);
            }
        }
    }

    /// The text of a node.
    pub fn read(&mut self, path: &str) -> Result<Answer, Dead> {
        self.request(Kind::READ, &[path, "\0"])
    }

    /// Writes a node below `folder`; true if it was done.
    pub fn write(&mut self, folder: &str, name: &str, value: &str) -> Result<bool, Dead> {
        let answer = self.request(Kind::WRITE, &[folder, "/", name, "\0", value])?;
        Ok(!answer.refused)
    }
}
