//! `grant_table_op` (`public/grant_table.h`): set-up of the table, copies, and refusals for domains that
//! are not there. What others use of this table is in `granted.rs`, what this domain uses of theirs in
//! `foreign.rs`, the table's frames, entries and versions in `grant/`.

pub(crate) mod entry;
pub(crate) mod frames;
mod version;

use crate::PAGE_SIZE;
use crate::access::{Caller, Fields, Reply};
use crate::domain::{DOMID_SELF, Domain, SYSTEM};
use crate::env::Env;
use crate::errno::Errno;
use crate::foreign::Place;
use crate::grant::entry::{Extent, Use};
use crate::grant::frames::V1_PER_FRAME;
use crate::granted::Wanted;
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
/// `GNTCOPY_source_gref`, `GNTCOPY_dest_gref`.
const COPY_SOURCE_GREF: u16 = 1;
const COPY_DEST_GREF: u16 = 2;
/// References that a toolstack fills in when it makes a domain, console and xenstore
/// (`GNTTAB_RESERVED_CONSOLE`, `GNTTAB_RESERVED_XENSTORE`). Domain 0 has what they granted then
/// mapped for as long as the domain is there, whatever their entries say meanwhile.
pub(crate) const MAPPED_BY_SYSTEM: u32 = 2;
/// Operations done before the guest is re-entered.
const BATCH: u32 = 32;

/// One side of a copy.
struct Side {
    name: u64,
    domid: u16,
    offset: u16,
    by_reference: bool,
    writes: bool,
}

