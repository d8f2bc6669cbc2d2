//! Which mitigations of speculative execution a CPU needs, from its CPUID words and MSRs. The choice
//! is what Xen 4.20 makes by default (`xen/arch/x86/spec_ctrl.c`) for a build without retpolines,
//! since the core has none. `docs/speculation.md` has the table of bugs; `tests/speculation.rs` holds
//! this against CPUs that exist. Applied by the core's own `speculation`.

use core::fmt;

/// At the edge between the core and those it does not trust, one word for guests and one for
/// components.
pub mod edge {
    /// On the way in: an indirect branch prediction barrier.
    pub const IBPB: u32 = 1;
    /// On the way in: harmless entries fill the return stack.
    pub const FILL: u32 = 1 << 1;
    /// In: [`super::Mitigations::inside`] goes into SPEC_CTRL; out: `outside`.
    pub const IBRS: u32 = 1 << 2;
    /// On the way in: the branch history is overwritten.
    pub const HISTORY: u32 = 1 << 3;
    /// On the way out: VERW empties the CPU's buffers.
    pub const VERW: u32 = 1 << 4;
    /// On the way out: the first level data cache is flushed.
    pub const L1D: u32 = 1 << 5;
    /// A barrier when another address space or another vCPU has the CPU.
    pub const SWITCH: u32 = 1 << 6;
    /// All of the way in.
    pub const IN: u32 = IBPB | FILL | IBRS | HISTORY;
    /// All of the way out.
    pub const OUT: u32 = IBRS | VERW | L1D;
    /// Their names, by bit.
    pub const NAMES: &[&str] = &[
        "IBPB",
        "RSB filling",
        "IBRS",
        "BHB clearing",
        "VERW",
        "L1D flush",
        "IBPB on switches",
    ];
}

/// What nothing is done about.
pub mod exposed {
    /// A component can read the core's memory, which is all memory: tables are not kept apart.
    pub const MELTDOWN: u32 = 1;
    /// Components, or guests, steer the core's indirect branches: microcode offers no IBRS.
    pub const TARGETS: u32 = 1 << 1;
    /// VERW does not empty buffers: microcode.
    pub const BUFFERS: u32 = 1 << 2;
    /// The first level cache cannot be flushed: microcode.
    pub const L1TF: u32 = 1 << 3;
    /// Gathers show others' data: microcode.
    pub const GATHER: u32 = 1 << 4;
    /// The divider of Zen 1 keeps a result.
    pub const DIVIDER: u32 = 1 << 5;
    /// Their names, by bit.
    pub const NAMES: &[&str] = &[
        "Meltdown",
        "Spectre v2",
        "MDS",
        "L1TF",
        "GDS",
        "Zen 1's divider",
    ];
}

const EFER: u32 = 0xc000_0080;
const SPEC_CTRL: u32 = 0x48;
const TSX_CTRL: u32 = 0x122;
const MCU_OPT_CTRL: u32 = 0x123;
const DE_CFG: u32 = 0xc001_1029;
const IBRS: u64 = 1;
const STIBP: u64 = 1 << 1;
const BHI_DIS_S: u64 = 1 << 10;

/// Who made a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vendor {
    /// `GenuineIntel`.
    Intel,
    /// `AuthenticAMD`, `HygonGenuine`.
    Amd,
    /// Anyone else.
    #[default]
    Other,
}

/// What a CPU says of itself. Words of leaves that it does not have are 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// Leaf 0.
    pub vendor: Vendor,
    /// Leaf 1, EAX.
    pub signature: u32,
    /// Leaf 7, EBX and EDX.
    pub leaf7: [u32; 2],
    /// Leaf 7, sub-leaf 2, EDX.
    pub leaf7_2: u32,
    /// Leaf 8000_0008, EBX.
    pub ext8: u32,
    /// Leaf 8000_0021, EAX.
    pub ext21: u32,
    /// IA32_ARCH_CAPABILITIES.
    pub capabilities: u64,
}

/// What is done, and what is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mitigations {
    /// Bits of [`edge`], for guests.
    pub guest: u32,
    /// The same for components.
    pub user: u32,
    /// SPEC_CTRL while the core runs.
    pub inside: u32,
    /// SPEC_CTRL while others run.
    pub outside: u32,
    /// Set once on each CPU: number, bits to clear, bits to set. Number 0: nothing.
    pub registers: [(u32, u64, u64); 5],
    /// Bits of [`exposed`].
    pub exposed: u32,
}

impl Mitigations {
    /// A CPU that needs nothing.
    pub const NONE: Mitigations = Mitigations {
        guest: 0,
        user: 0,
        inside: 0,
        outside: 0,
        registers: [(0, 0, 0); 5],
        exposed: 0,
    };
}

const fn bit(word: u32, number: u32) -> bool {
    word >> number & 1 != 0
}

impl Cpu {
    const fn family(&self) -> u32 {
        match self.signature >> 8 & 0xf {
            0xf => 0xf + (self.signature >> 20 & 0xff),
            family => family,
        }
    }

    const fn model(&self) -> u32 {
        self.signature >> 4 & 0xf | self.signature >> 12 & 0xf0
    }

    const fn capable(&self, number: u32) -> bool {
        self.capabilities >> number & 1 != 0
    }

