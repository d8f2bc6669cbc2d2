//! The world switch.

use super::vmcs::field;
use core::arch::naked_asm;
use core::mem::offset_of;
use microvisor_abi::thread::Registers;

/// Enters the guest of the current VMCS and returns after its exit, 0; or 1 if the CPU refused the
/// instruction. General registers but RSP come from `registers` and go there. `launched` is 0 the
/// first time after VMCLEAR. `host_rsp` remembers what the VMCS has as the host's stack pointer; 0: neither that
/// nor where exits land.
///
/// Interrupts are off and stay so: one that is pending ends guest mode before the first instruction
/// and is still pending afterwards.
///
/// Registers that the calling convention does not preserve are cleared on the way out: no guest
/// value stays for a mispredicted path to use.
///
/// # Safety
/// VMX is on; the current VMCS is sanitised, its host state is this CPU's, its bitmaps, EPT pointer
/// and VPID are in place; `registers` can be written.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(
    registers: *mut Registers,
    launched: u64,
    host_rsp: *mut u64,
) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "cmp [rdx], rsp",
        "je 2f",
        "mov [rdx], rsp",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "lea rcx, [rip + 5f]",
        "mov eax, {host_rip}",
        "vmwrite rax, rcx",
        "2:",
        "test rsi, rsi",
        "mov rax, [rdi + {rax}]",
        "mov rbx, [rdi + {rbx}]",
        "mov rcx, [rdi + {rcx}]",
        "mov rdx, [rdi + {rdx}]",
        "mov rsi, [rdi + {rsi}]",
        "mov rbp, [rdi + {rbp}]",
        "mov r8, [rdi + {r8}]",
        "mov r9, [rdi + {r9}]",
        "mov r10, [rdi + {r10}]",
        "mov r11, [rdi + {r11}]",
        "mov r12, [rdi + {r12}]",
        "mov r13, [rdi + {r13}]",
        "mov r14, [rdi + {r14}]",
        "mov r15, [rdi + {r15}]",
        "mov rdi, [rdi + {rdi}]",
        "jz 3f",
        "vmresume",
        "jmp 4f",
        "3:",
        "vmlaunch",
        "4:",
        "add rsp, 8",
        "mov eax, 1",
        "jmp 6f",
        // Where exits land, with the stack as it was.
        "5:",
        "push rax",
        "mov rax, [rsp + 8]",
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
        "pop rcx",
        "mov [rax + {rax}], rcx",
        "add rsp, 8",
        "xor eax, eax",
        "6:",
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
        "ret",
        rax = const offset_of!(Registers, rax),
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
        host_rsp = const field::HOST_RSP,
        host_rip = const field::HOST_RIP,
    )
}
