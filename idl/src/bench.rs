//! `bench`: what the benchmarks call. `echo` is 32 bytes of postcard each way: one of length, 31
//! of content.

use crate::{Bytes, interface};

/// Answers what it is asked.
#[interface]
pub trait Bench {
    /// The same bytes.
    fn echo(&self, bytes: Bytes<31>) -> Bytes<31>;
}
