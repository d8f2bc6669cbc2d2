//! What `memory_op` puts into a guest's physical map and takes out: shared info and grant table
//! (`XENMEM_add_to_physmap`, `XENMEM_add_to_physmap_batch`), and pages that go.

use core::cmp::Ordering;

use crate::PAGE_SIZE;
use crate::access::{Caller, Fields, Reply};
use crate::domain::{DOMID_SELF, Domain};
use crate::env::{Env, MapError};
use crate::errno::Errno;
use crate::memory::{GuestMemory, SpecialFrame};
use crate::memory_op::{BATCH_PAGES, EXTENT_SHIFT, op};

/// `XENMAPSPACE_*`.
const SPACE_SHARED_INFO: u32 = 0;
const SPACE_GRANT_TABLE: u32 = 1;
const SPACE_GMFN_RANGE: u32 = 3;
const SPACE_GMFN_FOREIGN: u32 = 4;
const SPACE_DEV_MMIO: u32 = 5;

impl Domain {
    /// Takes a page out of the map; special frames are only unhooked.
    pub(crate) fn remove_page<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        gfn: u64,
    ) -> Result<(), Errno> {
        let special = self.special_at(gfn);
        if !caller.env.remove_page(gfn) {
            return Err(Errno::NoEnt);
        }
        match special {
            Some(frame) => self.note_mapping(frame, None),
            None => self.config.pages = self.config.pages.saturating_sub(1),
        }
        Ok(())
    }

    /// The address of the memory that a guest frame has now: RAM, a ring of the toolstack's, or a
    /// special frame that is mapped there.
    pub(crate) fn page_at<E: Env>(&self, env: &mut E, gfn: u64) -> Option<u64> {
        // A frame is one thing only, and RAM is found the quickest.
        let ring = [self.config.store_gfn, self.config.console_gfn].contains(&gfn);
        if env.is_ram(gfn) {
            return gfn.checked_mul(PAGE_SIZE);
        }
        match self.special_at(gfn) {
            Some(frame) => Some(frame.address()),
            None if ring && gfn != 0 => gfn.checked_mul(PAGE_SIZE),
            None => None,
        }
    }

    pub(crate) fn is_mappable(&self, gfn: u64) -> bool {
        gfn < 1 << (u32::from(self.config.physical_address_bits.clamp(13, 52)) - 12)
    }

    fn note_mapping(&mut self, frame: SpecialFrame, gfn: Option<u64>) {
        match frame {
            SpecialFrame::SharedInfo => self.shared_info_gfn = gfn,
            SpecialFrame::GrantTable(frame) => self.grants.set_gfn(frame, gfn),
            SpecialFrame::GrantStatus(frame) => self.grants.set_status_gfn(frame, gfn),
        }
    }

    fn map_one<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        space: u32,
        index: u64,
        gfn: u64,
    ) -> Result<(), Errno> {
        let frame = match space {
            SPACE_SHARED_INFO if index == 0 => SpecialFrame::SharedInfo,
            SPACE_GRANT_TABLE => self.grants.grow_to_hold(index)?,
            // Moving RAM within the map (XENMAPSPACE_gmfn) is refused as for a gfn without RAM.
            _ => return Err(Errno::Inval),
        };
        // Xen's error for what its tables have no place for.
        if !self.is_mappable(gfn) {
            return Err(Errno::NoEnt);
        }
        let replaced = self.special_at(gfn);
        if replaced == Some(frame) {
            return Ok(());
        }
        let was_ram = replaced.is_none() && caller.env.is_ram(gfn);
        caller
            .env
            .map_special(frame, gfn)
            .map_err(|error| match error {
                MapError::OutOfRange => Errno::Inval,
                MapError::NoMemory => Errno::NoMem,
            })?;
        if let Some(old) = replaced {
            self.note_mapping(old, None);
        }
        if was_ram {
            self.config.pages = self.config.pages.saturating_sub(1);
        }
        self.note_mapping(frame, Some(gfn));
        Ok(())
    }

    pub(crate) fn add_to_physmap<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        start: u16,
        argument: u64,
    ) -> Reply {
        let (domid, size, space, index, gfn) = if caller.is_compat() {
            let bytes: [u8; 16] = caller.fetch(argument)?;
            let (index, gfn) = (bytes.u32_at(8), bytes.u32_at(12));
            (
                bytes.u16_at(0),
                bytes.u16_at(2),
                bytes.u32_at(4),
                u64::from(index),
                u64::from(gfn),
            )
        } else {
            let bytes: [u8; 24] = caller.fetch(argument)?;
            let (index, gfn) = (bytes.u64_at(8), bytes.u64_at(16));
            (
                bytes.u16_at(0),
                bytes.u16_at(2),
                bytes.u32_at(4),
                index,
                gfn,
            )
        };
        if space == SPACE_GMFN_FOREIGN {
            return Err(Errno::NoSys);
        }
        self.require_translated(domid)?;
        if space == SPACE_DEV_MMIO {
            return Err(Errno::Acces);
        }
        if gfn == u64::MAX {
            return Err(Errno::Inval);
        }
        let wraps = |first: u64| first.checked_add(size.into()).is_none();
        match size.cmp(&start) {
            Ordering::Less if space == SPACE_GMFN_RANGE => Err(Errno::IlSeq),
            _ if space == SPACE_GMFN_RANGE && (wraps(gfn) || wraps(index)) => Err(Errno::Overflow),
            Ordering::Equal if space == SPACE_GMFN_RANGE => Ok(0),
            _ => self.map_one(caller, space, index, gfn).map(|()| 0),
        }
    }

    pub(crate) fn add_to_physmap_batch<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        start: u16,
        arguments: [u64; 6],
    ) -> Reply {
        let argument = arguments[1];
        let header: [u8; 8] = caller.fetch(argument)?;
        let handles = argument.wrapping_add(8);
        let (indices, gfns, errors) = (
            caller.fetch_word(handles, 0)?,
            caller.fetch_word(handles, 1)?,
            caller.fetch_word(handles, 2)?,
        );
        let (domid, space, size) = (header.u16_at(0), header.u16_at(2), header.u16_at(4));
        let space = u32::from(space);
        if space == SPACE_GMFN_RANGE {
            return Err(Errno::OpNotSupp);
        }
        self.require_translated(domid)?;
        if space == SPACE_DEV_MMIO {
            return Err(Errno::Acces);
        }
        if size < start || (size == start && start != 0) {
            return Err(Errno::IlSeq);
        }
        for entry in start..size {
            if u64::from(entry - start) == BATCH_PAGES {
                let mut arguments = arguments;
                arguments[0] = op::ADD_TO_PHYSMAP_BATCH | u64::from(entry) << EXTENT_SHIFT;
                self.restart(caller, arguments);
                break;
            }
            let index = caller.fetch_word(indices, u64::from(entry))?;
            let gfn = caller.fetch_word(gfns, u64::from(entry))?;
            if gfn == u64::MAX {
                return Err(Errno::Inval);
            }
            let result = if space == SPACE_GMFN_FOREIGN {
                // The foreign domain is where res0 is for the other spaces.
                match header.u16_at(6) {
                    DOMID_SELF => Err(Errno::Inval),
                    own if own == self.config.domid => Err(Errno::Inval),
                    _ => Err(Errno::Srch),
                }
            } else {
                self.map_one(caller, space, index, gfn)
            };
            let code = result.map_or_else(|error| -(error as i32), |()| 0);
            caller.write(
                errors.wrapping_add(u64::from(entry) * 4),
                &code.to_le_bytes(),
            )?;
        }
        Ok(0)
    }
}
