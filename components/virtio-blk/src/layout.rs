//! Registers: where they are (4.1.4), and what the device offers (2.2, 5.2).

use idl::block::{Discard, Geometry};
use idl::pci::VENDOR_BYTES;
use idl::requests::DISCARD_MOST;

/// Parts of the registers, by `cfg_type` (4.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Common configuration.
    Common = 1,
    /// Where queues are announced.
    Notify = 2,
    /// Configuration of block devices.
    Device = 4,
}

/// A stretch of a base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which part.
    pub part: Part,
    /// Which register.
    pub bar: u8,
    /// From where.
    pub offset: u32,
    /// How many bytes.
    pub bytes: u32,
    /// For [`Part::Notify`]: bytes between the places of two queues.
    pub multiplier: u32,
}

fn word(bytes: &[u8; VENDOR_BYTES], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |word| u32::from_le_bytes(*word))
}

impl Place {
    /// Most bytes of a part that are used: what lies beyond is of no interest.
    const MOST: u32 = 64 * 1024;

    /// From a vendor-specific capability; `None` if it tells of nothing that is used here.
    pub fn parse(capability: &[u8; VENDOR_BYTES]) -> Option<Place> {
        let [id, _, length, kind, bar, ..] = *capability;
        let part = match kind {
            1 => Part::Common,
            2 => Part::Notify,
            4 => Part::Device,
            _ => return None,
        };
        let least = if part == Part::Notify { 20 } else { 16 };
        let (offset, bytes) = (word(capability, 8), word(capability, 12));
        let end = offset.checked_add(bytes.min(Self::MOST))?;
        if id != 9 || length < least || bar > 5 || bytes == 0 || end == u32::MAX {
            return None;
        }
        Some(Place {
            part,
            bar,
            offset,
            bytes: bytes.min(Self::MOST),
            multiplier: match part {
                Part::Notify => word(capability, 16),
                _ => 0,
            },
        })
    }
}

/// Offsets in the common configuration (4.1.4.3).
pub mod common {
    /// Which 32 features `DEVICE_FEATURE` shows.
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    /// Features offered.
    pub const DEVICE_FEATURE: u64 = 4;
    /// Which 32 features `DRIVER_FEATURE` sets.
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    /// Features taken.
    pub const DRIVER_FEATURE: u64 = 12;
    /// Vector of configuration changes.
    pub const CONFIG_VECTOR: u64 = 16;
    /// Queues that there are.
    pub const QUEUES: u64 = 18;
    /// Device status.
    pub const STATUS: u64 = 20;
    /// Which queue the rest is about.
    pub const QUEUE_SELECT: u64 = 22;
    /// Its entries.
    pub const QUEUE_SIZE: u64 = 24;
    /// Its vector.
    pub const QUEUE_VECTOR: u64 = 26;
    /// It is used.
    pub const QUEUE_ENABLE: u64 = 28;
    /// Its number at the place of announcements.
    pub const QUEUE_NOTIFY: u64 = 30;
    /// Address of its descriptors.
    pub const QUEUE_DESCRIPTORS: u64 = 32;
    /// Address of what the driver writes.
    pub const QUEUE_DRIVER: u64 = 40;
    /// Address of what the device writes.
    pub const QUEUE_DEVICE: u64 = 48;
    /// All of it.
    pub const BYTES: u64 = 56;
    /// No vector.
    pub const NO_VECTOR: u16 = 0xffff;
}

/// Bits of the device status (2.1).
pub mod status {
    /// The driver knows that there is a device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// It knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// Features are chosen.
    pub const FEATURES_OK: u8 = 8;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The device gave up.
    pub const NEEDS_RESET: u8 = 64;
}

