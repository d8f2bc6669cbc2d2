//! `console`: owns the serial port, COM1, and shows guests' consoles and components' logs on it.
//! Called by every component that has a log and by VMMs (interface `console`). It trusts no
//! client: rings are checked, pages are root's, and a client that dies is only ever one that says
//! nothing more. What is shown is decided in the library `console_mux`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod orders;
#[cfg(target_os = "none")]
mod server;
#[cfg(target_os = "none")]
mod uart;

#[cfg(target_os = "none")]
sdk::entry!(server::main);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("console runs on the microvisor only");
}
