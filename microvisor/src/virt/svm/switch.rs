//! The world switch.

use core::arch::naked_asm;
use core::mem::offset_of;
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
pub unsafe extern "sysv64" fn enter(vmcb: u64, registers: *mut Registers, host: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "push rsi",
        "mov rax, rdi",
        "clgi",
        "sti",
        "vmload rax",
        "mov rbx, [rsi + {rbx}]",
        "mov rcx, [rsi + {rcx}]",
        "mov rdx, [rsi + {rdx}]",
        "mov rdi, [rsi + {rdi}]",
        "mov rbp, [rsi + {rbp}]",
        "mov r8, [rsi + {r8}]",
        "mov r9, [rsi + {r9}]",
        "mov r10, [rsi + {r10}]",
        "mov r11, [rsi + {r11}]",
        "mov r12, [rsi + {r12}]",
        "mov r13, [rsi + {r13}]",
        "mov r14, [rsi + {r14}]",
        "mov r15, [rsi + {r15}]",
        "mov rsi, [rsi + {rsi}]",
        "vmrun rax",
        "vmsave rax",
        "pop rax",
        "mov [rax + {rbx}], rbx",
        "mov [rax + {rcx}], rcx",
        "mov [rax + {rdx}], rdx",
        "mov [rax + {rsi}], rsi",
        "mov [rax + {rdi}], rdi",
        "mov [rax + {rbp}], rbp",
        "mov [rax + {r8}], r8",
        "mov [rax + {r9}], r9",
        "mov [rax + {r10}], r10",
        "mov [rax + {r11}], r11",
        "mov [rax + {r12}], r12",
        "mov [rax + {r13}], r13",
        "mov [rax + {r14}], r14",
        "mov [rax + {r15}], r15",
        "pop rax",
        "vmload rax",
        "xor ecx, ecx",
        "xor edx, edx",
        "xor esi, esi",
        "xor edi, edi",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "cli",
        "stgi",
        "ret",
        rbx = const offset_of!(Registers, rbx),
        rcx = const offset_of!(Registers, rcx),
        rdx = const offset_of!(Registers, rdx),
        rsi = const offset_of!(Registers, rsi),
        rdi = const offset_of!(Registers, rdi),
        rbp = const offset_of!(Registers, rbp),
        r8 = const offset_of!(Registers, r8),
        r9 = const offset_of!(Registers, r9),
        r10 = const offset_of!(Registers, r10),
        r11 = const offset_of!(Registers, r11),
        r12 = const offset_of!(Registers, r12),
        r13 = const offset_of!(Registers, r13),
        r14 = const offset_of!(Registers, r14),
        r15 = const offset_of!(Registers, r15),
    )
}
