//! A guest that measures what a Xen PVH guest pays for exits, hypercalls and events.
//!
//! One ELF that starts at its PVH entry point and runs unmodified on microvisor, on Xen, and
//! (with fewer rows) directly in QEMU. It prints the lines of [`measure`], `BENCH done guest`
//! last, and powers off. It uses one vCPU, 4 MiB of memory, no interrupts.
#![no_std]
#![no_main]

mod output;
mod rows;

use guest_kit::cpu;
use guest_kit::trap::{self, Exception};
use measure::Line;
use output::{Output, say};

guest_kit::entry!(main);

fn main(_start_info: u64) -> ! {
    trap::install(fault);
    let output = Output::find();
    tell_debugger();
    rows::Bench::new(&output).all();
    say!(output, "{}", Line::Done("guest"));
    end(&output)
}

/// Says to Bochs's debugger, which stops here if it was told to (`magic_break`), that measuring begins.
/// Addresses would not tell: components have the same. Anywhere else this does nothing.
fn tell_debugger() {
    // SAFETY: exchanges a register with itself.
    unsafe { core::arch::asm!("xchg bx, bx", options(nostack, preserves_flags)) }
}

/// Powers off. Without Xen there is QEMU's isa-debug-exit, if it is configured (port 0xf4).
fn end(output: &Output) -> ! {
    match output {
        Output::Ring(xen, ..) | Output::Hypercall(xen) => xen.power_off(),
        // SAFETY: the device ends the emulator; without it, nothing is behind the port.
        Output::Serial => unsafe { cpu::out_byte(0xf4, 0) },
    }
    cpu::halt()
}

/// No exception is expected.
fn fault(exception: Exception, rip: u64) -> ! {
    let output = Output::find();
    let Exception { vector, error } = exception;
    say!(
        output,
        "bench-guest: exception {vector} error {error:#x} at {rip:#x}"
    );
    end(&output)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let output = Output::find();
    say!(output, "bench-guest: {info}");
    end(&output)
}
