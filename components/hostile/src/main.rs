//! Components that do what they must not, and a neighbour that watches. Test-only: group `hostile`
//! of `cargo suite` boots them (`qemu-tests/systems/hostile-components.toml`).
//!
//! One program with many roles; an instance plays the role that its name says. What a role finds
//! out is a line `claim holds: NAME (what)` or `claim fails: NAME (why)` in its log; the suite waits for
//! those lines and knows all names. Nothing here has a right that its role does not need.
//!
//! | module | roles |
//! |---|---|
//! | [`faults`] | every exception that ring 3 can raise, and every forbidden instruction |
//! | [`deaths`] | components that fault for good, for root to report |
//! | [`caps`] | forged, exceeded and stale capabilities; random calls |
//! | [`memory`] | eats all its memory; looks for others' data in it |
//! | [`messages`] | malformed messages, no answers, floods |
//! | [`registers`] | looks for others' registers |
//! | [`time`] | never gives the CPU back |
//! | [`neighbour`] | beats, lends and revokes, calls the mute server |
//! | [`claim`], [`raw`], [`runner`] | how results are told; bare system calls; code on a second thread |
#![no_std]
#![no_main]

extern crate alloc;

mod caps;
mod claim;
mod deaths;
mod faults;
mod memory;
mod messages;
mod neighbour;
mod raw;
mod registers;
mod runner;
mod storm;
mod time;
mod wires;

use sdk::prelude::*;

sdk::entry!(main);

fn main(env: Env) {
    let name = env.name.clone();
    match name.as_str() {
        "neighbour" => neighbour::main(&env),
        "hostile-faults" => faults::main(&env),
        "hostile-caps" => caps::main(&env),
        "hostile-storm" => storm::main(&env),
        "hostile-memory" => memory::main(&env),
        "hostile-borrower" => memory::borrower(&env),
        "hostile-postcard" => messages::malformed(&env),
        "hostile-mute" => messages::mute(&env),
        "hostile-flood" => messages::flood(&env),
        "hostile-loop" => time::spin(&env),
        "secret" => registers::secret(&env),
        "hostile-registers" => registers::scan(&env),
        death => deaths::main(death),
    }
}
