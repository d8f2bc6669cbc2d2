//! The world switch.

use crate::registers::{clear, each, load, registers_asm, store};
use crate::speculation::site;
use microvisor_abi::thread::Registers;

/// Enters the guest of the VMCB at physical address `vmcb` and returns after its exit. General
/// registers other than RAX and RSP come from `registers` and go there. `host` is the physical
/// address of the VMCB that VMSAVE filled when this CPU was enabled.
///
/// GIF is 0 while anything of the guest is loaded, so that no interrupt or NMI finds a foreign GS
/// base or TSS. IF is 1 across VMRUN: with V_INTR_MASKING it decides whether a physical interrupt
/// ends guest mode, and one that is pending already ends it before the guest's first instruction.
/// On return IF is 0 and what caused the exit is still pending; an NMI arrives at STGI.
///
/// Registers that the calling convention does not preserve are cleared on the way out: no guest
/// value stays for a mispredicted path to use.
///
/// # Safety
/// SVM is enabled; the VMCB is sanitised, its bitmaps, nested root and ASID are in place;
/// `registers` can be written; interrupts are off and GS is the host's.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(registers: *mut Registers, vmcb: u64, host: u64) {
    registers_asm!(
        each!(push rbx rbp r12 r13 r14 r15 rdx rdi),
        load!(rdi: rbx rbp r8 r9 r10 r11 r12 r13 r14),
        site!(".byte 0x3e; mov r15, [rdi + {r15}]", leave_to_guest),
        "mov rax, rsi",
        "clgi",
        "sti",
        "vmload rax",
        load!(rdi: rcx rdx rsi rdi),
        "vmrun rax",
        "vmsave rax",
        "pop rax",
        store!(rax: rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15),
        "pop rax",
        "vmload rax",
        site!(".byte 0x3e, 0x3e, 0x3e; xor ecx, ecx", enter_from_guest),
        clear!(edx esi edi r8d r9d r10d r11d),
        each!(pop r15 r14 r13 r12 rbp rbx),
        "cli",
        "stgi",
        "ret",
        leave_to_guest = sym crate::speculation::leave_to_guest,
        enter_from_guest = sym crate::speculation::enter_from_guest,
    )
}
