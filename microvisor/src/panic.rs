//! The end of the core: says on COM1 what happened, where, and what came before, then stops every
//! CPU. Nothing returns from here.

use crate::cpu;
use crate::paging;
use crate::ring;
use crate::serial::Serial;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use microvisor_abi::thread::Registers;

/// Trace events that are shown of each CPU.
const EVENTS: u64 = 40;

static STOPPING: AtomicBool = AtomicBool::new(false);
static READY: AtomicBool = AtomicBool::new(false);
static SYMBOLS: (AtomicU64, AtomicUsize) = (AtomicU64::new(0), AtomicUsize::new(0));

/// From now on the per-CPU area is loaded.
pub fn per_cpu_ready() {
    READY.store(true, Ordering::Relaxed);
}

/// Tells where the core's symbol table is (`microvisor_abi::symbols`).
pub fn set_symbols(table: &'static [u8]) {
    SYMBOLS.1.store(table.len(), Ordering::Relaxed);
    SYMBOLS.0.store(table.as_ptr() as u64, Ordering::Relaxed);
}

fn symbols() -> &'static [u8] {
    let (start, length) = (
        SYMBOLS.0.load(Ordering::Relaxed),
        SYMBOLS.1.load(Ordering::Relaxed),
    );
    if start == 0 {
        return &[];
    }
    // SAFETY: `set_symbols` was given exactly this static slice.
    unsafe { core::slice::from_raw_parts(start as *const u8, length) }
}

fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// The first CPU to come here goes on, after stopping the others; the rest halt.
fn begin() {
    if STOPPING.swap(true, Ordering::SeqCst) {
        halt();
    }
    if READY.load(Ordering::Relaxed) {
        let me = cpu::index();
        for other in (0..cpu::count())
            .filter(|&index| index != me)
            .filter_map(cpu::other)
        {
            crate::apic::send_nmi(other.apic_id);
        }
    }
}

fn place(out: &mut Serial, address: u64) {
    let _ = match microvisor_abi::symbols::lookup(symbols(), address) {
        Some((name, offset)) => writeln!(out, "  {address:016x} {name}+{offset:#x}"),
        None => writeln!(out, "  {address:016x}"),
    };
}

/// Follows frame pointers as long as they stay on one stack and lead to code.
fn backtrace(out: &mut Serial, rip: u64, mut frame: u64) {
    let _ = writeln!(out, "backtrace:");
    place(out, rip);
    let bounds = if READY.load(Ordering::Relaxed) {
        cpu::stack_around(cpu::index(), frame)
    } else {
        Some(boot_stack())
    };
    let Some((bottom, top)) = bounds else { return };
    for _ in 0..32 {
        if frame < bottom || frame + 16 > top || !frame.is_multiple_of(8) {
            return;
        }
        // SAFETY: both words lie on this CPU's mapped stack.
        let [next, back] = unsafe { *(frame as *const [u64; 2]) };
        if !paging::is_text(back) {
            return;
        }
        place(out, back);
        if next <= frame {
            return;
        }
        frame = next;
    }
}

fn boot_stack() -> (u64, u64) {
    unsafe extern "C" {
        static boot_stack_bottom: u8;
        static boot_stack_top: u8;
    }
    (
        &raw const boot_stack_bottom as u64,
        &raw const boot_stack_top as u64,
    )
}

fn traces(out: &mut Serial) {
    for index in 0..cpu::count() {
        let Some(cpu) = cpu::other(index) else {
            continue;
        };
        let _ = writeln!(
            out,
            "trace of CPU {index}, oldest first (TSC, event, a, b):"
        );
        for event in cpu.trace.last(EVENTS) {
            let name = ring::name(event.kind);
            let _ = writeln!(out, "  {} {name} {:#x} {:#x}", event.tsc, event.a, event.b);
        }
    }
}

/// An exception in the core, or an emergency one anywhere. Called by the stubs.
pub extern "C" fn exception(regs: &Registers, vector: u64, error: u64) -> ! {
    begin();
    let out = &mut Serial;
    let address: u64;
    // SAFETY: reads CR2.
    unsafe { core::arch::asm!("mov {}, cr2", out(reg) address, options(nomem, nostack)) };
    let cpu = if READY.load(Ordering::Relaxed) {
        cpu::index()
    } else {
        0
    };
    let _ = writeln!(
        out,
        "\ncore: exception {vector}, error {error:#x}, CR2 {address:#x}, on CPU {cpu}"
    );
    for (name, value) in Registers::NAMES.iter().zip(regs.words()) {
        let _ = writeln!(out, "  {name:6} {value:016x}");
    }
    backtrace(out, regs.rip, regs.rbp);
    traces(out);
    let _ = writeln!(out, "core: stopped");
    out.drain();
    halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    x86_64::instructions::interrupts::disable();
    begin();
    let out = &mut Serial;
    let cpu = if READY.load(Ordering::Relaxed) {
        cpu::index()
    } else {
        0
    };
    let _ = writeln!(out, "\ncore: {info} (CPU {cpu})");
    let frame: u64;
    // SAFETY: reads the frame pointer.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack)) };
    backtrace(out, panic as *const () as u64, frame);
    traces(out);
    let _ = writeln!(out, "core: stopped");
    out.drain();
    halt()
}
