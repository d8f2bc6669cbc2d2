//! What a VMM does with its guest's memory, free of the core: the memory itself, and the rings in
//! it that the guest shares with the VMM. Called by the `vmm` binary; host tests call it as it is.
//! Never makes a system call. `unsafe` is in [`ram`] alone.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod console;
pub mod deadline;
pub mod desk;
pub mod links;
#[allow(unsafe_code)]
pub mod ram;
pub mod store;
