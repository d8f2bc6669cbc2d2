//! Runs only on the microvisor.
fn main() {}
