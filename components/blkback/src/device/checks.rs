//! What a request is held against before anything is done for it: the volume's ends, its blocks, and what the
//! guest granted. For [`super::Device`] alone; starts nothing.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;

use volume::SECTOR;

use super::Device;
use crate::grants::{Denied, Gone, Guest};
use crate::job::Part;
use crate::proto::{Kind, Outcome, PAGE, SEGMENT_BYTES, Segment, Segments};
use crate::ring::Granted;

/// Why a request has no pages.
#[derive(Clone, Copy)]
pub(super) enum Refusal {
    /// It is answered with this.
    Outcome(Outcome),
    /// Too much is mapped: again, when something was released.
    Room,
    /// There is no guest any more.
    Gone,
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Refusal {
        match denied {
            Denied::Grant(_) => Refusal::Outcome(Outcome::Error),
            Denied::Room => Refusal::Room,
            Denied::Gone => Refusal::Gone,
        }
    }
}

impl From<Gone> for Refusal {
    fn from(Gone: Gone) -> Refusal {
        Refusal::Gone
    }
}

impl<P: Granted, C: Copy> Device<P, C> {
    /// The sectors of the volume that a discard is about, checked.
    pub(super) fn given_up(
        &self,
        sector: u64,
        sectors: u64,
        secure: bool,
    ) -> Result<Range<u64>, Outcome> {
        // Nothing here can promise that no copy is left, and `discard-secure` does not: a front end that
        // asks for it all the same is not told that it was done.
        if !self.discard || secure {
            return Err(Outcome::NotSupported);
        }
        let volume = self.volume.lock();
        let unit = u64::from(volume.block_bytes) / SECTOR;
        let whole = sector.is_multiple_of(unit) && sectors.is_multiple_of(unit);
        let end = sector.checked_add(sectors);
        match end {
            Some(end) if sectors > 0 && whole && volume.holds(sector, sectors) => Ok(sector..end),
            _ => Err(Outcome::Error),
        }
    }

    /// A request's segments, checked, and their pages.
    pub(super) fn pages<G: Guest<Page = P>>(
        &mut self,
        guest: &mut G,
        kind: Kind,
        sector: u64,
        segments: &Segments,
    ) -> Result<Vec<Part<P>>, Refusal> {
        let error = Refusal::Outcome(Outcome::Error);
        if kind != Kind::Read && self.read_only {
            return Err(error);
        }
        let listed;
        let segments = match segments {
            Segments::Here(segments) => segments,
            Segments::Pages(count, grants) => {
                listed = self.listed(guest, *count, grants)?;
                &listed
            }
        };
        let mut sectors = 0;
        for segment in segments {
            sectors += segment.sectors().ok_or(error)?;
        }
        {
            let volume = self.volume.lock();
            let unit = u64::from(volume.block_bytes) / SECTOR;
            if !volume.holds(sector, sectors)
                || !sector.is_multiple_of(unit)
                || !sectors.is_multiple_of(unit)
            {
                // A flush without data says nothing about where.
                if !(kind == Kind::Flush && sectors == 0) {
                    return Err(error);
                }
            }
        }
        let write = kind == Kind::Read;
        let grants: Vec<(u32, bool)> = segments
            .iter()
            .map(|segment| (segment.reference, write))
            .collect();
        let pages = self.cache.take(guest, &grants)?;
        let mut start = 0;
        let part = |(page, segment): (Rc<P>, &Segment)| {
            let bytes = segment.sectors().unwrap_or(0) as u32 * SECTOR as u32;
            let part = Part {
                page,
                offset: usize::from(segment.first) * SECTOR as usize,
                start,
                bytes,
            };
            start += bytes;
            part
        };
        Ok(pages.into_iter().zip(segments).map(part).collect())
    }

    /// The segments that an indirect request lists in pages: copied out, then looked at.
    fn listed<G: Guest<Page = P>>(
        &mut self,
        guest: &mut G,
        count: usize,
        grants: &[u32],
    ) -> Result<Vec<Segment>, Refusal> {
        let grants: Vec<(u32, bool)> = grants.iter().map(|grant| (*grant, false)).collect();
        let pages = self.cache.take(guest, &grants)?;
        let mut segments = Vec::with_capacity(count);
        for index in 0..count {
            let per_page = PAGE / SEGMENT_BYTES;
            let mut bytes = [0; SEGMENT_BYTES];
            if let Some(page) = pages.get(index / per_page) {
                page.read(index % per_page * SEGMENT_BYTES, &mut bytes);
            }
            segments.extend(Segment::parse(&bytes));
        }
        self.cache.give_back(guest, pages)?;
        Ok(segments)
    }
}
