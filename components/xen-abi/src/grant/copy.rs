//! `GNTTABOP_copy`: between pages of the domain's own, at once; where another domain granted one side or
//! both, by that domain's VMM, which [`Env`] asks.

use core::task::Poll;

use crate::PAGE_SIZE;
use crate::access::{Caller, Fields};
use crate::domain::{DOMID_SELF, Domain, SYSTEM};
use crate::env::{CopySide, Env, GrantCopy};
use crate::errno::Errno;
use crate::grant::entry::{Extent, Use};
use crate::grant::frames::V1_PER_FRAME;
use crate::grant::status;
use crate::granted::Wanted;
use crate::memory::GuestMemory;

/// `GNTCOPY_source_gref`, `GNTCOPY_dest_gref`.
const COPY_SOURCE_GREF: u16 = 1;
const COPY_DEST_GREF: u16 = 2;
/// One side of a copy.
struct Side {
    name: u64,
    domid: u16,
    offset: u16,
    by_reference: bool,
    writes: bool,
}

/// What a copy may touch at a side that is the domain's own.
struct Claim {
    page: u64,
    extent: Extent,
    /// An entry of the own table is in use for it.
    granted: bool,
}

/// A side, and what of its page may be touched as far as is known here.
struct Place {
    side: CopySide,
    extent: Extent,
}

fn fits(side: &Side, length: u16) -> bool {
    u64::from(side.offset) + u64::from(length) <= PAGE_SIZE
}

impl Domain {
    /// One entry of the list: its status.
    pub(super) fn copy_one<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        at: u64,
    ) -> Result<Poll<i16>, Errno> {
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
            .map(|done| done.map_or_else(|status| status, |()| status::OKAY)))
    }

    fn copy_between<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        source: &Side,
        target: &Side,
        length: u16,
    ) -> Poll<Result<(), i16>> {
        // Both domains must be there before anything else is asked.
        for side in [source, target] {
            if self.require_self(side.domid) == Err(Errno::Srch) {
                match caller.env.reaches(side.domid) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => return Poll::Ready(Err(status::BAD_DOMAIN)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
        if self.is_others(source) || self.is_others(target) {
            return self.copy_abroad(caller, source, target, length);
        }
        Poll::Ready(self.copy_own(caller, source, target, length))
    }

    /// Whether another domain's grant is meant, which can be reached.
    fn is_others(&self, side: &Side) -> bool {
        side.by_reference && self.require_self(side.domid) == Err(Errno::Srch)
    }

    fn copy_own<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        source: &Side,
        target: &Side,
        length: u16,
    ) -> Result<(), i16> {
        let from = self.claim_own(caller, source)?;
        let done = match self.claim_own(caller, target) {
            Ok(to) => {
                let done = copy_pages(caller, (source, &from), (target, &to), length);
                self.disclaim(caller, target, &to);
                done
            }
            Err(status) => Err(status),
        };
        self.disclaim(caller, source, &from);
        done
    }

    /// The other domain says what it thinks of its side; of what is wrong with both, the source comes first.
    fn copy_abroad<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        source: &Side,
        target: &Side,
        length: u16,
    ) -> Poll<Result<(), i16>> {
        let (from, to) = match (self.place_in(caller, source), self.place_in(caller, target)) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(status), _) => return Poll::Ready(Err(status)),
            (Ok(from), Err(status)) => {
                return refuse(caller, from.side, CopySide::Own(0), status);
            }
        };
        if !fits(source, length) || !fits(target, length) {
            return refuse(caller, from.side, to.side, status::BAD_COPY_ARG);
        }
        let granted = |side: &Side, place: &Place| place.extent.holds(side.offset, length);
        if !granted(source, &from) || !granted(target, &to) {
            return refuse(caller, from.side, to.side, status::GENERAL_ERROR);
        }
        caller.env.grant_copy(GrantCopy {
            from: from.side,
            to: to.side,
            length,
        })
    }

    /// The place that a side names. A grant of the own table is not in use for longer than that: what it
    /// says is between the domain and itself.
    fn place_in<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        side: &Side,
    ) -> Result<Place, i16> {
        if self.is_others(side) {
            return Ok(Place {
                side: CopySide::Granted {
                    domid: side.domid,
                    // The rest of the field is a frame's.
                    reference: side.name as u32,
                    offset: side.offset,
                },
                extent: Extent::page(0),
            });
        }
        let claim = self.claim_own(caller, side)?;
        self.disclaim(caller, side, &claim);
        Ok(Place {
            side: CopySide::Own(claim.page + u64::from(side.offset)),
            extent: claim.extent,
        })
    }

    /// The page of the domain's own that a side names, and what of it the copy may touch. Ends with
    /// [`Domain::disclaim`].
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
            page: page.ok_or(status::BAD_PAGE)?,
            extent,
            granted: side.by_reference,
        })
    }

    /// The copy is over.
    fn disclaim<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        side: &Side,
        claim: &Claim,
    ) {
        if claim.granted {
            self.unpin_grant(side.name as u32, side.writes, caller.memory);
        }
    }
}

/// The status of a copy that is not made: that of the grants that it names, if one of them cannot be used.
fn refuse<M: GuestMemory, E: Env>(
    caller: &mut Caller<M, E>,
    from: CopySide,
    to: CopySide,
    status: i16,
) -> Poll<Result<(), i16>> {
    let granted = |side| matches!(side, CopySide::Granted { .. });
    if !granted(from) && !granted(to) {
        return Poll::Ready(Err(status));
    }
    let nothing = GrantCopy {
        from,
        to,
        length: 0,
    };
    let asked = caller.env.grant_copy(nothing);
    asked.map(|asked| asked.and(Err(status)))
}

/// Copies from one side's page to the other's.
fn copy_pages<M: GuestMemory, E: Env>(
    caller: &mut Caller<M, E>,
    (source, from): (&Side, &Claim),
    (target, to): (&Side, &Claim),
    length: u16,
) -> Result<(), i16> {
    if !fits(source, length) || !fits(target, length) {
        return Err(status::BAD_COPY_ARG);
    }
    let granted = |side: &Side, claim: &Claim| claim.extent.holds(side.offset, length);
    if !granted(source, from) || !granted(target, to) {
        return Err(status::GENERAL_ERROR);
    }
    let start = |side: &Side, claim: &Claim| claim.page + u64::from(side.offset);
    let (from, to) = (start(source, from), start(target, to));
    let mut chunk = [0; 256];
    let mut done = 0;
    while done < u64::from(length) {
        let take = (u64::from(length) - done).min(chunk.len() as u64);
        let piece = chunk
            .get_mut(..take as usize)
            .ok_or(status::GENERAL_ERROR)?;
        caller
            .memory
            .read(from + done, piece)
            .and_then(|()| caller.memory.write(to + done, piece))
            .map_err(|_| status::GENERAL_ERROR)?;
        done += take;
    }
    Ok(())
}
