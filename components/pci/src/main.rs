//! `pci`: the bus. Enumerates functions and hands them out to drivers, one each, as the manifest says
//! (interface `pci`). It alone has configuration space and MSI-X tables. Called by drivers, of whom it
//! knows no more than their badge; it trusts root, and reads devices and firmware as hostile. What is
//! decided is in the library `pci_bus`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod access;
#[cfg(target_os = "none")]
mod server;

#[cfg(target_os = "none")]
sdk::entry!(server::main);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("pci runs on the microvisor only");
}
