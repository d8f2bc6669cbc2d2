//! Hardware virtualisation: runs vCPUs. The rest of the core calls these functions; what differs
//! between vendors stays behind [`Virt`], chosen once at boot.
//!
//! A vCPU's hardware side is a state page, shared with its VMM, and an *area* that only the core
//! touches: a header frame, four frames of the vendor's (control block and bitmaps), and the
//! extended state image. The caller guarantees that one CPU at a time works on a vCPU (`run` under
//! the vCPU's busy flag, the others under the kernel lock and with the flag clear), and that the
//! frames stay theirs until [`forget`] was followed by a flush of every CPU.
//!
//! Never called with interrupts enabled.

/// Calls the vendor's function of [`Virt`].
macro_rules! vendor {
    ($function:ident($($argument:expr),*)) => {
        if is_vmx() {
            vmx::Vmx::$function($($argument),*)
        } else {
            svm::Svm::$function($($argument),*)
        }
    };
}

mod area;
mod fpu;
mod page;
mod svm;
mod vmx;

use crate::cpu;
use crate::lock::Once;
use crate::paging::{DIRECT_MAP, IMAGE};
use area::Area;
use core::cell::Cell;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use microvisor_abi::Status;
use microvisor_abi::vcpu::Exit;
use microvisor_objects::id::{PhysAddr, VcpuArea};
use microvisor_objects::machine::GuestTables;
use microvisor_vcpu_state::asid::Asids;
use microvisor_vcpu_state::limits::{Cpuid, Limits};
use microvisor_vcpu_state::svm_bitmaps::{IOPM_BYTES, port};
use microvisor_vcpu_state::xsave::image_size;
use raw_cpuid::cpuid;

/// What a vendor implements.
trait Virt {
    /// Whether this CPU can run guests; if not, what is missing and where to look.
    fn detect() -> Result<Features, &'static str>;
    /// Switches virtualisation on, on the CPU that runs this.
    fn enable(cpu: &PerCpu) -> Result<(), &'static str>;
    /// Fills in the vendor's frames of an area that is all zero.
    fn init(area: Area);
    /// Sets the root of the guest's nested tables.
    fn attach(area: Area, root: PhysAddr);
    /// Brings groups up to date in the state page.
    fn fetch(area: Area, groups: u64);
    /// The vCPU becomes resident in this CPU; the other registers follow.
    fn arrive(cpu: &PerCpu, area: Area);
    /// It is so no longer. `None`: it is no more, and its area must not be touched.
    fn leave(cpu: &PerCpu, area: Option<Area>);
    /// Puts DR0-DR3 into the CPU and lets the vCPU use them without exits.
    fn own_debug_registers(area: Area);
    /// Debug registers are no longer the vCPU's own: intercept their use.
    fn guard_debug_registers(area: Area);
    /// Whether breakpoints are enabled, so that DR0-DR3 must hold the vCPU's values.
    fn breakpoints_enabled(area: Area) -> bool;
    /// A run that was interrupted for the host ends after all: what an exit stores is stored.
    fn stopped(area: Area);
    /// Loads what the VMM changed, enters, and says why it left.
    fn run(cpu: &PerCpu, area: Area, epoch: u64, again: bool) -> Outcome;
}

/// What the boot CPU found; other CPUs must have it too.
#[derive(Clone, Copy)]
struct Features {
    limits: Limits,
    /// Address-space identifiers, the host's included.
    asids: u32,
    /// The length of the instruction that exited is told.
    next_rip: bool,
    /// Instruction bytes are told.
    decode_assists: bool,
    /// IA32_XSS exists.
    supervisor_states: bool,
    /// TSC_AUX exists.
    tsc_aux: bool,
    /// The CPU forgets x87 error pointers when it loads a state without a pending error.
    x87_pointers_leak: bool,
    /// Bytes of the extended state image.
    image: usize,
    /// Layout of nested tables.
    tables: GuestTables,
}

impl Features {
    /// What any vendor's CPU says of itself by CPUID.
    fn new(tables: GuestTables, asids: u32) -> Result<Features, &'static str> {
        let words = cpuid_words();
        if words.ext1_edx >> 20 & 1 == 0 {
            return Err("this CPU has no NX bit in page tables");
        }
        let limits = Limits::new(&words);
        let image = image_size(limits.xcr0, |component| {
            let part = cpuid!(0xd, component);
            (part.ebx, part.eax)
        });
        let ext8_ebx = match words.ext8_eax {
            0 => 0,
            _ => cpuid!(0x8000_0008).ebx,
        };
        Ok(Features {
            limits,
            asids,
            next_rip: false,
            decode_assists: false,
            supervisor_states: limits.xcr0 != 0 && cpuid!(0xd, 1).eax >> 3 & 1 != 0,
            // RDTSCP or RDPID.
            tsc_aux: words.ext1_edx >> 27 & 1 != 0 || words.leaf7_ecx >> 22 & 1 != 0,
            x87_pointers_leak: tables == GuestTables::Npt && ext8_ebx >> 2 & 1 == 0,
            image,
            tables,
        })
    }
}

