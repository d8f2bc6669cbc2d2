//! The guest's CPUID: a pure function of what the host's says and how the guest is configured.
//!
//! Features pass by allow-lists: what is not named here a guest does not see. Hidden on purpose:
//! virtualisation, MONITOR, the PMU, 5-level paging, protection keys, XSS components, and the
//! speculation-control MSRs, which nothing switches yet. Leaves 4000_0000 and up are Xen's and
//! belong to `xen-abi`. Bit names and leaf layouts: Intel SDM vol. 2, CPUID; AMD APM vol. 3,
//! appendix E.

use alloc::vec::Vec;

use crate::mode::CR4_OSXSAVE;

/// EAX, EBX, ECX, EDX.
pub type Leaf = [u32; 4];

/// Where a guest differs from the host.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// x2APIC id of this vCPU.
    pub apic_id: u32,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Low bits of an APIC id that do not tell cores apart: 1 when ids are twice the vCPU's
    /// number, as Xen makes them.
    pub thread_bits: u32,
    /// The guest's TSC is invariant.
    pub invariant_tsc: bool,
}

/// What some leaves depend on at run time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// CR4.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
}

/// What a leaf needs in its [`Context`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// `cr4`.
    Cr4,
    /// `xcr0`.
    Xcr0,
}

const BASIC_MAX: u32 = 0xd;
const EXTENDED: u32 = 0x8000_0000;
const EXTENDED_MAX: u32 = 0x8000_001e;
/// Subleaves of a cache leaf that are looked at.
const CACHES_MAX: u32 = 8;
/// XCR0 bits that guests may have: x87, SSE, AVX, AVX-512 (SDM vol. 1, 13.1).
const XCR0_ALLOWED: u64 = 0xe7;
/// Bytes of the legacy region and header of an XSAVE image.
const XSAVE_BASE: u32 = 576;

const LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_XSAVE: u32 = 1 << 26;
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26,
]);
const LEAF1_EDX_HTT: u32 = 1 << 28;
const LEAF7_EBX: u32 = bits(&[
    0, 3, 5, 7, 8, 9, 10, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31,
]);
const LEAF7_EBX_AVX512: u32 = bits(&[16, 17, 21, 28, 30, 31]);
const LEAF7_ECX: u32 = bits(&[1, 2, 6, 8, 9, 10, 11, 12, 14, 22]);
const LEAF7_ECX_AVX512: u32 = bits(&[1, 6, 11, 12, 14]);
const LEAF7_EDX: u32 = bits(&[4]);
const EXT1_ECX: u32 = bits(&[0, 4, 5, 6, 7, 8, 11, 16, 21, 22]);
const EXT1_EDX_OWN: u32 = bits(&[11, 20, 22, 25, 26, 27, 29, 30, 31]);
/// Bits of leaf 1's EDX that AMD repeats.
const EXT1_EDX_REPEATED: u32 = 0x0183_f3ff;
const EXT8_EBX: u32 = bits(&[0, 2]);

const fn bits(list: &[u32]) -> u32 {
    let mut word = 0;
    let mut index = 0;
    while index < list.len() {
        word |= 1 << list[index];
        index += 1;
    }
    word
}

/// The vendor, for leaves and MSRs that only one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AuthenticAMD and HygonGenuine.
    Amd,
    /// Everything else.
    Intel,
}

/// One component of the XSAVE image.
#[derive(Clone, Copy, Debug, Default)]
struct Component {
    size: u32,
    offset: u32,
    flags: u32,
}

/// A vCPU's CPUID.
#[derive(Clone, Debug)]
pub struct Cpuid {
    basic: Vec<Leaf>,
    extended: Vec<Leaf>,
    caches: Vec<Leaf>,
    caches_amd: Vec<Leaf>,
    components: [Component; 8],
    xcr0: u64,
    config: Config,
    vendor: Vendor,
}

impl Cpuid {
    /// Builds the table; `host` executes CPUID (leaf, subleaf).
    pub fn new(host: impl Fn(u32, u32) -> Leaf, config: Config) -> Cpuid {
        let [host_max, vendor_b, ..] = host(0, 0);
        // "Auth", "Hygo"
        let vendor = if matches!(vendor_b, 0x6874_7541 | 0x6f67_7948) {
            Vendor::Amd
        } else {
            Vendor::Intel
        };
        let mut table = Cpuid {
            basic: Vec::new(),
            extended: Vec::new(),
            caches: Vec::new(),
            caches_amd: Vec::new(),
            components: [Component::default(); 8],
            xcr0: 0,
            config,
            vendor,
        };
        table.read_xsave(&host, host_max);
        for leaf in 0..=BASIC_MAX {
            let value = if leaf <= host_max {
                host(leaf, 0)
            } else {
                [0; 4]
            };
            let value = table.basic_leaf(leaf, value);
            table.basic.push(value);
        }
        let host_max_extended = host(EXTENDED, 0)[0];
        let topology = vendor == Vendor::Amd
            && host_max_extended >= EXTENDED_MAX
            && host(EXTENDED + 1, 0)[2] & 1 << 22 != 0;
        let max = match topology {
            true => EXTENDED_MAX,
            false => host_max_extended.clamp(EXTENDED + 8, EXTENDED + 0x1a),
        };
        for leaf in EXTENDED..=max {
            let value = if leaf <= host_max_extended {
                host(leaf, 0)
            } else {
                [0; 4]
            };
            let value = table.extended_leaf(leaf, value, max, topology);
            table.extended.push(value);
        }
        if vendor == Vendor::Intel && host_max >= 4 {
            table.caches = caches(|sub| host(4, sub), 0xffff_c000);
        }
        if topology {
            table.caches_amd = caches(|sub| host(EXTENDED + 0x1d, sub), 0x03ff_c000);
        }
        table
    }

