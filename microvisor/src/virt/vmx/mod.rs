//! Intel VMX: detection, per-CPU enabling, the VMCS of a new vCPU, and where it is active. The state
//! page's groups are loaded and stored in `groups`, entries and exits are in `run`, the world switch
//! in `switch`, instructions and encodings in `vmcs`. References are to Intel SDM vol. 3, chapters
//! 24 to 31.
//!
//! A VMCS is active on a CPU just while its vCPU is resident there (`fpu`), or while `with` works on
//! it: a vCPU that is resident nowhere is all in memory. CR2 and DR6, which exits do not switch, stay
//! in the CPU with the rest.

mod groups;
mod run;
mod switch;
mod vmcs;

use super::area::Area;
use super::{Features, Outcome, PerCpu, Virt, features, fpu, per_cpu, physical};
use crate::lock::Once;
use crate::paging::DIRECT_MAP;
use crate::{cpu, descriptor};
use core::arch::asm;
use core::cell::Cell;
use microvisor_abi::FRAME;
use microvisor_objects::id::PhysAddr;
use microvisor_objects::machine::GuestTables;
use microvisor_vcpu_state::vmx_bitmap::{MSR_BITMAP_BYTES, msr_bitmap};
use microvisor_vcpu_state::vmx_controls::{
    Capabilities, Controls, LOCKED, VMX_ENABLED, primary, secondary,
};
use microvisor_vcpu_state::vmx_state::{CR0_OWNED, Use, guest_cr0};
use microvisor_vcpu_state::{reset, sanitise};
use raw_cpuid::cpuid;
use vmcs::{field, read, write};
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control::{Cr0, Cr2, Cr4, Cr4Flags};
use x86_64::registers::debug::Dr6;
use x86_64::registers::model_specific::Msr;
use x86_64::structures::DescriptorTablePointer;

/// The implementation for Intel's CPUs.
pub struct Vmx;

const FEATURE_CONTROL: u32 = 0x3a;
const PAT: u32 = 0x277;
const VMX_BASIC: u32 = 0x480;
const SECONDARY: u32 = 0x48b;
const EPT_VPID: u32 = 0x48c;
/// TRUE_ capabilities: pin-based, primary, exit, entry.
const TRUE_PIN: u32 = 0x48d;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

const CR4_VMXE: u64 = 1 << 13;
const CR4_LA57: u64 = 1 << 12;
/// EPT pointer: write-back tables, four levels.
const EPT_POINTER: u64 = 6 | 3 << 3;
/// As for SVM: #DB, #AC, #MC.
const EXCEPTIONS: u64 = 1 << 1 | 1 << 17 | 1 << 18;

#[repr(C, align(4096))]
struct MsrMap([u8; MSR_BITMAP_BYTES]);
static MSR_MAP: MsrMap = MsrMap(msr_bitmap());

static CONTROLS: Once<Option<Controls>> = Once::new(None);

/// What this module keeps for a vCPU in its header. All zero is valid.
pub struct Soft {
    /// The VMCS was launched since it became current.
    launched: Cell<bool>,
    /// An NMI may be blocked.
    nmi: Cell<bool>,
    ept_pointer: Cell<u64>,
    /// To be injected at the next entry, in the state page's format.
    inject: Cell<u64>,
    // As they are in the VMCS.
    rip: Cell<u64>,
    rsp: Cell<u64>,
    rflags: Cell<u64>,
    interruptibility: Cell<u64>,
    timer: Cell<u64>,
    primary: Cell<u64>,
    cr0: Cell<u64>,
    cr4: Cell<u64>,
    // What the VMCS does not have. CR2 and DR6 while not in the CPU.
    cr2: Cell<u64>,
    dr6: Cell<u64>,
    cstar: Cell<u64>,
    /// STAR, LSTAR, SFMASK, KERNEL_GS base.
    msrs: Cell<[u64; 4]>,
}

/// What this module keeps for a CPU.
pub struct Host {
    /// Physical address of the VMCS of the resident vCPU, 0 if there is none.
    current: Cell<u64>,
    // As they are in that VMCS.
    rsp: Cell<u64>,
    cr3: Cell<u64>,
    /// STAR, LSTAR, SFMASK of the core.
    msrs: Cell<[u64; 3]>,
    gdtr: Cell<DescriptorTablePointer>,
}

impl Host {
    /// Before `enable`.
    pub fn new() -> Host {
        Host {
            current: Cell::new(0),
            rsp: Cell::new(0),
            cr3: Cell::new(0),
            msrs: Cell::new([0; 3]),
            gdtr: Cell::new(sgdt()),
        }
    }
}

#[inline(always)]
fn soft(area: Area) -> &'static Soft {
    &area.header().vmx
}

