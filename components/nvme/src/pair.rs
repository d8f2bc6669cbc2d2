//! A submission queue and its completion queue (3.3.1, 3.3.3). A command's identity is its slot and
//! how often the slot was used, so that a completion that comes twice is known for what it is. What the
//! controller writes is read once; one that completes what it was not given is [`Broken`].

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use block_driver::engine::{Broken, Full};
use block_driver::memory::Memory;

use crate::layout::nvm::RANGE_BYTES;
use crate::layout::{ENTRIES_MOST, PAGE};
use crate::prp::{LIST_BYTES, Pages, Rest};

/// Bytes of a submission queue's entry.
const COMMAND: u64 = 64;
/// Bytes of a completion queue's entry.
const COMPLETION: u64 = 16;
const COMPLETIONS: u64 = PAGE;
const LISTS: u64 = 2 * PAGE;
/// Bytes of memory that a pair takes: a page for each queue, and for each command a list, in whose place
/// is the range of blocks of those that have no data.
pub const BYTES: u64 = LISTS + ENTRIES_MOST as u64 * LIST_BYTES;
const _: () = assert!(ENTRIES_MOST as u64 * COMMAND <= PAGE);
const _: () = assert!(RANGE_BYTES <= LIST_BYTES);

/// Bits of an identity that say which slot.
const SLOT_BITS: u16 = 6;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;
const _: () = assert!(ENTRIES_MOST - 1 <= SLOT_MASK);

/// What a command's data pointer leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing.
    None,
    /// Data in these pages.
    Pages(Pages),
    /// A range of blocks, in the queue's own memory (NVM command set 1.0, 3.2.3).
    Range {
        /// The first.
        block: u64,
        /// How many.
        blocks: u32,
    },
}

/// A command, besides its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// What is to be done.
    pub opcode: u8,
    /// With which namespace.
    pub namespace: u32,
    /// With which data.
    pub data: Data,
    /// Dwords 10 to 12; the rest is 0.
    pub words: [u32; 3],
}

/// How a command ended: status code (bits 7-0) and its type (bits 10-8), 3.3.3.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome(pub u16);

impl Outcome {
    /// It did what it should.
    pub fn is_good(self) -> bool {
        self.0 == 0
    }
}

/// A command that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed<T> {
    /// What it was submitted with.
    pub token: T,
    /// How it ended.
    pub outcome: Outcome,
    /// Dword 0: what some commands answer.
    pub result: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot<T> {
    /// How often it was used, as far as an identity has bits for it.
    uses: u16,
    token: Option<T>,
}

/// Two queues with one number. Doorbells are the caller's business.
#[derive(Debug)]
pub struct Pair<M, T> {
    memory: M,
    number: u16,
    entries: u16,
    slots: Vec<Slot<T>>,
    free: Vec<u16>,
    tail: u16,
    head: u16,
    /// What the phase bit of an entry is that was not taken yet.
    phase: bool,
}

impl<M: Memory, T> Pair<M, T> {
    /// Empty queues in [`BYTES`] bytes of memory that begins with a page, with `entries` entries
    /// (from 2 to [`ENTRIES_MOST`]). The controller knows them by `number`.
    pub fn new(mut memory: M, number: u16, entries: u16) -> Self {
        let entries = entries.clamp(2, ENTRIES_MOST);
        for offset in (0..LISTS).step_by(8) {
            memory.write64(offset, 0);
        }
        // One entry stays free: a full queue would look like an empty one (3.3.1).
        let count = entries - 1;
        let slots = (0..count).map(|_| Slot {
            uses: 0,
            token: None,
        });
        Pair {
            memory,
            number,
            entries,
            slots: slots.collect(),
            free: (0..count).rev().collect(),
            tail: 0,
            head: 0,
            phase: true,
        }
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Entries of each queue.
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Where the controller sees the submission queue.
    pub fn submissions(&self) -> u64 {
        self.memory.bus()
    }

    /// Where the controller sees the completion queue.
    pub fn completions(&self) -> u64 {
        self.memory.bus() + COMPLETIONS
    }

    /// What the submission queue's doorbell is to say.
    pub fn tail(&self) -> u16 {
        self.tail
    }

    /// What the completion queue's doorbell is to say.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// True if a command can be submitted.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Commands with the controller.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a command into the queue. Ring the doorbell afterwards.
    pub fn submit(&mut self, command: &Command, token: T) -> Result<(), Full> {
        let index = self.free.pop().ok_or(Full)?;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Err(Full);
        };
        slot.uses = (slot.uses + 1) & (u16::MAX >> SLOT_BITS);
        slot.token = Some(token);
        let identity = slot.uses << SLOT_BITS | index;
        let (first, second) = match command.data {
            Data::None => (0, 0),
            Data::Pages(pages) => (pages.first, self.second(index, pages.rest)),
            Data::Range { block, blocks } => {
                let list = LISTS + u64::from(index) * LIST_BYTES;
                // No attributes: they are about use, and nobody uses it.
                self.memory.write64(list, u64::from(blocks) << 32);
                self.memory.write64(list + 8, block);
                (self.memory.bus() + list, 0)
            }
        };
        let at = u64::from(self.tail) * COMMAND;
        let head = u64::from(identity) << 16 | u64::from(command.opcode);
        let [ten, eleven, twelve] = command.words.map(u64::from);
        for (word, value) in [
            head | u64::from(command.namespace) << 32,
            0,
            0,
            first,
            second,
            ten | eleven << 32,
            twelve,
            0,
        ]
        .into_iter()
        .enumerate()
        {
            self.memory.write64(at + 8 * word as u64, value);
        }
        self.tail = (self.tail + 1) % self.entries;
        // The controller sees the command before it hears that there is one.
        fence(Ordering::Release);
        Ok(())
    }

    /// The second entry for a command's data, with the list that it leads to.
    fn second(&mut self, index: u16, rest: Rest) -> u64 {
        match rest {
            Rest::Nothing => 0,
            Rest::Page(page) => page,
            Rest::List { from, count } => {
                let list = LISTS + u64::from(index) * LIST_BYTES;
                for entry in 0..count.min(LIST_BYTES / 8) {
                    self.memory.write64(list + 8 * entry, from + entry * PAGE);
                }
                self.memory.bus() + list
            }
        }
    }

    /// The next command that ended. Ring the doorbell after the last one.
    pub fn complete(&mut self) -> Result<Option<Completed<T>>, Broken> {
        let at = COMPLETIONS + u64::from(self.head) * COMPLETION;
        let last = self.memory.read32(at + 12);
        if (last >> 16 & 1 != 0) != self.phase {
            return Ok(None);
        }
        // The rest of the entry is read after the bit that says that it is there.
        fence(Ordering::Acquire);
        let queues = self.memory.read32(at + 8);
        let result = self.memory.read32(at);
        let (seen, number) = (queues as u16, (queues >> 16) as u16);
        if number != self.number || seen >= self.entries {
            return Err(Broken);
        }
        let identity = last as u16;
        let index = identity & SLOT_MASK;
        let slot = self.slots.get_mut(usize::from(index));
        let slot = slot.filter(|slot| slot.uses == identity >> SLOT_BITS);
        let token = slot.and_then(|slot| slot.token.take()).ok_or(Broken)?;
        self.free.push(index);
        self.head = (self.head + 1) % self.entries;
        if self.head == 0 {
            self.phase = !self.phase;
        }
        Ok(Some(Completed {
            token,
            outcome: Outcome((last >> 17) as u16 & 0x7ff),
            result,
        }))
    }
}