    fn read_xsave(&mut self, host: &impl Fn(u32, u32) -> Leaf, host_max: u32) {
        if host_max < 0xd || host(1, 0)[2] & LEAF1_ECX_XSAVE == 0 {
            return;
        }
        let [low, _, _, high] = host(0xd, 0);
        self.xcr0 = (u64::from(high) << 32 | u64::from(low)) & XCR0_ALLOWED;
        if self.xcr0 & 0xe0 != 0xe0 {
            self.xcr0 &= !0xe0;
        }
        for index in 2..8u32 {
            if self.xcr0 & 1 << index != 0 {
                let [size, offset, flags, _] = host(0xd, index);
                self.components[index as usize] = Component {
                    size,
                    offset,
                    flags,
                };
            }
        }
    }

    fn basic_leaf(&self, leaf: u32, host: Leaf) -> Leaf {
        let [a, b, c, d] = host;
        let no_avx512 = self.xcr0 & 0xe0 == 0;
        match leaf {
            0 => [BASIC_MAX, b, c, d],
            1 => {
                let mut ecx = c & LEAF1_ECX
                    | LEAF1_ECX_X2APIC
                    | LEAF1_ECX_TSC_DEADLINE
                    | LEAF1_ECX_HYPERVISOR;
                if self.xcr0 == 0 {
                    // XSAVE and what needs it: FMA, AVX, F16C.
                    ecx &= !(LEAF1_ECX_XSAVE | 1 << 12 | 1 << 28 | 1 << 29);
                }
                let vcpus = self.config.vcpus.min(0xff);
                // Addressable ids in the package.
                let ids = (self.config.vcpus << self.config.thread_bits).min(0xff);
                let ebx = b & 0xffff | ids << 16 | (self.config.apic_id & 0xff) << 24;
                let htt = if vcpus > 1 { LEAF1_EDX_HTT } else { 0 };
                [a, ebx, ecx, d & LEAF1_EDX | htt]
            }
            // Cache descriptors, TLBs.
            2 => host,
            // The APIC timer runs always (ARAT).
            6 => [1 << 2, 0, 0, 0],
            7 => {
                let mut value = [0, b & LEAF7_EBX, c & LEAF7_ECX, d & LEAF7_EDX];
                if no_avx512 {
                    value[1] &= !LEAF7_EBX_AVX512;
                    value[2] &= !LEAF7_ECX_AVX512;
                }
                if self.xcr0 & 4 == 0 {
                    value[1] &= !(1 << 5);
                    value[2] &= !bits(&[9, 10]);
                }
                value
            }
            _ => [0; 4],
        }
    }

    fn extended_leaf(&self, leaf: u32, host: Leaf, max: u32, topology: bool) -> Leaf {
        let [a, b, c, d] = host;
        let amd = self.vendor == Vendor::Amd;
        let ids = self.id_bits();
        match leaf - EXTENDED {
            0 => [max, b, c, d],
            1 => {
                let mut ecx = c & EXT1_ECX;
                if !topology {
                    ecx &= !(1 << 22);
                }
                if self.xcr0 & 4 == 0 {
                    ecx &= !bits(&[11, 16]);
                }
                let repeated = if amd {
                    d & EXT1_EDX_REPEATED & LEAF1_EDX
                } else {
                    0
                };
                // CMP_LEGACY: the logical count of leaf 1 counts cores.
                if amd && self.config.vcpus > 1 {
                    ecx |= 1 << 1;
                }
                [a, b & 0xf000_0000, ecx, d & EXT1_EDX_OWN | repeated]
            }
            2..=6 => host,
            7 => [
                0,
                0,
                0,
                if self.config.invariant_tsc {
                    d & 1 << 8
                } else {
                    0
                },
            ],
            8 => {
                // No 5-level paging, so no more than 48 bits.
                let linear = (a >> 8 & 0xff).min(48);
                let ecx = if amd {
                    (ids << 12) | (self.config.vcpus.clamp(1, 256) - 1)
                } else {
                    0
                };
                [
                    a & 0xff | linear << 8,
                    if amd { b & EXT8_EBX } else { 0 },
                    ecx,
                    0,
                ]
            }
            0x19 | 0x1a => host,
            0x1e => {
                let core = self.config.apic_id >> self.config.thread_bits;
                [self.config.apic_id, core & 0xff, 0, 0]
            }
            _ => [0; 4],
        }
    }

