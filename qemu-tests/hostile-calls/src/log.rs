//! The log: pages that say what they are, so that a reader finds them in a dump of the machine's
//! memory wherever the hypervisor put them.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 16 | [`MAGIC`] |
//! | 16 | 4 | page's number in its log |
//! | 20 | 4 | bytes used |
//! | 24 | 4 | CRC-32 of the rest and the header with this field 0 |
//! | 28 | 4 | which log |
//! | 32 | 4064 | content |

use crate::layout::PAGE;

/// What a page begins with.
pub const MAGIC: [u8; 16] = *b"\x7fhostile-log-v1\n";
/// Bytes before the content.
pub const HEADER: usize = 32;
/// Bytes of content in a page.
pub const ROOM: usize = PAGE as usize - HEADER;

/// Which logs there are besides those of seeds, which have the seed's number.
pub mod logs {
    /// Model-specific registers, in the order of [`crate::MSRS`].
    pub const MSRS: u32 = 0x1_0000;
    /// Ports, by width and number.
    pub const PORTS: u32 = 0x1_0001;
    /// Places, in the order of [`crate::places::PLACES`].
    pub const PLACES: u32 = 0x1_0002;
    /// Loads from the end of RAM to 4 GiB: vector and value.
    pub const SWEEP: u32 = 0x1_0003;
}

/// Bytes of the record of one call: its answer and what it wrote, see `operations::Told`.
pub const CALL_BYTES: usize = 8;
/// Bytes of the record of one MSR: what happened (bits), then its value.
pub const MSR_BYTES: usize = 9;
/// Bits of an MSR's record: it can be read; what was read can be written back; 0 can be written;
/// all ones can be written; something raised an exception that is not #GP(0).
pub mod msr {
    #![allow(missing_docs)]
    pub const READ: u8 = 1;
    pub const WRITE_BACK: u8 = 2;
    pub const WRITE_ZERO: u8 = 4;
    pub const WRITE_ONES: u8 = 8;
    pub const STRANGE: u8 = 16;
}
/// Bytes of the record of one port at one width: vector of an exception or [`NO_EXCEPTION`] for IN
/// and for OUT, then what was read.
pub const PORT_BYTES: usize = 6;
/// Nothing was raised.
pub const NO_EXCEPTION: u8 = 0xff;
/// Bytes of the record of one place: vectors for load, store and call, a byte of no meaning, then
/// what was read before and after the store.
pub const PLACE_BYTES: usize = 12;

/// CRC-32 (IEEE 802.3), bit by bit through a table of 16.
#[must_use]
pub fn crc(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 16] = {
        let mut table = [0; 16];
        let mut index = 0;
        while index < 16 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 4 {
                value = if value & 1 != 0 {
                    value >> 1 ^ 0xedb8_8320
                } else {
                    value >> 1
                };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    let step =
        |crc: u32, half: u32| crc >> 4 ^ TABLE.get((half & 15) as usize).copied().unwrap_or(0);
    !bytes.iter().fold(!0, |crc, &byte| {
        let byte = u32::from(byte);
        let low = step(crc, crc ^ byte);
        step(low, low ^ byte >> 4)
    })
}

/// A page's header and content, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<'a> {
    /// Which log.
    pub log: u32,
    /// Number of the page in it.
    pub number: u32,
    /// Content.
    pub content: &'a [u8],
}

fn word(page: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*page.get(at..)?.first_chunk()?))
}

/// Reads a page; none if it is no page of a log, or a damaged one.
#[must_use]
pub fn read(page: &[u8]) -> Option<Page<'_>> {
    let page: &[u8; PAGE as usize] = page.first_chunk()?;
    if !page.starts_with(&MAGIC) {
        return None;
    }
    let mut copy = *page;
    copy.get_mut(24..28)?.fill(0);
    let used = word(page, 20)? as usize;
    if crc(&copy) != word(page, 24)? || used > ROOM {
        return None;
    }
    Some(Page {
        log: word(page, 28)?,
        number: word(page, 16)?,
        content: page.get(HEADER..HEADER + used)?,
    })
}

/// Completes a page whose content is in place.
pub fn seal(page: &mut [u8; PAGE as usize], log: u32, number: u32, used: usize) {
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = page.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &MAGIC);
    put(16, &number.to_le_bytes());
    put(20, &(used as u32).to_le_bytes());
    put(24, &[0; 4]);
    put(28, &log.to_le_bytes());
    let sum = crc(page);
    if let Some(place) = page.get_mut(24..28) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn crc_is_the_known_one() {
        assert_eq!(crc(b"123456789"), 0xcbf4_3926);
    }

    proptest! {
        #[test]
        fn a_sealed_page_is_read_and_a_damaged_one_is_not(
            content in prop::collection::vec(any::<u8>(), 0..ROOM),
            log in any::<u32>(), number in any::<u32>(), at in 0..PAGE as usize, bit in 0..8u8,
        ) {
            let mut page = [0; PAGE as usize];
            page[HEADER..HEADER + content.len()].copy_from_slice(&content);
            seal(&mut page, log, number, content.len());
            prop_assert_eq!(read(&page), Some(Page { log, number, content: &content }));
            page[at] ^= 1 << bit;
            prop_assert_eq!(read(&page), None);
        }
    }
}
