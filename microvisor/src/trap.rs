//! Entry from user mode and back: system calls, exceptions, interrupts.
//!
//! The core is never preempted: interrupts are off in kernel mode, and a CPU has one stack. The
//! user's registers go straight into the current thread's `Registers` and come from there; the
//! Rust handlers may change which thread that is. The one exception is a window that
//! `collect_interrupt` opens: an interrupt in it is noted, and the code goes on.

use crate::cpu::Cpu;
use crate::descriptor::{KERNEL_CODE, USER_CODE, USER_DATA};
use crate::registers::{clear, each, load, registers_asm, store};
use crate::speculation::site;
use core::arch::{asm, global_asm, naked_asm};
use core::mem::offset_of;
use microvisor_abi::Call;
use microvisor_abi::thread::Registers;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::registers::model_specific::{Efer, EferFlags, Msr};
use x86_64::structures::DescriptorTablePointer;

/// Bytes of one interrupt stub.
const STUB_BYTES: u64 = 16;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const FMASK: u32 = 0xc000_0084;
/// Flags that a system call clears: TF, IF, DF, IOPL, NT, RF, AC.
const CALL_CLEARS: u64 = 0x5_7700;

/// `SYSCALL` lands here. Every user register is saved, since the call may end on another thread.
/// `rcx` and `r11` are lost to the instruction; saved as copies of `rip` and `rflags`, they tell
/// the way out that `SYSRET` restores this thread.
#[unsafe(naked)]
unsafe extern "C" fn syscall_entry() {
    registers_asm!(
        "swapgs",
        "mov gs:[{scratch}], rsp",
        "mov rsp, gs:[{current}]",
        store!(rsp: rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15),
        "mov [rsp + {rip}], rcx",
        "mov [rsp + {rflags}], r11",
        "mov rdi, gs:[{scratch}]",
        "mov [rsp + {rsp}], rdi",
        "mov rsp, gs:[{stack}]",
        site!(".byte 0x3e, 0x3e, 0x3e; xor ebp, ebp", enter_from_user),
        "cmp rax, {vcpu_run_call}",
        "je 5f",
        "cmp rax, {call}",
        "je 2f",
        "cmp rax, {reply_receive}",
        "je 3f",
        "4:",
        "mov rdi, gs:[{current}]",
        "call {handler}",
        "jmp {exit}",
        // Returns only if the general path has to do it.
        "2:",
        "call {fast_call}",
        "jmp 4b",
        "3:",
        "call {fast_reply_receive}",
        "jmp 4b",
        // Returns if it ended otherwise than by an exit.
        "5:",
        "call {vcpu_run}",
        "jmp {exit}",
        vcpu_run_call = const Call::VcpuRun as u64,
        vcpu_run = sym crate::glue::vcpu_run,
        call = const Call::Call as u64,
        reply_receive = const Call::ReplyReceive as u64,
        fast_call = sym crate::glue::fast_call,
        fast_reply_receive = sym crate::glue::fast_reply_receive,
        scratch = const offset_of!(Cpu, scratch),
        current = const offset_of!(Cpu, current_regs),
        stack = const offset_of!(Cpu, stack_top),
        handler = sym crate::glue::system_call,
        exit = sym exit_to_user,
        enter_from_user = sym crate::speculation::enter_from_user,
    )
}

