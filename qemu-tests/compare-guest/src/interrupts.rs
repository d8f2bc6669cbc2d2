//! The upcall of events whose handler notes when it began and takes the event back.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_kit::interrupts;
pub use guest_kit::interrupts::{VECTOR, halt, off, on};
use guest_kit::xen::SHARED_INFO;

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

/// Has upcalls noted.
pub fn install() {
    // SAFETY: the handler above.
    unsafe { interrupts::install(&raw const upcall as u64) };
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
