//! `blkback`: serves guests' disks by Xen's block protocol, on volumes: whole disks or partitions behind
//! a driver (interface `block`), images of the boot archive, overlays in its own memory. It finds the disks
//! in the store, and reaches guests by what they granted, with a thread for each guest, as guests and their
//! VMMs are hostile and may keep it waiting. What is decided is in the library.
//!
//! It may die at any moment. The next instance goes on with the same rings: answers are given in the order of
//! requests, so what was not answered is still there, and doing it again does no harm. Only volumes with an
//! overlay lose what was written to it, so their disks are closed instead.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod hub;
#[cfg(target_os = "none")]
mod server;
#[cfg(target_os = "none")]
mod vbd;

#[cfg(target_os = "none")]
sdk::entry!(server::main);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("blkback runs on the microvisor only");
}
