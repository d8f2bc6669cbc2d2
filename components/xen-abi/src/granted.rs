//! The granter's side of grants that others use: which entries are pinned, by whom, and the flags that
//! say so to the guest (`GTF_reading`, `GTF_writing` of `public/grant_table.h`), changed as Xen's
//! `_set_status_v1` changes them.
//!
//! For: the VMM, when a backend or another domain's VMM maps a grant. Whoever maps is counted there;
//! here is only how often an entry is in use. An entry is the guest's, which may change it at any
//! moment: it is decided by one load and one compare-and-exchange, and what was found then stands until
//! the last user is gone.

use alloc::collections::BTreeMap;

use crate::domain::Domain;
use crate::grant::{MAPPED_BY_SYSTEM, PERMIT_ACCESS, READONLY, TYPE_MASK, status};
use crate::memory::GuestMemory;

/// `GTF_reading`, `GTF_writing`, `GTF_sub_page`.
const READING: u32 = 1 << 3;
const WRITING: u32 = 1 << 4;
const SUB_PAGE: u16 = 1 << 8;
/// Xen counts users in bytes, and refuses when the top bit of one is set.
const USERS_MAX: u8 = 128;
/// Exchanges that a guest may spoil, by writing the entry at that moment.
const ATTEMPTS: usize = 5;

/// An entry in use.
#[derive(Clone, Copy, Debug)]
struct Pin {
    /// By which domain.
    domain: u16,
    gfn: u64,
    readers: u8,
    writers: u8,
}

/// The entries in use, by reference.
#[derive(Debug, Default)]
pub(crate) struct Pins(BTreeMap<u32, Pin>);

impl Pins {
    /// The domain that uses an entry.
    pub fn domain_of(&self, reference: u32) -> Option<u16> {
        self.0.get(&reference).map(|pin| pin.domain)
    }
}

impl Domain {
    /// Domain `domain` begins to use a grant, to write if `write`: the guest frame that was granted, of
    /// which `is_ram` says whether RAM is there. A `GNTST_*` otherwise, with no more changed than Xen
    /// changes. Each success is to be followed by one [`Domain::unpin_grant`].
    pub fn pin_grant<M: GuestMemory>(
        &mut self,
        domain: u16,
        reference: u32,
        write: bool,
        memory: &M,
        is_ram: impl FnOnce(u64) -> bool,
    ) -> Result<u64, i16> {
        let entry = self.grants.entry(reference).ok_or(status::BAD_GNTREF)?;
        // The toolstack's own; see `MAPPED_BY_SYSTEM`.
        if reference < MAPPED_BY_SYSTEM {
            return Err(status::GENERAL_ERROR);
        }
        let before = self.grants.pins.0.get(&reference).copied();
        if before.is_some_and(|pin| {
            pin.domain != domain || pin.readers >= USERS_MAX || pin.writers >= USERS_MAX
        }) {
            return Err(status::GENERAL_ERROR);
        }
        if before.is_none_or(|pin| write && pin.writers == 0) {
            mark(memory, entry, (before.is_none()).then_some(domain), write)?;
        }
        let mut pin = match before {
            Some(pin) => pin,
            None => {
                // After the flags, as in Xen: a guest that changes it now has only itself to blame.
                let gfn = memory.read_u32(entry + 4).map(u64::from);
                match gfn {
                    Ok(gfn) if is_ram(gfn) => Pin {
                        domain,
                        gfn,
                        readers: 0,
                        writers: 0,
                    },
                    _ => {
                        clear(memory, entry, write, true);
                        return Err(status::BAD_PAGE);
                    }
                }
            }
        };
        let users = if write {
            &mut pin.writers
        } else {
            &mut pin.readers
        };
        *users += 1;
        let gfn = pin.gfn;
        self.grants.pins.0.insert(reference, pin);
        Ok(gfn)
    }

    /// The end of one use. Uses that never began do nothing.
    pub fn unpin_grant<M: GuestMemory>(&mut self, reference: u32, write: bool, memory: &M) {
        let Some(entry) = self.grants.entry(reference) else {
            return;
        };
        let Some(pin) = self.grants.pins.0.get_mut(&reference) else {
            return;
        };
        let users = if write {
            &mut pin.writers
        } else {
            &mut pin.readers
        };
        let Some(left) = users.checked_sub(1) else {
            return;
        };
        *users = left;
        let unused = pin.readers == 0 && pin.writers == 0;
        let unwritten = write && pin.writers == 0;
        if unused {
            self.grants.pins.0.remove(&reference);
        }
        clear(memory, entry, unwritten, unused);
    }

    /// How many entries are in use.
    #[must_use]
    pub fn pinned_grants(&self) -> usize {
        self.grants.pins.0.len()
    }
}

/// Sets the flags of use. `check`: the domain that the entry has to grant to; an entry that is in use
/// already is not asked again.
fn mark<M: GuestMemory>(
    memory: &M,
    entry: u64,
    check: Option<u16>,
    write: bool,
) -> Result<(), i16> {
    let mut word = memory.read_u32(entry).map_err(|_| status::GENERAL_ERROR)?;
    for _ in 0..ATTEMPTS {
        let (flags, domain) = (word as u16, (word >> 16) as u16);
        if check
            .is_some_and(|check| flags & (TYPE_MASK | SUB_PAGE) != PERMIT_ACCESS || domain != check)
            || (write && flags & READONLY != 0)
        {
            return Err(status::GENERAL_ERROR);
        }
        let marked = word | READING | if write { WRITING } else { 0 };
        let found = memory
            .compare_exchange_u32(entry, word, marked)
            .map_err(|_| status::GENERAL_ERROR)?;
        if found == word {
            return Ok(());
        }
        word = found;
    }
    Err(status::GENERAL_ERROR)
}

/// Clears flags of use. What the entry holds else stays.
fn clear<M: GuestMemory>(memory: &M, entry: u64, writing: bool, reading: bool) {
    let bits = if writing { WRITING } else { 0 } | if reading { READING } else { 0 };
    if bits != 0 {
        // Frames of the table are always backed.
        let _ = memory.fetch_and_u32(entry, !bits);
    }
}
