//! Tests: a component as a client of the store. It speaks as domain 0, says what it finds and what
//! fires, and does what a guest writes to its own node `data/order`: `kill` has the store killed,
//! `kill NAME` that component, a word otherwise is answered in `data/answer`. `qemu-tests/src/store.rs` and
//! `qemu-tests/src/debian` type into the guest and read the log. Never used in a system that is not a test.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod probe;

#[cfg(target_os = "none")]
sdk::entry!(probe::main);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("store-probe runs on the microvisor only");
}
