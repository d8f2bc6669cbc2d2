//! Entries and exits. What an exit does not need is not read from the VMCS.

use super::super::area::Area;
use super::super::{Outcome, PerCpu, features};
use super::groups;
use super::switch;
use super::vmcs::{self, field, read, update, write};
use super::{FMASK, KERNEL_GS_BASE, LSTAR, STAR, Soft, own_debug_registers, soft};
use crate::cpu;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use microvisor_abi::vcpu::{Exit, event, group, window};
use microvisor_vcpu_state::exit::Report;
use microvisor_vcpu_state::sanitise::{RFLAGS_IF, interrupted_delivery};
use microvisor_vcpu_state::vmx_controls::primary;
use microvisor_vcpu_state::vmx_entry::refusal;
use microvisor_vcpu_state::vmx_exit::{
    Decoded, ENTRY_FAILED, EPT_VIOLATION, EXTERNAL_INTERRUPT, Word, decode, may_cut_delivery,
};
use microvisor_vcpu_state::vmx_state::injection;
use x86_64::instructions::tables::lgdt;
use x86_64::registers::model_specific::Msr;

/// DR6 after a #DB: causes, and the bits that are always set.
const DR6_CAUSES: u64 = 0x600f;
const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR6 and DR7: a debug register was used while DR7 guarded them.
const DR6_BD: u64 = 1 << 13;
const DR7_GD: u64 = 1 << 13;
/// `info[0]` of `Exit::Invalid` if the entry instruction itself failed: with its error number.
const REFUSED: u64 = 1 << 33;

/// The preemption timer of a guest that is entered with interrupts enabled, and of one that is not.
/// Bochs (2.7) leaves interrupts masked after an entry with RFLAGS.IF clear, until the guest writes it:
/// so such a guest is left after a while, in which a CPU that gets it right has long done so itself.
const TIMER: [u64; 2] = [u32::MAX as u64, 0x4000];

/// Runs a vCPU that is resident in this CPU.
pub fn run(cpu: &PerCpu, area: Area, epoch: u64, again: bool) -> Outcome {
    let soft = soft(area);
    if !again && let Some(outcome) = prepare(area) {
        return outcome;
    }
    loop {
        if !enter(cpu, area, soft, epoch) {
            return refused(area, soft, REFUSED | read(field::INSTRUCTION_ERROR));
        }
        let reason = read(field::REASON);
        if reason & ENTRY_FAILED != 0 {
            return refused(area, soft, reason);
        }
        // The entry took what was to be injected; the exit may have cut its delivery short.
        soft.inject.set(0);
        if reason == EXTERNAL_INTERRUPT {
            return host_event(area, soft);
        }
        let delivering = if may_cut_delivery(reason) {
            cut_delivery(reason, soft)
        } else {
            0
        };
        match decode(reason, word) {
            Decoded::Report(what) => {
                report(area, soft, what, delivering);
                return Outcome::Exited;
            }
            other => {
                soft.inject.set(delivering);
                if let Some(outcome) = handle(area, soft, other) {
                    return outcome;
                }
                soft.rflags.set(read(field::RFLAGS));
            }
        }
    }
}

#[inline(always)]
fn word(word: Word) -> u64 {
    read(match word {
        Word::Qualification => field::QUALIFICATION,
        Word::Length => field::LENGTH,
        Word::Physical => field::PHYSICAL,
        Word::Interruption => field::INTERRUPTION,
        Word::ErrorCode => field::ERROR_CODE,
    })
}

/// Loads what the VMM changed. `Some`: the guest is not entered.
#[inline(always)]
fn prepare(area: Area) -> Option<Outcome> {
    let page = area.page();
    let modified = page.modified();
    if modified == 0 {
        return None;
    }
    if let Err((reject, value)) = groups::load(area, page, modified) {
        // `modified` stays: the VMM mends the value and everything is loaded again.
        page.set_stop(Exit::Invalid, [reject.code(), value]);
        return Some(Outcome::Exited);
    }
    page.set_modified(0);
    None
}

