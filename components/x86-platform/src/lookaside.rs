//! What a vCPU remembers of its guest's page tables and code, so that an exit whose instruction
//! the CPU does not describe costs few loads.
//!
//! Called by the VMM's thread of that vCPU, on most exits. Every answer is the one that [`paging`]
//! and [`decode`] would give at that moment, by [`memo`](crate::memo)'s rule; what they depend on
//! beside guest memory, the [`Mode`], is compared at each exit by [`Lookaside::observe`]. CR3 is
//! part of the mode: the memos of the last few modes are kept apart, so that a guest that changes
//! between address spaces or privilege levels does not begin anew each time.

use crate::decode::{self, Fixed, Operation};
use crate::memo::{Memo, Witness};
use crate::memory::GuestMemory;
use crate::mode::{Mode, RFLAGS_AC};
use crate::paging::{self, Access, Code, Fault};

/// Modes that are remembered.
const MODES: usize = 4;
/// Answers of each sort and mode.
const ENTRIES: usize = 16;
const _: () = assert!(ENTRIES.is_power_of_two());
const PAGE: u64 = 4096;

/// Why there is no decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Its bytes cannot be fetched.
    Fault(Fault),
    /// They are not what the exit speaks of.
    Decode(decode::Error),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Error::Fault(fault)
    }
}

impl From<decode::Error> for Error {
    fn from(error: decode::Error) -> Self {
        Error::Decode(error)
    }
}

/// Answers that hold in one mode.
struct Memos<W> {
    mode: Mode,
    /// By instruction pointer.
    lengths: Memo<W, (Fixed, u8), ENTRIES>,
    /// By instruction pointer.
    operations: Memo<W, Operation, ENTRIES>,
    /// Of hypercall arguments: pages by linear address, bit 0 set for writes.
    pages: Memo<W, u64, ENTRIES>,
}

impl<W: Copy + PartialEq> Memos<W> {
    fn new() -> Self {
        Memos {
            mode: Mode::default(),
            lengths: Memo::new(),
            operations: Memo::new(),
            pages: Memo::new(),
        }
    }
}

/// What one vCPU remembers.
pub struct Lookaside<W> {
    /// Of the mode that the vCPU is in.
    current: Memos<W>,
    /// Of the modes before, in no order.
    others: [Memos<W>; MODES - 1],
    /// Which of `others` is replaced next.
    oldest: usize,
}

impl<W: Copy + PartialEq> Default for Lookaside<W> {
    fn default() -> Self {
        Lookaside {
            current: Memos::new(),
            others: core::array::from_fn(|_| Memos::new()),
            oldest: 0,
        }
    }
}

impl<W: Copy + PartialEq> Lookaside<W> {
    /// The vCPU is in the mode that `mode` answers, the same each time. Comes before any question
    /// at each exit.
    #[inline(always)]
    pub fn observe(&mut self, mode: impl Fn() -> Mode) {
        // Asked again rather than kept, so that the usual exit has nothing to keep.
        if !self.current.mode.is(&mode()) {
            self.change(mode());
        }
    }

    #[cold]
    #[inline(never)]
    fn change(&mut self, mode: Mode) {
        let known = self.others.iter().position(|memos| memos.mode.is(&mode));
        let index = known.unwrap_or(self.oldest);
        if let Some(other) = self.others.get_mut(index) {
            if known.is_none() {
                other.mode = mode;
                other.lengths.clear();
                other.operations.clear();
                other.pages.clear();
                self.oldest = (self.oldest + 1) % (MODES - 1);
            }
            core::mem::swap(&mut self.current, other);
        }
    }

    /// The mode observed last; the base of its SS may be an older one.
    #[inline(always)]
    pub fn mode(&self) -> &Mode {
        &self.current.mode
    }

    /// Length of the instruction at `rip`, which is `fixed`.
    #[inline(always)]
    pub fn length<M: GuestMemory<Word = W>>(
        &mut self,
        memory: &M,
        rflags: u64,
        rip: u64,
        fixed: Fixed,
    ) -> Result<u8, Error> {
        match self.current.lengths.get(memory, rip) {
            Some((known, length)) if *known == fixed => Ok(*length),
            _ => self.find_length(memory, rflags, rip, fixed),
        }
    }