/// Loads the current thread's registers and goes to user mode: by `SYSRET` if the thread came by
/// `SYSCALL`, else by `IRET`. An instruction pointer outside the user half never gets there
/// (`SYSRET` to a non-canonical address would fault in kernel mode, Intel SDM vol. 2, SYSRET).
///
/// # Safety
/// On this CPU's stack, with nothing on it that is still needed; `current_regs` is valid.
#[unsafe(naked)]
pub unsafe extern "C" fn exit_to_user() -> ! {
    registers_asm!(
        "mov rdi, gs:[{current}]",
        "mov rcx, [rdi + {rip}]",
        "mov rax, rcx",
        "shr rax, 47",
        "jnz 3f",
        "mov r11, [rdi + {rflags}]",
        "cmp rcx, [rdi + {rcx}]",
        "jne 2f",
        "cmp r11, [rdi + {r11}]",
        "jne 2f",
        "jmp {sysret}",
        "2:",
        "mov rsp, gs:[{stack}]",
        "push {ss}",
        "push qword ptr [rdi + {rsp}]",
        "push r11",
        "push {cs}",
        "push rcx",
        load!(rdi: rbx rsi rbp r8 r9 r10 r11 r12 r13 r14),
        site!(".byte 0x3e; mov r15, [rdi + {r15}]", leave_to_user),
        load!(rdi: rax rcx rdx rdi),
        "swapgs",
        "iretq",
        "3:",
        "mov rsp, gs:[{stack}]",
        "mov edi, 13",
        clear!(esi ebp),
        "call {trap}",
        "jmp {exit}",
        current = const offset_of!(Cpu, current_regs),
        stack = const offset_of!(Cpu, stack_top),
        cs = const USER_CODE,
        ss = const USER_DATA,
        trap = sym crate::glue::trap,
        exit = sym exit_to_user,
        sysret = sym sysret,
        leave_to_user = sym crate::speculation::leave_to_user,
    )
}

/// To user mode with the registers of a thread that entered by `SYSCALL`.
///
/// # Safety
/// As [`exit_to_user`]; `registers` are the current ones. `rip` and `rflags` are as `SYSCALL` left
/// them, so `rip` is canonical: no code can be mapped at the very end of the user half.
#[unsafe(naked)]
pub unsafe extern "C" fn sysret(registers: *mut Registers) -> ! {
    registers_asm!(
        "mov r11, [rdi + {rflags}]",
        load!(rdi: rbx rsi rbp r8 r9 r10 r12 r13 r14),
        site!(".byte 0x3e; mov r15, [rdi + {r15}]", leave_to_user),
        "mov rcx, [rdi + {rip}]",
        load!(rdi: rax rdx rsp rdi),
        "swapgs",
        "sysretq",
        leave_to_user = sym crate::speculation::leave_to_user,
    )
}

// One stub per vector, [`STUB_BYTES`] apart: error code (or 0) and vector go on the stack. Vectors
// with an error code: 8, 10-14, 17, 21, 29, 30 (Intel SDM vol. 3, 6.15; AMD APM vol. 2, 8.2). The
// vector is pushed by opcode, because the assembler would take the symbol for an address.
global_asm!(
    r#"
    .section .text.trap_stubs, "ax"
    .balign 16
    .global trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0
    .endif
    .byte 0x68
    .long vector
    jmp {common}
    .set vector, vector + 1
    .endr
    .text
    "#,
    common = sym common,
);

