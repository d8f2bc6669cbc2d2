//! Exceptions: none is expected, so each is reported and ends the program. Interrupts stay off.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use crate::output::{Output, say};

/// Vectors that have stubs: all exceptions (Intel SDM vol. 3, 6.3.1).
const VECTORS: usize = 32;
/// Bytes between two stubs.
const STUB_BYTES: usize = 16;
/// Exceptions that push an error code (Intel SDM vol. 3, table 6-1; AMD APM vol. 2, 8.2).
const WITH_ERROR_CODE: u32 = 0x6022_7d00;
/// Present interrupt gate of privilege 0, to the code segment at selector 8.
const GATE: u64 = 0x8e00_0008_0000;

global_asm!(
    r#"
    .balign 16
trap_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    push vector
    jmp trap_common
    .set vector, vector + 1
    .endr
trap_common:
    mov rdi, rsp
    and rsp, -16
    call {fault}
    ud2
    "#,
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

/// Loads the interrupt descriptor table. Called once, first.
pub fn install() {
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
    let mut pointer = [0u8; 10];
    pointer[..2].copy_from_slice(&((VECTORS * 16 - 1) as u16).to_le_bytes());
    pointer[2..].copy_from_slice(&(TABLE.0.get() as u64).to_le_bytes());
    // SAFETY: the table is complete and stays where it is.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack)) };
}

/// Reports the exception and ends the program.
extern "C" fn fault(frame: *const [u64; 3]) -> ! {
    // SAFETY: the stub passes its stack: vector, then error code or RIP, then RIP or CS.
    let [vector, first, second] = unsafe { *frame };
    let with_error_code = WITH_ERROR_CODE >> (vector & 31) & 1 == 1;
    let (error_code, rip) = if with_error_code {
        (first, second)
    } else {
        (0, first)
    };
    let output = Output::find();
    say!(
        output,
        "bench-guest: exception {vector} error {error_code:#x} at {rip:#x}"
    );
    crate::end(&output)
}
