//! Group `hostile`: components and guests that do what they must not, and the proof that each test
//! of isolation can fail.
//!
//! | module | does |
//! |---|---|
//! | [`components`] | bad components beside a heartbeat and a guest |
//! | [`guests`] | bad guests beside a good one |
//! | [`controls`] | the same tests with the check they depend on switched off |

pub mod components;
mod controls;
pub mod guests;

use anyhow::{Result, bail};
use image_builder::controls::Control;

pub use controls::says_so;

use crate::machines::Machines;
use crate::report::Report;

/// What was found out of a claim: a test that could not be tried to its end is neither, but an
/// error.
pub enum Verdict {
    /// The claim holds.
    Holds,
    /// It does not: what was seen that must not be.
    Fails(String),
}

impl Verdict {
    /// `Ok` if the claim holds.
    fn holds(self) -> Result<()> {
        match self {
            Verdict::Holds => Ok(()),
            Verdict::Fails(why) => bail!("{why}"),
        }
    }
}

/// What is found out of a control's claim where that check is off, on machines that are built so.
pub fn judged(machines: &mut Machines, control: &Control) -> Result<Verdict> {
    controls::judged(machines, control)
}

/// Runs the group; with `controls` all tests that must fail instead of the quick ones; with `full`,
/// these and all seeds of random hypercalls.
pub fn run(machines: &mut Machines, report: &mut Report, controls: bool, full: bool) {
    components::run(machines, report);
    guests::run(machines, report, full);
    controls::run(machines, report, controls || full);
}
