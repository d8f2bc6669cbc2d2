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

/// A volume.
#[derive(Debug)]
pub struct Volume {
    base: Base,
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
            block_bytes: block_bytes.clamp(SECTOR as u32, 4096),
            read_only: read_only || (image && overlay_bytes == 0),
            overlay: (overlay_bytes > 0 && !read_only).then(|| Overlay::new(overlay_bytes)),
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
