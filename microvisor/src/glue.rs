//! From kernel entries to the objects and on to whatever runs next: a thread in user mode, a
//! thread inside its guest, or nothing. Called by the stubs in `trap`; returning from here means
//! going to user mode with the thread that is current then.
//!
//! Running a vCPU takes no lock: the object code's rules for that are in its `vcpu` module. Every
//! point where this CPU answers another's flush (waiting for the lock, or after an interrupt) ends
//! the validity of what was looked up without the lock, so the loop below looks it up again.

use crate::cpu::{self, Cpu, Found, RunMemo};
use crate::hardware::{self, Hardware};
use crate::lock::{Guard, KernelLock, Once};
use crate::paging::DIRECT_MAP;
use crate::ring::Kind;
use crate::virt::{self, Outcome, RunArgs};
use crate::{apic, ioapic, iommu, logger, smp, start, time, trap};
use core::sync::atomic::Ordering;
use microvisor_abi::archive::Archive;
use microvisor_abi::boot::{Info, MEMORIES, MemoryRange, feature};
use microvisor_abi::thread::Registers;
use microvisor_abi::vcpu::{Exit, State};
use microvisor_abi::{Call, FRAME, Status};
use microvisor_objects::boot::Resources;
use microvisor_objects::vcpu::{Run, Vcpu};
use microvisor_objects::{Arena, Config, Handover, Kernel, PhysAddr, Ref, Thread};

/// The object graph. Guarded by its lock: everything but what `ARENA`'s users say.
static KERNEL: KernelLock<Kernel<Hardware>> = KernelLock::new(Kernel::empty(Hardware));
/// The same arena, for looking objects up without the lock.
static ARENA: Once<Arena> = Once::new(Arena::empty());

/// A thread's time slice in milliseconds.
const SLICE_MS: u64 = 10;

/// A system call of the current thread, whose registers are saved at `regs`.
pub extern "C" fn system_call(regs: *mut Registers) {
    // SAFETY: the stub passes the current thread's registers, which live as long as it is current.
    let (number, first) = unsafe { ((*regs).rax, (*regs).rdi) };
    cpu::trace(Kind::Call, number, first);
    let mut kernel = lock_to_call();
    // A flush answered while waiting for the lock may have taken the thread's tables away.
    // SAFETY: this CPU's own field.
    if !kernel.syscall() && unsafe { (*cpu::this()).root } != cpu::core_root() {
        return;
    }
    if let Some(next) = settle(kernel) {
        run_elsewhere(next);
    }
}

/// Takes the lock for what the current thread asked for and what has had no effect yet. If another
/// CPU took the thread away meanwhile, it is not the current one any more, and asks again.
#[inline(always)]
fn lock_to_call() -> Guard<'static, Kernel<Hardware>> {
    KERNEL.try_lock().unwrap_or_else(wait_to_call)
}

#[cold]
#[inline(never)]
fn wait_to_call() -> Guard<'static, Kernel<Hardware>> {
    // SAFETY: a shared reference to an atomic of this CPU's area.
    let waits = unsafe { &(*cpu::this()).waits_to_call };
    waits.store(true, Ordering::Relaxed);
    let kernel = KERNEL.lock();
    waits.store(false, Ordering::Relaxed);
    kernel
}

/// `Call` of the current thread by the fast path, which goes on in user mode. Returns if nothing was
/// done.
pub extern "C" fn fast_call() {
    message(Call::Call, Kernel::fast_call);
}

/// As [`fast_call`], `ReplyReceive`.
pub extern "C" fn fast_reply_receive() {
    message(Call::ReplyReceive, Kernel::fast_reply_receive);
}

/// Only without waiting for the lock, since waiting may answer a flush.
#[inline(always)]
fn message(call: Call, path: impl FnOnce(&mut Kernel<Hardware>, usize) -> Option<Handover>) {
    let Some(mut kernel) = KERNEL.try_lock() else {
        return;
    };
    // SAFETY: this CPU's own data, and no other reference to these fields is held here.
    let this = unsafe { &mut *cpu::this() };
    let Some(next) = path(&mut kernel, this.index) else {
        return;
    };
    this.current_regs = next.registers;
    this.thread = next.thread;
    this.last = next.thread;
    this.trace
        .record(Kind::Message, next.registers as u64, call as u64);
    // Threads of one space have no secrets from each other.
    if next.root != 0 {
        into_space(kernel, next.root, next.registers);
    }
    drop(kernel);
    // SAFETY: the registers are those of the thread that is current now, and that entered by a
    // system call. Nothing on this stack is needed.
    unsafe { trap::sysret(next.registers) }
}

