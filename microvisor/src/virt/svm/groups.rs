//! Between state page and VMCB, one group at a time: loading sanitises, storing copies.

use super::super::area::{Area, Nmi};
use super::super::page::Page;
use super::super::{features, fpu};
use super::vmcb::{Vmcb, clean};
use super::{V_INTR_MASKING, intercept3};
use microvisor_abi::vcpu::{Segment, blocked, event, group, window};
use microvisor_vcpu_state::limits::Limits;
use microvisor_vcpu_state::sanitise::{self, Checked, Mode, segment};

/// V_IRQ at the highest priority, whatever V_TPR says.
const WINDOW: u64 = 1 << 8 | 0xf << 16 | 1 << 20;

/// Loads the groups in `modified`. The vCPU is resident in this CPU. On `Err` some may have been
/// loaded and none may run; loading all again is harmless.
#[inline(always)]
pub fn load(area: Area, page: Page, vmcb: &Vmcb, modified: u64) -> Checked<()> {
    if modified & group::GENERAL != 0 {
        let rip = page.rip();
        if rip != vmcb.rip.get() {
            // The VMM carried out an instruction: what held interrupts back for one is over.
            vmcb.interrupt_shadow.set(0);
        }
        vmcb.rip.set(rip);
        vmcb.rax.set(page.rax());
        vmcb.rsp.set(page.rsp());
        vmcb.rflags.set(sanitise::rflags(page.rflags()));
    }
    if modified & !group::GENERAL == 0 {
        return Ok(());
    }
    load_others(area, page, vmcb, modified)
}

fn load_others(area: Area, page: Page, vmcb: &Vmcb, modified: u64) -> Checked<()> {
    let limits = &features().limits;
    if modified & group::EVENTS != 0 {
        load_events(area, page, vmcb)?;
    }
    if modified & group::MODE != 0 {
        load_mode(page, vmcb, limits)?;
        // Whatever is cached was translated in another mode: VMRUN itself flushes nothing.
        area.header().forget_identifier();
    }
    if modified & group::SEGMENTS != 0 {
        load_segments(page, vmcb, limits);
    }
    if modified & group::SYSCALL != 0 {
        load_syscall(page, vmcb, limits);
    }
    if modified & group::DEBUG != 0 {
        load_debug(area, page, vmcb, limits)?;
    }
    if modified & group::MISC != 0 {
        load_misc(area, page, vmcb, limits)?;
    }
    if modified & group::EVENTS != 0 {
        page.set_inject(0);
    }
    Ok(())
}

fn load_events(area: Area, page: Page, vmcb: &Vmcb) -> Checked<()> {
    let header = area.header();
    let inject = sanitise::inject(page.inject())?;
    let interruptibility = page.interruptibility();
    let wanted = page.window();
    vmcb.event_inj.set(inject);
    // Delivering an event ends the shadow.
    let shadow = if inject == 0 {
        interruptibility & blocked::SHADOW
    } else {
        0
    };
    vmcb.interrupt_shadow.set(shadow);
    let nmi = inject & (event::VALID | 0x700) == event::VALID | event::NMI;
    let blocked = nmi || interruptibility & blocked::NMI != 0;
    // A step in progress goes on as long as the VMM leaves the NMI blocked.
    if blocked != (header.nmi.get() != Nmi::Open) {
        set_nmi(area, vmcb, if blocked { Nmi::Blocked } else { Nmi::Open });
    }
    header.nmi_window.set(wanted & window::NMI != 0);
    set_interrupt_window(vmcb, wanted & window::INTERRUPT != 0);
    Ok(())
}

/// Asks for an exit when the guest can take an interrupt, or no longer.
pub fn set_interrupt_window(vmcb: &Vmcb, wanted: bool) {
    let now = vmcb.intercept3.get() & intercept3::VINTR != 0;
    if wanted == now {
        return;
    }
    // V_TPR is the guest's; the rest is ours.
    let tpr = vmcb.virtual_interrupt.get() & 0xff;
    let (irq, intercept) = if wanted {
        (WINDOW, intercept3::VINTR)
    } else {
        (0, 0)
    };
    vmcb.virtual_interrupt.set(tpr | irq | V_INTR_MASKING);
    vmcb.intercept3
        .set(vmcb.intercept3.get() & !intercept3::VINTR | intercept);
    vmcb.dirty(clean::INTERCEPTS | clean::VIRTUAL_INTERRUPT);
}