/// CR4 bits that a guest does not change without an exit.
fn cr4_owned() -> u64 {
    !features().limits.cr4 | CR4_LA57
}

fn msr(number: u32) -> u64 {
    // SAFETY: only registers that exist where this module reads them.
    unsafe { Msr::new(number).read() }
}

/// The guest's task priority register, in the page that the CPU knows as its virtual APIC.
fn virtual_tpr(area: Area) -> &'static Cell<u32> {
    // SAFETY: the last of the vendor's frames belongs to this live vCPU and holds nothing else.
    unsafe { &*((DIRECT_MAP + area.vendor() + 3 * FRAME + 0x80) as *const Cell<u32>) }
}

fn capabilities() -> Capabilities {
    let basic = msr(VMX_BASIC);
    let mut found = Capabilities {
        feature_control: msr(FEATURE_CONTROL),
        basic,
        ..Capabilities::default()
    };
    if basic >> 55 & 1 != 0 {
        let [pin, primary, exit, entry] = [0, 1, 2, 3].map(|index| msr(TRUE_PIN + index));
        (found.pin, found.primary) = (pin, primary);
        (found.exit, found.entry) = (exit, entry);
        if primary >> 63 != 0 {
            found.secondary = msr(SECONDARY);
        }
        if found.secondary >> 32 & u64::from(secondary::EPT | secondary::VPID) != 0 {
            found.ept_vpid = msr(EPT_VPID);
        }
    }
    found
}

/// Works on a VMCS that no CPU has.
fn with(area: Area, work: impl FnOnce()) {
    fpu::release(per_cpu());
    // SAFETY: the VMCS of a live vCPU, initialised by `init`, resident nowhere (callers see to it);
    // nothing else is current here now, and it is let go of before anyone else can want it.
    unsafe {
        vmcs::load(area.vendor());
        work();
        vmcs::clear(area.vendor());
    }
}

/// As `Virt::own_debug_registers`, the VMCS being current.
fn own_debug_registers(area: Area) {
    fpu::load_debug_registers(area);
    set_dr6(soft(area).dr6.get());
    groups::set_window(soft(area), primary::MOV_DR, false);
}

fn set_dr6(value: u64) {
    // SAFETY: a status register, whose upper half is clear (`sanitise::dr6`).
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// Changes the guest's DR6, wherever it is.
fn change_dr6(area: Area, change: impl FnOnce(u64) -> u64) {
    if area.header().debug_live.get() {
        set_dr6(change(Dr6::read_raw()));
    } else {
        soft(area).dr6.set(change(soft(area).dr6.get()));
    }
}

impl Virt for Vmx {
    fn detect() -> Result<Features, &'static str> {
        if cpuid!(1).ecx >> 5 & 1 == 0 {
            return Err("this CPU has no VMX");
        }
        capabilities().controls()?;
        Features::new(GuestTables::Ept, 1 << 16)
    }

    fn enable(cpu: &PerCpu) -> Result<(), &'static str> {
        Self::detect()?;
        let found = capabilities();
        let controls = found.controls()?;
        let [region, _] = cpu.frames;
        // SAFETY: the CPU has VMX (`detect`), and VMXON is allowed or can be; `region` is a frame that
        // `setup` took for this CPU alone. The boot CPU comes here first, while no other runs.
        let on = unsafe {
            if CONTROLS.get().is_none() {
                CONTROLS.set(Some(controls));
            }
            if found.feature_control & LOCKED == 0 {
                let value = found.feature_control | LOCKED | VMX_ENABLED;
                Msr::new(FEATURE_CONTROL).write(value);
            }
            Cr4::update(|cr4| cr4.insert(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS));
            ((DIRECT_MAP + region) as *mut u32).write(found.basic as u32 & 0x7fff_ffff);
            vmcs::on(region)
        };
        if !on {
            return Err("VMXON fails");
        }
        cpu.host.msrs.set([STAR, LSTAR, FMASK].map(msr));
        cpu.host.gdtr.set(sgdt());
        fpu::initialise();
        Ok(())
    }

    fn init(area: Area) {
        // SAFETY: the vendor's frames of a new vCPU. The VMCS, which no CPU has, becomes known to
        // them by its revision.
        unsafe {
            ((DIRECT_MAP + area.vendor()) as *mut u32).write(msr(VMX_BASIC) as u32 & 0x7fff_ffff);
            vmcs::clear(area.vendor());
        }
        with(area, || {
            init_controls(area);
            init_host();
            init_guest(area);
        });
    }

    fn attach(area: Area, root: PhysAddr) {
        soft(area).ept_pointer.set(root.0 | EPT_POINTER);
    }

    fn arrive(cpu: &PerCpu, area: Area) {
        // SAFETY: the vCPU has just become resident here, so no other CPU has its VMCS; this CPU's own
        // data.
        let task = unsafe {
            vmcs::load(area.vendor());
            (*cpu::this()).descriptors.task()
        };
        let host = &cpu.host;
        host.current.set(area.vendor());
        host.rsp.set(0);
        host.cr3.set(0);
        soft(area).launched.set(false);
        write(field::HOST_TR_BASE, task);
        write(field::HOST_GS_BASE, cpu::this() as u64);
        write(field::HOST_GDTR_BASE, host.gdtr.get().base.as_u64());
        fpu::set_cr2(soft(area).cr2.get());
    }

    fn leave(cpu: &PerCpu, area: Option<Area>) {
        if let Some(area) = area {
            soft(area).cr2.set(Cr2::read_raw());
        }
        // SAFETY: the VMCS of the vCPU that was resident; if it was forgotten, its memory waits for
        // the flush that this CPU has not answered yet.
        unsafe { vmcs::clear(cpu.host.current.replace(0)) };
    }

    fn fetch(area: Area, groups: u64) {
        with(area, || groups::store(area, groups));
    }

    fn own_debug_registers(area: Area) {
        own_debug_registers(area);
    }

    fn guard_debug_registers(area: Area) {
        soft(area).dr6.set(Dr6::read_raw());
        groups::set_window(soft(area), primary::MOV_DR, true);
    }

    fn breakpoints_enabled(_: Area) -> bool {
        sanitise::dr7_enables(read(field::DR7))
    }

    fn stopped(area: Area) {
        run::stopped(area);
    }

    fn run(cpu: &PerCpu, area: Area, epoch: u64, again: bool) -> Outcome {
        run::run(cpu, area, epoch, again)
    }
}

