//! Test only: what dies, and what asks it to. The component called `caller` carries out a script and
//! logs what it sees; every other one serves `bench` and does what the first byte of a message says.
//! Used by the group `restart` of `cargo suite`, which judges the log. Holds nothing that a
//! component could not have, and knows the outcome of nothing it tries.
#![no_std]
#![no_main]

mod caller;
mod server;

use sdk::prelude::*;

sdk::entry!(main);

fn main(env: Env) {
    if env.name == "caller" {
        caller::run(&env);
    } else {
        server::run(&env);
    }
}
