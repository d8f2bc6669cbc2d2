//! `toolstack`: carries out what the operator types at the console: guests' lives, guests out of
//! xl.cfg(5) files, and what there is to know. It is called by nobody: it attaches to the console, which
//! hands it lines, and calls root (interface `operator`) and the store, both of which it must trust
//! anyway. It keeps nothing that root does not know, so it may die at any time; it never touches a guest
//! itself.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(any(target_os = "none", test))]
extern crate alloc;

#[cfg(any(target_os = "none", test))]
mod ask;
#[cfg(any(target_os = "none", test))]
mod server;
#[cfg(test)]
mod simulated;
#[cfg(any(target_os = "none", test))]
mod terminal;

#[cfg(target_os = "none")]
sdk::entry!(server::main);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("toolstack runs on the microvisor only");
}
