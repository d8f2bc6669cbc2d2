//! Control registers and XCR0.

use sdk::abi::vcpu::group;
use sdk::field;
use x86_platform::decode::{ControlKind, Fixed, control_access};
use x86_platform::mode::{CR0_PE, CR0_PG, CR4_LA57, CR4_PAE, CodeSize, EFER_LMA, EFER_LME, Mode};
use x86_platform::msr::valid_xcr0;
use x86_platform::registers;

use super::{Handled, Interruption, Vcpu};

const CR0_TS: u64 = 1 << 3;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
/// CR0 bits that exist: PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG.
const CR0_DEFINED: u64 = 0xe005_003f;
/// ET reads as 1.
const CR0_ET: u64 = 1 << 4;
/// CR4 bits that never go to a guest: VMXE, SMXE, LA57.
const CR4_DENIED: u64 = 1 << 13 | 1 << 14 | CR4_LA57;
/// CR4 bits that are defined at all (Intel SDM vol. 3, 2.5), up to CET.
const CR4_DEFINED: u64 = 0x00ff_ffff;

impl Vcpu {
    /// MOV to or from a control register, CLTS, LMSW, SMSW.
    pub(super) fn control_register(&mut self) -> Handled {
        let mode = self.mode()?;
        let code = self.code(&mode)?;
        let access = control_access(&code, mode.code_size())?;
        if mode.privilege() != 0 && !matches!(access.kind, ControlKind::StoreStatus { .. }) {
            return Err(Interruption::GENERAL_PROTECTION);
        }
        let long = mode.code_size() == CodeSize::Bits64;
        let mut regs = self.registers();
        match access.kind {
            ControlKind::Read { control, register } => {
                let value = match control {
                    0 => mode.cr0,
                    2 => {
                        self.need(group::MISC)?;
                        self.page.get(field!(cr2))
                    }
                    3 => mode.cr3,
                    4 => mode.cr4,
                    8 => u64::from(self.apic.task_priority() >> 4),
                    _ => return Err(Interruption::INVALID_OPCODE),
                };
                registers::set_sized(&mut regs, register, if long { 8 } else { 4 }, value);
                self.set_registers(&regs);
            }
            ControlKind::Write { control, register } => {
                let mut value = registers::get(&regs, register);
                if !long {
                    value &= 0xffff_ffff;
                }
                self.write_control(&mode, control, value)?;
            }
            ControlKind::ClearTaskSwitched => {
                self.page.set(field!(cr0), mode.cr0 & !CR0_TS);
                self.modified |= group::MODE;
            }
            ControlKind::StoreStatus { register, bytes } => {
                registers::set_sized(&mut regs, register, bytes, mode.cr0);
                self.set_registers(&regs);
            }
            ControlKind::LoadStatus { register } => {
                // PE can be set but not cleared (SDM vol. 2, LMSW).
                let word = registers::get(&regs, register) & 0xf;
                let value = mode.cr0 & !0xe | word & 0xe | word & CR0_PE;
                self.write_control(&mode, 0, value | mode.cr0 & CR0_PE)?;
            }
        }
        self.skip(access.length)
    }

    fn write_control(&mut self, mode: &Mode, control: u8, value: u64) -> Handled {
        let refuse = Err(Interruption::GENERAL_PROTECTION);
        match control {
            0 => {
                let paging = value & CR0_PG != 0;
                if value >> 32 != 0
                    || (paging && value & CR0_PE == 0)
                    || (value & CR0_NW != 0 && value & CR0_CD == 0)
                {
                    return refuse;
                }
                let mut efer = mode.efer;
                let was_paging = mode.cr0 & CR0_PG != 0;
                if paging && !was_paging && efer & EFER_LME != 0 {
                    // Entering long mode needs PAE and a code segment that is not 64 bits yet.
                    if mode.cr4 & CR4_PAE == 0 || mode.cs.attributes() >> 9 & 1 != 0 {
                        return refuse;
                    }
                    efer |= EFER_LMA;
                }
                if !paging && was_paging {
                    if mode.code_size() == CodeSize::Bits64 {
                        return refuse;
                    }
                    efer &= !EFER_LMA;
                }
                self.page.set(field!(cr0), value & CR0_DEFINED | CR0_ET);
                self.page.set(field!(efer), efer);
            }
            2 => {
                self.need(group::MISC)?;
                self.page.set(field!(cr2), value);
                self.modified |= group::MISC;
                return Ok(());
            }
            3 => {
                if mode.efer & EFER_LMA != 0 && value >> 52 & 0x7ff != 0 {
                    return refuse;
                }
                // Bit 63 asks to keep the TLB's entries (PCID); flushing more is always right.
                self.page.set(field!(cr3), value & !(1 << 63));
            }
            4 => {
                if value & (CR4_DENIED | !CR4_DEFINED) != 0
                    || (mode.efer & EFER_LMA != 0 && value & CR4_PAE == 0)
                {
                    return refuse;
                }
                self.page.set(field!(cr4), value);
            }
            8 => {
                if value & !0xf != 0 {
                    return refuse;
                }
                self.apic.set_task_priority((value as u8) << 4);
                return Ok(());
            }
            _ => return Err(Interruption::INVALID_OPCODE),
        }
        self.modified |= group::MODE;
        Ok(())
    }

    /// XSETBV: XCR0 is the only register (SDM vol. 2, XSETBV).
    pub(super) fn xsetbv(&mut self) -> Handled {
        let mode = self.mode()?;
        let number = self.page.get(field!(regs.rcx)) as u32;
        let low = self.page.get(field!(regs.rax)) & 0xffff_ffff;
        let value = self.page.get(field!(regs.rdx)) << 32 | low;
        if number != 0 || mode.privilege() != 0 || !valid_xcr0(value, self.cpuid.xcr0()) {
            return Err(Interruption::GENERAL_PROTECTION);
        }
        self.need(group::MISC)?;
        self.page.set(field!(xcr0), value);
        self.modified |= group::MISC;
        self.skip_fixed(Fixed::Xsetbv)
    }
}
