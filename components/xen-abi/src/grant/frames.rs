//! The grant table's frames: how many are in use, where the guest has mapped them, which version their
//! entries have, and where an entry is (`public/grant_table.h`; Xen's limits and order of growth).
//!
//! The frames are the VMM's, zeroed, as many as there can be; nothing is allocated here. What entries
//! say is `entry.rs`'s business.

use alloc::vec;
use alloc::vec::Vec;

use crate::PAGE_SIZE;
use crate::errno::Errno;
use crate::grant::entry::Entry;
use crate::granted::Pins;
use crate::memory::SpecialFrame;

/// `XENMAPIDX_grant_table_status` of `public/memory.h`.
const STATUS_FRAME: u64 = 1 << 31;
/// Entries of version 1 in a frame: `grant_entry_v1_t` has 8 bytes.
pub(crate) const V1_PER_FRAME: u32 = 512;
/// Entries of version 2 in a frame: `grant_entry_v2_t` has 16 bytes.
const V2_PER_FRAME: u32 = 256;
/// `grant_status_t` in a frame: each has 2 bytes.
const STATUS_PER_FRAME: u32 = 2048;

/// Frames of status words that so many frames of entries of version 2 have.
pub(crate) const fn status_frames(frames: u32) -> u32 {
    (frames * V2_PER_FRAME).div_ceil(STATUS_PER_FRAME)
}

/// The layout of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Flags of use are in the entry.
    V1,
    /// They are in a table of their own, and frame numbers have 64 bits.
    V2,
}

impl Version {
    /// As in a hypercall's argument.
    pub fn number(self) -> u32 {
        match self {
            Version::V1 => 1,
            Version::V2 => 2,
        }
    }

    pub fn of(number: u32) -> Option<Version> {
        match number {
            1 => Some(Version::V1),
            2 => Some(Version::V2),
            _ => None,
        }
    }
}

/// Which frames are in use, and where the guest mapped them.
#[derive(Debug)]
pub(crate) struct GrantTable {
    pub version: Version,
    /// Highest version that the domain may choose.
    pub highest: Version,
    frames: u32,
    gfns: Vec<Option<u64>>,
    status_gfns: Vec<Option<u64>>,
    /// Grants that others use.
    pub pins: Pins,
}

impl GrantTable {
    pub fn new(most: u32, highest: Version) -> GrantTable {
        GrantTable {
            version: Version::V1,
            highest,
            frames: 1,
            gfns: vec![None; most as usize],
            status_gfns: vec![None; status_frames(most) as usize],
            pins: Pins::default(),
        }
    }

    /// Frames that there are at most.
    pub fn most(&self) -> u32 {
        self.gfns.len() as u32
    }

    /// Frames in use.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Frames of status words in use.
    pub fn status_frames(&self) -> u32 {
        match self.version {
            Version::V1 => 0,
            Version::V2 => status_frames(self.frames),
        }
    }

    /// So many frames, or as many as there are: false if there are never so many.
    pub fn grow(&mut self, frames: u32) -> bool {
        let fits = frames <= self.most();
        if fits {
            self.frames = self.frames.max(frames);
        }
        fits
    }

    /// The frame that `XENMEM_add_to_physmap` means by its index. The table grows so far.
    pub fn grow_to_hold(&mut self, index: u64) -> Result<SpecialFrame, Errno> {
        if self.version == Version::V2 && index & STATUS_FRAME != 0 {
            return self.grow_to_hold_status(index as u32 & !(STATUS_FRAME as u32));
        }
        let index = u32::try_from(index).map_err(|_| Errno::Inval)?;
        let frames = index.checked_add(1).ok_or(Errno::Inval)?;
        if self.grow(frames) {
            Ok(SpecialFrame::GrantTable(index))
        } else {
            Err(Errno::Inval)
        }
    }

    /// As in Xen, a table that holds less than a whole frame of status words is not grown to its end.
    fn grow_to_hold_status(&mut self, index: u32) -> Result<SpecialFrame, Errno> {
        if index >= self.status_frames() {
            let frames = (index + 1).checked_mul(STATUS_PER_FRAME / V2_PER_FRAME);
            if !frames.is_some_and(|frames| self.grow(frames)) {
                return Err(Errno::Inval);
            }
        }
        Ok(SpecialFrame::GrantStatus(index))
    }

    /// The frame that is mapped at a guest frame.
    pub fn frame_at(&self, gfn: u64) -> Option<SpecialFrame> {
        let find = |gfns: &[Option<u64>]| {
            let place = gfns.iter().position(|&mapped| mapped == Some(gfn));
            place.map(|index| index as u32)
        };
        find(&self.gfns)
            .map(SpecialFrame::GrantTable)
            .or_else(|| find(&self.status_gfns).map(SpecialFrame::GrantStatus))
    }

    /// Where the guest has mapped a frame.
    pub fn gfn(&self, frame: u32) -> Option<u64> {
        self.gfns.get(frame as usize).copied().flatten()
    }

    /// It is mapped there now, or nowhere.
    pub fn set_gfn(&mut self, frame: u32, gfn: Option<u64>) {
        if let Some(slot) = self.gfns.get_mut(frame as usize) {
            *slot = gfn;
        }
    }

    /// The same of a frame of status words.
    pub fn set_status_gfn(&mut self, frame: u32, gfn: Option<u64>) {
        if let Some(slot) = self.status_gfns.get_mut(frame as usize) {
            *slot = gfn;
        }
    }

    /// Where the frames of status words are mapped, none of which is any more.
    pub fn take_status_gfns(&mut self) -> impl Iterator<Item = u64> + '_ {
        self.status_gfns.iter_mut().filter_map(Option::take)
    }

    /// An entry, if the table reaches so far.
    pub fn entry(&self, reference: u32) -> Option<Entry> {
        let each = match self.version {
            Version::V1 => V1_PER_FRAME,
            Version::V2 => V2_PER_FRAME,
        };
        let frame = reference / each;
        if frame >= self.frames {
            return None;
        }
        let first = SpecialFrame::GrantTable(frame).address();
        let entry = first + u64::from(reference % each) * (PAGE_SIZE / u64::from(each));
        Some(match self.version {
            Version::V1 => Entry::V1(entry),
            Version::V2 => {
                let words = SpecialFrame::GrantStatus(reference / STATUS_PER_FRAME).address();
                let status = words + u64::from(reference % STATUS_PER_FRAME) * 2;
                Entry::V2 { entry, status }
            }
        })
    }
}
