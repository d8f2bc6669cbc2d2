//! What guests' disks are made of: a whole disk, a partition, an image in memory, with or without an
//! overlay for writes. For back ends of guests' disks. Pure: it decides which blocks are meant, and never
//! reads or writes a device.
//!
//! Addresses are in sectors of 512 bytes, whatever the disk's blocks are, because that is how guests
//! count. A guest never reaches outside of its volume: [`Volume::holds`] is the one check of that, and
//! [`Extent::locate`] the one place that says where a volume's sectors are on the disk.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod gpt;
pub mod overlay;

use alloc::vec::Vec;

use overlay::{Full, Overlay};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// A stretch of a disk, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first.
    pub first: u64,
    /// How many.
    pub sectors: u64,
}

impl Extent {
    /// Where `count` sectors from `sector` on are on the disk; nothing if they are not all in here.
    pub fn locate(&self, sector: u64, count: u64) -> Option<u64> {
        ends_within(sector, count, self.sectors).then_some(())?;
        self.first.checked_add(sector)
    }
}

/// Whether `count` sectors from `sector` on end before `sectors`.
fn ends_within(sector: u64, count: u64, sectors: u64) -> bool {
    // In a control build nobody asks: a test then sees a guest leave its partition.
    if cfg!(control = "volume-bounds") {
        return true;
    }
    sector.checked_add(count).is_some_and(|end| end <= sectors)
}

/// Where a volume's blocks come from.
#[derive(Clone, Copy, Debug)]
pub enum Base {
    /// A disk that somebody else drives.
    Disk(Extent),
    /// Memory that nobody writes.
    Image(&'static [u8]),
}

/// How sectors of a volume are given up, as public/io/blkif.h has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Bytes that are given up together (`discard-granularity`).
    pub granularity: u32,
    /// Bytes from the volume's beginning to where the first such stretch begins (`discard-alignment`).
    pub alignment: u32,
}

/// A volume.
#[derive(Debug)]
pub struct Volume {
    base: Base,
    /// Bytes that the disk gives up together; 0 if it gives up nothing.
    granularity: u32,
    /// Bytes of the units that the disk is read and written in: a power of two from 512 to 4096.
    pub block_bytes: u32,
    /// Nobody may write.
    pub read_only: bool,
    overlay: Option<Overlay>,
}

impl Volume {
    /// A volume; writes go to an overlay of at most `overlay_bytes`, unless that is 0.
    pub fn new(base: Base, block_bytes: u32, read_only: bool, overlay_bytes: u64) -> Volume {
        let image = matches!(base, Base::Image(_));
        Volume {
            base,
            granularity: 0,
            block_bytes: block_bytes.clamp(SECTOR as u32, 4096),
            read_only: read_only || (image && overlay_bytes == 0),
            overlay: (overlay_bytes > 0 && !read_only).then(|| Overlay::new(overlay_bytes)),
        }
    }

    /// The same on a disk that gives up `granularity` bytes together, at multiples of so many.
    pub fn on_discarding_disk(mut self, granularity: u32) -> Volume {
        self.granularity = granularity;
        self
    }

    /// How sectors can be given up, if they can.
    pub fn discard(&self) -> Option<Discard> {
        if self.read_only {
            return None;
        }
        if self.overlay.is_some() {
            return Some(Discard {
                granularity: overlay::BLOCK as u32,
                alignment: 0,
            });
        }
        let Base::Disk(extent) = self.base else {
            return None;
        };
        let granularity = u64::from(self.granularity);
        // How far the volume's beginning is into such a stretch.
        let into = extent.first.wrapping_mul(SECTOR).checked_rem(granularity)?;
        Some(Discard {
            granularity: self.granularity,
            alignment: ((granularity - into) % granularity) as u32,
        })
    }

    /// How many of `sectors` sectors from `sector` on one request gives up that carries `most`: where that are
    /// not all, it ends with a stretch that is given up together, as half of one would be kept.
    pub fn discarded_at_once(&self, sector: u64, sectors: u64, most: u64) -> u64 {
        let Base::Disk(extent) = self.base else {
            return sectors.min(most);
        };
        if sectors <= most {
            return sectors;
        }
        let together = u64::from(self.granularity) / SECTOR;
        let end = extent.first.wrapping_add(sector).wrapping_add(most);
        match end.checked_rem(together) {
            Some(over) if over < most => most - over,
            _ => most,
        }
    }

