//! `virtio-blk`: drives one virtio block device over PCI and serves it as a disk (interface `block`).
//! It gets the function from `pci`, and its device reaches the memory that root gave for it and for
//! its clients, nothing else where there is an IOMMU. Clients' rings are hostile, and so is the
//! device. It may die at any moment: the next instance resets the device, and clients put to it what
//! was not answered. What is decided is in the library `virtio_block`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod device;

#[cfg(target_os = "none")]
sdk::entry!(main);

#[cfg(target_os = "none")]
fn main(env: sdk::prelude::Env) {
    block_driver::server::main(env, device::Device::start);
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("virtio-blk runs on the microvisor only");
}
