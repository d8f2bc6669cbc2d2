//! RDMSR and WRMSR: to the local APIC, to the Xen ABI, to the state page, or to the table of
//! `x86-platform`.

use sdk::abi::vcpu::group;
use sdk::field;
use sdk::time;
use sdk::vcpu::Field;
use x86_platform::apic::{
    Effect, MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC_FIRST, MSR_X2APIC_LAST,
};
use x86_platform::decode::Fixed;
use x86_platform::msr::{self, Read, Register, Write};

use xen_abi::HYPERCALL_PAGE_MSR;

use crate::env::Effects;

use super::{Handled, Interruption, Vcpu};

/// Where the state page has a register: group and word.
fn place(register: Register) -> Option<(u64, Field)> {
    Some(match register {
        Register::Efer => (group::MODE, field!(efer)),
        Register::Star => (group::SYSCALL, field!(star)),
        Register::Lstar => (group::SYSCALL, field!(lstar)),
        Register::Cstar => (group::SYSCALL, field!(cstar)),
        Register::Sfmask => (group::SYSCALL, field!(sfmask)),
        Register::FsBase => (group::SEGMENTS, field!(fs.base)),
        Register::GsBase => (group::SEGMENTS, field!(gs.base)),
        Register::KernelGsBase => (group::SYSCALL, field!(kernel_gs_base)),
        Register::TscAux => (group::MISC, field!(tsc_aux)),
        Register::SysenterCs => (group::SYSCALL, field!(sysenter_cs)),
        Register::SysenterEsp => (group::SYSCALL, field!(sysenter_esp)),
        Register::SysenterEip => (group::SYSCALL, field!(sysenter_eip)),
        Register::Pat => (group::MISC, field!(pat)),
        Register::Tsc => return None,
    })
}

impl Vcpu {
    pub(super) fn msr_read(&mut self) -> Handled {
        let number = self.page.get(field!(regs.rcx)) as u32;
        let length = self.length(Fixed::Rdmsr)?;
        let value = match number {
            MSR_APIC_BASE => self.apic.base(),
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST => self
                .apic
                .msr_read(number, time::now())
                .map_err(|_| Interruption::GENERAL_PROTECTION)?,
            MSR_TSC_DEADLINE => self.apic.tsc_deadline(time::now()),
            // Write-only in effect (Xen's `guest_rdmsr_xen`).
            HYPERCALL_PAGE_MSR => 0,
            _ => match self.msrs.read(number) {
                Read::Value(value) => value,
                Read::Register(register) => match place(register) {
                    Some((group, field)) => {
                        self.need(group)?;
                        self.page.get(field)
                    }
                    None => time::now(),
                },
                Read::Fault => return Err(Interruption::GENERAL_PROTECTION),
            },
        };
        self.page.set(field!(regs.rax), value & 0xffff_ffff);
        self.page.set(field!(regs.rdx), value >> 32);
        self.skip(length)
    }

    pub(super) fn msr_write(&mut self) -> Handled {
        let number = self.page.get(field!(regs.rcx)) as u32;
        let low = self.page.get(field!(regs.rax)) & 0xffff_ffff;
        let value = self.page.get(field!(regs.rdx)) << 32 | low;
        let length = self.length(Fixed::Wrmsr)?;
        match number {
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST => {
                let effect = self
                    .apic
                    .msr_write(number, value, time::now())
                    .map_err(|_| Interruption::GENERAL_PROTECTION)?;
                self.apic_effect(effect);
                self.set_deadline();
            }
            MSR_TSC_DEADLINE => {
                self.apic.set_tsc_deadline(value, time::now());
                self.set_deadline();
            }
            MSR_APIC_BASE => {
                let effect = self
                    .apic
                    .write_base(value)
                    .map_err(|_| Interruption::GENERAL_PROTECTION)?;
                debug_assert!(!matches!(effect, Effect::Ipi(_)));
                self.apic_effect(effect);
                self.set_deadline();
            }
            HYPERCALL_PAGE_MSR => self.write_hypercall_page(value)?,
            _ => match self.msrs.write(number, value) {
                Write::Done => {}
                Write::Register(register, value) => self.set_register_msr(register, value)?,
                Write::Fault => return Err(Interruption::GENERAL_PROTECTION),
            },
        }
        self.skip(length)
    }

    fn write_hypercall_page(&mut self, value: u64) -> Handled {
        let mode = self.mode()?;
        let caller = self.caller_mode(&mode);
        let shared = self.shared;
        let mut effects = Effects::new(shared, self.index, None);
        let written = shared
            .domain
            .lock()
            .write_hypercall_page(value, caller, shared.vendor, &shared.ram, &mut effects)
            .map_err(|_| Interruption::GENERAL_PROTECTION);
        self.upcall |= effects.upcall;
        written
    }

    fn set_register_msr(&mut self, register: Register, value: u64) -> Handled {
        let Some((group, field)) = place(register) else {
            // The TSC is the machine's, with no offset: a guest cannot move it, as under Xen's
            // `tsc_mode=native` with a TSC that all CPUs share.
            return Ok(());
        };
        self.need(group)?;
        let value = if register == Register::Efer {
            let current = self.page.get(field);
            let cr0 = self.page.get(field!(cr0));
            msr::efer(&self.msrs, current, value, cr0).ok_or(Interruption::GENERAL_PROTECTION)?
        } else {
            value
        };
        self.page.set(field, value);
        self.modified |= group;
        Ok(())
    }
}