/// Stack on entry: vector, error code, rip, cs, rflags, rsp, ss.
#[unsafe(naked)]
unsafe extern "C" fn common() {
    registers_asm!(
        // Flags as the core wants them: a thread may have set AC (which would switch SMAP off), DF,
        // NT or RF.
        "push 2",
        "popfq",
        "test byte ptr [rsp + 24], 3",
        "jz 2f",
        // The emergency vectors come on stacks of their own; they do not return. #DB borrows one,
        // because it could come where the stack is still the user's.
        "swapgs",
        "push rax",
        "mov rax, gs:[{current}]",
        store!(rax: rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15),
        "pop rbx",
        "mov [rax + {rax}], rbx",
        "mov rdi, [rsp]",
        "mov rsi, [rsp + 8]",
        "mov rbx, [rsp + 16]",
        "mov [rax + {rip}], rbx",
        "mov rbx, [rsp + 32]",
        "mov [rax + {rflags}], rbx",
        "mov rbx, [rsp + 40]",
        "mov [rax + {rsp}], rbx",
        "mov rsp, gs:[{stack}]",
        site!(".byte 0x3e, 0x3e, 0x3e; xor ebp, ebp", enter_from_user),
        "call {trap}",
        "jmp {exit}",
        // From kernel mode: an interrupt that was asked for, or the end.
        "2:",
        "cmp qword ptr [rsp], 32",
        "jb 3f",
        "cmp qword ptr gs:[{collecting}], 0",
        "je 3f",
        "push rax",
        "mov rax, [rsp + 8]",
        "mov gs:[{collected}], rax",
        "mov qword ptr gs:[{collecting}], 0",
        "and dword ptr [rsp + 40], ~0x200",
        "pop rax",
        "add rsp, 16",
        "iretq",
        // #DB of the core's own: a thread stepped into SYSCALL. The manuals say that TF is looked at
        // when SYSCALL has cleared it; Bochs's Intel models look before. On with the entry: nothing
        // else steps the core, and it has no breakpoints.
        "3:",
        "cmp qword ptr [rsp], 1",
        "jne 4f",
        "and dword ptr [rsp + 32], ~0x100",
        "add rsp, 16",
        "iretq",
        "4:",
        "jmp {fatal}",
        current = const offset_of!(Cpu, current_regs),
        stack = const offset_of!(Cpu, stack_top),
        collecting = const offset_of!(Cpu, collecting),
        collected = const offset_of!(Cpu, collected),
        trap = sym crate::glue::trap,
        exit = sym exit_to_user,
        fatal = sym fatal,
        enter_from_user = sym crate::speculation::enter_from_user,
    )
}

/// NMI, double fault and machine check: the core stops, wherever they come from. Which GS base is
/// loaded is not known, so it is looked at (`IA32_GS_BASE`; the core's is in the upper half).
#[unsafe(naked)]
unsafe extern "C" fn fatal() {
    naked_asm!(
        "push qword ptr [rsp + 32]", // rflags
        "push qword ptr [rsp + 48]", // rsp: one push deeper
        "push qword ptr [rsp + 32]", // rip: two pushes deeper
        each!(push r15 r14 r13 r12 r11 r10 r9 r8 rbp rdi rsi rdx rcx rbx rax),
        "mov ecx, 0xc0000101",
        "rdmsr",
        "test edx, edx",
        "js 2f",
        "swapgs",
        "2:",
        "mov rdi, rsp",
        "mov rsi, [rsp + 144]",
        "mov rdx, [rsp + 152]",
        "and rsp, -16",
        "call {stop}",
        "ud2",
        stop = sym crate::panic::exception,
    )
}

#[unsafe(naked)]
unsafe extern "C" fn nmi() {
    naked_asm!("push 0", "push 2", "cld", "jmp {}", sym fatal)
}

#[unsafe(naked)]
unsafe extern "C" fn double_fault() {
    naked_asm!("push 8", "cld", "jmp {}", sym fatal)
}

#[unsafe(naked)]
unsafe extern "C" fn machine_check() {
    naked_asm!("push 0", "push 18", "cld", "jmp {}", sym fatal)
}

#[repr(C, align(16))]
struct Idt([[u64; 2]; 256]);

static IDT: crate::lock::Once<Idt> = crate::lock::Once::new(Idt([[0; 2]; 256]));

/// Builds the IDT, shared by all CPUs. Boot CPU, once.
pub fn build_idt() {
    unsafe extern "C" {
        static trap_stubs: u8;
    }
    let mut idt = Idt([[0; 2]; 256]);
    for (vector, gate) in idt.0.iter_mut().enumerate() {
        let (handler, ist) = match vector {
            1 => (&raw const trap_stubs as u64 + STUB_BYTES, 1),
            2 => (nmi as *const () as u64, 1),
            8 => (double_fault as *const () as u64, 2),
            18 => (machine_check as *const () as u64, 3),
            _ => (&raw const trap_stubs as u64 + vector as u64 * STUB_BYTES, 0),
        };
        // Interrupt gate, DPL 0 (Intel SDM vol. 3, figure 7-8).
        gate[0] = handler & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | ist << 32
            | 0x8e << 40
            | (handler >> 16 & 0xffff) << 48;
        gate[1] = handler >> 32;
    }
    // SAFETY: only the boot CPU runs yet.
    unsafe { IDT.set(idt) };
}

