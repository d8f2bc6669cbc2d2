//! What model-specific registers a guest has, and what writing them does.
//!
//! Registers that live in the state page come back as a [`Register`] for the VMM to reach; the
//! rest is answered here. The APIC's and Xen's own MSRs are routed elsewhere before this.
//! Whatever is not named raises #GP(0), as Xen does by default (`msr_relaxed=0`).

use crate::cpuid::{Cpuid, Vendor};
use crate::mode::{CR0_PG, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE};
use crate::paging::canonical;

/// Registers that are kept in the state page or follow from the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// C000_0080.
    Efer,
    /// C000_0081.
    Star,
    /// C000_0082.
    Lstar,
    /// C000_0083.
    Cstar,
    /// C000_0084.
    Sfmask,
    /// C000_0100.
    FsBase,
    /// C000_0101.
    GsBase,
    /// C000_0102.
    KernelGsBase,
    /// C000_0103.
    TscAux,
    /// 174.
    SysenterCs,
    /// 175.
    SysenterEsp,
    /// 176.
    SysenterEip,
    /// 277.
    Pat,
    /// 10: the guest's TSC.
    Tsc,
}

/// What a read gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// This value.
    Value(u64),
    /// What the state page has.
    Register(Register),
    /// #GP(0).
    Fault,
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Nothing more.
    Done,
    /// This checked value goes into the state page. EFER is still to pass [`efer`].
    Register(Register, u64),
    /// #GP(0).
    Fault,
}

/// SYSCALL may save the short FPU image.
const EFER_FFXSR: u64 = 1 << 14;
/// FFXSR in CPUID 8000_0001 EDX.
const CPUID_FFXSR: u32 = 25;
/// NX there.
const CPUID_NX: u32 = 20;
/// RDTSCP there.
const CPUID_RDTSCP: u32 = 27;

/// MTRRcap: 8 variable ranges, fixed ranges, write combining, as Xen's.
const MTRR_CAP: u64 = 0x508;
/// MTRRs on, fixed ranges off, everything write-back.
const MTRR_DEFAULT: u64 = 0x806;

/// The registers without a better home, of one vCPU.
#[derive(Clone, Debug)]
pub struct Msrs {
    vendor: Vendor,
    family: u32,
    ffxsr: bool,
    nx: bool,
    rdtscp: bool,
    mtrr_default: u64,
    mtrr_variable: [u64; 16],
    mtrr_fixed: [u64; 11],
}

impl Msrs {
    /// Registers after power-up.
    pub fn new(cpuid: &Cpuid) -> Msrs {
        Msrs {
            vendor: cpuid.vendor(),
            family: cpuid.family(),
            ffxsr: cpuid.has_extended(CPUID_FFXSR),
            nx: cpuid.has_extended(CPUID_NX),
            rdtscp: cpuid.has_extended(CPUID_RDTSCP),
            mtrr_default: MTRR_DEFAULT,
            mtrr_variable: [0; 16],
            mtrr_fixed: [0; 11],
        }
    }

    fn register(&self, msr: u32) -> Option<Register> {
        Some(match msr {
            0x10 => Register::Tsc,
            0x174 => Register::SysenterCs,
            0x175 => Register::SysenterEsp,
            0x176 => Register::SysenterEip,
            0x277 => Register::Pat,
            0xc000_0080 => Register::Efer,
            0xc000_0081 => Register::Star,
            0xc000_0082 => Register::Lstar,
            0xc000_0083 => Register::Cstar,
            0xc000_0084 => Register::Sfmask,
            0xc000_0100 => Register::FsBase,
            0xc000_0101 => Register::GsBase,
            0xc000_0102 => Register::KernelGsBase,
            0xc000_0103 if self.rdtscp => Register::TscAux,
            _ => return None,
        })
    }

    fn fixed_index(msr: u32) -> Option<usize> {
        match msr {
            0x250 => Some(0),
            0x258 | 0x259 => Some(msr as usize - 0x258 + 1),
            0x268..=0x26f => Some(msr as usize - 0x268 + 3),
            _ => None,
        }
    }

    /// RDMSR.
    pub fn read(&self, msr: u32) -> Read {
        if let Some(register) = self.register(msr) {
            return Read::Register(register);
        }
        if let Some(index) = Self::fixed_index(msr) {
            return self
                .mtrr_fixed
                .get(index)
                .map_or(Read::Fault, |value| Read::Value(*value));
        }
        let intel = self.vendor == Vendor::Intel;
        let value = match msr {
            // The Pentium's machine check: address and type of none.
            0 | 1 => 0,
            // Microcode revision: none to speak of, but present.
            0x8b => 0,
            0xfe => MTRR_CAP,
            0x200..=0x20f => match self.mtrr_variable.get(msr as usize & 0xf) {
                Some(value) => *value,
                None => return Read::Fault,
            },
            0x2ff => self.mtrr_default,
            // Machine check: no bank, nothing pending.
            0x179 | 0x17a => 0,
            // DEBUGCTL.
            0x1d9 => 0,
            // Intel: platform id, EBL_CR_POWERON, platform info.
            0x17 | 0x2a | 0xce if intel => 0,
            // Intel: feature control, locked with nothing on.
            0x3a if intel => 1,
            // Intel: MISC_ENABLE with fast strings; no BTS, no PEBS.
            0x1a0 if intel => 1 | 1 << 11 | 1 << 12,
            _ if intel => return Read::Fault,
            // Intel's EBC_FREQUENCY_ID, as Xen has it for guests that came from there.
            0x2c => 0,
            // Interrupt-pending message.
            0xc001_0055 => 0,
            // HWCR: the TSC counts at the P0 frequency.
            0xc001_0015 => {
                if self.family >= 0x10 {
                    1 << 24
                } else {
                    0
                }
            }
            // VM_CR: SVM disabled.
            0xc001_0114 => 1 << 4,
            _ if amd_zero(msr) => 0,
            _ => return Read::Fault,
        };
        Read::Value(value)
    }

