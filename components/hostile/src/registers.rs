//! Roles `secret` and `hostile-registers`: a guest that keeps secrets in its vector and x87
//! registers, and a component on the same CPU that looks for them: in its general registers after
//! every wait, and in the extended state of a vCPU of its own, which never touches such registers.

use alloc::format;
use alloc::string::String;
use core::arch::asm;

use sdk::abi::cap::Map;
use sdk::abi::vcpu::{Exit, group};
use sdk::field;
use sdk::memory;
use sdk::prelude::*;
use sdk::vcpu::StatePage;

use crate::claim::{Outcome, claim, pause};
use crate::runner::Runner;

/// What is looked for, byte by byte alike.
const SECRET: u8 = 0xa5;
/// Where the code's page is in the guest, and in its code segment: see `bench`'s `exit.rs`.
const CODE_FRAME: u64 = 0xffff_f000;
const CODE_START: u64 = 0xf000;
/// CR4.OSFXSR: SSE may be used (Intel SDM vol. 3, 2.5).
const OSFXSR: u64 = 1 << 9;
/// Loads all that the 16-bit code can: `movups xmmN, cs:[0xf800]` for N = 0 to 7, then eight times
/// `fld tbyte ptr cs:[0xf800]`, then CPUID, which exits, for ever.
const LOAD: &[u8] = &[
    0x2e, 0x0f, 0x10, 0x06, 0x00, 0xf8, 0x2e, 0x0f, 0x10, 0x0e, 0x00, 0xf8, 0x2e, 0x0f, 0x10, 0x16,
    0x00, 0xf8, 0x2e, 0x0f, 0x10, 0x1e, 0x00, 0xf8, 0x2e, 0x0f, 0x10, 0x26, 0x00, 0xf8, 0x2e, 0x0f,
    0x10, 0x2e, 0x00, 0xf8, 0x2e, 0x0f, 0x10, 0x36, 0x00, 0xf8, 0x2e, 0x0f, 0x10, 0x3e, 0x00, 0xf8,
    0x2e, 0xdb, 0x2e, 0x00, 0xf8, 0x2e, 0xdb, 0x2e, 0x00, 0xf8, 0x2e, 0xdb, 0x2e, 0x00, 0xf8, 0x2e,
    0xdb, 0x2e, 0x00, 0xf8, 0x2e, 0xdb, 0x2e, 0x00, 0xf8, 0x2e, 0xdb, 0x2e, 0x00, 0xf8, 0x2e, 0xdb,
    0x2e, 0x00, 0xf8, 0x2e, 0xdb, 0x2e, 0x00, 0xf8,
];
const CPUID: &[u8] = &[0x0f, 0xa2];
/// Where the secret is in the page.
const DATA: usize = 0x800;

/// A vCPU in real mode that runs `code`, then one CPUID over and over.
struct Guest {
    vcpu: Cap<cap::Vcpu>,
    page: StatePage,
    /// Where its CPUID is.
    rest: u64,
}

impl Guest {
    fn new(env: &Env, code: &[u8]) -> Result<Guest, Status> {
        let own = env.memory();
        let page = memory::allocate(1)?;
        crate::runner::write_code(page.address, 0, &[code, CPUID].concat());
        crate::runner::write_code(page.address, DATA, &[SECRET; 16]);
        let space = own.address_space(SpaceKind::Guest)?;
        let frame = page.frames.copy(Rights::ALL)?;
        memory::map_into(own, space, frame, CODE_FRAME, Map::READ | Map::EXECUTE)?;
        let vcpu: Cap<cap::Vcpu> = own.retype(0)?;
        vcpu.configure(space)?;
        let mut page = StatePage::map(vcpu)?;
        vcpu.fetch(group::ALL)?;
        page.set(field!(deadline), FOREVER);
        page.set(field!(regs.rip), CODE_START);
        page.set(field!(cr4), page.get(field!(cr4)) | OSFXSR);
        page.set(field!(modified), group::GENERAL | group::MODE);
        Ok(Guest {
            vcpu,
            page,
            rest: CODE_START + code.len() as u64,
        })
    }