/// Loads the IDT and the system call registers on this CPU.
pub fn activate() {
    let idt = IDT.get();
    // SAFETY: the table is complete and stays; the MSRs name the entry stub and the segments of
    // `descriptor`, whose order SYSCALL and SYSRET assume.
    unsafe {
        lidt(&DescriptorTablePointer {
            limit: size_of::<Idt>() as u16 - 1,
            base: VirtAddr::new_truncate(idt.0.as_ptr() as u64),
        });
        Msr::new(STAR).write(u64::from(KERNEL_CODE) << 32 | u64::from(USER_DATA - 8) << 48);
        Msr::new(LSTAR).write(syscall_entry as *const () as u64);
        // Compatibility mode has no segment to run in; the entry is never reached.
        Msr::new(CSTAR).write(0);
        Msr::new(FMASK).write(CALL_CLEARS);
        Efer::update(|efer| efer.insert(EferFlags::SYSTEM_CALL_EXTENSIONS));
    }
}

/// Takes one pending interrupt, if there is one, without sleeping: its vector.
#[inline]
pub fn collect_interrupt() -> Option<u8> {
    // SAFETY: `collecting` makes the stub note the vector and return with interrupts off; the
    // interrupt shadow of STI covers the NOP only, so a pending interrupt comes before CLI ends.
    unsafe {
        asm!(
            "mov qword ptr gs:[{collected}], 0",
            "mov qword ptr gs:[{collecting}], 1",
            "sti",
            "nop",
            "nop",
            "cli",
            "mov qword ptr gs:[{collecting}], 0",
            collected = const offset_of!(Cpu, collected),
            collecting = const offset_of!(Cpu, collecting),
        );
    }
    collected()
}

/// Sleeps until an interrupt comes; its vector. `None` for a wake-up without one.
pub fn wait_for_interrupt() -> Option<u8> {
    // SAFETY: as above; STI's shadow makes STI and HLT one step.
    unsafe {
        asm!(
            "mov qword ptr gs:[{collected}], 0",
            "mov qword ptr gs:[{collecting}], 1",
            "sti",
            "hlt",
            "cli",
            "mov qword ptr gs:[{collecting}], 0",
            collected = const offset_of!(Cpu, collected),
            collecting = const offset_of!(Cpu, collecting),
        );
    }
    collected()
}

/// Clears data segment selectors that a thread loaded, so that the next does not find them. User
/// code has no other segments than null and flat ones.
#[inline(always)]
pub fn clear_selectors() {
    // SAFETY: null selectors are valid in 64-bit mode; the core uses none of them but GS, whose
    // base is the user's between the two SWAPGS. Interrupts are off.
    unsafe {
        asm!(
            "mov {0:e}, ds",
            "mov {1:e}, es",
            "or {0:e}, {1:e}",
            "mov {1:e}, fs",
            "or {0:e}, {1:e}",
            "mov {1:e}, gs",
            "or {0:e}, {1:e}",
            "jz 2f",
            "xor {0:e}, {0:e}",
            "mov ds, {0:e}",
            "mov es, {0:e}",
            "mov fs, {0:e}",
            "swapgs",
            "mov gs, {0:e}",
            "swapgs",
            "2:",
            out(reg) _,
            out(reg) _,
            options(nostack),
        );
    }
}

fn collected() -> Option<u8> {
    // SAFETY: this CPU's own field; interrupts are off.
    let vector = unsafe { (&raw const (*crate::cpu::this()).collected).read_volatile() };
    (vector != 0).then_some(vector as u8)
}
