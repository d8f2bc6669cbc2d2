//! Test only: what dies, and what asks it to. The component called `caller` carries out a script and
//! logs what it sees; every other one serves `bench` and does what the first byte of a message says.
//! Used by the group `restart` of `cargo suite`, which judges the log. Holds nothing that a
//! component could not have, and knows the outcome of nothing it tries.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(any(target_os = "none", test))]
mod caller;
#[cfg(any(target_os = "none", test))]
mod server;
#[cfg(test)]
mod simulated;

#[cfg(any(target_os = "none", test))]
use sdk::prelude::*;

#[cfg(target_os = "none")]
sdk::entry!(component);

#[cfg(any(target_os = "none", test))]
fn component(env: Env) {
    if env.name == "caller" {
        caller::run(&env);
    } else {
        server::run(&env);
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("restart-probe runs on the microvisor only");
}
