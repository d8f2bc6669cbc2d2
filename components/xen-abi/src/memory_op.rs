//! `memory_op` (`public/memory.h`): the guest's physical map and reservation.
//!
//! Lists of the guest are worked on in batches; what is left continues by
//! [`Next::Restart`](crate::Next::Restart) with the position in the command, as in Xen.

use alloc::vec::Vec;

use crate::access::{Caller, Fields, Reply};
use crate::config::MapEntry;
use crate::domain::{Domain, SYSTEM};
use crate::env::{Env, MapError};
use crate::errno::Errno;
use crate::memory::{GuestMemory, SpecialFrame};

/// `XENMEM_*`.
pub(crate) mod op {
    pub const INCREASE_RESERVATION: u64 = 0;
    pub const DECREASE_RESERVATION: u64 = 1;
    pub const MAXIMUM_RAM_PAGE: u64 = 2;
    pub const CURRENT_RESERVATION: u64 = 3;
    pub const MAXIMUM_RESERVATION: u64 = 4;
    pub const MACHPHYS_MFN_LIST: u64 = 5;
    pub const POPULATE_PHYSMAP: u64 = 6;
    pub const ADD_TO_PHYSMAP: u64 = 7;
    pub const MEMORY_MAP: u64 = 9;
    pub const EXCHANGE: u64 = 11;
    pub const SET_MEMORY_MAP: u64 = 13;
    pub const MAXIMUM_GPFN: u64 = 14;
    pub const REMOVE_FROM_PHYSMAP: u64 = 15;
    pub const SET_POD_TARGET: u64 = 16;
    pub const GET_POD_TARGET: u64 = 17;
    pub const GET_SHARING_FREED_PAGES: u64 = 18;
    pub const GET_SHARING_SHARED_PAGES: u64 = 19;
    pub const ACCESS_OP: u64 = 21;
    pub const ADD_TO_PHYSMAP_BATCH: u64 = 23;
    pub const CLAIM_PAGES: u64 = 24;
    pub const MACHPHYS_COMPAT_MFN_LIST: u64 = 25;
    pub const GET_VNUMAINFO: u64 = 26;
    pub const RESERVED_DEVICE_MEMORY_MAP: u64 = 27;
    pub const ACQUIRE_RESOURCE: u64 = 28;
}

/// `MEMOP_EXTENT_SHIFT`: the position of a continuation is above these bits of the command.
pub(crate) const EXTENT_SHIFT: u32 = 6;
const COMMAND_MASK: u64 = (1 << EXTENT_SHIFT) - 1;

/// Largest extent that a domU may name (`CONFIG_DOMU_MAX_ORDER`).
const MAX_ORDER: u32 = 9;
/// Pages touched before the guest is re-entered.
pub(crate) const BATCH_PAGES: u64 = 64;
/// `XENMEMF_populate_on_demand`, `XENMEMF_exact_node_request`, node field and vnode flag.
const FLAG_POPULATE_ON_DEMAND: u32 = 1 << 16;
const FLAG_EXACT_NODE: u32 = 1 << 17;
const FLAG_VNODE: u32 = 1 << 18;
/// Most entries of a memory map (`E820MAX`).
const MAX_MAP_ENTRIES: u32 = 1024;
/// Bytes of an E820 entry, in both widths.
const MAP_ENTRY_SIZE: u64 = 20;

/// `struct xen_memory_reservation`.
struct Reservation {
    list: u64,
    extents: u64,
    order: u32,
    flags: u32,
    domid: u16,
}

/// Whether a reservation's flags ask for one NUMA node and no other, of which there is only the
/// first.
fn names_bad_node(flags: u32) -> bool {
    let node = flags >> 8 & 0xff;
    flags & FLAG_VNODE == 0 && node != 0 && flags & FLAG_EXACT_NODE != 0
}

