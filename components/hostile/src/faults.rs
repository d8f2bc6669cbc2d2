//! Role `hostile-faults`: everything in ring 3 that must end in an exception, case by case, on a
//! thread that this component supervises itself. Each case is a few instructions; an instruction
//! that was carried out runs on into the end mark, and is told apart from one that faulted.
//! Vectors: Intel SDM vol. 3, 6.15; AMD APM vol. 3 for each instruction's exceptions. Left out,
//! because QEMU 10.0 carries them out against the manuals: INTO in 64-bit mode, INVD and WBINVD in
//! ring 3, EMMS, XSAVE and XRSTOR with CR0.TS set.

use alloc::format;
use alloc::string::String;
use core::arch::naked_asm;

use sdk::abi::thread::Report;
use sdk::prelude::*;

use crate::claim::{Outcome, claim};
use crate::runner::{CODE, Runner};

/// In `rax` when a case came to its end.
const DONE: u64 = 0x600d_600d;
/// Where the core sees physical memory, and where its image is (`microvisor/src/paging.rs`).
const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
const IMAGE: u64 = 0xffff_ffff_8020_0000;
/// The first address that is not canonical.
const NON_CANONICAL: u64 = 0x0000_8000_0000_0000;

/// How a case has to end.
#[derive(Clone, Copy)]
enum Ends {
    /// In this exception.
    In(u64),
    /// In one of two: processors, or an emulator, differ.
    Either(u64, u64),
    /// In #GP where the processor has UMIP, harmlessly where it does not.
    Umip,
    /// In a page fault at this address.
    At(u64),
    /// Harmlessly.
    Well,
}

use Ends::{At, Either, In, Umip, Well};

impl Ends {
    /// What is wrong with how it ended, if anything.
    fn judge(self, report: Option<Report>) -> Result<(), String> {
        let Some(report) = report else {
            return Err("it neither ended nor faulted".into());
        };
        let done = report.vector == 6 && report.registers.rax == DONE;
        let good = match self {
            In(vector) => report.vector == vector && !done,
            Either(one, other) => [one, other].contains(&report.vector) && !done,
            Umip if has_umip() => report.vector == 13 && !done,
            Umip => done,
            // The fault is the user's own: bit 2 of the error code.
            At(address) => {
                report.vector == 14 && report.address == address && report.error_code & 4 != 0
            }
            Well => done,
        };
        match (good, done) {
            (true, _) => Ok(()),
            (false, true) => Err("it was carried out".into()),
            (false, false) => Err(format!(
                "vector {} code {:#x} address {:#x} rip {:#x}",
                report.vector, report.error_code, report.address, report.registers.rip
            )),
        }
    }
}

/// CPUID leaf 7: whether SGDT, SIDT, SLDT, SMSW and STR can be kept from a component.
fn has_umip() -> bool {
    core::arch::x86_64::__cpuid_count(7, 0).ecx >> 2 & 1 != 0
}