/// Moves the NMI state on, and intercepts IRET just while an NMI is being handled.
pub fn set_nmi(area: Area, vmcb: &Vmcb, state: Nmi) {
    area.header().nmi.set(state);
    let intercept = if state == Nmi::Blocked {
        intercept3::IRET
    } else {
        0
    };
    vmcb.intercept3
        .set(vmcb.intercept3.get() & !intercept3::IRET | intercept);
    vmcb.dirty(clean::INTERCEPTS);
}

fn load_mode(page: Page, vmcb: &Vmcb, limits: &Limits) -> Checked<()> {
    let mode = Mode {
        cr0: page.cr0(),
        cr3: page.cr3(),
        cr4: page.cr4(),
        efer: page.efer(),
        cs: page.cs(),
        ss: page.ss(),
    }
    .sanitised(limits)?;
    vmcb.cr0.set(mode.cr0);
    vmcb.cr3.set(mode.cr3);
    vmcb.cr4.set(mode.cr4);
    #[cfg(planted = "state-page-read-twice")]
    vmcb.cr4.set(page.cr4());
    vmcb.efer.set(mode.efer | sanitise::EFER_SVME);
    vmcb.cs.set(mode.cs);
    vmcb.ss.set(mode.ss);
    vmcb.cpl.set(mode.cpl(vmcb.rflags.get()));
    vmcb.dirty(clean::CONTROL | clean::SEGMENTS);
    Ok(())
}

fn load_segments(page: Page, vmcb: &Vmcb, limits: &Limits) {
    vmcb.ds.set(segment(page.ds(), limits));
    vmcb.es.set(segment(page.es(), limits));
    vmcb.fs.set(segment(page.fs(), limits));
    vmcb.gs.set(segment(page.gs(), limits));
    vmcb.ldtr.set(segment(page.ldtr(), limits));
    vmcb.tr.set(segment(page.tr(), limits));
    vmcb.gdtr.set(segment(page.gdtr(), limits));
    vmcb.idtr.set(segment(page.idtr(), limits));
    vmcb.dirty(clean::SEGMENTS | clean::TABLES);
}

fn load_syscall(page: Page, vmcb: &Vmcb, limits: &Limits) {
    let canonical = |address| sanitise::canonical(address, limits);
    vmcb.star.set(page.star());
    vmcb.lstar.set(canonical(page.lstar()));
    vmcb.cstar.set(canonical(page.cstar()));
    vmcb.sfmask.set(page.sfmask() & 0xffff_ffff);
    vmcb.kernel_gs_base.set(canonical(page.kernel_gs_base()));
    vmcb.sysenter_cs.set(page.sysenter_cs() & 0xffff_ffff);
    vmcb.sysenter_esp.set(canonical(page.sysenter_esp()));
    vmcb.sysenter_eip.set(canonical(page.sysenter_eip()));
}

fn load_debug(area: Area, page: Page, vmcb: &Vmcb, limits: &Limits) -> Checked<()> {
    let dr7 = sanitise::dr7(page.dr7())?;
    vmcb.dr7.set(dr7);
    vmcb.dr6.set(sanitise::dr6(page.dr6(), limits));
    vmcb.dirty(clean::DEBUG);
    let header = area.header();
    header.dr.set(page.dr());
    if header.debug_live.get() || sanitise::dr7_enables(dr7) {
        own_debug_registers(area, vmcb);
    }
    Ok(())
}

/// Gives the guest its debug registers, to use without exits until the vCPU leaves this CPU.
pub fn own_debug_registers(area: Area, vmcb: &Vmcb) {
    fpu::load_debug_registers(area);
    vmcb.intercept_dr.set(0);
    vmcb.dirty(clean::INTERCEPTS);
}

