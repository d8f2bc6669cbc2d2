//! Layout of the virtual machine control block (AMD APM vol. 2, appendix B), as cells: the CPU
//! reads and writes it while a guest runs, the core in between.

use super::super::area::Area;
use crate::paging::DIRECT_MAP;
use core::cell::UnsafeCell;
use microvisor_abi::vcpu::Segment;

/// A field. Reads and writes are volatile, since VMRUN and VMSAVE change it behind the compiler.
#[repr(transparent)]
pub struct Field<T>(UnsafeCell<T>);

impl<T: Copy> Field<T> {
    /// Reads it.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the cell is valid, and only this CPU uses the VMCB now.
        unsafe { self.0.get().read_volatile() }
    }

    /// Writes it.
    #[inline(always)]
    pub fn set(&self, value: T) {
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(value) }
    }
}

/// Bits of the clean field: what the CPU may keep from the last run. Cleared when it changed.
pub mod clean {
    /// Intercepts and TSC offset.
    pub const INTERCEPTS: u32 = 1;
    /// Virtual interrupt fields.
    pub const VIRTUAL_INTERRUPT: u32 = 1 << 3;
    /// Nested root and PAT.
    pub const NESTED: u32 = 1 << 4;
    /// CR0, CR3, CR4, EFER.
    pub const CONTROL: u32 = 1 << 5;
    /// DR6, DR7.
    pub const DEBUG: u32 = 1 << 6;
    /// GDTR, IDTR.
    pub const TABLES: u32 = 1 << 7;
    /// CS, DS, SS, ES, CPL.
    pub const SEGMENTS: u32 = 1 << 8;
    /// CR2.
    pub const CR2: u32 = 1 << 9;
    /// All there are.
    pub const ALL: u32 = 0x1fff;
}

/// The control block. Field names follow appendix B.
#[repr(C)]
pub struct Vmcb {
    pub intercept_cr: Field<u32>,
    pub intercept_dr: Field<u32>,
    pub intercept_exceptions: Field<u32>,
    pub intercept3: Field<u32>,
    pub intercept4: Field<u32>,
    pub intercept5: Field<u32>,
    reserved0: [u8; 0x28],
    pub iopm_base: Field<u64>,
    pub msrpm_base: Field<u64>,
    pub tsc_offset: Field<u64>,
    /// Bits 0-31 the ASID, 32-39 TLB_CONTROL.
    pub asid: Field<u64>,
    /// V_TPR, V_IRQ (8), V_INTR_PRIO (16-19), V_IGN_TPR (20), V_INTR_MASKING (24), vector (32-39).
    pub virtual_interrupt: Field<u64>,
    /// Bit 0: interrupt shadow.
    pub interrupt_shadow: Field<u64>,
    pub exit_code: Field<u64>,
    pub exit_info1: Field<u64>,
    pub exit_info2: Field<u64>,
    pub exit_int_info: Field<u64>,
    pub nested_enable: Field<u64>,
    reserved1: [u8; 0x10],
    pub event_inj: Field<u64>,
    pub nested_root: Field<u64>,
    pub virtual_extensions: Field<u64>,
    pub clean: Field<u32>,
    reserved2: u32,
    pub next_rip: Field<u64>,
    /// Bytes 0: how many; 1-15: the instruction.
    pub fetched: Field<[u64; 2]>,
    reserved3: [u8; 0x320],
    pub es: Field<Segment>,
    pub cs: Field<Segment>,
    pub ss: Field<Segment>,
    pub ds: Field<Segment>,
    pub fs: Field<Segment>,
    pub gs: Field<Segment>,
    pub gdtr: Field<Segment>,
    pub ldtr: Field<Segment>,
    pub idtr: Field<Segment>,
    pub tr: Field<Segment>,
    reserved4: [u8; 0x2b],
    pub cpl: Field<u8>,
    reserved5: u32,
    pub efer: Field<u64>,
    reserved6: [u8; 0x70],
    pub cr4: Field<u64>,
    pub cr3: Field<u64>,
    pub cr0: Field<u64>,
    pub dr7: Field<u64>,
    pub dr6: Field<u64>,
    pub rflags: Field<u64>,
    pub rip: Field<u64>,
    reserved7: [u8; 0x58],
    pub rsp: Field<u64>,
    reserved8: [u8; 0x18],
    pub rax: Field<u64>,
    pub star: Field<u64>,
    pub lstar: Field<u64>,
    pub cstar: Field<u64>,
    pub sfmask: Field<u64>,
    pub kernel_gs_base: Field<u64>,
    pub sysenter_cs: Field<u64>,
    pub sysenter_esp: Field<u64>,
    pub sysenter_eip: Field<u64>,
    pub cr2: Field<u64>,
    reserved9: [u8; 0x20],
    pub pat: Field<u64>,
}

/// The offsets of appendix B.
macro_rules! at {
    ($($field:ident $offset:literal),*) => {
        const _: () = { $(assert!(core::mem::offset_of!(Vmcb, $field) == $offset);)* };
    };
}
at!(
    iopm_base 0x40, asid 0x58, exit_code 0x70, nested_enable 0x90, event_inj 0xa8, nested_root
    0xb0, clean 0xc0, fetched 0xd0, es 0x400, tr 0x490, cpl 0x4cb, efer 0x4d0, cr4 0x548, rip
    0x578, rsp 0x5d8, rax 0x5f8, cr2 0x640, pat 0x668
);

impl Vmcb {
    /// The VMCB of a vCPU.
    #[inline(always)]
    pub fn of(area: Area) -> &'static Vmcb {
        // SAFETY: the frame is the vendor's first in the area of a live vCPU (`Area::new`), and
        // holds nothing else. All fields are cells, so what the CPU writes breaks no promise.
        unsafe { &*((DIRECT_MAP + area.vendor()) as *const Vmcb) }
    }

    /// Marks parts as changed.
    #[inline(always)]
    pub fn dirty(&self, parts: u32) {
        self.clean.set(self.clean.get() & !parts);
    }
}
