//! Drives the core's calls from ring 3 on several CPUs: what host tests of the object code cannot
//! show, because it is about CPUs that run meanwhile. Takes root's place in an image of its own
//! (`qemu-tests/systems/selftest.toml`), so it holds everything; it starts no component.
//!
//! It writes a line per claim to COM1, `selftest: NAME ok` or `selftest: NAME FAILED: why`, then
//! `selftest: done`, and ends the machine through QEMU's debug exit.
//!
//! On two CPUs it makes only the claims for which instructions must be counted (QEMU's `-icount`), and
//! otherwise all others.
#![no_std]
#![no_main]

mod guests;
mod lab;
mod memory;
mod serial;
mod threads;

use core::fmt::Write;

use lab::{Claim, Lab};
use sdk::abi::boot::Info;
use serial::Serial;

sdk::root_entry!(main);

fn main(info: &'static Info) {
    let Ok(mut out) = Serial::open() else {
        // Nothing to say it with: the suite notices the silence.
        return;
    };
    let lists: &[&[Claim]] = match info.cpus {
        2 => &[threads::COUNTED],
        _ => &[threads::CLAIMS, memory::CLAIMS, guests::CLAIMS],
    };
    let _ = writeln!(out, "selftest: {} CPUs", info.cpus);
    let mut lab = Lab::new();
    for (name, claim) in lists.iter().copied().flatten() {
        let _ = match claim(&mut lab) {
            Ok(()) => writeln!(out, "selftest: {name} ok"),
            Err(why) => writeln!(out, "selftest: {name} FAILED: {why:?}"),
        };
    }
    let _ = writeln!(out, "selftest: done");
    out.end();
}
