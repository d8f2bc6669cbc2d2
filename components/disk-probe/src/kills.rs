//! The driver dies amid writes, again and again. Every write that was answered and flushed is there
//! afterwards, and so are, since the client puts them to the next driver, those that were not answered.

use alloc::collections::BTreeMap;
use alloc::vec;

use idl::admin::AdminClient;
use idl::requests::Operation;
use sdk::block::{Disk, DiskError};
use sdk::prelude::*;

use crate::pattern::{self, DEPTH, UNIT, UNITS};

/// Writes between two kills, at least.
const WRITES: u32 = 40;

/// Kills the driver so many times.
pub fn run(env: &Env, disk: &mut Disk, kills: u32) -> Result<(), DiskError> {
    let Ok(admin) = AdminClient::connect(env.transport("admin")) else {
        log::info!("nobody kills");
        return Ok(());
    };
    let victim = env.wires.iter().find(|wire| wire.interface == "block");
    let victim = victim.map(|wire| wire.server.clone()).unwrap_or_default();
    // What each unit was written as last, whether that was answered or not.
    let mut written = vec![1u64; UNITS as usize];
    // By identity: unit and place.
    let mut open: BTreeMap<u32, (u64, u32)> = BTreeMap::new();
    let mut random = 0x1234_5678_9abc_def1u64;
    let (mut sequence, mut amid) = (1, 0);
    for kill in 1..=kills {
        let before = disk.reattached;
        let mut writes = 0;
        let mut killed = false;
        while !killed || disk.reattached == before || writes < WRITES {
            while let Some(place) = (0..DEPTH).find(|place| open.values().all(|(_, p)| p != place))
            {
                // xorshift64: any order that is no order will do.
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let unit = random % UNITS;
                if open.values().any(|(other, _)| *other == unit) {
                    continue;
                }
                sequence += 1;
                pattern::put(disk, place, unit, sequence);
                let block = pattern::block(disk, unit);
                let id = disk.submit(Operation::Write, block, pattern::offset(place), UNIT)?;
                open.insert(id, (unit, place));
                if let Some(last) = written.get_mut(unit as usize) {
                    *last = sequence;
                }
                writes += 1;
            }
            if writes >= WRITES && !killed {
                killed = true;
                let open = open.len();
                if admin.kill(victim.clone()).is_err() {
                    log::info!("root does not kill {victim}");
                    return Ok(());
                }
                amid += u32::from(open > 0);
                if kill % 10 == 0 {
                    log::info!("kill {kill}, {open} writes without an answer");
                }
            }
            let id = pattern::good(disk)?;
            if open.remove(&id).is_none() {
                return Err(DiskError::Damaged);
            }
        }
    }
    while !open.is_empty() {
        let id = pattern::good(disk)?;
        open.remove(&id);
    }
    pattern::flush(disk)?;
    let wrong = pattern::wrong(disk, &written)?;
    log::info!(
        "killed {kills} times, {amid} amid writes, attached again {} times: {wrong} of {UNITS} units wrong",
        disk.reattached
    );
    let sum = written
        .iter()
        .enumerate()
        .fold(0u64, |sum, (unit, sequence)| {
            let words = pattern::content(unit as u64, *sequence);
            words.fold(sum, |sum, word| sum.rotate_left(1) ^ word)
        });
    log::info!("the first {UNITS} units sum up to {sum:#018x}");
    Ok(())
}
