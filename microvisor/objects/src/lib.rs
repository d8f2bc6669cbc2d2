//! The core's objects and calls, free of hardware.
//!
//! The core links this crate and gives it real physical memory and a [`machine::Machine`]; host
//! tests give it a `Vec` and counters. It is the same code. Where to look:
//! - `slot`, `cap_space`: capabilities and their derivation;
//! - `memory`, `translate`: retype, mappings, page tables, and what deleting a capability does;
//! - `thread`, `sched`, `timer`, `endpoint`, `notification`: execution, time and communication;
//! - `fast`: the common case of messages, short;
//! - `vcpu`, `interrupt`, `device`: guests, lines and devices, as far as they are objects;
//! - `kernel`: the state that the lock guards and the one `match` over all calls.
//!
//! `unsafe` is in `arena` (and its slot accessors), in the one-line promises that object types make
//! to it, and in `fast`, which says of each link it follows why it holds.
#![cfg_attr(not(test), no_std)]

#[cfg(planted = "by-name")]
#[macro_use]
#[path = "../tests/refinement/planted.rs"]
mod planted;

pub mod arena;
pub mod boot;
pub mod cap_space;
#[cfg(debug_assertions)]
pub mod check;
pub mod device;
pub mod endpoint;
pub mod fast;
pub mod id;
pub mod interrupt;
pub mod kernel;
pub mod machine;
pub mod memory;
pub mod notification;
pub mod sched;
pub mod slot;
pub mod thread;
pub mod timer;
pub mod translate;
pub mod vcpu;

pub use arena::Arena;
pub use fast::Handover;
pub use id::{PhysAddr, Ref, VcpuArea};
pub use kernel::{Config, Kernel};
pub use machine::{Answer, Ask, DmaTables, Flush, GuestTables, Machine};
pub use thread::Thread;

#[cfg(test)]
extern crate self as microvisor_objects;
#[cfg(test)]
#[path = "../tests/refinement/mod.rs"]
mod refinement;
