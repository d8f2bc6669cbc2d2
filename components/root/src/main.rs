//! `root`: the first component. The core gives it every capability there is; it reads the manifest
//! in the boot archive, starts and wires the other components in the order of their needs, brings
//! guests up (builder, then VMM), reports what dies, and takes down and restarts what the manifest
//! says. It is never called by guests and trusts nothing that a component tells it beyond that
//! component's own fate. Decisions are in the library `root_plan`; here is what carries them out.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod run;

#[cfg(target_os = "none")]
sdk::root_entry!(run::main);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("root runs on the microvisor only");
}
