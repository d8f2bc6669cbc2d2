//! The instructions of VMX (Intel SDM vol. 3, chapter 31) and the encodings of VMCS fields
//! (appendix B). `read` and `write` work on the VMCS that is current on this CPU.

use core::arch::asm;
use core::cell::Cell;

/// Encodings.
pub mod field {
    pub const VPID: u32 = 0;
    /// ES, CS, SS, DS, FS, GS, LDTR, TR, two apart; likewise the next three.
    pub const SELECTORS: u32 = 0x800;
    pub const LIMITS: u32 = 0x4800;
    pub const RIGHTS: u32 = 0x4814;
    pub const BASES: u32 = 0x6806;
    pub const HOST_CS: u32 = 0xc02;
    pub const HOST_SS: u32 = 0xc04;
    pub const HOST_TR: u32 = 0xc0c;
    pub const IO_BITMAP_A: u32 = 0x2000;
    pub const IO_BITMAP_B: u32 = 0x2002;
    pub const MSR_BITMAP: u32 = 0x2004;
    pub const TSC_OFFSET: u32 = 0x2010;
    pub const VIRTUAL_APIC: u32 = 0x2012;
    pub const EPT_POINTER: u32 = 0x201a;
    pub const ENCLS_BITMAP: u32 = 0x202e;
    pub const PHYSICAL: u32 = 0x2400;
    pub const LINK: u32 = 0x2800;
    pub const PAT: u32 = 0x2804;
    pub const EFER: u32 = 0x2806;
    pub const HOST_PAT: u32 = 0x2c00;
    pub const HOST_EFER: u32 = 0x2c02;
    pub const PIN: u32 = 0x4000;
    pub const PRIMARY: u32 = 0x4002;
    pub const EXCEPTIONS: u32 = 0x4004;
    pub const EXIT: u32 = 0x400c;
    pub const ENTRY: u32 = 0x4012;
    pub const ENTRY_INTERRUPTION: u32 = 0x4016;
    pub const ENTRY_ERROR_CODE: u32 = 0x4018;
    pub const ENTRY_LENGTH: u32 = 0x401a;
    pub const SECONDARY: u32 = 0x401e;
    pub const INSTRUCTION_ERROR: u32 = 0x4400;
    pub const REASON: u32 = 0x4402;
    pub const INTERRUPTION: u32 = 0x4404;
    pub const ERROR_CODE: u32 = 0x4406;
    pub const DELIVERING: u32 = 0x4408;
    pub const DELIVERING_ERROR_CODE: u32 = 0x440a;
    pub const LENGTH: u32 = 0x440c;
    pub const GDTR_LIMIT: u32 = 0x4810;
    pub const IDTR_LIMIT: u32 = 0x4812;
    pub const INTERRUPTIBILITY: u32 = 0x4824;
    pub const SYSENTER_CS: u32 = 0x482a;
    pub const TIMER: u32 = 0x482e;
    pub const CR0_MASK: u32 = 0x6000;
    pub const CR4_MASK: u32 = 0x6002;
    pub const CR0_SHADOW: u32 = 0x6004;
    pub const CR4_SHADOW: u32 = 0x6006;
    pub const QUALIFICATION: u32 = 0x6400;
    pub const CR0: u32 = 0x6800;
    pub const CR3: u32 = 0x6802;
    pub const CR4: u32 = 0x6804;
    pub const GDTR_BASE: u32 = 0x6816;
    pub const IDTR_BASE: u32 = 0x6818;
    pub const DR7: u32 = 0x681a;
    pub const RSP: u32 = 0x681c;
    pub const RIP: u32 = 0x681e;
    pub const RFLAGS: u32 = 0x6820;
    pub const PENDING_DEBUG: u32 = 0x6822;
    pub const SYSENTER_ESP: u32 = 0x6824;
    pub const SYSENTER_EIP: u32 = 0x6826;
    pub const HOST_CR0: u32 = 0x6c00;
    pub const HOST_CR3: u32 = 0x6c02;
    pub const HOST_CR4: u32 = 0x6c04;
    pub const HOST_GS_BASE: u32 = 0x6c08;
    pub const HOST_TR_BASE: u32 = 0x6c0a;
    pub const HOST_GDTR_BASE: u32 = 0x6c0c;
    pub const HOST_IDTR_BASE: u32 = 0x6c0e;
    pub const HOST_RSP: u32 = 0x6c14;
    pub const HOST_RIP: u32 = 0x6c16;
}

/// Reads a field; 0 if it does not exist.
#[inline(always)]
pub fn read(field: u32) -> u64 {
    let mut value = 0;
    // SAFETY: VMX is on wherever a vCPU exists; reading changes nothing, and fails harmlessly.
    unsafe {
        asm!("vmread {}, {}", inout(reg) value, in(reg) u64::from(field), options(nomem, nostack));
    }
    value
}

/// Writes a field. What it does to the host is up to the caller: host fields and addresses are
/// written by this module's `init` and `run` only, from values of the core's own.
#[inline(always)]
pub fn write(field: u32, value: u64) {
    // SAFETY: as above; a guest field has no effect beyond guest mode, where an entry checks it.
    unsafe {
        asm!("vmwrite {}, {}", in(reg) u64::from(field), in(reg) value, options(nostack));
    }
}

/// Writes a field whose value is remembered in `known`, if it differs.
#[inline(always)]
pub fn update(field: u32, known: &Cell<u64>, value: u64) {
    if known.get() != value {
        known.set(value);
        write(field, value);
    }
}

/// Turns VMX on, on this CPU. False if the CPU refuses.
///
/// # Safety
/// CR4.VMXE is set; `region` is the physical address of a frame with the revision in it, which is
/// the CPU's for ever.
pub unsafe fn on(region: u64) -> bool {
    let failed: u8;
    // SAFETY: see above.
    unsafe { asm!("vmxon [{}]", "setna {}", in(reg) &raw const region, out(reg_byte) failed) };
    failed == 0
}

/// Makes the VMCS at a physical address current.
///
/// # Safety
/// It is a VMCS, active on no other CPU, and stays in place until [`clear`].
pub unsafe fn load(vmcs: u64) {
    // SAFETY: see above.
    unsafe { asm!("vmptrld [{}]", in(reg) &raw const vmcs, options(nostack)) };
}

/// Writes a VMCS back to memory and lets go of it.
///
/// # Safety
/// Its memory is still the vCPU's.
pub unsafe fn clear(vmcs: u64) {
    // SAFETY: see above.
    unsafe { asm!("vmclear [{}]", in(reg) &raw const vmcs, options(nostack)) };
}

/// Forgets what this CPU cached of guest-physical addresses under an EPT pointer, and everything
/// that was combined with it.
pub fn invalidate_ept(pointer: u64) {
    let descriptor = [pointer, 0];
    // SAFETY: forgetting translations is always right; the kind (single space) exists.
    unsafe { asm!("invept {}, [{}]", in(reg) 1u64, in(reg) &descriptor, options(nostack)) };
}

/// Forgets what this CPU cached under every VPID.
pub fn invalidate_vpids() {
    let descriptor = [0u64; 2];
    // SAFETY: as above (all contexts).
    unsafe { asm!("invvpid {}, [{}]", in(reg) 2u64, in(reg) &descriptor, options(nostack)) };
}
