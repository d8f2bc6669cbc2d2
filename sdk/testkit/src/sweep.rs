//! Every fault at every place: runs a scenario once as it is, and then once for each.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::fault::{Fault, Plan, Site};
use crate::seat;
use crate::system::System;

/// Findings that one report shows.
const SHOWN: usize = 8;

/// What a sweep came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Runs with one fault each.
    pub runs: usize,
    /// Those in which the fault happened.
    pub happened: usize,
}

/// Runs `scenario` without a fault, then again for each call that anybody made and each fault of
/// `Fault::of_calls`, and for each system call of each component, which dies in it. The scenario
/// builds its system with the plan, drives it, and answers it; what must hold whatever happens it
/// asserts itself. Here is judged what always must: nobody panics, waits or calls for ever, and
/// nobody holds more than at [`System::mark`].
///
/// Panics with all findings, each with its site and fault, so that it can be run alone.
pub fn sweep(scenario: impl Fn(Plan) -> System) -> Swept {
    let first = scenario(Plan::new());
    let wrong = first.faults();
    assert!(wrong.is_empty(), "without a fault: {}", wrong.join("; "));
    let mut sites = first.sites();
    drop(first);
    sites.sort();
    sites.dedup();
    let mut swept = Swept {
        runs: 0,
        happened: 0,
    };
    let mut findings = Vec::new();
    for site in sites {
        let faults = match &site {
            Site::Call { .. } => Fault::of_calls(),
            Site::SystemCall { .. } => vec![Fault::Die],
        };
        for fault in faults {
            swept.runs += 1;
            let plan = Plan::new().with(site.clone(), fault);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let system = scenario(plan);
                (system.faults(), system.pending().is_empty())
            }));
            let wrong = match outcome {
                Ok((wrong, happened)) => {
                    swept.happened += usize::from(happened);
                    wrong
                }
                Err(payload) => vec![seat::text(&*payload)],
            };
            if !wrong.is_empty() {
                findings.push(format!("{site:?}, {fault:?}: {}", wrong.join("; ")));
            }
        }
    }
    if !findings.is_empty() {
        let count = findings.len();
        findings.truncate(SHOWN);
        panic!(
            "{count} of {} runs went wrong:\n  {}",
            swept.runs,
            findings.join("\n  ")
        );
    }
    swept
}
