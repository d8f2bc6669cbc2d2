//! The world switch.

use super::vmcs::field;
use crate::registers::{clear, each, load, registers_asm, store};
use crate::speculation::site;
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
    registers_asm!(
        each!(push rbx rbp r12 r13 r14 r15 rdi),
        "cmp [rdx], rsp",
        "je 2f",
        "mov [rdx], rsp",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "lea rcx, [rip + 5f]",
        "mov eax, {host_rip}",
        "vmwrite rax, rcx",
        "2:",
        load!(rdi: rbx rbp r8 r9 r10 r11 r12 r13 r14),
        site!(".byte 0x3e; mov r15, [rdi + {r15}]", leave_to_guest),
        "test rsi, rsi",
        load!(rdi: rax rcx rdx rsi rdi),
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
        store!(rax: rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15),
        "pop rcx",
        "mov [rax + {rax}], rcx",
        "add rsp, 8",
        "xor eax, eax",
        "6:",
        site!(".byte 0x3e, 0x3e, 0x3e; xor ecx, ecx", enter_from_guest),
        clear!(edx esi edi r8d r9d r10d r11d),
        each!(pop r15 r14 r13 r12 rbp rbx),
        "ret",
        leave_to_guest = sym crate::speculation::leave_to_guest,
        enter_from_guest = sym crate::speculation::enter_from_guest,
        host_rsp = const field::HOST_RSP,
        host_rip = const field::HOST_RIP,
    )
}
