//! A PVH guest that measures what it pays for what guests do, and runs unmodified on microvisor and
//! on Xen, so that the two can be held side by side (`cargo suite bench --against xen`).
//!
//! Unlike `bench-guest`, which serves the gate, it takes interrupts: events until their upcall, timers
//! until they are delivered, HLT. It measures everything first and prints then, on Xen's debug port,
//! so that nobody's console is at work meanwhile. The command line `idle` leaves all that out: it
//! says that it is there, and waits for ever. One vCPU; what memory it has is touched, 4 MiB is used.
#![no_std]
#![no_main]

mod console;
mod interrupts;
mod rows;
mod xen;

use core::ffi::CStr;

use guest_kit::boot::MAPPED_END;
use guest_kit::cpu;
use guest_kit::trap::{self, Exception};

use console::say;
use xen::Xen;

guest_kit::entry!(main);

/// Where `hvm_start_info` has the address of the command line (public/arch-x86/hvm/start_info.h).
const COMMAND_LINE: u64 = 24;

fn main(start_info: u64) -> ! {
    trap::install(fault);
    let Some(xen) = Xen::find() else {
        say!("compare: this is not Xen");
        cpu::halt();
    };
    say!("compare: entry");
    if command_line(start_info) == "idle" {
        xen.wait_for_ever();
    }
    rows::measure_and_say(xen);
    say!("compare: done");
    xen.power_off();
    cpu::halt()
}

fn command_line(start_info: u64) -> &'static str {
    let word = |at: u64| {
        // SAFETY: the start info lies below 4 GiB, where everything is mapped; nothing has changed
        // it yet.
        unsafe { ((start_info + at) as *const u64).read_unaligned() }
    };
    let at = word(COMMAND_LINE);
    if at == 0 || at >= MAPPED_END {
        return "";
    }
    // SAFETY: a string that ends in 0, in memory that this program does not write.
    let text = unsafe { CStr::from_ptr(at as *const core::ffi::c_char) };
    text.to_str().unwrap_or("")
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
