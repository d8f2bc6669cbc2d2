//! Claims about vCPUs: tiny real-mode guests of one page, run by this thread or by a worker.

use core::ptr::{copy_nonoverlapping, read_volatile};

use sdk::abi::FRAME;
use sdk::abi::boot::{SLOT_IO_PORTS, SLOT_SCHED};
use sdk::abi::cap::Map;
use sdk::abi::vcpu::{Exit, Segment, blocked, event, group, window};
use sdk::memory;
use sdk::prelude::*;
use sdk::vcpu::{Field, StatePage};
use sdk::{field, time};

use crate::lab::{
    CPUS, Claim, Failure, Lab, OUTCOME, RESULT, SEEN, Word, Worker, here, same, until,
};
use crate::serial::range;

pub const CLAIMS: &[Claim] = &[
    ("an_instruction_that_exits_is_reported", exits),
    ("a_poke_is_sticky_and_a_deadline_ends_a_run", poked),
    ("a_vcpu_runs_once_at_a_time", busy),
    ("a_poke_ends_a_run_elsewhere", ended_by_poke),
    ("a_cancel_ends_a_run", ended_by_cancel),
    ("a_bound_notification_ends_a_run", ended_by_notification),
    ("a_running_vcpu_moves_with_its_thread", moves),
    ("a_vcpus_fpu_follows_it", fpu_follows),
    ("a_vcpu_is_destroyed_while_it_runs", destroyed),
    ("a_suspended_run_goes_on_elsewhere", suspended),
    ("a_guest_page_that_is_unmapped_is_gone_at_once", unmapped),
    ("an_interrupt_waits_for_its_window", interrupt),
    ("an_nmi_waits_for_the_end_of_the_last", nmi),
    ("extended_state_is_set_and_got", extended),
    ("debug_registers_are_the_guests_own", debug),
    ("a_breakpoint_reaches_the_guest", breakpoint),
    ("ports_are_given_and_taken_back", ports),
    ("task_priority_is_in_the_state", task_priority),
];

/// Where a guest's code is, in its only page; the real-mode vectors are at 0.
const CODE: u64 = 0x600;
/// Handlers.
const HANDLER_INTERRUPT: u64 = 0x700;
const HANDLER_NMI: u64 = 0x740;
const HANDLER_DEBUG: u64 = 0x760;
/// A word that guests count in.
const COUNT: u64 = 0x800;
/// Counts for ever: INC WORD [800h]; JMP to itself.
const COUNTER: &[u8] = &[0xff, 0x06, 0x00, 0x08, 0xeb, 0xfa];
/// JMP to itself.
const LOOP: &[u8] = &[0xeb, 0xfe];
const HLT: u8 = 0xf4;

/// A guest: one vCPU, one page of memory at 0.
struct Guest {
    vcpu: Cap<cap::Vcpu>,
    space: Cap<cap::AddressSpace>,
    page: StatePage,
    memory: u64,
}

impl Guest {
    /// A guest in real mode that stands at the start of `code`.
    fn new(code: &[u8]) -> Result<Guest, Failure> {
        let own = memory::own();
        let pages = memory::allocate(1)?;
        let space = own.address_space(SpaceKind::Guest)?;
        let frame = pages.frames.copy(Rights::ALL)?;
        let access = Map::READ | Map::WRITE | Map::EXECUTE;
        memory::map_into(own, space, frame, 0, access)?;
        let vcpu: Cap<cap::Vcpu> = own.retype(0)?;
        vcpu.configure(space)?;
        vcpu.fetch(group::ALL)?;
        let mut guest = Guest {
            vcpu,
            space,
            page: StatePage::map(vcpu)?,
            memory: pages.address,
        };
        guest.put(CODE, code);
        let page = &mut guest.page;
        page.set(field!(deadline), FOREVER);
        page.set(field!(regs.rip), CODE);
        page.set(field!(regs.rsp), 0xf00);
        page.set_segment(field!(cs), Segment::new(0, 0x9b, 0xffff, 0));
        page.set(field!(modified), group::GENERAL | group::MODE);
        Ok(guest)
    }