    /// Runs it to its CPUID, and leaves it there.
    fn run(&mut self) -> Result<(), String> {
        self.vcpu
            .run()
            .map_err(|status| format!("run: {status:?}"))?;
        let (exit, rip) = (self.page.get(field!(exit)), self.page.get(field!(regs.rip)));
        if exit == Exit::Cpuid as u64 && rip == self.rest {
            Ok(())
        } else {
            Err(format!("the guest left at {rip:#x} by exit {exit}"))
        }
    }

    /// Longest run of the secret's byte in its extended state.
    fn secrets(&self) -> Result<usize, Status> {
        let mut image = [0; 2048];
        let size = self.vcpu.get_extended(0, &mut image)?;
        let image = image.get(..usize::try_from(size).unwrap_or(0).min(2048));
        let (mut longest, mut here) = (0, 0);
        for byte in image.unwrap_or(&[]) {
            here = if *byte == SECRET { here + 1 } else { 0 };
            longest = longest.max(here);
        }
        Ok(longest)
    }
}

/// Plays `secret`: keeps its guest's registers in the CPU as often as it can.
pub fn secret(env: &Env) {
    let outcome = (|| {
        let mut guest = Guest::new(env, LOAD).map_err(|status| format!("{status:?}"))?;
        guest.run()?;
        if guest.secrets().map_err(|status| format!("{status:?}"))? < 16 {
            return Err("the guest's registers do not hold the secret".into());
        }
        Ok(guest)
    })();
    let mut guest = match outcome {
        Ok(guest) => guest,
        Err(why) => {
            claim("a_guest_keeps_its_registers", Err::<&str, String>(why));
            return;
        }
    };
    let mut rounds = 0u64;
    loop {
        let outcome = guest.run().and_then(|()| {
            let found = guest.secrets().map_err(|status| format!("{status:?}"))?;
            // Eight registers of 16 bytes in a row (Intel SDM vol. 1, table 10-2).
            (found >= 128)
                .then_some(())
                .ok_or(format!("{found} bytes are left of 128"))
        });
        rounds += 1;
        match outcome {
            Err(why) => {
                let why: String = format!("round {rounds}: {why}");
                return claim("a_guest_keeps_its_registers", Err::<&str, String>(why));
            }
            Ok(()) if rounds == 2000 => {
                claim(
                    "a_guest_keeps_its_registers",
                    Ok::<_, String>(format!("{rounds} rounds")),
                );
            }
            Ok(()) => {}
        }
        // Live in the CPU when the others on it get their turn.
        if let Err(why) = guest.run() {
            return claim("a_guest_keeps_its_registers", Err::<&str, String>(why));
        }
        pause(500);
    }
}

/// Plays `hostile-registers`.
pub fn scan(env: &Env) {
    claim("extended_registers_hold_nobody_elses_values", extended(env));
    claim("the_cpus_registers_hold_nobody_elses_values", cpus_own(env));
    claim("general_registers_hold_nobody_elses_values", general());
    log::info!("role done");
}

fn extended(env: &Env) -> Outcome {
    const ROUNDS: u32 = 1000;
    let failed = |status: Status| format!("{status:?}");
    let mut guest = Guest::new(env, &[]).map_err(failed)?;
    for round in 0..ROUNDS {
        guest.run()?;
        let found = guest.secrets().map_err(failed)?;
        if found >= 8 {
            return Err(format!(
                "{found} bytes of another guest's registers in round {round}"
            ));
        }
        // The secret's holder runs meanwhile.
        pause(700);
    }
    Ok(format!("{ROUNDS} rounds"))
}

/// Saves all extended registers at `rdi`, then faults.
#[unsafe(naked)]
extern "C" fn save_extended(buffer: u64) {
    core::arch::naked_asm!(
        "mov eax, -1",
        "mov edx, -1",
        "xsave64 [rdi]",
        "mov eax, {done}",
        "ud2",
        done = const SAVED,
    )
}

