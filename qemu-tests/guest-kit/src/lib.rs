//! What our own PVH guests share: the way from the entry point to Rust, exceptions, instructions
//! as functions, Xen's hypercalls, lines on its debug port, grants, another guest, and a disk's front end. For `bench-guest`, `compare-guest` and
//! `hostile-guest`, which run unmodified on microvisor and on Xen.
//!
//! A guest that uses this defines its first function by [`entry!`] and links with `link.ld`.
//! Nothing here allocates; only [`disk`] and [`peer`] wait, and only [`interrupts`] turns them on.
#![no_std]

pub mod boot;
pub mod cpu;
pub mod debug_port;
pub mod disk;
pub mod grants;
pub mod interrupts;
pub mod pages;
pub mod peer;
pub mod trap;
pub mod xen;

use core::ffi::CStr;

/// Where `hvm_start_info` has the address of the command line (public/arch-x86/hvm/start_info.h).
const COMMAND_LINE: u64 = 24;

/// The command line, by what [`entry!`]'s function is called with; empty if there is none.
///
/// # Safety
/// `start_info` is that address, and neither it nor the line has been written to.
pub unsafe fn command_line(start_info: u64) -> &'static str {
    // SAFETY: the start info lies below 4 GiB, where everything is mapped.
    let at = unsafe { ((start_info + COMMAND_LINE) as *const u64).read_unaligned() };
    if at == 0 || at >= boot::MAPPED_END {
        return "";
    }
    // SAFETY: a string that ends in 0, in memory that nobody writes.
    let text = unsafe { CStr::from_ptr(at as *const core::ffi::c_char) };
    text.to_str().unwrap_or("")
}

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
