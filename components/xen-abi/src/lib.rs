//! The Xen guest ABI as pure state machines.
//!
//! For: the `vmm` component (one process per guest, a thread per vCPU, one [`Domain`] behind a
//! lock) and, later, the PV shim. Semantics follow Xen 4.17's public headers and behaviour
//! towards an unprivileged HVM/PVH domain; the table in [`table`] lists every hypercall and
//! sub-operation with what becomes of it.
//!
//! It must never touch hardware, block, or trust a byte that it read from the guest: memory is
//! behind [`GuestMemory`], effects go out through [`Env`], and each guest value is read once.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
#[macro_use]
extern crate std;

mod access;
mod call;
mod config;
mod cpuid;
mod domain;
mod domctl;
mod env;
mod errno;
mod event;
mod fifo;
mod foreign;
mod grant;
mod granted;
mod hvm;
mod hypercall_page;
mod interdomain;
mod memory;
mod memory_op;
mod multicall;
mod physmap;
mod ports;
mod privileged;
mod runstate;
mod sched;
mod shared_info;
mod start;
pub mod table;
#[cfg(test)]
mod tests;
mod time;
mod timer;
mod upcall;
mod vcpu;
mod version;

pub use call::{Mode, Next, Outcome, Registers, Width, stateless};
pub use config::{Config, ConfigError, MapEntry, TscMode};
pub use domain::Domain;
pub use env::{
    Access, CopySide, Env, GrantCopy, GrantToken, LegacyLine, LinkId, MapError, ServiceId,
    ShutdownReason, StartSegment, Upcall, VcpuStart, VcpuStart32, VcpuStart64,
};
pub use errno::Errno;
pub use grant::MAX_GRANT_FRAMES;
pub use hypercall_page::{GeneralProtection, HYPERCALL_PAGE_MSR, Vendor, hypercall_page};
pub use memory::{GuestMemory, SpecialFrame, TestMemory, Unbacked};
pub use runstate::RunstateKind;

/// Most vCPUs of one domain: HVM_MAX_VCPUS of Xen 4.17 (`public/hvm/hvm_info_table.h`).
pub const MAX_VCPUS: u32 = 128;

/// Bytes in a page and in a Xen frame.
pub const PAGE_SIZE: u64 = 4096;
