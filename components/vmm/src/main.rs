//! `vmm`: runs one guest. A thread per vCPU executes what exits; the Xen ABI is `xen-abi`, the PC
//! is `x86-platform`, and this component joins both to the core's vCPUs, the guest's memory and
//! the console.
//!
//! Started by root, one instance per guest, after the guest's builder has finished. It holds that
//! guest's memory and vCPUs and the wires that the manifest gives it, nothing else: whatever the
//! guest does to it stays in here. It must never trust a value that the guest can write, and
//! nothing the guest does may end in a panic. What needs no core is in the library `vmm_guest`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod abroad;
#[cfg(target_os = "none")]
mod ask;
#[cfg(target_os = "none")]
mod env;
#[cfg(target_os = "none")]
mod foreign;
#[cfg(target_os = "none")]
mod map;
#[cfg(target_os = "none")]
mod peers;
#[cfg(target_os = "none")]
mod run;
#[cfg(target_os = "none")]
mod service;
#[cfg(target_os = "none")]
mod shared;
#[cfg(target_os = "none")]
mod stop;
#[cfg(target_os = "none")]
mod vcpu;

#[cfg(target_os = "none")]
sdk::entry!(run::main);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("vmm runs on the microvisor only");
}