/// A case: what it is called, where its code is, how it has to end.
type Case = (&'static str, unsafe extern "C" fn(), Ends);

macro_rules! cases {
    ($($group:ident { $($name:ident $ends:expr; $($line:literal),+ $(, {$value:expr})?;)+ })+) => {$(
        const $group: &[Case] = &[$((stringify!($name), {
            #[unsafe(naked)]
            unsafe extern "C" fn $name() {
                naked_asm!($($line,)+ "mov eax, 0x600d600d", "ud2", $(const $value,)?)
            }
            $name
        }, $ends),)+];
    )+};
}

cases! {
    ARITHMETIC {
        divide_by_zero In(0); "xor edx, edx", "xor eax, eax", "div eax";
        divide_overflow In(0); "mov edx, 9", "mov eax, 0", "mov ecx, 2", "div ecx";
        single_step In(1); "pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop";
        icebp In(1); ".byte 0xf1";
        ud2 In(6); "xor eax, eax", "ud2";
        bad_lock_prefix In(6); ".byte 0xf0, 0x89, 0xc0";
        too_long In(13); ".fill 15, 1, 0x66", "nop";
    }
    CORE_MEMORY {
        read_direct_map At(DIRECT_MAP); "mov rcx, {}", "mov rax, [rcx]", {DIRECT_MAP};
        write_direct_map At(DIRECT_MAP); "mov rcx, {}", "mov [rcx], rax", {DIRECT_MAP};
        read_image At(IMAGE); "mov rcx, {}", "mov rax, [rcx]", {IMAGE};
        write_image At(IMAGE); "mov rcx, {}", "mov [rcx], rax", {IMAGE};
        execute_image At(IMAGE); "mov rcx, {}", "jmp rcx", {IMAGE};
        execute_direct_map At(DIRECT_MAP); "mov rcx, {}", "jmp rcx", {DIRECT_MAP};
        read_core_stacks At(0xffff_ff40_0000_2000); "mov rcx, {}", "mov rax, [rcx]",
            {0xffff_ff40_0000_2000u64};
        read_apic At(0xffff_ff00_0000_0000); "mov rcx, {}", "mov rax, [rcx]",
            {0xffff_ff00_0000_0000u64};
        prefetch_is_nothing Well; "mov rcx, {}", "prefetcht0 [rcx]", {DIRECT_MAP};
        locked_add At(DIRECT_MAP); "mov rcx, {}", "lock add qword ptr [rcx], 0", {DIRECT_MAP};
        string_move At(DIRECT_MAP); "mov rsi, {}", "mov rdi, rsp", "mov ecx, 8", "rep movsb",
            {DIRECT_MAP};
    }
    ADDRESSES {
        null_page At(0); "xor ecx, ecx", "mov rax, [rcx]";
        own_code_is_read_only At(0x20_0000); "mov ecx, 0x200000", "mov [rcx], eax";
        stack_is_not_code In(14); "lea rcx, [rip + 2f]", "push 0xe1ff", "jmp rsp", "2:"; // jmp rcx
        stack_overflow In(14); "2:", "push rax", "jmp 2b";
        last_user_page At(0x7fff_ffff_f000); "mov rcx, {}", "mov rax, [rcx]", {0x7fff_ffff_f000u64};
        read_non_canonical In(13); "mov rcx, {}", "mov rax, [rcx]", {NON_CANONICAL};
        write_non_canonical In(13); "mov rcx, {}", "mov [rcx], rax", {NON_CANONICAL};
        jump_non_canonical Either(13, 14); "mov rcx, {}", "jmp rcx", {NON_CANONICAL};
        stack_non_canonical Either(12, 13); "mov rsp, {}", "push rax", {NON_CANONICAL + 4096};
        return_non_canonical Either(13, 14); "mov rcx, {}", "push rcx", "ret", {NON_CANONICAL};
        call_with_a_wild_stack Well; "mov rbx, rsp", "mov rsp, {}", "xor eax, eax", "syscall",
            "mov rsp, rbx", {DIRECT_MAP};
        call_with_no_stack Well; "mov rbx, rsp", "mov rsp, {}", "xor eax, eax", "syscall",
            "mov rsp, rbx", {NON_CANONICAL};
    }
    PORTS {
        in_keyboard In(13); "in al, 0x60";
        out_delay In(13); "out 0x80, al";
        in_serial In(13); "mov dx, 0x3fd", "in al, dx";
        out_pci In(13); "mov dx, 0xcf8", "out dx, eax";
        out_exit In(13); "mov dx, 0xf4", "out dx, eax";
        in_last In(13); "mov dx, 0xffff", "in al, dx";
        in_word_wraps In(13); "mov dx, 0xffff", "in ax, dx";
        ins In(13); "mov dx, 0x60", "mov rdi, rsp", "insb";
        outs In(13); "mov dx, 0x80", "mov rsi, rsp", "rep outsb";
    }
    PRIVILEGED {
        cli In(13); "cli";
        sti In(13); "sti";
        hlt In(13); "hlt";
        clts In(13); "clts";
        lgdt In(13); "lgdt [rsp]";
        lidt In(13); "lidt [rsp]";
        lldt In(13); "xor eax, eax", "lldt ax";
        ltr In(13); "mov eax, 0x28", "ltr ax";
        lmsw In(13); "xor eax, eax", "lmsw ax";
        read_cr0 In(13); "mov rax, cr0";
        read_cr2 In(13); "mov rax, cr2";
        read_cr3 In(13); "mov rax, cr3";
        read_cr4 In(13); "mov rax, cr4";
        read_cr8 In(13); "mov rax, cr8";
        write_cr0 In(13); "xor eax, eax", "mov cr0, rax";
        write_cr3 In(13); "xor eax, eax", "mov cr3, rax";
        write_cr4 In(13); "xor eax, eax", "mov cr4, rax";
        write_cr8 In(13); "xor eax, eax", "mov cr8, rax";
        read_dr7 In(13); "mov rax, dr7";
        write_dr0 In(13); "mov dr0, rax";
        write_dr7 In(13); "mov dr7, rax";
        rdmsr_efer In(13); "mov ecx, 0xc0000080", "rdmsr";
        wrmsr_efer In(13); "mov ecx, 0xc0000080", "xor eax, eax", "xor edx, edx", "wrmsr";
        wrmsr_lstar In(13); "mov ecx, 0xc0000082", "wrmsr";
        wrmsr_gs_base In(13); "mov ecx, 0xc0000101", "wrmsr";
        rdpmc In(13); "xor ecx, ecx", "rdpmc";
        xsetbv In(13); "xor ecx, ecx", "mov eax, 1", "xor edx, edx", "xsetbv";
        invlpg In(13); "invlpg [rsp]";
        swapgs In(13); "swapgs";
        sysretq In(13); "mov rcx, rsp", "sysretq";
        sysexitq Either(6, 13); "sysexitq";
        vmrun Either(6, 13); "xor eax, eax", "vmrun rax";
        vmload Either(6, 13); "xor eax, eax", "vmload rax";
        vmsave Either(6, 13); "xor eax, eax", "vmsave rax";
        clgi Either(6, 13); "clgi";
        stgi Either(6, 13); "stgi";
        invlpga Either(6, 13); "xor eax, eax", "mov ecx, 1", "invlpga rax, ecx";
        skinit Either(6, 13); "xor eax, eax", "skinit eax";
        vmmcall In(6); "vmmcall";
        vmcall Either(6, 13); "vmcall";
        monitor Either(6, 13); "mov rax, rsp", "xor ecx, ecx", "xor edx, edx", "monitor";
        mwait Either(6, 13); "xor eax, eax", "xor ecx, ecx", "mwait";
        rsm Either(6, 13); "rsm";
        stac In(6); "stac";
        clac In(6); "clac";
        wrfsbase In(6); "wrfsbase rax";
        wrgsbase In(6); "wrgsbase rax";
        rdpkru Either(6, 13); "xor ecx, ecx", "rdpkru";
        sgdt Umip; "sub rsp, 16", "sgdt [rsp]";
        sidt Umip; "sub rsp, 16", "sidt [rsp]";
        sldt Umip; "sldt ax";
        store_task_register Umip; "str ax";
        smsw Umip; "smsw ax";
        sysenter Either(6, 13); "sysenter";
    }
    SEGMENTS {
        load_kernel_data In(13); "mov eax, 0x13", "mov ds, ax";
        load_kernel_code In(13); "mov eax, 0x0b", "mov es, ax";
        load_task_state In(13); "mov eax, 0x2b", "mov fs, ax";
        load_beyond_the_table In(13); "mov eax, 0xfffb", "mov gs, ax";
        load_local_table In(13); "mov eax, 7", "mov ds, ax";
        load_null_stack In(13); "xor eax, eax", "mov ss, ax";
        load_kernel_stack In(13); "mov eax, 0x10", "mov ss, ax";
        load_user_data Well; "mov eax, 0x1b", "mov ds, ax", "mov es, ax", "mov fs, ax", "mov gs, ax",
            "mov ebx, eax", "xor eax, eax", "syscall";
        far_return_to_kernel In(13); "push 8", "lea rax, [rip + 2f]", "push rax", "retfq", "2:";
        far_return_beyond In(13); "push 0x100", "lea rax, [rip + 2f]", "push rax", "retfq", "2:";
        interrupt_return_to_kernel In(13); "mov rax, rsp", "push 0x10", "push rax", "push 2",
            "push 8", "lea rax, [rip + 2f]", "push rax", "iretq", "2:";
        interrupt_return_non_canonical Either(13, 14); "mov rax, rsp", "push 0x1b", "push rax",
            "push 2", "push 0x23", "mov rax, {}", "push rax", "iretq", {NON_CANONICAL};
    }
    FLAGS {
        io_privilege_is_not_raised In(13); "pushfq", "or qword ptr [rsp], 0x3000", "popfq", "cli";
        nested_task_and_a_call Well; "pushfq", "or qword ptr [rsp], 0x4000", "popfq",
            "xor eax, eax", "syscall";
        alignment_flag_and_a_call Well; "pushfq", "or qword ptr [rsp], 0x40000", "popfq",
            "mov rax, [rsp + 1]", "xor eax, eax", "syscall";
        direction_flag_and_a_call Well; "std", "xor eax, eax", "syscall", "cld";
        single_step_and_a_call In(1); "pushfq", "or qword ptr [rsp], 0x100", "popfq",
            "syscall", "nop";
        nested_task_and_a_fault In(6); "pushfq", "or qword ptr [rsp], 0x4000", "popfq",
            "xor eax, eax", "ud2";
        alignment_flag_and_a_fault At(8); "pushfq", "or qword ptr [rsp], 0x40000", "popfq",
            "mov rax, [8]";
    }
    ALLOWED {
        rdtsc Well; "rdtsc";
        cpuid Well; "xor eax, eax", "cpuid";
        xgetbv Well; "xor ecx, ecx", "xgetbv";
        pause Well; "pause";
    }
}

/// x87, MMX, SSE, AVX and state instructions, as bytes: components are checked not to have any.
/// Before each, the stack pointer is aligned to 64 and 4 KiB lower.
const FPU: &[(&str, &[u8])] = &[
    ("fninit", &[0xdb, 0xe3]),
    ("fld1", &[0xd9, 0xe8]),
    ("fnstsw ax", &[0xdf, 0xe0]),
    ("fwait", &[0x9b]),
    ("pxor mm0, mm1", &[0x0f, 0xef, 0xc1]),
    ("movaps xmm0, xmm1", &[0x0f, 0x28, 0xc1]),
    ("movq rax, xmm0", &[0x66, 0x48, 0x0f, 0x7e, 0xc0]),
    ("addps xmm0, xmm1", &[0x0f, 0x58, 0xc1]),
    ("stmxcsr [rsp]", &[0x0f, 0xae, 0x1c, 0x24]),
    ("ldmxcsr [rsp]", &[0x0f, 0xae, 0x14, 0x24]),
    ("vaddps ymm0, ymm1, ymm2", &[0xc5, 0xf4, 0x58, 0xc2]),
    ("vmovdqu ymm0, [rsp]", &[0xc5, 0xfe, 0x6f, 0x04, 0x24]),
    ("vzeroall", &[0xc5, 0xfc, 0x77]),
    ("fxsave64 [rsp]", &[0x48, 0x0f, 0xae, 0x04, 0x24]),
    ("fxrstor64 [rsp]", &[0x48, 0x0f, 0xae, 0x0c, 0x24]),
];
/// `and rsp, -64; sub rsp, 4096`.
const ALIGN: &[u8] = &[0x48, 0x83, 0xe4, 0xc0, 0x48, 0x81, 0xec, 0, 0x10, 0, 0];
/// `mov eax, DONE; ud2`.
const END: &[u8] = &[0xb8, 0x0d, 0x60, 0x0d, 0x60, 0x0f, 0x0b];

/// Plays the role.
pub fn main(env: &Env) {
    let runner = match Runner::new(env) {
        Ok(runner) => runner,
        Err(status) => panic!("no second thread: {status:?}"),
    };
    for (name, cases) in [
        ("exceptions_stop_their_thread", ARITHMETIC),
        ("the_cores_memory_is_out_of_reach", CORE_MEMORY),
        ("bad_addresses_stop_their_thread", ADDRESSES),
        ("ports_without_a_right_fault", PORTS),
        ("privileged_instructions_fault", PRIVILEGED),
        ("segments_of_the_core_cannot_be_loaded", SEGMENTS),
        ("flags_do_not_follow_into_the_core", FLAGS),
        ("harmless_instructions_work", ALLOWED),
    ] {
        claim(name, group(&runner, cases));
    }
    claim("every_software_interrupt_faults", interrupts(&runner));
    claim("vector_registers_are_out_of_reach", fpu(&runner));
    claim(
        "a_call_at_the_last_address_is_contained",
        last_address(&runner),
    );
    log::info!("role done");
}

fn group(runner: &Runner, cases: &[Case]) -> Outcome {
    for &(name, code, ends) in cases {
        let report = runner
            .start(
                Cap::new(sdk::startup::SLOT_CAP_SPACE),
                code as *const () as u64,
                0,
            )
            .and_then(|()| runner.ended(5000))
            .map_err(|status| format!("{name}: {status:?}"))?;
        // The first one ends it: what was carried out may have broken the machine.
        ends.judge(report).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(format!("{} cases", cases.len()))
}

/// INT 0 to INT 255: every gate is the core's own (DPL 0), and the fault's error code names it
/// (Intel SDM vol. 3, 6.13: index in the IDT, bit 1).
fn interrupts(runner: &Runner) -> Outcome {
    for vector in 0..=255u8 {
        let code = [&[0xcd, vector], END].concat();
        let report = runner
            .run(&code)
            .map_err(|status| format!("INT {vector}: {status:?}"))?;
        In(13)
            .judge(report)
            .map_err(|why| format!("INT {vector}: {why}"))?;
        let code = report.map_or(0, |report| report.error_code);
        if code != u64::from(vector) << 3 | 2 {
            return Err(format!("INT {vector}: error code {code:#x}"));
        }
    }
    Ok("256 vectors".into())
}

fn fpu(runner: &Runner) -> Outcome {
    for (name, bytes) in FPU {
        let code = [ALIGN, bytes, END].concat();
        let report = runner
            .run(&code)
            .map_err(|status| format!("{name}: {status:?}"))?;
        In(7)
            .judge(report)
            .map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(format!("{} instructions", FPU.len()))
}

/// Nothing can be mapped in the last page below the hole: a SYSCALL at its end would return to an
/// address that is not canonical, and SYSRET to it faults in kernel mode on Intel's CPUs
/// (CVE-2012-0217). One page lower the call returns to where nothing is.
fn last_address(runner: &Runner) -> Outcome {
    const LAST: u64 = NON_CANONICAL - 4096;
    const PAGE: u64 = LAST - 4096;
    let failed = |status: Status| format!("{status:?}");
    match crate::runner::code_page(LAST) {
        Err(Status::InvalidArgument) => {}
        Err(status) => return Err(format!("the last page: {status:?}")),
        Ok(_) => return Err("the last page can be mapped".into()),
    }
    let page = crate::runner::code_page(PAGE).map_err(failed)?;
    crate::runner::write_code(page, 4094, &[0x0f, 0x05]);
    for number in [0, 18, 24, u64::MAX] {
        // mov rax, NUMBER; mov rcx, PAGE + 4094; jmp rcx
        let mut code = alloc::vec::Vec::from([0x48, 0xb8]);
        code.extend(number.to_le_bytes());
        code.extend([0x48, 0xb9]);
        code.extend((PAGE + 4094).to_le_bytes());
        code.extend([0xff, 0xe1]);
        let report = runner.run(&code).map_err(failed)?;
        In(14)
            .judge(report)
            .map_err(|why| format!("call {number}: {why}"))?;
        let rip = report.map_or(0, |report| report.registers.rip);
        if rip != LAST {
            return Err(format!("call {number}: it stands at {rip:#x}"));
        }
    }
    const { assert!(PAGE > CODE) };
    Ok("4 calls".into())
}
