//! What the object code asks of real CPUs: the `Machine` trait over this core, and the flush
//! protocol between CPUs.
//!
//! Only the holder of the kernel lock starts a flush, so there is one at a time. Every other CPU
//! is in user mode, in a guest, idle (an interrupt reaches it), or waits for the lock (it polls).

use crate::cpu;
use crate::ring::Kind;
use crate::{apic, ioapic, iommu, paging, time, virt};
use core::sync::atomic::{AtomicU64, Ordering};
use microvisor_abi::Status;
use microvisor_objects::id::{PhysAddr, VcpuArea};
use microvisor_objects::machine::{Answer, Ask, DmaTables, Flush, GuestTables, Machine};
use x86_64::VirtAddr;
use x86_64::instructions::tlb;

/// Real hardware.
pub struct Hardware;

/// Number of the current flush request, and what describes it. Written before any CPU is asked.
static REQUEST: AtomicU64 = AtomicU64::new(0);
static WORDS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

fn publish(flush: Flush) {
    let words = match flush {
        Flush::HostPage { root, address } => [1, root.0, address],
        Flush::HostSpace { root } => [2, root.0, 0],
        Flush::GuestSpace { root, cpus } => [3, root.0, cpus],
        Flush::Everything => [4, 0, 0],
        Flush::Quiesce => [0; 3],
    };
    for (cell, word) in WORDS.iter().zip(words) {
        cell.store(word, Ordering::Relaxed);
    }
}

fn published() -> Flush {
    let [kind, root, address] = [0, 1, 2].map(|index: usize| WORDS[index].load(Ordering::Relaxed));
    let root = PhysAddr(root);
    match kind {
        1 => Flush::HostPage { root, address },
        2 => Flush::HostSpace { root },
        3 => Flush::GuestSpace {
            root,
            cpus: address,
        },
        4 => Flush::Everything,
        _ => Flush::Quiesce,
    }
}

/// Does this CPU's part of a flush.
fn carry_out(flush: Flush) {
    let this = cpu::this();
    // SAFETY: this CPU's own fields.
    let loaded = unsafe {
        (*this).flushes += 1;
        (*this).root
    };
    match flush {
        Flush::HostPage { root, address } if root.0 == loaded => {
            tlb::flush(VirtAddr::new_truncate(address));
        }
        Flush::HostSpace { root } if root.0 == loaded => switch_root(cpu::core_root()),
        // Whoever waits for the vCPU's registers, or is about to reuse its area, gets them saved.
        Flush::Quiesce | Flush::Everything => {
            if flush == Flush::Everything {
                tlb::flush_all();
            }
            virt::release();
            crate::glue::refresh_ports();
        }
        // A vCPU that ran here has left the guest to come here, and compares epochs before it
        // enters again.
        _ => {}
    }
}

/// True if CPU `index` has to take part in a flush.
fn concerns(index: usize, flush: Flush) -> bool {
    match flush {
        // Loading a root forgets what was cached under any other: there are no process-context
        // identifiers.
        Flush::HostPage { root, .. } => {
            let area = cpu::area(index);
            // SAFETY: the area of a CPU that is there; its root is only written atomically.
            let loaded = unsafe { AtomicU64::from_ptr(&raw mut (*area).root) };
            loaded.load(Ordering::SeqCst) == root.0
        }
        Flush::GuestSpace { cpus, .. } => cpus >> index & 1 != 0,
        Flush::HostSpace { .. } | Flush::Quiesce | Flush::Everything => true,
    }
}

/// Loads a table root if it is not loaded yet.
#[inline(always)]
pub fn switch_root(root: u64) {
    // SAFETY: this CPU's own field.
    if unsafe { (*cpu::this()).root } != root {
        load_root(root);
    }
}

/// Loads a table root.
#[inline(always)]
pub fn load_root(root: u64) {
    // SAFETY: roots come from address spaces, whose top half is the core's; `root` is this CPU's
    // own field. The store is visible before the load, which serialises: whoever cleared an entry
    // and still sees the old root knows that nothing older is cached under the new one.
    unsafe {
        AtomicU64::from_ptr(&raw mut (*cpu::this()).root).store(root, Ordering::Relaxed);
        paging::load(root);
    }
}

/// Does what other CPUs ask of this one: gives up a vCPU's registers, carries out a flush.
#[inline]
pub fn answer() {
    // SAFETY: a shared reference to an atomic of this CPU's area.
    let release = unsafe { &(*cpu::this()).release };
    if release.load(Ordering::Relaxed) {
        virt::release();
        release.store(false, Ordering::Release);
    }
    answer_flush();
}

/// Makes CPU `index` write the vCPU registers that it holds to memory, and waits for that. The
/// caller holds the kernel lock, or holds nothing it looked up.
pub fn release_on(index: usize) {
    let Some(other) = cpu::other(index) else {
        return;
    };
    if index == cpu::index() {
        return virt::release();
    }
    other.release.store(true, Ordering::Release);
    apic::send(other.apic_id, apic::VECTOR_FLUSH);
    while other.release.load(Ordering::Acquire) {
        answer();
        core::hint::spin_loop();
    }
}

