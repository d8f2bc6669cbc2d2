//! What each CPU has for itself, reached through the GS base while the core runs. Only its own CPU
//! touches it, but for the fields that are atomics.

use crate::boot::map::{PAGE, Ranges};
use crate::descriptor::Descriptors;
use crate::paging::{self, DIRECT_MAP, Protection, STACKS, Tables};
use crate::ring::{self, Trace};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use microvisor_abi::thread::Registers;
use microvisor_objects::vcpu::{Run, Vcpu};
use microvisor_objects::{Ref, Thread};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::{GsBase, KernelGsBase};

/// CPUs that the core can run.
pub const CPUS_MAX: usize = 64;

const STACK_BYTES: u64 = 32 << 10;
const EMERGENCY_BYTES: u64 = 16 << 10;
/// Address space per CPU: the stack and three emergency stacks, an unmapped page below each.
const STACK_SLOT: u64 = 128 << 10;
/// Offsets of the stacks' bottoms in a slot, and their sizes.
const STACK_PLAN: [(u64, u64); 4] = [
    (PAGE, STACK_BYTES),
    (48 << 10, EMERGENCY_BYTES),
    (72 << 10, EMERGENCY_BYTES),
    (96 << 10, EMERGENCY_BYTES),
];

/// What a `VcpuRun` of a thread with this slot names, as long as no flush was answered.
#[derive(Clone, Copy)]
pub struct RunMemo {
    /// The thread.
    pub thread: Ref<Thread>,
    /// Its argument.
    pub slot: u64,
    /// `Cpu::flushes` at that time.
    pub flushes: u64,
    /// What it named.
    pub found: Option<Found>,
}

/// A vCPU with its name. Must not be touched once a flush was answered.
pub type Found = (Ref<Vcpu>, Run<'static>);

/// A CPU's own data. Entry stubs use the first fields by offset.
#[repr(C, align(64))]
pub struct Cpu {
    /// This structure's address.
    pub this: *mut Cpu,
    /// Where the registers of the thread that runs in user mode are saved and loaded.
    pub current_regs: *mut Registers,
    /// Top of the stack that every entry from user mode starts on.
    pub stack_top: u64,
    /// The user's stack pointer, during the first instructions of a system call.
    pub scratch: u64,
    /// 1 while an interrupt in kernel mode is expected: its vector goes to `collected`.
    pub collecting: u64,
    /// Vector of the collected interrupt, 0 if none.
    pub collected: u64,
    /// Number of this CPU, from 0.
    pub index: usize,
    /// Root of the loaded translation tables.
    pub root: u64,
    /// The thread whose registers `current_regs` are; null when idle.
    pub thread: Ref<Thread>,
    /// The thread that ran last: `thread`, unless idle.
    pub last: Ref<Thread>,
    /// Deadline that the timer is armed for.
    pub armed: u64,
    /// This CPU's trace ring.
    pub trace: Trace,
    /// The vCPU that a thread's last `VcpuRun` named.
    pub run: RunMemo,
    /// Flushes that this CPU took part in.
    pub flushes: u64,
    /// Address of what `virt` keeps for this CPU, 0 if no guests can run.
    pub virt: u64,
    /// Local APIC id.
    pub apic_id: u32,
    /// The number of the last flush that this CPU was asked for.
    pub asked: AtomicU64,
    /// The number of the last one that it carried out.
    pub flushed: AtomicU64,
    /// Another CPU asks for the vCPU registers that this one holds.
    pub release: AtomicBool,
    /// It waits for the kernel lock on behalf of a system call that has had no effect yet.
    pub waits_to_call: AtomicBool,
    /// True once it takes part in scheduling, and so in flushes.
    pub online: AtomicBool,
    /// GDT, TSS and port bitmap.
    pub descriptors: Descriptors,
}

// `docs/debugging.md` tells gdb users where the trace ring is.
const _: () = assert!(core::mem::offset_of!(Cpu, trace) == 0x58);

static CPUS: [AtomicPtr<Cpu>; CPUS_MAX] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; CPUS_MAX];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static CORE_ROOT: AtomicU64 = AtomicU64::new(0);

/// Root of the core's own tables, which map nothing of any component.
pub fn core_root() -> u64 {
    CORE_ROOT.load(Ordering::Relaxed)
}