impl Domain {
    #[inline(never)]
    pub(crate) fn memory_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        arguments: [u64; 6],
    ) -> Reply {
        let [command, argument, ..] = arguments;
        let start = command >> EXTENT_SHIFT;
        let operation = command & COMMAND_MASK;
        // These take a position; Xen checks it before it reads anything.
        match operation {
            op::INCREASE_RESERVATION | op::DECREASE_RESERVATION | op::POPULATE_PHYSMAP => {
                return self.reservation_op(caller, operation, start, arguments);
            }
            op::ADD_TO_PHYSMAP | op::ADD_TO_PHYSMAP_BATCH if start > u64::from(u16::MAX) => {
                return Err(Errno::Dom);
            }
            op::ADD_TO_PHYSMAP => {
                return self.add_to_physmap(caller, start as u16, argument);
            }
            op::ADD_TO_PHYSMAP_BATCH => {
                return self.add_to_physmap_batch(caller, start as u16, arguments);
            }
            // Not for a domain whose physical map is translated, unless it is dom0.
            op::ACQUIRE_RESOURCE => return Err(Errno::Acces),
            op::ACCESS_OP => return self.access_op(caller, argument),
            op::EXCHANGE
            | op::MAXIMUM_RAM_PAGE
            | op::CURRENT_RESERVATION
            | op::MAXIMUM_RESERVATION
            | op::MAXIMUM_GPFN
            | op::REMOVE_FROM_PHYSMAP
            | op::CLAIM_PAGES
            | op::GET_VNUMAINFO
            | op::RESERVED_DEVICE_MEMORY_MAP
                if start != 0 =>
            {
                return Err(Errno::Inval);
            }
            // Xen compares the other commands with the position included, so none matches.
            _ if start != 0 => return Err(Errno::NoSys),
            _ => {}
        }
        match operation {
            op::MAXIMUM_RAM_PAGE => Ok(self.config.max_gfn as i64 + 1),
            op::CURRENT_RESERVATION | op::MAXIMUM_RESERVATION | op::MAXIMUM_GPFN => {
                let domid = caller.fetch::<2>(argument)?.u16_at(0);
                self.require_self(domid)?;
                Ok(match operation {
                    op::CURRENT_RESERVATION => self.config.pages,
                    op::MAXIMUM_RESERVATION => self.config.max_pages,
                    _ => self.config.max_gfn,
                } as i64)
            }
            op::MEMORY_MAP => self.memory_map(caller, argument),
            op::SET_MEMORY_MAP => self.set_memory_map(caller, argument),
            op::REMOVE_FROM_PHYSMAP => {
                let (domid, gfn) = if caller.is_compat() {
                    let bytes: [u8; 8] = caller.fetch(argument)?;
                    (bytes.u16_at(0), u64::from(bytes.u32_at(4)))
                } else {
                    let bytes: [u8; 16] = caller.fetch(argument)?;
                    (bytes.u16_at(0), bytes.u64_at(8))
                };
                self.require_translated(domid)?;
                self.remove_page(caller, gfn).map(|()| 0)
            }
            op::GET_VNUMAINFO => {
                let bytes: [u8; 4] = caller.fetch(argument)?;
                if bytes.u16_at(2) != 0 {
                    return Err(Errno::Inval);
                }
                self.require_self(bytes.u16_at(0))?;
                Err(Errno::OpNotSupp)
            }
            op::RESERVED_DEVICE_MEMORY_MAP => {
                let bytes: [u8; 8] = caller.fetch(argument)?;
                if bytes.u32_at(0) & !1 != 0 {
                    return Err(Errno::Inval);
                }
                // There is none.
                caller.write(argument.wrapping_add(4), &0u32.to_le_bytes())?;
                Ok(0)
            }
            op::EXCHANGE => self.exchange(caller, argument),
            op::SET_POD_TARGET | op::GET_POD_TARGET => {
                // Four fields of 8 bytes, then domid; a 32-bit caller's is padded to 4 only.
                let mut bytes = [0; 40];
                let size = if caller.is_compat() { 36 } else { 40 };
                caller.read(argument, bytes.get_mut(..size).ok_or(Errno::Fault)?)?;
                match bytes.u16_at(32) {
                    // Not an HVM domain.
                    SYSTEM => Err(Errno::Inval),
                    domid => self.require_self(domid).and(Err(Errno::Perm)),
                }
            }
            op::CLAIM_PAGES => self.claim_pages(caller, argument),
            op::MACHPHYS_MFN_LIST => {
                // There is no machine-to-physical table: a list of nothing.
                let handle = caller.word();
                let mut bytes = [0; 24];
                let size = if caller.is_compat() { 12 } else { 24 };
                caller.read(argument, bytes.get_mut(..size).ok_or(Errno::Fault)?)?;
                caller.write(argument.wrapping_add(2 * handle), &0u32.to_le_bytes())?;
                Ok(0)
            }
            // As in a Xen without 32-bit PV guests.
            op::MACHPHYS_COMPAT_MFN_LIST => Err(Errno::OpNotSupp),
            op::GET_SHARING_FREED_PAGES | op::GET_SHARING_SHARED_PAGES => Ok(0),
            _ => Err(Errno::NoSys),
        }
    }

    /// The special frame that is mapped at `gfn`.
    pub(crate) fn special_at(&self, gfn: u64) -> Option<SpecialFrame> {
        if self.shared_info_gfn == Some(gfn) {
            Some(SpecialFrame::SharedInfo)
        } else {
            self.grants.frame_at(gfn)
        }
    }

    fn read_reservation<M: GuestMemory, E: Env>(
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Result<Reservation, Errno> {
        if caller.is_compat() {
            let bytes: [u8; 20] = caller.fetch(argument)?;
            Ok(Reservation {
                list: u64::from(bytes.u32_at(0)),
                extents: u64::from(bytes.u32_at(4)),
                order: bytes.u32_at(8),
                flags: bytes.u32_at(12),
                domid: bytes.u16_at(16),
            })
        } else {
            let bytes: [u8; 32] = caller.fetch(argument)?;
            Ok(Reservation {
                list: bytes.u64_at(0),
                extents: bytes.u64_at(8),
                order: bytes.u32_at(16),
                flags: bytes.u32_at(20),
                domid: bytes.u16_at(24),
            })
        }
    }

    /// Increase, decrease, populate: the result is the number of extents done, never an error.
    fn reservation_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        operation: u64,
        start: u64,
        arguments: [u64; 6],
    ) -> Reply {
        let nothing = Ok(start as i64);
        let Ok(wanted) = Self::read_reservation(caller, arguments[1]) else {
            return nothing;
        };
        let bits = wanted.flags & 0xff;
        let refused = wanted.extents > u64::from(u32::MAX >> EXTENT_SHIFT)
            || start >= wanted.extents
            || self.require_self(wanted.domid).is_err()
            || (1..=12).contains(&bits)
            || names_bad_node(wanted.flags)
            || wanted.order > MAX_ORDER
            // Xen would give pages that are nowhere in the map; here a page has a place.
            || operation == op::INCREASE_RESERVATION
            || (operation == op::POPULATE_PHYSMAP && wanted.flags & FLAG_POPULATE_ON_DEMAND != 0);
        if refused {
            return nothing;
        }
        let pages = 1 << wanted.order;
        let mut touched = 0;
        let mut done = start;
        while done < wanted.extents {
            if touched >= BATCH_PAGES {
                let mut arguments = arguments;
                arguments[0] = operation | done << EXTENT_SHIFT;
                self.restart(caller, arguments);
                break;
            }
            let Ok(first) = caller.fetch_word(wanted.list, done) else {
                break;
            };
            let complete = match operation {
                op::POPULATE_PHYSMAP => self.populate(caller, first, pages),
                _ => (0..pages)
                    .all(|page| self.remove_page(caller, first.wrapping_add(page)).is_ok()),
            };
            if !complete {
                break;
            }
            touched += pages;
            done += 1;
        }
        Ok(done as i64)
    }

    /// Gives pages to a range, all or none.
    fn populate<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        first: u64,
        pages: u64,
    ) -> bool {
        if self.config.pages.saturating_add(pages) > self.config.max_pages
            || !self.is_mappable(first.saturating_add(pages - 1))
        {
            return false;
        }
        let mut given = [0u64; (1 << MAX_ORDER) / 64];
        for page in 0..pages {
            match caller.env.populate_page(first + page) {
                Ok(new) => {
                    if let Some(word) = given.get_mut(page as usize / 64) {
                        *word |= u64::from(new) << (page % 64);
                    }
                    self.config.pages += u64::from(new);
                }
                Err(MapError::OutOfRange | MapError::NoMemory) => {
                    for page in (0..page).filter(|&page| {
                        given
                            .get(page as usize / 64)
                            .is_some_and(|word| word >> (page % 64) & 1 != 0)
                    }) {
                        caller.env.remove_page(first + page);
                        self.config.pages -= 1;
                    }
                    return false;
                }
            }
        }
        true
    }

    fn memory_map<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        let room = caller.fetch_u32(argument)?;
        let buffer = caller.fetch_word(argument.wrapping_add(caller.word()), 0)?;
        if self.config.memory_map.is_empty() {
            return Err(Errno::NoSys);
        }
        let count = self.config.memory_map.len().min(room as usize);
        for (index, entry) in (0u64..).zip(self.config.memory_map.iter().take(count)) {
            let mut bytes = [0; MAP_ENTRY_SIZE as usize];
            bytes.put(0, &entry.address.to_le_bytes());
            bytes.put(8, &entry.size.to_le_bytes());
            bytes.put(16, &entry.kind.to_le_bytes());
            caller.write(buffer.wrapping_add(index * MAP_ENTRY_SIZE), &bytes)?;
        }
        caller.write(argument, &(count as u32).to_le_bytes())?;
        Ok(0)
    }

    /// A domain may replace its own map, as a boot loader does for the kernel after it.
    fn set_memory_map<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        let domid = caller.fetch::<2>(argument)?.u16_at(0);
        // The nested struct xen_memory_map is aligned as its handle is.
        let map = argument.wrapping_add(caller.word());
        let count = caller.fetch_u32(map)?;
        let buffer = caller.fetch_word(map.wrapping_add(caller.word()), 0)?;
        if count > MAX_MAP_ENTRIES {
            return Err(Errno::Inval);
        }
        self.require_self(domid)?;
        let mut entries = Vec::new();
        entries
            .try_reserve_exact(count as usize)
            .map_err(|_| Errno::NoMem)?;
        for index in 0..u64::from(count) {
            let bytes: [u8; MAP_ENTRY_SIZE as usize] =
                caller.fetch(buffer.wrapping_add(index * MAP_ENTRY_SIZE))?;
            entries.push(MapEntry {
                address: bytes.u64_at(0),
                size: bytes.u64_at(8),
                kind: bytes.u32_at(16),
            });
        }
        self.config.memory_map = entries;
        Ok(0)
    }

    fn exchange<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        let step = if caller.is_compat() { 20 } else { 32 };
        let given = Self::read_reservation(caller, argument)?;
        let wanted = Self::read_reservation(caller, argument.wrapping_add(step))?;
        let done = caller.fetch_word(argument.wrapping_add(2 * step), 0)?;
        if given.order.max(wanted.order) > MAX_ORDER {
            return Err(Errno::Perm);
        }
        let fits = |list: &Reservation| list.extents <= u64::MAX >> list.order;
        if done > given.extents
            || given.domid != wanted.domid
            || !fits(&given)
            || !fits(&wanted)
            || given.extents << given.order != wanted.extents << wanted.order
        {
            return Err(Errno::Inval);
        }
        if done == given.extents {
            return Ok(0);
        }
        if names_bad_node(wanted.flags) {
            return Err(Errno::Inval);
        }
        self.require_self(given.domid)?;
        // A page of a domain whose physical map is translated is not taken out of it, but it is
        // looked at: the first of those that make up one of the wanted.
        let chunk = wanted.order.saturating_sub(given.order);
        let first = caller.fetch_word(given.list, done >> chunk << chunk)?;
        self.page_at(caller.env, first).ok_or(Errno::Inval)?;
        Err(Errno::OpNotSupp)
    }

    fn claim_pages<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        let claim = Self::read_reservation(caller, argument)?;
        if claim.list != 0 || claim.order != 0 || claim.flags != 0 {
            Err(Errno::Inval)
        } else if matches!(claim.domid, domid if domid == SYSTEM || domid == self.config.domid) {
            Err(Errno::Perm)
        } else {
            Err(Errno::Inval)
        }
    }

    fn access_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        // op, access, domid, count, first page, two lists.
        let bytes: [u8; 32] = caller.fetch(argument)?;
        // DOMID_SELF is not taken here, and nobody does it to himself.
        match bytes.u16_at(2) {
            // Not a domain whose physical map is translated.
            SYSTEM => Err(Errno::Inval),
            own if own == self.config.domid => Err(Errno::Perm),
            _ => Err(Errno::Srch),
        }
    }

    /// As [`Domain::require_self`], where Xen asks first whether the domain's physical map is translated;
    /// domain 0's is not.
    pub(crate) fn require_translated(&self, domid: u16) -> Result<(), Errno> {
        match self.require_self(domid) {
            Err(Errno::Perm) => Err(Errno::Acces),
            other => other,
        }
    }
}