/// One trip into the guest and back; false if the CPU refused the instruction.
#[inline(always)]
fn enter(cpu: &PerCpu, area: Area, soft: &Soft, epoch: u64) -> bool {
    if !cpu.asids.get().valid(&area.header().held.get(), epoch) {
        renew_vpid(cpu, area, soft, epoch);
    }
    let host = &cpu.host;
    if soft.inject.get() & event::VALID != 0 {
        inject(soft);
    }
    let masked = soft.rflags.get() & RFLAGS_IF == 0;
    update(field::TIMER, &soft.timer, TIMER[usize::from(masked)]);
    let [star, lstar, fmask, kernel_gs_base] = soft.msrs.get();
    let [host_star, host_lstar, host_fmask] = host.msrs.get();
    // SAFETY: the vCPU exists and is resident, so VMX is on and its VMCS current, filled by `init`,
    // `arrive` and sanitised loads only, with a VPID valid here. SYSCALL's registers and the inner
    // GS base are not used in between; the host's are put back. The descriptor tables are those
    // that `Cpu::activate` loaded: exits set their limits to 64 KiB, and the task's to less than it is.
    unsafe {
        update(field::HOST_CR3, &host.cr3, (*cpu::this()).root);
        Msr::new(STAR).write(star);
        Msr::new(LSTAR).write(lstar);
        Msr::new(FMASK).write(fmask);
        Msr::new(KERNEL_GS_BASE).write(kernel_gs_base);
        let launched = soft.launched.get().into();
        let failed = switch::enter(area.page().registers(), launched, host.rsp.as_ptr());
        let kernel_gs_base = Msr::new(KERNEL_GS_BASE).read();
        Msr::new(STAR).write(host_star);
        Msr::new(LSTAR).write(host_lstar);
        Msr::new(FMASK).write(host_fmask);
        Msr::new(KERNEL_GS_BASE).write(0);
        lgdt(&host.gdtr.get());
        (*cpu::this()).descriptors.left_guest();
        soft.msrs.set([star, lstar, fmask, kernel_gs_base]);
        soft.launched.set(failed == 0 || soft.launched.get());
        failed == 0
    }
}

/// Gives the vCPU a VPID under which nothing is cached, and forgets what this CPU cached of its
/// space's tables whatever the VPID (SDM vol. 3, 29.4.1: guest-physical mappings have none).
#[cold]
fn renew_vpid(cpu: &PerCpu, area: Area, soft: &Soft, epoch: u64) {
    let mut asids = cpu.asids.get();
    let mut held = area.header().held.get();
    let (vpids, ept) = asids.enter(&mut held, epoch).invalidates();
    if vpids {
        vmcs::invalidate_vpids();
    }
    if ept {
        vmcs::invalidate_ept(soft.ept_pointer.get());
    }
    cpu.asids.set(asids);
    area.header().held.set(held);
    write(field::VPID, held.asid.into());
    write(field::EPT_POINTER, soft.ept_pointer.get());
}

/// Puts the event into the VMCS for the next entry.
fn inject(soft: &Soft) {
    let event = injection(soft.inject.get(), read(field::CR0));
    write(field::ENTRY_INTERRUPTION, event.info.into());
    write(field::ENTRY_ERROR_CODE, event.error.into());
    if event.software {
        // The page's RIP is that after the instruction; the CPU adds the length to its own.
        let before = soft.rip.get().wrapping_sub(1);
        update(field::RIP, &soft.rip, before);
        write(field::ENTRY_LENGTH, 1);
    }
}

/// An event whose delivery the exit cut short, to be injected again. An IRET cut short as well ends
/// no NMI's handling (SDM vol. 3, 28.2.3).
fn cut_delivery(reason: u64, soft: &Soft) -> u64 {
    let information = read(field::DELIVERING);
    if information & event::VALID == 0 {
        if soft.nmi.get() {
            let details = match reason {
                EPT_VIOLATION => field::QUALIFICATION,
                _ => field::INTERRUPTION,
            };
            if read(details) >> 12 & 1 != 0 {
                let state = read(field::INTERRUPTIBILITY) | groups::NMI;
                write(field::INTERRUPTIBILITY, state);
            }
        }
        return 0;
    }
    interrupted_delivery(information | read(field::DELIVERING_ERROR_CODE) << 32)
}

/// Tells the VMM.
#[inline(always)]
fn report(area: Area, soft: &Soft, what: Report, delivering: u64) {
    let page = area.page();
    groups::store_general(page, soft);
    groups::store_events(page, soft, delivering);
    page.set_exit(what.exit, what.info);
    page.set_instruction_length(what.length);
    let mut valid = group::GENERAL | group::EVENTS;
    if what.mode && page.wanted() & group::MODE != 0 {
        groups::store_mode(page, soft);
        valid |= group::MODE;
    }
    page.set_valid(valid);
}