/// CPUs that have per-CPU data.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Forgets CPUs from number `count` on: they did not start.
pub fn limit(count: usize) {
    COUNT.store(count, Ordering::Relaxed);
}

/// The fields of CPU `index` that other CPUs may use: `apic_id`, `asked`, `flushed`, `release`,
/// `waits_to_call`, `online`, `trace`
/// (the latter only after a panic stopped that CPU).
pub fn other(index: usize) -> Option<&'static Cpu> {
    // SAFETY: pointers are set once, to memory that is never freed.
    unsafe { CPUS.get(index)?.load(Ordering::Acquire).as_ref() }
}

/// This CPU's data.
#[inline(always)]
pub fn this() -> *mut Cpu {
    let this: *mut Cpu;
    // SAFETY: the GS base is the per-CPU area whenever Rust code of the core runs after
    // `Cpu::activate`.
    unsafe {
        core::arch::asm!("mov {}, gs:[0]", out(reg) this, options(nostack, pure, readonly, preserves_flags));
    }
    this
}

/// Number of this CPU.
#[inline(always)]
pub fn index() -> usize {
    // SAFETY: `this` is valid and `index` never changes.
    unsafe { (*this()).index }
}

/// Records a trace event on this CPU.
#[inline(always)]
pub fn trace(kind: ring::Kind, a: u64, b: u64) {
    // SAFETY: only this CPU touches its cursor, and no reference to it is held anywhere.
    unsafe { (*this()).trace.record(kind, a, b) }
}

/// Makes the areas and stacks of all CPUs out of what `take` gives, and maps the stacks.
pub fn create(tables: &mut Tables, take: &mut dyn FnMut(u64) -> u64, apic_ids: &[u32]) {
    CORE_ROOT.store(tables.root, Ordering::Relaxed);
    for (index, &apic_id) in apic_ids.iter().enumerate() {
        let slot = STACKS + index as u64 * STACK_SLOT;
        let mut tops = [0; 4];
        for ((offset, bytes), top) in STACK_PLAN.into_iter().zip(&mut tops) {
            let physical = take(bytes);
            tables.map(slot + offset, physical, bytes, Protection::Write);
            *top = slot + offset + bytes;
        }
        let area = (DIRECT_MAP + take(size_of::<Cpu>() as u64)) as *mut Cpu;
        // SAFETY: fresh, zeroed, page-aligned memory of the right size; all-zero is a valid `Cpu`.
        let cpu = unsafe { &mut *area };
        cpu.this = area;
        cpu.stack_top = tops[0];
        cpu.index = index;
        cpu.root = tables.root;
        cpu.armed = u64::MAX;
        cpu.trace = ring::trace(index);
        cpu.apic_id = apic_id;
        cpu.descriptors.init(tops[0], [tops[1], tops[2], tops[3]]);
        CPUS[index].store(area, Ordering::Release);
    }
    COUNT.store(apic_ids.len(), Ordering::Relaxed);
}

/// Bottom and top of the stack of `index`'s that contains `address`.
pub fn stack_around(index: usize, address: u64) -> Option<(u64, u64)> {
    let slot = STACKS + index as u64 * STACK_SLOT;
    STACK_PLAN
        .into_iter()
        .map(|(offset, bytes)| (slot + offset, slot + offset + bytes))
        .find(|&(bottom, top)| (bottom..top).contains(&address))
}

impl Cpu {
    /// Makes this the data of the CPU that runs this code, and loads its descriptor tables.
    ///
    /// # Safety
    /// Once on each CPU, with that CPU's own area, the final tables loaded.
    pub unsafe fn activate(area: *mut Cpu) {
        // SAFETY: the area is valid and this CPU's own. Loading GDT clears GS, so the base is
        // set after it.
        unsafe {
            (*area).descriptors.load();
            GsBase::write(VirtAddr::new_truncate(area as u64));
            KernelGsBase::write(VirtAddr::zero());
        }
    }
}

/// The area of CPU `index`, for starting it.
pub fn area(index: usize) -> *mut Cpu {
    CPUS.get(index)
        .map_or(core::ptr::null_mut(), |cpu| cpu.load(Ordering::Acquire))
}

/// Memory for per-CPU areas out of `free`.
pub fn taker(free: &mut Ranges) -> impl FnMut(u64) -> u64 + '_ {
    |bytes| paging::take(free, bytes, PAGE)
}
