//! `grant_table_op` (`public/grant_table.h`): set-up of the table, copies, and refusals for domains that
//! are not there. What others use of this table is in `granted.rs`, what this domain uses of theirs in
//! `foreign.rs`, copies and the table's frames, entries and versions in `grant/`.

mod copy;
pub(crate) mod entry;
pub(crate) mod frames;
mod version;

use core::task::Poll;

use crate::access::{Caller, Fields, Reply};
use crate::domain::{Domain, SYSTEM};
use crate::env::Env;
use crate::errno::Errno;
use crate::foreign::Map;
use crate::grant::frames::V1_PER_FRAME;
use crate::memory::GuestMemory;

/// `GNTTABOP_*`.
pub(crate) mod op {
    pub const MAP_GRANT_REF: u32 = 0;
    pub const UNMAP_GRANT_REF: u32 = 1;
    pub const SETUP_TABLE: u32 = 2;
    pub const COPY: u32 = 5;
    pub const QUERY_SIZE: u32 = 6;
    pub const SET_VERSION: u32 = 8;
    pub const GET_VERSION: u32 = 10;
    pub const SWAP_GRANT_REF: u32 = 11;
}

/// `GNTST_*`.
pub(crate) mod status {
    pub const OKAY: i16 = 0;
    pub const GENERAL_ERROR: i16 = -1;
    pub const BAD_DOMAIN: i16 = -2;
    pub const BAD_GNTREF: i16 = -3;
    pub const BAD_HANDLE: i16 = -4;
    pub const BAD_VIRT_ADDR: i16 = -5;
    pub const NO_DEVICE_SPACE: i16 = -7;
    pub const PERMISSION_DENIED: i16 = -8;
    pub const BAD_PAGE: i16 = -9;
    pub const BAD_COPY_ARG: i16 = -10;
    pub const EAGAIN: i16 = -12;
}

/// Most frames of a table, Xen's default limit.
pub const MAX_GRANT_FRAMES: u32 = 64;

/// `GNTMAP_device_map | GNTMAP_host_map`.
const MAP_ANY: u32 = 3;
/// `GNTMAP_device_map | GNTMAP_application_map | GNTMAP_contains_pte`: not for a domain whose
/// physical map is translated.
const MAP_PV: u32 = 1 | 8 | 16;
/// References that a toolstack fills in when it makes a domain, console and xenstore
/// (`GNTTAB_RESERVED_CONSOLE`, `GNTTAB_RESERVED_XENSTORE`). Domain 0 has what they granted then
/// mapped for as long as the domain is there, whatever their entries say meanwhile.
pub(crate) const MAPPED_BY_SYSTEM: u32 = 2;
/// Operations done before the guest is re-entered.
const BATCH: u32 = 32;

