//! What firmware says of physical memory, and sets of physical ranges. Pure.
//!
//! The boot code takes memory out of a [`Ranges`] for the core's own use; what is left is given
//! to root. Nothing here is used after boot.

use heapless::Vec;

/// Bytes of the smallest page.
pub const PAGE: u64 = 4096;
/// Regions of the firmware's map that are looked at.
const REGIONS: usize = 128;

/// One region of the firmware's memory map, by E820 type (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// True for ordinary memory.
    pub usable: bool,
}

impl Region {
    /// A region from an E820 entry; one that wraps around is cut at the end of memory.
    pub fn new(base: u64, length: u64, kind: u32) -> Region {
        Region {
            start: base,
            end: base.saturating_add(length),
            usable: kind == 1,
        }
    }
}

/// What a boot loader told.
#[derive(Default)]
pub struct Firmware {
    /// The memory map, as given.
    pub map: Vec<Region, REGIONS>,
    /// First module: start and end.
    pub archive: Option<(u64, u64)>,
    /// Physical address of the RSDP, 0 if not told.
    pub rsdp: u64,
    /// Regions that did not fit into `map`; they are not used.
    pub ignored: usize,
}

impl Firmware {
    /// Adds a region.
    pub fn add(&mut self, region: Region) {
        self.ignored += usize::from(self.map.push(region).is_err());
    }

    /// The pages that are memory in every region that mentions them.
    pub fn memory(&self) -> Ranges {
        let mut ranges = Ranges::default();
        for region in self.map.iter().filter(|region| region.usable) {
            ranges.add(page_up(region.start), region.end & !(PAGE - 1));
        }
        for region in self.map.iter().filter(|region| !region.usable) {
            ranges.remove(region.start & !(PAGE - 1), page_up(region.end));
        }
        ranges
    }
}

/// Rounds up to a page, staying at the last page at the end of the address space.
pub fn page_up(address: u64) -> u64 {
    address
        .checked_next_multiple_of(PAGE)
        .unwrap_or(!(PAGE - 1))
}

/// A set of physical ranges, sorted, disjoint, not adjacent.
#[derive(Clone, Default)]
pub struct Ranges {
    list: Vec<(u64, u64), REGIONS>,
}

impl Ranges {
    /// The ranges in ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.list.iter().copied()
    }

    /// Adds a range; overlaps are merged. A range beyond what the set can hold is dropped.
    pub fn add(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        self.list.retain(|&(s, e)| {
            let apart = e < start || end < s;
            if !apart {
                start = start.min(s);
                end = end.max(e);
            }
            apart
        });
        let at = self.list.iter().take_while(|&&(s, _)| s < start).count();
        let _ = self.list.insert(at, (start, end));
    }

    /// Takes a range out; parts that were not in the set do not matter.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let mut kept = Ranges::default();
        for (s, e) in self.iter() {
            kept.push(s, e.min(start));
            kept.push(s.max(end), e);
        }
        *self = kept;
    }

    fn push(&mut self, start: u64, end: u64) {
        if start < end {
            let _ = self.list.push((start, end));
        }
    }

    /// With this set as all memory: what else there is from the video memory to the end of
    /// addresses of `bits`, but for those at which a store is an interrupt (Intel SDM vol. 3,
    /// 11.11.1), or is for the bus itself (AMD IOMMU specification, table 3).
    pub fn devices(&self, bits: u8) -> Ranges {
        let mut devices = Ranges::default();
        devices.add(0xa_0000, 1 << bits.clamp(32, 52));
        let kept = [(0xfee0_0000, 0xfef0_0000), (0xfd << 32, 1 << 40)];
        for (start, end) in self.iter().chain(kept) {
            devices.remove(start, end);
        }
        devices
    }

    /// True if all of the range is in the set.
    pub fn contains(&self, start: u64, end: u64) -> bool {
        self.iter().any(|(s, e)| s <= start && end <= e)
    }

    /// Takes out the highest aligned piece that ends at or below `limit`; its start, or `None`
    /// if no range is large enough. `align` is a power of two.
    pub fn take(&mut self, bytes: u64, align: u64, limit: u64) -> Option<u64> {
        let start = self.iter().rev().find_map(|(s, e)| {
            let start = e.min(limit).checked_sub(bytes)? & !(align - 1);
            (start >= s).then_some(start)
        })?;
        self.remove(start, start + bytes);
        Some(start)
    }

    /// Total bytes.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|(start, end)| end - start).sum()
    }
}
