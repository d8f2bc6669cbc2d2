//! One entry of a grant table, in either version: what it grants, and the flags that tell the guest of
//! its use (`public/grant_table.h`), changed as Xen's `_set_status_v1` and `_set_status_v2` change them.
//!
//! An entry is the guest's, which may change it at any moment. Each field is read once for a decision;
//! in version 1 flags are exchanged against what was read, in version 2 they are read again once the
//! status is there for the guest to see. What a guest changes in between gets it its own error.

use crate::PAGE_SIZE;
use crate::access::Fields;
use crate::grant::status;
use crate::memory::GuestMemory;

/// `GTF_type_mask`, and the types that are in it.
pub(crate) const TYPE_MASK: u16 = 3;
pub(crate) const PERMIT_ACCESS: u16 = 1;
pub(crate) const TRANSITIVE: u16 = 3;
/// `GTF_readonly`, `GTF_reading`, `GTF_writing`, `GTF_sub_page`.
const READONLY: u16 = 1 << 2;
pub(crate) const READING: u16 = 1 << 3;
pub(crate) const WRITING: u16 = 1 << 4;
const SUB_PAGE: u16 = 1 << 8;
/// Bits of `page_off` that Xen keeps.
const OFFSET_MASK: u16 = 0x7fff;
/// Exchanges that a guest may spoil, by writing the entry at that moment.
const ATTEMPTS: usize = 5;

/// What a grant is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// To be mapped: then it has to be for a whole page.
    Map,
    /// For `GNTTABOP_copy`.
    Copy,
}

/// What an entry grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub gfn: u64,
    /// First byte in the page.
    pub start: u16,
    /// Bytes.
    pub length: u16,
    /// Not the whole page, even if `start` and `length` say so.
    pub part: bool,
}

impl Extent {
    /// The whole page.
    pub fn page(gfn: u64) -> Extent {
        Extent {
            gfn,
            start: 0,
            length: PAGE_SIZE as u16,
            part: false,
        }
    }

    /// Whether these bytes of the page are granted.
    pub fn holds(&self, offset: u16, length: u16) -> bool {
        let end = |first: u16, length: u16| u32::from(first) + u32::from(length);
        offset >= self.start && end(offset, length) <= end(self.start, self.length)
    }
}

/// Where an entry is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    /// `grant_entry_v1_t`: flags, domain, and a frame of 32 bits.
    V1(u64),
    /// `union grant_entry_v2` and its `grant_status_t`.
    V2 { entry: u64, status: u64 },
}

/// Flags and domain out of an entry's first word.
fn header(word: u32) -> (u16, u16) {
    (word as u16, (word >> 16) as u16)
}

/// Whether an entry with this first word lets `domain` use it so.
fn permits(word: u32, domain: u16, how: Use, transitive: bool) -> bool {
    let (flags, granted_to) = header(word);
    let mask = match how {
        Use::Map => TYPE_MASK | SUB_PAGE,
        Use::Copy => TYPE_MASK,
    };
    let kind = flags & mask == PERMIT_ACCESS
        || (transitive && how == Use::Copy && flags & mask == TRANSITIVE);
    kind && granted_to == domain
}

impl Entry {
    fn address(self) -> u64 {
        match self {
            Entry::V1(entry) | Entry::V2 { entry, .. } => entry,
        }
    }

    /// One load of flags and domain.
    fn word<M: GuestMemory>(self, memory: &M) -> Result<u32, i16> {
        // Frames of the table are always backed.
        memory
            .read_u32(self.address())
            .map_err(|_| status::GENERAL_ERROR)
    }

    /// Whether it refers to a grant that the guest has of another domain, which version 2 knows.
    pub fn is_transitive<M: GuestMemory>(self, memory: &M) -> Result<bool, i16> {
        Ok(match self {
            Entry::V1(_) => false,
            Entry::V2 { .. } => header(self.word(memory)?).0 & TYPE_MASK == TRANSITIVE,
        })
    }

