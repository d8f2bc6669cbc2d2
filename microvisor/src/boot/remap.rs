//! What firmware says of IOMMUs: Intel's DMAR table (VT-d specification 3.3, chapter 8) and AMD's IVRS
//! (AMD IOMMU specification 3.08, chapter 5). Pure: bytes in, facts out. Anything that does not fit
//! is left out; what a list has no room for is counted.

use super::bytes::{u16_at, u32_at, u64_at};
use heapless::Vec;

/// One IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Physical address of its registers.
    pub base: u64,
    /// AMD: the IOMMU's own PCI function, to which its interrupts belong; otherwise 0.
    pub function: u16,
}

/// Memory that firmware lets devices use until somebody takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Intel: the first bus, then device and function at each hop.
    pub path: (u8, Vec<(u8, u8), 4>),
    /// AMD: the first and the last function, if it is not the path that says.
    pub functions: Option<(u16, u16)>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Remapping {
    /// The IOMMUs are AMD's.
    pub amd: bool,
    /// Interrupts can be remapped.
    pub interrupts: bool,
    /// The IOMMUs of segment 0.
    pub units: Vec<Unit, 8>,
    /// Reserved memory, an entry for each device that uses it.
    pub reserved: Vec<Reserved, 32>,
    /// I/O APICs: id, and the function as which it sends interrupts.
    pub io_apics: Vec<(u8, u16), 8>,
    /// What did not fit into these lists.
    pub ignored: usize,
}

/// Bytes of the header that both tables share.
const HEADER: usize = 48;

/// Structures from `at` on, each with its length at `length_at` of it.
fn structures<'a>(
    bytes: &'a [u8],
    mut at: usize,
    length: impl Fn(&'a [u8]) -> Option<usize>,
) -> impl Iterator<Item = &'a [u8]> {
    core::iter::from_fn(move || {
        let rest = bytes.get(at..)?;
        let one = rest.get(..length(rest)?).filter(|one| one.len() >= 2)?;
        at += one.len();
        Some(one)
    })
}

/// Reads a DMAR table.
pub fn dmar(bytes: &[u8]) -> Remapping {
    let mut found = Remapping {
        interrupts: bytes.get(37).is_some_and(|flags| flags & 1 != 0),
        ..Remapping::default()
    };
    for one in structures(bytes, HEADER, |rest| u16_at(rest, 2).map(usize::from)) {
        let segment = u16_at(one, 6);
        let (Some(kind), Some(0)) = (u16_at(one, 0), segment) else {
            continue;
        };
        match kind {
            0 => {
                if let Some(base) = u64_at(one, 8) {
                    found.unit(Unit { base, function: 0 });
                }
                for scope in scopes(one, 16).filter(|scope| scope.first() == Some(&3)) {
                    let hop = path(scope).and_then(|(bus, hops)| Some((bus, *hops.first()?)));
                    if let (Some(&id), Some((bus, hop))) = (scope.get(4), hop) {
                        found.io_apic(id, function(bus, hop));
                    }
                }
            }
            1 => {
                let (Some(start), Some(last)) = (u64_at(one, 8), u64_at(one, 16)) else {
                    continue;
                };
                for path in scopes(one, 24).filter_map(path) {
                    found.reserved(start, last.saturating_add(1), path, None);
                }
            }
            _ => {}
        }
    }
    found
}

/// Device scopes of a structure.
fn scopes(one: &[u8], at: usize) -> impl Iterator<Item = &[u8]> {
    structures(one, at, |rest| rest.get(1).map(|n| usize::from(*n)))
}

fn path(scope: &[u8]) -> Option<(u8, Vec<(u8, u8), 4>)> {
    let mut hops = Vec::new();
    for hop in scope.get(6..)?.chunks_exact(2) {
        hops.push((hop[0], hop[1])).ok()?;
    }
    Some((*scope.get(5)?, hops))
}

/// A requester id.
pub fn function(bus: u8, (device, function): (u8, u8)) -> u16 {
    u16::from(bus) << 8 | u16::from(device & 31) << 3 | u16::from(function & 7)
}