    /// Puts bytes into its memory.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let room = (FRAME - at) as usize;
        // SAFETY: inside the page that was mapped for this guest; it does not run.
        unsafe {
            copy_nonoverlapping(
                bytes.as_ptr(),
                (self.memory + at) as *mut u8,
                bytes.len().min(room),
            );
        }
    }

    /// Puts a handler for a real-mode vector.
    fn handler(&mut self, vector: u64, at: u64, code: &[u8]) {
        self.put(vector * 4, &(at as u32).to_le_bytes());
        self.put(at, code);
    }

    /// Sets a word of a group.
    fn set(&mut self, field: Field, value: u64, group: u64) {
        self.page.set(field, value);
        let modified = self.page.get(field!(modified));
        self.page.set(field!(modified), modified | group);
    }

    /// Steps over an instruction.
    fn skip(&mut self, bytes: u64) {
        let rip = self.page.get(field!(regs.rip)) + bytes;
        self.set(field!(regs.rip), rip, group::GENERAL);
    }

    /// Runs until it exits like this, at this instruction.
    fn run(&mut self, exit: Exit, at: u64) -> Result<(), Failure> {
        self.vcpu.run()?;
        same("the exit", self.page.get(field!(exit)), exit as u64)?;
        same("where it is", self.page.get(field!(regs.rip)), at)
    }
}

/// How often a guest's counter counted, as far as 16 bits tell.
fn counted(memory: u64) -> u16 {
    // SAFETY: inside the page that was mapped for the guest; the guest may be writing it.
    unsafe { read_volatile((memory + COUNT) as *const u16) }
}

/// Waits until the guest goes on.
fn goes_on(memory: u64) -> Result<(), Failure> {
    for _ in 0..3 {
        let from = counted(memory);
        until("the guest goes on", || counted(memory) != from)?;
    }
    Ok(())
}

/// A guest that counts, run by a worker on CPU 1. At the end of its run the worker says how and
/// where it ended.
fn running(lab: &mut Lab) -> Result<(Cap<cap::Vcpu>, u64, Worker), Failure> {
    let Guest {
        vcpu, memory, page, ..
    } = Guest::new(COUNTER)?;
    let worker = lab.worker(1, move |_| {
        let ran = vcpu.run();
        here();
        OUTCOME.set(match ran {
            Ok(()) => 2 * RESULT + page.get(field!(exit)),
            Err(status) => RESULT + status as u64,
        });
    })?;
    goes_on(memory)?;
    Ok((vcpu, memory, worker))
}

/// The run ended with this exit.
fn ended(exit: Exit) -> Result<(), Failure> {
    OUTCOME.reaches("the run ends", 2 * RESULT + exit as u64)
}

fn exits(_: &mut Lab) -> Result<(), Failure> {
    let mut guest = Guest::new(&[0x0f, 0xa2, HLT])?;
    guest.run(Exit::Cpuid, CODE)?;
    guest.skip(2);
    guest.run(Exit::Hlt, CODE + 2)
}

fn poked(_: &mut Lab) -> Result<(), Failure> {
    let mut guest = Guest::new(LOOP)?;
    guest.vcpu.poke()?;
    guest.run(Exit::Interrupted, CODE)?;
    same("it never entered", guest.page.get(field!(info)), 1)?;
    guest
        .page
        .set(field!(deadline), time::now() + 20 * time::tsc_khz());
    guest.run(Exit::Deadline, CODE)
}

fn busy(lab: &mut Lab) -> Result<(), Failure> {
    let (vcpu, _, worker) = running(lab)?;
    same("a second run", refusal(vcpu.run()), Status::Busy as u64)?;
    let fetched = refusal(vcpu.fetch(group::ALL));
    same("a look at its state", fetched, Status::Busy as u64)?;
    vcpu.poke()?;
    ended(Exit::Interrupted)?;
    vcpu.fetch(group::ALL)?;
    worker.end()
}

fn refusal(result: Result<(), Status>) -> u64 {
    result.err().map_or(0, |status| status as u64)
}

fn ended_by_poke(lab: &mut Lab) -> Result<(), Failure> {
    let (vcpu, _, worker) = running(lab)?;
    vcpu.poke()?;
    ended(Exit::Interrupted)?;
    worker.end()
}

fn ended_by_cancel(lab: &mut Lab) -> Result<(), Failure> {
    let (_, _, worker) = running(lab)?;
    worker.thread.cancel()?;
    ended(Exit::Interrupted)?;
    worker.end()
}

fn ended_by_notification(lab: &mut Lab) -> Result<(), Failure> {
    let (vcpu, _, worker) = running(lab)?;
    let note: Cap<cap::Notification> = lab.make()?;
    note.bind_run(vcpu)?;
    note.signal(1)?;
    ended(Exit::Interrupted)?;
    worker.end()
}

