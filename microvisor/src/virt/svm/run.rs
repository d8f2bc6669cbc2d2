//! Entries and exits. The path from `run` to `run` is the hottest in the core: what an exit does
//! not need is not copied.

use super::super::area::{Area, Nmi};
use super::super::{Outcome, PerCpu};
use super::groups;
use super::switch;
use super::vmcb::{Vmcb, clean};
use core::arch::asm;
use microvisor_abi::vcpu::{Exit, blocked, event, group, window};
use microvisor_vcpu_state::asid::Entry;
use microvisor_vcpu_state::exit::Report;
use microvisor_vcpu_state::sanitise::{RFLAGS_TF, interrupted_delivery};
use microvisor_vcpu_state::svm_exit::{Decoded, INTR, Words};

/// TLB_CONTROL, in the word at offset 0x58: flush every ASID.
const FLUSH_ALL: u64 = 1 << 32;
/// DR6: single step; and any cause at all.
const DR6_BS: u64 = 1 << 14;
const DR6_CAUSES: u64 = 0xe00f;

/// Runs a vCPU that is resident in this CPU.
#[inline(always)]
pub fn run(cpu: &PerCpu, area: Area, epoch: u64, again: bool) -> Outcome {
    let vmcb = Vmcb::of(area);
    if !again && let Some(outcome) = prepare(cpu, area, vmcb) {
        return outcome;
    }
    loop {
        enter(cpu, area, vmcb, epoch);
        let code = vmcb.exit_code.get();
        if code == INTR {
            inject_again(vmcb);
            return Outcome::HostEvent;
        }
        let words = Words {
            code,
            info1: vmcb.exit_info1.get(),
            info2: vmcb.exit_info2.get(),
            rip: vmcb.rip.get(),
            next_rip: if cpu.next_rip { vmcb.next_rip.get() } else { 0 },
        };
        match words.decode() {
            Decoded::Report(what) => {
                vmcb.event_inj.set(0);
                report(
                    cpu,
                    area,
                    vmcb,
                    what,
                    interrupted_delivery(vmcb.exit_int_info.get()),
                );
                return Outcome::Exited;
            }
            other => {
                inject_again(vmcb);
                if let Some(outcome) = handle(cpu, area, vmcb, other) {
                    return outcome;
                }
            }
        }
    }
}

/// Loads what the VMM changed. `Some`: the guest is not entered.
#[inline(always)]
fn prepare(cpu: &PerCpu, area: Area, vmcb: &Vmcb) -> Option<Outcome> {
    let page = area.page();
    let modified = page.modified();
    if modified == 0 {
        return None;
    }
    if let Err((reject, value)) = groups::load(area, page, vmcb, modified) {
        // `modified` stays: the VMM mends the value and everything is loaded again.
        page.set_stop(Exit::Invalid, [reject.code(), value]);
        return Some(Outcome::Exited);
    }
    page.set_modified(0);
    if modified & group::EVENTS != 0 && area.header().nmi_window.get() {
        return open_nmi_window(cpu, area, vmcb);
    }
    None
}

/// One trip into the guest and back.
#[inline(always)]
fn enter(cpu: &PerCpu, area: Area, vmcb: &Vmcb, epoch: u64) {
    let flush = !cpu.asids.get().valid(&area.header().held.get(), epoch)
        && renew_asid(cpu, area, vmcb, epoch);
    let [_, host] = cpu.frames;
    // SAFETY: the vCPU exists, so SVM is enabled on every CPU; the VMCB was filled by `init` and
    // by sanitised loads only, and runs under an ASID valid here; interrupts are off in the core.
    unsafe { switch::enter(area.page().registers(), area.vendor(), host) };
    vmcb.clean.set(clean::ALL);
    if flush {
        vmcb.asid.set(vmcb.asid.get() & !FLUSH_ALL);
    }
}

/// Gives the vCPU an ASID under which nothing is cached. True if the VMRUN must flush, and does.
/// This CPU or another one may have run something else since, so nothing of the VMCB counts as
/// cached either.
#[cold]
fn renew_asid(cpu: &PerCpu, area: Area, vmcb: &Vmcb, epoch: u64) -> bool {
    let mut asids = cpu.asids.get();
    let mut held = area.header().held.get();
    let flush = asids.enter(&mut held, epoch) == Entry::FreshAfterFlush;
    cpu.asids.set(asids);
    area.header().held.set(held);
    vmcb.asid
        .set(u64::from(held.asid) | if flush { FLUSH_ALL } else { 0 });
    vmcb.clean.set(0);
    flush
}

/// An event whose delivery the exit cut short is delivered first at the next entry.
#[inline(always)]
fn inject_again(vmcb: &Vmcb) {
    vmcb.event_inj
        .set(interrupted_delivery(vmcb.exit_int_info.get()));
}

/// Tells the VMM.
#[inline(always)]
fn report(cpu: &PerCpu, area: Area, vmcb: &Vmcb, what: Report, delivering: u64) {
    let page = area.page();
    groups::store_general(page, vmcb);
    store_events(area, vmcb, delivering);
    page.set_exit(what.exit, what.info);
    page.set_instruction_length(what.length);
    if cpu.decode_assists {
        let [low, high] = vmcb.fetched.get();
        page.set_instruction_count(low & 0xf);
        page.set_instruction_bytes([low >> 8 | high << 56, high >> 8]);
    }
    let mut valid = group::GENERAL | group::EVENTS;
    if what.mode && page.wanted() & group::MODE != 0 {
        groups::store_mode(page, vmcb);
        valid |= group::MODE;
    }
    page.set_valid(valid);
}