/// Times that the log says why an entry failed: a VMM can make one fail as often as it likes.
static EXPLAINED: AtomicU32 = AtomicU32::new(0);
const EXPLANATIONS: u32 = 16;

/// The CPU refused to enter.
#[cold]
fn refused(area: Area, soft: &Soft, why: u64) -> Outcome {
    if EXPLAINED.load(Ordering::Relaxed) < EXPLANATIONS {
        EXPLAINED.fetch_add(1, Ordering::Relaxed);
        let check = match why & REFUSED {
            0 => groups::as_entered(soft).failing(features().limits.linear_bits),
            _ => Some(refusal(why & 0xff)),
        };
        let check = check.unwrap_or("a check that is not known here");
        log::warn!("vCPU not entered, {why:#x}: {check}");
    }
    let what = Report {
        info: [why, read(field::QUALIFICATION)],
        ..Report::plain(Exit::Invalid)
    };
    report(area, soft, what, soft.inject.replace(0));
    Outcome::Exited
}

/// The host has to act. Should the run not go on, its page is what an exit leaves: by then the
/// registers may be in no CPU, or in another.
fn host_event(area: Area, soft: &Soft) -> Outcome {
    groups::store_general(area.page(), soft);
    groups::store_events(area.page(), soft, 0);
    Outcome::HostEvent
}

/// A run that was interrupted for the host ends after all. An event that was to be injected goes
/// back to the VMM.
pub fn stopped(area: Area) {
    let page = area.page();
    page.set_delivering(soft(area).inject.replace(0));
    page.set_valid(group::GENERAL | group::EVENTS);
}

/// Exits that the core deals with. `None`: enter again.
#[cold]
fn handle(area: Area, soft: &Soft, what: Decoded) -> Option<Outcome> {
    match what {
        Decoded::Report(_) | Decoded::Host => Some(host_event(area, soft)),
        Decoded::Nmi | Decoded::MachineCheck => {
            // SAFETY: the host's own handlers, which report and stop.
            unsafe {
                match what {
                    Decoded::Nmi => asm!("int 2"),
                    _ => asm!("int 18"),
                }
            }
            Some(host_event(area, soft))
        }
        Decoded::InterruptWindow => {
            groups::set_window(soft, primary::INTERRUPT_WINDOW, false);
            Some(open(area, soft, Exit::InterruptWindow, window::INTERRUPT))
        }
        Decoded::NmiWindow => {
            groups::set_window(soft, primary::NMI_WINDOW, false);
            Some(open(area, soft, Exit::NmiWindow, window::NMI))
        }
        Decoded::DebugRegister => {
            own_debug_registers(area);
            None
        }
        Decoded::Debug(causes, information) => {
            groups::end_shadow(soft);
            debug(area, soft, causes, information);
            None
        }
        Decoded::Alignment(error) => {
            groups::end_shadow(soft);
            let event = event::EXCEPTION | event::VALID | event::ERROR_CODE | 17;
            soft.inject.set(event | error << 32);
            None
        }
    }
}

/// Reports that a window is open, and that it is no longer asked for.
fn open(area: Area, soft: &Soft, exit: Exit, bit: u64) -> Outcome {
    let page = area.page();
    page.set_window(page.window() & !bit);
    report(area, soft, Report::plain(exit), soft.inject.replace(0));
    Outcome::Exited
}

/// Delivers a #DB as the CPU would have (SDM vol. 3, 28.1, 28.3.1: the exit left DR6 and DR7 alone).
fn debug(area: Area, soft: &Soft, causes: u64, information: u64) {
    super::change_dr6(area, |dr6| dr6 & !0xf | DR6_FIXED | causes & DR6_CAUSES);
    if causes & DR6_BD != 0 {
        write(field::DR7, read(field::DR7) & !DR7_GD);
    }
    // INT1 (type 5) is a trap that exits like a fault.
    if information >> 8 & 7 == 5 {
        write(
            field::RIP,
            read(field::RIP).wrapping_add(read(field::LENGTH)),
        );
    }
    soft.inject.set(event::EXCEPTION | event::VALID | 1);
}