    /// Forgets what was written to `count` sectors from `sector` on, as far as it did not go to the disk:
    /// they read as what the volume was before anything was written, and their memory is free.
    pub fn forget(&mut self, sector: u64, count: u64) {
        if let Some(overlay) = &mut self.overlay {
            overlay.forget(sector, count);
        }
    }

    /// How large it is.
    pub fn sectors(&self) -> u64 {
        match self.base {
            Base::Disk(extent) => extent.sectors,
            Base::Image(bytes) => (bytes.len() as u64).div_ceil(SECTOR),
        }
    }

    /// Whether all of `count` sectors from `sector` on are in it.
    pub fn holds(&self, sector: u64, count: u64) -> bool {
        ends_within(sector, count, self.sectors())
    }

    /// Where on the disk sectors are; nothing if they are not on a disk, or not all in the volume.
    pub fn on_disk(&self, sector: u64, count: u64) -> Option<u64> {
        match self.base {
            Base::Disk(extent) => extent.locate(sector, count),
            Base::Image(_) => None,
        }
    }

    /// What is read comes from a disk.
    pub fn reads_disk(&self) -> bool {
        matches!(self.base, Base::Disk(_))
    }

    /// What is written goes to a disk.
    pub fn writes_disk(&self) -> bool {
        self.reads_disk() && self.overlay.is_none()
    }

    /// What was written is lost with whoever holds the volume.
    pub fn forgets(&self) -> bool {
        self.overlay.is_some()
    }

    /// Completes what was read from the disk, or is to be read of an image: whole sectors from `sector`
    /// on. Of what is not in memory the bytes stay as they are.
    pub fn read(&self, sector: u64, into: &mut [u8]) {
        if let Base::Image(image) = self.base {
            let start = usize::try_from(sector.saturating_mul(SECTOR)).unwrap_or(usize::MAX);
            let there = image.get(start..).unwrap_or(&[]);
            let count = there.len().min(into.len());
            let (head, tail) = into.split_at_mut(count);
            head.copy_from_slice(there.get(..count).unwrap_or(&[]));
            tail.fill(0);
        }
        if let Some(overlay) = &self.overlay {
            overlay.read(sector, into);
        }
    }

    /// Keeps what is written, whole sectors from `sector` on, if it does not go to the disk.
    pub fn write(&mut self, sector: u64, from: &[u8]) -> Result<(), Full> {
        match &mut self.overlay {
            Some(overlay) => overlay.write(sector, from),
            None => Err(Full),
        }
    }

    /// Bytes of the overlay that are in use, and that there are.
    pub fn overlay_use(&self) -> Option<(u64, u64)> {
        self.overlay.as_ref().map(Overlay::usage)
    }
}

/// Why a volume is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The disk has no valid GUID partition table.
    Table,
    /// No partition is the one that is meant.
    Partition,
    /// More than one partition has this label.
    Ambiguous,
    /// It overlaps another partition.
    Overlap,
    /// The disk cannot be read.
    Disk,
}

/// The partition of these that `matches`, as sectors of a disk whose blocks have `block_bytes`.
pub fn find(
    partitions: &[gpt::Partition],
    block_bytes: u32,
    matches: impl Fn(&gpt::Partition) -> bool,
) -> Result<Extent, Missing> {
    let found: Vec<&gpt::Partition> = partitions.iter().filter(|one| matches(one)).collect();
    let one = match found.as_slice() {
        [] => return Err(Missing::Partition),
        [one] => *one,
        _ => return Err(Missing::Ambiguous),
    };
    let overlaps = |other: &&gpt::Partition| other.first <= one.last && one.first <= other.last;
    if partitions.iter().filter(overlaps).count() > 1 {
        return Err(Missing::Overlap);
    }
    let unit = u64::from(block_bytes) / SECTOR;
    let blocks = (one.last - one.first).checked_add(1);
    let extent = || {
        Some(Extent {
            first: one.first.checked_mul(unit)?,
            sectors: blocks?.checked_mul(unit)?,
        })
    };
    extent().ok_or(Missing::Table)
}

#[cfg(test)]
mod tests;