fn moves(lab: &mut Lab) -> Result<(), Failure> {
    let (vcpu, memory, worker) = running(lab)?;
    for cpu in [2, 3, 1, 2, 1, 3] {
        worker.move_to(cpu)?;
        goes_on(memory)?;
    }
    vcpu.poke()?;
    ended(Exit::Interrupted)?;
    same("where it ended", SEEN.get(), 4)?;
    worker.end()
}

/// MOVD MM0, EAX; CPUID; MOVD EBX, MM0; HLT.
const THROUGH_FPU: &[u8] = &[0x0f, 0x6e, 0xc0, 0x0f, 0xa2, 0x0f, 0x7e, 0xc3, HLT];

fn fpu_follows(lab: &mut Lab) -> Result<(), Failure> {
    static BETWEEN: Word = Word::new();
    const VALUE: u64 = 0x1234_5678;
    BETWEEN.set(0);
    let mut guest = Guest::new(THROUGH_FPU)?;
    let note: Cap<cap::Notification> = lab.make()?;
    guest.set(field!(regs.rax), VALUE, group::GENERAL);
    let worker = lab.worker(1, move |_| {
        let first = guest.run(Exit::Cpuid, CODE + 3);
        BETWEEN.set(1 + u64::from(first.is_err()));
        let _ = note.wait(FOREVER);
        guest.skip(2);
        let second = guest.run(Exit::Hlt, CODE + 8);
        here();
        let value = guest.page.get(field!(regs.rbx));
        OUTCOME.set(RESULT + if second.is_ok() { value } else { 0 });
    })?;
    BETWEEN.reaches("the first half", 1)?;
    worker.blocks()?;
    // The worker's CPU is idle now, with the guest's registers in it.
    worker.move_to(2)?;
    note.signal(1)?;
    OUTCOME.reaches("what was in its FPU", RESULT + VALUE)?;
    same("where it is", SEEN.get(), 3)?;
    worker.end()
}

fn destroyed(lab: &mut Lab) -> Result<(), Failure> {
    for _ in 0..5 {
        let (vcpu, memory, worker) = running(lab)?;
        vcpu.delete()?;
        let last = counted(memory);
        OUTCOME.reaches("the run ends", RESULT + Status::Aborted as u64)?;
        same("it runs no more", counted(memory).into(), last.into())?;
        worker.end()?;
    }
    Ok(())
}

fn suspended(lab: &mut Lab) -> Result<(), Failure> {
    let (vcpu, memory, worker) = running(lab)?;
    for cpu in [2, 3, 1] {
        worker.thread.suspend()?;
        let last = counted(memory);
        worker.move_to(cpu)?;
        same("it stands", counted(memory).into(), last.into())?;
        worker.thread.resume()?;
        goes_on(memory)?;
    }
    vcpu.poke()?;
    ended(Exit::Interrupted)?;
    worker.end()
}

fn unmapped(lab: &mut Lab) -> Result<(), Failure> {
    /// MOV AL, [2000h]; then as `COUNTER`.
    const READER: &[u8] = &[0xa0, 0x00, 0x20, 0xff, 0x06, 0x00, 0x08, 0xeb, 0xf7];
    static INFO: Word = Word::new();
    for _ in 0..5 {
        let guest = Guest::new(READER)?;
        let (memory, space, vcpu) = (guest.memory, guest.space, guest.vcpu);
        let own = memory::own();
        let second: Cap<cap::Frame> = own.retype(memory::ORDER_4K)?;
        memory::map_into(own, space, second, 0x2000, Map::READ)?;
        let worker = lab.worker(1, move |_| {
            let ran = vcpu.run();
            INFO.set(guest.page.get(field!(info)));
            OUTCOME.set(match ran {
                Ok(()) => 2 * RESULT + guest.page.get(field!(exit)),
                Err(status) => RESULT + status as u64,
            });
        })?;
        goes_on(memory)?;
        second.unmap()?;
        // What it had read it may still count once.
        let last = counted(memory);
        ended(Exit::NestedFault)?;
        same("the address", INFO.get(), 0x2000)?;
        let more = counted(memory).wrapping_sub(last);
        same("reads afterwards", u64::from(more > 1), 0)?;
        worker.end()?;
    }
    Ok(())
}

/// INC EBX; HLT.
const COUNT_AND_HALT: &[u8] = &[0x66, 0x43, HLT];