fn load_misc(area: Area, page: Page, vmcb: &Vmcb, limits: &Limits) -> Checked<()> {
    let pat = sanitise::pat(page.pat())?;
    let xcr0 = sanitise::xcr0(page.xcr0(), limits)?;
    sanitise::xss(page.xss())?;
    vmcb.pat.set(pat);
    vmcb.cr2.set(page.cr2());
    vmcb.tsc_offset.set(page.tsc_offset());
    vmcb.virtual_interrupt
        .set(vmcb.virtual_interrupt.get() & !0xff | page.cr8() & 0xf);
    vmcb.dirty(clean::NESTED | clean::CR2 | clean::INTERCEPTS | clean::VIRTUAL_INTERRUPT);
    fpu::change_xcr0(area, xcr0);
    fpu::change_tsc_aux(area, page.tsc_aux());
    Ok(())
}

/// Stores groups in the state page and marks them valid.
pub fn store(area: Area, groups: u64) {
    let page = area.page();
    let vmcb = Vmcb::of(area);
    if groups & group::GENERAL != 0 {
        store_general(page, vmcb);
    }
    if groups & group::MODE != 0 {
        store_mode(page, vmcb);
    }
    if groups & group::SEGMENTS != 0 {
        page.set_ds(vmcb.ds.get());
        page.set_es(vmcb.es.get());
        page.set_fs(vmcb.fs.get());
        page.set_gs(vmcb.gs.get());
        page.set_ldtr(vmcb.ldtr.get());
        page.set_tr(vmcb.tr.get());
        page.set_gdtr(vmcb.gdtr.get());
        page.set_idtr(vmcb.idtr.get());
    }
    if groups & group::SYSCALL != 0 {
        page.set_star(vmcb.star.get());
        page.set_lstar(vmcb.lstar.get());
        page.set_cstar(vmcb.cstar.get());
        page.set_sfmask(vmcb.sfmask.get());
        page.set_kernel_gs_base(vmcb.kernel_gs_base.get());
        page.set_sysenter_cs(vmcb.sysenter_cs.get());
        page.set_sysenter_esp(vmcb.sysenter_esp.get());
        page.set_sysenter_eip(vmcb.sysenter_eip.get());
    }
    if groups & group::DEBUG != 0 {
        page.set_dr6(vmcb.dr6.get());
        page.set_dr7(vmcb.dr7.get());
        page.set_dr(area.header().dr.get());
    }
    if groups & group::MISC != 0 {
        page.set_cr2(vmcb.cr2.get());
        page.set_cr8(vmcb.virtual_interrupt.get() & 0xf);
        page.set_pat(vmcb.pat.get());
        page.set_xcr0(area.header().xcr0.get());
        page.set_xss(0);
        page.set_tsc_offset(vmcb.tsc_offset.get());
        page.set_tsc_aux(area.header().tsc_aux.get());
    }
    page.set_valid(page.valid() | groups & group::ALL);
}

/// Stores what every exit stores of `GENERAL`; the world switch stored the rest.
#[inline(always)]
pub fn store_general(page: Page, vmcb: &Vmcb) {
    page.set_rax(vmcb.rax.get());
    page.set_rip(vmcb.rip.get());
    page.set_rsp(vmcb.rsp.get());
    page.set_rflags(vmcb.rflags.get());
}

/// Stores `MODE`.
#[inline(always)]
pub fn store_mode(page: Page, vmcb: &Vmcb) {
    page.set_cr0(vmcb.cr0.get());
    page.set_cr3(vmcb.cr3.get());
    page.set_cr4(vmcb.cr4.get());
    page.set_efer(vmcb.efer.get() & !sanitise::EFER_SVME);
    page.set_cs(vmcb.cs.get());
    // The page's CPL is SS.DPL; the hardware keeps CPL on its own.
    let ss = vmcb.ss.get();
    let dpl = u64::from(vmcb.cpl.get() & 3) << (16 + 5);
    page.set_ss(Segment {
        packed: ss.packed & !(3 << (16 + 5)) | dpl,
        ..ss
    });
}
