//! Says what is going on, on standard error, so that standard output stays free for a guest's
//! console and for results. Anything that may take more than a second is announced.

use std::time::Instant;

/// One line: `  verb what`.
pub fn say(verb: &str, what: impl std::fmt::Display) {
    eprintln!("{verb:>12} {what}");
}

/// Announces `what`, does it, and says how long it took if that was long.
pub fn step<T>(verb: &str, what: impl std::fmt::Display, work: impl FnOnce() -> T) -> T {
    say(verb, &what);
    let start = Instant::now();
    let out = work();
    let took = start.elapsed();
    if took.as_secs() >= 5 {
        say("", format!("... {:.0} s", took.as_secs_f64()));
    }
    out
}
