//! A PVH guest that does what a guest must not, and logs what came of it.
//!
//! One ELF that runs unmodified on microvisor and on Xen. Its command line says what to do:
//!
//! | command line | does |
//! |---|---|
//! | `calls FIRST COUNT` | seeded random hypercalls |
//! | `registers` | reads and writes model-specific registers and ports |
//! | `reach` | touches addresses that are not its own |
//! | `triple` | shuts its CPU down |
//! | `disk ROLE` | is the front end of a disk, and misbehaves (`disk`) |
//!
//! The log stays in its memory, in pages that a reader of the machine's memory finds by what they
//! begin with (`hostile_calls::log`). When it is done it says so on Xen's debug port and waits for
//! ever. It uses one vCPU, 64 MiB, no interrupts.
#![no_std]
#![no_main]

mod calls;
mod disk;
mod log;
mod pages;
mod places;
mod registers;
mod xen;

use guest_kit::trap::{self, Exception};
use guest_kit::{command_line, cpu, say};

use xen::Xen;

guest_kit::entry!(main);

fn main(start_info: u64) -> ! {
    trap::install(fault);
    // SAFETY: as it came, and nothing was written yet.
    let line = unsafe { command_line(start_info) };
    let mut words = line.split_ascii_whitespace();
    let Some(xen) = Xen::find() else {
        say!("hostile: this is not Xen");
        cpu::halt();
    };
    pages::prepare();
    let role = words.next().unwrap_or("nothing");
    say!("hostile: {role} begins, domain {}", xen.domid);
    let pages = match role {
        "calls" => {
            let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            let (first, count) = (number(), number());
            calls::run(&xen, first, count)
        }
        "registers" => {
            registers::peek();
            registers::run()
        }
        "reach" => places::run(),
        "disk" => {
            disk::run(words.next().unwrap_or("good"));
            0
        }
        "triple" => trap::triple_fault(),
        _ => 0,
    };
    say!("hostile: {role} done, {pages} pages");
    xen.wait_for_ever()
}

/// An exception where none was expected: said, and the end.
fn fault(exception: Exception, rip: u64) -> ! {
    let Exception { vector, error } = exception;
    say!("hostile: exception {vector} error {error:#x} at {rip:#x}");
    cpu::halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("hostile: {info}");
    cpu::halt()
}
