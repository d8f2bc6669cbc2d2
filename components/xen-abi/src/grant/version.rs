//! `GNTTABOP_set_version` and `GNTTABOP_get_version`: a domain goes over to entries of another version
//! while nobody uses its grants, and back, as Xen's `gnttab_set_version` does it.
//!
//! The first 8 entries (`GNTTAB_NR_RESERVED_ENTRIES`) are a toolstack's, may be in use meanwhile, and
//! are carried over; all others are empty afterwards.

use crate::PAGE_SIZE;
use crate::access::{Caller, Fields, Reply};
use crate::domain::Domain;
use crate::env::Env;
use crate::errno::Errno;
use crate::grant::entry::{Entry, PERMIT_ACCESS, READING, TRANSITIVE, TYPE_MASK, WRITING};
use crate::grant::frames::Version;
use crate::memory::{GuestMemory, SpecialFrame, Unbacked};

/// `GNTTAB_NR_RESERVED_ENTRIES`.
const RESERVED: u32 = 8;

const EMPTY: &[u8] = &[0; PAGE_SIZE as usize];

/// A reserved entry, whatever its version. Flags of use are among its flags.
#[derive(Clone, Copy, Debug, Default)]
struct Reserved {
    flags: u16,
    domid: u16,
    frame: u32,
}

impl Domain {
    pub(crate) fn set_version<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        at: u64,
    ) -> Reply {
        let reply = match Version::of(caller.fetch_u32(at)?) {
            None => Err(Errno::Inval),
            Some(Version::V2) if self.grants.highest == Version::V1 => Err(Errno::NoSys),
            Some(version) if version == self.grants.version => Ok(0),
            Some(version) => self.switch(caller, version).map(|()| 0),
        };
        caller.write(at, &self.grants.version.number().to_le_bytes())?;
        reply
    }

    pub(crate) fn get_version<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        at: u64,
    ) -> Reply {
        let domid = caller.fetch::<2>(at)?.u16_at(0);
        self.require_self(domid)?;
        let version = self.grants.version.number();
        caller.write(at.wrapping_add(4), &version.to_le_bytes())?;
        Ok(0)
    }

    fn switch<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        version: Version,
    ) -> Result<(), Errno> {
        if self.grants.pins.any_from(RESERVED) {
            return Err(Errno::Busy);
        }
        let memory = caller.memory;
        // Frames of the table are always backed.
        let inval = |Unbacked| Errno::Inval;
        let mut kept = [Reserved::default(); RESERVED as usize];
        for (reference, kept) in (0..RESERVED).zip(&mut kept) {
            if let Some(entry) = self.grants.entry(reference) {
                *kept = Reserved::read(entry, memory).map_err(inval)??;
            }
        }
        if version == Version::V1 {
            for gfn in self.grants.take_status_gfns() {
                caller.env.remove_page(gfn);
            }
        }
        self.grants.version = version;
        let frames = (0..self.grants.frames()).map(SpecialFrame::GrantTable);
        let status = (0..self.grants.status_frames()).map(SpecialFrame::GrantStatus);
        for frame in frames.chain(status) {
            memory.write(frame.address(), EMPTY).map_err(inval)?;
        }
        for (reference, kept) in (0..RESERVED).zip(kept) {
            if let Some(entry) = self.grants.entry(reference) {
                kept.write(entry, memory).map_err(inval)?;
            }
        }
        Ok(())
    }
}

impl Reserved {
    /// `Range`: it cannot be said in version 1.
    fn read<M: GuestMemory>(entry: Entry, memory: &M) -> Result<Result<Reserved, Errno>, Unbacked> {
        match entry {
            Entry::V1(entry) => {
                let mut bytes = [0; 8];
                memory.read(entry, &mut bytes)?;
                Ok(Ok(Reserved {
                    flags: bytes.u16_at(0),
                    domid: bytes.u16_at(2),
                    frame: bytes.u32_at(4),
                }))
            }
            Entry::V2 { entry, status } => {
                let (mut bytes, mut used) = ([0; 16], [0; 2]);
                memory.read(entry, &mut bytes)?;
                memory.read(status, &mut used)?;
                let flags = bytes.u16_at(0);
                Ok(match (flags & TYPE_MASK, u32::try_from(bytes.u64_at(8))) {
                    (PERMIT_ACCESS, Ok(frame)) => Ok(Reserved {
                        flags: flags | used.u16_at(0),
                        domid: bytes.u16_at(2),
                        frame,
                    }),
                    (PERMIT_ACCESS, Err(_)) | (TRANSITIVE, _) => Err(Errno::Range),
                    _ => Ok(Reserved::default()),
                })
            }
        }
    }

    fn write<M: GuestMemory>(self, entry: Entry, memory: &M) -> Result<(), Unbacked> {
        let used = self.flags & (READING | WRITING);
        let mut bytes = [0; 16];
        bytes.put(2, &self.domid.to_le_bytes());
        match entry {
            Entry::V1(entry) => {
                bytes.put(0, &self.flags.to_le_bytes());
                bytes.put(4, &self.frame.to_le_bytes());
                memory.write(entry, bytes.get(..8).unwrap_or_default())
            }
            Entry::V2 { entry, status } => {
                bytes.put(0, &(self.flags & !used).to_le_bytes());
                bytes.put(8, &u64::from(self.frame).to_le_bytes());
                memory.write(entry, &bytes)?;
                memory.write(status, &used.to_le_bytes())
            }
        }
    }
}
