//! VMX's control words, chosen from what the capability MSRs allow (Intel SDM vol. 3, 25.6 to 25.8
//! and appendix A), and what this CPU lacks if they cannot be had.

/// Pin-based: external interrupts and NMIs exit, NMIs are virtual.
pub const PIN: u32 = 1 | 1 << 3 | 1 << 5;

/// Pin-based, if there is one: the preemption timer.
pub const PIN_TIMER: u32 = 1 << 6;

/// Primary processor-based controls.
pub mod primary {
    /// Exit when the guest can take an interrupt.
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    /// Exit when the guest can take an NMI.
    pub const NMI_WINDOW: u32 = 1 << 22;
    /// Exit on use of a debug register.
    pub const MOV_DR: u32 = 1 << 23;
    /// TSC offset; HLT, MWAIT, RDPMC; TPR shadow; MOV DR; I/O bitmaps; MSR bitmap; MONITOR;
    /// secondary controls.
    pub const NEEDED: u32 = 1 << 3
        | 1 << 7
        | 1 << 10
        | 1 << 11
        | 1 << 21
        | MOV_DR
        | 1 << 25
        | 1 << 28
        | 1 << 29
        | 1 << 31;
    /// Must not be forced on: INVLPG, RDTSC, loads and stores of CR3 and CR8, every port.
    pub const UNWANTED: u32 = 1 << 9 | 1 << 12 | 1 << 15 | 1 << 16 | 1 << 19 | 1 << 20 | 1 << 24;
}

/// Secondary processor-based controls.
pub mod secondary {
    /// EPT.
    pub const EPT: u32 = 1 << 1;
    /// Identifiers for guests' translations.
    pub const VPID: u32 = 1 << 5;
    /// Real mode and no paging without emulation.
    pub const UNRESTRICTED: u32 = 1 << 7;
    /// ENCLS exits as its bitmap says.
    pub const ENCLS: u32 = 1 << 15;
    /// WBINVD exits, and the three above it.
    pub const NEEDED: u32 = EPT | VPID | 1 << 6 | UNRESTRICTED;
    /// Instructions that are there if the CPU has them: RDTSCP, INVPCID, XSAVES; and ENCLS.
    pub const OPTIONAL: u32 = 1 << 3 | 1 << 12 | ENCLS | 1 << 20;
}

/// Exit: debug registers saved, to 64-bit mode, PAT and EFER saved and loaded. Interrupts are not
/// acknowledged.
pub const EXIT: u32 = 1 << 2 | 1 << 9 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21;
/// Entry: debug registers, PAT and EFER loaded.
pub const ENTRY: u32 = 1 << 2 | 1 << 14 | 1 << 15;
/// Entry: to IA-32e mode. The CPU keeps it in step with EFER.LMA of an unrestricted guest.
pub const ENTRY_LONG: u32 = 1 << 9;

/// Capability MSRs, as read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Capabilities {
    /// IA32_FEATURE_CONTROL.
    pub feature_control: u64,
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// IA32_VMX_TRUE_PINBASED_CTLS; bits that must be 1 in the low half, that may be in the high.
    pub pin: u64,
    /// IA32_VMX_TRUE_PROCBASED_CTLS.
    pub primary: u64,
    /// IA32_VMX_PROCBASED_CTLS2, 0 if there is none.
    pub secondary: u64,
    /// IA32_VMX_TRUE_EXIT_CTLS.
    pub exit: u64,
    /// IA32_VMX_TRUE_ENTRY_CTLS.
    pub entry: u64,
    /// IA32_VMX_EPT_VPID_CAP, 0 if there is none.
    pub ept_vpid: u64,
}

/// Control words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// Pin-based.
    pub pin: u32,
    /// Primary, with no window asked for.
    pub primary: u32,
    /// Secondary.
    pub secondary: u32,
    /// VM exit.
    pub exit: u32,
    /// VM entry, not to IA-32e mode.
    pub entry: u32,
}

/// IA32_FEATURE_CONTROL: it cannot be changed until reset.
pub const LOCKED: u64 = 1;
/// IA32_FEATURE_CONTROL: VMXON is allowed.
pub const VMX_ENABLED: u64 = 1 << 2;

/// EPT: walks of four levels, write-back tables, large pages of both sizes; INVEPT for one space, INVVPID for all
/// identifiers.
const EPT_NEEDED: [(u64, &str); 4] = [
    (
        1 << 6 | 1 << 14,
        "this CPU's EPT has no four-level write-back tables",
    ),
    (
        1 << 16 | 1 << 17,
        "this CPU's EPT has no 2 MiB and 1 GiB pages",
    ),
    (
        1 << 20 | 1 << 25,
        "this CPU has no INVEPT for single spaces",
    ),
    (
        1 << 32 | 1 << 42,
        "this CPU has no INVVPID for all identifiers",
    ),
];

/// The word with `needed` and what there is of `optional`, if the CPU allows it.
const fn choose(capability: u64, needed: u32, optional: u32) -> Option<u32> {
    let (forced, allowed) = (capability as u32, (capability >> 32) as u32);
    if needed & !allowed != 0 {
        return None;
    }
    Some(needed | optional & allowed | forced)
}

impl Capabilities {
    /// The control words, or what is missing and where to look.
    pub fn controls(&self) -> Result<Controls, &'static str> {
        if self.feature_control & (LOCKED | VMX_ENABLED) == LOCKED {
            return Err(
                "VMX is locked off by the firmware (IA32_FEATURE_CONTROL): look for \"Intel Virtualization Technology\" or \"VT-x\" in its set-up",
            );
        }
        // Bit 55: the TRUE_ capability MSRs exist.
        if self.basic >> 55 & 1 == 0 {
            return Err(
                "this CPU's VMX is of the first kind, which cannot run guests without CR3 exits",
            );
        }
        let allowed = (self.secondary >> 32) as u32;
        for (bit, missing) in [
            (
                secondary::EPT,
                "this CPU's VMX has no EPT (nested page tables)",
            ),
            (
                secondary::UNRESTRICTED,
                "this CPU's VMX has no unrestricted guests",
            ),
            (secondary::VPID, "this CPU's VMX has no VPID"),
        ] {
            if allowed & bit == 0 {
                return Err(missing);
            }
        }
        for (bits, missing) in EPT_NEEDED {
            if self.ept_vpid & bits != bits {
                return Err(missing);
            }
        }
        if self.primary as u32 & primary::UNWANTED != 0 {
            return Err("this CPU's VMX forces exits that the core does not handle");
        }
        Ok(Controls {
            pin: choose(self.pin, PIN, PIN_TIMER).ok_or("this CPU's VMX has no virtual NMIs")?,
            primary: choose(self.primary, primary::NEEDED, 0)
                .ok_or("this CPU's VMX has no MSR bitmap, TPR shadow or secondary controls")?,
            secondary: choose(self.secondary, secondary::NEEDED, secondary::OPTIONAL)
                .ok_or("this CPU's VMX cannot intercept WBINVD")?,
            exit: choose(self.exit, EXIT, 0)
                .ok_or("this CPU's VMX does not switch PAT and EFER at exits")?,
            entry: choose(self.entry, ENTRY, 0)
                .ok_or("this CPU's VMX does not switch PAT and EFER at entries")?,
        })
    }
}