static FEATURES: Once<Option<Features>> = Once::new(None);
/// Address of the per-CPU blocks, 0 before [`setup`].
static BLOCKS: Once<u64> = Once::new(0);

/// What this module keeps for each CPU. Only its own CPU touches it, but for `resident`.
pub(crate) struct PerCpu {
    /// Address of the area whose registers are in the CPU: FPU, XCR0, TSC_AUX, debug registers.
    /// 0: none, and they hold initial values. [`FORGOTTEN`]: those of a vCPU that is no more. With
    /// VMX `mark` is in it, so that the entry's first look at it tells both vendor and residency.
    resident: AtomicU64,
    /// 0 with SVM, [`MARK_VMX`] with VMX.
    mark: u64,
    asids: Cell<Asids>,
    /// Physical addresses of two frames for the vendor.
    frames: [u64; 2],
    host: vmx::Host,
    /// As in [`Features`], at hand on the way out of a guest.
    next_rip: bool,
    decode_assists: bool,
    index: usize,
}

const FORGOTTEN: u64 = 1;
const MARK_VMX: u64 = 2;
const BLOCK_FRAMES: u64 = 3;
const FRAME: u64 = microvisor_abi::FRAME;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct RunArgs {
    /// The vCPU's frames.
    pub vcpu: VcpuArea,
    /// Epoch of its guest space, read after interrupts were disabled.
    pub epoch: u64,
    /// The state page's `deadline` ([`deadline`]), or an earlier one; absolute TSC.
    pub deadline: u64,
    /// True if this continues a run that answered [`Outcome::HostEvent`].
    pub again: bool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The state page tells why: go back to the VMM.
    Exited,
    /// Something for the host is pending: let interrupts in, then run again with `again`.
    HostEvent,
    /// The vCPU's registers are in that CPU, where another thread ran it: make that CPU call
    /// [`release`], then try again.
    Elsewhere(usize),
}

/// Finds out on the boot CPU whether guests can run, says in the log what is missing if not, and
/// takes memory for every CPU from `take`, which answers the physical address of that many zeroed
/// bytes. After `cpu::create`, before other CPUs start.
pub fn setup(take: &mut dyn FnMut(u64) -> u64) {
    // Both are never there; an AMD CPU without SVM is told so.
    let vmx = cpuid!(1).ecx >> 5 & 1 != 0;
    let found = match vmx {
        true => vmx::Vmx::detect(),
        false => svm::Svm::detect(),
    };
    let found = match found {
        Ok(found) => found,
        Err(missing) => {
            log::warn!("no guests can run: {missing}");
            return;
        }
    };
    log::info!(
        "{}, {} identifiers, guest XCR0 {:#x}, {} frames per vCPU{}{}",
        if vmx {
            "VMX: EPT, unrestricted guests"
        } else {
            "SVM: nested paging"
        },
        found.asids,
        found.limits.xcr0,
        frames(&found),
        if found.next_rip { ", next RIP" } else { "" },
        if found.decode_assists {
            ", decode assists"
        } else {
            ""
        },
    );
    let cpus = cpu::count();
    let blocks = take(cpus as u64 * BLOCK_FRAMES * FRAME);
    for index in 0..cpus {
        let block = blocks + index as u64 * BLOCK_FRAMES * FRAME;
        let per_cpu = PerCpu {
            resident: AtomicU64::new(0),
            mark: if vmx { MARK_VMX } else { 0 },
            asids: Cell::new(Asids::new(index, found.asids)),
            frames: [block + FRAME, block + 2 * FRAME],
            host: vmx::Host::new(),
            next_rip: found.next_rip,
            decode_assists: found.decode_assists,
            index,
        };
        // SAFETY: fresh memory, larger than the structure, reached by nobody else.
        unsafe { core::ptr::write((DIRECT_MAP + block) as *mut PerCpu, per_cpu) };
    }
    // SAFETY: only the boot CPU runs, and nothing has called `get` yet.
    unsafe {
        BLOCKS.set(DIRECT_MAP + blocks);
        FEATURES.set(Some(found));
    }
}