    /// WRMSR.
    pub fn write(&mut self, msr: u32, value: u64) -> Write {
        if let Some(register) = self.register(msr) {
            return match register {
                Register::Lstar
                | Register::Cstar
                | Register::FsBase
                | Register::GsBase
                | Register::KernelGsBase
                | Register::SysenterEsp
                | Register::SysenterEip
                    if !canonical(value) =>
                {
                    Write::Fault
                }
                Register::Sfmask | Register::TscAux if value >> 32 != 0 => Write::Fault,
                Register::Pat if !valid_pat(value) => Write::Fault,
                _ => Write::Register(register, value),
            };
        }
        if let Some(index) = Self::fixed_index(msr) {
            return match self.mtrr_fixed.get_mut(index) {
                Some(fixed) if value.to_le_bytes().into_iter().all(memory_type) => {
                    *fixed = value;
                    Write::Done
                }
                _ => Write::Fault,
            };
        }
        let intel = self.vendor == Vendor::Intel;
        match msr {
            0x200..=0x20f => {
                let base = msr & 1 == 0;
                let good = if base {
                    memory_type(value as u8) && value & 0xf00 == 0
                } else {
                    value & 0x7ff == 0
                };
                match self.mtrr_variable.get_mut(msr as usize & 0xf) {
                    Some(variable) if good && value >> 52 == 0 => {
                        *variable = value;
                        Write::Done
                    }
                    _ => Write::Fault,
                }
            }
            0x2ff if value & !0xcff == 0 && memory_type(value as u8) => {
                self.mtrr_default = value;
                Write::Done
            }
            // Microcode updates, and the revision that Intel's way to read it writes: dropped.
            0x79 | 0x8b if intel => Write::Done,
            0xc001_0020 if !intel => Write::Done,
            // MCG_STATUS takes only 0; DEBUGCTL only what has no effect here.
            0x17a if value == 0 => Write::Done,
            0x1d9 if value & !3 == 0 => Write::Done,
            0x1a0 if intel => Write::Done,
            _ if !intel && amd_zero(msr) => Write::Done,
            _ => Write::Fault,
        }
    }
}

/// AMD's registers that read as 0 and ignore writes: SYSCFG, TOP_MEM and TOP_MEM2, NB_CFG, MMIO
/// configuration base, LS_CFG, IC_CFG, DC_CFG, BU_CFG, FP_CFG, DE_CFG, BU_CFG2, BU_CFG3, EX_CFG, and
/// performance counters with their selectors, which count nothing.
fn amd_zero(msr: u32) -> bool {
    matches!(
        msr,
        0xc001_0010
            | 0xc001_001a
            | 0xc001_001d
            | 0xc001_001f
            | 0xc001_0058
            | 0xc001_0000..=0xc001_0007
            | 0xc001_0200..=0xc001_020b
            | 0xc001_1020..=0xc001_1023
            | 0xc001_1028..=0xc001_102c
    )
}

/// Memory types that exist (SDM vol. 3, table 12-2).
fn memory_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

fn valid_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .into_iter()
        .all(|entry| memory_type(entry) || entry == 7)
}

/// EFER after the guest writes `value` to it; `None` is #GP(0). LMA follows paging and is not the
/// guest's to set (Intel SDM vol. 3, 2.2.1; AMD APM vol. 2, 3.1.7).
pub fn efer(msrs: &Msrs, current: u64, value: u64, cr0: u64) -> Option<u64> {
    let mut allowed = EFER_SCE | EFER_LME | EFER_LMA;
    if msrs.nx {
        allowed |= EFER_NXE;
    }
    if msrs.ffxsr {
        allowed |= EFER_FFXSR;
    }
    if value & !allowed != 0 {
        return None;
    }
    if (value ^ current) & EFER_LME != 0 && cr0 & CR0_PG != 0 {
        return None;
    }
    Some(value & !EFER_LMA | current & EFER_LMA)
}

/// True if XCR0 may be set to `value` when the CPU offers `allowed` (SDM vol. 1, 13.3).
pub fn valid_xcr0(value: u64, allowed: u64) -> bool {
    let avx512 = value & 0xe0;
    value & 1 != 0
        && value & !allowed == 0
        && (value & 4 == 0 || value & 2 != 0)
        && (avx512 == 0 || (avx512 == 0xe0 && value & 4 != 0))
}

#[cfg(test)]
mod tests;
