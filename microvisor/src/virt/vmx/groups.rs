//! Between state page and VMCS, one group at a time: loading sanitises, storing copies. The VMCS is
//! current. Words that exits read and loads may leave alone are remembered in [`Soft`].

use super::super::area::Area;
use super::super::page::Page;
use super::super::{features, fpu};
use super::vmcs::{field, read, update, write};
use super::{CR4_VMXE, Soft, soft, virtual_tpr};
use core::cell::Cell;
use microvisor_abi::vcpu::{Segment, blocked, event, group, window};
use microvisor_vcpu_state::limits::Limits;
use microvisor_vcpu_state::sanitise::{
    self, CR4_PAE, Checked, EFER_LMA, Mode, RFLAGS_IF, RFLAGS_TF, Reject, cr0,
};
use microvisor_vcpu_state::vmx_controls::{ENTRY_LONG, primary};
use microvisor_vcpu_state::vmx_entry::{Register, State};
use microvisor_vcpu_state::vmx_state::{CR0_OWNED, Use, access_rights, guest_cr0, seen, segment};

/// Interruptibility state (SDM vol. 3, table 25-3): STI, MOV SS, NMI.
const STI: u64 = 1;
const MOV_SS: u64 = 2;
pub const NMI: u64 = 8;
/// Pending debug exceptions: single step.
const PENDING_STEP: u64 = 1 << 14;

/// Loads the groups in `modified`. The vCPU is resident in this CPU. On `Err` some may have been
/// loaded and none may run; loading all again is harmless.
#[inline(always)]
pub fn load(area: Area, page: Page, modified: u64) -> Checked<()> {
    let soft = soft(area);
    if modified & group::GENERAL != 0 {
        let rip = page.rip();
        if rip != soft.rip.get() {
            // The VMM carried out an instruction: what held interrupts back for one is over.
            let held = soft.interruptibility.get() & !(STI | MOV_SS);
            update(field::INTERRUPTIBILITY, &soft.interruptibility, held);
        }
        update(field::RIP, &soft.rip, rip);
        update(field::RSP, &soft.rsp, page.rsp());
        update(field::RFLAGS, &soft.rflags, sanitise::rflags(page.rflags()));
    }
    if modified & !group::GENERAL == 0 {
        return Ok(());
    }
    load_others(area, page, soft, modified)
}

fn load_others(area: Area, page: Page, soft: &Soft, modified: u64) -> Checked<()> {
    let limits = &features().limits;
    if modified & group::EVENTS != 0 {
        load_events(page, soft)?;
    }
    if modified & group::MODE != 0 {
        load_mode(page, soft, limits)?;
        // Whatever is cached was translated in another mode.
        area.header().forget_identifier();
    }
    if modified & group::SEGMENTS != 0 {
        let segment = |segment| sanitise::segment(segment, limits);
        put(0, segment(page.es()), Use::Memory);
        put(3, segment(page.ds()), Use::Memory);
        put(4, segment(page.fs()), Use::Memory);
        put(5, segment(page.gs()), Use::Memory);
        put(6, segment(page.ldtr()), Use::Local);
        put(7, segment(page.tr()), Use::Task);
        put_table(field::GDTR_LIMIT, field::GDTR_BASE, segment(page.gdtr()));
        put_table(field::IDTR_LIMIT, field::IDTR_BASE, segment(page.idtr()));
    }
    if modified & group::SYSCALL != 0 {
        let canonical = |address| sanitise::canonical(address, limits);
        soft.msrs.set([
            page.star(),
            canonical(page.lstar()),
            page.sfmask() & 0xffff_ffff,
            canonical(page.kernel_gs_base()),
        ]);
        soft.cstar.set(canonical(page.cstar()));
        write(field::SYSENTER_CS, page.sysenter_cs() & 0xffff_ffff);
        write(field::SYSENTER_ESP, canonical(page.sysenter_esp()));
        write(field::SYSENTER_EIP, canonical(page.sysenter_eip()));
    }
    if modified & group::DEBUG != 0 {
        let dr7 = sanitise::dr7(page.dr7())?;
        write(field::DR7, dr7);
        soft.dr6.set(sanitise::dr6(page.dr6(), limits));
        area.header().dr.set(page.dr());
        if area.header().debug_live.get() || sanitise::dr7_enables(dr7) {
            super::own_debug_registers(area);
        }
    }
    if modified & group::MISC != 0 {
        let pat = sanitise::pat(page.pat())?;
        let xcr0 = sanitise::xcr0(page.xcr0(), limits)?;
        sanitise::xss(page.xss())?;
        write(field::PAT, pat);
        write(field::TSC_OFFSET, page.tsc_offset());
        fpu::set_cr2(page.cr2());
        virtual_tpr(area).set((page.cr8() as u32 & 0xf) << 4);
        fpu::change_xcr0(area, xcr0);
        fpu::change_tsc_aux(area, page.tsc_aux());
    }
    if modified & group::EVENTS != 0 {
        page.set_inject(0);
    }
    Ok(())
}

