//! The guest's side of the xenstore: its ring page (Xen public/io/xs_wire.h). Whole messages go to the
//! store, answers and watch events come back; what they mean is nobody's business here.
//!
//! The ring is the guest's to write at any time. Requests are taken only while the answers to
//! earlier ones fit, so that a guest that does not read costs no memory.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use idl::xs_wire::{Header, PAYLOAD_MAX};
use xen_abi::{GuestMemory, Unbacked};

/// Bytes of each ring: requests at offset 0, answers after them.
const SIZE: u32 = 1024;
const REQUEST_CONS: u64 = 2048;
const REQUEST_PROD: u64 = REQUEST_CONS + 4;
const ANSWER_CONS: u64 = REQUEST_CONS + 8;
const ANSWER_PROD: u64 = REQUEST_CONS + 12;
/// `error`: XENSTORE_ERROR_COMM or XENSTORE_ERROR_RINGIDX.
const ERROR: u64 = REQUEST_CONS + 24;
const ERROR_COMMUNICATION: u32 = 1;
const ERROR_INDEX: u32 = 2;
/// Bytes that may wait for the guest before requests have to wait.
const BACKLOG: usize = 8192;

/// The store is down for good, or does not serve this guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// Where messages go.
pub trait Server {
    /// Hands on a whole message; the whole answer.
    fn exchange(&mut self, message: &[u8]) -> Result<Vec<u8>, Gone>;
    /// Watch events as whole messages; none if none wait.
    fn events(&mut self) -> Result<Vec<u8>, Gone>;
}

/// A guest's store ring.
pub struct StoreRing<S> {
    /// Guest-physical address of the page.
    address: u64,
    /// The store.
    pub server: S,
    input: Vec<u8>,
    output: VecDeque<u8>,
    broken: bool,
}

impl<S: Server> StoreRing<S> {
    /// The ring page at guest-physical `address`.
    pub fn new(address: u64, server: S) -> StoreRing<S> {
        StoreRing {
            address,
            server,
            input: Vec::new(),
            output: VecDeque::new(),
            broken: false,
        }
    }

    /// Carries out what the guest asked and gives it answers and events, as far as there is room.
    /// Answers whether anything moved: then the guest is to be told.
    pub fn serve<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Unbacked> {
        let mut moved = false;
        // Each turn empties what the guest could put into the ring meanwhile; a guest that goes on
        // for ever gets its next turn with its next event.
        for _ in 0..16 {
            if self.broken {
                break;
            }
            let took = self.requests(memory)?;
            let gave = !self.broken && self.answers(memory)?;
            moved |= took || gave;
            if !took {
                break;
            }
        }
        Ok(moved)
    }

    /// Takes requests and events while there is room for what they lead to; true if there were some.
    fn requests<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Unbacked> {
        let mut any = false;
        while self.output.len() <= BACKLOG {
            let message = match self.message() {
                Ok(message) => message,
                Err(()) => return self.break_off(memory, ERROR_COMMUNICATION),
            };
            let outcome = match message {
                Some(message) => self.server.exchange(&message),
                None => match self.pull(memory)? {
                    Pulled::Some => {
                        any = true;
                        continue;
                    }
                    Pulled::Broken => return Ok(true),
                    Pulled::None => self.server.events(),
                },
            };
            match outcome {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => self.output.extend(bytes),
                Err(Gone) => return self.break_off(memory, ERROR_COMMUNICATION),
            }
            any = true;
        }
        Ok(any)
    }

    /// The next request that is whole, or that the guest's stream makes no sense.
    fn message(&mut self) -> Result<Option<Vec<u8>>, ()> {
        let Some(head) = self.input.first_chunk() else {
            return Ok(None);
        };
        let length = Header::decode(head).length as usize;
        if length > PAYLOAD_MAX {
            return Err(());
        }
        let end = Header::BYTES + length;
        if self.input.len() < end {
            return Ok(None);
        }
        let rest = self.input.split_off(end);
        Ok(Some(core::mem::replace(&mut self.input, rest)))
    }

    /// Takes what is in the ring.
    fn pull<M: GuestMemory>(&mut self, memory: &M) -> Result<Pulled, Unbacked> {
        let consumer = memory.read_u32(self.address + REQUEST_CONS)?;
        let producer = memory.read_u32(self.address + REQUEST_PROD)?;
        let used = producer.wrapping_sub(consumer);
        if used > SIZE {
            self.break_off(memory, ERROR_INDEX)?;
            return Ok(Pulled::Broken);
        }
        if used == 0 {
            return Ok(Pulled::None);
        }
        let mut ring = [0; SIZE as usize];
        memory.read(self.address, &mut ring)?;
        let start = (consumer % SIZE) as usize;
        ring.rotate_left(start);
        let requests = ring.get(..used as usize).unwrap_or(&[]);
        self.input.extend_from_slice(requests);
        memory.write_u32(self.address + REQUEST_CONS, producer)?;
        Ok(Pulled::Some)
    }

    fn answers<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Unbacked> {
        let consumer = memory.read_u32(self.address + ANSWER_CONS)?;
        let mut producer = memory.read_u32(self.address + ANSWER_PROD)?;
        let used = producer.wrapping_sub(consumer);
        if used > SIZE {
            return self.break_off(memory, ERROR_INDEX);
        }
        let mut room = SIZE - used;
        let mut moved = false;
        while room > 0 && !self.output.is_empty() {
            let start = producer % SIZE;
            let count = self.output.len().min(room.min(SIZE - start) as usize);
            let piece: Vec<u8> = self.output.drain(..count).collect();
            memory.write(self.address + u64::from(SIZE + start), &piece)?;
            producer = producer.wrapping_add(piece.len() as u32);
            room -= piece.len() as u32;
            moved = true;
        }
        if moved {
            memory.write_u32(self.address + ANSWER_PROD, producer)?;
        }
        Ok(moved)
    }

    /// The stream makes no sense any more: says so in the page and stops.
    fn break_off<M: GuestMemory>(&mut self, memory: &M, error: u32) -> Result<bool, Unbacked> {
        log::warn!("guest broke its xenstore ring ({error}): closed");
        self.broken = true;
        memory.write_u32(self.address + ERROR, error)?;
        Ok(true)
    }
}

/// What was in the ring.
enum Pulled {
    Some,
    None,
    Broken,
}

#[cfg(test)]
mod tests;
