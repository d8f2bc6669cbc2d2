//! The guest's console: the ring page of Xen public/io/console.h, and lines that a guest writes
//! by hypercall or to the debug port, which go to the log.
//!
//! The ring is the guest's to write at any time: indices are read once, and what they claim
//! beyond the ring's size counts as damage and is skipped.

use alloc::string::String;

use idl::ring::{IN_BYTES, OUT_BYTES, Reader, Writer};
use xen_abi::{GuestMemory, Unbacked};

/// Bytes of the `in` ring (to the guest), at offset 0 of the page.
const IN_SIZE: u32 = 1024;
/// Bytes of the `out` ring (from the guest), after it.
const OUT_SIZE: u32 = 2048;
const IN_CONS: u64 = 3072;
const IN_PROD: u64 = IN_CONS + 4;
const OUT_CONS: u64 = IN_CONS + 8;
const OUT_PROD: u64 = IN_CONS + 12;
/// Bytes moved at a time.
const PIECE: usize = 256;

/// A guest's console ring.
#[derive(Debug)]
pub struct GuestRing {
    /// Guest-physical address of the page.
    pub address: u64,
}

impl GuestRing {
    /// Moves the guest's output to the console component as far as there is room. Answers whether
    /// anything moved: then both sides are to be told.
    pub fn output<M: GuestMemory>(
        &self,
        memory: &M,
        to: &mut Writer<'_, OUT_BYTES>,
    ) -> Result<bool, Unbacked> {
        let word = |offset| memory.read_u32(self.address + offset);
        let mut consumer = word(OUT_CONS)?;
        let producer = word(OUT_PROD)?;
        if producer.wrapping_sub(consumer) > OUT_SIZE {
            // The guest's own index is wrong; take it as "nothing new".
            memory.write_u32(self.address + OUT_CONS, producer)?;
            return Ok(false);
        }
        let mut moved = false;
        while consumer != producer {
            let start = consumer % OUT_SIZE;
            let count = producer
                .wrapping_sub(consumer)
                .min(OUT_SIZE - start)
                .min(PIECE as u32)
                .min(to.space() as u32);
            if count == 0 {
                break;
            }
            let mut piece = [0; PIECE];
            let Some(piece) = piece.get_mut(..count as usize) else {
                break;
            };
            memory.read(self.address + u64::from(IN_SIZE + start), piece)?;
            let written = to.write(piece) as u32;
            consumer = consumer.wrapping_add(written);
            moved |= written != 0;
        }
        if moved {
            memory.write_u32(self.address + OUT_CONS, consumer)?;
        }
        Ok(moved)
    }

    /// Moves input to the guest as far as there is room. Answers whether anything moved.
    pub fn input<M: GuestMemory>(
        &self,
        memory: &M,
        from: &mut Reader<'_, IN_BYTES>,
    ) -> Result<bool, Unbacked> {
        let word = |offset| memory.read_u32(self.address + offset);
        let consumer = word(IN_CONS)?;
        let mut producer = word(IN_PROD)?;
        let mut moved = false;
        loop {
            let used = producer.wrapping_sub(consumer);
            let start = producer % IN_SIZE;
            // A guest that claims to have consumed what was never there gets no input.
            let room = IN_SIZE.saturating_sub(used).min(IN_SIZE - start);
            let mut piece = [0; PIECE];
            let Some(piece) = piece.get_mut(..(room as usize).min(PIECE)) else {
                break;
            };
            // A damaged ring was emptied; there may be input again later.
            let count = from.read(piece).unwrap_or(0);
            let Some(bytes) = piece.get(..count).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            memory.write(self.address + u64::from(start), bytes)?;
            producer = producer.wrapping_add(count as u32);
            moved = true;
        }
        if moved {
            memory.write_u32(self.address + IN_PROD, producer)?;
        }
        Ok(moved)
    }
}

/// Collects bytes into log lines, as Xen does with a guest's debug output.
#[derive(Debug, Default)]
pub struct Lines {
    line: String,
}

impl Lines {
    /// Longest line; Xen cuts at its buffer's end too (`DOMAIN_PBUF_SIZE`).
    const MAX: usize = 198;

    /// No line yet.
    pub const fn new() -> Lines {
        Lines {
            line: String::new(),
        }
    }

    /// Adds bytes; complete lines are logged. Unprintable ones are dropped.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.flush(),
                b'\t' | 0x20..=0x7e => {
                    if self.line.len() >= Self::MAX {
                        self.flush();
                    }
                    self.line.push(char::from(*byte));
                }
                _ => {}
            }
        }
    }

    /// Logs what there is of a line.
    pub fn flush(&mut self) {
        if self.line.is_empty() {
            return;
        }
        log::info!("guest: {}", self.line);
        self.line.clear();
    }
}

#[cfg(test)]
mod tests;
