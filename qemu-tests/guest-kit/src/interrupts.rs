//! One interrupt: the upcall of events, for guests that take it. What its handler does is the guest's.
//!
//! `trap` has a table of exceptions only; this one is a copy of that, longer.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use crate::xen::{SHARED_INFO, SharedInfo};

/// The upcall's vector: any from 32 on would do.
pub const VECTOR: u8 = 0x40;
/// Gates of exceptions (Intel SDM vol. 3, 6.3.1).
const EXCEPTIONS: usize = 32;
/// Gates of this table.
const GATES: usize = VECTOR as usize + 1;
/// Present interrupt gate of privilege 0, to the code segment at selector 8.
const GATE: u64 = 0x8e00_0008_0000;

// `evtchn_upcall_pending`, byte 0 of vCPU 0's `vcpu_info` at the start of the shared info page
// (public/xen.h), is cleared, or the upcall would come again at once.
global_asm!(
    r#"
    .balign 16
    .global quiet_upcall
quiet_upcall:
    mov byte ptr [rip + {shared}], 0
    iretq
    "#,
    shared = sym SHARED_INFO,
);

unsafe extern "C" {
    static quiet_upcall: u8;
}

/// A handler that takes the upcall back and does nothing else: it only ends a wait.
pub fn quiet() -> u64 {
    &raw const quiet_upcall as u64
}

#[repr(C, align(16))]
struct Table(UnsafeCell<[[u64; 2]; GATES]>);

// SAFETY: written once, by `install`, on the only CPU, before it is loaded.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; GATES]));

/// Adds the upcall to the exceptions of `trap`, which are there. Called once.
///
/// # Safety
/// At `handler` is code that handles an interrupt: it keeps every register, takes the upcall back, and
/// ends by IRETQ.
pub unsafe fn install(handler: u64) {
    let mut pointer = [0u8; 10];
    // SAFETY: stores ten bytes, the limit and the base of the table in use.
    unsafe { asm!("sidt [{}]", in(reg) &mut pointer, options(nostack)) };
    let mut base = [0; 8];
    base.copy_from_slice(&pointer[2..]);
    let exceptions = u64::from_le_bytes(base) as *const [u64; 2];
    // SAFETY: the only reference, see `Table`.
    let table = unsafe { &mut *TABLE.0.get() };
    for (index, gate) in table.iter_mut().take(EXCEPTIONS).enumerate() {
        // SAFETY: `trap` keeps a table of that many gates, and has loaded it.
        *gate = unsafe { exceptions.add(index).read() };
    }
    table[usize::from(VECTOR)] = [
        handler & 0xffff | GATE | (handler & 0xffff_0000) << 32,
        handler >> 32,
    ];
    pointer[..2].copy_from_slice(&((GATES * 16 - 1) as u16).to_le_bytes());
    pointer[2..].copy_from_slice(&(TABLE.0.get() as u64).to_le_bytes());
    // SAFETY: the table is complete and stays where it is.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack)) };
}

/// Turns interrupts on, from after the next instruction.
#[inline(always)]
pub fn on() {
    // SAFETY: the only interrupt has a handler that keeps every register.
    unsafe { asm!("sti", "nop") };
}

/// Turns interrupts off.
#[inline(always)]
pub fn off() {
    // SAFETY: nothing here needs them on.
    unsafe { asm!("cli") };
}

/// Halts until a port's event has come. Interrupts are off before and after; the vector is set.
#[inline(always)]
pub fn wait(shared: SharedInfo, port: u32) {
    loop {
        halt();
        off();
        // Before the look at the port: an event that comes later is an upcall then.
        shared.forget_selector();
        if shared.is_pending(port) {
            return;
        }
    }
}

/// Turns interrupts on and halts until one comes.
#[inline(always)]
pub fn halt() {
    // SAFETY: as for `on`; no interrupt comes between the two.
    unsafe { asm!("sti", "hlt") };
}
