//! Bad guests beside a good one.

use crate::machines::Machines;
use crate::report::Report;

/// Runs the claims.
pub fn run(_machines: &mut Machines, _report: &mut Report) {}

/// Claims that controls can try: by name, on images built with a check off.
pub const EXPERIMENTS: &[(&str, super::controls::Experiment)] = &[];