/// The rest of a handover to another space. The lock is held until the space is loaded: then nobody
/// can have taken its tables away.
#[inline(never)]
fn into_space(kernel: Guard<'static, Kernel<Hardware>>, root: u64, registers: *mut Registers) -> ! {
    hardware::load_root(root);
    drop(kernel);
    if cfg!(not(control = "release")) {
        virt::release();
    }
    trap::clear_selectors();
    // SAFETY: as in `message`.
    unsafe { trap::sysret(registers) }
}

/// An exception or interrupt in user mode.
pub extern "C" fn trap(vector: u64, error: u64) {
    if vector >= 32 {
        cpu::trace(Kind::Interrupt, vector, 0);
        interrupt(vector as u8);
        return;
    }
    let address: u64;
    // SAFETY: reads CR2.
    unsafe { core::arch::asm!("mov {}, cr2", out(reg) address, options(nomem, nostack)) };
    // SAFETY: the stub saved the current thread's registers.
    cpu::trace(Kind::Fault, vector, unsafe {
        (*(*cpu::this()).current_regs).rip
    });
    let mut kernel = KERNEL.lock();
    kernel.fault(vector as u8, error, address);
    proceed(kernel);
}

/// Handles an interrupt, then goes on.
fn interrupt(vector: u8) {
    proceed(accept(vector));
}

/// Handles an interrupt; the lock is held afterwards.
fn accept(vector: u8) -> Guard<'static, Kernel<Hardware>> {
    const VECTORS: core::ops::Range<u8> =
        apic::VECTOR_LINES..apic::VECTOR_LINES + microvisor_objects::interrupt::LINES as u8;
    match vector {
        apic::VECTOR_SPURIOUS => KERNEL.lock(),
        apic::VECTOR_TIMER => {
            apic::end_of_interrupt();
            let this = cpu::this();
            // SAFETY: this CPU's own fields.
            let index = unsafe {
                (*this).armed = u64::MAX;
                (*this).index
            };
            let mut kernel = KERNEL.lock();
            kernel.timer(index);
            kernel
        }
        line if VECTORS.contains(&line) => {
            let line = u32::from(line - apic::VECTOR_LINES);
            let mut kernel = KERNEL.lock();
            if ioapic::arrived(line) {
                kernel.line(line);
            }
            // After a level-triggered line was masked.
            apic::end_of_interrupt();
            kernel
        }
        _ => {
            apic::end_of_interrupt();
            hardware::answer();
            let mut kernel = KERNEL.lock();
            if vector == apic::VECTOR_IOMMU {
                iommu::faults(&mut |function, why| kernel.device_fault(function, why));
            }
            kernel
        }
    }
}

/// Lets the objects decide what runs, and runs it until that is a thread in user mode.
#[inline(never)]
fn proceed(kernel: Guard<'static, Kernel<Hardware>>) {
    if let Some(next) = settle(kernel) {
        run_elsewhere(next);
    }
}

/// Makes what the objects decide current, and gives the lock back. `None`: it is a thread in user
/// mode. In line with the system call path, where that is the usual answer.
#[inline(always)]
fn settle(mut kernel: Guard<'static, Kernel<Hardware>>) -> Option<Ref<Thread>> {
    // SAFETY: this CPU's own data, and no other reference to these fields is held here.
    let this = unsafe { &mut *cpu::this() };
    let next = kernel.reschedule(this.index);
    // A CPU with the core's own tables is idle, or a flush took its thread's tables away.
    if next != this.thread || this.root == cpu::core_root() {
        switch(this, &mut kernel, next);
    }
    let wanted = kernel.deadline(this.index);
    drop(kernel);
    arm(wanted);
    (next.is_null() || !thread_vcpu(next).is_null()).then_some(next)
}

/// Runs what is not in user mode, a guest or nothing, until something in user mode is to run.
#[cold]
#[inline(never)]
fn run_elsewhere(mut next: Ref<Thread>) {
    loop {
        let kernel = if next.is_null() {
            Some(idle())
        } else {
            run_guest(next, thread_vcpu(next))
        };
        match kernel.and_then(settle) {
            Some(following) => next = following,
            None => return,
        }
    }
}

