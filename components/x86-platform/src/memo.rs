//! Answers that were worked out from guest memory, kept with every word they were worked out from.
//!
//! A walk of page tables, and the decoding of an instruction, are functions of the vCPU's mode and
//! of words of guest memory. [`Witness`] notes the words that such a function reads; [`Memo`] keeps
//! them beside the answer and gives the answer again only while each of those words, loaded anew,
//! has the value it had, and while they are where they were ([`GuestMemory::layout`]). So a memo
//! answers what the function itself would answer now. Nothing has to be flushed: not when the guest
//! writes a page table entry with or without INVLPG, not when it changes its code, not when memory
//! is taken from it.
//!
//! Called by `lookaside`. Must never answer from a value that was not compared.

use alloc::boxed::Box;
use core::cell::Cell;

use crate::memory::{GuestMemory, Unbacked};

/// Words that an answer may depend on: four levels of page tables, and two of code, which an
/// instruction of at most nine bytes never leaves.
pub const WORDS_MAX: usize = 6;

/// What a function of guest memory read.
#[derive(Clone, Copy)]
struct Seen<W> {
    words: [Option<(W, u64)>; WORDS_MAX],
    count: usize,
    /// Something else than aligned words was read, or anything was written.
    other: bool,
}

/// Guest memory that notes which words are read through it.
pub struct Witness<'a, M: GuestMemory> {
    memory: &'a M,
    layout: u64,
    seen: Cell<Seen<M::Word>>,
}

impl<'a, M: GuestMemory> Witness<'a, M> {
    /// Nothing was read yet.
    pub fn new(memory: &'a M) -> Self {
        Witness {
            memory,
            // Before anything is read: a change meanwhile leaves a number that is past.
            layout: memory.layout(),
            seen: Cell::new(Seen {
                words: [None; WORDS_MAX],
                count: 0,
                other: false,
            }),
        }
    }

    /// How many words were read.
    pub fn count(&self) -> usize {
        self.seen.get().count
    }

    fn other(&self) -> &'a M {
        self.seen.set(Seen {
            other: true,
            ..self.seen.get()
        });
        self.memory
    }

    /// The first `count` words that were read, if they are all there is to know.
    fn proof(&self, count: usize) -> Option<Proof<M::Word>> {
        let seen = self.seen.get();
        if seen.other || count > seen.count {
            return None;
        }
        let words = seen.words.get(..count)?;
        let first = words.first().copied().flatten()?;
        // Fewer words than places: the first one is compared again.
        let mut kept = [first; WORDS_MAX];
        for (place, word) in kept.iter_mut().zip(words) {
            *place = (*word)?;
        }
        Some(Proof {
            layout: self.layout,
            words: kept,
            more: count > WORDS_MIN,
        })
    }
}

impl<M: GuestMemory> GuestMemory for Witness<'_, M> {
    type Word = M::Word;

    fn word(&self, address: u64) -> Result<M::Word, Unbacked> {
        self.memory.word(address)
    }

    fn load(&self, word: M::Word) -> u64 {
        let value = self.memory.load(word);
        let mut seen = self.seen.get();
        if let Some(place) = seen.words.get_mut(seen.count) {
            *place = Some((word, value));
        }
        // Words beyond the places count too, so that no proof claims to have them.
        seen.count += 1;
        self.seen.set(seen);
        value
    }

    fn layout(&self) -> u64 {
        self.memory.layout()
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unbacked> {
        self.other().read(address, buffer)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unbacked> {
        self.other().write(address, bytes)
    }

    fn read_u32(&self, address: u64) -> Result<u32, Unbacked> {
        self.other().read_u32(address)
    }

    fn set_bits(&self, address: u64, bits: u32) -> Result<(), Unbacked> {
        self.other().set_bits(address, bits)
    }
}

/// Words that every proof has; what has fewer repeats one.
const WORDS_MIN: usize = 4;

/// All that an answer depends on beside its key.
#[derive(Clone, Copy)]
struct Proof<W> {
    layout: u64,
    words: [(W, u64); WORDS_MAX],
    /// There are more than [`WORDS_MIN`].
    more: bool,
}

impl<W: Copy> Proof<W> {
    #[inline(always)]
    fn holds<M: GuestMemory<Word = W>>(&self, memory: &M) -> bool {
        let same = |(word, value): &(W, u64)| memory.load(*word) == *value;
        let (first, rest) = self.words.split_at(WORDS_MIN);
        self.layout == memory.layout()
            && first.iter().all(same)
            && (!self.more || rest.iter().all(same))
    }
}

#[derive(Clone, Copy)]
struct Entry<W, T> {
    key: u64,
    proof: Proof<W>,
    answer: T,
}

/// Answers by key, `ENTRIES` (a power of two) of them. Each key has two places that it may be in; of three
/// keys that share them, two drive each other out.
pub struct Memo<W, T, const ENTRIES: usize> {
    entries: Box<[Option<Entry<W, T>>; ENTRIES]>,
}

impl<W: Copy + PartialEq, T: Copy, const ENTRIES: usize> Memo<W, T, ENTRIES> {
    /// Nothing is known.
    pub fn new() -> Self {
        Memo {
            entries: Box::new([None; ENTRIES]),
        }
    }

    #[inline(always)]
    fn place(&self, key: u64) -> usize {
        // Keys are addresses of instructions or of pages.
        (key ^ key >> 5 ^ key >> 12) as usize % ENTRIES
    }

    /// The other place: far away, since keys that belong together are neighbours.
    #[inline(always)]
    fn other(place: usize) -> usize {
        place ^ (ENTRIES / 2)
    }

    /// The answer that working it out now would give, if it is known.
    #[inline(always)]
    pub fn get<M: GuestMemory<Word = W>>(&self, memory: &M, key: u64) -> Option<&T> {
        let place = self.place(key);
        match self.entries.get(place)? {
            Some(entry) if entry.key == key => entry.proof.holds(memory).then_some(&entry.answer),
            _ => self.get_second(memory, key, Self::other(place)),
        }
    }

    #[inline(never)]
    fn get_second<M: GuestMemory<Word = W>>(
        &self,
        memory: &M,
        key: u64,
        place: usize,
    ) -> Option<&T> {
        let entry = self.entries.get(place)?.as_ref()?;
        (entry.key == key && entry.proof.holds(memory)).then_some(&entry.answer)
    }

    /// Keeps an answer that depends on the first `words` words that `witness` saw, if those are
    /// all; otherwise it is worked out again next time.
    pub fn put<M: GuestMemory<Word = W>>(
        &mut self,
        witness: &Witness<'_, M>,
        words: usize,
        key: u64,
        answer: T,
    ) {
        let place = self.place(key);
        let Some(proof) = witness.proof(words) else {
            return;
        };
        // Whatever other key was here moves over, and what was there goes.
        let before = self.entries.get(place).copied().flatten();
        if let (Some(before), Some(entry)) = (
            before.filter(|before| before.key != key),
            self.entries.get_mut(Self::other(place)),
        ) {
            *entry = Some(before);
        }
        if let Some(entry) = self.entries.get_mut(place) {
            *entry = Some(Entry { key, proof, answer });
        }
    }

    /// Forgets everything: keys mean something else from now on.
    pub fn clear(&mut self) {
        self.entries.fill(None);
    }
}
