//! A PVH guest that measures what it pays for what guests do, and runs unmodified on microvisor and
//! on Xen, so that the two can be held side by side (`cargo suite bench --against xen`).
//!
//! Unlike `bench-guest`, which serves the gate, it takes interrupts: events until their upcall, timers
//! until they are delivered, HLT. It measures everything first and prints then, on Xen's debug port,
//! so that nobody's console is at work meanwhile. The command line `idle` leaves all that out: it
//! says that it is there, and waits for ever. One vCPU; what memory it has is touched, 4 MiB is used.
#![no_std]
#![no_main]

mod interrupts;
mod rows;

use guest_kit::trap::{self, Exception};
use guest_kit::xen::Xen;
use guest_kit::{command_line, cpu, say};

guest_kit::entry!(main);

fn main(start_info: u64) -> ! {
    trap::install(fault);
    let Some(xen) = Xen::find() else {
        say!("compare: this is not Xen");
        cpu::halt();
    };
    say!("compare: entry");
    // SAFETY: as it came, and nothing was written yet.
    if unsafe { command_line(start_info) } == "idle" {
        xen.wait_for_ever();
    }
    rows::measure_and_say(xen);
    say!("compare: done");
    xen.power_off();
    cpu::halt()
}

/// An exception where none was expected: said, and the end.
fn fault(exception: Exception, rip: u64) -> ! {
    let Exception { vector, error } = exception;
    say!("compare: exception {vector} error {error:#x} at {rip:#x}");
    cpu::halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("compare: {info}");
    cpu::halt()
}
