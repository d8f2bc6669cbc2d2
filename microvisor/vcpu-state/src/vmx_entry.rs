//! Why an entry failed, in words: the number of a refused instruction (Intel SDM vol. 3, 31.4), and
//! for guest state that the CPU did not take the first check of 27.3.1 that it does not pass,
//! as far as a VMM's words can make it fail. Asked
//! after a failure only; nothing here lets an entry through or holds one back.

use crate::sanitise::{CR4_PAE, EFER_LMA, EFER_LME, RFLAGS_IF, RFLAGS_VM, cr0};
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
    /// To be injected: interruption information.
    pub injection: u64,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub segments: [Register; 8],
}

const ES: usize = 0;

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
        let pe = self.cr0 & cr0::PE != 0;
        let alone = long && (!paged || self.cr4 & CR4_PAE == 0);
        let pcid = !long && self.cr4 >> 17 & 1 != 0;
        let active = (self.efer & EFER_LMA != 0) != long;
        let enabled = paged && (self.efer & EFER_LME != 0) != long;
        let real = |s: &Register| (s.base, s.limit, s.rights) == (s.selector << 4, 0xffff, 0xf3);
        let segments_8086 = virtual_8086 && !self.segments[..6].iter().all(real);
        let cs_level = match cs.kind() {
            3 => cs.dpl() != 0,
            9 | 11 => cs.dpl() != ss.dpl(),
            _ => cs.dpl() > ss.dpl(),
        };
        let ss_level = ss.dpl() != 0 && (cs.kind() == 3 || !pe);
        let untyped = |s: &Register| s.usable() && (s.rights & 1 == 0 || s.kind() & 0xa == 8);
        let irregular = |s: &Register| s.usable() && !s.regular(true);
        let base = !canonical(self.segments[4].base) || !canonical(self.segments[5].base);
        let local = ldtr.kind() == 2 && ldtr.regular(false) && canonical(ldtr.base);
        let busy = tr.kind() == 11 || tr.kind() == 3 && !long;
        let task = tr.usable() && busy && tr.regular(false) && canonical(tr.base);
        let far = self.rip >> 32 != 0 && !(long && cs.rights >> 13 & 1 != 0);
        let held = self.interruptibility;
        let sti = held & 3 == 3 || held & 1 != 0 && self.rflags & RFLAGS_IF == 0;
        let data = [ES, 3, 4, 5].map(|index| &self.segments[index]);
        let checks = [
            (paged && !pe, "CR0: PG without PE"),
            (alone, "long mode without CR0.PG and CR4.PAE"),
            (pcid, "CR4.PCIDE outside long mode"),
            (active, "EFER.LMA is not the entry control's"),
            (enabled, "EFER.LME is not LMA although paging is on"),
            (virtual_8086 && long, "RFLAGS.VM in long mode"),
            (segments_8086, "a segment of virtual-8086 mode"),
            (!cs.usable() || irregular(cs), "CS: access rights"),
            (!matches!(cs.kind(), 3 | 9 | 11 | 13 | 15), "CS: type"),
            (
                cs.rights & 0x6000 == 0x6000 && long,
                "CS: both 64 and 32 bits",
            ),
            (cs.base >> 32 != 0, "CS: base"),
            (!virtual_8086 && cs_level, "CS: privilege level, against SS"),
            (!virtual_8086 && ss_level, "SS: privilege level"),
            (ss.usable() && !matches!(ss.kind(), 3 | 7), "SS: type"),
            (data.into_iter().any(untyped), "DS, ES, FS or GS: type"),
            (irregular(ss), "SS: access rights"),
            (
                data.into_iter().any(irregular),
                "a data segment's access rights",
            ),
            (base, "base of FS or GS"),
            (ldtr.usable() && !local, "LDTR"),
            (!task, "TR"),
            (far, "RIP beyond 4 GiB outside 64-bit code"),
            (
                self.blocks_what_is_injected(),
                "what is injected is blocked",
            ),
            (sti, "interruptibility: STI"),
        ];
        let failing = checks.iter().find(|(fails, _)| *fails);
        failing.map(|(_, check)| *check)
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
