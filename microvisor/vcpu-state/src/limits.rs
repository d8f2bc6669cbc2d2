//! What the host CPU lets a guest have. Computed once at boot from CPUID; the sanitisers compare
//! against it. Never widened later.

/// CPUID words that decide what a guest may use, as `cpuid` returned them on the boot CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpuid {
    /// Leaf 1, ECX.
    pub leaf1_ecx: u32,
    /// Leaf 1, EDX.
    pub leaf1_edx: u32,
    /// Leaf 7 subleaf 0, EBX.
    pub leaf7_ebx: u32,
    /// Leaf 7 subleaf 0, ECX.
    pub leaf7_ecx: u32,
    /// Leaf 7 subleaf 0, EDX.
    pub leaf7_edx: u32,
    /// Leaf D subleaf 0, EDX:EAX; 0 without XSAVE.
    pub xcr0: u64,
    /// Leaf 8000_0001, ECX.
    pub ext1_ecx: u32,
    /// Leaf 8000_0001, EDX.
    pub ext1_edx: u32,
    /// Leaf 8000_0008, EAX; 0 if absent.
    pub ext8_eax: u32,
}

/// Bits that a guest's registers may have set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// CR4.
    pub cr4: u64,
    /// EFER, LMA included, SVME not.
    pub efer: u64,
    /// XCR0; 0 when the CPU has no XSAVE.
    pub xcr0: u64,
    /// DR6: bits that are not fixed.
    pub dr6: u64,
    /// CR3.
    pub cr3: u64,
    /// Number of significant bits of a linear address: 48 or 57.
    pub linear_bits: u32,
}

/// Bits of XCR0 that the core switches: x87, SSE, AVX, MPX (2), AVX-512 (3), PKRU (Intel SDM
/// vol. 1, 13.1). AMX is left out: its tile data would make every vCPU area 8 KiB larger.
pub const XCR0_SWITCHED: u64 = 0x2ff;

/// `bit` of `register`, moved to `to`.
const fn moved(register: u32, bit: u32, to: u32) -> u64 {
    ((register >> bit & 1) as u64) << to
}

impl Limits {
    /// The limits of a CPU with these CPUID words. Bit positions: AMD APM vol. 2, 3.1.3 and 3.1.7;
    /// vol. 3, appendix E.
    pub const fn new(c: &Cpuid) -> Limits {
        let d = c.leaf1_edx;
        let xcr0 = c.xcr0 & XCR0_SWITCHED;
        let mut cr4 = moved(d, 1, 0) // VME
            | moved(d, 1, 1) // PVI
            | moved(d, 4, 2) // TSD
            | moved(d, 2, 3) // DE
            | moved(d, 3, 4) // PSE
            | moved(d, 6, 5) // PAE
            | moved(d, 7, 6) // MCE
            | moved(d, 13, 7) // PGE
            | 1 << 8 // PCE: RDPMC is intercepted all the same
            | moved(d, 24, 9) // OSFXSR
            | moved(d, 25, 10) // OSXMMEXCPT
            | moved(c.leaf7_ecx, 2, 11) // UMIP
            | moved(c.leaf7_ecx, 16, 12) // LA57
            | moved(c.leaf7_ebx, 0, 16) // FSGSBASE
            | moved(c.leaf1_ecx, 17, 17) // PCIDE
            | moved(c.leaf7_ebx, 7, 20) // SMEP
            | moved(c.leaf7_ebx, 20, 21); // SMAP
        if xcr0 != 0 {
            cr4 |= moved(c.leaf1_ecx, 26, 18); // OSXSAVE
        }
        if xcr0 & 1 << 9 != 0 {
            cr4 |= moved(c.leaf7_ecx, 3, 22); // PKE, whose register XSAVE switches
        }
        let efer = moved(c.ext1_edx, 11, 0) // SCE
            | moved(c.ext1_edx, 29, 8) // LME
            | moved(c.ext1_edx, 29, 10) // LMA
            | moved(c.ext1_edx, 20, 11) // NXE
            | moved(c.ext1_edx, 25, 14) // FFXSR
            | moved(c.ext1_ecx, 17, 15); // TCE
        let physical = match c.ext8_eax & 0xff {
            bits @ 32..=52 => bits,
            _ => 36,
        };
        Limits {
            cr4,
            efer,
            xcr0,
            // B0-B3, BD, BS, BT; RTM (bit 16) stays fixed at 1 as AMD has it.
            dr6: 0xe00f,
            cr3: (1 << physical) - 1,
            linear_bits: if c.leaf7_ecx >> 16 & 1 != 0 { 57 } else { 48 },
        }
    }
}
