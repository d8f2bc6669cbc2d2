//! How results are told: lines in the log that the suite reads. A log drops lines when its console
//! is slow; these are too precious, so they wait.

use alloc::string::String;
use core::fmt::Display;

/// Tells whether a claim holds.
pub fn claim(name: &str, outcome: Result<impl Display, impl Display>) {
    match outcome {
        Ok(what) => log::info!("claim holds: {name} ({what})"),
        Err(why) => log::info!("claim fails: {name} ({why})"),
    }
    sdk::logging::drain();
}

/// An outcome: what was tried, or what was wrong.
pub type Outcome = Result<String, String>;

/// Sleeps so many microseconds.
pub fn pause(microseconds: u64) {
    let deadline = sdk::time::now().saturating_add(sdk::time::microseconds(microseconds));
    // It fails only without memory for a notification; then this is a short loop.
    let _ = sdk::time::sleep_until(deadline);
}

/// So many milliseconds from now.
pub fn after(milliseconds: u64) -> u64 {
    sdk::time::now().saturating_add(sdk::time::microseconds(milliseconds * 1000))
}