/// In `rax` when they were saved.
const SAVED: u64 = 0x5a7ed;

/// Looks into the CPU's own registers. CR0.TS should keep a component from it; where it does not
/// (QEMU carries XSAVE out), there must be nothing in them.
fn cpus_own(env: &Env) -> Outcome {
    const ROUNDS: u32 = 500;
    let failed = |status: Status| format!("{status:?}");
    let runner = Runner::new(env).map_err(failed)?;
    let image = memory::allocate(1).map_err(failed)?.address;
    let mut saved = 0;
    for round in 0..ROUNDS {
        let entry = save_extended as *const () as u64;
        let caps = Cap::new(sdk::startup::SLOT_CAP_SPACE);
        runner.start(caps, entry, image).map_err(failed)?;
        match runner.ended(5000).map_err(failed)? {
            // Device not available: as it should be.
            Some(report) if report.vector == 7 => {}
            Some(report) if report.vector == 6 && report.registers.rax == SAVED => saved += 1,
            other => return Err(format!("round {round}: {other:?}")),
        }
        let (mut longest, mut here) = (0, 0);
        for offset in 0..4096 {
            // SAFETY: inside the page, which stays mapped; the other thread has stopped.
            let byte = unsafe { ((image + offset) as *const u8).read_volatile() };
            here = if byte == SECRET { here + 1 } else { 0 };
            longest = longest.max(here);
        }
        if longest >= 8 {
            return Err(format!(
                "{longest} bytes of a guest's registers in round {round}"
            ));
        }
        pause(700);
    }
    Ok(format!("{ROUNDS} rounds, {saved} of them could look"))
}

/// Fills every register, waits so that others run, and compares.
fn general() -> Outcome {
    const ROUNDS: u32 = 1000;
    let note: Cap<cap::Notification> = memory::own()
        .retype(0)
        .map_err(|status| format!("{status:?}"))?;
    for round in 0..ROUNDS {
        let deadline = sdk::time::now() + sdk::time::microseconds(600);
        let (wrong, rax): (u64, u64);
        // SAFETY: a `Wait` that ends at its deadline. Every register that is used is saved on the
        // stack or declared; the core keeps all others.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "mov rbx, {mark}",
                "mov rbp, rbx",
                "mov rdx, rbx",
                "mov r8, rbx",
                "mov r9, rbx",
                "mov r10, rbx",
                "mov r12, rbx",
                "mov r13, rbx",
                "mov r14, rbx",
                "mov r15, rbx",
                "syscall",
                "mov r11, {mark}",
                "xor ecx, ecx",
                "xor rbx, r11",
                "or rcx, rbx",
                "xor rbp, r11",
                "or rcx, rbp",
                "xor rdx, r11",
                "or rcx, rdx",
                "xor r8, r11",
                "or rcx, r8",
                "xor r9, r11",
                "or rcx, r9",
                "xor r10, r11",
                "or rcx, r10",
                "xor r12, r11",
                "or rcx, r12",
                "xor r13, r11",
                "or rcx, r13",
                "xor r14, r11",
                "or rcx, r14",
                "xor r15, r11",
                "or rcx, r15",
                "pop rbp",
                "pop rbx",
                mark = const 0x5aa5_1234_8765_c33cu64,
                inlateout("rax") sdk::abi::Call::Wait as u64 => rax,
                inlateout("rdi") u64::from(note.slot()) => _,
                inlateout("rsi") deadline => _,
                lateout("rcx") wrong,
                lateout("rdx") _, lateout("r8") _, lateout("r9") _, lateout("r10") _,
                lateout("r11") _, lateout("r12") _, lateout("r13") _, lateout("r14") _,
                lateout("r15") _,
            );
        }
        if wrong != 0 || rax != Status::Timeout as u64 {
            return Err(format!(
                "round {round}: status {rax}, bits that differ {wrong:#x}"
            ));
        }
    }
    Ok(format!("{ROUNDS} rounds"))
}
