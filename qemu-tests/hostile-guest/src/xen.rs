//! Hypercalls, by number, as they come.

use core::arch::asm;
use core::sync::atomic::AtomicU32;

use guest_kit::cpu;
use hostile_calls::operations::number;

/// `XEN_HVM_CPUID_DOMID_PRESENT`, in EAX of leaf 4 (public/arch-x86/cpuid.h).
const DOMID_PRESENT: u32 = 1 << 4;

/// `DOMID_SELF` (public/xen.h).
const DOMID_SELF: u64 = 0x7ff0;
/// `HVMOP_get_param` (public/hvm/hvm_op.h).
const HVM_GET_PARAM: u64 = 1;

/// That we run on Xen, and as whom.
pub struct Xen {
    /// Our number.
    pub domid: u16,
    amd: bool,
}

impl Xen {
    /// Finds Xen.
    pub fn find() -> Option<Xen> {
        let leaves = guest_kit::xen_leaves()?;
        let hvm = cpu::cpuid(leaves.base + 4);
        let domid = if hvm.eax & DOMID_PRESENT != 0 {
            hvm.ecx as u16
        } else {
            0x7ff0
        };
        // "AuthenticAMD" has VMMCALL; others have VMCALL.
        let amd = cpu::cpuid(0).ebx == 0x6874_7541;
        Some(Xen { domid, amd })
    }

    /// The hypercall `number`, without the hypercall page, so that any number can be made.
    ///
    /// # Safety
    /// What the hypervisor writes where the arguments point must be memory that the program does
    /// not need.
    pub unsafe fn call(&self, number: u64, arguments: &[u64; 5]) -> i64 {
        let [a, b, c, d, e] = *arguments;
        let answer: i64;
        macro_rules! trap {
            ($instruction:literal) => {
                // SAFETY: promised by the caller. The calling convention is that of
                // public/arch-x86/xen-x86_64.h; argument registers may be changed.
                unsafe {
                    asm!(
                        $instruction,
                        inlateout("rax") number => answer,
                        inlateout("rdi") a => _,
                        inlateout("rsi") b => _,
                        inlateout("rdx") c => _,
                        inlateout("r10") d => _,
                        inlateout("r8") e => _,
                    )
                }
            };
        }
        if self.amd {
            trap!("vmmcall");
        } else {
            trap!("vmcall");
        }
        answer
    }

    /// A call whose argument is a structure of 32-bit words.
    pub fn call_words(&self, number: u64, command: u64, words: &mut [u32]) -> i64 {
        let at = words.as_mut_ptr() as u64;
        // SAFETY: the callers give structures that are large enough for their operation.
        unsafe { self.call(number, &[command, at, 0, 0, 0]) }
    }

    /// An HVM parameter of this domain; nothing if it is refused.
    pub fn param(&self, index: u32) -> Option<u64> {
        // `xen_hvm_param` (public/hvm/hvm_op.h): domain, pad, index, value.
        let mut param = [DOMID_SELF | u64::from(index) << 32, 0];
        // SAFETY: `HVMOP_get_param` writes the value into the structure.
        let answer = unsafe {
            let at = param.as_mut_ptr() as u64;
            self.call(number::HVM, &[HVM_GET_PARAM, at, 0, 0, 0])
        };
        (answer == 0).then_some(param[1])
    }

    /// Blocks until an event comes; none does.
    pub fn wait_for_ever(&self) -> ! {
        loop {
            // SCHEDOP_poll (public/sched.h) of no port, without an end.
            self.call_words(number::SCHED, 3, &mut [0; 6]);
        }
    }
}

/// A word of the one-to-one mapping.
///
/// # Safety
/// The address must be 4-aligned and below 4 GiB. Atomic, as the hypervisor may write it.
pub unsafe fn word(address: u64) -> &'static AtomicU32 {
    // SAFETY: promised by the caller.
    unsafe { &*(address as *const AtomicU32) }
}
