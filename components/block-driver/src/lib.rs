//! What drivers of disks share: [`engine`] moves clients' requests to a device and its answers back,
//! and decides what happens when the device fails; [`server`] puts that behind interface `block`;
//! [`function`] gets the device from `pci`. Used by `virtio-blk` and `nvme`; it knows neither. It never
//! gives a device an address outside of what root shared with the client that asked.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod engine;
pub mod function;
pub mod memory;
pub mod server;
#[cfg(test)]
mod tests;

/// Why a device cannot be used, for the log.
pub type Failed = alloc::string::String;
