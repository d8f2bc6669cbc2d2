//! `nvme`: drives the first namespace of one NVMe controller and serves it as a disk (interface
//! `block`). It gets the function from `pci`, and its device reaches the memory that root gave for it
//! and for its clients, nothing else where there is an IOMMU. Clients' rings are hostile, and so is the
//! device. It may die at any moment: the next instance resets the controller, and clients put to it
//! what was not answered. What is decided is in the library `nvm_express`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod machine;

#[cfg(target_os = "none")]
sdk::entry!(main);

#[cfg(target_os = "none")]
fn main(env: sdk::prelude::Env) {
    block_driver::server::main(env, machine::start);
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("nvme runs on the microvisor only");
}
