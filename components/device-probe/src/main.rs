//! Drives QEMU's `edu` device (docs/specs/edu in QEMU) as a hostile driver would: DMA within and
//! outside what it was given, interrupts of its own and of others. Takes root's place in an image of
//! its own (`qemu-tests/systems/device-probe.toml`), so it holds everything; it starts no component.
//!
//! It writes a line per claim to COM1, `device-probe: NAME ok` or `device-probe: NAME FAILED: why`,
//! then `device-probe: done`, and ends the machine through QEMU's debug exit.
#![no_std]
#![no_main]

mod calls;
mod claims;
mod edu;

use core::fmt::Write;
use sdk::abi::boot::{Info, feature};

sdk::root_entry!(main);

fn main(info: &'static Info) {
    let Ok(mut out) = calls::Serial::open() else {
        // Nothing to say it with: the suite notices the silence.
        return;
    };
    let has = |bit| info.features & bit != 0;
    let _ = writeln!(
        out,
        "device-probe: protection {}, remapping {}, AMD {}",
        has(feature::DMA_PROTECTION),
        has(feature::INTERRUPT_REMAPPING),
        has(feature::AMDVI)
    );
    let lab = claims::Lab::new(info);
    match lab {
        Err(why) => {
            let _ = writeln!(out, "device-probe: no device: {why:?}");
        }
        Ok(mut lab) => {
            for (name, claim) in claims::list(info) {
                let _ = match claim(&mut lab) {
                    Ok(()) => writeln!(out, "device-probe: {name} ok"),
                    Err(why) => writeln!(out, "device-probe: {name} FAILED: {why:?}"),
                };
            }
        }
    }
    let _ = writeln!(out, "device-probe: done");
    out.end();
}
