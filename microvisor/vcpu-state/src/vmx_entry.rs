//! Why an entry failed, in words: the number of a refused instruction (Intel SDM vol. 3, 31.4), and
//! for guest state that the CPU did not take the first check of 27.3.1 that it does not pass. Asked
//! after a failure only; nothing here lets an entry through or holds one back.

use crate::sanitise::{CR4_PAE, EFER_LMA, EFER_LME, RFLAGS_IF, RFLAGS_TF, RFLAGS_VM, cr0};
use crate::vmx_controls::ENTRY_LONG;

/// What VM-instruction error `number` says, as far as an entry can get it.
pub const fn refusal(number: u64) -> &'static str {
    match number {
        4 => "VMLAUNCH of a VMCS that was launched before",
        5 => "VMRESUME of a VMCS that was not launched",
        6 => "VMRESUME after VMXOFF",
        7 => "control fields that contradict each other",
        8 => "host state",
        26 => "blocked by MOV SS",
        _ => "no reason that an entry can have",
    }
}

/// A segment register as in the VMCS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// Selector.
    pub selector: u64,
    /// Limit.
    pub limit: u64,
    /// Access rights.
    pub rights: u64,
    /// Base.
    pub base: u64,
}

impl Register {
    const fn usable(&self) -> bool {
        self.rights >> 16 & 1 == 0
    }
    const fn kind(&self) -> u64 {
        self.rights & 0xf
    }
    const fn dpl(&self) -> u64 {
        self.rights >> 5 & 3
    }
    /// Reserved bits are clear, it is present, S is as it should be, G goes with the limit.
    const fn regular(&self, memory: bool) -> bool {
        let granular = self.rights >> 15 & 1 != 0;
        self.rights & !0xf0ff & 0xffff_ffff == 0
            && self.rights >> 7 & 1 != 0
            && (self.rights >> 4 & 1 != 0) == memory
            && if granular {
                self.limit & 0xfff == 0xfff
            } else {
                self.limit >> 20 == 0
            }
    }
}

/// What the checks look at, as in the VMCS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // named after the fields
pub struct State {
    pub cr0: u64,
    pub cr4: u64,
    pub efer: u64,
    pub entry: u64,
    pub rip: u64,
    pub rflags: u64,
    pub interruptibility: u64,
    pub pending_debug: u64,
    /// To be injected: interruption information.
    pub injection: u64,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub segments: [Register; 8],
    pub gdtr_base: u64,
    pub idtr_base: u64,
}

const ES: usize = 0;
const SS: usize = 2;

impl State {
    /// The first check that fails; addresses have `linear_bits`. `None`: none of those known here.
    pub fn failing(&self, linear_bits: u32) -> Option<&'static str> {
        let long = self.entry & u64::from(ENTRY_LONG) != 0;
        let canonical = |address: u64| {
            let unused = 64 - linear_bits;
            ((address << unused) as i64 >> unused) as u64 == address
        };
        let [_, cs, ss, .., ldtr, tr] = &self.segments;
        let virtual_8086 = self.rflags & RFLAGS_VM != 0;
        let paged = self.cr0 & cr0::PG != 0;
        let checks = [
            (paged && self.cr0 & cr0::PE == 0, "CR0: PG without PE"),
            (
                long && (!paged || self.cr4 & CR4_PAE == 0),
                "long mode without CR0.PG and CR4.PAE",
            ),
            (
                !long && self.cr4 >> 17 & 1 != 0,
                "CR4.PCIDE outside long mode",
            ),
            (
                (self.efer & EFER_LMA != 0) != long,
                "EFER.LMA is not the entry control's",
            ),
            (
                paged && (self.efer & EFER_LME != 0) != long,
                "EFER.LME is not LMA although paging is on",
            ),
            (virtual_8086 && long, "RFLAGS.VM in long mode"),
            (
                virtual_8086
                    && !self.segments[..6].iter().all(|s| {
                        s.base == s.selector << 4 && s.limit == 0xffff && s.rights == 0xf3
                    }),
                "a segment of virtual-8086 mode",
            ),
            (!cs.usable() || !cs.regular(true), "CS: access rights"),
            (!matches!(cs.kind(), 3 | 9 | 11 | 13 | 15), "CS: type"),
            (
                cs.rights & 0x6000 == 0x6000 && long,
                "CS: both 64 and 32 bits",
            ),
            (cs.base >> 32 != 0, "CS: base"),
            (
                !virtual_8086
                    && match cs.kind() {
                        3 => cs.dpl() != 0,
                        9 | 11 => cs.dpl() != ss.dpl(),
                        _ => cs.dpl() > ss.dpl(),
                    },
                "CS: privilege level, against SS",
            ),
            (
                !virtual_8086 && ss.dpl() != 0 && (cs.kind() == 3 || self.cr0 & cr0::PE == 0),
                "SS: privilege level",
            ),
            (ss.usable() && !matches!(ss.kind(), 3 | 7), "SS: type"),
            (
                self.data()
                    .any(|s| s.usable() && (s.rights & 1 == 0 || s.kind() & 0xa == 8)),
                "DS, ES, FS or GS: type",
            ),
            (
                self.data()
                    .chain([ss])
                    .any(|s| s.usable() && !s.regular(true)),
                "a data segment's access rights",
            ),
            (
                [ES, SS, 3]
                    .iter()
                    .any(|&i| self.segments[i].usable() && self.segments[i].base >> 32 != 0),
                "base of ES, SS or DS",
            ),
            (
                !canonical(self.segments[4].base) || !canonical(self.segments[5].base),
                "base of FS or GS",
            ),
            (
                ldtr.usable()
                    && (ldtr.kind() != 2 || !ldtr.regular(false) || !canonical(ldtr.base)),
                "LDTR",
            ),
            (
                !tr.usable()
                    || !tr.regular(false)
                    || !canonical(tr.base)
                    || !(tr.kind() == 11 || tr.kind() == 3 && !long),
                "TR",
            ),
            (
                !canonical(self.gdtr_base) || !canonical(self.idtr_base),
                "base of GDTR or IDTR",
            ),
            (
                self.rip >> 32 != 0 && !(long && cs.rights >> 13 & 1 != 0),
                "RIP beyond 4 GiB outside 64-bit code",
            ),
            (
                self.blocks_what_is_injected(),
                "an event that is blocked is injected",
            ),
            (
                self.interruptibility & 3 == 3
                    || self.interruptibility & 1 != 0 && self.rflags & RFLAGS_IF == 0,
                "interruptibility: STI",
            ),
            (
                self.interruptibility & 3 != 0
                    && (self.rflags & RFLAGS_TF != 0) != (self.pending_debug >> 14 & 1 != 0),
                "pending debug exceptions: single step",
            ),
        ];
        checks
            .iter()
            .find(|(fails, _)| *fails)
            .map(|(_, check)| *check)
    }

    fn data(&self) -> impl Iterator<Item = &Register> {
        [ES, 3, 4, 5].into_iter().map(|index| &self.segments[index])
    }

    const fn blocks_what_is_injected(&self) -> bool {
        let (valid, kind) = (self.injection >> 31 & 1 != 0, self.injection >> 8 & 7);
        valid
            && match kind {
                0 => self.interruptibility & 3 != 0 || self.rflags & RFLAGS_IF == 0,
                2 => self.interruptibility & 0xa != 0,
                _ => false,
            }
    }
}