fn init_controls(area: Area) {
    let Some(controls) = CONTROLS.get() else {
        return;
    };
    let primary = u64::from(controls.primary);
    soft(area).primary.set(primary);
    write(field::PIN, controls.pin.into());
    write(field::PRIMARY, primary);
    write(field::SECONDARY, controls.secondary.into());
    write(field::EXIT, controls.exit.into());
    write(field::ENTRY, controls.entry.into());
    write(field::EXCEPTIONS, EXCEPTIONS);
    let bitmaps = area.vendor() + FRAME;
    write(field::IO_BITMAP_A, bitmaps);
    write(field::IO_BITMAP_B, bitmaps + FRAME);
    write(field::VIRTUAL_APIC, bitmaps + 2 * FRAME);
    virtual_tpr(area).set(0);
    write(field::MSR_BITMAP, physical(&MSR_MAP));
    if controls.secondary & secondary::ENCLS != 0 {
        write(field::ENCLS_BITMAP, u64::MAX);
    }
    write(field::LINK, u64::MAX);
    write(field::CR0_MASK, CR0_OWNED);
    write(field::CR4_MASK, cr4_owned());
}

/// Host state that is the same on every CPU; what is not is `arrive`'s business. What is not written
/// is 0: null segments, no SYSENTER.
fn init_host() {
    write(field::HOST_CS, descriptor::KERNEL_CODE.into());
    write(field::HOST_SS, descriptor::KERNEL_DATA.into());
    write(field::HOST_TR, descriptor::TSS.into());
    write(field::HOST_CR0, Cr0::read_raw());
    write(field::HOST_CR4, Cr4::read_raw());
    write(field::HOST_IDTR_BASE, sidt().base.as_u64());
    write(field::HOST_PAT, msr(PAT));
    write(field::HOST_EFER, msr(EFER));
}

fn init_guest(area: Area) {
    let soft = soft(area);
    for index in [0, 2, 3, 4, 5] {
        groups::put(index, reset::DATA, Use::Memory);
    }
    groups::put(1, reset::CS, Use::Memory);
    groups::put(6, reset::LDTR, Use::Local);
    groups::put(7, reset::TR, Use::Task);
    groups::put_table(field::GDTR_LIMIT, field::GDTR_BASE, reset::TABLE);
    groups::put_table(field::IDTR_LIMIT, field::IDTR_BASE, reset::TABLE);
    vmcs::update(field::RIP, &soft.rip, reset::RIP);
    vmcs::update(field::RFLAGS, &soft.rflags, reset::RFLAGS);
    write(field::CR0, guest_cr0(reset::CR0));
    vmcs::update(field::CR0_SHADOW, &soft.cr0, reset::CR0);
    write(field::CR4, CR4_VMXE);
    write(field::DR7, reset::DR7);
    write(field::PAT, reset::PAT);
    soft.dr6.set(reset::DR6);
}
