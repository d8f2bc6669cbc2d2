//! GUID partition tables (UEFI specification 2.10, chapter 5), read from a disk that anybody may have
//! written: a guest that has the whole disk, for one. Any bytes lead to a value; what is read is
//! bounded; a partition outside of the disk is not there.

use alloc::string::String;
use alloc::vec::Vec;

use crate::Missing;

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Bytes of a header that have a meaning (table 5.5).
const HEADER_BYTES: usize = 92;
/// Bytes of an entry at least (table 5.6).
const ENTRY_BYTES: usize = 128;
/// Bytes of all entries at most: eight times what every table of 128 entries has.
const ENTRIES_MAX: u64 = 128 << 10;

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its unique GUID, in the order of the disk's bytes.
    pub unique: [u8; 16],
    /// First block.
    pub first: u64,
    /// Last block.
    pub last: u64,
    /// Its label.
    pub label: String,
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

/// CRC-32 as in the UEFI specification (5.3.2) and IEEE 802.3: reflected, polynomial 0xEDB88320.
pub(crate) fn crc32(bytes: impl IntoIterator<Item = u8>) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: u8| (0..8).fold(crc ^ u32::from(byte), step);
    !bytes.into_iter().fold(u32::MAX, byte)
}

/// A header that is believed: where its entries are.
struct Header {
    first_usable: u64,
    last_usable: u64,
    entries: u64,
    count: u32,
    entry_bytes: u32,
    checksum: u32,
}

fn header(block: &[u8], here: u64, blocks: u64) -> Option<Header> {
    let length = word32(block, 12)? as usize;
    if block.get(..8)? != SIGNATURE || !(HEADER_BYTES..=block.len()).contains(&length) {
        return None;
    }
    // The checksum is made over the header with zeros in its own place.
    let bytes = block.get(..length)?.iter().enumerate();
    let zeroed = bytes.map(|(at, byte)| if (16..20).contains(&at) { 0 } else { *byte });
    if crc32(zeroed) != word32(block, 16)? || word64(block, 24)? != here {
        return None;
    }
    let header = Header {
        first_usable: word64(block, 40)?,
        last_usable: word64(block, 48)?,
        entries: word64(block, 72)?,
        count: word32(block, 80)?,
        entry_bytes: word32(block, 84)?,
        checksum: word32(block, 88)?,
    };
    let bytes = u64::from(header.count) * u64::from(header.entry_bytes);
    let sound = header.entry_bytes as usize >= ENTRY_BYTES
        && header.entry_bytes.is_power_of_two()
        && bytes <= ENTRIES_MAX
        && header.last_usable < blocks;
    sound.then_some(header)
}

/// The partitions of a disk of `blocks` blocks of `block_bytes`, by the table at its beginning or, if
/// that is not valid, the one at its end. `read` reads whole blocks, and says whether it could.
pub fn read(
    block_bytes: u32,
    blocks: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> bool,
) -> Result<Vec<Partition>, Missing> {
    let mut outcome = Err(Missing::Table);
    for here in [1, blocks.saturating_sub(1)] {
        match table(block_bytes, blocks, here, &mut read) {
            Err(Missing::Disk) => outcome = Err(Missing::Disk),
            Err(_) => {}
            found => return found,
        }
    }
    outcome
}

fn table(
    block_bytes: u32,
    blocks: u64,
    here: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> bool,
) -> Result<Vec<Partition>, Missing> {
    if here < 1 || here >= blocks || !(512..=4096).contains(&block_bytes) {
        return Err(Missing::Table);
    }
    let mut block = alloc::vec![0; block_bytes as usize];
    if !read(here, &mut block) {
        return Err(Missing::Disk);
    }
    let header = header(&block, here, blocks).ok_or(Missing::Table)?;
    let bytes = header.count as usize * header.entry_bytes as usize;
    let count = (bytes as u64).div_ceil(u64::from(block_bytes));
    let end = header.entries.checked_add(count);
    if end.is_none_or(|end| end > blocks) {
        return Err(Missing::Table);
    }
    let mut entries = Vec::with_capacity(count as usize * block_bytes as usize);
    for number in header.entries..header.entries + count {
        if !read(number, &mut block) {
            return Err(Missing::Disk);
        }
        entries.extend_from_slice(&block);
    }
    entries.truncate(bytes);
    if crc32(entries.iter().copied()) != header.checksum {
        return Err(Missing::Table);
    }
    let all = entries.chunks_exact(header.entry_bytes as usize);
    Ok(all.filter_map(|entry| partition(entry, &header)).collect())
}

fn partition(entry: &[u8], header: &Header) -> Option<Partition> {
    let kind: &[u8; 16] = entry.first_chunk()?;
    let (first, last) = (word64(entry, 32)?, word64(entry, 40)?);
    let used = kind.iter().any(|byte| *byte != 0);
    let inside = first <= last && first >= header.first_usable && last <= header.last_usable;
    let letters = entry.get(56..ENTRY_BYTES)?.chunks_exact(2);
    let letters = letters.map(|pair| match pair {
        [low, high] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    });
    let letters = letters.take_while(|letter| *letter != 0);
    let label = char::decode_utf16(letters).map(|letter| letter.unwrap_or('\u{fffd}'));
    (used && inside).then_some(Partition {
        unique: *entry.get(16..)?.first_chunk()?,
        first,
        last,
        label: label.collect(),
    })
}