/// Features (5.2.3, 6).
pub mod feature {
    /// Largest segment is told.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// No writes.
    pub const READ_ONLY: u64 = 1 << 5;
    /// Block size is told.
    pub const BLOCK_SIZE: u64 = 1 << 6;
    /// Flushes.
    pub const FLUSH: u64 = 1 << 9;
    /// Several queues.
    pub const MANY_QUEUES: u64 = 1 << 12;
    /// Sectors can be given up.
    pub const DISCARD: u64 = 1 << 13;
    /// The standard, not what was before it.
    pub const VERSION_1: u64 = 1 << 32;
    /// The device's addresses go through the IOMMU like any other device's.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// Offsets in a block device's configuration (5.2.4).
pub mod block {
    /// Sectors of 512 bytes.
    pub const CAPACITY: u64 = 0;
    /// Largest segment.
    pub const SIZE_MAX: u64 = 8;
    /// Block size.
    pub const BLOCK_SIZE: u64 = 20;
    /// Queues.
    pub const QUEUES: u64 = 34;
    /// Most sectors that a discard's segment has.
    pub const DISCARD_SECTORS: u64 = 36;
    /// Most segments that a discard has.
    pub const DISCARD_SEGMENTS: u64 = 40;
    /// Sectors that the disk gives up together.
    pub const DISCARD_ALIGNMENT: u64 = 44;
}

/// Bytes of a sector, the unit of addresses on the wire.
pub const SECTOR: u32 = 512;

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It is of before the standard.
    Legacy,
    /// It would go past the IOMMU. (With QEMU: `iommu_platform=on,disable-legacy=on`.)
    PastIommu,
}

/// The features to take of those on offer, for a device that an IOMMU is to hold, or not.
pub fn choose(offered: u64, protected: bool) -> Result<u64, Unusable> {
    if offered & feature::VERSION_1 == 0 {
        return Err(Unusable::Legacy);
    }
    if protected && offered & feature::ACCESS_PLATFORM == 0 {
        return Err(Unusable::PastIommu);
    }
    let wanted = feature::SIZE_MAX
        | feature::READ_ONLY
        | feature::BLOCK_SIZE
        | feature::FLUSH
        | feature::MANY_QUEUES
        | feature::DISCARD
        | feature::VERSION_1
        | feature::ACCESS_PLATFORM;
    Ok(offered & wanted)
}

/// What a block device says of itself, as read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Sectors.
    pub capacity: u64,
    /// Largest segment.
    pub size_max: u32,
    /// Block size.
    pub block_size: u32,
    /// Queues.
    pub queues: u16,
    /// Most sectors in a segment of a discard.
    pub discard_sectors: u32,
    /// Most segments in a discard.
    pub discard_segments: u32,
    /// Sectors that are given up together.
    pub discard_alignment: u32,
}

/// Most bytes of a request.
pub const REQUEST_MOST: u32 = 1 << 20;
/// Most queues that are used.
pub const QUEUES_MOST: u16 = 4;

/// The disk's shape, by the features that were taken and what the device says.
pub fn geometry(features: u64, said: &Said) -> Geometry {
    let has = |feature| features & feature != 0;
    let believed = |size: u32| size.is_power_of_two() && (SECTOR..=4096).contains(&size);
    let block_bytes = match said.block_size {
        size if has(feature::BLOCK_SIZE) && believed(size) => size,
        _ => SECTOR,
    };
    let most = match said.size_max {
        most if has(feature::SIZE_MAX) => most.clamp(block_bytes, REQUEST_MOST),
        _ => REQUEST_MOST,
    };
    let queues = match said.queues {
        queues if has(feature::MANY_QUEUES) => queues.clamp(1, QUEUES_MOST),
        _ => 1,
    };
    // A discard is one segment here. Of a device that allows none, or less than a block, there is none.
    let range = said.discard_sectors.min(DISCARD_MOST / SECTOR) * SECTOR;
    let range = range / block_bytes * block_bytes;
    let can = has(feature::DISCARD) && !has(feature::READ_ONLY);
    let discard = (can && range > 0 && said.discard_segments > 0).then(|| Discard {
        bytes: range,
        granularity: match said.discard_alignment.checked_mul(SECTOR) {
            Some(bytes) if bytes > 0 && bytes.is_multiple_of(block_bytes) => bytes,
            _ => block_bytes,
        },
    });
    Geometry {
        block_bytes,
        blocks: said.capacity / u64::from(block_bytes / SECTOR),
        request_bytes: most / block_bytes * block_bytes,
        read_only: has(feature::READ_ONLY),
        write_cache: has(feature::FLUSH),
        queues,
        discard,
    }
}