/// What a copy may touch at one side.
struct Claim {
    place: Place,
    extent: Extent,
    /// An entry of the own table is in use for it.
    granted: bool,
}

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
                    let bytes: [u8; 20] = caller.fetch(at)?;
                    self.map_grant(caller, at, &bytes)?
                }
                op::UNMAP_GRANT_REF => {
                    let bytes: [u8; 22] = caller.fetch(at)?;
                    self.unmap_foreign(caller.env, bytes.u64_at(0), bytes.u32_at(16))
                }
                op::SWAP_GRANT_REF => {
                    let bytes: [u8; 8] = caller.fetch(at)?;
                    self.swap_grants(caller.memory, bytes.u32_at(0), bytes.u32_at(4))
                }
                _ => self.copy_one(caller, at)?,
            };
            caller.write(at.wrapping_add(place), &result.to_le_bytes())?;
        }
        Ok(0)
    }

    fn map_grant<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        at: u64,
        bytes: &[u8; 20],
    ) -> Result<i16, Errno> {
        let (flags, reference) = (bytes.u32_at(8), bytes.u32_at(12));
        let domid = bytes.u16_at(16);
        let refused = self.refuse_map(flags, reference, domid);
        if refused != status::BAD_DOMAIN || !caller.env.reaches(domid) {
            return Ok(refused);
        }
        let mapped = self.map_foreign(caller.env, domid, reference, flags, bytes.u64_at(0));
        match mapped {
            Ok(handle) => {
                // A bus address means nothing to a domain that has none.
                let mut answer = [0; 12];
                answer.put(0, &handle.to_le_bytes());
                caller.write(at.wrapping_add(20), &answer)?;
                Ok(status::OKAY)
            }
            Err(status) => Ok(status),
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

    fn copy_one<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        at: u64,
    ) -> Result<i16, Errno> {
        let (source, target, length) = if caller.is_compat() {
            let bytes: [u8; 20] = caller.fetch(at)?;
            let flags = bytes.u16_at(18);
            let side = |offset: usize, gref, writes| Side {
                name: u64::from(bytes.u32_at(offset)),
                domid: bytes.u16_at(offset + 4),
                offset: bytes.u16_at(offset + 6),
                by_reference: flags & gref != 0,
                writes,
            };
            let sides = (
                side(0, COPY_SOURCE_GREF, false),
                side(8, COPY_DEST_GREF, true),
            );
            (sides.0, sides.1, bytes.u16_at(16))
        } else {
            let bytes: [u8; 36] = caller.fetch(at)?;
            let flags = bytes.u16_at(34);
            let side = |offset: usize, gref, writes| Side {
                name: bytes.u64_at(offset),
                domid: bytes.u16_at(offset + 8),
                offset: bytes.u16_at(offset + 10),
                by_reference: flags & gref != 0,
                writes,
            };
            let sides = (
                side(0, COPY_SOURCE_GREF, false),
                side(16, COPY_DEST_GREF, true),
            );
            (sides.0, sides.1, bytes.u16_at(32))
        };
        Ok(self
            .copy_between(caller, &source, &target, length)
            .map_or_else(|status| status, |()| status::OKAY))
    }

    fn copy_between<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        source: &Side,
        target: &Side,
        length: u16,
    ) -> Result<(), i16> {
        // Both domains must be there before anything else is asked.
        for side in [source, target] {
            if self.require_self(side.domid) == Err(Errno::Srch) && !caller.env.reaches(side.domid)
            {
                return Err(status::BAD_DOMAIN);
            }
        }
        let from = self.claim(caller, source)?;
        let done = match self.claim(caller, target) {
            Ok(to) => {
                let done = copy_pages(caller, (source, &from), (target, &to), length);
                self.disclaim(caller, target, to);
                done
            }
            Err(status) => Err(status),
        };
        self.disclaim(caller, source, from);
        done
    }

    /// The page that a side names, and what of it the copy may touch. Ends with [`Domain::disclaim`].
    fn claim<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        side: &Side,
    ) -> Result<Claim, i16> {
        if side.by_reference && self.require_self(side.domid) == Err(Errno::Srch) {
            // The rest of the field is a frame's.
            let reference = side.name as u32;
            let token = caller.env.grant_open(side.domid, reference, side.writes)?;
            return Ok(Claim {
                place: Place::Foreign(token, 0),
                extent: Extent::page(0),
                granted: false,
            });
        }
        self.claim_own(caller, side)
    }

    /// The same of a page of the domain's own.
    fn claim_own<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        side: &Side,
    ) -> Result<Claim, i16> {
        // Only DOMID_SELF may name a page by its frame.
        if side.domid != DOMID_SELF && !side.by_reference {
            return Err(status::PERMISSION_DENIED);
        }
        // The rest of the field is a frame's.
        let reference = side.name as u32;
        if side.by_reference && side.domid == SYSTEM {
            // Domain 0 has granted nothing.
            return Err(match reference {
                0..V1_PER_FRAME => status::GENERAL_ERROR,
                _ => status::BAD_GNTREF,
            });
        }
        let extent = if side.by_reference {
            let wanted = Wanted {
                domain: self.config.domid,
                reference,
                write: side.writes,
                how: Use::Copy,
            };
            let Caller { memory, env, .. } = caller;
            self.begin_use(wanted, *memory, |domain, gfn| {
                domain.page_at(*env, gfn).is_some()
            })?
        } else {
            Extent::page(side.name)
        };
        let page = self.page_at(caller.env, extent.gfn);
        Ok(Claim {
            place: Place::Own(page.ok_or(status::BAD_PAGE)?),
            extent,
            granted: side.by_reference,
        })
    }

    /// The copy is over.
    fn disclaim<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        side: &Side,
        claim: Claim,
    ) {
        if claim.granted {
            self.unpin_grant(side.name as u32, side.writes, caller.memory);
        }
        claim.place.close(caller.env);
    }
}

/// Copies from one side's page to the other's.
fn copy_pages<M: GuestMemory, E: Env>(
    caller: &mut Caller<M, E>,
    (source, from): (&Side, &Claim),
    (target, to): (&Side, &Claim),
    length: u16,
) -> Result<(), i16> {
    let fits = |side: &Side| u64::from(side.offset) + u64::from(length) <= PAGE_SIZE;
    if !fits(source) || !fits(target) {
        return Err(status::BAD_COPY_ARG);
    }
    let granted = |side: &Side, claim: &Claim| claim.extent.holds(side.offset, length);
    if !granted(source, from) || !granted(target, to) {
        return Err(status::GENERAL_ERROR);
    }
    let mut chunk = [0; 256];
    let mut done = 0;
    while done < u64::from(length) {
        let take = (u64::from(length) - done).min(chunk.len() as u64);
        let piece = chunk
            .get_mut(..take as usize)
            .ok_or(status::GENERAL_ERROR)?;
        from.place
            .offset(u64::from(source.offset) + done)
            .read(caller, piece)?;
        to.place
            .offset(u64::from(target.offset) + done)
            .write(caller, piece)?;
        done += take;
    }
    Ok(())
}
