//! One interrupt: the upcall of events. Its handler notes when it began and takes the event back.
//!
//! `guest_kit::trap` has a table of exceptions only; this one is a copy of that, longer.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_kit::xen::SHARED_INFO;

/// The upcall's vector: any from 32 on would do.
pub const VECTOR: u8 = 0x40;
/// Gates of exceptions (Intel SDM vol. 3, 6.3.1).
const EXCEPTIONS: usize = 32;
/// Gates of this table.
const GATES: usize = VECTOR as usize + 1;
/// Present interrupt gate of privilege 0, to the code segment at selector 8.
const GATE: u64 = 0x8e00_0008_0000;

/// The time stamp counter at the last upcall, 0 if there was none since it was set so.
static BEGAN: AtomicU64 = AtomicU64::new(0);

// The TSC is read as `measure::ticks` does. `evtchn_upcall_pending`, byte 0 of vCPU 0's
// `vcpu_info` at the start of the shared info page (public/xen.h), is cleared, or the upcall would
// come again at once.
global_asm!(
    r#"
    .balign 16
upcall:
    push rax
    push rdx
    lfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [rip + {began}], rax
    mov byte ptr [rip + {shared}], 0
    pop rdx
    pop rax
    iretq
    "#,
    began = sym BEGAN,
    shared = sym SHARED_INFO,
);

unsafe extern "C" {
    static upcall: u8;
}

#[repr(C, align(16))]
struct Table(UnsafeCell<[[u64; 2]; GATES]>);

// SAFETY: written once, by `install`, on the only CPU, before it is loaded.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; GATES]));

/// Adds the upcall to the exceptions of `guest_kit::trap`, which are there.
pub fn install() {
    let mut pointer = [0u8; 10];
    // SAFETY: stores ten bytes, the limit and the base of the table in use.
    unsafe { asm!("sidt [{}]", in(reg) &mut pointer, options(nostack)) };
    let mut base = [0; 8];
    base.copy_from_slice(&pointer[2..]);
    let exceptions = u64::from_le_bytes(base) as *const [u64; 2];
    // SAFETY: the only reference, see `Table`.
    let table = unsafe { &mut *TABLE.0.get() };
    for (index, gate) in table.iter_mut().take(EXCEPTIONS).enumerate() {
        // SAFETY: `guest_kit::trap` keeps a table of that many gates, and has loaded it.
        *gate = unsafe { exceptions.add(index).read() };
    }
    let handler = &raw const upcall as u64;
    table[usize::from(VECTOR)] = [
        handler & 0xffff | GATE | (handler & 0xffff_0000) << 32,
        handler >> 32,
    ];
    pointer[..2].copy_from_slice(&((GATES * 16 - 1) as u16).to_le_bytes());
    pointer[2..].copy_from_slice(&(TABLE.0.get() as u64).to_le_bytes());
    // SAFETY: the table is complete and stays where it is.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack)) };
}

/// Forgets the last upcall.
pub fn forget() {
    BEGAN.store(0, Ordering::SeqCst);
}

/// When the upcall began that came since the last [`forget`]; 0 if none did.
#[inline(always)]
pub fn began() -> u64 {
    BEGAN.load(Ordering::SeqCst)
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

/// Turns interrupts on and halts until one comes.
#[inline(always)]
pub fn halt() {
    // SAFETY: as for `on`; no interrupt comes between the two.
    unsafe { asm!("sti", "hlt") };
}
