//! A guest that measures what a Xen PVH guest pays for exits, hypercalls and events, for its disk, and for what
//! it has to do with another guest.
//!
//! One ELF that starts at its PVH entry point and runs unmodified on microvisor, on Xen, and
//! (with fewer rows) directly in QEMU. It prints the lines of [`measure`], `BENCH done guest`
//! last, and powers off. It uses one vCPU, 4 MiB of memory, and interrupts only in the end.
//!
//! Command line: `with DOMAIN` has it measure, that domain being the other guest; `peer DOMAIN` has it be the
//! other guest for that one.
#![no_std]
#![no_main]

mod others;
mod output;
mod rows;

use guest_kit::pages::Page;
use guest_kit::trap::{self, Exception};
use guest_kit::xen::Xen;
use guest_kit::{command_line, cpu, peer};
use measure::Line;
use output::{Output, say};

guest_kit::entry!(main);

fn main(start_info: u64) -> ! {
    trap::install(fault);
    let xen = Xen::find();
    // SAFETY: as it came, and nothing was written yet. Without Xen there may be no such structure.
    let line = xen.map_or("", |_| unsafe { command_line(start_info) });
    let mut words = line.split_ascii_whitespace();
    let role = words.next();
    let other = words.next().and_then(|domain| domain.parse().ok());
    let output = Output::find();
    if let (Some("peer"), Some(xen), Some(other)) = (role, xen, other) {
        if peer::answer(xen, other, Page::own(0), Page::own(1)).is_none() {
            say!(output, "bench-guest: no peer can be here");
        }
        end(&output);
    }
    tell_debugger();
    rows::Bench::new(&output).all(other);
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
