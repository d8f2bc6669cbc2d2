//! Xen's CPUID leaves (`public/arch-x86/cpuid.h`).

use crate::domain::Domain;
use crate::version::VERSION;

/// First leaf.
const BASE: u32 = 0x4000_0000;
/// Past the leaves that belong to hypervisors' first window.
const END: u32 = 0x4000_0100;
/// `XEN_CPUID_MAX_NUM_LEAVES`.
const LAST: u32 = 5;

/// `XEN_CPUID_TSC_MODE_NEVER_EMULATE`: Linux takes the TSC as its clock on it.
const TSC_NEVER_EMULATED: u32 = 2;

/// Leaf 4, EAX: IOMMU_MAPPINGS, VCPU_ID_PRESENT, DOMID_PRESENT, UPCALL_VECTOR.
const HVM_FEATURES: u32 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6;

impl Domain {
    /// EAX, EBX, ECX and EDX of a leaf in `0x40000000..=0x400000ff`; `None` outside.
    #[must_use]
    pub fn cpuid(&self, vcpu: u32, leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
        if !(BASE..END).contains(&leaf) {
            return None;
        }
        let config = &self.config;
        Some(match (leaf - BASE, subleaf) {
            // "XenVMMXenVMM".
            (0, _) => [BASE + LAST, 0x566e_6558, 0x6558_4d4d, 0x4d4d_566e],
            (1, _) => [VERSION, 0, 0, 0],
            // One hypercall page, by this MSR.
            (2, _) => [1, BASE, 0, 0],
            (3, 0) => {
                let features = u32::from(config.tsc.stable) << 1 | u32::from(config.rdtscp) << 2;
                // The last word counts migrations.
                [features, TSC_NEVER_EMULATED, config.tsc.khz, 1]
            }
            (3, 1) => {
                let shift = i32::from(self.scale.shift) as u32;
                [0, 0, self.scale.multiplier, shift]
            }
            (3, 2) => [config.tsc.khz, 0, 0, 0],
            (4, 0) => [HVM_FEATURES, vcpu, u32::from(config.domid), 0],
            _ => [0; 4],
        })
    }
}