fn load_events(page: Page, soft: &Soft) -> Checked<()> {
    let inject = sanitise::inject(page.inject())?;
    let wanted = page.window();
    let held = page.interruptibility();
    soft.inject.set(inject);
    let mut state = 0;
    // Delivering an event ends the shadow.
    if held & blocked::SHADOW != 0 && inject == 0 {
        let flags = soft.rflags.get();
        let sti = soft.interruptibility.get() & STI != 0 && flags & RFLAGS_IF != 0;
        state = if sti { STI } else { MOV_SS };
        // A step that the shadow holds back is pending (27.3.1.5).
        let step = flags & RFLAGS_TF != 0;
        write(field::PENDING_DEBUG, if step { PENDING_STEP } else { 0 });
    }
    let nmi = inject & (event::VALID | 0x700) == event::VALID | event::NMI;
    // Taking an NMI blocks the next.
    if held & blocked::NMI != 0 && !nmi {
        state |= NMI;
    }
    soft.nmi.set(nmi || state & NMI != 0);
    update(field::INTERRUPTIBILITY, &soft.interruptibility, state);
    set_window(
        soft,
        primary::INTERRUPT_WINDOW,
        wanted & window::INTERRUPT != 0,
    );
    set_window(soft, primary::NMI_WINDOW, wanted & window::NMI != 0);
    Ok(())
}

/// The core delivers an event by itself: it ends what holds interrupts back for one instruction.
pub fn end_shadow(soft: &Soft) {
    let state = refresh(field::INTERRUPTIBILITY, &soft.interruptibility);
    update(
        field::INTERRUPTIBILITY,
        &soft.interruptibility,
        state & !(STI | MOV_SS),
    );
}

/// Asks for the exit of this primary control, or no longer.
pub fn set_window(soft: &Soft, control: u32, wanted: bool) {
    let control = u64::from(control);
    let others = soft.primary.get() & !control;
    let control = if wanted { control } else { 0 };
    update(field::PRIMARY, &soft.primary, others | control);
}

fn load_mode(page: Page, soft: &Soft, limits: &Limits) -> Checked<()> {
    let mode = Mode {
        cr0: page.cr0(),
        cr3: page.cr3(),
        cr4: page.cr4(),
        efer: page.efer(),
        cs: page.cs(),
        ss: page.ss(),
    }
    .sanitised(limits)?;
    // Entries take the four entries of a PAE page directory from the VMCS, where only the guest's own
    // loads of CR3 put them (27.3.1.6): a VMM cannot begin such a mode.
    let pae = |cr0, cr4| cr0 & cr0::PG != 0 && cr4 & CR4_PAE != 0 && mode.efer & EFER_LMA == 0;
    if pae(mode.cr0, mode.cr4)
        && !(pae(read(field::CR0), read(field::CR4)) && mode.cr3 == read(field::CR3))
    {
        return Err((Reject::Cr3, mode.cr3));
    }
    write(field::CR0, guest_cr0(mode.cr0));
    update(field::CR0_SHADOW, &soft.cr0, mode.cr0);
    write(field::CR3, mode.cr3);
    write(field::CR4, mode.cr4 | CR4_VMXE);
    update(field::CR4_SHADOW, &soft.cr4, mode.cr4);
    write(field::EFER, mode.efer);
    let long = if mode.efer & EFER_LMA != 0 {
        ENTRY_LONG
    } else {
        0
    };
    let entry = read(field::ENTRY) & !u64::from(ENTRY_LONG);
    write(field::ENTRY, entry | u64::from(long));
    put(1, mode.cs, Use::Memory);
    // The CPU's CPL is SS.DPL.
    let cpl = u64::from(mode.cpl(soft.rflags.get())) << (16 + 5);
    let ss = Segment {
        packed: mode.ss.packed & !(3 << (16 + 5)) | cpl,
        ..mode.ss
    };
    put(2, ss, Use::Memory);
    Ok(())
}

/// Writes segment register number `index`, in the order of the encodings.
pub fn put(index: u32, segment: Segment, kind: Use) {
    let at = index * 2;
    write(field::SELECTORS + at, segment.selector().into());
    write(field::LIMITS + at, segment.limit().into());
    write(field::RIGHTS + at, access_rights(segment, kind).into());
    write(field::BASES + at, segment.base);
}

/// Writes GDTR or IDTR.
pub fn put_table(limit: u32, base: u32, table: Segment) {
    write(limit, u64::from(table.limit()) & 0xffff);
    write(base, table.base);
}

