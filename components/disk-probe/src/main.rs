//! Test only: a client of interface `block` that finds out whether a disk is one. Writes patterns,
//! reads them back, asks for what no disk has, and breaks its ring's rules. Called `probe-N`, it then
//! has the driver killed N times amid writes, and shows that nothing that was answered is lost. It
//! logs what it sees, the suite judges. Used by the group `iommu` of `cargo suite`.
#![no_std]
#![no_main]

extern crate alloc;

mod errors;
mod kills;
mod pattern;

use sdk::block::{Disk, DiskError};
use sdk::prelude::*;

sdk::entry!(main);

/// The longest wait for anything.
const PATIENCE_SECONDS: u64 = 120;
/// Bit of the own notification that is the disk's.
const DISK_BIT: u64 = 1;

/// A moment after which nothing is expected any more.
fn patience() -> u64 {
    sdk::time::now().saturating_add(sdk::time::microseconds(PATIENCE_SECONDS * 1_000_000))
}

fn main(env: Env) {
    let outcome = run(&env);
    match outcome {
        Ok(()) => log::info!("script ends"),
        Err(why) => log::info!("script stops: {why:?}"),
    }
}

fn run(env: &Env) -> Result<(), DiskError> {
    let mut disk = Disk::attach(env.transport("block"), env.notification(), DISK_BIT)?;
    log::info!("disk: {:?}", disk.geometry());
    pattern::whole(&mut disk)?;
    errors::all(&mut disk)?;
    let kills = env.name.rsplit('-').next().and_then(|n| n.parse().ok());
    if let Some(kills) = kills {
        kills::run(env, &mut disk, kills)?;
    }
    Ok(())
}
