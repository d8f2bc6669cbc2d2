//! What the VMM knows about a domain when it creates it.

use alloc::vec::Vec;

/// One entry of the guest's memory map, as `XENMEM_memory_map` gives it: an E820 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First guest-physical address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// E820 type: 1 RAM, 2 reserved, 3 ACPI data, 4 ACPI NVS.
    pub kind: u32,
}

/// How the guest's TSC behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscMode {
    /// Frequency in kHz.
    pub khz: u32,
    /// Whether it is invariant and synchronised over all CPUs: then pvclock carries the stable
    /// bit and the guest may use the TSC itself as its clock.
    pub stable: bool,
}

/// A new domain.
#[derive(Clone, Debug)]
pub struct Config {
    /// The domain's id: a name, not a right.
    pub domid: u16,
    /// Number of vCPUs, 1..=[`crate::MAX_VCPUS`].
    pub vcpus: u32,
    /// RAM pages that it has.
    pub pages: u64,
    /// Most pages that it may have.
    pub max_pages: u64,
    /// Highest guest frame number that is RAM.
    pub max_gfn: u64,
    /// Bits of a guest-physical address.
    pub physical_address_bits: u8,
    /// The memory map.
    pub memory_map: Vec<MapEntry>,
    /// Most grant-table frames, 1..=64; the VMM donates a special frame for each.
    pub grant_frames: u32,
    /// Highest version of the grant table that the guest may choose, 1 or 2. For 2 the VMM donates a
    /// special frame for 8 grant-table frames or less.
    pub max_grant_version: u32,
    /// The TSC.
    pub tsc: TscMode,
    /// Guest TSC at which its system time is zero.
    pub tsc_at_start: u64,
    /// Wall-clock time, in ns since 1970 UTC, at system time zero.
    pub wallclock_at_start: u64,
    /// Guest frame of the xenstore ring, 0 if there is none.
    pub store_gfn: u64,
    /// Guest frame of the console ring, 0 if there is none.
    pub console_gfn: u64,
    /// Whether the guest has an interrupt controller that `HVM_PARAM_CALLBACK_IRQ` may name a line
    /// of (an HVM guest's). Xen's PVH guests have not; line callbacks are then ignored.
    pub callback_lines: bool,
    /// Whether the guest's CPUs have RDTSCP.
    pub rdtscp: bool,
    /// The domain's UUID (`XENVER_guest_handle`).
    pub uuid: [u8; 16],
}

/// Why a [`Config`] cannot be a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// No vCPU or too many.
    Vcpus,
    /// No grant frame or too many.
    GrantFrames,
    /// A version of the grant table that there is not.
    GrantVersion,
    /// A TSC frequency of zero or one that pvclock cannot express.
    Tsc,
    /// The special frames are not reachable through the memory given.
    SpecialFrames,
}