/// Waits for an interrupt and handles it.
fn idle() -> Guard<'static, Kernel<Hardware>> {
    cpu::trace(Kind::Idle, 0, 0);
    #[cfg(control = "sleep")]
    (0..100).for_each(|_| drop(trap::collect_interrupt().map(accept)));
    loop {
        if let Some(vector) = trap::wait_for_interrupt() {
            cpu::trace(Kind::Interrupt, vector.into(), 2);
            return accept(vector);
        }
    }
}

/// Makes the timer interrupt at `deadline` or before.
#[inline(always)]
fn arm(deadline: u64) {
    let this = cpu::this();
    // SAFETY: this CPU's own field. An earlier interrupt than wanted does no harm: what is due is
    // looked at then, and the timer armed anew.
    unsafe {
        if deadline < (*this).armed {
            (*this).armed = deadline;
            apic::arm(deadline);
        }
    }
}

/// Makes `next` the thread of this CPU: registers, address space, ports, FPU.
fn switch(this: &mut Cpu, kernel: &mut Kernel<Hardware>, next: Ref<Thread>) {
    this.thread = next;
    let Some(thread) = kernel.arena.get(next) else {
        // Idle: nothing of the last thread stays loaded, so that its space can go.
        hardware::switch_root(cpu::core_root());
        return;
    };
    this.current_regs = (&raw const thread.regs).cast_mut();
    this.descriptors.set_ports(&thread.ports);
    let root = kernel
        .space_root(next)
        .map_or(cpu::core_root(), |root| root.0);
    hardware::switch_root(root);
    if this.last != next {
        this.last = next;
        if cfg!(not(control = "release")) {
            virt::release();
        }
        trap::clear_selectors();
    }
    cpu::trace(Kind::Switch, next.addr().0, root);
}

/// Port ranges of a thread changed: looks again at those of the current one. Part of a flush, so
/// the kernel lock is held, here or by the CPU that waits for this one.
pub fn refresh_ports() {
    let this = cpu::this();
    let arena = *ARENA.get();
    // SAFETY: this CPU's own fields; while the thread is alive its ports can be read, and nobody
    // changes them during a flush. No reference to the descriptors is held during a flush.
    unsafe {
        let thread = (*this).thread;
        if arena.alive(thread) {
            let thread = arena.pointer(thread.addr()).cast::<Thread>();
            let ports = (&raw const (*thread).ports).read_volatile();
            (*this).descriptors.set_ports(&ports);
        }
    }
}

/// The vCPU that a thread of this CPU is in the middle of running.
fn thread_vcpu(thread: Ref<Thread>) -> Ref<Vcpu> {
    let arena = *ARENA.get();
    let thread = arena.pointer(thread.addr()).cast::<Thread>();
    // SAFETY: the thread is this CPU's current one, so it is alive until this CPU answers a flush;
    // only this CPU writes the field.
    unsafe { (&raw const (*thread).vcpu).read_volatile() }
}

fn set_thread_vcpu(thread: Ref<Thread>, vcpu: Ref<Vcpu>) {
    let arena = *ARENA.get();
    let thread = arena.pointer(thread.addr()).cast::<Thread>();
    // SAFETY: as in `thread_vcpu`; other CPUs only read this word.
    unsafe { (&raw mut (*thread).vcpu).write_volatile(vcpu) }
}

/// `VcpuRun` of the current thread, without the lock.
pub extern "C" fn vcpu_run() {
    // SAFETY: this CPU's own data, and no other reference to these fields is held here.
    let this = unsafe { &mut *cpu::this() };
    let thread = this.thread;
    // SAFETY: the current thread's registers, which nobody else uses meanwhile.
    let regs = unsafe { &mut *this.current_regs };
    let last = &this.run;
    let same = last.thread == thread && last.slot == regs.rdi && last.flushes == this.flushes;
    let (vcpu, run) = match last.found {
        Some(found) if same => found,
        _ => match look_up_vcpu(this, regs.rdi) {
            Ok(found) => found,
            Err(status) => return regs.rax = status as u64,
        },
    };
    if let Err(status) = run.begin(this.index) {
        return regs.rax = status as u64;
    }
    set_thread_vcpu(thread, vcpu);
    match attempt(run, vcpu, false) {
        Outcome::Exited => {
            set_thread_vcpu(thread, Ref::NULL);
            run.end();
            regs.rax = Status::Ok as u64;
            // SAFETY: the registers are the current thread's, which came by a system call and did
            // not leave this CPU. Nothing on this stack is needed.
            unsafe { trap::sysret(regs) }
        }
        outcome => {
            if let Some(kernel) = interrupted(thread, vcpu, outcome, false) {
                proceed(kernel);
            }
        }
    }
}

