//! Exceptions. One in a guarded instruction (`cpu`) becomes that instruction's result; any other
//! is reported and ends the program. NMIs, which a guest can send itself, are counted. Interrupts
//! stay off.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Vectors that have stubs: all exceptions (Intel SDM vol. 3, 6.3.1).
const VECTORS: usize = 32;
/// Bytes between two stubs.
const STUB_BYTES: usize = 16;
/// Present interrupt gate of privilege 0, to the code segment at selector 8.
const GATE: u64 = 0x8e00_0008_0000;

/// An exception that a guarded instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// Its error code, 0 if it has none.
    pub error: u64,
}

/// Where an exception goes on, 0 if it is not expected. Only assembly writes it.
pub(crate) static GUARD: AtomicU64 = AtomicU64::new(0);
/// NMIs taken.
static NMIS: AtomicU64 = AtomicU64::new(0);
/// The function that is told of an exception that nobody expected.
static REPORT: AtomicUsize = AtomicUsize::new(0);

// Vectors 8, 10 to 14, 17, 21, 29 and 30 push an error code (Intel SDM vol. 3, table 6-1; AMD APM
// vol. 2, 8.2); for the others the stub pushes 0.
global_asm!(
    r#"
    .balign 16
trap_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if (0x60227d00 >> vector) & 1
    .else
    push 0
    .endif
    push vector
    jmp trap_common
    .set vector, vector + 1
    .endr
    // On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
trap_common:
    cmp qword ptr [rsp], 2
    je trap_nmi
    cmp qword ptr [rip + {guard}], 0
    je trap_fatal
    pop r10
    pop r11
    mov r9, [rip + {guard}]
    mov [rsp], r9
    mov qword ptr [rip + {guard}], 0
    iretq
trap_nmi:
    add rsp, 16
    lock inc qword ptr [rip + {nmis}]
    iretq
trap_fatal:
    mov rdi, rsp
    and rsp, -16
    call {fault}
    ud2
    "#,
    guard = sym GUARD,
    nmis = sym NMIS,
    fault = sym fault,
);

unsafe extern "C" {
    static trap_stubs: u8;
}

#[repr(C, align(16))]
struct Table(UnsafeCell<[[u64; 2]; VECTORS]>);

// SAFETY: written once, by `install`, on the only CPU, before anything reads it.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; VECTORS]));

/// Loads the interrupt descriptor table. Called once, first. `report` is told of an exception that
/// is not expected, with the RIP of the instruction, and must end the program.
pub fn install(report: fn(Exception, u64) -> !) {
    REPORT.store(report as usize, Ordering::SeqCst);
    let stubs = &raw const trap_stubs as u64;
    // SAFETY: the only reference, see `Table`.
    let table = unsafe { &mut *TABLE.0.get() };
    for (vector, gate) in table.iter_mut().enumerate() {
        let stub = stubs + (vector * STUB_BYTES) as u64;
        *gate = [
            stub & 0xffff | GATE | (stub & 0xffff_0000) << 32,
            stub >> 32,
        ];
    }
    load(TABLE.0.get() as u64, (VECTORS * 16 - 1) as u16);
}

fn load(base: u64, limit: u16) {
    let mut pointer = [0u8; 10];
    pointer[..2].copy_from_slice(&limit.to_le_bytes());
    pointer[2..].copy_from_slice(&base.to_le_bytes());
    // SAFETY: the table is complete and stays where it is, or there is none on purpose.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack)) };
}

/// NMIs taken so far.
pub fn nmis() -> u64 {
    NMIS.load(Ordering::SeqCst)
}

/// Shuts the CPU down by a triple fault: an exception without any table to look it up in.
pub fn triple_fault() -> ! {
    load(0, 0);
    // SAFETY: ends the program.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Reports the exception and ends the program.
extern "C" fn fault(frame: *const [u64; 3]) -> ! {
    // SAFETY: the stub passes its stack: vector, error code, RIP.
    let [vector, error, rip] = unsafe { *frame };
    let exception = Exception {
        vector: vector as u8,
        error,
    };
    let report = REPORT.load(Ordering::SeqCst);
    if report != 0 {
        // SAFETY: `install` stored a function of this type; nothing else writes it.
        let report = unsafe { core::mem::transmute::<usize, fn(Exception, u64) -> !>(report) };
        report(exception, rip);
    }
    crate::cpu::halt()
}
