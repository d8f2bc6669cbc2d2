//! What a VMM emulates of an x86 PC, as pure logic: the local APIC, the instructions that exit,
//! the guest's page tables, CPUID and MSRs, and the rules of event injection.
//!
//! Called by `vmm` (and later by the device model). Knows the state page's types but not how the
//! page is reached, and guest memory only as [`memory::GuestMemory`]. It never touches hardware,
//! never panics on what a guest wrote, and loops only over bounds of its own.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod apic;
pub mod cpuid;
pub mod decode;
pub mod event;
pub mod execute;
pub mod lookaside;
mod memo;
pub mod memory;
pub mod mode;
pub mod msr;
pub mod paging;
pub mod port;
pub mod registers;
