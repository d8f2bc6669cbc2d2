//! The granter's side of grants that are used: which entries are pinned, by whom, and what was granted
//! then, in either version of the table, as Xen's active entries (`map_grant_ref` and
//! `acquire_grant_for_copy`).
//!
//! For: the VMM, when a backend or another domain's VMM maps a grant, and copies of the domain's own.
//! Whoever maps is counted there; here is only how often an entry is in use. An entry is the guest's,
//! which may change it at any moment: what it said when it was marked (`grant/entry.rs`) stands until
//! the last user is gone.

use alloc::collections::BTreeMap;

use crate::PAGE_SIZE;
use crate::domain::Domain;
use crate::grant::entry::{Entry, Extent, Use};
use crate::grant::{MAPPED_BY_SYSTEM, status};
use crate::memory::GuestMemory;

/// Xen counts users in bytes, and refuses when the top bit of one is set.
const USERS_MAX: u8 = 128;

/// An entry in use.
#[derive(Clone, Copy, Debug)]
struct Pin {
    /// By which domain.
    domain: u16,
    extent: Extent,
    readers: u8,
    writers: u8,
}

/// The entries in use, by reference.
#[derive(Debug, Default)]
pub(crate) struct Pins(BTreeMap<u32, Pin>);

impl Pins {
    /// Whether an entry is in use.
    pub fn has(&self, reference: u32) -> bool {
        self.0.contains_key(&reference)
    }

    /// Whether any is, from this one on.
    pub fn any_from(&self, reference: u32) -> bool {
        self.0.range(reference..).next().is_some()
    }
}

/// A use of a grant that somebody asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Who asks.
    pub domain: u16,
    pub reference: u32,
    pub write: bool,
    pub how: Use,
}

impl Domain {
    /// Domain `domain` begins to use a grant, mapped, to write if `write`: the guest frame that was
    /// granted, of which `is_ram` says whether RAM is there. A `GNTST_*` otherwise, with no more changed
    /// than Xen changes. Each success is to be followed by one [`Domain::unpin_grant`].
    pub fn pin_grant<M: GuestMemory>(
        &mut self,
        domain: u16,
        reference: u32,
        write: bool,
        memory: &M,
        is_ram: impl FnOnce(u64) -> bool,
    ) -> Result<u64, i16> {
        let wanted = Wanted {
            domain,
            reference,
            write,
            how: Use::Map,
        };
        self.begin_use(wanted, memory, |_, gfn| is_ram(gfn))
            .map(|extent| extent.gfn)
    }

    /// Domain `domain` copies `length` bytes from `offset` on out of a grant, or into it if `write`: the guest
    /// frame, as [`Domain::pin_grant`] tells it, of a grant that may be for a part of its page. Of nothing it
    /// is not asked where it is. To be followed by [`Domain::unpin_grant`].
    pub fn pin_for_copy<M: GuestMemory>(
        &mut self,
        domain: u16,
        reference: u32,
        write: bool,
        (offset, length): (u16, u16),
        memory: &M,
        is_ram: impl FnOnce(u64) -> bool,
    ) -> Result<u64, i16> {
        let wanted = Wanted {
            domain,
            reference,
            write,
            how: Use::Copy,
        };
        let extent = self.begin_use(wanted, memory, |_, gfn| is_ram(gfn))?;
        let refused = if length == 0 || extent.holds(offset, length) {
            return Ok(extent.gfn);
        } else if u64::from(offset) + u64::from(length) > PAGE_SIZE {
            status::BAD_COPY_ARG
        } else {
            status::GENERAL_ERROR
        };
        self.unpin_grant(reference, write, memory);
        Err(refused)
    }

    /// The same for any use: what of which page. `is_there` tells pages from holes.
    pub(crate) fn begin_use<M: GuestMemory>(
        &mut self,
        wanted: Wanted,
        memory: &M,
        is_there: impl FnOnce(&Domain, u64) -> bool,
    ) -> Result<Extent, i16> {
        let Wanted {
            domain,
            reference,
            write,
            how,
        } = wanted;
        let entry = self.grants.entry(reference).ok_or(status::BAD_GNTREF)?;
        // The toolstack's own; see `MAPPED_BY_SYSTEM`.
        if reference < MAPPED_BY_SYSTEM {
            return Err(status::GENERAL_ERROR);
        }
        let before = self.grants.pins.0.get(&reference).copied();
        if before.is_some_and(|pin| {
            let users = if write { pin.writers } else { pin.readers };
            pin.domain != domain || users >= USERS_MAX || (how == Use::Map && pin.extent.part)
        }) {
            return Err(status::GENERAL_ERROR);
        }
        let unmarked = before.is_none_or(|pin| write && pin.writers == 0);
        let refuse = |status| {
            reduce(entry, memory, before, write);
            Err(status)
        };
        let transitive = how == Use::Copy && entry.is_transitive(memory)?;
        if unmarked {
            let check = before.is_none().then_some(domain);
            entry.mark(memory, check, write, how)?;
        }
        // Not followed, as by a Xen that was started with `gnttab=no-transitive`: the domain that it
        // leads to would have to serve who asks for it, whom it may not know.
        if transitive {
            return refuse(status::GENERAL_ERROR);
        }
        let mut pin = match before {
            Some(pin) if !unmarked || how == Use::Map => pin,
            _ => match entry.extent(memory, how) {
                Ok(extent) if !is_there(self, extent.gfn) => return refuse(status::BAD_PAGE),
                Ok(extent) => match before {
                    Some(pin) if !pin.extent.still(&extent) => {
                        return refuse(status::GENERAL_ERROR);
                    }
                    Some(pin) => pin,
                    None => Pin {
                        domain,
                        extent,
                        readers: 0,
                        writers: 0,
                    },
                },
                Err(status) => return refuse(status),
            },
        };
        let users = if write {
            &mut pin.writers
        } else {
            &mut pin.readers
        };
        *users += 1;
        self.grants.pins.0.insert(reference, pin);
        Ok(pin.extent)
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
        let left = (pin.readers > 0 || pin.writers > 0).then_some(*pin);
        if left.is_none() {
            self.grants.pins.0.remove(&reference);
        }
        reduce(entry, memory, left, write);
    }

    /// How many entries are in use.
    #[must_use]
    pub fn pinned_grants(&self) -> usize {
        self.grants.pins.0.len()
    }
}

impl Extent {
    /// Whether a use that asks for more than those before finds what they found. Of a whole page that is
    /// granted in part by now, the whole stays granted.
    fn still(&self, now: &Extent) -> bool {
        self.gfn == now.gfn && (!self.part || self == now)
    }
}

/// Clears the flags of uses that are over or never came about, of which `left` are left.
fn reduce<M: GuestMemory>(entry: Entry, memory: &M, left: Option<Pin>, write: bool) {
    let unwritten = write && left.is_none_or(|pin| pin.writers == 0);
    entry.clear(memory, unwritten, left.is_none());
}