    #[cold]
    #[inline(never)]
    fn find_length<M: GuestMemory<Word = W>>(
        &mut self,
        memory: &M,
        rflags: u64,
        rip: u64,
        fixed: Fixed,
    ) -> Result<u8, Error> {
        let found = Found::new(memory, self.mode(), rflags, rip)?;
        let length = fixed.length(&found.code, self.mode().code_size())?;
        if let Some(words) = found.words(length) {
            let lengths = &mut self.current.lengths;
            lengths.put(&found.witness, words, rip, (fixed, length));
        }
        Ok(length)
    }

    /// The instruction at `rip`, which has a memory operand.
    #[inline(always)]
    pub fn operation<M: GuestMemory<Word = W>>(
        &mut self,
        memory: &M,
        rflags: u64,
        rip: u64,
    ) -> Result<Operation, Error> {
        match self.current.operations.get(memory, rip) {
            Some(operation) => Ok(*operation),
            None => self.find_operation(memory, rflags, rip),
        }
    }

    #[cold]
    #[inline(never)]
    fn find_operation<M: GuestMemory<Word = W>>(
        &mut self,
        memory: &M,
        rflags: u64,
        rip: u64,
    ) -> Result<Operation, Error> {
        let found = Found::new(memory, self.mode(), rflags, rip)?;
        let operation = decode::memory_operation(&found.code, self.mode().code_size(), rip)?;
        if let Some(words) = found.words(operation.length) {
            let operations = &mut self.current.operations;
            operations.put(&found.witness, words, rip, operation);
        }
        Ok(operation)
    }

    /// The guest-physical address of an argument at `linear`, to be read or written. SMAP does not
    /// apply: arguments are where the guest's kernel says, and Xen reads them without it as well.
    #[inline(always)]
    pub fn translate<M: GuestMemory<Word = W>>(
        &mut self,
        memory: &M,
        linear: u64,
        write: bool,
    ) -> Result<u64, Fault> {
        let page = linear & !(PAGE - 1);
        match self.current.pages.get(memory, page | u64::from(write)) {
            Some(physical) => Ok(physical | linear & (PAGE - 1)),
            None => self.find_page(memory, linear, write),
        }
    }

    #[cold]
    #[inline(never)]
    fn find_page<M: GuestMemory<Word = W>>(
        &mut self,
        memory: &M,
        linear: u64,
        write: bool,
    ) -> Result<u64, Fault> {
        let access = if write { Access::Write } else { Access::Read };
        let witness = Witness::new(memory);
        let physical = paging::translate(&witness, self.mode(), RFLAGS_AC, linear, access)?;
        let key = linear & !(PAGE - 1) | u64::from(write);
        let pages = &mut self.current.pages;
        pages.put(&witness, witness.count(), key, physical & !(PAGE - 1));
        Ok(physical)
    }
}

/// Code as it was fetched, and what the fetch read: the walk's words first, then the code's.
struct Found<'a, M: GuestMemory> {
    witness: Witness<'a, M>,
    walked: usize,
    physical: u64,
    code: Code,
}

impl<'a, M: GuestMemory> Found<'a, M> {
    fn new(memory: &'a M, mode: &Mode, rflags: u64, rip: u64) -> Result<Self, Fault> {
        let witness = Witness::new(memory);
        let linear = mode.linear_rip(rip);
        let physical = paging::translate(&witness, mode, rflags, linear, Access::Fetch)?;
        let walked = witness.count();
        let code = paging::fetch_at(&witness, mode, rflags, linear, physical)?;
        Ok(Found {
            witness,
            walked,
            physical,
            code,
        })
    }

    /// How many of the words decide about an instruction of this length: those that it lies in.
    /// Bytes behind an instruction are not part of its decoding. None if it crosses a page.
    fn words(&self, length: u8) -> Option<usize> {
        let length = u64::from(length);
        let inside = self.physical % PAGE + length <= PAGE;
        let words = (self.physical % 8 + length).div_ceil(8) as usize;
        inside.then_some(self.walked + words)
    }
}

#[cfg(test)]
mod tests;
