//! Units of data that say which unit they are and how often it was written; and writing all of them.

use alloc::vec;
use alloc::vec::Vec;

use idl::requests::{Operation, PAGE_BYTES, Status as Ended};
use sdk::block::{Disk, DiskError};

use crate::patience;

/// Bytes of a unit.
pub const UNIT: u32 = 4096;
/// Units that are used: the first of the disk.
pub const UNITS: u64 = 4096;
/// Requests that are in flight at once.
pub const DEPTH: u32 = 16;
const WORDS: usize = UNIT as usize / 8;

/// The words of a unit after it was written for the `sequence`-th time. The suite knows this too
/// (qemu-tests/src/iommu.rs).
pub fn content(unit: u64, sequence: u64) -> impl Iterator<Item = u64> {
    (0..WORDS as u64).map(move |word| {
        let mixed = (unit << 40 ^ sequence << 12 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match word {
            0 => unit,
            1 => sequence,
            _ => mixed ^ mixed >> 29,
        }
    })
}

/// Where the data of request number `index` of [`DEPTH`] lies.
pub fn offset(index: u32) -> u32 {
    PAGE_BYTES + index % DEPTH * UNIT
}

/// First block of a unit.
pub fn block(disk: &Disk, unit: u64) -> u64 {
    unit * u64::from(UNIT / disk.geometry().block_bytes)
}

/// Puts a unit's content where request number `index` takes it from.
pub fn put(disk: &mut Disk, index: u32, unit: u64, sequence: u64) {
    let words: Vec<u64> = content(unit, sequence).collect();
    disk.put(offset(index), &words);
}

/// The next answer, which has to be a good one.
pub fn good(disk: &mut Disk) -> Result<u32, DiskError> {
    let answer = disk.wait(patience())?;
    match answer.status {
        Ended::Done => Ok(answer.id),
        other => Err(DiskError::Ended(other)),
    }
}

/// Submits for every unit, so many at once; `done` hears of each answer: unit and place.
fn each(
    disk: &mut Disk,
    units: u64,
    mut submit: impl FnMut(&mut Disk, u32, u64) -> Result<u32, DiskError>,
    mut done: impl FnMut(&mut Disk, u32, u64),
) -> Result<(), DiskError> {
    let mut places: Vec<Option<(u32, u64)>> = vec![None; DEPTH as usize];
    let mut next = 0;
    loop {
        for (index, place) in places.iter_mut().enumerate() {
            if place.is_none() && next < units {
                *place = Some((submit(disk, index as u32, next)?, next));
                next += 1;
            }
        }
        if places.iter().all(Option::is_none) {
            return Ok(());
        }
        let id = good(disk)?;
        let found = places
            .iter()
            .position(|place| place.is_some_and(|(known, _)| known == id));
        let Some(index) = found else {
            return Err(DiskError::Damaged);
        };
        if let Some((_, unit)) = places.get_mut(index).and_then(Option::take) {
            done(disk, index as u32, unit);
        }
    }
}

/// Flushes and waits for it.
pub fn flush(disk: &mut Disk) -> Result<(), DiskError> {
    disk.submit(Operation::Flush, 0, 0, 0)?;
    good(disk).map(|_| ())
}

/// How many units do not hold what `expected` says they were written as last.
pub fn wrong(disk: &mut Disk, expected: &[u64]) -> Result<u64, DiskError> {
    let mut wrong = 0;
    each(
        disk,
        expected.len() as u64,
        |disk, index, unit| {
            // What was there before must not pass for what is read.
            disk.put(offset(index), &[0; WORDS]);
            let block = block(disk, unit);
            disk.submit(Operation::Read, block, offset(index), UNIT)
        },
        |disk, index, unit| {
            let mut words = [0; WORDS];
            disk.get(offset(index), &mut words);
            let sequence = expected.get(unit as usize).copied().unwrap_or(0);
            if !content(unit, sequence).eq(words) {
                wrong += 1;
            }
        },
    )?;
    Ok(wrong)
}

/// Writes every unit, flushes, reads all back.
pub fn whole(disk: &mut Disk) -> Result<(), DiskError> {
    each(
        disk,
        UNITS,
        |disk, index, unit| {
            put(disk, index, unit, 1);
            let block = block(disk, unit);
            disk.submit(Operation::Write, block, offset(index), UNIT)
        },
        |_, _, _| {},
    )?;
    flush(disk)?;
    let wrong = wrong(disk, &vec![1; UNITS as usize])?;
    log::info!("wrote, flushed and read {UNITS} units: {wrong} wrong");
    // A large request too.
    let bytes = disk.geometry().request_bytes.min(512 << 10);
    disk.submit(Operation::Read, 0, PAGE_BYTES, bytes)?;
    good(disk)?;
    let mut same = 0;
    for unit in 0..u64::from(bytes / UNIT) {
        let mut words = [0; WORDS];
        disk.get(PAGE_BYTES + unit as u32 * UNIT, &mut words);
        same += u64::from(content(unit, 1).eq(words));
    }
    log::info!(
        "one request of {bytes} bytes: {same} of {} units right",
        bytes / UNIT
    );
    Ok(())
}
