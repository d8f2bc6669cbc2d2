//! The core's view of a state page. The VMM may write to it at any time, so there is never a
//! reference to it: every word is read once, and what was read is what is checked.

use crate::paging::DIRECT_MAP;
use microvisor_abi::thread::Registers;
use microvisor_abi::vcpu::{Exit, Segment, State};
use microvisor_objects::id::PhysAddr;

/// A state page.
#[derive(Clone, Copy)]
pub struct Page(*mut State);

/// Accessors of words: `read / write: path`, either of which may be missing.
macro_rules! words {
    ($($($get:ident)? / $($set:ident)?: $path:tt;)*) => { $(
        words!(@get $($get)? $path);
        words!(@set $($set)? $path);
    )* };
    (@get $path:tt) => {};
    (@set $path:tt) => {};
    (@get $get:ident [$($field:ident).+]) => {
        #[inline(always)]
        pub fn $get(self) -> u64 {
            // SAFETY: `new` says the pointer is that of a whole page; volatile, as others write.
            unsafe { (&raw const (*self.0).$($field).+).read_volatile() }
        }
    };
    (@set $set:ident [$($field:ident).+]) => {
        #[inline(always)]
        pub fn $set(self, value: u64) {
            // SAFETY: as above.
            unsafe { (&raw mut (*self.0).$($field).+).write_volatile(value) }
        }
    };
}

/// Accessors of segments.
macro_rules! segments {
    ($($get:ident $set:ident $field:ident;)*) => { $(
        #[inline(always)]
        pub fn $get(self) -> Segment {
            // SAFETY: as for words; the two words are read once each.
            unsafe {
                Segment {
                    packed: (&raw const (*self.0).$field.packed).read_volatile(),
                    base: (&raw const (*self.0).$field.base).read_volatile(),
                }
            }
        }
        #[inline(always)]
        pub fn $set(self, value: Segment) {
            // SAFETY: as above.
            unsafe {
                (&raw mut (*self.0).$field.packed).write_volatile(value.packed);
                (&raw mut (*self.0).$field.base).write_volatile(value.base);
            }
        }
    )* };
}

#[allow(missing_docs)] // named after the fields of `State`
impl Page {
    words! {
        rax / set_rax: [regs.rax]; rip / set_rip: [regs.rip]; rsp / set_rsp: [regs.rsp];
        rflags / set_rflags: [regs.rflags]; / set_exit_number: [exit];
        / set_instruction_length: [instruction_length];
        / set_instruction_count: [instruction_count]; valid / set_valid: [valid];
        modified / set_modified: [modified]; deadline / : [deadline]; wanted / : [wanted];
        inject / set_inject: [inject]; / set_delivering: [delivering];
        window / set_window: [window];
        interruptibility / set_interruptibility: [interruptibility]; cr0 / set_cr0: [cr0];
        cr3 / set_cr3: [cr3]; cr4 / set_cr4: [cr4]; efer / set_efer: [efer];
        star / set_star: [star]; lstar / set_lstar: [lstar]; cstar / set_cstar: [cstar];
        sfmask / set_sfmask: [sfmask]; kernel_gs_base / set_kernel_gs_base: [kernel_gs_base];
        sysenter_cs / set_sysenter_cs: [sysenter_cs];
        sysenter_esp / set_sysenter_esp: [sysenter_esp];
        sysenter_eip / set_sysenter_eip: [sysenter_eip]; dr6 / set_dr6: [dr6];
        dr7 / set_dr7: [dr7]; cr2 / set_cr2: [cr2]; cr8 / set_cr8: [cr8]; pat / set_pat: [pat];
        xcr0 / set_xcr0: [xcr0]; xss / set_xss: [xss];
        tsc_offset / set_tsc_offset: [tsc_offset]; tsc_aux / set_tsc_aux: [tsc_aux];
    }
    segments! {
        cs set_cs cs; ss set_ss ss; ds set_ds ds; es set_es es; fs set_fs fs; gs set_gs gs;
        ldtr set_ldtr ldtr; tr set_tr tr; gdtr set_gdtr gdtr; idtr set_idtr idtr;
    }

    /// The state page in this frame, which must be a vCPU's.
    #[inline(always)]
    pub fn new(frame: PhysAddr) -> Page {
        Page((DIRECT_MAP + frame.0) as *mut State)
    }

    /// Where the world switch loads and saves general registers.
    #[inline(always)]
    pub fn registers(self) -> *mut Registers {
        // SAFETY: in bounds of the page.
        unsafe { &raw mut (*self.0).regs }
    }

    #[inline(always)]
    pub fn set_exit(self, exit: Exit, info: [u64; 2]) {
        self.set_exit_number(exit as u64);
        // SAFETY: as for words.
        unsafe {
            (&raw mut (*self.0).info[0]).write_volatile(info[0]);
            (&raw mut (*self.0).info[1]).write_volatile(info[1]);
        }
    }

    /// An exit that no instruction caused.
    pub fn set_stop(self, exit: Exit, info: [u64; 2]) {
        self.set_exit(exit, info);
        self.set_instruction_length(0);
    }

    #[inline(always)]
    pub fn set_instruction_bytes(self, bytes: [u64; 2]) {
        // SAFETY: as for words.
        unsafe { (&raw mut (*self.0).instruction_bytes).write_volatile(bytes) }
    }

    #[inline(always)]
    pub fn dr(self) -> [u64; 4] {
        // SAFETY: as for words.
        unsafe { (&raw const (*self.0).dr).read_volatile() }
    }

    #[inline(always)]
    pub fn set_dr(self, dr: [u64; 4]) {
        // SAFETY: as for words.
        unsafe { (&raw mut (*self.0).dr).write_volatile(dr) }
    }
}