fn interrupt(_: &mut Lab) -> Result<(), Failure> {
    // CLI; CPUID; STI; NOP; NOP; JMP to itself.
    let mut guest = Guest::new(&[0xfa, 0x0f, 0xa2, 0xfb, 0x90, 0x90, 0xeb, 0xfe])?;
    guest.handler(0x20, HANDLER_INTERRUPT, COUNT_AND_HALT);
    guest.run(Exit::Cpuid, CODE + 1)?;
    guest.skip(2);
    guest.set(field!(regs.rbx), 0, group::GENERAL);
    guest.set(field!(window), window::INTERRUPT, group::EVENTS);
    guest.vcpu.run()?;
    let exit = guest.page.get(field!(exit));
    same("the exit", exit, Exit::InterruptWindow as u64)?;
    let rip = guest.page.get(field!(regs.rip));
    if !(CODE + 5..=CODE + 6).contains(&rip) {
        return Err(Failure::Wrong("behind STI and one more", rip, CODE + 5));
    }
    let inject = event::VALID | event::INTERRUPT | 0x20;
    guest.set(field!(inject), inject, group::EVENTS);
    guest.run(Exit::Hlt, HANDLER_INTERRUPT + 2)?;
    same("it came once", guest.page.get(field!(regs.rbx)), 1)
}

fn nmi(_: &mut Lab) -> Result<(), Failure> {
    let mut guest = Guest::new(&[0x0f, 0xa2, 0xeb, 0xfe])?;
    // INC ESI; CPUID; IRET.
    guest.handler(2, HANDLER_NMI, &[0x66, 0x46, 0x0f, 0xa2, 0xcf]);
    guest.run(Exit::Cpuid, CODE)?;
    guest.skip(2);
    guest.set(field!(regs.rsi), 0, group::GENERAL);
    for times in 1..=2 {
        let inject = event::VALID | event::NMI;
        guest.set(field!(inject), inject, group::EVENTS);
        guest.run(Exit::Cpuid, HANDLER_NMI + 2)?;
        same("how often it came", guest.page.get(field!(regs.rsi)), times)?;
        let held = guest.page.get(field!(interruptibility));
        same("another one waits", held & blocked::NMI, blocked::NMI)?;
        guest.skip(2);
        guest.set(field!(window), window::NMI, group::EVENTS);
        guest.run(Exit::NmiWindow, CODE + 2)?;
        let held = guest.page.get(field!(interruptibility));
        same("another one may come", held & blocked::NMI, 0)?;
    }
    Ok(())
}

fn extended(_: &mut Lab) -> Result<(), Failure> {
    /// Offsets in the image (Intel SDM vol. 1, 13.4): XMM0, XMM1, XSTATE_BV.
    const XMM0: usize = 160;
    const XMM1: usize = 176;
    const BV: usize = 512;
    /// CR4.OSFXSR.
    const OSFXSR: u64 = 1 << 9;
    // MOVD EAX, XMM0; MOVD XMM1, EBX; HLT.
    let mut guest = Guest::new(&[0x66, 0x0f, 0x7e, 0xc0, 0x66, 0x0f, 0x6e, 0xcb, HLT])?;
    let cr4 = guest.page.get(field!(cr4));
    guest.set(field!(cr4), cr4 | OSFXSR, group::MODE);
    guest.set(field!(regs.rbx), 0x5555_aaaa, group::GENERAL);
    let mut image = [0u8; 576];
    let size = guest.vcpu.get_extended(0, &mut image)?;
    if size < image.len() as u64 {
        return Err(Failure::Wrong("its size", size, image.len() as u64));
    }
    image[XMM0..XMM0 + 4].copy_from_slice(&0x0bad_cafe_u32.to_le_bytes());
    image[BV] |= 2;
    guest.vcpu.set_extended(0, &image)?;
    guest.run(Exit::Hlt, CODE + 8)?;
    same("XMM0", guest.page.get(field!(regs.rax)), 0x0bad_cafe)?;
    guest.vcpu.get_extended(0, &mut image)?;
    let word = u32::from_le_bytes([
        image[XMM1],
        image[XMM1 + 1],
        image[XMM1 + 2],
        image[XMM1 + 3],
    ]);
    same("XMM1", word.into(), 0x5555_aaaa)?;
    let beyond = guest.vcpu.set_extended(size, &[0; 8]);
    same(
        "bytes beyond its end",
        refusal(beyond.map(|_| ())),
        Status::InvalidArgument as u64,
    )
}

