//! Symbol tables in the boot archive (files `symbols/<name>`), so that a crash report names
//! functions without a debugger.
//!
//! Layout, little-endian: `count: u32`, then `count` entries sorted by address of
//! `address: u64, size: u32, name_offset: u32, name_length: u32`, then the names. `name_offset`
//! counts from the start of the blob. The reader accepts any bytes.

/// Bytes of one entry.
pub const ENTRY_BYTES: usize = 20;

fn u32_at(blob: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        blob.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn entry_address(blob: &[u8], index: usize) -> Option<u64> {
    let at = 4 + index * ENTRY_BYTES;
    Some(u64::from_le_bytes(blob.get(at..at + 8)?.try_into().ok()?))
}

/// The function that contains `address`, and the offset into it.
pub fn lookup(blob: &[u8], address: u64) -> Option<(&str, u64)> {
    let count = (u32_at(blob, 0)? as usize).min(blob.len() / ENTRY_BYTES);
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if entry_address(blob, middle)? <= address {
            low = middle + 1
        } else {
            high = middle
        }
    }
    let index = low.checked_sub(1)?;
    let at = 4 + index * ENTRY_BYTES;
    let offset = address - entry_address(blob, index)?;
    if offset >= u64::from(u32_at(blob, at + 8)?) {
        return None;
    }
    let name = u32_at(blob, at + 12)? as usize;
    let name = blob.get(name..name.checked_add(u32_at(blob, at + 16)? as usize)?)?;
    Some((core::str::from_utf8(name).ok()?, offset))
}