/// Repeats an operation on a vCPU after its registers were called back from wherever they are.
fn with_registers<T>(mut operation: impl FnMut() -> Result<T, Status>) -> Result<T, Status> {
    match operation() {
        Err(Status::Again) => {
            (0..cpu::count()).for_each(release_on);
            operation()
        }
        done => done,
    }
}

fn answer_flush() {
    let this = cpu::this();
    // SAFETY: shared references to atomics of this CPU's area.
    let (asked, flushed) = unsafe { (&(*this).asked, &(*this).flushed) };
    let request = asked.load(Ordering::Acquire);
    if flushed.load(Ordering::Relaxed) != request {
        carry_out(published());
        cpu::trace(Kind::Flush, request, 0);
        flushed.store(request, Ordering::Release);
    }
}

/// Joins the CPUs that are asked to flush. From here on it must answer.
pub fn join_flushes() {
    let this = cpu::this();
    // SAFETY: a shared reference to an atomic of this CPU's area. Nothing is cached on this CPU yet.
    unsafe { (*this).online.store(true, Ordering::SeqCst) };
    answer();
}

impl Machine for Hardware {
    #[inline(always)]
    fn now(&self) -> u64 {
        time::now()
    }

    #[inline(always)]
    fn cpu(&self) -> usize {
        cpu::index()
    }

    fn kick(&self, cpu: usize) {
        if let Some(other) = cpu::other(cpu) {
            apic::send(other.apic_id, apic::VECTOR_RESCHEDULE);
        }
    }

    fn waits_to_call(&self, cpu: usize) -> bool {
        cpu::other(cpu).is_some_and(|other| other.waits_to_call.load(Ordering::Relaxed))
    }

    fn flush(&self, flush: Flush) {
        publish(flush);
        let request = REQUEST.load(Ordering::Relaxed) + 1;
        // Also keeps the entries cleared so far before the look at who has them.
        REQUEST.store(request, Ordering::SeqCst);
        let alone = cfg!(control = "shootdown")
            && matches!(flush, Flush::HostPage { .. } | Flush::Everything);
        let mut asked = 0u64;
        for index in (0..cpu::count()).filter(|&index| index != cpu::index() && !alone) {
            if let Some(other) = cpu::other(index)
                && other.online.load(Ordering::SeqCst)
                && concerns(index, flush)
            {
                asked |= 1 << index;
                other.asked.store(request, Ordering::Release);
                apic::send(other.apic_id, apic::VECTOR_FLUSH);
            }
        }
        if cfg!(not(control = "local-flush")) || flush == Flush::Quiesce {
            carry_out(flush);
        }
        while asked != 0 {
            let other = cpu::other(asked.trailing_zeros() as usize);
            while other.is_some_and(|other| other.flushed.load(Ordering::Acquire) < request) {
                core::hint::spin_loop();
            }
            asked &= asked - 1;
        }
    }

    fn guest_tables(&self) -> GuestTables {
        virt::guest_tables()
    }

    fn set_line(&self, line: u32, enabled: bool) {
        ioapic::set_line(line, enabled);
    }

    fn virtualisation(&self) -> bool {
        virt::available()
    }

    fn vcpu_init(&self, vcpu: VcpuArea) {
        virt::init(vcpu);
    }

    fn vcpu_attach(&self, vcpu: VcpuArea, root: PhysAddr) {
        virt::attach(vcpu, root);
    }

    fn vcpu_fetch(&self, vcpu: VcpuArea, groups: u64) {
        // The vCPU does not run (the caller checked), so this succeeds.
        let _ = with_registers(|| virt::fetch(vcpu, groups));
    }

    fn vcpu_get_extended(&self, vcpu: VcpuArea, offset: usize, to: &mut [u8]) -> usize {
        with_registers(|| virt::get_extended(vcpu, offset, to)).unwrap_or(0)
    }

    fn vcpu_set_extended(
        &self,
        vcpu: VcpuArea,
        offset: usize,
        from: &[u8],
    ) -> Result<usize, Status> {
        with_registers(|| virt::set_extended(vcpu, offset, from))
    }

    fn vcpu_grant_ports(&self, vcpu: VcpuArea, first: u16, count: u32, granted: bool) {
        virt::grant_ports(vcpu, first, count, granted);
    }

    fn vcpu_forget(&self, vcpu: VcpuArea) {
        virt::forget(vcpu);
    }

    fn dma_tables(&self) -> Option<DmaTables> {
        iommu::tables()
    }

    fn ask(&self, ask: Ask) {
        iommu::ask(ask);
    }

    fn asked(&self) -> u64 {
        iommu::asked()
    }

    fn answered(&self, ticket: u64) -> Answer {
        iommu::answered(ticket)
    }

    fn wrote_table(&self, root: PhysAddr, address: u64) {
        iommu::wrote_table(root.0, address);
    }

    fn message(&self, line: u32, function: Option<u16>) -> u64 {
        iommu::message(line, function)
    }
}