    /// What this CPU needs. Nothing is done for a model of an emulator that claims SVM and a family
    /// before AMD had nested paging (10h): nothing speculates there.
    pub const fn mitigations(&self) -> Mitigations {
        let family = self.family();
        let amd = matches!(self.vendor, Vendor::Amd);
        let intel = matches!(self.vendor, Vendor::Intel) && family == 6;
        if amd && family < 0x10 {
            return Mitigations::NONE;
        }
        let [ebx7, edx7] = self.leaf7;
        let has_ibrs = bit(edx7, 26) || bit(self.ext8, 14);
        let has_ibpb = bit(edx7, 26) || bit(self.ext8, 12);
        let has_stibp = bit(edx7, 27) || bit(self.ext8, 15);
        let enhanced = intel && self.capable(1);
        let automatic = amd && bit(self.ext21, 8);
        let (rdcl_no, mds_no) = (self.capable(0), self.capable(5));
        let bhi = intel && enhanced && !self.capable(20);
        // Cores that execute in order (Bonnell, Saltwell); all Atoms and Knights up to Goldmont Plus.
        let in_order = matches!(self.model(), 0x1c | 0x26 | 0x27 | 0x35 | 0x36);
        let atom = in_order
            || matches!(
                self.model(),
                0x37 | 0x4a | 0x4c | 0x4d | 0x57 | 0x5a | 0x5c | 0x5f | 0x7a | 0x85
            );
        // Silvermont's and Airmont's return stack holds half addresses, so SMEP does not help.
        let narrow = intel
            && matches!(
                self.model(),
                0x37 | 0x4a | 0x4c | 0x4d | 0x5a | 0x5d | 0x65 | 0x6e | 0x75
            );
        let gather = intel
            && matches!(self.model(), 0x55 | 0x6a | 0x6c | 0x7e | 0x8c..=0x8e | 0x9e | 0xa5..=0xa7);
        let mds = intel && !mds_no && !in_order && self.model() != 0x7a;
        let l1tf = intel && !rdcl_no && !atom;

        // IBRS stays set where that is enough; where not, it is written at each edge. AMD's bit 16 says
        // "always on".
        let ibrs = has_ibrs && !automatic;
        let once = enhanced || bit(self.ext8, 16);
        let mut always = 0;
        let mut inside = 0;
        if ibrs {
            let value = if has_stibp { IBRS | STIBP } else { IBRS };
            if once {
                always |= value
            } else {
                inside |= value
            }
        }
        if amd && has_stibp {
            always |= STIBP;
        }
        if bhi && bit(self.leaf7_2, 4) {
            always |= BHI_DIS_S;
        }
        let both = chosen(edge::IBRS, ibrs && !once)
            | chosen(edge::HISTORY, bhi && !bit(self.leaf7_2, 4))
            | chosen(edge::SWITCH, has_ibpb)
            // MDS; RFDS_CLEAR; FB_CLEAR, since drivers have device memory.
            | chosen(edge::VERW, intel && (mds && bit(edx7, 10) || self.capable(28) || self.capable(17)));
        // Branch type confusion (Zen 1 and 2), speculative return stack overflow (Zen 3 and 4).
        let confused =
            family < 0x19 && !bit(self.ext8, 29) || !bit(self.ext21, 29) && family == 0x19;
        Mitigations {
            guest: both
                | edge::FILL
                | chosen(edge::IBPB, amd && has_ibpb && confused)
                | chosen(edge::L1D, l1tf && bit(edx7, 28) && !self.capable(3)),
            user: both | chosen(edge::FILL, narrow || !bit(ebx7, 7)),
            inside: (always | inside) as u32,
            outside: always as u32,
            registers: [
                register(SPEC_CTRL, u64::MAX, always | inside, has_ibrs || has_stibp),
                register(EFER, 0, 1 << 21, automatic),
                // LFENCE waits for what is before it (Zen 3 and earlier decide here).
                register(
                    DE_CFG,
                    0,
                    1 << 1,
                    amd && family != 0x11 && !bit(self.ext21, 2),
                ),
                // TAA: no transactions, and none in CPUID.
                register(
                    TSX_CTRL,
                    0,
                    3,
                    intel && mds_no && !self.capable(8) && self.capable(7),
                ),
                // GDS and SRBDS: microcode's mitigations, which firmware may have switched off.
                register(
                    MCU_OPT_CTRL,
                    (self.capable(25) as u64) << 4 | bit(edx7, 9) as u64,
                    0,
                    intel && (self.capable(25) || bit(edx7, 9)),
                ),
            ],
            exposed: chosen(exposed::MELTDOWN, intel && !rdcl_no && !in_order)
                | chosen(exposed::TARGETS, !has_ibrs && !automatic)
                | chosen(exposed::BUFFERS, mds && !bit(edx7, 10))
                | chosen(exposed::L1TF, l1tf && !bit(edx7, 28) && !self.capable(3))
                | chosen(
                    exposed::GATHER,
                    gather && !self.capable(25) && !self.capable(26),
                )
                | chosen(
                    exposed::DIVIDER,
                    amd && matches!(family, 0x17 | 0x18) && !has_stibp,
                ),
        }
    }
}

const fn chosen(what: u32, needed: bool) -> u32 {
    if needed { what } else { 0 }
}

const fn register(number: u32, clear: u64, set: u64, needed: bool) -> (u32, u64, u64) {
    if needed {
        (number, clear, set)
    } else {
        (0, 0, 0)
    }
}

/// Bits as their names, for the boot log.
pub struct Words(pub u32, pub &'static [&'static str]);

impl fmt::Display for Words {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (_, name) in (0..).zip(self.1).filter(|(number, _)| bit(self.0, *number)) {
            write!(to, "{between}{name}")?;
            between = ", ";
        }
        to.write_str(if between.is_empty() { "nothing" } else { "" })
    }
}