    /// Bits of an APIC id within the package.
    fn id_bits(&self) -> u32 {
        let cores = u32::BITS - self.config.vcpus.saturating_sub(1).leading_zeros();
        cores + self.config.thread_bits
    }

    /// XCR0 bits that the guest may set.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// The CPU's vendor.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// CPU family as leaf 1 has it.
    pub fn family(&self) -> u32 {
        let signature = self.basic.get(1).map_or(0, |leaf| leaf[0]);
        let family = signature >> 8 & 0xf;
        if family == 0xf {
            family + (signature >> 20 & 0xff)
        } else {
            family
        }
    }

    /// True if the guest has this bit of `8000_0001`'s EDX.
    pub fn has_extended(&self, bit: u32) -> bool {
        self.extended
            .get(1)
            .is_some_and(|leaf| leaf[3] >> bit & 1 != 0)
    }

    /// Which part of the [`Context`] a leaf's answer depends on.
    #[inline]
    pub fn needs(leaf: u32) -> Needs {
        match leaf {
            1 => Needs::Cr4,
            0xd => Needs::Xcr0,
            _ => Needs::Nothing,
        }
    }

    /// The answer. Leaves beyond the maxima give the highest basic leaf on Intel and zeros on
    /// AMD; zeros are right for both, because that leaf is 0xD, whose values would only confuse.
    #[inline]
    pub fn get(&self, leaf: u32, subleaf: u32, context: &Context) -> Leaf {
        match leaf {
            1 => {
                let mut value = self.basic.get(1).copied().unwrap_or_default();
                if context.cr4 & CR4_OSXSAVE != 0 && value[2] & LEAF1_ECX_XSAVE != 0 {
                    value[2] |= LEAF1_ECX_OSXSAVE;
                }
                value
            }
            4 => indexed(&self.caches, subleaf),
            7 if subleaf != 0 => [0; 4],
            0xb => self.topology(subleaf),
            0xd => self.xsave(subleaf, context.xcr0),
            0x8000_001d => indexed(&self.caches_amd, subleaf),
            _ => {
                let table = if leaf & EXTENDED != 0 {
                    &self.extended
                } else {
                    &self.basic
                };
                let index = (leaf & !EXTENDED) as usize;
                table.get(index).copied().unwrap_or_default()
            }
        }
    }

    fn topology(&self, subleaf: u32) -> Leaf {
        let id = self.config.apic_id;
        match subleaf {
            // Thread level: one per core.
            0 => [self.config.thread_bits, 1, 1 << 8, id],
            // Core level.
            1 => [self.id_bits(), self.config.vcpus, 2 << 8 | 1, id],
            _ => [0, 0, subleaf & 0xff, id],
        }
    }

    fn xsave(&self, subleaf: u32, xcr0: u64) -> Leaf {
        if self.xcr0 == 0 {
            return [0; 4];
        }
        let enabled = |set: u64| {
            (2..8usize)
                .filter(move |index| set & 1 << index != 0)
                .filter_map(|index| self.components.get(index))
        };
        let standard = |set: u64| {
            enabled(set)
                .map(|component| component.offset.saturating_add(component.size))
                .fold(XSAVE_BASE, u32::max)
        };
        match subleaf {
            0 => [
                self.xcr0 as u32,
                standard(xcr0 & self.xcr0),
                standard(self.xcr0),
                (self.xcr0 >> 32) as u32,
            ],
            1 => {
                let compact = enabled(xcr0 & self.xcr0).fold(XSAVE_BASE, |at, component| {
                    let start = if component.flags & 2 != 0 {
                        at.next_multiple_of(64)
                    } else {
                        at
                    };
                    start.saturating_add(component.size)
                });
                // XSAVEOPT alone: no component needs compaction.
                [1, compact, 0, 0]
            }
            2..8 => self
                .components
                .get(subleaf as usize)
                .map_or([0; 4], |component| {
                    [component.size, component.offset, component.flags, 0]
                }),
            _ => [0; 4],
        }
    }
}

/// Cache subleaves until the empty one, with the sharing fields of `clear` removed: every cache
/// belongs to one vCPU as far as the guest can tell.
fn caches(host: impl Fn(u32) -> Leaf, clear: u32) -> Vec<Leaf> {
    (0..CACHES_MAX)
        .map(host)
        .take_while(|leaf| leaf[0] & 0x1f != 0)
        .map(|[a, b, c, d]| [a & !clear, b, c, d])
        .collect()
}

fn indexed(table: &[Leaf], subleaf: u32) -> Leaf {
    table.get(subleaf as usize).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
