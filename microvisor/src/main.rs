//! The core: the only host code in kernel mode. It boots the machine, and afterwards only reacts:
//! to system calls, exceptions, interrupts and exits of guests. What those mean is decided by
//! `microvisor_objects`, which knows no hardware; this crate is the hardware.
//!
//! Where to look:
//! - `boot`: from a boot loader to facts; `paging`, `cpu`, `descriptor`: what each CPU stands on;
//! - `trap`: entry from user mode and back; `glue`: from there to the objects and to guests;
//! - `hardware`: what the objects ask of the machine; `lock`: the one lock;
//! - `apic`, `ioapic`, `time`, `smp`: interrupts, clocks, other CPUs;
//! - `virt`: guests; `logger`, `ring`, `serial`, `panic`: what is said, and where.
#![no_std]
#![no_main]

mod apic;
mod boot;
mod cpu;
mod descriptor;
mod feature;
mod glue;
mod hardware;
mod ioapic;
mod lock;
mod logger;
mod paging;
mod panic;
mod ring;
mod serial;
mod smp;
mod start;
mod time;
mod trap;
mod virt;

/// The first Rust code, on the boot stack with the boot tables. `magic` and `info` are the
/// loader's registers, `tsc` was read at the first instruction.
extern "C" fn kernel_start(magic: u32, info: u32, tsc: u64) -> ! {
    logger::init();
    start::start(magic, info, tsc)
}