/// Switches virtualisation on, on the CPU that runs this: once on each CPU, after its control
/// registers (`feature::activate`), GDT, TSS, GS base and SYSCALL registers are final, since those
/// are what it finds after every exit.
pub fn enable() {
    if !available() {
        return;
    }
    // SAFETY: this CPU's own field; `setup` made a block for it.
    unsafe { (*cpu::this()).virt = *BLOCKS.get() + cpu::index() as u64 * (BLOCK_FRAMES * FRAME) };
    if let Err(missing) = vendor!(enable(per_cpu())) {
        panic!("CPU {}: {missing}, unlike on the boot CPU", cpu::index());
    }
}

/// True if guests can run.
#[inline]
pub fn available() -> bool {
    FEATURES.get().is_some()
}

/// True if guests run on AMD's SVM.
pub fn is_svm() -> bool {
    available() && !is_vmx()
}

/// True if they run on Intel's VMX.
fn is_vmx() -> bool {
    guest_tables() == GuestTables::Ept
}

/// Physical address of something in the image.
fn physical<T>(of: &'static T) -> u64 {
    core::ptr::from_ref(of) as u64 - IMAGE
}

/// Layout of the tables of guest spaces.
pub fn guest_tables() -> GuestTables {
    FEATURES
        .get()
        .map_or(GuestTables::Npt, |found| found.tables)
}

/// Frames of a vCPU's area.
pub fn area_frames() -> usize {
    FEATURES.get().as_ref().map_or(1, frames)
}

fn frames(features: &Features) -> usize {
    area::IMAGE_FRAME + features.image.div_ceil(FRAME as usize)
}

/// This CPU's block. Only after [`enable`].
#[inline(always)]
fn per_cpu() -> &'static PerCpu {
    // SAFETY: this CPU's own field. `setup` wrote a block for each CPU; only `resident`, an atomic,
    // is touched by others.
    unsafe { &*((*cpu::this()).virt as *const PerCpu) }
}

/// The limits of guest state. Only where a vCPU exists, so detection succeeded.
#[inline(always)]
fn features() -> &'static Features {
    match FEATURES.get() {
        Some(found) => found,
        None => unreachable!("a vCPU without virtualisation"),
    }
}

/// Makes an area that is all zero into a vCPU after reset.
pub fn init(vcpu: VcpuArea) {
    let area = Area::new(vcpu);
    area.image_with(microvisor_vcpu_state::xsave::reset);
    area.header().xcr0.set(microvisor_vcpu_state::reset::XCR0);
    let exiting = match cfg!(control = "guest-ports") {
        // Only those below 0x100: by one of them a guest tells what it found.
        true => 0x100 / 8,
        false => IOPM_BYTES,
    };
    // SAFETY: the three frames after the control block are the area's; a vendor that needs the last
    // for something else fills it in.
    unsafe { core::ptr::write_bytes(area.io_map(), 0xff, exiting) };
    vendor!(init(area));
}

/// Sets the guest tables a vCPU runs under.
pub fn attach(vcpu: VcpuArea, root: PhysAddr) {
    let area = Area::new(vcpu);
    area.header().forget_identifier();
    vendor!(attach(area, root));
}

/// Brings groups of the state page up to date. `Again`, here and below: the registers are in
/// another CPU, which has to [`release`] them first.
pub fn fetch(vcpu: VcpuArea, groups: u64) -> Result<(), Status> {
    let area = settled(vcpu)?;
    vendor!(fetch(area, groups));
    Ok(())
}

/// Copies from the extended state image; answers its size.
pub fn get_extended(vcpu: VcpuArea, offset: usize, to: &mut [u8]) -> Result<usize, Status> {
    settled(vcpu)?.image_with(|image| {
        for (to, from) in to.iter_mut().zip(image.iter().skip(offset)) {
            *to = *from;
        }
        Ok(image.len())
    })
}

/// Replaces part of the extended state image; what cannot be loaded is cleared. Answers its size.
pub fn set_extended(vcpu: VcpuArea, offset: usize, from: &[u8]) -> Result<usize, Status> {
    settled(vcpu)?.image_with(|image| {
        let end = offset
            .checked_add(from.len())
            .ok_or(Status::InvalidArgument)?;
        image
            .get_mut(offset..end)
            .ok_or(Status::InvalidArgument)?
            .copy_from_slice(from);
        microvisor_vcpu_state::xsave::sanitise(image, features().limits.xcr0);
        Ok(image.len())
    })
}

/// A vCPU's area, with nothing of it left in a CPU's registers.
fn settled(vcpu: VcpuArea) -> Result<Area, Status> {
    let area = Area::new(vcpu);
    let cpu = per_cpu();
    match area.header().live_on() {
        None => {}
        Some(index) if index == cpu.index => fpu::release(cpu),
        Some(_) => return Err(Status::Again),
    }
    Ok(area)
}