/// Reads an IVRS table.
pub fn ivrs(bytes: &[u8]) -> Remapping {
    let mut found = Remapping {
        amd: true,
        interrupts: true,
        ..Remapping::default()
    };
    for one in structures(bytes, HEADER, |rest| u16_at(rest, 2).map(usize::from)) {
        let kind = one.first().copied().unwrap_or(0);
        match kind {
            // The same IOMMU may be described by a newer block as well.
            0x10 | 0x11 | 0x40 if u16_at(one, 16) == Some(0) => {
                if let (Some(function), Some(base)) = (u16_at(one, 4), u64_at(one, 8)) {
                    found.unit(Unit { base, function });
                }
                let entries = if kind == 0x10 { 24 } else { 40 };
                for entry in structures(one, entries, entry_length) {
                    // A special device (72) of variety 1 is an I/O APIC.
                    let is_io_apic = entry.first() == Some(&72) && entry.get(7) == Some(&1);
                    if let (true, Some(&id), Some(function)) =
                        (is_io_apic, entry.get(4), u16_at(entry, 5))
                    {
                        found.io_apic(id, function);
                    }
                }
            }
            // Memory for all devices, for one, for a range; bit 3 of the flags excludes it.
            0x20..=0x22 if one.get(1).is_some_and(|flags| flags & 8 == 0) => {
                let (Some(first), Some(last)) = (u16_at(one, 4), u16_at(one, 6)) else {
                    continue;
                };
                let (Some(start), Some(length)) = (u64_at(one, 16), u64_at(one, 24)) else {
                    continue;
                };
                let functions = match kind {
                    0x20 => (0, u16::MAX),
                    0x21 => (first, first),
                    _ => (first, last),
                };
                let end = start.saturating_add(length);
                found.reserved(start, end, (0, Vec::new()), Some(functions));
            }
            _ => {}
        }
    }
    found
}

fn entry_length(rest: &[u8]) -> Option<usize> {
    let kind = *rest.first()?;
    Some(match kind {
        240 => 22 + usize::from(*rest.get(21)?),
        _ => 4 << (kind >> 6),
    })
}

impl Remapping {
    fn unit(&mut self, unit: Unit) {
        if unit.base != 0 && !self.units.iter().any(|u| u.base == unit.base) {
            self.ignored += usize::from(self.units.push(unit).is_err());
        }
    }

    fn io_apic(&mut self, id: u8, function: u16) {
        if !self.io_apics.iter().any(|(known, _)| *known == id) {
            self.ignored += usize::from(self.io_apics.push((id, function)).is_err());
        }
    }

    fn reserved(
        &mut self,
        start: u64,
        end: u64,
        path: (u8, Vec<(u8, u8), 4>),
        functions: Option<(u16, u16)>,
    ) {
        let reserved = Reserved {
            start,
            end,
            path,
            functions,
        };
        if start < end {
            self.ignored += usize::from(self.reserved.push(reserved).is_err());
        }
    }
}

/// The ACPI table with this signature, found from the RSDP by `read`, which answers bytes of
/// physical memory. Its checksum is right.
pub fn table<'a>(
    rsdp: u64,
    signature: &[u8; 4],
    read: impl Fn(u64, u64) -> Option<&'a [u8]>,
) -> Option<&'a [u8]> {
    let whole = |at: u64| {
        let length = u32_at(read(at, 8)?, 4)?;
        read(at, length.into())
    };
    let root = read(rsdp, 36)?;
    let extended = u64_at(root, 24).filter(|at| root.get(15) >= Some(&2) && *at != 0);
    let (list, size) = match extended {
        Some(list) => (list, 8),
        None => (u32_at(root, 16)?.into(), 4),
    };
    let entries = whole(list)?.get(36..)?.chunks_exact(size);
    let mut addresses = entries.filter_map(|entry| match size {
        8 => u64_at(entry, 0),
        _ => u32_at(entry, 0).map(u64::from),
    });
    let is_it = |at: &u64| read(*at, 4).is_some_and(|head| head == signature);
    let found = whole(addresses.find(is_it)?)?;
    let sum = found.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    (sum == 0 && found.len() >= HEADER).then_some(found)
}