#[cold]
#[inline(never)]
fn look_up_vcpu(this: &mut Cpu, slot: u64) -> Result<Found, Status> {
    cpu::trace(Kind::Call, Call::VcpuRun as u64, slot);
    let found = ARENA.get().vcpu_find(this.thread, slot, this.index)?;
    this.run = RunMemo {
        thread: this.thread,
        slot,
        flushes: this.flushes,
        found: Some(found),
    };
    Ok(found)
}

/// One trip into the guest.
#[inline(always)]
fn attempt(run: Run<'_>, vcpu: Ref<Vcpu>, again: bool) -> Outcome {
    let deadline = virt::deadline(vcpu.area());
    arm(deadline);
    let args = RunArgs {
        vcpu: vcpu.area(),
        epoch: run.epoch(),
        deadline,
        again,
    };
    let outcome = virt::run(&args, || run.wanted());
    if outcome == Outcome::Exited {
        let page = (DIRECT_MAP + vcpu.state_page().0) as *const State;
        // SAFETY: the vCPU is alive, so this is its state page; volatile, as the VMM may write to
        // it.
        let (exit, rip) = unsafe {
            (
                (&raw const (*page).exit).read_volatile(),
                (&raw const (*page).regs.rip).read_volatile(),
            )
        };
        cpu::trace(Kind::Exit, exit, rip);
    }
    outcome
}

/// As [`attempt`], out of line: where it was interrupted, its length matters less than its size.
#[inline(never)]
fn attempt_again(run: Run<'_>, vcpu: Ref<Vcpu>, again: bool) -> Outcome {
    attempt(run, vcpu, again)
}

/// Goes on with the run that the current thread is in the middle of. `None`: its VMM has to act, in
/// user mode. Else the host has, with the lock, and the run goes on when the thread is next chosen.
fn run_guest(thread: Ref<Thread>, vcpu: Ref<Vcpu>) -> Option<Guard<'static, Kernel<Hardware>>> {
    let index = cpu::index();
    let Some(run) = ARENA.get().vcpu_run(vcpu, index) else {
        return lost(thread, vcpu, true);
    };
    run.go_on(index);
    match attempt_again(run, vcpu, true) {
        Outcome::Exited => finish_run(thread, vcpu, Status::Ok),
        outcome => interrupted(thread, vcpu, outcome, true),
    }
}

/// The host has to act before the run goes on.
#[inline(never)]
fn interrupted(
    thread: Ref<Thread>,
    vcpu: Ref<Vcpu>,
    mut outcome: Outcome,
    again: bool,
) -> Option<Guard<'static, Kernel<Hardware>>> {
    // Its registers are in a CPU where it ran before. What was looked up without the lock holds no
    // longer once they were waited for.
    while let Outcome::Elsewhere(other) = outcome {
        let kernel = if again { KERNEL.lock() } else { lock_to_call() };
        if kernel.current(cpu::index()) != thread {
            return Some(kernel);
        }
        hardware::release_on(other);
        drop(kernel);
        let Some(run) = ARENA.get().vcpu_run(vcpu, cpu::index()) else {
            return lost(thread, vcpu, again);
        };
        outcome = attempt_again(run, vcpu, again);
        if outcome == Outcome::Exited {
            return finish_run(thread, vcpu, Status::Ok);
        }
    }
    if let Some(vector) = trap::collect_interrupt() {
        cpu::trace(Kind::Interrupt, vector.into(), 1);
        return Some(accept(vector));
    }
    // What woke the CPU is gone again; the thread's turn may still be over.
    Some(KERNEL.lock())
}

/// The vCPU or its space was taken away in the middle of a run. Without a space it is interrupted, and
/// its next run says why.
fn lost(
    thread: Ref<Thread>,
    vcpu: Ref<Vcpu>,
    again: bool,
) -> Option<Guard<'static, Kernel<Hardware>>> {
    if !ARENA.get().alive(vcpu) {
        return finish_run(thread, vcpu, Status::Aborted);
    }
    virt::stop(vcpu.area(), Exit::Interrupted, again);
    finish_run(thread, vcpu, Status::Ok)
}

