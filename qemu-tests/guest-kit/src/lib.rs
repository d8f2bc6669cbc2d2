//! What our own PVH guests share: the way from the entry point to Rust, exceptions, instructions
//! as functions, and finding Xen. For `bench-guest` and `hostile-guest`, which run unmodified on
//! microvisor and on Xen.
//!
//! A guest that uses this defines its first function by [`entry!`] and links with `link.ld`.
//! Nothing here allocates, waits, or turns interrupts on.
#![no_std]

pub mod boot;
pub mod cpu;
pub mod trap;

/// Makes `$main`, a `fn(u64) -> !`, the first Rust code of the guest. It is called once, in 64-bit
/// mode with 4 GiB mapped one to one, with the address of `hvm_start_info`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        // SAFETY: the only symbol of this name, which `boot` calls as it is declared.
        #[unsafe(no_mangle)]
        extern "C" fn guest_main(start_info: u64) -> ! {
            let main: fn(u64) -> ! = $main;
            main(start_info)
        }
    };
}

/// What CPUID's Xen leaves say of the hypervisor.
#[derive(Clone, Copy, Debug)]
pub struct XenLeaves {
    /// First leaf.
    pub base: u32,
    /// The MSR that has the hypercall page written.
    pub page_msr: u32,
}

/// Looks for Xen's leaves (public/arch-x86/cpuid.h: they may begin at any multiple of 0x100).
pub fn xen_leaves() -> Option<XenLeaves> {
    let base = (0x4000_0000..0x4001_0000).step_by(0x100).find(|&base| {
        let leaf = cpu::cpuid(base);
        // "XenVMMXenVMM", and the highest leaf.
        (leaf.ebx, leaf.ecx, leaf.edx) == (0x566e_6558, 0x6558_4d4d, 0x4d4d_566e)
            && leaf.eax >= base + 2
    })?;
    Some(XenLeaves {
        base,
        page_msr: cpu::cpuid(base + 2).ebx,
    })
}