impl Domain {
    #[inline(never)]
    pub(crate) fn grant_table_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        arguments: [u64; 6],
    ) -> Reply {
        let [command, list, count, ..] = arguments;
        let (command, count) = (command as u32, count as u32);
        // An HVM domain's filter sees the command with the opaque position above bit 11, so a
        // command that carries one is none of these.
        match command {
            op::MAP_GRANT_REF
            | op::UNMAP_GRANT_REF
            | op::SETUP_TABLE
            | op::COPY
            | op::QUERY_SIZE
            | op::SET_VERSION
            | op::GET_VERSION
            | op::SWAP_GRANT_REF => {}
            _ => return Err(Errno::NoSys),
        }
        if count > i32::MAX as u32 {
            return Err(Errno::Inval);
        }
        match command {
            op::SETUP_TABLE => self.setup_table(caller, list, count),
            op::QUERY_SIZE => self.query_size(caller, list, count),
            op::SET_VERSION => self.set_version(caller, list),
            op::GET_VERSION => self.get_version(caller, list),
            _ => self.batch(caller, command, arguments),
        }
    }

    fn setup_table<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        at: u64,
        count: u32,
    ) -> Reply {
        if count != 1 {
            return Err(Errno::Inval);
        }
        let bytes: [u8; 12] = caller.fetch(at)?;
        let list =
            caller.fetch_word(at.wrapping_add(if caller.is_compat() { 12 } else { 16 }), 0)?;
        let frames = bytes.u32_at(4);
        let own = self.own_status(bytes.u16_at(0));
        let result = if own != status::OKAY {
            own
        } else if !self.grants.grow(frames) {
            status::GENERAL_ERROR
        } else {
            let mut result = status::OKAY;
            for index in 0..frames {
                // INVALID_GFN for a frame that the guest has not mapped.
                let gfn = self.grants.gfn(index);
                if caller
                    .store_word(list, u64::from(index), gfn.unwrap_or(u64::MAX))
                    .is_err()
                {
                    result = status::BAD_VIRT_ADDR;
                }
            }
            result
        };
        caller.write(at.wrapping_add(8), &result.to_le_bytes())?;
        Ok(0)
    }

    fn query_size<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        at: u64,
        count: u32,
    ) -> Reply {
        if count != 1 {
            return Err(Errno::Inval);
        }
        let mut bytes: [u8; 16] = caller.fetch(at)?;
        let own = self.own_status(bytes.u16_at(0));
        if own == status::OKAY {
            bytes.put(4, &self.grants.frames().to_le_bytes());
            bytes.put(8, &self.grants.most().to_le_bytes());
        }
        bytes.put(12, &own.to_le_bytes());
        caller.write(at, &bytes)?;
        Ok(0)
    }

    /// Operations on lists: each entry gets its own status.
    fn batch<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        command: u32,
        arguments: [u64; 6],
    ) -> Reply {
        let [_, list, count, ..] = arguments;
        let count = count as u32;
        // Bytes of an entry and place of its status.
        let (size, place) = match (command, caller.is_compat()) {
            (op::MAP_GRANT_REF, _) => (32, 18),
            (op::UNMAP_GRANT_REF, _) => (24, 20),
            (op::SWAP_GRANT_REF, _) => (12, 8),
            (_, true) => (24, 20),
            (_, false) => (40, 36),
        };
        for index in 0..count {
            let at = list.wrapping_add(u64::from(index) * size);
            if index == BATCH {
                let mut arguments = arguments;
                arguments[1] = at;
                arguments[2] = u64::from(count - index);
                self.restart(caller, arguments);
                break;
            }
            let result = match command {
                op::MAP_GRANT_REF => {
                    let map = Map::read(&caller.fetch(at)?);
                    self.map_grant(caller, at, &map)?
                }
                op::UNMAP_GRANT_REF => {
                    let bytes: [u8; 22] = caller.fetch(at)?;
                    let (address, handle) = (bytes.u64_at(0), bytes.u32_at(16));
                    Poll::Ready(self.unmap_foreign(caller.env, address, handle))
                }
                op::SWAP_GRANT_REF => {
                    let bytes: [u8; 8] = caller.fetch(at)?;
                    let (one, other) = (bytes.u32_at(0), bytes.u32_at(4));
                    Poll::Ready(self.swap_grants(caller.memory, one, other))
                }
                _ => self.copy_one(caller, at)?,
            };
            let Poll::Ready(result) = result else {
                if command == op::MAP_GRANT_REF {
                    let later = (index + 1..count.min(BATCH)).zip(1..);
                    self.announce(caller, later.map(|(_, n)| at.wrapping_add(n * size)));
                }
                let mut arguments = arguments;
                arguments[1] = at;
                arguments[2] = u64::from(count - index);
                self.restart(caller, arguments);
                break;
            };
            caller.write(at.wrapping_add(place), &result.to_le_bytes())?;
        }
        Ok(0)
    }

    fn map_grant<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        at: u64,
        map: &Map,
    ) -> Result<Poll<i16>, Errno> {
        let refused = self.refuse_map(map.flags, map.reference, map.domid);
        if refused != status::BAD_DOMAIN {
            return Ok(Poll::Ready(refused));
        }
        let mapped = match caller.env.reaches(map.domid) {
            Poll::Ready(true) => self.map_foreign(caller.env, map),
            Poll::Ready(false) => Poll::Ready(Err(refused)),
            Poll::Pending => Poll::Pending,
        };
        Ok(match mapped {
            Poll::Ready(Ok(handle)) => {
                // A bus address means nothing to a domain that has none.
                let mut answer = [0; 12];
                answer.put(0, &handle.to_le_bytes());
                caller.write(at.wrapping_add(20), &answer)?;
                Poll::Ready(status::OKAY)
            }
            Poll::Ready(Err(status)) => Poll::Ready(status),
            Poll::Pending => Poll::Pending,
        })
    }

    /// Entries of a list of maps will be asked for. One that cannot be read says so when it is its turn.
    fn announce<M: GuestMemory, E: Env>(
        &self,
        caller: &mut Caller<M, E>,
        entries: impl Iterator<Item = u64>,
    ) {
        for at in entries {
            let Ok(map) = caller.fetch(at).map(|bytes| Map::read(&bytes)) else {
                return;
            };
            if self.refuse_map(map.flags, map.reference, map.domid) == status::BAD_DOMAIN
                && self.place_of(&map).is_some()
                && caller.env.reaches(map.domid) == Poll::Ready(true)
            {
                let write = map.writes();
                caller.env.grant_soon(map.domid, map.reference, write);
            }
        }
    }

    /// Why none but another domain's grants are mapped: that answer is `BAD_DOMAIN`.
    fn refuse_map(&self, flags: u32, reference: u32, domid: u16) -> i16 {
        if flags & MAP_ANY == 0 {
            return status::BAD_GNTREF;
        } else if flags & MAP_PV != 0 {
            return status::GENERAL_ERROR;
        }
        // DOMID_SELF is not taken here.
        let exists = match domid {
            SYSTEM => reference < V1_PER_FRAME,
            own if own == self.config.domid => self.grants.entry(reference).is_some(),
            _ => return status::BAD_DOMAIN,
        };
        if !exists {
            status::BAD_GNTREF
        } else {
            // Domain 0 has granted nothing. A second mapping of the domain's own page is nothing
            // that a guest needs.
            status::GENERAL_ERROR
        }
    }

    /// The status for a domain that an operation may only name for itself.
    fn own_status(&self, domid: u16) -> i16 {
        match self.require_self(domid) {
            Ok(()) => status::OKAY,
            Err(Errno::Perm) => status::PERMISSION_DENIED,
            Err(_) => status::BAD_DOMAIN,
        }
    }

    fn swap_grants<M: GuestMemory>(&self, memory: &M, one: u32, other: u32) -> i16 {
        let (Some(first), Some(second)) = (self.grants.entry(one), self.grants.entry(other)) else {
            return status::BAD_GNTREF;
        };
        if one == other {
            return status::OKAY;
        }
        let pinned = |reference| self.grants.pins.has(reference);
        if one.min(other) < MAPPED_BY_SYSTEM || pinned(one) || pinned(other) {
            return status::EAGAIN;
        }
        match first.swap(second, memory) {
            Ok(()) => status::OKAY,
            Err(status) => status,
        }
    }
}