#[inline(always)]
fn store_events(area: Area, vmcb: &Vmcb, delivering: u64) {
    let page = area.page();
    page.set_delivering(delivering);
    let nmi = if area.header().nmi.get() == Nmi::Open {
        0
    } else {
        blocked::NMI
    };
    page.set_interruptibility(vmcb.interrupt_shadow.get() & blocked::SHADOW | nmi);
}

/// A run that was interrupted for the host ends after all: what an exit stores is stored. An event
/// that was to be injected again goes back to the VMM.
pub fn stopped(area: Area) {
    let vmcb = Vmcb::of(area);
    groups::store_general(area.page(), vmcb);
    store_events(area, vmcb, vmcb.event_inj.get() & event_or_nothing(vmcb));
    vmcb.event_inj.set(0);
    area.page().set_valid(group::GENERAL | group::EVENTS);
}

/// All ones if an event is to be injected.
fn event_or_nothing(vmcb: &Vmcb) -> u64 {
    if vmcb.event_inj.get() & event::VALID != 0 {
        u64::MAX
    } else {
        0
    }
}

/// Exits that the core deals with. `None`: enter again.
#[cold]
fn handle(cpu: &PerCpu, area: Area, vmcb: &Vmcb, what: Decoded) -> Option<Outcome> {
    match what {
        Decoded::Report(_) | Decoded::Host => Some(Outcome::HostEvent),
        Decoded::MachineCheck => {
            // SAFETY: the host's handler for machine checks, which reports and stops.
            unsafe { asm!("int 18") };
            Some(Outcome::HostEvent)
        }
        Decoded::InterruptWindow => {
            groups::set_interrupt_window(vmcb, false);
            window(cpu, area, vmcb, Exit::InterruptWindow, window::INTERRUPT)
        }
        Decoded::Iret => {
            step(area, vmcb, Nmi::SteppingIret);
            None
        }
        Decoded::DebugRegister => {
            groups::own_debug_registers(area, vmcb);
            None
        }
        Decoded::Reflect(vector) => {
            let mut event = event::EXCEPTION | event::VALID | vector;
            if vector == 17 {
                event |= event::ERROR_CODE;
            } else if matches!(
                area.header().nmi.get(),
                Nmi::SteppingIret | Nmi::SteppingShadow
            ) {
                if stepped(area, vmcb) {
                    vmcb.event_inj.set(event);
                }
                return open_nmi_window(cpu, area, vmcb);
            }
            vmcb.event_inj.set(event);
            None
        }
    }
}

/// Reports that a window is open, and that it is no longer asked for.
fn window(cpu: &PerCpu, area: Area, vmcb: &Vmcb, exit: Exit, bit: u64) -> Option<Outcome> {
    let page = area.page();
    page.set_window(page.window() & !bit);
    let pending = vmcb.event_inj.get() & event_or_nothing(vmcb);
    vmcb.event_inj.set(0);
    report(cpu, area, vmcb, Report::plain(exit), pending);
    Some(Outcome::Exited)
}

/// Reports an NMI window that was asked for, if it is open; or steps to where it will be.
fn open_nmi_window(cpu: &PerCpu, area: Area, vmcb: &Vmcb) -> Option<Outcome> {
    let header = area.header();
    if !header.nmi_window.get() || header.nmi.get() != Nmi::Open {
        return None;
    }
    if vmcb.interrupt_shadow.get() & blocked::SHADOW != 0 {
        step(area, vmcb, Nmi::SteppingShadow);
        return None;
    }
    header.nmi_window.set(false);
    window(cpu, area, vmcb, Exit::NmiWindow, window::NMI)
}

/// Lets the guest execute one instruction; then #DB exits.
fn step(area: Area, vmcb: &Vmcb, state: Nmi) {
    let rflags = vmcb.rflags.get();
    area.header()
        .before_step
        .set((vmcb.dr6.get(), rflags & RFLAGS_TF != 0));
    vmcb.rflags.set(rflags | RFLAGS_TF);
    groups::set_nmi(area, vmcb, state);
}

/// Ends a step. True if the guest must see a #DB of its own.
fn stepped(area: Area, vmcb: &Vmcb) -> bool {
    let (dr6, traced) = area.header().before_step.get();
    if !traced {
        // An IRET loaded the guest's own TF; any other instruction left ours.
        if area.header().nmi.get() == Nmi::SteppingShadow {
            vmcb.rflags.set(vmcb.rflags.get() & !RFLAGS_TF);
        }
        if vmcb.dr6.get() & DR6_CAUSES == DR6_BS {
            vmcb.dr6.set(dr6);
        } else {
            vmcb.dr6.set(vmcb.dr6.get() & !DR6_BS);
        }
        vmcb.dirty(clean::DEBUG);
    }
    groups::set_nmi(area, vmcb, Nmi::Open);
    traced || vmcb.dr6.get() != dr6
}