    /// Sets the flags of use. `check`: the domain that the entry has to grant to; an entry that is in
    /// use already is not asked again.
    pub fn mark<M: GuestMemory>(
        self,
        memory: &M,
        check: Option<u16>,
        write: bool,
        how: Use,
    ) -> Result<(), i16> {
        let refused = |word: u32, transitive: bool| {
            check.is_some_and(|domain| !permits(word, domain, how, transitive))
                || (write && header(word).0 & READONLY != 0)
        };
        let bits = READING | if write { WRITING } else { 0 };
        let mut word = self.word(memory)?;
        let Entry::V2 { status, .. } = self else {
            for _ in 0..ATTEMPTS {
                if refused(word, false) {
                    break;
                }
                let found = memory
                    .compare_exchange_u32(self.address(), word, word | u32::from(bits))
                    .map_err(|_| status::GENERAL_ERROR)?;
                if found == word {
                    return Ok(());
                }
                word = found;
            }
            return Err(status::GENERAL_ERROR);
        };
        if refused(word, true) {
            return Err(status::GENERAL_ERROR);
        }
        let (at, shift) = status_word(status);
        memory
            .fetch_or_u32(at, u32::from(bits) << shift)
            .map_err(|_| status::GENERAL_ERROR)?;
        word = self.word(memory)?;
        if !refused(word, true) {
            return Ok(());
        }
        // Who reads an entry that is in use keeps the mark.
        let unused = check.is_some();
        self.clear(memory, write || unused, unused);
        Err(status::GENERAL_ERROR)
    }

    /// Clears flags of use. What the entry holds else stays.
    pub fn clear<M: GuestMemory>(self, memory: &M, writing: bool, reading: bool) {
        let bits = if writing { WRITING } else { 0 } | if reading { READING } else { 0 };
        if bits == 0 {
            return;
        }
        let (at, shift) = match self {
            Entry::V1(entry) => (entry, 0),
            Entry::V2 { status, .. } => status_word(status),
        };
        // Frames of the table are always backed.
        let _ = memory.fetch_and_u32(at, !(u32::from(bits) << shift));
    }

    /// What it grants, which is asked after it was marked: a guest that changes it now has only itself
    /// to blame.
    pub fn extent<M: GuestMemory>(self, memory: &M, how: Use) -> Result<Extent, i16> {
        let field = |offset: u64, into: &mut [u8]| {
            memory
                .read(self.address() + offset, into)
                .map_err(|_| status::GENERAL_ERROR)
        };
        let mut frame = [0; 8];
        Ok(match self {
            Entry::V1(entry) => {
                let gfn = memory.read_u32(entry + 4);
                Extent::page(gfn.map_err(|_| status::GENERAL_ERROR)?.into())
            }
            Entry::V2 { .. } => {
                let part = how == Use::Copy && header(self.word(memory)?).0 & SUB_PAGE != 0;
                field(8, &mut frame)?;
                let gfn = frame.u64_at(0);
                if !part {
                    return Ok(Extent::page(gfn));
                }
                let mut place = [0; 4];
                field(4, &mut place)?;
                Extent {
                    gfn,
                    start: place.u16_at(0) & OFFSET_MASK,
                    length: place.u16_at(2),
                    part,
                }
            }
        })
    }

    /// Exchanges what two entries of one table say, and that they are in use.
    pub fn swap<M: GuestMemory>(self, other: Entry, memory: &M) -> Result<(), i16> {
        let swap = |one: u64, other: u64, bytes: usize| {
            let (mut a, mut b) = ([0; 16], [0; 16]);
            let (a, b) = (a.get_mut(..bytes)?, b.get_mut(..bytes)?);
            memory.read(one, a).ok()?;
            memory.read(other, b).ok()?;
            memory.write(one, b).ok()?;
            memory.write(other, a).ok()
        };
        let done = match (self, other) {
            (Entry::V1(one), Entry::V1(other)) => swap(one, other, 8),
            (
                Entry::V2 { entry, status },
                Entry::V2 {
                    entry: other_entry,
                    status: other_status,
                },
            ) => swap(entry, other_entry, 16).and_then(|()| swap(status, other_status, 2)),
            // A table has one version.
            _ => None,
        };
        done.ok_or(status::GENERAL_ERROR)
    }
}

/// The aligned word of 32 bits that a status word is in, and its place there.
fn status_word(status: u64) -> (u64, u32) {
    (status & !3, (status as u32 & 2) * 8)
}