fn finish_run(
    thread: Ref<Thread>,
    vcpu: Ref<Vcpu>,
    status: Status,
) -> Option<Guard<'static, Kernel<Hardware>>> {
    set_thread_vcpu(thread, Ref::NULL);
    ARENA.get().vcpu_end(vcpu);
    // SAFETY: the current thread's registers.
    unsafe { (*(*cpu::this()).current_regs).rax = status as u64 };
    None
}

/// Begins to schedule on this CPU; `smp::release` was called.
pub fn start_cpu() -> ! {
    hardware::join_flushes();
    proceed(KERNEL.lock());
    // SAFETY: `proceed` returned with a current thread; nothing on this stack is needed.
    unsafe { trap::exit_to_user() }
}

/// Creates root and lets every CPU begin.
pub fn boot(machine: start::Machine) -> ! {
    let table = (DIRECT_MAP + machine.frame_table) as *mut u32;
    // SAFETY: the direct map shows all RAM for ever, and the core keeps no references into what it
    // gives to root; the table was taken zeroed, of this size.
    let arena = unsafe { Arena::new(DIRECT_MAP as *mut u8, table, machine.ram_end / FRAME) };
    // SAFETY: other CPUs wait for `smp::release`.
    unsafe { ARENA.set(arena) };

    let mut memories = [MemoryRange::default(); MEMORIES];
    let mut count = 0;
    let ranges = machine.free.iter().map(|range| (range, 0));
    for ((start, end), device) in ranges.chain(machine.devices.iter().map(|range| (range, 1))) {
        let Some(memory) = memories.get_mut(count) else {
            log::warn!("memory {start:#x}-{end:#x} is not used: too many ranges");
            continue;
        };
        *memory = MemoryRange {
            base: start,
            frames: (end - start) / FRAME,
            slot: 0,
            device,
        };
        count += 1;
    }
    let bytes = start::archive_bytes(machine.archive, machine.archive_bytes);
    let archive = Archive::parse(bytes).unwrap_or_else(|why| panic!("boot archive: {why:?}"));
    let (amd_iommu, remapping) = iommu::facts();
    let features = [
        (iommu::tables().is_some(), feature::DMA_PROTECTION),
        (remapping, feature::INTERRUPT_REMAPPING),
        (amd_iommu, feature::AMDVI),
        (virt::available(), feature::VIRTUALISATION),
        (virt::is_svm(), feature::SVM),
        (time::invariant_tsc(), feature::INVARIANT_TSC),
    ];
    let info = Info {
        tsc_khz: time::tsc_khz(),
        features: features
            .iter()
            .filter(|(has, _)| *has)
            .map(|(_, bit)| bit)
            .sum(),
        rsdp: machine.rsdp,
        boot_tsc: machine.boot_tsc,
        wall_seconds: time::wall_seconds().unwrap_or(0),
        wall_tsc: time::now(),
        ..EMPTY_INFO
    };
    let mut kernel = KERNEL.lock();
    kernel.init(
        arena,
        Config {
            cpus: cpu::count(),
            slice: time::tsc_khz() * SLICE_MS,
            core_root: PhysAddr(cpu::core_root()),
            vcpu_frames: virt::area_frames() as u64,
        },
    );
    let created = kernel.boot(Resources {
        memories: &mut memories[..count],
        archive,
        archive_base: PhysAddr(machine.archive),
        log_base: PhysAddr(machine.rings),
        info,
    });
    if let Err(why) = created {
        panic!("root cannot be started: {why:?}");
    }
    drop(kernel);
    log::info!("starting root");
    logger::give_up_serial();
    smp::release();
    start_cpu()
}

const EMPTY_INFO: Info = Info {
    magic: 0,
    tsc_khz: 0,
    cpus: 0,
    features: 0,
    archive_slot: 0,
    archive_frames: 0,
    archive_bytes: 0,
    free_slot: 0,
    slots: 0,
    rsdp: 0,
    boot_tsc: 0,
    memory_count: 0,
    object_frames: [0; 16],
    memories: [MemoryRange {
        base: 0,
        frames: 0,
        slot: 0,
        device: 0,
    }; MEMORIES],
    wall_seconds: 0,
    wall_tsc: 0,
};