/// Lets a vCPU use ports without exits, or no longer.
pub fn grant_ports(vcpu: VcpuArea, first: u16, count: u32, granted: bool) {
    let end = (u32::from(first) + count).min(0x1_0000);
    for number in u32::from(first)..end {
        let (byte, mask) = port(number as u16);
        // SAFETY: `port` answers an offset below 8 KiB of the map; atomic, because the CPU may be
        // reading the map for a guest.
        let byte = unsafe { &*Area::new(vcpu).io_map().add(byte).cast::<AtomicU8>() };
        if granted {
            byte.fetch_and(!mask, Ordering::Relaxed);
        } else {
            byte.fetch_or(mask, Ordering::Relaxed);
        }
    }
}

/// A vCPU is about to be destroyed: no CPU will write its registers to its area, once all have
/// passed a flush.
pub fn forget(vcpu: VcpuArea) {
    if !available() {
        return;
    }
    for index in 0..cpu::count() {
        let address = *BLOCKS.get() + index as u64 * (BLOCK_FRAMES * FRAME);
        // SAFETY: as in `per_cpu`; only the atomic is touched.
        let block = unsafe { &*(address as *const PerCpu) };
        fpu::forget(block, vcpu.area.0);
    }
}

/// Takes a vCPU's registers out of this CPU, saves them, and leaves initial values behind. To be
/// called before the CPU runs another thread than the one that ran the vCPU, and when another CPU
/// asks for it.
#[inline]
pub fn release() {
    // SAFETY: this CPU's own field.
    if unsafe { (*cpu::this()).virt } != 0 {
        fpu::release(per_cpu());
    }
}

/// The deadline that the VMM set, read once.
#[inline]
pub fn deadline(vcpu: VcpuArea) -> u64 {
    page::Page::new(vcpu.state).deadline()
}

/// Runs a vCPU until something happens. `poked` is asked last before the entry; an interrupt that
/// arrives after it ends the run at once, since it stays pending until guest mode. `args.again`
/// false and poked, or too late: the page keeps all the VMM wrote, and `info[0]` is 1.
#[inline(always)]
pub fn run(args: &RunArgs, poked: impl FnOnce() -> bool) -> Outcome {
    let area = Area::new(args.vcpu);
    let stop = if poked() {
        Exit::Interrupted
    } else if args.deadline != u64::MAX && crate::time::now() >= args.deadline {
        Exit::Deadline
    } else {
        let cpu = per_cpu();
        if !fpu::is_resident(cpu, &area)
            && let Some(outcome) = otherwise(cpu, area, args.epoch, args.again)
        {
            return outcome;
        }
        return svm::Svm::run(cpu, area, args.epoch, args.again);
    };
    self::stop(args.vcpu, stop, args.again);
    Outcome::Exited
}

/// What is not an entry by SVM of a vCPU that is resident: makes it so, and runs it with VMX.
#[cold]
#[inline(never)]
fn otherwise(cpu: &PerCpu, area: Area, epoch: u64, again: bool) -> Option<Outcome> {
    if !fpu::is_marked_resident(cpu, &area)
        && let Err(elsewhere) = fpu::make_resident(cpu, area)
    {
        return Some(Outcome::Elsewhere(elsewhere));
    }
    (cpu.mark == MARK_VMX).then(|| vmx::Vmx::run(cpu, area, epoch, again))
}

/// Ends a run that did not enter the guest (again).
#[cold]
pub fn stop(vcpu: VcpuArea, why: Exit, again: bool) {
    let area = Area::new(vcpu);
    if again {
        vendor!(stopped(area));
    }
    area.page().set_stop(why, [u64::from(!again), 0]);
}

/// The CPUID words that limit guest state.
fn cpuid_words() -> Cpuid {
    let highest = cpuid!(0).eax;
    let extended = cpuid!(0x8000_0000).eax;
    let one = cpuid!(1);
    let mut words = Cpuid {
        leaf1_ecx: one.ecx,
        leaf1_edx: one.edx,
        ..Cpuid::default()
    };
    if highest >= 7 {
        let seven = cpuid!(7, 0);
        (words.leaf7_ebx, words.leaf7_ecx, words.leaf7_edx) = (seven.ebx, seven.ecx, seven.edx);
    }
    if highest >= 0xd && one.ecx >> 26 & 1 != 0 {
        let d = cpuid!(0xd, 0);
        words.xcr0 = u64::from(d.edx) << 32 | u64::from(d.eax);
    }
    if extended >= 0x8000_0001 {
        let e = cpuid!(0x8000_0001);
        (words.ext1_ecx, words.ext1_edx) = (e.ecx, e.edx);
    }
    if extended >= 0x8000_0008 {
        words.ext8_eax = cpuid!(0x8000_0008).eax;
    }
    words
}
