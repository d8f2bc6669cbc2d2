//! What a component can observe, and a neighbour that tries to be observed. Test-only: group `selftest`
//! of `cargo suite` boots both with one CPU and counted instructions (`qemu-tests/src/interference.rs`).
//!
//! One program with two roles; an instance plays the one that its name says. The observer writes its
//! trace into its log, one line a round; but for time, which has lines of its own, the trace must be the
//! same whatever a neighbour does that it has no wire to. Nothing here has a right that its role does
//! not need.
#![no_std]
#![no_main]

extern crate alloc;

mod neighbour;
mod trace;

use sdk::prelude::*;

sdk::entry!(main);

fn main(env: Env) {
    match env.name.as_str() {
        "neighbour" => neighbour::main(&env),
        _ => trace::main(&env),
    }
}

/// Tells root that this component serves, or has begun.
fn ready(env: &Env) {
    match SupervisorClient::connect(env.transport("supervisor")).map(|root| root.ready()) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::error!("root does not hear that this is ready: {error:?}"),
        Err(error) => log::error!("root is out of reach: {error:?}"),
    }
}
