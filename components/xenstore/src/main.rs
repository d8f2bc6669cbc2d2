//! `xenstore`: serves the store to guests, through their VMMs, and to components (interface `store`).
//! It learns of root which guests there are (`domains`), and keeps its state in memory of root's that
//! the next instance gets again. It never calls a client: they are told by a notification that events
//! wait. What a client sends is checked in the library.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

mod server;
#[cfg(test)]
mod simulated;

#[cfg(target_os = "none")]
sdk::entry!(server::main);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("xenstore runs on the microvisor only");
}
