//! The core: the only host code in kernel mode. It boots the machine, and afterwards only reacts:
//! to system calls, exceptions, interrupts and exits of guests. What those mean is decided by
//! `microvisor_objects`, which knows no hardware; this crate is the hardware.
//!
//! Where to look:
//! - `boot`: from a boot loader to facts; `start`: the boot sequence, in order;
//! - `paging`, `cpu`, `descriptor`, `feature`: what each CPU stands on;
//! - `trap`: entry from user mode and back; `glue`: from there to the objects and to guests;
//! - `hardware`: what the objects ask of the machine; `lock`: the one lock;
//! - `apic`, `ioapic`, `time`, `smp`: interrupts, clocks, other CPUs;
//! - `virt`: guests; `iommu`: devices; `logger`, `ring`, `serial`, `panic`: what is said, and where.
//!
//! Built for a host it is an empty program, so that the parsers in `boot` can be tested there
//! (`tests/loaders.rs`).
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod apic;
#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(target_os = "none")]
mod descriptor;
#[cfg(target_os = "none")]
mod feature;
#[cfg(target_os = "none")]
mod glue;
#[cfg(target_os = "none")]
mod hardware;
#[cfg(target_os = "none")]
mod ioapic;
#[cfg(target_os = "none")]
mod iommu;
#[cfg(target_os = "none")]
mod lock;
#[cfg(target_os = "none")]
mod logger;
#[cfg(target_os = "none")]
mod paging;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
mod registers;
#[cfg(target_os = "none")]
mod ring;
#[cfg(target_os = "none")]
mod serial;
#[cfg(target_os = "none")]
mod smp;
#[cfg(target_os = "none")]
mod speculation;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod time;
#[cfg(target_os = "none")]
mod trap;
#[cfg(target_os = "none")]
mod virt;

/// The first Rust code, on the boot stack with the boot tables. `magic` and `info` are the
/// loader's registers, `tsc` was read at the first instruction.
#[cfg(target_os = "none")]
extern "C" fn kernel_start(magic: u32, info: u32, tsc: u64) -> ! {
    logger::init();
    if let Some(name) = option_env!("CONTROL_BUILD") {
        log::error!("CONTROL BUILD: check {name} is off");
    }
    start::start(magic, info, tsc)
}

#[cfg(not(target_os = "none"))]
fn main() {}
