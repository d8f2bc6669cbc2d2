//! A PVH guest that measures what it pays for what guests do, and runs unmodified on microvisor and
//! on Xen, so that the two can be held side by side (`cargo suite bench --against xen`).
//!
//! Unlike `bench-guest`, which serves the gate, it takes interrupts: events until their upcall, timers
//! until they are delivered, HLT. It measures everything first and prints then, on Xen's debug port,
//! so that nobody's console is at work meanwhile. One vCPU; what memory it has is touched, 4 MiB is used.
//!
//! | command line | does |
//! |---|---|
//! | `with DOMAIN` | measures; that domain is the next one |
//! | `peer DOMAIN` | is the other guest for that domain, until it has measured |
//! | `idle` | says that it is there, and waits for ever |
#![no_std]
#![no_main]

mod interrupts;
mod rows;

use guest_kit::pages::Page;
use guest_kit::peer;
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
    let mut words = unsafe { command_line(start_info) }.split_ascii_whitespace();
    let role = words.next();
    let other = words.next().and_then(|domain| domain.parse().ok());
    match (role, other) {
        (Some("idle"), _) => xen.wait_for_ever(),
        (Some("peer"), Some(other)) => {
            if peer::answer(xen, other, Page::own(0), Page::own(1)).is_none() {
                say!("compare: no peer can be here");
            }
        }
        (_, other) => {
            rows::measure_and_say(xen, other);
            say!("compare: done");
        }
    }
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
