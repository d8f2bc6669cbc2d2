//! AMD SVM: detection, per-CPU enabling, and the control block of a new vCPU. The state page's
//! groups are loaded and stored in `groups`, entries and exits are in `run`, the world switch in
//! `switch`. References are to AMD APM vol. 2, chapter 15 and appendix B.

mod groups;
mod run;
mod switch;
mod vmcb;

use super::area::Area;
use super::{Features, Outcome, PerCpu, Virt, fpu, physical};
use core::arch::asm;
use microvisor_objects::id::PhysAddr;
use microvisor_objects::machine::GuestTables;
use microvisor_vcpu_state::reset;
use microvisor_vcpu_state::sanitise;
use microvisor_vcpu_state::svm_bitmaps::{self, MSRPM_BYTES};
use raw_cpuid::cpuid;
use vmcb::{Vmcb, clean};
use x86_64::registers::model_specific::{Efer, EferFlags, Msr};

/// The implementation for AMD's CPUs.
pub struct Svm;

const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// The MSR permission map, the same for every vCPU.
#[repr(C, align(4096))]
struct MsrMap([u8; MSRPM_BYTES]);
#[cfg(not(control = "guest-registers"))]
static MSR_MAP: MsrMap = MsrMap(svm_bitmaps::msr_map());
#[cfg(control = "guest-registers")]
static MSR_MAP: MsrMap = MsrMap({
    // All but EFER's two bits: a guest that clears EFER.SVME is refused by the CPU at its next
    // entry (AMD APM vol. 2, 15.5.1), long before it could show anything.
    let mut open = [0; MSRPM_BYTES];
    open[0x820] = 3;
    open
});

/// CPUID 8000_000A EDX.
mod feature {
    pub const NESTED_PAGING: u32 = 1;
    pub const NEXT_RIP: u32 = 1 << 3;
    pub const DECODE_ASSISTS: u32 = 1 << 7;
}

/// Intercepts, word at offset 0xc.
mod intercept3 {
    pub const VINTR: u32 = 1 << 4;
    pub const IRET: u32 = 1 << 20;
    /// What always exits: INTR, NMI (0, 1), INIT (3), RDPMC (15), CPUID (18), INVD (22), HLT (24),
    /// INVLPGA, IOIO, MSR, task switches, FERR_FREEZE, SHUTDOWN (26-31).
    pub const ALWAYS: u32 = 0xfd44_800b;
}

/// Intercepts, word at offset 0x10: VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT (0-6),
/// WBINVD, MONITOR, MWAIT and its armed form, XSETBV, RDPRU (9-14).
const INTERCEPT4: u32 = 0x7e7f;

/// Exceptions that exit: #DB and #AC, whose delivery can loop in microcode with interrupts shut
/// out (CVE-2015-8104, CVE-2015-5307), and #MC, which is the host's.
const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// V_INTR_MASKING: RFLAGS.IF and TPR of the guest do not hold back the host's interrupts.
const V_INTR_MASKING: u64 = 1 << 24;

impl Virt for Svm {
    fn detect() -> Result<Features, &'static str> {
        let highest = cpuid!(0x8000_0000).eax;
        if highest < 0x8000_0001 || cpuid!(0x8000_0001).ecx >> 2 & 1 == 0 {
            return Err(
                "this CPU has no SVM (AMD's hardware virtualisation); in an emulator, choose a model that has",
            );
        }
        if highest < 0x8000_000a {
            return Err("this CPU claims SVM but does not describe it (CPUID leaf 8000000A)");
        }
        // SAFETY: the register exists on every CPU with SVM.
        if unsafe { Msr::new(VM_CR).read() } & VM_CR_SVMDIS != 0 {
            return Err(
                "SVM is disabled by the firmware (VM_CR.SVMDIS): look for \"SVM\" or \"AMD-V\" in its set-up",
            );
        }
        let svm = cpuid!(0x8000_000a);
        if svm.edx & feature::NESTED_PAGING == 0 {
            return Err("this CPU's SVM has no nested paging");
        }
        if svm.ebx < 2 {
            return Err("this CPU's SVM has no address-space identifiers for guests");
        }
        Ok(Features {
            next_rip: svm.edx & feature::NEXT_RIP != 0,
            decode_assists: svm.edx & feature::DECODE_ASSISTS != 0,
            ..Features::new(GuestTables::Npt, svm.ebx)?
        })
    }

    fn enable(cpu: &PerCpu) -> Result<(), &'static str> {
        Self::detect()?;
        let [save, host] = cpu.frames;
        // SAFETY: the CPU has SVM (`detect`); `save` and `host` are frames that `setup` took for this
        // CPU alone. VMSAVE stores what VMLOAD must bring back after each exit.
        unsafe {
            Efer::update(|efer| efer.insert(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE));
            Msr::new(VM_HSAVE_PA).write(save);
            asm!("vmsave rax", in("rax") host, options(nostack, preserves_flags));
        }
        fpu::initialise();
        Ok(())
    }

    fn init(area: Area) {
        let vmcb = Vmcb::of(area);
        vmcb.intercept_dr.set(u32::MAX);
        vmcb.intercept_exceptions.set(EXCEPTIONS);
        vmcb.intercept3.set(intercept3::ALWAYS);
        vmcb.intercept4.set(INTERCEPT4);
        vmcb.iopm_base.set(area.vendor() + microvisor_abi::FRAME);
        vmcb.msrpm_base.set(physical(&MSR_MAP));
        vmcb.virtual_interrupt.set(V_INTR_MASKING);
        vmcb.nested_enable.set(1);
        vmcb.efer.set(sanitise::EFER_SVME);
        vmcb.cs.set(reset::CS);
        for data in [&vmcb.ss, &vmcb.ds, &vmcb.es, &vmcb.fs, &vmcb.gs] {
            data.set(reset::DATA);
        }
        vmcb.ldtr.set(reset::LDTR);
        vmcb.tr.set(reset::TR);
        vmcb.gdtr.set(reset::TABLE);
        vmcb.idtr.set(reset::TABLE);
        vmcb.rip.set(reset::RIP);
        vmcb.rflags.set(reset::RFLAGS);
        vmcb.cr0.set(reset::CR0);
        vmcb.dr6.set(reset::DR6);
        vmcb.dr7.set(reset::DR7);
        vmcb.pat.set(reset::PAT);
    }

    fn attach(area: Area, root: PhysAddr) {
        let vmcb = Vmcb::of(area);
        vmcb.nested_root.set(root.0);
        vmcb.dirty(clean::NESTED);
    }

    fn fetch(area: Area, groups: u64) {
        groups::store(area, groups);
    }

    fn own_debug_registers(area: Area) {
        groups::own_debug_registers(area, Vmcb::of(area));
    }

    fn guard_debug_registers(area: Area) {
        let vmcb = Vmcb::of(area);
        vmcb.intercept_dr.set(u32::MAX);
        vmcb.dirty(clean::INTERCEPTS);
    }

    #[inline]
    fn breakpoints_enabled(area: Area) -> bool {
        sanitise::dr7_enables(Vmcb::of(area).dr7.get())
    }

    fn arrive(_: &PerCpu, _: Area) {}

    fn leave(_: &PerCpu, _: Option<Area>) {}

    fn stopped(area: Area) {
        run::stopped(area);
    }

    #[inline(always)]
    fn run(cpu: &PerCpu, area: Area, epoch: u64, again: bool) -> Outcome {
        run::run(cpu, area, epoch, again)
    }
}
