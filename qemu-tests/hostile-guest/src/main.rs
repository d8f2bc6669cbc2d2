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
//!
//! The log stays in its memory, in pages that a reader of the machine's memory finds by what they
//! begin with (`hostile_calls::log`). When it is done it says so on Xen's debug port and waits for
//! ever. It uses one vCPU, 64 MiB, no interrupts.
#![no_std]
#![no_main]

mod calls;
mod console;
mod log;
mod pages;
mod places;
mod registers;
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
    let line = command_line(start_info);
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
        "triple" => trap::triple_fault(),
        _ => 0,
    };
    say!("hostile: {role} done, {pages} pages");
    xen.wait_for_ever()
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
    say!("hostile: exception {vector} error {error:#x} at {rip:#x}");
    cpu::halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("hostile: {info}");
    cpu::halt()
}
