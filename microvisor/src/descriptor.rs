//! Segment descriptors, task state and I/O port bitmap of one CPU.

use microvisor_objects::thread::{PORT_RANGES, PortRange};
use x86_64::instructions::tables::{lgdt, load_tss};
use x86_64::registers::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::SegmentSelector;
use x86_64::{PrivilegeLevel, VirtAddr};

/// Kernel code; `SYSCALL` takes the stack segment right after it.
pub const KERNEL_CODE: u16 = 0x08;
/// Kernel data.
pub const KERNEL_DATA: u16 = 0x10;
/// User data, with the requested privilege level.
pub const USER_DATA: u16 = 0x18 | 3;
/// User code, likewise: right after user data, as `SYSRET` wants it.
pub const USER_CODE: u16 = 0x20 | 3;
/// Task state.
pub const TSS: u16 = 0x28;

const PORT_BYTES: usize = 8192;
/// Offset of the bitmap in the TSS.
const BITMAP: u16 = 104;
/// A bitmap offset beyond the TSS's limit: no port is allowed.
const NO_BITMAP: u16 = if cfg!(control = "ports") {
    BITMAP
} else {
    0xffff
};

/// A 64-bit TSS (Intel SDM vol. 3, figure 9-11) with a whole port bitmap.
#[repr(C, packed(4))]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    bitmap_offset: u16,
    bitmap: [u8; PORT_BYTES],
    /// The byte of ones that must follow the bitmap.
    end: u8,
}

/// GDT and TSS.
#[repr(C, align(16))]
pub struct Descriptors {
    gdt: [u64; 8],
    tss: Tss,
    /// What the bitmap has open at present.
    open: [PortRange; PORT_RANGES],
    /// The task register's limit leaves the bitmap out: no port is allowed.
    cut: bool,
}

impl Descriptors {
    /// Fills the tables in. `ist` are the stacks for NMI and #DB, double fault, machine check.
    pub fn init(&mut self, stack: u64, ist: [u64; 3]) {
        let base = &raw const self.tss as u64;
        let limit = size_of::<Tss>() as u64 - 1;
        self.gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            limit & 0xffff
                | (base & 0xff_ffff) << 16
                | 0x89 << 40
                | (limit >> 16 & 0xf) << 48
                | (base >> 24 & 0xff) << 56,
            base >> 32,
            0,
        ];
        self.tss.rsp[0] = stack;
        self.tss.ist[0] = ist[0];
        self.tss.ist[1] = ist[1];
        self.tss.ist[2] = ist[2];
        self.tss.bitmap_offset = NO_BITMAP;
        self.tss.bitmap = [if cfg!(control = "ports") { 0 } else { 0xff }; PORT_BYTES];
        self.tss.end = 0xff;
        self.open = [PortRange::default(); PORT_RANGES];
    }

    /// Loads GDT, segments and task register. Clears the GS base.
    ///
    /// # Safety
    /// `self` must stay where it is for ever.
    pub unsafe fn load(&mut self) {
        let selector = |value: u16| SegmentSelector::new(value >> 3, PrivilegeLevel::Ring0);
        // SAFETY: the descriptors are valid for the running mode and stay in place.
        unsafe {
            lgdt(&DescriptorTablePointer {
                limit: size_of_val(&self.gdt) as u16 - 1,
                base: VirtAddr::new_truncate(self.gdt.as_ptr() as u64),
            });
            CS::set_reg(selector(KERNEL_CODE));
            SS::set_reg(selector(KERNEL_DATA));
            let null = SegmentSelector(0);
            DS::set_reg(null);
            ES::set_reg(null);
            FS::set_reg(null);
            GS::set_reg(null);
            self.load_task();
            // After a reset LDTR covers 64 KiB from linear address 0, where a component may map what
            // it likes: descriptors of its own, call gates among them.
            #[cfg(not(control = "ldt"))]
            core::arch::asm!("lldt {:x}", in(reg) 0, options(nostack, preserves_flags));
        }
    }

    /// Loads the task register. Only `load` makes the tables known to a CPU: until then nothing runs
    /// that calls this.
    #[cold]
    fn load_task(&mut self) {
        // The descriptor may be marked busy if this CPU loaded it before.
        self.gdt[usize::from(TSS >> 3)] &= !(2 << 40);
        // SAFETY: the GDT is loaded and has a valid descriptor there; what it names stays in place.
        unsafe { load_tss(SegmentSelector::new(TSS >> 3, PrivilegeLevel::Ring0)) };
        self.cut = false;
    }

    /// Address of the task state.
    pub fn task(&self) -> u64 {
        &raw const self.tss as u64
    }

    /// An exit of VMX has set the task register's limit to that of a TSS without a bitmap (Intel SDM
    /// vol. 3, 28.5.2): loads it anew if the current thread has ports, or once one is to have.
    #[inline(always)]
    pub fn left_guest(&mut self) {
        self.cut = true;
        if self.tss.bitmap_offset == BITMAP {
            self.load_task();
        }
    }

    /// Opens exactly these port ranges to user mode.
    #[inline]
    pub fn set_ports(&mut self, ranges: &[PortRange; PORT_RANGES]) {
        if ranges.iter().fold(0, |any, range| any | range.count) == 0 {
            self.tss.bitmap_offset = NO_BITMAP;
            return;
        }
        if self.open != *ranges {
            for range in self.open {
                self.fill(range, true);
            }
            for &range in ranges {
                self.fill(range, false);
            }
            self.open = *ranges;
        }
        self.tss.bitmap_offset = BITMAP;
        if self.cut {
            self.load_task();
        }
    }

    fn fill(&mut self, range: PortRange, deny: bool) {
        let first = u32::from(range.first);
        for port in first..first + u32::from(range.count) {
            let bit = 1 << (port & 7);
            if let Some(byte) = self.tss.bitmap.get_mut(port as usize >> 3) {
                if deny { *byte |= bit } else { *byte &= !bit }
            }
        }
    }
}