fn debug(_: &mut Lab) -> Result<(), Failure> {
    let own: Cap<cap::SchedContext> = Cap::new(SLOT_SCHED);
    // MOV DR0, EAX; MOV EBX, DR0; CPUID; MOV EDX, DR1; HLT.
    let code = [
        0x0f, 0x23, 0xc0, 0x0f, 0x21, 0xc3, 0x0f, 0xa2, 0x0f, 0x21, 0xca, HLT,
    ];
    let mut guest = Guest::new(&code)?;
    guest.set(field!(regs.rax), 0x1111_2222, group::GENERAL);
    guest.run(Exit::Cpuid, CODE + 6)?;
    same("read back", guest.page.get(field!(regs.rbx)), 0x1111_2222)?;
    guest.vcpu.fetch(group::DEBUG)?;
    same("DR0", guest.page.get(field!(dr)), 0x1111_2222)?;
    if let Some(dr1) = field!(dr).word(1) {
        guest.set(dr1, 0x3333_4444, group::DEBUG);
    }
    guest.skip(2);
    // To another CPU: they go along.
    own.set(CPUS, 1, 15, 1, 1)?;
    let there = guest.run(Exit::Hlt, CODE + 11);
    own.set(CPUS, 0, 15, 1, 1)?;
    there?;
    same("DR1", guest.page.get(field!(regs.rdx)), 0x3333_4444)?;
    guest.vcpu.fetch(group::DEBUG)?;
    same("DR0 later", guest.page.get(field!(dr)), 0x1111_2222)
}

fn breakpoint(_: &mut Lab) -> Result<(), Failure> {
    // MOV DR0, EAX; MOV DR7, EBX; NOP; NOP; HLT.
    let mut guest = Guest::new(&[0x0f, 0x23, 0xc0, 0x0f, 0x23, 0xfb, 0x90, 0x90, HLT])?;
    guest.handler(1, HANDLER_DEBUG, COUNT_AND_HALT);
    guest.set(field!(regs.rax), CODE + 7, group::GENERAL);
    // Global breakpoint 0, on execution.
    guest.set(field!(regs.rbx), 0x402, group::GENERAL);
    guest.run(Exit::Hlt, HANDLER_DEBUG + 2)?;
    guest.vcpu.fetch(group::DEBUG)?;
    let cause = guest.page.get(field!(dr6)) & 0xf;
    same("DR6 says which", cause, 1)
}

fn ports(_: &mut Lab) -> Result<(), Failure> {
    /// POST codes: writing it does nothing.
    const PORT: u16 = 0x80;
    // OUT 80h, AL; HLT.
    let mut guest = Guest::new(&[0xe6, PORT as u8, HLT])?;
    guest.run(Exit::Io, CODE)?;
    let all: Cap<cap::IoPorts> = Cap::new(SLOT_IO_PORTS);
    let one = all.mint(Rights::ALL, range(PORT, 1))?;
    one.grant_vcpu(guest.vcpu)?;
    guest.run(Exit::Hlt, CODE + 2)?;
    one.delete()?;
    guest.set(field!(regs.rip), CODE, group::GENERAL);
    guest.run(Exit::Io, CODE)
}

fn task_priority(_: &mut Lab) -> Result<(), Failure> {
    // In 64-bit mode, the only one in which CR8 has an encoding on every CPU. MOV RAX, CR8; MOV CR8,
    // RBX; HLT.
    let mut guest = Guest::new(&[0x44, 0x0f, 0x20, 0xc0, 0x44, 0x0f, 0x22, 0xc3, HLT])?;
    // The page is its own translation table, on every level: present, writable, accessed, dirty.
    guest.put(0, &0x63_u64.to_le_bytes());
    for (field, value) in [
        (field!(cr0), 0x8000_0011),
        (field!(cr3), 0),
        (field!(cr4), 1 << 5),
        (field!(efer), 1 << 8 | 1 << 10),
    ] {
        guest.set(field, value, group::MODE);
    }
    let code = Segment::new(8, 0xa9b, u32::MAX, 0);
    guest.page.set_segment(field!(cs), code);
    guest.set(field!(cr8), 9, group::MISC);
    guest.set(field!(regs.rbx), 5, group::GENERAL);
    guest.run(Exit::Hlt, CODE + 8)?;
    same("what it reads", guest.page.get(field!(regs.rax)), 9)?;
    guest.vcpu.fetch(group::MISC)?;
    same("what it wrote", guest.page.get(field!(cr8)), 5)
}
