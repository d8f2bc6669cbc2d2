//! `console`: owns the serial port, COM1, and shows guests' consoles and components' logs on it.
//! Called by every component that has a log, by VMMs and by the toolstack (interface `console`). It trusts no
//! client: rings are checked, pages are root's, and a client that dies is only ever one that says
//! nothing more. What is shown is decided in the library `console_mux`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(any(target_os = "none", test))]
extern crate alloc;

#[cfg(any(target_os = "none", test))]
mod server;
#[cfg(test)]
mod simulated;
#[cfg(any(target_os = "none", test))]
mod uart;

#[cfg(target_os = "none")]
sdk::entry!(server::main);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("console runs on the microvisor only");
}
