//! The one ACPI table that the bus needs: MCFG, which says where configuration space is mapped
//! (PCI Firmware Specification 3.3, 4.1.2), and the way to it from the RSDP (ACPI 6.5, 5.2).

use alloc::vec;
use alloc::vec::Vec;

/// Physical memory, to be read.
pub trait Physical {
    /// Fills `into` from `address` on; false if that cannot be read.
    fn read(&mut self, address: u64, into: &mut [u8]) -> bool;
}

/// Largest table that is believed.
const TABLE_MAX: usize = 64 * 1024;
/// Bytes of a table's header.
const HEADER: usize = 36;

/// Where the configuration space of a range of buses is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Physical address of bus 0 of the segment, whether it is in the range or not.
    pub base: u64,
    /// First bus.
    pub first: u8,
    /// Last bus.
    pub last: u8,
}

/// Why there is no MCFG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// No RSDP, or a damaged one.
    Rsdp,
    /// The root table is unreadable or damaged.
    Root,
    /// There is no MCFG, or it is damaged, or says nothing of segment 0.
    NoMcfg,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// A whole table, its checksum right.
fn table(memory: &mut impl Physical, address: u64, signature: Option<&[u8; 4]>) -> Option<Vec<u8>> {
    let mut header = [0; HEADER];
    if address == 0 || !memory.read(address, &mut header) {
        return None;
    }
    if signature.is_some_and(|signature| !header.starts_with(signature)) {
        return None;
    }
    let length = u32_at(&header, 4)? as usize;
    if !(HEADER..=TABLE_MAX).contains(&length) {
        return None;
    }
    let mut bytes = vec![0; length];
    (memory.read(address, &mut bytes) && sums_to_zero(&bytes)).then_some(bytes)
}

/// The windows of segment 0.
pub fn windows(memory: &mut impl Physical, rsdp: u64) -> Result<Vec<Window>, AcpiError> {
    let mut root = [0; HEADER];
    let readable = rsdp != 0 && memory.read(rsdp, &mut root);
    let (first, extended) = root.split_at(20);
    if !readable || !first.starts_with(b"RSD PTR ") || !sums_to_zero(first) {
        return Err(AcpiError::Rsdp);
    }
    // Revision 2 has a 64-bit root table, in the part behind the first 20 bytes.
    let wide = first.get(15).is_some_and(|&revision| revision >= 2)
        && sums_to_zero(&root)
        && u64_at(extended, 4).is_some_and(|address| address != 0);
    let (address, signature, size) = if wide {
        (u64_at(&root, 24), b"XSDT", 8)
    } else {
        (u32_at(&root, 16).map(u64::from), b"RSDT", 4)
    };
    let address = address.ok_or(AcpiError::Rsdp)?;
    let list = table(memory, address, Some(signature)).ok_or(AcpiError::Root)?;
    let entries = list.get(HEADER..).unwrap_or(&[]).chunks_exact(size);
    for entry in entries {
        let address = if wide {
            u64_at(entry, 0)
        } else {
            u32_at(entry, 0).map(u64::from)
        };
        let mcfg = address.and_then(|address| table(memory, address, Some(b"MCFG")));
        if let Some(mcfg) = mcfg {
            return parse(&mcfg);
        }
    }
    Err(AcpiError::NoMcfg)
}

/// The windows of segment 0 in an MCFG.
fn parse(mcfg: &[u8]) -> Result<Vec<Window>, AcpiError> {
    let entries = mcfg.get(HEADER + 8..).unwrap_or(&[]).chunks_exact(16);
    let windows: Vec<Window> = entries
        .filter_map(|entry| {
            let segment = entry.get(8..10)?;
            let (first, last) = (*entry.get(10)?, *entry.get(11)?);
            let base = u64_at(entry, 0)?;
            // A window that is not aligned to a bus's megabyte, or ends beyond all addresses, is none.
            let end = base.checked_add(256 << 20)?;
            let good = segment == [0, 0] && first <= last && base.is_multiple_of(1 << 20);
            (good && base != 0 && end < 1 << 52).then_some(Window { base, first, last })
        })
        .collect();
    if windows.is_empty() {
        return Err(AcpiError::NoMcfg);
    }
    Ok(windows)
}