fn get(index: u32) -> Segment {
    let at = index * 2;
    segment(
        read(field::SELECTORS + at),
        read(field::RIGHTS + at),
        read(field::LIMITS + at),
        read(field::BASES + at),
    )
}

/// What an entry that failed found.
pub fn as_entered(soft: &Soft) -> State {
    State {
        cr0: read(field::CR0),
        cr4: read(field::CR4),
        efer: read(field::EFER),
        entry: read(field::ENTRY),
        rip: read(field::RIP),
        rflags: read(field::RFLAGS),
        interruptibility: read(field::INTERRUPTIBILITY),
        injection: soft.inject.get() & 0xffff_ffff,
        segments: core::array::from_fn(|index| {
            let at = index as u32 * 2;
            Register {
                selector: read(field::SELECTORS + at),
                limit: read(field::LIMITS + at),
                rights: read(field::RIGHTS + at),
                base: read(field::BASES + at),
            }
        }),
    }
}

fn get_table(limit: u32, base: u32) -> Segment {
    Segment {
        packed: read(limit) << 32,
        base: read(base),
    }
}

/// Stores groups in the state page and marks them valid. Nothing of the vCPU is in a CPU but its
/// VMCS.
pub fn store(area: Area, groups: u64) {
    let (page, soft) = (area.page(), soft(area));
    if groups & group::GENERAL != 0 {
        store_general(page, soft);
    }
    if groups & group::MODE != 0 {
        store_mode(page, soft);
    }
    if groups & group::SEGMENTS != 0 {
        page.set_es(get(0));
        page.set_ds(get(3));
        page.set_fs(get(4));
        page.set_gs(get(5));
        page.set_ldtr(get(6));
        page.set_tr(get(7));
        page.set_gdtr(get_table(field::GDTR_LIMIT, field::GDTR_BASE));
        page.set_idtr(get_table(field::IDTR_LIMIT, field::IDTR_BASE));
    }
    if groups & group::SYSCALL != 0 {
        let [star, lstar, sfmask, kernel_gs_base] = soft.msrs.get();
        page.set_star(star);
        page.set_lstar(lstar);
        page.set_cstar(soft.cstar.get());
        page.set_sfmask(sfmask);
        page.set_kernel_gs_base(kernel_gs_base);
        page.set_sysenter_cs(read(field::SYSENTER_CS));
        page.set_sysenter_esp(read(field::SYSENTER_ESP));
        page.set_sysenter_eip(read(field::SYSENTER_EIP));
    }
    if groups & group::DEBUG != 0 {
        page.set_dr6(soft.dr6.get());
        page.set_dr7(read(field::DR7));
        page.set_dr(area.header().dr.get());
    }
    if groups & group::MISC != 0 {
        page.set_cr2(soft.cr2.get());
        page.set_cr8(u64::from(virtual_tpr(area).get()) >> 4 & 0xf);
        page.set_pat(read(field::PAT));
        page.set_xcr0(area.header().xcr0.get());
        page.set_xss(0);
        page.set_tsc_offset(read(field::TSC_OFFSET));
        page.set_tsc_aux(area.header().tsc_aux.get());
    }
    page.set_valid(page.valid() | groups & group::ALL);
}

/// Reads a word that loads compare with.
#[inline(always)]
fn refresh(field: u32, known: &Cell<u64>) -> u64 {
    let value = read(field);
    known.set(value);
    value
}

/// Stores what every exit stores of `GENERAL`; the world switch stored the rest.
#[inline(always)]
pub fn store_general(page: Page, soft: &Soft) {
    page.set_rip(refresh(field::RIP, &soft.rip));
    page.set_rsp(refresh(field::RSP, &soft.rsp));
    page.set_rflags(refresh(field::RFLAGS, &soft.rflags));
}

/// Stores what every exit stores of `EVENTS`.
#[inline(always)]
pub fn store_events(page: Page, soft: &Soft, delivering: u64) {
    let state = refresh(field::INTERRUPTIBILITY, &soft.interruptibility);
    let mut held = 0;
    if state & (STI | MOV_SS) != 0 {
        held |= blocked::SHADOW;
    }
    if state & NMI != 0 {
        held |= blocked::NMI;
    }
    soft.nmi.set(state & NMI != 0);
    page.set_delivering(delivering);
    page.set_interruptibility(held);
}

/// Stores `MODE`.
#[inline(always)]
pub fn store_mode(page: Page, soft: &Soft) {
    page.set_cr0(seen(read(field::CR0), soft.cr0.get(), CR0_OWNED));
    page.set_cr3(read(field::CR3));
    page.set_cr4(seen(read(field::CR4), soft.cr4.get(), super::cr4_owned()));
    page.set_efer(read(field::EFER));
    page.set_cs(get(1));
    page.set_ss(get(2));
}
