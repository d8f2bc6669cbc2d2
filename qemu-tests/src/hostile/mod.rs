//! Group `hostile`: components and guests that do what they must not, and the proof that each test
//! of isolation can fail.
//!
//! | module | does |
//! |---|---|
//! | [`components`] | bad components beside a heartbeat and a guest |
//! | [`guests`] | bad guests beside a good one |
//! | [`controls`] | the same tests with the check they depend on switched off |

mod components;
mod controls;
pub mod guests;

use crate::machines::Machines;
use crate::report::Report;

/// Runs the group; with `controls` all tests that must fail instead of the quick ones; with `full`,
/// these and all seeds of random hypercalls.
pub fn run(machines: &mut Machines, report: &mut Report, controls: bool, full: bool) {
    components::run(machines, report);
    guests::run(machines, report, full);
    controls::run(machines, report, controls || full);
}
