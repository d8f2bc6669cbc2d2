//! The journal: records in memory that outlives the store's instance, so that the next one goes on.
//!
//! The memory has two halves. Records are appended behind those of the half in use, and count once
//! one word says so: which half, and how much of it. That store is the only one that matters, and it
//! cannot be torn, so an instance may die between any two. When a half is full, the state is written
//! to the other one as records, and the same word changes over. A checksum with each record finds
//! what was damaged by other means.

use alloc::vec;
use alloc::vec::Vec;

pub use sdk::keep::Area;

use crate::record::Record;

/// First word of a journal; the last digits are the format's version.
const MAGIC: u64 = 0x7873_6a6f_7572_0001;
/// Words: magic, then what counts.
const COMMIT: u64 = 1;
/// First word of the first half.
const FIRST: u64 = 8;
/// Words of the shortest journal that is of use.
const LEAST: u64 = 4096;
/// Bytes of the longest record: an answer or a value with its path, and what surrounds them.
const RECORD_MAX: usize = 16 * 1024;

/// There is no room, or no record as long as this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A journal in its memory.
pub struct Journal<A> {
    area: A,
    /// Words of each half; 0 if nothing is kept.
    half: u64,
    /// The second half is in use.
    second: bool,
    /// Words of it that count.
    used: u64,
}

fn checksum(bytes: &[u8]) -> u32 {
    // FNV-1a, 32 bits.
    bytes.iter().fold(0x811c_9dc5, |sum: u32, byte| {
        (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

fn encode(record: &Record) -> Result<Vec<u64>, Full> {
    let mut bytes = vec![0; RECORD_MAX];
    let length = idl::wire::write_value(record, &mut bytes).map_err(|_| Full)?;
    let bytes = bytes.get(..length).unwrap_or(&[]);
    let head = length as u64 | u64::from(checksum(bytes)) << 32;
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        for (place, byte) in word.iter_mut().zip(chunk) {
            *place = *byte;
        }
        u64::from_le_bytes(word)
    });
    Ok(core::iter::once(head).chain(words).collect())
}

impl<A: Area> Journal<A> {
    /// The journal in `area`, a new one if there is none. Hands what is in it to `apply`, in order, and
    /// answers whether something of it was damaged, and with all that follows was left out.
    pub fn open(area: A, mut apply: impl FnMut(Record)) -> (Journal<A>, bool) {
        let words = area.words();
        let half = if words < LEAST {
            0
        } else {
            (words - FIRST) / 2
        };
        let mut journal = Journal {
            area,
            half,
            second: false,
            used: 0,
        };
        if half == 0 {
            return (journal, false);
        }
        if journal.area.read(0) != MAGIC {
            journal.area.write(COMMIT, 0);
            journal.area.write(0, MAGIC);
            return (journal, false);
        }
        let commit = journal.area.read(COMMIT);
        journal.second = commit >> 63 != 0;
        let count = commit & !(1 << 63);
        while journal.used < count.min(half) {
            let Some((record, words)) = journal.next(count.min(half)) else {
                break;
            };
            apply(record);
            journal.used += words;
        }
        let damaged = journal.used != count;
        (journal, damaged)
    }

    fn base(&self, second: bool) -> u64 {
        FIRST + if second { self.half } else { 0 }
    }

    /// The record at `used`, and its words.
    fn next(&self, end: u64) -> Option<(Record, u64)> {
        let at = self.base(self.second) + self.used;
        let head = self.area.read(at);
        let length = head as u32 as usize;
        let words = 1 + length.div_ceil(8) as u64;
        if length > RECORD_MAX || self.used + words > end {
            return None;
        }
        let mut bytes = Vec::with_capacity(length + 8);
        for word in 1..words {
            bytes.extend(self.area.read(at + word).to_le_bytes());
        }
        bytes.truncate(length);
        if checksum(&bytes) != (head >> 32) as u32 {
            return None;
        }
        Some((idl::wire::read_value(&bytes).ok()?, words))
    }

    /// Bytes that the state may take: half of a half, so that writing it anew is paid for by as many
    /// bytes of records.
    pub fn capacity(&self) -> usize {
        match self.half {
            0 => usize::MAX,
            half => half as usize * 8 / 2,
        }
    }

    /// Appends records, all or none. [`Full`]: write the state anew first.
    pub fn append(&mut self, records: &[Record]) -> Result<(), Full> {
        if self.half == 0 {
            return Ok(());
        }
        let mut end = self.used;
        for record in records {
            end = self.put(self.second, end, record)?;
        }
        self.commit(self.second, end);
        Ok(())
    }

    /// Writes the whole state, and nothing before it counts any more.
    pub fn restate(&mut self, records: impl Iterator<Item = Record>) -> Result<(), Full> {
        if self.half == 0 {
            return Ok(());
        }
        let mut end = 0;
        for record in records {
            end = self.put(!self.second, end, &record)?;
        }
        self.commit(!self.second, end);
        Ok(())
    }

    /// Writes a record that does not count yet; where it ends.
    fn put(&mut self, second: bool, from: u64, record: &Record) -> Result<u64, Full> {
        let words = encode(record)?;
        let end = from + words.len() as u64;
        if end > self.half {
            return Err(Full);
        }
        for (at, word) in (self.base(second) + from..).zip(words) {
            self.area.write(at, word);
        }
        Ok(end)
    }

    fn commit(&mut self, second: bool, end: u64) {
        self.area.write(COMMIT, u64::from(second) << 63 | end);
        (self.second, self.used) = (second, end);
    }
}
